"""An HTTP client for the hub's libraries that waits for a hub in trouble, but not forever, and takes what it asked for.

The libraries retry by themselves, each call with a bound of its own: one fetch is many calls, a body that always
breaks off is asked for again without end, and some requests have no time limit at all. Here all calls of a process
share one bound, counted from the last sign of life. The libraries also take what they are given: a listing without end,
a file longer than it is listed, a name to write to in a header, an address to send the token to.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

_PAGES = 1_000
"""Of a listing, with some thousand files each."""
_ANSWER, _ANSWERS = 100_000_000, 1_000_000_000
"""Bytes of an answer that is not a file of a repository, and of all of them."""
_ANSWER_WAITS = 10
"""How many times the patience such an answer may take."""


class HubSilentError(Exception):
    """The hub gave no usable answer for too long."""


class HubRefusedError(Exception):
    """The hub gave an answer that is not taken; the text says what the hub did."""


@dataclass
class Patience:
    """How long a hub has been failing; any progress of any transfer starts the clock anew.

    Threads share it without a lock: the worst that a race does is to start the clock once more.

    Attributes:
        seconds: how long.
        longest: bytes of the longest file that the hub lists; None before it has.
        pages: of listings that were asked for.
        answered_bytes: of answers that are not files of a repository.
    """

    seconds: float
    longest: int | None = None
    pages: int = 0
    answered_bytes: int = 0
    _failing_since: float | None = None
    _furthest: dict[str, int] = field(default_factory=dict)

    def answered(self) -> None:
        """An answer came whole."""
        self._failing_since = None

    def reached(self, url: str, position: int) -> None:
        """Bytes of a body came. Bytes that had come before are no progress: a transfer may break at the same place."""
        if position > self._furthest.get(url, 0):
            self._furthest[url] = position
            self._failing_since = None

    def failed(self, reason: str) -> None:
        """An answer did not come, or not whole.

        Raises:
            HubSilentError: if nothing else has come for as long as this patience lasts.
        """
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= self.seconds:
            raise HubSilentError(f"no usable answer for {now - self._failing_since:.0f} s, the last was: {reason}")


class PatientClient(httpx2.Client):
    """A client whose requests all end in time, and all stop when the hub's time is over.

    It talks to the hub at one address: elsewhere, wherever the hub may lead, no token is sent.
    """

    def __init__(self, patience: Patience, address: str, **options: Any) -> None:
        super().__init__(follow_redirects=True, timeout=None, headers={"Accept-Encoding": "identity"}, **options)
        self._patience, self._origin = patience, _origin(httpx2.URL(address))

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request; what becomes of it, to the last byte of the body, counts."""
        if _origin(request.url) != self._origin:
            request.headers.pop("Authorization", None)
        if "/tree/" in request.url.path:
            self._patience.pages += 1
            if self._patience.pages > _PAGES:
                raise HubRefusedError(f"lists files on over {_PAGES} pages")
        longest = self._patience.seconds / 2
        asked = request.extensions.get("timeout", {})
        timeouts = {kind: min(asked.get(kind) or longest, longest) for kind in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": timeouts}
        try:
            response = super().send(request, stream=True, **options)
        except httpx2.TransportError as error:
            self._patience.failed(_words(error))
            raise
        if response.status_code >= 500:
            self._patience.failed(f"HTTP {response.status_code}")
        try:
            _check_headers(response)
        except HubRefusedError:
            response.close()
            raise
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _WatchedBody(response, response.stream, str(request.url), self._patience, is_file=stream)
        if not stream:
            try:
                response.read()
            except BaseException:
                response.close()
                raise
        return response


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _check_headers(response: httpx2.Response) -> None:
    """Refuse a body that grows when it is unpacked, and a name that leads elsewhere: the library writes to it.

    Raises:
        HubRefusedError: saying what the hub did.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity" and response.request.method != "HEAD":
        raise HubRefusedError(f"sent {response.url.path} compressed, which nobody asked for")
    for name in ("ETag", "X-Linked-Etag"):
        tag = response.headers.get(name, "").removeprefix("W/")
        if "/resolve/" in response.url.path and set(tag) & {"/", "\\", "\0"}:
            raise HubRefusedError(f"gave {response.url.path} the {name} {tag!r}, which is no digest")


class _WatchedBody(httpx2.SyncByteStream):
    """A body that tells how far it came, and ends where it should.

    A file may be as long as the longest that is listed; all other answers have limits of their own, and an end in time.
    """

    def __init__(
        self,
        response: httpx2.Response,
        body: httpx2.SyncByteStream,
        url: str,
        patience: Patience,
        *,
        is_file: bool,
    ) -> None:
        self._body, self._url, self._patience, self._is_file = body, url, patience, is_file
        self._failure = response.status_code >= 500
        resumed = response.headers.get("Content-Range", "") if response.status_code == 206 else ""
        self._start = int(resumed.removeprefix("bytes ").partition("-")[0] or 0)

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        end = time.monotonic() + _ANSWER_WAITS * self._patience.seconds
        try:
            for chunk in self._body:
                position += len(chunk)
                self._check(position, len(chunk), end)
                if not self._failure:
                    self._patience.reached(self._url, position)
                yield chunk
        except httpx2.TransportError as error:
            self._patience.failed(_words(error))
            if isinstance(error, httpx2.ReadError):
                # The hub's client resumes after a body that ends too early, but not after a connection that is reset.
                raise httpx2.RemoteProtocolError(str(error)) from error
            raise
        if not self._failure:
            self._patience.answered()

    def _check(self, position: int, more: int, end: float) -> None:
        """Refuse a body that is too long, or takes too long.

        Raises:
            HubRefusedError, HubSilentError: saying what the hub did.
        """
        path, longest = httpx2.URL(self._url).path, self._patience.longest if self._is_file else _ANSWER
        if longest is not None and position > longest and not self._failure:
            listed = "the longest file that it lists" if self._is_file else "any such answer"
            raise HubRefusedError(f"sent more than {longest} bytes for {path}, {listed} has fewer")
        if self._is_file:
            return
        self._patience.answered_bytes += more
        if self._patience.answered_bytes > _ANSWERS:
            raise HubRefusedError(f"sent more than {_ANSWERS} bytes of answers that are no files")
        if time.monotonic() > end:
            raise HubSilentError(f"no whole answer for {_ANSWER_WAITS * self._patience.seconds:.0f} s to {path}")

    def close(self) -> None:
        self._body.close()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
