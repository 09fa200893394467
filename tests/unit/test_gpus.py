"""One machine with several GPUs, as `snakemake --profile profiles/gpu` takes them; no cluster is needed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "91,92"}


def shell(command: str) -> "subprocess.Popen[str]":
    """A job's shell as Snakemake starts it, on a machine with the GPUs 91 and 92."""
    return subprocess.Popen(
        [ROOT / "profiles/gpu/one_gpu.sh", "-c", command],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def seen(job: "subprocess.Popen[str]") -> str:
    """The GPUs that a job says it sees."""
    assert job.stdout
    return job.stdout.readline().strip()


def test_each_job_sees_a_gpu_of_its_own_and_waits_for_one() -> None:
    command = "echo $CUDA_VISIBLE_DEVICES; read"
    with shell(command) as first, shell(command) as second:
        taken = {first: seen(first), second: seen(second)}
        assert set(taken.values()) == {"91", "92"}
        with shell(command) as third:
            with pytest.raises(subprocess.TimeoutExpired):
                third.wait(timeout=2)
            first.kill()
            assert seen(third) == taken[first]
            third.kill()
        second.kill()


OF_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")


@pytest.mark.parametrize("planted", ["link", pytest.param("somebody's", marks=OF_ROOT)])
def test_locks_are_never_in_a_folder_of_somebody_else(tmp_path: Path, planted: str) -> None:
    locks, victim = tmp_path / f"mergetime-gpus-{os.getuid()}", tmp_path / "victim"
    victim.mkdir()
    (victim / "91").write_text("kept")
    if planted == "link":
        locks.symlink_to(victim)
    else:
        locks.mkdir()
        os.chown(locks, 12345, 12345)
    done = subprocess.run(
        [ROOT / "profiles/gpu/one_gpu.sh", "-c", "true"],
        env={**ENVIRONMENT, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {locks} is not a folder of yours alone")
    assert (victim / "91").read_text() == "kept"


def test_a_folder_that_is_not_there_is_not_asked_for_locks(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(tmp_path / "outside of the container")}
    subprocess.run([ROOT / "profiles/gpu/one_gpu.sh", "-c", "true"], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_lock_file_keeps_what_is_in_it(tmp_path: Path) -> None:
    locks = tmp_path / f"mergetime-gpus-{os.getuid()}"
    locks.mkdir(mode=0o755)
    (locks / "91").write_text("kept")
    environment = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(tmp_path)}
    subprocess.run([ROOT / "profiles/gpu/one_gpu.sh", "-c", "true"], env=environment, check=True)
    assert (locks / "91").read_text() == "kept"
    assert locks.stat().st_mode & 0o777 == 0o700


def test_a_machine_without_gpus_is_refused() -> None:
    done = subprocess.run(
        [ROOT / "profiles/gpu/one_gpu.sh", "-c", "true"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: no GPU to be seen\n")


@pytest.mark.parametrize(("config", "gpus"), [("config/paper.yaml", True), ("config/smoke.yaml", False)])
def test_only_a_study_whose_bases_have_a_size_takes_gpus(config: str, gpus: bool) -> None:
    planned = subprocess.run(
        ["snakemake", "-n", "--profile", "profiles/gpu", "--configfile", config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ("one_gpu.sh" in planned) == gpus
