"""Telling the lock of a killed run from that of one that lives."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergetime.locking import remove_stale_locks

ROOT = Path(__file__).resolve().parents[2]
BOOT = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}.boot"
RUN = """
import pathlib
from mergetime.locking import remove_stale_locks
alive = remove_stale_locks(pathlib.Path(".snakemake"))
print("lives", flush=True)
input()
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder with the lock of a run on this machine of which nothing else is left."""
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/x\n")
    (locks / BOOT).touch()
    return locks.parent


def left(state: Path) -> set[str]:
    return {file.name for file in (state / "locks").iterdir()}


def test_the_lock_of_a_dead_run_is_removed(state: Path) -> None:
    alive = remove_stale_locks(state)
    assert alive and left(state) == {BOOT}


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-c", RUN], [ROOT / "rules/shell/bash", "-c", "echo lives; read"]],
    ids=["run", "job that outlives its run"],
)
def test_the_lock_of_what_lives_stays_until_it_is_killed(state: Path, command: list[str]) -> None:
    (state / "alive").touch()
    (state / "locks" / BOOT).unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(
        command, cwd=state.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout and living.stdout.readline() == "lives\n"
        (state / "locks" / BOOT).touch()
        with remove_stale_locks(state) or pytest.fail("files can be locked here"):
            assert left(state) == {"0.output.lock", BOOT}
        living.kill()
        living.wait()
    assert remove_stale_locks(state) and left(state) == {BOOT}


@pytest.mark.parametrize("boots", [[], ["another.boot"], [BOOT, "another.boot"]])
def test_a_lock_that_may_be_another_machines_stays(state: Path, boots: list[str]) -> None:
    (state / "locks" / BOOT).unlink()
    for name in boots:
        (state / "locks" / name).touch()
    assert remove_stale_locks(state)
    assert left(state) == {"0.output.lock", BOOT, *boots}


def test_where_files_cannot_be_locked_nothing_is_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert remove_stale_locks(state) is None
    assert left(state) == {"0.output.lock", BOOT}
