"""What a study publishes: its tables and figures, its comparison, claims, report and package, and what each reads.

What a study cannot have ends a run of Snakemake by SystemExit: that is the one exception of an input function which
Snakemake passes on as it is, so that the user sees one line.
"""

import json
from pathlib import Path
from typing import Literal, NoReturn

from mergetime import papers
from mergetime.config.study import Study
from mergetime.core.registries import members
from mergetime.papers import Paper
from mergetime.publishing.entry import FILES, Entry
from mergetime.publishing.needs import missing, offered
from mergetime.study import layout

_ANALYSIS_FILES = {"mode_connectivity": ["mode_connectivity", "barriers"]}
_DESCRIPTIONS = ("study.json", "README.md", "CITATION.cff", "ro-crate-metadata.json", "checksums.sha256")


def paper_of(study: Study) -> Paper:
    """The paper that a study follows, or what stands for none."""
    return papers.get(study.paper)


def shown_pool(study: Study) -> str:
    """The pool that tables and figures show where a study merges several at a duration: the config's first, if any."""
    return next(iter(study.pools), "")


def tables(study: Study) -> list[str]:
    """The tables that can be made of a study."""
    return list(offered(paper_of(study).tables, study))


def figures(study: Study) -> list[str]:
    """The figures that can be made of a study."""
    return list(offered(paper_of(study).figures, study))


def inputs(study: Study, name: str) -> list[str]:
    """The files that a table or figure is made from.

    Raises:
        SystemExit: with one line, if the study cannot have it.
    """
    entry = _entry(study, name)
    lacking = missing(entry, study)
    if lacking:
        stop(f"{name} needs {lacking}")
    return [layout.of(study).file(FILES[read]) for read in entry.reads]


def options(study: Study, name: str) -> list[str]:
    """The paper and the files of a table or figure, and what it must know of the benchmarks, as options."""
    entry = _entry(study, name)
    given = [f"--paper={study.paper}"] if study.paper else []
    given += [f"--{read.replace('_', '-')}={layout.of(study).file(FILES[read])}" for read in entry.reads]
    if entry.benchmarks:
        facts = {
            name: {"chance": source.chance, "weights": source.weights} for name, source in study.benchmarks.items()
        }
        given.append(f"--benchmarks={json.dumps(facts)}")
    return given


def code(study: Study, name: str, script: str) -> str:
    """The digest of what makes a table or figure, and the arguments that its maker is called with."""
    entry = _entry(study, name)
    return f"{entry.code(script)} {json.dumps(dict(entry.arguments), sort_keys=True)}"


def printed(study: Study, target: Literal["compare_published", "audit_published"]) -> list[str]:
    """The files with the printed numbers of a study's paper, for what compares or audits them.

    Raises:
        SystemExit: with one line that names the target, if the paper has no such numbers, or there is no paper.
    """
    paper = paper_of(study)
    if (paper.audit if target == "audit_published" else paper.compare) is None:
        stop(f"{target} needs {papers.PRINTED_NUMBERS}")
    return [str(file) for file in paper.printed]


def claims(study: Study) -> str | None:
    """The file of the claims that a study is judged by, if there is one: the config's, or its paper's."""
    own = paper_of(study).claims
    return study.claims or (str(own) if own else None)


def judged_claims(study: Study) -> str:
    """The same, for a job that cannot do without.

    Raises:
        SystemExit: with one line, if there are none, or the config names a file that is not there.
    """
    file = claims(study) or stop(f"claims needs {papers.CLAIMS}")
    return file if Path(file).is_file() else stop(f"claims: {file}: no such file; correct the study's key claims")


def tidy(study: Study) -> list[str]:
    """The tidy files that every study has."""
    return [layout.of(study).tidy(name) for name in ("results", "samples", "curves", "costs")]


def analysed(study: Study) -> list[str]:
    """The tidy files of a study's analyses."""
    return [
        layout.of(study).analysis(file)
        for analysis in study.analyses
        for file in _ANALYSIS_FILES.get(analysis, [analysis])
    ]


def reported(study: Study) -> list[str]:
    """What the report shows beside the tidy files: tables, figures, and the verdicts that the study has."""
    paths, paper = layout.of(study), paper_of(study)
    files = [paths.table(name, "parquet") for name in tables(study)]
    files += [paths.figure(name, suffix) for name in figures(study) for suffix in ("png", "parquet")]
    files += [paths.claims()] if claims(study) else []
    files += [paths.published("comparison")] if paper.compare else []
    return files + ([paths.published("audit")] if paper.audit else [])


def published(study: Study) -> list[str]:
    """The tables, figures and verdicts that a study has, as Parquet files."""
    return [file for file in reported(study) if file.endswith(".parquet")]


def elsewhere(study: Study) -> dict[str, str]:
    """The tables and figures that a study has not because its paper has none of the name, each with the reason."""
    own = paper_of(study)
    here = {**own.tables, **own.figures}
    names_of = {entry.function: name for name, entry in here.items()}
    reasons: dict[str, str] = {}
    for other in [None, *members("papers")]:
        paper = papers.get(other)
        for name, entry in {**paper.tables, **paper.figures}.items():
            if name not in here and entry.function in names_of:
                reasons[name] = f"{name} is called {names_of[entry.function]} in the paper {study.paper}; ask for that"
            elif name not in here:
                whose = f"the study's key paper names {study.paper or 'none'}"
                reasons.setdefault(name, f"{name} needs the paper {other}; {whose}")
    return reasons


def packed(study: Study) -> list[str]:
    """The files of a study's package, one by one: in an output that is a folder, Snakemake leaves a file of its own."""
    paths = layout.of(study)
    names = [paths.below(file) for file in [*tidy(study), *analysed(study)]]
    return [paths.package(name) for name in [*names, *_DESCRIPTIONS]]


def _entry(study: Study, name: str) -> Entry:
    paper = paper_of(study)
    return {**paper.tables, **paper.figures}[name]


def stop(message: str) -> NoReturn:
    """End the run with the reason why a study cannot have something.

    Raises:
        SystemExit: with the reason in one line.
    """
    raise SystemExit(f"error: {message}")
