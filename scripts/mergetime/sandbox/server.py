"""The server of :mod:`mergetime.sandbox.programs`: reads a job from standard input, runs it, prints how programs ended.

Standard library only; started with ``python -I -S``. Processes, from outside to inside:

- server: outside the sandbox; reads the job, maps users into the sandbox, prints the answer;
- builder: enters new namespaces and replaces the root file system;
- init: process 1 of the new process namespace; forks one process per program, kills what that leaves behind;
- program: without privileges, under resource limits, in an empty folder of its own.

Without a sandbox the server itself forks the programs.
"""

import contextlib
import gc
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, NoReturn

from mergetime.sandbox import namespaces

_LONGEST_ANSWER = 1 << 16
_DESCRIPTORS = 256
"""More than this process ever opens."""
_OPEN_FILES = 256
"""What a program may have open: the kernel's buffers behind pipes and sockets count to no other limit."""


class Runner:
    """Forks one process per program and cleans up behind it.

    ``inside`` says whether this process is process 1 of a process namespace of its own, ``others`` how many of the
    server's processes count with a program's own.
    """

    def __init__(self, limits: dict[str, Any], *, inside: bool, others: int) -> None:
        self.limits, self.inside, self.others = limits, inside, others
        self.null = os.open(os.devnull, os.O_RDWR)

    def run(self, program: str) -> str:
        """How ``program`` ended, in the words of ``Outcome.reason``."""
        folder = self._make_folder()
        nonce = secrets.token_hex(16).encode()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._start(program, folder, writing, nonce)
        os.close(writing)
        status, used = self._wait(pid)
        self._kill_rest(pid)
        os.set_blocking(reading, False)
        answer = b""
        with contextlib.suppress(BlockingIOError):
            answer = os.read(reading, _LONGEST_ANSWER)
        os.close(reading)
        self._remove_folder(folder)
        return self._reason(status, used, answer.partition(nonce)[2].decode("utf-8", "replace"))

    def _start(self, program: str, folder: str, answer: int, nonce: bytes) -> NoReturn:
        """The new process: from here to the program itself."""
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            for descriptor in (0, 1, 2):
                os.dup2(self.null, descriptor)
            os.dup2(answer, 3)
            os.closerange(4, _DESCRIPTORS)
            os.chdir(folder)
            if self.inside:
                namespaces.drop_privileges()
            _set_limits(self.limits, self.others)
        except BaseException:  # nothing may run without limits
            os._exit(1)
        _run_program(program, 3, nonce)

    def _wait(self, pid: int) -> tuple[int | None, float]:
        """Exit status and CPU seconds of the program; None if its wall time is over."""
        end = time.monotonic() + self.limits["wall_seconds"]
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                return status, usage.ru_utime + usage.ru_stime
            left = end - time.monotonic()
            if left <= 0:
                return None, 0.0
            signal.sigtimedwait([signal.SIGCHLD], left)

    def _kill_rest(self, pid: int) -> None:
        """Kill and reap every process of the program; without a namespace, those of its process group."""
        with contextlib.suppress(ProcessLookupError):
            if self.inside:
                os.kill(-1, signal.SIGKILL)
            else:
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def _reason(self, status: int | None, used: float, answer: str) -> str:
        stopped_by = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
        if status is None or used >= self.limits["cpu_seconds"] or stopped_by == signal.SIGXCPU:
            return "timeout"
        if stopped_by is not None:
            return f"killed: {signal.Signals(stopped_by).name}"
        return answer or "ended early"

    def _make_folder(self) -> str:
        if not self.inside:
            return tempfile.mkdtemp(prefix="program-")
        namespaces.mount_folder(self.limits["file_bytes"])
        return namespaces.FOLDER

    def _remove_folder(self, folder: str) -> None:
        if self.inside:
            namespaces.unmount_folder()
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the job, run it, print ``{"reasons": [...]}``, or ``{"error": ...}`` where no sandbox can be had."""
    # The folder of this package: programs find the standard library and nothing else.
    sys.path.pop(0)
    os.environ.clear()
    namespaces.die_with_parent()
    job = json.load(sys.stdin)
    if job["sandbox"] == "none":
        print(json.dumps(_run_all(job, inside=False, others=0)))
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
        return file.read()


def _build(job: dict[str, Any], answer: int, mapped: int, entered: int) -> NoReturn:
    """The builder: make the sandbox, then fork its process 1 and wait for it."""
    try:
        namespaces.enter()
        os.write(entered, b"+")
        others = os.read(mapped, 1)[0]
        namespaces.die_with_parent()
        namespaces.build_root()
        namespaces.refuse_calls()
        init = os.fork()
    except OSError as error:
        os.write(answer, json.dumps({"error": error.strerror}).encode())
        os._exit(0)
    if init == 0:
        namespaces.die_with_parent()
        namespaces.refuse_tracing()
        with os.fdopen(answer, "w", encoding="utf-8") as file:
            json.dump(_run_all(job, inside=True, others=others), file)
        os._exit(0)
    os.close(answer)
    os.waitpid(init, 0)
    os._exit(0)


def _run_all(job: dict[str, Any], *, inside: bool, others: int) -> dict[str, Any]:
    """The answer to a job, from the process that forks the programs."""
    runner = Runner(job["limits"], inside=inside, others=others)
    # Process 1 is deaf to its children's signals, as long as it has no handler; Python installs one for SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    gc.freeze()
    return {"reasons": [runner.run(program) for program in job["programs"]]}


def _set_limits(limits: dict[str, Any], others: int) -> None:
    """Set this process's limits; those already lower stay."""
    cpu, memory, size = limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    for kind, wanted in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NPROC, limits["processes"] + others),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))


def _run_program(program: str, answer: int, nonce: bytes) -> NoReturn:
    """Run ``program`` in this process and write ``nonce`` and how it ended to the descriptor ``answer``."""
    # Bound here, because the program may replace them in their module.
    write, leave, reason = os.write, os._exit, "passed"
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except BaseException as error:  # SystemExit is a failure like any other
        reason = "failed: " + "".join(c for c in type(error).__name__[:100] if c.isprintable())
    write(answer, nonce + reason.encode("utf-8", "replace"))
    leave(0)
