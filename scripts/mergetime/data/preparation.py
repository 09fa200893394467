"""Which rows of a training set are used: filters, decontamination, and the draw of train and validation."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergetime.data.messages import Messages
from mergetime.data.registry import survey, to_messages

NGRAM = 13
"""Words in a row that, shared with a benchmark, make an example contaminated (as GPT-3's authors chose)."""


@dataclass
class Prepared:
    """Drawn examples and the count of rows dropped, by reason."""

    train: list[Messages]
    validation: list[Messages]
    dropped: Counter[str] = field(default_factory=Counter)


def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers of a text, punctuation left out."""
    return tuple(re.findall(r"\w+", text.lower()))


def ngrams(text: str, *, whole_if_short: bool) -> set[tuple[str, ...]]:
    """The 13-grams of a text; a shorter text counts as one gram, or as none."""
    in_text = words(text)
    if len(in_text) < NGRAM:
        return {in_text} if whole_if_short and in_text else set()
    return {in_text[i : i + NGRAM] for i in range(len(in_text) - NGRAM + 1)}


def scored_files(folder: Path) -> list[Path]:
    """The Parquet files of a benchmark whose items are scored: all splits but ``train``, or that one where it is alone.

    A benchmark's own training split is no test item: DART-Math, for one, is made from GSM8K's.
    """
    files = sorted(folder.glob("*.parquet"))
    return [file for file in files if file.stem != "train" or len(files) == 1]


def texts_of(value: Any) -> Iterable[str]:
    """Every string inside a benchmark's document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_of(part)


def benchmark_ngrams(documents: Iterable[Mapping[str, Any]]) -> set[tuple[str, ...]]:
    """All grams of the documents of the benchmarks, short texts as a whole."""
    return {gram for document in documents for text in texts_of(document) for gram in ngrams(text, whole_if_short=True)}


def is_contaminated(messages: Messages, grams: set[tuple[str, ...]]) -> bool:
    """Whether a benchmark's text occurs in the chat.

    Short responses are not compared: ``yes`` is the answer to many questions, and to a benchmark's.
    """
    return any(
        not grams.isdisjoint(ngrams(message["content"], whole_if_short=message["role"] == "user"))
        for message in messages
    )


def prepare(
    rows: Iterable[Mapping[str, Any]],
    *,
    name: str,
    source: str,
    train: int,
    validation: int,
    seed: int,
    max_tokens: int,
    count_tokens: Callable[[Messages], int],
    contaminating: set[tuple[str, ...]],
) -> Prepared:
    """Draw ``validation`` and then ``train`` examples from the usable rows, in an order that ``seed`` shuffles.

    No prompt is in both. Rows are looked at only until enough are found.

    Raises:
        ValueError: naming ``source`` if a column is missing, or how many examples are there and why.
    """
    order = list(survey(list(rows), name, source))
    random.Random(seed).shuffle(order)
    dropped: Counter[str] = Counter()
    drawn: list[Messages] = []
    seen: set[str] = set()
    validation_prompts: set[str] = set()
    for row in order:
        if len(drawn) == train + validation:
            break
        messages = to_messages(row, name, source)
        reason = (
            messages
            if isinstance(messages, str)
            else _reason(messages, seen, validation_prompts, max_tokens, count_tokens, contaminating)
        )
        if reason or isinstance(messages, str):
            dropped[str(reason)] += 1
            continue
        seen.add(repr(messages))
        if len(drawn) < validation:
            validation_prompts.add(repr(messages[:-1]))
        drawn.append(messages)
    if len(drawn) < train + validation:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
        raise ValueError(
            f"{source}: {len(drawn)} usable examples of {len(order)} rows ({why}), but {train} train + "
            f"{validation} validation are asked for; lower these numbers"
        )
    return Prepared(drawn[validation:], drawn[:validation], dropped)


def _reason(
    messages: Messages,
    seen: set[str],
    validation_prompts: set[str],
    max_tokens: int,
    count_tokens: Callable[[Messages], int],
    contaminating: set[tuple[str, ...]],
) -> str:
    """Why the messages are not used; empty if they are."""
    if repr(messages) in seen:
        return "duplicate"
    if repr(messages[:-1]) in validation_prompts:
        return "prompt_in_validation"
    if count_tokens(messages) > max_tokens:
        return "too_long"
    return "contaminated" if is_contaminated(messages, contaminating) else ""
