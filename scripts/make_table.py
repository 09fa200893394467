"""Make one table of a study from its tidy files: Parquet, CSV, Markdown and LaTeX."""

from mergetime.core.errors import main
from mergetime.publishing import formats
from mergetime.publishing.command import parse


def run() -> None:
    command = parse("table", __doc__, ".parquet, .csv, .md, .tex", {"show": "print the table too"})
    table, files = command.make()
    written = formats.write_table(table, command.options.out_stem)
    command.record(files, {"notes": list(table.notes)}, written)
    if command.options.show:
        print(formats.plain(table), end="")


if __name__ == "__main__":
    main(run)
