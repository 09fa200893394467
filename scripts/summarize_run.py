"""Summarize a finished run: its health, where its tables are, and where its time went, rule by rule."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from mergetime.core.errors import main
from mergetime.planning.jobs import stem_of


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
    """Jobs, wall seconds and the largest memory, by rule (all batches), the costliest first.

    Not CPU seconds: Snakemake samples them, so that what a job does after its last sample is missing.
    """
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in folders:
        for file in sorted(folder.rglob("*.jsonl")):
            rule = stem_of(file.relative_to(folder).parts[0].removesuffix(".jsonl"))
            rows[rule] += [json.loads(line) for line in file.read_text().splitlines()]
    lines = ["| rule | jobs | wall s | wall s a job | peak MB |", "|---|---|---|---|---|"]
    for rule, jobs in sorted(rows.items(), key=lambda item: -sum(job["s"] for job in item[1])):
        wall = sum(job["s"] for job in jobs)
        peak = max(_number(job["max_rss"]) for job in jobs)
        lines.append(f"| {rule} | {len(jobs)} | {wall:.1f} | {wall / len(jobs):.1f} | {peak:.0f} |")
    total = sum(job["s"] for jobs in rows.values() for job in jobs)
    lines.append(f"| all | {sum(map(len, rows.values()))} | {total:.1f} | | |")
    return "\n".join(lines)


def _number(value: object) -> float:
    """A figure of a benchmark file; jobs that end too soon to be seen have none."""
    return float(value) if isinstance(value, int | float) else 0.0


if __name__ == "__main__":
    main(run)
