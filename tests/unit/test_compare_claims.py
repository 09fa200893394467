"""Verdicts on claims held against the tables and figures of the same study, made from Parquet with known seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mergetime.claims import evidence, judge, resampling, statistics
from mergetime.claims.claim import Claims
from mergetime.core import tables
from mergetime.papers.duration.figures.quality import figure_1
from mergetime.papers.duration.figures.quality_by_domain import figure_4
from mergetime.papers.duration.names import NAMES
from mergetime.papers.duration.tables.optima import optima_table
from mergetime.publishing.inputs import Inputs
from mergetime.uncertainty.estimates import Estimates
from tests.compare_claims import contradictions
from tests.unit.test_claims import results_of, sample_rows

BASE = "qwen3.5-demo"
SEEDS = (1, 2, 3)


def claims() -> Claims:
    """A peak of every method on every domain, and effects that figures show."""
    stated = [
        {"statistic": "peak", "parameters": {"method": method, "domain": domain}, "rule": {"at_least": 1}}
        for method in ("ties", "simple_average")
        for domain in ("multilingual", "code")
    ]
    stated.append({"statistic": "peak", "parameters": {"method": "ties"}, "rule": {"at_least": 1}})
    stated += [
        {"statistic": name, "parameters": {"method": "ties"}, "rule": {"above": 0}}
        for name in ("gain_over_t_star", "loss_to_longest", "slope", "over_base")
    ]
    about = {"paper": "p", "section": "1", "claim": "so it is"}
    numbered = [about | each | {"id": f"c{number}"} for number, each in enumerate(stated)]
    return Claims.model_validate({"papers": {"p": "A paper"}, "claims": numbered})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The figures and tables of a study of three seeds, where each model's training is worth more or less."""
    samples = sample_rows(SEEDS)
    draw = np.random.default_rng(3)
    trained = samples[["subject", "domain"]].drop_duplicates()
    worth = trained.assign(worth=draw.normal(0, 0.15, len(trained)))
    chance = 0.2 + 0.3 * samples["multiple"].fillna(0) + samples.merge(worth, on=["subject", "domain"])["worth"]
    samples["score"] = (draw.random(len(samples)) < chance).astype(float)
    samples.to_parquet(tmp_path / "samples.parquet")
    inputs = Inputs({"results": results_of(samples), "samples": samples}, names=NAMES)
    for name in ("figures", "tables"):
        (tmp_path / name).mkdir()
    for name, figure in (("figure_1", figure_1), ("figure_4", figure_4)):
        figure(inputs).drawn.to_parquet(tmp_path / f"figures/{name}.parquet")
    optima_table(inputs).cells.to_parquet(tmp_path / "tables/table_7.parquet")
    return tmp_path


def contradicted(folder: Path) -> list[str]:
    """What the tables and figures contradict of verdicts that are passed now."""
    scores = resampling.resampled(pd.read_parquet(folder / "samples.parquet"), BASE, replicates=20)
    frame = judge.judged(claims(), evidence.Evidence({BASE: scores}, {}))
    assert "not_testable" not in set(frame["verdict"])
    tables.write(frame, judge.COLUMNS, folder / "claims.parquet")
    return list(contradictions(folder, claims()))


def test_no_verdict_contradicts_the_tables_of_a_study_of_three_seeds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert contradicted(folder) == []

    def over_items(estimates: Estimates) -> Estimates:
        return estimates

    monkeypatch.setattr(statistics, "with_training", over_items)
    assert any("but a table prints" in line for line in contradicted(folder)), "sets over items alone are others"
