"""What the sections of a config are made of: names, commits, multiples of T*, and no unknown keys."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from mergetime.core.quarters import QUARTERS
from mergetime.core.registries import members
from mergetime.core.sections import Strict as Strict
from mergetime.core.words import nearest

HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")
ADDRESS = re.compile(r"https?://\S+")
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
PaperName = Annotated[str, AfterValidator(_paper)]


def known(key: str, name: str, among: Mapping[str, object]) -> None:
    """Raise ValueError, with the nearest known name, where ``name`` is none of ``among``."""
    if name not in among:
        raise ValueError(f"{key}: '{name}' is unknown{nearest(name, among)}")
