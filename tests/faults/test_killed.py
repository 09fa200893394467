"""kill -9 of every kind of job, of Snakemake, a job without memory, two runs at once: one study that meets them all."""

import json
import resource
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.conftest import (
    COMMAND,
    Process,
    assert_same_results,
    copy_until,
    disturbed,
    processes,
    running,
)
from tests.workflow.conftest import run_in, wait_until


@dataclass
class Story:
    """What was seen while the study was disturbed, in the order in which it was."""

    folder: Path
    second_run: tuple[int, str] = (0, "")
    jobs_while_second: list[Process] = field(default_factory=list)
    left_of_killed_run: list[Process] = field(default_factory=list)
    killed_training: Path = Path()
    said: dict[str, str] = field(default_factory=dict)


def kill(process: Process) -> None:
    process.send(signal.SIGKILL)


def has_torch(process: Process) -> bool:
    return process.has_loaded("libtorch")


def has_checkpoint(process: Process) -> bool:
    return any(Path(f"/proc/{process.pid}/cwd", *process.option("--checkpoints")).glob("checkpoint-*/complete"))


def has_written_one_of_two(process: Process) -> bool:
    """An evaluation that is at its second subject."""
    subjects = json.loads(process.option("--subjects")[0])
    cwd = Path(f"/proc/{process.pid}/cwd")
    return len(subjects) == 2 and (cwd / f"{subjects[0]['out']}.json").exists()


def take_memory(process: Process) -> None:
    """Let a process have little more memory than it has."""
    size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size + 2**20, size + 2**20))


def start_a_second_run_and_kill_the_first(told: Story) -> None:
    """Trainings stand still meanwhile, so that they are there to be left behind."""
    with running(told.folder) as snakemake:
        wait_until(lambda: any(map(has_torch, processes(told.folder, "train_expert"))), every_s=0.02)
        for job in processes(told.folder, "train_expert"):
            job.send(signal.SIGSTOP)
        second = run_in(told.folder, *COMMAND)
        told.second_run = second.returncode, second.stdout
        told.jobs_while_second = processes(told.folder, "train_expert")
        assert snakemake.poll() is None
        snakemake.kill()
        snakemake.wait()
        try:
            wait_until(lambda: not processes(told.folder), within_s=10)
        except AssertionError:
            told.left_of_killed_run = processes(told.folder)


@pytest.fixture(scope="module")
def story(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The study from its trainings on, disturbed six times, the same command after each; then it is finished."""
    folder = tmp_path_factory.mktemp("disturbed").resolve()
    told = Story(copy_until("training", undisturbed, folder))
    start_a_second_run_and_kill_the_first(told)

    def kill_training(process: Process) -> None:
        kill(process)
        told.killed_training = folder / process.option("--out")[0]

    told.said["training"] = disturbed(folder, ("train_expert",), has_checkpoint, kill_training)
    told.said["merge"] = disturbed(folder, ("merge_experts", "merge_pool"), has_torch, kill)
    told.said["evaluation"] = disturbed(folder, ("evaluate",), has_written_one_of_two, kill)
    told.said["memory"] = disturbed(folder, ("evaluate",), has_torch, take_memory)
    told.said["collection"] = disturbed(folder, ("collect_results",), lambda _: True, kill)
    finished = run_in(folder, *COMMAND)
    assert finished.returncode == 0, finished.stdout[-5000:]
    told.said["finished"] = finished.stdout
    return told


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(story: Story) -> None:
    status, said = story.second_run
    assert status == 1
    assert said.count("Directory cannot be locked") == 1
    assert "rule train_expert" not in said
    assert story.jobs_while_second, "the first run's jobs go on"


def test_nothing_outlives_a_killed_snakemake(story: Story) -> None:
    assert story.left_of_killed_run == []


def test_the_same_command_goes_on_after_snakemake_was_killed(story: Story) -> None:
    assert "cannot be locked" not in story.said["training"]
    assert "rule train_expert" in story.said["training"]


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("training", "train_expert"),
        ("merge", "merge_"),
        ("evaluation", "evaluate_"),
        ("memory", "evaluate_"),
        ("collection", "collect_results"),
    ],
)
def test_a_job_that_was_killed_is_named(story: Story, fault: str, rule: str) -> None:
    assert f"Error in rule {rule}" in story.said[fault]


def test_a_killed_training_goes_on_from_its_checkpoint(story: Story) -> None:
    assert json.loads((story.killed_training / "expert.json").read_text())["facts"]["stops"] == 1


def test_a_collection_that_was_killed_is_all_that_runs_again(story: Story) -> None:
    assert "rule collect_results" in story.said["finished"]
    assert "rule evaluate" not in story.said["finished"]


def test_the_results_are_those_of_an_undisturbed_run(story: Story, undisturbed: Path) -> None:
    assert_same_results(story.folder, undisturbed)
    assert "Nothing to be done" in run_in(story.folder, *COMMAND).stdout
    assert processes(story.folder) == []
