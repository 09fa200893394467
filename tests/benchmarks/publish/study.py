"""The paper's study at full size: its tidy files as collecting and analysing would leave them, with drawn scores."""

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from mergetime.analysis import barriers, bias_variance
from mergetime.analysis.collecting import OF, POOL
from mergetime.config.evaluation import Benchmark
from mergetime.config.reading import parse
from mergetime.config.study import Study
from mergetime.core import tables
from mergetime.core.duration_ids import multiple_of
from mergetime.measuring.columns import ALL, PATHS
from mergetime.results import columns as tidy
from mergetime.results.collection import planned_columns
from mergetime.results.costs import costs
from mergetime.study.pools import pools_on
from mergetime.study.subjects import subjects

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config/paper.yaml"
# Benchmarks with a limit have that many items a task.
ITEMS = {"gsm8k": 1319, "humaneval": 164, "ifeval": 541, "arc_multilingual": 1172, "harmbench": 200}
SECONDARY = {
    "gsm8k": "exact_match,strict-match",
    "ifeval": "prompt_level_loose_acc,none",
    "arc_multilingual": "acc,none",
    "ifeval_like": "prompt_level_loose_acc,none",
}
"""The metric that lm-eval gives beside the primary one."""


def make(folder: Path) -> dict[str, int]:
    """Write the study below ``folder``; the numbers of rows of its tidy files."""
    study = parse(yaml.safe_load(CONFIG.read_text()), str(CONFIG))
    draw = np.random.default_rng(1)
    scored, by_item = scores(study, draw)
    frames = {
        "results": (scored, tidy.RESULTS),
        "samples": (by_item, tidy.SAMPLES),
        "curves": (curves(study), tidy.CURVES),
        "costs": (costs(study, folder), tidy.COSTS),
    }
    for name, (frame, columns) in frames.items():
        tables.write(frame, columns, folder / f"{name}.parquet")
    paths = _paths(study, draw)
    tables.write_all(
        {
            folder / "analysis/mode_connectivity.parquet": (paths, OF | PATHS | POOL),
            folder / "analysis/barriers.parquet": (barriers.table(paths, [*OF, *POOL]), OF | barriers.COLUMNS | POOL),
            folder / "analysis/bias_variance.parquet": (_terms(study, draw), OF | bias_variance.COLUMNS | POOL),
        }
    )
    # Last: a folder that has it is whole.
    (folder / "study.json").write_text(study.model_dump_json())
    return {name: len(frame) for name, (frame, _) in frames.items()}


def scores(study: Study, draw: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of results.parquet and of samples.parquet, in the order that collecting gives them."""
    models, items = _subjects(study), _items(study)
    of_split = {split: np.flatnonzero(items["split"] == split) for split in ("validation", "test")}
    pairs = [(number, of_split[split]) for number, subject in enumerate(subjects(study)) for split in subject.splits]
    subject = np.repeat([number for number, _ in pairs], [len(rows) for _, rows in pairs])
    item = np.concatenate([rows for _, rows in pairs])
    frame = pd.concat([models.take(subject).reset_index(drop=True), items.take(item).reset_index(drop=True)], axis=1)
    domains = list(items["domain"].cat.categories)
    ability = _abilities(models, domains, draw)
    hard = draw.standard_normal(len(items))[item] * 0.8
    reach = ability[subject, items["domain"].cat.codes.to_numpy()[item]]
    frame["score"] = (hard + 0.6 * draw.standard_normal(len(frame)) < reach).astype(float)
    groups = frame.groupby(
        [subject, "split", "group", "domain", "benchmark", "metric", "primary"], observed=True, sort=False
    )
    means = groups["score"].agg(value="mean", stderr="sem", items="size").reset_index()
    scored = pd.concat(
        [models.take(means["level_0"].to_numpy()).reset_index(drop=True), means.drop(columns="level_0")], axis=1
    )
    return scored.assign(task_hash="0" * 64, harness_version="0")[list(tidy.RESULTS)], frame[list(tidy.SAMPLES)]


def _subjects(study: Study) -> pd.DataFrame:
    """What each subject's rows say of it."""
    rows = [
        planned_columns(study, subject)
        | {
            "t_star_at_boundary": False,
            "chosen": '{"lambda": 1.0}' if subject.method and study.methods[subject.method].by else None,
        }
        for subject in subjects(study)
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(("seed", "pool_size", "draw", "base_parameters"), "Int64"))
    return _coded(frame, tidy.SUBJECT)


def _items(study: Study) -> pd.DataFrame:
    """The rows that a subject has on each split: by benchmark, task, document and metric."""
    rows: list[dict[str, Any]] = []
    for split in ("validation", "test"):
        for domain, name in getattr(study.suites, split).items():
            benchmark = study.benchmarks[name]
            tasks = _tasks(benchmark)
            for task, number in itertools.product(tasks, range(benchmark.limit or ITEMS[name])):
                item = hashlib.sha256(f"{task} {number}".encode()).hexdigest()
                stem = str(number) if len(tasks) > 1 else item
                common = {
                    "split": split,
                    "group": split,
                    "domain": domain,
                    "benchmark": name,
                    "task": task,
                    "item": item,
                    "stem": stem,
                }
                rows += (common | metric for metric in _metrics(name, benchmark))
    return _coded(pd.DataFrame(rows), tidy.SAMPLES)


def _tasks(benchmark: Benchmark) -> list[str]:
    return list(dict.fromkeys(benchmark.task.format(config=config) for config in benchmark.configs))


def _metrics(name: str, benchmark: Benchmark) -> list[dict[str, Any]]:
    primary, secondary = benchmark.metric, SECONDARY.get(name)
    if benchmark.judge:
        primary, secondary = "refusal_rate,wildguard", benchmark.metric
    found = [{"metric": primary, "primary": True}]
    return [*found, {"metric": secondary, "primary": False}] if secondary else found


def _coded(frame: pd.DataFrame, columns: dict[str, tables.Column]) -> pd.DataFrame:
    """Texts as categories, of which millions of rows are as many small numbers."""
    return frame.astype({name: "category" for name in frame if columns[str(name)].type == pa.string()})


def _abilities(subjects: pd.DataFrame, domains: list[str], draw: np.random.Generator) -> np.ndarray:
    """Of each subject in each domain: the base's; an expert's more at home; a merge's by duration, with one optimum."""
    found = np.full((len(subjects), len(domains)), -0.6)
    optima = {
        pair: draw.uniform(-1.5, 1.5)
        for pair in itertools.product(subjects["method"].cat.categories, subjects["base"].cat.categories, domains)
    }
    rows: Iterable[Any] = subjects.itertuples(index=False)
    for place, subject in enumerate(rows):
        for at, domain in enumerate(domains):
            if subject.subject_kind == "expert":
                found[place, at] += 1.0 if subject.expert == domain else 0.1
            elif subject.subject_kind == "merged":
                away = np.log2(subject.multiple) - optima[subject.method, subject.base, domain]
                found[place, at] += 0.6 - 0.05 * away**2
    return found


def curves(study: Study) -> pd.DataFrame:
    """A loss curve of each training: a row every 50 steps, validated every 200, to five times its lowest."""
    rows = []
    for number, (base, domain, seed) in enumerate(itertools.product(study.bases, study.domains, study.seeds)):
        t_star = 800 + 200 * (number % 4)
        for step in range(0, 5 * t_star + 1, 50):
            loss = 0.8 + 0.1 * np.log((step + 50) / (t_star + 50)) ** 2
            nothing = dict.fromkeys(tidy.CURVES)
            rows.append(
                nothing
                | {"study": study.study, "base": base, "domain": domain, "seed": seed, "step": step}
                | {"train_loss": loss, "validation_loss": loss if step % 200 == 0 else None, "tokens": 3200 * step}
                | {"t_star": t_star, "t_star_at_boundary": False, "last_step": 5 * t_star, "recipe": "default"}
            )
    return pd.DataFrame(rows)


def _of(study: Study) -> list[dict[str, Any]]:
    """What the measurements of each pool are of."""
    return [
        {"study": study.study, "base": base, "pool": pool.id, "duration": pool.duration}
        | {"multiple": multiple_of(pool.duration), "seed": seed}
        | {"pool_family": pool.family, "draw": pool.draw, "recipe": pool.recipe}
        for base in study.bases
        for pool in pools_on(study, base)
        for seed in study.seeds
    ]


def _paths(study: Study, draw: np.random.Generator) -> pd.DataFrame:
    """Losses along the straight path between each pair of experts."""
    rows = [
        of | {"space": space, "first": first, "second": second, "domain": domain, "alpha": alpha}
        for of in _of(study)
        for space in ("delta", "adapter")
        for first, second in itertools.combinations(sorted(study.domains), 2)
        for domain in (first, second, ALL)
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return pd.DataFrame(rows).assign(loss=draw.uniform(0.5, 1.5, len(rows)))


def _terms(study: Study, draw: np.random.Generator) -> pd.DataFrame:
    """The terms of each pool's error by domain; every number is drawn."""
    terms: list[tuple[str | None, str]] = [
        (None, term) for term in ("bias_squared", "variance", "covariance", "expected_error")
    ]
    terms += itertools.product(study.methods, ("merged_error", "remainder"))
    rows = [
        of | {"over": over, "domain": domain, "method": method, "term": term}
        for of in _of(study)
        for over in ("experts", "examples")
        for method, term in terms
        for domain in (*study.domains, bias_variance.ALL)
    ]
    frame, columns = pd.DataFrame(rows), OF | bias_variance.COLUMNS | POOL
    frame = frame.assign(experts=len(study.domains), examples=study.bias_variance.examples)
    measured = [name for name in columns if name not in frame]
    return frame.assign(**{name: draw.uniform(0.1, 0.2, len(frame)) for name in measured})[list(columns)]


def benchmarks(folder: Path) -> str:
    """What tables must know of the benchmarks, as the workflow gives it."""
    known = json.loads((folder / "study.json").read_text())["benchmarks"]
    return json.dumps({name: {"chance": one["chance"], "weights": one["weights"]} for name, one in known.items()})
