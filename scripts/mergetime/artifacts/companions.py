"""What a model's folder holds beside its weights: its tokenizer, its templates, its code, its settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergetime.artifacts.files import check_size
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError

_VOCABULARY = (
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "vocab*",
    "*_vocab.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.tokenizer",
    "byte_maps.json",
    "emoji.json",
    "normalizer.json",
    "word_pronunciation.json",
    "word_shape.json",
)
"""What the tokenizers of transformers call their files (``VOCAB_FILES_NAMES``), but for tokenizer.json."""
_TOKENIZER = (
    "tokenizer*",
    *_VOCABULARY,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
_STEPS = ("normalizer", "pre_tokenizer")
"""What a tokenizer.json does to a text before it looks for tokens."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
"""Without pad_token, which training sets where a tokenizer has none, and which is no part of any text."""
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
    """What of an expert's tokenizer is not as the base's; None where all is.

    An expert that brings none has the base's. What is compared is what the files mean: padding, truncation, versions,
    paths and the spelling of defaults do not count.

    Returns:
        The first of ``tokenizer``, which is its tokens and merges, ``normalizer``, ``pre_tokenizer``, a special token,
        such as ``eos_token``, and ``chat template``.

    Raises:
        UserError: naming a file that is too large to be one of a tokenizer, or that is no text or no JSON.
    """
    if not tokenizer_files(folder):
        return None
    if _tokens_differ(folder, base):
        return "tokenizer"
    steps, of_base = (_read(place / "tokenizer.json") for place in (folder, base))
    for part in _STEPS if steps and of_base else ():
        if steps.get(part) != of_base.get(part) and _spelled_out(steps, part) != _spelled_out(of_base, part):
            return part
    special, of_base = _special_tokens(folder), _special_tokens(base)
    for name in _SPECIAL:
        if name in special and special[name] != of_base.get(name, special[name]):
            return name
    return None if _templates(folder) <= _templates(base) else "chat template"


def token_names(folder: Path) -> dict[int, str]:
    """The tokens of a tokenizer by id, as far as files of text name them, those that were added among them.

    Raises:
        UserError: where such a file is too large to be a tokenizer's, or cannot be read.
    """
    config, tokenizer = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    decoder, added = config.get("added_tokens_decoder"), tokenizer.get("added_tokens")
    names = _vocabulary(folder) | _by_id(_read(folder / "added_tokens.json"))
    for place, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and place.isdecimal():
            names[int(place)] = str(entry.get("content"))
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            names[entry["id"]] = str(entry.get("content"))
    return names


def _vocabulary(folder: Path) -> dict[int, str]:
    """The tokens of a vocabulary by id, without added ones; none where no file of text has them."""
    model = _read(folder / "tokenizer.json").get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of Unigram: tokens with their scores, by id
        return {place: str(entry[0]) for place, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    if isinstance(vocabulary, dict):
        return _by_id(vocabulary)
    if names := _by_id(_read(folder / "vocab.json")):
        return names
    # Beside bpe.codes its lines are tokens with counts, and ids begin elsewhere.
    if (folder / "vocab.txt").is_file() and not (folder / "bpe.codes").is_file():
        return dict(enumerate(_text(folder / "vocab.txt").splitlines()))
    return {}


def _by_id(ids: dict[str, Any]) -> dict[int, str]:
    return {place: token for token, place in ids.items() if isinstance(place, int)}


def _tokens_differ(folder: Path, base: Path) -> bool:
    """Whether an expert's tokens or merges are not the base's, as far as files that both have, or of text, say."""
    files, of_base = ({path.name: path for path in _matching(place, _VOCABULARY)} for place in (folder, base))
    shared = files.keys() & of_base.keys()
    if any(_content(files[name]) != _content(of_base[name]) for name in shared):
        return True
    tokenizers = [_read(place / "tokenizer.json") for place in (folder, base)]
    if all(tokenizers) and _model(tokenizers[0]) != _model(tokenizers[1]):
        return True
    names, known = token_names(folder), token_names(base)
    if any(known.get(place, token) != token for place, token in names.items()):
        return True
    whole, base_whole = _vocabulary(folder), _vocabulary(base)
    more = {token for place, token in names.items() if place not in known}
    if whole and base_whole:
        return names.keys() != known.keys()
    if (files or whole) and not shared and not all(tokenizers):
        return True  # nothing that can be compared
    if whole:
        return False  # the rest of the base's tokens is in a file that both have
    return bool(more if base_whole else more - _named_special(base))


def _model(tokenizer: dict[str, Any]) -> tuple[Any, Any]:
    """Tokens and merges of a tokenizer.json, however its version writes merges and defaults."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if value is not None and value is not False and value != ""}
        if isinstance(merges := model.get("merges"), list):
            model["merges"] = [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges]
    return model, added


def _spelled_out(tokenizer: dict[str, Any], part: str) -> Any:
    """A step of a tokenizer.json with all its settings, as the library writes it, where the library knows it."""
    from tokenizers import Tokenizer

    plain = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}, "added_tokens": []}
    try:
        return json.loads(Tokenizer.from_str(json.dumps({**plain, part: tokenizer.get(part)})).to_str())[part]
    # The library raises no narrower one.
    except Exception:
        return tokenizer.get(part)


def _special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that settings name, by their key."""
    settings = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    return {name: _token(settings[name]) for name in _SPECIAL if settings.get(name) is not None}


def _named_special(folder: Path) -> set[str]:
    """All special tokens that settings name, also those without a part of their own."""
    lists = ("additional_special_tokens", "extra_special_tokens")
    settings = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    more = [token for name in lists if isinstance(tokens := settings.get(name), list) for token in tokens]
    return {*_special_tokens(folder).values(), *map(_token, more)}


def _token(setting: Any) -> str:
    return str(setting.get("content") if isinstance(setting, dict) else setting)


def _templates(folder: Path) -> set[tuple[str, str]]:
    """The chat templates by name; those in settings count where no chat_template.jinja takes their place."""
    templates = {(path.stem, _text(path)) for path in _matching(folder, ("additional_chat_templates/*.jinja",))}
    if (folder / "chat_template.jinja").is_file():
        return {*templates, ("default", _text(folder / "chat_template.jinja"))}
    for name in ("tokenizer_config.json", "chat_template.json"):
        setting = _read(folder / name).get("chat_template")
        if isinstance(setting, list):
            setting = {entry.get("name"): entry.get("template") for entry in setting if isinstance(entry, dict)}
        texts = setting if isinstance(setting, dict) else {"default": setting}
        templates |= {(str(key), text) for key, text in texts.items() if isinstance(text, str)}
    return templates


def _content(path: Path) -> Any:
    """What a file of a vocabulary says: JSON, lines without comments on versions, or bytes."""
    if path.suffix == ".json":
        return _parsed(path)
    check_size(path, f"model {path.parent}")
    content = path.read_bytes()
    if path.suffix != ".txt":
        return content
    return [line for line in content.rstrip().splitlines() if not line.startswith(b"#version")]


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
    content = _parsed(path)
    if not isinstance(content, dict):
        raise _UnreadableError(f"{path}: holds no JSON object; {_MEND}")
    return content


def _parsed(path: Path) -> Any:
    """The content of a JSON file of a tokenizer."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else error
        raise _UnreadableError(f"{path}: is no JSON that can be read ({said}); {_MEND}") from error


def _text(path: Path) -> str:
    """The text of a file of a tokenizer."""
    check_size(path, f"model {path.parent}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"{path}: is no text in UTF-8; save it in UTF-8, or {_MEND}") from error
