"""The groups of a study's suite: validation chooses, every other group reports.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from mergetime.config.evaluation import VALIDATION_LOSS
from mergetime.config.study import Study

VALIDATION = "validation"
"""The group that chooses, and the only one that anything may be chosen by."""


def groups(study: Study) -> list[str]:
    """The groups that have a benchmark: validation first, then test and the others in the config's order."""
    return list(study.suites.groups)


def reporting(study: Study) -> list[str]:
    """The groups that report."""
    return [group for group in groups(study) if group != VALIDATION]


def measures_of(study: Study, group: str) -> list[tuple[str, str]]:
    """Domain and benchmark of everything that a group measures, the validation loss among them; may be empty."""
    suite = study.suites.groups.get(group, {})
    return [(domain, benchmark) for domain, benchmarks in suite.items() for benchmark in benchmarks]


def benchmarks_of(study: Study, group: str) -> list[tuple[str, str]]:
    """Domain and benchmark of a group, without what needs no benchmark: the validation loss."""
    return [(domain, name) for domain, name in measures_of(study, group) if name != VALIDATION_LOSS]


def losses_of(study: Study, group: str) -> list[str]:
    """The domains on whose own validation examples a group takes the loss."""
    return [domain for domain, name in measures_of(study, group) if name == VALIDATION_LOSS]
