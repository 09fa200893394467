"""Every merge method against its formula in plain NumPy, entry by entry, and exact trimming against sorting."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mergetime.merging import registry, trimming
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import Numbers, TensorContext, Tied, Trim
from mergetime.merging.methods.dare import uniforms

EXPERTS = ("code", "math", "safety")
SEED = 7
WEIGHTS = {"code": 0.5, "math": 1.5, "safety": -0.75}
POSITIVE = {"code": 0.5, "math": 1.5, "safety": 0.75}
DENSITIES = {"code": 1.0, "math": 0.3, "safety": 0.6}
EPSILONS = {"code": 0.15, "math": 0.2, "safety": 0.05}
GAMMAS = {"code": 0.0, "math": 0.3, "safety": 0.6}
MATRIX = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Arrays = Mapping[str, np.ndarray]
"""Tensor name to task vectors [experts, ...] in float64."""
Merged = dict[str, np.ndarray]
Weights = Mapping[str, float] | None


def names_of(stack: np.ndarray) -> tuple[str, ...]:
    return EXPERTS[: len(stack)]


def of(weights: Weights, stack: np.ndarray) -> np.ndarray:
    """The weights, to be multiplied with the stack."""
    listed = [1.0 if weights is None else weights[name] for name in names_of(stack)]
    return np.array(listed).reshape(-1, *[1] * (stack.ndim - 1))


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def mean(model: Arrays) -> Merged:
    return {name: np.sum(stack, axis=0) / len(stack) for name, stack in model.items()}


def weighted_average(model: Arrays, weights: Weights = None, over: str = "mean") -> Merged:
    return {
        name: (of(weights, stack) * stack).sum(0) / (of(weights, stack).sum() if over == "mean" else 1)
        for name, stack in model.items()
    }


def task_arithmetic(model: Arrays, lambda_: float = 1.0, over: str = "sum", weights: Weights = None) -> Merged:
    return {name: lambda_ * own for name, own in weighted_average(model, weights, over).items()}


def largest(flat: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """A mask of the entries at places first .. first + count when sorted by falling magnitude, then by position."""
    order = sorted(range(flat.size), key=lambda place: (-abs(flat[place]), place))
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[first : first + count]] = True
    return mask


def each(numbers: Numbers, experts: Sequence[str]) -> list[float]:
    """The number of each expert."""
    return [numbers if isinstance(numbers, float) else numbers[expert] for expert in experts]


def kept(
    flat: np.ndarray, density: float, tied: str = "first", gamma: float = 0.0, excess: str = "gamma"
) -> np.ndarray:
    size, magnitudes = flat.size, np.abs(flat)
    count = max(1, math.floor(density * size))
    skipped = math.floor(gamma * size)
    if skipped + count > size:
        count, skipped = (count, size - count) if excess == "gamma" else (size - skipped, skipped)
    falling = np.sort(magnitudes)[::-1]
    if tied == "next":
        return magnitudes >= falling[min(math.floor(density * size), size - 1)]
    if tied != "first":
        return magnitudes >= falling[count - 1] if tied == "all" else magnitudes > falling[count - 1]
    return largest(flat, count, skipped)


def trimmed(
    model: Arrays,
    densities: Numbers,
    over: str,
    tied: str = "first",
    gammas: Numbers = 0.0,
    excess: str = "gamma",
) -> Merged:
    """The task vectors with zeros where an entry goes; ``over`` a tensor, a row, or the whole model."""
    result = {name: stack.copy() for name, stack in model.items()}
    experts = names_of(next(iter(model.values())))
    for expert, (density, gamma) in enumerate(zip(each(densities, experts), each(gammas, experts), strict=True)):
        if over == "model":
            flats = [stack[expert].ravel() for stack in model.values()]
            mask = kept(np.concatenate(flats), density, tied, gamma, excess)
            parts = np.split(mask, np.cumsum([flat.size for flat in flats])[:-1])
            for name, part in zip(model, parts, strict=True):
                result[name][expert] *= part.reshape(result[name][expert].shape)
        else:
            for stack in result.values():
                rows = stack[expert].reshape(1 if over == "tensor" else -1, stack.shape[-1] if over == "row" else -1)
                for row in rows:
                    row *= kept(row, density, tied, gamma, excess)
    return result


def elect(
    model: Arrays,
    lambda_: float = 1.0,
    weights: Weights = None,
    elect: str = "sum",
    vote: str = "unweighted",
    merge: str = "mean",
    divide: str = "count",
    zero: str = "plus",
) -> Merged:
    """Elect a sign for each entry and merge those that have it, one entry at a time."""
    names = names_of(next(iter(model.values())))
    share = [1.0 if weights is None else weights[name] for name in names]
    ballots = {name: stack * of(weights, stack) if vote == "weighted" else stack for name, stack in model.items()}
    votes = {name: (np.sign(own) if elect == "count" else own).sum(0) for name, own in ballots.items()}
    majority = sum(int(np.sign(own).sum()) for own in votes.values())
    result = {}
    for tensor, stack in model.items():
        result[tensor] = np.zeros(stack.shape[1:])
        for place in np.ndindex(stack.shape[1:]):
            sign = np.sign(votes[tensor][place])
            if sign == 0:
                sign = -1 if zero == "majority" and majority <= 0 else 1
            agreeing = [expert for expert in range(len(names)) if np.sign(ballots[tensor][expert][place]) == sign]
            total = sum(share[expert] * stack[expert][place] for expert in agreeing)
            if merge == "mean" and agreeing:
                divisor = len(agreeing) if divide == "count" else sum(share[expert] for expert in agreeing)
                total = total / divisor if divisor else total
            result[tensor][place] = lambda_ * total
    return result


def ties(model: Arrays, density: Numbers = 0.5, trim: str = "tensor", tied: str = "first", **election: Any) -> Merged:
    return elect(trimmed(model, density, trim, tied), **election)


def drop(name: str, stack: np.ndarray, chance: np.ndarray, rescale: str) -> np.ndarray:
    """Keep entries with their chance, a multiple of 1/65536, by the published random numbers, and rescale them."""
    chance = np.round(chance.astype(np.float64) * 2**16) / 2**16
    dropped = np.zeros_like(stack)
    for place, expert in enumerate(names_of(stack)):
        drawn = uniforms(SEED, expert, name, 0, stack[place].size).reshape(stack[place].shape) / 2.0**16
        mask = drawn < chance[place]
        dropped[place] = stack[place] * mask
        if rescale == "density":
            dropped[place] /= chance[place]
        elif rescale == "l1":
            before, after = np.abs(stack[place]).sum(), np.abs(dropped[place]).sum()
            dropped[place] *= before / after if min(before, after) >= 1e-7 else 1.0
    return dropped


def dropped_alike(model: Arrays, density: Numbers, rescale: str) -> Merged:
    chances = {
        name: np.stack([np.full(stack.shape[1:], share) for share in each(density, names_of(stack))])
        for name, stack in model.items()
    }
    return {name: drop(name, stack, chances[name], rescale) for name, stack in model.items()}


def dare(
    model: Arrays, density: Numbers = 0.5, lambda_: float = 1.0, weights: Weights = None, rescale: str = "density"
) -> Merged:
    return task_arithmetic(dropped_alike(model, density, rescale), lambda_, "sum", weights)


def dare_ties(model: Arrays, density: Numbers = 0.5, rescale: str = "density", **election: Any) -> Merged:
    return elect(dropped_alike(model, density, rescale), **election)


def dropped_by_rank(model: Arrays, density: Numbers, epsilon: Numbers, rescale: str) -> Merged:
    dropped = {}
    for name, stack in model.items():
        experts = names_of(stack)
        chance = np.empty_like(stack)
        for tensor, chances, share, reach in zip(
            stack, chance, each(density, experts), each(epsilon, experts), strict=True
        ):
            width = tensor.shape[-1]
            for row, own in zip(tensor.reshape(-1, width), chances.reshape(-1, width), strict=True):
                rising = sorted(range(width), key=lambda place: (abs(row[place]), place))
                for rank, place in enumerate(rising):
                    own[place] = 1.0 if share == 1.0 else share - reach + 2 * reach * rank / (width - 1)
        dropped[name] = drop(name, stack, chance, rescale)
    return dropped


def della(
    model: Arrays, density: Numbers = 0.5, epsilon: Numbers = 0.15, rescale: str = "density", **election: Any
) -> Merged:
    return elect(dropped_by_rank(model, density, epsilon, rescale), **election)


def della_linear(
    model: Arrays,
    density: Numbers = 0.5,
    epsilon: Numbers = 0.15,
    lambda_: float = 1.0,
    weights: Weights = None,
    rescale: str = "density",
) -> Merged:
    return task_arithmetic(dropped_by_rank(model, density, epsilon, rescale), lambda_, "sum", weights)


def breadcrumbs(
    model: Arrays,
    density: Numbers = 0.85,
    gamma: Numbers = 0.01,
    lambda_: float = 1.0,
    weights: Weights = None,
    per: str = "tensor",
    excess: str = "gamma",
) -> Merged:
    return task_arithmetic(trimmed(model, density, per, gammas=gamma, excess=excess), lambda_, "sum", weights)


def breadcrumbs_ties(
    model: Arrays,
    density: Numbers = 0.85,
    gamma: Numbers = 0.01,
    per: str = "tensor",
    excess: str = "gamma",
    **election: Any,
) -> Merged:
    return elect(trimmed(model, density, per, gammas=gamma, excess=excess), **election)


def localize_and_stitch(
    model: Arrays, density: float = 0.05, tied: str = "first", overlap: str = "all", counted: str = "changed"
) -> Merged:
    """Every tensor here is changed; what is counted where one is not has a test of its own."""
    merged = {}
    for name, stack in trimmed(model, density, "model", tied).items():
        merged[name] = np.zeros(stack.shape[1:])
        for place, own in enumerate(stack):
            others = [other != 0 for at, other in enumerate(stack) if at != place]
            sharing = others if overlap == "all" else others[-1:]
            merged[name] += own / (1 + np.sum(sharing, axis=0))
    return merged


def consensus(
    model: Arrays, selectivity: float = 0.4, claim: str = "at_least", agree: float = 2.0, lambda_: float = 1.0
) -> Merged:
    merged = {}
    compare = np.greater if claim == "more" else np.greater_equal
    for name, stack in model.items():
        total = stack.sum(0)
        claims = sum(compare(np.abs(own), selectivity * np.abs(total - own)) & (own != 0) for own in stack)
        merged[name] = lambda_ * np.where(claims >= agree, total, 0.0)
    return merged


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def model_stock(model: Arrays) -> Merged:
    merged = {}
    for name, stack in model.items():
        count = len(stack)
        common = np.mean([cosine(one, other) for one, other in itertools.combinations(stack, 2)])
        merged[name] = count * common / (1 + (count - 1) * common) * stack.mean(0)
    return merged


def slerp(model: Arrays, t: float = 0.5, of: str = "task_vectors") -> Merged:
    merged = {}
    for name, (first, second) in model.items():
        base = BASE[name] if of == "weights" else np.zeros_like(first)
        one, other = base + first, base + second
        near = cosine(one, other)
        angle = math.acos(near)
        shares = (1 - t, t) if abs(near) > 0.9995 else [math.sin(part * angle) / math.sin(angle) for part in (1 - t, t)]
        merged[name] = shares[0] * one + shares[1] * other - base
    return merged


def boosted(matrix: np.ndarray, beta: float) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    cutoff = next((place for place in range(len(s)) if s[: place + 1].sum() / s.sum() >= beta), len(s) - 1)
    return u @ np.diag(np.maximum(s, s[cutoff])) @ vh


def polar(matrix: np.ndarray) -> np.ndarray:
    p, _, qh = np.linalg.svd(matrix, full_matrices=False)
    return p @ qh


def matrices(merge: Callable[..., np.ndarray], others: Callable[[Arrays], Merged] = mean) -> Callable[..., Merged]:
    """The method that does this with matrices of linear layers, and another with all else."""

    def merged(
        model: Arrays, lambda_: float = 1.0, matrices: str = "linear", rounding: str = "dropped", **params: Any
    ) -> Merged:
        """Nothing here is near to rounding; what is has a test of its own."""

        def taken(name: str, stack: np.ndarray) -> bool:
            return stack.ndim == 3 if matrices == "all" else is_matrix(name)

        return {
            name: lambda_ * (merge(stack, **params) if taken(name, stack) else others({name: stack})[name])
            for name, stack in model.items()
        }

    return merged


def tsv(stack: np.ndarray) -> np.ndarray:
    strongest = max(1, min(stack.shape[1:]) // len(stack))
    parts = [np.linalg.svd(own, full_matrices=False) for own in stack]
    left = np.hstack([u[:, :strongest] for u, _, _ in parts])
    right = np.hstack([vh[:strongest].T for _, _, vh in parts])
    values = np.concatenate([s[:strongest] for _, s, _ in parts])
    return polar(left) @ np.diag(values) @ polar(right).T


def iso(stack: np.ndarray) -> np.ndarray:
    u, s, vh = np.linalg.svd(stack.sum(0), full_matrices=False)
    return s.mean() * u @ vh


def boosted_sum(stack: np.ndarray, beta: float = 0.2) -> np.ndarray:
    return boosted(stack.sum(0), beta)


def boosted_ties(model: Arrays, beta: float = 0.2, **params: Any) -> Merged:
    return {name: boosted(own, beta) if is_matrix(name) else own for name, own in ties(model, **params).items()}


def knots(stack: np.ndarray, density: float = 0.5, merge_by: str = "ties") -> np.ndarray:
    u, s, vh = np.linalg.svd(np.hstack(list(stack)), full_matrices=False)
    aligned = np.stack(np.hsplit(vh, len(stack)))
    by_ties = merge_by == "ties"
    merged = ties({"v": aligned}, density)["v"] if by_ties else aligned.mean(0)
    return u @ np.diag(s) @ merged


FORMULAS: dict[str, Callable[..., Merged]] = {
    "simple_average": mean,
    "greedy_soup": mean,
    "weighted_average": weighted_average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "localize_and_stitch": localize_and_stitch,
    "consensus_task_arithmetic": consensus,
    "model_stock": model_stock,
    "slerp": slerp,
    "tsv_merge": matrices(tsv),
    "iso_c": matrices(iso),
    "subspace_boosting": matrices(boosted_sum, lambda model: task_arithmetic(model)),
    "subspace_boosting_ties": boosted_ties,
    "knots": matrices(knots),
}
CASES: dict[str, list[dict[str, Any]]] = {
    "simple_average": [{}],
    "greedy_soup": [{}],
    "weighted_average": [{}, {"weights": WEIGHTS}, {"weights": WEIGHTS, "over": "sum"}],
    "task_arithmetic": [
        {},
        {"lambda": 0.5},
        {"lambda": -1.5, "weights": WEIGHTS},
        {"over": "mean", "weights": WEIGHTS},
    ],
    "ties": [
        {},
        {"density": 1.0},
        {"density": 0.01},
        {"density": 0.29, "lambda": 0.3},
        {"trim": "model", "density": 0.2},
        {"tied": "all"},
        {"trim": "model", "tied": "all", "density": 0.3},
        {"trim": "model", "tied": "next", "density": 0.3},
        {"tied": "next", "density": 1.0},
        {"tied": "none", "density": 0.6},
        {"tied": "none", "density": 1.0},
        {"trim": "model", "density": 0.4, "tables": "kept", "zero": "majority"},
        {"elect": "count"},
        {"elect": "count", "zero": "majority"},
        {"zero": "majority", "density": 0.9},
        {"vote": "weighted", "weights": WEIGHTS},
        {"vote": "weighted", "weights": WEIGHTS, "elect": "count"},
        {"vote": "weighted", "weights": WEIGHTS, "zero": "majority", "density": 1.0},
        {"weights": WEIGHTS},
        {"weights": POSITIVE, "divide": "weights"},
        {"weights": WEIGHTS, "divide": "weights", "density": 1.0},
        {"merge": "sum", "weights": WEIGHTS},
        {"density": DENSITIES},
        {"density": DENSITIES, "trim": "model", "tied": "all"},
    ],
    "dare": [
        {},
        {"density": 1.0},
        {"density": 0.3, "lambda": 0.7},
        {"weights": WEIGHTS, "density": 0.9},
        {"rescale": "l1", "density": 0.3, "weights": WEIGHTS},
        {"rescale": "none", "density": DENSITIES},
    ],
    "dare_ties": [
        {},
        {"density": 1.0, "elect": "count"},
        {"density": 0.3, "lambda": 0.7, "merge": "sum"},
        {"weights": WEIGHTS, "vote": "weighted"},
        {"weights": POSITIVE, "divide": "weights", "rescale": "l1"},
        {"density": DENSITIES, "rescale": "none"},
        {"density": DENSITIES, "rescale": "l1"},
    ],
    "della": [
        {},
        {"density": 0.3, "epsilon": 0.2, "lambda": 0.7},
        {"density": 0.9, "epsilon": 0.05, "merge": "sum", "elect": "count"},
        {"weights": WEIGHTS, "vote": "weighted", "rescale": "l1", "divide": "weights"},
        {"density": DENSITIES, "epsilon": EPSILONS, "rescale": "none"},
        {"density": DENSITIES, "rescale": "l1"},
    ],
    "della_linear": [
        {},
        {"density": 0.3, "epsilon": 0.2, "lambda": 0.7},
        {"weights": WEIGHTS, "rescale": "l1"},
        {"density": DENSITIES, "epsilon": EPSILONS, "rescale": "none"},
    ],
    "breadcrumbs_ties": [
        {},
        {"density": 0.5, "gamma": 0.2, "weights": WEIGHTS, "lambda": 0.7, "vote": "weighted", "divide": "weights"},
        {"density": DENSITIES, "gamma": GAMMAS, "merge": "sum", "elect": "count"},
        {"density": DENSITIES, "gamma": GAMMAS, "per": "row"},
        {"density": 0.8, "gamma": 0.5, "excess": "density"},
    ],
    "breadcrumbs": [
        {"density": DENSITIES, "gamma": 0.1},
        {"density": DENSITIES, "gamma": GAMMAS, "per": "row"},
        {},
        {"density": 1.0},
        {"density": 0.5, "gamma": 0.2, "weights": WEIGHTS, "lambda": 0.7},
        {"density": 0.8, "gamma": 0.5},
        {"density": 0.01, "gamma": 0.0},
        {"density": 0.5, "gamma": 0.2, "per": "row"},
        {"density": 0.8, "gamma": 0.5, "excess": "density"},
        {"density": 0.8, "gamma": 0.5, "excess": "density", "per": "row"},
        {"density": 1.0, "gamma": 1.0, "excess": "density"},
    ],
    "localize_and_stitch": [
        {},
        {"density": 0.5},
        {"density": 0.9},
        {"density": 0.5, "tied": "none"},
        {"density": 0.5, "tied": "next", "counted": "all", "tables": "kept"},
        {"density": 0.9, "overlap": "last"},
    ],
    "consensus_task_arithmetic": [
        {},
        {"agree": 1.0},
        {"agree": 3.0},
        {"selectivity": 0.6, "lambda": 0.5},
        {"selectivity": 0.5},
        {"selectivity": 0.0, "agree": 3.0},
        {"selectivity": 0.5, "claim": "more"},
    ],
    "model_stock": [{}],
    "slerp": [{}, {"t": 0.0}, {"t": 1.0}, {"t": 0.3}, {"t": 0.3, "of": "weights"}],
    "tsv_merge": [{}, {"lambda": -0.5}],
    "iso_c": [{}, {"lambda": 0.5}],
    "subspace_boosting": [
        {},
        {"beta": 0.0},
        {"beta": 0.6, "lambda": 0.5},
        {"beta": 1.0},
        {"beta": 0.6, "rounding": "kept"},
    ],
    "subspace_boosting_ties": [
        {},
        {"beta": 0.7, "lambda": -0.5},
        {"beta": 1.0, "trim": "model", "tied": "all", "density": 0.8},
        {"elect": "count", "vote": "weighted", "weights": WEIGHTS, "merge": "sum"},
        {"divide": "weights", "weights": POSITIVE, "zero": "majority", "density": 0.9},
        {"tied": "next", "density": 0.5},
        {"tied": "none", "density": 0.9},
    ],
    "knots": [{}, {"density": 1.0, "lambda": 0.5}, {"density": 0.2}, {"merge_by": "mean"}],
}
MERGEKIT_ELECTION = {"vote": "weighted", "divide": "weights"}
OFFICIAL_TIES = {"density": 0.2, "trim": "model", "tied": "next", "zero": "majority"}
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("weighted_average", "mergekit"): {},
    ("task_arithmetic", "authors"): {},
    ("task_arithmetic", "mergekit"): {},
    ("task_arithmetic", "mergebench"): {"tables": "kept"},
    ("task_arithmetic", "in_the_wild"): {"over": "mean"},
    ("ties", "authors"): OFFICIAL_TIES,
    ("ties", "mergekit"): {"density": 1.0, **MERGEKIT_ELECTION},
    ("ties", "mergebench"): {**OFFICIAL_TIES, "merge": "sum", "tables": "head_ranked"},
    ("ties", "peft"): {},
    ("dare", "authors"): {"density": 0.1},
    ("dare", "mergekit"): {"density": 1.0, "rescale": "l1"},
    ("dare", "mergebench"): {"density": 0.2, "tables": "kept"},
    ("dare", "peft"): {},
    ("dare_ties", "mergekit"): {"density": 1.0, "rescale": "l1", "vote": "weighted", "merge": "sum"},
    ("dare_ties", "peft"): {},
    ("della", "authors"): MERGEKIT_ELECTION,
    ("della", "mergekit"): {"density": 1.0, "rescale": "l1", **MERGEKIT_ELECTION},
    ("della_linear", "mergekit"): {"density": 1.0, "rescale": "l1"},
    ("breadcrumbs", "authors"): {"density": 0.15, "gamma": 0.006, "per": "row", "excess": "density"},
    ("breadcrumbs", "mergekit"): {"density": 1.0},
    ("breadcrumbs_ties", "mergekit"): {"density": 1.0, "vote": "weighted", "merge": "sum", "divide": "weights"},
    ("localize_and_stitch", "authors"): {"tied": "none", "tables": "kept"},
    ("localize_and_stitch", "mergebench"): {
        "density": 0.1,
        "tied": "all",
        "overlap": "last",
        "counted": "all",
        "tables": "head_ranked",
    },
    ("consensus_task_arithmetic", "authors"): {"claim": "more"},
    ("consensus_task_arithmetic", "mergebench"): {"selectivity": 0.2, "claim": "more", "tables": "kept"},
    ("model_stock", "authors"): {},
    ("model_stock", "mergekit"): {},
    ("slerp", "mergekit"): {"of": "weights"},
    ("tsv_merge", "authors"): {"matrices": "all", "rounding": "kept"},
    ("iso_c", "authors"): {"matrices": "all", "rounding": "kept"},
    ("subspace_boosting", "in_the_wild"): {},
    ("subspace_boosting_ties", "in_the_wild"): {"lambda": 0.1},
}
# Those that know the experts' data have tests of their own.
TESTED_HERE = [name for name in registry.names() if registry.get(name).statistics is None]
Case = tuple[str, str | None, dict[str, Any], dict[str, Any]]


def cases() -> Iterator[Case]:
    """Method, preset, the parameters given to ours, and those given to the formula."""
    for method, listed in CASES.items():
        for params in listed:
            yield method, None, params, params
    for (method, preset), params in PRESETS.items():
        more = {"weights": POSITIVE} if any(one.name == "weights" for one in registry.get(method).parameters) else {}
        yield method, preset, more, {**params, **more}


def label(case: Case) -> str:
    method, preset, params, _ = case
    return "-".join(
        [
            method,
            *([preset] if preset else []),
            *(f"{key}={value}" for key, value in params.items() if key != "weights"),
        ]
    )


def formula(method: str, model: Arrays, params: Mapping[str, Any]) -> Merged:
    """The method's formula; embeddings and head are those of the base where the parameters say so."""
    named = {"lambda_" if key == "lambda" else key: value for key, value in params.items()}
    tables = named.pop("tables", "merged")
    unranked = {"merged": [], "kept": [EMBEDDING, HEAD], "head_ranked": [EMBEDDING]}[tables]
    merged = FORMULAS[method]({name: stack for name, stack in model.items() if name not in unranked}, **named)
    kept_as_they_are = [] if tables == "merged" else [EMBEDDING, HEAD]
    return merged | {name: np.zeros(model[name].shape[1:]) for name in kept_as_they_are if name in model}


def tensors() -> dict[str, tuple[int, ...]]:
    """Names with shapes, in the order of names: the first of equal magnitudes comes first."""
    return {
        HEAD: (7, 6),
        EMBEDDING: (7, 6),
        "model.layers.0.linear_attn.conv1d.weight": (4, 3, 5),
        "model.layers.0.mlp.down_proj.weight": (5, 8),
        MATRIX: (9, 6),
        "model.norm.weight": (11,),
    }


def on_grid(values: np.ndarray, steps: int) -> np.ndarray:
    """Rounded to multiples of 1/steps, so that sums and differences in fp32 are exact."""
    return np.round(values * steps) / steps


GENERATOR = np.random.default_rng(0)
BASE = {name: on_grid(3 * GENERATOR.standard_normal(shape), 8) for name, shape in tensors().items()}
FINE = {name: on_grid(GENERATOR.standard_normal((3, *shape)), 1024) for name, shape in tensors().items()}
"""Task vectors with few equal magnitudes."""
COARSE = {name: on_grid(0.8 * GENERATOR.standard_normal((3, *shape)), 1) for name, shape in tensors().items()}
"""Task vectors of small whole numbers: most magnitudes are equal, and votes end in 0."""
SKEWED = {
    name: GENERATOR.choice([2.0, -2.0, -1.0], (3, *shape), p=[0.3, 0.1, 0.6]) for name, shape in tensors().items()
}
"""Task vectors whose large entries have a majority of +, and all their entries one of -."""
MODELS: dict[str, Arrays] = {"fine": FINE, "coarse": COARSE, "skewed": SKEWED}


def pool_of(method: str) -> int:
    return int(min(3, registry.get(method).count[1]))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_every_method_has_a_formula_and_cases() -> None:
    assert set(FORMULAS) == set(CASES) == set(TESTED_HERE)
    assert set(PRESETS) == {(name, preset) for name in TESTED_HERE for preset in registry.get(name).presets}


def test_every_choice_of_every_method_has_a_case() -> None:
    for name in TESTED_HERE:
        seen = [registry.get(name).validate(given, preset) for method, preset, given, _ in cases() if method == name]
        for parameter in registry.get(name).parameters:
            if parameter.choices:
                assert {params[parameter.name] for params in seen} == set(parameter.choices), (name, parameter.name)
            else:
                assert len({str(params[parameter.name]) for params in seen}) > 1, (name, parameter.name)


def on_kinds(*, whole: bool) -> Iterator[Any]:
    """Every case on fine task vectors, and on coarse ones where these leave the singular vectors alone."""
    for case in cases():
        method = registry.get(case[0])
        spectral = method.level in ("spectrum", "factors") or (method.finish is not None and whole)
        if (whole and method.level == "factors") or (not whole and case[3].get("of") == "weights"):
            # The former needs adapters, the latter a base.
            continue
        kinds = ["fine"] if spectral else ["fine", "coarse"]
        if case[3].get("zero") == "majority" and not spectral:
            kinds.append("skewed")
        for kind in kinds:
            yield pytest.param(case, kind, id=f"{label(case)}-{kind}")


@pytest.mark.parametrize(("case", "kind"), on_kinds(whole=False))
def test_one_tensor(case: Case, kind: str) -> None:
    name, preset, given, params = case
    method, model = registry.get(name), MODELS[kind]
    # What tensors are for is known to the engine alone.
    params = {key: value for key, value in params.items() if key != "tables"}
    shapes = [MATRIX] if method.level in ("spectrum", "factors") or method.finish else list(model)
    for tensor in shapes:
        stack = model[tensor][: pool_of(name)]
        wanted = formula(name, {tensor: stack}, params)[tensor]
        context = TensorContext(tensor, names_of(stack), SEED)
        found = merge_stack(method, torch.tensor(stack, dtype=torch.float32), context, method.validate(given, preset))
        assert found.dtype == torch.float32
        close(found.numpy(), wanted)


def write_pool(folder: Path, model: Arrays, count: int) -> list[tuple[str, Path]]:
    """The base and the experts as checkpoints in fp32; whole steps of a grid, so nothing is rounded."""
    written = []
    for place, name in enumerate(("base", *EXPERTS[:count])):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "qwen3_5_text", "dtype": "float32"}))
        weights = {key: torch.tensor(own, dtype=torch.float32) for key, own in BASE.items()}
        if place:
            weights = {
                key: own + torch.tensor(model[key][place - 1], dtype=torch.float32) for key, own in weights.items()
            }
        save_file(weights, folder / name / "model.safetensors")
        written.append((name, folder / name))
    return written


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[tuple[str, Path]]]:
    """Base and experts by the kind of their task vectors and their number."""
    return {
        (kind, count): write_pool(tmp_path_factory.mktemp(f"{kind}{count}"), model, count)
        for kind, model in MODELS.items()
        for count in (2, 3)
    }


@pytest.mark.parametrize(("case", "kind"), on_kinds(whole=True))
def test_whole_model(case: Case, kind: str, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files to files, in blocks of a few rows, with ranks and votes over the model where the method has them."""
    name, preset, given, params = case
    monkeypatch.setattr("mergetime.merging.pool.BLOCK", {"cpu": 16})
    count = pool_of(name)
    (_, base), *experts = pools[kind, count]
    merge(
        experts,
        method=name,
        params=given,
        preset=preset,
        space="delta",
        seed=SEED,
        out=tmp_path,
        base=base,
        output="delta",
    )
    model = {tensor: stack[:count] for tensor, stack in MODELS[kind].items()}
    found = load_file(tmp_path / "task_vector.safetensors")
    wanted = formula(name, model, params)
    assert found.keys() == wanted.keys()
    for tensor, own in wanted.items():
        close(found[tensor].numpy(), own)


def test_the_cutoff_is_the_first_singular_value_that_reaches_the_share() -> None:
    stack = torch.diag(torch.tensor([2.0, 1.0, 1.0]))[None]
    method = registry.get("subspace_boosting")
    for beta, wanted in ((0.5, [2.0, 2.0, 2.0]), (0.51, [2.0, 1.0, 1.0])):
        found = merge_stack(method, stack, TensorContext(MATRIX, ("code",)), method.validate({"beta": beta}))
        close(found.numpy(), np.diag(wanted))


MODULES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
SCALINGS = {"code": 2.0, "math": 0.5, "safety": 3.0}
RANK = 4
# Method, parameters, and what the weight of an expert is in its formula: the scale of B A.
IN_ADAPTER_SPACE: list[tuple[str, dict[str, Any], Callable[[str], float]]] = [
    ("simple_average", {}, lambda expert: 1 / 3),
    ("greedy_soup", {}, lambda expert: 1 / 3),
    ("weighted_average", {"weights": WEIGHTS}, lambda expert: WEIGHTS[expert] / sum(WEIGHTS.values())),
    ("task_arithmetic", {"weights": WEIGHTS, "lambda": -0.7}, lambda expert: -0.7 * WEIGHTS[expert]),
    ("ties", {"weights": WEIGHTS, "density": 0.4}, WEIGHTS.__getitem__),
    ("ties", {"lambda": -0.6}, lambda expert: 1.0),
    ("ties", {"elect": "count", "merge": "sum", "lambda": 0.6}, lambda expert: 1.0),
    ("dare", {"weights": WEIGHTS, "lambda": 0.7}, WEIGHTS.__getitem__),
    ("dare_ties", {"weights": POSITIVE, "lambda": -0.7, "density": 0.3}, POSITIVE.__getitem__),
    ("breadcrumbs", {"weights": WEIGHTS, "density": 0.5, "gamma": 0.1}, WEIGHTS.__getitem__),
]


def root(value: float, factor: str) -> float:
    return math.copysign(math.sqrt(abs(value)), value if factor == "A" else 1.0)


@pytest.mark.parametrize(
    ("name", "given", "weight"), IN_ADAPTER_SPACE, ids=lambda value: "" if callable(value) else str(value)[:60]
)
def test_factors_are_merged_by_the_same_formula(
    name: str, given: dict[str, Any], weight: Callable[[str], float], tmp_path: Path
) -> None:
    """Each factor has the root of its expert's weight and of lambda; A the sign."""
    generator = np.random.default_rng(1)
    keys = {f"base_model.model.{module}.lora_{factor}.weight": factor for module in MODULES for factor in "AB"}
    shapes = {"A": (RANK, 6), "B": (7, RANK)}
    stacks = {key: on_grid(generator.standard_normal((3, *shapes[factor])), 64) for key, factor in keys.items()}
    experts = []
    for place, expert in enumerate(EXPERTS):
        (tmp_path / expert).mkdir()
        settings = {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": SCALINGS[expert] * RANK,
            "target_modules": ["up_proj"],
        }
        (tmp_path / expert / "adapter_config.json").write_text(json.dumps(settings))
        weights = {key: torch.tensor(stack[place], dtype=torch.float32) for key, stack in stacks.items()}
        save_file(weights, tmp_path / expert / "adapter_model.safetensors")
        experts.append((expert, tmp_path / expert))
    out = tmp_path / "out"
    merge(experts, method=name, params=given, space="adapter", seed=SEED, out=out)
    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == keys.keys()
    averages = name in ("simple_average", "greedy_soup", "weighted_average", "task_arithmetic")
    for key, factor in keys.items():
        shares = {expert: root(weight(expert) * SCALINGS[expert], factor) for expert in EXPERTS}
        params: dict[str, Any] = {"weights": shares} if averages else {**given, "weights": shares}
        if "lambda" in params:
            params["lambda"] = root(params["lambda"], factor)
        wanted = formula("task_arithmetic" if averages else name, {key: stacks[key]}, params)[key]
        close(found[key].numpy(), wanted)


def test_every_method_in_adapter_space_has_a_case() -> None:
    assert {name for name, _, _ in IN_ADAPTER_SPACE} == {
        name for name in TESTED_HERE if "adapter" in registry.get(name).spaces
    }


def rounded(values: Sequence[int], kind: str) -> np.ndarray:
    """fp32 numbers of a kind in which many magnitudes are equal."""
    array = np.array(values, dtype=np.float32)
    if kind == "bfloat16":
        normals = torch.randn(len(array), generator=torch.Generator().manual_seed(abs(int(array.sum()))))
        return (normals * 1e-3).bfloat16().float().numpy()
    if kind == "zeros":
        return array * 0
    return array * 0 + 2.5 if kind == "equal" else array


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_cuts_are_those_of_sorting(data: st.DataObject) -> None:
    """Whatever the blocks and the sample are, and when little is collected in a pass."""
    kind = data.draw(st.sampled_from(["integers", "bfloat16", "zeros", "equal"]))
    reach = data.draw(st.sampled_from([1, 3, 1000]))
    size = data.draw(st.integers(1, 120))
    numbers = st.lists(st.integers(-reach, reach), min_size=size, max_size=size)
    stack = np.stack([rounded(data.draw(numbers), kind) for _ in range(data.draw(st.integers(1, 2)))])
    experts = EXPERTS[: len(stack)]
    shares, skips = st.floats(0.001, 1.0), st.sampled_from([0.0, 0.1, 0.7])
    trim = Trim(
        data.draw(shares | st.fixed_dictionaries(dict.fromkeys(experts, shares))),
        skip=data.draw(skips | st.fixed_dictionaries(dict.fromkeys(experts, skips))),
        tied=data.draw(st.sampled_from(get_args(Tied))),
        yields=data.draw(st.sampled_from(["skip", "keep"])),
    )
    edges = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=6))})
    blocks = [(start, torch.from_numpy(stack[:, start:end])) for start, end in itertools.pairwise(edges)]
    length = data.draw(st.integers(1, max(1, size - 1)))
    misleading = torch.full((len(stack), length), data.draw(st.sampled_from([0.0, 0.5, 1.0, 1e6])))
    honest = torch.from_numpy(stack[:, :: max(1, size // length)].copy())
    sample = data.draw(st.sampled_from([misleading, honest]))
    passes = 0

    def stream() -> Iterator[trimming.Block]:
        nonlocal passes
        passes += 1
        assert passes < 200, "does not end"
        yield from blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimming, "COLLECTED", data.draw(st.sampled_from([1, 4, 16, 1 << 20])))
        cuts = trimming.find(stream, sample, size, trim, experts)
    found = np.concatenate([cuts.apply(block, start).numpy() for start, block in blocks], axis=1)
    compare = {"all": np.greater_equal, "next": np.greater_equal, "none": np.greater}.get(trim.tied)
    for row, own, keep, skip in zip(stack, found, each(trim.keep, experts), each(trim.skip, experts), strict=True):
        count = min(size, int(keep * size) + 1) if trim.tied == "next" else max(1, int(keep * size))
        skipped = int(skip * size)
        if trim.yields == "keep":
            count = min(count, size - skipped)
        else:
            skipped = min(skipped, size - count)
        upper, lower = (largest(row, many) for many in (skipped, count + skipped))
        if compare:
            upper, lower = (
                compare(np.abs(row), np.abs(row[mask]).min()) if mask.any() else mask for mask in (upper, lower)
            )
        np.testing.assert_array_equal(own, row * (lower & ~upper))


@settings(max_examples=60, deadline=None, derandomize=True)
@example(size=57, bad=8, density=0.43268802799948847, collected=4, length=38)
@given(
    size=st.integers(1, 60),
    bad=st.integers(1, 60),
    density=st.floats(0.01, 1.0),
    collected=st.sampled_from([1, 4, 1 << 20]),
    length=st.integers(1, 60),
)
def test_nan_is_refused_where_it_is_in_the_way(
    size: int, bad: int, density: float, collected: int, length: int
) -> None:
    """NaN has no rank. Where fewer numbers are left than are to stay that is said, else the largest may be found."""
    bad = min(size, bad)
    values = np.arange(1, size + 1, dtype=np.float32)
    values[np.random.default_rng(size).permutation(size)[:bad]] = math.nan
    block = torch.from_numpy(values)[None]
    sample = block[:, :length]
    count = max(1, int(density * size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimming, "COLLECTED", collected)
        try:
            cut = trimming.find(lambda: [(0, block)], sample, size, Trim(density), ["code"]).kept[0]
        except trimming.NotFiniteError:
            assert count > size - bad or sample.isnan().any()
        else:
            assert cut.threshold == np.sort(values[np.isfinite(values)])[-count]
