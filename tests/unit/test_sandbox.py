"""The sandbox, tried for real: what generated programs can do, and what they cannot."""

import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from mergetime.core.errors import UserError
from mergetime.sandbox import namespaces as sandbox_namespaces
from mergetime.sandbox import programs as sandbox
from mergetime.sandbox import server as sandbox_server
from mergetime.sandbox.programs import Limits, Mode, run_programs

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


@dataclass(frozen=True)
class Host:
    """What a hostile program would like to reach."""

    home: Path
    port: int
    unix: Path
    process: subprocess.Popen[bytes]


@pytest.fixture
def host(tmp_path: Path, listener: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A home with a file in it, two listening sockets, a process; they must be there, unchanged, afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_secret")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server, subprocess.Popen(["sleep", "60"]) as process:
        server.bind(str(path))
        server.listen()
        server.setblocking(False)
        before = sorted(tmp_path.rglob("*"))
        yield Host(home, listener, path, process)
        assert sorted(tmp_path.rglob("*")) == before
        assert (home / "token").read_text() == "hf_secret"
        assert process.poll() is None
        with pytest.raises(BlockingIOError):
            server.accept()
        process.kill()


# Each reaches its last line, and so would pass, only if it succeeds.
ATTACKS = {
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "starts threads without end": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[9]).start()",
    "deletes home": "import os, shutil; shutil.rmtree(os.path.expanduser('~'))",
    "deletes the home that it knows": "import shutil; shutil.rmtree({home!r})",
    "deletes everything": "import shutil; shutil.rmtree('/')",
    "opens a connection to this machine": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)",
    "opens a connection to the world": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "sends a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "opens a UNIX socket": "import socket; socket.socket(socket.AF_UNIX).connect({unix!r})",
    "allocates 100 GB": "bytearray(100 << 30)",
    "maps 100 GB": "import mmap; mmap.mmap(-1, 100 << 30)",
    "hides memory in files without names": (
        "import os\nkept = [os.memfd_create('x') for _ in range(99)]\nfor file in kept: os.write(file, bytes(1 << 20))"
    ),
    "hides memory in shared segments": "import ctypes; assert ctypes.CDLL(None).shmget(0, 100 << 20, 0o1600) >= 0",
    "hides memory in pipes": "import os\npipes = [os.pipe() for _ in range(500)]",
    "sleeps for ever": "import time\nwhile True: time.sleep(9)",
    "stops itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "writes outside by an absolute path": "open({home!r} + '/x', 'w')",
    "writes outside by a relative path": "open('..' + {home!r} + '/x', 'w')",
    "writes outside by a link": "import os; os.symlink({home!r}, 'link'); open('link/x', 'w')",
    "writes beside its folder": "open('../x', 'w')",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "kills every process": "import os; os.kill(-1, 9)",
    "kills a process that it knows": "import os; os.kill({pid}, 9)",
    "reads the users": "open('/etc/passwd').read()",
    "reads a link to the users": "import os; os.symlink('/etc/passwd', 'link'); open('link').read()",
    "reads a secret": "open({home!r} + '/token').read()",
    "reads a secret of the environment": "import os; os.environ['HF_TOKEN']",
    "reads its parent's environment": "open('/proc/1/environ').read()",
    "reads the user's keys": "import ctypes; assert ctypes.CDLL(None).syscall({keyctl}, 0, -3, 0) >= 0",
    "says that it passed": (
        "import os\nfor file in range(256):\n    for text in (b'passed', b'{{\"reasons\": [\"passed\"]}}'):\n"
        "        try: os.write(file, text)\n        except OSError: pass\nos._exit(0)"
    ),
    "leaves a daemon behind": (
        "import os, signal\nif os.fork() == 0:\n    os.setsid()\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    if os.fork() == 0:\n        while True: pass\nos._exit(0)"
    ),
    "writes to the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "makes a device": "import os, stat; os.mknod('disk', stat.S_IFBLK | 0o666, os.makedev(8, 0))",
    "fills its disk": "for name in range(99): open(str(name), 'wb').write(bytes(1 << 19))",
    "fills its disk with names": "for name in range(9999): open(str(name), 'w')",
    "fills its disk with folders": "import os\nwhile True: os.mkdir('x'); os.chdir('x')",
}


@sandboxed
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(host: Host, attack: str) -> None:
    keyctl = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    known = {"home": str(host.home), "unix": str(host.unix), "port": host.port, "pid": host.process.pid}
    program = ATTACKS[attack].format(**known, keyctl=keyctl)
    after = "import os; assert os.listdir() == []; open('x', 'w').write('x')"
    before = time.monotonic()
    reason, next_reason = reasons(program, after)
    assert reason.startswith(("failed: ", "killed: ", "timeout", "ended early"))
    assert next_reason == "passed"
    assert time.monotonic() - before < 20


@pytest.mark.parametrize(
    "attack", ["opens a connection to this machine", "reads the users", "reads a secret", "reads a link to the users"]
)
def test_it_is_the_sandbox_that_stops_an_attack(host: Host, attack: str) -> None:
    program = ATTACKS[attack].format(home=str(host.home), port=host.port)
    assert reasons(program, mode="none") == ["passed"]


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
def test_a_machine_where_calls_cannot_be_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_namespaces, "_REFUSED", {})
    answer = json.loads(sandbox_server.from_sandbox({"programs": ["pass"], "limits": {}, "sandbox": "required"}))
    assert answer == {"error": f"no list of system calls to refuse on {os.uname().machine}"}


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
