"""LoRA adapters as PEFT saves them: opened, checked, and read module by module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.errors import UserError
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TASK_VECTOR, read_json, safetensors_file

if TYPE_CHECKING:
    import torch

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# With any of these an adapter is more, or other, than B A * scaling on linear weights.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "fan_in_fan_out",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# These initialisations change the base's weights: B A alone is not the task vector.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """An open adapter; no weight is read before it is asked for."""

    name: str
    folder: Path
    config: dict[str, Any]
    base_sha256: str | None
    shapes: Mapping[str, tuple[int, int, int]]  # module -> (outputs, rank, inputs)
    file: Any

    def __str__(self) -> str:
        return _owner(self.name, self.folder)

    def scaling(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) with rsLoRA, with the module's own alpha where the config has patterns."""
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        rank = self.shapes[module][1]
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, inputs] and B [outputs, rank] in fp32."""
        import torch

        found = []
        for factor in "AB":
            key = f"base_model.model.{module}.lora_{factor}.weight"
            tensor = self.file.get_tensor(key).float()
            if not torch.isfinite(tensor).all():
                raise UserError(f"{self}: {key} holds NaN or infinite values; its training diverged")
            found.append(tensor)
        return found[0], found[1]

    def delta(self, module: str) -> torch.Tensor:
        """The weight update B A * scaling [outputs, inputs] in fp32."""
        a, b = self.factors(module)
        return b @ a * self.scaling(module)


@contextmanager
def open_adapter(name: str, folder: Path) -> Iterator[Adapter]:
    """Open an adapter folder after checking that it is nothing but plain LoRA on linear layers.

    Raises:
        UserError: naming the expert and the key or tensor that is something else.
    """
    owner = _owner(name, folder)
    config = read_json(folder / ADAPTER_CONFIG, owner)
    _check_config(owner, config)
    with safetensors_file(folder / ADAPTER_WEIGHTS, owner) as file:
        shapes = _module_shapes(owner, file)
        for module, (_, rank, _) in shapes.items():
            configured = _by_pattern(config.get("rank_pattern"), module, config["r"])
            if rank != configured:
                raise UserError(f"{owner}: {module} has rank {rank}, its config says {configured}")
        yield Adapter(name, folder, config, _recorded_base(owner, folder), shapes, file)


@contextmanager
def open_pool(experts: Sequence[tuple[str, Path]], base_sha256: str | None) -> Iterator[list[Adapter]]:
    """Open experts to be merged, in the order of their names, after checking that they belong together.

    The order is fixed because floating-point sums depend on it. Without ``base_sha256`` the first recorded base counts.

    Raises:
        UserError: naming the expert that is there twice, has another base, or has other modules or shapes.
    """
    if not experts:
        raise UserError("there is no expert to merge")
    names = [name for name, _ in experts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"expert {name} is given {names.count(name)} times; every expert counts once")
    with ExitStack() as stack:
        pool = [stack.enter_context(open_adapter(name, Path(folder))) for name, folder in sorted(experts)]
        base = base_sha256 or next((adapter.base_sha256 for adapter in pool if adapter.base_sha256), None)
        for adapter in pool:
            _check_base(adapter, base)
            _check_modules(pool[0], adapter)
        yield pool


def load_delta(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The dense fp32 updates of an expert or a merged model, as (name of the base's parameter, update).

    The folder holds a LoRA adapter or a ``task_vector.safetensors``.
    """
    dense = folder / TASK_VECTOR
    if dense.exists() and (folder / ADAPTER_WEIGHTS).exists():
        raise UserError(f"{folder}: holds both {TASK_VECTOR} and {ADAPTER_WEIGHTS}; remove the one that is stale")
    if dense.exists():
        with safetensors_file(dense, str(folder)) as file:
            for key in sorted(file.keys()):
                yield key, file.get_tensor(key).float()
    else:
        with open_adapter(folder.name, folder) as adapter:
            for module in adapter.shapes:
                yield f"{module}.weight", adapter.delta(module)


def check_fits(name: str, folder: Path, base: Path) -> None:
    """Refuse an adapter whose modules are not those of the base (folder of safetensors files), or of other shapes.

    Raises:
        UserError: naming the expert and the first module that does not fit.
    """
    known: dict[str, list[int]] = {}
    for file in sorted(base.glob("*.safetensors")):
        with safetensors_file(file, f"base {base}") as tensors:
            # A multimodal checkpoint's text model loads without the prefix that it has in the file.
            known |= {
                key.replace("model.language_model.", "model.", 1): tensors.get_slice(key).get_shape()
                for key in tensors.keys()  # noqa: SIM118
            }
    with open_adapter(name, folder) as adapter:
        for module, (outputs, _, inputs) in adapter.shapes.items():
            found = known.get(f"{module}.weight")
            if found != [outputs, inputs]:
                has = f"it is {found[0]}x{found[1]}" if found else "there is none"
                raise UserError(
                    f"{adapter}: {module} is {outputs}x{inputs}, in the base {has}; it belongs to another base"
                )


def _owner(name: str, folder: Path) -> str:
    return f"expert {name} ({folder})"


def _check_config(owner: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{owner}: peft_type is {config.get('peft_type')}; only LORA adapters are merged")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise UserError(f"{owner}: {ADAPTER_CONFIG} has no number {key}")
    if config.get("bias") not in (None, "none"):
        raise UserError(f"{owner}: bias is {config['bias']}; only adapters with bias none are merged")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise UserError(f"{owner}: {key} is {config[key]}; only plain LoRA on linear layers is merged")
    initial = str(config.get("init_lora_weights")).lower()
    if initial.startswith(_BASE_CHANGING):
        raise UserError(f"{owner}: init_lora_weights is {initial}, which changes the base; convert it to plain LoRA")


def _module_shapes(owner: str, file: Any) -> dict[str, tuple[int, int, int]]:
    found: dict[str, dict[str, list[int]]] = {}
    for key in sorted(file.keys()):
        match = _KEY.fullmatch(key)
        shape = file.get_slice(key).get_shape()
        if match is None or len(shape) != 2:
            raise UserError(f"{owner}: {key} is no LoRA factor of a linear layer; only those are merged")
        found.setdefault(match[1], {})[match[2]] = shape
    for module, factors in found.items():
        if len(factors) < 2 or factors["A"][0] != factors["B"][1]:
            raise UserError(f"{owner}: {module} lacks one of its two LoRA factors, or their ranks differ")
    if not found:
        raise UserError(f"{owner}: {ADAPTER_WEIGHTS} holds no LoRA factors")
    return {module: (both["B"][0], both["A"][0], both["A"][1]) for module, both in found.items()}


def _recorded_base(owner: str, folder: Path) -> str | None:
    """The base that training noted beside the adapter or beside the run's folder; None for adapters of others."""
    for path in (folder / "expert.json", folder.parent / "expert.json"):
        if path.is_file():
            record = read_json(path, owner)
            base = (record.get("facts") or record).get("base_sha256")
            return None if base is None else str(base)
    return None


def _check_base(adapter: Adapter, base: str | None) -> None:
    if adapter.base_sha256 and base and adapter.base_sha256 != base:
        raise UserError(
            f"{adapter}: trained on base {adapter.base_sha256[:8]}..., this merge is for {base[:8]}...; "
            "retrain it or merge onto its own base"
        )


def _check_modules(first: Adapter, other: Adapter) -> None:
    for holder, lacking in ((first, other), (other, first)):
        absent = sorted(set(holder.shapes) - set(lacking.shapes))
        if absent:
            raise UserError(f"{lacking}: has no {absent[0]}, which {holder} has ({len(absent)} modules differ)")
    for module, (outputs, _, inputs) in first.shapes.items():
        shape = other.shapes[module]
        if (shape[0], shape[2]) != (outputs, inputs):
            raise UserError(f"{other}: {module} is {shape[0]}x{shape[2]}, in {first} it is {outputs}x{inputs}")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module, its name matched against the patterns as PEFT does: in order, at a dot, to the end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
