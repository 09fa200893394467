"""A hub that answers what no hub should: one line, nothing outside of the folder, no token, and an end."""

import contextlib
import gzip
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergetime.hub import client
from mergetime.hub import server as hub
from tests.unit.test_hub import WRONG, error_line, fetch_model


class Hostile(hub.FolderHandler):
    """A folder hub with one fault."""

    entries: ClassVar[dict[str, dict[str, Any]]] = {}
    """Path to what the listing says of it besides, or instead."""
    tag: ClassVar[str | None] = None
    """The ETag of weights."""
    body: ClassVar[str | None] = None
    """How the body of a listing or of weights is sent."""
    asked: ClassVar[list[str]]

    def send_file(self, file: Path, headers: Mapping[str, str], *, send_body: bool) -> None:
        self.asked.append(file.name)
        if send_body and self.body == "longer" and file.suffix == ".safetensors":
            self.send_head(200, {"X-Repo-Commit": WRONG, "ETag": '"0"'})
            self.endless()
            return
        super().send_file(file, headers, send_body=send_body)

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        changed = {"ETag": self.tag} if self.tag and "ETag" in headers and self.asked[-1].endswith("tensors") else {}
        super().send_head(status, {**headers, **changed})

    def _send_json(self, content: Any, headers: Mapping[str, str], *, send_body: bool) -> None:
        if "/tree/" not in self.path:
            super()._send_json(content, headers, send_body=send_body)
            return
        content = [{**entry, **self.entries.get(entry["path"], {})} for entry in content]
        if self.body == "compressed":
            body = gzip.compress(json.dumps(content).encode() + b" " * 10**6)
            self.send_head(200, {**headers, "Content-Encoding": "gzip", "Content-Length": str(len(body))})
            self.wfile.write(body)
        elif self.body == "endless":
            self.send_head(200, headers)
            self.endless()
        else:
            super()._send_json(content, headers, send_body=send_body)

    def endless(self) -> None:
        """Send until nobody listens."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " * (1 << 20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "hub/models/o/m"
    model.mkdir(parents=True)
    save_file({"weight": np.arange(5, dtype=np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    return tmp_path / "hub"


@contextlib.contextmanager
def hostile(folder: Path, **fault: Any) -> Iterator[tuple[str, str]]:
    """The address of a hub with this fault, and the commit of its model."""
    kept = {"root": folder, "revisions": {}, "asked": [], **fault}
    with hub.listening(type("Handler", (Hostile,), kept)) as address:
        yield address, hub.revision_of(folder / "models/o/m")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"tag": '"A/../../../../outside"'}, "which is no digest; choose another hub"),
        ({"tag": 'W/"..\\\\outside"'}, "which is no digest; choose another hub"),
        ({"entries": {"config.json": {"oid": None}}}, "config.json without its size or its digest; choose another"),
        ({"entries": {"config.json": {"oid": {"a": 1}}}}, "config.json without its size or its digest; choose another"),
        ({"entries": {"config.json": {"size": None}}}, "config.json without its size or its digest; choose another"),
        ({"entries": {"config.json": {"size": -1}}}, "config.json without its size or its digest; choose another"),
        ({"entries": {"config.json": {"path": "a\nerror: \x1b[2J.json"}}}, "'a\\nerror: \\x1b[2J.json', which is no"),
        ({"body": "compressed"}, "compressed, which nobody asked for; choose another hub"),
        ({"body": "longer"}, "bytes for /{secret}/o/m/resolve/{revision}/model.safetensors, the longest file that it"),
        ({"body": "endless"}, "any such answer has fewer; choose another hub"),
    ],
)
def test_what_no_hub_should_answer_is_one_line(
    folder: Path, tmp_path: Path, fault: dict[str, Any], reason: str
) -> None:
    before = sorted(tmp_path.iterdir())
    with hostile(folder, **fault) as (address, revision):
        line = error_line(fetch_model(address, revision, tmp_path / "out"))
    assert line.startswith(f"error: model o/m at {revision}: the hub ")
    assert reason.format(secret=address.rpartition("/")[2], revision=revision) in line
    assert not (tmp_path / "out/fetched.json").exists()
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "out"}) == before


def test_a_name_is_no_pattern(folder: Path, tmp_path: Path) -> None:
    model = folder / "models/o/m"
    (model / "tokenizer").mkdir()
    (model / "tokenizer/evil.py").write_text("raise SystemExit")
    for name in ("*.json", "tokenizer*"):
        (model / name).write_text("{}")
    with hostile(folder) as (address, revision):
        assert fetch_model(address, revision, tmp_path / "out").returncode == 0
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert names == {"*.json", "tokenizer*", "config.json", "model.safetensors", "fetched.json"}


def test_the_token_goes_to_the_hub_alone() -> None:
    patience = client.Patience(1.0)
    sent: dict[str, str | None] = {}

    class Watched(hub.FolderHandler):
        def _answer(self, *, send_body: bool) -> None:
            sent["hub"] = self.headers.get("Authorization")
            self.send_head(200, {"Content-Length": "0"})

    class Other(hub.FolderHandler):
        def _admitted(self) -> bool:
            sent["other"] = self.headers.get("Authorization")
            self.send_head(200, {"Content-Length": "0"})
            return False

    with hub.listening(Watched) as address, hub.listening(Other) as other:
        for asked in (address, other):
            with client.PatientClient(patience, address) as asking:
                asking.get(f"{asked}/api", headers={"Authorization": "Bearer hf_secret"})
    assert sent == {"hub": "Bearer hf_secret", "other": None}


def test_a_listing_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAGES", 3)
    patience = client.Patience(1.0)
    with hostile(folder) as (address, revision), client.PatientClient(patience, address) as asking:
        for _ in range(3):
            asking.get(f"{address}/api/models/o/m/tree/{revision}")
        with pytest.raises(client.HubRefusedError, match="lists files on over 3 pages"):
            asking.get(f"{address}/api/models/o/m/tree/{revision}")


def test_an_answer_that_only_drips_ends() -> None:
    class Dripping(hub.FolderHandler):
        def _answer(self, *, send_body: bool) -> None:
            self.send_head(200, {"Content-Length": "1000"})
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

    patience = client.Patience(0.6)
    with (
        hub.listening(Dripping) as address,
        client.PatientClient(patience, address) as asking,
        pytest.raises(client.HubSilentError, match="no whole answer for 6 s to "),
    ):
        asking.get(f"{address}/api")
