"""The base as it is trained, with LoRA on every projection or whole, and what is kept of it."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from mergetime.provenance import write_atomically

# Who only loads the base need not wait for PEFT, which takes seconds to import.
if TYPE_CHECKING:
    from peft import PeftModel


def load_base(folder: Path, *, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
    """The causal language model in ``folder``, on the GPU if there is one; NF4 with double quantisation if asked."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=quantization if four_bit else None,
        device_map={"": 0} if torch.cuda.is_available() else {"": "cpu"},
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    if four_bit:
        _keep_gradients_on_cpu(model)
    return model


def _keep_gradients_on_cpu(model: PreTrainedModel) -> None:
    """Switch off bitsandbytes' AVX512-BF16 repacking: after a forward pass in eval mode, gradients would be zero."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):  # type: ignore[attr-defined]
            module.support_avx512bf16_for_cpu = False


def projections(model: PreTrainedModel) -> list[str]:
    """The names of all linear projections inside the layers (attention, linear attention, MLP), sorted.

    Found from the model, not listed by hand: q/k/v/o alone would reach one layer in four of Qwen3.5.
    """
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> "PeftModel":
    """``model`` with trainable LoRA factors of ``rank`` on all :func:`projections`; A drawn from ``seed``, B zero."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        target_modules=projections(model),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"PEFT returned {type(adapted).__name__}")
    return adapted


def save_adapter(model: "PeftModel", folder: Path, *, base: str) -> None:
    """Write the adapter as PEFT reads it; the same weights give the same bytes.

    The weights are written beside and renamed, the config comes first: a folder with weights is whole.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    beside = folder / ".adapter_model.safetensors.part"
    save_file(dict(sorted(tensors.items())), beside, metadata={"format": "pt"})
    beside.replace(folder / "adapter_model.safetensors")


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
    config = json.loads((beside / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    write_atomically(folder / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    (beside / "model.safetensors").replace(folder / "model.safetensors")
    shutil.rmtree(beside)


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
"""What is kept of an expert that has LoRA factors: weights, config."""

MODEL_FILES = ("model.safetensors", "config.json")
"""What is kept of an expert all of whose weights were trained."""
