"""Telling the lock of a killed run from that of one that lives."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergetime.core.locking import leave_locks_to_a_person, remove_stale_locks

ROOT = Path(__file__).resolve().parents[2]
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
HERE, THERE = f"{BOOT}.machine.run", f"{BOOT}.cluster.run"
LOCK = "0.output.lock"
RUN = """
import pathlib
from mergetime.core.locking import remove_stale_locks
run = remove_stale_locks(pathlib.Path(".snakemake"), on_cluster=False)
print("lives", flush=True)
input()
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder with a lock of which nothing else is left."""
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / LOCK).write_text("results/x\n")
    return locks.parent


def sign(state: Path, *names: str) -> None:
    for name in names:
        (state / "locks" / name).touch()


def left(state: Path) -> set[str]:
    return {file.name for file in (state / "locks").iterdir()}


@pytest.mark.parametrize(
    ("signed", "on_cluster"),
    [([HERE], False), ([HERE], True), ([THERE], True), ([HERE, THERE], True)],
)
def test_the_lock_of_a_dead_run_is_removed(state: Path, signed: list[str], on_cluster: bool) -> None:
    sign(state, *signed)
    run = remove_stale_locks(state, on_cluster=on_cluster)
    assert run.alive and run.alone
    assert left(state) == {THERE if on_cluster else HERE}


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-c", RUN], [ROOT / "rules/site/shell/bash", "-c", "echo lives; read"]],
    ids=["run", "job that outlives its run"],
)
def test_the_lock_of_what_lives_stays_until_it_is_killed(state: Path, command: list[str]) -> None:
    (state / "alive").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(
        command, cwd=state.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout and living.stdout.readline() == "lives\n"
        sign(state, HERE)
        refused = remove_stale_locks(state, on_cluster=False)
        assert left(state) == {LOCK, HERE}
        assert refused.alive and not refused.alone
        refused.alive.close()
        living.kill()
        living.wait()
    assert remove_stale_locks(state, on_cluster=False).alone
    assert left(state) == {HERE}


@pytest.mark.parametrize("on_cluster", [False, True])
@pytest.mark.parametrize("signed", [["another.machine.run"], [HERE, "another.cluster.run"]])
def test_a_lock_that_may_be_another_machines_stays(state: Path, signed: list[str], on_cluster: bool) -> None:
    sign(state, *signed)
    run = remove_stale_locks(state, on_cluster=on_cluster)
    assert run.alive and not run.alone
    assert left(state) == {LOCK, *signed, THERE if on_cluster else HERE}


def test_a_run_on_this_machine_leaves_the_lock_of_one_whose_jobs_live_on(state: Path) -> None:
    sign(state, THERE)
    assert not remove_stale_locks(state, on_cluster=False).alone
    assert left(state) == {LOCK, HERE, THERE}


def test_a_lock_that_nobody_signed_stays_so(state: Path) -> None:
    for _ in range(2):
        assert not remove_stale_locks(state, on_cluster=False).alone
        assert left(state) == {LOCK}


def test_a_lock_that_is_left_to_a_person_stays(state: Path) -> None:
    sign(state, THERE)
    leave_locks_to_a_person(state)
    assert not remove_stale_locks(state, on_cluster=True).alone
    assert LOCK in left(state)


def test_where_files_cannot_be_locked_nothing_is_removed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    sign(state, HERE)
    monkeypatch.setattr(fcntl, "flock", refuse)
    run = remove_stale_locks(state, on_cluster=False)
    assert (run.alive, run.alone) == (None, False)
    assert left(state) == {LOCK, HERE}
