"""Options of the scripts that evaluate: what they load, on text and on multimodal bases, and which backend does what."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.demo import locales, requests
from mergetime.evaluation import suite
from mergetime.evaluation.benchmarks import LoadedBenchmark
from mergetime.evaluation.means import Row
from mergetime.modalities.causal_lm import backends
from mergetime.sandbox import programs as sandbox
from tests.unit.scripted import parquet, save_multimodal

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "MERGETIME_SANDBOX", "HF_DATASETS_CACHE", "NLTK_DATA"):
            patch.setenv(name, "to be restored")
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


def options(data: Path, *more: str, base: Path = BASE) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    suite.add_options(parser)
    benchmarks = []
    for name, metric in (("locales", "acc_norm,none"), ("requests", "refusal_rate,none")):
        fields = {"name": name, "domain": name, "task": f"demo_{name}", "metric": metric}
        text = json.dumps(fields | {"folders": {"None": str(data / name)}, "max_new_tokens": 8})
        benchmarks += ["--benchmark", text]
    return parser.parse_args([
        "--base", str(base), "--split", "test", *benchmarks, "--validation-loss", f"math={data / 'validation.parquet'}",
        "--batch-size", "4", "--seed", "1", "--sandbox", "none" if sandbox.available() else "required",
        "--cache", str(data / "cache"), "--tasks", str(ROOT / "config/tasks/demo"), *more,
    ])  # fmt: skip


def test_a_multimodal_base_is_evaluated_as_its_text_model(data: Path, tmp_path: Path) -> None:
    found = suite.load(options(data, base=save_multimodal(BASE, tmp_path / "multimodal"))).evaluate()
    assert found == suite.load(options(data)).evaluate()
    assert [row["benchmark"] for row in found[0] if row["primary"]] == ["locales", "requests", "validation_loss"]
    asked = {row["benchmark"]: row["request"] for row in found[1]}
    assert asked["locales"] == ""
    assert asked["requests"]


def test_the_dtype_is_that_of_the_weights(data: Path) -> None:
    given = options(data, "--dtype", "bfloat16", "--no-chat-template")
    loaded = suite.load(given)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.evaluate()[0]
    recorded = suite.config_of(given)
    assert (recorded["dtype"], recorded["chat_template"], recorded["backend"]) == ("bfloat16", False, "hf")


def test_vllm_generates_from_a_checkpoint_and_hf_does_the_rest(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def generate(checkpoint: Path, benchmarks: list[LoadedBenchmark], *, dtype: str, **shared: Any) -> Any:
        """In vLLM's place: transformers on the checkpoint."""
        asked.extend(benchmark.spec.name for benchmark in benchmarks)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        return backends.evaluate(model, AutoTokenizer.from_pretrained(checkpoint), benchmarks, **shared)

    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    monkeypatch.setattr(backends, "evaluate_with_vllm", generate)
    found = suite.load(options(data, "--backend", "vllm")).evaluate()
    assert asked == ["requests"]

    def ordered(rows: list[Row]) -> list[str]:
        return sorted(map(repr, rows))

    wanted = suite.load(options(data)).evaluate()
    assert list(map(ordered, found)) == list(map(ordered, wanted))


def test_what_cannot_be_evaluated_is_one_line(data: Path) -> None:
    given = options(data)
    given.validation_loss = ["math"]
    with pytest.raises(UserError, match="--validation-loss math: write DOMAIN=PATH"):
        suite.validation_files(given)
    given.benchmark, given.validation_loss = [], []
    with pytest.raises(UserError, match="nothing to evaluate; give --benchmark or --validation-loss"):
        suite.load(given)
