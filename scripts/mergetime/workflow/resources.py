"""What jobs ask for: of a cluster through ``--profile slurm``, of this machine's GPUs through profiles/gpu.

Nothing here is an input of anything: other numbers run nothing again. Imported while Snakemake parses the workflow:
nothing heavy is imported here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mergetime.config.study import Study
from mergetime.workflow.cluster import WARNED

Shares = Callable[[str, tuple[str, ...], int], tuple[int, int]]
"""Of a rule, a job's wildcards and its attempt: how many times the memory and the time of the first it asks for."""


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


@dataclass(frozen=True)
class Machine:
    """Where jobs run, and what is counted there.

    Attributes:
        on_cluster: whether jobs are a cluster's.
        counts_gpus: whether Snakemake counts GPUs (profiles/gpu); a job's shell then takes one of them.
        counts_memory: whether Snakemake counts memory.
        one_gpu: the shell that takes a GPU.
        site: of a cluster, slurm/site.yaml.
    """

    on_cluster: bool
    counts_gpus: bool
    counts_memory: bool
    one_gpu: str
    site: Mapping[str, Any] = field(default_factory=dict)


def billions(study: Study, wildcards: Any) -> float:
    """Billions of parameters of the base that a job loads, as the config says them; 0 where it does not."""
    base = study.bases.get(wildcards.get("base"))
    return ((base and base.parameters) or 0) / 1e9


def wants_gpu(request: Request, study: Study, wildcards: Any) -> bool:
    """A study whose config gives no size of its bases is one for the CPU, such as the demo."""
    return request.gpu and billions(study, wildcards) > 0


def threads_of(stage: str, *, study: Study, machine: Machine) -> int | Callable[[Any], int]:
    """Threads of a rule: one where nobody counts GPUs, else a function, for one where the base is tiny."""
    request = REQUESTS[stage]
    if not (machine.on_cluster or machine.counts_gpus):
        return 1
    return lambda wildcards: request.threads if billions(study, wildcards) else 1


def memory_mb(request: Request, billions: float, share: int) -> int:
    """Memory of a job, in MB."""
    return round(1000 * share * (request.memory_gb + request.memory_gb_per_billion * billions))


def runtime_min(request: Request, billions: float, share: int, subjects: int, longest: int | None) -> int:
    """Time of a job, in minutes, up to the longest that the site grants."""
    asked = round(share * subjects * (request.runtime_min + request.runtime_min_per_billion * billions))
    return min(asked, longest or asked)


def resources_of(
    stage: str, subjects: int = 1, *, study: Study, machine: Machine, shares: Shares
) -> dict[str, int | str | Callable[..., Any]]:
    """Resources of a rule, by name: values, and functions of a job as Snakemake calls them.

    Each function is called for each of thousands of jobs: there is none where nobody asks for its value.

    Args:
        stage: the rule's line in :data:`REQUESTS`.
        subjects: how many subjects a job takes, one after the other.
        study: whose bases have sizes.
        machine: where the jobs run.
        shares: what further attempts ask for.
    """
    request, site = REQUESTS[stage], machine.site

    def mem_mb(wildcards: Any, attempt: int, rulename: str) -> int:
        share, _ = shares(rulename, tuple(wildcards), attempt)
        return memory_mb(request, billions(study, wildcards), share)

    def runtime(wildcards: Any, attempt: int, rulename: str) -> int:
        _, share = shares(rulename, tuple(wildcards), attempt)
        return runtime_min(request, billions(study, wildcards), share, subjects, site.get("max_runtime_min"))

    def of_site(name: str) -> Callable[[Any], Any]:
        """A resource of the plugin, from the site's settings for jobs with or without a GPU; None: not given."""

        def value(wildcards: Any) -> Any:
            kind = "gpu_jobs" if wants_gpu(request, study, wildcards) else "cpu_jobs"
            return {**site["every_job"], **site[kind]}.get(name)

        return value

    def on_gpu(value: int | str) -> Callable[[Any], int | str | None]:
        """A resource of jobs that want a GPU alone."""
        return lambda wildcards: value if wants_gpu(request, study, wildcards) else None

    asked: dict[str, int | str | Callable[..., Any]] = {}
    if machine.counts_memory:
        asked["mem_mb"] = mem_mb
    if request.gpu and (machine.on_cluster or machine.counts_gpus) and not site.get("gpu_jobs", {}).get("gres"):
        asked["gpu"] = on_gpu(1)
    if machine.on_cluster:
        asked["runtime"] = runtime
        # threads, without the limit to the cores of the machine that Snakemake runs on.
        asked["cpus_per_task"] = threads_of(stage, study=study, machine=machine)
        asked["nodes"] = on_gpu(1)
        names = {name for section in ("every_job", "cpu_jobs", "gpu_jobs") for name in site[section]}
        asked |= {name: of_site(name) for name in sorted(names)}
        asked |= {"slurm_extra": WARNED[stage]} if stage in WARNED else {}
    elif machine.counts_gpus:
        asked["shell_exec"] = on_gpu(machine.one_gpu)
    return asked
