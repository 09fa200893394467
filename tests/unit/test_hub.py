"""A folder hub on loopback, used by the hub's own clients; and hubs in trouble, which end in one line."""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergetime.core import provenance
from mergetime.core.errors import UserError
from mergetime.hub import client as patience
from mergetime.hub import fetching, snapshots
from mergetime.hub import server as hub

ROOT = Path(__file__).parents[2]
WRONG = "0" * 40
SOON = ("--patience", "1")
"""For a hub that is never well; elsewhere a busy machine must not make one seem ill."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "hub/models/o/m"
    data = tmp_path / "hub/datasets/o/d"
    for repository in (model, data):
        repository.mkdir(parents=True)
    save_file({"weight": np.arange(50_000, dtype=np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    (model / "evil.py").write_text("raise SystemExit")
    (data / "train.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    return tmp_path / "hub"


def run(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script as Snakemake runs it: with the hub's libraries set offline, and without this user's token."""
    return execute([str(ROOT / f"scripts/{script}.py"), *options], **environment)


def execute(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in an environment as :func:`run` has it."""
    command = [sys.executable, *arguments]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = {"HF_HOME": str(ROOT / "none"), "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(
        command, capture_output=True, text=True, env=inherited | offline | home | environment, timeout=120, check=False
    )


def fetch(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(script, "--endpoint", "unused", "--hub-folder", str(folder), *options)


def fetch_model(
    address: str, revision: str, out: Path, *options: str, name: str = "o/m", **environment: str
) -> subprocess.CompletedProcess[str]:
    what = ["--model", name, "--revision", revision, "--out", str(out), "--endpoint", address, *options]
    return run("fetch_model", *what, **environment)


def fetch_dataset(
    address: str, revision: str, out: Path, *options: str, config: str = "None", **environment: str
) -> subprocess.CompletedProcess[str]:
    what = ["--dataset", "o/d", "--revision", revision, "--config", config, "--cache", str(out.parent / "cache")]
    return run("fetch_dataset", *what, "--out", str(out), "--endpoint", address, *options, **environment)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what went wrong, which is also the last."""
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]


class Recorded(hub.FolderHandler):
    """A folder hub that remembers which files were asked for, and can be told to fail."""

    asked: ClassVar[list[str]]
    fault: ClassVar[Callable[[Any, Path], bool] | None]
    """Called with the handler and the file before a file is sent; true if it has answered itself."""

    def send_file(self, file: Path, headers: Mapping[str, str], *, send_body: bool) -> None:
        if send_body:
            self.asked.append(file.name)
        fault = type(self).fault
        if not (send_body and fault and fault(self, file)):
            super().send_file(file, headers, send_body=send_body)


@contextlib.contextmanager
def recorded(folder: Path, fault: Callable[[Any, Path], bool] | None = None) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with this fault, and the names of the files that were asked of it."""
    asked: list[str] = []
    kept = {"root": folder, "revisions": {}, "asked": asked, "fault": staticmethod(fault) if fault else None}
    with hub.listening(type("Handler", (Recorded,), kept)) as address:
        yield address, asked


def send_part(handler: Any, file: Path, announced: int, sent: int) -> None:
    """Announce so many bytes of a file, send fewer, and end the connection."""
    handler.send_head(200, {"Content-Length": str(announced), "X-Repo-Commit": WRONG})
    handler.wfile.write(file.read_bytes()[:sent])
    handler.wfile.flush()
    handler.close_connection = True


def test_a_model_is_fetched_at_its_commit_without_its_code(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    revision = hub.revision_of(folder / "models/o/m")
    done = fetch("fetch_model", folder, "--model", "o/m", "--revision", revision, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "fetched.json", "model.safetensors"]
    facts = provenance.read(out / "fetched.json")["facts"]
    assert facts["weights_sha256"] == provenance.sha256(out / "model.safetensors")


def test_a_data_set_is_fetched_into_parquet(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    revision = hub.revision_of(folder / "datasets/o/d")
    options = ["--dataset", "o/d", "--revision", revision, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out/train.parquet").to_pylist() == [{"a": 1}, {"a": 2}]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "hub", "out"]


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("o/m", WRONG, "the hub has no such commit"),
        ("o/none", WRONG, "the hub has no such repository"),
    ],
)
def test_what_the_hub_lacks_is_said_in_one_line(
    folder: Path, tmp_path: Path, model: str, revision: str, message: str
) -> None:
    done = fetch("fetch_model", folder, "--model", model, "--revision", revision, "--out", str(tmp_path / "out"))
    assert error_line(done).startswith(f"error: model {model} at {revision}: {message}")
    assert not (tmp_path / "out" / "fetched.json").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hub.folder: .* is no folder"), hub.serving(tmp_path / "none"):
        pass


def test_files_outside_a_repository_are_not_served(folder: Path) -> None:
    revision = hub.revision_of(folder / "models/o/m")
    with hub.serving(folder) as address:
        for path in ("../../d/train.jsonl", "..%2f..%2f..%2fdatasets/o/d/train.jsonl"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}/o/m/resolve/{revision}/{path}")


def status(address: str, **request: Any) -> int:
    """The status of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **request)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_folder_is_served_to_those_who_know_its_secret(folder: Path) -> None:
    with hub.serving(folder) as address, hub.serving(folder) as other:
        place, _, secret = address.rpartition("/")
        assert len(secret) >= 43
        assert secret not in other
        for path in ("o/m/resolve/main/config.json", "api/models/o/m", "api/datasets/o/d/tree/main"):
            assert status(f"{address}/{path}") == status(f"{address}/{path}", method="HEAD") == 200
            strangers = [
                place,
                f"{place}/",
                f"{place}//",
                f"{place}/{secret[:-1]}",
                f"{place}/{other.rpartition('/')[2]}",
            ]
            for stranger in [*strangers, f"{place}/x/{secret}", f"{place}/%00{secret}"]:
                assert status(f"{stranger}/{path}") == status(f"{stranger}/{path}", method="HEAD") == 404, stranger
        asked: dict[str, Any] = {"method": "POST", "data": b"paths=config.json"}
        assert status(f"{address}/api/models/o/m/paths-info/main", **asked) == 200
        assert status(f"{place}/api/models/o/m/paths-info/main", **asked) == 404
        assert status(f"{place}/{secret}") == 404, "there is nothing under the secret itself"


CLIENTS = """
import sys
from datasets import load_dataset
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
print([row["a"] for row in load_dataset("o/d", split="train")], [row["a"] for row in load_dataset("o/d", split="train", streaming=True)])
files = HfFileSystem()
print(files.ls("datasets/o/d", detail=False), files.read_text("datasets/o/d/train.jsonl").count("a"))
print(files.glob("hf://datasets/o/d/**/*.jsonl"), HfApi().model_info("o/m").id, open(hf_hub_download("o/m", "config.json")).read())
"""


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_the_hubs_clients_take_an_address_with_a_path(folder: Path, tmp_path: Path, disabled: str) -> None:
    with hub.serving(folder) as address:
        online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0") | {"HF_ENDPOINT": address}
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": disabled}
        done = execute(["-c", CLIENTS], **online, **home)
    assert done.stdout.splitlines() == [
        "[1, 2] [1, 2]",
        "['datasets/o/d/train.jsonl'] 2",
        "['datasets/o/d/train.jsonl'] o/m {}",
    ], done.stderr


LOUD = """
import logging, runpy, sys
logging.basicConfig(level="DEBUG")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""A script whose libraries log all that they do."""


@pytest.mark.parametrize("fetched", ["fetch_model", "fetch_dataset"])
@pytest.mark.parametrize("known", [True, False])
def test_the_secret_of_a_folder_hub_is_in_no_log_and_no_record(
    folder: Path, tmp_path: Path, fetched: str, known: bool
) -> None:
    kind = fetched.removeprefix("fetch_")
    name = {"model": "o/m", "dataset": "o/d"}[kind]
    revision = hub.revision_of(folder / f"{kind}s" / name) if known else WRONG
    options = [f"--{kind}", name, "--revision", revision, "--out", str(tmp_path / "out"), "--hub-folder", str(folder)]
    more = ["--config", "None", "--cache", str(tmp_path / "cache")] if kind == "dataset" else []
    done = execute(["-c", LOUD, str(ROOT / f"scripts/{fetched}.py"), "--endpoint", "unused", *options, *more])
    assert done.returncode == (0 if known else 1), done.stderr
    assert re.search(r"http://127\.0\.0\.1:\d+/\.\.\./", done.stderr), "addresses are logged"
    written = [file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    for text in (done.stdout, done.stderr, *written):
        assert not re.search(r"127\.0\.0\.1:\d+/[\w-]{20}", text)


def test_the_secret_is_in_no_error() -> None:
    with pytest.raises(UserError, match=r"^at http://here/\.\.\./o: no$"), fetching._unsaid("a-secret"):
        raise UserError("at http://here/a-secret/o: no")


def test_a_repository_may_say_its_commit(folder: Path, tmp_path: Path) -> None:
    (folder / "models/o/m/.commit").write_text(f"{'ab' * 20}\n")
    assert hub.revision_of(folder / "models/o/m") == "ab" * 20
    with hub.serving(folder) as address:
        done = fetch_model(address, "ab" * 20, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/o/m/resolve/main/.commit")
    assert not (tmp_path / "out/.commit").exists()
    (folder / "models/o/m/.commit").write_text("main\n")
    with pytest.raises(UserError, match=r"o/m/.commit: 'main' is not a commit hash"):
        hub.revision_of(folder / "models/o/m")


def test_a_download_goes_on_where_it_stopped(folder: Path) -> None:
    whole = (folder / "models/o/m/model.safetensors").read_bytes()
    with hub.serving(folder) as address:
        url = f"{address}/o/m/resolve/main/model.safetensors"

        def ask(span: str) -> tuple[int, str, bytes]:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": span})) as answer:
                return answer.status, answer.headers["Content-Range"], answer.read()

        size = len(whole)
        assert ask("bytes=1000-") == (206, f"bytes 1000-{size - 1}/{size}", whole[1000:])
        assert ask("bytes=0-9") == (206, f"bytes 0-9/{size}", whole[:10])
        with pytest.raises(urllib.error.HTTPError, match="416"):
            ask(f"bytes={size}-")


def test_files_in_folders_are_listed_and_found_by_pattern(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = folder / "datasets/o/d"
    (data / "train.jsonl").unlink()
    for name, rows in {"main/train-0": [1], "main/train-1": [2], "main/test-0": [3], "extra/train-0": [4]}.items():
        (data / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"a": rows}), data / f"{name}.parquet")
    (data / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: main, data_files: [{split: train, path: main/train-*}, {split: test, path: main/test-*}]}\n"
        "- {config_name: extra, data_files: [{split: train, path: extra/train-*}]}\n---\n"
    )
    revision = hub.revision_of(data)
    with recorded(folder) as (address, asked):
        done = fetch_dataset(address, revision, tmp_path / "out", config="main")
        assert done.returncode == 0, done.stderr
        with urllib.request.urlopen(f"{address}/api/datasets/o/d/tree/main/main") as answer:
            assert [entry["path"] for entry in json.load(answer)] == [
                f"main/{name}-{number}.parquet" for name, number in (("test", 0), ("train", 0), ("train", 1))
            ]
    assert sorted(asked) == ["README.md", "test-0.parquet", "train-0.parquet", "train-1.parquet"]
    assert pq.read_table(tmp_path / "out/train.parquet").to_pylist() == [{"a": 1}, {"a": 2}]
    assert pq.read_table(tmp_path / "out/test.parquet").to_pylist() == [{"a": 3}]


def test_a_data_set_without_the_commit_is_said(folder: Path, tmp_path: Path) -> None:
    options = ["--dataset", "o/d", "--revision", WRONG, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    assert error_line(done).startswith(f"error: data set o/d at {WRONG}: the hub has no such commit")


def test_an_empty_data_set_is_said_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "datasets/o/d/train.jsonl").write_text("")
    revision = hub.revision_of(folder / "datasets/o/d")
    options = ["--dataset", "o/d", "--revision", revision, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    line = error_line(done)
    assert line.startswith(f"error: data set o/d at {revision}: ")
    assert "empty" in line
    assert not (tmp_path / "out").exists()


def test_what_is_no_hub_id_or_address_is_refused(tmp_path: Path) -> None:
    where = ["--revision", "ab" * 20, "--out", str(tmp_path / "out"), "--endpoint"]
    done = run("fetch_model", "--model", "gpt2", *where, "http://127.0.0.1:9")
    assert error_line(done) == "error: model gpt2: that is not a hub id; give it as the hub shows it: owner/name"
    done = run("fetch_model", "--model", "o/m", *where, "hub.org")
    assert error_line(done) == "error: --endpoint hub.org: give an address that begins with https:// or http://"
    assert not list(tmp_path.iterdir())


def test_a_token_travels_encrypted_or_not_at_all(tmp_path: Path) -> None:
    # An address that is kept for documentation: nobody answers there.
    done = fetch_model("http://192.0.2.1", "ab" * 20, tmp_path / "out", HF_TOKEN="hf_secret")
    assert error_line(done).startswith(
        "error: --endpoint http://192.0.2.1: a token of the hub would travel unencrypted"
    )
    assert "hf_secret" not in done.stdout + done.stderr
    for address, private in (
        ("https://hub.org", True), ("http://127.0.0.1:80", True), ("http://[::1]:80", True), ("http://localhost", True),
        ("http://localhost.hub.org", False), ("http://127.0.0.1.hub.org", False), ("http://0x7f.1", False),
    ):  # fmt: skip
        assert fetching._is_private(address) == private, address
    assert not list(tmp_path.iterdir())


def test_what_has_no_commit_is_not_fetched(tmp_path: Path) -> None:
    advice = (
        "has no commit yet (revision: unresolved); run: python scripts/resolve_revisions.py --config CONFIG --write"
    )
    done = fetch_model("http://127.0.0.1:9", "unresolved", tmp_path / "out")
    assert error_line(done) == f"error: model o/m {advice}"
    done = fetch_dataset("http://127.0.0.1:9", "unresolved", tmp_path / "out")
    assert error_line(done) == f"error: data set o/d {advice}"
    assert not list(tmp_path.iterdir())


def test_a_shard_that_breaks_off_ends_the_fetch_and_only_it_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    """The server announces more than comes, each time: the client alone would ask without end."""
    revision = hub.revision_of(folder / "models/o/m")

    def fault(handler: Any, file: Path) -> bool:
        if file.suffix == ".safetensors":
            send_part(handler, file, file.stat().st_size, 1000)
        return file.suffix == ".safetensors"

    with recorded(folder, fault) as (address, _):
        done = fetch_model(address, revision, tmp_path / "out", *SOON)
    line = error_line(done)
    assert line.startswith(f"error: model o/m at {revision}: the hub gave no usable answer for ")
    assert "run again when it is well, what was fetched is kept" in line
    assert not (tmp_path / "out/model.safetensors").exists()
    assert not (tmp_path / "out/fetched.json").exists()
    with recorded(folder) as (address, asked):
        done = fetch_model(address, revision, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert asked == ["model.safetensors"]
    assert not (tmp_path / "out/.cache").exists()


def test_a_connection_that_is_reset_midway_is_resumed(folder: Path, tmp_path: Path) -> None:
    model = folder / "models/o/m"
    # The client writes, and goes on from, blocks of 10 MiB.
    save_file({"weight": np.arange(3 << 20, dtype=np.float32)}, model / "model.safetensors")
    revision = hub.revision_of(model)
    resets: list[str] = []

    def fault(handler: Any, file: Path) -> bool:
        if file.suffix != ".safetensors" or len(resets) == 2:
            return False
        resets.append(handler.headers.get("Range", ""))
        if len(resets) == 2:
            return False
        handler.send_head(200, {"Content-Length": str(file.stat().st_size)})
        handler.wfile.write(file.read_bytes()[: 11 << 20])
        handler.wfile.flush()
        time.sleep(0.3)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True
        return True

    with recorded(folder, fault) as (address, _):
        done = fetch_model(address, revision, tmp_path / "out", "--patience", "20")
    assert done.returncode == 0, done.stderr
    assert resets[0] == ""
    assert re.fullmatch(r"bytes=10\d{6}-", resets[1])
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "models/o/m/model.safetensors").read_bytes()


def test_wrong_content_is_deleted_and_fetched_anew(folder: Path, tmp_path: Path) -> None:
    revision = hub.revision_of(folder / "models/o/m")

    def fault(handler: Any, file: Path) -> bool:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        handler.send_head(200, {"Content-Length": str(len(content))})
        handler.wfile.write(content)
        return True

    with recorded(folder, fault) as (address, _):
        done = fetch_model(address, revision, tmp_path / "out")
    line = error_line(done)
    assert re.match(
        rf"error: model o/m at {revision}: config.json has the git digest \w+, the hub lists \w+ \(and 1 more\); "
        "it was deleted, run again",
        line,
    )
    assert not list((tmp_path / "out").glob("*.*s*"))
    with recorded(folder) as (address, _):
        assert fetch_model(address, revision, tmp_path / "out").returncode == 0


def test_wrong_content_of_a_data_set_is_not_kept(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    revision = hub.revision_of(folder / "datasets/o/d")

    def fault(handler: Any, file: Path) -> bool:
        content = b'{"a": 1}\n{"a": 3}\n'
        handler.send_head(200, {"Content-Length": str(len(content))})
        handler.wfile.write(content)
        return True

    with recorded(folder, fault) as (address, _):
        line = error_line(fetch_dataset(address, revision, tmp_path / "out"))
    assert line.startswith(f"error: data set o/d at {revision}: train.jsonl has the git digest ")
    assert not (tmp_path / "out").exists()
    with recorded(folder) as (address, _):
        assert fetch_dataset(address, revision, tmp_path / "out").returncode == 0
    assert pq.read_table(tmp_path / "out/train.parquet").to_pylist() == [{"a": 1}, {"a": 2}]


class Gated(hub.FolderHandler):
    """A hub that shows what a repository holds, and gives nobody its files."""

    def send_file(self, file: Path, headers: Mapping[str, str], *, send_body: bool) -> None:
        status = 403 if self.headers.get("Authorization") else 401
        self.send_head(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated", "Content-Length": "0"})


def test_a_gated_repository_says_which_licence_and_which_variable(folder: Path, tmp_path: Path) -> None:
    with hub.listening(type("Handler", (Gated,), {"root": folder, "revisions": {}})) as address:
        revision = hub.revision_of(folder / "models/o/m")
        nobody = error_line(fetch_model(address, revision, tmp_path / "out"))
        stranger = error_line(fetch_model(address, revision, tmp_path / "out", HF_TOKEN="hf_x"))
        revision = hub.revision_of(folder / "datasets/o/d")
        stranger_to_data = error_line(fetch_dataset(address, revision, tmp_path / "data", HF_TOKEN="hf_x"))
    assert nobody.endswith(
        ": it is gated; accept its licence at https://huggingface.co/o/m, then set HF_TOKEN to a token of that account"
    )
    refused = ": it is gated, and the account of HF_TOKEN was not granted access; accept its licence at "
    assert stranger.endswith(f"{refused}https://huggingface.co/o/m")
    assert stranger_to_data.endswith(f"{refused}https://huggingface.co/datasets/o/d")


class Ill(hub.FolderHandler):
    """A hub whose every answer is that it is not well."""

    def _answer(self, *, send_body: bool) -> None:
        self.send_head(503, {"Content-Length": "0"})


class Mute(hub.FolderHandler):
    """A hub that takes a question and never answers."""

    def _answer(self, *, send_body: bool) -> None:
        time.sleep(3)
        self.close_connection = True


@pytest.mark.parametrize(("handler", "fetched"), [(Ill, fetch_model), (Mute, fetch_dataset)])
def test_a_hub_that_does_not_answer_is_given_up(
    tmp_path: Path, handler: type[hub.FolderHandler], fetched: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    started = time.monotonic()
    with hub.listening(handler) as address:
        line = error_line(fetched(address, WRONG, tmp_path / "out", *SOON))
    assert "the hub gave no usable answer for " in line
    assert ("HTTP 503" if handler is Ill else "ReadTimeout") in line
    assert time.monotonic() - started < 20
    assert not (tmp_path / "out/fetched.json").exists()


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    line = error_line(fetch_model(address, WRONG, tmp_path / "out", *SOON))
    assert "the hub gave no usable answer for " in line
    assert "Connection refused" in line


def test_a_hub_that_falls_ill_midway(folder: Path, tmp_path: Path) -> None:
    revision = hub.revision_of(folder / "datasets/o/d")

    def fault(handler: Any, file: Path) -> bool:
        handler.send_head(503, {"Content-Length": "0"})
        return True

    with recorded(folder, fault) as (address, _):
        line = error_line(fetch_dataset(address, revision, tmp_path / "out", *SOON))
    assert line.startswith(f"error: data set o/d at {revision}: the hub gave HTTP 503; run again when")
    assert not (tmp_path / "out").exists()


def test_an_older_commit_is_not_taken_for_one_that_cannot_be_fetched(folder: Path, tmp_path: Path) -> None:
    """The library falls back to what it has of a data set, of whatever commit; it must have nothing."""
    with hub.serving(folder) as address:
        assert fetch_dataset(address, hub.revision_of(folder / "datasets/o/d"), tmp_path / "out").returncode == 0
    (folder / "datasets/o/d/README.md").write_text("# Data\n")
    (folder / "datasets/o/d/train.jsonl").write_text('{"a": 5}\n')
    revision = hub.revision_of(folder / "datasets/o/d")
    with hub.listening(type("Handler", (Gated,), {"root": folder, "revisions": {}})) as address:
        line = error_line(fetch_dataset(address, revision, tmp_path / "new"))
    assert "accept its licence at https://huggingface.co/datasets/o/d, then set HF_TOKEN" in line
    assert not (tmp_path / "new").exists()


@pytest.fixture
def configured(folder: Path) -> Path:
    """A data set with two configurations."""
    data = folder / "datasets/o/d"
    (data / "test.jsonl").write_text('{"b": 1}\n')
    (data / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: plain, data_files: [{split: train, path: train.jsonl}]}\n"
        "- {config_name: other, data_files: [{split: test, path: test.jsonl}]}\n---\n"
    )
    return folder


def test_a_configuration_that_is_not_there_names_those_that_are(configured: Path, tmp_path: Path) -> None:
    revision = hub.revision_of(configured / "datasets/o/d")
    with hub.serving(configured) as address:
        wrong = error_line(fetch_dataset(address, revision, tmp_path / "out", config="plian"))
        none = error_line(fetch_dataset(address, revision, tmp_path / "out"))
    where = f"error: data set o/d at {revision}"
    assert wrong == f"{where} has no configuration 'plian'; choose config: other, plain"
    assert none == f"{where} has several configurations; choose config: other, plain"
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_there_names_those_that_are(configured: Path, tmp_path: Path) -> None:
    revision = hub.revision_of(configured / "datasets/o/d")
    with hub.serving(configured) as address:
        line = error_line(fetch_dataset(address, revision, tmp_path / "out", "--split", "trian", config="plain"))
    assert line == f"error: data set o/d at {revision}: it has no split 'trian'; it has: train"
    assert not (tmp_path / "out").exists()


def test_cells_between_tabs_are_text_as_they_stand(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    data = folder / "datasets/o/d"
    (data / "train.jsonl").unlink()
    (data / "test.tsv").write_text('text\tnote\nNA\t\n"a\tb"\tnull\n')
    readme = "---\nconfigs:\n- {config_name: eval, data_files: [{split: test, path: test.tsv}]}\n---\n"
    (data / "README.md").write_text(readme)
    revision = hub.revision_of(data)
    with hub.serving(folder) as address:
        done = fetch_dataset(address, revision, tmp_path / "out", config="eval")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    assert rows == [{"text": "NA", "note": ""}, {"text": "a\tb", "note": "null"}]


def test_weights_that_cannot_be_loaded_are_named(folder: Path, tmp_path: Path) -> None:
    model = folder / "models/o/m"
    whole = (model / "model.safetensors").read_bytes()
    cases = {
        b"weights": "model.safetensors is no safetensors file: its 7 bytes do not hold the header",
        whole[:-4]: f"model.safetensors has {len(whole) - 4} bytes, its header describes {len(whole)}",
        struct.pack("<Q", 2) + b"[]": "model.safetensors is no safetensors file: its header is not JSON",
    }
    for content, message in cases.items():
        (model / "model.safetensors").write_bytes(content)
        assert str(snapshots.broken_weights(model)).startswith(message)
    (model / "model.safetensors").write_bytes(whole)
    assert snapshots.broken_weights(model) is None
    (model / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}'
    )
    revision = hub.revision_of(model)
    with hub.serving(folder) as address:
        line = error_line(fetch_model(address, revision, tmp_path / "out"))
    where = f"error: model o/m at {revision}: model.safetensors.index.json"
    assert line == f"{where} names two.safetensors, which the repository does not hold; choose another revision"
    assert not (tmp_path / "out/fetched.json").exists()


def test_only_progress_renews_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waiting = patience.Patience(10.0)
    waiting.failed("first")
    now = 109.0
    waiting.reached("u", 5)
    waiting.failed("second")
    now = 118.0
    waiting.reached("u", 5)
    waiting.failed("third")
    now = 119.0
    with pytest.raises(patience.HubSilentError, match="no usable answer for 10 s, the last was: fourth"):
        waiting.failed("fourth")


def test_reasons_are_looked_for_behind_what_libraries_raise() -> None:
    import httpx2

    inner = httpx2.ConnectError("refused")
    outer = OSError("cannot find the file")
    outer.__cause__ = inner
    inner.__context__ = outer
    assert "the hub cannot be reached (refused)" in str(fetching.explain(outer, "model", "o/m", WRONG))
    assert "OSError: odd; run again" in str(fetching.explain(OSError("odd"), "model", "o/m", WRONG))


# What lies where something is fetched to.


def plant(path: Path, how: str, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "fifo":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to(target)
    elif how == "folder":
        path.mkdir()
    else:
        path.write_text("planted")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("evil.safetensors", "file"),
        ("model.safetensors", "fifo"),
        (".cache/huggingface/download/config.json.metadata", "link"),
    ],
)
def test_a_model_is_not_fetched_around_what_somebody_put_there(
    folder: Path, tmp_path: Path, name: str, how: str
) -> None:
    out, target = tmp_path / "out", tmp_path / "mine"
    target.write_text("mine")
    plant(out / name, how, target)
    revision = hub.revision_of(folder / "models/o/m")
    line = error_line(fetch("fetch_model", folder, "--model", "o/m", "--revision", revision, "--out", str(out)))
    kind = {"file": "a file", "link": "a link", "fifo": "no regular file"}[how]
    assert line == (
        f"error: {out / name}: is {kind}, and none of the files of model o/m at {revision}; "
        "move it elsewhere, then run again"
    )
    assert target.read_text() == "mine"
    assert os.path.lexists(out / name)
    assert not (out / "fetched.json").exists()


def test_what_is_planted_while_a_model_is_fetched_is_not_recorded(folder: Path, tmp_path: Path) -> None:
    def fault(handler: Any, file: Path) -> bool:
        (tmp_path / "out/evil.safetensors").write_text("planted")
        return False

    with recorded(folder, fault) as (address, _):
        line = error_line(fetch_model(address, hub.revision_of(folder / "models/o/m"), tmp_path / "out"))
    assert "evil.safetensors: is a file, and none of the files of model o/m" in line
    assert not (tmp_path / "out/fetched.json").exists()


def test_a_model_is_fetched_again_over_its_own_files_and_into_a_folder_behind_a_link(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    # Code, which is not fetched whatever it is called.
    (folder / "models/o/m/tokenizer_evil.py").write_text("raise SystemExit")
    revision = hub.revision_of(folder / "models/o/m")
    options = ["--model", "o/m", "--revision", revision, "--out", str(tmp_path / "out")]
    for _ in range(2):
        done = fetch("fetch_model", folder, *options)
        assert done.returncode == 0, done.stderr
        (tmp_path / "out/.fetched.json.4711").write_text("of a process that was killed")
    outputs = provenance.read(tmp_path / "out/fetched.json")["outputs"]
    assert sorted(outputs) == ["config.json", "model.safetensors"]


def test_a_data_set_is_not_fetched_around_what_somebody_put_there(folder: Path, tmp_path: Path) -> None:
    out, revision = tmp_path / "out", hub.revision_of(folder / "datasets/o/d")
    plant(out / "evil.parquet", "file", tmp_path)
    with hub.serving(folder) as address:
        line = error_line(fetch_dataset(address, revision, out))
    assert line == (
        f"error: {out}/evil.parquet: is a file, and none of the files of data set o/d at {revision}; "
        "move it elsewhere, then run again"
    )
    assert [file.name for file in out.iterdir()] == ["evil.parquet"]


def test_an_expert_is_not_imported_around_what_somebody_put_there(folder: Path, tmp_path: Path) -> None:
    out, target, name = tmp_path / "out", tmp_path / "mine", ".adapter_config.json.partial"
    target.write_text("mine")
    plant(out / name, "link", target)
    options = ["--model", "o/m", "--revision", hub.revision_of(folder / "models/o/m"), "--out", str(out)]
    line = error_line(fetch("import_expert", folder, *options, "--base", str(tmp_path), "--base-model", "o/b"))
    assert line == (
        f"error: {out / name}: is a link, and none of the files of adapter o/m; move it elsewhere, then run again"
    )
    assert target.read_text() == "mine"
    assert [file.name for file in out.iterdir()] == [name]


def test_the_tables_of_a_data_set_are_not_made_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.tables").symlink_to("mine")
    with hub.serving(folder) as address:
        line = error_line(fetch_dataset(address, hub.revision_of(folder / "datasets/o/d"), tmp_path / "out"))
    assert line == f"error: {tmp_path / '.out.tables'}: is a link; move it elsewhere, then run again"
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_here_is_not_taken_for_the_hubs_data_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "o/d/train.jsonl", "file", tmp_path)
    with hub.serving(folder) as address:
        line = error_line(fetch_dataset(address, hub.revision_of(folder / "datasets/o/d"), tmp_path / "out"))
    assert line == (
        f"error: {tmp_path / 'o/d'}: would be read instead of the hub's data set of this name; move it elsewhere, "
        "or run again in another folder"
    )
    assert not (tmp_path / "out").exists()


def cached(tmp_path: Path, revision: str) -> Path:
    """Where the client's cache has a data set."""
    return tmp_path / "cache/hub/datasets--o--d/snapshots" / revision


def test_the_mend_of_a_data_set_leaves_what_is_outside_of_the_cache(folder: Path, tmp_path: Path) -> None:
    revision = hub.revision_of(folder / "datasets/o/d")
    (tmp_path / "mine").mkdir()
    for name in ("train.jsonl", "blob"):
        (tmp_path / "mine" / name).write_text("mine")
    file = cached(tmp_path, revision) / "train.jsonl"
    plant(file, "link", tmp_path / "mine/blob")
    with hub.serving(folder) as address:
        line = error_line(fetch_dataset(address, revision, tmp_path / "out"))
        home = file.parents[2]
        assert line == (
            f"error: data set o/d at {revision}: train.jsonl leads to {tmp_path / 'mine/blob'}, outside {home}; "
            f"delete {file}, then run again"
        )
    assert {file.read_text() for file in (tmp_path / "mine").iterdir()} == {"mine"}


@pytest.mark.parametrize("listed", [False, True])
def test_a_description_in_the_cache_that_is_not_the_hubs_is_not_read(
    folder: Path, tmp_path: Path, listed: bool
) -> None:
    if listed:
        (folder / "datasets/o/d/README.md").write_text("A data set.")
    revision = hub.revision_of(folder / "datasets/o/d")
    readme = cached(tmp_path, revision) / "README.md"
    plant(readme, "file", tmp_path)
    with hub.serving(folder) as address:
        line = error_line(fetch_dataset(address, revision, tmp_path / "out"))
    owner = f"data set o/d at {revision}"
    assert line == (
        f"error: {owner}: README.md has 7 bytes, the hub lists 11; it was deleted, run again to fetch it anew"
        if listed
        else f"error: {readme}: is none of the files of {owner}; move it elsewhere, then run again"
    )
    assert readme.exists() != listed


def test_what_is_wrong_with_a_file_and_what_is_deleted_of_it(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home / "blobs", home / "files", outside):
        folder.mkdir(parents=True)
    for file in (home / "blobs/b", home / "files/plain", outside / "mine"):
        file.write_text("x")
    os.mkfifo(home / "files/fifo")
    links: dict[str, str | Path] = {
        "b": "../blobs/b",
        "out": outside / "mine",
        "lost": "../blobs/none",
        "folder": "../blobs",
        "loop": "loop",
    }
    for name, target in links.items():
        (home / "files" / name).symlink_to(target)
    (home / "way").symlink_to(outside)
    (outside / "back").symlink_to(home / "files/plain")
    listed = snapshots.Listed(9, None, "")
    sizes = "has 1 bytes, the hub lists 9"
    real = Path(os.path.realpath(home))
    wanted = {
        "files/none": ("is missing", []),
        "files/plain": (sizes, ["files/plain"]),
        "files/b": (sizes, ["blobs/b", "files/b"]),
        "files/out": (f"leads to {outside / 'mine'}, outside {home}", []),
        "files/lost": ("is a link to nothing", ["files/lost"]),
        "files/fifo": ("is no regular file", []),
        "files/folder": ("is no regular file", []),
        "files/loop": ("is no regular file", []),
        "way/mine": (f"is in {outside}, outside {home}", []),
        "way/back": (f"is in {outside}, outside {home}", []),
    }
    for name, (wrong, deleted) in wanted.items():
        damage = snapshots.damage(home / name, listed, home)
        assert damage is not None
        assert damage.wrong == wrong, name
        assert sorted(damage.deleted) == sorted(real / path for path in deleted), name
    whole = snapshots.Listed(1, None, snapshots.blob_digest(home / "blobs/b"))
    assert snapshots.damage(home / "files/b", whole, home) is None
