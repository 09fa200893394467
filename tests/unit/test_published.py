"""The published numbers held against themselves, and beside a study's own."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import binom

from mergetime.config import reading
from mergetime.config.study import Study
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.papers import comparison
from mergetime.papers.duration.published import audit, compare, numbers, statements
from mergetime.papers.duration.published.compare import PrintedCell
from mergetime.papers.duration.published.numbers import Published
from mergetime.publishing.inputs import Inputs
from mergetime.results import columns as tidy

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "config/papers/duration"
LARGE, MIDDLE, SMALL = "Qwen3.5-4B", "Qwen3.5-2B", "Qwen3.5-0.8B"

# Read off the paper by hand: (check or statement, table, cell). Every place that does not agree, and nothing else.
INCONSISTENT = {
    # Table 4 prints the row of Table 3, the 0.8B model's, for the 2B model's simple average at T*.
    ("repeated_rows", "4", f"{MIDDLE}, merged, simple_average, T*"),
    # Table 5 has a dash for the 4B base on code, and an average over the other three domains in line with those over four.
    ("missing_cells", "5", f"{LARGE}, base, code"),
    ("averages_over_fewer", "5", f"{LARGE}, base, average"),
    # Section 4.1 and the caption of Table 6 keep simple averaging below T*; Table 6 reaches 1.0x for 0.8B.
    ("averaging_range_text", "6", f"{SMALL}, simple_average"),
    ("averaging_stays_undertrained", "6", f"{SMALL}, simple_average"),
    # Section 4.2: "at or below 25% refusal even at 4B"; Table 2 prints 25.5.
    ("averaging_refusal_ceiling", "2", f"{LARGE}, simple_average, 1.0x"),
    # Section 4.2: Task Arithmetic preserves more safety than simple averaging; at 0.5x it has 5.5, averaging 6.5.
    ("arithmetic_refuses_more", "2", f"{SMALL}, task_arithmetic, 0.5x"),
    # Section 4.2: TIES and DARE+TIES retain the most; at 2B TIES has 20.5, 16.5, 23.5, Task Arithmetic 29.5, 30.5, 30.0.
    ("sparse_refuse_most", "2", f"{MIDDLE}, ties, 2.0x, 3.0x, 5.0x"),
    # Section 4.2: Greedy Soup retains little refusal at extremes; the 4B one has 22.5 at 0.25x, of a peak of 23.0.
    ("soup_refusal_extremes", "2", f"{LARGE}, greedy_soup, 0.25x"),
    # Section 4.2: TIES prefers overtrained experts, later for larger models; at 2B it peaks at 1.0x, after 1.5x at 0.8B.
    ("sparse_refusal_overtrained", "8", f"{MIDDLE}, ties, safety"),
    ("sparse_refusal_drifts_later", "8", f"{MIDDLE}, ties, safety"),
    # Section 6: sparsification peaks at 2-5x; Table 6 begins at 1.5x (TIES, 0.8B) and at 0.25x (DARE+TIES, 2B).
    ("sparse_range_conclusion", "6", f"{SMALL}, ties"),
    ("sparse_range_conclusion", "6", f"{MIDDLE}, dare_ties"),
    # Section 6: TIES or DARE+TIES give the best merges at all sizes; at 2B Greedy Soup and at 4B Task Arithmetic do.
    ("sparse_merges_are_best", "4", f"{MIDDLE}, merged, greedy_soup, best, average"),
    ("sparse_merges_are_best", "5", f"{LARGE}, merged, task_arithmetic, best, average"),
    # Section 6: TIES or DARE+TIES recover most of the gap to the experts; DARE+TIES (29.1 - 26.1) / (32.5 - 26.1) = 47 %,
    # (37.0 - 33.2) / (42.2 - 33.2) = 42 %, and without code, which the base lacks, (52.9 - 48.9) / (59.0 - 48.9) = 40 %.
    ("sparse_recovers_most", "3", f"{SMALL}, merged, dare_ties, best, average"),
    ("sparse_recovers_most", "4", f"{MIDDLE}, merged, dare_ties, best, average"),
    ("sparse_recovers_most", "5", f"{LARGE}, merged, dare_ties, best, average"),
    # Caption of Table 6: sparsification's range shifts right with size; DARE+TIES goes from 2.0-5.0x to 0.25-5.0x.
    ("sparse_range_shifts_later", "6", f"{MIDDLE}, dare_ties"),
    # Section A.4: averaging-style methods peak undertrained ...
    ("averaging_peaks_undertrained", "7", f"{SMALL}, simple_average, instruction"),
    ("averaging_peaks_undertrained", "8", f"{MIDDLE}, greedy_soup, math"),
    ("averaging_peaks_undertrained", "9", f"{LARGE}, greedy_soup, math"),
    ("averaging_peaks_undertrained", "9", f"{LARGE}, greedy_soup, code"),
    ("averaging_peaks_undertrained", "9", f"{LARGE}, greedy_soup, multilingual"),
    # ... and sparsification-based ones overtrained.
    ("sparse_peaks_overtrained", "8", f"{MIDDLE}, dare_ties, instruction"),
}
FACTS = len(INCONSISTENT) - 6
"""Not counted twice: that 0.8B's simple average reaches T* (stated in three places), that 4B's soup passes it (three
domains), that 2B's DARE+TIES is best at 0.25x (two places), and that the 4B base has no number for code (two cells)."""


@pytest.fixture(scope="module")
def published() -> Published:
    return numbers.load(FOLDER)


@pytest.fixture(scope="module")
def stated() -> list[statements.Statement]:
    return statements.load(FOLDER / "statements.yaml")


def keys(findings: Any) -> list[tuple[str, str, str]]:
    return [(one.check, one.table, one.cell) for one in findings]


def test_the_audit_names_each_inconsistency_and_nothing_else(
    published: Published, stated: list[statements.Statement]
) -> None:
    found = [key for check in audit.CHECKS.values() for key in keys(check(published))]
    found += [key for statement in stated for key in keys(statements.hold(statement, published))]
    assert len(found) == len(set(found))
    assert set(found) == INCONSISTENT


def changed(frame: pd.DataFrame, column: str, value: float | None, **where: Any) -> pd.DataFrame:
    """The frame with one cell changed."""
    chosen = pd.Series(True, index=frame.index)
    for name, wanted in where.items():
        chosen &= frame[name] == wanted
    assert chosen.sum() == 1
    return frame.assign(**{column: frame[column].mask(chosen, value)})


TIES_4B = {"model": LARGE, "method": "ties"}


@pytest.mark.parametrize(
    ("check", "frame", "column", "value", "where", "cell"),
    [
        ("averages", "accuracy", "accuracy_pct", 60.1, {**TIES_4B, "selection": "best", "domain": "average"}, "average"),
        ("missing_cells", "accuracy", "accuracy_pct", None, {**TIES_4B, "selection": "T*", "domain": "code"}, "code"),
        ("best_below_t_star", "accuracy", "accuracy_pct", 70.0, {**TIES_4B, "selection": "T*", "domain": "math"}, "math"),
        ("granularity", "accuracy", "accuracy_pct", 61.4, {**TIES_4B, "selection": "best", "domain": "code"}, "code"),
        ("granularity", "refusals", "refusal_rate_pct", 68.7, {**TIES_4B, "duration": 3.0}, "3.0x"),
        ("refusal_optima", "refusals", "refusal_rate_pct", 70.0, {**TIES_4B, "duration": 5.0}, "safety"),
        ("refusal_optima", "optima", "duration", 5.0, {**TIES_4B, "domain": "safety"}, "safety"),
        ("optimal_ranges", "optima", "duration", 2.0, {**TIES_4B, "domain": "math"}, "ties"),
        ("optimal_ranges", "ranges", "highest_duration", 3.0, TIES_4B, "ties"),
        ("optimum_at_t_star", "optima", "duration", 1.0, {**TIES_4B, "domain": "math"}, "math"),
    ],
)  # fmt: skip
def test_each_check_of_tables_sees_a_changed_cell(
    published: Published, check: str, frame: str, column: str, value: float | None, where: dict[str, Any], cell: str
) -> None:
    change: dict[str, Any] = {frame: changed(getattr(published, frame), column, value, **where)}
    broken = replace(published, **change)
    before, after = (set(keys(audit.CHECKS[check](one))) for one in (published, broken))
    (new,) = after - before
    assert LARGE in new[2] and "ties" in new[2] and cell in new[2]


def test_rounding_alone_is_no_finding(published: Published) -> None:
    # 20.675 printed as 20.6, and 28.025 as 28.1, are what rounded cells can give.
    assert list(audit.averages(published)) == []
    wrong = changed(
        published.accuracy, "accuracy_pct", 28.2, table=3, method="dare_ties", selection="T*", domain="average"
    )
    assert len(list(audit.averages(replace(published, accuracy=wrong)))) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"check": "ranges_within", "methods": ["ties"], "lowest": 2, "highest": 5},
        {"check": "ranges_rise_with_size", "methods": ["greedy_soup", "dare_ties"]},
        {"check": "optima_rise_with_size", "methods": ["simple_average"], "domain": "safety"},
        {"check": "optima_on_side", "methods": ["ties"], "domains": ["safety"], "side": "below"},
        {"check": "optimum_is", "methods": ["ties"], "domain": "math", "duration": 2.5},
        {"check": "best_cell", "methods": ["ties"], "models": [LARGE], "domain": "math", "duration": 3, "value": 66.0},
        {"check": "gains_between", "methods": ["ties"], "lowest": 2.5, "highest": 8.0},
        {"check": "best_average_by", "methods": ["simple_average"]},
        {"check": "refusals_at_most", "methods": ["ties"], "highest": 68.0},
        {"check": "refusal_peak", "methods": ["greedy_soup"], "models": [LARGE], "duration": 1.0, "value": 24.0},
        {"check": "refuse_more", "methods": ["greedy_soup"]},
        {"check": "refuse_more", "methods": ["dare_ties"], "over": "ties"},
        {"check": "refusals_fall_at_ends", "methods": ["greedy_soup"], "models": [SMALL], "highest": 0.25},
        {"check": "gap_recovered", "methods": ["ties"], "lowest": 0.75},
        {"check": "refusal_ratio", "methods": ["ties"], "models": [LARGE], "over": "simple_average", "lowest": 2.7},
    ],
    ids=lambda fields: str(fields["check"]),
)
def test_each_check_of_statements_sees_a_wrong_statement(published: Published, fields: dict[str, Any]) -> None:
    statement = statements.Statement(id="wrong", section="0", **fields)
    assert list(statements.hold(statement, published))


def test_a_fact_that_several_places_state_is_one_finding() -> None:
    audited = audit.audited(FOLDER)
    assert len(audited.findings) == FACTS
    (averaging,) = [found for found in audited.findings if "averaging_range_text" in found.check]
    assert (averaging.section, averaging.table) == ("4.1; Table 6; A.4", "6; 7")
    assert averaging.cell == f"{SMALL}, simple_average; {SMALL}, simple_average, instruction"
    (soup,) = [found for found in audited.findings if found.cell.startswith(f"{LARGE}, greedy_soup, math")]
    assert (soup.check, soup.recomputed) == ("averaging_peaks_undertrained", "2.0x; 3.0x")


def test_the_gap_is_taken_over_the_domains_that_all_rows_have(published: Published) -> None:
    statement = statements.Statement(id="gap", section="6", check="gap_recovered", methods=["dare_ties"], lowest=0.5)
    (of_large,) = [found for found in statements.hold(statement, published) if LARGE in found.cell]
    # Of 61.6, 30.9 and 54.1; 78.0, 44.0 and 54.9; 63.6, 38.1 and 57.1.
    assert of_large.recomputed == f"{(52.93 - 48.87) / (58.97 - 48.87):.0%}" == "40%"


def test_every_printed_model_must_improve_for_averages_improve(published: Published) -> None:
    worse = changed(published.accuracy, "accuracy_pct", 50.0, **TIES_4B, selection="best", domain="average")
    statement = statements.Statement(id="worse", section="0", check="averages_improve")
    assert len(list(statements.hold(statement, replace(published, accuracy=worse)))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {id: a, section: '1', check: ranges_withn}", "'ranges_withn' is unknown; did you mean"),
        ("- {id: a, section: '1', check: ranges_within, methods: [ties], lowest: 1}", "needs highest"),
        ("- {id: a, section: '1', check: averages_improve}\n" * 2, "two statements have the id a"),
        ("[", "not YAML"),
    ],
)
def test_malformed_statements_get_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "statements.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        statements.load(file)
    assert "\n" not in str(error.value)


def test_missing_and_foreign_tables_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"paper\.yaml: no such file"):
        numbers.load(tmp_path)
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "published/table_6_optimal_ranges.csv").write_text("model,method\n")
    with pytest.raises(UserError, match=r"table_6_optimal_ranges\.csv: its columns are model, method; expected"):
        numbers.load(tmp_path)


# A study that matches the paper: our numbers are the published ones, but for what a test changes.


def paper_study(**changes: Any) -> Study:
    content = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    return reading.parse(content | changes, "paper")


def row(study: Study, kind: str, domain: str, percent: float, **other: Any) -> dict[str, Any]:
    items = {"math": 1319, "code": 164, "instruction": 541, "multilingual": 4600, "safety": 200}[domain]
    nothing = dict.fromkeys(["expert", "pool", "method", "space", "duration", "multiple", "seed", "chosen"])
    share = percent / 100
    found = {"study": "s", "base_revision": "0", "subject_kind": kind, **nothing, "t_star_at_boundary": False}
    found |= {
        "split": "test",
        "group": "test",
        "domain": domain,
        "benchmark": study.suites.test[domain],
        "metric": "m",
        "primary": True,
    }
    found |= {"value": share, "stderr": (share * (1 - share) / (items - 1)) ** 0.5, "items": items, **other}
    return found | {"task_hash": "0", "harness_version": "0", "subject": str(sorted(other.items(), key=str))}


def as_printed(published: Published, study: Study, shift: float = 0.0) -> pd.DataFrame:
    """Results that reproduce the paper: scores at T*, the best at the printed optimum, little elsewhere."""
    bases = dict(zip(published.models, study.bases, strict=True))
    printed = published.accuracy.set_index(["model", "subject", "method", "selection", "domain"])["accuracy_pct"]
    optima = published.optima.set_index(["model", "method", "domain"])["duration"]
    rows = []
    for model, base in bases.items():
        for domain in published.paper.accuracy_domains:
            untrained = printed.get((model, "base", float("nan"), float("nan"), domain))
            rows.append(row(study, "base", domain, 50.0 if pd.isna(untrained) else untrained, base=base))
            own = {"expert": domain, "duration": "1x", "multiple": 1.0, "seed": 1}
            rows.append(
                row(study, "expert", domain, printed[model, "expert", float("nan"), "T*", domain], base=base, **own)
            )
            for method in published.refusals["method"].unique():
                for multiple in published.paper.durations:
                    value = 1.0
                    if multiple == 1:
                        value = printed[model, "merged", method, "T*", domain]
                    if multiple == optima[model, method, domain]:
                        value = printed[model, "merged", method, "best", domain]
                    rows.append(merged_row(study, base, method, multiple, domain, value + shift))
    for cell in numbers.records(published.refusals):
        rows.append(merged_row(study, bases[cell.model], cell.method, cell.duration, "safety", cell.refusal_rate_pct))
    rows += [row(study, "base", "safety", 1.0, base=base) for base in bases.values()]
    return pd.DataFrame(rows).reindex(columns=list(tidy.RESULTS))


def merged_row(study: Study, base: str, method: str, multiple: float, domain: str, value: float) -> dict[str, Any]:
    duration = f"{multiple:g}x"
    of = {"method": method, "space": "delta", "duration": duration, "multiple": multiple, "seed": 1}
    of |= {"algorithm": method, "pool_family": "same_duration", "recipe": "default"}
    return row(study, "merged", domain, value, base=base, pool=f"same_duration_{duration}", **of)


def of_largest(study: Study) -> Study:
    """The study with its largest base alone, which is compared in a third of the time."""
    return study.model_copy(update={"bases": dict(list(study.bases.items())[-1:])})


def compared(published: Published, study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """The comparison of the study's bases, with samples of 100 items, the first of which are right."""
    results = results[results["base"].isin(list(study.bases))]
    merged = results[results["subject_kind"] == "merged"]
    items = pd.DataFrame({"item": [f"{at:02}" for at in range(100)], "place": range(100)})
    samples = merged.merge(items, how="cross")
    samples = samples.assign(
        score=(samples["place"] + 0.5 < 100 * samples["value"]).astype(float), stem=samples["item"]
    )
    return compare.comparison(published, study, Inputs({"results": results, "samples": samples}))


def test_the_papers_own_numbers_are_the_same(published: Published) -> None:
    study = paper_study()
    frame = compared(published, study, as_printed(published, study))
    rest = frame[frame["verdict"] != "same"]
    # Only the base without a number for code is left out.
    assert set(zip(rest["table"], rest["subject"], rest["domain"], strict=True)) == {("5", "base", "code")}
    assert set(rest["reason"]) == {"the paper prints no number here"}
    assert len(frame) == len(published.refusals) + len(published.accuracy) + len(published.optima)
    noted = frame[frame["reason"].notna() & (frame["verdict"] == "same") & (frame["unit"] == "percent")]
    assert set(noted["domain"]) == {"multilingual", "average"}
    printed = comparison.markdown(frame, "study", "paper")
    assert printed.count("| same |") == (frame["verdict"] == "same").sum()
    assert "nan" not in printed


def test_the_tolerance_is_that_of_both_sides_items(published: Published) -> None:
    study = paper_study()
    frame = compared(published, of_largest(study), as_printed(published, study, shift=4.0))
    cells: Any = frame.set_index(["table", "subject", "method", "selection", "domain"])
    math, code = (cells.loc["5", "merged", "ties", "best", domain] for domain in ("math", "code"))
    assert math["difference"] == pytest.approx(4.0)
    # Ours is nearer to 100 than both together: they have 68.7 and 63.6 %.
    assert math["tolerance"] == pytest.approx(1.96 * (66.7 * 33.3 / 1319 + 68.7 * 31.3 / 1319) ** 0.5, rel=1e-3)
    assert math["verdict"] == "differs"
    assert code["tolerance"] == pytest.approx(1.96 * (61.6 * 38.4 / 164 + 63.6 * 36.4 / 164) ** 0.5, rel=1e-3)
    assert code["verdict"] == "same"
    average = cells.loc["5", "merged", "ties", "best", "average"]
    of_row = frame[(frame["table"] == "5") & (frame["method"] == "ties") & (frame["selection"] == "best")]
    parts = of_row.loc[of_row["domain"] != "average", "tolerance"]
    assert average["tolerance"] == pytest.approx((parts**2).sum() ** 0.5 / 4)


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.1])
def test_few_items_of_ours_beside_many_printed_ones_seldom_differ_by_chance(published: Published, share: float) -> None:
    few, many = 100, published.paper.benchmarks["math"].items
    assert many is not None
    ours = compare.Ours("b", {}, {}, {}, {"math": few}, {"math": 1.0}, {}, [])
    right = np.arange(few + 1)
    differing = 0.0
    for others in range(many + 1):
        chance = binom.pmf(others, many, share)
        if chance < 1e-6:
            continue
        printed = 100 * others / many
        cell = PrintedCell("3", "m", "base", None, None, "math", printed, {"math": printed})
        published_error, _ = compare.published_stderr(published, ours, cell)
        for own in right[binom.pmf(right, few, share) > 1e-6]:
            score = compare.Score(float(own), (own * (few - own) / (few - 1)) ** 0.5)
            error = compare._mean({"math": score}, ours, published, cell).stderr
            differs = abs(own - printed) > compare.Z * np.hypot(error, published_error)
            differing += differs * chance * binom.pmf(own, few, share)
    assert differing < 0.09, "without the share of both, up to 0.54"


def test_an_average_is_over_the_cells_of_its_row(published: Published) -> None:
    study = paper_study()
    frame = compared(published, of_largest(study), as_printed(published, study))
    of_base: Any = frame[(frame["table"] == "5") & (frame["subject"] == "base")].set_index("domain")
    average = of_base.loc["average"]
    assert average["ours"] == pytest.approx((61.6 + 30.9 + 54.1) / 3)
    assert average["reason"].startswith("over math, instruction, multilingual alone, as in the paper; ")
    parts = of_base.loc[["math", "instruction", "multilingual"], "tolerance"].astype(float)
    assert average["tolerance"] == pytest.approx((parts**2).sum() ** 0.5 / 3)


def test_the_published_error_has_the_design_effect_of_ours(published: Published) -> None:
    study = paper_study()
    results = as_printed(published, study)
    clustered = results["domain"] == "multilingual"
    wider = results.assign(stderr=results["stderr"].mask(clustered, 3 * results["stderr"]))
    before, after = (
        compared(published, of_largest(study), rows).set_index("domain")["tolerance"] for rows in (results, wider)
    )
    ratios = pd.Series(after.to_numpy() / before.to_numpy(), index=before.index).dropna()
    of_domain = {domain: ratio.to_numpy() for domain, ratio in ratios.groupby(level=0)}
    assert of_domain["multilingual"] == pytest.approx(3)
    assert of_domain["math"] == pytest.approx(1)
    assert of_domain["average"].min() > 1.01
    assert of_domain["average"].max() < 2.99


def test_an_optimum_is_the_same_exactly_if_our_best_set_holds_it(published: Published) -> None:
    study = paper_study()
    near = as_printed(published, study)
    chosen = (near["method"] == "ties") & (near["domain"] == "math") & (near["duration"] == "5x")
    base = near["base"] == list(study.bases)[-1]
    for value, verdict, kept in ((0.68, "same", "3–5x"), (0.80, "differs", "5x")):
        frame = compared(published, of_largest(study), near.assign(value=near["value"].mask(chosen & base, value)))
        cell = frame[(frame["table"] == "9") & (frame["method"] == "ties") & (frame["domain"] == "math")].iloc[0]
        assert (cell["published"], cell["ours"], cell["verdict"]) == (3.0, 5.0, verdict)
        assert (cell["difference"], cell["reason"]) == (pytest.approx(66.7 - 100 * value), f"our best set: {kept}")
        assert pd.isna(cell["tolerance"])


def test_several_optima_are_none_of_ours(published: Published) -> None:
    study = paper_study()
    results = as_printed(published, study)
    ties = (results["method"] == "ties") & (results["subject_kind"] == "merged")
    best = "best alike: 3–5x; our best set: 3–5x"
    alike = "no item tells our durations apart"
    longest = ties & results["duration"].isin(["3x", "5x"]) & (results["domain"] == "math")
    changed = results.assign(value=results["value"].mask(longest, 0.7).mask(ties & (results["domain"] == "code"), 0.3))
    frame = compared(published, of_largest(study), changed)
    cells = frame[(frame["table"] == "9") & (frame["method"] == "ties")].set_index("domain")
    for domain, reason in (("math", best), ("code", alike)):
        cell: Any = cells.loc[domain]
        assert pd.isna(cell["ours"])
        assert (cell["difference"], cell["verdict"], cell["reason"]) == (pytest.approx(0), "same", reason)


def test_other_bases_benchmarks_methods_and_durations_are_not_comparable(published: Published) -> None:
    study = paper_study()
    found = as_printed(published, study)
    content = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    benchmarks = content["benchmarks"] | {"gsm8k": content["benchmarks"]["gsm8k"] | {"dataset": "other/gsm"}}
    other = compared(published, of_largest(paper_study(benchmarks=benchmarks)), found)
    assert set(other[other["domain"].isin(["math", "average"])]["verdict"]) == {"not_comparable"}
    assert "same" in set(other[other["domain"] == "code"]["verdict"])
    fewer = found[(found["method"] != "ties") & (found["multiple"] != 0.25)]
    frame = compared(published, study, fewer)
    assert set(frame[frame["method"] == "ties"]["reason"]) == {"this study does not merge with ties"}
    ties = found[found["method"] == "ties"].assign(method="ties_02")
    denser = ties.assign(method="ties_05", subject=ties["subject"] + "/05")
    several = pd.concat([found[found["method"] != "ties"], ties, denser])
    unclear = compared(published, of_largest(study), several)
    reason = "this study merges with ties as ties_02, ties_05; give the paper's the id ties"
    assert set(unclear[(unclear["method"] == "ties") & unclear["base"].notna()]["reason"]) == {reason}
    best = frame[(frame["selection"] == "best") & (frame["method"] == "dare_ties")]
    assert best["reason"].str.startswith("the best is over other durations here: 0.5x").all()
    folder = paper_study(hub={"folder": "resources/rehearsal/hub"})
    rehearsed = compared(published, folder, found)
    reasons = {"this study's models come from a folder, not from the hub", "the paper prints no number here"}
    assert set(rehearsed["reason"]) == reasons


def test_the_scripts_write_parquet_and_markdown(published: Published, tmp_path: Path) -> None:
    study = reading.load(ROOT / "config/smoke.yaml")
    (tmp_path / "study.json").write_text(study.model_dump_json())
    rows = [row(paper_study(), "base", "multilingual", 30.0, base="qwen3.5-demo")]
    tables.write(pd.DataFrame(rows).reindex(columns=list(tidy.RESULTS)), tidy.RESULTS, tmp_path / "results.parquet")
    samples = pd.DataFrame(columns=list(tidy.SAMPLES))
    tables.write(samples, tidy.SAMPLES, tmp_path / "samples.parquet")
    files = {name: tmp_path / f"{name}.parquet" for name in ("results", "samples")}
    options = [*(part for name, file in files.items() for part in (f"--{name}", file))]
    options += ["--study", tmp_path / "study.json", "--pool", "same_duration"]
    for script, stem, given in (
        ("compare_published", "comparison", options),
        ("audit_published", "audit", ["--paper", "duration"]),
    ):
        command = [sys.executable, ROOT / f"scripts/{script}.py", *given, "--out-stem", tmp_path / stem]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{stem}.json").is_file()
    frame = tables.read(tmp_path / "comparison.parquet", comparison.COLUMNS)
    assert set(frame["verdict"]) == {"not_comparable"}
    assert "not comparable because" in (tmp_path / "comparison.md").read_text()
    assert len(pd.read_parquet(tmp_path / "audit.parquet")) == FACTS
    assert f"{FACTS} findings" in (tmp_path / "audit.md").read_text()
