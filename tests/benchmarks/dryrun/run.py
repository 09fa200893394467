"""Compare dry runs of large studies with dry runs of minimal Snakefiles that have the same jobs and files.

The study is the paper's with more bases and seeds. Each of its dry runs is followed by one of a Snakefile that is made
from what it printed: rules by the same names, as many jobs of each, as many files from each job to each other, and
nothing else: no params, resources, logs, benchmarks or environments.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
HEADER = re.compile(r"^(?:local)?rule (\S+):$")
# An input function, because nothing shorter says which of 50,000 jobs needs which files.
MINIMAL = """
import json

with open("jobs.json") as stream:
    OUTPUTS, INPUTS = json.load(stream)

rule all:
    input: INPUTS["all"][0]

for name, outputs in OUTPUTS.items():
    rule:
        name: name
        input: lambda wildcards, name=name: INPUTS[name][int(wildcards.job)]
        output: [f"{name}/{{job}}/{number}" for number in range(outputs)]
        shell: "touch {output}"
"""


@dataclass
class Shape:
    """The jobs of a study: how many files each rule makes, and what each job of it reads, as files of the minimum."""

    outputs: dict[str, int]
    inputs: dict[str, list[list[str]]]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Jobs, pairs of jobs of which one needs the other, and files that jobs read of others."""
        jobs = [read for jobs in self.inputs.values() for read in jobs]
        edges = sum(len({file.rpartition("/")[0] for file in read}) for read in jobs)
        return len(jobs), edges, sum(map(len, jobs))


@dataclass
class Run:
    """One dry run: seconds on the clock and on the processor, and the peak of its memory."""

    wall_s: float
    cpu_s: float
    memory_mb: float


def grid(bases: int, seeds: int) -> str:
    """The paper's study with that many bases and seeds, as YAML."""
    study = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    known = list(study["bases"].values())
    study |= {
        "study": "grid",
        "seeds": list(range(1, seeds + 1)),
        "bases": {f"base-{number}": known[number % len(known)] for number in range(bases)},
    }
    return yaml.safe_dump(study, sort_keys=False)


def dry_run(folder: Path, out: Path, *arguments: str) -> Run:
    """``snakemake -n`` as people type it, with what it prints in a file."""
    started = time.monotonic()
    with out.open("wb") as stream:
        process = subprocess.Popen(["snakemake", "-n", *arguments], cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status:
        sys.exit(f"error: snakemake -n failed in {folder}:\n{out.read_text()[-3000:]}")
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def shape_of(printed: Path) -> Shape:
    """What a dry run printed, as the shape of its jobs."""
    jobs: list[tuple[str, list[str], list[str]]] = []
    with printed.open() as stream:
        for line in stream:
            if header := HEADER.match(line):
                jobs.append((header[1], [], []))
            elif line.startswith("    input: "):
                jobs[-1][1].extend(line[11:].rstrip("\n").split(", "))
            elif line.startswith("    output: "):
                jobs[-1][2].extend(line[12:].rstrip("\n").split(", "))
    made: dict[str, str] = {}
    count: Counter[str] = Counter()
    for name, _, outputs in jobs:
        made |= {file: f"{name}/{count[name]}/{number}" for number, file in enumerate(outputs)}
        count[name] += 1
    shape = Shape({name: len(outputs) for name, _, outputs in jobs if name != "all"}, {})
    for name, inputs, _ in jobs:
        # Files of the repository are made by no job.
        shape.inputs.setdefault(name, []).append([made[file] for file in inputs if file in made])
    return shape


def measure(bases: int, seeds: int, repeats: int, work: Path) -> tuple[Shape, Run, Run]:
    """Ours and the minimum, in turns, the fastest of each."""
    ours, minimal = work / "ours", work / "minimal"
    for folder in (ours, minimal):
        folder.mkdir()
    for entry in ROOT.iterdir():
        # As cloned: without what runs have left here.
        if not entry.name.startswith(".") and entry.name not in ("resources", "results", "logs", "benchmarks"):
            (ours / entry.name).symlink_to(entry)
    (work / "grid.yaml").write_text(grid(bases, seeds))
    (minimal / "Snakefile").write_text(MINIMAL)
    runs: list[tuple[Run, Run]] = []
    for _ in range(repeats):
        first = dry_run(ours, work / "ours.txt", "--configfile", str(work / "grid.yaml"))
        if not runs:
            shape = shape_of(work / "ours.txt")
            (minimal / "jobs.json").write_text(json.dumps([shape.outputs, shape.inputs]))
        runs.append((first, dry_run(minimal, work / "minimal.txt", "--cores", "1")))
        least = shape_of(work / "minimal.txt")
        if least.counts != shape.counts:
            sys.exit(f"error: the minimum has {least.counts} jobs, edges and files, not {shape.counts}")
    return shape, min((a for a, _ in runs), key=lambda r: r.cpu_s), min((b for _, b in runs), key=lambda r: r.cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], help="a line of the table for each")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print("| seeds | jobs | edges | files | ms a job | CPU s | minimum | ratio | wall s | minimum | ratio ", end="")
    print("| MB | minimum | ratio |\n|---:" + "|---:" * 13 + "|", flush=True)
    for seeds in options.seeds:
        with tempfile.TemporaryDirectory() as work:
            shape, ours, least = measure(options.bases, seeds, options.repeats, Path(work))
        columns = [
            f"{mine:.0f} | {theirs:.0f} | **{mine / theirs:.2f}**"
            for mine, theirs in (
                (ours.cpu_s, least.cpu_s),
                (ours.wall_s, least.wall_s),
                (ours.memory_mb, least.memory_mb),
            )
        ]
        jobs, edges, files = shape.counts
        counts = f"{jobs} | {edges} | {files} | {1000 * ours.cpu_s / jobs:.1f}"
        print(f"| {seeds} | {counts} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
