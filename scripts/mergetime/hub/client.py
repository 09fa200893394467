"""An HTTP client for the hub's libraries that waits for a hub in trouble, but not forever.

The libraries retry by themselves, each call with a bound of its own: one fetch is many calls, a body that always
breaks off is asked for again without end, and some requests have no time limit at all. Here all calls of a process
share one bound, counted from the last sign of life.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2


class HubSilentError(Exception):
    """The hub gave no usable answer for too long."""


@dataclass
class Patience:
    """How long a hub has been failing; any progress of any transfer starts the clock anew.

    Threads share it without a lock: the worst that a race does is to start the clock once more.
    """

    seconds: float
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
    """A client whose requests all end in time, and all stop when the hub's time is over."""

    def __init__(self, patience: Patience, **options: Any) -> None:
        super().__init__(follow_redirects=True, timeout=None, **options)
        self._patience = patience

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request; what becomes of it, to the last byte of the body, counts."""
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
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _WatchedBody(response, response.stream, str(request.url), self._patience)
        if not stream:
            try:
                response.read()
            except BaseException:
                response.close()
                raise
        return response


class _WatchedBody(httpx2.SyncByteStream):
    """A body that tells how far it came."""

    def __init__(self, response: httpx2.Response, body: httpx2.SyncByteStream, url: str, patience: Patience) -> None:
        self._body, self._url, self._patience = body, url, patience
        self._failure = response.status_code >= 500
        resumed = response.headers.get("Content-Range", "") if response.status_code == 206 else ""
        self._start = int(resumed.removeprefix("bytes ").partition("-")[0] or 0)

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        try:
            for chunk in self._body:
                position += len(chunk)
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

    def close(self) -> None:
        self._body.close()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
