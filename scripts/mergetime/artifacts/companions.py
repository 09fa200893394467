"""What a model's folder holds beside its weights: its tokenizer, its templates, its code, its settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergetime.artifacts.files import check_size
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError

_TOKENIZER = (
    "tokenizer*",
    "merges.txt",
    "vocab*",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
)
_SETTINGS = ("*.json", "*.txt")
_CODE = ("*.py",)
# Records are of the base or the expert, and the index and an adapter's config of other weights.
_NOT_OF_A_MERGE = (
    MODEL_CONFIG,
    "fetched.json",
    "merged.json",
    "expert.json",
    "adapter_config.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)


def companions(folder: Path) -> list[Path]:
    """The files that belong to a checkpoint made of the model in this folder, but for weights and config.json.

    Code is among them where the settings name some (``auto_map``): it is copied and never run.
    """
    patterns = (*_TOKENIZER, *_SETTINGS, *(_CODE if _names_code(folder) else ()))
    return [path for path in _matching(folder, patterns) if not _is_of_others(path.name)]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer and of its chat templates."""
    return [path for path in _matching(folder, _TOKENIZER) if not _is_of_others(path.name)]


def refuse_links_out(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files of a model's folder that are links to files elsewhere: a copy would publish what they lead to.

    The folders of a hub's cache are links to its ``blobs``, which are the model's.

    Raises:
        UserError: naming the first.
    """
    whole = folder.resolve()
    places = (whole, whole.parent.parent / "blobs")
    for file in files:
        if not any(file.resolve().is_relative_to(place) for place in places):
            raise UserError(
                f"{file}: is a link that leads out of the model's folder; put a copy of the file in its place"
            )


def tokenizer_differs(folder: Path, base: Path) -> str | None:
    """What of an expert's tokenizer is not as the base's: ``tokenizer`` or ``chat template``; None where all is.

    An expert that brings none has the base's.

    Raises:
        UserError: where a file is too large to be one of a tokenizer.
    """
    if (folder / "tokenizer.json").is_file() and (base / "tokenizer.json").is_file():
        vocabularies = [_json(place / "tokenizer.json") for place in (folder, base)]
        parts = [(tokenizer.get("model"), tokenizer.get("added_tokens")) for tokenizer in vocabularies]
        if parts[0] != parts[1]:
            return "tokenizer"
    template = _template(folder)
    return "chat template" if template is not None and template != _template(base) else None


def token_names(folder: Path) -> dict[int, str]:
    """The tokens of a tokenizer.json by id, those that were added among them; none where there is no such file.

    Raises:
        UserError: where it is too large to be a tokenizer's.
    """
    tokenizer = _json(folder / "tokenizer.json")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    names: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        names = {place: token for token, place in vocabulary.items() if isinstance(place, int)}
    elif isinstance(vocabulary, list):  # of Unigram: tokens with their scores, by id
        names = {place: str(entry[0]) for place, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            names[entry["id"]] = str(entry.get("content"))
    return names


def _template(folder: Path) -> Any:
    path = folder / "chat_template.jinja"
    if path.is_file():
        check_size(path, f"model {folder}")
        return path.read_text()
    return _json(folder / "tokenizer_config.json").get("chat_template")


def _names_code(folder: Path) -> bool:
    return any("auto_map" in _json(path) for path in folder.glob("*config.json"))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _is_of_others(name: str) -> bool:
    return name in _NOT_OF_A_MERGE or name.endswith(".index.json")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would never end
        return {}
    try:
        check_size(path, f"model {path.parent}")
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
