"""What a training is told.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import json

from mergetime.artifacts.forms import CHECKPOINT, trained_as
from mergetime.config.experts import Durations, Training
from mergetime.config.sections import job_options

_OF_PLATEAU = ("plateau",)
_OF_LORA = ("rank", "alpha")


def training_json(training: Training) -> str:
    """The config's section on training as train_expert.py takes it, without what has no effect.

    Its keys are sorted, so that an option may have any place in the model.
    """
    options = job_options(training)
    without = (
        *(_OF_PLATEAU if training.schedule != "plateau" else ()),
        *(_OF_LORA if trained_as(training.mode) == CHECKPOINT else ()),
    )
    return json.dumps({name: value for name, value in options.items() if name not in without}, sort_keys=True)


def durations_json(durations: Durations) -> str:
    """The durations to keep, as train_expert.py takes them."""
    return json.dumps(job_options(durations), sort_keys=True)
