"""Make the data package of a study: its tidy files with descriptions, citation, RO-Crate and checksums."""

import argparse
import datetime
import time
from pathlib import Path

from mergetime.core import provenance
from mergetime.core.atomic import write_atomically
from mergetime.core.errors import main
from mergetime.packaging import package


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, type=Path, help="folder of the study, results/{study}")
    parser.add_argument("--date", help="date of publication, YYYY-MM-DD; default: today")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an earlier package there is replaced")
    options = parser.parse_args()
    started = time.time()

    date = datetime.date.fromisoformat(options.date) if options.date else datetime.datetime.now(datetime.UTC).date()
    files = package.build(options.study, date.isoformat())
    package.clear(options.out, files)
    for name, content in files.items():
        write_atomically(options.out / name, content)
    provenance.record(
        options.out.with_name(f"{options.out.name}.json"),
        stage="make_package",
        inputs={name: options.study / name for name in (*package.TABLES, package.STUDY)},
        config={"date": date.isoformat()},
        facts={"files": sorted(files), "bytes": sum(map(len, files.values()))},
        started=started,
        outputs=[options.out / package.CHECKSUMS],
    )


if __name__ == "__main__":
    main(run)
