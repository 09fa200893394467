"""A small study with everything that its report shows, from scores that are drawn at random."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from mergetime import papers
from mergetime.claims import claim, evidence, judge, resampling
from mergetime.config.reading import parse
from mergetime.config.study import Study
from mergetime.core import provenance, tables
from mergetime.papers import comparison, findings
from mergetime.papers.duration.names import NAMES
from mergetime.papers.duration.published import audit, compare
from mergetime.publishing import formats
from mergetime.publishing.figures.formats import write_figure
from mergetime.publishing.inputs import BenchmarkFacts, Inputs, read
from mergetime.publishing.needs import offered
from mergetime.results import columns as tidy

ROOT = Path(__file__).resolve().parents[2]
BASES = ("small", "large")
METHODS = ("simple_average", "ties", "ties_adapter")
MULTIPLES = (0.5, 1.0, 2.0)
POOL = "same_duration"
ITEMS = 40
HOSTILE = "Merges <script>alert('claim')</script> & <img src=x onerror=alert(1)> peak at T*"
"""The text of a claim."""
_CLAIMS = f"""
papers: {{"000": "A paper"}}
claims:
  - {{id: late, paper: "000", section: "4.1", claim: "{HOSTILE}", statistic: peak, parameters: {{method: ties}}, rule: {{at_least: 1.5}}}}
  - {{id: unasked, paper: "000", section: "4.1", claim: "DARE helps", statistic: peak, parameters: {{method: dare_ties}}, rule: {{at_least: 1.5}}}}
"""
_EMPTY = {pa.string(): "0", pa.int64(): 0, pa.float64(): 0.0, pa.bool_(): False}


def make(folder: Path) -> Path:
    """Write the study below ``folder``; returns the file of its claims, in the same folder."""
    folder.mkdir(parents=True)
    study = _study()
    (folder / "study.json").write_text(study.model_dump_json())
    samples = _frame(_samples(study), tidy.SAMPLES)
    scored = _frame(_scores(samples), tidy.RESULTS)
    curves = _frame(_curves(study), tidy.CURVES)
    for name, frame, columns in (
        ("results", scored, tidy.RESULTS),
        ("samples", samples, tidy.SAMPLES),
        ("curves", curves, tidy.CURVES),
    ):
        tables.write(frame, columns, folder / f"{name}.parquet")
    known = {name: BenchmarkFacts(one.chance, False) for name, one in study.benchmarks.items()}
    frames = {"results": scored, "samples": samples[samples["subject_kind"] == "merged"], "curves": curves}
    given = Inputs(frames, json.loads(study.model_dump_json()), known, POOL)
    paper = papers.get(study.paper)
    for name, entry in offered(paper.tables, study).items():
        formats.write_table(entry.make(given), folder / "tables" / name)
    for name, entry in offered(paper.figures, study).items():
        write_figure(entry.make(given), folder / "figures" / name)
    _judge(folder, study, scored)
    provenance.record(
        folder / "results.json", stage="collect_results", inputs={}, config={}, facts={}, started=0.0, outputs=[]
    )
    return folder / "claims.yaml"


def _study() -> Study:
    content = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    (base,) = content["bases"].values()
    methods = {name: content["methods"][name] for name in METHODS}
    content |= {"study": "synthetic", "bases": dict.fromkeys(BASES, base), "methods": methods, "analyses": []}
    content["experts"]["durations"] = {"multiples_of_optimum": list(MULTIPLES)}
    return parse(content, "config/demo.yaml")


def _subjects(study: Study, base: str) -> Iterator[dict[str, Any]]:
    yield {"subject_kind": "base", "subject": base}
    for multiple in MULTIPLES:
        length = {"duration": f"{multiple:g}x", "multiple": multiple, "seed": 1}
        for domain in study.domains:
            yield {"subject_kind": "expert", "subject": f"{base}/{domain}/{multiple:g}x", "expert": domain, **length}
        for name in METHODS:
            method = study.methods[name]
            merged = {"method": name, "algorithm": method.method, "space": method.space}
            merged |= {"pool": f"{POOL}_{multiple:g}x", "pool_family": POOL, "recipe": "default"}
            yield {"subject_kind": "merged", "subject": f"{base}/{name}/{multiple:g}x", **merged, **length}


def _samples(study: Study) -> Iterator[dict[str, Any]]:
    draw = np.random.default_rng(1)
    for base in BASES:
        for subject in _subjects(study, base):
            for domain, benchmark in study.suites.test.items():
                at_home = subject.get("expert") == domain
                chance = 0.9 if at_home else {"base": 0.1, "expert": 0.1, "merged": 0.5}[subject["subject_kind"]]
                for item, score in enumerate(draw.random(ITEMS) < chance):
                    where = {"domain": domain, "benchmark": benchmark, "item": str(item), "stem": str(item)}
                    measured = {
                        "metric": "acc,none",
                        "primary": True,
                        "score": float(score),
                        "split": "test",
                        "group": "test",
                    }
                    yield {"study": study.study, "base": base, **subject, **where, **measured}


def _scores(samples: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for _, rows in samples.groupby(["base", "subject", "benchmark"], sort=False):
        shared = {name: rows[name].iloc[0] for name in tidy.RESULTS if name in rows}
        yield {**shared, "value": rows["score"].mean(), "stderr": rows["score"].sem(), "items": len(rows)}


def _curves(study: Study) -> Iterator[dict[str, Any]]:
    for base in BASES:
        for place, domain in enumerate(study.domains):
            t_star = 40 + 20 * place
            at_boundary = (base, domain) == ("large", "code")
            for step, loss in ((0, 2.0), (t_star, 1.0), (2 * t_star, 1.2)):
                found = {"step": step, "train_loss": loss if step else None, "validation_loss": loss, "energy_j": 3.6e6}
                facts = {"t_star": t_star, "t_star_at_boundary": at_boundary, "last_step": 2 * t_star}
                yield {"study": study.study, "base": base, "domain": domain, "seed": 1, **found, **facts}


def _judge(folder: Path, study: Study, scored: pd.DataFrame) -> None:
    (folder / "claims.yaml").write_text(_CLAIMS)
    weights = {name: one.weights for name, one in study.benchmarks.items()}
    drawn = {
        base: resampling.resampled(
            resampling.read(folder / "samples.parquet", base), base, POOL, weights, 100, NAMES.refusals
        )
        for base in BASES
    }
    judged = judge.judged(claim.load(folder / "claims.yaml"), evidence.Evidence(drawn, {}))
    tables.write(judged, judge.COLUMNS, folder / "claims.parquet")
    data = ROOT / "config/papers/duration"
    scores = Inputs({"results": scored, "samples": read("samples", folder / "samples.parquet")}, pool=POOL)
    tables.write(compare.compared(data, study, scores), comparison.COLUMNS, folder / "published/comparison.parquet")
    tables.write(findings.frame(audit.audited(data).findings), findings.COLUMNS, folder / "published/audit.parquet")


def _frame(rows: Iterator[dict[str, Any]], columns: dict[str, tables.Column]) -> pd.DataFrame:
    nothing = {name: None if column.nullable else _EMPTY[column.type] for name, column in columns.items()}
    return pd.DataFrame([nothing | row for row in rows])[list(columns)]
