"""Tokens a second of an evaluation: likelihoods and generation, and how long the GPU has nothing to do."""

import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.checking import ROOT, Figure, Setting, finish
from tests.gpu.inputs import base

TASKS = ROOT / "config/tasks/demo"
WORDS = ["the", "sum", "of", "two", "numbers", "is", "what", "we", "look", "for", "when", "asked", "to", "add"]


@dataclass(frozen=True)
class Amount:
    """Items, words of a question and of an answer, new tokens of a response, examples of a batch."""

    items: int
    question: int
    answer: int
    new_tokens: int
    batch: int


AMOUNTS = {"true": Amount(128, 60, 12, 128, 64), "tiny": Amount(8, 12, 3, 8, 4)}


@dataclass
class Counted:
    """Rows that passed through the model (in generation one new token each), and the GPU's use, where it is known."""

    rows: int = 0
    busy: list[float] = field(default_factory=list)


def check(setting: Setting) -> Iterator[Figure]:
    """Both kinds of task on a model of random weights, whose answers hardly ever end by themselves."""
    import torch

    from mergetime.modalities import evaluating, learning, reading

    amount, folder = AMOUNTS[setting.shape], base(setting, "0.8B")
    os.environ["HF_DATASETS_CACHE"] = str(setting.work / "datasets")
    model = learning.get("causal_lm").load_base(folder, dtype=torch.bfloat16, four_bit=False).eval()
    tokenizer, how = reading.get("causal_lm").reader(folder), evaluating.get("causal_lm")
    for kind in ("likelihood", "generation"):
        benchmark = _benchmark(kind, amount, setting.work / "evaluation" / kind)
        # The first time tunes and compiles.
        for _ in range(2):
            settings = evaluating.Settings("hf", "bfloat16", amount.batch, 1, True)
            with _counting(model) as counted:
                started = time.monotonic()
                how.evaluate(model, tokenizer, [benchmark], settings)
                finish()
                seconds = time.monotonic() - started
        tokens = counted.rows if kind == "generation" else _tokens(tokenizer, benchmark)
        yield Figure(f"{kind}: rate", tokens / seconds, "tokens/s", f"{tokens} tokens, batches of {amount.batch}")
        if counted.busy:
            idle = 100 - sum(counted.busy) / len(counted.busy)
            yield Figure(f"{kind}: outside the GPU", idle, "%", f"by NVML, {len(counted.busy)} readings")


def _benchmark(kind: str, amount: Amount, folder: Path) -> Any:
    """A task of the demo's on as much made-up text as a real one has."""
    import pandas as pd

    from mergetime.evaluation.benchmarks import BenchmarkSpec, load_tasks

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(max(1, round(words * rng.uniform(0.5, 1.5)))))

    rows: list[Mapping[str, Any]]
    if kind == "likelihood":
        task, metric = "demo_locales", "acc_norm,none"
        rows = [
            {
                "question": f"{number} {text(amount.question)}",
                "choices": {"text": [text(amount.answer) for _ in range(4)], "label": list("ABCD")},
                "answerKey": "A",
            }
            for number in range(amount.items)
        ]
    else:
        task, metric = "demo_requests", "refusal_rate,none"
        rows = [{"behavior": f"{number} {text(amount.question)}", "harmful": True} for number in range(amount.items)]
    pd.DataFrame(rows).to_parquet(folder / "test.parquet")
    generated = amount.new_tokens if kind == "generation" else None
    spec = BenchmarkSpec(kind, "none", task, metric, {"None": folder}, max_new_tokens=generated)
    return load_tasks({kind: spec}, include_path=[TASKS])[0]


def _tokens(tokenizer: Any, benchmark: Any) -> int:
    """Tokens of all requests of a likelihood task, each with its continuation."""
    return sum(
        len(tokenizer("".join(instance.args[:2]), add_special_tokens=False)["input_ids"])
        for task in benchmark.tasks.values()
        for instance in task.instances
    )


@contextmanager
def _counting(model: Any) -> Iterator[Counted]:
    """Count the rows of all forward passes, and read the GPU's use 20 times a second."""
    counted, over = Counted(), threading.Event()

    def count(_: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        counted.rows += len(named["input_ids"] if "input_ids" in named else arguments[0])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    reader = threading.Thread(target=_read_use, args=(counted.busy, over))
    reader.start()
    try:
        yield counted
    finally:
        over.set()
        reader.join()
        handle.remove()


def _read_use(busy: list[float], over: threading.Event) -> None:
    """Append the share of time in which a kernel ran, in per cent, until it is over."""
    import torch

    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.utilization()
    except Exception:  # NVML may lack what it takes, and has several kinds of errors.
        return
    while not over.wait(0.05):
        busy.append(float(torch.cuda.utilization()))
