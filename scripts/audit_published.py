"""Check a paper against itself: its tables against each other, and its text against its tables."""

import argparse
import time
from collections import Counter
from pathlib import Path

from mergetime import papers
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, main
from mergetime.papers import findings
from mergetime.publishing.entry import load


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", required=True, help="which paper, as configs name it")
    parser.add_argument("--published", type=Path, help="folder of the paper's data; default: config/papers/PAPER")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .parquet, .md, .json")
    options = parser.parse_args()
    started = time.time()

    paper = papers.get(options.paper)
    if paper.audit is None:
        raise UserError(f"audit_published needs {papers.PRINTED_NUMBERS}")
    published = options.published or paper.folder
    audit: findings.Audit = load(paper.audit)(published)
    frame = findings.frame(audit.findings)
    outputs = tables.write_with_page(options.out_stem, (frame, findings.COLUMNS), findings.markdown(audit))
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="audit_published",
        inputs={"published": published},
        config={"paper": options.paper},
        facts={**Counter(frame["check"]), "code": paper.code("audit_published")},
        started=started,
        outputs=outputs,
    )


if __name__ == "__main__":
    main(run)
