# What jobs ask for, as one table: of a cluster through `--profile slurm`, of this machine's GPUs through profiles/gpu.
# Nothing here is an input of anything: other numbers run nothing again.
from typing import NamedTuple

import yaml


class Request(NamedTuple):
    """A rule's first attempt; a further one gets as much again of what the one before ran out of."""

    gpu: bool
    threads: int
    memory_gb: float
    memory_gb_per_billion: float
    runtime_min: float
    runtime_min_per_billion: float


# Billions are parameters of the base that a job loads. A job that evaluates asks for the time of each of its subjects.
REQUESTS = {
    "pretrain_demo_base": Request(False, 1, 4, 0, 60, 0),
    "prepare_domain": Request(False, 1, 8, 0, 60, 0),
    "train_expert": Request(True, 4, 8, 6, 240, 240),
    "measure_expert": Request(True, 4, 16, 6, 120, 60),
    "merge_pool": Request(False, 4, 8, 4, 60, 30),
    "evaluate": Request(True, 4, 16, 6, 60, 30),
    "judge_responses": Request(True, 4, 32, 0, 60, 0),
    # Beside the base it may hold a judge.
    "select_soup": Request(True, 4, 40, 6, 240, 120),
    "measure_interference": Request(False, 4, 8, 4, 60, 60),
    "measure_bias_variance": Request(True, 4, 16, 6, 120, 120),
    "measure_connectivity": Request(True, 4, 16, 6, 240, 240),
    "collect_results": Request(False, 1, 8, 0, 60, 0),
    "judge_claims": Request(False, 1, 8, 0, 60, 0),
}
# Five minutes before its time is up, a training is told to write a checkpoint; its next attempt goes on from there.
EXTRA = {"train_expert": {"slurm_extra": "--signal=URG@300"}}

# Local executors have no number of nodes; jobs on a cluster read this file again, with --mode remote.
ON_CLUSTER = workflow.remote_exec or workflow.resource_settings.nodes is not None
SITE = (
    yaml.safe_load((Path(workflow.basedir) / "slurm/site.yaml").read_text())
    if ON_CLUSTER
    else {}
)
# Where GPUs of this machine are counted (profiles/gpu), a job's shell takes one of them.
GPUS_COUNTED = "gpu" in workflow.global_resources
MEMORY_COUNTED = ON_CLUSTER or "mem_mb" in workflow.global_resources
ONE_GPU = str(Path(workflow.basedir) / "profiles/gpu/one_gpu.sh")


def billions(wildcards):
    """Billions of parameters of the base that a job loads, as the config says them; 0 where it does not."""
    base = STUDY.bases.get(wildcards.get("base"))
    return (base and base.parameters or 0) / 1e9


def wants_gpu(request, wildcards):
    """A study whose config gives no size of its bases is one for the CPU, such as the demo."""
    return request.gpu and billions(wildcards) > 0


def threads_of(stage):
    """Threads of a rule: one where nobody counts GPUs, else a function, for one where the base is tiny."""
    request = REQUESTS[stage]
    if not (ON_CLUSTER or GPUS_COUNTED):
        return 1
    return lambda wildcards: request.threads if billions(wildcards) else 1


def resources_of(stage, subjects=1):
    """Resources of a rule, by name, as functions of its base's size and of what attempts before ran out of."""
    request = REQUESTS[stage]

    def mem_mb(wildcards, attempt, rulename):
        grows = request.memory_gb_per_billion * billions(wildcards)
        share, _ = shares(rulename, tuple(wildcards), attempt)
        return round(1000 * share * (request.memory_gb + grows))

    def runtime(wildcards, attempt, rulename):
        grows = request.runtime_min_per_billion * billions(wildcards)
        _, share = shares(rulename, tuple(wildcards), attempt)
        wanted = round(share * subjects * (request.runtime_min + grows))
        return min(wanted, SITE.get("max_runtime_min") or wanted)

    def of_site(name):
        """A resource of the plugin, from the site's settings for jobs with or without a GPU; None: not given."""

        def value(wildcards):
            kind = "gpu_jobs" if wants_gpu(request, wildcards) else "cpu_jobs"
            return {**SITE["every_job"], **SITE[kind]}.get(name)

        return value

    def on_gpu(value):
        """A resource of jobs that want a GPU alone."""
        return lambda wildcards: value if wants_gpu(request, wildcards) else None

    # Each function is called for each of thousands of jobs: none where nobody asks for its value.
    asked = {}
    if MEMORY_COUNTED:
        asked["mem_mb"] = mem_mb
    if (
        request.gpu
        and (ON_CLUSTER or GPUS_COUNTED)
        and not SITE.get("gpu_jobs", {}).get("gres")
    ):
        asked["gpu"] = on_gpu(1)
    if ON_CLUSTER:
        asked["runtime"] = runtime
        # threads, without the limit to the cores of the machine that Snakemake runs on.
        asked["cpus_per_task"] = threads_of(stage)
        asked["nodes"] = on_gpu(1)
        sections = (SITE["every_job"], SITE["cpu_jobs"], SITE["gpu_jobs"])
        names = {name for section in sections for name in section}
        asked |= {name: of_site(name) for name in sorted(names)}
        asked |= EXTRA.get(stage, {})
    elif GPUS_COUNTED:
        asked["shell_exec"] = on_gpu(ONE_GPU)
    return asked
