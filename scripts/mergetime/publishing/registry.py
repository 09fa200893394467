"""The tables and figures that can be asked for by name: who makes each, and what it reads.

A new one is a function and one entry here: the rules, their inputs and the targets follow. Imported while Snakemake
parses the workflow: nothing heavy is imported here, and a function only when it is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mergetime.core.digests import code_digest

if TYPE_CHECKING:
    from mergetime.publishing.inputs import Inputs

FILES = {
    "results": "results.parquet",
    "samples": "samples.parquet",
    "curves": "curves.parquet",
    "study": "study.json",
    "bias_variance": "analysis/bias_variance.parquet",
    "barriers": "analysis/barriers.parquet",
}
"""What tables and figures are made from, below results/{study}/."""
SAFETY = "safety"
"""The domain measured by refusal rate; the paper keeps it out of every average (section 3)."""

Need = Literal["training", "merges", "multiples", "accuracy", "safety", "bias_variance", "mode_connectivity"]
"""What a study may have: see :mod:`mergetime.publishing.offers`."""


@dataclass(frozen=True)
class Entry:
    """A table or figure.

    Attributes:
        function: ``module:name`` below ``mergetime.publishing``; called with the inputs and ``arguments``.
        reads: keys of :data:`FILES`.
        benchmarks: whether it needs chance levels and weights of the benchmarks. They are given as text: a table that
            read study.json for them could not be made from downloaded results alone.
        needs: only studies that have all of these have the table or figure.
        base: the position, in the config, of the base that it is about; None where it is about all.
        arguments: keyword arguments of the function.
    """

    function: str
    reads: tuple[str, ...] = ("results",)
    needs: tuple[Need, ...] = ()
    benchmarks: bool = False
    base: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, inputs: "Inputs") -> Any:
        """The table or figure, made from its inputs."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"mergetime.publishing.{module}"), name)(inputs, **self.arguments)

    def code(self, script: str) -> str:
        """The digest of ``script``, of this entry's module and of what they import; of no other entry's module."""
        module = self.function.partition(":")[0]
        return code_digest(script, f"mergetime/publishing/{module.replace('.', '/')}")


def _by_base(first: int, function: str, **entry: Any) -> dict[str, Entry]:
    """Three tables from number ``first`` on, one for each of the first three bases."""
    names = {position: f"table_{first + position}" for position in range(3)}
    return {
        name: Entry(
            function,
            needs=("merges", "accuracy"),
            base=position,
            arguments={"name": name, "position": position},
            **entry,
        )
        for position, name in names.items()
    }


_BY_ITEM = ("results", "samples")

TABLES = {
    "table_1": Entry("tables.domains:table_1", ("study",)),
    "table_2": Entry("tables.refusals:table_2", needs=("merges", "safety")),
    **_by_base(3, "tables.accuracy:accuracy_table"),
    "table_6": Entry("tables.ranges:table_6", _BY_ITEM, ("merges", "accuracy"), benchmarks=True),
    **_by_base(7, "tables.optima:optima_table", reads=_BY_ITEM, benchmarks=True),
    "health": Entry("tables.health:health", ("results", "curves"), ("training",), benchmarks=True),
}
FIGURES = {
    "figure_1": Entry("figures.quality:figure_1", needs=("merges", "accuracy", "multiples")),
    "figure_2": Entry("figures.decomposition:figure_2", ("bias_variance",), ("bias_variance", "multiples")),
    "figure_3": Entry("figures.barriers:figure_3", ("barriers",), ("mode_connectivity", "multiples")),
    "figure_4": Entry("figures.quality_by_domain:figure_4", needs=("merges", "accuracy", "multiples")),
}
