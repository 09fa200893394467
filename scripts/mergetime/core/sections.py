"""Sections of YAML files: pydantic models that know all of their keys, with errors in one line."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mergetime.core.errors import UserError


class Strict(BaseModel):
    """A section of a file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: in one line, if the file is missing or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def explain(path: Path, error: ValidationError) -> UserError:
    """The first complaint about a file, in one line that names the file and the key."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return UserError(f"{path}: {key + ': ' if key else ''}{message}")
