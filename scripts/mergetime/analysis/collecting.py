"""From the measurements of a study's pools to the tidy tables of its analyses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mergetime.analysis import barriers, bias_variance
from mergetime.config.study import Study
from mergetime.core import tables
from mergetime.core.duration_ids import multiple_of
from mergetime.core.errors import UserError
from mergetime.core.tables import Column, Columns, Table
from mergetime.measuring.columns import INTERFERENCE, PATHS, PROBABILITIES, TENSORS
from mergetime.results import columns as tidy
from mergetime.study.layout import Layout
from mergetime.study.measurements import Measurement, jobs

OF: Columns = {name: tidy.SUBJECT[name] for name in ("study", "base", "pool", "duration", "multiple", "seed")}
"""What a measurement is of; every table of an analysis begins with these columns."""
POOL: Columns = {
    "pool_family": tidy.SUBJECT["pool_family"],
    "draw": tidy.SUBJECT["draw"],
    "recipe": Column(
        pa.string(), True, "how the pool's experts were trained; null for imported experts, and of several"
    ),
}
"""What the pool is, so that nobody reads it out of its id; every table of an analysis ends with these columns."""


def tables_of(study: Study, folder: Path, analysis: str) -> dict[str, Table]:
    """The tables of an analysis, by the names of their files.

    Args:
        study: the study.
        folder: its folder, results/{study}.
        analysis: a key of :data:`ANALYSES`.

    Raises:
        UserError: where the study has no pool that the analysis could measure.
    """
    measurements = jobs(study, analysis)
    if not measurements:
        raise UserError(f"study {study.study}: {analysis} has no pool to measure: {_NEEDS[analysis]}")
    return ANALYSES[analysis](study, Layout(str(folder)), measurements)


def _interference(study: Study, paths: Layout, measurements: list[Measurement]) -> dict[str, Table]:
    return {
        f"interference.{suffix}": _stacked(study, paths, measurements, suffix, columns)
        for suffix, columns in (("parquet", INTERFERENCE), ("tensors.parquet", TENSORS))
    }


def _mode_connectivity(study: Study, paths: Layout, measurements: list[Measurement]) -> dict[str, Table]:
    losses, columns = _stacked(study, paths, measurements, "parquet", PATHS)
    barrier_columns = OF | barriers.COLUMNS | POOL
    return {
        "mode_connectivity.parquet": (losses, columns),
        "barriers.parquet": (barriers.table(losses, [*OF, *POOL])[list(barrier_columns)], barrier_columns),
    }


def _bias_variance(study: Study, paths: Layout, measurements: list[Measurement]) -> dict[str, Table]:
    columns = OF | bias_variance.COLUMNS | POOL
    pools = {(job.base, job.pool.id): job for job in measurements}
    terms = {}
    for key in pools:
        of_pool = [job for job in measurements if (job.base, job.pool.id) == key]
        measured = {job.seed: tables.read(Path(job.file(paths)), PROBABILITIES) for job in of_pool}
        terms[key] = bias_variance.decomposed(measured)
    slopes = {}
    for named in {(job.base, job.pool.name) for job in measurements}:
        durations = {
            multiple: terms[key]
            for key, job in pools.items()
            if (job.base, job.pool.name) == named and (multiple := multiple_of(job.pool.duration))
        }
        slopes[named] = (bias_variance.slopes(durations), bias_variance.slopes(durations, shortest=1.0))
    frames = [
        bias_variance.table(terms[key], *slopes[job.base, job.pool.name]).assign(**_of(study, job))
        for key, job in pools.items()
    ]
    return {"bias_variance.parquet": (pd.concat(frames, ignore_index=True)[list(columns)], columns)}


def _stacked(study: Study, paths: Layout, measurements: list[Measurement], suffix: str, columns: Columns) -> Table:
    """The measurements of all pools under one another, with what each is of."""
    frames = [
        tables.read(Path(job.file(paths, suffix)), columns).assign(**_of(study, job), seed=job.seed)
        for job in measurements
    ]
    stacked = OF | columns | POOL
    return pd.concat(frames, ignore_index=True)[list(stacked)], stacked


def _of(study: Study, job: Measurement) -> dict[str, Any]:
    duration = job.pool.duration
    return {
        "study": study.study,
        "base": job.base,
        "pool": job.pool.id,
        "duration": duration,
        "multiple": multiple_of(duration),
        "pool_family": job.pool.family,
        "draw": job.pool.draw,
        "recipe": job.pool.recipe,
    }


ANALYSES: dict[str, Callable[[Study, Layout, list[Measurement]], dict[str, Table]]] = {
    "interference": _interference,
    "bias_variance": _bias_variance,
    "mode_connectivity": _mode_connectivity,
}
_NEEDS = {
    "interference": "it takes pools of two experts at least",
    "bias_variance": "it takes pools of two experts at least, and domains with validation examples",
    "mode_connectivity": "it takes pools with two experts at least that have a domain",
}
