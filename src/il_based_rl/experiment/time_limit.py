"""An end by the clock."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from il_based_rl.errors import ConfigError, TimeIsUp

_AGAIN_SECONDS = 1.0
"""What the first ring raises may be lost, as in a destructor or in another's code."""


def require_time_limit(seconds: float | None) -> None:
    """Raise ConfigError if there is a limit, and no alarm clock here: the main thread has one, but not on Windows."""
    if seconds is None:
        return
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise ConfigError("--max-time works in the main thread of Linux and macOS only; leave it out")


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeIsUp wherever the block is after so many seconds; None never does. See `require_time_limit`."""
    if seconds is None:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
