"""The architecture files of this folder, found by ``model_type``, and files that a user gives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergetime.architectures.architecture import Architecture, Family, Modality
from mergetime.core import yaml_text
from mergetime.core.errors import UserError

FOLDER = Path(__file__).parent
_WITHOUT_BASE = "without_base"


def files() -> list[Path]:
    """All architecture files that come with the package, by name."""
    return sorted(FOLDER.glob("*.yaml"))


def architecture_of(config: Mapping[str, Any], modality: Modality | None = None) -> Architecture:
    """The architecture of a model, by ``model_type`` of its config.json.

    Args:
        config: the content of config.json.
        modality: what the model is used as; None: what its family is (``causal_lm`` for language models).

    Raises:
        UserError: where no file serves the model type.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError("config.json has no model_type, so it is unknown what the tensors are for; add it")
    path = _by_model_type().get(model_type)
    if path is None:
        raise UserError(
            f"model_type {model_type} has no architecture file: write {FOLDER / f'{model_type}.yaml'}, "
            "or give one by --architecture FILE"
        )
    return _architecture(path, modality)


def architecture_at(path: Path, config: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture that a user's file describes.

    Args:
        path: a YAML file of the form of :class:`Family`.
        config: the content of the base's config.json, whose model type the file must name; None: no base is at hand.

    Raises:
        UserError: where the file is absent or wrong, naming the key, or is for other model types.
    """
    architecture = _architecture(path, None)
    if config is not None and config.get("model_type") not in architecture.family.model_types:
        raise UserError(
            f"{path}: is for model_type {', '.join(architecture.family.model_types)}, "
            f"the base's is {config.get('model_type')}"
        )
    return architecture


def without_base() -> Architecture:
    """What is known of the modules of LoRA adapters whose base is not at hand.

    Only LoRA on linear layers and embeddings is read, so a module is linear unless its name says that it is an
    embedding or a head, or of a part that text does not use.
    """
    return _architecture(FOLDER / f"{_WITHOUT_BASE}.yaml", None)


@cache
def _architecture(path: Path, modality: Modality | None) -> Architecture:
    family = _family(path)
    inside = path.is_relative_to(Path.cwd())
    return Architecture(str(path.relative_to(Path.cwd()) if inside else path), family, modality or family.modality)


@cache
def _by_model_type() -> dict[str, Path]:
    path_of: dict[str, Path] = {}
    for path in files():
        for model_type in _family(path).model_types if path.stem != _WITHOUT_BASE else ():
            if model_type in path_of:
                raise UserError(f"model_type {model_type} is in {path_of[model_type]} and {path}; remove it from one")
            path_of[model_type] = path
    return path_of


@cache
def _family(path: Path) -> Family:
    try:
        content = yaml_text.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give --architecture a YAML file") from error
    try:
        return Family.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}") from error
