"""The demo's hub: a folder of repositories that holds a base, an adapter, five training sets and five benchmarks."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergetime.demo import arithmetic, functions, instructions, locales, requests
from mergetime.hub.server import revision_of

OWNER = "mergetime"
_REPEATED, _LEAKED = 8, 4
"""Rows that stand twice, and rows that copy a benchmark's prompt: real sets hold both, and preparing drops them."""


def _leak(
    rows: list[dict[str, Any]], change: Callable[[dict[str, Any], str], dict[str, Any]], prompts: list[str]
) -> None:
    rows.extend(change(row, prompt) for row, prompt in zip(rows, prompts[:_LEAKED], strict=False))


def _instruction(row: dict[str, Any], prompt: str) -> dict[str, Any]:
    return row | {"prompt": prompt, "messages": [{"content": prompt, "role": "user"}, row["messages"][1]]}


# Repository, domain module, rows, benchmark repository, items to validate and to test, the benchmark's prompt column,
# and how a prompt replaces a training row's own.
_DOMAINS: Sequence[tuple[str, Any, int, str, int, int, str, Callable[[dict[str, Any], str], dict[str, Any]]]] = [
    ("dart-math", arithmetic, 420, "arithmetic", 40, 100, "question", lambda row, x: row | {"query": x}),
    ("magicoder", functions, 420, "functions", 40, 100, "prompt", lambda row, x: row | {"problem": x}),
    ("tulu-persona-if", instructions, 420, "instructions", 40, 100, "prompt", _instruction),
    ("aya", locales, 340, "locales", 40, 80, "question", lambda row, x: row | {"inputs": x}),
    ("beavertails", requests, 420, "requests", 40, 120, "behavior", lambda row, x: row | {"prompt": x}),
]


def make(base: Path, adapter: Path, folder: Path, *, seed: int) -> dict[str, str]:
    """Fill ``folder`` with the hub and return each repository's commit hash.

    Args:
        base: folder of the pre-trained base.
        adapter: folder of an adapter trained on it, to be imported.
        folder: the hub; what is there is replaced.
        seed: seed of the training sets; the benchmarks are always the same.
    """
    shutil.rmtree(folder, ignore_errors=True)
    revisions = {}
    for name, source in (("qwen3.5-demo", base), ("demo-polite-adapter", adapter)):
        target = folder / "models" / OWNER / name
        shutil.copytree(source, target)
        revisions[f"{OWNER}/{name}"] = revision_of(target)
    for name, module, count, benchmark, validation, test, column, change in _DOMAINS:
        splits = {"validation": module.benchmark("validation", validation), "test": module.benchmark("test", test)}
        rng = random.Random(f"{name}:{seed}")
        rows = module.training_rows(rng, count)
        rows += rng.sample(rows, _REPEATED)
        _leak(rows, change, [str(document[column]) for document in splits["test"]])
        rng.shuffle(rows)
        for repository, files in ((f"demo-{name}", {"train": rows}), (f"demo-{benchmark}", splits)):
            target = folder / "datasets" / OWNER / repository
            target.mkdir(parents=True)
            for split, documents in files.items():
                lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
                (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            revisions[f"{OWNER}/{repository}"] = revision_of(target)
    return revisions
