"""Methods that weigh experts by the angles between them: Model Stock and SLERP."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergetime.merging.method import MergeMethod, Parameter, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def model_stock(context: TensorContext) -> torch.Tensor:
    """Model Stock: the mean of the task vectors, pulled to the base the more the less the experts agree.

        tau = t * mean_i tau_i,  t = N c / (1 + (N - 1) c),  c = mean cosine over the pairs of experts, per tensor

    Paper: Jang et al. 2024, Model Stock (arXiv 2403.19522), Equation 4, for N experts as in its appendix.
    t is not clamped, as in the original: c below 0 turns it negative. Where 1 + (N - 1) c is 0 the base is kept, as
    mergekit does. A single expert has no pair: t is 1. mergekit takes a product of norms below 1e-6 for 1e-6,
    which shrinks what small tensors and short trainings have learned; here only zero vectors have no angle.
    """
    import torch

    if context.gram is None:
        raise ValueError("model_stock needs the experts' inner products")
    count = len(context.experts)
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    gram = context.gram[:count, :count].double().cpu()
    norms = gram.diagonal().clamp(min=0).sqrt()
    products = norms[:, None] * norms[None, :]
    cosines = torch.where(products > 0, gram / products, 0.0).clamp(-1, 1)
    cosine = float(cosines[torch.ones(count, count).triu(1).bool()].mean())
    below = 1 + (count - 1) * cosine
    ratio = 0.0 if abs(below) < 1e-6 else count * cosine / below
    return torch.full((count,), ratio / count, dtype=torch.float64)


def slerp(context: TensorContext, t: float, of: str) -> torch.Tensor:
    """SLERP: from the first of two experts (by name) to the second, along the arc between them.

        tau = sin((1 - t) a) / sin(a) * x_1 + sin(t a) / sin(a) * x_2,  a = angle between x_1 and x_2, per tensor

    Source: Shoemake 1985, Animating rotation with quaternion curves (SIGGRAPH), and its use for weights in mergekit.
    x are the task vectors (of: task_vectors, the default), or the experts' weights (of: weights), as in mergekit, from
    whose result the base is then taken off. Linear where |cos a| > 0.9995, as in mergekit. One expert alone is itself.
    Here t counts from the expert whose name comes first; in mergekit from its ``base_model``.
    """
    import torch

    if context.gram is None:
        raise ValueError("slerp needs the experts' inner products")
    count = len(context.experts)
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    gram = context.gram.double().cpu()
    if of == "weights":
        shared, base = gram[:2, 2], gram[2, 2]
        gram = gram[:2, :2] + shared[:, None] + shared[None, :] + base
    norms = [math.sqrt(max(0.0, float(gram[place, place]))) for place in range(2)]
    product = (norms[0] if norms[0] > 1e-8 else 1.0) * (norms[1] if norms[1] > 1e-8 else 1.0)
    cosine = max(-1.0, min(1.0, float(gram[0, 1]) / product))
    if abs(cosine) > 0.9995:
        first, second = 1 - t, t
    else:
        angle = math.acos(cosine)
        first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - t, t))
    weights = [first, second, first + second - 1] if of == "weights" else [first, second]
    return torch.tensor(weights, dtype=torch.float64)


POSITION = Parameter("t", 0.5, "position between the two experts", 0.0, 1.0)
OF = Parameter("of", "task_vectors", "what is interpolated", choices=("task_vectors", "weights"))
METHODS = (
    MergeMethod(
        "model_stock",
        "averaging",
        model_stock,
        level="experts",
        spaces=("delta",),
        presets={"authors": {}, "mergekit": {}},
        remarks={
            "authors": "The authors have published no code: it is the paper's formula.",
            "mergekit": "In mergekit a product of two norms below 1e-6 counts as 1e-6.",
        },
        needs_gram=True,
    ),
    MergeMethod(
        "slerp",
        "interpolation",
        slerp,
        (POSITION, OF),
        level="experts",
        spaces=("delta",),
        presets={"mergekit": {"of": "weights"}},
        remarks={"mergekit": "mergekit must be told t, which counts from its base_model; here from the first name."},
        needs_gram=True,
        needs_base=lambda of: of == "weights",
        count=(1, 2),
    ),
)
