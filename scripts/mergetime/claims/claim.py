"""A claim as config/papers/*/claims.yaml states it, and the rule that decides on it.

Statistic, parameters and rule are fixed in the file before there are data, so that a study decides on them and not
the other way round.
"""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mergetime.claims.statistics import STATISTICS
from mergetime.core import yaml_text
from mergetime.core.sections import Strict, validated
from mergetime.core.words import nearest

Verdict = Literal["supported", "contradicted", "undecided", "not_testable"]


class DecisionRule(Strict):
    """Where the effect must lie for the claim to hold; exactly one key."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a rule has exactly one of above, at_least, below, at_most, between")
        if self.between and self.between[0] >= self.between[1]:
            raise ValueError(f"between {list(self.between)} is empty")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval that satisfies the rule, its ends included or not."""
        if self.between is not None:
            return self.between
        low = self.above if self.above is not None else self.at_least
        high = self.below if self.below is not None else self.at_most
        return -math.inf if low is None else low, math.inf if high is None else high

    def holds(self, value: float) -> bool:
        """Whether an effect of this size satisfies the rule."""
        low, high = self.bounds
        return low <= value <= high and value not in (self.above, self.below)

    def decide(self, low: float, high: float) -> Verdict:
        """What an interval for the effect says.

        Supported if all of it satisfies the rule; contradicted if it does not even touch what does, so that an effect
        of exactly nothing never contradicts a claim that there is one; else undecided.
        """
        if self.holds(low) and self.holds(high):
            return "supported"
        least, most = self.bounds
        return "contradicted" if high < least or low > most else "undecided"

    def decide_among(self, candidates: Sequence[float]) -> Verdict:
        """What a set says that holds the effect: supported if all of it satisfies the rule, contradicted if none does.

        Unlike the ends of an interval, its members are values that the effect may take: a set of nothing but 0
        contradicts a claim of more than 0.
        """
        held = [self.holds(value) for value in candidates]
        return "supported" if all(held) else "undecided" if any(held) else "contradicted"

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in self if value is not None)
        words = f"{value[0]:g} and {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"
        return f"{name.replace('_', ' ')} {words}"


class Claim(Strict):
    """One claim: where it is made, what it says, what is computed, and when it holds.

    ``ours`` says what of the rule or the statistic the paper does not state, and what it says instead.
    """

    id: str
    paper: str
    section: str
    claim: str
    statistic: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    rule: DecisionRule
    ours: str | None = None

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if self.statistic not in STATISTICS:
            raise ValueError(f"{self.id}: statistic {self.statistic!r} is unknown{nearest(self.statistic, STATISTICS)}")
        try:
            inspect.signature(STATISTICS[self.statistic].function).bind(None, **self.parameters)
        except TypeError as error:
            raise ValueError(f"{self.id}: {self.statistic}: {error}") from error
        return self


class Claims(Strict):
    """A file of claims, and the papers that they are from."""

    papers: dict[str, str]
    claims: list[Claim]

    @model_validator(mode="after")
    def _names(self) -> Self:
        seen: set[str] = set()
        for claim in self.claims:
            if claim.paper not in self.papers:
                raise ValueError(f"{claim.id}: paper {claim.paper!r} is not under papers")
            if claim.id in seen:
                raise ValueError(f"two claims have the id {claim.id}")
            seen.add(claim.id)
        return self


def load(path: Path) -> Claims:
    """The claims in a YAML file.

    Raises:
        UserError: in one line, if the file is missing or malformed, or names an unknown statistic or parameter.
    """
    return validated(Claims, yaml_text.read(path), str(path))
