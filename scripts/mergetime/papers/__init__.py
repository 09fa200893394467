"""The papers that studies follow, one package per paper: their tables, figures, printed numbers, claims and audit.

A study names its paper by the key ``paper`` of its config; without one it has the tables that every study has. A new
paper is a package here, whose module ``paper`` holds a ``PAPER``, and its data in config/papers/{name}/. Imported while
Snakemake parses the workflow, and by the scripts that make tables: nothing heavy is imported here, and a paper only
when it is asked for, so that no paper is part of another one's code.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from mergetime.core.errors import UserError
from mergetime.core.registries import members
from mergetime.core.words import nearest
from mergetime.publishing.entry import Entry, digest

DATA = Path("config/papers")
"""Where the data of papers are, a folder each: paper.yaml, published/*.csv, claims.yaml."""

PRINTED_NUMBERS = "a paper with printed numbers in config/papers; the study's key paper names none"
CLAIMS = "claims; the study's key claims names none, and neither has its paper any"
"""What a study may lack, in words that complete "it needs ..."."""


@dataclass(frozen=True)
class Citation:
    """How a paper is cited: its title, and its authors as (given names, family name)."""

    title: str
    authors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Paper:
    """A paper; the defaults are those of no paper at all.

    Attributes:
        id: its name in configs.
        citation: how it is cited.
        about: what its results tell, in a sentence, for descriptions of data packages.
        notice: what users of its results must know of licences, for the same.
        tables: by name; a study of the paper has those whose needs it meets, and the common ones.
        figures: by name, likewise.
        names: ``module:name`` below ``mergetime`` of its :class:`mergetime.publishing.names.Names`.
        compare: ``module:name`` of the function that lays a study beside the printed numbers, from (the paper's folder,
            study, ``Inputs`` with results and samples) to the columns of ``mergetime.papers.comparison``; None: none.
        audit: ``module:name`` of the function that holds the paper against itself, from its folder to a
            ``mergetime.papers.findings.Audit``; None: nothing to be held.
    """

    id: str | None = None
    citation: Citation | None = None
    about: str = "Scores of merged models, of their experts and of their bases."
    notice: str = ""
    tables: Mapping[str, Entry] = field(default_factory=dict)
    figures: Mapping[str, Entry] = field(default_factory=dict)
    names: str | None = None
    compare: str | None = None
    audit: str | None = None

    @property
    def folder(self) -> Path:
        """Its data, below the root of the repository."""
        return DATA / str(self.id)

    @property
    def claims(self) -> Path | None:
        """The file of its claims, if it has one."""
        file = self.folder / "claims.yaml"
        return file if file.is_file() else None

    @property
    def printed(self) -> list[Path]:
        """The files with what it prints: what its names are, its tables, and statements of its text."""
        files = [*self.folder.glob("paper.yaml"), *self.folder.glob("statements.yaml")]
        return sorted([*files, *self.folder.glob("published/*.csv")])

    def code(self, script: str) -> str:
        """The digest of a script that is no table's or figure's, with what of this paper it runs."""
        facts = f"papers.{self.id}.paper" if self.id else None
        parts = {"compare_published": self.compare, "audit_published": self.audit, "make_package": facts}
        return digest(script, parts.get(script), self.names)


@functools.cache
def get(name: str | None) -> Paper:
    """The paper of this name, with the common tables beside its own; for None what a study without a paper has.

    A common table that the paper prints under a name of its own is not made a second time.

    Raises:
        UserError: naming the nearest paper, if there is none of this name.
    """
    if name is not None and name not in members("papers"):
        raise UserError(f"paper '{name}' is unknown{nearest(name, members('papers'))}")
    paper: Paper = import_module(f"mergetime.papers.{name}.paper").PAPER if name else Paper()
    common: Mapping[str, Entry] = import_module("mergetime.publishing.registry").TABLES
    printed = {entry.function for entry in paper.tables.values()}
    tables = {**paper.tables, **{key: entry for key, entry in common.items() if entry.function not in printed}}
    return replace(paper, tables=_named(tables, paper.names), figures=_named(paper.figures, paper.names))


def _named(entries: Mapping[str, Entry], names: str | None) -> dict[str, Entry]:
    return {key: replace(entry, names=names) for key, entry in entries.items()}
