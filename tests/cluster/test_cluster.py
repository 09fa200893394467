"""What `snakemake --profile slurm` promises, on a real SLURM."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster.conftest import (
    CONFIG,
    ON_SLURM,
    SITE,
    SLURM,
    SlurmJob,
    Smoke,
    Story,
    describe_site,
    details,
    scontrol_update,
    slurm_jobs,
    small_study,
)
from tests.workflow.conftest import ROOT, SMOKE, copy_repository, in_background, run_in, wait_until

ON_GPU = {
    "train_expert",
    "measure_expert",
    "evaluate_base",
    "evaluate_expert",
    "evaluate_imported",
    "evaluate_candidate",
    "evaluate_merged",
    "select_soup",
    "measure_bias_variance",
    "measure_connectivity",
}
ON_CPU = {"prepare_domain", "merge_candidates", "merge_pool", "measure_interference", "collect_results"}


def stem(rule: str) -> str:
    """The name of a rule without the number of its batch."""
    return re.sub(r"_\d+$", "", rule)


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(folder / "results/cluster/results.parquet").to_pylist()
    return found


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
    assert {stem(rule) for rule, request in asked.items() if "TresPerJob" in request} == ON_GPU & set(map(stem, asked))


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


@pytest.fixture
def enforced_by_cgroups() -> Iterator[None]:
    """The partition whose node limits memory by control groups, closed, so that jobs wait there."""
    partition = "partitionname=cgroup"
    if not subprocess.run(["sinfo", "-h", "-p", "cgroup"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("SLURM cannot write to control groups for memory here (start.sh takes those of version 1)")
    subprocess.run(["scontrol", "update", partition, "state=down"], check=True)
    yield
    subprocess.run(["scontrol", "update", partition, "state=up"], check=True)


@pytest.mark.usefixtures("enforced_by_cgroups")
def test_a_job_out_of_memory_in_its_control_group_gets_more_of_it_alone(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path.resolve())
    small_study(folder)
    describe_site(folder, {**SITE, "cpu_jobs": {"slurm_partition": "cgroup"}})
    with in_background(folder, "results/cluster/data/safety/domain.json", *ON_SLURM) as snakemake:
        wait_until(lambda: bool(slurm_jobs(folder, "PENDING")))
        (waiting,) = slurm_jobs(folder, "PENDING")
        scontrol_update(jobid=waiting.number, minmemorynode="100")
        scontrol_update(partitionname="cgroup", state="up")
        assert snakemake.wait(timeout=300) == 0, (folder / "run.log").read_text()[-5000:]
    first, second = map(details, slurm_jobs(folder))
    assert first["JobState"] == "OUT_OF_MEMORY"
    assert (second["TimeLimit"], second["MinMemoryNode"], second["JobState"]) == ("01:00:00", "16000M", "COMPLETED")


def test_a_preempted_training_ends_with_the_same_adapters(story: Story, undisturbed: Path) -> None:
    assert details(story.preempted)["Restarts"] == "1"
    experts = sorted((undisturbed / "results/cluster/experts").glob("*/*/*/*/adapter_model.safetensors"))
    assert len(experts) == 2
    assert all((story.folder / file.relative_to(undisturbed)).read_bytes() == file.read_bytes() for file in experts)


def test_a_second_run_in_the_same_folder_is_refused(story: Story) -> None:
    status, said = story.second_run
    assert status == 1
    assert "Directory cannot be locked" in said


def test_the_lock_of_a_killed_run_stays_for_one_that_would_not_cancel_its_jobs(story: Story) -> None:
    assert "--unlock" in story.without_slurm


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


def test_the_smoke_study_ends_whole(smoke: Smoke) -> None:
    study = smoke.folder / "results/smoke"
    assert "Nothing to be done" in run_in(smoke.folder, *SLURM, *SMOKE).stdout
    assert run_in(smoke.folder, "verify", *SMOKE).returncode == 0
    assert pq.read_metadata(study / "results.parquet").num_rows
    assert len(list(study.glob("tables/*.md"))) == 6
    assert len(list(study.glob("figures/*.pdf"))) == 4


def test_what_computes_runs_as_slurm_jobs_and_nothing_else(smoke: Smoke) -> None:
    assert {stem(job.rule) for job in slurm_jobs(smoke.folder)} == ON_CPU | ON_GPU


def test_a_base_without_a_size_asks_for_no_gpu(smoke: Smoke) -> None:
    asked = [details(job) for job in slurm_jobs(smoke.folder)]
    assert {job["Partition"] for job in asked} == {"cpu"}
    assert not any("TresPerJob" in job for job in asked)


def test_a_run_beside_another_leaves_its_jobs_alone(smoke: Smoke) -> None:
    assert "Cancelling" not in smoke.beside
    assert {job.state for job in slurm_jobs(smoke.folder)} == {"COMPLETED"}


def planned(*arguments: str, folder: Path) -> list[tuple[str, dict[str, str]]]:
    """The jobs that a dry run names: rule and resources of each."""
    done = run_in(folder, "-n", "--profile", "slurm", *arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    jobs = re.findall(r"^(?:local)?rule (\w+):(?:\n .*)*?\n    resources: (.*)", done.stdout, re.MULTILINE)
    return [(rule, dict(re.findall(r"(\w+)=([^,]*)", resources))) for rule, resources in jobs]


def test_a_training_is_warned_before_its_time_is_up(story: Story) -> None:
    jobs = planned("--forcerun", "train_expert", *CONFIG, folder=story.folder)
    warned = [resources["slurm_extra"] for rule, resources in jobs if rule == "train_expert"]
    assert warned == ["--signal=URG@300"] * 2


def test_what_loads_a_base_with_a_size_asks_for_a_gpu(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path)
    base, settings = next(iter(yaml.safe_load((folder / SMOKE[-1]).read_text())["bases"].items()))
    sized = {"bases": {base: {**settings, "parameters": 500_000_000}}}
    (folder / "config/sized.yaml").write_text(yaml.safe_dump(sized))
    jobs = planned(*SMOKE, "config/sized.yaml", folder=folder)
    assert {stem(rule) for rule, resources in jobs if "gpu" in resources} == ON_GPU


def test_the_paper_study_is_planned_for_the_site_of_the_documentation(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path)
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    describe_site(folder, {**yaml.safe_load(example), "max_runtime_min": 600})
    jobs = planned("--configfile", "config/paper.yaml", "--set-resources", "merge_pool_2:runtime=77", folder=folder)
    submitted = [(rule, resources) for rule, resources in jobs if "runtime" in resources]
    assert {stem(rule) for rule, _ in submitted} >= {"prepare_domain", "train_expert", "evaluate_merged"}
    assert {resources["slurm_account"] for _, resources in submitted} == {"nlp"}
    on_gpu = {(r["slurm_partition"], r["gpu_model"], r["qos"]) for _, r in submitted if "gpu" in r}
    assert on_gpu == {("gpu", "a100", "long")}
    assert {r["slurm_partition"] for _, r in submitted if "gpu" not in r} == {"standard"}
    assert max(int(resources["runtime"]) for _, resources in submitted) == 600
    assert {resources["runtime"] for rule, resources in submitted if rule == "merge_pool_2"} == {"77"}
