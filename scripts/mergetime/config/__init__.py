"""A study's config: pydantic models with no unknown keys, and errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mergetime.config.evaluation import VALIDATION_LOSS, Benchmark
from mergetime.config.experts import DEFAULT, EACH, Durations, EarlyStopping, Recipe, Training
from mergetime.config.fields import UNRESOLVED
from mergetime.config.merging import Member, Method, Pools, RandomSubsets
from mergetime.config.sources import Base, Domain
from mergetime.config.study import Plan, Study
from mergetime.core.errors import UserError
from mergetime.core.words import nearest

__all__ = [
    "DEFAULT",
    "EACH",
    "UNRESOLVED",
    "VALIDATION_LOSS",
    "Base",
    "Benchmark",
    "Domain",
    "Durations",
    "EarlyStopping",
    "Member",
    "Method",
    "Plan",
    "Pools",
    "RandomSubsets",
    "Recipe",
    "Study",
    "Training",
    "load",
    "parse",
    "schema",
]


def parse(data: Any, source: str) -> Study:
    """A study from loaded YAML.

    Raises:
        UserError: in one line that names ``source``, the key, and the nearest valid one.
    """
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise UserError("; ".join(_line(source, item) for item in error.errors()[:3])) from error


def load(path: Path) -> Study:
    """The study in a YAML file; errors as :func:`parse` gives them."""
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return parse(data, str(path))


def schema() -> str:
    """The JSON schema of a config, for editors; config/schema.json holds it."""
    return json.dumps(Study.model_json_schema(), indent=2) + "\n"


_UNION_PARTS = ("str", "Member", "literal['all']", "list[union]", "list[union[str,Member]]", "list[str]")
"""What pydantic puts into a key for the members of a union, which no key in the file has."""


def _line(source: str, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in _UNION_PARTS)
    if item["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key{nearest(str(item['loc'][-1]), _fields(item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{source}: {key}: {message}" if key else f"{source}: {message}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at ``location`` takes."""
    schema = Study.model_json_schema()
    section: Any = schema
    for part in location:
        while "$ref" in section or "anyOf" in section:
            section = schema["$defs"][section["$ref"].rsplit("/", 1)[1]] if "$ref" in section else section["anyOf"][0]
        section = (
            section.get("properties", {}).get(part) or section.get("additionalProperties") or section.get("items", {})
        )
    while "$ref" in section or "anyOf" in section:
        section = schema["$defs"][section["$ref"].rsplit("/", 1)[1]] if "$ref" in section else section["anyOf"][0]
    return list(section.get("properties", {}))
