"""An interrupt from the keyboard as a wish, to be granted between two updates."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from il_based_rl.cli import notice


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C, and tell whoever asks that it came; the second interrupts at once.

    Outside the main thread, where Python handles no signals, nothing is held back.
    """
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt
        wanted.set()
        notice("stopping after this update; press Ctrl-C again to stop at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield wanted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
