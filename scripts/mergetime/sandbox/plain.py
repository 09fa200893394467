"""Plain values as JSON: how a generated program and the tests of it, in two processes, exchange what they compute.

What is read is numbers, texts and containers again, whatever was written: an object of a class of the program's own,
which might be equal to everything, does not get across. Standard library only.
"""

from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from importlib import import_module
from typing import Any

_CONTAINERS: dict[str, type[Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque,
}  # fmt: skip
_BYTES: dict[str, type[Any]] = {"bytes": bytes, "bytearray": bytearray}
_LARGE = 1 << 63
_NUMBERS = {("decimal", "Decimal"), ("fractions", "Fraction")}
"""Numbers that are written as text, by module and class; a module is imported where such a number comes up."""


def written(value: Any) -> Any:
    """What stands for ``value`` in JSON: itself for a bool, number, text or None, else a dict with the kind as its key.

    Iterators and views of dicts are used up and become lists; of a subclass, what makes it another class is lost.

    Raises:
        TypeError: for a value of any other class.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Beyond these a text of digits has a limit, and takes more than linear time.
        return int(value) if abs(int(value)) < _LARGE else {"int": hex(value)}
    if isinstance(value, (float, str)):
        return float(value) if isinstance(value, float) else str(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[written(key), written(content)] for key, content in value.items()]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    for kind, container in _CONTAINERS.items():
        if isinstance(value, container):
            return {kind: [written(item) for item in value]}
    for kind, sequence in _BYTES.items():
        if isinstance(value, sequence):
            return {kind: value.decode("latin-1")}
    if isinstance(value, Iterator):
        return {"iterator": [written(item) for item in value]}
    if isinstance(value, (KeysView, ValuesView, ItemsView)):
        return {"list": [written(item) for item in value]}
    for base in type(value).__mro__:
        if (base.__module__, base.__name__) in _NUMBERS:
            return {base.__name__: str(value)}
    raise TypeError(f"{type(value).__name__} is no plain value")


def read(json: Any) -> Any:
    """The value that :func:`written` wrote.

    Raises:
        ValueError: if it did not.
    """
    if not isinstance(json, dict):
        return json
    if len(json) != 1:
        raise ValueError("not one kind of value")
    ((kind, content),) = json.items()
    try:
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](read(item) for item in content)
        if kind in _BYTES:
            return _BYTES[kind](content, "latin-1")
        if kind == "Decimal":
            return import_module("decimal").Decimal(content)
        if kind == "Fraction":
            return import_module("fractions").Fraction(content)
        if kind == "int":
            return int(content, 16)
        if kind == "dict":
            return {read(key): read(item) for key, item in content}
        if kind == "iterator":
            return iter([read(item) for item in content])
        return {"complex": complex, "range": range}[kind](*content)
    except (TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"no {kind} as it is written") from error


def refill(container: Any, changed: Any) -> None:
    """Make a list, dict, set, deque or bytearray that was passed to a function what the function made of it."""
    if isinstance(container, (list, bytearray)):
        container[:] = changed
    elif isinstance(container, (dict, set, deque)):
        container.clear()
        (container.extend if isinstance(container, deque) else container.update)(changed)
