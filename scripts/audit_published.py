"""Hold the paper against itself: its tables against each other, and its text against its tables."""

import argparse
import time
from pathlib import Path

from mergetime.core import provenance, tables
from mergetime.core.errors import main
from mergetime.papers import findings
from mergetime.papers.duration.published import audit, numbers, statements
from mergetime.publishing.markdown import pipes


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", default=numbers.FOLDER, type=Path, help="the paper's folder, with paper.yaml")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .parquet, .md, .json")
    options = parser.parse_args()
    started = time.time()

    published = numbers.load(options.published)
    stated = statements.load(options.published / "statements.yaml")
    found = [finding for check in audit.CHECKS.values() for finding in check(published)]
    found += [finding for statement in stated for finding in statements.hold(statement, published)]
    frame = findings.frame(found)
    written = [options.out_stem.with_name(f"{options.out_stem.name}.{suffix}") for suffix in ("parquet", "md")]
    tables.write(frame, findings.COLUMNS, written[0])
    provenance.write_atomically(written[1], _markdown(found, published.paper.title, len(audit.CHECKS), len(stated)))
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="audit_published",
        inputs={"published": options.published},
        config={},
        facts=frame["check"].value_counts().to_dict(),
        started=started,
        outputs=written,
    )


def _markdown(found: list[findings.Finding], paper: str, checks: int, stated: int) -> str:
    lines = [f"# {paper}: what does not agree", ""]
    lines += [
        f"{checks} checks of tables against tables and {stated} statements of the text: {len(found)} findings.",
        "",
    ]
    header = ["check", "section", "table", "cell", "printed or stated", "recomputed", "finding"]
    rows = [
        [one.check, one.section or "", one.table, one.cell, one.printed, one.recomputed, one.message] for one in found
    ]
    return "\n".join([*lines, *pipes(header, rows), ""])


if __name__ == "__main__":
    main(run)
