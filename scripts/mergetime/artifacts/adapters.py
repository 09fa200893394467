"""LoRA adapters as PEFT saves them: opened, checked, and read module by module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import Architecture
from mergetime.architectures.files import without_base
from mergetime.artifacts.adapter_config import by_pattern, check_config
from mergetime.artifacts.checkpoints import Checkpoint, open_checkpoint
from mergetime.artifacts.files import FLOATS, is_finite, read_json, recorded_base, safetensors_file
from mergetime.artifacts.forms import DELTA, form_of
from mergetime.artifacts.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, left_aside
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# PEFT keeps the base's weight of a module that it wraps under these names, and writes it where it saves embeddings.
_COPY = re.compile(r"\.(base_layer|original_module)\.")


@dataclass(frozen=True)
class Adapter:
    """An open adapter; no weight is read before it is asked for.

    Modules are called as in the text model; ``modules`` says how the file, and its config's patterns, call them;
    ``whole`` does so of tensors that were trained as they are (``modules_to_save``, embeddings), and ``left_aside`` are
    files of weights beside the adapter's.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    base_sha256: str | None
    shapes: Mapping[str, tuple[int, int, int]]  # module -> (outputs, rank, inputs)
    modules: Mapping[str, str]
    file: Any
    left_aside: tuple[str, ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return _owner(self.name, self.folder)

    def scaling(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) with rsLoRA, with the module's own alpha where the config has patterns."""
        alpha = float(
            by_pattern(str(self), self.config.get("alpha_pattern"), self.modules[module], self.config["lora_alpha"])
        )
        rank = self.shapes[module][1]
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, inputs] and B [outputs, rank] in fp32."""
        factors = []
        for factor in "AB":
            key = f"base_model.model.{self.modules[module]}.lora_{factor}.weight"
            tensor = self.file.get_tensor(key).float()
            if not is_finite(tensor):
                raise UserError(f"{self}: {key} holds NaN or infinite values; its training diverged")
            factors.append(tensor)
        return factors[0], factors[1]

    def holds(self, name: str) -> bool:
        """Whether the tensor was trained as it is."""
        return name in self.whole

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that was trained as it is, in its dtype."""
        tensor: torch.Tensor = self.file.get_tensor(self.whole[name])
        return tensor

    def update(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight update as L R in fp32: L = B * scaling [outputs, rank], R = A [rank, inputs]."""
        a, b = self.factors(module)
        return b * self.scaling(module), a


@contextmanager
def open_adapter(
    name: str, folder: Path, architecture: Architecture | None = None, base: Checkpoint | None = None
) -> Iterator[Adapter]:
    """Open an adapter folder after checking that it is nothing but plain LoRA on linear layers, and whole tensors.

    Args:
        name: of the expert.
        folder: where it is.
        architecture: that of the base; None: what names of modules say without one.
        base: what whole tensors are compared with: those that equal the base's were not trained, and do not count.
            Without one they are refused.

    Raises:
        UserError: naming the expert and the key or tensor that is something else.
    """
    owner = _owner(name, folder)
    config = read_json(folder / ADAPTER_CONFIG, owner)
    check_config(owner, config)
    with safetensors_file(folder / ADAPTER_WEIGHTS, owner) as file:
        in_file = _module_shapes(owner, file)
        for module, (_, rank, _) in in_file.items():
            configured = by_pattern(owner, config.get("rank_pattern"), module, config["r"])
            if rank != configured:
                raise UserError(f"{owner}: {module} has rank {rank}, its config says {configured}")
        # Renames speak of tensors: the dot after a module's name belongs to the text that they look for.
        canonical = (architecture or without_base()).canonical
        modules = {canonical(f"{module}.weight").removesuffix(".weight"): module for module in in_file}
        shapes = {module: in_file[in_weights] for module, in_weights in modules.items()}
        beside = left_aside(folder, [folder / ADAPTER_WEIGHTS])
        opened = Adapter(name, folder, config, recorded_base(owner, folder), shapes, modules, file, beside)
        yield replace(opened, whole=_trained(opened, base))


def load_delta(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The dense fp32 updates of an expert or a merged model, as (name of the base's parameter, update).

    The folder holds an adapter or a task vector; the update of a whole model is read from it and its base.
    """
    if form_of(folder) == DELTA:
        with safetensors_file(folder / DELTA.weights, str(folder)) as file:
            for key in sorted(file.keys()):
                yield key, file.get_tensor(key).float()
    else:
        with open_adapter(folder.name, folder) as adapter:
            for module in adapter.shapes:
                left, right = adapter.update(module)
                yield f"{module}.weight", left @ right


def check_fits(name: str, folder: Path, base: Path) -> None:
    """Refuse an adapter whose modules are not those of the base (a folder), or of other shapes.

    Raises:
        UserError: naming the expert and the first module that does not fit.
    """
    with open_checkpoint("base", base) as opened, open_adapter(name, folder, opened.architecture) as adapter:
        check_adapter(adapter, opened)


def check_adapter(adapter: Adapter, base: Checkpoint) -> None:
    """The same for an open adapter and an open base."""
    for module, (outputs, _, inputs) in adapter.shapes.items():
        shape = base.shapes.get(f"{module}.weight")
        if shape is None and base.architecture.is_head(f"{module}.weight"):
            raise UserError(
                f"{adapter}: has LoRA factors of {module}, which {base} ties to its embedding; merge into an adapter "
                "without --base, or give a base with a head of its own"
            )
        if shape != (outputs, inputs):
            has = f"it is {'x'.join(map(str, shape))}" if shape else "there is none"
            raise UserError(f"{adapter}: {module} is {outputs}x{inputs}, in the base {has}; it belongs to another base")
        if base.architecture.transposed and base.architecture.role(f"{module}.weight") == "linear":
            raise UserError(
                f"{adapter}: {base.architecture.name} keeps {module} as inputs x outputs; only LoRA on weights "
                "that are outputs x inputs is merged"
            )


def _owner(name: str, folder: Path) -> str:
    return f"expert {name} ({folder})"


def _module_shapes(owner: str, file: Any) -> dict[str, tuple[int, int, int]]:
    by_module: dict[str, dict[str, list[int]]] = {}
    for key in sorted(file.keys()):
        match = _KEY.fullmatch(key)
        if match is None and _name_of(key) is not None:
            continue
        view = file.get_slice(key)
        shape, dtype = view.get_shape(), view.get_dtype()
        if match is None or len(shape) != 2:
            raise UserError(f"{owner}: {key} is no LoRA factor of a linear layer; only those are merged")
        if dtype not in FLOATS:
            raise UserError(f"{owner}: {key} is {dtype}; LoRA factors are floating-point numbers of 16 bits or more")
        by_module.setdefault(match[1], {})[match[2]] = shape
    for module, factors in by_module.items():
        if len(factors) < 2 or factors["A"][0] != factors["B"][1]:
            raise UserError(f"{owner}: {module} lacks one of its two LoRA factors, or their ranks differ")
    if not by_module:
        raise UserError(f"{owner}: {ADAPTER_WEIGHTS} holds no LoRA factors")
    return {module: (factors["B"][0], factors["A"][0], factors["A"][1]) for module, factors in by_module.items()}


def _name_of(key: str) -> str | None:
    """What the model calls a whole tensor of an adapter's file; None for what is no whole tensor."""
    name = key.removeprefix("base_model.model.")
    if name == key or ".lora_" in key or not name.endswith((".weight", ".bias")):
        return None
    return _COPY.sub(".", name).replace(".modules_to_save.", ".")


def _trained(adapter: Adapter, base: Checkpoint | None) -> dict[str, str]:
    """The tensors of an adapter's file that were trained as they are: name to key. Those of the base are none."""
    import torch

    trained: dict[str, str] = {}
    modules = {name.rpartition(".")[0] for name in map(_name_of, adapter.file.keys()) if name}
    for wanted in adapter.config.get("modules_to_save") or ():
        if not any(f".{module}".endswith(f".{wanted}") for module in modules):
            raise UserError(
                f"{adapter}: lacks {wanted}, though modules_to_save of its {ADAPTER_CONFIG} names it; save it again"
            )
    for key in sorted(adapter.file.keys()):
        name = None if _KEY.fullmatch(key) else _name_of(key)
        if name is None:
            continue
        if base is None:
            if _COPY.search(key):
                continue
            raise UserError(
                f"{adapter}: {key} is a whole tensor, which may be the base's or trained; "
                "merge_experts.py tells with --base and the base's folder"
            )
        canonical = base.architecture.canonical(name)
        shape = tuple(adapter.file.get_slice(key).get_shape())
        of_base = _stored(base, canonical)
        if of_base is None or base.shapes[of_base] != shape:
            held = f"it is {'x'.join(map(str, base.shapes[of_base]))}" if of_base else "there is none"
            raise UserError(
                f"{adapter}: {key} is {'x'.join(map(str, shape))}, in the base {held}; "
                "an expert and its base have the same vocabulary and modules"
            )
        tensor = adapter.file.get_tensor(key)
        if torch.equal(tensor.float(), base.tensor(of_base).to(tensor.dtype).float()):
            continue
        if _COPY.search(key):
            raise UserError(f"{adapter}: {key} is not the base's {of_base}; it was trained on another base")
        if of_base != canonical:
            raise UserError(
                f"{adapter}: {key} was trained apart from {of_base}, and {base} ties the two; untie the base"
            )
        if canonical.removesuffix(".weight") in adapter.shapes:
            raise UserError(f"{adapter}: {key} was trained whole and has LoRA factors; only one of the two is merged")
        if not is_finite(tensor):
            raise UserError(f"{adapter}: {key} holds NaN or infinite values; its training diverged")
        trained[canonical] = key
    return trained


def _stored(base: Checkpoint, name: str) -> str | None:
    """What a base calls the tensor with this name: a head that it ties is its embedding; None where it has none."""
    if name in base.shapes:
        return name
    table = base.architecture.input_table
    return table if base.architecture.is_head(name) and table in base.shapes else None
