"""Fetching from a hub: the clients of the real one, pointed at it or at a folder hub, and what they may answer."""

import argparse
import contextlib
import fnmatch
import glob
import ipaddress
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from mergetime.config.fields import ADDRESS, HUB_ID
from mergetime.core.errors import UserError
from mergetime.core.folders import files_called, refuse_foreign
from mergetime.hub import snapshots
from mergetime.hub.client import HubRefusedError, HubSilentError, Patience, PatientClient
from mergetime.hub.server import serving

Kind = Literal["model", "dataset"]

_SECONDS = 60.0
_PUBLIC = "https://huggingface.co"
_HIDDEN = "..."
_CLIENTS = ".cache/huggingface"
"""Where the hub's client keeps its books in a folder that it fetches into."""
_ONLINE = {
    "HF_HUB_OFFLINE": "0",
    "HF_DATASETS_OFFLINE": "0",
    "TRANSFORMERS_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`connected`, :func:`check_revision` and :func:`fetch_snapshot` read."""
    parser.add_argument("--revision", required=True, help="commit hash")
    parser.add_argument("--endpoint", required=True, help="address of the hub")
    add_common_options(parser)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every script that asks a hub."""
    parser.add_argument("--hub-folder", type=Path, help="a folder hub, instead of the endpoint")
    parser.add_argument(
        "--patience",
        type=float,
        default=_SECONDS,
        metavar="SECONDS",
        help="give up when the hub has given no usable answer for so long (%(default)s)",
    )


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[Patience]:
    """Point the Hugging Face libraries, not imported yet, at the folder hub if one is given, else at the endpoint.

    Other stages run with these libraries offline; here they are online, whatever the environment says. The secret in
    the address of a folder hub comes into no log and no error.

    Yields:
        what all requests share; whoever has a listing says how long the longest file is.

    Raises:
        UserError: where the endpoint is no address, or one that would get a token over plain http.
    """
    assert "huggingface_hub" not in sys.modules, "it has read its environment already"
    folder = options.hub_folder
    if not folder and not ADDRESS.fullmatch(options.endpoint):
        raise UserError(f"--endpoint {options.endpoint}: give an address that begins with https:// or http://")
    with serving(folder) if folder else contextlib.nullcontext(options.endpoint) as address:
        os.environ.update({"HF_ENDPOINT": address, **_ONLINE})
        # Xet's own transfers would go past the client that is patient; whoever wants them sets this to 0.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
        from huggingface_hub import get_token, set_client_factory

        if not _is_private(address) and get_token():
            raise UserError(
                f"--endpoint {address}: a token of the hub would travel unencrypted; give an address that begins with "
                "https://, or fetch without a token (unset HF_TOKEN, or hf auth logout)"
            )
        patience = Patience(options.patience)
        set_client_factory(lambda: PatientClient(patience, address))
        with _unsaid(address.rpartition("/")[2]) if folder else contextlib.nullcontext():
            yield patience


@contextlib.contextmanager
def _unsaid(secret: str) -> Iterator[None]:
    """Leave a secret out of what is logged, by whichever library, and of the one line of an error."""
    factory = logging.getLogRecordFactory()

    def without_secret(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = factory(*arguments, **more)
        message = record.getMessage()
        if secret in message:
            record.msg, record.args = message.replace(secret, _HIDDEN), None
        return record

    logging.setLogRecordFactory(without_secret)
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(secret, _HIDDEN)) from error
    finally:
        logging.setLogRecordFactory(factory)


def _is_private(address: str) -> bool:
    """Whether what is sent to an address stays between the two: encrypted, or on this machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def check_revision(kind: Kind, name: str, revision: str) -> None:
    """Refuse to fetch what has no commit, or no name that a hub could have.

    Raises:
        UserError: for a commit, with the command that finds it.
    """
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{_words(kind)} {name}: that is not a hub id; give it as the hub shows it: owner/name")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"{_words(kind)} {name} has no commit yet (revision: {revision}); "
            "run: python scripts/resolve_revisions.py --config CONFIG --write"
        )


def fetch_snapshot(
    options: argparse.Namespace,
    patterns: list[str],
    folder: Path,
    record: str,
    *,
    stands_for: Mapping[str, str] | None = None,
) -> list[Path]:
    """Fetch the files of ``options.model`` that match ``patterns``, at its commit, into ``folder``.

    Code, and files in folders of the repository, are left out. What was fetched whole is not fetched again. The folder
    then holds these files and perhaps the record of an earlier fetch, ``record``, and nothing else. A file that
    ``stands_for`` another is left out where the repository has that one.

    Returns:
        The fetched files, sorted.

    Raises:
        UserError: in one line, for whatever the hub refuses, lacks or gets wrong, and for what the folder holds that is
            not fetched.
    """
    name, revision = options.model, options.revision
    owner = f"model {name} at {revision}"
    check_revision("model", name, revision)
    with connected(options) as patience:
        from huggingface_hub import snapshot_download

        try:
            listed = snapshots.listing(name, "model", revision)
            patience.longest = max((file.size for file in listed.values()), default=0)
            wanted = {
                path: file
                for path, file in listed.items()
                if "/" not in path
                and not path.endswith(".py")
                and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
                and (stands_for or {}).get(path) not in listed
            }
            expected = files_called([*wanted, record])
            refuse_foreign(folder, lambda path: expected(path) or _is_the_clients(path), owner)
            patterns = [glob.escape(path) for path in sorted(wanted)]
            snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=patterns)
        except UserError:
            raise
        except Exception as error:
            raise explain(error, "model", name, revision) from error
    refuse_damaged(folder, wanted, "model", name, revision, home=folder)
    shutil.rmtree(folder / _CLIENTS, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / _CLIENTS).parent.rmdir()
    refuse_foreign(folder, expected, owner)
    broken = snapshots.broken_weights(folder)
    if broken:
        raise UserError(f"{owner}: {broken}; choose another revision")
    return [folder / path for path in sorted(wanted)]


def _is_the_clients(path: str) -> bool:
    """Whether the client keeps its books there while it fetches into a folder."""
    place, books = PurePosixPath(path), PurePosixPath(_CLIENTS)
    return place.is_relative_to(books) or place == books.parent


def refuse_damaged(
    folder: Path, files: Mapping[str, snapshots.Listed], kind: Kind, name: str, revision: str, *, home: Path
) -> None:
    """Delete fetched files that are not as the hub lists them.

    Args:
        folder: where the files are.
        files: their listing, by path below the folder.
        kind: what they were fetched of.
        name: its hub id.
        revision: its commit.
        home: the folder that the client fetches into; nothing outside it is deleted, wherever links lead.

    Raises:
        UserError: naming one of them, if there are any.
    """
    problems = snapshots.damaged(folder, files, home)
    for problem in problems.values():
        for file in problem.deleted:
            file.unlink(missing_ok=True)
    for path, problem in problems.items():
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        mend = "it was deleted, run again to fetch it anew"
        if not problem.deleted:
            there = os.path.lexists(folder / path)
            mend = f"delete {folder / path}, then run again" if there else "run again to fetch it"
        raise UserError(f"{_words(kind)} {name} at {revision}: {path} {problem.wrong}{more}; {mend}")


def explain(error: Exception, kind: Kind, name: str, revision: str) -> UserError:
    """The one line for what a hub answered."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # datasets wraps what the hub's client raised; a gated repository counts among those not found.
    hints: dict[type[Exception], str] = {
        GatedRepoError: "",
        RevisionNotFoundError: "the hub has no such commit; correct revision in the config",
        RepositoryNotFoundError: "the hub has no such repository, or it is private; correct its id or set HF_TOKEN",
        StopIteration: "it is empty, or its files hold no rows; choose another revision or configuration",
        HubSilentError: "the hub gave {0}; run again when it is well, what was fetched is kept",
        HubRefusedError: "the hub {0}; choose another hub, or ask whoever runs it",
        httpx2.TransportError: "the hub cannot be reached ({0}); run again when it can, what was fetched is kept",
    }
    for expected, hint in hints.items():
        raised = next((link for link in _chain(error) if isinstance(link, expected)), None)
        if isinstance(raised, GatedRepoError):
            hint = _gated(kind, name, raised.response.status_code)
        if raised is not None:
            return UserError(f"{_words(kind)} {name} at {revision}: {hint.format(raised)}")
    answer = next((link for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)
    status = answer.response.status_code if answer is not None else 0
    if status in (401, 403):
        hint = f"the hub refuses it (HTTP {status}); set HF_TOKEN to a token that may read it"
    elif status == 429 or status >= 500:
        hint = f"the hub gave HTTP {status}; run again when it is well, what was fetched is kept"
    else:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        hint = f"{type(cause).__name__}: {cause}; run again, what was fetched is kept"
    return UserError(f"{_words(kind)} {name} at {revision}: {hint}")


def _gated(kind: Kind, name: str, status: int) -> str:
    page = f"{_PUBLIC}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if status == 403:
        return f"it is gated, and the account of HF_TOKEN was not granted access; accept its licence at {page}"
    return f"it is gated; accept its licence at {page}, then set HF_TOKEN to a token of that account"


def _words(kind: Kind) -> str:
    return {"model": "model", "dataset": "data set"}[kind]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
