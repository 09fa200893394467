"""Runs lm-eval: a model of its own kind on loaded benchmarks, each by itself."""

import logging
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergetime.evaluation.benchmarks import LoadedBenchmark
from mergetime.evaluation.means import Row
from mergetime.evaluation.rows import rows

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def run(
    harness: "LM", benchmarks: Sequence[LoadedBenchmark], *, seed: int, chat_template: bool = True
) -> tuple[list[Row], list[Row]]:
    """Evaluate a model of lm-eval's; the rows of its metrics and of its samples.

    Prompts go through the chat template with thinking off, or as they are. A metric row holds ``benchmark``,
    ``domain``, ``metric`` (``name,filter``), ``primary``, ``value`` (mean score over items, or over tasks), ``stderr``
    (of that mean), ``items``, ``task_hash`` and ``harness_version``; a sample row ``benchmark``, ``domain``, ``task``
    (lm-eval's name), ``metric``, ``primary``, ``item`` (hash of the document), ``stem`` (the same for translations of
    one document), ``score``, ``request`` (the last text of the user, where the answer is generated), ``response`` (the
    choice of highest likelihood, for multiple choice) and ``target``. Metrics that are no mean of numbers over items
    have no rows.

    Raises:
        ValueError: if a benchmark's primary metric has no rows.
    """
    # A warning for every subject: metrics that only some documents have would be weighted wrongly in lm-eval's groups,
    # which are not used here.
    logging.getLogger("lm_eval.evaluator_utils").setLevel(logging.ERROR)
    metrics, samples = [], []
    for benchmark in benchmarks:
        found_metrics, found_samples = _evaluate_one(harness, benchmark, seed, chat_template=chat_template)
        metrics += found_metrics
        samples += found_samples
    return metrics, samples


def _evaluate_one(
    harness: "LM", benchmark: LoadedBenchmark, seed: int, *, chat_template: bool
) -> tuple[list[Row], list[Row]]:
    """One benchmark by itself: what else is evaluated changes neither its batches nor its random numbers."""
    import numpy as np
    import torch
    from lm_eval import evaluator

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if "langdetect" in sys.modules:
        # IFEval's checkers guess languages with random numbers of their own.
        sys.modules["langdetect"].DetectorFactory.seed = seed
    for task in benchmark.tasks.values():
        task.set_fewshot_seed(seed)
    results = evaluator.evaluate(
        lm=harness,
        task_dict={"tasks": dict(benchmark.tasks)},
        limit=benchmark.spec.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    if results is None:
        raise RuntimeError("evaluation runs in one process, this is a rank of several")
    for name, task in benchmark.tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            for sample in results["samples"][name]:
                sample["request"] = str(task.doc_to_text(sample["doc"]))
    return rows(benchmark.spec, results["results"], results["samples"])
