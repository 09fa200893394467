"""What runs again, and what does not."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mergetime.core import tables
from mergetime.results import columns as tidy
from tests.workflow.conftest import SMOKE, run_in

NOTHING = "Nothing to be done"


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """The jobs of a dry run, by rule."""
    done = run_in(folder, "-n", *arguments, *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    table = done.stdout.split("Job stats:")
    return {} if len(table) < 2 else {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table[1], re.M)}


def append(file: Path, text: str = "\n# changed\n") -> None:
    file.write_text(file.read_text() + text)


def test_the_study_ends_in_tables_figures_and_traces(finished: Path) -> None:
    folder = finished / "results/smoke"
    scores = tables.read(folder / "results.parquet", tidy.RESULTS)
    samples = tables.read(folder / "samples.parquet", tidy.SAMPLES)
    assert set(scores["subject_kind"]) == {"base", "expert", "merged"}
    keys = ["subject", "split", "benchmark", "metric"]
    means = samples.groupby(keys)["score"].mean()
    wanted = scores.set_index(keys)["value"]
    pd.testing.assert_series_equal(means, wanted.sort_index(), check_names=False, check_exact=False)
    for weights in [*folder.rglob("adapter_model.safetensors"), *folder.rglob("task_vector.safetensors")]:
        beside = {"merged.json", "expert.json"} & {
            f.name for f in [*weights.parent.iterdir(), *weights.parent.parent.iterdir()]
        }
        assert beside, weights
    chosen = scores[scores["method"].isin(["task_arithmetic", "greedy_soup"]) & (scores["split"] == "test")]["chosen"]
    assert chosen.notna().all()


def test_a_second_run_does_nothing(study: Path) -> None:
    assert NOTHING in run_in(study, *SMOKE).stdout


def test_touching_files_does_nothing(study: Path) -> None:
    for file in [*study.glob("scripts/**/*.py"), *study.glob("config/**/*"), *study.glob("rules/**/*.smk")]:
        file.touch()
    assert planned(study) == {}


@pytest.mark.parametrize(
    ("file", "runs", "spares"),
    [
        ("scripts/mergetime/papers/duration/tables/accuracy.py", {"make_table"}, {"collect_results", "make_figure"}),
        ("scripts/mergetime/papers/duration/figures/quality.py", {"make_figure"}, {"collect_results", "make_table"}),
        # Task arithmetic alone has candidates: they are spared.
        ("scripts/mergetime/merging/methods/ties.py", {"merge_pool_0"}, {"train_expert", "merge_candidates_0"}),
        ("scripts/mergetime/training/run.py", {"train_expert"}, {"prepare_domain", "fetch_model", "evaluate_base"}),
        (
            "scripts/mergetime/evaluation/scoring.py",
            {"evaluate_base", "select_soup"},
            {"train_expert", "merge_candidates_0"},
        ),
        ("config/tasks/demo/utils.py", {"evaluate_base", "select_soup"}, {"train_expert", "merge_candidates_0"}),
        (
            "scripts/mergetime/measuring/data_statistics.py",
            {"measure_expert"},
            {"train_expert", "measure_interference"},
        ),
        ("scripts/mergetime/measuring/interference.py", {"measure_interference"}, {"train_expert", "merge_pool_0"}),
        ("scripts/mergetime/data/preparation.py", {"prepare_domain"}, {"fetch_dataset"}),
    ],
)
def test_a_change_of_code_reruns_its_stage_and_undoing_it_cancels_that(
    study: Path, file: str, runs: set[str], spares: set[str]
) -> None:
    before = (study / file).read_text()
    append(study / file)
    found = set(planned(study))
    assert runs <= found
    assert not spares & found
    (study / file).write_text(before)
    assert planned(study) == {}


@pytest.mark.parametrize(
    ("file", "runs"),
    [
        ("papers/duration/tables/accuracy.py", {"make_table": 1}),
        ("papers/duration/figures/quality.py", {"make_figure": 1}),
        ("publishing/figures/lines.py", {"make_figure": 2}),
    ],
)
def test_a_change_of_one_tables_code_rebuilds_it_alone(study: Path, file: str, runs: dict[str, int]) -> None:
    append(study / "scripts/mergetime" / file)
    found = planned(study)
    assert {rule: count for rule, count in found.items() if rule not in ("all", "total")} == runs


def test_a_change_of_config_reruns_what_it_concerns(study: Path) -> None:
    config = study / "config/smoke.yaml"
    config.write_text(config.read_text().replace("space: adapter, density: 0.5", "space: adapter, density: 0.6"))
    found = planned(study)
    assert found["merge_pool_0"] == 5
    assert not {"train_expert", "merge_candidates_0", "select_soup"} & set(found)


def test_another_recipe_trains_beside_the_first(study: Path) -> None:
    file = study / "config/smoke.yaml"
    config = yaml.safe_load(file.read_text())
    first = {name: config["experts"].pop(name) for name in ("train", "durations")}
    short = {"train": first["train"] | {"mode": "lora", "rank": 2, "max_steps": 8}, "durations": {"steps": [4, 8]}}
    config["experts"]["recipes"] = {"default": first, "short": short}
    config["pools"]["short"] = {"experts": ["multilingual", "safety"], "recipe": "short", "at": "step_8"}
    config["methods"]["ties_adapter"]["pools"] = ["same_duration", "with_imported", "random_subsets", "short"]
    config["analyses"] = []
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    jobs = planned(study)
    assert jobs["train_expert_1"] == 2
    assert not {"train_expert", "evaluate_expert_0", "prepare_domain"} & set(jobs)
    assert sum(count for rule, count in jobs.items() if rule.startswith(("merge_pool", "merge_candidates"))) == 2
    done = run_in(study, "all", "report", *SMOKE)
    assert done.returncode == 0, done.stdout[-5000:]
    results = pd.read_parquet(study / "results/smoke/results.parquet")
    trained = results[results["subject_kind"] == "expert"]
    assert set(trained[trained["recipe"] == "short"]["duration"]) == {"step_4", "step_8"}
    assert set(trained[trained["recipe"] == "short"]["subject"].str.split("/").str[3]) == {"short"}
    merged = results[results["pool"] == "short_step_8"]
    assert set(merged["method"]) == set(config["methods"])
    assert set(merged["recipe"]) == {"short"}
    assert set(pd.read_parquet(study / "results/smoke/curves.parquet")["recipe"]) == {"default", "short"}
    assert set(pd.read_parquet(study / "results/smoke/costs.parquet")["recipe"].dropna()) == {"default", "short"}
    assert "qwen3.5-demo, short, seed 1: criteria" in (study / "results/smoke/tables/health.md").read_text()
    planned_cost = run_in(study, "plan", *SMOKE)
    assert planned_cost.returncode == 0, planned_cost.stdout[-3000:]
    assert planned(study) == {}


def test_one_table_is_rebuilt_alone(study: Path) -> None:
    (study / "results/smoke/tables/table_3.md").unlink()
    found = planned(study, "table_3")
    assert found == {"make_table": 1, "table_3": 1, "total": 2}


def test_a_table_is_made_from_downloaded_results_alone(finished: Path, clone: Path) -> None:
    folder = clone / "results/smoke"
    folder.mkdir(parents=True)
    shutil.copy(finished / "results/smoke/results.parquet", folder)
    done = run_in(clone, "table_3", "figure_1", *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "rule train_expert" not in done.stdout
    for name in ("tables/table_3.md", "tables/table_3.tex", "tables/table_3.csv", "figures/figure_1.png"):
        assert (folder / name).read_bytes() == (finished / "results/smoke" / name).read_bytes()
