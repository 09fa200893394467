"""Time what the sandbox takes per program, and compare it with another checkout's."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import json, resource, sys, time
from mergetime.demo import functions
from mergetime.evaluation import scoring
documents = functions.benchmark("test", 40)
documents = [documents[number % 40] for number in range(int(sys.argv[1]))]
codes = [document["prompt"] + document["canonical_solution"] for document in documents]
start = time.perf_counter()
reasons = scoring.run_codes(codes, documents, sys.argv[2])
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
assert set(reasons) == {"passed"}, set(reasons)
print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime}))
"""


def measured(checkout: Path, programs: int, mode: str) -> dict[str, float]:
    """Seconds of wall and CPU that a checkout takes for so many programs in one sandbox."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "scripts")}
    command = [sys.executable, "-c", MEASURE, str(programs), mode]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200, help="programs per sandbox (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="sandboxes of each kind, in turns (%(default)s)")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    options = parser.parse_args()
    kinds = {"required": (ROOT, "required"), "none": (ROOT, "none")}
    if options.before:
        kinds["before"] = (options.before, "required")
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, (checkout, mode) in kinds.items():
            rounds[kind].append(measured(checkout, options.programs, mode))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.programs} programs")
    for kind, runs in rounds.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in ("wall", "cpu")}
        print(f"{kind}: {1000 * medians['wall'] / options.programs:.1f} ms wall per program, "
              f"{1000 * medians['cpu'] / options.programs:.1f} ms CPU")  # fmt: skip
    if options.before:
        for name in ("wall", "cpu"):
            ratios = [now[name] / then[name] for now, then in zip(rounds["required"], rounds["before"], strict=True)]
            print(f"{name}: {statistics.median(ratios):.2f} times before")


if __name__ == "__main__":
    main()
