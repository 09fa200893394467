"""Compare the time and memory of merges with mergekit's and PEFT's, on random experts of true shapes.

Every case's programs run in turn, one at a time, as many times as is asked for; the table holds medians.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from cases import MERGEKIT, OURS, Case, Program, llama_cases, qwen_cases
from measure import DiskSpeed, disk_speed, measure, seconds_to_read

ROOT = Path(__file__).resolve().parents[3]
LLAMA_DTYPES = ("bfloat16", "float32")
GROUPS = (*(f"llama-{dtype}" for dtype in LLAMA_DTYPES), "qwen")
COLUMNS = {
    "cpu_seconds": ("CPU s", ".1f"),
    "wall_seconds": ("wall s", ".1f"),
    "merge_seconds": ("merge s", ".1f"),
    "anonymous_mb": ("anonymous MB", ".0f"),
    "mapped_mb": ("mapped MB", ".0f"),
    "ratio": ("CPU / ours", ".2f"),
    "floor_seconds": ("floor s", ".1f"),
}


@dataclass(frozen=True)
class Row:
    """One run of one program; seconds are scaled where the program merged some of the layers only.

    ``merge_seconds`` is the wall time of the merge without imports, where the program says it.
    """

    case: str
    program: str
    repeat: int
    exit_status: int
    cpu_seconds: float
    wall_seconds: float
    merge_seconds: float | None
    anonymous_mb: float
    mapped_mb: float
    others_share: float
    input_bytes: int
    output_bytes: int
    scale: float
    message: str


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = made.add_argument
    default = ROOT / "results" / "benchmarks" / "merge"
    add("--work", type=Path, default=default, metavar="DIR", help="folder for inputs, outputs and the table")
    add("--only", choices=GROUPS, help="one group of cases; default all")
    add("--case", action="append", metavar="TEXT", help="only cases with this in their names; repeat")
    add("--repeats", type=int, default=3, metavar="N", help="runs of every program; default 3")
    add("--threads", type=int, default=2, metavar="N", help="threads of every program; default 2")
    add("--dense", action="store_true", help="merge adapters into dense task vectors too (writes 14 GB at 4B)")
    return made


def chosen_cases(given: argparse.Namespace) -> Iterator[Case]:
    """The cases that the command line asks for, their inputs made."""
    for dtype in LLAMA_DTYPES:
        if given.only in (None, f"llama-{dtype}"):
            yield from llama_cases(given.work, dtype, given.threads)
    if given.only in (None, "qwen"):
        yield from qwen_cases(given.work, given.threads, given.dense)


def run_case(case: Case, work: Path, repeats: int, threads: int) -> Iterator[Row]:
    """Run the case's programs in turn, its inputs having been read once so that no program finds them cold."""
    for path in case.inputs:
        seconds_to_read(path)
    for repeat in range(1 if case.once else repeats):
        for program in case.programs:
            row = run_program(case, program, repeat, work, threads)
            state = f"{row.cpu_seconds:.1f} CPU s" if not row.exit_status else f"failed: {row.message}"
            print(f"{case.name}: {program.name}, run {repeat + 1}: {state}", file=sys.stderr, flush=True)
            yield row


def run_program(case: Case, program: Program, repeat: int, work: Path, threads: int) -> Row:
    """One run, its output deleted."""
    out, log = work / "output", work / "last_run.log"
    shutil.rmtree(out, ignore_errors=True)
    # What an earlier run wrote must not be flushed while this one is timed.
    os.sync()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    try:
        used = measure(program.command(out), log, environment)
        facts = said_facts(out)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    seconds = facts.get("seconds")
    unmeasured = program.scale - 1
    return Row(
        case=case.name,
        program=program.name,
        repeat=repeat,
        exit_status=used.exit_status,
        cpu_seconds=used.cpu_seconds + unmeasured * facts.get("cpu_seconds", 0.0),
        wall_seconds=used.wall_seconds + unmeasured * (seconds or 0.0),
        merge_seconds=None if seconds is None else seconds * program.scale,
        anonymous_mb=used.anonymous_mb,
        mapped_mb=used.mapped_mb,
        others_share=used.others_share,
        input_bytes=sum(path.stat().st_size for path in case.inputs),
        output_bytes=written,
        scale=program.scale,
        message=last_line(log) if used.exit_status else "",
    )


def said_facts(out: Path) -> dict[str, float]:
    """The facts in the output's ``merged.json``, where there is one."""
    path = out / "merged.json"
    return dict(json.loads(path.read_text())["facts"]) if path.is_file() else {}


def last_line(log: Path) -> str:
    """The last line of a program's output that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def medians(rows: Sequence[Row], disk: DiskSpeed) -> pd.DataFrame:
    """One line for every program in every case that ended well: medians, the ratio to ours, and the case's floor.

    The floor is the time to read the inputs and write the largest output at the disk's speed.
    """
    runs = pd.DataFrame([asdict(row) for row in rows])
    runs["merge_seconds"] = runs["merge_seconds"].astype(float)
    runs = runs[runs["exit_status"] == 0]
    if runs.empty:
        return runs
    table = runs.groupby(["case", "program"], sort=False).median(numeric_only=True).reset_index()
    own = table[table["program"] == OURS].set_index("case")["cpu_seconds"]
    table["ratio"] = table["cpu_seconds"] / table["case"].map(own)
    written = table.groupby("case")["output_bytes"].transform("max")
    table["floor_seconds"] = (table["input_bytes"] / disk.read + written / disk.write) / 1e6
    return table


def markdown(table: pd.DataFrame) -> list[str]:
    """The lines of the Markdown table."""
    titles = ["case", "program", *(title for title, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(titles)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for line in table.to_dict("records"):
        numbers = (number(line[name], form) for name, (_, form) in COLUMNS.items())
        lines.append(f"| {' | '.join([line['case'], line['program'], *numbers])} |")
    return lines


def number(value: float, form: str) -> str:
    """A number for the table; a dash where there is none."""
    return "-" if pd.isna(value) else format(value, form)


def report(rows: Sequence[Row], disk: DiskSpeed, given: argparse.Namespace) -> str:
    """The table, what it was measured with, and what failed."""
    versions = [f"{name} {installed(name)}" for name in ("torch", "transformers", "peft", "mergekit")]
    machine = f"{os.cpu_count()} cores ({platform.machine()}), threads for every program: {given.threads}"
    others = max(row.others_share for row in rows)
    lines = [
        f"Medians of up to {given.repeats} runs. {machine}. Python {platform.python_version()}, {', '.join(versions)}.",
        f"Disk: write and flush {disk.write:.0f} MB/s, read {disk.read:.0f} MB/s, from memory {disk.cached_read:.0f} "
        "MB/s. The floor is reading the inputs and writing the output at the first two; a run can be below it, since "
        "inputs mostly come from the page cache and outputs are not flushed.",
        "Times include the start of Python and imports, but for `merge s`, the wall time of the merge as the program "
        "itself says it.",
        f"Other processes took up to {others:.0%} of the machine's CPU time during a run: the more, the less the "
        "seconds mean.",
        "",
        *markdown(medians(rows, disk)),
    ]
    failures = {f"Failed: {row.case}, {row.program}: {row.message}": None for row in rows if row.exit_status}
    return "\n".join([*lines, *([""] if failures else []), *failures]) + "\n"


def save(rows: Sequence[Row], disk: DiskSpeed, given: argparse.Namespace) -> None:
    """Write all runs, and the table of their medians, to the work folder."""
    runs = pd.DataFrame([asdict(row) for row in rows])
    runs.to_csv(given.work / "runs.csv", index=False)
    runs.to_parquet(given.work / "runs.parquet", index=False)
    (given.work / "table.md").write_text(report(rows, disk, given))


def installed(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 where a program failed."""
    given = parser().parse_args(arguments)
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    # As an exception, so that the running program ends and its output is deleted then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not MERGEKIT.exists() and given.only != "qwen":
        print("mergekit is left out; to have it: pip install mergekit==0.1.5", file=sys.stderr)
    disk = disk_speed(given.work)
    rows: list[Row] = []
    for case in chosen_cases(given):
        if given.case and not any(text in case.name for text in given.case):
            continue
        rows += run_case(case, given.work, given.repeats, given.threads)
        # After every case: a run that is cut short keeps what it measured.
        save(rows, disk, given)
    if not rows:
        print("no case has such a name", file=sys.stderr)
        return 1
    print(report(rows, disk, given))
    return int(any(row.exit_status for row in rows))


if __name__ == "__main__":
    sys.exit(run())
