"""Sections of files and of options: pydantic models that know all of their keys, with errors in one line."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mergetime.core.errors import UserError
from mergetime.core.words import nearest

_OF_PYDANTIC = re.compile(r"str|Member|\[key\]|(literal|list|function-after)\[.*\]")
"""What pydantic's places of errors name beside keys: members of unions, and keys themselves."""
Section = TypeVar("Section", bound=BaseModel)


class Strict(BaseModel):
    """A section of a file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validated(model: type[Section], data: Any, source: str) -> Section:
    """A section from plain data.

    Raises:
        UserError: in one line that names ``source``, the key, and the nearest valid one.
    """
    _check_keys(data, source)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError("; ".join(_line(model, source, item) for item in error.errors()[:3])) from error


def validated_list(model: type[Section], data: Any, source: str) -> list[Section]:
    """Sections from a list of plain data; errors as :func:`validated` gives them, with the place in the list."""
    if not isinstance(data, list):
        raise UserError(f"{source}: not a list")
    return [validated(model, item, f"{source}: {place}") for place, item in enumerate(data)]


def _check_keys(data: Any, source: str, place: str = "") -> None:
    """Refuse keys that are no texts, as YAML makes them of ``no``, ``1`` and ``2024-01-01``."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(data, dict) and not isinstance(key, str):
            raise UserError(f"{source}: {place}the key {key!r} is no text to YAML; put it in quotes")
        _check_keys(value, source, f"{place.removesuffix(': ')}.{key}: ".removeprefix("."))


def _line(model: type[BaseModel], source: str, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if not _OF_PYDANTIC.fullmatch(str(part)))
    if item["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key{nearest(str(item['loc'][-1]), _fields(model, item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_type":
        message = "is empty" if item["input"] is None else f"{item['input']!r} is no text; put it in quotes"
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
