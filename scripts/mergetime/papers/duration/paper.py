"""Are we Merging the Right Models? Impact of Expert Training Duration on Model Merging for LLMs.

Its tables and figures: who makes each, and what it reads. A new one is a function and one entry here.
"""

from typing import Any

from mergetime.papers import Citation, Paper
from mergetime.papers.duration.needs import ACCURACY, REFUSALS
from mergetime.publishing.entry import Entry
from mergetime.publishing.needs import BIAS_VARIANCE, MERGES, MODE_CONNECTIVITY, MULTIPLES, base

_TABLES, _FIGURES = "papers.duration.tables", "papers.duration.figures"
_BY_ITEM = ("results", "samples")
_LINES = (MERGES, ACCURACY, MULTIPLES)


def _by_base(first: int, function: str, **entry: Any) -> dict[str, Entry]:
    """Three tables from number ``first`` on, one for each of the first three bases."""
    return {
        f"table_{first + position}": Entry(
            function,
            needs=(base(position), MERGES, ACCURACY),
            arguments={"name": f"table_{first + position}", "position": position},
            **entry,
        )
        for position in range(3)
    }


PAPER = Paper(
    id="duration",
    citation=Citation(
        title="Are we Merging the Right Models? Impact of Expert Training Duration on Model Merging for LLMs",
        authors=(("Nikita", "Kozodoi"), ("Zainab", "Afolabi"), ("Jack", "Butler")),
    ),
    about="How the duration of experts' training changes merged language models.",
    notice=(
        "The texts of BeaverTails, which are for non-commercial use (CC BY-NC 4.0), and models trained on them are not "
        "in here."
    ),
    tables={
        "table_1": Entry("publishing.tables.sources:sources", ("study",), arguments={"name": "table_1"}),
        "table_2": Entry(f"{_TABLES}.refusals:table_2", needs=(REFUSALS, MERGES)),
        **_by_base(3, f"{_TABLES}.accuracy:accuracy_table"),
        "table_6": Entry(f"{_TABLES}.ranges:table_6", _BY_ITEM, (MERGES, ACCURACY), benchmarks=True),
        **_by_base(7, f"{_TABLES}.optima:optima_table", reads=_BY_ITEM, benchmarks=True),
    },
    figures={
        "figure_1": Entry(f"{_FIGURES}.quality:figure_1", needs=_LINES),
        "figure_2": Entry(f"{_FIGURES}.decomposition:figure_2", ("bias_variance",), (BIAS_VARIANCE, MULTIPLES)),
        "figure_3": Entry(f"{_FIGURES}.barriers:figure_3", ("barriers",), (MODE_CONNECTIVITY, MULTIPLES)),
        "figure_4": Entry(f"{_FIGURES}.quality_by_domain:figure_4", needs=_LINES),
    },
    names="papers.duration.names:NAMES",
    compare="papers.duration.published.compare:compared",
    audit="papers.duration.published.audit:audited",
)
