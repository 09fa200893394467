"""What the sections of a config are made of: names, numbers, commits, multiples of T*, and no unknown keys.

Whoever shares a config may have written anything into it, and what a config says ends up in paths, in addresses and on
command lines. So every string is one of these types, a known name, or compared with known names; none of the types
takes a character that a shell, a URL or a table reads as more than itself, none goes up from its folder, and none is
longer than the name of a file may be. Numbers are finite, and bounded where nothing beyond could be meant.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from mergetime.core.quarters import QUARTERS
from mergetime.core.registries import members
from mergetime.core.sections import Strict as Strict
from mergetime.core.words import nearest

HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_][\w.\-]*", re.ASCII)
ADDRESS = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?(/(?!\.\.?(/|$))[\w.~\-]+)*/?", re.ASCII)
UNRESOLVED = "unresolved"
"""Stands for a commit that nobody has looked up yet: a study with it can be planned, but nothing of it is fetched."""
_LONGEST_ID, _LONGEST = 64, 250
"""In characters: several ids make the name of a file, which may have 255."""
Value = TypeVar("Value")


def _matching(pattern: re.Pattern[str] | str, wrong: str, longest: int = _LONGEST) -> AfterValidator:
    """A validator of strings that match a pattern from end to end; ``wrong`` completes "'NAME' is ..."."""
    compiled = re.compile(pattern, re.ASCII) if isinstance(pattern, str) else pattern

    def validate(text: str) -> str:
        if len(text) > longest:
            raise ValueError(f"'{text[:20]}...' has {len(text)} characters; take at most {longest}")
        if not compiled.fullmatch(text):
            raise ValueError(f"{text!r} is {wrong}")
        return text

    return AfterValidator(validate)


def _number(value: Any) -> Any:
    """The value, unless it is a truth value, which Python counts as 0 or 1, or a number without an end."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def distinct(value: Value) -> Value:
    """The value, unless it is a list that has something twice.

    Raises:
        ValueError: naming what is there twice.
    """
    if isinstance(value, list):
        for place, item in enumerate(value):
            if item in value[:place]:
                raise ValueError(f"{item!r} is listed twice; list it once")
    return value


def _filled(value: Value) -> Value:
    if isinstance(value, list) and not value:
        raise ValueError("lists nothing; give at least one")
    return value


def _quarters(multiple: float) -> float:
    if multiple * QUARTERS != int(multiple * QUARTERS):
        raise ValueError(f"{multiple} is no multiple of 0.25, so no saved step would be exactly there")
    return multiple


def _paper(name: str) -> str:
    if name not in members("papers"):
        raise ValueError(f"'{name}' is no paper{nearest(name, members('papers'))}")
    return name


NUMBER = BeforeValidator(_number)
# After the bounds: so a schema tells these as minimum and maximum.
Count = Annotated[int, Field(ge=1, le=10**9), NUMBER]
Whole = Annotated[int, Field(ge=0, le=10**9), NUMBER]
Parameters = Annotated[int, Field(ge=1, le=10**15), NUMBER]
Positive = Annotated[float, Field(gt=0, le=1e9), NUMBER]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), NUMBER]
"""What NumPy takes as a seed."""
Distinct, Filled = AfterValidator(distinct), AfterValidator(_filled)
"""Of what is, or may be, a list: no item is there twice; there is one."""
Identifier = Annotated[
    str, _matching(r"[a-z0-9][a-z0-9_.\-]*", "not an id; use a-z, 0-9, '_', '.' and '-'", _LONGEST_ID)
]
Commit = Annotated[
    str,
    _matching(
        rf"[0-9a-f]{{40}}|{UNRESOLVED}",
        "not a commit hash; a branch can move, so pin the 40 hexadecimal digits that the hub shows",
    ),
]
HubId = Annotated[str, _matching(HUB_ID, "not a hub id; give it as the hub shows it: owner/name")]
Address = Annotated[str, _matching(ADDRESS, "no address; give one that begins with https:// or http://")]
Multiple = Annotated[float, Field(gt=0, le=1000), AfterValidator(_quarters), NUMBER]
PartName = Annotated[
    str,
    _matching(
        r"(?!.*\.\.)[A-Za-z0-9_][\w.+\-]*",
        "not a name of a data set's part; use letters, digits, '_', '.', '+' and '-'",
    ),
]
"""A configuration or a split of a data set."""
TaskName = Annotated[
    str,
    _matching(
        r"([A-Za-z0-9_]|\{config\})([\w.+\-]|\{config\})*",
        "not the name of a task; use letters, digits, '_', '.', '+', '-' and {config}",
    ),
]
MetricName = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9_][\w@.\-]*(,[A-Za-z0-9_][\w@.\-]*)?", "not a metric; give it as lm-eval prints it: name,filter"
    ),
]
PlainPath = Annotated[
    str,
    _matching(
        r"/?(?!\.\.?(/|$))[\w.+@\-]+(/(?!\.\.?(/|$))[\w.+@\-]+)*/?",
        "not a plain path; use letters, digits, '_', '.', '+', '@', '-' and '/', without ..",
    ),
    AfterValidator(lambda path: path.rstrip("/")),
]
PlainWords = Annotated[
    str,
    _matching(r"[A-Za-z0-9]([\w.+\- ]*[\w+])?", "not plain words; use letters, digits, '_', '.', '+', '-' and spaces"),
]
PaperName = Annotated[str, AfterValidator(_paper)]


def known(key: str, name: str, among: Mapping[str, object]) -> None:
    """Raise ValueError, with the nearest known name, where ``name`` is none of ``among``."""
    if name not in among:
        raise ValueError(f"{key}: '{name}' is unknown{nearest(name, among)}")
