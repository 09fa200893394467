"""Verify a study's files by the digests recorded beside them.

Exits 1 with a line for each that is not whole, or made from other files than are there now.
"""

import argparse
import shlex
from pathlib import Path

from mergetime.core.errors import UserError, main
from mergetime.packaging.verification import verify


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="folder of the study, results/{study}")
    parser.add_argument("--fetched", type=Path, nargs="*", default=[], help="records of what the study fetches")
    parser.add_argument(
        "--dense-may-be-missing",
        action="store_true",
        help="the study removes dense task vectors after their evaluation",
    )
    parser.add_argument(
        "--published", type=Path, nargs="*", help="the tables, figures and verdicts that the study has; default: all"
    )
    parser.add_argument("--configfile", nargs="*", default=[], help="the study's, for the commands that are printed")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=JSON", help="keys in place of the configfile's")
    options = parser.parse_args()
    report = verify(
        options.study,
        options.fetched,
        keeps_dense=not options.dense_may_be_missing,
        published=options.published,
    )
    if not report.records and not report.damages:
        raise UserError(f"{options.study}: nothing to verify; no file of this study has been made yet")
    given = [
        *(["--configfile", *options.configfile] if options.configfile else []),
        *(["--config", *options.config] if options.config else []),
    ]
    for damage in report.damages:
        print(damage.line(shlex.join(given)))
    for path in report.left_over:
        files = shlex.quote(str(path.with_suffix("")))
        print(f"{path}: left over, as this study has no {path.stem} any more; to remove it: rm {files}.*")
    if report.damages:
        outdated = sum(damage.outdated for damage in report.damages)
        counts = {"not whole": len(report.damages) - outdated, "out of date": outdated}
        said = " and ".join(f"{count} are {what}" for what, count in counts.items() if count)
        raise UserError(f"{options.study}: of {report.files} files that are listed, {said}")
    print(f"{options.study}: whole; {report.files} files are as {report.records} records say")


if __name__ == "__main__":
    main(run)
