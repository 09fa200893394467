"""Options of the scripts that evaluate: what they load, on text and on multimodal bases, and which backend does what."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergetime.config.sections import parse_json
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.demo import locales, requests
from mergetime.evaluation import suite
from mergetime.evaluation.benchmarks import LoadedBenchmark
from mergetime.evaluation.means import Row
from mergetime.evaluation.options import SuiteOptions
from mergetime.evaluation.passes import counted
from mergetime.modalities.causal_lm import backends
from mergetime.sandbox import programs as sandbox
from tests.unit.scripted import parquet, save_multimodal

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "NLTK_DATA"):
            patch.setenv(name, "to be restored")
        patch.setenv("MERGETIME_SANDBOX", "none")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parquet(folder / "locales", "test", locales.benchmark("test", 8))
    parquet(folder / "requests", "test", requests.benchmark("test", 8))
    chats = [{"messages": chat(f"What is {n} and 1?", f"It is {n + 1}."), "tokens": 9} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(chats), folder / "validation.parquet")
    return folder


def options(data: Path, **evaluation: Any) -> SuiteOptions:
    """The suite of two tasks and a validation loss, as a rule tells it; ``evaluation`` is laid over its settings."""
    benchmarks = []
    for name, metric in (("locales", "acc_norm,none"), ("requests", "refusal_rate,none")):
        source = {"task": f"demo_{name}", "dataset": f"demo/{name}", "revision": "0" * 40, "metric": metric}
        told = {"name": name, "domain": name, "folders": {"None": str(data / name)}}
        benchmarks.append(told | {"benchmark": source | {"max_new_tokens": 8}})
    how = {
        "batch_size": 4, "seed": 1, "sandbox": "none" if sandbox.available() else "required",
        "tasks": str(ROOT / "config/tasks/demo"),
    }  # fmt: skip
    losses = {"math": str(data / "validation.parquet")}
    text = {"split": "test", "benchmarks": benchmarks, "validation_loss": losses, "evaluation": how | evaluation}
    return parse_json(SuiteOptions, json.dumps(text | {"cache": str(data / "cache")}), "--suite")


def test_a_multimodal_base_is_evaluated_as_its_text_model(data: Path, tmp_path: Path) -> None:
    found = suite.load(options(data), save_multimodal(BASE, tmp_path / "multimodal")).evaluate()
    assert found == suite.load(options(data), BASE).evaluate()
    assert [row["benchmark"] for row in found[0] if row["primary"]] == ["locales", "requests", "validation_loss"]
    asked = {row["benchmark"]: row["request"] for row in found[1]}
    assert asked["locales"] == ""
    assert asked["requests"]


def test_the_dtype_is_that_of_the_weights(data: Path) -> None:
    given = options(data, dtype="bfloat16", chat_template=False)
    loaded = suite.load(given, BASE)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.evaluate()[0]
    recorded = given.recorded["evaluation"]
    assert (recorded["dtype"], recorded["chat_template"], recorded["backend"]) == ("bfloat16", False, "hf")


def test_tokens_and_seconds_of_all_passes_are_counted() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(BASE).eval()
    ids = torch.arange(1, 11).reshape(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad(), counted(model) as passes:
        model(ids)
        # The decoder by itself, as losses are computed, and a mask.
        model.base_model(input_ids=ids, attention_mask=mask)
    assert (passes.read_tokens, passes.generated_tokens, passes.generated_s) == (10 + 8, 0, 0)
    read_s = passes.read_s
    assert read_s > 0
    with counted(model) as again:
        made = model.generate(ids, attention_mask=mask, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert made.shape == (2, 9)
    # The first of the four tokens comes with the prompt.
    assert (again.read_tokens, again.generated_tokens) == (8, 2 * 3)
    assert again.generated_s > 0
    assert passes.read_s == read_s, "nothing is counted after the context"


def test_a_pass_that_fails_ends_too() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(BASE).eval()
    with torch.no_grad(), counted(model) as passes:
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]))
        model(torch.tensor([[1, 2, 3]]))
    assert passes.read_tokens >= 3


def test_an_evaluation_is_counted_as_a_whole(data: Path) -> None:
    loaded = suite.load(options(data), BASE)
    started = time.monotonic()
    with counted(loaded.model) as passes:
        rows = loaded.evaluate()
    assert passes.read_s + passes.generated_s < time.monotonic() - started
    # 8 requests of at most 8 tokens, the first of which comes with the prompt.
    assert 0 < passes.generated_tokens <= 8 * 7
    assert passes.read_tokens > 100
    assert rows == loaded.evaluate(), "counting changes no result"


def test_vllm_generates_from_a_checkpoint_and_hf_does_the_rest(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def generate(checkpoint: Path, benchmarks: list[LoadedBenchmark], *, dtype: str, **shared: Any) -> Any:
        """In vLLM's place: transformers on the checkpoint."""
        asked.extend(benchmark.spec.name for benchmark in benchmarks)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        return backends.evaluate(model, tokenizer, benchmarks, **shared)

    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    monkeypatch.setattr(backends, "evaluate_with_vllm", generate)
    found = suite.load(options(data, backend="vllm"), BASE).evaluate()
    assert asked == ["requests"]

    def ordered(rows: list[Row]) -> list[str]:
        return sorted(map(repr, rows))

    wanted = suite.load(options(data), BASE).evaluate()
    assert list(map(ordered, found)) == list(map(ordered, wanted))


def test_what_cannot_be_evaluated_is_one_line(data: Path) -> None:
    nothing = options(data).model_copy(update={"benchmarks": (), "validation_loss": {}})
    with pytest.raises(UserError, match="nothing to evaluate; give benchmarks or validation_loss"):
        suite.load(nothing, BASE)
    told = json.loads(options(data).model_dump_json())
    told["evaluation"]["batches"] = 3
    del told["benchmarks"][0]["benchmark"]["task"]
    wrong = (
        r"^--suite: benchmarks.0.benchmark.task: Field required; "
        r"--suite: evaluation.batches: unknown key; did you mean 'batch_size'\?$"
    )
    with pytest.raises(UserError, match=wrong):
        parse_json(SuiteOptions, json.dumps(told), "--suite")
    with pytest.raises(UserError, match=r"^--suite: not JSON: "):
        parse_json(SuiteOptions, "{", "--suite")
