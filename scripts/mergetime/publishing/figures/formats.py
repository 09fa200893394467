"""One figure as PDF and PNG, with the data that it draws as Parquet."""

import io
from pathlib import Path

import matplotlib
import pyarrow as pa

from mergetime.publishing import files
from mergetime.publishing.figures.drawing import Drawing


def write_figure(drawing: Drawing, stem: Path) -> list[Path]:
    """Write ``stem``.pdf, .png (300 dots per inch) and .parquet (what is drawn, with the caption); name them.

    No file carries the time it was made, so that drawing the same data again gives the same bytes.
    """
    drawn = pa.Table.from_pandas(drawing.drawn, preserve_index=False)
    rendered: dict[str, str | bytes] = {"parquet": files.parquet(drawn, {"caption": drawing.caption})}
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for suffix, metadata in (("pdf", {"CreationDate": None, "Subject": drawing.caption}), ("png", {})):
            buffer = io.BytesIO()
            drawing.figure.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
            rendered[suffix] = buffer.getvalue()
    return files.write(stem, rendered)
