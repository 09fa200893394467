"""A clock that jumps: files are dated in the future, or before what they are newer than."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.conftest import COMMAND, RESULTS, assert_same_results, copy_until, disturbed
from tests.workflow.conftest import run_in

DAY = 24 * 3600
MERGE = RESULTS / "merged/qwen3.5-demo/same_duration_1x/ties/seed-1"
EVALUATION = RESULTS / "evaluations/merged/qwen3.5-demo/same_duration_1x/ties/seed-1/test.json"


def date(folder: Path, days: int) -> None:
    """Date all files below a folder so many days from now."""
    then = time.time() + days * DAY
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def copy(finished: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", "--reflink=auto", finished, target], check=True)
    return target


@pytest.mark.parametrize(("part", "days"), [(".", 2), ("experts", 2), ("evaluations", -2)])
def test_times_alone_run_nothing_again(undisturbed: Path, tmp_path: Path, part: str, days: int) -> None:
    folder = copy(undisturbed, tmp_path / "study")
    date(folder / RESULTS / part, days)
    assert "Nothing to be done" in run_in(folder, *COMMAND).stdout


def test_a_clock_that_goes_back_while_a_job_runs_costs_that_job(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    folder = copy_until("collection", undisturbed, tmp_path.resolve() / "study")
    said = disturbed(folder, ("collect_results",), lambda _: True, lambda _: date(folder / RESULTS / "evaluations", 2))
    assert "has older modification time" in said
    assert not (folder / RESULTS / "results.parquet").exists()
    done = run_in(folder, *COMMAND)
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d+ files were dated in the future, such as results/faults/", done.stdout)
    assert_same_results(folder, undisturbed)
    assert "Nothing to be done" in run_in(folder, *COMMAND).stdout


def test_what_was_made_again_while_the_clock_was_behind_is_found(undisturbed: Path, tmp_path: Path) -> None:
    folder = copy(undisturbed, tmp_path / "study")
    config = folder / "config/faults.yaml"
    config.write_text(config.read_text().replace("density: 0.5", "density: 0.2"))
    done = run_in(folder, str(MERGE / "merged.json"), *COMMAND[1:])
    assert done.returncode == 0, done.stdout[-3000:]
    date(folder / MERGE, -2)
    done = run_in(folder, "verify", *COMMAND[1:])
    assert done.returncode == 1
    made_from = f"made from another {MERGE / 'task_vector.safetensors'} than is there now"
    assert f"{EVALUATION}: {made_from}; to make it again: snakemake {EVALUATION} --force" in done.stdout
