"""What a merge is written as: a LoRA adapter, a dense task vector, or a full checkpoint that transformers loads.

Each output takes the merged update of one tensor at a time, in any order and from several threads.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime import __version__
from mergetime.artifacts.checkpoints import MERGED, Checkpoint
from mergetime.artifacts.companions import written_beside
from mergetime.artifacts.factors import Factors
from mergetime.artifacts.files import DTYPES, NotFiniteTensorError, TensorFile, is_finite
from mergetime.artifacts.forms import CHECKPOINT, files_in
from mergetime.artifacts.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_CONFIG,
    MODEL_INDEX,
    TASK_VECTOR,
    shard_name,
)
from mergetime.artifacts.rows import resized
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError
from mergetime.merging.factors import approximated, narrowed, truncated
from mergetime.merging.pool import OpenPool
from mergetime.merging.vocabularies import resized_config, rows_beyond, written_shapes

if TYPE_CHECKING:
    import torch

SHARD = 5 * 10**9
"""Bytes of a checkpoint's shard."""


@dataclass(frozen=True)
class LowRank:
    """A merged update as left [m, r] @ right [r, n]."""

    left: torch.Tensor
    right: torch.Tensor

    def blocks(self, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The dense update, some rows at a time, with the position of their first entry."""
        for first in range(0, self.left.shape[0], rows):
            yield first * self.right.shape[1], self.left[first : first + rows] @ self.right


@dataclass(frozen=True)
class Dense:
    """A merged update as blocks of whole rows, each with the position of its first entry."""

    blocks: Iterator[tuple[int, torch.Tensor]]
    shape: tuple[int, ...]

    def matrix(self) -> torch.Tensor:
        """The whole update in memory."""
        import torch

        return torch.cat([block.reshape(-1) for _, block in self.blocks]).view(self.shape)


Update = LowRank | Dense
Write = Callable[[str, Update | None], float]
"""Writes the update of a tensor (None: a checkpoint's tensor that has none); returns the squared error of doing so."""


@contextmanager
def adapter(pool: OpenPool, out: Path, rank: int | None, *, exact: bool) -> Iterator[Write]:
    """A LoRA adapter with scaling 1: of the rank that the updates have, or of ``rank`` where that is less.

    ``exact`` says that they have no more than the experts' summed ranks.
    """
    ranks = {name: _rank(pool, name, rank, exact and name not in pool.dense) for name in pool.shapes}
    with _adapter_file(pool, out, ranks) as file:

        def write(name: str, update: Update | None) -> float:
            assert update is not None
            wanted = ranks[name]
            if isinstance(update, LowRank):
                left, right = narrowed(update.left, update.right)
                left, right, error = truncated(_finite(left, name), _finite(right, name), wanted)
            else:
                left, right, error = approximated(_finite(update.matrix(), name), wanted)
            key_a, key_b = factor_keys(pool, name)
            left, right = resized(left, wanted, 1), resized(right, wanted, 0)
            a, b = (left.T, right.T) if _factors(pool, name).turned else (right, left)
            file.write(key_a, a)
            file.write(key_b, b)
            return error

        yield write


@contextmanager
def factors(pool: OpenPool, out: Path) -> Iterator[Callable[[str, torch.Tensor, torch.Tensor], None]]:
    """A LoRA adapter of the experts' own rank, for merges in adapter space; writes A [r, n] and B [m, r]."""
    ranks = {name: pool.adapters[0].shapes[name.removesuffix(".weight")][1] for name in pool.shapes}
    with _adapter_file(pool, out, ranks) as file:

        def write(name: str, a: torch.Tensor, b: torch.Tensor) -> None:
            key_a, key_b = factor_keys(pool, name)
            file.write(key_a, a)
            file.write(key_b, b)

        yield write


@contextmanager
def delta(pool: OpenPool, out: Path, dtype: str) -> Iterator[Write]:
    """The dense task vector."""
    layout = {name: (DTYPES[dtype], shape) for name, shape in pool.shapes.items()}
    with _file(out / TASK_VECTOR, layout, {}) as file:

        def write(name: str, update: Update | None) -> float:
            assert update is not None
            error = 0.0
            for start, block in _blocks(update):
                cast, lost = _cast(block, dtype, name)
                file.write(name, cast, start)
                error += lost
            return error

        yield write


@contextmanager
def checkpoint(
    pool: OpenPool, base: Checkpoint, out: Path, dtype: str, tokenizer: Path | None = None
) -> Iterator[Write]:
    """The base plus the update, added in fp32, every floating-point tensor in ``dtype``.

    Names are those of the base's files, so that a multimodal checkpoint stays one. Tensors that no expert updates are
    the base's, and so is what lies beside them, but for the tokenizer where that of the folder ``tokenizer`` is asked
    for. Rows of the vocabulary that the pool keeps beyond the base's come after these.
    """
    shapes = written_shapes(pool)
    layout = {
        name: (DTYPES[dtype], shapes[name]) if name in shapes else _integers(base, name) for name in base.keys_kept
    }
    shards = _shards(layout)
    paths = [out / shard_name(number, len(shards)) for number in range(len(shards))]
    copies = {out / name: file for name, file in written_beside(base.folder, tokenizer).items()}
    for path in copies:
        path.parent.mkdir(exist_ok=True)
    index = [out / MODEL_INDEX] if len(shards) > 1 else []
    with ExitStack() as stack:
        partial = stack.enter_context(completed(*paths, *copies, *index, out / MODEL_CONFIG))
        files: dict[str, TensorFile] = {}
        for path, names in zip(partial, shards, strict=False):
            opened = TensorFile(path, {base.keys[name]: layout[name] for name in names})
            stack.callback(opened.close)
            files |= dict.fromkeys(names, opened)
        for beside, source in zip(partial[len(paths) :], copies.values(), strict=False):
            shutil.copyfile(source, beside)
        if index:
            weight_map = {
                base.keys[name]: path.name for path, names in zip(paths, shards, strict=True) for name in names
            }
            partial[-2].write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1) + "\n")
        config = _typed(resized_config(base.config, pool), dtype)
        partial[-1].write_text(json.dumps({**config, MERGED: __version__}, indent=2) + "\n")

        def write(name: str, update: Update | None) -> float:
            if name in base.integers:
                files[name].write(base.keys[name], base.tensor(name), as_it_is=True)
                return 0.0
            error = 0.0
            for start, total in _added(base.tensor(name).reshape(-1), update):
                cast, lost = _cast(total, dtype, name)
                files[name].write(base.keys[name], cast, start)
                error += lost
            if (beyond := rows_beyond(pool, name)) is not None:
                cast, lost = _cast(beyond, dtype, name)
                files[name].write(base.keys[name], cast, math.prod(base.shapes[name]))
                error += lost
            return error

        yield write
        # An older merge's config goes first: what a kill leaves is then no model, never old weights with a new config.
        for old in reversed(files_in(out, CHECKPOINT)):
            if old == out / MODEL_CONFIG or old not in (*paths, *index):
                old.unlink()


def factor_keys(pool: OpenPool, name: str) -> tuple[str, str]:
    """The names of A and B in an adapter file, of the weight with this name: as the experts' own files call them."""
    return _factors(pool, name).keys


def _factors(pool: OpenPool, name: str) -> Factors:
    """How the first expert that has factors of a weight keeps them."""
    module = name.removesuffix(".weight")
    return pool.holder(module).pairs[module]


@contextmanager
def _adapter_file(pool: OpenPool, out: Path, ranks: Mapping[str, int]) -> Iterator[TensorFile]:
    """The file of an adapter with these ranks, and its config beside it."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, rank in ranks.items():
        rows, columns = pool.shapes[name]
        outputs, inputs = (columns, rows) if _factors(pool, name).turned else (rows, columns)
        key_a, key_b = factor_keys(pool, name)
        layout |= {key_a: ("F32", (rank, inputs)), key_b: ("F32", (outputs, rank))}
    with _file(out / ADAPTER_WEIGHTS, layout, {out / ADAPTER_CONFIG: _config(pool, ranks)}) as file:
        yield file


@contextmanager
def _file(
    path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], beside: Mapping[Path, str]
) -> Iterator[TensorFile]:
    """A tensor file with texts beside it, renamed to their names when all is written."""
    with completed(*beside, path) as partial:
        for text, target in zip(beside.values(), partial, strict=False):
            target.write_text(text)
        file = TensorFile(partial[-1], layout)
        try:
            yield file
        finally:
            file.close()


def _blocks(update: Update) -> Iterator[tuple[int, torch.Tensor]]:
    if isinstance(update, LowRank):
        return update.blocks(max(1, (1 << 18) // update.right.shape[1]))
    return update.blocks


def _added(weights: torch.Tensor, update: Update | None) -> Iterator[tuple[int, torch.Tensor]]:
    """Flat blocks of the weights plus the update in fp32, with the position of their first entry."""
    import torch

    if update is None:
        for start in range(0, len(weights), 1 << 20):
            yield start, weights[start : start + (1 << 20)].to(torch.float32)
    else:
        for start, block in _blocks(update):
            flat = block.reshape(-1)
            yield start, weights[start : start + len(flat)].to(flat.device, flat.dtype) + flat


def _cast(block: torch.Tensor, dtype: str, name: str) -> tuple[torch.Tensor, float]:
    """The block in ``dtype``, and the squared error of that."""
    import torch

    if dtype == "float32":
        return block, 0.0
    cast = block.to(getattr(torch, dtype))
    lost = float(torch.linalg.vector_norm(cast.to(block.dtype) - block, dtype=torch.float64)) ** 2
    if not math.isfinite(lost) and is_finite(block):
        raise UserError(f"{name}: holds values that {dtype} cannot; use --dtype bfloat16 or float32")
    return cast, lost


def _rank(pool: OpenPool, name: str, rank: int | None, exact: bool) -> int:
    if len(pool.shapes[name]) != 2 or not pool.adapters:
        raise UserError(f"{name}: full checkpoints do not merge into an adapter; use --output delta or checkpoint")
    module = name.removesuffix(".weight")
    whole = min(pool.shapes[name])
    if exact:
        whole = min(whole, sum(adapter.shapes[module][1] for adapter in pool.adapters if module in adapter.shapes))
    return min(whole, rank) if rank else whole


def _finite(matrix: torch.Tensor, name: str) -> torch.Tensor:
    """The matrix, which a decomposition would not end with if it were not finite."""
    if not is_finite(matrix):
        raise NotFiniteTensorError(name)
    return matrix


def _config(pool: OpenPool, ranks: Mapping[str, int]) -> str:
    """The first expert's adapter config with these ranks and scaling 1: the factors have taken in the scalings."""
    first = pool.adapters[0].config
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    modules = {name: _factors(pool, name).module for name in ranks}
    others = {modules[name]: rank for name, rank in ranks.items() if rank != common}
    targets = first.get("target_modules")
    if len(modules) > len(pool.adapters[0].shapes):
        # What the first expert's config selects is less than the merge has.
        first = first | dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
        targets = list(modules.values())
    # The file has factors and nothing else, those of head and embedding each by themselves.
    plain: dict[str, Any] = {"ensure_weight_tying": False, "use_dora": False, "lora_bias": False, "bias": "none"}
    plain |= dict.fromkeys(("target_parameters", "trainable_token_indices"))
    first = first | {key: value for key, value in plain.items() if first.get(key)}
    config = {
        **first,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "modules_to_save": None,
        "inference_mode": True,
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _integers(base: Checkpoint, name: str) -> tuple[str, tuple[int, ...]]:
    view = base.files[name].get_slice(base.keys[name])
    return view.get_dtype(), tuple(view.get_shape())


def _shards(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[list[str]]:
    """The tensors of each shard, in the base's order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, (_, shape) in layout.items():
        needed = 4 * math.prod(shape)
        if shards[-1] and size + needed > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards


def _typed(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with this dtype, also in its sections, and without the old name of the key.

    What says how the weights are quantised goes, too: they are not, though they may once have been.
    """
    typed = {
        key: _typed(value, dtype) if isinstance(value, dict) and {"dtype", "torch_dtype"} & value.keys() else value
        for key, value in _unquantised(config).items()
    }
    typed.pop("torch_dtype", None)
    return {**typed, "dtype": dtype}


def _unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config and its sections without what says how the weights are quantised."""
    return {
        key: _unquantised(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "quantization_config"
    }
