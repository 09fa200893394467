"""Outputs that were cut short after they were written."""

import os
import shlex
import subprocess
from pathlib import Path

from tests.faults.conftest import COMMAND, RESULTS, assert_same_results
from tests.workflow.conftest import run_in

MERGE = RESULTS / "merged/qwen3.5-demo/same_duration_1x/ties/seed-1"
CUT = {
    RESULTS / "data/safety/train.parquet": RESULTS / "data/safety/domain.json",
    MERGE / "task_vector.safetensors": MERGE / "merged.json",
    RESULTS / "samples.parquet": RESULTS / "results.json",
}
"""A file of three stages, and the record beside it."""
VERIFY = ["verify", *COMMAND[1:]]


def cut_short(file: Path) -> None:
    """Halve a file behind everybody's back: its time stays."""
    found = file.stat()
    file.write_bytes(file.read_bytes()[: found.st_size // 2])
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_every_file_that_was_cut_short_is_named_and_made_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    subprocess.run(["cp", "-a", "--reflink=auto", undisturbed, folder], check=True)
    for file in CUT:
        cut_short(folder / file)
    assert "Nothing to be done" in run_in(folder, *COMMAND).stdout, "Snakemake does not see it"
    done = run_in(folder, *VERIFY)
    assert done.returncode == 1
    named = dict(line.split("; to make it again: ") for line in done.stdout.splitlines() if "; to make it" in line)
    assert set(named) == {f"{file}: damaged: its SHA-256 is not the one in {record}" for file, record in CUT.items()}
    for command in named.values():
        again = run_in(folder, *shlex.split(command)[1:])
        assert again.returncode == 0, again.stdout[-3000:]
    done = run_in(folder, *COMMAND)
    assert done.returncode == 0, done.stdout[-3000:]
    assert run_in(folder, *VERIFY).returncode == 0
    assert_same_results(folder, undisturbed)
