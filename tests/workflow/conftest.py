"""The smoke study, run once in a copy of the repository; each test works on a copy of that."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = ["--configfile", "config/smoke.yaml"]
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in ``folder``, its output and errors together in ``stdout``."""
    return subprocess.run(
        ["snakemake", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
        check=False,
    )


@contextlib.contextmanager
def in_background(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Snakemake in ``folder`` beside the test, its output in ``run.log``; what still runs at the end is killed."""
    with (folder / "run.log").open("wb") as log:
        snakemake = subprocess.Popen(
            ["snakemake", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Where the tests themselves run in a shell's background, Ctrl-C is ignored, and children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield snakemake
        finally:
            snakemake.kill()
            snakemake.wait()


def wait_until(happens: Callable[[], object], within_s: float = 400, every_s: float = 0.5) -> None:
    """Return as soon as something is true."""
    until = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < until, f"did not happen within {within_s} s"
        time.sleep(every_s)


def copy_repository(target: Path) -> Path:
    """The files that git tracks or would track, in a new folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke study has run to its end."""
    folder = copy_repository(tmp_path_factory.mktemp("finished"))
    done = run_in(folder, *SMOKE)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, times kept, to change at will."""
    return Path(shutil.copytree(finished, tmp_path / "study", symlinks=True))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository as cloned: nothing has run in it."""
    return copy_repository(tmp_path / "clone")
