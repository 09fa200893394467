"""Make one figure of a study from its tidy files: PDF, PNG, and the numbers that it draws as Parquet."""

import argparse
import time
from pathlib import Path

from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.publishing import inputs
from mergetime.publishing.figures import formats
from mergetime.publishing.registry import FIGURES


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", required=True, choices=FIGURES, help="which figure")
    inputs.add_options(parser, FIGURES)
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .pdf, .png, .parquet")
    options = parser.parse_args()
    started = time.time()

    entry = FIGURES[options.figure]
    read, files = inputs.given(options.figure, entry, options)
    try:
        drawing = entry.make(read)
    except ValueError as error:
        raise UserError(f"{files[entry.reads[0]]}: {error}") from error
    written = formats.write_figure(drawing, options.out_stem)
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="make_figure",
        inputs=files,
        config={"figure": options.figure, "pool": options.pool},
        facts={"caption": drawing.caption, "code": entry.code("make_figure")},
        started=started,
        outputs=written,
    )


if __name__ == "__main__":
    main(run)
