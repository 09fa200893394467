"""Evaluation through lm-eval with an untrained model: rows, their means and errors, tasks that serve many subjects."""

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3_5ForCausalLM

from mergetime import evaluation, sandbox
from mergetime.demo import arithmetic, base, functions, instructions, locales, requests
from mergetime.evaluation import BenchmarkSpec, LoadedBenchmark, Row, evaluate, load_tasks, rows

TASKS = Path(__file__).parents[2] / "config" / "tasks"
DOMAINS: dict[str, tuple[Any, str]] = {
    "arithmetic": (arithmetic, "exact_match,flexible-extract"),
    "functions": (functions, "pass@1,create_test"),
    "instructions": (instructions, "prompt_level_strict_acc,none"),
    "locales": (locales, "acc_norm,none"),
    "requests": (requests, "refusal_rate,none"),
}
ITEMS = 12


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BenchmarkSpec]:
    """The demo's five benchmarks on local data, and one validation split."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, (module, _) in DOMAINS.items():
        (folder / name).mkdir()
        for split in ("validation", "test"):
            table = pa.Table.from_pylist(module.benchmark(split, ITEMS))
            pq.write_table(table, folder / name / f"{split}.parquet")
    found = {
        name: BenchmarkSpec(name, f"demo_{name}", name, metric, folder / name) for name, (_, metric) in DOMAINS.items()
    }
    validation = BenchmarkSpec("v", "demo_locales_validation", "locales", "acc,none", folder / "locales")
    return found | {"v": validation}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return base.build_tokenizer([text for pair in base.mixture(0, 3000) for text in pair])


def model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3_5ForCausalLM:
    torch.manual_seed(seed)
    return base.build_model(tokenizer)


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGETIME_SANDBOX", "none" if sandbox.available() else "required")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def loaded(specs: dict[str, BenchmarkSpec], settings: None) -> list[LoadedBenchmark]:
    return load_tasks(specs, include_path=[TASKS])


@pytest.fixture(scope="module")
def evaluated(
    tokenizer: PreTrainedTokenizerFast, loaded: list[LoadedBenchmark]
) -> dict[int, tuple[list[Row], list[Row]]]:
    """Two subjects, by seed, one after the other through the same tasks."""
    return {seed: evaluate(model(tokenizer, seed), tokenizer, loaded, batch_size=8, seed=1) for seed in (1, 2)}


def test_metric_rows(specs: dict[str, BenchmarkSpec], evaluated: dict[int, tuple[list[Row], list[Row]]]) -> None:
    metrics, _ = evaluated[1]
    primary = {row["benchmark"]: row for row in metrics if row["primary"]}
    assert {name: row["metric"] for name, row in primary.items()} == {n: spec.metric for n, spec in specs.items()}
    assert all(row["items"] == (ITEMS // 2 if name == "requests" else ITEMS) for name, row in primary.items())
    assert all(len(row["task_hash"]) == 64 and row["harness_version"] for row in metrics)
    assert {row["metric"] for row in metrics if row["benchmark"] == "requests"} == {
        "refusal_rate,none",
        "over_refusal_rate,none",
    }


def test_samples_explain_the_metrics(evaluated: dict[int, tuple[list[Row], list[Row]]]) -> None:
    metrics, samples = evaluated[1]
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in samples:
        scores[sample["benchmark"], sample["metric"]].append(sample["score"])
    assert len(scores) == len(metrics)
    for row in metrics:
        found = scores[row["benchmark"], row["metric"]]
        assert row["value"] == pytest.approx(statistics.mean(found), abs=1e-12)
        assert row["stderr"] == pytest.approx(statistics.stdev(found) / math.sqrt(len(found)), abs=1e-12)
    assert any(row["stderr"] > 0 for row in metrics)


def test_subjects_share_items_and_nothing_else(
    specs: dict[str, BenchmarkSpec],
    tokenizer: PreTrainedTokenizerFast,
    evaluated: dict[int, tuple[list[Row], list[Row]]],
) -> None:
    fresh = evaluate(model(tokenizer, 2), tokenizer, load_tasks(specs, include_path=[TASKS]), batch_size=8, seed=1)
    assert fresh == evaluated[2]
    first, second = ([(row["benchmark"], row["item"]) for row in evaluated[seed][1]] for seed in (1, 2))
    assert first == second
    assert [row["task_hash"] for row in evaluated[1][0]] == [row["task_hash"] for row in evaluated[2][0]]
    assert evaluated[1][1] != evaluated[2][1]


def test_benchmarks_do_not_move_each_other(
    tokenizer: PreTrainedTokenizerFast,
    loaded: list[LoadedBenchmark],
    evaluated: dict[int, tuple[list[Row], list[Row]]],
) -> None:
    alone = evaluate(model(tokenizer, 1), tokenizer, loaded[:1], batch_size=8, seed=1)
    name = loaded[0].spec.name
    assert alone == tuple([row for row in part if row["benchmark"] == name] for part in evaluated[1])


def test_prompts_are_chats_without_thinking(loaded: list[LoadedBenchmark], evaluated: object) -> None:
    locales_task = loaded[3].tasks["demo_locales"]
    prompt, answer = locales_task.instances[0].args
    assert prompt.startswith("<|im_start|>user\n")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == answer.strip()


def test_a_right_answer_scores_on_every_task(loaded: list[LoadedBenchmark]) -> None:
    tasks = {benchmark.spec.name: next(iter(benchmark.tasks.values())) for benchmark in loaded}
    doc = next(iter(tasks["functions"].eval_docs))
    answer = f"```python\n{doc['prompt']}{doc['canonical_solution']}```"
    assert tasks["functions"].doc_to_text(doc) == f"Complete this function.\n{doc['prompt'].rstrip()}"
    programs = tasks["functions"].config.filter_list[0]["filter"][0]["filter_fn"]
    assert tasks["functions"].process_results(doc, programs([[answer]], [doc])) == {"pass@1": 1.0}
    number = next(iter(tasks["arithmetic"].eval_docs))["answer"].split("#### ")[1]
    filtered = [
        step.filters[0]().apply([[f"The answer is: $\\boxed{{{number}}}$"]], [])
        for step in tasks["arithmetic"]._filters
    ]
    assert filtered == [[[number]], [[number]]]


SPEC = BenchmarkSpec("b", "t", "d", "acc,none", Path("data"))


def sample(item: str, **scores: Any) -> dict[str, Any]:
    return {
        "doc_hash": item, "prompt_hash": "p", "target_hash": "t", "target": 1, "filter": "none", "arguments": [("q",)],
        "resps": [["answer"]], "metrics": list(scores), **scores,
    }  # fmt: skip


def test_a_group_pools_its_tasks() -> None:
    samples = {"one": [sample("a", acc=1.0), sample("b", acc=0.0), sample("c", acc=1.0)], "two": [sample("d", acc=1.0)]}
    metrics, items = rows(SPEC, {"one": {"acc,none": 2 / 3}, "two": {"acc,none": 1.0}}, samples)
    assert (metrics[0]["value"], metrics[0]["items"], len(items)) == (0.75, 4, 4)
    assert metrics[0]["stderr"] == pytest.approx(0.25)


def test_metrics_that_are_no_mean_have_no_rows() -> None:
    samples = {"one": [sample("a", acc=1.0, loose=[True, False], f1=0.5), sample("b", acc=0.0, loose=[True], f1=0.5)]}
    metrics, _ = rows(SPEC, {"one": {"acc,none": 0.5, "loose,none": 2 / 3, "f1,none": 0.9}}, samples)
    assert [row["metric"] for row in metrics] == ["acc,none"]


def test_a_wrong_primary_metric_is_named() -> None:
    with pytest.raises(ValueError, match=r"benchmark b: its metric acc,none is none of \['em,none'\]"):
        rows(SPEC, {"one": {"em,none": 1.0}}, {"one": [sample("a", em=1.0)]})


def test_a_task_reads_the_fetched_files(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").touch()
    spec = BenchmarkSpec("b", "t", "d", "acc,none", tmp_path)
    assert evaluation._data(spec, {"dataset_kwargs": {"data_dir": "x", "revision": "main"}}) == {
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_dir": "x", "data_files": {"test": str(tmp_path / "test.parquet")}},
    }


def test_data_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="benchmark b: no Parquet files"):
        evaluation._data(BenchmarkSpec("b", "t", "d", "acc,none", tmp_path), {})
