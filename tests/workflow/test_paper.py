"""The study at full size: that it plans whole, and a slice of its rehearsal, with the network cut after fetching."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config

from mergetime.config.reading import parse
from mergetime.core import provenance, tables
from mergetime.results import columns as tidy
from mergetime.study.subjects import subjects
from tests.workflow.conftest import ROOT, run_in

PAPER, REHEARSAL = "config/paper.yaml", "config/rehearsal.yaml"


def read(*names: str) -> dict[str, Any]:
    """Configs laid over each other, as Snakemake does."""
    whole: dict[str, Any] = {}
    for name in names:
        update_config(whole, yaml.safe_load((ROOT / name).read_text()))
    return whole


@pytest.mark.parametrize("configs", [[PAPER], [PAPER, REHEARSAL]])
def test_every_checkpoint_merge_and_evaluation_is_planned(clone: Path, configs: list[str]) -> None:
    done = run_in(clone, "-n", "--configfile", *configs)
    assert done.returncode == 0, done.stdout[-3000:]
    study = parse(read(*configs), "config")
    folder = f"results/{study.study}"
    listed = subjects(study)
    evaluations = {f"{folder}/evaluations/{s.path}/{split}.parquet" for s in listed for split in s.splits}
    checkpoints = {f"{folder}/{s.path}/adapter_model.safetensors" for s in listed if s.kind == "expert"}
    merges = {f"{folder}/{s.path}/merged.json" for s in listed if s.kind == "merged"}
    assert (len(checkpoints), len(merges)) == (3 * 5 * 8, 3 * 8 * (10 + 2 * 3))
    planned = set(done.stdout.replace(",", " ").split())
    assert not (evaluations | checkpoints | merges) - planned


@pytest.fixture(scope="module")
def sliced() -> dict[str, Any]:
    """The rehearsal with one base, two domains, two durations and four methods."""
    config = read(PAPER, REHEARSAL)
    domains, methods = ("math", "safety"), ("simple_average", "task_arithmetic", "ties", "greedy_soup_adapter")
    config["bases"] = {"qwen3.5-0.8b": config["bases"]["qwen3.5-0.8b"]}
    config["domains"] = {name: config["domains"][name] for name in domains}
    config["methods"] = {name: config["methods"][name] for name in methods}
    config["suites"] = {
        "validation": {"math": "mmlu_stem", "safety": "validation_loss"},
        "test": {"math": "gsm8k", "multilingual": "arc_multilingual", "safety": "harmbench"},
    }
    config["experts"]["durations"] = {"multiples_of_optimum": [0.5, 1]}
    config["experts"]["train"]["max_steps"] = 8
    return config


def without_network(command: list[str]) -> list[str]:
    """The command in a network namespace without any route, not even to this machine."""
    return ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--", *command]


def test_a_slice_of_the_rehearsal_finishes_without_a_network(clone: Path, sliced: dict[str, Any]) -> None:
    (clone / "config/slice.yaml").write_text(yaml.safe_dump(sliced, sort_keys=False))
    configfile = ["--configfile", "config/slice.yaml"]
    done = run_in(clone, "fetch", *configfile)
    assert done.returncode == 0, done.stdout[-5000:]
    can_cut = subprocess.run(without_network(["true"]), capture_output=True, check=False).returncode == 0
    rest = ["snakemake", *configfile]
    done = subprocess.run(
        without_network(rest) if can_cut else rest,
        cwd=clone,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    folder = clone / "results/rehearsal"
    scores = tables.read(folder / "results.parquet", tidy.RESULTS)
    study = parse(sliced, "slice")
    found = set(zip(scores["subject_kind"], scores["subject"].str.split("/").str[0], strict=True))
    assert {kind for kind, _ in found} == {"base", "expert", "merged"}
    assert scores["subject"].nunique() == len(subjects(study))
    check_judged(scores)
    assert set(scores[scores["split"] == "validation"]["benchmark"]) == {"mmlu_stem", "validation_loss"}
    expert = provenance.read(folder / "experts/qwen3.5-0.8b/math/seed-1/expert.json")
    assert expert["config"]["mode"] == "qlora"
    assert not list(folder.rglob("task_vector.safetensors")), "keep_dense_merges: false"
    assert (folder / "tables/table_3.md").exists()
    assert (folder / "figures/figure_1.pdf").exists()


def check_judged(scores: pd.DataFrame) -> None:
    """Refusals are reported by the judge, and the keywords' count stands beside it."""
    harmful = scores[scores["benchmark"] == "harmbench"]
    assert set(harmful[harmful["primary"]]["metric"]) == {"refusal_rate,wildguard"}
    assert "refusal_rate,none" in set(harmful["metric"])
