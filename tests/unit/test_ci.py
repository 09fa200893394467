"""The workflow for continuous integration is YAML and names what is there; so does a release."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime import __version__

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
COMMANDS = "\n".join(step["run"] for step in WORKFLOW["jobs"]["checks"]["steps"] if "run" in step)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("job", WORKFLOW["jobs"])
def test_each_step_does_one_thing(job: str) -> None:
    assert all(("run" in step) != ("uses" in step) for step in WORKFLOW["jobs"][job]["steps"])


def test_its_targets_are_in_the_makefile() -> None:
    asked = set(re.findall(r"^make (\S+)", COMMANDS, re.MULTILINE))
    assert {"lint", "unit", "smoke"} <= asked <= TARGETS
    systems = set(WORKFLOW["jobs"]["systems"]["strategy"]["matrix"]["target"])
    assert {"test-cluster", "test-container"} <= systems <= TARGETS


def test_every_config_is_planned() -> None:
    dry_runs = [line for line in COMMANDS.splitlines() if line.startswith("snakemake -n")]
    named = {name for line in dry_runs for name in re.findall(r"config/\S+\.yaml", line)}
    assert named == {str(file.relative_to(ROOT)) for file in (ROOT / "config").glob("*.yaml")}


def test_the_environment_is_cached_by_its_locks() -> None:
    cache = next(step for step in WORKFLOW["jobs"]["checks"]["steps"] if step.get("id") == "venv")["with"]
    assert cache["path"] == ".venv"
    made_of = re.search(r"^\$\(READY\): (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made_of is not None
    assert all(f"'{file}'" in cache["key"] for file in made_of[1].split())


def test_a_release_has_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest is not None
    assert version == __version__ == newest[1]
