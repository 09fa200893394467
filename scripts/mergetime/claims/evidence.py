"""What claims are judged on: scores by model, domain and duration, and the tidy files of analyses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from mergetime.claims.curves import Curve
from mergetime.claims.results import NotTestableError, Reals
from mergetime.publishing import scores as sc


class Measured(NamedTuple):
    """What a column of scores is of; texts are empty where a model has none, a base's multiple is 0."""

    kind: str
    expert: str
    method: str
    space: str
    multiple: float
    domain: str


@dataclass(frozen=True)
class Scores:
    """The scores of one base in percent.

    Attributes:
        cells: what the columns of the arrays are of.
        point: scores on the data [cells].
        drawn: scores on the replicates [replicates, cells].
        covariance: of ``point`` over the drawing of items [cells, cells]; domains share no items.
        by_seed: scores with each seed of training [cells, seeds]; the same for all seeds where nothing is trained.
        freedom: its degrees of freedom, by domain.
        items: of the smallest benchmark, by domain.
        refusals: the domains that are in no average.
    """

    cells: list[Measured]
    point: Reals
    drawn: Reals
    covariance: Reals
    by_seed: Reals
    freedom: Mapping[str, float]
    items: Mapping[str, int]
    refusals: tuple[str, ...] = ()

    @cached_property
    def spaces(self) -> Mapping[str, list[str]]:
        """The spaces that each method merges in."""
        spaces: dict[str, list[str]] = {}
        for method, space in dict.fromkeys((cell.method, cell.space) for cell in self.cells if cell.kind == "merged"):
            spaces.setdefault(method, []).append(space)
        return spaces

    @cached_property
    def experts_trained(self) -> list[str]:
        """The experts that were kept at multiples of their T*, which imported ones are not."""
        return list(dict.fromkeys(cell.expert for cell in self.cells if cell.kind == "expert"))

    @cached_property
    def accuracy_domains(self) -> list[str]:
        """The domains that averages run over: all that were measured but those measured by refusals."""
        domains = [
            domain for domain in dict.fromkeys(cell.domain for cell in self.cells) if domain not in self.refusals
        ]
        if not domains:
            raise NotTestableError(f"no domain but {' and '.join(self.refusals) or 'none'} is measured")
        return domains

    def merged(self, method: str, space: str | None, domain: str) -> Curve:
        """Merges of one method against duration."""
        if method not in self.spaces:
            raise NotTestableError(f"the study does not merge with {method}")
        if space not in self.spaces[method]:
            raise NotTestableError(f"{method} is not merged in the space of what it is compared with")
        chosen = {("merged", "", method, space)}
        return self._average(lambda cell: cell[:4] in chosen, domain, f"merges with {method}")

    def experts(self, domain: str = sc.AVERAGE) -> Curve:
        """Experts against duration, each on the domain that it was trained on."""
        return self._average(lambda cell: cell.kind == "expert" and cell.expert == cell.domain, domain, "experts")

    def expert(self, name: str, domain: str = sc.AVERAGE) -> Curve:
        """One expert against duration, on all domains."""
        return self._average(lambda cell: cell.kind == "expert" and cell.expert == name, domain, f"expert {name}")

    def base(self, domain: str = sc.AVERAGE) -> Curve:
        """The untrained base; its only duration is 0."""
        return self._average(lambda cell: cell.kind == "base", domain, "the base")

    def _average(self, chosen: Callable[[Measured], bool], domain: str, what: str) -> Curve:
        """The chosen subjects' mean over domains, at the durations where all of the domains are measured."""
        domains = self.accuracy_domains if domain == sc.AVERAGE else [domain]
        places = {(cell.multiple, cell.domain): place for place, cell in enumerate(self.cells) if chosen(cell)}
        unmeasured = [name for name in domains if name not in {measured for _, measured in places}]
        if unmeasured:
            raise NotTestableError(f"the study has no score of {what} in {', '.join(unmeasured)}")
        durations = sorted({multiple for multiple, _ in places})
        multiples = [multiple for multiple in durations if all((multiple, other) in places for other in domains)]
        if not multiples:
            raise NotTestableError(f"{what} have no duration with a score in all of {', '.join(domains)}")
        index = np.array([[places[multiple, other] for other in domains] for multiple in multiples])
        weights = np.zeros((len(multiples), len(self.cells)))
        np.put_along_axis(weights, index, 1 / len(domains), axis=1)
        return Curve(
            np.array(multiples),
            self.point[index].mean(axis=1),
            self.drawn[:, index].mean(axis=2),
            weights,
            min(self.freedom[name] for name in domains),
            min(self.items[name] for name in domains),
        )


@dataclass(frozen=True)
class Evidence:
    """All that a study offers: scores by base (smallest base first) and the tidy files of its analyses, by name."""

    scores: Mapping[str, Scores]
    analyses: Mapping[str, pd.DataFrame]

    def analysis(self, name: str, base: str) -> pd.DataFrame:
        """The rows of an analysis for one base, at durations that are multiples of T*.

        Raises:
            NotTestableError: if the study does not have it.
        """
        frame = self.analyses.get(name)
        if frame is None:
            raise NotTestableError(f"the study has no analysis/{name}.parquet")
        rows = frame[(frame["base"] == base) & frame["multiple"].notna()]
        if rows.empty:
            raise NotTestableError(f"analysis/{name}.parquet has no duration of {base} in multiples of T*")
        return rows
