"""A pool of experts, opened together, and its task vectors as streams of blocks.

A block holds a few rows of one tensor for all experts: [experts, rows, ...] in fp32, small enough for the processor's
cache. So memory does not depend on the model's size, and what a block costs is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import Architecture, Role
from mergetime.artifacts.adapters import Adapter
from mergetime.artifacts.checkpoints import Checkpoint
from mergetime.artifacts.rows import fitted
from mergetime.artifacts.vocabulary import ExtraRows
from mergetime.merging.factors import inner_products
from mergetime.merging.layers import positions

if TYPE_CHECKING:
    import torch

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Entries of a block, per expert."""


@dataclass(frozen=True)
class OpenPool:
    """Experts of one kind, in the order of their names: floating-point sums depend on the order."""

    adapters: tuple[Adapter, ...]
    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    statistics: tuple[Any, ...]
    device: str
    architecture: Architecture
    extra_rows: ExtraRows = "refuse"

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
            return factored | {name: self.base.shapes[name] for name in self.dense if self.base}
        held = [expert.shapes for expert in self.checkpoints]
        base = self.base.shapes if self.base else {}
        return {name: shape for name, shape in base.items() if any(name in shapes for shapes in held)}

    @cached_property
    def positions(self) -> dict[str, float]:
        """Where among the layers each tensor is, from 0 to 1; tensors outside layers have no place."""
        return positions(self.base.shapes if self.base else self.shapes)

    @cached_property
    def dense(self) -> dict[str, Adapter]:
        """The tensors whose updates are no products of factors in some adapter, with the first of these."""
        return {name: adapter for adapter in reversed(self.adapters) for name in adapter.dense}

    @property
    def untied(self) -> Adapter | None:
        """The first adapter that moves the head apart from the embedding to which the base ties it."""
        return next((adapter for adapter in self.adapters if adapter.apart), None)

    def tensor(self, name: str) -> TensorStack:
        """The task vectors of one tensor."""
        shape = self.shapes[name]
        # A number is a row of one entry.
        base = self.base.tensor(name).reshape(shape or (1,)) if self.base else None
        if self.adapters and name not in self.dense:
            updates = [self.update(place, name) for place in range(len(self.adapters))]
            lefts, rights = ([factor.to(self.device) for factor in both] for both in zip(*updates, strict=True))
            return TensorStack(name, shape, self, lefts=lefts, rights=rights, base=base)
        held = [self.weights(place, name) for place in range(len(self.members))]
        return TensorStack(name, shape, self, tensors=[t if shape else t.reshape(1) for t in held], base=base)

    def weights(self, place: int, name: str) -> Any:
        """An expert's weights, or what gives them by rows; the base's where the expert leaves them as they are."""
        assert self.base is not None, "weights that are no products of factors are opened with their base"
        base = self.base.tensor(name)
        if self.adapters:
            return self.adapters[place].weights(name, base)
        expert = self.checkpoints[place]
        return fitted(expert.tensor(name), base) if expert.holds(name) else base

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

        if not self.statistics:
            return None
        place = self.architecture.place(name)
        measured = []
        for file in self.statistics:
            if name in file.keys():  # noqa: SIM118
                measured.append(torch.atleast_1d(file.get_tensor(name)).float())
            elif place and place.bank in file.keys():  # noqa: SIM118
                # Measured on a loaded model, which has the matrix in a bank.
                bank = file.get_tensor(place.bank)
                measured.append(bank[place.expert, place.rows(bank.shape[1])].float())
            else:
                return None
        return torch.stack(measured).to(self.device)


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
        buffer = None
        for first, end in self.starts():
            if buffer is None or len(buffer[0]) != end - first:
                buffer = torch.empty((count, end - first, *self.shape[1:]), device=self.pool.device)
            self._fill(buffer, first, end)
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

    def _strided(self, tensor: Any, rows: int, columns: int) -> torch.Tensor:
        chosen: torch.Tensor = tensor[::rows]
        return chosen.reshape(len(chosen), -1)[:, ::columns].float().flatten()

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

    def _fill(self, buffer: torch.Tensor, first: int, end: int) -> None:
        """Put the experts' rows [first, end) of their task vectors into the buffer [experts, rows, ...]."""
        import torch

        if self.lefts:
            for left, right, rows in zip(self.lefts, self.rights, buffer, strict=True):
                torch.mm(left[first:end], right, out=rows)
            return
        base = self.base_rows(first, end)
        for tensor, rows in zip(self.tensors, buffer, strict=True):
            weights = tensor[first:end]
            # Where nothing is to be converted or moved, one pass does it.
            if weights.dtype == base.dtype and weights.device == base.device:
                torch.sub(weights, base, out=rows)
            else:
                rows.copy_(weights).sub_(base)
