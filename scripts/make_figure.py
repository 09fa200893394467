"""Make one figure of a study from its tidy files: PDF, PNG, and the numbers that it draws as Parquet."""

from mergetime.core.errors import main
from mergetime.publishing.command import parse
from mergetime.publishing.figures import formats


def run() -> None:
    command = parse("figure", __doc__, ".pdf, .png, .parquet")
    drawing, files = command.make()
    written = formats.write_figure(drawing, command.options.out_stem)
    command.record(files, {"caption": drawing.caption}, written)


if __name__ == "__main__":
    main(run)
