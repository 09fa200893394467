"""Rates of a finished study, as figures for the table of :mod:`.rates`: from its records and Snakemake's benchmarks."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mergetime.config.study import Study
from mergetime.core import provenance
from mergetime.planning.jobs import Job
from mergetime.planning.rates import CPU, UNITS, Kernels, MeasuredRate, Stage
from mergetime.planning.sizes import sizes_of
from mergetime.results.costs import records
from mergetime.study import layout

Totals = defaultdict[tuple[Any, ...], list[float]]
"""Work and seconds by what tells figures apart."""


def figures(study: Study, root: Path, command: str) -> list[MeasuredRate]:
    """What a study has measured, over all records below ``root`` that are there.

    On a CPU, seconds are those of the process: they are what a job takes where no other disturbs it.
    """
    folder, paths = root / layout.of(study).root, layout.of(study)
    benchmarks = list(_benchmarks(root, study.study))
    busy = {rule: _cpu_share(rows) for rule, rows in _by_rule(benchmarks).items()}
    totals: Totals = defaultdict(lambda: [0.0, 0.0])
    evaluated_s, newest, chips = 0.0, 0.0, set[str]()
    for record in records(study):
        file = folder / record.path
        if record.stage not in ("train_expert", "evaluate") or not file.is_file():
            continue
        content = provenance.read(file)
        facts, base, chip = content["facts"], record.columns["base"], content["machine"].get("gpu", CPU)
        newest = max(newest, file.stat().st_mtime)
        chips.add(chip)
        if record.stage == "train_expert":
            share = busy.get("train_expert", 1.0) if chip == CPU else 1.0
            trained = _trained(facts, file.parent, root / paths.data_folder(record.columns["expert"]))
            for stage, (tokens, seconds) in trained.items():
                mode = content["config"]["mode"] if stage == "train" else None
                _add(totals, (stage, chip, base, mode), tokens, seconds * share)
            continue
        evaluated_s += content["wall_s"]
        share = busy.get("evaluate", 1.0) if chip == CPU else 1.0
        if passes := facts.get("passes"):
            _add(totals, ("read", chip, base, None), passes["read_tokens"], passes["read_s"] * share)
            _add(totals, ("generate", chip, base, None), passes["generated_tokens"], passes["generated_s"] * share)
            inside = passes["read_s"] + passes["generated_s"]
            _add(totals, ("outside", chip, base, None), content["wall_s"] - inside, content["wall_s"])
    chip = next(iter(chips), CPU)
    totals |= _of_jobs(study, benchmarks, evaluated_s, chip)
    day = date.fromtimestamp(newest)
    return [
        _figure(study, root, key, work / seconds, day, command)
        for key, (work, seconds) in totals.items()
        if work > 0 and seconds > 0
    ]


def lines(measured: Iterable[MeasuredRate]) -> str:
    """Figures as lines of the table, each a mapping."""
    return "\n".join(
        f"  - {json.dumps(figure.model_dump(mode='json', exclude_defaults=True, exclude_none=True))}"
        for figure in measured
    )


def _add(totals: Totals, key: tuple[Any, ...], work: float, seconds: float) -> None:
    totals[key][0] += work
    totals[key][1] += seconds


def _trained(facts: Mapping[str, Any], folder: Path, data: Path) -> dict[Stage, tuple[float, float]]:
    """Tokens and seconds of a run's steps, and of its validations, whose seconds are known as a share of both."""
    if not facts.get("tokens_per_second"):
        return {}
    seconds = facts["tokens"] / facts["tokens_per_second"]
    trained: dict[Stage, tuple[float, float]] = {"train": (facts["tokens"], seconds)}
    share, prepared, curve = facts.get("validation_share"), data / "domain.json", folder / "curve.parquet"
    if share and prepared.is_file() and curve.is_file():
        tokens = provenance.read(prepared)["facts"]["tokens"]["validation"]
        trained["validate"] = (tokens * pq.read_metadata(curve).num_rows, seconds * share / (1 - share))
    return trained


def _benchmarks(root: Path, study: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rule, and Snakemake's last record, of every job of the study, and of what was fetched."""
    for folder in (root / "benchmarks", root / "benchmarks" / study):
        for file in sorted(folder.rglob("*.jsonl")):
            rule = file.relative_to(folder).parts[0].removesuffix(".jsonl")
            if folder.name == study or rule.startswith("fetch_"):
                yield rule, json.loads(file.read_text().splitlines()[-1])


def _by_rule(benchmarks: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """The records of each rule; all that evaluate together."""
    rules: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rule, row in benchmarks:
        rules["evaluate" if rule.startswith("evaluate_") else rule].append(row)
    return rules


def _cpu_share(rows: Iterable[Mapping[str, Any]]) -> float:
    """The share of jobs' seconds in which they had a core; jobs too short for Snakemake to see are left out."""
    seen = [row for row in rows if isinstance(row.get("cpu_time"), int | float) and row["cpu_time"] > 0]
    wall = sum(row["s"] for row in seen)
    return min(1.0, sum(row["cpu_time"] for row in seen) / wall) if wall else 1.0


def _of_jobs(study: Study, benchmarks: list[tuple[str, Mapping[str, Any]]], evaluated_s: float, chip: str) -> Totals:
    """Starting a job that evaluates, a job without a model, and preparing a domain."""
    totals: Totals = defaultdict(lambda: [0.0, 0.0])
    rules = _by_rule(benchmarks)
    if evaluating := rules.get("evaluate"):
        share = _cpu_share(evaluating) if chip == CPU else 1.0
        _add(totals, ("start", chip, None, None), share * (sum(row["s"] for row in evaluating) - evaluated_s), 0.0)
        totals[("start", chip, None, None)][1] = float(len(evaluating))
    light = [row for rule, row in benchmarks if _is_light(rule)]
    if light:
        totals[("light", CPU, None, None)] = [_cpu_share(light) * sum(row["s"] for row in light), float(len(light))]
        each = totals[("light", CPU, None, None)][0] / len(light)
        prepared = rules.get("prepare_domain", [])
        working = _cpu_share(prepared) * sum(row["s"] for row in prepared) - each * len(prepared)
        examples = sum(domain.train + domain.validation for domain in study.domains.values())
        totals[("prepare", CPU, None, None)] = [examples * len(prepared) / len(study.domains), working]
    return totals


def _is_light(rule: str) -> bool:
    stage = Job(rule, (), ("x",)).stage
    return stage in ("fetch", "collect", "compare", "publish") or rule == "select_hyperparameters"


def _figure(study: Study, root: Path, key: tuple[Any, ...], value: float, day: date, command: str) -> MeasuredRate:
    stage, chip, base, mode = key
    of_model: dict[str, Any] = {}
    kernels: Kernels = study.plan.kernels if chip != CPU else "torch"
    if base and stage != "outside":
        spec = study.bases[base]
        dtype = spec.dtype if stage in ("train", "validate") else study.evaluation.dtype
        of_model = {"dtype": dtype, "model": base, "parameters": _parameters(study, root, base), "kernels": kernels}
    return MeasuredRate(
        stage=stage,
        figure=float(f"{value:.4g}"),
        unit=UNITS[stage],
        chip=chip,
        mode=mode,
        batch_size=study.evaluation.batch_size if stage == "generate" else None,
        date=day,
        command=command,
        **of_model,
    )


def _parameters(study: Study, root: Path, base: str) -> int:
    spec = study.bases[base]
    return sizes_of(base, spec, [root / layout.model(spec.model, spec.revision)], lora=False).parameters
