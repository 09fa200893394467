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
    "*.tokenizer",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "vocab*",
    "*_vocab.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "byte_maps.json",
    "emoji.json",
    "normalizer.json",
    "word_pronunciation.json",
    "word_shape.json",
    "*.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
)
"""What the tokenizers of transformers call their files (``VOCAB_FILES_NAMES``), and chat templates."""
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

_MEND = "fetch it again, or take it out of the folder"


def companions(folder: Path) -> list[Path]:
    """The files that belong to a checkpoint made of the model in this folder, but for weights and config.json.

    Code is among them where the settings name some (``auto_map``): it is copied and never run.
    """
    patterns = (*_TOKENIZER, *_SETTINGS, *(_CODE if _names_code(folder) else ()))
    return [path for path in _matching(folder, patterns) if not _is_of_others(path.name)]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer and of its chat templates."""
    return [path for path in _matching(folder, _TOKENIZER) if not _is_of_others(path.name)]


def written_beside(base: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """The files beside a merged checkpoint's weights by name: the base's, with the tokenizer of another folder.

    Raises:
        UserError, OSError: naming a file that leads out of its model's folder, or that may not be read.
    """
    files = {base: companions(base)}
    if tokenizer is not None:
        replaced = tokenizer_files(base)
        files[base] = [path for path in files[base] if path not in replaced]
        files[tokenizer] = tokenizer_files(tokenizer)
    for folder, paths in files.items():
        refuse_links_out(folder, paths)
        for path in paths:
            path.open("rb").close()
    return {path.relative_to(folder).as_posix(): path for folder, paths in files.items() for path in paths}


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
        UserError: naming a file that is too large to be one of a tokenizer, or that is no text or no JSON.
    """
    if (folder / "tokenizer.json").is_file() and (base / "tokenizer.json").is_file():
        vocabularies = [_read(place / "tokenizer.json") for place in (folder, base)]
        parts = [(tokenizer.get("model"), tokenizer.get("added_tokens")) for tokenizer in vocabularies]
        if parts[0] != parts[1]:
            return "tokenizer"
    template = _template(folder)
    return "chat template" if template is not None and template != _template(base) else None


def token_names(folder: Path) -> dict[int, str]:
    """The tokens of a tokenizer.json by id, those that were added among them; none where there is no such file.

    Raises:
        UserError: where it is too large to be a tokenizer's, or no JSON.
    """
    tokenizer = _read(folder / "tokenizer.json")
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
        return _text(path)
    return _read(folder / "tokenizer_config.json").get("chat_template")


def _names_code(folder: Path) -> bool:
    return any("auto_map" in _json(path) for path in folder.glob("*config.json"))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _is_of_others(name: str) -> bool:
    return name in _NOT_OF_A_MERGE or name.endswith(".index.json")


def _json(path: Path) -> dict[str, Any]:
    """The object in a file of settings, read for what it may say; none where it cannot be read."""
    try:
        return _read(path)
    except (OSError, _UnreadableError):
        return {}


class _UnreadableError(UserError):
    """A file is not what its name says."""


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a tokenizer; none where there is no such file.

    Raises:
        UserError: naming the file that is too large, or no JSON object.
    """
    if not path.is_file():  # a pipe would never end
        return {}
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else error
        raise _UnreadableError(f"{path}: is no JSON that can be read ({said}); {_MEND}") from error
    if not isinstance(content, dict):
        raise _UnreadableError(f"{path}: holds no JSON object; {_MEND}")
    return content


def _text(path: Path) -> str:
    """The text of a file of a tokenizer."""
    check_size(path, f"model {path.parent}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"{path}: is no text in UTF-8; save it in UTF-8, or {_MEND}") from error
