"""The sandbox, tried for real: what generated programs can do, and what they cannot."""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergetime.core.errors import UserError
from mergetime.sandbox import namespaces as sandbox_namespaces
from mergetime.sandbox import programs as sandbox
from mergetime.sandbox import server as sandbox_server
from mergetime.sandbox.programs import Limits, Mode, Program, run_programs

LIMITS = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)


def namespaces_work() -> bool:
    """Whether this machine lets us enter new namespaces, found out without the code under test."""
    child = os.fork()
    if child == 0:
        flags = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000
        os._exit(int(ctypes.CDLL(None).unshare(flags) != 0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


ORDINARY = 12345
"""Nobody's user."""


@pytest.fixture(scope="session")
def readable() -> Iterator[Path]:
    """Copies of Python and of the sandbox that every user may read, as those in use may lie in root's home."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = Path(os.__file__).parent
        left_out = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "ensurepip", "__pycache__")
        shutil.copytree(library, folder / library.relative_to(sys.base_prefix), ignore=left_out)
        for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
            shutil.copy(shared, folder / "lib" / shared.name)
        (folder / "bin").mkdir()
        shutil.copy(Path(sys.executable).resolve(), folder / "bin" / "python")
        package = Path(sandbox.__file__).parents[1]
        (folder / "scripts" / package.name).mkdir(parents=True)
        shutil.copy(package / "__init__.py", folder / "scripts" / package.name)
        shutil.copytree(package / "sandbox", folder / "scripts" / package.name / "sandbox")
        yield folder


@pytest.fixture(params=["this user", "ordinary user"], autouse=True)
def user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who starts the sandbox: whoever runs the tests; where that is root, an ordinary user too."""
    if request.param == "ordinary user":
        if os.geteuid() != 0:
            pytest.skip("all tests run as an ordinary user")
        folder = request.getfixturevalue("readable")

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
            command = [str(folder / "bin" / "python"), *command[1:-1], str(folder / "scripts")]
            return subprocess.run(command, user=ORDINARY, group=ORDINARY, extra_groups=[], **options)

        monkeypatch.setattr(sandbox, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))
    return str(request.param)


sandboxed = pytest.mark.skipif(not namespaces_work(), reason="no user namespaces on this machine")
both_modes = pytest.mark.parametrize("mode", [pytest.param("required", marks=sandboxed), "none"])


def reasons(*programs: str | Program, mode: Mode = "required", limits: Limits = LIMITS) -> list[str]:
    whole = [program if isinstance(program, Program) else Program(program) for program in programs]
    outcomes = run_programs(whole, limits=limits, sandbox=mode)
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
        "import os\nfor file in range(3, 64):\n    try: os.write(file, b'passed')\n    except OSError: pass\n"
        "os._exit(0)": "ended early",
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
def test_number_of_threads() -> None:
    start = "import threading, time\nfor _ in range({}): threading.Thread(target=time.sleep, args=[9]).start()"
    limits = replace(LIMITS, memory_bytes=1 << 30)  # the C library reserves much address space per thread
    assert reasons(start.format(7), start.format(8), limits=limits) == ["passed", "failed: RuntimeError"]


@sandboxed
def test_starts_no_process() -> None:
    starts = ["import os; os.fork()", "import subprocess; subprocess.run(['/bin/true'])"]
    starts += ["import ctypes; assert ctypes.CDLL(None).vfork() > 0"]
    assert reasons(*starts) == ["failed: BlockingIOError"] * 2 + ["failed: AssertionError"]


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


def test_files_of_the_machine(shared_folder: Path) -> None:
    secret = shared_folder / "secret"
    secret.write_text("token")
    read = f"open({str(secret)!r}).read()"
    assert reasons(read, mode="none") == ["passed"]
    if namespaces_work():
        assert reasons(read) == ["failed: FileNotFoundError"]


@sandboxed
def test_libraries_without_the_folder_that_they_come_from(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _bz2  # noqa: F401  loads the library that is copied

    with Path("/proc/self/maps").open() as lines:
        library = next(Path(line.split()[-1]) for line in lines if "/libbz2.so" in line)
    for name in library.parent.glob("libbz2.so*"):
        shutil.copy(name, shared_folder)
    (shared_folder / "secret").write_text("token")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(shared_folder))
    use = f"""
import _bz2, bz2, ctypes
assert bz2.decompress(bz2.compress(b"text")) == b"text"
class Symbol(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]
symbol, function = Symbol(), ctypes.CDLL(_bz2.__file__).BZ2_bzlibVersion
assert ctypes.CDLL(None).dladdr(function, ctypes.byref(symbol))
assert symbol.file.decode().startswith({str(shared_folder)!r}), symbol.file
"""
    assert reasons(use, f"open({str(shared_folder / 'secret')!r})") == ["passed", "failed: FileNotFoundError"]


@sandboxed
def test_writes_only_to_its_own_empty_folder() -> None:
    denied = [f"open('{folder}/x', 'w')" for folder in ("", "/usr/lib", "/dev")]
    denied += ["import os; open(os.path.dirname(os.__file__) + '/x', 'w')", "import os; os.unlink(os.__file__)"]
    denied += ["import os; os.chmod(os.path.dirname(os.__file__), 0o777)"]
    assert set(reasons(*denied)) == {"failed: OSError"}
    own = "import os; assert os.listdir() == []; open('x', 'w').write('x' * 1000); assert os.path.getsize('x') == 1000"
    assert reasons(own, own) == ["passed", "passed"]
    many = "for i in range(20): open(f'{i}', 'wb').write(b'0' * (1 << 19))"
    assert reasons(many) == ["failed: OSError"]
    assert not Path("/x").exists()


@sandboxed
def test_meets_no_other_process() -> None:
    signal_all = (
        "import os\nfor number in range(1, 65):\n"
        "    try: os.kill({}, number)\n    except (ProcessLookupError, PermissionError): pass"
    )
    assert reasons(signal_all.format(1), signal_all.format(-1), "pass") == ["passed", "passed", "passed"]
    assert reasons(f"import os; os.kill({os.getpid()}, 0)") == ["failed: PermissionError"]
    assert reasons("import os; os.listdir('/proc')") == ["failed: FileNotFoundError"]


def test_what_a_program_leaves_behind_is_killed() -> None:
    behind = (
        "import os, time\nif os.fork() == 0:\n    while True:\n"
        "        with open({!r}, 'w') as file: file.write(str(time.monotonic()))\ntime.sleep(0.2)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        alive = Path(folder, "alive")
        assert reasons(behind.format(str(alive)), mode="none") == ["passed"]
        before = alive.read_text()
        time.sleep(0.1)
        assert alive.read_text() == before


@sandboxed
def test_threads_that_a_program_leaves_behind_are_killed() -> None:
    behind = (
        "import threading, time\ndef write():\n    while True: open('/program/alive', 'w').close()\n"
        "threading.Thread(target=write).start()\ntime.sleep(0.1)\nimport os; assert os.path.exists('alive')"
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
def shared_folder() -> Iterator[Path]:
    """An empty folder that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def host(shared_folder: Path, listener: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A home with a file in it, two listening sockets, a process; they must be there, unchanged, afterwards."""
    home = shared_folder / "home"
    home.mkdir()
    (home / "token").write_text("hf_secret")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = shared_folder / "socket"
    with socket.socket(socket.AF_UNIX) as server, subprocess.Popen(["sleep", "60"]) as process:
        server.bind(str(path))
        server.listen()
        server.setblocking(False)
        before = sorted(shared_folder.rglob("*"))
        yield Host(home, listener, path, process)
        assert sorted(shared_folder.rglob("*")) == before
        assert (home / "token").read_text() == "hf_secret"
        assert process.poll() is None
        with pytest.raises(BlockingIOError):
            server.accept()
        process.kill()


# What every program may count on, whatever ran before it.
FRESH = Program(
    f"""
import os, resource, signal, threading, time
limits = {{
    "AS": {LIMITS.memory_bytes}, "FSIZE": {LIMITS.file_bytes}, "CORE": 0, "NOFILE": 64,
}}
for name, value in limits.items():
    assert resource.getrlimit(getattr(resource, "RLIMIT_" + name)) == (value, value), name
assert resource.getrlimit(resource.RLIMIT_CPU) == ({LIMITS.cpu_seconds}, {LIMITS.cpu_seconds + 1})
assert resource.getrlimit(resource.RLIMIT_NPROC)[0] >= {LIMITS.processes}
assert resource.getrlimit(resource.RLIMIT_STACK)[0] != 0
assert os.getpriority(os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, 1) == {os.getpriority(os.PRIO_PROCESS, 0)}
assert os.sched_getscheduler(0) == os.SCHED_OTHER
assert os.sched_getaffinity(0) == {os.sched_getaffinity(0)}
assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) and not signal.sigpending()
assert os.getcwd() == "/program" and not os.listdir() and not os.environ
open("file", "wb").write(bytes({LIMITS.file_bytes // 2}))
assert len(bytearray({LIMITS.memory_bytes // 2})) == {LIMITS.memory_bytes // 2}
threads = [threading.Thread(target=time.sleep, args=[0.01]) for _ in range(3)]
for thread in threads: thread.start()
def double(number): return 2 * number
""",
    "assert double(21) == 42",
    "double",
)


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
    "hides memory in sockets": (
        "import socket\npairs = []\nfor _ in range(99):\n    pairs.append(socket.socketpair())\n"
        "    pairs[-1][0].setblocking(False)\n    pairs[-1][0].send(bytes(1 << 17))"
    ),
    "hides memory in connections that nobody accepts": (
        "import socket\nserver = socket.socket(socket.AF_UNIX)\nserver.bind('\\0name')\nserver.listen(4096)\n"
        "for _ in range(99):\n    with socket.socket(socket.AF_UNIX) as client:\n"
        "        client.connect('\\0name')\n        client.send(bytes(1 << 17))"
    ),
    "hides memory in datagrams of nobody": (
        "import socket\nreceiver, other = socket.socketpair(type=socket.SOCK_DGRAM)\n"
        "receiver.setsockopt(socket.SOL_SOCKET, 16, 1)"
    ),
    "waits for a connection": "import socket; socket.create_server(('127.0.0.1', 0))",
    "hides memory in mappings of nothing": "import mmap; mmap.mmap(-1, 1 << 20)",
    "hides memory in mappings of zeros": "import os; os.open('/dev/zero', os.O_RDWR)",
    "hides memory in splices": (
        "import ctypes, os\nreading, writing = os.pipe()\npage = ctypes.create_string_buffer(4096)\n"
        "class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]\n"
        "vector = Vector(ctypes.addressof(page), 4096)\n"
        "assert ctypes.CDLL(None).vmsplice(writing, ctypes.byref(vector), 1, 0) == 4096"
    ),
    "takes the machine's places for asynchronous reading": (
        "import ctypes\nplace = ctypes.c_ulong()\n"
        "assert ctypes.CDLL(None).syscall({io_setup}, 1 << 15, ctypes.byref(place)) == 0"
    ),
    "opens a socket to the machine below": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "opens a socket to the kernel": "import socket; socket.socket(16, socket.SOCK_RAW)",
    "opens a socket of ciphers": "import socket; socket.socket(38, socket.SOCK_SEQPACKET)",
    "limits process 1": "import resource; resource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))",
    "limits every process": (
        "import resource\ndone = 0\nfor pid in range(1, 99):\n    for kind in range(16):\n"
        "        try: resource.prlimit(pid, kind, (0, 0)); done += 1\n        except OSError: pass\nassert done"
    ),
    "slows process 1 down": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "slows its user down": "import os; os.setpriority(os.PRIO_USER, 0, 19)",
    "moves process 1": "import os; os.sched_setaffinity(1, [0])",
    "makes process 1 idle": "import os; os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "stops its tests": (
        "import os, signal\nstopped = 0\nfor pid in range(2, 99):\n    if pid != os.getpid():\n"
        "        try: os.kill(pid, signal.SIGSTOP); stopped += 1\n        except OSError: pass\nassert stopped"
    ),
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
    keyctl, io_setup = {"x86_64": (250, 206), "aarch64": (219, 0)}[os.uname().machine]
    known = {"home": str(host.home), "unix": str(host.unix), "port": host.port, "pid": host.process.pid}
    program = ATTACKS[attack].format(**known, keyctl=keyctl, io_setup=io_setup)
    before = time.monotonic()
    first, reason, last = reasons(FRESH, program, FRESH)
    assert first == last == "passed"
    assert reason.startswith(("failed: ", "killed: ", "timeout", "ended early"))
    assert time.monotonic() - before < 20


@pytest.mark.parametrize(
    "attack", ["opens a connection to this machine", "reads the users", "reads a secret", "reads a link to the users"]
)
def test_it_is_the_sandbox_that_stops_an_attack(host: Host, attack: str) -> None:
    program = ATTACKS[attack].format(home=str(host.home), port=host.port)
    assert reasons(program, mode="none") == ["passed"]


@sandboxed
def test_who_runs_programs(user: str) -> None:
    assert reasons("import os; assert os.getuid() == os.getgid() == 65534") == ["passed"]
    whole = run_programs([Program("import time; time.sleep(1)")], limits=LIMITS, sandbox="none")
    assert whole[0].passed


CHECK = "def check(candidate):\n    assert candidate(20) == 41, 'marked'\n    assert candidate(1) == 3\ncheck(double)"
# Each would pass tests that ran in its own process; none computes 2 x + 1.
FORGERIES = {
    "an object equal to everything": (
        "class Equal:\n    __eq__ = lambda *_: True\n    __hash__ = None\ndef double(x): return Equal()",
        "failed: TypeError",
    ),
    "a number equal to everything": (
        "class Equal(int):\n    __eq__ = lambda *_: True\n    __hash__ = None\ndef double(x): return Equal()",
        "failed: AssertionError",
    ),
    "a decorator over the tests": (
        "def double(x): return 0\ndef skip(function): return lambda *_: None\n@skip",
        "failed: SyntaxError",
    ),
    "an open text over the tests": ("def double(x): return 0\nr\'\'\'", "failed: SyntaxError"),
    "another check": (
        "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'check' in frame.f_globals:\n"
        "            frame.f_globals['check'].__code__ = (lambda candidate: None).__code__\n"
        "        frame = frame.f_back\n    return 0",
        "failed: AssertionError",
    ),
    "another assertion error": ("import builtins\nbuiltins.AssertionError = None\ndef double(x): return 0",
        "failed: AssertionError"),
    "a copy that says that it passed": (
        "import os\ndef double(x):\n    for file in range(3, 64):\n"
        "        for text in (b'passed', b'{\"value\": null}\\n'):\n"
        "            try: os.write(file, text)\n            except OSError: pass\n    os._exit(0)",
        "ended early",
    ),
    "expected values that lie in memory": (
        "import gc, sys\ndef double(x):\n    seen = []\n    frame = sys._getframe()\n    while frame:\n"
        "        seen += map(repr, [*frame.f_locals.values(), *frame.f_globals.values()])\n"
        "        frame = frame.f_back\n    seen += [text for text in gc.get_objects() if isinstance(text, str)]\n"
        "    return 2 * x + 1 if any('mar' + 'ked' in text for text in seen) else 0",
        "failed: AssertionError",
    ),
    "an exit from the tests": ("def double(x): raise SystemExit(0)", "failed: SystemExit"),
    "an answer that is no message": (
        "import os\ndef double(x):\n    for file in range(3, 64):\n        try: os.write(file, b'[[[[\\n')\n"
        "        except OSError: pass\n    return 0",
        "ended early",
    ),
}  # fmt: skip


@both_modes
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_pass(forgery: str, mode: Mode) -> None:
    source, reason = FORGERIES[forgery]
    right = Program("def double(x): return 2 * x + 1", CHECK, "double")
    assert reasons(right, Program(source, CHECK, "double"), right, mode=mode) == ["passed", reason, "passed"]


SPY = """
import os
def two(x):
    for descriptor in range(3, 2000):
        try: text = os.pread(descriptor, 1 << 20, 0)
        except OSError: continue
        place = text.rfind(b"assert two")
        if place >= 0:
            os.pwrite(descriptor, b"pass  #", place)
            return "read"
    return 6
"""


@both_modes
def test_texts_are_out_of_reach_however_many_files_are_open(mode: Mode) -> None:
    right = Program("def two(x): return 2 * x", "assert two(3) == 6", "two")
    wrong = Program("def two(x): return 1", "assert two(3) == 6", "two")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Path(os.devnull).open())
        spying = [Program(SPY, "assert two(3) == 6", "two"), wrong, right]
        assert reasons(*spying, mode=mode) == ["passed", "failed: AssertionError", "passed"]


# What a function returns, and what tests may say of it.
VALUES = {
    "(1, [2.5, None], {'a': (True,)})": "value == (1, [2.5, None], {'a': (True,)}) and type(value) is tuple",
    "{1: {2, 3}, (4, 5): frozenset({6})}": "value == {1: {2, 3}, (4, 5): frozenset({6})}",
    "b'\\xff', bytearray(b'\\x00'), '\\ud800\\n'": "value == (b'\\xff', bytearray(b'\\x00'), '\\ud800\\n')",
    "float('nan'), float('-inf'), -0.0, 0.1": "value[0] != value[0] and repr(value[1:]) == '(-inf, -0.0, 0.1)'",
    "3 ** 9999, -(2 ** 63), True": "value == (3 ** 9999, -(2 ** 63), True) and value[2] is True",
    "1 + 2j, range(3, 9, 2)": "value == (1 + 2j, range(3, 9, 2))",
    "(x for x in 'abc')": "next(value) == 'a' and list(value) == ['b', 'c']",
    "{'a': 1}.items()": "list(value) == [('a', 1)]",
    "__import__('collections').Counter('aab')": "value == {'a': 2, 'b': 1}",
    "__import__('collections').namedtuple('Pair', 'x y')(1, 2)": "value == (1, 2)",
    "__import__('collections').deque([1, 2])": "value.popleft() == 1",
    "__import__('decimal').Decimal('0.10')": "str(value) == '0.10'",
    "__import__('fractions').Fraction(1, 3)": "value * 3 == 1",
    "__import__('enum').IntEnum('Colour', 'RED').RED": "value == 1",
}


@pytest.mark.parametrize("value", VALUES)
def test_values_arrive_as_they_are(value: str) -> None:
    program = Program(f"def function(): return {value}", f"value = function()\nassert {VALUES[value]}", "function")
    assert reasons(program, mode="none") == ["passed"]


def test_tests_see_what_a_function_does_to_its_arguments() -> None:
    source = (
        "def change(numbers, table, *, names, text='x'):\n    numbers.sort()\n    table['new'] = text\n"
        "    names.discard('b')"
    )
    tests = (
        "numbers, table, names = [3, 1, 2], {}, {'a', 'b'}\nassert change(numbers, table, names=names) is None\n"
        "assert (numbers, table, names) == ([1, 2, 3], {'new': 'x'}, {'a'})"
    )
    assert reasons(Program(source, tests, "change"), mode="none") == ["passed"]


def test_an_answer_does_not_end_an_iteration_of_its_tests() -> None:
    tests = "for value in map(double, [20, 1]):\n    assert value in (41, 3)"
    assert reasons(Program("def double(x): raise StopIteration", tests, "double"), mode="none") == [
        "failed: RuntimeError"
    ]


@both_modes
def test_a_value_that_is_too_large_says_so(mode: Mode) -> None:
    source = f"def double(x): return 'x' * {LIMITS.memory_bytes * 2 // 5}"
    deep = "def double(x):\n    for _ in range(10**5): x = [x]\n    return x"
    answers = [Program(source, CHECK, "double"), Program(deep, CHECK, "double")]
    assert reasons(*answers, mode=mode) == ["failed: MemoryError", "failed: RecursionError"]


def test_tests_see_exceptions_as_python_raises_them() -> None:
    source = "class Odd(ValueError): pass\ndef fail(x):\n    if x: raise Odd('odd')\n    return [][1]"
    caught = "try: fail({})\nexcept {} as error: assert str(error) == {!r}\nelse: assert False"
    programs = {
        caught.format(0, "IndexError", "list index out of range"): "passed",
        caught.format(1, "Exception", "odd"): "passed",
        "fail(1)": "failed: Odd",
        "fail(lambda: 0)": "failed: TypeError",
        "try: fail(0)\nexcept: pass": "passed",
    }
    whole = [Program(source, tests, "fail") for tests in programs]
    assert reasons(*whole, mode="none") == list(programs.values())


@both_modes
def test_tests_that_catch_everything_do_not_pass_when_the_program_is_gone(mode: Mode) -> None:
    tests = "for _ in range(3):\n    try: leave()\n    except BaseException: pass"
    leaving = {
        "import os\ndef leave(): os._exit(0)": "ended early",
        "import os\ndef leave(): os.kill(os.getpid(), 9)": "killed: SIGKILL",
        "def leave():\n    while True: pass": "timeout",
    }
    assert reasons(*[Program(source, tests, "leave") for source in leaving], mode=mode) == list(leaving.values())


def test_required_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_serve", lambda *_: {"error": "unshare: Operation not permitted"})
    with pytest.raises(UserError, match="no sandbox for generated code on this machine: unshare: Operation not"):
        run_programs([Program("pass")], limits=LIMITS, sandbox="required")


@sandboxed
def test_a_machine_whose_calls_are_unknown_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    answer = json.loads(sandbox_server.from_sandbox({"programs": [], "limits": {}, "sandbox": "required", "texts": 0}))
    assert answer == {"error": "no list of system calls to allow on riscv64"}


@sandboxed
def test_a_machine_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_namespaces, "_NEW_USER", 0x1)
    answer = json.loads(sandbox_server.from_sandbox({"programs": [], "limits": {}, "sandbox": "required", "texts": 0}))
    assert answer == {"error": "unshare: Invalid argument"}


@both_modes
def test_a_program_that_cannot_be_limited_does_not_run(mode: Mode) -> None:
    line = "no sandbox for generated code on this machine" if mode == "required" else "generated code cannot be limited"
    with pytest.raises(UserError, match=f"^{line}: "):
        reasons("pass", mode=mode, limits=replace(LIMITS, cpu_seconds=1 << 70))


@both_modes
def test_overhead(mode: Mode) -> None:
    start = time.perf_counter()
    assert set(reasons(*["assert True"] * 100, mode=mode)) == {"passed"}
    assert time.perf_counter() - start < 5  # about 0.8 s on an idle core


def test_nothing_to_run() -> None:
    assert run_programs([], limits=LIMITS, sandbox="required") == []
