"""What jobs ask for, by the size of their base, their attempt, and what a machine counts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime.config.study import Study
from mergetime.workflow import resources
from mergetime.workflow.resources import REQUESTS, Machine

ROOT = Path(__file__).parents[2]
PAPER = Study.model_validate(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
SITE: dict[str, Any] = {
    "every_job": {"slurm_account": "paper", "slurm_partition": "cpu"},
    "cpu_jobs": {},
    "gpu_jobs": {"slurm_partition": "gpu", "gpu_model": "h100"},
    "max_runtime_min": 1440,
}
NOWHERE = Machine(on_cluster=False, counts_gpus=False, counts_memory=False, one_gpu="gpu.sh")
GPUS = Machine(on_cluster=False, counts_gpus=True, counts_memory=True, one_gpu="gpu.sh")
CLUSTER = Machine(on_cluster=True, counts_gpus=False, counts_memory=True, one_gpu="gpu.sh", site=SITE)
BIG = next(name for name, base in PAPER.bases.items() if (base.parameters or 0) > 3e9)


class Wildcards(dict[str, str]):
    """As Snakemake's: iterates over the values."""

    def __iter__(self) -> Any:
        return iter(self.values())


JOB = Wildcards(base=BIG, domain="math", seed="1")
BILLIONS = resources.billions(PAPER, JOB)


def asked(stage: str, machine: Machine, subjects: int = 1, shares: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """The values of a job's first attempt; None where nothing is given."""
    seen: list[Any] = []

    def share(*job: Any) -> tuple[int, int]:
        seen.append(job)
        return shares

    found = resources.resources_of(stage, subjects, study=PAPER, machine=machine, shares=share)
    calls = {"mem_mb": {"attempt": 2, "rulename": "r"}, "runtime": {"attempt": 2, "rulename": "r"}}
    values = {name: value(JOB, **calls.get(name, {})) if callable(value) else value for name, value in found.items()}
    assert set(seen) <= {("r", (BIG, "math", "1"), 2)}
    return values


def test_nothing_is_asked_where_nobody_counts() -> None:
    for stage in REQUESTS:
        assert resources.resources_of(stage, study=PAPER, machine=NOWHERE, shares=lambda *_: (1, 1)) == {}
        assert resources.threads_of(stage, study=PAPER, machine=NOWHERE) == 1


def test_a_machine_with_gpus() -> None:
    train = asked("train_expert", GPUS)
    assert train == {"mem_mb": round(1000 * (8 + 6 * BILLIONS)), "gpu": 1, "shell_exec": "gpu.sh"}
    assert set(asked("merge_pool", GPUS)) == {"mem_mb", "shell_exec"}
    assert asked("merge_pool", GPUS)["shell_exec"] is None


def test_a_cluster() -> None:
    train = asked("train_expert", CLUSTER)
    assert train == {
        "mem_mb": round(1000 * (8 + 6 * BILLIONS)),
        "gpu": 1,
        "runtime": round(240 + 240 * BILLIONS),
        "cpus_per_task": 4,
        "nodes": 1,
        "slurm_account": "paper",
        "slurm_partition": "gpu",
        "gpu_model": "h100",
        "slurm_extra": "--signal=URG@300",
    }
    merge = asked("merge_pool", CLUSTER)
    assert (merge["slurm_partition"], merge["gpu_model"], merge["nodes"]) == ("cpu", None, None)
    assert {"gpu", "slurm_extra"}.isdisjoint(merge)


def test_a_site_with_gres_is_not_asked_for_gpus_twice() -> None:
    site = SITE | {"gpu_jobs": {"gres": "gpu:1"}}
    machine = Machine(True, False, True, "gpu.sh", site)
    assert asked("train_expert", machine)["gres"] == "gpu:1"
    assert "gpu" not in asked("train_expert", machine)


def test_a_further_attempt_asks_for_more_of_what_ran_out() -> None:
    first, more = asked("measure_expert", CLUSTER), asked("measure_expert", CLUSTER, shares=(3, 2))
    assert more["mem_mb"] == pytest.approx(3 * first["mem_mb"], abs=2)
    assert more["runtime"] == 2 * first["runtime"]


def test_time_is_of_each_subject_up_to_what_the_site_grants() -> None:
    one = asked("evaluate", CLUSTER)["runtime"]
    assert asked("evaluate", CLUSTER, subjects=2)["runtime"] == 2 * one
    assert asked("evaluate", CLUSTER, subjects=100)["runtime"] == 1440
    unlimited = Machine(True, False, True, "gpu.sh", SITE | {"max_runtime_min": None})
    assert asked("evaluate", unlimited, subjects=100)["runtime"] == pytest.approx(100 * one, abs=100)


def test_a_base_without_a_size_is_for_the_cpu() -> None:
    demo = Study.model_validate(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    job = Wildcards(base="qwen3.5-demo")
    assert not resources.wants_gpu(REQUESTS["train_expert"], demo, job)
    threads = resources.threads_of("train_expert", study=demo, machine=CLUSTER)
    assert callable(threads)
    assert threads(job) == 1
    assert resources.billions(demo, Wildcards(domain="math")) == 0
