"""The tables that can be asked for by name. A new table is one function and one entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from mergetime.errors import UserError
from mergetime.publishing.health import health_table
from mergetime.publishing.scores import bases
from mergetime.publishing.table import Table
from mergetime.publishing.tables import accuracy_table, table_2


@dataclass(frozen=True)
class Inputs:
    """What tables are made from; ``curves`` and ``chance`` where the table needs them."""

    results: pd.DataFrame
    curves: pd.DataFrame | None = None
    chance: dict[str, float] | None = None
    pool: str | None = None


def make(name: str, inputs: Inputs) -> Table:
    """The table ``name`` of :data:`TABLES`."""
    return TABLES[name](inputs)


def _refusals(inputs: Inputs) -> Table:
    return table_2(inputs.results, inputs.pool)


def _accuracy(name: str, position: int, inputs: Inputs) -> Table:
    """Tables 3-5 belong to the first, second and third base of the study."""
    known = bases(inputs.results)
    if position >= len(known):
        raise ValueError(
            f"{name} is about base {position + 1} of a study; the results hold {len(known)}: {', '.join(known)}"
        )
    return accuracy_table(inputs.results, known[position], inputs.pool, name)


def _health(inputs: Inputs) -> Table:
    if inputs.curves is None or inputs.chance is None:
        raise UserError("health needs --curves (curves.parquet) and --chance (JSON, a share per benchmark)")
    return health_table(inputs.results, inputs.curves, inputs.chance)


TABLES: dict[str, Callable[[Inputs], Table]] = {
    "table_2": _refusals,
    "table_3": partial(_accuracy, "table_3", 0),
    "table_4": partial(_accuracy, "table_4", 1),
    "table_5": partial(_accuracy, "table_5", 2),
    "health": _health,
}
