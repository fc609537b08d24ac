"""An end by the clock."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from il_based_rl.errors import ConfigError, TimeIsUp

_AGAIN_SECONDS = 1.0
"""What the first ring raises may be lost, as in a destructor or in another's code."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeIsUp wherever the block is after so many seconds; None never does.

    Raises:
        ConfigError: There is a limit, and no alarm clock here: it needs the main thread, and a system that is not Windows.
    """
    if seconds is None:
        yield
        return
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise ConfigError("--max-time works in the main thread of Linux and macOS only; leave it out")

    def ring(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
