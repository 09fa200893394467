"""Choose the members of a greedy soup by the mean primary metric on validation, judged where the suite has judges."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mergetime.artifacts.forms import CHECKPOINT, form_of, weight_files
from mergetime.config.fields import Strict
from mergetime.config.sections import parse_json, parse_json_list, parse_json_mapping
from mergetime.core import provenance
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError, main
from mergetime.evaluation import suite
from mergetime.evaluation.judging import Judgement, answers_of, judged_rows, to_judge
from mergetime.evaluation.options import SuiteOptions
from mergetime.evaluation.selection import Trial, greedy_soup, held_out_score, rows_with_judged

Row = dict[str, Any]


class SoupExpert(Strict):
    """An expert's folder, its validation results, and what judges said of its responses, if there are judges."""

    folder: Path
    scores: Path
    judged: Path | None = None

    @property
    def score(self) -> float:
        judged = pq.read_table(self.judged).to_pylist() if self.judged else []
        return held_out_score(rows_with_judged(pq.read_table(self.scores).to_pylist(), judged))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(description=__doc__)
    add = command_line.add_argument
    add("--base", type=Path, required=True, help="folder of the base, as fetched")
    add("--suite", required=True, metavar="JSON", help="the validation suite, as evaluate.py takes it")
    add(
        "--experts",
        required=True,
        metavar="JSON",
        help="expert to an object: folder, scores (its validation results), judged (what judges said)",
    )
    add("--judgements", default="[]", metavar="JSON", help="how responses are judged, as judge_responses.py takes it")
    add("--space", choices=["adapter", "delta"], required=True)
    add("--tried", type=Path, required=True, help="Parquet: validation results of every soup tried")
    add("--out", type=Path, required=True, help="JSON: the members")
    return command_line


def experts_of(text: str, judgements: Sequence[Judgement]) -> dict[str, SoupExpert]:
    """The experts by name.

    Raises:
        UserError: where judges are asked about soups and not about each expert, or the other way round.
    """
    experts = parse_json_mapping(SoupExpert, text, "--experts")
    for name, expert in experts.items():
        if (expert.judged is None) != (not judgements):
            wrong = "has no" if judgements else "has a"
            raise UserError(
                f"--experts: {name} {wrong} file judged; give it where there are --judgements, and only there"
            )
    return experts


def judged_metrics(judgements: Sequence[Judgement], metrics: Sequence[Row], samples: Sequence[Row]) -> list[Row]:
    """Metric rows of what judges say of a soup's responses."""
    asked = {("soup", judgement.benchmark): to_judge(samples, judgement) for judgement in judgements}
    answers = answers_of(judgements, asked)
    rows: list[Row] = []
    for judgement in judgements:
        key = ("soup", judgement.benchmark)
        rows += judged_rows(judgement, metrics, asked[key], answers[key])[0]
    return rows


def run() -> None:
    options = parser().parse_args()
    started = time.time()
    suite_options = parse_json(SuiteOptions, options.suite, "--suite")
    judgements = parse_json_list(Judgement, options.judgements, "--judgements")
    experts = experts_of(options.experts, judgements)
    loaded = suite.load(suite_options, options.base)
    # These import torch, so after --help.
    import pandas as pd

    from mergetime.artifacts.apply import applied
    from mergetime.merging.engine import merge

    # The update of an adapter is its own; that of a whole model is its difference from the base.
    base = options.base if any(form_of(expert.folder) == CHECKPOINT for expert in experts.values()) else None
    tried: list[Row] = []

    def evaluate(members: tuple[str, ...]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            merge(
                [(name, experts[name].folder) for name in members],
                method="greedy_soup",
                params={},
                space=options.space,
                seed=0,
                out=Path(scratch),
                base=base,
            )
            with applied(loaded.model, Path(scratch)):
                metrics, samples = loaded.evaluate()
        rows = rows_with_judged(metrics, judged_metrics(judgements, metrics, samples))
        tried.extend(row | {"members": list(members)} for row in rows)
        return held_out_score(rows)

    trials = greedy_soup({name: expert.score for name, expert in experts.items()}, evaluate)
    with completed(options.tried) as (beside,):
        pd.DataFrame(tried).to_parquet(beside, index=False)
    record(options, suite_options, experts, judgements, trials, started)


def record(
    options: argparse.Namespace,
    suite_options: SuiteOptions,
    experts: dict[str, SoupExpert],
    judgements: Sequence[Judgement],
    trials: Sequence[Trial],
    started: float,
) -> None:
    """Write the selection: the members, and every trial."""
    inputs = {f"{name} scores": expert.scores for name, expert in experts.items()}
    inputs |= {f"{name} judged": expert.judged for name, expert in experts.items() if expert.judged}
    inputs |= {f"{name} {file.name}": file for name, expert in experts.items() for file in weight_files(expert.folder)}
    inputs |= {str(judgement.folder): judgement.folder / "fetched.json" for judgement in judgements}
    soup = [trial for trial in trials if trial.kept][-1]
    provenance.record(
        options.out,
        stage="select_soup",
        inputs=inputs,
        config=suite_options.recorded
        | {"space": options.space, "judgements": [judgement.model_dump(mode="json") for judgement in judgements]},
        facts={
            "dtype": suite_options.evaluation.dtype,
            "members": list(soup.members),
            "score": soup.score,
            "trials": [{"members": list(t.members), "score": t.score, "kept": t.kept} for t in trials],
        },
        started=started,
        outputs=[options.tried],
    )


if __name__ == "__main__":
    main(run)
