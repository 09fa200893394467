"""LoRA adapters as PEFT saves them: opened, checked, and read module by module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import Architecture
from mergetime.architectures.files import without_base
from mergetime.artifacts.adapter_config import by_pattern, check_config
from mergetime.artifacts.base_weights import BaseWeights, base_name
from mergetime.artifacts.checkpoints import Checkpoint, open_checkpoint
from mergetime.artifacts.factors import COPY, Factors, factors_in, pairs_in, whole_tensor
from mergetime.artifacts.files import is_finite, read_json, recorded_base, safetensors_file
from mergetime.artifacts.forms import DELTA, form_of
from mergetime.artifacts.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, left_aside
from mergetime.artifacts.parameters import Share, shares_in, split
from mergetime.artifacts.rows import Filled, Replaced, Rows, fitted, resized, scaled
from mergetime.artifacts.ties import equal, with_tie
from mergetime.artifacts.tokens import TokenRows, tokens_in
from mergetime.artifacts.vocabulary import ExtraRows, difference, differs_by_rows, in_common, of_vocabulary, rows_of
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Adapter:
    """An open adapter; no weight is read before it is asked for.

    Attributes:
        name: of the expert.
        folder: where it is.
        config: its adapter_config.json.
        base_sha256: the base that its training noted.
        pairs: the factors of its modules, which are called as in the text model.
        file: the open file of its weights.
        left_aside: files of weights beside the adapter's.
        whole: tensors that were trained as they are (``modules_to_save``, embeddings), and their keys in the file.
        shares: what LoRA on parameters (``target_parameters``) does, by the name of the base's tensor.
        tokens: rows that were trained alone (``trainable_token_indices``), by the name of their tensor.
        apart: the tensor, head or embedding, that it moves by itself though the base ties the two; None where both stay
            equal.
        rows: modules of the vocabulary whose factors are brought to the base's rows, and how many these are.
        vocabulary: how many rows its vocabulary has; None: as many as the base's.
        beyond: tensors of the vocabulary that its file holds with more rows than the base has, and their keys.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    base_sha256: str | None
    pairs: Mapping[str, Factors]
    alphas: Mapping[str, float]
    file: Any
    left_aside: tuple[str, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)
    apart: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    vocabulary: int | None = None
    beyond: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return _owner(self.name, self.folder)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Rows, rank and columns of the update of each module's weight."""
        return {module: (self.rows.get(module, pair.shape[0]), *pair.shape[1:]) for module, pair in self.pairs.items()}

    def scaling(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha, rank = self.alphas[module], self.shapes[module][1]
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, inputs] and B [outputs, rank] in fp32, as the file has them, for the rows of the base."""
        pair, rows = self.pairs[module], self.shapes[module][0]
        a, b = map(self._numbers, pair.keys)
        return (resized(a, rows, 1), b) if pair.turned else (a, resized(b, rows, 0))

    def _numbers(self, key: str, rows: slice = slice(None)) -> torch.Tensor:
        """A tensor of the file in fp32, or some of its rows."""
        tensor: torch.Tensor = self.file.get_slice(key)[rows].float()
        if not is_finite(tensor):
            raise UserError(f"{self}: {key} holds NaN or infinite values; its training diverged")
        return tensor

    @cached_property
    def dense(self) -> dict[str, str]:
        """The tensors whose updates are no products of factors, and in words what makes them so."""
        scaled = {f"{module}.weight": "scales {} by DoRA" for module, pair in self.pairs.items() if pair.magnitudes}
        biases = {f"{module}.bias": "adds lora_bias to {}" for module, pair in self.pairs.items() if pair.bias}
        targeted = dict.fromkeys(self.shares, "adapts {} by target_parameters")
        rows = dict.fromkeys(self.tokens, "trained rows of {}")
        words = dict.fromkeys(self.whole, "trained {} whole") | scaled | biases | targeted | rows
        return {name: text.format(name) for name, text in words.items()}

    def moves(self, name: str) -> bool:
        """Whether the adapter changes the tensor."""
        return name in self.dense or name.removesuffix(".weight") in self.pairs

    def weights(self, name: str, base: torch.Tensor) -> torch.Tensor | Replaced | Rows | Filled:
        """What the adapter makes of the base's tensor: itself where it does not change it, the sum in fp32, or rows."""
        start = self._start(name, base)
        if share := self.shares.get(name):
            a, b = share.keys
            return Rows(start, *share.update(self._numbers(a), self._numbers(b, slice(share.first, share.end))))
        module, _, kind = name.rpartition(".")
        pair = self.pairs.get(module)
        if pair is None or kind not in ("weight", "bias"):
            return start
        if kind == "bias":
            added = resized(self._numbers(pair.bias), len(base), 0) if pair.bias else None
            return start if added is None else start[:].float() + added * self.scaling(module)
        rows = Rows(start, *self.update(module))
        if pair.magnitudes is None:
            return rows
        magnitudes = resized(self._numbers(pair.magnitudes), base.shape[1 if pair.turned else 0], 0)
        return scaled(rows, magnitudes, turned=pair.turned)

    def rows_beyond(self, name: str, count: int) -> torch.Tensor | None:
        """The rows of a tensor after the base's ``count``, in fp32; None where the file does not hold them."""
        if name not in self.beyond:
            return self._tokens_beyond(name, count)
        in_file = replace(self, rows={}, whole={})
        held: torch.Tensor = self.file.get_tensor(self.beyond[name])
        return in_file.weights(name, held)[count:].float()

    def _tokens_beyond(self, name: str, count: int) -> torch.Tensor | None:
        """The same where each of these rows was trained alone."""
        tokens = self.tokens.get(name)
        order = {place: row for row, place in enumerate(tokens.places)} if tokens else {}
        beyond = range(count, self.vocabulary or count)
        if tokens is None or not beyond or not order.keys() >= set(beyond):
            return None
        return self._numbers(tokens.key)[[order[place] for place in beyond]]

    def _start(self, name: str, base: torch.Tensor) -> torch.Tensor | Replaced | Filled:
        """The tensor before factors are added: the base's, or with what was trained of it as it is."""
        import torch

        if tokens := self.tokens.get(name):
            places = torch.tensor(tokens.places)
            held = places < len(base)
            return Replaced(base, places[held], self._numbers(tokens.key)[held])
        return fitted(self.tensor(name), base) if name in self.whole else base

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the file that was trained as it is, in its dtype."""
        tensor: torch.Tensor = self.file.get_tensor(self.whole[name])
        return tensor

    def update(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight update as L R in fp32, L [rows, rank] with the scaling in it and R [rank, columns].

        B and A, or A^T and B^T where the weight is [inputs, outputs].
        """
        a, b = self.factors(module)
        left, right = (a.T, b.T) if self.pairs[module].turned else (b, a)
        return left * self.scaling(module), right


@contextmanager
def open_adapter(
    name: str,
    folder: Path,
    architecture: Architecture | None = None,
    base: BaseWeights | None = None,
    extra_rows: ExtraRows = "refuse",
) -> Iterator[Adapter]:
    """Open an adapter folder after checking that it is LoRA on layers and parameters, and whole tensors.

    Args:
        name: of the expert.
        folder: where it is.
        architecture: that of the base; None: what names of modules say without one.
        base: what whole tensors are compared with: those that equal the base's were not trained, and do not count.
            Without one they are refused.
        extra_rows: what is done where its vocabulary has other rows than the base's.

    Raises:
        UserError: naming the expert and the key or tensor that is something else.
    """
    owner = _owner(name, folder)
    config = read_json(folder / ADAPTER_CONFIG, owner)
    check_config(owner, config)
    with safetensors_file(folder / ADAPTER_WEIGHTS, owner) as file:
        layers, parameters = split(factors_in(owner, file), config, base)
        pairs = pairs_in(owner, file, layers, config, architecture or without_base(), base)
        shares = shares_in(owner, file, parameters, config, base)
        tokens = tokens_in(owner, file, config, architecture or without_base(), base, extra_rows)
        in_file = [pair.module for pair in pairs.values()]
        ranks = by_pattern(owner, config.get("rank_pattern"), in_file, config["r"])
        for pair in pairs.values():
            if pair.shape[1] != ranks[pair.module]:
                raise UserError(
                    f"{owner}: {pair.module} has rank {pair.shape[1]}, its config says {ranks[pair.module]}"
                )
        alphas = by_pattern(owner, config.get("alpha_pattern"), in_file, config["lora_alpha"])
        by_module = {module: float(alphas[pair.module]) for module, pair in pairs.items()}
        beside = left_aside(folder, [folder / ADAPTER_WEIGHTS])
        opened = Adapter(name, folder, config, recorded_base(owner, folder), pairs, by_module, file, beside)
        opened = replace(opened, shares=shares, tokens=tokens)
        if base and extra_rows != "refuse":
            opened = _on_rows_of(opened, base)
        opened = replace(opened, whole=_trained(opened, base, extra_rows))
        _check_dense(opened, base)
        yield with_tie(opened, base) if base else opened


def load_delta(folder: Path, base: BaseWeights | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The dense fp32 updates of an expert or a merged model, as (name of the base's parameter, update).

    The folder holds an adapter or a task vector; the update of a whole model is read from it and its base. A ``base``
    is needed where an adapter has more than factors.
    """
    if form_of(folder) == DELTA:
        with safetensors_file(folder / DELTA.weights, str(folder)) as file:
            for key in sorted(file.keys()):
                yield key, file.get_tensor(key).float()
    else:
        with open_adapter(folder.name, folder, base.architecture if base else None, base) as adapter:
            for module in adapter.shapes:
                if f"{module}.weight" not in adapter.dense:
                    left, right = adapter.update(module)
                    yield f"{module}.weight", left @ right
            for name in adapter.dense:
                assert base is not None, "an adapter that is more than factors is opened with its base"
                before = base.tensor(base_name(base, name) or name).cpu()
                yield name, adapter.weights(name, before)[:].float() - before.float()


def check_fits(name: str, folder: Path, base: Path) -> None:
    """Refuse an adapter whose modules are not those of the base (a folder), or whose copies of its weights are others.

    Raises:
        UserError: naming the expert and the first module or tensor that does not fit.
    """
    with open_checkpoint("base", base) as opened, open_adapter(name, folder, opened.architecture, opened) as adapter:
        check_adapter(adapter, opened.split() if takes_apart(adapter, opened) else opened)


def takes_apart(adapter: Adapter, base: Checkpoint) -> bool:
    """Whether an adapter has factors of single matrices of a bank that the base's file has stacked."""
    places = (base.architecture.place(f"{module}.weight") for module in adapter.shapes)
    return any(place.bank in base.shapes for place in places if place)


def check_adapter(adapter: Adapter, base: BaseWeights) -> None:
    """The same for an open adapter and an open base."""
    for module, (rows, _, columns) in adapter.shapes.items():
        stored = base_name(base, f"{module}.weight")
        shape = base.shapes[stored] if stored else None
        if shape != (rows, columns):
            has = f"it is {'x'.join(map(str, shape))}" if shape else "there is none"
            by_rows = stored is not None and differs_by_rows(base, stored, (rows, columns))
            hint = difference(rows, shape[0]) if shape and by_rows else "it belongs to another base"
            raise UserError(f"{adapter}: {module} is {rows}x{columns}, in the base {has}; {hint}")


def _owner(name: str, folder: Path) -> str:
    return f"expert {name} ({folder})"


def _check_dense(adapter: Adapter, base: BaseWeights | None) -> None:
    """Refuse what needs the base's weights where there are none, or where the base has no such tensor."""
    for name, words in adapter.dense.items():
        if base is None:
            raise UserError(f"{adapter}: {words}, which is merged as an update of the base; give --base its folder")
        if base_name(base, name) is None:
            raise UserError(
                f"{adapter}: {words}, which {base} has not, so only PEFT can compute with it; train without lora_bias"
            )
    factored = {f"{module}.weight" for module in adapter.pairs} | adapter.shares.keys() | adapter.whole.keys()
    if both := sorted(factored & adapter.tokens.keys()):
        raise UserError(f"{adapter}: trained rows of {both[0]} and more of it; only one of the two is merged")
    for name in adapter.shares:
        if name.removesuffix(".weight") in adapter.pairs:
            raise UserError(
                f"{adapter}: has LoRA factors of {name} by itself and in a bank; only one of the two is merged"
            )
    if base and any(pair.magnitudes for pair in adapter.pairs.values()):
        check_adapter(adapter, base)


def _on_rows_of(adapter: Adapter, base: BaseWeights) -> Adapter:
    """The adapter for the rows of the base, where its vocabulary has others.

    Raises:
        UserError: where its tensors have different numbers of rows, or DoRA's norms are not those of the base's rows.
    """
    whole = {
        base.architecture.canonical(name): key
        for key in sorted(adapter.file.keys())
        # What PEFT keeps of a module that was trained whole is not what the model computes with.
        if ".original_module." not in key and (name := whole_tensor(key))
    }
    factored = {f"{module}.weight": pair for module, pair in adapter.pairs.items()}
    stored = {
        name: table
        for name in sorted({*factored, *whole})
        if (table := base_name(base, name)) and of_vocabulary(base, table)
    }
    sizes = [(f"the update of {name}", factored[name].shape[0]) for name in stored if name in factored]
    sizes += [(whole[name], adapter.file.get_slice(whole[name]).get_shape()[0]) for name in stored if name in whole]
    table = base.architecture.input_table
    rows = base.shapes[table][0] if table and table in base.shapes else 0
    trained = [max(tokens.places, default=-1) + 1 for tokens in adapter.tokens.values()]
    # Rows that were trained alone are those of tokens, not of all of them.
    vocabulary = rows_of(str(adapter), sizes) or max([rows, *trained])
    if vocabulary == rows:
        return adapter
    modules = [name.removesuffix(".weight") for name in stored if name in factored]
    for module, pair in ((module, adapter.pairs[module]) for module in modules):
        if pair.magnitudes and (pair.turned or vocabulary < rows):
            over = "over all rows" if pair.turned else "of each row"
            raise UserError(
                f"{adapter}: scales {module}.weight by DoRA, with norms {over}, of which it has {vocabulary} and the "
                f"base {rows}; merge it into its own base first, and give that checkpoint"
            )
    beyond = {name: whole[name] for name in stored if vocabulary > rows and name in whole}
    return replace(adapter, rows=dict.fromkeys(modules, rows), vocabulary=vocabulary, beyond=beyond)


def _trained(adapter: Adapter, base: BaseWeights | None, extra_rows: ExtraRows) -> dict[str, str]:
    """The tensors of an adapter's file that were trained as they are: name to key. Those of the base are none."""
    trained: dict[str, str] = {}
    modules = {name.rpartition(".")[0] for name in map(whole_tensor, adapter.file.keys()) if name}
    for wanted in adapter.config.get("modules_to_save") or ():
        if not any(f".{module}".endswith(f".{wanted}") for module in modules):
            raise UserError(
                f"{adapter}: lacks {wanted}, though modules_to_save of its {ADAPTER_CONFIG} names it; save it again"
            )
    for key in sorted(adapter.file.keys()):
        name = whole_tensor(key)
        if name is None:
            continue
        if base is None:
            if _is_copy(adapter, key):
                continue
            raise UserError(
                f"{adapter}: {key} is a whole tensor, which may be the base's or trained; "
                "merge_experts.py tells with --base and the base's folder"
            )
        copied = _is_copy(adapter, key)
        canonical = base.architecture.canonical(name)
        shape = tuple(adapter.file.get_slice(key).get_shape())
        of_base = base_name(base, canonical)
        by_rows = of_base is not None and differs_by_rows(base, of_base, shape)
        if of_base is None or (base.shapes[of_base] != shape and not (by_rows and extra_rows != "refuse")):
            held = f"it is {'x'.join(map(str, base.shapes[of_base]))}" if of_base else "there is none"
            hint = "an expert and its base have the same modules"
            if of_base and by_rows:
                hint = difference(shape[0], base.shapes[of_base][0])
            raise UserError(f"{adapter}: {key} is {'x'.join(map(str, shape))}, in the base {held}; {hint}")
        tensor = adapter.file.get_tensor(key)
        if equal(*in_common(tensor, base.tensor(of_base))):
            continue
        if copied:
            raise UserError(f"{adapter}: {key} is not the base's {of_base}; it was trained on another base")
        if canonical.removesuffix(".weight") in adapter.pairs or canonical in adapter.shares:
            raise UserError(f"{adapter}: {key} was trained whole and has LoRA factors; only one of the two is merged")
        if not is_finite(tensor):
            raise UserError(f"{adapter}: {key} holds NaN or infinite values; its training diverged")
        trained[canonical] = key
    return trained


def _is_copy(adapter: Adapter, key: str) -> bool:
    """Whether PEFT only keeps the base's tensor under this key; biases of wrapped modules are trained where asked."""
    trains = adapter.config.get("bias") in ("all", "lora_only") and key.endswith(".base_layer.bias")
    return not trains and COPY.search(key) is not None
