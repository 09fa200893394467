"""A table as data: tidy cells with their errors and flags, which every format is written from."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import Column

CELLS = {
    "panel": Column(pa.string(), False, "the part of the table, such as a base"),
    "row": Column(pa.string(), False, "the row's label"),
    "column": Column(pa.string(), False, "the column's label"),
    "unit": Column(
        pa.string(),
        False,
        "percent, points, multiple (of T*), steps, loss, ratio, count, verdict (1 yes, 0 no) or text",
    ),
    "value": Column(pa.float64(), True, "the number, in its unit; null where there is none"),
    "stderr": Column(pa.float64(), True, "standard error over test items, in the same unit"),
    "low": Column(pa.float64(), True, "scores: lower end of the 95 % interval over items; durations: the shortest"),
    "high": Column(pa.float64(), True, "scores: upper end of the 95 % interval over items; durations: the longest"),
    "seed_spread": Column(pa.float64(), True, "standard deviation over seeds, in the same unit; null for one seed"),
    "seeds": Column(pa.int64(), True, "number of seeds in the mean"),
    "duration": Column(pa.string(), True, "the duration that the number was taken at"),
    "best_set": Column(pa.string(), True, "the durations that cannot be told apart from the best at 95 %"),
    "discordant": Column(
        pa.int64(),
        True,
        "test items on which the best duration scores differently: from one outside its set, the fewest; where none is "
        "outside, from any other, the most",
    ),
    "gain": Column(pa.float64(), True, "score at the best duration minus score at T*, in percentage points"),
    "gain_stderr": Column(pa.float64(), True, "standard error of the gain over the same items"),
    "gain_p_value": Column(pa.float64(), True, "of no gain: two-sided paired t, Holm over all durations but T*"),
    "text": Column(pa.string(), True, "what is printed where the cell is more than a number"),
    "best": Column(pa.bool_(), False, "printed in bold"),
    "boundary": Column(pa.bool_(), False, "rests on a T* that is no interior minimum; printed with a dagger"),
    "note": Column(pa.string(), True, "the footnote that belongs to this cell"),
}

DAGGER, DOUBLE_DAGGER = "†", "‡"
BOUNDARY_NOTE = f"{DAGGER} Rests on a T* that is no interior minimum of its validation loss."
ERROR_NOTE = (
    "± is one standard error over test items, in percentage points; "
    "for a mean over k domains, sqrt(sum of squares) / k."
)
END_NOTE = (
    "Where no item, or every item, scores, the 95 % interval over items (Wilson) is printed instead of an error of 0."
)


@dataclass(frozen=True)
class Table:
    """A table: its name, its caption, its cells (columns :data:`CELLS`, in printing order) and its footnotes."""

    name: str
    caption: str
    cells: pd.DataFrame
    notes: list[str]


def table(name: str, caption: str, cells: pd.DataFrame, notes: Iterable[str] = ()) -> Table:
    """A table of ``cells``, with the footnotes that its cells need added to ``notes``."""
    notes = list(notes)
    seeds = cells["seeds"].max()
    if pd.notna(seeds) and seeds > 1:
        notes.append(f"Means over {int(seeds)} seeds; in brackets the standard deviation over seeds.")
    if cells["boundary"].any():
        notes.append(BOUNDARY_NOTE)
    if (cells["unit"].eq("percent") & cells["text"].notna()).any():
        notes.append(END_NOTE)
    return Table(name, caption, cells.reset_index(drop=True), notes)


def cells(frame: pd.DataFrame, panel: str, unit: str = "percent") -> pd.DataFrame:
    """Cells of one panel from a frame with ``row``, ``column``, ``value`` and whichever other columns it has.

    Where no item, or every item, scores, a percentage's error of 0 is no certainty. Such a cell prints what is known
    instead, if the frame has ``items`` and intervals: ``0.0 (0 of 100, below 3.7)``.
    """
    filled = frame.assign(panel=panel)
    defaults: dict[str, str | bool | None] = {"unit": unit, "best": False, "boundary": False, "note": None}
    for name in CELLS:
        if name not in filled:
            filled[name] = defaults.get(name)
    holds = filled["value"].notna() | filled["text"].notna()
    filled["best"] = filled["best"].eq(True) & holds
    filled["boundary"] = filled["boundary"].eq(True) & holds
    filled["note"] = [BOUNDARY_NOTE if flag else None for flag in filled["boundary"]]
    if unit == "percent" and "items" in filled:
        at_ends = filled["stderr"].eq(0.0) & (filled["high"] > filled["low"])
        filled.loc[at_ends, "text"] = [_end_text(cell) for _, cell in filled[at_ends].iterrows()]
    for name, column in CELLS.items():
        if column.type == pa.float64():
            filled[name] = filled[name].astype("float64")
    for name in ("seeds", "discordant"):
        filled[name] = filled[name].astype("Int64")
    return filled[list(CELLS)]


def _end_text(cell: pd.Series) -> str:
    """What is known of a percentage where no item scores, or every item does; or of a mean of such."""
    items, value = int(cell["items"]), float(cell["value"])
    if value == 0:
        known = f"0 of {items}, below {cell['high']:.1f}"
    elif value == 100:
        known = f"{items} of {items}, above {cell['low']:.1f}"
    else:
        known = f"{cell['low']:.1f} to {cell['high']:.1f}"
    return f"{value:.1f} ({known})"


def grid(frame: pd.DataFrame, rows: Iterable[str], columns: Iterable[str]) -> pd.DataFrame:
    """``frame`` in the order of ``rows`` and ``columns``, with empty cells where it has none."""
    wanted = pd.DataFrame([(row, column) for row in rows for column in columns], columns=["row", "column"])
    return wanted.merge(frame, on=["row", "column"], how="left")


def cell_text(cell: pd.Series) -> tuple[str, str]:
    """What a cell prints: the number, and its errors behind it (either may be empty)."""
    if pd.notna(cell["text"]):
        return str(cell["text"]), ""
    value = cell["value"]
    if pd.isna(value):
        return "—", ""
    errors = "" if pd.isna(cell["stderr"]) else f"±{cell['stderr']:.1f}"
    if pd.notna(cell["seed_spread"]):
        errors += f" [{cell['seed_spread']:.1f}]"
    return _number(float(value), str(cell["unit"])), errors.strip()


def _number(value: float, unit: str) -> str:
    if unit == "verdict":
        return "yes" if value else "no"
    return format(value, {"percent": ".1f", "points": "+.1f", "loss": ".4f", "ratio": ".3f"}.get(unit, ".0f"))
