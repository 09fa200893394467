"""The digest of the code that each kind of job runs, for the param ``code`` of its rule.

Of what is loaded by name, a job's digest covers what the job uses: its merge methods, its data format, its tasks. So a
new one of them reruns nothing. The code of a table or figure is said by its entry (mergetime.publishing.entry).

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from collections.abc import Iterable
from pathlib import Path

from mergetime.config.study import Study
from mergetime.core.digests import code_digest, digest_of
from mergetime.data import registry as formats
from mergetime.merging import registry as methods
from mergetime.modalities.parts import DEFAULT
from mergetime.study import methods as merging
from mergetime.study.suites import benchmarks_of
from mergetime.workflow.tasks import files_of_tasks


def on_base(study: Study, base: str, stem: str) -> str:
    """Of a script that runs a base or its experts: with the parts of the base's modality, and of no other."""
    return code_digest(stem, modality=study.bases[base].modality)


def of_merges(study: Study, merge_ids: Iterable[str]) -> str:
    """Of a job that makes these merges of a pool, candidates among them."""
    ids = merging.merge_ids(study)
    used = {study.methods[ids[merge_id][0]].method for merge_id in merge_ids}
    return code_digest("merge_pool", members=_sorted(map(methods.file_of, used)))


def of_judgements() -> str:
    """Of what judges say of responses; a judge is a causal language model, whatever the base is."""
    return code_digest("judge_responses", modality=DEFAULT)


def of_soup(study: Study, base: str) -> str:
    """Of the choice of a greedy soup's members, which merges soups to try them."""
    soup = methods.file_of("greedy_soup")
    return code_digest("select_soup", members=(soup,), modality=study.bases[base].modality)


def of_preparation(study: Study, domain: str) -> str:
    """Of the preparation of a domain's examples, which are read as the study's first base reads them."""
    modality = next(iter(study.bases.values())).modality
    return code_digest("prepare_domain", members=(formats.file_of(study.domains[domain].format),), modality=modality)


def of_tasks(study: Study, group: str) -> str:
    """Of the study's own lm-eval tasks in a group of its suites; empty where it has no folder of tasks.

    Raises:
        ValueError: naming the folder where there is none, or a task file that is not YAML.
    """
    if not study.evaluation.tasks:
        return ""
    if not Path(study.evaluation.tasks).is_dir():
        raise ValueError(f"evaluation.tasks: {study.evaluation.tasks}: no such folder; correct it, or leave it out")
    benchmarks = [study.benchmarks[name] for _, name in benchmarks_of(study, group)]
    tasks = [
        benchmark.task.replace("{config}", str(config)) for benchmark in benchmarks for config in benchmark.configs
    ]
    return digest_of(files_of_tasks(Path(study.evaluation.tasks), tasks))


def _sorted(files: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(set(files)))
