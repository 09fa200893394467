"""All merge methods by id. Importing it does not import torch, so that configs are checked through it at no cost."""

import functools
from pathlib import Path

from mergetime.core.registries import Registry
from mergetime.core.words import nearest
from mergetime.merging.method import MergeMethod

METHODS = Registry("mergetime.merging.methods", "module of merge methods")


@functools.cache
def _all() -> dict[str, tuple[MergeMethod, str]]:
    """Every method with the module that defines it."""
    methods: dict[str, tuple[MergeMethod, str]] = {}
    for module in METHODS.names():
        for method in METHODS.load(module).METHODS:
            if method.id in methods:
                raise ValueError(f"{module}.py: there is another merge method with the id {method.id!r}")
            methods[method.id] = method, module
    return methods


def names() -> list[str]:
    """The ids of all methods, sorted."""
    return sorted(_all())


def get(name: str) -> MergeMethod:
    """The method with this id.

    Raises:
        ValueError: for an unknown id, naming the nearest one.
    """
    return _find(name)[0]


def file_of(name: str) -> Path:
    """The module that defines the method with this id, for digests; errors as of :func:`get`."""
    return METHODS.file(_find(name)[1])


def explain(name: str) -> str:
    """What a method computes, its parameters and spaces, as text."""
    kept = (
        "With --extra-rows keep, rows beyond the base's vocabulary are the plain mean over the experts that have them."
    )
    return f"{get(name).explain()}\n{kept}"


def _find(name: str) -> tuple[MergeMethod, str]:
    if name not in _all():
        raise ValueError(f"unknown merge method {name!r}{nearest(name, _all())}")
    return _all()[name]
