"""What the public code of merge methods does with task vectors, written down from its behaviour, in NumPy and float64.

A model is a mapping of tensor names to task vectors [experts, ...]; a result maps them to merged updates. Thresholds,
ties and votes that end in 0 are those of the code, which is not always what its paper says.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Model = Mapping[str, np.ndarray]
Merged = dict[str, np.ndarray]
Rows = np.ndarray
"""The task vectors of a model or a tensor, one an expert: [experts, entries]."""


def flattened(model: Model, merge: Callable[[Rows], np.ndarray]) -> Merged:
    """Merge all tensors as one vector."""
    sizes = [stack[0].size for stack in model.values()]
    merged = merge(np.concatenate([stack.reshape(len(stack), -1) for stack in model.values()], axis=1))
    parts = np.split(merged, np.cumsum(sizes)[:-1])
    return {name: part.reshape(model[name].shape[1:]) for name, part in zip(model, parts, strict=True)}


def by_tensor(model: Model, merge: Callable[[np.ndarray], np.ndarray]) -> Merged:
    """Merge every tensor by itself."""
    return {name: merge(stack) for name, stack in model.items()}


def ties(rows: Rows, share: float, merge: str = "mean") -> np.ndarray:
    """prateeky2806/ties-merging, merge_utils.py, which MergeBench copies and calls with ``dis-sum``.

    The threshold is the magnitude with rank ``size - int(size * share)`` from below, and what equals it stays.
    """
    magnitudes = np.abs(rows)
    rank = rows.shape[1] - int(rows.shape[1] * share)
    kept = np.where(magnitudes >= np.sort(magnitudes, axis=1)[:, rank - 1 : rank], rows, 0.0)
    signs = np.sign(kept.sum(axis=0))
    majority = np.sign(signs.sum())
    signs = np.where(signs == 0, majority, signs)
    agreeing = np.where(signs > 0, kept > 0, kept < 0)
    total = np.where(agreeing, kept, 0.0).sum(axis=0)
    return total / np.maximum(agreeing.sum(axis=0), 1) if merge == "mean" else total


def breadcrumbs(stack: np.ndarray, keep: float, remove: float) -> np.ndarray:
    """rezazzr/breadcrumbs, TaskVectorMiddleKeep, summed: along the last dimension, the largest go, the next stay."""
    width = stack.shape[-1]
    falling = np.argsort(-np.abs(stack), axis=-1, kind="stable")
    places = np.argsort(falling, axis=-1)
    removed = int(width * remove)
    return np.where((places >= removed) & (places < removed + int(width * keep)), stack, 0.0).sum(axis=0)


def stitched(rows: Rows, share: float) -> np.ndarray:
    """uiuctml/Localize-and-Stitch, localize_utils.py: what is larger than the k-th magnitude, overlaps averaged."""
    magnitudes = np.abs(rows)
    threshold = -np.sort(-magnitudes, axis=1)[:, int(share * rows.shape[1]) - 1][:, None]
    masks = (magnitudes > threshold).astype(float)
    return _stitch(rows, masks, lambda place: [other for other in range(len(rows)) if other != place])


def stitched_by_mergebench(rows: Rows, share: float) -> np.ndarray:
    """uiuctml/MergeBench, localize_utils.py: what is no smaller than the k-th; the last other mask alone counts."""
    magnitudes = np.abs(rows)
    threshold = -np.sort(-magnitudes, axis=1)[:, int(share * rows.shape[1]) - 1][:, None]
    masks = (magnitudes >= threshold).astype(float)
    return _stitch(rows, masks, lambda place: [other for other in range(len(rows)) if other != place][-1:])


def _stitch(rows: Rows, masks: np.ndarray, others: Callable[[int], Sequence[int]]) -> np.ndarray:
    """Every mask plus its intersections with others, and the reciprocal of that as weight."""
    total = np.zeros(rows.shape[1])
    for place, row in enumerate(rows):
        counts = masks[place] + sum(masks[place] * masks[other] for other in others(place))
        total += np.divide(row, counts, out=np.zeros_like(row), where=counts > 0)
    return total


def consensus(rows: Rows, selectivity: float, least: int = 2) -> np.ndarray:
    """nik-dim/tall_masks, tallmask_utils.py, and MergeBench, consensus.py: strictly more than the other side."""
    total = rows.sum(axis=0)
    masks = np.abs(rows) > np.abs(total - rows) * selectivity
    return total * (masks.sum(axis=0) >= least)


def spectral(model: Model, merge: Callable[[np.ndarray], np.ndarray]) -> Merged:
    """TSV-M and Iso-C: tensors with two dimensions, embeddings and head among them; the mean of all others."""
    return by_tensor(model, lambda stack: merge(stack) if stack.ndim == 3 else stack.mean(axis=0))


def tsv(stack: np.ndarray) -> np.ndarray:
    """AntoAndGar/task_singular_vectors, TSVM_utils.py: vectors of all experts side by side, in place of all of one's."""
    size, share = min(stack.shape[1:]), 1 / len(stack)
    kept = int(size * share)
    left, values, right = np.zeros((stack.shape[1], size)), np.zeros(size), np.zeros((size, stack.shape[2]))
    for place, update in enumerate(stack):
        u, s, vh = np.linalg.svd(update, full_matrices=False)
        part = slice(place * kept, (place + 1) * kept)
        left[:, part], values[part], right[part] = u[:, :kept], s[:kept], vh[:kept]
    return _polar(left) @ np.diag(values) @ _polar(right)


def iso(stack: np.ndarray) -> np.ndarray:
    """danielm1405/iso-merging, iso.py."""
    u, s, vh = np.linalg.svd(stack.sum(axis=0), full_matrices=False)
    return u @ np.diag(np.full_like(s, s.mean())) @ vh


def _polar(matrix: np.ndarray) -> np.ndarray:
    p, _, qh = np.linalg.svd(matrix, full_matrices=False)
    return p @ qh


def regmean(stack: np.ndarray, grams: np.ndarray, reduction: float) -> np.ndarray:
    """bloomberg/dataless-model-merging, avg_merger.py, and MergeBench, regmean.py: a plain inverse."""
    shrunk = grams * (np.eye(grams.shape[-1]) * (1 - reduction) + reduction)
    products = sum(gram @ weights.T for gram, weights in zip(shrunk, stack, strict=True))
    return (np.linalg.inv(shrunk.sum(axis=0)) @ products).T


def dropped(stack: np.ndarray, uniform: np.ndarray, density: float) -> np.ndarray:
    """yule-BUAA/MergeLM, mask_weights_utils.py, with rescaling, and MergeBench, DARE.py, given the random numbers."""
    return np.where(uniform < density, stack, 0.0) / density


def della(
    stack: np.ndarray, uniform: np.ndarray, density: float, epsilon: float, weights: Sequence[float]
) -> np.ndarray:
    """declare-lab/della, its fork of mergekit: ranks in a row, weights before the vote, divided by those that agree."""
    rising = np.argsort(np.argsort(np.abs(stack), axis=-1, kind="stable"), axis=-1)
    chance = density - epsilon + rising / (stack.shape[-1] - 1) * 2 * epsilon
    kept = np.where(uniform < chance, stack, 0.0) / chance
    share = np.array(weights).reshape(-1, *[1] * (stack.ndim - 1))
    weighted = kept * share
    agreeing = np.sign(weighted) == np.where(weighted.sum(axis=0) >= 0, 1, -1)
    divisor = (share * agreeing).sum(axis=0)
    return (weighted * agreeing).sum(axis=0) / np.where(divisor == 0, 1, divisor)
