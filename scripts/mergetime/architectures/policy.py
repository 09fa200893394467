"""What the tensors of a model are: the one place that tells a matrix of a linear layer from all else.

Methods that work on singular vectors (TSV-Merge, Iso-C, Subspace Boosting, KnOTS) and RegMean are about linear layers.
Their other tensors are merged by weights alone (averaged, or summed where the method extends Task Arithmetic):

- embeddings and heads: two-dimensional, but a table of rows, not a map between features;
- vectors: norms, biases, Qwen3.5's A_log and dt_bias;
- convolutions: three dimensions and more, Qwen3.5's conv1d and the patch embedding of a vision tower;
- vision and multi-token-prediction (MTP) tensors of multimodal checkpoints.

All methods that work entry by entry, and Model Stock and SLERP, treat every floating-point tensor alike. Tensors of
integers (position ids, buffers) must equal those of the base and stay.

Vision and MTP tensors are not of the text model: a text-only checkpoint lacks them, and then the base's stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["linear", "embedding", "vector", "convolution", "vision", "mtp"]

_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|multi_modal_projector|embed_vision)\.")
_MTP = re.compile(r"(^|\.)mtp\.")
_TABLE = re.compile(
    r"(^|\.)(embed_tokens|embed_positions|lm_head|shared|wte|wpe|word_embeddings|relative_attention_bias|embed_out)\.weight$"
)
_HEAD = re.compile(r"(^|\.)lm_head\.weight$")
_INPUT_TABLE = re.compile(r"(^|\.)(embed_tokens|shared|wte)\.weight$")


def canonical(key: str) -> str:
    """The name that the loaded text model has for a tensor of a checkpoint: multimodal ones nest it."""
    return key.replace("model.language_model.", "model.", 1)


def kind_of(name: str, shape: Sequence[int]) -> Kind:
    """What a tensor is, from its name and shape."""
    if _VISION.search(name):
        return "vision"
    if _MTP.search(name):
        return "mtp"
    if _TABLE.search(name):
        return "embedding"
    if len(shape) <= 1:
        return "vector"
    return "linear" if len(shape) == 2 else "convolution"


def is_optional(kind: Kind) -> bool:
    """Whether an expert may lack such tensors: the base's stay."""
    return kind in ("vision", "mtp")


def is_head(name: str) -> bool:
    """Whether this is the output head, which a tied checkpoint may lack or repeat."""
    return _HEAD.search(name) is not None


def is_input_table(name: str) -> bool:
    """Whether this is the input embedding, to which a head may be tied."""
    return _INPUT_TABLE.search(name) is not None
