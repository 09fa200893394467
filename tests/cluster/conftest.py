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
CLUSTER = Path(os.environ.get("CLUSTER_DIR", "/var/tmp/mergetime-cluster"))
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
    held: SlurmJob
    out_of_time: SlurmJob
    out_of_memory: SlurmJob
    preempted: SlurmJob
    # What `scontrol show job` said of a training before it was disturbed.
    asked: dict[str, str]
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


def wait_until(happens: Callable[[], bool], within_s: float = 400, every_s: float = 0.5) -> None:
    """Return as soon as something is true."""
    until = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < until, f"did not happen within {within_s} s"
        time.sleep(every_s)


def small_study(folder: Path) -> None:
    """Write the smoke study, cut down, whose base pretends to a size: so its jobs ask for GPUs."""
    study = yaml.safe_load((folder / "config/smoke.yaml").read_text())
    study["study"] = "cluster"
    for base in study["bases"].values():
        base["parameters"] = 500_000_000
    del study["experts"]["imported"], study["methods"]["ties_adapter"], study["methods"]["task_arithmetic"]
    for domain in study["domains"].values():
        domain |= {"train": 16, "validation": 8}
    study["experts"]["train"] |= {"mode": "lora", "max_steps": 16}
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
            # Where the tests themselves run in a shell's background, Ctrl-C is ignored, and children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


def scontrol_update(**changes: str) -> None:
    """Change a job as its owner or an administrator may."""
    given = [f"{name}={value}" for name, value in changes.items()]
    subprocess.run(["scontrol", "update", *given], check=True)


def processes_of(job: SlurmJob) -> list[int]:
    """All processes of a job, with SLURM's own that look after it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_job = f"\0SLURM_JOB_ID={job.number}\0".encode() in b"\0" + (process / "environ").read_bytes()
            watches = f"slurmstepd: [{job.number}.".encode() in (process / "cmdline").read_bytes()
            if of_job or watches:
                found.append(int(process.name))
    return found


def kill_node(node: str, *jobs: SlurmJob) -> None:
    """Let a node die at once with all that runs on it, and come back when SLURM has seen it."""
    daemon = CLUSTER / f"run/slurmd-{node}.pid"
    for pid in [int(daemon.read_text()), *(pid for job in jobs for pid in processes_of(job))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def down() -> bool:
        shown = subprocess.run(["sinfo", "-h", "-n", node, "-o", "%T"], capture_output=True, text=True, check=True)
        return "down" in shown.stdout

    wait_until(down)
    subprocess.run([Path(__file__).with_name("start.sh")], check=True, stdout=subprocess.DEVNULL)


def hold(folder: Path, rule: str) -> SlurmJob:
    """Keep a job from ever going on, and let SLURM end it in a minute."""
    wait_until(lambda: bool(running(folder, rule)))
    (job,) = running(folder, rule)
    scontrol_update(jobid=job.number, timelimit="1")
    # More than once, for what a process starts while it is looked for.
    for _ in range(3):
        for pid in processes_of(job):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() != "slurmstepd\n":
                    os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
    return job


def cancel_one_and_kill_the_node_of_another(folder: Path) -> tuple[SlurmJob, SlurmJob]:
    """Cancel a job as its owner may, and kill the node that another runs on."""
    wait_until(lambda: len(running(folder, "prepare_domain")) == 2)
    cancelled, requeued = running(folder, "prepare_domain")
    subprocess.run(["scancel", cancelled.number], check=True)
    kill_node("cpu1", requeued)
    return cancelled, requeued


def signals(pid: int, kind: str) -> set[signal.Signals]:
    """The signals that a process catches (SigCgt) or that wait for it (ShdPnd)."""
    with contextlib.suppress(OSError):
        mask = int(re.findall(rf"{kind}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[0], 16)
        return {number for number in signal.Signals if mask >> (number - 1) & 1}
    return set()


def trainer_of(job: SlurmJob) -> int:
    """The process of a training job that trains, as soon as it listens to signals."""
    found: list[int] = []

    def listens() -> bool:
        found[:] = [pid for pid in processes_of(job) if signal.SIGURG in signals(pid, "SigCgt")]
        return bool(found)

    wait_until(listens)
    return found[0]


def ended(folder: Path, job: SlurmJob) -> bool:
    return job.number not in {other.number for other in slurm_jobs(folder, "RUNNING", "PENDING", "COMPLETING")}


def run_out_of_time_and_memory(folder: Path) -> tuple[SlurmJob, SlurmJob, dict[str, str]]:
    """Two trainings: the time of the first ends soon, the second gets less memory than Python takes."""
    wait_until(lambda: bool(running(folder, "train_expert")))
    (first,) = running(folder, "train_expert")
    asked = details(first)
    trainer = trainer_of(first)
    # Held, until everything is prepared.
    os.kill(trainer, signal.SIGSTOP)
    wait_until(lambda: any(job.rule == "train_expert" for job in slurm_jobs(folder, "PENDING")))
    (second,) = (job for job in slurm_jobs(folder, "PENDING") if job.rule == "train_expert")
    scontrol_update(jobid=second.number, minmemorynode="200")
    scontrol_update(jobid=first.number, timelimit="5")
    # It may go on when SIGURG waits for it, and by itself where SLURM tells it to.
    wait_until(lambda: ended(folder, first) or signal.SIGURG in signals(trainer, "ShdPnd"))
    with contextlib.suppress(ProcessLookupError):
        os.kill(trainer, signal.SIGCONT)
    wait_until(lambda: ended(folder, first) and ended(folder, second))
    return first, second, asked


def preempt(folder: Path, comment: str) -> SlurmJob:
    """Take the node of a training that has done a few steps for a job that is more urgent."""

    def attempt() -> list[SlurmJob]:
        return [job for job in running(folder, "train_expert") if job.comment == comment]

    wait_until(lambda: bool(attempt()))
    (job,) = attempt()
    trainer = trainer_of(job)
    domain = comment.removesuffix("_1").rpartition("_")[2]
    saved = folder / "results/cluster/checkpoints"
    wait_until(lambda: any(saved.glob(f"*/{domain}/*/step-*")), every_s=0.02)
    os.kill(trainer, signal.SIGSTOP)
    urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=4", "--mem=100", "--time=1", "--wrap=true"]
    subprocess.run([*urgent, "--output=/dev/null"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    wait_until(lambda: details(job)["Restarts"] == "1")
    return job


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Every fault in one run: the last is that Snakemake is killed while jobs run and wait. Then it is finished."""
    folder = copy_repository(tmp_path_factory.mktemp("cluster").resolve())
    small_study(folder)
    left = interrupt(folder)
    with running_on_slurm(folder) as snakemake:
        held = hold(folder, "evaluate_base")
        cancelled, requeued = cancel_one_and_kill_the_node_of_another(folder)
        out_of_time, out_of_memory, asked = run_out_of_time_and_memory(folder)
        preempted = preempt(folder, out_of_memory.comment)
        told = Story(folder, left, cancelled, requeued, held, out_of_time, out_of_memory, preempted, asked)
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
