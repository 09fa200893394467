"""The forms of experts and merges, and the files that each form is made of.

Imported while Snakemake parses the workflow: nothing heavy is imported here. Outside this folder no file of an artifact
is called by its name, and nobody asks for the mode that an expert was trained in to know its files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergetime.artifacts.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_CONFIG,
    MODEL_INDEX,
    MODEL_SHARDS,
    MODEL_WEIGHTS,
    TASK_VECTOR,
)
from mergetime.core.errors import UserError

FormName = Literal["adapter", "delta", "checkpoint"]
Mode = Literal["qlora", "lora", "full"]
"""How experts are trained: LoRA on a 4-bit base, LoRA, or all weights."""


@dataclass(frozen=True)
class Form:
    """What an expert or a merge is kept as.

    Attributes:
        name: its key in :data:`FORMS`.
        weights: the main file of weights, which is written last: a folder that has it is whole.
        files: all files that training, an import or a pool's merge writes in this form, the weights first.
        meaning: what it is, for help texts.
    """

    name: FormName
    weights: str
    files: tuple[str, ...]
    meaning: str


ADAPTER = Form("adapter", ADAPTER_WEIGHTS, (ADAPTER_WEIGHTS, ADAPTER_CONFIG), "a LoRA adapter that PEFT loads")
DELTA = Form("delta", TASK_VECTOR, (TASK_VECTOR,), "the dense task vector, under the base's parameter names")
CHECKPOINT = Form(
    "checkpoint",
    MODEL_WEIGHTS,
    (MODEL_WEIGHTS, MODEL_CONFIG),
    "a full checkpoint with config and tokenizer, that transformers loads",
)
FORMS: dict[FormName, Form] = {form.name: form for form in (ADAPTER, DELTA, CHECKPOINT)}
_TRAINED_AS: dict[Mode, Form] = {"qlora": ADAPTER, "lora": ADAPTER, "full": CHECKPOINT}


def trained_as(mode: Mode) -> Form:
    """The form of an expert that was trained in this mode of the config."""
    return _TRAINED_AS[mode]


def merged_form(written_as: FormName, members: Form) -> Form:
    """The form of a pool's merge: as the method writes it, but a task vector where the members are whole models.

    Args:
        written_as: what the method merges adapters into, as ``Method.written_as`` of the config has it.
        members: the form of the pool's experts.
    """
    return DELTA if members == CHECKPOINT else FORMS[written_as]


def form_of(folder: Path, owner: str | None = None) -> Form:
    """The form of the expert or merge in a folder.

    A config.json beside an adapter or a task vector is the base's, as repositories of adapters have it, and makes no
    checkpoint without a model's weights. An adapter beside a model is what transformers loads there.

    Args:
        folder: of the artifact.
        owner: begins the error message; the folder where none is given.

    Raises:
        UserError: where the folder holds no form, or files of two.
    """
    owner = owner or str(folder)
    if not folder.is_dir():
        there = "is no folder" if folder.exists() else "is not there"
        raise UserError(f"{owner}: {folder} {there}; give a folder, and download what is on a hub first")
    held = {form: files for form in (DELTA, ADAPTER) if (files := files_in(folder, form))}
    model = files_in(folder, CHECKPOINT)
    if folder / MODEL_CONFIG in model and ADAPTER not in held and (not held or len(model) > 1):
        held[CHECKPOINT] = model
    if not held:
        raise UserError(
            f"{owner}: there is no {ADAPTER_CONFIG}, {TASK_VECTOR} or {MODEL_CONFIG}, so it is neither an adapter, "
            "a task vector nor a full checkpoint"
        )
    if len(held) > 1:
        names = " and ".join(files[0].name for files in held.values())
        raise UserError(f"{owner}: holds both {names}; remove the one that is stale")
    return next(iter(held))


def files_in(folder: Path, form: Form) -> list[Path]:
    """The files of a form that a folder holds, the weights first; a checkpoint may be in shards, with an index."""
    names: tuple[str, ...] = form.files
    if form == CHECKPOINT:
        shards = sorted(file.name for file in folder.glob(MODEL_SHARDS))
        names = (MODEL_WEIGHTS, *shards, MODEL_INDEX, MODEL_CONFIG)
    return [folder / name for name in names if (folder / name).is_file()]


def weight_files(folder: Path) -> list[Path]:
    """The files that determine an artifact's weights, whatever its form: tensors, and how they are read."""
    return [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*config.json"))]
