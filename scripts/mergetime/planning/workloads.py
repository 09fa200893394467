"""How much there is to do: tokens of a domain, items of a benchmark, steps of a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mergetime.config.evaluation import Benchmark
from mergetime.config.sources import Domain
from mergetime.config.study import PlanAssumptions, Study
from mergetime.planning.costs import guessed_optimum, last_step
from mergetime.study import layout
from mergetime.study.layout import Layout

RESPONSE_TOKENS = 256
ITEMS = 1000
PROMPT_TOKENS = 150
"""Of one item, for benchmarks that are not listed in :data:`KNOWN`."""
_LIKELIHOODS = ("acc", "acc_norm", "perplexity", "mcc", "brier_score")
"""Metrics of tasks that compare likelihoods; whatever else is measured has to be generated first."""
JUDGE_PARAMETERS = {"wildguard": 7_248_000_000}
"""By kind of judge: WildGuard is a Mistral 7B (model card of allenai/wildguard)."""


@dataclass(frozen=True)
class Known:
    """What is known of a benchmark before it is fetched.

    Items of a configuration, and of its validation split, where it has another number of them; tokens of an item, and
    of a response; shots; megabytes of its files. ``longest_answer`` is what no model was seen to exceed.
    """

    items: int
    prompt_tokens: int
    response_tokens: int = RESPONSE_TOKENS
    shots: int = 0
    megabytes: float = 2.0
    validation_items: int | None = None
    longest_answer: int | None = None


KNOWN = {
    "openai/gsm8k": Known(1319, 150, shots=5, megabytes=3),
    "openai/openai_humaneval": Known(164, 180),
    "google/IFEval": Known(541, 60, 1280),
    "alexandrainst/m_arc": Known(1170, 80),
    "walledai/HarmBench": Known(200, 40, 512),
    "mergetime/demo-arithmetic": Known(100, 40, megabytes=0.1, validation_items=40, longest_answer=27),
    "mergetime/demo-functions": Known(100, 38, megabytes=0.1, validation_items=40, longest_answer=22),
    "mergetime/demo-instructions": Known(100, 34, megabytes=0.1, validation_items=40, longest_answer=24),
    "mergetime/demo-locales": Known(80, 30, megabytes=0.1, validation_items=40),
    "mergetime/demo-requests": Known(120, 25, megabytes=0.1, validation_items=40, longest_answer=18),
}
"""By hub id: rows as the data sets' cards give them; tokens are estimates, but for the demo's, which were counted."""
DATASET_MEGABYTES = {
    "hkust-nlp/dart-math-hard": 328.0,
    "ise-uiuc/Magicoder-OSS-Instruct-75K": 203.0,
    "PKU-Alignment/BeaverTails": 66.0,
    "mergetime/demo-dart-math": 0.1,
    "mergetime/demo-magicoder": 0.1,
    "mergetime/demo-tulu-persona-if": 0.1,
    "mergetime/demo-aya": 0.1,
    "mergetime/demo-beavertails": 0.1,
}
"""By hub id: the files of training sets as their pages list them."""
OTHER_DATASET_MEGABYTES = 150.0


@dataclass(frozen=True)
class Items:
    """What a benchmark asks of one subject.

    ``items`` scored, each with ``options`` likelihoods of ``prompt_tokens``, or with a response of ``new_tokens``
    (0 where nothing is generated).
    """

    items: int
    options: int
    prompt_tokens: int
    new_tokens: int
    source: str


def items_of(spec: Benchmark, split: str, root: Path, tasks: Path | None) -> Items:
    """What a benchmark asks: rows of the Parquet fetched below ``root``, and settings of the task file in ``tasks``.

    Where these are not there, the sizes known by its hub id, or :data:`ITEMS`. Responses are taken to be as long as
    they may be, or as the longest that is known.
    """
    known = KNOWN.get(spec.dataset, Known(ITEMS, PROMPT_TOKENS))
    sources = set()
    count = 0
    for config in spec.configs:
        own = read_task(tasks, spec.task.replace("{config}", str(config)))
        folder = root / layout.benchmark(spec.dataset, config, spec.revision)
        part = str(own.get("test_split") or own.get("validation_split") or split)
        rows, listed = fetched_rows(folder, part), known.items
        if part == "validation" and known.validation_items:
            listed = known.validation_items
        sources.add("fetched" if rows is not None else "known size" if spec.dataset in KNOWN else "assumed size")
        count += min(rows if rows is not None else listed, spec.limit or 10**9)
    likelihood = spec.metric.split(",")[0] in _LIKELIHOODS
    if "output_type" in own:
        likelihood = own["output_type"] != "generate_until"
    longest = spec.max_new_tokens or own.get("generation_kwargs", {}).get("max_gen_toks") or known.response_tokens
    shots = spec.shots if spec.shots is not None else own.get("num_fewshot", known.shots) or 0
    return Items(
        items=count,
        # Guessing among n answers is right in one of n.
        options=(round(1 / spec.chance) if spec.chance else 1) if likelihood else 1,
        prompt_tokens=known.prompt_tokens * (1 + int(shots)),
        new_tokens=0 if likelihood else min(int(longest), known.longest_answer or int(longest)),
        source=", ".join(sorted(sources)),
    )


def fetched_rows(folder: Path, split: str) -> int | None:
    """Rows of a fetched data set's split, of its only split, or of ``test``; None if it is not fetched."""
    files = {file.stem: file for file in sorted(folder.glob("*.parquet"))}
    if not files:
        return None
    chosen = files.get(split) or files.get("test") or next(iter(files.values()))
    return int(pq.read_metadata(chosen).num_rows)


class _TaskLoader(yaml.SafeLoader):
    """YAML of lm-eval tasks, whose tags name functions that are not needed here."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def read_task(folder: Path | None, task: str) -> dict[str, Any]:
    """The YAML of one of the study's own lm-eval tasks with what it includes; empty for tasks of lm-eval itself."""
    file = next(iter(sorted(folder.rglob(f"{task}.yaml"))), None) if folder else None
    return _with_includes(file) if file else {}


def _with_includes(file: Path) -> dict[str, Any]:
    content = yaml.load(file.read_text(), Loader=_TaskLoader) or {}
    included = content.get("include")
    below = file.parent / str(included) if included else None
    return (_with_includes(below) if below and below.is_file() else {}) | content


@dataclass(frozen=True)
class Tokens:
    """Mean tokens of a domain's examples, and whether they were counted."""

    train: float
    validation: float
    counted: bool


def tokens_of(domain: Domain, folder: Path, plan: PlanAssumptions) -> Tokens:
    """Mean tokens of a domain's prepared examples in ``folder``; before, the plan's guess, cut to ``max_tokens``."""
    files = [folder / f"{split}.parquet" for split in ("train", "validation")]
    if all(file.is_file() and "tokens" in pq.read_schema(file).names for file in files):
        train, validation = (
            float(pc.mean(pq.read_table(file, columns=["tokens"])["tokens"]).as_py()) for file in files
        )
        return Tokens(train, validation, True)
    guess = float(min(plan.tokens_per_example, domain.max_tokens))
    return Tokens(guess, guess, False)


@dataclass(frozen=True)
class RunLength:
    """Where a training run ends and where its T* is, in optimizer steps.

    ``source``: ``recorded`` of this run, ``other seeds`` of runs of its base, domain and recipe, or ``guessed``.
    ``step_s`` is what a step took, in seconds, if it is recorded.
    """

    optimum: int
    last_step: int
    source: str
    step_s: float | None = None


def run_of(study: Study, results: Path, base: str, domain: str, seed: str, recipe: str) -> RunLength:
    """The training run of a base, domain, seed and recipe: as recorded, as other seeds went, or as the plan guesses."""
    spec = study.experts.all_recipes[recipe]
    train, durations, paths = spec.train, spec.durations, Layout(str(results))
    recorded = read_run(Path(paths.expert_record(layout.training(base, domain, seed, recipe))))
    if recorded:
        return recorded
    any_seed = Path(paths.expert_record(layout.training(base, domain, "*", recipe))).relative_to(results)
    others = [run for file in sorted(results.glob(str(any_seed))) if (run := read_run(file))]
    if others:
        optimum = round(sum(run.optimum for run in others) / len(others))
        return RunLength(optimum, last_step(train, durations, optimum), "other seeds")
    multiples = durations.multiples_of_optimum or []
    optimum = guessed_optimum(train, multiples, study.domains[domain].train, study.plan.optimum_epochs)
    return RunLength(optimum, last_step(train, durations, optimum), "guessed")


def read_run(file: Path) -> RunLength | None:
    """A finished run from its expert.json; None if there is none, or it says nothing of steps."""
    if not file.is_file():
        return None
    record: Mapping[str, Any] = json.loads(file.read_text())
    facts = record.get("facts", {})
    if not facts.get("t_star") or not facts.get("last_step"):
        return None
    seconds = float(record.get("wall_s") or 0.0)
    if facts.get("tokens_per_second"):
        # Of a run that was stopped and went on, wall_s covers the last part alone; these count all of it.
        seconds = facts["tokens"] / facts["tokens_per_second"] / (1 - (facts.get("validation_share") or 0.0))
    return RunLength(int(facts["t_star"]), int(facts["last_step"]), "recorded", seconds / facts["last_step"] or None)
