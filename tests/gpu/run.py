"""Run the checks for a GPU, the most valuable first, each in a process of its own with a limit.

A row is printed as each check ends. Runs under any Python that has torch; the packages of a bundle are found beside
the project.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu.table import CHECKS, Check

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("check", "result", "figure", "value", "unit", "seconds", "note")


@dataclass(frozen=True)
class Outcome:
    """How a check ended: ``passed``, ``failed``, ``stopped`` at its limit, ``skipped``; and what it said before."""

    check: str
    result: str
    seconds: float
    note: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)


def environment(work: Path, shape: str) -> dict[str, str]:
    """That of the checks: packages of the bundle first, ``python`` is this Python, and no network is asked."""
    programs = work / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    packages = [*sorted(ROOT.parent.glob("packages-*")), ROOT.parent / "packages"]
    found = [path for path in (*packages, ROOT / "scripts", ROOT) if path.is_dir()]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([*map(str, found), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # On a busy machine threads wait for one another, with tiny tensors most of all.
        **({"OMP_NUM_THREADS": "1"} if shape == "tiny" else {}),
    }


def made(check: Check, shape: str, work: Path, limit_s: float) -> Outcome:
    """Make a check; its processes are ended with it, and at the limit."""
    said, log = work / f"{check.name}.jsonl", work / f"{check.name}.log"
    said.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu.checks", check.module, "--given", json.dumps(dict(check.given))]
    command += ["--shape", shape, "--work", str(work), "--said", str(said)]
    started = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(work, shape), stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    return _outcome(check.name, status, time.monotonic() - started, said, log)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End all that a check has started, whether it has ended itself or not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(name: str, status: int | None, seconds: float, said: Path, log: Path) -> Outcome:
    lines = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    machine: dict[str, Any] = next((line["machine"] for line in lines if "machine" in line), {})
    skipped = next((line["skipped"] for line in lines if "skipped" in line), "")
    figures = [line for line in lines if "name" in line]
    if status is None:
        result, note = "stopped", f"took longer than {seconds:.0f} s; {log}"
    elif status:
        result, note = "failed", f"{last_line(log)}; {log}"
    elif skipped:
        result, note = "skipped", skipped
    else:
        result, note = ("passed", "") if all(figure["passed"] for figure in figures) else ("failed", "")
    return Outcome(name, result, seconds, note, figures, machine)


def last_line(log: Path) -> str:
    """The last line of a log that says something: of a traceback, the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "said nothing"


def run(checks: Sequence[Check], shape: str, work: Path, limit_s: float, stretch: float = 1.0) -> Iterable[Outcome]:
    """Make the checks one after another within a time limit for all; ``stretch`` multiplies the limit of each."""
    end = time.monotonic() + limit_s
    for check in checks:
        left = end - time.monotonic()
        if left < check.least_s:
            note = f"{left:.0f} s were left, it takes at least {check.least_s:.0f}; give --only {check.name}"
            yield Outcome(check.name, "skipped", 0.0, note)
        else:
            yield made(check, shape, work, min(stretch * check.limit_s, left))


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The table's rows of a check: of each figure, and of the check where it has none or did not come to its end."""
    shown = []
    for figure in outcome.figures:
        shown.append(
            {
                "check": outcome.check,
                "result": "passed" if figure["passed"] else "failed",
                "figure": figure["name"],
                "value": figure["value"],
                "unit": figure["unit"],
                "seconds": round(outcome.seconds, 1),
                "note": figure["note"],
            }
        )
    if not shown or outcome.note:
        blank = dict.fromkeys(COLUMNS, "") | {"value": None}
        shown.append(
            blank
            | {
                "check": outcome.check,
                "result": outcome.result,
                "seconds": round(outcome.seconds, 1),
                "note": outcome.note,
            }
        )
    return shown


def markdown(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    texts = {name: str(value).replace("|", "/").replace("\n", " ") for name, value in row.items()}
    value = row["value"]
    if isinstance(value, (int, float)):
        texts["value"] = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    elif value is None:
        texts["value"] = ""
    return "| " + " | ".join(texts[name] for name in COLUMNS) + " |"


HEAD = "| " + " | ".join(COLUMNS) + " |\n|---|---|---|---:|---|---:|---|"


def main() -> None:
    """The command line."""
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shape", choices=["true", "tiny"], default="true", help="tiny: a trial, also without a GPU")
    parser.add_argument("--limit-s", type=float, default=540, help="seconds that all of it may take; default 540")
    parser.add_argument(
        "--stretch", type=float, default=1, metavar="N", help="limits of checks times N: a slow machine"
    )
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"repeat; {', '.join(names)}")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for what checks make; 60 GB")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for figures.json, figures.md and logs")
    given = parser.parse_args()
    work, out = given.work.resolve(), given.out.resolve()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    checks = [check for check in CHECKS if not given.only or check.name in given.only]
    started, outcomes, table = datetime.now(UTC), [], []
    print(HEAD, flush=True)
    for outcome in run(checks, given.shape, work, given.limit_s, given.stretch):
        outcomes.append(outcome)
        table += [markdown(row) for row in rows(outcome)]
        print("\n".join(table[-len(rows(outcome)) :]), flush=True)
        # Written anew after each check: whoever is stopped keeps what there is.
        _write(out, given.shape, started, outcomes, table)
        log = work / f"{outcome.check}.log"
        if outcome.result in ("failed", "stopped") and log.exists():
            (out / log.name).write_text("".join(log.read_text(errors="replace").splitlines(True)[-200:]))
    sys.exit(any(outcome.result in ("failed", "stopped") for outcome in outcomes))


def _write(out: Path, shape: str, started: datetime, outcomes: Sequence[Outcome], table: Sequence[str]) -> None:
    machine: dict[str, Any] = next((outcome.machine for outcome in outcomes if outcome.machine), {})
    facts = {"started": started.isoformat(timespec="seconds"), "shape": shape, "python": platform.python_version()}
    whole = facts | machine | {"checks": [asdict(outcome) | {"machine": None} for outcome in outcomes]}
    (out / "figures.json").write_text(json.dumps(whole, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    chip = machine.get("gpu") or "no GPU"
    title = f"{chip}, {started:%Y-%m-%d}, shapes: {shape}; Python {facts['python']}, {versions}"
    (out / "figures.md").write_text("\n".join([title, "", HEAD, *table]) + "\n")


if __name__ == "__main__":
    main()
