"""Rows of an embedding or a head that were trained alone (``trainable_token_indices`` of PEFT)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergetime.architectures.architecture import Architecture
from mergetime.artifacts.base_weights import BaseWeights, base_name
from mergetime.artifacts.names import ADAPTER_CONFIG
from mergetime.artifacts.vocabulary import ExtraRows, difference
from mergetime.core.errors import UserError

_SETTING = "trainable_token_indices"
_KEY = re.compile(r"base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta")


@dataclass(frozen=True)
class TokenRows:
    """The rows of a table that were trained: their key in the file, and the tokens that they are of."""

    key: str
    places: tuple[int, ...]


def is_of_tokens(key: str) -> bool:
    """Whether a tensor of an adapter's file holds trained rows."""
    return _KEY.fullmatch(key) is not None


def tokens_in(
    owner: str,
    file: Any,
    config: Mapping[str, Any],
    architecture: Architecture,
    base: BaseWeights | None,
    extra_rows: ExtraRows,
) -> dict[str, TokenRows]:
    """The trained rows in an adapter's file, by the canonical name of the tensor that they are of.

    Raises:
        UserError: where file and config disagree, or the base has no such rows.
    """
    modules = {match[1]: key for key in sorted(file.keys()) if (match := _KEY.fullmatch(key))}
    by_name = config.get(_SETTING)
    head_is_tied = base is not None and architecture.head not in base.shapes
    for wanted in by_name if isinstance(by_name, dict) else ():
        # PEFT saves a head that is tied with its embedding alone.
        if head_is_tied and architecture.is_head(f"{wanted}.weight") and modules:
            continue
        if not any(module.endswith(wanted) for module in modules):
            raise UserError(
                f"{owner}: lacks the rows of {wanted} that {_SETTING} of its {ADAPTER_CONFIG} names; save it again"
            )
    if by_name and not modules:
        raise UserError(f"{owner}: lacks the rows that {_SETTING} of its {ADAPTER_CONFIG} names; save it again")
    tokens: dict[str, TokenRows] = {}
    for module, key in modules.items():
        name = architecture.canonical(f"{module}.weight")
        places = _places(module, by_name, tied=head_is_tied and architecture.is_head(name))
        shape = file.get_slice(key).get_shape()
        if len(shape) != 2 or shape[0] != len(places):
            raise UserError(
                f"{owner}: {key} is {'x'.join(map(str, shape))}, where {_SETTING} of its {ADAPTER_CONFIG} lists "
                f"{len(places)} tokens; save it again"
            )
        for place, times in Counter(places).items():
            if times > 1:
                raise UserError(
                    f"{owner}: {_SETTING} names token {place} twice, and only one row of it counts; drop one"
                )
        _check_fits(owner, name, places, shape[1], base, extra_rows)
        tokens[name] = TokenRows(key, tuple(places))
    return tokens


def _places(module: str, setting: Any, *, tied: bool) -> Sequence[int]:
    """The tokens whose rows of a module were trained; those of the embedding for a head that it may be tied to."""
    if not isinstance(setting, dict):
        return setting or []
    named = [places for wanted, places in setting.items() if module.endswith(wanted)]
    if not named and tied:
        named = list(setting.values())
    return named[0] if named else []


def _check_fits(
    owner: str, name: str, places: Sequence[int], columns: int, base: BaseWeights | None, extra_rows: ExtraRows
) -> None:
    """Refuse rows that the base does not have, unless they are among those of which it is said what becomes."""
    if base is None:
        return
    stored = base_name(base, name)
    shape = base.shapes[stored] if stored else ()
    if len(shape) != 2 or shape[1] != columns:
        held = f"it is {'x'.join(map(str, shape))}" if stored else "there is none"
        raise UserError(
            f"{owner}: trained rows of {name} with {columns} numbers, in the base {held}; it belongs to another base"
        )
    if extra_rows == "refuse" and max(places, default=0) >= shape[0]:
        raise UserError(
            f"{owner}: trained row {max(places)} of {name}, of which the base has {shape[0]} (from 0); "
            f"{difference(max(places) + 1, shape[0])}"
        )
