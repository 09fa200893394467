"""On a SLURM cluster of this machine (start.sh): the smoke study, and beside it a smaller one that meets every fault."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import SMOKE, copy_repository, in_background, run_in, wait_until

CONFIG = ["--configfile", "config/cluster.yaml"]
POLLING = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
SLURM = ["--profile", "slurm", *POLLING, "--latency-wait", "10"]
ON_SLURM = [*SLURM, *CONFIG]
CLUSTER = Path(os.environ.get("CLUSTER_DIR", "/var/lib/mergetime-cluster"))
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
    second_run: tuple[int, str] = (0, "")
    alive_after_kill: list[SlurmJob] = field(default_factory=list)
    without_slurm: str = ""
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


def small_study(folder: Path) -> None:
    """Write the smoke study, cut down, whose base pretends to a size: so its jobs ask for GPUs. And what SLURM has here."""
    study = yaml.safe_load((folder / "config/smoke.yaml").read_text())
    study["study"] = "cluster"
    for base in study["bases"].values():
        base["parameters"] = 500_000_000
    del study["experts"]["imported"]
    study["methods"] = {name: study["methods"][name] for name in ("simple_average", "fisher")}
    for domain in study["domains"].values():
        domain |= {"train": 16, "validation": 8}
    study["experts"]["train"] |= {"mode": "lora", "max_steps": 16}
    study["experts"]["durations"] = {"multiples_of_optimum": [1]}
    study["pools"] = {"both": {"experts": ["multilingual", "safety"], "at": "1x"}}
    study["suites"] = {"validation": {}, "test": {"multilingual": "locales", "safety": "requests"}}
    study["benchmarks"] = {name: study["benchmarks"][name] | {"limit": 8} for name in ("locales", "requests")}
    study["analyses"] = []
    (folder / "config/cluster.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    describe_site(folder, SITE)


def describe_site(folder: Path, site: dict[str, Any]) -> None:
    """Write what SLURM has at a site."""
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(site))


def running(folder: Path, rule: str) -> list[SlurmJob]:
    """The jobs of a rule that run."""
    return [job for job in slurm_jobs(folder, "RUNNING") if job.rule == rule]


def interrupt(folder: Path) -> list[SlurmJob]:
    """Press Ctrl-C while jobs run; the jobs that are left."""
    with in_background(folder, *ON_SLURM) as snakemake:
        wait_until(lambda: bool(slurm_jobs(folder, "RUNNING")))
        snakemake.send_signal(signal.SIGINT)
        snakemake.wait(timeout=60)
    wait_until(lambda: not slurm_jobs(folder, "COMPLETING"))
    return slurm_jobs(folder, "RUNNING", "PENDING")


def scontrol_update(**changes: str) -> None:
    """Change a job as its owner or an administrator may."""
    given = [f"{name}={value}" for name, value in changes.items()]
    subprocess.run(["scontrol", "update", *given], check=True)


def processes_of(*jobs: str) -> list[int]:
    """All processes of these jobs, with SLURM's own that look after them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
            if any(
                f"SLURM_JOB_ID={job}".encode() in environment or f"slurmstepd: [{job}.".encode() in command
                for job in jobs
            ):
                found.append(int(process.name))
    return found


def kill_node(node: str) -> None:
    """Let a node die at once with all that runs on it, and come back when SLURM has seen it."""
    daemon = CLUSTER / f"run/slurmd-{node}.pid"
    listed = ["squeue", "--noheader", f"--nodelist={node}", "--states=RUNNING,COMPLETING", "--format=%i"]
    numbers = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    for pid in [int(daemon.read_text()), *processes_of(*numbers)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def missed() -> bool:
        # The reason, since a state may read "mixed" for minutes: SLURM counts the CPUs of the jobs that died late.
        shown = subprocess.run(["sinfo", "-h", "-n", node, "-o", "%E"], capture_output=True, text=True, check=True)
        return "Not responding" in shown.stdout

    wait_until(missed)
    subprocess.run([Path(__file__).with_name("start.sh")], check=True, stdout=subprocess.DEVNULL)


def hold(folder: Path, rule: str) -> SlurmJob:
    """Keep a job from ever going on, and let SLURM end it in a minute."""
    wait_until(lambda: bool(running(folder, rule)))
    (job,) = running(folder, rule)
    scontrol_update(jobid=job.number, timelimit="1")
    # More than once, for what a process starts while it is looked for.
    for _ in range(3):
        for pid in processes_of(job.number):
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
    kill_node("cpu1")
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
        found[:] = [pid for pid in processes_of(job.number) if signal.SIGURG in signals(pid, "SigCgt")]
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


@dataclass
class Smoke:
    """The smoke study on SLURM."""

    folder: Path
    snakemake: "subprocess.Popen[bytes]"
    # What another run said that made something else in the same folder meanwhile.
    beside: str


@pytest.fixture(scope="session")
def smoke_begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smoke]:
    """config/smoke.yaml as it is, on its way while the other study is disturbed: that one waits most of its time."""
    folder = copy_repository(tmp_path_factory.mktemp("smoke").resolve())
    describe_site(folder, SITE)
    other = folder / "config/other.yaml"
    other.write_text((folder / SMOKE[-1]).read_text().replace("study: smoke", "study: other"))
    with in_background(folder, *SLURM, *SMOKE, "--jobs", "4") as snakemake:
        wait_until(lambda: bool(slurm_jobs(folder)))
        beside = run_in(folder, "results/other/study.json", *SLURM, "--configfile", "config/other.yaml")
        assert beside.returncode == 0, beside.stdout[-3000:]
        yield Smoke(folder, snakemake, beside.stdout)


@pytest.fixture(scope="session")
def smoke(smoke_begun: Smoke) -> Smoke:
    """The smoke study at its end."""
    status = smoke_begun.snakemake.wait(timeout=1200)
    assert status == 0, (smoke_begun.folder / "run.log").read_text()[-5000:]
    return smoke_begun


@pytest.fixture(scope="session")
def story(smoke_begun: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Every fault in one run: the last is that Snakemake is killed while jobs run and wait. Then it is finished."""
    folder = copy_repository(tmp_path_factory.mktemp("cluster").resolve())
    small_study(folder)
    left = interrupt(folder)
    with in_background(folder, *ON_SLURM) as snakemake:
        held = hold(folder, "evaluate_base")
        cancelled, requeued = cancel_one_and_kill_the_node_of_another(folder)
        second = run_in(folder, *ON_SLURM)
        out_of_time, out_of_memory, asked = run_out_of_time_and_memory(folder)
        preempted = preempt(folder, out_of_memory.comment)
        told = Story(folder, left, cancelled, requeued, held, out_of_time, out_of_memory, preempted, asked)
        wait_until(lambda: all(slurm_jobs(folder, state) for state in ("RUNNING", "PENDING")))
        snakemake.send_signal(signal.SIGKILL)
        snakemake.wait()
    told.second_run = second.returncode, second.stdout
    told.alive_after_kill = slurm_jobs(folder, "RUNNING", "PENDING")
    told.without_slurm = run_in(folder, *CONFIG).stdout
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
