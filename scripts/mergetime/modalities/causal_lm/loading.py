"""Loading the base to train or to evaluate it, in 4 bits if asked, and which of its layers LoRA adapts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from mergetime.artifacts.files import read_json
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.artifacts.sizes import check_config, check_described, sizes_of, stored
from mergetime.core.errors import UserError, one_line
from mergetime.core.limits import limited_time
from mergetime.modalities.kernels import leave_out_without_gpu

_BUILD_S = 30
"""Seconds of a processor that it may take to lay a model out, without weights; one or two are usual."""


def load_base(folder: Path, *, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
    """The causal language model in ``folder``, on the GPU if there is one; NF4 with double quantisation if asked.

    Raises:
        UserError: where its config does not describe what its weights are, before anything is allocated if it describes
            far more.
    """
    check_sizes(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=quantization if four_bit else None,
        device_map={"": 0} if torch.cuda.is_available() else {"": "cpu"},
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    for name in sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"model {folder}: the weights lack {name}, which {MODEL_CONFIG} describes; fetch the model again or choose "
            "another"
        )
    if four_bit:
        _keep_gradients_on_cpu(model)
    return model


def check_sizes(folder: Path) -> None:
    """Refuse a model whose config describes another, or one that no machine holds, before anything is allocated.

    Raises:
        UserError: naming the key of config.json, or the tensor.
    """
    leave_out_without_gpu()
    config = read_json(folder / MODEL_CONFIG, f"model {folder}")
    held = stored(folder)
    check_config(folder, config, held)
    try:
        with limited_time(_BUILD_S):
            known = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with _limited_construction(_BUILD_S), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except TimeoutError as error:
        raise UserError(
            f"model {folder}: laying out what {MODEL_CONFIG} describes takes over {_BUILD_S} s{sizes_of(config)}; "
            "fetch the model again or choose another"
        ) from error
    # A library's checks of a config, and torch's of sizes, have no kind of error in common.
    except Exception as error:
        raise UserError(
            f"model {folder}: no model can be made of {MODEL_CONFIG}{sizes_of(config)}: {one_line(error)[:300]}"
        ) from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_described(folder, config, held, shapes, sum(buffer.numel() for buffer in model.buffers()))


@contextmanager
def _limited_construction(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where building a model takes more seconds of computing, when its next part is registered.

    A signal would come anywhere: in the midst of torch's own switches, which then stay as they are.
    """
    end = time.process_time() + seconds

    def check(*_: object) -> None:
        if time.process_time() > end:
            raise TimeoutError

    handles = [register_module_parameter_registration_hook(check), register_module_module_registration_hook(check)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
