"""What the task files name by ``!function``; the logic that scores answers is in :mod:`mergetime.evaluation.scoring`.

Fields come from functions and not from templates, which lm-eval compiles anew for every document.
"""

import os
from collections.abc import Sequence
from typing import Any

from mergetime.evaluation import scoring
from mergetime.evaluation.scoring import (  # noqa: F401  named by task files
    function_scores,
    function_target,
    instruction_level,
    instruction_scores,
    instruction_target,
)


def arithmetic_target(doc: dict[str, Any]) -> str:
    """The number behind the marker of GSM8K's answers."""
    return str(doc["answer"]).rpartition("#### ")[2]


def function_prompt(doc: dict[str, Any]) -> str:
    """The stub to complete, as the training set asks for it."""
    return f"Complete this function.\n{doc['prompt'].rstrip()}"


def run_functions(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """How each document's first answer ended in the sandbox that MERGETIME_SANDBOX asks for."""
    return scoring.run_answers([answers[0] for answers in resps], docs, os.environ.get("MERGETIME_SANDBOX", "required"))


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
