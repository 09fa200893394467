"""A small study on a SLURM cluster of this machine (start.sh), disturbed in every way that is tested here."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.workflow.conftest import copy_repository, run_in

CONFIG = ["--configfile", "config/cluster.yaml"]
POLLING = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
ON_SLURM = ["--profile", "slurm", *CONFIG, *POLLING, "--latency-wait", "10"]
SITE = {
    "every_job": {},
    "cpu_jobs": {"slurm_partition": "cpu"},
    "gpu_jobs": {"slurm_partition": "gpu", "gpu_model": "h100"},
    "max_runtime_min": None,
}


@dataclass
class SlurmJob:
    """What SLURM knows of a job."""

    number: str
    state: str
    comment: str
    started: str
    ended: str

    @property
    def rule(self) -> str:
        return self.comment.removeprefix("rule_").split("_wildcards_")[0]


@dataclass
class Story:
    """The disturbed run: where it was, and what was seen on the way."""

    folder: Path
    after_interrupt: list[SlurmJob]
    cancelled: SlurmJob
    requeued: SlurmJob
    stopped: SlurmJob
    alive_after_kill: list[SlurmJob] = field(default_factory=list)
    while_locked: str = ""
    resumed: str = ""
    again: str = ""


def slurm_jobs(folder: Path, *states: str) -> list[SlurmJob]:
    """The jobs of a folder, in these states or in any."""
    listed = subprocess.run(
        ["squeue", "--noheader", f"--states={','.join(states) or 'all'}", "--format=%i|%T|%S|%e|%Z|%k"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rows = [line.split("|", maxsplit=5) for line in listed]
    found = [
        SlurmJob(number, state, comment.strip(), started, ended)
        for number, state, started, ended, where, comment in rows
        if where == str(folder)
    ]
    return sorted(found, key=lambda job: int(job.number))


def details(job: SlurmJob) -> dict[str, str]:
    """What `scontrol show job` says of a job."""
    shown = subprocess.run(["scontrol", "show", "job", job.number], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", shown))


def wait_until(happens: Callable[[], bool], within_s: float = 400) -> None:
    """Return as soon as something is true."""
    until = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < until, f"did not happen within {within_s} s"
        time.sleep(0.5)


def small_study(folder: Path) -> None:
    """Write the smoke study, cut down, whose base pretends to a size: so its jobs ask for GPUs."""
    study = yaml.safe_load((folder / "config/smoke.yaml").read_text())
    study["study"] = "cluster"
    for base in study["bases"].values():
        base["parameters"] = 500_000_000
    del study["experts"]["imported"], study["methods"]["ties_adapter"], study["methods"]["task_arithmetic"]
    for domain in study["domains"].values():
        domain |= {"train": 16, "validation": 8}
    study["experts"]["train"] |= {"mode": "lora", "max_steps": 8}
    study["experts"]["durations"] = {"multiples_of_optimum": [1]}
    study["pools"] = {"both": {"experts": ["multilingual", "safety"], "at": "1x"}}
    study["suites"]["test"] = {"multilingual": "locales", "safety": "requests"}
    del study["benchmarks"]["functions"]
    study["analyses"] = ["interference"]
    for benchmark in study["benchmarks"].values():
        benchmark["limit"] = 8
    (folder / "config/cluster.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))


@contextlib.contextmanager
def running_on_slurm(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake in the background, with its output in first.log."""
    with (folder / "first.log").open("wb") as log:
        process = subprocess.Popen(
            ["snakemake", *ON_SLURM],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def running(folder: Path, rule: str) -> list[SlurmJob]:
    """The jobs of a rule that run."""
    return [job for job in slurm_jobs(folder, "RUNNING") if job.rule == rule]


def interrupt(folder: Path) -> list[SlurmJob]:
    """Press Ctrl-C while jobs run; the jobs that are left."""
    with running_on_slurm(folder) as snakemake:
        wait_until(lambda: bool(slurm_jobs(folder, "RUNNING")))
        snakemake.send_signal(signal.SIGINT)
        snakemake.wait(timeout=60)
    wait_until(lambda: not slurm_jobs(folder, "COMPLETING"))
    return slurm_jobs(folder, "RUNNING", "PENDING")


def cancel_one_and_lose_the_node_of_another(folder: Path) -> tuple[SlurmJob, SlurmJob]:
    """Cancel a job as its owner may, and take away the node that another runs on for a while."""
    wait_until(lambda: len(running(folder, "prepare_domain")) == 2)
    cancelled, requeued = running(folder, "prepare_domain")
    subprocess.run(["scancel", cancelled.number], check=True)
    subprocess.run(["scontrol", "update", "nodename=cpu1", "state=down", "reason=drill"], check=True)
    # Fails where the node is back by itself.
    subprocess.run(["scontrol", "update", "nodename=cpu1", "state=resume"], check=False, capture_output=True)
    return cancelled, requeued


def stop_a_training(folder: Path) -> SlurmJob:
    """Send SIGURG to a training until it stops, as SLURM does before its time is up; what became of the job."""
    wait_until(lambda: bool(running(folder, "train_expert")))
    (first, *_) = running(folder, "train_expert")

    def over() -> bool:
        subprocess.run(["scancel", "--signal=URG", first.number], check=False, capture_output=True)
        return first.number not in {job.number for job in running(folder, "train_expert")}

    wait_until(over)
    return next(job for job in slurm_jobs(folder) if job.number == first.number)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Every fault in one run: the last is that Snakemake is killed while jobs run and wait. Then it is finished."""
    folder = copy_repository(tmp_path_factory.mktemp("cluster").resolve())
    small_study(folder)
    left = interrupt(folder)
    with running_on_slurm(folder) as snakemake:
        cancelled, requeued = cancel_one_and_lose_the_node_of_another(folder)
        told = Story(folder, left, cancelled, requeued, stop_a_training(folder))
        wait_until(lambda: all(slurm_jobs(folder, state) for state in ("RUNNING", "PENDING")))
        snakemake.send_signal(signal.SIGKILL)
        snakemake.wait()
    told.alive_after_kill = slurm_jobs(folder, "RUNNING", "PENDING")
    told.while_locked = run_in(folder, *ON_SLURM).stdout
    assert run_in(folder, "--unlock", *CONFIG).returncode == 0
    finished = run_in(folder, *ON_SLURM)
    told.resumed = finished.stdout
    assert finished.returncode == 0, finished.stdout[-5000:]
    told.again = run_in(folder, *ON_SLURM).stdout
    return told


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study without SLURM, as on a machine with a GPU: as many threads a job, so as many bits are the same."""
    folder = copy_repository(tmp_path_factory.mktemp("undisturbed"))
    small_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "93")
        done = run_in(folder, "--profile", "profiles/gpu", *CONFIG)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder
