"""The layer that a tensor belongs to, by its name, and where among the layers that is."""

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?P<stack>(^|.*?\.)(layers?|(res)?blocks?|h))\.(?P<number>\d+)(?=\.)")


def layer_of(tensor: str) -> str:
    """The layer that a tensor counts to: the path of the outermost block around it, or its own name."""
    layer = _LAYER.match(tensor)
    return tensor[: layer.end()] if layer else tensor


def stacks(tensors: Iterable[str]) -> dict[str, int]:
    """The stacks of layers, such as ``model.layers``, with the number of layers of each."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        if layer := _LAYER.match(tensor):
            counts[layer["stack"]] = max(counts.get(layer["stack"], 0), int(layer["number"]) + 1)
    return counts


def positions(tensors: Iterable[str]) -> dict[str, float]:
    """Where in its stack the layer of a tensor is, from 0, the first, to 1, the last; tensors outside layers have none.

    A layer that is alone in its stack is the last one.
    """
    names = list(tensors)
    counts = stacks(names)
    placed = {}
    for tensor in names:
        if layer := _LAYER.match(tensor):
            last = counts[layer["stack"]] - 1
            placed[tensor] = int(layer["number"]) / last if last else 1.0
    return placed
