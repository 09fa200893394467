"""The columns of what is measured of pools: what measuring writes, and what analyses read without a model."""

import pyarrow as pa

from mergetime.core.tables import Column, Columns

_TEXT, _REAL = pa.string(), pa.float64()
METRICS = {
    "sign_conflict": "pair: entries kept of both with opposite signs, as a share of those kept of either (Equation 5)",
    "overlap": "ordered pair: share of expert_a's kept entries that are kept of expert_b too (Equation 6)",
    "magnitude_ratio": "pair: larger by smaller magnitude, mean over the entries kept of both (Equation 7)",
    "cosine": "pair: cosine of the untrimmed task vectors",
    "layers_positive": "pair: number of layers whose cosine is positive",
    "layers_negative": "pair: number of layers whose cosine is negative",
    "layers_zero": "pair: number of layers whose cosine is 0 up to rounding, or which an expert leaves as they were",
    "norm": "expert: Euclidean norm of the untrimmed task vector",
    "kept_entries": "expert: number of entries kept",
    "variance": "pool: mean square of a kept entry over the experts, 0 for those that do not keep it, mean over the "
    "entries kept of any (Equations 8 and 9)",
    "entries": "pool: number of entries of a task vector",
}
"""The metrics of a pool. A pair stands once, experts in the order of their names; an ordered pair stands both ways."""
INTERFERENCE: Columns = {
    "scope": Column(_TEXT, False, "model, or layer: a transformer block or a tensor outside of blocks; cosines only"),
    "layer": Column(_TEXT, True, "scope layer: path of the block, such as model.layers.0, or the tensor's name"),
    "expert_a": Column(_TEXT, True, "the expert, or the first of a pair; null for metrics of the pool"),
    "expert_b": Column(_TEXT, True, "the second expert of a pair"),
    "metric": Column(_TEXT, False, "; ".join(f"{name}: {meaning}" for name, meaning in METRICS.items())),
    "value": Column(_REAL, True, "the metric; null where it is undefined: nothing kept of both, or an expert of zeros"),
}
TENSORS: Columns = {
    "layer": Column(_TEXT, False, "path of the block, such as model.layers.0, or the tensor's name outside of blocks"),
    "tensor": Column(_TEXT, False, "the base's parameter name"),
    "expert_a": Column(_TEXT, False, "the first of a pair, in the order of names"),
    "expert_b": Column(_TEXT, False, "the second"),
    "cosine": Column(
        _REAL, True, "cosine of the untrimmed task vectors; null where an expert leaves the tensor as it was"
    ),
}
EXPERT, MERGED = "expert", "merged"
"""Kinds of subject whose probabilities are measured."""
PROBABILITIES: Columns = {
    "kind": Column(pa.string(), False, f"{EXPERT}, or {MERGED}: a merge of all experts of the pool"),
    "name": Column(pa.string(), False, "the expert's name in its pool, or the method's id in the config"),
    "domain": Column(pa.string(), False, "the domain whose validation example it is"),
    "example": Column(pa.int64(), False, "position of the example in the domain's validation.parquet, from 0"),
    "tokens": Column(pa.int64(), False, "tokens of the reference response, its end included"),
    "loss": Column(pa.float64(), False, "mean loss of these tokens, nats"),
    "probability": Column(pa.float64(), False, "exp(-loss): the geometric mean of the tokens' probabilities"),
}

ALL = "all"
"""In the column domain: the mean of the losses on the domains of the two experts."""
SPACE = Column(pa.string(), False, "what is interpolated: delta (weight updates) or adapter (LoRA factors)")
DOMAIN = Column(pa.string(), False, f"domain of one of the two experts; {ALL}: the mean of the losses on both")
PATHS: Columns = {
    "space": SPACE,
    "first": Column(pa.string(), False, "expert A, at alpha = 1: the name that comes first"),
    "second": Column(pa.string(), False, "expert B, at alpha = 0"),
    "domain": DOMAIN,
    "alpha": Column(pa.float64(), False, "share of expert A"),
    "loss": Column(pa.float64(), False, "loss on validation examples, nats per response token"),
}
"""The losses along the paths, as :mod:`mergetime.measuring.connectivity` measures them."""
