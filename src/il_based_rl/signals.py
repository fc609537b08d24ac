"""Signals that wait: for moments in which an exception out of nowhere would be lost, or taken for another one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let what a signal does, such as an interrupt from the keyboard, wait until the block is done.

    For short blocks around what does not pass on an exception that comes in between: a process that is being started, a
    writer that complains of a file left open in its place, an extension that takes it for an answer.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    held: list[int] = []
    before: dict[int, Any] = {}
    holding = True

    def wait(number: int, frame: object) -> None:
        if holding:
            held.append(number)
        else:  # one before it has cut the end of the block off
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in _NUMBERS:
            if (handler := signal.getsignal(number)) is not None:  # of Python's
                before[number] = handler
                signal.signal(number, wait)
        yield
    finally:
        holding = False
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in sorted(held, reverse=True):  # SIGTERM before a time limit, which ends a run as if all were well
            signal.raise_signal(number)
