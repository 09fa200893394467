"""Training: a rule for each recipe, what it makes, and what its jobs are told.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import json
from dataclasses import dataclass

from mergetime.artifacts.forms import CHECKPOINT, trained_as
from mergetime.config.experts import Recipe
from mergetime.config.sections import job_options
from mergetime.modalities import parts
from mergetime.study import layout
from mergetime.study.durations import durations, recipes
from mergetime.workflow.grid import Grid

_OF_PLATEAU = ("plateau",)
_OF_LORA = ("rank", "alpha")


@dataclass(frozen=True)
class TrainingRule:
    """The rule that trains by one recipe.

    Attributes:
        name: of the rule: ``train_expert``, and from a study's second recipe on with a number.
        training: the pattern of its trainings below the study's folder.
        experts: the patterns of the weights, and of what lies beside them, of all durations.
        recipe: the recipe as train_expert.py takes it.
    """

    name: str
    training: str
    experts: list[str]
    recipe: str

    @property
    def below(self) -> str:
        """The pattern of a training below experts/, for logs and records of jobs."""
        return layout.below_experts(self.training)


def rules(grid: Grid) -> list[TrainingRule]:
    """The rules of a study's recipes, in the order of the config; none where all experts are imported."""
    return [
        TrainingRule(
            name=f"train_expert_{place}" if place else "train_expert",
            training=layout.training("{base}", "{domain}", "{seed}", name),
            experts=[
                f"{grid.paths.folder(layout.expert('{base}', '{domain}', '{seed}', duration, name))}/{file}"
                for duration in durations(grid.study, name)
                for file in trained_as(recipe.train.mode).files
            ],
            recipe=recipe_json(recipe),
        )
        for place, (name, recipe) in enumerate(recipes(grid.study).items())
    ]


def base_options(grid: Grid, base: str) -> list[str]:
    """What train_expert.py is told of a base beside its folder."""
    spec = grid.study.bases[base]
    return [f"--base-id={spec.model}", f"--dtype={spec.dtype}", *parts.options(spec.modality)]


def recipe_json(recipe: Recipe) -> str:
    """A recipe as train_expert.py takes it, without what has no effect.

    Its keys are sorted, so that an option may have any place in the model.
    """
    without = (
        *(_OF_PLATEAU if recipe.train.schedule != "plateau" else ()),
        *(_OF_LORA if trained_as(recipe.train.mode) == CHECKPOINT else ()),
    )
    train = {name: value for name, value in job_options(recipe.train).items() if name not in without}
    return json.dumps({"train": train, "durations": job_options(recipe.durations)}, sort_keys=True)
