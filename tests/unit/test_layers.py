"""What may import what, and that importing the workflow's modules is light."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mergetime.core import digests
from mergetime.core.registries import SCRIPTS

PACKAGE = SCRIPTS / "mergetime"
LAYERS = [
    ("core",),
    ("data.messages", "data.format", "data.formats", "data.registry", "architectures", "modalities.parts", "sandbox"),
    ("artifacts",),
    ("merging",),
    ("measuring.settings", "measuring.columns"),
    ("config",),
    ("study", "hub"),
    ("data", "results", "uncertainty"),
    ("evaluation.benchmarks", "evaluation.means", "evaluation.rows"),
    ("modalities",),
    ("training",),
    ("evaluation",),
    ("measuring",),
    ("analysis", "planning", "publishing"),
    ("claims", "papers", "publishing.command"),
    ("report", "packaging", "demo"),
    ("workflow",),
]
"""The packages, or modules of them, from the lowest layer up. A module imports from its own layer and from those below.

Of two names that fit a module, the longer counts. docs/architecture.md shows the same table.
"""
LOADS_BY_NAME = {"core.registries", "modalities.parts", "papers", "publishing.entry"}
"""The modules that import a module of the package by its name: see core/registries.py."""
HEAVY = [
    "torch",
    "pandas",
    "numpy",
    "transformers",
    "pyarrow",
    "peft",
    "datasets",
    "lm_eval",
    "safetensors",
    "matplotlib",
]


def _name(file: Path) -> str:
    """A module's dotted name below the package; a package's is its folder's."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imported(file: Path) -> set[Path]:
    """The modules that a module names in imports, inside functions too; not the packages above them."""
    named = {path for path in digests.imports(file) if path.is_relative_to(PACKAGE)}
    return {path for path in named if path.name != "__init__.py"}


MODULES = {_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: {_name(other) for other in _imported(file)} for name, file in MODULES.items()}


def layer_of(module: str) -> int:
    """The position of a module's layer."""
    fitting = {
        entry: place
        for place, layer in enumerate(LAYERS)
        for entry in layer
        if module == entry or module.startswith(f"{entry}.")
    }
    assert fitting, f"{module} is in no layer; give its package a place in LAYERS and in docs/architecture.md"
    return fitting[max(fitting, key=len)]


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_down(module: str) -> None:
    upward = [other for other in IMPORTS[module] if layer_of(other) > layer_of(module)]
    assert not upward, f"{module} imports {', '.join(upward)} from a higher layer"


def test_the_page_on_the_architecture_shows_the_table() -> None:
    page = (SCRIPTS.parent / "docs/architecture.md").read_text().partition("## What may import what")[2]
    rows = re.findall(r"^\| (`.*?`) \|", page.partition("\n## ")[0], re.M)
    assert [tuple(re.findall(r"`([\w.]+)`", row)) for row in rows] == LAYERS


def test_every_entry_of_the_table_is_there() -> None:
    there = set(MODULES) | {name.partition(".")[0] for name in MODULES}
    assert [entry for layer in LAYERS for entry in layer if entry not in there] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: set(others) for name, others in IMPORTS.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in or behind a circle: {', '.join(sorted(left))}"


def test_the_package_itself_holds_no_modules() -> None:
    assert [file.name for file in PACKAGE.glob("*.py")] == ["__init__.py"]


def _is_for_types(node: ast.stmt) -> bool:
    """Whether nobody but a type checker reads a statement."""
    return ast.unparse(node).startswith(("if TYPE_CHECKING:", "from typing import TYPE_CHECKING"))


def test_packages_hold_their_description_alone() -> None:
    """Whoever imports a module imports the packages above it, and so has their code in its digest."""
    # papers/__init__.py says what a paper is; each paper is one, so that all of them need it.
    for file in set(PACKAGE.rglob("*/__init__.py")) - {PACKAGE / "papers/__init__.py"}:
        body = [node for node in ast.parse(file.read_text()).body if not _is_for_types(node)]
        assert len(body) == 1, f"{file}: a docstring and nothing else"
        assert isinstance(body[0], ast.Expr)


def test_modules_are_loaded_by_name_in_registries_alone() -> None:
    by_name = re.compile(r"import_module\((?!\")|pkgutil|__import__\(")
    assert {name for name, file in MODULES.items() if by_name.search(file.read_text())} <= LOADS_BY_NAME


def test_a_class_has_a_name_of_its_own() -> None:
    files = [*MODULES.values(), *SCRIPTS.glob("*.py")]
    names = Counter(
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_what_the_snakefile_imports_is_light() -> None:
    rules = [SCRIPTS.parent / "Snakefile", *(SCRIPTS.parent / "rules").rglob("*.smk")]
    lines = [
        line
        for file in rules
        for line in re.findall(
            r"^(?:from mergetime[^(\n]*|import mergetime[^\n]*)(?:\([^)]*\))?$", file.read_text(), re.M
        )
    ]
    assert lines
    program = "\n".join([*lines, "import sys", f"print(sorted(sys.modules.keys() & set({HEAVY})))"])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SCRIPTS)}
    )
    assert done.stdout.strip() == "[]"


def test_scripts_are_on_top_and_rules_alone_ask_the_workflow() -> None:
    for file in SCRIPTS.glob("*.py"):
        assert not [path for path in digests.imports(file) if path.is_relative_to(PACKAGE / "workflow")], file
