"""Packages whose modules are loaded by name, each when it is asked for: merge methods, data formats.

A digest of code (:mod:`mergetime.core.digests`) covers what is imported in the usual way, and of a registry the members
that a job is known to use; a new member changes no digest. Modalities, papers, tables and figures are loaded by name
too, in modules of their own, which say what a digest covers of them.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mergetime.core.words import nearest

SCRIPTS = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Registry:
    """The modules of a package, by file name; ``kind`` is what one of them is called in errors.

    The package must be imported nowhere by its own name: for digests that would cover all of its modules.
    """

    package: str
    kind: str

    @property
    def folder(self) -> Path:
        """Where the members are."""
        return SCRIPTS.joinpath(*self.package.split("."))

    def names(self) -> tuple[str, ...]:
        """The members, sorted; none of them is imported for this."""
        return tuple(sorted(file.stem for file in self.folder.glob("*.py") if file.stem != "__init__"))

    def file(self, name: str) -> Path:
        """The module of a member, for digests.

        Raises:
            ValueError: for an unknown name, with the nearest one.
        """
        if name not in self.names():
            raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self.names())}")
        return self.folder / f"{name}.py"

    def load(self, name: str) -> ModuleType:
        """The member itself, imported; errors as of :meth:`file`."""
        self.file(name)
        return importlib.import_module(f"{self.package}.{name}")


def members(package: str) -> list[str]:
    """The packages inside a package of mergetime, by their folders; nothing is imported."""
    return sorted(file.parent.name for file in (Path(__file__).parents[1] / package).glob("*/__init__.py"))
