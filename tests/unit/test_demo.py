"""The demo's inputs: disjoint by construction, in the columns of the real sets, at the commits that configs pin."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from mergetime.data.registry import to_messages
from mergetime.demo import arithmetic, functions, instructions, locales, requests
from mergetime.demo.hub import make
from mergetime.evaluation import scoring

ROOT = Path(__file__).parents[2]
DOMAINS = {
    "dart_math": (arithmetic, "question"),
    "magicoder": (functions, "prompt"),
    "tulu_persona_if": (instructions, "prompt"),
    "aya": (locales, "question"),
    "beavertails": (requests, "behavior"),
}
COLUMNS: dict[str, dict[str, type]] = {
    "dart_math": {"query": str, "response": str},
    "magicoder": {
        "lang": str,
        "raw_index": int,
        "index": int,
        "seed": str,
        "openai_fingerprint": str,
        "problem": str,
        "solution": str,
    },
    "tulu_persona_if": {"id": str, "prompt": str, "messages": list, "constraints": list},
    "aya": {
        "inputs": str,
        "targets": str,
        "language": str,
        "language_code": str,
        "annotation_type": str,
        "user_id": str,
    },
    "beavertails": {"prompt": str, "response": str, "category": dict, "is_safe": bool},
}


@pytest.mark.parametrize("name", DOMAINS)
def test_columns_and_types_are_those_of_the_real_set(name: str) -> None:
    for row in DOMAINS[name][0].training_rows(random.Random(0), 50):
        assert {column: type(value) for column, value in row.items()} == COLUMNS[name]


def test_beavertails_has_its_fourteen_categories() -> None:
    (row,) = requests.training_rows(random.Random(0), 1)
    category = row["category"]
    assert isinstance(category, dict)
    assert len(category) == 14


@pytest.mark.parametrize("name", DOMAINS)
def test_train_validation_and_test_are_disjoint(name: str) -> None:
    module, column = DOMAINS[name]
    validation = {document[column] for document in module.benchmark("validation", 40)}
    test = {document[column] for document in module.benchmark("test", 80)}
    assert len(validation) == 40
    assert len(test) == 80
    assert not validation & test
    benchmark = {text.strip() for text in validation | test}
    for row in module.training_rows(random.Random(0), 300):
        messages = to_messages(row, name, name)
        if isinstance(messages, list):
            assert messages[0]["content"].removeprefix("Complete this function.\n") not in benchmark


@pytest.mark.parametrize("name", DOMAINS)
def test_everything_is_seeded(name: str) -> None:
    module = DOMAINS[name][0]
    assert module.training_rows(random.Random(3), 40) == module.training_rows(random.Random(3), 40)
    assert module.training_rows(random.Random(3), 40) != module.training_rows(random.Random(4), 40)
    assert module.benchmark("test", 40) == module.benchmark("test", 40)


def test_reference_functions_pass_their_tests_and_wrong_ones_do_not() -> None:
    documents = functions.benchmark("test", 40)
    right = scoring.run_codes([d["prompt"] + d["canonical_solution"] for d in documents], documents, "none")
    wrong = scoring.run_codes([d["prompt"] + "    return None\n" for d in documents], documents, "none")
    assert right == ["passed"] * 40
    assert "passed" not in wrong


def test_arithmetic_is_right() -> None:
    for document in arithmetic.benchmark("test", 100):
        steps = document["answer"].split("\n")[0].split(", ")
        assert all(eval(step.replace("=", "==")) for step in steps)  # noqa: S307
        assert document["answer"].endswith(f"#### {steps[-1].split('=')[1]}")


def test_choices_hold_the_answer_once_in_four_languages() -> None:
    documents: list[dict[str, Any]] = locales.benchmark("test", 80)
    assert {document["language"] for document in documents} == {"de", "es", "fr", "it"}
    for document in documents:
        assert len(set(document["choices"]["text"])) == 4


def test_configs_pin_what_is_made(tmp_path: Path) -> None:
    made = make(ROOT / "config/demo_base", ROOT / "config/demo_adapter", tmp_path / "hub", seed=0)
    again = make(ROOT / "config/demo_base", ROOT / "config/demo_adapter", tmp_path / "again", seed=0)
    assert made == again
    for config in ("demo.yaml", "smoke.yaml"):
        text = (ROOT / "config" / config).read_text()
        assert yaml.safe_load(text)
        for name, revision in re.findall(r"(?:model|dataset): (mergetime/\S+), revision: (\w+)", text):
            assert made[name] == revision, f"config/{config}: {name} is made at {made[name]}"


def test_the_base_is_small_and_has_both_kinds_of_layers() -> None:
    weights = ROOT / "config/demo_base/model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    with safe_open(weights, "np") as file:
        names = list(file.keys())
    assert any("linear_attn" in name for name in names)
    assert any("self_attn" in name for name in names)
