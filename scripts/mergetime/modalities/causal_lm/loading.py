"""Loading the base to train or to evaluate it, in 4 bits if asked, and which of its layers LoRA adapts."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel


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
