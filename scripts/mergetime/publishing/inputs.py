"""What tables and figures are made from, read and checked: tidy Parquet, and the study's description."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import field as column

from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.publishing.entry import FILES, Entry
from mergetime.publishing.names import Names
from mergetime.results import columns as tidy

SAMPLES = [
    *("base", "subject_kind", "pool", "method", "space", "duration", "seed", "split", "domain"),
    *("benchmark", "task", "metric", "item", "stem", "score", "pool_family", "draw", "recipe"),
]
"""The columns of samples.parquet that tables use; the texts of requests and responses stay on the disk."""
_POOL = ["base", "pool", "pool_family", "draw", "recipe", "duration", "multiple", "seed"]
_BIAS_VARIANCE = [*_POOL, "over", "domain", "method", "term", "value", "stderr"]
_BARRIERS = [*_POOL, "space", "first", "domain", "barrier", "alpha"]
_ANALYSES = {"bias_variance": _BIAS_VARIANCE, "barriers": _BARRIERS}


@dataclass(frozen=True)
class BenchmarkFacts:
    """What tables must know of a benchmark: the score of guessing (a share), and whether its tasks count the same."""

    chance: float
    equal_tasks: bool


@dataclass(frozen=True)
class Inputs:
    """The files of a study that were given, by their names in ``entry.FILES``, and what goes with them.

    ``names`` is what domains and methods are called: the paper's names, which its entries bring.
    """

    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    study: Mapping[str, Any] | None = None
    benchmarks: Mapping[str, BenchmarkFacts] = field(default_factory=dict)
    pool: str | None = None
    names: Names = field(default_factory=Names)

    @property
    def results(self) -> pd.DataFrame:
        """Rows of results.parquet."""
        return self.frame("results")

    def frame(self, name: str) -> pd.DataFrame:
        """The rows of one file.

        Raises:
            UserError: if it was not given.
        """
        if name not in self.frames:
            raise UserError(f"--{name.replace('_', '-')} is missing: give the study's {FILES[name]}")
        return self.frames[name]

    @property
    def config(self) -> Mapping[str, Any]:
        """The study's config, defaults filled in; plain, so that tables do not rest on the code that checks configs.

        Raises:
            UserError: if study.json was not given.
        """
        if self.study is None:
            raise UserError(f"--study is missing: give the study's {FILES['study']}")
        return self.study

    @property
    def equal_tasks(self) -> list[str]:
        """The benchmarks whose tasks count the same, whatever their numbers of items."""
        return [name for name, facts in self.benchmarks.items() if facts.equal_tasks]


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each file that tables and figures read, and what goes with the files."""
    for name, file in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"{file} of the study, where it is read")
    text = 'JSON: {"gsm8k": {"chance": 0.0, "weights": "items"}}, weights as in the config'
    parser.add_argument("--benchmarks", help=f"{text}, where they count")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")


def given(name: str, entry: Entry, options: argparse.Namespace) -> tuple[Inputs, dict[str, Path]]:
    """What a table or figure is made from, by a script's options; and the files alone.

    Raises:
        ValueError: in one line, if a file has other columns than this version's.
        UserError: naming the option that is missing or wrong.
    """
    values = vars(options)
    for source in entry.reads:
        if values[source] is None:
            raise UserError(f"{name} needs --{source.replace('_', '-')} ({FILES[source]} of the study)")
    if entry.benchmarks and values["benchmarks"] is None:
        raise UserError(f"{name} needs --benchmarks (JSON, chance and weights by benchmark)")
    files: dict[str, Path] = {source: values[source] for source in entry.reads}
    frames = {source: read(source, file) for source, file in files.items() if source != "study"}
    study = _study(files["study"]) if "study" in files else None
    return Inputs(frames, study, _benchmarks(values["benchmarks"]) if entry.benchmarks else {}, options.pool), files


def _benchmarks(text: str) -> dict[str, BenchmarkFacts]:
    try:
        benchmarks = {
            str(name): BenchmarkFacts(float(facts["chance"]), facts["weights"] == "tasks")
            for name, facts in json.loads(text).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f'--benchmarks: {text!r} is not of the form {{"gsm8k": {{"chance": 0.0, "weights": "items"}}}}'
        ) from error
    for name, facts in benchmarks.items():
        if not 0 <= facts.chance < 1:
            raise UserError(f"--benchmarks: chance of {name} is {facts.chance}; give a share from 0 to below 1")
    return benchmarks


def read(name: str, file: Path) -> pd.DataFrame:
    """The rows of a file, by its name in ``entry.FILES``, with the columns that tables use.

    Raises:
        ValueError: in one line, if it has other columns than this version's.
    """
    if name == "results":
        return tables.read(file, tidy.RESULTS)
    if name == "curves":
        return tables.read(file, tidy.CURVES)
    if name == "samples":
        return _samples(file)
    return _columns(file, _ANALYSES[name])


def _samples(file: Path) -> pd.DataFrame:
    """Scores by item, of models merged as configured (no sweeps), in the metrics that tables report on the test split.

    Texts are categories in alphabetical order: a study of the paper's size has millions of rows.
    """
    columns = [name for name in SAMPLES if name != "task" or "task" in pq.read_schema(file).names]
    _check(file, [*columns, "axis"])
    merged = (column("split") == "test") & column("primary") & (column("subject_kind") == "merged")
    chosen = merged & column("axis").is_null()
    texts = [name for name in columns if tidy.SAMPLES[name].type == pa.string()]
    frame: pd.DataFrame = pq.read_table(file, columns=columns, filters=chosen, read_dictionary=texts).to_pandas()
    tables.filled(frame, tidy.SAMPLES, file)
    return frame.assign(**{name: frame[name].cat.set_categories(sorted(frame[name].cat.categories)) for name in texts})


def _columns(file: Path, columns: list[str]) -> pd.DataFrame:
    _check(file, columns)
    return pd.read_parquet(file, columns=columns)


def _check(file: Path, columns: list[str]) -> None:
    missing = sorted(set(columns) - set(pq.read_schema(file).names))
    if missing:
        raise ValueError(f"{file}: columns missing: {', '.join(missing)}; rebuild it with this version")


def _study(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); rule describe_study writes it") from error
    return content
