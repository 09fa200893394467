"""Digests of the code that a job runs: rules pass them as a param, so that a change of code reruns what uses it.

A digest covers a script, every module of the package that it imports, directly or not, inside functions too, and the
packages above these modules. Undoing a change cancels the rerun. Not covered are

- imports under ``if TYPE_CHECKING``: a type changes no result;
- parts of other modalities, where the rule knows the modality of its base;
- members of a registry (:mod:`mergetime.core.registries`), which are loaded by name: of these a job names the ones that
  it uses. Which those are is known to :mod:`mergetime.workflow.digests`;
- the models of the config: they parse what params and ``study.json`` say in full, defaults included, so that a new key
  or a better description makes nothing again. See :func:`mergetime.config.sections.job_options`.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import ast
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mergetime.core.registries import SCRIPTS

_PACKAGE = "mergetime"
_MODALITIES = SCRIPTS / _PACKAGE / "modalities"


@functools.cache
def code_digest(*stems: str, members: tuple[Path, ...] = (), modality: str = "*") -> str:
    """The digest of the scripts of these stems, of ``members`` and of all that they import: 16 hexadecimal digits.

    Args:
        stems: scripts by their names, modules by their paths below scripts/, both without the ending.
        members: files that are loaded by name: modules of registries, or data files of the package.
        modality: the modality whose parts are covered, where the code uses any; all of them unless given.
    """
    return digest_of([*(SCRIPTS / f"{stem}.py" for stem in stems), *members], modality)


def digest_of(files: Iterable[Path], modality: str = "*") -> str:
    """The digest of files, and of all that the Python files among them import."""
    lines = sorted(f"{os.path.relpath(file, SCRIPTS)} {_sha256(file)}" for file in with_imports(files, modality))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def with_imports(files: Iterable[Path], modality: str = "*") -> set[Path]:
    """The files, and all files of the package and scripts that the Python files among them import.

    Parts of a modality are loaded by name: the protocol of a part brings that part of ``modality``, or of all.
    """
    pending, seen = list(files), set[Path]()
    while pending:
        file = pending.pop()
        if file not in seen and file.parent != SCRIPTS / _PACKAGE / "config":
            seen.add(file)
            pending += imports(file) if file.suffix == ".py" else ()
            if file.parent == _MODALITIES and file.name != "__init__.py":
                pending += _MODALITIES.glob(f"{modality}/{file.name}")
    return seen


@functools.cache
def imports(file: Path) -> tuple[Path, ...]:
    """The files of the package and the scripts that ``file`` imports, with the packages above them, sorted.

    A package imported by its own name is all its modules: what is taken from it later cannot be seen here.

    Raises:
        ValueError: for a relative import.
    """
    imported: set[Path] = set()
    for node in _statements(ast.parse(file.read_text(), str(file)).body):
        if isinstance(node, ast.Import):
            modules, targets = [], [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{file}, line {node.lineno}: import by the whole name, from {_PACKAGE} on")
            modules, targets = [node.module], [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in [*modules, *targets]:
            imported.update(_files(name, whole=name in targets))
    return tuple(sorted(imported - {file}))


def _statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """These statements and all below them but for those that only type checkers read."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _statements(node.orelse)
        # An expression holds no import, and most of a file are expressions.
        elif not isinstance(node, ast.expr):
            yield node
            yield from _statements(ast.iter_child_nodes(node))


@functools.cache
def _files(name: str, *, whole: bool) -> tuple[Path, ...]:
    """The files that an import of a dotted name runs; none for another library's, or for a name inside a module."""
    parts = name.split(".")
    path = SCRIPTS.joinpath(*parts)
    module = path.with_suffix(".py")
    if parts[0] != _PACKAGE:
        # A script that another script imports.
        return (module,) if len(parts) == 1 and module.is_file() else ()
    above = [SCRIPTS.joinpath(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts) + 1)]
    inside = path.glob("*.py") if whole and path.is_dir() else ()
    return (*(file for file in (module, *above) if file.is_file()), *inside)


@functools.cache
def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
