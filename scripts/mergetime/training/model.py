"""The base with LoRA factors to train."""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

# Who trains all weights need not wait for PEFT, which takes seconds to import.
if TYPE_CHECKING:
    from peft import PeftModel

    from mergetime.modalities.learning import Learning


def add_lora(learning: "Learning", model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> "PeftModel":
    """``model`` with trainable LoRA factors of ``rank`` on all of its projections; A drawn from ``seed``, B zero."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        target_modules=learning.projections(model),
        task_type=learning.TASK_TYPE,
    )
    adapted = get_peft_model(model, config)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"PEFT returned {type(adapted).__name__}")
    return adapted
