"""What the scripts that make tables and those that make figures share: options, inputs and the record."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergetime import papers
from mergetime.core import provenance
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.publishing import inputs
from mergetime.publishing.entry import Entry

Kind = Literal["table", "figure"]


@dataclass(frozen=True)
class Command:
    """One call of make_table.py or make_figure.py."""

    kind: Kind
    entry: Entry
    options: argparse.Namespace
    started: float = field(default_factory=time.time)

    def make(self) -> tuple[Any, dict[str, Path]]:
        """The table or figure, and the files that it was made from.

        Raises:
            UserError: in one line, if a file is missing or cannot give it.
        """
        read, files = inputs.given(vars(self.options)[self.kind], self.entry, self.options)
        try:
            return self.entry.make(read), files
        except ValueError as error:
            raise UserError(f"{files[self.entry.reads[0]]}: {error}") from error

    def record(self, files: Mapping[str, Path], facts: Mapping[str, Any], written: Sequence[Path]) -> None:
        """Write the JSON beside the table or figure."""
        stem, script = self.options.out_stem, f"make_{self.kind}"
        provenance.record(
            stem.with_name(f"{stem.name}.json"),
            stage=script,
            inputs=files,
            config={name: vars(self.options)[name] for name in (self.kind, "paper", "pool", "benchmarks")},
            facts={**facts, "code": self.entry.code(script)},
            started=self.started,
            outputs=written,
        )


def parse(kind: Kind, description: str | None, suffixes: str, switches: Mapping[str, str] | None = None) -> Command:
    """The call that the command line states; ``switches`` are further flags with their help.

    Raises:
        UserError: if the paper, or its table or figure, is unknown.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{kind}", required=True, help=f"which {kind}")
    parser.add_argument("--paper", help="whose, as the study's config names it; default: those that every study has")
    inputs.add_options(parser)
    parser.add_argument("--out-stem", required=True, type=Path, help=f"files to write, without {suffixes}")
    for name, text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args()
    paper = papers.get(options.paper)
    entries: Mapping[str, Entry] = {"table": paper.tables, "figure": paper.figures}[kind]
    wanted = vars(options)[kind]
    if wanted not in entries:
        whose = f"paper {options.paper}" if options.paper else "a study without a paper"
        raise UserError(f"{whose} has no {kind} '{wanted}'{nearest(wanted, entries)}")
    return Command(kind, entries[wanted], options)
