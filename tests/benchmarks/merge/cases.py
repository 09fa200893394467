"""What is compared: cases, each the same merge done by this project and, where it exists there, by others."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from inputs import SIZES, make_adapters, make_llama

HERE = Path(__file__).resolve().parent
MERGE_EXPERTS = HERE.parents[2] / "scripts" / "merge_experts.py"
MERGEKIT = Path(sys.executable).with_name("mergekit-yaml")
OURS = "ours"
# PEFT decomposes every dense update in full, which takes minutes a layer at 4B: three layers with linear attention
# and one with full attention stand for all.
SVD_LAYERS = 4
DENSITY = {"ties": 0.2, "dare_ties": 0.5}
LAMBDA = 0.4


@dataclass(frozen=True)
class Program:
    """One competitor in a case.

    Attributes:
        name: what the table calls it.
        command: the command that writes into a given folder.
        scale: all layers over the layers merged; the time of the merge proper is multiplied by it.
    """

    name: str
    command: Callable[[Path], list[str]]
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """One merge, the programs that do it, and the files of weights that it cannot do without.

    ``once`` says that it is too slow to be repeated.
    """

    name: str
    programs: tuple[Program, ...]
    inputs: tuple[Path, ...]
    once: bool = False


def llama_cases(work: Path, dtype: str, threads: int) -> Iterator[Case]:
    """Five full checkpoints in a dtype and their base into one, in float32."""
    base, experts = make_llama(work, dtype)
    pairs = {
        "linear": ("simple_average", {}),
        "task_arithmetic": ("task_arithmetic", {"lambda": LAMBDA}),
        "ties": ("ties", {"density": DENSITY["ties"]}),
        "dare_ties": ("dare_ties", {"density": DENSITY["dare_ties"]}),
    }
    for theirs, (method, settings) in pairs.items():
        options = ["--base", str(base), "--space", "delta", "--output", "checkpoint", "--dtype", "float32"]
        programs = [ours(experts, method, settings, options, threads)]
        if MERGEKIT.exists():
            programs.append(mergekit(work, base, experts, theirs, settings, threads))
        # A mean of checkpoints needs no base.
        read = experts.values() if theirs == "linear" else (base, *experts.values())
        yield Case(f"llama {dtype} {method}", tuple(programs), tuple(folder / "model.safetensors" for folder in read))


def qwen_cases(work: Path, threads: int, dense: bool) -> Iterator[Case]:
    """Five rank-16 adapters into one, for every size; ``dense`` adds the merge into a dense task vector."""
    for size in SIZES:
        experts = make_adapters(work, size)
        for case in (*_adapter_space(size, experts, threads), *_delta_space(size, experts, threads, dense)):
            files = tuple(folder / "adapter_model.safetensors" for folder in experts.values())
            yield Case(f"qwen {size} {case.name}", case.programs, files, case.once)


def _adapter_space(size: str, experts: Mapping[str, Path], threads: int) -> Iterator[Case]:
    """The factors merged on their own, as PEFT does it."""
    pairs: dict[str, tuple[str, float, float | None]] = {
        "simple_average": ("linear", 1 / len(experts), None),
        "ties": ("ties", 1.0, DENSITY["ties"]),
        "dare_ties": ("dare_ties", 1.0, DENSITY["dare_ties"]),
    }
    for method, (combination, weight, density) in pairs.items():
        settings = {} if density is None else {"density": density}
        programs = (
            ours(experts, method, settings, ["--space", "adapter"], threads),
            *peft(size, experts, combination, weight, threads, density=density),
        )
        yield Case(f"{method}, adapter space", programs, ())


def _delta_space(size: str, experts: Mapping[str, Path], threads: int, dense: bool) -> Iterator[Case]:
    """The updates merged, and given back as an adapter or dense."""
    as_adapter = ["--space", "delta", "--output", "adapter"]
    programs = (
        ours(experts, "simple_average", {}, as_adapter, threads),
        *peft(size, experts, "svd", 1 / len(experts), threads, layers=SVD_LAYERS),
    )
    yield Case("simple_average, delta space to adapter", programs, (), once=True)
    for method in ("tsv_merge", "iso_c", "subspace_boosting"):
        yield Case(f"{method}, delta space to adapter", (ours(experts, method, {}, as_adapter, threads),), ())
    if dense:
        as_delta = ["--space", "delta", "--output", "delta"]
        program = ours(experts, "ties", {"density": DENSITY["ties"]}, as_delta, threads)
        yield Case("ties, delta space dense", (program,), ())


def ours(
    experts: Mapping[str, Path], method: str, settings: Mapping[str, Any], options: Sequence[str], threads: int
) -> Program:
    """This project's script."""
    command = [sys.executable, str(MERGE_EXPERTS), "--method", method, *options, "--seed", "1", "--threads"]
    command.append(str(threads))
    for name, folder in experts.items():
        command += ["--expert", f"{name}={folder}"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    return Program(OURS, lambda out: [*command, "--out", str(out)])


def mergekit(
    work: Path, base: Path, experts: Mapping[str, Path], method: str, settings: Mapping[str, Any], threads: int
) -> Program:
    """mergekit's program with a config of its own, every expert weighted alike.

    It need not copy a tokenizer nor write a model card: this project's script does neither.
    """
    own = {name: value for name, value in settings.items() if name == "density"}
    models = [{"model": str(folder), "parameters": {"weight": 1.0, **own}} for folder in experts.values()]
    config: dict[str, Any] = {"merge_method": method, "dtype": "float32", "models": models}
    config |= {} if method == "linear" else {"base_model": str(base)}
    config |= {"parameters": {"lambda": settings["lambda"]}} if "lambda" in settings else {}
    file = work / "configs" / f"{method}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    options = ["--lazy-unpickle", "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    options += ["--random-seed", "1", "--num-threads", str(threads)]
    return Program("mergekit", lambda out: [str(MERGEKIT), str(file), str(out), *options])


def peft(
    size: str,
    experts: Mapping[str, Path],
    combination: str,
    weight: float,
    threads: int,
    *,
    density: float | None = None,
    layers: int | None = None,
) -> list[Program]:
    """PEFT's ``add_weighted_adapter`` on all layers, or on the first ``layers`` and scaled; none without PEFT."""
    if importlib.util.find_spec("peft") is None:
        return []
    command = [sys.executable, str(HERE / "peft_merge.py"), "--size", size, "--combination", combination]
    command += ["--weight", str(weight), "--threads", str(threads)]
    command += [] if density is None else ["--density", str(density)]
    command += [] if layers is None else ["--layers", str(layers)]
    for folder in experts.values():
        command += ["--adapter", str(folder)]
    name, scale = f"PEFT {combination}", 1.0
    if layers is not None:
        name += f" (merge of {layers} layers, scaled to {SIZES[size].layers})"
        scale = SIZES[size].layers / layers
    return [Program(name, lambda out: [*command, "--out", str(out)], scale)]
