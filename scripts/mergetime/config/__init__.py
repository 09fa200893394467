"""A study's config: pydantic models with no unknown keys, and errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from mergetime.config.evaluation import VALIDATION_LOSS, Benchmark
from mergetime.config.experts import Durations, StoppingRule, Training
from mergetime.config.fields import UNRESOLVED
from mergetime.config.merging import Member, Method, Pools
from mergetime.config.sections import validated
from mergetime.config.sources import Base, Domain
from mergetime.config.study import Plan, Study
from mergetime.core.errors import UserError

__all__ = [
    "UNRESOLVED",
    "VALIDATION_LOSS",
    "Base",
    "Benchmark",
    "Domain",
    "Durations",
    "Member",
    "Method",
    "Plan",
    "Pools",
    "StoppingRule",
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
    return validated(Study, data, source)


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
