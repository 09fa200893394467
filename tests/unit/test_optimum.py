"""What follows from a validation curve: T*, learning rates, when a run ends, and which steps it keeps."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from transformers import get_scheduler

from mergetime.config.experts import Course, StoppingRule
from mergetime.training.durations import DurationRule, EarlyStopping, FixedSteps, MultiplesOfOptimum
from mergetime.training.optimum import Optimum, Point, find_optimum, passed, steps_of
from mergetime.training.schedule import Schedule


def curve(*losses: float, every: int = 40) -> list[Point]:
    return [Point(number * every, loss) for number, loss in enumerate(losses)]


def test_interior_minimum() -> None:
    found = find_optimum(curve(3.0, 2.0, 1.0, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2), longest=5, max_steps=400)
    assert found == Optimum(step=80, loss=1.0, boundary=None, lowest_step=80)


def test_noise_does_not_move_the_lowest_step() -> None:
    losses = [3.0, 1.2, 1.0, 1.3, 1.01, 1.4, 1.02, 1.5, 1.1, 1.2, 1.3]
    assert find_optimum(curve(*losses), longest=5, max_steps=400).step == 80


def test_flat_curve_has_its_optimum_where_it_became_flat() -> None:
    found = find_optimum(curve(3.0, 1.0, 1.0, 1.0, 1.0, 1.0), longest=5, max_steps=200)
    assert (found.step, found.boundary) == (40, None)


def test_of_two_minima_the_lower_counts_though_it_comes_later() -> None:
    early = curve(3.0, 1.0, 1.5, 1.4)
    assert not passed(early, 5)
    both = curve(3.0, 1.0, 1.5, 0.9, 1.4, 1.5, *[2.0] * 10)
    assert find_optimum(both, longest=5, max_steps=600).step == 120


def test_falling_until_the_end_is_an_upper_boundary() -> None:
    losses = [3.0 - 0.1 * number for number in range(11)]
    found = find_optimum(curve(*losses), longest=5, max_steps=400)
    assert found == Optimum(step=80, loss=losses[2], boundary="upper", lowest_step=400)


def test_rising_from_the_start_is_a_lower_boundary() -> None:
    found = find_optimum(curve(1.0, 1.1, 1.2, 1.3, 1.4, 1.5), longest=5, max_steps=200)
    assert (found.step, found.boundary) == (40, "lower")


def test_a_flat_base_is_no_improvement() -> None:
    assert find_optimum(curve(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), longest=5, max_steps=200).boundary == "lower"


@pytest.mark.parametrize(("losses", "ends"), [((3, 1, 2, 2, 2), False), ((3, 1, 2, 2, 2, 2), True), ((3,), False)])
def test_training_ends_at_five_times_the_lowest_step(losses: tuple[float, ...], ends: bool) -> None:
    assert passed(curve(*losses), 5) is ends


def test_a_later_minimum_moves_the_end() -> None:
    losses = [3.0, 1.0, 1.1, 1.1, 1.1, 0.9]
    assert not passed(curve(*losses), 5)
    assert passed(curve(*losses, *[1.0] * 20), 5)


def test_diverged_losses_are_never_the_lowest() -> None:
    found = find_optimum(
        curve(3.0, 2.0, math.nan, 1.5, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, *[2.0] * 5), longest=5, max_steps=600
    )
    assert found.step == 120


@pytest.mark.parametrize("losses", [(3.0, math.nan, math.nan), (3.0,)])
def test_nothing_to_find_is_said(losses: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="no finite validation loss at a step up to 400 / 5"):
        find_optimum(curve(*losses), longest=5, max_steps=400)


@pytest.mark.parametrize("evaluations", range(1, 12))
def test_every_quarter_of_t_star_is_a_saved_step(evaluations: int) -> None:
    save_every = 7
    steps = steps_of([0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5], evaluations * 4 * save_every)
    assert all(step % save_every == 0 for step in steps.values())
    assert steps["1x"] == evaluations * 28
    assert list(steps) == ["0.25x", "0.5x", "0.75x", "1x", "1.5x", "2x", "3x", "5x"]


def test_a_multiple_between_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.25x of T\* = 30 fall between steps"):
        steps_of([0.25, 1], 30)


@pytest.mark.parametrize(
    ("kind", "name"), [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")]
)
def test_rates_are_those_of_transformers(kind: Course, name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    expected = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=40)
    schedule = Schedule(kind, peak=3e-4, warmup=7, total=40)
    for done in range(41):
        assert schedule.rate(done, []) == pytest.approx(expected.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        expected.step()
    if kind != "constant":
        assert schedule.rate(40, []) == 0


def algorithm_1_of_less_is_more(accuracies: dict[int, float], steps: int) -> tuple[list[float], int | None]:
    """Its pseudocode line by line, with peak 1e-5: the rate of every step, and the one before which it stops."""
    warm, interval, patience, factor, least = 50, 5, 3, 0.5, 1e-7
    best, count, rate = 0.0, 0, 0.0
    rates: list[float] = []
    for step in range(1, steps + 1):
        if step <= warm:
            rate = 1e-5 * step / warm
        elif step % interval == 0:
            if accuracies[step] > best:
                best, count = accuracies[step], 0
            else:
                count += 1
                if count >= patience:
                    rate, count = rate * factor, 0
                    if rate < least:
                        return rates, step
        rates.append(rate)
    return rates, None


def test_plateau_and_rate_below_are_algorithm_1_of_paper_001() -> None:
    rng = random.Random(3)
    accuracies = {step: min(0.9, step / 100) + rng.uniform(-0.02, 0.02) for step in range(5, 1001, 5)}
    rates, stop = algorithm_1_of_less_is_more(accuracies, 1000)
    assert stop
    schedule = Schedule("plateau", peak=1e-5, warmup=50, total=1000, monitor="accuracy", factor=0.5, patience=3)
    rule = StoppingRule(every=5, rate_below=1e-7)
    kept = EarlyStopping({"paper": rule}, schedule, last_step=1000)
    whole = [Point(step, 1.0, accuracy) for step, accuracy in accuracies.items()]
    # Ours is the rate of the step after the validation, whose warm-up starts at 0 as transformers' does.
    for step in range(51, stop):
        assert schedule.rate(step, [point for point in whole if point.step <= step]) == pytest.approx(rates[step - 1])
    seen, stopped = kept.seen(rule, whole)
    assert stopped
    assert seen[-1].step == stop
    assert not kept.over([point for point in whole if point.step < stop])
    assert kept.over([point for point in whole if point.step <= stop])


def test_patience_counts_what_the_rule_sees() -> None:
    schedule = Schedule("constant", peak=1e-4, warmup=0, total=2000, monitor="accuracy")
    rules = {"v0": StoppingRule(every=100, patience=5), "v1": StoppingRule(every=50, patience=3)}
    kept = EarlyStopping(rules, schedule, last_step=2000)
    assert kept.every == 50
    # Odd multiples of 50 are worse, which v0 does not see.
    score = {step: 0.5 + min(step, 600) / 1000 - (0.3 if step % 100 else 0) for step in range(50, 2001, 50)}
    whole = [Point(0, 9.0, 0.99), *(Point(step, 1.0, value) for step, value in score.items())]
    assert kept.best(rules["v0"], whole) == Point(600, 1.0, score[600])
    assert kept.seen(rules["v0"], whole)[0][-1].step == 1100
    assert kept.seen(rules["v1"], whole)[0][-1].step == 750
    assert kept.kept(whole) == {"v0": 600, "v1": 600}
    assert not kept.over([point for point in whole if point.step <= 1050])
    assert kept.over([point for point in whole if point.step <= 1100])


def test_a_rule_that_saw_nothing_is_named() -> None:
    kept = EarlyStopping({"late": StoppingRule(every=50, patience=1)}, Schedule("constant", 1.0, 0, 40), last_step=40)
    with pytest.raises(ValueError, match=r"early_stopping.late: no validation up to step 40"):
        kept.kept([Point(0, 1.0, 0.5)])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "durations",
    [
        MultiplesOfOptimum((0.25, 0.5, 0.75, 1, 1.5, 2, 5), save_every=2, last_step=400),
        MultiplesOfOptimum((0.25,), save_every=2, last_step=90),
        FixedSteps((2, 6, 40), save_every=2),
        EarlyStopping(
            {"v0": StoppingRule(every=8, patience=3), "v1": StoppingRule(every=4, patience=2)},
            Schedule("constant", 1.0, 0, 400),
            last_step=400,
        ),
    ],
)
def test_what_is_pruned_is_never_missed(durations: DurationRule, seed: int) -> None:
    rng = random.Random(seed)
    saved: set[int] = set()
    curve = [Point(0, 3.0)]
    step = 0
    while step < durations.last_step and not durations.over(curve):
        step += 1
        if durations.may_be_kept(step, curve):
            saved.add(step)
        if durations.validates(step):
            curve.append(Point(step, abs(step - 60) / 60 + rng.uniform(0, 0.6)))
            saved = {one for one in saved if durations.may_be_kept(one, curve)}
    assert set(durations.kept(curve).values()) <= saved


def test_only_quarters_of_what_can_still_be_t_star_stay() -> None:
    durations = MultiplesOfOptimum((0.25, 1, 5), save_every=10, last_step=2000)
    falling: Sequence[Point] = [Point(step, 3 - step / 1000) for step in range(0, 201, 40)]
    assert [step for step in range(10, 201, 10) if durations.may_be_kept(step, falling)] == [
        *(50, 60, 70, 80, 90, 100),  # quarters of 200, and of 240 to 400, the last whose fivefold fits
        200,
    ]
