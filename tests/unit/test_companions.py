"""Which files of a model's folder belong to its tokenizer, and what tells two tokenizers apart."""

import re
from pathlib import Path

import transformers

from mergetime.artifacts.companions import companions, tokenizer_files


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
