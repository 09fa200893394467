"""What a training is told: all that determines the expert, and nothing that would train it again for no reason."""

import json
from typing import Literal

from pydantic import Field, create_model

from mergetime.config.experts import Durations, Plateau, StoppingRule, Training
from mergetime.config.sections import job_options, parse_json
from mergetime.workflow.training import durations_json, training_json

PAPER = Training(mode="qlora", warmup_steps=100, save_every=50)


def test_the_script_reads_what_the_rule_wrote() -> None:
    for training in (PAPER, Training(mode="lora", alpha=32, micro_batch_size=2, group_by_length=False, warmup_steps=0)):
        assert parse_json(Training, training_json(training), "--training") == training
    for durations in (
        Durations(multiples_of_optimum=[0.25, 1, 5]),
        Durations(steps=[100, 200]),
        Durations(early_stopping={"v0": StoppingRule(every=100, patience=5)}),
    ):
        assert parse_json(Durations, durations_json(durations), "--durations") == durations


def test_a_new_option_leaves_jobs_as_they_are() -> None:
    with_more = create_model(
        "Training",
        __base__=Training,
        weight_decay=(float, 0.0),
        left_out=(list[str], Field(default_factory=list)),
        optimizer=(Literal["adamw", "sgd"] | None, None),
        average=(bool, False),
    )
    assert training_json(with_more()) == training_json(Training())
    told = json.loads(training_json(with_more(weight_decay=0.1, left_out=["hard"], average=True)))
    assert told["weight_decay"] == 0.1
    assert told["left_out"] == ["hard"]
    assert told["average"] is True


def test_the_order_of_options_is_none_of_a_jobs_params() -> None:
    assert training_json(Training(rank=4, mode="lora")) == training_json(Training(mode="lora", rank=4))
    assert list(json.loads(training_json(PAPER))) == sorted(json.loads(training_json(PAPER)))


def test_a_changed_default_changes_the_jobs_that_rely_on_it_alone() -> None:
    changed = create_model("Training", __base__=Training, rank=(int, 32), group_by_length=(bool, False))
    assert training_json(changed()) != training_json(Training())
    given = {"rank": 16, "group_by_length": True}
    assert training_json(changed(**given)) == training_json(Training(**given))


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
    assert training_json(full) == training_json(Training(mode="full", rank=4, alpha=8))
    assert training_json(PAPER) == training_json(PAPER.model_copy(update={"plateau": Plateau(factor=0.1)}))
    plateau = Training(schedule="plateau")
    assert json.loads(training_json(plateau))["plateau"] == {"factor": 0.5, "patience": 3}
    assert training_json(plateau) != training_json(Training(schedule="plateau", plateau=Plateau(factor=0.1)))
