"""What stays the same for every tensor of a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import MATRICES, Role
from mergetime.merging.method import MergeMethod, Scope, Space, TensorContext, Trim
from mergetime.merging.pool import OpenPool, TensorStack
from mergetime.merging.trimming import Cuts

if TYPE_CHECKING:
    import torch


ByTensor = Callable[[str, float | None], Mapping[str, Any]]
"""All parameters, validated, for a tensor of this name at this place among the layers (0: the first, 1: the last)."""


@dataclass(frozen=True)
class Work:
    """A pool, and what is done with it; survey and cuts are of delta space.

    Where parameters depend on the tensor, ``params`` are those of tensors in general, and ``of_tensor`` has the others.
    """

    pool: OpenPool
    method: MergeMethod
    params: Mapping[str, Any]
    seed: int
    space: Space
    survey: torch.Tensor | None = None
    cuts: Cuts | None = None
    by_tensor: ByTensor | None = None

    def of_tensor(self, name: str) -> Work:
        """The work on one tensor, with its parameters where these depend on it."""
        if self.by_tensor is None:
            return self
        return replace(self, params=self.by_tensor(name, self.pool.positions.get(name)))

    @cached_property
    def trim(self) -> Trim | None:
        """What of each expert reaches the method; None: everything."""
        if self.method.trim is None:
            return None
        trim: Trim = self.method.call(self.method.trim, params=self.params)
        return None if trim.removes_nothing(self.pool.names) else trim

    @cached_property
    def surveyed(self) -> Scope | None:
        """Where the method's survey is summed; None: it needs none."""
        if self.method.survey is None:
            return None
        scope: Scope | None = self.method.call(self.method.survey[1], params=self.params)
        return scope

    def keeps(self, name: str) -> bool:
        """Whether a tensor stays that of the base: embeddings and head, where the parameters say so."""
        return self.params.get("tables", "merged") != "merged" and self._role(name) in ("embedding", "head")

    def ranks(self, name: str) -> bool:
        """Whether a tensor counts where entries are ranked, or vote, over the whole model."""
        return not self.keeps(name) or (self.params["tables"] == "head_ranked" and self._role(name) == "head")

    def takes_for_matrix(self, name: str) -> bool:
        """Whether a tensor, or each member of a bank, is a matrix to methods on singular values."""
        if self.params.get("matrices") == "all":
            return len(self.pool.shapes[name]) == 2 and "text_projection" not in name
        return self._role(name) in MATRICES

    def _role(self, name: str) -> Role:
        return self.pool.architecture.role(name, self.pool.shapes[name])

    def context(self, stack: TensorStack, **more: Any) -> TensorContext:
        """The context of a tensor."""
        given = {"shape": stack.shape, "survey": self.survey, **more}
        return TensorContext(stack.name, self.pool.names, self.seed, **given)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call one of the method's functions with its parameters."""
        return self.method.call(function, *arguments, params=self.params)
