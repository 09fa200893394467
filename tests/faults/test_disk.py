"""A disk that is full: whatever fails, nothing half-written is taken for whole when there is room again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import COMMAND, RESULTS, assert_same_results, copy_until, processes
from tests.workflow.conftest import run_in

TOO_LITTLE = 2 << 20
"""Bytes: less than the merges take, more than Snakemake and the logs do."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path.resolve() / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def leave(folder: Path, free: int) -> None:
    """Fill the disk up to this many bytes."""
    (folder / "filler").unlink(missing_ok=True)
    disk = os.statvfs(folder)
    subprocess.run(["fallocate", "-l", str(disk.f_bavail * disk.f_frsize - free), folder / "filler"], check=True)


def test_the_same_command_goes_on_when_there_is_room_again(undisturbed: Path, small_disk: Path) -> None:
    folder = copy_until("merging", undisturbed, small_disk)
    leave(folder, TOO_LITTLE)
    done = run_in(folder, *COMMAND)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "error: no space left on the disk; make room, then give the same command again" in done.stdout
    leave(folder, 0)
    done = run_in(folder, *COMMAND)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "No space left on device" in done.stdout
    assert not (folder / RESULTS / "results.parquet").exists()
    (folder / "filler").unlink()
    done = run_in(folder, *COMMAND)
    assert done.returncode == 0, done.stdout[-5000:]
    assert_same_results(folder, undisturbed)
    assert processes(folder) == []
