"""The page: what a study has, gathered by the registry of its paper, in one HTML file that loads nothing."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
import pyarrow.parquet as pq
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mergetime import __version__, papers
from mergetime.claims import claim
from mergetime.config import reading
from mergetime.config.study import Study
from mergetime.core.errors import UserError
from mergetime.core.tables import read as read_table
from mergetime.papers import Paper
from mergetime.publishing.entry import names as names_of
from mergetime.publishing.needs import MERGES, MULTIPLES, offered
from mergetime.report import health, interactive, listing, sources, verdicts
from mergetime.results import columns as tidy

TEMPLATE = "page.html.jinja"
STUDY, RESULTS, CURVES = "study.json", "results.parquet", "curves.parquet"
CLAIMS, COMPARISON, AUDIT = "claims.parquet", "published/comparison.parquet", "published/audit.parquet"
HEALTH = "health"
"""The table that stands with the health of the run."""
_PRINT_DPI, _SCREEN_DPI = 300, 160
"""Dots per inch of the figures' files, and of their inches on the page: texts of 7 points become 15 pixels high."""


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure of the study: its PNG as a data URI, its width on the page in pixels, its caption."""

    name: str
    caption: str
    uri: str
    width: int


def build(folder: Path, claims: Path | None, pool: str | None, benchmarks: list[Path]) -> str:
    """The page of a study.

    Args:
        folder: the study's folder, results/{study}.
        claims: YAML of the claims that were judged; None where there are none.
        pool: which pool tables and figures show, where the study merges several at one duration.
        benchmarks: folders of Snakemake's records of jobs; those of them that exist.

    Raises:
        UserError: naming the file that is missing, and the target that makes it.
        ValueError: in one line, if a file has other columns than this version's, or scores are incomplete.
    """
    study = reading.load(_existing(folder / STUDY, STUDY))
    paper = papers.get(study.paper)
    names = names_of(paper.names)
    tables, figures = offered(paper.tables, study), offered(paper.figures, study)
    frame = read_table(_existing(folder / RESULTS, RESULTS), tidy.RESULTS)
    curves = read_table(_existing(folder / CURVES, CURVES), tidy.CURVES)
    written = health.records(folder)
    shown = {name: listing.printed(_existing(folder / f"tables/{name}.parquet", name)) for name in tables}
    return _page(
        study=study.study,
        version=__version__,
        plotly=Markup(get_plotlyjs()),
        **_verdicts(folder, paper, claims),
        quality=_plot(interactive.quality(frame, pool, names), "quality") if _has_curves(study, paper) else None,
        losses=_plot(interactive.losses(curves, names), "losses") if not curves.empty else None,
        figures=[_figure(folder, name) for name in figures],
        health=shown.pop(HEALTH, None),
        tables=list(shown.values()),
        boundary=health.at_boundary(curves),
        trainings=health.trainings(curves),
        failures=health.failures(folder, frame, written),
        costs=health.costs(benchmarks, curves),
        fetched=sources.fetched(study),
        versions=sources.versions(written),
        code=sources.code(written),
        digests=sources.digests(inputs(folder, study, claims), folder),
        described=json.dumps(json.loads((folder / STUDY).read_text()), indent=1, ensure_ascii=False),
    )


def inputs(folder: Path, study: Study, claims: Path | None) -> list[Path]:
    """The files of a study that its page shows, by the registry of its paper."""
    paper = papers.get(study.paper)
    there = {CLAIMS: claims, COMPARISON: paper.compare, AUDIT: paper.audit}
    names = [STUDY, RESULTS, CURVES, *(name for name, source in there.items() if source)]
    names += [f"tables/{name}.parquet" for name in offered(paper.tables, study)]
    names += [f"figures/{name}.{suffix}" for name in offered(paper.figures, study) for suffix in ("png", "parquet")]
    return [folder / name for name in names]


def _verdicts(folder: Path, paper: Paper, claims: Path | None) -> dict[str, Any]:
    """What was decided; None stands for what a study without claims, or its paper without printed numbers, lacks."""
    sections: dict[str, Any] = dict.fromkeys(
        ("claim_counts", "claims", "comparison_counts", "comparison", "not_comparable", "audit")
    )
    if claims:
        judged = pd.read_parquet(_existing(folder / CLAIMS, "claims"))
        sections |= {
            "claim_counts": verdicts.of_claims(judged),
            "claims": verdicts.claims(judged, claim.load(claims).papers),
        }
    if paper.compare:
        compared = pd.read_parquet(_existing(folder / COMPARISON, "compare_published"))
        sections |= {
            "comparison_counts": verdicts.of_comparison(compared),
            "comparison": verdicts.comparison(compared),
            "not_comparable": verdicts.not_comparable(compared),
        }
    if paper.audit:
        sections["audit"] = verdicts.audit(pd.read_parquet(_existing(folder / AUDIT, "audit_published")))
    return sections


def _has_curves(study: Study, paper: Paper) -> bool:
    """Whether there are average scores of merged models against multiples of T* to choose from."""
    averaged = set(study.suites.test) - set(names_of(paper.names).refusals)
    return bool(averaged) and all(need.function(study) for need in (MERGES, MULTIPLES))


def _page(**content: Any) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(TEMPLATE).render(content)


def _plot(figure: go.Figure, name: str) -> Markup:
    text: str = figure.to_html(
        config=interactive.CONFIG, include_plotlyjs=False, full_html=False, default_height="640px", div_id=name
    )
    return Markup(text)


def _figure(folder: Path, name: str) -> EmbeddedFigure:
    picture = _existing(folder / f"figures/{name}.png", name).read_bytes()
    metadata: Mapping[bytes, bytes] = pq.read_schema(_existing(folder / f"figures/{name}.parquet", name)).metadata or {}
    # The width stands in the header of every PNG, in the four bytes from 16 on.
    inches = int.from_bytes(picture[16:20], "big") / _PRINT_DPI
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return EmbeddedFigure(name, metadata.get(b"caption", b"").decode(), uri, round(inches * _SCREEN_DPI))


def _existing(file: Path, target: str) -> Path:
    if not file.is_file():
        raise UserError(f"{file} is missing; snakemake makes it as {target}")
    return file
