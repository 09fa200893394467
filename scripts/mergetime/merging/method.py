"""What a merge method is: its id, its parameters, the spaces it works in, and its function."""

from __future__ import annotations

import difflib
import inspect
import keyword
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

# Configs are validated through this module and torch takes seconds to import: only functions that compute import it.
if TYPE_CHECKING:
    import torch

Space = Literal["adapter", "delta"]
SPACES: dict[Space, str] = {
    "adapter": "the LoRA factors A and B, each merged on its own, as PEFT's add_weighted_adapter does",
    "delta": "the weight updates B A * scaling, module by module",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the known one most like it, or all there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter: a finite number between bounds or, where there are ``choices``, one of those words."""

    name: str
    default: float | str
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    low_is_open: bool = False
    choices: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        """The values it may take, such as ``(0, 1]``."""
        if self.choices:
            return f"{{{', '.join(self.choices)}}}"
        left = "(" if self.low_is_open or math.isinf(self.low) else "["
        return f"{left}{self.low:g}, {self.high:g}{')' if math.isinf(self.high) else ']'}"

    def check(self, value: object) -> float | str:
        """The value in its own type.

        Raises:
            ValueError: in one line, where the value has the wrong type or lies outside the domain.
        """
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
            raise ValueError(f"{self.name}: {value!r} is not one of {', '.join(self.choices)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.name}: {value!r} is not a number")
        at_open_end = self.low_is_open and value == self.low
        if not math.isfinite(value) or at_open_end or not self.low <= value <= self.high:
            raise ValueError(f"{self.name}: {value} is outside {self.domain}")
        return float(value)


DENSITY = Parameter("density", 0.5, "share of an expert's entries that is kept, per tensor", 0.0, 1.0, low_is_open=True)
LAMBDA = Parameter("lambda", 1.0, "scale of the merged task vector")


@dataclass(frozen=True)
class TensorContext:
    """Where a stack of tensors comes from.

    ``scalings`` (one per expert) and ``factor`` are set in adapter space only, where a weight is shared out between
    the two factors.
    """

    tensor: str
    experts: tuple[str, ...]
    seed: int
    scalings: tuple[float, ...] = ()
    factor: Literal["A", "B"] | None = None

    def weigh(self, stack: torch.Tensor, weight: float) -> torch.Tensor:
        """The stack with every expert weighted by ``weight``, in the way of its space.

        Delta space: weight * tau_i. Adapter space, as in PEFT: sign(w) sqrt|w| A_i and sqrt|w| B_i, with
        w = weight * scaling_i, so that one expert's B A comes out as weight * scaling * B A.
        """
        import torch

        if self.factor is None:
            return stack * weight
        products = [weight * scaling for scaling in self.scalings]
        signs = [math.copysign(1.0, product) if self.factor == "A" else 1.0 for product in products]
        roots = [sign * math.sqrt(abs(product)) for sign, product in zip(signs, products, strict=True)]
        shape = (len(roots),) + (1,) * (stack.dim() - 1)
        return stack * torch.tensor(roots, dtype=stack.dtype, device=stack.device).view(shape)


@dataclass(frozen=True)
class Method:
    """A merge method: ``function(stack [experts, *shape] in fp32, context, **parameters) -> tensor [*shape]``, pure."""

    id: str
    family: str
    function: Callable[..., torch.Tensor]
    parameters: tuple[Parameter, ...] = ()
    spaces: tuple[Space, ...] = ("adapter", "delta")
    stochastic: bool = False
    needs_members: bool = False

    def validate(self, params: Mapping[str, object]) -> dict[str, float | str]:
        """All parameters with their values, defaults filled in.

        Raises:
            ValueError: in one line, naming the parameter that is unknown, of the wrong type or out of bounds.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in params:
            if name not in known:
                raise ValueError(f"{self.id}: unknown parameter {name!r}{nearest(str(name), known)}")
        return {name: parameter.check(params.get(name, parameter.default)) for name, parameter in known.items()}

    def check_space(self, space: str) -> Space:
        """The space itself.

        Raises:
            ValueError: where the method does not work there, naming the spaces in which it does.
        """
        for known in self.spaces:
            if space == known:
                return known
        raise ValueError(f"{self.id}: does not work in space {space!r}; it works in {', '.join(self.spaces)}")

    def __call__(self, stack: torch.Tensor, context: TensorContext, params: Mapping[str, Any]) -> torch.Tensor:
        """Merge one stack of tensors with validated parameters."""
        return self.function(stack, context, **{_as_argument(name): value for name, value in params.items()})

    def explain(self) -> str:
        """What the method computes, its parameters and its spaces, for people."""
        lines = [f"{self.id} ({self.family})", "", inspect.getdoc(self.function) or "", "", "Parameters:"]
        lines += [
            f"  {parameter.name} = {parameter.default}, in {parameter.domain}: {parameter.meaning}"
            for parameter in self.parameters
        ] or ["  none"]
        lines += ["", "Spaces:", *(f"  {space}: {SPACES[space]}" for space in self.spaces), ""]
        lines.append("Stochastic: the seed changes its result." if self.stochastic else "Deterministic: no seed.")
        return "\n".join(lines)


def _as_argument(name: str) -> str:
    """Config says ``lambda``, which Python reserves; the code says ``lambda_``."""
    return f"{name}_" if keyword.iskeyword(name) else name
