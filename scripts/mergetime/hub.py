"""Fetching from a hub; and a hub of one's own, a folder of repositories served on loopback.

A folder hub holds ``{models,datasets}/<owner>/<name>/``. The only commit of a repository is the digest of its
files (:func:`revision_of`), so that a config pins its content as it does on the real hub. Clients talk to it
through ``HF_ENDPOINT``: what they do is what they do on the real hub.
"""

import argparse
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mergetime.errors import UserError
from mergetime.provenance import sha256

_KINDS = ("models", "datasets", "spaces")


def revision_of(repository: Path) -> str:
    """The commit hash of a folder hub's repository: 40 digits of the digest of its files."""
    return sha256(repository)[:40]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder hub on a free port of loopback; gives its address.

    Raises:
        UserError: if the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"hub.folder: {folder} is no folder; make it, or set hub.endpoint")

    found: dict[Path, str] = {}

    class Handler(_Handler):
        root = folder
        revisions = found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`connected` and :func:`fetch_snapshot` read."""
    parser.add_argument("--revision", required=True, help="commit hash")
    parser.add_argument("--endpoint", required=True, help="address of the hub")
    parser.add_argument("--hub-folder", type=Path, help="a folder hub, instead of the endpoint")


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[None]:
    """Point the Hugging Face libraries, not imported yet, at the folder hub if one is given, else at the endpoint."""
    folder = options.hub_folder
    with serving(folder) if folder else contextlib.nullcontext(options.endpoint) as address:
        os.environ["HF_ENDPOINT"] = address
        os.environ.update({"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"})
        yield


def fetch_snapshot(options: argparse.Namespace, patterns: list[str], folder: Path) -> None:
    """Fetch the files of ``options.model`` that match ``patterns``, at its commit, into ``folder``."""
    with connected(options):
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(options.model, revision=options.revision, local_dir=folder, allow_patterns=patterns)
        except Exception as error:
            raise explain(error, "model", options.model, options.revision) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def explain(error: Exception, kind: str, name: str, revision: str) -> UserError:
    """The one line for what a hub answered."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    # datasets wraps what the hub's client raised; a gated repository counts among those not found.
    hints: dict[type[Exception], str] = {
        GatedRepoError: "it is gated: accept its licence on its page, then set HF_TOKEN to a token that may read it",
        RevisionNotFoundError: "the hub has no such commit; correct revision in the config",
        RepositoryNotFoundError: "the hub has no such repository, or it is private; correct its id or set HF_TOKEN",
        StopIteration: "it is empty, or its files hold no rows; choose another revision or configuration",
    }
    found = next(
        (text for expected, text in hints.items() if any(isinstance(e, expected) for e in _chain(error))), None
    )
    hint = found or f"{type(error).__name__}: {error}; run again, what was fetched is kept"
    return UserError(f"{kind} {name} at {revision}: {hint}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Handler(BaseHTTPRequestHandler):
    """The part of the hub's protocol that snapshot_download and load_dataset use."""

    root: Path
    revisions: dict[Path, str]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api" and "paths-info" in parts:
            self._send(200, b"[]", {}, send_body=True)
        else:
            self._error("EntryNotFound", send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in _KINDS:
            self._api(parts[1], parts[2:4], parts[4:], send_body=send_body)
            return
        kind = parts.pop(0) if parts[0] in _KINDS else "models"
        if len(parts) < 5 or parts[2] != "resolve":
            self._error("EntryNotFound", send_body=send_body)
            return
        repository = self._repository(kind, parts[:2], parts[3], send_body=send_body)
        if repository is None:
            return
        file = repository.joinpath(*parts[4:]).resolve()
        if not file.is_file() or not file.is_relative_to(repository.resolve()):
            self._error("EntryNotFound", send_body=send_body)
            return
        headers = {"ETag": f'"{sha256(file)}"', "X-Repo-Commit": self.revisions[repository]}
        self._send(200, file.read_bytes(), headers, send_body=send_body)

    def _api(self, kind: str, name: list[str], rest: list[str], *, send_body: bool) -> None:
        wanted = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        repository = self._repository(kind, name, wanted, send_body=send_body)
        if repository is None:
            return
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        names = {file: file.relative_to(repository).as_posix() for file in files}
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            body: object = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": sha256(file)[:40]}
                for file, path in names.items()
                if not below or path.startswith(f"{below}/")
            ]
        else:
            body = {
                "id": "/".join(name),
                "sha": self.revisions[repository],
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in names.values()],
            }
        headers = {"Content-Type": "application/json", "X-Repo-Commit": self.revisions[repository]}
        self._send(200, json.dumps(body).encode(), headers, send_body=send_body)

    def _repository(self, kind: str, name: list[str], wanted: str, *, send_body: bool) -> Path | None:
        repository = self.root.joinpath(kind, *name)
        if ".." in name or not repository.is_dir():
            self._error("RepoNotFound", send_body=send_body)
            return None
        revision = self.revisions.setdefault(repository, revision_of(repository))
        if wanted not in ("main", revision):
            self._error("RevisionNotFound", send_body=send_body)
            return None
        return repository

    def _error(self, code: str, *, send_body: bool) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code}, send_body=send_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, send_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)
