"""What some merge methods need to know of an expert: its Fisher information, its inputs, its mask, measured on chats.

Everything is computed in fp32 on the model as it stands; no function changes its weights. Chats are encoded as in
training, and the loss is that of training: on answers alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

# Studies may be checked through this module, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mergetime.modalities.learning import Learning

# The Gram matrices of layers with more inputs are summed in fp32: in float64 they would not fit beside the model.
_MOST_INPUTS_IN_DOUBLE = 2048


def fisher(
    learning: Learning,
    model: PreTrainedModel,
    examples: Sequence[Any],
    names: Iterable[str],
    *,
    seed: int,
    draws: int = 1,
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information matrix, in nats squared, for the parameters in ``names``.

        F = 1/N sum_x E_{y ~ p(y | x)} (d log p(y | x) / d theta)^2

    Paper: Matena and Raffel 2022, Merging models with Fisher-weighted averaging (arXiv 2111.09832), the diagonal Fisher
    matrix: the expectation is over the model's own labels; with the labels of the data it would be the empirical
    Fisher, which is small wherever an expert fits its data.
    The authors' code (mmatena/model_merging, fisher.py) sums over all labels of a classifier. A language model has one
    label in the vocabulary for every answer token: here each is drawn from the model's distribution after the true
    tokens before it, and the gradient of the chat's summed log likelihood is squared. Labels are drawn independently of
    each other, so the cross terms of two tokens have mean zero, and the result is an unbiased estimate of the sum of
    the tokens' Fisher informations.
    Others differ: RegMean's code squares the gradient of a whole batch, for the likeliest labels.

    Args:
        learning: of the model's modality.
        model: in fp32.
        examples: chats; one at a time, so that gradients are per chat.
        names: parameters of the model.
        seed: seed of the draws. More examples leave the draws of those before them as they are.
        draws: independent draws for each chat, averaged.

    Returns:
        name to float32 tensor of the parameter's shape, on the CPU.
    """
    import torch

    parameters = _chosen(model, names)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    with _with_gradients(model, parameters):
        for example in examples:
            log_probabilities = learning.logits(model, example).log_softmax(dim=-1)
            for draw in range(draws):
                labels = _draw(log_probabilities.detach(), generator)
                likelihood = log_probabilities.gather(1, labels[:, None]).sum()
                gradients = torch.autograd.grad(
                    likelihood, list(parameters.values()), retain_graph=draw + 1 < draws, materialize_grads=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total.addcmul_(gradient, gradient)
    return {name: total.div_(len(examples) * draws).cpu() for name, total in sums.items()}


def gram(
    learning: Learning, model: PreTrainedModel, examples: Sequence[Any], names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """The mean outer product of the inputs of every linear layer whose weight is in ``names``: G = X^T X / rows of X.

    Paper: Jin et al. 2023, Dataless knowledge fusion by merging weights of language models (arXiv 2212.09849),
    Equation 2. X holds the layer's inputs at all positions, prompts included; chats go through one at a time, so none
    of them is padding. The authors' code counts padding too, and divides by the number of positions, as here.
    A layer that sees only some of the positions, as those of a mixture of experts, is divided by the number it saw.

    Args:
        learning: of the model's modality.
        model: in fp32.
        examples: chats.
        names: parameters of the model; those that are no weight of a linear layer are left out.

    Returns:
        name of the weight to float32 [inputs, inputs], on the CPU; zero for a layer that saw nothing.
    """
    import torch

    layers = _linear_layers(model, _chosen(model, names))
    sums = {}
    for name, inputs in layers.items():
        dtype = torch.float64 if inputs <= _MOST_INPUTS_IN_DOUBLE else torch.float32
        sums[name] = torch.zeros(inputs, inputs, dtype=dtype, device=model.get_parameter(name).device)
    rows = dict.fromkeys(layers, 0)

    def add(name: str, inputs: torch.Tensor) -> None:
        seen = inputs.reshape(-1, inputs.shape[-1]).to(sums[name].dtype)
        sums[name].addmm_(seen.T, seen)
        rows[name] += len(seen)

    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, inputs, name=name: add(name, inputs[0])
        )
        for name in layers
    ]
    try:
        with torch.no_grad(), _with_gradients(model, {}):
            for example in examples:
                learning.logits(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.div_(max(1, rows[name])).float().cpu() for name, total in sums.items()}


def mask(
    learning: Learning,
    model: PreTrainedModel,
    base_weights: Mapping[str, torch.Tensor],
    deltas: Mapping[str, torch.Tensor],
    examples: Sequence[Any],
    *,
    density: float,
    steps: int,
    learning_rate: float,
    l1: float,
    bias: float,
    batch_size: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """The entries of an expert's update that carry its skill: a trained mask with exactly k entries in the whole model.

        train:     minimise  loss(base + sigmoid(S) * tau) + l1 * mean(sigmoid(S))  over S, by gradient descent
        start:     S = bias where |tau| is among the k largest, else -bias
        binarise:  the k entries with the largest S,  k = max(1, floor(density * entries))

    Paper: He et al. 2025, Localize-and-Stitch (arXiv 2408.13656), the localization step. From the authors' code
    (yifei-he/Localize-and-Stitch, localize_utils.py) come the start, bias = 5, plain gradient descent and its 10 steps.
    It differs from this function, and from the paper: its penalty pushes S away from 0 to both sides instead of
    towards a sparse mask; it keeps what rounds to 1, whose number is not the density's; its learning rate is 1e7,
    which fits the size of its gradients. Here the penalty is the paper's, over the mean so that l1 is in nats per
    answer token, exactly k entries stay, and the rate's unit is the root mean square of the first step's gradient, so
    that it carries over between models. Adam would give every entry a step of the same size and so keep the start's
    order.

    Args:
        learning: of the model's modality.
        model: in fp32; only its parameters outside ``deltas`` are used as they are.
        base_weights: the base's parameters, at least those in ``deltas``.
        deltas: name to the expert's update, of the parameter's shape.
        examples: chats; a step takes the mean loss over the answer tokens of ``batch_size`` of them.
        density: share of all entries of ``deltas`` that is kept.
        steps: steps; 0 leaves the k largest updates.
        learning_rate, l1, bias: see above.
        batch_size: the whole set where it has no more.
        seed: seed of the order of the chats.

    Returns:
        name to bool tensor of the parameter's shape, on the CPU. Equal S are told apart by |tau|, then by position.

    Raises:
        ValueError: if S is not finite at the end.
    """
    import torch

    start = {name: base_weights[name].detach() for name in sorted(deltas)}
    updates = {name: deltas[name].to(weight) for name, weight in start.items()}
    magnitudes = {name: update.abs() for name, update in updates.items()}
    count = max(1, int(density * sum(update.numel() for update in updates.values())))
    scores = {
        name: torch.where(chosen, bias, -bias).to(updates[name]).requires_grad_()
        for name, chosen in largest(magnitudes, count).items()
    }
    _descend(scores, learning, model, start, updates, _batches(examples, steps, batch_size, seed), learning_rate, l1)
    if not all(bool(score.isfinite().all()) for score in scores.values()):
        raise ValueError(f"the mask's training is no longer finite at learning_rate {learning_rate:g}; lower it")
    return largest(scores, count, magnitudes)


def _descend(
    scores: Mapping[str, torch.Tensor],
    learning: Learning,
    model: PreTrainedModel,
    start: Mapping[str, torch.Tensor],
    updates: Mapping[str, torch.Tensor],
    batches: Iterable[Sequence[Any]],
    learning_rate: float,
    l1: float,
) -> None:
    """Train a mask's scores in place: a step of gradient descent for every batch, as :func:`mask` says."""
    import torch

    entries = sum(update.numel() for update in updates.values())
    rate = None
    for batch in batches:
        shares = {name: score.sigmoid() for name, score in scores.items()}
        weights = {name: torch.addcmul(start[name], share, updates[name]) for name, share in shares.items()}
        penalty = sum(share.sum() for share in shares.values()) * (l1 / entries)
        gradients = torch.autograd.grad(_loss(learning, model, weights, batch) + penalty, list(scores.values()))
        if rate is None:
            square = sum(float(gradient.double().square().sum()) for gradient in gradients) / entries
            rate = learning_rate / square**0.5 if square else 0.0
        with torch.no_grad():
            for score, gradient in zip(scores.values(), gradients, strict=True):
                score -= rate * gradient


def mean_loss(
    learning: Learning,
    model: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    examples: Sequence[Any],
    batch_size: int,
) -> float:
    """The mean loss in nats over all answer tokens of the chats, with some parameters replaced by ``weights``."""
    import torch

    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad(), _with_gradients(model, {}):
        for first in range(0, len(examples), batch_size):
            sums += _sums(learning, model, weights, examples[first : first + batch_size]).double().cpu()
    return float(sums[0] / sums[1])


def largest(
    values: Mapping[str, torch.Tensor], count: int, second: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The ``count`` largest entries over all tensors together, as bool tensors on the CPU.

    Exactly that many: among equal ones those that are larger in ``second`` come first, then those at earlier positions.
    """
    import torch

    flat = torch.cat([value.detach().flatten().cpu() for value in values.values()])
    threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
    kept = flat > threshold
    tied = (flat == threshold).nonzero().flatten()
    if second is not None:
        others = torch.cat([second[name].detach().flatten().cpu() for name in values])[tied]
        tied = tied[others.argsort(descending=True, stable=True)]
    kept[tied[: count - int(kept.count_nonzero())]] = True
    parts = kept.split([value.numel() for value in values.values()])
    return {name: part.view(value.shape).clone() for (name, value), part in zip(values.items(), parts, strict=True)}


def norm(statistic: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean norm over all tensors together, in float64."""
    return float(sum(float(tensor.double().square().sum()) for tensor in statistic.values()) ** 0.5)


def normalised(statistic: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistic divided by its root mean square over the model; one that is zero stays as it is."""
    entries = sum(tensor.numel() for tensor in statistic.values())
    size = norm(statistic) / entries**0.5
    return {name: tensor / size if size else tensor for name, tensor in statistic.items()}


def _chosen(model: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.nn.Parameter]:
    parameters = dict(model.named_parameters())
    wanted = sorted(set(names))
    for name in wanted:
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name}")
    return {name: parameters[name] for name in wanted}


def _linear_layers(model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """The weights in ``names`` that are of linear layers, with the number of each layer's inputs.

    GPT-2's Conv1D is a linear layer that keeps its weight as [inputs, outputs].
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    wanted = set(names)
    inputs = {}
    for module, layer in model.named_modules():
        if f"{module}.weight" in wanted and isinstance(layer, torch.nn.Linear | Conv1D):
            inputs[f"{module}.weight"] = int(layer.weight.shape[0 if isinstance(layer, Conv1D) else 1])
    return inputs


@contextmanager
def _with_gradients(model: PreTrainedModel, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone, dropout off; afterwards as before."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = model.training
    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in parameters)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
        model.train(was_training)


def _draw(log_probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One label for each row: int64 [rows]. The uniform numbers come from the CPU, so that devices agree on them."""
    import torch

    cumulated = log_probabilities.double().exp().cumsum(dim=-1)
    uniform = torch.rand(len(cumulated), 1, generator=generator, dtype=torch.float64).to(cumulated.device)
    # Scaled to the last sum, which rounding leaves beside 1; on the right, so that no label of probability 0 is drawn.
    labels = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).flatten()
    return labels.clamp_(max=cumulated.shape[-1] - 1)


def _batches(examples: Sequence[Any], steps: int, batch_size: int, seed: int) -> Iterator[list[Any]]:
    """``steps`` batches; every pass over the chats is in an order of its own."""
    generator = random.Random(seed)
    size = min(batch_size, len(examples))
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = generator.sample(range(len(examples)), len(examples))
        taken, order = order[:size], order[size:]
        yield [examples[index] for index in taken]


def _loss(
    learning: Learning, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], batch: Sequence[Any]
) -> torch.Tensor:
    with _with_gradients(model, {}):
        sums = _sums(learning, model, weights, batch)
    return sums[0] / sums[1]


def _sums(
    learning: Learning, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], batch: Sequence[Any]
) -> torch.Tensor:
    """Sum of the loss over the items of a batch, and their number: float32 [2]."""
    return learning.losses_with(model, weights, batch).sum(dim=0)
