"""Being asked to stop: a signal is noted, and the run stops at the end of its step."""

import signal
from types import FrameType

SIGNALS = (signal.SIGURG, signal.SIGTERM, signal.SIGINT)
"""What clusters send before they take a machine away, and what Ctrl-C sends."""

STOPPED = 75
"""Exit status of a run that was stopped and wants to be run again: EX_TEMPFAIL of sysexits.h."""


class Stop:
    """Whether somebody asked for a stop: ``name`` is the first signal that came, None before."""

    def __init__(self) -> None:
        self.name: str | None = None

    def listen(self) -> None:
        """Catch :data:`SIGNALS` from now on."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run that was asked to stop and has written a checkpoint."""

    def __init__(self, name: str, step: int) -> None:
        super().__init__(f"stopped by {name} at step {step}; run again to go on")
