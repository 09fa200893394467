"""The sections on experts: how they are trained, how long, and which are imported."""

import functools
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mergetime.artifacts.forms import Form, Mode, trained_as
from mergetime.artifacts.names import UNNAMED
from mergetime.config.fields import (
    NUMBER,
    Commit,
    Count,
    HubId,
    Identifier,
    Multiple,
    PlainPath,
    Positive,
    Strict,
    Whole,
)
from mergetime.core.quarters import QUARTERS

Course = Literal["constant", "cosine", "linear", "plateau"]
Monitor = Literal["loss", "accuracy"]

RECIPE_NAME = re.compile(r"(?!seed-)[a-z0-9][a-z0-9_-]*")
"""Recipes are folders beside seed-1, and parts of the ids of pools."""


class Plateau(Strict):
    """The rate falls where the monitored score stagnates.

    After "Less Is More: Undertraining Experts Improves Model Upcycling", appendix J.
    """

    factor: Annotated[float, Field(gt=0, lt=1), NUMBER] = Field(0.5, description="the rate is multiplied by this")
    patience: Count = Field(3, description="after so many validations in a row without an improvement")


class Training(Strict):
    """How experts are trained."""

    # An option is a field here, and the place in training/ that reads it; rules pass the whole section on. One whose
    # default is off (null, false, 0) leaves jobs as they are that were made before it: see job_options in sections.py.
    mode: Mode = Field(
        "qlora", description="LoRA on a 4-bit NF4 base, LoRA on the base in its dtype, or all weights of the base"
    )
    rank: Annotated[int, Field(ge=1, le=2**16), NUMBER] = Field(16, description="LoRA rank r")
    alpha: Positive | None = Field(None, description="LoRA alpha; the update is scaled by alpha / r; null: r")
    learning_rate: Annotated[float, Field(gt=0, le=10), NUMBER] = 2.0e-4
    schedule: Course = Field(
        "constant", description="learning rate after the warm-up; cosine and linear reach 0 at max_steps"
    )
    plateau: Plateau = Plateau()
    monitor: Monitor = Field(
        "loss", description="what the plateau schedule and early stopping watch: validation loss or token accuracy"
    )
    warmup_steps: Whole = Field(100, description="linear warm-up, in optimizer steps")
    batch_size: Count = Field(8, description="effective batch, in examples")
    micro_batch_size: Count | None = Field(
        None, description="examples per forward pass; null: as many as the model's size and the GPU's memory allow"
    )
    gradient_checkpointing: bool | None = Field(
        None, description="recompute activations in the backward pass; null: where one example would not fit otherwise"
    )
    group_by_length: bool = Field(True, description="batches of similar lengths, for less padding; false: any order")
    save_every: Count = Field(25, description="E: an adapter every E steps, validation loss every 4 E steps")
    max_steps: Count = Field(20_000, description="training ends here, even before the longest multiple of T*")

    @property
    def form(self) -> Form:
        """What a trained expert is kept as."""
        return trained_as(self.mode)

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class StoppingRule(Strict):
    """A rule that ends training, which sees the validations at multiples of ``every`` only.

    After "Less Is More: Undertraining Experts Improves Model Upcycling", section 5.2 (patience: v0 is every 100 steps
    with patience 5, v1 every 50 with patience 3) and appendix J (rate_below: stop at a rate below 1e-7).
    """

    every: Count = Field(description="optimizer steps between validations")
    patience: Count | None = Field(None, description="stop after so many validations in a row without an improvement")
    rate_below: Positive | None = Field(
        None, description="stop when the plateau schedule has brought the rate below this"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.patience is None) == (self.rate_below is None):
            raise ValueError("give either patience or rate_below")
        return self


class Durations(Strict):
    """The durations that experts are kept at: multiples of T*, optimizer steps, or where a rule stops them."""

    multiples_of_optimum: list[Multiple] | None = None
    steps: list[Count] | None = None
    early_stopping: dict[Identifier, StoppingRule] | None = Field(
        None, description="rules by name; the expert is the best one, by train.monitor, that the rule has seen"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        ways = [self.multiples_of_optimum, self.steps, self.early_stopping]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give one of multiples_of_optimum, steps and early_stopping")
        listed: list[float] | list[int] = self.multiples_of_optimum or self.steps or []
        if self.early_stopping is None and (not listed or sorted(set(listed)) != list(listed)):
            raise ValueError(f"{listed} is not a rising list without repeats")
        if self.early_stopping == {}:
            raise ValueError("early_stopping names no rule")
        return self


DEFAULT = "default"
"""The recipe that experts.train and experts.durations are; the only one without a piece of its own in paths."""
EACH = "each"
"""In pools.*.recipe, every recipe of the study, so that none may have this name."""


class Recipe(Strict):
    """How experts are trained, and the durations that they are kept at."""

    train: Training
    durations: Durations

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        _check_together(self.train, self.durations)
        return self


def _check_together(train: Training, durations: Durations) -> None:
    """Refuse durations that a training cannot reach, or at which it saves nothing."""
    if durations.steps:
        wrong = [step for step in durations.steps if step % train.save_every]
        if wrong:
            raise ValueError(f"durations.steps {wrong} are not multiples of train.save_every {train.save_every}")
        if durations.steps[-1] > train.max_steps:
            raise ValueError(f"durations.steps reach {durations.steps[-1]}, beyond train.max_steps")
    for name, rule in (durations.early_stopping or {}).items():
        key = f"durations.early_stopping.{name}"
        if rule.every % train.save_every:
            raise ValueError(f"{key}.every {rule.every} is not a multiple of train.save_every")
        if rule.every > train.max_steps:
            raise ValueError(f"{key}.every {rule.every} is beyond train.max_steps {train.max_steps}; lower every")
        if rule.rate_below and train.schedule != "plateau":
            raise ValueError(f"{key}.rate_below needs train.schedule: plateau")
    if durations.multiples_of_optimum:
        longest = max(1.0, *durations.multiples_of_optimum)
        least = int(longest * QUARTERS * train.save_every)
        if train.max_steps < least:
            raise ValueError(f"max_steps {train.max_steps} is less than {least}, the least that {longest} x T* takes")


class Imported(Strict):
    """Somebody else's expert: a LoRA adapter on the hub, trained on the base of this study."""

    model: HubId = Field(description="hub id of the adapter")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    base: str = Field(description="id of the base, in this config, that it was trained on")
    trained_on: PlainPath | None = Field(
        None, description=f"what the adapter calls its base, if not by the base's hub id; {UNNAMED}: nothing"
    )
    domain: str | None = Field(None, description="domain to measure it on, for methods that need data of every expert")


class Experts(Strict):
    """The experts of the study: trained here, by one recipe or several, imported, or both."""

    train: Training | None = Field(None, description=f"with durations: the recipe {DEFAULT}, where it is the only one")
    durations: Durations | None = None
    recipes: dict[Identifier, Recipe] = Field(
        default_factory=dict, description="instead of train and durations: several ways to train, by name"
    )
    imported: dict[Identifier, Imported] = Field(default_factory=dict)

    @functools.cached_property
    def all_recipes(self) -> dict[str, Recipe]:
        """The recipes by name, however the config spells them; none where all experts are imported."""
        if self.train and self.durations:
            return {DEFAULT: Recipe(train=self.train, durations=self.durations)}
        return dict(self.recipes)

    @model_validator(mode="after")
    def _one_spelling(self) -> Self:
        if not (self.train or self.durations or self.recipes or self.imported):
            raise ValueError("there are none; give train and durations, or recipes, or imported")
        if self.recipes and (self.train or self.durations):
            raise ValueError(f"give either recipes, or train and durations, which are the recipe {DEFAULT}")
        if (self.train is None) != (self.durations is None):
            raise ValueError("train and durations go together: give both, or neither for a study of imported experts")
        for name in self.recipes:
            if name == EACH or not RECIPE_NAME.fullmatch(name):
                raise ValueError(f"recipes.{name}: a recipe cannot have this name, which paths and pools would misread")
        if self.train and self.durations:
            _check_together(self.train, self.durations)
        return self
