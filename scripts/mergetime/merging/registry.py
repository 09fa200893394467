"""All merge methods by id. Importing it does not import torch, so that configs are checked through it at no cost."""

import functools
import importlib
import pkgutil

from mergetime.core.words import nearest
from mergetime.merging import methods
from mergetime.merging.method import Method


@functools.cache
def _all() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        for method in importlib.import_module(module.name).METHODS:
            if method.id in found:
                raise ValueError(f"{module.name}: there is another merge method with the id {method.id!r}")
            found[method.id] = method
    return found


def names() -> list[str]:
    """The ids of all methods, sorted."""
    return sorted(_all())


def get(name: str) -> Method:
    """The method with this id.

    Raises:
        ValueError: for an unknown id, naming the nearest one.
    """
    if name not in _all():
        raise ValueError(f"unknown merge method {name!r}{nearest(name, _all())}")
    return _all()[name]


def explain(name: str) -> str:
    """What a method computes, its parameters and spaces, as text."""
    return get(name).explain()
