"""The merges that a study makes of each pool.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergetime.config.merging import Method
from mergetime.config.study import Study
from mergetime.study.pools import Pool

CANDIDATE = ".candidate_"
"""Between a method's id and the number of a candidate that validation chooses from."""


@dataclass(frozen=True)
class Merge:
    """A merge of a pool.

    Attributes:
        id: Its name in paths.
        method: The method's id in the config.
        candidate: Its number, where validation chooses from it and others; such a merge is reported nowhere.
        axis: The hyper-parameter that is swept, where it is a point of a sweep.
        axis_value: The value there.
        changes: Hyper-parameters beside those that the config gives the method.
    """

    id: str
    method: str
    candidate: int | None = None
    axis: str | None = None
    axis_value: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def candidates(method: Method) -> list[dict[str, Any]]:
    """Every combination of the hyper-parameters that validation chooses from; empty where nothing is chosen."""
    return method.choices if method.choose else []


def merges(study: Study) -> dict[str, Merge]:
    """Every merge of a pool by its id: each method as configured, its candidates, and the points of its sweeps.

    Raises:
        ValueError: where two merges would have one id.
    """
    merges_by_id: dict[str, Merge] = {}
    for name, method in study.methods.items():
        of_method = [Merge(name, name)]
        of_method += [
            Merge(f"{name}{CANDIDATE}{number}", name, candidate=number, changes=parameters)
            for number, parameters in enumerate(candidates(method))
        ]
        of_method += [
            Merge(f"{name}.{axis}-{_text(value)}", name, axis=axis, axis_value=value, changes={axis: value})
            for axis, values in (method.sweep or {}).items()
            for value in values
        ]
        for merge in of_method:
            if merge.id in merges_by_id:
                raise ValueError(f"methods: {merge.id} is the id of two merges; rename {merge.method}")
            merges_by_id[merge.id] = merge
    return merges_by_id


def merges_of(study: Study, pool: Pool) -> list[Merge]:
    """The merges of one pool: those of the methods that take it."""
    return [merge for merge in merges(study).values() if takes(study.methods[merge.method], pool)]


def takes(method: Method, pool: Pool) -> bool:
    """Whether a method merges a pool."""
    return method.pools is None or pool.family in method.pools


def merge_ids(study: Study) -> dict[str, tuple[str, int | None]]:
    """Every merge of a pool: its id in paths, to the method's id and the candidate's number, if it is one."""
    return {merge.id: (merge.method, merge.candidate) for merge in merges(study).values()}


def _text(value: float) -> str:
    """A number as short as it can be read back: 0.1, 1, 1e-05."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
