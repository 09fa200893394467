"""Writes the model with a subject applied as a checkpoint, for what loads models from folders."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mergetime.artifacts.apply import named_parameters
from mergetime.artifacts.banks import matrix
from mergetime.artifacts.checkpoints import open_checkpoint
from mergetime.artifacts.names import MODEL_CONFIG, MODEL_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@contextmanager
def materialised(model: "PreTrainedModel", base: Path) -> Iterator[Path]:
    """The model as it is now, as a checkpoint in a temporary folder that is removed afterwards.

    It has the layout of the base, with the text model's parameters in place of the base's: what loads a multimodal base
    need not know the text model by itself.

    Args:
        model: the base with a subject applied.
        base: folder of the base: its config and tokenizer are copied, its other tensors kept.
    """
    from safetensors.torch import save_file

    parameters = named_parameters(model)
    with TemporaryDirectory(prefix="mergetime-") as scratch, open_checkpoint("base", base) as opened:
        folder = Path(scratch)
        untied = opened.architecture.head in parameters.keys() - opened.shapes.keys()
        opened = opened.untied() if untied else opened
        tensors = {}
        for name in opened.keys_kept:
            loaded = matrix(parameters, opened.architecture, name)
            tensor = opened.tensor(name) if loaded is None else loaded
            tensors[opened.keys[name]] = tensor.detach().cpu().contiguous()
        save_file(tensors, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
        for file in sorted(base.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, folder / file.name)
        if untied:
            (folder / MODEL_CONFIG).write_text(json.dumps(dict(opened.config), indent=2) + "\n")
        yield folder
