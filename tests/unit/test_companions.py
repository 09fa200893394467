"""Which files of a model's folder belong to its tokenizer, and what tells two tokenizers apart."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from mergetime.artifacts.companions import companions, token_names, tokenizer_differs, tokenizer_files


def vocabulary_files() -> set[str]:
    """The names that the tokenizers of transformers give to their files."""
    models = Path(transformers.__file__).parent / "models"
    names: set[str] = set()
    for module in models.glob("*/tokenization_*.py"):
        for table in re.findall(r"^VOCAB_FILES_NAMES = \{(.*?)\}", module.read_text(), re.DOTALL | re.MULTILINE):
            names |= set(re.findall(r':\s*"([^"]+)"', table))
    return names


def test_the_files_of_every_tokenizer_are_among_them(tmp_path: Path) -> None:
    names = vocabulary_files() | {"chat_template.json", "chat_template.jinja"}
    assert names > {"bpe.codes", "source.spm", "vocab.txt", "sentencepiece.bpe.model"}
    for name in names:
        (tmp_path / name).write_text("{}")
    assert {path.name for path in tokenizer_files(tmp_path)} == names
    assert {path.name for path in companions(tmp_path)} == names


BPE: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
FAST: dict[str, Any] = {"model": BPE, "added_tokens": [], "normalizer": None, "pre_tokenizer": BYTES}
SLOW = {"vocab.json": BPE["vocab"], "merges.txt": "#version: 0.2\na b\n"}
PIECES = {"tokenizer.model": "pieces", "tokenizer_config.json": {"bos_token": "<s>"}}
DECODER = {"added_tokens_decoder": {"3": {"content": "<x>"}}}


def model(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("base", "expert", "part"),
    [
        (PIECES, {"tokenizer.model": "others"}, "tokenizer"),
        (SLOW, {**SLOW, "vocab.json": {"a": 0, "b": 1, "aa": 2}}, "tokenizer"),
        (SLOW, {**SLOW, "merges.txt": "#version: 0.2\nb a\n"}, "tokenizer"),
        ({"vocab.txt": "a\nb\n"}, {"vocab.txt": "a\nc\n"}, "tokenizer"),
        (PIECES, {**PIECES, "added_tokens.json": {"<x>": 3}}, "tokenizer"),
        (SLOW, {"added_tokens.json": {"<x>": 3}}, "tokenizer"),
        (SLOW, {"tokenizer_config.json": DECODER}, "tokenizer"),
        ({}, {"tokenizer.json": FAST}, "tokenizer"),
        ({"tokenizer.model": "pieces"}, {"tokenizer.json": FAST}, "tokenizer"),
        (SLOW, {"tokenizer.json": {**FAST, "added_tokens": [{"id": 3, "content": "<x>"}]}}, "tokenizer"),
        ({"tokenizer.json": FAST}, {"tokenizer.json": {**FAST, "normalizer": {"type": "NFC"}}}, "normalizer"),
        (
            {"tokenizer.json": FAST},
            {"tokenizer.json": {**FAST, "pre_tokenizer": {**BYTES, "add_prefix_space": True}}},
            "pre_tokenizer",
        ),
        ({"tokenizer_config.json": {"eos_token": "a"}}, {"tokenizer_config.json": {"eos_token": "b"}}, "eos_token"),
        (
            {"tokenizer_config.json": {"eos_token": "a"}},
            {"special_tokens_map.json": {"eos_token": {"content": "b", "lstrip": False}}},
            "eos_token",
        ),
        ({"tokenizer_config.json": {"chat_template": "x"}}, {"chat_template.json": {"chat_template": "y"}}, "chat"),
        ({"chat_template.jinja": "x"}, {"additional_chat_templates/rag.jinja": "y"}, "chat"),
        ({}, {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "y"}]}}, "chat"),
    ],
)
def test_what_tells_two_tokenizers_apart(
    base: dict[str, Any], expert: dict[str, Any], part: str, tmp_path: Path
) -> None:
    folders = model(tmp_path / "expert", expert), model(tmp_path / "base", base)
    assert tokenizer_differs(*folders) == ("chat template" if part == "chat" else part)
    assert tokenizer_differs(folders[0], folders[0]) is None


@pytest.mark.parametrize(
    ("base", "expert"),
    [
        (SLOW, {}),
        (SLOW, {"tokenizer.json": FAST}),
        ({"tokenizer.json": FAST}, SLOW),
        (SLOW, {**SLOW, "merges.txt": "a b"}),
        (PIECES, {**PIECES, "tokenizer.json": FAST}),
        # The tokens of a vocabulary that cannot be read, named by a newer version.
        (PIECES, {**PIECES, "tokenizer_config.json": {"added_tokens_decoder": {"1": {"content": "<s>"}}}}),
        (
            {"tokenizer.json": FAST},
            {
                "tokenizer.json": {
                    **FAST,
                    "version": "1.0",
                    "padding": {"pad_id": 0},
                    "truncation": {"max_length": 8},
                    "model": {**BPE, "merges": [["a", "b"]], "byte_fallback": False, "unk_token": None},
                    "pre_tokenizer": {**BYTES, "use_regex": True},
                }
            },
        ),
        (
            {"tokenizer_config.json": {"eos_token": {"content": "a"}, "pad_token": None, "bos_token": None}},
            {"tokenizer_config.json": {"eos_token": "a", "pad_token": "a", "bos_token": "a", "name_or_path": "/x"}},
        ),
        ({"tokenizer_config.json": {"chat_template": "x"}}, {"chat_template.jinja": "x"}),
        ({"chat_template.json": {"chat_template": "x"}}, {"chat_template.jinja": "x"}),
        ({"chat_template.jinja": "x", "additional_chat_templates/rag.jinja": "y"}, {"chat_template.jinja": "x"}),
    ],
)
def test_what_does_not(base: dict[str, Any], expert: dict[str, Any], tmp_path: Path) -> None:
    assert tokenizer_differs(model(tmp_path / "expert", expert), model(tmp_path / "base", base)) is None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": {**FAST, "added_tokens": [{"id": 3, "content": "<x>"}]}},
        {**SLOW, "added_tokens.json": {"<x>": 3}},
        {"vocab.txt": "a\nb\nab\n", "tokenizer_config.json": DECODER},
    ],
)
def test_tokens_by_id(files: dict[str, Any], tmp_path: Path) -> None:
    assert token_names(model(tmp_path / "m", files)) == {0: "a", 1: "b", 2: "ab", 3: "<x>"}
