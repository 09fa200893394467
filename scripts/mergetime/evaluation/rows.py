"""From what lm-eval returns for a benchmark to the rows that results are made of."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from mergetime.evaluation.benchmarks import BenchmarkSpec
from mergetime.evaluation.means import Row, mean

Sample = dict[str, Any]
"""What lm-eval logs of one document."""
_ROUNDING = 1e-9


def rows(
    spec: BenchmarkSpec, results: Mapping[str, Row], samples: Mapping[str, Sequence[Sample]]
) -> tuple[list[Row], list[Row]]:
    """Metric rows and sample rows from what lm-eval returns for one benchmark, by task."""
    common = {"benchmark": spec.name, "domain": spec.domain}
    sample_rows: list[Row] = []
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    stems: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    stem_of = _stem(spec, [sample for of_task in samples.values() for sample in of_task])
    for task, of_task in samples.items():
        kept = _mean_metrics(results[task], of_task)
        for sample in of_task:
            stem = stem_of(sample)
            for metric in (f"{name},{sample['filter']}" for name in sample["metrics"]):
                if metric in kept:
                    score = float(sample[metric.rpartition(",")[0]])
                    scores[metric][task].append(score)
                    stems[metric][task].append(stem)
                    sample_rows.append(
                        common
                        | {"task": task}
                        | _metric(spec, metric)
                        | {
                            "item": sample["doc_hash"],
                            "stem": stem,
                            "score": score,
                            "request": sample.get("request", ""),
                            "response": _response(sample),
                            "target": str(sample["target"]),
                        }
                    )
    if spec.metric not in scores:
        raise ValueError(f"benchmark {spec.name}: its metric {spec.metric} is none of {sorted(scores)}")
    origin = {"task_hash": _task_hash(samples), "harness_version": version("lm_eval")}
    return [
        common | _metric(spec, metric) | mean(by_task.values(), spec.weights, stems[metric].values()) | origin
        for metric, by_task in scores.items()
    ], sample_rows


def _stem(spec: BenchmarkSpec, samples: Sequence[Sample]) -> Callable[[Sample], str]:
    """A function that tells which source a sample's document comes from.

    The configurations of a benchmark are languages, and its documents translations: they share a stem where they have
    the same ``id``, as in multilingual ARC, or where documents have none, the same place, as in LAMBADA's parallel
    files. (Should documents at one place not be translations after all, taking them together costs degrees of freedom
    and nothing else.) Every other document is its own stem.
    """
    if len(spec.folders) < 2:
        return lambda sample: str(sample["doc_hash"])
    if all(sample["doc"].get("id") is not None for sample in samples):
        return lambda sample: str(sample["doc"]["id"])
    return lambda sample: str(sample["doc_id"])


def _metric(spec: BenchmarkSpec, metric: str) -> Row:
    return {"metric": metric, "primary": metric == spec.metric}


def _mean_metrics(results: Row, samples: Sequence[Sample]) -> set[str]:
    """The metrics of a task, as ``name,filter``, whose value is the mean of one number per item."""
    values: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        for name in sample["metrics"]:
            values[f"{name},{sample['filter']}"].append(sample[name])
    return {
        metric
        for metric, scores in values.items()
        if all(_is_number(value) for value in scores)
        and abs(sum(map(float, scores)) / len(scores) - float(results[metric])) < _ROUNDING
    }


def _is_number(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__float__") and not getattr(value, "shape", ())


def _response(sample: Sample) -> str:
    """What the model answered: generated text, or the likeliest of several choices."""
    if len(sample["arguments"]) == 1:
        return str(sample["resps"][0][0])
    likelihoods = [float(answer[0][0]) for answer in sample["resps"]]
    return str(sample["arguments"][likelihoods.index(max(likelihoods))][1])


def _task_hash(samples: Mapping[str, Sequence[Sample]]) -> str:
    """lm-eval's hash over documents, prompts and targets, of one task; of several, the hash over theirs."""
    from lm_eval.utils import hash_string

    hashes = [
        hash_string("".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in of_task))
        for of_task in samples.values()
    ]
    return str(hashes[0] if len(hashes) == 1 else hash_string("".join(hashes)))
