"""A study smaller than smoke, run once undisturbed; each drill disturbs a copy of it."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.workflow.conftest import copy_repository, in_background, run_in, wait_until

RESULTS = Path("results/faults")
COMMAND = [str(RESULTS / "results.parquet"), "--configfile", "config/faults.yaml"]
MADE_BY = {
    "training": ["experts", "checkpoints"],
    "merging": ["merged"],
    "evaluation": ["evaluations/experts", "evaluations/merged"],
    "collection": ["results.parquet", "samples.parquet", "curves.parquet", "costs.parquet", "results.json"],
}
"""What each stage writes below the study's folder, but for the evaluation of the base; in the order of the stages."""


def write_config(folder: Path) -> None:
    """The smoke study, cut down: a base, two domains, two durations, two methods, two benchmarks."""
    study = yaml.safe_load((folder / "config/smoke.yaml").read_text())
    study["study"] = "faults"
    del study["experts"]["imported"]
    for domain in study["domains"].values():
        domain |= {"train": 16, "validation": 8}
    study["experts"]["train"] |= {"mode": "lora"}
    study["experts"]["durations"] = {"multiples_of_optimum": [0.5, 1]}
    study["pools"] = {"same_duration": study["pools"]["same_duration"]}
    study["methods"] = {
        "simple_average": study["methods"]["simple_average"],
        "ties": {"method": "ties", "space": "delta", "density": 0.5},
    }
    study["suites"] = {"validation": {}, "test": {"multilingual": "locales", "safety": "requests"}}
    study["benchmarks"] = {name: study["benchmarks"][name] | {"limit": 8} for name in ("locales", "requests")}
    study["analyses"] = []
    (folder / "config/faults.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run to its results, undisturbed."""
    folder = copy_repository(tmp_path_factory.mktemp("undisturbed").resolve())
    write_config(folder)
    done = run_in(folder, *COMMAND)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def copy_until(stage: str, finished: Path, target: Path) -> Path:
    """A copy of a finished study without what this stage and those after it have made."""
    subprocess.run(["cp", "-a", "--reflink=auto", f"{finished}/.", target], check=True)
    stages = list(MADE_BY)
    for later in stages[stages.index(stage) :]:
        for name in MADE_BY[later]:
            path = target / RESULTS / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return target


def assert_same_results(folder: Path, undisturbed: Path) -> None:
    """Every metric, and every item's score, is that of the undisturbed run."""
    for name in ("results.parquet", "samples.parquet"):
        assert pq.read_table(folder / RESULTS / name).equals(pq.read_table(undisturbed / RESULTS / name))


@dataclass(frozen=True)
class Process:
    """A process of a job: its id and its command."""

    pid: int
    command: list[str]

    def option(self, name: str) -> list[str]:
        """The values of an option, however often it is given."""
        return [value for key, value in zip(self.command, self.command[1:], strict=False) if key == name]

    def has_loaded(self, library: str) -> bool:
        """Whether a shared library is in its memory."""
        with contextlib.suppress(OSError):
            return library in Path(f"/proc/{self.pid}/maps").read_text()
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def processes(folder: Path, *scripts: str) -> list[Process]:
    """The Python processes in this folder that run one of these scripts; without scripts, all processes there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            if (entry / "cwd").readlink() != folder or not command[0]:
                continue
            if not scripts or command[1] in [f"scripts/{script}.py" for script in scripts]:
                found.append(Process(int(entry.name), command))
    return found


@contextlib.contextmanager
def running(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The study in the background; what is left of it at the end is killed."""
    try:
        with in_background(folder, *COMMAND) as snakemake:
            yield snakemake
    finally:
        for process in processes(folder):
            process.send(signal.SIGKILL)


def disturbed(
    folder: Path, scripts: tuple[str, ...], ready: Callable[[Process], bool], harm: Callable[[Process], None]
) -> str:
    """Run the study, harm the first process of these scripts that is ready for it; what Snakemake said of its failing."""
    with running(folder) as snakemake:

        def harmed() -> bool:
            assert snakemake.poll() is None, (folder / "run.log").read_text()[-5000:]
            for process in processes(folder, *scripts):
                if ready(process):
                    harm(process)
                    return True
            return False

        wait_until(harmed, every_s=0.02)
        assert snakemake.wait(timeout=300) == 1, "the fault went unnoticed"
        assert processes(folder) == []
    return (folder / "run.log").read_text()
