"""From an argument list to a command's settings, and from an error to one line and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import tyro
from tqdm import tqdm

from il_based_rl.errors import FileWriteError, Terminated, UserError

Settings = TypeVar("Settings")

_LINE_SECONDS = 30.0
LATEST = "latest"
"""What a bare `--resume` stands for."""
_terminated = False
"""SIGTERM has come while a command ran. No event of threading's, whose lock a second signal would wait for for ever."""
_unwritten: OSError | None = None
"""Why some of a result could not be written to standard output."""


def parse(defaults: Settings, argv: Sequence[str] | None, *, prog: str, description: str) -> Settings:
    """Read settings from the command line (`sys.argv` where `argv` is None); flags that are not given keep `defaults`."""
    arguments = _spell_out_bare_resume(list(sys.argv[1:] if argv is None else argv))
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    outer, told = sys.exc_info()[1], io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            settings = tyro.cli(
                type(defaults), prog=prog, description=description, args=arguments, default=defaults, config=config
            )
    except SystemExit as end:
        cause = end.__context__
        while cause is not outer and not isinstance(cause, UserError):
            cause = None if cause is None else cause.__context__
        if end.code and cause is not outer and cause is not None:  # the settings' own complaint is one line; this frames it
            raise cause from None
        sys.stderr.write(told.getvalue())
        raise
    except BrokenPipeError:
        raise
    except OSError as error:  # of the help text, as nothing else is written or read here
        raise _unwritable(error) from error
    sys.stderr.write(told.getvalue())
    return settings


def asks_for_help(argv: Sequence[str] | None) -> bool:
    """Whether the command line asks for help, so that nothing else of it matters."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:] if argv is None else argv)


def has(flag: str, argv: Sequence[str] | None) -> bool:
    """Whether a flag without a value stands on the command line."""
    return any(argument.replace("_", "-") == flag for argument in (sys.argv[1:] if argv is None else argv))


def given(flag: str, argv: Sequence[str] | None) -> str | None:
    """Return the value that a flag is given on the command line, before anything else of it is judged; None without it."""
    arguments = _spell_out_bare_resume(list(sys.argv[1:] if argv is None else argv))
    value = None
    for k, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if name.replace("_", "-") == flag:
            following = arguments[k + 1] if k + 1 < len(arguments) else None
            value = text if equals else None if following is not None and following.startswith("--") else following
    return value


def _spell_out_bare_resume(arguments: list[str]) -> list[str]:
    """Turn `--resume` without a path into `--resume latest`; the parser knows no flag with an optional value."""
    spelled: list[str] = []
    for k, argument in enumerate(arguments):
        spelled.append(argument)
        if argument == "--resume" and (k + 1 == len(arguments) or arguments[k + 1].startswith("--")):
            spelled.append(LATEST)
    return spelled


def run(command: Callable[[], object]) -> None:
    """Run a command; an error that the user can mend becomes one line on standard error and an exit code.

    Raises:
        SystemExit: With the error's exit code; 130 after an interrupt from the keyboard, 143 after SIGTERM.
    """
    global _unwritten
    _unwritten = None
    _open_streams()
    atexit.register(gc.freeze)  # else the interpreter's end looks through all that torch ever made, for most of a second
    try:
        with _termination_as_exception():
            command()
        sys.stdout.flush()
        if _unwritten is not None:
            raise _unwritable(_unwritten, "; the rest was done")
    except UserError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_for_memory(error):
            raise
        print(f"error: out of memory: {_one_line(error)}; choose smaller networks, rollouts or data", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as interruption:
        print("interrupted", file=sys.stderr)
        raise SystemExit(getattr(interruption, "exit_code", 130)) from None
    except BrokenPipeError:
        _mute()


def _unwritable(error: OSError, further: str = "") -> FileWriteError:
    lost = FileWriteError(f"cannot write to standard output: {error.strerror or error}{further}")
    lost.exit_code = 1
    return lost


def _open_streams() -> None:
    """Let what is written go nowhere where an output was closed before the start, as some supervisors of services do."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open


def _is_for_memory(error: Exception) -> bool:
    """Whether memory could not be had; torch, which is not imported here, says so by errors of its own."""
    told = "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError"
    return told or isinstance(error, MemoryError)


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt, so that what is open is closed and saved."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def handle(number: int, frame: object) -> None:
        global _terminated
        if not _terminated:  # some send it twice, which must not cut off the save that the first one began
            _terminated = True
            raise Terminated

    global _terminated
    _terminated = False
    if ours:
        signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def raise_if_terminated() -> None:
    """Raise Terminated if SIGTERM had come, and what it raised was lost, as in a destructor or in another's code."""
    if _terminated:
        raise Terminated


def say(text: str) -> None:
    """Print a result on standard output at once, clear of any progress bar."""
    global _unwritten
    try:
        tqdm.write(_harmless(text), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has gone
        _mute()
    except OSError as error:  # its disk is full; the work goes on, and what is missing is told in the end
        _unwritten = error
        _mute()


class Progress:
    """How far long work is: a bar on a terminal, elsewhere a line on standard error every half minute.

    Args:
        work: What is done.
        total: How much of it there is.
        unit: Of what.
        initial: How much was done before.
        quiet: Whether to show nothing.
    """

    def __init__(self, work: str, total: int, unit: str, *, initial: int = 0, quiet: bool = False) -> None:
        self._work, self._total, self._unit, self._done, self._quiet = work, total, unit, initial, quiet
        self._bar = tqdm(desc=work, total=total, initial=initial, unit=unit, leave=False, disable=quiet or None)
        self._started, self._initial = time.monotonic(), initial
        self._told = self._started

    def update(self, amount: int = 1, **latest: float) -> None:
        """Note that more is done, and what it has come to.

        Raises:
            Terminated: See `raise_if_terminated`.
        """
        raise_if_terminated()
        self._done += amount
        if latest and not self._bar.disable:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in latest.items()}, refresh=False)
        self._bar.update(amount)
        now = time.monotonic()
        if self._bar.disable and not self._quiet and now - self._told > _LINE_SECONDS:
            self._told = now
            rate = (self._done - self._initial) / (now - self._started)
            left = max(0, self._total - self._done) / max(rate, 1e-9)
            told = "".join(f", {name} {value:.4g}" for name, value in latest.items())
            notice(f"{self._work}: {self._done:,} of {self._total:,} {self._unit}s, {rate:,.1f}/s, {left:,.0f} s left{told}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()


def _mute() -> None:
    """Send standard output nowhere from now on, so that nothing fails by writing to it."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def notice(text: str) -> None:
    """Tell the user something that is no result, on standard error."""
    with contextlib.suppress(OSError):  # its disk may be full, which must not stop the work
        tqdm.write(_harmless(text), file=sys.stderr)


def notice_path(reason_against_fast_path: str | None) -> float:
    """Say once if updates do not take the fast path, and why; return 1 where they take it and 0 where not, for the log."""
    if reason_against_fast_path is not None:
        notice(f"updates run on the reference path: {reason_against_fast_path}")
    return float(reason_against_fast_path is None)


def _one_line(error: BaseException) -> str:
    return _harmless(" ".join(str(error).split()))


def _harmless(text: str) -> str:
    """Leave out what commands a terminal, or cannot be written, as a name from a stranger's file may hold it."""
    kept = "".join(sign if sign in "\n\t" or sign.isprintable() else "?" for sign in text)
    return kept.encode("utf-8", "replace").decode()
