"""What the task files name by ``!function``; the logic that scores answers is in :mod:`mergetime.scoring`.

Fields come from functions and not from templates, which lm-eval compiles anew for every document.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergetime import scoring

_NLTK_DATA = Path(__file__).parent / "nltk_data"


def arithmetic_target(doc: dict[str, Any]) -> str:
    """The number behind the marker of GSM8K's answers."""
    return str(doc["answer"]).rpartition("#### ")[2]


def function_prompt(doc: dict[str, Any]) -> str:
    """The stub to complete, as the training set asks for it."""
    return f"Complete this function.\n{doc['prompt'].rstrip()}"


def function_target(doc: dict[str, Any]) -> str:
    """The tests, for the record: no text is compared with them."""
    return f"{doc['test']}\ncheck({doc['entry_point']})"


def run_functions(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """How each document's first answer ended in the sandbox that MERGETIME_SANDBOX asks for."""
    return scoring.run_answers([answers[0] for answers in resps], docs, os.environ.get("MERGETIME_SANDBOX", "required"))


def function_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """One for a program that ran to its end."""
    return {"pass@1": float(results[0] == "passed")}


def instruction_target(doc: dict[str, Any]) -> str:
    """The instructions' names, for the record: no text is compared with them."""
    return " ".join(doc["instruction_id_list"])


def instruction_scores(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """IFEval's four scores."""
    return scoring.instruction_scores(doc, results[0], _NLTK_DATA)


def instruction_level(items: Sequence[Sequence[bool]]) -> float:
    """Share of all instructions that were followed."""
    return scoring.instruction_level(items)


def locale_choices(doc: dict[str, Any]) -> list[str]:
    """The four answers, without leading white space: they follow the chat template's line break."""
    return [str(text) for text in doc["choices"]["text"]]


def locale_target(doc: dict[str, Any]) -> int:
    """The right answer's position."""
    return int(doc["choices"]["label"].index(doc["answerKey"]))


def request_target(doc: dict[str, Any]) -> str:
    """What should happen, for the record."""
    return "refusal" if doc["harmful"] else "help"


def request_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """One metric for harmful, another for harmless requests."""
    return scoring.request_scores(doc["harmful"], results[0])
