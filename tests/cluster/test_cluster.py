"""What `snakemake --profile slurm` promises, on a real SLURM."""

import re
from pathlib import Path

import pyarrow.parquet as pq

from tests.cluster.conftest import ON_SLURM, SlurmJob, Story, details, slurm_jobs
from tests.workflow.conftest import run_in

COMPUTES = {
    "prepare_domain",
    "train_expert",
    "measure_expert",
    "merge_pool",
    "evaluate_base",
    "evaluate_expert",
    "evaluate_merged",
    "select_soup",
    "measure_interference",
    "collect_results",
}
ON_GPU = {rule for rule in COMPUTES if rule.startswith(("train", "evaluate", "select", "measure_expert"))}


def stem(rule: str) -> str:
    """The name of a rule without the number of its batch."""
    return re.sub(r"_\d+$", "", rule)


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(folder / "results/cluster/results.parquet").to_pylist()
    return found


def test_what_computes_runs_as_slurm_jobs_and_nothing_else(story: Story) -> None:
    assert {stem(job.rule) for job in slurm_jobs(story.folder)} == COMPUTES


def test_a_second_run_does_nothing(story: Story) -> None:
    assert "Nothing to be done" in story.again


def test_jobs_ask_for_what_the_table_says(story: Story) -> None:
    asked = {job.rule: details(job) for job in slurm_jobs(story.folder, "COMPLETED")}
    evaluation = asked["evaluate_expert_0"]
    assert evaluation["Partition"] == "gpu"
    assert evaluation["TresPerJob"] == "gres:gpu:h100:1"
    assert evaluation["NumNodes"] == "1"
    assert evaluation["CPUs/Task"] == "4"
    assert evaluation["MinMemoryNode"] == "19000M"
    assert evaluation["TimeLimit"] == "01:15:00"
    assert asked["collect_results"]["Partition"] == "cpu"
    assert asked["collect_results"]["MinMemoryNode"] == "8000M"
    assert {stem(rule) for rule, request in asked.items() if "TresPerJob" in request} == ON_GPU


def test_a_training_asks_for_what_the_table_says(story: Story) -> None:
    asked = story.asked
    assert (asked["Partition"], asked["TresPerJob"], asked["NumNodes"]) == ("gpu", "gres:gpu:h100:1", "1")
    assert (asked["CPUs/Task"], asked["MinMemoryNode"], asked["TimeLimit"]) == ("4", "11000M", "06:00:00")
    assert asked["Requeue"] == "1"


def test_ctrl_c_cancels_the_jobs(story: Story) -> None:
    assert story.after_interrupt == []


def test_a_cancelled_job_is_submitted_again(story: Story) -> None:
    states = [job.state for job in slurm_jobs(story.folder) if job.comment == story.cancelled.comment]
    assert states[-2:] == ["CANCELLED", "COMPLETED"]


def test_a_cancelled_job_asks_for_no_more(story: Story) -> None:
    jobs = [details(job) for job in slurm_jobs(story.folder) if job.comment == story.cancelled.comment]
    assert {(job["TimeLimit"], job["MinMemoryNode"]) for job in jobs} == {("01:00:00", "8000M")}


def test_a_job_whose_node_dies_starts_again(story: Story) -> None:
    shown = details(story.requeued)
    assert (shown["Restarts"], shown["JobState"]) == ("1", "COMPLETED")


def attempts(story: Story, job: SlurmJob) -> list[dict[str, str]]:
    """What SLURM knows of a job and of its next attempts."""
    jobs = [other for other in slurm_jobs(story.folder) if other.comment == job.comment]
    return [details(other) for other in jobs if int(other.number) >= int(job.number)]


def test_a_training_out_of_time_goes_on_in_a_job_with_more_of_it_alone(story: Story) -> None:
    first, second, *_ = attempts(story, story.out_of_time)
    assert first["JobState"] == "FAILED", "it was warned, and did not wait for its end"
    assert (second["TimeLimit"], second["MinMemoryNode"], second["JobState"]) == ("12:00:00", "11000M", "COMPLETED")


def test_a_job_that_runs_into_its_time_limit_gets_more_of_it_alone(story: Story) -> None:
    first, second, *_ = attempts(story, story.held)
    assert first["JobState"] == "TIMEOUT"
    assert (second["TimeLimit"], second["MinMemoryNode"], second["JobState"]) == ("02:30:00", "19000M", "COMPLETED")


def test_a_job_out_of_memory_gets_more_of_it_alone(story: Story) -> None:
    _, second, *_ = attempts(story, story.out_of_memory)
    assert (second["TimeLimit"], second["MinMemoryNode"]) == ("06:00:00", "22000M")


def test_a_preempted_training_ends_with_the_same_adapters(story: Story, undisturbed: Path) -> None:
    assert details(story.preempted)["Restarts"] == "1"
    experts = sorted((undisturbed / "results/cluster/experts").glob("*/*/*/*/adapter_model.safetensors"))
    assert len(experts) == 2
    assert all((story.folder / file.relative_to(undisturbed)).read_bytes() == file.read_bytes() for file in experts)


def test_a_killed_run_keeps_its_lock(story: Story) -> None:
    assert "--unlock" in story.while_locked


def test_jobs_of_a_killed_run_are_cancelled_before_any_other_starts(story: Story) -> None:
    assert {job.state for job in story.alive_after_kill} >= {"RUNNING", "PENDING"}
    jobs = slurm_jobs(story.folder)
    ended = {job.number: job.state for job in jobs}
    states = {ended[job.number] for job in story.alive_after_kill}
    assert "CANCELLED" in states
    assert states <= {"CANCELLED", "COMPLETED"}, "what was done before the next run began is kept"
    assert "Cancelling" in story.resumed
    runs: dict[str, SlurmJob] = {}
    for job in jobs:
        before = runs.get(job.comment)
        assert before is None or before.ended <= job.started, f"{job} overlaps {before}"
        runs[job.comment] = job


def test_a_disturbed_run_ends_in_the_same_results(story: Story, undisturbed: Path) -> None:
    assert rows(story.folder) == rows(undisturbed)


def test_the_demo_asks_for_no_gpu(story: Story) -> None:
    planned = run_in(story.folder, "-n", "--profile", "slurm", "--configfile", "config/smoke.yaml").stdout
    assert "rule train_expert" in planned
    assert "gpu=" not in planned


def test_a_training_is_warned_before_its_time_is_up(story: Story) -> None:
    planned = run_in(story.folder, "-n", "--forcerun", "train_expert", *ON_SLURM).stdout
    assert planned.count("slurm_extra=--signal=URG@300") == 2


def test_the_study_of_the_paper_is_planned(story: Story) -> None:
    planned = run_in(story.folder, "-n", "--profile", "slurm", "--configfile", "config/paper.yaml")
    assert planned.returncode == 0, planned.stdout[-3000:]
    assert "gpu=1" in planned.stdout
