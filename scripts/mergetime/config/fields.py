"""What the sections of a config are made of: names, commits, multiples of T*, and no unknown keys.

Whoever shares a config may have written anything into it, and what a config says ends up in paths, in addresses and on
command lines. So every string is one of these types, a known name, or compared with known names; none of the types
takes a character that a shell, a URL or a table reads as more than itself, and none leads out of its folder.
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
_PLAIN = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.+\-]*", re.ASCII)
_TASK = re.compile(r"([A-Za-z0-9_]|\{config\})([\w.+\-]|\{config\})*", re.ASCII)
_METRIC = re.compile(r"[A-Za-z0-9_][\w@.\-]*(,[A-Za-z0-9_][\w@.\-]*)?", re.ASCII)
_PATH = re.compile(r"/?(?!\.\.?(/|$))[\w.+@\-]+(/(?!\.\.?(/|$))[\w.+@\-]+)*/?", re.ASCII)
_WORDS = re.compile(r"[A-Za-z0-9]([\w.+\- ]*[\w+])?", re.ASCII)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9_.\-]*")


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"'{name}' is not an id; use a-z, 0-9, '_', '.' and '-'")
    return name


UNRESOLVED = "unresolved"
"""Stands for a commit that nobody has looked up yet: a study with it can be planned, but nothing of it is fetched."""


def _commit(revision: str) -> str:
    if revision != UNRESOLVED and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"'{revision}' is not a commit hash; a branch can move, so pin the 40 hexadecimal digits that the hub shows"
        )
    return revision


def _hub_id(name: str) -> str:
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"'{name}' is not a hub id; give it as the hub shows it: owner/name")
    return name


def _address(endpoint: str) -> str:
    if not ADDRESS.fullmatch(endpoint):
        raise ValueError(f"'{endpoint}' is no address; give one that begins with https:// or http://")
    return endpoint


def _plain(name: str) -> str:
    if not _PLAIN.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of a data set's part; use letters, digits, '_', '.', '+' and '-'")
    return name


def _task(name: str) -> str:
    if not _TASK.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a task; use letters, digits, '_', '.', '+', '-' and {{config}}")
    return name


def _metric(name: str) -> str:
    if not _METRIC.fullmatch(name):
        raise ValueError(f"{name!r} is not a metric; give it as lm-eval prints it: name,filter")
    return name


def _path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ValueError(
            f"{path!r} is not a plain path; use letters, digits, '_', '.', '+', '@', '-' and '/', without .."
        )
    return path


def _words(text: str) -> str:
    if not _WORDS.fullmatch(text):
        raise ValueError(f"{text!r} is not plain words; use letters, digits, '_', '.', '+', '-' and spaces")
    return text


def _quarters(multiple: float) -> float:
    if multiple <= 0 or multiple * QUARTERS != int(multiple * QUARTERS):
        raise ValueError(f"{multiple} is no positive multiple of 0.25, so no saved step would be exactly there")
    return multiple


def _paper(name: str) -> str:
    if name not in members("papers"):
        raise ValueError(f"'{name}' is no paper{nearest(name, members('papers'))}")
    return name


Identifier = Annotated[str, AfterValidator(_identifier)]
Commit = Annotated[str, AfterValidator(_commit)]
HubId = Annotated[str, AfterValidator(_hub_id)]
Address = Annotated[str, AfterValidator(_address)]
Multiple = Annotated[float, AfterValidator(_quarters)]
PartName = Annotated[str, AfterValidator(_plain)]
"""A configuration or a split of a data set."""
TaskName = Annotated[str, AfterValidator(_task)]
MetricName = Annotated[str, AfterValidator(_metric)]
PlainPath = Annotated[str, AfterValidator(_path)]
PlainWords = Annotated[str, AfterValidator(_words)]
PaperName = Annotated[str, AfterValidator(_paper)]


def known(key: str, name: str, among: Mapping[str, object]) -> None:
    """Raise ValueError, with the nearest known name, where ``name`` is none of ``among``."""
    if name not in among:
        raise ValueError(f"{key}: '{name}' is unknown{nearest(name, among)}")
