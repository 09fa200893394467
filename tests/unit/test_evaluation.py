"""Evaluation through lm-eval with the demo's base: rows, their means and errors, tasks that serve many subjects."""

import ast
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from mergetime.config.evaluation import Benchmark
from mergetime.core.errors import UserError
from mergetime.demo import arithmetic, functions, instructions, locales, requests
from mergetime.evaluation import benchmarks
from mergetime.evaluation.benchmarks import BenchmarkSpec, LoadedBenchmark, load_tasks
from mergetime.evaluation.means import Row, mean
from mergetime.evaluation.rows import rows
from mergetime.modalities.causal_lm import backends
from mergetime.modalities.causal_lm.backends import evaluate
from mergetime.modalities.causal_lm.harness import run
from mergetime.sandbox import programs as sandbox
from mergetime.uncertainty.estimates import estimate
from tests.unit.scripted import Scripted, parquet

ROOT = Path(__file__).parents[2]
TASKS, BASE = ROOT / "config/tasks", ROOT / "config/demo_base"
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
        name: BenchmarkSpec(name, name, f"demo_{name}", metric, {"None": folder / name})
        for name, (_, metric) in DOMAINS.items()
    }
    validation = BenchmarkSpec("v", "locales", "demo_locales_validation", "acc,none", {"None": folder / "locales"})
    return found | {"v": validation}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made: Any = AutoTokenizer.from_pretrained(BASE)
    return made


def model(seed: int) -> PreTrainedModel:
    """The demo's base, which ends its answers, with some noise."""
    made: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * parameter.data.std() * torch.randn(parameter.shape, generator=generator))
    return made


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
    return {seed: evaluate(model(seed), tokenizer, loaded, batch_size=8, seed=1) for seed in (1, 2)}


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
    fresh = evaluate(model(2), tokenizer, load_tasks(specs, include_path=[TASKS]), batch_size=8, seed=1)
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
    alone = evaluate(model(1), tokenizer, loaded[:1], batch_size=8, seed=1)
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


def spec(folders: dict[str, Path], **fields: Any) -> BenchmarkSpec:
    """A benchmark of no matter what."""
    return BenchmarkSpec("b", "d", "t", "acc,none", folders, **fields)


SPEC = spec({"None": Path("data")})


def sample(item: str, **scores: Any) -> dict[str, Any]:
    return {
        "doc": {}, "doc_id": 0, "doc_hash": item, "prompt_hash": "p", "target_hash": "t", "target": 1, "filter": "none", "arguments": [("q",)],
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
    assert benchmarks._data("b", tmp_path, {"dataset_kwargs": {"data_dir": "x", "revision": "main"}}) == {
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_dir": "x", "data_files": {"test": str(tmp_path / "test.parquet")}},
    }


def test_data_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="benchmark b: no Parquet files"):
        benchmarks._data("b", tmp_path, {})


def test_tasks_may_count_the_same_whatever_their_size() -> None:
    samples = {"one": [sample("a", acc=1.0), sample("b", acc=0.0), sample("c", acc=1.0)], "two": [sample("d", acc=1.0)]}
    results = {"one": {"acc,none": 2 / 3}, "two": {"acc,none": 1.0}}
    metrics, items = rows(spec({}, weights="tasks"), results, samples)
    first = statistics.stdev([1, 0, 1]) / math.sqrt(3)
    assert metrics[0]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics[0]["stderr"] == pytest.approx(math.sqrt(first**2 + 0) / 2)
    assert metrics[0]["items"] == 4
    assert [row["task"] for row in items] == ["one", "one", "one", "two"]


LANGUAGES = {"de": Path("de"), "fr": Path("fr")}
BY_LANGUAGE = {"de": [1.0, 0.0, 0.0, 1.0], "fr": [1.0, 1.0, 0.0, 1.0, 0.0]}


def answered(ids: Mapping[str, Sequence[str | None]]) -> dict[str, list[dict[str, Any]]]:
    """Right and wrong answers by language, on documents with these ids."""
    return {
        task: [
            sample(f"{task}{place}", acc=score) | {"doc": {"id": ids[task][place]}, "doc_id": place}
            for place, score in enumerate(scores)
        ]
        for task, scores in BY_LANGUAGE.items()
    }


@pytest.mark.parametrize("weights", ["items", "tasks"])
def test_translations_of_a_document_share_a_stem(weights: Any) -> None:
    of_ids = {"de": ["q1", "q2", "q3", "q4"], "fr": ["q4", "q3", "q2", "q1", "q0"]}
    results = {task: {"acc,none": statistics.mean(scores)} for task, scores in BY_LANGUAGE.items()}
    metrics, items = rows(spec(LANGUAGES, weights=weights), results, answered(of_ids))
    assert [row["stem"] for row in items] == [*of_ids["de"], *of_ids["fr"]]
    tasks = np.array([0] * 4 + [1] * 5)
    oracle = estimate(
        ["a"],
        np.array([[[*BY_LANGUAGE["de"], *BY_LANGUAGE["fr"]]]]),
        tasks if weights == "tasks" else None,
        np.array([0, 1, 2, 3, 3, 2, 1, 0, 4]),
    )
    assert metrics[0]["stderr"] == pytest.approx(oracle.stderr[0])
    assert metrics[0]["value"] == pytest.approx(oracle.values[0])
    unnamed = answered({task: [None] * 5 for task in BY_LANGUAGE})
    _, items = rows(spec(LANGUAGES, weights=weights), results, unnamed)
    assert [row["stem"] for row in items] == list("0123") + list("01234"), "parallel files without ids"
    _, items = rows(spec({"en": Path("en")}), results, answered(of_ids))
    assert [row["stem"] for row in items] == [row["item"] for row in items], "one language: every item is its own stem"


def test_what_shares_a_stem_is_known_less_well() -> None:
    scores = [[1.0, 0.0, 0.0, 1.0, 1.0]] * 3
    apart = mean(scores)["stderr"]
    shared = mean(scores, stems=[list("abcde")] * 3)["stderr"]
    assert shared == pytest.approx(statistics.stdev(scores[0]) / math.sqrt(5))
    assert shared > 1.5 * apart
    assert mean(scores, stems=[list("abcde"), list("fghij"), list("klmno")])["stderr"] == apart
    assert mean([[1.0], [0.0]], stems=["a", "a"])["stderr"] == 0


def test_a_benchmark_of_a_config_has_a_task_for_each_configuration() -> None:
    benchmark = Benchmark(
        task="arc_{config}",
        dataset="o/arc",
        revision="0" * 40,
        config=["de", "fr"],
        metric="acc_norm,none",
        weights="tasks",
        limit=5,
    )
    spec = BenchmarkSpec.of("arc", "multilingual", benchmark, {"de": Path("a/de"), "fr": Path("a/fr")})
    assert spec.tasks == {"arc_de": Path("a/de"), "arc_fr": Path("a/fr")}
    assert (spec.weights, spec.shots, spec.limit) == ("tasks", None, 5)


def sums(split: str, *numbers: int) -> list[dict[str, str]]:
    return [{"question": f"{split}: what is {n} and {n}?", "answer": f"So it is.\n#### {2 * n}"} for n in numbers]


def test_configurations_shots_and_limits(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for config in ("de", "fr"):
        parquet(tmp_path / config, "train", sums(f"{config} train", 5, 6, 7))
        parquet(tmp_path / config, "test", sums(f"{config} test", 1, 2, 3, 4))
        (tmp_path / "tasks" / f"sums_{config}.yaml").write_text(
            f"task: sums_{config}\ndataset_path: none\ntest_split: test\nfewshot_split: train\n"
            "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
            "generation_kwargs: {until: [], max_gen_toks: 8}\n"
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        )
    folders = {config: tmp_path / config for config in ("de", "fr")}
    several = BenchmarkSpec(
        "sums", "math", "sums_{config}", "exact_match,none", folders, "tasks", shots=2, limit=3, max_new_tokens=99
    )
    harness = Scripted(lambda doc: doc["answer"] if doc["question"].startswith("de") else "no")
    tasks = load_tasks({"sums": several}, include_path=[tmp_path / "tasks"])
    metrics, items = run(harness, tasks, seed=1)
    assert tasks[0].tasks["sums_de"].instances[0].args[1] == {"until": [], "max_gen_toks": 99}
    assert [(row["metric"], row["value"], row["items"]) for row in metrics] == [("exact_match,none", 0.5, 6)]
    assert [row["task"] for row in items] == ["sums_de"] * 3 + ["sums_fr"] * 3
    assert [row["stem"] for row in items] == ["0", "1", "2"] * 2
    assert items[0]["request"] == "de test: what is 1 and 1?"
    assert [turn["role"] for turn in harness.prompts[-1]] == ["user", "assistant"] * 2 + ["user"]
    plain = Scripted(lambda doc: "no")
    run(plain, load_tasks({"sums": several}, include_path=[tmp_path / "tasks"]), seed=1, chat_template=False)
    assert plain.prompts == []


def test_what_lm_eval_s_vllm_is_given_is_what_it_takes() -> None:
    tree = ast.parse((Path(lm_eval.__file__).parent / "models/vllm_causallms.py").read_text())
    harness = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "VLLM")
    made = next(node for node in harness.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    taken = {argument.arg for argument in made.args.args}
    given = set(backends.vllm_arguments(Path("folder"), dtype="bfloat16", batch_size=8, seed=1))
    # The rest goes to vLLM itself.
    assert given - taken == {"gpu_memory_utilization"}
    assert made.args.kwarg is not None


def test_a_backend_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="vllm is not installed; say `pip install vllm`, or set backend: hf"):
        backends.check_vllm()
