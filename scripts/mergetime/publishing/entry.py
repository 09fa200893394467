"""What a table or figure is before it is made: who makes it, what it reads, and what a study must have for it.

Imported while Snakemake parses the workflow, and by everything that makes a table or figure: nothing heavy is imported
here, a function only when it is called, and nothing that checks configs, on which no table rests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergetime.core.digests import code_digest
from mergetime.publishing.names import Names

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


@dataclass(frozen=True)
class Need:
    """What a study must have for a table or figure.

    Attributes:
        function: whether a study (a ``mergetime.config.Study``) has it.
        sentence: completes "table_5 needs ..."; may hold ``{bases}``, the number of the study's bases.
    """

    function: Callable[[Any], bool]
    sentence: str


@dataclass(frozen=True)
class Entry:
    """A table or figure.

    Attributes:
        function: ``module:name`` below ``mergetime``; called with the inputs and ``arguments``.
        reads: keys of :data:`FILES`.
        benchmarks: whether it needs chance levels and weights of the benchmarks. They are given as text: a table that
            read study.json for them could not be made from downloaded results alone.
        needs: only studies that have all of these have the table or figure.
        arguments: keyword arguments of the function.
        names: ``module:name`` of the :class:`Names` that it prints, below ``mergetime``; None: every id is its name.
    """

    function: str
    reads: tuple[str, ...] = ("results",)
    needs: tuple[Need, ...] = ()
    benchmarks: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    names: str | None = None

    def make(self, inputs: "Inputs") -> Any:
        """The table or figure, made from its inputs."""
        return load(self.function)(replace(inputs, names=names(self.names)), **self.arguments)

    def code(self, script: str) -> str:
        """The digest of ``script``, of this entry's module and names, and of what they import; of no other entry's."""
        return digest(script, self.function, self.names)


def load(path: str) -> Any:
    """What ``module:name`` below ``mergetime`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"mergetime.{module}"), name)


def names(path: str | None) -> Names:
    """The names that ``module:name`` gives; none for None."""
    loaded: Names = load(path) if path else Names()
    return loaded


def digest(script: str, *paths: str | None) -> str:
    """The digest of ``script``, of the modules in these ``module:name``, and of what all of them import."""
    modules = [path.partition(":")[0] for path in paths if path]
    return code_digest(script, *(f"mergetime/{module.replace('.', '/')}" for module in modules))
