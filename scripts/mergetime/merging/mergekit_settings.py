"""The settings of a file of mergekit's: what it may hold, and what it says of a tensor, as parameters of our method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetime.core.errors import UserError
from mergetime.core.sections import Strict
from mergetime.core.words import nearest

Parameters = Mapping[str, Any] | None


@dataclass(frozen=True)
class Equivalent:
    """A merge method of mergekit.

    Attributes:
        ours: id of the method here.
        of_models: its parameters of each model, with their defaults; None: there is none.
        of_merge: its parameters of the merge.
        takes: those of its parameters, after translation, that the method here has.
        base_is_input: whether the base counts as one of the models that are merged.
    """

    ours: str
    of_models: Mapping[str, float | None]
    of_merge: Mapping[str, float | bool | None]
    takes: tuple[str, ...]
    base_is_input: bool = False


def _of_task_vectors(
    ours: str, *takes: str, normalize: bool = False, rescale: bool = False, **of_models: float
) -> Equivalent:
    """A method that mergekit makes of task vectors, weights, and maybe trimming or dropping and an election."""
    of_merge = {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False}
    return Equivalent(ours, {"weight": None, "density": 1.0, **of_models}, of_merge, ("weights", "lambda", *takes))


METHODS = {
    "linear": Equivalent("weighted_average", {"weight": None}, {"normalize": True}, ("weights",), base_is_input=True),
    "slerp": Equivalent("slerp", {}, {"t": None}, ("t",), base_is_input=True),
    "model_stock": Equivalent("model_stock", {}, {"filter_wise": False}, ()),
    "task_arithmetic": _of_task_vectors("task_arithmetic"),
    "ties": _of_task_vectors("ties", "density", "merge", normalize=True),
    "dare_linear": _of_task_vectors("dare", "density", "rescale", rescale=True),
    "dare_ties": _of_task_vectors("dare_ties", "density", "rescale", "merge", rescale=True),
    "della": _of_task_vectors(
        "della", "density", "epsilon", "rescale", "merge", normalize=True, rescale=True, epsilon=0.15
    ),
    "della_linear": _of_task_vectors("della_linear", "density", "epsilon", "rescale", rescale=True, epsilon=0.15),
    "breadcrumbs": _of_task_vectors("breadcrumbs", "density", "gamma", gamma=0.01),
    "breadcrumbs_ties": _of_task_vectors("breadcrumbs_ties", "density", "gamma", "merge", gamma=0.01),
}
_OF_MODELS = {name for method in METHODS.values() for name in method.of_models}
_OF_MERGES = {name for method in METHODS.values() for name in method.of_merge}
_TRUTHS = {"normalize", "rescale", "int8_mask", "filter_wise"}


class Source(Strict):
    """A model of a merge, in a slice with the layers that are taken of it."""

    model: Any
    parameters: dict[str, Any] | None = None
    layer_range: Any = None


class Slice(Strict):
    """Layers of the result."""

    sources: list[Source]
    base_model: Any = None
    parameters: dict[str, Any] | None = None
    residual_weight: Any = None


class File(Strict):
    """A file of mergekit's."""

    merge_method: str
    models: list[Source] | None = None
    slices: list[Slice] | None = None
    modules: Any = None
    base_model: Any = None
    parameters: dict[str, Any] | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Any = None
    chat_template: Any = None


@dataclass(frozen=True)
class AdaptedModel:
    """A model that the file names: a folder, and maybe that of an adapter on it."""

    folder: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Input:
    """A model that is merged: where the file names it, and its parameters from the nearest to the widest."""

    key: str
    model: AdaptedModel
    settings: tuple[Parameters, ...]


def all_parameters(file: File) -> list[tuple[str, dict[str, Any]]]:
    """Every mapping of parameters in the file, by its key."""
    listed = [("parameters", file.parameters)]
    listed += [(f"models.{place}.parameters", item.parameters) for place, item in enumerate(file.models or ())]
    for place, piece in enumerate(file.slices or ()):
        listed.append((f"slices.{place}.parameters", piece.parameters))
        listed += [
            (f"slices.{place}.sources.{number}.parameters", item.parameters)
            for number, item in enumerate(piece.sources)
        ]
    return [(key, parameters) for key, parameters in listed if parameters]


def checked_parameters(theirs: str, at: str, parameters: Mapping[str, Any], source: str) -> list[str]:
    """Check every setting of a mapping; what of it changes no number is noted."""
    method, notes = METHODS[theirs], []
    of_a_model = at.startswith("models.") or ".sources." in at
    for name, setting in parameters.items():
        key = f"{at}.{name}"
        if name not in _OF_MODELS | _OF_MERGES:
            raise UserError(f"{source}: {key}: unknown parameter{nearest(name, _OF_MODELS | _OF_MERGES)}")
        _check_setting(setting, name in _TRUTHS, f"{source}: {key}")
        if name == "int8_mask" or name not in {**method.of_models, **method.of_merge}:
            notes.append(f"{key}: changes no number of {theirs}")
        elif of_a_model and name in method.of_merge:
            raise UserError(f"{source}: {key}: mergekit reads it of the merge alone; move it to parameters")
        elif theirs == "task_arithmetic" and name in ("density", "rescale"):
            notes.append(f"{key}: changes no number of {theirs}")
    return notes


def _check_setting(setting: Any, truth: bool, where: str) -> None:
    """Refuse what is no value, no list of values, and no list of ``value`` with ``filter``."""
    for value in _alternatives(setting, where):
        for item in value if isinstance(value, list) else [value]:
            if truth and not isinstance(item, bool):
                raise UserError(f"{where}: {item!r} is neither true nor false")
            if not truth:
                _number(item, where)
        if value == []:
            raise UserError(f"{where}: is an empty list; give a number, or numbers from the first layer to the last")


def _alternatives(setting: Any, where: str) -> list[Any]:
    """The values of a setting, whatever tensors they are for."""
    if isinstance(setting, dict):
        setting = [setting]
    if not (isinstance(setting, list) and any(isinstance(item, dict) for item in setting)):
        return [setting]
    for item in setting:
        if not isinstance(item, dict) or "value" not in item or not item.keys() <= {"value", "filter"}:
            raise UserError(f"{where}: {item!r} is no mapping of value, and maybe filter")
        if not isinstance(item.get("filter"), str | None):
            raise UserError(f"{where}.filter: {item['filter']!r} is no text; put it in quotes")
    return [item["value"] for item in setting]


def _number(value: Any, where: str) -> float:
    """A number, also one that YAML takes for a text, such as 1e-3."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except ValueError:
        raise UserError(f"{where}: {value!r} is not a number") from None


def may_vary(setting: Any) -> bool:
    """Whether a setting may differ by tensor."""
    if isinstance(setting, dict):
        setting = [setting]
    return isinstance(setting, list)


def evaluated(setting: Any, tensor: str, place: float) -> Any:
    """The value of a setting for a tensor; None: it has none.

    Of alternatives the first counts whose filter is a part of the tensor's name. Of a list of numbers it is the point
    at ``place`` on the line through them, of other values the one before that.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if any(isinstance(item, dict) for item in setting):
        for item in setting:
            if item.get("filter") in (None, "*") or item["filter"] in tensor:
                return evaluated(item["value"], tensor, place)
        return None
    scaled = place * (len(setting) - 1)
    first = int(scaled)
    if any(isinstance(item, bool) for item in setting):
        return setting[first]
    numbers = [float(item) for item in setting]
    return (1 - (scaled - first)) * numbers[first] + (scaled - first) * numbers[min(len(numbers) - 1, first + 1)]


def _resolved(name: str, settings: Sequence[Parameters], default: Any, tensor: str, place: float, where: str) -> Any:
    """The value of a parameter from the nearest mapping that has one for this tensor, else its default."""
    for parameters in settings:
        if parameters and name in parameters:
            value = evaluated(parameters[name], tensor, place)
            if value is not None:
                return value if isinstance(value, bool) else _number(value, where)
    if default is None:
        raise UserError(f"{where}: {name} is missing, and has no default; add it")
    return default


def values_of(
    method: Equivalent,
    names: Sequence[str],
    inputs: Sequence[Input],
    shared: Sequence[Parameters],
    tensor: str,
    place: float,
    source: str,
) -> dict[str, Any]:
    """The parameters of the method here for a tensor, before they are validated.

    Args:
        method: of mergekit.
        names: the experts'.
        inputs: the experts in the order of their names, and behind them the base where it counts.
        shared: parameters of the merge, from the nearest mapping to the widest.
        tensor: its name.
        place: among the layers, from 0 to 1.
        source: what errors begin with.
    """

    def of_merge(name: str) -> Any:
        return _resolved(name, shared, method.of_merge[name], tensor, place, f"{source}: parameters")

    def of_models(name: str) -> list[float]:
        default = method.of_models[name]
        return [
            float(_resolved(name, item.settings, default, tensor, place, f"{source}: {item.key}.parameters"))
            for item in inputs
        ]

    values: dict[str, Any] = {}
    if "t" in method.takes:
        values["t"] = of_merge("t")
    if method.of_merge.get("filter_wise") is False and of_merge("filter_wise"):
        raise UserError(f"{source}: parameters.filter_wise: is not done here; leave it out")
    if "weights" in method.takes:
        weights = of_models("weight")
        normalised = of_merge("normalize")
        if "merge" in method.takes:
            values |= {"vote": "weighted", "merge": "mean" if normalised else "sum", "divide": "weights"}
        else:
            weights = _normalised(weights, normalised, method, source)
        if method.base_is_input:
            values["over"] = "sum"
        if "density" in method.takes:
            densities = [min(density, 1.0) for density in of_models("density")]
            # mergekit keeps nothing at a density of 0: as if the weight were 0.
            weights = [0.0 if density <= 0 else weight for density, weight in zip(densities, weights, strict=True)]
            values["density"] = dict(zip(names, (share if share > 0 else 1.0 for share in densities), strict=False))
        values["weights"] = dict(zip(names, weights, strict=False))
    for name in ("gamma", "epsilon"):
        if name in method.takes:
            values[name] = dict(zip(names, of_models(name), strict=False))
    if "lambda" in method.takes:
        values["lambda"] = of_merge("lambda")
    if "rescale" in method.takes:
        values["rescale"] = "l1" if of_merge("rescale") else "none"
    elif "density" in method.takes and of_merge("rescale"):
        raise UserError(
            f"{source}: parameters.rescale: entries that a method ranks are not rescaled here; leave it out, or use "
            "dare_ties or della"
        )
    return values


def _normalised(weights: list[float], wanted: bool, method: Equivalent, source: str) -> list[float]:
    """The weights over their sum, where that is wanted and the sum is not 0."""
    total = sum(weights)
    if method.base_is_input:
        if wanted and total == 0:
            raise UserError(f"{source}: the weights sum to 0, so that their mean does not exist; change one")
        if not wanted and abs(total - 1) > 1e-6:
            raise UserError(
                f"{source}: parameters.normalize: is false, and the weights sum to {total:g}; the model as a whole is "
                "not scaled here, so let them sum to 1, or leave normalize out"
            )
    return [weight / total for weight in weights] if wanted and abs(total) >= 1e-8 else weights
