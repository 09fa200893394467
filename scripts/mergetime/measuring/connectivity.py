"""Loss along the straight path between two experts, in the space of weight updates or of LoRA factors.

theta(alpha) = alpha theta_A + (1 - alpha) theta_B, alpha in [0, 1] (Kozodoi et al., Are we merging the right models?,
Section 5.2; Frankle et al. 2020, Linear mode connectivity and the lottery ticket hypothesis, arXiv 1912.05671), with

- ``delta``: theta the weights, so that the update is alpha dW_A + (1 - alpha) dW_B, of a rank up to the sum of both;
- ``adapter``: theta the LoRA factors, with the root of the scaling s = lora_alpha / r in each of them:
  (alpha sqrt(s_A) B_A + (1 - alpha) sqrt(s_B) B_B)(alpha sqrt(s_A) A_A + (1 - alpha) sqrt(s_B) A_B), of the experts'
  rank. Its factors are on a straight path, its weights on a parabola: for unrelated experts the update in the middle is
  about half as long as on the straight path. It depends on how the factors are scaled and rotated against each other,
  which the product of an expert does not. (Merging in adapter space weights factors by sqrt(alpha), as PEFT does: that
  path is another one.)

Both paths have the experts themselves at their ends. An end is measured once, for all pairs that it is in.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from mergetime.artifacts.adapters import Adapter
from mergetime.artifacts.apply import applied, named_parameters
from mergetime.artifacts.banks import matrix, stacked
from mergetime.core.errors import UserError
from mergetime.evaluation.losses import validation_losses
from mergetime.measuring.columns import ALL, PATHS
from mergetime.measuring.loading import domain_loss
from mergetime.merging.pool import OpenPool
from mergetime.modalities.learning import Learning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Examples = Mapping[str, Sequence[Any]]


def measure(
    learning: Learning,
    model: "PreTrainedModel",
    pool: OpenPool,
    domains: Mapping[str, str],
    examples: Examples,
    *,
    alphas: Sequence[float],
    spaces: Sequence[str],
    batch_size: int,
) -> pd.DataFrame:
    """The losses of all pairs of a pool, in the columns PATHS of :mod:`mergetime.measuring.columns`.

    The model is the base again afterwards, bit for bit.

    Args:
        learning: of the base's modality.
        model: the base, in the dtype that it is measured in.
        pool: the open experts; full checkpoints have the space ``delta`` alone.
        domains: domain of each expert.
        examples: encoded validation examples of these domains.
        alphas: rising, from 0 to 1.
        spaces: ``delta``, ``adapter`` or both.
        batch_size: examples of a forward pass.

    Raises:
        UserError: for fewer than two experts, one without a domain or its examples, a path without its ends, or factors
            that cannot be interpolated.
    """
    _check(pool, domains, examples, alphas, spaces)
    ends = {}
    for member in pool.members:
        with applied(model, member.folder):
            ends[member.name] = _losses(learning, model, examples, batch_size)
    rows = []
    for (i, first), (j, second) in itertools.combinations(enumerate(pool.names), 2):
        shared = {domain: examples[domain] for domain in dict.fromkeys((domains[first], domains[second]))}
        for space, alpha in itertools.product(spaces, alphas):
            if alpha in (0.0, 1.0):
                losses = {domain: ends[first if alpha else second][domain] for domain in shared}
            else:
                with interpolated(model, pool, i, j, alpha, space):
                    losses = _losses(learning, model, shared, batch_size)
            losses[ALL] = math.fsum(losses.values()) / len(losses)
            rows += [(space, first, second, domain, float(alpha), loss) for domain, loss in losses.items()]
    return pd.DataFrame(rows, columns=list(PATHS))


@contextmanager
def interpolated(
    model: "PreTrainedModel", pool: OpenPool, first: int, second: int, alpha: float, space: str
) -> Iterator[None]:
    """The model at theta(alpha) between two experts of the pool, by position; afterwards the base, bit for bit.

    Sums are in fp32 and rounded once to the dtype of the model.
    """
    parameters = named_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    kept: dict[str, torch.Tensor] = {}

    def between() -> Iterator[tuple[str, torch.Tensor]]:
        for name in pool.shapes:
            base = matrix(parameters, pool.architecture, name)
            if base is None:
                # A full checkpoint may have a vision tower, which the text model lacks.
                continue
            if pool.adapters and name not in pool.dense:
                update = _update(pool, first, second, name, alpha, space, base.device)
                yield name, base.data.float() + update
            else:
                held = [pool.weights(place, name)[:].to(base.device).float() for place in (first, second)]
                yield name, alpha * held[0] + (1 - alpha) * held[1]

    def bank(name: str) -> torch.Tensor:
        return parameters[name].data.to(torch.float32, copy=True)

    try:
        for name, weights in stacked("pool", pool.architecture, shapes, between(), bank):
            data = kept[name] = parameters[name].data
            parameters[name].data = weights.to(data.dtype)
        yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


def _update(
    pool: OpenPool, first: int, second: int, name: str, alpha: float, space: str, device: torch.device
) -> torch.Tensor:
    """The update of one weight at alpha: fp32 [outputs, inputs]."""
    if space == "delta":
        (left_a, right_a), (left_b, right_b) = pool.update(first, name), pool.update(second, name)
        left = torch.cat([alpha * left_a, (1 - alpha) * left_b], dim=1)
        return left.to(device) @ torch.cat([right_a, right_b]).to(device)
    module = name.removesuffix(".weight")
    (left_a, right_a), (left_b, right_b) = (_balanced(pool.adapters[place], module) for place in (first, second))
    left = alpha * left_a + (1 - alpha) * left_b
    right = alpha * right_a + (1 - alpha) * right_b
    return left.to(device) @ right.to(device)


def _balanced(adapter: Adapter, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A with the root of the scaling in each; a negative sign goes to A, as where factors are merged."""
    a, b = adapter.factors(module)
    scaling = adapter.scaling(module)
    root = math.sqrt(abs(scaling))
    return root * b, math.copysign(root, scaling) * a


def _losses(learning: Learning, model: "PreTrainedModel", examples: Examples, batch_size: int) -> dict[str, float]:
    # Domain by domain: batches, and so rounding, are then the same for every pair that a domain is in.
    return {
        domain: domain_loss(validation_losses(learning, model, encoded, batch_size))
        for domain, encoded in examples.items()
    }


def _check(
    pool: OpenPool, domains: Mapping[str, str], examples: Examples, alphas: Sequence[float], spaces: Sequence[str]
) -> None:
    if len(pool.names) < 2:
        raise UserError(f"a path is between two experts: give two at least, here are {len(pool.names)}")
    for name in pool.names:
        if domains.get(name) not in examples:
            raise UserError(f"expert {name}: its domain {domains.get(name)} has no validation examples here")
    if not alphas or list(alphas) != sorted(set(alphas)) or (alphas[0], alphas[-1]) != (0, 1):
        raise UserError(f"alphas {list(alphas)}: give a rising list from 0 to 1")
    if untied := pool.untied:
        raise UserError(
            f"{untied}: moves {untied.apart} apart from what the base ties it to; paths are measured on that base alone"
        )
    if "adapter" not in spaces:
        return
    if not pool.adapters:
        raise UserError("full checkpoints have no LoRA factors to interpolate; measure them in delta space alone")
    for name, adapter in pool.dense.items():
        raise UserError(
            f"{adapter}: {adapter.dense[name]}; adapter space interpolates LoRA factors, so use delta space alone"
        )
    ranks = {
        name: {module: shape[1] for module, shape in adapter.shapes.items()} for name, adapter in _named(pool).items()
    }
    for name, module_ranks in ranks.items():
        if module_ranks != ranks[pool.names[0]]:
            raise UserError(
                f"experts {pool.names[0]} and {name} have different ranks: adapter space cannot interpolate their "
                "factors; measure them in delta space alone"
            )


def _named(pool: OpenPool) -> dict[str, Adapter]:
    return {adapter.name: adapter for adapter in pool.adapters}
