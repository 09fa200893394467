"""Time what is made from the tidy files of a full-size study: every table and figure, and what is read beside them.

The study is the paper's, with drawn scores. Each script runs as the workflow calls it; what it takes to start, which is
the time of its --help, is taken off.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import study

from mergetime import papers
from mergetime.config import reading
from mergetime.publishing.entry import FILES, Entry
from mergetime.publishing.needs import offered

ROOT = Path(__file__).resolve().parents[3]
POOL = "same_duration"
LIMIT_S = 5.0
"""CPU seconds that any of them may take."""


@dataclass(frozen=True)
class Run:
    """One process: seconds on the processor (user and system) and on the clock, and the peak of its memory."""

    cpu_s: float
    wall_s: float
    memory_mb: float


def targets(folder: Path, out: Path) -> dict[str, list[str]]:
    """The script and arguments of each target, in an order in which each finds what it reads."""
    known = study.benchmarks(folder)
    made = reading.load(folder / "study.json")
    paper = papers.get(made.paper)
    found = {}
    for kind, entries in (("table", offered(paper.tables, made)), ("figure", offered(paper.figures, made))):
        for name, entry in entries.items():
            options = [f"--{kind}", name, "--paper", str(made.paper), *_files(folder, entry), "--pool", POOL]
            options += ["--benchmarks", known] if entry.benchmarks else []
            found[name] = [f"make_{kind}", *options, "--out-stem", str(out / f"{kind}s" / name)]
    results, described = ["--results", str(folder / "results.parquet")], ["--study", str(folder / "study.json")]
    analyses = [f"--analysis={file}" for file in sorted((folder / "analysis").glob("*.parquet"))]
    samples, claims = ["--samples", str(folder / "samples.parquet")], ["--claims", str(made.claims or paper.claims)]
    published = out / "published"
    return found | {
        "compare_published": ["compare_published", *results, *samples, *described, "--pool", POOL, "--out-stem", str(published / "comparison")],
        "audit_published": ["audit_published", "--paper", str(made.paper), "--out-stem", str(published / "audit")],
        "claims": ["judge_claims", *claims, *samples, *described, *analyses, "--pool", POOL, "--out-stem", str(out / "claims")],
        "report": ["make_report", "--study", str(out), *claims, "--pool", POOL, "--out", str(out / "report.html")],
        "package": ["make_package", "--study", str(folder), "--out", str(out / "package")],
    }  # fmt: skip


def _files(folder: Path, entry: Entry) -> list[str]:
    return [part for name in entry.reads for part in (f"--{name.replace('_', '-')}", str(folder / FILES[name]))]


def timed(script: str, *arguments: str) -> Run:
    """One process of a script."""
    # As in the workflow's shell. With more threads, those of BLAS that wait for work count as CPU seconds.
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / f"scripts/{script}.py"), *arguments]
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        if status:
            said.seek(0)
            sys.exit(f"error: {script} failed:\n{said.read().decode()[-3000:]}")
    return Run(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def measure(folder: Path, out: Path, only: list[str], repeats: int) -> list[str]:
    """A line of the table for each target; the names of those that take too long."""
    print("| target | CPU s | start | work | wall s | MB |\n|---|---:|---:|---:|---:|---:|", flush=True)
    starts: dict[str, float] = {}
    slow = []
    for name, (script, *arguments) in targets(folder, out).items():
        if only and name not in only:
            continue
        if script not in starts:
            starts[script] = min(timed(script, "--help").cpu_s for _ in range(repeats))
        run = min((timed(script, *arguments) for _ in range(repeats)), key=lambda run: run.cpu_s)
        work = run.cpu_s - starts[script]
        figures = f"{run.cpu_s:.1f} | {starts[script]:.1f} | {work:.1f} | {run.wall_s:.1f} | {run.memory_mb:.0f}"
        print(f"| {name} | {figures} |", flush=True)
        slow += [name] if work > LIMIT_S else []
    return slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "results/benchmarks/publish", help="where the study stands")
    parser.add_argument("--only", nargs="+", default=[], help="these targets alone")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    folder, out = options.work / "study", options.work / "made"
    if not (folder / "study.json").is_file():
        # In a process of its own: the peak of a child's memory begins at what its parent holds.
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            made = other.submit(study.make, folder).result()
        print("rows:", ", ".join(f"{name} {rows:,}" for name, rows in made.items()))
    out.mkdir(exist_ok=True)
    for name in ("study.json", "results.parquet", "samples.parquet", "curves.parquet"):
        # The report reads what is made beside what it is made from.
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(folder.resolve() / name)
    print(f"{platform.machine()}, {os.cpu_count()} cores\n", flush=True)
    slow = measure(folder.resolve(), out.resolve(), options.only, options.repeats)
    print(f"\nover {LIMIT_S:.0f} CPU s of work: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
