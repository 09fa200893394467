"""What the sections of a config are made of: names, commits, multiples of T*, and no unknown keys.

Whoever shares a config may have written anything into it, and what a config says ends up in paths, in addresses and on
command lines. So every string is one of these types, a known name, or compared with known names; none of the types
takes a character that a shell, a URL or a table reads as more than itself, and none goes up from its folder.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from mergetime.core.quarters import QUARTERS
from mergetime.core.registries import members
from mergetime.core.sections import Strict as Strict
from mergetime.core.words import nearest

HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_][\w.\-]*", re.ASCII)
ADDRESS = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?(/(?!\.\.?(/|$))[\w.~\-]+)*/?", re.ASCII)
UNRESOLVED = "unresolved"
"""Stands for a commit that nobody has looked up yet: a study with it can be planned, but nothing of it is fetched."""


def _matching(pattern: re.Pattern[str] | str, wrong: str) -> AfterValidator:
    """A validator of strings that match a pattern from end to end; ``wrong`` completes "'NAME' is ..."."""
    compiled = re.compile(pattern, re.ASCII) if isinstance(pattern, str) else pattern

    def validate(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"{text!r} is {wrong}")
        return text

    return AfterValidator(validate)


def _quarters(multiple: float) -> float:
    if multiple <= 0 or multiple * QUARTERS != int(multiple * QUARTERS):
        raise ValueError(f"{multiple} is no positive multiple of 0.25, so no saved step would be exactly there")
    return multiple


def _paper(name: str) -> str:
    if name not in members("papers"):
        raise ValueError(f"'{name}' is no paper{nearest(name, members('papers'))}")
    return name


Identifier = Annotated[str, _matching(r"[a-z0-9][a-z0-9_.\-]*", "not an id; use a-z, 0-9, '_', '.' and '-'")]
Commit = Annotated[
    str,
    _matching(
        rf"[0-9a-f]{{40}}|{UNRESOLVED}",
        "not a commit hash; a branch can move, so pin the 40 hexadecimal digits that the hub shows",
    ),
]
HubId = Annotated[str, _matching(HUB_ID, "not a hub id; give it as the hub shows it: owner/name")]
Address = Annotated[str, _matching(ADDRESS, "no address; give one that begins with https:// or http://")]
Multiple = Annotated[float, AfterValidator(_quarters)]
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
