"""Sections of a study on their own: as the JSON that a rule tells a script, and back, with errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from mergetime.core.errors import UserError
from mergetime.core.sections import Section, validated, validated_list


def job_options(section: BaseModel) -> dict[str, Any]:
    """A section as JSON values, for the params of a job; the same model parses them in the job's script.

    Snakemake makes again what was made with other params, so this has all that determines the result and no more:

    - A default that is at work (rank 16) is written, whether the config gives it or not: whoever changes that default
      changes the jobs that rely on it, and no others.
    - A value that is both off (null, false, 0, empty) and the default is left out, so that a new option whose default
      is off remakes nothing. Where a new option has no value that is off, null can stand for what was done before it.
    """
    values = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value or value != field.get_default(call_default_factory=True):
            values[name] = _job_value(value)
    return values


def _job_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return job_options(value)
    if isinstance(value, Mapping):
        return {key: _job_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_job_value(item) for item in value]
    return value


def parse_json(model: type[Section], text: str, source: str) -> Section:
    """A section of a study from JSON, as rules tell it to scripts; ``source`` is the option that it came with.

    Raises:
        UserError: in one line that names ``source`` and the key.
    """
    return validated(model, _loaded(text, source), source)


def parse_json_list(model: type[Section], text: str, source: str) -> list[Section]:
    """Sections from a JSON list, as :func:`parse_json` gives one."""
    return validated_list(model, _loaded(text, source), source)


def parse_json_mapping(model: type[Section], text: str, source: str) -> dict[str, Section]:
    """Sections by name from a JSON object, as :func:`parse_json` gives one."""
    data = _loaded(text, source)
    if not isinstance(data, dict):
        raise UserError(f"{source}: not a JSON object")
    return {name: validated(model, item, f"{source}: {name}") for name, item in data.items()}


def _loaded(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{source}: not JSON: {error}") from error
