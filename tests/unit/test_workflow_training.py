"""What a training is told: all that determines the expert, and nothing that would train it again for no reason."""

import itertools
import json
from typing import Any, Literal, cast

from pydantic import Field, create_model

from mergetime.config.experts import Durations, Plateau, Recipe, StoppingRule, Training
from mergetime.config.sections import job_options, parse_json
from mergetime.workflow.training import recipe_json

PAPER = Training(mode="qlora", warmup_steps=100, save_every=50)

DURATIONS = (
    Durations(multiples_of_optimum=[0.25, 1, 5]),
    Durations(steps=[100, 200]),
    Durations(early_stopping={"v0": StoppingRule(every=100, patience=5)}),
)


def told(training: Training) -> str:
    """What a job is told of a training."""
    return json.dumps(json.loads(recipe_json(Recipe(train=training, durations=DURATIONS[0])))["train"])


def test_the_script_reads_what_the_rule_wrote() -> None:
    others = Training(mode="lora", alpha=32, micro_batch_size=2, group_by_length=False, warmup_steps=0)
    for training, durations in itertools.product((PAPER, others), DURATIONS):
        recipe = Recipe(train=training, durations=durations)
        assert parse_json(Recipe, recipe_json(recipe), "--recipe") == recipe


def test_a_new_option_leaves_jobs_as_they_are() -> None:
    more: dict[str, Any] = {
        "weight_decay": (float, 0.0),
        "left_out": (list[str], Field(default_factory=list)),
        "optimizer": (Literal["adamw", "sgd"] | None, None),
        "average": (bool, False),
    }
    with_more = cast(Any, create_model("Training", __base__=Training, **more))
    assert told(with_more()) == told(Training())
    given = json.loads(told(with_more(weight_decay=0.1, left_out=["hard"], average=True)))
    assert given["weight_decay"] == 0.1
    assert given["left_out"] == ["hard"]
    assert given["average"] is True


def test_the_order_of_options_is_none_of_a_jobs_params() -> None:
    assert told(Training(rank=4, mode="lora")) == told(Training(mode="lora", rank=4))
    assert list(json.loads(told(PAPER))) == sorted(json.loads(told(PAPER)))


def test_a_changed_default_changes_the_jobs_that_rely_on_it_alone() -> None:
    changed = create_model("Training", __base__=Training, rank=(int, 32), group_by_length=(bool, False))
    assert told(changed()) != told(Training())
    given = {"rank": 16, "group_by_length": True}
    assert told(changed(**given)) == told(Training(**given))


def test_what_is_off_but_not_the_default_is_told() -> None:
    assert (
        job_options(Training(warmup_steps=0, group_by_length=False, gradient_checkpointing=False)).items()
        >= {
            "warmup_steps": 0,
            "group_by_length": False,
            "gradient_checkpointing": False,
        }.items()
    )


def test_what_has_no_effect_is_left_out() -> None:
    full = Training(mode="full")
    assert told(full) == told(Training(mode="full", rank=4, alpha=8))
    assert told(PAPER) == told(PAPER.model_copy(update={"plateau": Plateau(factor=0.1)}))
    plateau = Training(schedule="plateau")
    assert json.loads(told(plateau))["plateau"] == {"factor": 0.5, "patience": 3}
    assert told(plateau) != told(Training(schedule="plateau", plateau=Plateau(factor=0.1)))
