"""The server of :mod:`mergetime.sandbox.programs`: reads a job from standard input, runs it, prints how programs ended.

Standard library only; started with ``python -I -S``. Processes, from outside to inside:

- server: outside the sandbox; reads the job, maps users into the sandbox, prints the answer;
- builder: enters new namespaces and replaces the root file system;
- init: process 1 of the new process namespace; forks two processes per program, kills what they leave behind;
- program: runs the generated source, then its functions as they are asked for;
- tests: runs the tests, which ask for these functions and compare plain values, and says how they ended.

The last two (:mod:`mergetime.sandbox.dialogue`) are without privileges, under resource limits, and may make listed
system calls only. Their texts are in a file that no other process reads: a program finds neither its tests nor another
program in the memory that it was forked with. Without a sandbox the server itself forks them.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mergetime.sandbox import calls, dialogue, namespaces

_LONGEST_ANSWER = 1 << 16
_TEXTS = 3
"""The descriptor of the texts here, whatever it was where the server was started."""
_DESCRIPTORS = 256
"""More than this process ever opens: its numbers begin with the lowest."""
_REHEARSALS = 20
"""After so many runs Python has nothing left to adapt in a function."""
_OPEN_FILES = 64
"""What a program may have open: the kernel's buffers behind pipes and sockets count to no other limit."""


class Runner:
    """Forks the two processes of each program and cleans up behind them.

    ``texts`` is the descriptor of the file with sources and tests; ``calls_of_programs`` is their filter of system
    calls, None without a sandbox, when this process is not process 1 of a process namespace of its own; ``others`` says
    how many of the server's processes count with a program's own.
    """

    def __init__(self, limits: dict[str, Any], texts: int, *, calls_of_programs: bytes | None, others: int) -> None:
        self.limits, self.texts, self.filter = limits, texts, calls_of_programs
        self.resources = _limits(limits, others)
        self.null = os.open(os.devnull, os.O_RDWR)
        self.ended: dict[int, tuple[int, float]] = {}
        """Exit status and CPU seconds of the processes that were forked for the program and have ended."""

    def run(self, program: dict[str, Any]) -> str:
        """How ``program`` ended, in the words of ``Outcome.reason``.

        Raises:
            OSError: if a process could not be put under its limits.
        """
        folder = self._make_folder()
        (asked, asking), (heard, saying), (told, telling), (trouble, starting) = (os.pipe() for _ in range(4))

        def answer(source: str) -> None:
            dialogue.answer(source, asked, saying)

        def test(tests: str) -> None:
            os.write(telling, dialogue.test(tests, program["entry_point"], heard, asking).encode("utf-8", "replace"))

        self.ended = {}
        answering = self._fork(answer, program["source"], folder, (asked, saying), starting)
        testing = self._fork(test, program["tests"], folder, (heard, asking, telling), starting)
        for descriptor in (asked, asking, heard, saying, telling, starting):
            os.close(descriptor)
        end = time.monotonic() + self.limits["wall_seconds"]
        unlimited = _read(trouble)
        in_time = self._wait(testing, end)
        os.set_blocking(told, False)
        reason = _read(told)
        if reason == dialogue.LOST:
            in_time = self._wait(answering, end)
        self._kill_rest((answering, testing))
        self._remove_folder(folder)
        if unlimited:
            raise OSError(0, unlimited)
        return self._reason(reason, in_time, answering, testing)

    def _fork(
        self, work: Callable[[str], None], text: Sequence[int], folder: str, kept: Sequence[int], starting: int
    ) -> int:
        """A new process that does ``work`` with a text, with no descriptors but those ``kept`` for it.

        It writes to ``starting`` if it cannot be put under its limits.
        """
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            namespaces.unblock_signals()
            for descriptor in (0, 1, 2):
                os.dup2(self.null, descriptor)
            os.chdir(folder)
            content = os.pread(self.texts, *text).decode("utf-8", "surrogatepass")
            if self.filter is not None:
                namespaces.drop_privileges()
            for kind, values in self.resources:
                resource.setrlimit(kind, values)
            if self.filter is not None:
                calls.apply(self.filter)
            _close_all_but(kept, starting)
        except BaseException as error:  # nothing may run without limits
            os.write(starting, str(getattr(error, "strerror", error)).encode("utf-8", "replace"))
            os._exit(1)
        leave = os._exit
        try:
            os.close(starting)
            work(content)
        finally:
            leave(0)

    def _wait(self, pid: int, end: float) -> bool:
        """Whether a process ended before its wall time was over."""
        while pid not in self.ended:
            if not self._reap(os.WNOHANG):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                signal.sigtimedwait([signal.SIGCHLD], left)
        return True

    def _reap(self, options: int) -> bool:
        """Note how a process ended, if any did."""
        pid, status, usage = os.wait4(-1, options)
        self.ended[pid] = (status, usage.ru_utime + usage.ru_stime)
        return pid != 0

    def _kill_rest(self, pids: Sequence[int]) -> None:
        """Kill and reap every process of the program; without a namespace, those of its process groups."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if self.filter is not None:
                    os.kill(-1, signal.SIGKILL)
                else:
                    os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                self._reap(0)

    def _reason(self, reason: str, in_time: bool, answering: int, testing: int) -> str:
        """How a program ended, from what its tests said and how both processes ended."""
        used = max(self.ended[answering][1], self.ended[testing][1])
        stopped_by = {pid: os.WTERMSIG(status) for pid, (status, _) in self.ended.items() if os.WIFSIGNALED(status)}
        if not in_time or used >= self.limits["cpu_seconds"] or signal.SIGXCPU in stopped_by.values():
            return "timeout"
        if reason and reason != dialogue.LOST:
            return reason
        last = answering if reason else testing
        return f"killed: {signal.Signals(stopped_by[last]).name}" if last in stopped_by else "ended early"

    def _make_folder(self) -> str:
        if self.filter is None:
            import tempfile  # in the sandbox a smaller process is faster to fork

            return tempfile.mkdtemp(prefix="program-")
        namespaces.mount_folder(self.limits["file_bytes"])
        return namespaces.FOLDER

    def _remove_folder(self, folder: str) -> None:
        if self.filter is None:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
        else:
            namespaces.unmount_folder()


def main() -> None:
    """Read the job, run it, print ``{"reasons": [...]}``, or ``{"error": ...}`` where no sandbox can be had."""
    # The folder of this package: programs find the standard library and nothing else.
    sys.path.pop(0)
    if "LD_LIBRARY_PATH" in os.environ:
        namespaces.load_libraries()
    os.environ.clear()
    namespaces.die_with_parent()
    job = json.load(sys.stdin)
    os.dup2(job["texts"], _TEXTS)
    os.closerange(_TEXTS + 1, max(job["texts"] + 1, _DESCRIPTORS))
    job["texts"] = _TEXTS
    if job["sandbox"] == "none":
        print(json.dumps(_run_all(job, calls_of_programs=None, others=0)))
    else:
        sys.stdout.write(from_sandbox(job))


def from_sandbox(job: dict[str, Any]) -> str:
    """The answer of a builder started for ``job``, as JSON."""
    answer, mapped, entered = os.pipe(), os.pipe(), os.pipe()
    builder = os.fork()
    if builder == 0:
        _build(job, answer[1], mapped[0], entered[1])
    for descriptor in (answer[1], mapped[0], entered[1]):
        os.close(descriptor)
    # Nothing arrives if the builder failed; its reason is then in the answer.
    if os.read(entered[0], 1):
        try:
            others = namespaces.map_users(builder)
        except OSError as error:
            os.kill(builder, signal.SIGKILL)
            return json.dumps({"error": f"mapping users into a new namespace: {error}"})
        os.write(mapped[1], bytes([others]))
    with os.fdopen(answer[0], encoding="utf-8") as file:
        answered = file.read()
    os.waitpid(builder, 0)
    return answered


def _build(job: dict[str, Any], answer: int, mapped: int, entered: int) -> NoReturn:
    """The builder: make the sandbox, then fork its process 1 and wait for it."""
    try:
        everywhere, programs = calls.filters()
        namespaces.enter()
        os.write(entered, b"+")
        others = os.read(mapped, 1)[0]
        namespaces.die_with_parent()
        namespaces.build_root()
        calls.apply(everywhere)
        init = os.fork()
    except OSError as error:
        os.write(answer, json.dumps({"error": error.strerror}).encode())
        os._exit(0)
    if init == 0:
        namespaces.die_with_parent()
        namespaces.refuse_tracing()
        with os.fdopen(answer, "w", encoding="utf-8") as file:
            json.dump(_run_all(job, calls_of_programs=programs, others=others), file)
        os._exit(0)
    os.close(answer)
    os.waitpid(init, 0)
    os._exit(0)


def _run_all(job: dict[str, Any], *, calls_of_programs: bytes | None, others: int) -> dict[str, Any]:
    """The answer to a job, from the process that forks the programs."""
    runner = Runner(job["limits"], job["texts"], calls_of_programs=calls_of_programs, others=others)
    # Process 1 is deaf to its children's signals, as long as it has no handler; Python installs one for SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    # The first time costs memory and time that each program's processes would spend anew.
    for _ in range(_REHEARSALS):
        dialogue.rehearse()
    gc.collect()
    gc.freeze()
    try:
        return {"reasons": [runner.run(program) for program in job["programs"]]}
    except OSError as error:
        return {"error": error.strerror}


def _limits(limits: dict[str, Any], others: int) -> list[tuple[int, tuple[int, int]]]:
    """What to set for each process of a program; limits already lower stay. The two processes count together."""
    cpu, memory, size = limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"]
    wanted = [(resource.RLIMIT_CPU, (cpu, cpu + 1))]
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NPROC, limits["processes"] + 1 + others),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        wanted.append((kind, (lower, lower)))
    return wanted


def _read(descriptor: int) -> str:
    """What a pipe holds, or what comes before it closes."""
    content = b""
    with contextlib.suppress(BlockingIOError):
        while len(content) < _LONGEST_ANSWER and (block := os.read(descriptor, _LONGEST_ANSWER)):
            content += block
    os.close(descriptor)
    return content.decode("utf-8", "replace")


def _close_all_but(kept: Sequence[int], starting: int) -> None:
    """Close every descriptor but the standard ones and these."""
    first = 3
    for descriptor in sorted((*kept, starting)):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, _DESCRIPTORS)
