"""Choose the members of a greedy soup by the mean primary metric on validation, judged where the suite has judges."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mergetime.artifacts.forms import CHECKPOINT, form_of, weight_files
from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.evaluation import suite
from mergetime.evaluation.judging import Judgement, answers_of, judged_rows, to_judge
from mergetime.evaluation.selection import Trial, greedy_soup, held_out_score, with_judged

Row = dict[str, Any]


@dataclass(frozen=True)
class Expert:
    """An expert's folder, its validation results, and what judges said of its responses, if there are judges."""

    folder: Path
    scores: Path
    judged: Path | None

    @property
    def score(self) -> float:
        judged = pq.read_table(self.judged).to_pylist() if self.judged else []
        return held_out_score(with_judged(pq.read_table(self.scores).to_pylist(), judged))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    suite.add_options(made)
    add = made.add_argument
    add(
        "--expert",
        action="append",
        required=True,
        metavar="NAME=PATH:SCORES",
        help="an expert's folder and its validation results",
    )
    add(
        "--judge",
        action="append",
        default=[],
        metavar="JSON",
        help="how a benchmark's responses are judged, as judge_responses.py takes it; repeat",
    )
    add(
        "--judged",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="what the judges said of an expert's responses; repeat",
    )
    add("--space", choices=["adapter", "delta"], required=True)
    add("--tried", type=Path, required=True, help="Parquet: validation results of every soup tried")
    add("--out", type=Path, required=True, help="JSON: the members")
    return made


def experts_of(options: argparse.Namespace) -> dict[str, Expert]:
    """The experts by name.

    Raises:
        UserError: where judges are asked about soups and not about each expert, or the other way round.
    """
    judged = {name: Path(path) for name, path in (text.split("=", 1) for text in options.judged)}
    found = {}
    for text in options.expert:
        name, rest = text.split("=", 1)
        folder, scores = rest.rsplit(":", 1)
        found[name] = Expert(Path(folder), Path(scores), judged.get(name))
    if judged.keys() != (found.keys() if options.judge else set()):
        raise UserError("--judged: give it for every expert where there is a --judge, and for none where there is none")
    return found


def judged_metrics(judgements: Sequence[Judgement], metrics: Sequence[Row], samples: Sequence[Row]) -> list[Row]:
    """Metric rows of what judges say of a soup's responses."""
    asked = {("soup", judgement.benchmark): to_judge(samples, judgement) for judgement in judgements}
    answers = answers_of(judgements, asked)
    found: list[Row] = []
    for judgement in judgements:
        own = ("soup", judgement.benchmark)
        found += judged_rows(judgement, metrics, asked[own], answers[own])[0]
    return found


def run() -> None:
    options = parser().parse_args()
    started = time.time()
    experts, judgements = experts_of(options), [Judgement.parse(text) for text in options.judge]
    loaded = suite.load(options)
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
        rows = with_judged(metrics, judged_metrics(judgements, metrics, samples))
        tried.extend(row | {"members": list(members)} for row in rows)
        return held_out_score(rows)

    trials = greedy_soup({name: expert.score for name, expert in experts.items()}, evaluate)
    beside = options.tried.with_name(f".{options.tried.name}.part")
    pd.DataFrame(tried).to_parquet(beside, index=False)
    beside.replace(options.tried)
    record(options, experts, judgements, trials, started)


def record(
    options: argparse.Namespace,
    experts: dict[str, Expert],
    judgements: Sequence[Judgement],
    trials: Sequence[Trial],
    started: float,
) -> None:
    """Write the selection: the members, and every trial."""
    inputs = {f"{name} scores": expert.scores for name, expert in experts.items()}
    inputs |= {f"{name} judged": expert.judged for name, expert in experts.items() if expert.judged}
    inputs |= {f"{name} {file.name}": file for name, expert in experts.items() for file in weight_files(expert.folder)}
    inputs |= {str(judgement.model): judgement.model / "fetched.json" for judgement in judgements}
    soup = [trial for trial in trials if trial.kept][-1]
    provenance.record(
        options.out,
        stage="select_soup",
        inputs=inputs,
        config=suite.config_of(options) | {"space": options.space, "judge": options.judge},
        facts={
            "dtype": options.dtype,
            "members": list(soup.members),
            "score": soup.score,
            "trials": [{"members": list(t.members), "score": t.score, "kept": t.kept} for t in trials],
        },
        started=started,
        outputs=[options.tried],
    )


if __name__ == "__main__":
    main(run)
