"""What `snakemake --profile slurm` promises, on a real SLURM."""

from pathlib import Path

import pyarrow.parquet as pq

from tests.cluster.conftest import ON_SLURM, SlurmJob, Story, details, slurm_jobs
from tests.workflow.conftest import run_in

COMPUTES = {
    "prepare_domain",
    "train_expert",
    "measure_expert",
    "merge_experts",
    "merge_adapters",
    "evaluate_base",
    "evaluate_expert_0",
    "evaluate_merged_0",
    "select_soup",
    "measure_interference",
    "collect_results",
}
ON_GPU = {rule for rule in COMPUTES if rule.startswith(("train", "evaluate", "select", "measure_expert"))}


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(folder / "results/cluster/results.parquet").to_pylist()
    return found


def test_what_computes_runs_as_slurm_jobs_and_nothing_else(story: Story) -> None:
    assert {job.rule for job in slurm_jobs(story.folder)} == COMPUTES


def test_a_second_run_does_nothing(story: Story) -> None:
    assert "Nothing to be done" in story.again


def test_jobs_ask_for_what_the_table_says(story: Story) -> None:
    asked = {job.rule: details(job) for job in slurm_jobs(story.folder, "COMPLETED")}
    evaluation = asked["evaluate_base"]
    assert evaluation["Partition"] == "gpu"
    assert evaluation["TresPerJob"] == "gres:gpu:h100:1"
    assert evaluation["NumNodes"] == "1"
    assert evaluation["CPUs/Task"] == "4"
    assert evaluation["MinMemoryNode"] == "19000M"
    assert evaluation["TimeLimit"] == "01:15:00"
    assert asked["collect_results"]["Partition"] == "cpu"
    assert asked["collect_results"]["MinMemoryNode"] == "8000M"
    assert {rule for rule, request in asked.items() if "TresPerJob" in request} == ON_GPU


def test_ctrl_c_cancels_the_jobs(story: Story) -> None:
    assert story.after_interrupt == []


def test_a_cancelled_job_is_submitted_again(story: Story) -> None:
    states = [job.state for job in slurm_jobs(story.folder) if job.comment == story.cancelled.comment]
    assert states[-2:] == ["CANCELLED", "COMPLETED"]


def test_a_job_whose_node_goes_down_starts_again(story: Story) -> None:
    shown = details(story.requeued)
    assert (shown["Restarts"], shown["JobState"]) == ("1", "COMPLETED")


def test_a_stopped_training_goes_on_in_a_job_with_more_memory_and_time(story: Story) -> None:
    jobs = [job for job in slurm_jobs(story.folder) if job.comment == story.stopped.comment]
    assert story.stopped.state == "FAILED"
    first, second = details(story.stopped), details(jobs[1])
    assert (first["TimeLimit"], first["MinMemoryNode"]) == ("06:00:00", "11000M")
    assert (second["TimeLimit"], second["MinMemoryNode"]) == ("12:00:00", "22000M")


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
