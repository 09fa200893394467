"""The base with LoRA factors to train."""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from mergetime.modalities.causal_lm.loading import projections

# Who only loads the base need not wait for PEFT, which takes seconds to import.
if TYPE_CHECKING:
    from peft import PeftModel


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
