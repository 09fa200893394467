"""What is kept of a training: an adapter, or a whole model."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from mergetime.artifacts.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_CONFIG, MODEL_WEIGHTS
from mergetime.core.atomic import completed, write_atomically

# Who only saves whole models need not wait for PEFT, which takes seconds to import.
if TYPE_CHECKING:
    from peft import PeftModel


def save_adapter(model: "PeftModel", folder: Path, *, base: str) -> None:
    """Write the adapter as PEFT reads it; the same weights give the same bytes.

    The weights are written beside and renamed, the config comes first: a folder with weights is whole.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    with completed(folder / ADAPTER_WEIGHTS) as (beside,):
        save_file(dict(sorted(tensors.items())), beside, metadata={"format": "pt"})


def save_model(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Write all weights in ``dtype`` as transformers reads them, in one file; the same weights give the same bytes.

    Written beside and renamed, the config first: a folder with weights is whole.
    """
    # Tied weights have to stay one storage, or they would be written twice.
    cast: dict[int, torch.Tensor] = {}
    tensors = {
        name: cast.setdefault(
            tensor.data_ptr(), tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        )
        for name, tensor in model.state_dict().items()
    }
    beside = folder / ".part"
    model.save_pretrained(beside, state_dict=tensors, max_shard_size="1000TB")
    config = json.loads((beside / MODEL_CONFIG).read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    write_atomically(folder / MODEL_CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
    (beside / MODEL_WEIGHTS).replace(folder / MODEL_WEIGHTS)
    shutil.rmtree(beside)
