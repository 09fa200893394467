"""A pool of experts, opened together, and its task vectors as streams of blocks.

A block holds a few rows of one tensor for all experts: [experts, rows, ...] in fp32, small enough for the processor's
cache. So memory does not depend on the model's size, and what a block costs is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import MATRICES, Architecture, Role
from mergetime.architectures.files import architecture_at, without_base
from mergetime.artifacts.adapters import Adapter, check_adapter, open_adapter
from mergetime.artifacts.checkpoints import Checkpoint, check_expert, check_roles, open_checkpoint
from mergetime.artifacts.files import read_json, safetensors_file
from mergetime.artifacts.forms import CHECKPOINT, DELTA, form_of
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.merging.factors import inner_products

if TYPE_CHECKING:
    import torch

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Entries of a block, per expert."""
_PROBED = 4096
"""Entries of a tensor that tell whether an expert is related to the base."""
_UNRELATED = 1.0
"""A task vector longer than the base itself belongs to another base: fine-tuning moves weights by a few per cent."""


@dataclass(frozen=True)
class OpenPool:
    """Experts of one kind, in the order of their names: floating-point sums depend on the order."""

    adapters: tuple[Adapter, ...]
    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    statistics: tuple[Any, ...]
    device: str
    architecture: Architecture

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names."""
        return tuple(member.name for member in self.members)

    @property
    def left_aside(self) -> dict[str, list[str]]:
        """What lies in the folders of the base and the experts beside the weights that are read, by their names."""
        opened = [*([self.base] if self.base else []), *self.members]
        return {member.name: list(member.left_aside) for member in opened if member.left_aside}

    @property
    def members(self) -> tuple[Adapter | Checkpoint, ...]:
        """The experts, whichever kind they are."""
        return self.adapters or self.checkpoints

    @property
    def base_recorded(self) -> dict[str, bool]:
        """Whether it is known on which base each expert was trained."""
        return {member.name: member.base_sha256 is not None for member in self.members}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The base's parameter names that the experts update, with their shapes."""
        if self.adapters:
            factored = {
                f"{module}.weight": (outputs, inputs)
                for adapter in self.adapters
                for module, (outputs, _, inputs) in adapter.shapes.items()
            }
            return factored | {name: self.base.shapes[name] for name in self.whole if self.base}
        held = [expert.shapes for expert in self.checkpoints]
        base = self.base.shapes if self.base else {}
        return {name: shape for name, shape in base.items() if any(name in shapes for shapes in held)}

    @cached_property
    def whole(self) -> dict[str, Adapter]:
        """The tensors that adapters trained as they are, with the first that did."""
        return {name: adapter for adapter in reversed(self.adapters) for name in adapter.whole}

    def tensor(self, name: str) -> TensorStack:
        """The task vectors of one tensor."""
        shape = self.shapes[name]
        # A number is a row of one entry.
        base = self.base.tensor(name).reshape(shape or (1,)) if self.base else None
        if self.adapters and name not in self.whole:
            updates = [self.update(place, name) for place in range(len(self.adapters))]
            lefts, rights = ([factor.to(self.device) for factor in both] for both in zip(*updates, strict=True))
            return TensorStack(name, shape, self, lefts=lefts, rights=rights, base=base)
        held = [member.tensor(name) if self._has(member, name) else base for member in self.members]
        tensors = [tensor if shape else tensor.reshape(1) for tensor in held if tensor is not None]
        return TensorStack(name, shape, self, tensors=tensors, base=base)

    @staticmethod
    def _has(member: Adapter | Checkpoint, name: str) -> bool:
        return name in (member.whole if isinstance(member, Adapter) else member.shapes)

    def update(self, place: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An adapter's update of a weight as L [m, r] and R [r, n] in fp32; of a module that it lacks, of rank 0."""
        import torch

        adapter, module = self.adapters[place], name.removesuffix(".weight")
        if module in adapter.shapes:
            return adapter.update(module)
        outputs, inputs = self.shapes[name]
        return torch.zeros(outputs, 0), torch.zeros(0, inputs)

    def holder(self, module: str) -> Adapter:
        """The first adapter that has the module."""
        return next(adapter for adapter in self.adapters if module in adapter.shapes)

    def statistic(self, name: str) -> torch.Tensor | None:
        """What was measured on data of this tensor, stacked [experts, ...]; None where nothing was."""
        import torch

        if not self.statistics or any(name not in file.keys() for file in self.statistics):  # noqa: SIM118
            return None
        return torch.stack([torch.atleast_1d(file.get_tensor(name)).float() for file in self.statistics]).to(
            self.device
        )


@dataclass(frozen=True)
class TensorStack:
    """The task vectors of one tensor: products of factors, or differences of checkpoints from the base.

    ``whole`` makes one block of it.
    """

    name: str
    shape: tuple[int, ...]
    pool: OpenPool
    lefts: Sequence[torch.Tensor] = ()
    rights: Sequence[torch.Tensor] = ()
    tensors: Sequence[Any] = ()
    base: Any = None
    whole: bool = False

    @property
    def role(self) -> Role:
        """What the tensor is for."""
        return self.pool.architecture.role(self.name, self.shape)

    @property
    def transposed(self) -> bool:
        """Whether it is the weight of a linear layer as [inputs, outputs]."""
        return self.pool.architecture.transposed and self.role == "linear"

    @property
    def entries(self) -> int:
        """Entries of one expert."""
        return math.prod(self.shape)

    def starts(self) -> Iterator[tuple[int, int]]:
        """The rows [first, end) of each block. A tensor with one dimension is one block."""
        if len(self.shape) < 2:
            yield 0, self.shape[0] if self.shape else 1
            return
        columns = max(1, self.entries // max(1, self.shape[0]))
        rows = self.shape[0] if self.whole else max(1, BLOCK[self.pool.device.split(":")[0]] // columns)
        for first in range(0, self.shape[0], rows):
            yield first, min(first + rows, self.shape[0])

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The first entry's position, and the stack [experts, rows, ...] in fp32, one block after another.

        A tensor without dimensions is a row of one entry. The next block takes the memory of the last one.
        """
        import torch

        count, per_row = len(self.pool.names), self.entries // max(1, self.shape[0] if self.shape else 1)
        buffer = base = None
        for first, end in self.starts():
            if buffer is None or len(buffer[0]) != end - first:
                buffer = torch.empty((count, end - first, *self.shape[1:]), device=self.pool.device)
            if self.tensors:
                base = self.base_rows(first, end)
            for place in range(count):
                self._rows(place, first, end, buffer[place], base)
            yield first * per_row, buffer

    def base_rows(self, first: int, end: int) -> torch.Tensor:
        """Rows of the base's tensor in fp32."""
        import torch

        rows: torch.Tensor = self.base[first:end].to(self.pool.device, torch.float32)
        return rows

    def sample(self, step: float) -> torch.Tensor:
        """About one entry in ``step`` of every expert, spread over rows and columns: [experts, some] in fp32."""
        import torch

        rows, columns = self._strides(step)
        if self.lefts:
            pairs = zip(self.lefts, self.rights, strict=True)
            return torch.stack([(left[::rows] @ right[:, ::columns]).flatten() for left, right in pairs])
        base = self.base_sample(step)
        return torch.stack([self._strided(tensor, rows, columns) - base for tensor in self.tensors])

    def base_sample(self, step: float) -> torch.Tensor:
        """The same entries of the base's tensor: [some] in fp32."""
        return self._strided(self.base, *self._strides(step))

    def _strides(self, step: float) -> tuple[int, int]:
        if len(self.shape) < 2:
            return max(1, int(step)), 1
        rows = max(1, math.isqrt(int(max(1.0, step))))
        return rows, max(1, int(step / rows))

    def _strided(self, tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:

        entries: torch.Tensor = tensor.reshape(tensor.shape[0], -1)[::rows, ::columns].float().flatten()
        return entries

    def gram(self, with_base: bool) -> torch.Tensor:
        """Inner products of the task vectors, float64; with the base's weights last where they are asked for."""
        import torch

        if self.lefts and not with_base:
            return inner_products(self.lefts, self.rights)
        count = len(self.pool.names) + with_base
        total = torch.zeros(count, count, dtype=torch.float64)
        for (first, end), (_, stack) in zip(self.starts(), self.blocks(), strict=True):
            rows = stack.flatten(1)
            if with_base:
                rows = torch.cat([rows, self.base_rows(first, end).reshape(1, -1)])
            total += (rows @ rows.T).double().cpu()
        return total

    def _rows(self, place: int, first: int, end: int, out: torch.Tensor, base: torch.Tensor | None) -> None:
        import torch

        if self.lefts:
            torch.mm(self.lefts[place][first:end], self.rights[place], out=out)
        else:
            out.copy_(self.tensors[place][first:end])
            if base is not None:
                out.sub_(base)


@contextmanager
def open_pool(
    experts: Sequence[tuple[str, Path]],
    *,
    base: Path | None = None,
    base_sha256: str | None = None,
    statistics: Mapping[str, Path] | None = None,
    device: str = "cpu",
    architecture: Path | None = None,
) -> Iterator[OpenPool]:
    """Open experts to be merged, after checking that they belong together.

    Without ``base_sha256`` the first recorded base counts.

    Args:
        experts: names and folders, of adapters or of full checkpoints.
        base: folder of the base; full checkpoints need it.
        base_sha256: digest of the base; experts that were trained on another are refused.
        statistics: expert to the safetensors file of what was measured on its data.
        device: where blocks are computed.
        architecture: a file that says what the base's tensors are for; None: that of the base's model type, or for
            adapters without a base what the names of their modules say.

    Raises:
        UserError: naming the expert that is there twice, has another base, or has other tensors or shapes, or the
            model type or tensor of the base that is unknown.
    """
    if not experts:
        raise UserError("there is no expert to merge")
    _check_distinct(experts)
    folders = sorted((name, Path(folder)) for name, folder in experts)
    forms = {name: form_of(folder, f"expert {name} ({folder})") for name, folder in folders}
    for name, form in forms.items():
        if form == DELTA:
            raise UserError(f"expert {name}: is a task vector; give the folder of an adapter or of a full checkpoint")
    full = [name for name, form in forms.items() if form == CHECKPOINT]
    if full and len(full) < len(folders):
        other = next(name for name, _ in folders if name not in full)
        raise UserError(f"expert {full[0]} is a full checkpoint, expert {other} an adapter; merge one kind at a time")
    if full and base is None:
        raise UserError(
            f"expert {full[0]} is a full checkpoint, whose task vector needs the base: give --base a folder"
        )
    for name in statistics or ():
        if name not in dict(folders):
            raise UserError(f"statistics of {name}: that is no expert of this merge{nearest(name, dict(folders))}")
    for name, _ in folders if statistics else ():
        if name not in (statistics or ()):
            raise UserError(f"expert {name}: has no statistics")
    with ExitStack() as stack:
        given = _given(architecture, base)
        opened = stack.enter_context(open_checkpoint("base", base, given)) if base else None
        if opened:
            check_roles(opened)
        known = opened.architecture if opened else given or without_base()
        pool = _checkpoints(stack, folders, opened, known) if full else _adapters(stack, folders, opened, known)
        files = (
            tuple(stack.enter_context(safetensors_file(statistics[name], f"expert {name}")) for name in pool.names)
            if statistics
            else ()
        )
        digest = base_sha256 or next((member.base_sha256 for member in pool.members if member.base_sha256), None)
        for member in pool.members:
            _check_base(member, digest)
        complete = OpenPool(pool.adapters, pool.checkpoints, opened, files, device, known)
        _check_related(complete)
        yield complete


def _check_related(pool: OpenPool) -> None:
    """Refuse full checkpoints that are further from the base than the base is from 0, by a sample of every tensor."""
    if not pool.checkpoints or pool.base is None:
        return
    moved, whole = [0.0] * len(pool.names), 0.0
    for name in pool.shapes:
        stack = pool.tensor(name)
        # Norms are near 1 in every model, and a vision tower may be the base's own.
        if stack.role not in MATRICES:
            continue
        step = stack.entries / _PROBED
        squares = stack.sample(step).double().square().sum(dim=1).tolist()
        moved = [a + b for a, b in zip(moved, squares, strict=True)]
        whole += float(stack.base_sample(step).double().square().sum())
    for name, square in zip(pool.names, moved, strict=True):
        if math.isfinite(square) and square > _UNRELATED * whole > 0:
            raise UserError(
                f"expert {name}: is {math.sqrt(square / whole):.2g} times as far from {pool.base} as that is from 0; "
                "it was trained from another base"
            )


def _given(path: Path | None, base: Path | None) -> Architecture | None:
    """The architecture of a user's file, which must be for the base where there is one."""
    if path is None:
        return None
    return architecture_at(path, read_json(base / MODEL_CONFIG, f"base {base}") if base else None)


def _adapters(
    stack: ExitStack, folders: Sequence[tuple[str, Path]], base: Checkpoint | None, known: Architecture
) -> OpenPool:
    adapters = tuple(stack.enter_context(open_adapter(name, folder, known, base)) for name, folder in folders)
    _check_shapes(adapters)
    for adapter in adapters if base else ():
        assert base is not None
        check_adapter(adapter, base)
    return OpenPool(adapters, (), base, (), "cpu", known)


def _checkpoints(
    stack: ExitStack, folders: Sequence[tuple[str, Path]], base: Checkpoint | None, known: Architecture
) -> OpenPool:
    experts = tuple(stack.enter_context(open_checkpoint(name, folder, known)) for name, folder in folders)
    for expert in experts:
        if base:
            check_expert(expert, base)
    return OpenPool((), experts, base, (), "cpu", known)


def _check_distinct(experts: Sequence[tuple[str, Path]]) -> None:
    names = [name for name, _ in experts]
    places: dict[Path, str] = {}
    for name, folder in experts:
        if names.count(name) > 1:
            raise UserError(f"expert {name} is given {names.count(name)} times; every expert counts once")
        resolved = Path(folder).resolve()
        if resolved in places:
            raise UserError(
                f"experts {places[resolved]} and {name} are the same folder {folder}; every expert counts once"
            )
        places[resolved] = name


def _check_base(member: Adapter | Checkpoint, base: str | None) -> None:
    if member.base_sha256 and base and member.base_sha256 != base:
        raise UserError(
            f"{member}: trained on base {member.base_sha256[:8]}..., this merge is for {base[:8]}...; "
            "retrain it or merge onto its own base"
        )


def _check_shapes(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that have a module in other sizes; one that lacks a module does not update it."""
    holders: dict[str, Adapter] = {}
    for adapter in adapters:
        for module, (outputs, _, inputs) in adapter.shapes.items():
            first = holders.setdefault(module, adapter)
            shape = first.shapes[module]
            if (shape[0], shape[2]) != (outputs, inputs):
                raise UserError(f"{adapter}: {module} is {outputs}x{inputs}, in {first} it is {shape[0]}x{shape[2]}")
    for adapter in adapters:
        for name in adapter.whole:
            if holder := holders.get(name.removesuffix(".weight")):
                raise UserError(
                    f"{adapter}: trained {name} whole, and {holder} by LoRA factors; merge one kind at a time"
                )
