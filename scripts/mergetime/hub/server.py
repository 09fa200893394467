"""A hub of one's own: a folder of repositories, served on loopback.

It holds ``{models,datasets}/<owner>/<name>/``. The only commit of a repository is the one that its file ``.commit``
names, else the digest of its files (:func:`revision_of`), so that a config pins its content as it does on the real
hub. Clients talk to it through ``HF_ENDPOINT``: what they do is what they do on the real hub. Its address ends in a
secret, because every user of a machine can talk to its loopback, and a folder may be for its owner's eyes alone.
"""

import contextlib
import functools
import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mergetime.core.errors import UserError
from mergetime.core.provenance import sha256
from mergetime.hub.snapshots import blob_digest

_KINDS = ("models", "datasets", "spaces")
_COMMIT_FILE = ".commit"
_LARGE_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".zst", ".gz")
_LARGE_BYTES = 10 << 20
"""The real hub keeps files with these endings, and those beyond this size, as LFS objects."""


def revision_of(repository: Path) -> str:
    """The commit hash of a folder hub's repository: what ``.commit`` says, else 40 digits of its files' digest.

    Raises:
        UserError: if ``.commit`` holds anything else.
    """
    stated = repository / _COMMIT_FILE
    if not stated.is_file():
        return sha256(repository)[:40]
    revision = stated.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"{stated}: '{revision[:60]}' is not a commit hash; write 40 hexadecimal digits, or delete the file"
        )
    return revision


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder hub on a free port of loopback; gives its address, which ends in a secret of this call.

    Raises:
        UserError: if the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"hub.folder: {folder} is no folder; make it, or set hub.endpoint")
    with listening(type("Handler", (FolderHandler,), {"root": folder, "revisions": {}})) as address:
        yield address


@contextlib.contextmanager
def listening(handler: "type[FolderHandler]") -> Iterator[str]:
    """Let ``handler`` answer on a free port of loopback; gives its address, which ends in a secret of this call."""
    secret = secrets.token_urlsafe()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"secret": secret}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{secret}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@functools.cache
def _listed(file: Path, size: int, changed: int) -> dict[str, Any]:
    """A file's size and digests as the hub's tree lists them; ``changed`` is its time, so that digests stay right."""
    large = size > _LARGE_BYTES or file.suffix in _LARGE_SUFFIXES
    lfs = {"lfs": {"oid": sha256(file), "size": size, "pointerSize": 134}} if large else {}
    return {"size": size, "oid": blob_digest(file), **lfs}


def _entry(file: Path) -> dict[str, Any]:
    status = file.stat()
    return _listed(file, status.st_size, status.st_mtime_ns)


def _tree(repository: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Files and folders of a repository as the hub lists them."""
    listed = []
    for path in sorted(paths):
        name = path.relative_to(repository).as_posix()
        if path.is_dir():
            listed.append({"type": "directory", "path": name, "oid": sha1(name.encode()).hexdigest()})
        elif path.is_file() and name != _COMMIT_FILE:
            listed.append({"type": "file", "path": name, **_entry(path)})
    return listed


def _below(repository: Path, name: str) -> Path | None:
    """What a repository holds under a path; None if that is nothing, or outside of it."""
    path = repository.joinpath(name).resolve()
    inside = path.is_relative_to(repository.resolve()) and path != repository.resolve() / _COMMIT_FILE
    return repository / path.relative_to(repository.resolve()) if inside and path.exists() else None


class FolderHandler(BaseHTTPRequestHandler):
    """The part of the hub's protocol that snapshot_download and load_dataset use."""

    root: Path
    revisions: dict[Path, str]
    secret: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        if self._admitted():
            self._answer(send_body=False)

    def do_GET(self) -> None:
        if self._admitted():
            self._answer(send_body=True)

    def do_POST(self) -> None:
        if not self._admitted():
            return
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] != "api" or len(parts) < 6 or parts[4] != "paths-info":
            self._error("EntryNotFound")
            return
        repository = self._repository(parts[1], parts[2:4], parts[5])
        if repository is not None:
            asked = [_below(repository, name) for name in form.get("paths", [])]
            listed = _tree(repository, [path for path in asked if path is not None])
            self._send_json(listed, {"X-Repo-Commit": self.revisions[repository]}, send_body=True)

    def _admitted(self) -> bool:
        """Whether the path begins with the secret, which is then taken off; what has none is not found."""
        given, _, path = self.path.removeprefix("/").partition("/")
        if hmac.compare_digest(given.encode(), self.secret.encode()):
            self.path = f"/{path}"
            return True
        # The body of a request that is refused is not read.
        self.close_connection = True
        self._error("EntryNotFound")
        return False

    def _answer(self, *, send_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in _KINDS:
            self._api(parts[1], parts[2:4], parts[4:], send_body=send_body)
            return
        kind = parts.pop(0) if parts[0] in _KINDS else "models"
        if len(parts) < 5 or parts[2] != "resolve":
            self._error("EntryNotFound")
            return
        repository = self._repository(kind, parts[:2], parts[3])
        if repository is None:
            return
        file = _below(repository, "/".join(parts[4:]))
        if file is None or not file.is_file():
            self._error("EntryNotFound")
            return
        self.send_file(file, {"X-Repo-Commit": self.revisions[repository]}, send_body=send_body)

    def send_file(self, file: Path, headers: Mapping[str, str], *, send_body: bool) -> None:
        """Answer with a file, or with its rest from where the client wants to go on."""
        entry = _entry(file)
        size, digest = entry["size"], entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {**headers, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        resumed = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(resumed[1]) if resumed else 0
        end = min(int(resumed[2]) + 1, size) if resumed and resumed[2] else size
        if resumed and start >= size:
            self.send_head(416, {**headers, "Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        if resumed:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_head(206 if resumed else 200, {**headers, "Content-Length": str(end - start)})
        if send_body:
            with file.open("rb") as stream:
                stream.seek(start)
                while start < end and (block := stream.read(min(1 << 20, end - start))):
                    self.wfile.write(block)
                    start += len(block)

    def _api(self, kind: str, name: list[str], rest: list[str], *, send_body: bool) -> None:
        wanted = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        repository = self._repository(kind, name, wanted)
        if repository is None:
            return
        if rest[:1] == ["tree"]:
            folder = _below(repository, "/".join(rest[2:]))
            if folder is None or not folder.is_dir():
                self._error("EntryNotFound")
                return
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            body: object = _tree(repository, folder.rglob("*") if recursive else folder.iterdir())
        else:
            files = [entry["path"] for entry in _tree(repository, repository.rglob("*")) if entry["type"] == "file"]
            body = {
                "id": "/".join(name),
                "sha": self.revisions[repository],
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            }
        self._send_json(body, {"X-Repo-Commit": self.revisions[repository]}, send_body=send_body)

    def _repository(self, kind: str, name: list[str], wanted: str) -> Path | None:
        repository = self.root.joinpath(kind, *name)
        if ".." in name or not repository.is_dir():
            self._error("RepoNotFound")
            return None
        revision = self.revisions.setdefault(repository, revision_of(repository))
        if wanted not in ("main", revision):
            self._error("RevisionNotFound")
            return None
        return repository

    def _error(self, code: str) -> None:
        self.send_head(404, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

    def _send_json(self, content: object, headers: Mapping[str, str], *, send_body: bool) -> None:
        body = json.dumps(content).encode()
        self.send_head(200, {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))})
        if send_body:
            self.wfile.write(body)

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Answer up to where the body starts."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
