"""A study with what rules look up in it for each of thousands of jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from mergetime.artifacts import forms
from mergetime.config.study import Study
from mergetime.study import layout
from mergetime.study.durations import recipes
from mergetime.study.layout import Layout
from mergetime.study.methods import Merge, merges
from mergetime.study.pools import Expert, Pool, pools
from mergetime.study.suites import groups, reporting


@dataclass(frozen=True, eq=False)
class Grid:
    """A study, its paths, its pools by id, and the merges of a pool by id.

    Compared by identity, so that functions of it can be cached.
    """

    study: Study
    paths: Layout
    pools: Mapping[str, Pool]
    merges: Mapping[str, Merge]

    @classmethod
    def of(cls, study: Study) -> Self:
        """The grid of a study.

        Raises:
            ValueError: naming the pool and the expert or duration that is unknown.
        """
        return cls(study, layout.of(study), {pool.id: pool for pool in pools(study)}, merges(study))

    @cached_property
    def splits(self) -> list[str]:
        """The groups of the suite that subjects are evaluated on."""
        return groups(self.study)

    @cached_property
    def reporting(self) -> list[str]:
        """The groups that report; validation alone does not."""
        return reporting(self.study)

    def form_of(self, expert: Expert) -> forms.Form:
        """The form of an expert: as its recipe trains it, or an adapter where it is imported."""
        if expert.recipe is None:
            return forms.ADAPTER
        return forms.trained_as(recipes(self.study)[expert.recipe].train.mode)

    def members_form(self, pool: str) -> forms.Form:
        """The form of a pool's experts: whole models where one of them is."""
        found = {self.form_of(expert) for expert in self.pools[pool].experts}
        return forms.CHECKPOINT if forms.CHECKPOINT in found else forms.ADAPTER
