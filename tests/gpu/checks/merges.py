"""Dense merges of five full models of 4B shapes, from memory to memory: the share of the chip's memory bandwidth."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.checking import Figure, Setting, device, finish
from tests.gpu.inputs import base

if TYPE_CHECKING:
    import torch

    from mergetime.merging.work import Work

EXPERTS = ("one", "two", "three", "four", "five")
METHODS: Mapping[str, Mapping[str, float]] = {"ties": {"density": 0.2}, "dare_ties": {"density": 0.5}}
BYTES = 2 * (len(EXPERTS) + 1) + 4
"""Of an entry: those of the experts and the base are read in bfloat16, the merged one is written in float32."""
WANTED = 50
TOLERANCE = 1e-6


@dataclass(frozen=True)
class InMemory:
    """Weights in memory, in the place of an open file: each shape once, whatever the tensor is called."""

    tensors: "Mapping[tuple[int, ...], torch.Tensor]"
    shapes: Mapping[str, tuple[int, ...]]

    def get_tensor(self, name: str) -> "torch.Tensor":
        """A tensor by name."""
        return self.tensors[self.shapes[name]]


def check(setting: Setting) -> Iterator[Figure]:
    """Every shape is merged once and counts as often as the model has it."""
    import torch

    chip, shapes = device(), _shapes(setting)
    bandwidth = _bandwidth(chip, 2**20 if setting.tiny else 2**31)
    yield Figure("bandwidth of a copy", bandwidth / 1e9, "GB/s", "read and written")
    counts = Counter(shapes.values())
    for method, params in METHODS.items():
        seconds = 0.0
        for shape, count in counts.items():
            name = next(name for name, other in shapes.items() if other == shape)
            seconds += count * _seconds(_merging(setting, chip, method, params, name, shape))
        entries = sum(count * math.prod(shape) for shape, count in counts.items())
        share = 100 * BYTES * entries / seconds / bandwidth
        yield Figure(f"{method}: time", seconds, "s", f"{entries / 1e9:.2f} billion entries of {len(EXPERTS)} experts")
        yield Figure(f"{method}: bandwidth", share, "%", f"{BYTES} bytes an entry; wanted {WANTED}")
        name, shape = min(shapes.items(), key=lambda item: abs(math.prod(item[1]) - 2**20))
        results = [_merging(setting, where, method, params, name, shape)().cpu() for where in (chip, "cpu")]
        error = float((results[0] - results[1]).norm() / results[1].norm())
        where = name if torch.cuda.is_available() else "no GPU: the CPU against itself"
        yield Figure(f"{method}: against the CPU", error, "", where, error <= TOLERANCE)


def _shapes(setting: Setting) -> dict[str, tuple[int, ...]]:
    """The tensors of the model, by their names."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.benchmarks.merge.inputs import qwen_config

    config = AutoConfig.from_pretrained(base(setting, "4B")) if setting.tiny else qwen_config("4B")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _merging(
    setting: Setting, chip: str, method: str, params: Mapping[str, float], name: str, shape: tuple[int, ...]
) -> "Callable[[], torch.Tensor]":
    """What merges one tensor of random values, the same on every chip where it is small."""
    import torch

    from mergetime.merging.engine import merged_update
    from mergetime.merging.outputs import Dense
    from mergetime.merging.tally import Tally

    made_on = chip if math.prod(shape) > 2**24 else "cpu"
    generator = torch.Generator(made_on).manual_seed(0)

    def normal(scale: float) -> "torch.Tensor":
        return torch.randn(shape, generator=generator, device=made_on).mul_(scale)

    start = normal(0.02)
    weights = [start, *(start + normal(0.002) for _ in EXPERTS)]
    held = [weight.to(chip, torch.bfloat16) for weight in weights]
    work = _work(method, params, chip, name, held)

    def merge() -> "torch.Tensor":
        update = merged_update(work, work.pool.tensor(name), Tally())
        assert isinstance(update, Dense)
        whole = torch.empty(math.prod(shape), device=chip)
        for first, block in update.blocks:
            whole[first : first + block.numel()] = block.flatten()
        return whole

    return merge


def _work(method: str, params: Mapping[str, float], chip: str, name: str, held: "list[torch.Tensor]") -> "Work":
    from mergetime.architectures.files import architecture_of
    from mergetime.artifacts.checkpoints import Checkpoint
    from mergetime.merging import registry
    from mergetime.merging.pool import OpenPool
    from mergetime.merging.surveys import prepared
    from mergetime.merging.work import Work

    config: dict[str, Any] = {"model_type": "qwen3_5_text"}
    architecture, shapes = architecture_of(config), {name: tuple(held[0].shape)}

    def checkpoint(called: str, weight: "torch.Tensor") -> Checkpoint:
        files = {name: InMemory({shapes[name]: weight}, shapes)}
        return Checkpoint(called, Path(called), config, architecture, None, shapes, {name: name}, frozenset(), files)

    members = tuple(checkpoint(called, weight) for called, weight in zip(EXPERTS, held[1:], strict=True))
    pool = OpenPool((), members, checkpoint("base", held[0]), (), chip, architecture)
    chosen = registry.get(method)
    return prepared(Work(pool, chosen, chosen.validate(params), 1, chosen.check_space("delta")))


def _seconds(merge: "Callable[[], torch.Tensor]") -> float:
    """Of the second of two merges."""
    seconds = 0.0
    for _ in range(2):
        finish()
        started = time.monotonic()
        merge()
        finish()
        seconds = time.monotonic() - started
    return seconds


def _bandwidth(chip: str, size: int) -> float:
    """Bytes a second that a copy in memory reads and writes."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=chip)
    target = torch.empty_like(source)
    target.copy_(source)
    finish()
    started = time.monotonic()
    for _ in range(10):
        target.copy_(source)
    finish()
    return 10 * 2 * size / (time.monotonic() - started)
