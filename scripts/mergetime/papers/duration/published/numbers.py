"""The paper's tables as data frames, and what its names stand for (config/papers/duration)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import PositiveInt

from mergetime.core import yaml_text
from mergetime.core.errors import UserError
from mergetime.core.sections import Strict, validated
from mergetime.papers.duration.names import SAFETY

FOLDER = Path("config/papers/duration")
AVERAGE = "average"
BASE, EXPERT, MERGED = "base", "expert", "merged"
AT_T_STAR, BEST = "T*", "best"

_COLUMNS = {
    "table_2_safety": ["model", "method", "duration", "refusal_rate_pct"],
    "tables_3_to_5_accuracy": ["table", "model", "subject", "method", "selection", "domain", "accuracy_pct"],
    "table_6_optimal_ranges": ["model", "method", "lowest_duration", "highest_duration"],
    "tables_7_to_9_optimal_duration": ["table", "model", "method", "domain", "duration"],
}


class PrintedBenchmark(Strict):
    """A benchmark of the paper: its repository on the hub, and its number of items; null where the paper is silent."""

    dataset: str
    items: PositiveInt | None


class Setting(Strict):
    """What the paper's names stand for: models, smallest first, with the hub ids taken for them; durations; domains."""

    title: str
    durations: list[float]
    models: dict[str, list[str]]
    benchmarks: dict[str, PrintedBenchmark]

    @property
    def accuracy_domains(self) -> list[str]:
        """The domains that averages run over: all but safety (section 3)."""
        return [domain for domain in self.benchmarks if domain != SAFETY]


@dataclass(frozen=True)
class Published:
    """The paper's tables, tidy, in percent and multiples of T*; config/papers/duration/README.md gives the columns."""

    paper: Setting
    refusals: pd.DataFrame
    accuracy: pd.DataFrame
    ranges: pd.DataFrame
    optima: pd.DataFrame

    @property
    def models(self) -> list[str]:
        """The paper's models, smallest first."""
        return list(self.paper.models)


def load(folder: Path) -> Published:
    """The published tables in the paper's folder.

    Raises:
        UserError: in one line, if a file is missing, or its columns, models or keys are not the expected ones.
    """
    paper = _parsed(folder / "paper.yaml")
    frames = [_frame(folder / f"published/{stem}.csv", columns, paper) for stem, columns in _COLUMNS.items()]
    return Published(paper, *frames)


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, its columns as their attributes."""
    yield from frame.itertuples(index=False)


def groups(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows that agree in some columns, with their values there (a tuple), in the order of the frame."""
    yield from frame.groupby(columns, sort=False, dropna=False)


def _parsed(path: Path) -> Setting:
    return validated(Setting, yaml_text.read(path), str(path))


def _frame(path: Path, columns: list[str], paper: Setting) -> pd.DataFrame:
    try:
        # Empty cells are null, and nothing else: no method is called NA.
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    if list(frame.columns) != columns:
        raise UserError(f"{path}: its columns are {', '.join(frame.columns)}; expected {', '.join(columns)}")
    unknown = sorted(set(frame["model"]) - set(paper.models))
    if unknown:
        raise UserError(f"{path}: model {unknown[0]} is not in paper.yaml")
    return frame.astype({name: object for name in ("method", "selection") if name in frame})
