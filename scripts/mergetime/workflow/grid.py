"""A study with what rules look up in it for each of thousands of jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from mergetime.artifacts import forms
from mergetime.config import Study
from mergetime.study import grid, layout
from mergetime.study.layout import Layout


@dataclass(frozen=True, eq=False)
class Grid:
    """A study, its paths, its pools by id, and its merges by id: the method's id, and a candidate's number.

    Compared by identity, so that functions of it can be cached.
    """

    study: Study
    paths: Layout
    pools: Mapping[str, grid.Pool]
    merges: Mapping[str, tuple[str, int | None]]

    @classmethod
    def of(cls, study: Study) -> Self:
        """The grid of a study.

        Raises:
            ValueError: naming the pool and the expert or duration that is unknown.
        """
        return cls(study, layout.of(study), {pool.id: pool for pool in grid.pools(study)}, grid.merge_ids(study))

    @cached_property
    def final(self) -> list[str]:
        """The ids of merges that are tested."""
        return [merge_id for merge_id, (_, candidate) in self.merges.items() if candidate is None]

    @cached_property
    def candidates(self) -> list[str]:
        """The ids of merges that validation chooses from."""
        return [merge_id for merge_id, (_, candidate) in self.merges.items() if candidate is not None]

    @cached_property
    def splits(self) -> list[str]:
        """The splits that subjects are evaluated on."""
        return ["validation", "test"] if self.study.suites.validation else ["test"]

    @cached_property
    def trained_form(self) -> forms.Form:
        """The form of experts that the study trains; of imported ones, where it trains none."""
        train = self.study.experts.train
        return forms.trained_as(train.mode) if train else forms.ADAPTER
