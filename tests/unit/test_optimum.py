"""T*: where it is, when a run has passed it, and what is said at a boundary."""

import math

import pytest

from mergetime.training.optimum import Optimum, Point, find_optimum, passed, steps_of


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
