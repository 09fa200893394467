"""What a study has cost, from the records beside its artifacts."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mergetime.config.reading import load
from mergetime.core import tables
from mergetime.results import columns as tidy
from mergetime.results import costs

STUDY = load(Path(__file__).parents[2] / "config/smoke.yaml")
MERGED = "merged/qwen3.5-demo/same_duration_1x"


def write(folder: Path, path: str, wall_s: float, facts: dict[str, Any], **machine: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "machine": machine, "wall_s": wall_s, "peak_memory_mb": 100}
    (folder / path).write_text(json.dumps(content))


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    trained = {"validation_share": 0.25, "tokens": 4000, "energy_j": 12.5}
    write(tmp_path, "experts/qwen3.5-demo/safety/seed-1/expert.json", 80.0, trained, gpu="H100", gpu_peak_memory_mb="9")
    write(tmp_path, f"{MERGED}/task_arithmetic/seed-1/merged.json", 5.0, {"seconds": 2.0})
    write(tmp_path, f"{MERGED}/task_arithmetic.candidate_1/seed-1/merged.json", 5.0, {"seconds": 2.0})
    write(tmp_path, f"evaluations/{MERGED}/task_arithmetic.candidate_1/seed-1/validation.json", 7.0, {})
    passes = {"read_tokens": 900, "read_s": 1.5, "generated_tokens": 64, "generated_s": 4.0}
    write(tmp_path, f"evaluations/{MERGED}/task_arithmetic/seed-1/test.json", 9.0, {"passes": passes})
    write(tmp_path, "statistics/qwen3.5-demo/imported/polite/fisher.json", 3.0, {})
    write(tmp_path, "selections/qwen3.5-demo/same_duration_1x/greedy_soup/seed-1.json", 11.0, {})
    found = costs.costs(STUDY, tmp_path)
    tables.write(found, tidy.COSTS, tmp_path / "costs.parquet")
    return tables.read(tmp_path / "costs.parquet", tidy.COSTS).set_index("artifact")


@pytest.mark.parametrize(
    ("artifact", "algorithm_s", "validation_s"),
    [
        ("experts/qwen3.5-demo/safety/seed-1/expert.json", 60.0, 20.0),
        (f"{MERGED}/task_arithmetic/seed-1/merged.json", 2.0, 0.0),
        (f"{MERGED}/task_arithmetic.candidate_1/seed-1/merged.json", 0.0, 5.0),
        (f"evaluations/{MERGED}/task_arithmetic.candidate_1/seed-1/validation.json", 0.0, 7.0),
        (f"evaluations/{MERGED}/task_arithmetic/seed-1/test.json", None, None),
        ("statistics/qwen3.5-demo/imported/polite/fisher.json", 3.0, 0.0),
        ("selections/qwen3.5-demo/same_duration_1x/greedy_soup/seed-1.json", 0.0, 11.0),
    ],
)
def test_seconds_of_the_algorithm_and_of_validation_are_apart(
    frame: pd.DataFrame, artifact: str, algorithm_s: float | None, validation_s: float | None
) -> None:
    row = frame.loc[artifact]
    given = [None if pd.isna(row[name]) else row[name] for name in ("algorithm_s", "validation_s")]
    assert given == [algorithm_s, validation_s]


def test_a_row_says_what_it_is_of_and_what_it_took(frame: pd.DataFrame) -> None:
    trained = frame.loc["experts/qwen3.5-demo/safety/seed-1/expert.json"]
    assert (trained["stage"], trained["expert"], trained["recipe"], trained["gpu"]) == (
        "train_expert", "safety", "default", "H100",
    )  # fmt: skip
    assert (trained["tokens"], trained["energy_j"], trained["gpu_peak_memory_mb"]) == (4000, 12.5, 9.0)
    tested = frame.loc[f"evaluations/{MERGED}/task_arithmetic/seed-1/test.json"]
    assert (tested["read_tokens"], tested["generated_tokens"], tested["model_s"]) == (900, 64, 5.5)
    tried = frame.loc[f"evaluations/{MERGED}/task_arithmetic.candidate_1/seed-1/validation.json"]
    assert (tried["method"], tried["algorithm"], tried["candidate"], tried["group"]) == (
        "task_arithmetic", "task_arithmetic", 1, "validation",
    )  # fmt: skip
    # An evaluation of before they were counted.
    assert tried[["read_tokens", "generated_tokens", "model_s"]].isna().all()
    assert (tried["pool_family"], tried["pool_size"]) == ("same_duration", 2)


def test_every_artifact_has_a_row_and_what_is_absent_has_no_numbers(frame: pd.DataFrame) -> None:
    assert frame.index.is_unique
    assert frame["stage"].value_counts().to_dict() == {
        # 2 domains and 1 import; 5 pools of 5 methods, of which one has 2 candidates and one is a soup.
        "train_expert": 2, "import_expert": 1, "measure_expert": 7, "merge_experts": 35, "select_hyperparameters": 5,
        "select_soup": 5, "evaluate": 50,
    }  # fmt: skip
    absent = frame.loc["experts/qwen3.5-demo/multilingual/seed-1/expert.json"]
    assert absent[["wall_s", "algorithm_s", "validation_s", "peak_memory_mb"]].isna().all()
