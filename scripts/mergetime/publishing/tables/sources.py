"""What a study trains on and what it is measured by."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mergetime.publishing.inputs import Inputs
from mergetime.publishing.table import Table, cells, grid, table

_COLUMNS = ["Training data", "Evaluation benchmark", "Metric"]
_METRICS = {
    "exact_match": "Exact-match accuracy",
    "pass@1": "Pass@1",
    "prompt_level_strict_acc": "Prompt-level accuracy, strict",
    "prompt_level_loose_acc": "Prompt-level accuracy, loose",
    "acc": "Accuracy",
    "acc_norm": "Normalized accuracy",
    "refusal_rate": "Refuse-to-answer rate",
}


def sources(inputs: Inputs, name: str = "sources") -> Table:
    """Domains, training data, benchmarks and metrics, from the study's description alone.

    A domain without an expert has no training data, one that the test suite leaves out has no benchmark.

    Args:
        inputs: the study's description.
        name: the table's name.
    """
    study, header = inputs.config, inputs.names.header
    domains = list(dict.fromkeys([*study["domains"], *study["suites"]["test"]]))
    rows = []
    for domain in domains:
        named = study["suites"]["test"].get(domain) or []
        benchmarks = [named] if isinstance(named, str) else named
        texts = [_training_data(study["domains"].get(domain)), *_measured(study, benchmarks)]
        rows += [
            {"row": header(domain), "column": column, "text": text}
            for column, text in zip(_COLUMNS, texts, strict=True)
        ]
    frame = grid(pd.DataFrame(rows), [header(domain) for domain in domains], _COLUMNS)
    notes = [
        "Training data: the data set on the hub, with its training + validation examples.",
        "Evaluation benchmark: the task in lm-eval, with its data set on the hub.",
    ]
    return table(name, "Task domains, data sets and benchmarks.", cells(frame, str(study["study"]), "text"), notes)


def _training_data(domain: Mapping[str, Any] | None) -> str | None:
    if domain is None:
        return None
    config = f", {domain['config']}" if domain.get("config") else ""
    return f"{domain['dataset']}{config} ({domain['train']} + {domain['validation']})"


def _measured(study: Mapping[str, Any], names: list[str]) -> tuple[str | None, str | None]:
    """The benchmarks of a domain, and their metrics, each once."""
    known = {name: study["benchmarks"][name] for name in names if name in study["benchmarks"]}
    if not known:
        return None, None
    described = [f"{name} ({_data(benchmark)})" for name, benchmark in known.items()]
    return "; ".join(described), "; ".join(dict.fromkeys(map(_metric, known.values())))


def _data(benchmark: Mapping[str, Any]) -> str:
    """The data set of a benchmark, and its configurations where there are several."""
    configs = benchmark["config"] if isinstance(benchmark.get("config"), list) else []
    return ", ".join([benchmark["dataset"], *configs])


def _metric(benchmark: Mapping[str, Any]) -> str:
    name = benchmark["metric"].partition(",")[0]
    parts = [_METRICS.get(name, name)]
    if benchmark.get("judge"):
        parts.append(f"judged by {benchmark['judge']}")
    if benchmark.get("weights") == "tasks":
        parts.append("mean over tasks")
    return ", ".join(parts)
