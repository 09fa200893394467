"""Runs generated Python programs, in a Linux sandbox where one can be had.

One server process (:mod:`mergetime.sandbox.server`) is started per call and forks two processes per program: one runs
the program, the other its tests. In the sandbox a program has no network, sees only the Python standard library and the
system's shared libraries (read-only), may write to an empty folder of its own, makes no system calls but those listed,
and meets no process but that of its tests, with which it exchanges plain values: what it leaves behind is killed before
the next one starts.

What a program cannot do is pass tests without computing what they compare. What it can: anything to its own score.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mergetime.core.errors import UserError
from mergetime.sandbox import server as sandbox_server

Mode = Literal["required", "none"]

_PACKAGES = str(Path(__file__).parents[2])
_START = f"import sys; sys.path.insert(0, sys.argv[1]); from {sandbox_server.__name__} import main; main()"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Program:
    """A generated source and the tests that call its function ``entry_point``.

    Tests see nothing else of the program. What they pass and what the function returns are None, bools, numbers, texts,
    bytes and the standard containers of these; iterators arrive used up, subclasses as their base class, other objects
    fail with a TypeError. Without tests a program passes that reaches its last line.
    """

    source: str
    tests: str = ""
    entry_point: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one program may use, and its tests again."""

    cpu_seconds: int = 3
    wall_seconds: float = 6.0
    memory_bytes: int = 1 << 30
    """Address space of the process; without a sandbox, of each that it starts."""
    processes: int = 16
    """Threads at a time, the main one included; the sandbox lets a program start no process. Without a sandbox
    processes count too, all of the user's on the machine, and root has no limit."""
    file_bytes: int = 16 << 20
    """Size of any one file, and of everything in the program's own folder together."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    ``reason`` is ``passed``, ``failed: <name of the exception>``, ``timeout`` (of CPU or wall time),
    ``killed: <name of the signal>``, or ``ended early`` (the program's process ended itself before the tests did).
    """

    passed: bool
    reason: str


def run_programs(programs: Sequence[Program], *, limits: Limits, sandbox: Mode) -> list[Outcome]:
    """Run each program by itself, one after the other; only one passes whose tests reach their last line.

    With ``sandbox="none"`` the programs have the same limits and an empty environment, but they see the network and
    every file of the user.

    Raises:
        UserError: with ``sandbox="required"`` on a machine where no sandbox can be had.
        RuntimeError: if the server process broke down.
    """
    if not programs:
        return []
    if sandbox == "required" and not sys.platform.startswith("linux"):
        raise _unavailable(f"sandboxes need Linux, this is {sys.platform}")
    answer = _serve(programs, limits, sandbox)
    if "error" in answer and sandbox == "none":
        raise UserError(f"generated code cannot be limited: {answer['error']}; free resources of this machine")
    if "error" in answer:
        raise _unavailable(answer["error"])
    return [Outcome(reason == "passed", reason) for reason in answer["reasons"]]


@functools.cache
def available() -> str | None:
    """None where programs can be sandboxed, else the reason why they cannot."""
    try:
        outcome = run_programs([Program("pass")], limits=Limits(), sandbox="required")[0]
    except UserError as error:
        return str(error)
    return None if outcome.passed else f"an empty program ended with: {outcome.reason}"


def _unavailable(reason: str) -> UserError:
    return UserError(
        f"no sandbox for generated code on this machine: {reason}; enable unprivileged user namespaces,"
        " or let it run unprotected: evaluation.sandbox: none in the config, MERGETIME_SANDBOX=none in the environment"
    )


def _serve(programs: Sequence[Program], limits: Limits, sandbox: Mode) -> dict[str, Any]:
    """The server's answer: ``{"reasons": [...]}`` or ``{"error": ...}``."""
    # Interpreters from environment modules may need this one variable to start; the server removes it.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    seconds = _START_SECONDS + len(programs) * (limits.wall_seconds + 1)
    with _unnamed_file() as (texts, reading):
        places = [
            {
                "source": _put(texts, program.source),
                "tests": _put(texts, program.tests),
                "entry_point": program.entry_point,
            }
            for program in programs
        ]
        texts.flush()
        job = {"programs": places, "texts": reading, "limits": asdict(limits), "sandbox": sandbox}
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _START, _PACKAGES],
                input=json.dumps(job).encode(),
                capture_output=True,
                env=environment,
                cwd="/",
                pass_fds=[reading],
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the server for generated programs did not end within {seconds:.0f} s") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        trace = done.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"the server for generated programs ended with {done.returncode}: {trace}") from error
    if "reasons" in answer and len(answer["reasons"]) != len(programs):
        raise RuntimeError(f"{len(programs)} programs were run, {len(answer['reasons'])} answers came back")
    return answer


@contextlib.contextmanager
def _unnamed_file() -> Iterator[tuple[IO[bytes], int]]:
    """A file to write to that has no name, and a descriptor that reads it and cannot write."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        reading = os.open(file.name, os.O_RDONLY)
        Path(file.name).unlink()
        try:
            yield file, reading
        finally:
            os.close(reading)


def _put(file: IO[bytes], text: str) -> tuple[int, int]:
    """Write a text to the end of a file; its length in bytes, and where it begins."""
    start = file.tell()
    return file.write(text.encode("utf-8", "surrogatepass")), start
