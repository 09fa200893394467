"""The sections on merging: pools of experts, methods, and what is measured of experts for methods."""

import itertools
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergetime.config.experts import DEFAULT, EACH
from mergetime.config.fields import Count, Distinct, Filled, Seed, Strict, distinct
from mergetime.core.words import nearest
from mergetime.measuring.settings import SETTINGS, checked
from mergetime.merging import registry


class RandomSubsets(Strict):
    """Pools of n experts drawn at random, without repeats, the same for every method."""

    sizes: Annotated[list[Count], Filled, Distinct] = Field(description="numbers of experts n")
    count: Count = Field(description="pools of each size")
    seed: Seed = Field(0, description="seed of the draw")


class Member(Strict):
    """One expert in an explicit pool."""

    expert: str = Field(description="a domain, or the name of an imported expert")
    at: str | None = Field(None, description="duration id, such as 0.25x or step_512; null for imported experts")
    recipe: str | None = Field(None, description="how it was trained; null: as the pool says")


class Pools(Strict):
    """A named set of experts merged together, or a family of such sets."""

    experts: Annotated[Literal["all"] | list[str | Member] | None, Filled] = Field(
        None, description="all, a list of names at one duration, or a list of {expert, at}"
    )
    random_subsets: RandomSubsets | None = None
    at: Annotated[str | list[str] | None, Filled, Distinct] = Field(
        None, description="each_duration, a duration id, or a list of ids; not for imported or explicit members"
    )
    recipe: str = Field(DEFAULT, description=f"the recipe of its trained experts, or {EACH}: a pool for each recipe")

    @property
    def is_explicit(self) -> bool:
        """Whether members are given with a duration each."""
        return isinstance(self.experts, list) and any(isinstance(member, Member) for member in self.experts)

    def recipes_of(self, recipes: Iterable[str]) -> set[str]:
        """The recipes that trained members may be of, where the study has these."""
        if self.recipe == EACH:
            return set(recipes)
        listed = self.experts if isinstance(self.experts, list) else []
        return {self.recipe, *(member.recipe for member in listed if isinstance(member, Member) and member.recipe)}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.experts is None) == (self.random_subsets is None):
            raise ValueError("give either experts or random_subsets")
        if self.recipe == EACH and self.is_explicit:
            raise ValueError(f"recipe: {EACH} does not go with explicit members; give each member its recipe")
        if self.at is not None and self.is_explicit:
            raise ValueError("at does not go with explicit members; give each trained member its duration")
        return self


class Method(BaseModel):
    """A merge method with its hyper-parameters, given beside ``method`` and ``space``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = Field(description="name in the registry; merge_experts.py --explain tells more")
    space: Literal["adapter", "delta"] = Field("delta", description="LoRA factors, or the weight update B A alpha / r")
    preset: str | None = Field(None, description="named hyper-parameters that reproduce another implementation")
    choose: dict[str, list[Any]] | None = Field(
        None, description="hyper-parameters to choose on the validation suite, with their candidates"
    )
    sweep: dict[str, list[float]] | None = Field(
        None, description="hyper-parameters of which every value is reported, each by itself, the others as given"
    )
    pools: Annotated[list[str] | None, Filled, Distinct] = Field(
        None, description="merge only these pools, by their keys; null: all"
    )
    by: Literal["validation"] | None = Field(None, description="what chooses; only validation may")

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters given here."""
        return dict(self.model_extra or {})

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Every combination of the hyper-parameters to choose; a single empty one where nothing is chosen."""
        candidates = self.choose or {}
        return [dict(zip(candidates, values, strict=True)) for values in itertools.product(*candidates.values())]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The hyper-parameters of every merge that there may be: what is given, with what is chosen or swept."""
        swept = [{name: value} for name, values in (self.sweep or {}).items() for value in values]
        return [{**self.parameters, **changed} for changed in [*self.choices, *swept]]

    @property
    def written_as(self) -> Literal["adapter", "delta"]:
        """What a pool of adapters is merged into: an adapter where that is exact, else a dense task vector."""
        method = registry.get(self.method)
        all_values = [method.validate(values, self.preset) for values in self.settings]
        exact = all(method.keeps_low_rank(values) for values in all_values)
        return "adapter" if exact or self.space == "adapter" else "delta"

    @model_validator(mode="after")
    def _known(self) -> Self:
        method = registry.get(self.method)
        if self.space not in method.spaces:
            raise ValueError(f"{self.method} works in {', '.join(method.spaces)} space, not in {self.space} space")
        for key in ("choose", "sweep"):
            if getattr(self, key) == {}:
                raise ValueError(f"{key}: names no hyper-parameter; name one with its values, or leave {key} out")
        for name, candidates in (self.choose or {}).items():
            if name in self.parameters:
                raise ValueError(f"{name} is both set and to be chosen")
            if not candidates:
                raise ValueError(f"choose.{name}: has no candidates")
            try:
                distinct(candidates)
            except ValueError as error:
                raise ValueError(f"choose.{name}: {error}") from error
        for choice in self.choices:
            method.validate({**self.parameters, **choice}, self.preset)
        if self.sweep and self.choose:
            raise ValueError("sweep does not go with choose; write a second method")
        for name, values in (self.sweep or {}).items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"sweep.{name}: {values} has no value, or one twice")
            for value in values:
                method.validate({**self.parameters, name: value}, self.preset)
        if (self.choose or self.method == "greedy_soup") and self.by != "validation":
            raise ValueError("say what chooses: by: validation")
        if self.by and not self.choose and self.method != "greedy_soup":
            raise ValueError(f"by: {self.by} has nothing to choose from; give choose, or leave by out")
        return self


class Statistics(Strict):
    """What is measured of every expert on its training data, for methods that need data: Fisher, RegMean, masks."""

    examples: Count = Field(128, description="chats to measure on")
    fisher: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind fisher")
    gram: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind gram")
    mask: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind mask")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for kind, parameters in SETTINGS.items():
            known = {parameter.name: parameter for parameter in parameters}
            for name, value in getattr(self, kind).items():
                if name not in known:
                    raise ValueError(f"{kind} has no setting {name!r}{nearest(name, known)}")
                try:
                    checked(known[name], value)
                except ValueError as error:
                    raise ValueError(f"{kind}.{error}") from error
        return self
