"""What a merge method is: its id, its parameters, the spaces it works in, and its function."""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mergetime.core.words import nearest

# Configs are validated through this module and torch takes seconds to import: only functions that compute import it.
if TYPE_CHECKING:
    import torch

    from mergetime.merging.rounding import Rounding

Space = Literal["adapter", "delta"]
SPACES: dict[Space, str] = {
    "adapter": "the LoRA factors A and B, each merged on its own, as PEFT's add_weighted_adapter does",
    "delta": "the weight updates B A * scaling, module by module",
}


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
Scope = Literal["tensor", "row", "model"]
Tied = Literal["first", "all", "next", "none"]
Level = Literal["experts", "entries", "spectrum", "factors"]
LEVELS: dict[Level, str] = {
    "experts": "one weight an expert and tensor; a pool of adapters merges into an exact adapter",
    "entries": "entry by entry; the result is dense",
    "spectrum": "singular values and vectors at the true rank; a pool of adapters merges into an exact adapter",
    "factors": "the LoRA factors of each module together; a pool of adapters merges into an exact adapter",
}
Statistics = Literal["fisher", "gram", "mask"]
Numbers = float | Mapping[str, float]
"""A number for all experts, or one for each, by its name."""


def in_order(numbers: Numbers, experts: Sequence[str]) -> list[float]:
    """The number of each expert, in their order."""
    return [numbers[expert] for expert in experts] if isinstance(numbers, Mapping) else [numbers] * len(experts)


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter: a finite number between bounds, one of ``choices``, or a number for each expert.

    ``per_expert`` says that it is always a number for each expert, ``by_expert`` that it may be.
    """

    name: str
    default: float | str | None
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    low_is_open: bool = False
    choices: tuple[str, ...] = ()
    per_expert: bool = False
    by_expert: bool = False

    @property
    def domain(self) -> str:
        """The values it may take, such as ``(0, 1]``."""
        if self.choices:
            return f"{{{', '.join(self.choices)}}}"
        of_each = f"{{expert: number in {self._bounds}}}"
        return of_each if self.per_expert else f"{self._bounds} or {of_each}" if self.by_expert else self._bounds

    @property
    def _bounds(self) -> str:
        left = "(" if self.low_is_open or math.isinf(self.low) else "["
        return f"{left}{self.low:g}, {self.high:g}{')' if math.isinf(self.high) else ']'}"

    def check(self, value: object) -> Any:
        """The value in its own type.

        Raises:
            ValueError: in one line, where the value has the wrong type or lies outside the domain.
        """
        if value is None and self.default is None:
            return None
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
            raise ValueError(f"{self.name}: {value!r} is not one of {', '.join(self.choices)}")
        if self.per_expert or (self.by_expert and isinstance(value, Mapping)):
            if not isinstance(value, Mapping) or not value:
                raise ValueError(f"{self.name}: {value!r} is no mapping of experts to numbers")
            for name in value:
                if not isinstance(name, str):
                    raise ValueError(f"{self.name}: the name {name!r} is no text to YAML; put it in quotes")
            by_name = sorted(value.items())
            return {str(name): self._number(f"{self.name}.{name}", number) for name, number in by_name}
        return self._number(self.name, value)

    def _number(self, name: str, value: object) -> float:
        # YAML takes 1e-3 for a text: it wants 1.0e-3.
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: {value!r} is not a number")
        at_open_end = self.low_is_open and value == self.low
        # A whole number may be larger than any float; NaN is no smaller than any.
        finite = abs(value) <= sys.float_info.max
        if not finite or at_open_end or not self.low <= value <= self.high:
            raise ValueError(f"{name}: {value} is outside {self._bounds}")
        return float(value)


DENSITY = Parameter(
    "density", 0.5, "share of an expert's entries that is kept", 0.0, 1.0, low_is_open=True, by_expert=True
)
LAMBDA = Parameter("lambda", 1.0, "scale of the merged task vector")
WEIGHTS = Parameter("weights", None, "weight of each expert; none: 1 each", per_expert=True)
TABLES = Parameter(
    "tables",
    "merged",
    "whether embeddings and head are merged, or kept as the base has them",
    choices=("merged", "kept"),
)
RANKED_TABLES = Parameter(
    "tables",
    "merged",
    "whether embeddings and head are merged, or kept as the base has them (head_ranked: and yet the head is ranked)",
    choices=("merged", "kept", "head_ranked"),
)
MATRIX_TENSORS = Parameter(
    "matrices",
    "linear",
    "which tensors are matrices: those of linear layers, or all that have two dimensions (but CLIP's text_projection)",
    choices=("linear", "all"),
)
TIED = Parameter(
    "tied",
    "first",
    "what stays of k entries: k of them, the first among equals; also all that equal the k-th; all down to the next "
    "magnitude, the (k + 1)-th; or none that equals the k-th",
    choices=("first", "all", "next", "none"),
)


@dataclass(frozen=True)
class Trim:
    """Which entries of an expert survive, by rank of magnitude: after the ``skip`` largest, the ``keep`` next.

    Attributes:
        keep: share of the entries in ``scope``, of all experts or of each; max(1, floor(keep n)) stay.
        skip: share of the entries in ``scope``, of all experts or of each; floor(skip n) are removed as too large.
        scope: what is ranked together; rows break ties as ``first`` does.
        tied: among equal magnitudes the ``first`` comes first; ``all`` keeps every entry that equals the smallest kept
            magnitude, as ``>=`` on the k-th does; ``next`` does so with k = floor(keep n) + 1; ``none`` keeps what is
            larger than the k-th.
        yields: what gives way where both shares exceed the scope: fewer are removed, or fewer are kept.
        changed_only: in model scope, whether tensors that no expert changes are left out of n.
    """

    keep: Numbers
    skip: Numbers = 0.0
    scope: Scope = "tensor"
    tied: Tied = "first"
    yields: Literal["skip", "keep"] = "skip"
    changed_only: bool = False

    def counts(self, size: int, experts: Sequence[str]) -> list[tuple[int, int]]:
        """For each expert how many of ``size`` entries are kept, and how many are removed as too large."""
        counts = []
        for keep, skip in zip(in_order(self.keep, experts), in_order(self.skip, experts), strict=True):
            kept = int(keep * size) + 1 if self.tied == "next" else max(1, int(keep * size))
            kept, skipped = min(kept, size), min(int(skip * size), size)
            counts.append(
                (min(kept, size - skipped), skipped) if self.yields == "keep" else (kept, min(skipped, size - kept))
            )
        return counts

    def keeps_all(self, size: int, experts: Sequence[str]) -> bool:
        """Whether nothing of ``size`` entries is removed, of any expert."""
        return self.tied != "none" and all(counts == (size, 0) for counts in self.counts(size, experts))

    def removes_nothing(self, experts: Sequence[str]) -> bool:
        """Whether nothing is removed, however many entries there are."""
        kept, skipped = in_order(self.keep, experts), in_order(self.skip, experts)
        return self.tied != "none" and min(kept) >= 1 and (self.yields == "skip" or not any(skipped))


@dataclass(frozen=True)
class TensorContext:
    """Where a stack of task vectors comes from, and what was measured of it beforehand.

    Attributes:
        tensor: the base's parameter name; in adapter space the name of the LoRA factor.
        experts: names, in the order of the stack.
        seed: seed of stochastic methods.
        scalings: in adapter space, the LoRA scaling of each expert.
        factor: in adapter space, which of the two factors this is: a weight is shared out between them.
        shape: shape of the whole tensor, of which the stack may be a block of rows; empty: that of the stack.
        start: position of the block's first entry in the flattened tensor.
        gram: inner products [experts, experts] of the task vectors of this tensor, float64; where the base is at hand,
            [experts + 1, experts + 1] with its weights last.
        survey: the sum over the scope of the method's survey.
        statistics: what was measured on data, stacked [experts, ...].
        rounding: for each expert whose weights are whole tensors, what rounding them has added to the task vector.
    """

    tensor: str
    experts: tuple[str, ...]
    seed: int = 0
    scalings: tuple[float, ...] = ()
    factor: Literal["A", "B"] | None = None
    shape: tuple[int, ...] = ()
    start: int = 0
    gram: torch.Tensor | None = None
    survey: torch.Tensor | None = None
    statistics: torch.Tensor | None = None
    rounding: tuple[Rounding, ...] = ()

    def weights(self, given: Mapping[str, float] | None) -> list[float]:
        """The weight of each expert, in order; 1 where none are given."""
        return [1.0] * len(self.experts) if given is None else [given[expert] for expert in self.experts]

    def weigh(self, stack: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
        """The stack with expert i weighted by ``weights[i]``, in the way of its space.

        Delta space: w_i tau_i. Adapter space, as in PEFT: sign(w) sqrt|w| A_i and sqrt|w| B_i, with
        w = w_i * scaling_i, so that one expert's B A comes out as w_i * scaling_i * B A.
        """
        import torch

        if self.factor is None:
            factors = list(weights)
        else:
            products = [weight * scaling for weight, scaling in zip(weights, self.scalings, strict=True)]
            signs = [math.copysign(1.0, product) if self.factor == "A" else 1.0 for product in products]
            factors = [sign * math.sqrt(abs(product)) for sign, product in zip(signs, products, strict=True)]
        if all(factor == 1.0 for factor in factors):
            return stack
        shape = (len(factors),) + (1,) * (stack.dim() - 1)
        return stack * torch.tensor(factors, dtype=stack.dtype, device=stack.device).view(shape)

    def shares(self, weights: Sequence[float]) -> list[float]:
        """What of each weight is in this factor: all of it in delta space, its root in adapter space."""
        if self.factor is None:
            return list(weights)
        return [math.copysign(math.sqrt(abs(weight)), weight if self.factor == "A" else 1.0) for weight in weights]

    def scale(self, merged: torch.Tensor, lambda_: float) -> torch.Tensor:
        """The merged tensor times lambda, in place; in adapter space the two factors share it out, as weights."""
        if self.factor is None:
            return merged.mul_(lambda_)
        return merged.mul_(math.copysign(math.sqrt(abs(lambda_)), lambda_ if self.factor == "A" else 1.0))


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: a pure function at one of four levels, with the parameters that it takes.

    ``function`` gets, and returns, by ``level``:

    - ``experts``: (context) -> weights [experts] (or [experts + 1], the base's weights last);
    - ``entries``: (stack [experts, ...] fp32, context) -> merged [...]; the stack may be a block of whole rows;
    - ``spectrum``: (cores [experts, p, q] float64, context) -> merged [p, q]; it must commute with rotations of rows
      and columns, so that it may work in the basis of the stacked LoRA factors instead of on whole matrices;
    - ``factors``: (lefts, rights, context) -> (left [m, r], right [r, n]) with expert i = lefts[i] @ rights[i].

    Attributes:
        id: name in configs and on the command line.
        family: what kind of method it is, for people.
        function: as above; hyper-parameters come as keywords.
        parameters: the hyper-parameters.
        conflict: what is wrong with parameters that do not go together, as a text that names one; None: nothing.
        combined: keywords of its functions that stand for several parameters, with the dataclass that these are the
            fields of.
        level: as above.
        spaces: where it works.
        presets: named sets of hyper-parameters that reproduce other implementations: what these do when they are told
            nothing; where they must be told, the default here.
        remarks: for a preset that is not all of its source, the sentences that say what differs.
        plain: at the spectrum level, the expert-level function for tensors that are no matrices of a linear layer.
        trim: which entries of each expert reach the function, given the parameters.
        survey: a function like that of the entries level whose results are summed before merging, and its scope.
        finish: a function (matrix [m, n], context) -> matrix on the merged matrix of a linear layer.
        whole: whether a function at the entries level must get whole tensors, not blocks of rows.
        stochastic: whether the seed changes the result.
        needs_members: whether a selection must name the experts.
        needs_gram: whether the function reads ``context.gram``.
        needs_base: whether it needs the base's weights, given the parameters.
        statistics: what it needs of each expert on data.
        count: the least and the largest number of experts.
    """

    id: str
    family: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()
    conflict: Callable[..., str | None] | None = None
    combined: Mapping[str, type] = field(default_factory=dict)
    level: Level = "entries"
    spaces: tuple[Space, ...] = ("adapter", "delta")
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    plain: Callable[..., Any] | None = None
    trim: Callable[..., Trim] | None = None
    survey: tuple[Callable[..., Any], Callable[..., Scope | None]] | None = None
    finish: Callable[..., Any] | None = None
    whole: bool = False
    stochastic: bool = False
    needs_members: bool = False
    needs_gram: bool = False
    needs_base: Callable[..., bool] | None = None
    statistics: Statistics | None = None
    count: tuple[int, float] = (1, math.inf)

    def validate(self, params: Mapping[str, object], preset: str | None = None) -> dict[str, Any]:
        """All parameters with their values: those given, then the preset's, then the defaults.

        Raises:
            ValueError: in one line, naming the preset that is unknown, or the parameter that is unknown, of the wrong
                type, out of bounds, or at odds with another.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        if preset is not None and preset not in self.presets:
            raise ValueError(f"{self.id}: unknown preset {preset!r}{nearest(preset, self.presets)}")
        for name in params:
            if name not in known:
                raise ValueError(f"{self.id}: unknown parameter {name!r}{nearest(str(name), known)}")
        given = {**(self.presets[preset] if preset else {}), **params}
        values = {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}
        if self.conflict is not None and (wrong := self.call(self.conflict, params=values)):
            raise ValueError(f"{self.id}: {wrong}")
        return values

    def check_space(self, space: str) -> Space:
        """The space itself.

        Raises:
            ValueError: where the method does not work there, naming the spaces in which it does.
        """
        for known in self.spaces:
            if space == known:
                return known
        raise ValueError(f"{self.id}: does not work in space {space!r}; it works in {', '.join(self.spaces)}")

    def keeps_low_rank(self, params: Mapping[str, Any]) -> bool:
        """Whether a pool of adapters merges into an exact adapter in delta space, with these validated parameters."""
        return self.level != "entries" and not self.wants_base(params)

    def wants_base(self, params: Mapping[str, Any]) -> bool:
        """Whether it needs the base's weights, with these validated parameters."""
        return self.needs_base is not None and bool(self.call(self.needs_base, params=params))

    def call(self, function: Callable[..., Any], *arguments: Any, params: Mapping[str, Any]) -> Any:
        """Call one of the method's functions with those of the validated parameters that it takes."""
        named = {as_argument(name): value for name, value in params.items()}
        named |= {name: whole(**_taken_by(whole, named)) for name, whole in self.combined.items()}
        return function(*arguments, **_taken_by(function, named))

    def explain(self) -> str:
        """What the method computes, its parameters, presets and spaces, for people."""
        lines = [f"{self.id} ({self.family})", "", inspect.getdoc(self.function) or "", "", "Parameters:"]
        lines += [
            f"  {parameter.name} = {parameter.default}, in {parameter.domain}: {parameter.meaning}"
            for parameter in self.parameters
        ] or ["  none"]
        if self.presets:
            lines += ["", "Presets:"]
            for name, values in self.presets.items():
                settings = ", ".join(f"{key} = {value}" for key, value in values.items())
                lines.append(f"  {name}: {settings or 'the defaults'}")
                lines += textwrap.wrap(self.remarks.get(name, ""), 116, initial_indent="    ", subsequent_indent="    ")
        lines += ["", f"Level: {self.level}: {LEVELS[self.level]}."]
        lines += ["", "Spaces:", *(f"  {space}: {SPACES[space]}" for space in self.spaces), ""]
        if self.statistics:
            lines.append(f"Needs data: the {self.statistics} of each expert, by measure_expert.py.")
        lines.append("Stochastic: the seed changes its result." if self.stochastic else "Deterministic: no seed.")
        return "\n".join(lines)


def _taken_by(function: Callable[..., Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named values that a function, or a dataclass, has a parameter for."""
    wanted = _parameters_of(function)
    return {name: value for name, value in named.items() if name in wanted}


@functools.cache
def _parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def as_argument(name: str) -> str:
    """Config says ``lambda``, which Python reserves; the code says ``lambda_``."""
    return f"{name}_" if keyword.iskeyword(name) else name
