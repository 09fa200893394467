"""Sections of a study on their own: as the JSON that a rule tells a script, and back, with errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mergetime.core.errors import UserError
from mergetime.core.words import nearest

Section = TypeVar("Section", bound=BaseModel)


def job_options(section: BaseModel) -> dict[str, Any]:
    """A section as JSON values, for the params of a job; the same model parses them in the job's script.

    Snakemake makes again what was made with other params, so this has all that determines the result and no more:

    - A default that is at work (rank 16) is written, whether the config gives it or not: whoever changes that default
      changes the jobs that rely on it, and no others.
    - A value that is both off (null, false, 0, empty) and the default is left out, so that a new option whose default
      is off remakes nothing. Where a new option has no value that is off, null can stand for what was done before it.
    """
    told = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value or value != field.get_default(call_default_factory=True):
            told[name] = _job_value(value)
    return told


def _job_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return job_options(value)
    if isinstance(value, Mapping):
        return {key: _job_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_job_value(item) for item in value]
    return value


def validated(model: type[Section], data: Any, source: str) -> Section:
    """A section of a study from plain data; with errors in one line.

    Raises:
        UserError: that names ``source``, the key, and the nearest valid one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError("; ".join(_line(model, source, item) for item in error.errors()[:3])) from error


def parse_json(model: type[Section], text: str, source: str) -> Section:
    """A section of a study from JSON, as rules tell it to scripts; ``source`` is the option that it came with.

    Raises:
        UserError: in one line that names ``source`` and the key.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not JSON: {error}") from error
    return validated(model, data, source)


def _line(model: type[BaseModel], source: str, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in ("str", "Member", "literal['all']", "list[union]"))
    if item["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key{nearest(str(item['loc'][-1]), _fields(model, item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{source}: {key}: {message}" if key else f"{source}: {message}"


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at ``location`` takes."""
    schema = model.model_json_schema()
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
