"""The merges that a study makes of each pool.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import itertools

from mergetime.config.merging import Method
from mergetime.config.study import Study

CANDIDATE = ".candidate_"
"""Between a method's id and the number of a candidate that validation chooses from."""


def candidates(method: Method) -> list[dict[str, object]]:
    """Every combination of the hyper-parameters that validation chooses from; empty where nothing is chosen."""
    if not method.choose:
        return []
    return [dict(zip(method.choose, values, strict=True)) for values in itertools.product(*method.choose.values())]


def merge_ids(study: Study) -> dict[str, tuple[str, int | None]]:
    """Every merged artifact of a pool: its id in paths, to the method's id and the candidate's number, if it is one."""
    ids: dict[str, tuple[str, int | None]] = {}
    for name, method in study.methods.items():
        ids[name] = (name, None)
        ids |= {f"{name}{CANDIDATE}{number}": (name, number) for number in range(len(candidates(method)))}
    return ids
