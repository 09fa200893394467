"""The sandbox, tried for real: what generated programs can do, and what they cannot."""

import ctypes
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from mergetime import sandbox, sandbox_namespaces, sandbox_server
from mergetime.errors import UserError
from mergetime.sandbox import Limits, Mode, run_programs

LIMITS = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)


def namespaces_work() -> bool:
    """Whether this machine lets us enter new namespaces, found out without the code under test."""
    child = os.fork()
    if child == 0:
        flags = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000
        os._exit(int(ctypes.CDLL(None).unshare(flags) != 0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


sandboxed = pytest.mark.skipif(not namespaces_work(), reason="no user namespaces on this machine")
both_modes = pytest.mark.parametrize("mode", [pytest.param("required", marks=sandboxed), "none"])


def reasons(*programs: str, mode: Mode = "required", limits: Limits = LIMITS) -> list[str]:
    outcomes = run_programs(programs, limits=limits, sandbox=mode)
    assert [outcome.passed for outcome in outcomes] == [outcome.reason == "passed" for outcome in outcomes]
    return [outcome.reason for outcome in outcomes]


@sandboxed
def test_available_where_namespaces_work() -> None:
    assert sandbox.available() is None


@both_modes
def test_only_the_end_of_a_program_passes(mode: Mode) -> None:
    programs = {
        "assert 1 + 1 == 2": "passed",
        "assert 1 + 1 == 3": "failed: AssertionError",
        "def f(:": "failed: SyntaxError",
        "import sys; sys.exit(0)": "failed: SystemExit",
        "import os; os._exit(0)": "ended early",
        "import os; os.closerange(3, 100)": "ended early",
        "import os; os.kill(os.getpid(), 9)": "killed: SIGKILL",
        "import os; os.write(3, b'passed'); os._exit(0)": "ended early",
        "import os; os.write = os._exit = None": "passed",
        "class Odd(BaseException): pass\nraise Odd": "failed: Odd",
        "\ud800": "failed: UnicodeEncodeError",
    }
    assert reasons(*programs, mode=mode) == list(programs.values())


@both_modes
def test_limits(mode: Mode) -> None:
    programs = {
        "while True: pass": "timeout",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass": "timeout",
        "import time; time.sleep(60)": "timeout",
        "x = bytearray(1 << 30)": "failed: MemoryError",
        "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "open('big', 'wb').write(b'0' * (2 << 20))": "failed: OSError",
    }
    assert reasons(*programs, mode=mode) == list(programs.values())


@sandboxed
def test_number_of_processes() -> None:
    fork = "import os, time\nfor _ in range(7):\n    if os.fork() == 0: time.sleep(9)\n"
    assert reasons(fork, fork + "os.fork()") == ["passed", "failed: BlockingIOError"]


@both_modes
def test_a_program_fails_by_itself(mode: Mode) -> None:
    assert reasons("pass", "import os; os.abort()", "pass", mode=mode) == ["passed", "killed: SIGABRT", "passed"]


@both_modes
def test_environment_is_empty(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert reasons("import os; assert not os.environ, os.environ", mode=mode) == ["passed"]


@both_modes
def test_standard_library_under_a_strict_umask(mode: Mode) -> None:
    before = os.umask(0o077)
    try:
        assert reasons("import asyncio, decimal, hashlib, sqlite3, zoneinfo", mode=mode) == ["passed"]
    finally:
        os.umask(before)


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_no_network(listener: int) -> None:
    connect = f"import socket; socket.create_connection(('127.0.0.1', {listener}), timeout=1)"
    assert reasons(connect, mode="none") == ["passed"]
    if namespaces_work():
        assert reasons(connect) == ["failed: OSError"]


def test_files_of_the_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    read = f"open({str(secret)!r}).read()"
    assert reasons(read, mode="none") == ["passed"]
    if namespaces_work():
        assert reasons(read) == ["failed: FileNotFoundError"]


@sandboxed
def test_writes_only_to_its_own_empty_folder() -> None:
    here = Path(os.__file__).parent
    denied = [f"open({str(folder / 'x')!r}, 'w')" for folder in (Path("/"), Path("/usr/lib"), Path("/dev"), here)]
    denied += [f"import os; os.chmod({str(here)!r}, 0o777)", f"import os; os.unlink({os.__file__!r})"]
    assert set(reasons(*denied)) == {"failed: OSError"}
    own = "import os; assert os.listdir() == []; open('x', 'w').write('x' * 1000); assert os.path.getsize('x') == 1000"
    assert reasons(own, own) == ["passed", "passed"]
    many = "for i in range(20): open(f'{i}', 'wb').write(b'0' * (1 << 19))"
    assert reasons(many) == ["failed: OSError"]
    assert not Path("/x").exists()


@sandboxed
def test_meets_no_other_process() -> None:
    signal_all = (
        "import os\n"
        "for pid in (1, -1):\n"
        "    for number in range(1, 65):\n"
        "        try: os.kill(pid, number)\n"
        "        except (ProcessLookupError, PermissionError): pass"
    )
    assert reasons(signal_all, "pass") == ["passed", "passed"]
    assert reasons(f"import os; os.kill({os.getpid()}, 0)") == ["failed: ProcessLookupError"]
    assert reasons("import os; os.listdir('/proc')") == ["failed: FileNotFoundError"]


@sandboxed
def test_what_a_program_leaves_behind_is_killed() -> None:
    behind = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: open('/program/alive', 'w').close()\n    os._exit(0)\ntime.sleep(0.1)\n"
        "assert os.path.exists('alive')"
    )
    later = "import os, time\ntime.sleep(0.1)\nassert not os.path.exists('/program/alive')"
    assert reasons(behind, later) == ["passed", "passed"]


@sandboxed
def test_no_way_to_privileges() -> None:
    libc = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    denied = ["unshare(0x10000000)", "unshare(0x20000)", "mount(None, b'/', None, 0x1020, None)", "chroot(b'/program')"]
    assert set(reasons(*[f"{libc}assert libc.{call} == -1" for call in denied])) == {"passed"}
    trace = f"{libc}assert libc.ptrace(16, 1, 0, 0) == -1"
    assert reasons(trace, "import os; assert os.getuid() == os.getgid() == 65534") == ["passed", "passed"]


@sandboxed
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as such a user already")
def test_as_unprivileged_user() -> None:
    job = {"programs": ["assert True", "open('/x', 'w')"], "limits": asdict(LIMITS), "sandbox": "required"}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # traceable again, as a process started by this user is
        os.write(writing, sandbox_server.from_sandbox(job).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert json.load(file) == {"reasons": ["passed", "failed: OSError"]}
    os.waitpid(child, 0)


def test_required_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_serve", lambda *_: {"error": "unshare: Operation not permitted"})
    with pytest.raises(UserError, match="no sandbox for generated code on this machine: unshare: Operation not"):
        run_programs(["pass"], limits=LIMITS, sandbox="required")


@sandboxed
def test_a_machine_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_namespaces, "_NEW_USER", 0x1)
    answer = json.loads(sandbox_server.from_sandbox({"programs": [], "limits": {}, "sandbox": "required"}))
    assert answer == {"error": "unshare: Invalid argument"}


@both_modes
def test_overhead(mode: Mode) -> None:
    start = time.perf_counter()
    assert set(reasons(*["assert True"] * 100, mode=mode)) == {"passed"}
    assert time.perf_counter() - start < 5  # about 0.8 s on an idle core


def test_nothing_to_run() -> None:
    assert run_programs([], limits=LIMITS, sandbox="required") == []
