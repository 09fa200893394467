"""What the sections of a config are made of: names, commits, multiples of T*, and no unknown keys."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from mergetime.core.quarters import QUARTERS
from mergetime.core.words import nearest

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9_.\-]*")


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"'{name}' is no id; use a-z, 0-9, '_', '.' and '-'")
    return name


UNRESOLVED = "unresolved"
"""Stands for a commit that nobody has looked up yet: a study with it can be planned, but nothing of it is fetched."""


def _commit(revision: str) -> str:
    if revision != UNRESOLVED and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"'{revision}' is no commit hash; a branch can move, so pin the 40 hexadecimal digits that the hub shows"
        )
    return revision


def _quarters(multiple: float) -> float:
    if multiple <= 0 or multiple * QUARTERS != int(multiple * QUARTERS):
        raise ValueError(f"{multiple} is no positive multiple of 0.25, so no saved step would be exactly there")
    return multiple


Identifier = Annotated[str, AfterValidator(_identifier)]
Commit = Annotated[str, AfterValidator(_commit)]
Multiple = Annotated[float, AfterValidator(_quarters)]


class Strict(BaseModel):
    """A section of the config; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def known(key: str, name: str, among: Mapping[str, object]) -> None:
    """Raise ValueError, with the nearest known name, where ``name`` is none of ``among``."""
    if name not in among:
        raise ValueError(f"{key}: '{name}' is unknown{nearest(name, among)}")
