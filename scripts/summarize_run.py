"""Summarize a finished run: its health, where its tables are, and where its time went, rule by rule."""

import argparse
from pathlib import Path

from mergetime.core.errors import main
from mergetime.publishing.markdown import escape
from mergetime.report.costs import by_rule


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="folder of the study, results/NAME")
    parser.add_argument(
        "--benchmarks", type=Path, nargs="+", required=True, help="folders of Snakemake's benchmark files"
    )
    options = parser.parse_args()
    for table in sorted((options.study / "tables").glob("*.md")):
        print(table.read_text())
    print(times(options.benchmarks))


def times(folders: list[Path]) -> str:
    """Jobs, wall seconds and the largest memory, by rule (all batches), the costliest first."""
    costs = by_rule(folders).sort_values("wall", ascending=False, kind="stable")
    lines = ["| rule | jobs | wall s | wall s a job | peak MB |", "|---|---|---|---|---|"]
    for rule, row in costs.iterrows():
        count = f"{row['jobs']:.0f} | {row['wall']:.1f} | {row['wall'] / row['jobs']:.1f}"
        lines.append(f"| {escape(str(rule))} | {count} | {row['peak']:.0f} |")
    lines.append(f"| all | {costs['jobs'].sum():.0f} | {costs['wall'].sum():.1f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run)
