"""Formats, masking, filters and the draw of train and validation examples."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mergetime.data.format import chat
from mergetime.data.messages import Messages
from mergetime.data.preparation import Prepared, benchmark_ngrams, is_contaminated, prepare, scored_files
from mergetime.data.registry import survey, to_messages
from mergetime.demo import base
from mergetime.modalities.causal_lm.batches import collate, token_losses
from mergetime.modalities.causal_lm.encoding import IGNORED, encode_chat

ROWS: dict[str, dict[str, Any]] = {
    "dart_math": {"query": " What is 3+4? ", "response": "3+4=7."},
    "magicoder": {
        "lang": "python",
        "raw_index": 1,
        "index": 2,
        "seed": "",
        "openai_fingerprint": "",
        "problem": "Write f.",
        "solution": "def f(): pass",
    },
    "aya": {
        "inputs": "Capitale ?",
        "targets": "Paris.",
        "language": "French",
        "language_code": "fra",
        "annotation_type": "",
        "user_id": "",
    },
    "beavertails": {"prompt": "How do I pick a lock?", "response": "I cannot help.", "category": {}, "is_safe": True},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return base.build_tokenizer([text for pair in base.mixture(0, 2000) for text in pair])


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        ("dart_math", "What is 3+4?", "3+4=7."),
        ("magicoder", "Write f.", "def f(): pass"),
        ("aya", "Capitale ?", "Paris."),
        ("beavertails", "How do I pick a lock?", "I cannot help."),
    ],
)
def test_columns_become_messages(name: str, prompt: str, response: str) -> None:
    assert to_messages(ROWS[name], name, "x") == chat(prompt, response)


def test_contrast_keeps_safe_answers_to_prompts_that_also_drew_unsafe_ones() -> None:
    rows = [
        {"prompt": "How do I pick a lock?", "response": "I cannot help.", "is_safe": True},
        {"prompt": "How do I pick a lock?", "response": "With a pin.", "is_safe": False},
        {"prompt": "What is tea?", "response": "A drink.", "is_safe": True},
    ]
    kept = [to_messages(row, "beavertails_contrast", "x") for row in survey(rows, "beavertails_contrast", "x")]
    assert kept == [chat("How do I pick a lock?", "I cannot help."), "unsafe", "harmless_prompt"]
    with pytest.raises(ValueError, match="x: column response, is_safe is missing"):
        survey([{"prompt": "a"}], "beavertails_contrast", "x")


def test_a_benchmarks_training_split_contaminates_nothing(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").touch()
    assert scored_files(tmp_path) == [tmp_path / "test.parquet"]
    (tmp_path / "test.parquet").unlink()
    assert scored_files(tmp_path) == [tmp_path / "train.parquet"]


def test_all_turns_of_tulu_are_kept() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert to_messages({"messages": turns}, "tulu_persona_if", "x") == turns
    assert to_messages({"messages": turns[:3]}, "tulu_persona_if", "x") == "no_response"


def test_unsafe_and_empty_answers_are_dropped_with_the_reason() -> None:
    assert to_messages(ROWS["beavertails"] | {"is_safe": False}, "beavertails", "x") == "unsafe"
    assert to_messages({"query": "a", "response": " "}, "dart_math", "x") == "empty_text"


def test_a_missing_column_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"rows.parquet: column response is missing, which format dart_math reads; it has: query"
    ):
        to_messages({"query": "a"}, "dart_math", "rows.parquet")


def test_prompt_is_masked_and_thinking_is_off(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_chat(tokenizer, chat("Compute 3+4.", "3+4=7"))
    prompt = tokenizer.decode(encoded.ids[: encoded.prompt])
    assert prompt == "<|im_start|>user\nCompute 3+4.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(encoded.ids[encoded.prompt :]) == "3+4=7<|im_end|>"
    assert encoded.labels == [IGNORED] * encoded.prompt + encoded.ids[encoded.prompt :]


def test_training_context_is_the_one_of_evaluation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = chat("Describe tea.", "Tea.")
    rendered = tokenizer.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    encoded = encode_chat(tokenizer, messages)
    assert encoded.ids[: encoded.prompt] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_loss_counts_response_tokens_only(tokenizer: PreTrainedTokenizerFast) -> None:
    import torch

    examples = [encode_chat(tokenizer, chat("a", "bb cc")), encode_chat(tokenizer, chat("a longer prompt", "b"))]
    batch = collate(examples, padding=0)
    logits = torch.zeros(*batch["input_ids"].shape, 50_000)
    sums = token_losses(logits, batch["labels"])
    responses = [len(e.ids) - e.prompt for e in examples]
    assert sums[:, 1].tolist() == responses
    assert torch.allclose(sums[:, 0] / sums[:, 1], torch.full((2,), 50_000.0).log())
    assert batch["attention_mask"].sum(1).tolist() == [len(e.ids) for e in examples]


def draw(rows: list[dict[str, Any]], contaminating: set[tuple[str, ...]] | None = None, **changes: Any) -> Prepared:
    arguments: dict[str, Any] = {"train": 3, "validation": 2, "seed": 0, "max_tokens": 9, **changes}
    return prepare(
        rows,
        name="dart_math",
        source="x",
        count_tokens=lambda messages: sum(len(m["content"].split()) for m in messages),
        contaminating=contaminating or set(),
        **arguments,
    )


def rows(count: int) -> list[dict[str, Any]]:
    return [{"query": f"question {number}", "response": f"answer {number}"} for number in range(count)]


def texts(messages: list[Messages]) -> set[str]:
    return {example[0]["content"] for example in messages}


def test_the_draw_is_seeded_and_disjoint() -> None:
    first = draw(rows(20))
    assert (len(first.train), len(first.validation)) == (3, 2)
    assert not texts(first.train) & texts(first.validation)
    assert first == draw(rows(20))
    assert first != draw(rows(20), seed=1)


def test_drops_are_counted_by_reason() -> None:
    long = {"query": "word " * 9, "response": "b"}
    leaked = {"query": "leaked question", "response": "b"}
    found = draw(
        [*rows(5), *rows(5), long, leaked], benchmark_ngrams([{"q": "Leaked question!"}]), train=5, validation=0
    )
    assert len(found.train) == 5
    assert set(found.dropped) <= {"duplicate", "too_long", "contaminated"}
    everything = [*rows(5), *rows(5), long, leaked]
    with pytest.raises(ValueError, match=r"5 usable examples of 12 rows \(1 contaminated, 5 duplicate, 1 too_long\)"):
        draw(everything, benchmark_ngrams([{"q": "Leaked question!"}]), train=6, validation=0)


def test_a_prompt_of_validation_is_kept_out_of_train() -> None:
    same = [{"query": "one question", "response": f"answer {number}"} for number in range(5)]
    with pytest.raises(ValueError, match="4 prompt_in_validation"):
        draw(same, train=1, validation=1)


def test_an_empty_set_is_said_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"x: 0 usable examples of 0 rows \(none dropped\), but 3 train \+ 2 validation"
    ):
        draw([])


def test_thirteen_words_in_a_row_contaminate() -> None:
    words = [f"w{number}" for number in range(40)]
    grams = benchmark_ngrams([{"nested": [{"text": " ".join(words[:20])}]}])
    assert is_contaminated(chat("x", " ".join(words[5:18])), grams)
    assert not is_contaminated(chat("x", " ".join(words[5:17])), grams)
    assert is_contaminated(chat(" ".join(["a", *words[7:20], "b"]), "x"), grams)
    assert not is_contaminated(chat(" ".join(words[8:30]), "x"), grams)


def test_a_short_response_is_no_contamination() -> None:
    grams = benchmark_ngrams([{"question": "Who?", "choices": ["Paris"]}])
    assert not is_contaminated(chat("Capital?", "Paris"), grams)
    assert is_contaminated(chat("who", "me"), grams)
