"""Writing: a name always holds a whole file, the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from il_based_rl.errors import FileWriteError, LockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TRIES, _PAUSE = 10, 0.02


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        FileWriteError: The place cannot be written, or the disk is full; `path` is as it was.
    """
    path = Path(path)
    if not path.name:
        raise FileWriteError(f"{path} is not the path of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open the file of `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        yield handle


def bytes_written(write: Callable[[Path], object], name: str) -> bytes:
    """Return what somebody who only writes files by their names writes as a file of this name, in a folder that vanishes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


def write_text(path: str | Path, text: str) -> None:
    """Write a text as a file.

    Raises:
        FileWriteError: See `atomic_path`.
    """
    with atomic_file(path) as handle:
        handle.write(text.encode("utf-8", "replace"))  # a file's name need not be UTF-8


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable without
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds a file by `exclusive`."""
    if fcntl is None or not path.is_file():
        return False
    try:
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it cannot be told
        return False
    return False


def knows_locks(folder: Path) -> bool:
    """Whether `exclusive` holds anything in a folder."""
    if fcntl is None:
        return False
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def last_holder(path: Path) -> str:
    """Say who holds a file by `exclusive`, or was the last to do so; nothing where that cannot be known."""
    try:
        with open(path, "rb") as handle:
            return handle.read(500).decode(errors="replace").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def exclusive(path: Path, what_for: str = "", *, place: Path | None = None) -> Iterator[None]:
    """Hold a file that no other process may hold meanwhile; it is let go when the process ends, however it ends.

    Where the system or the file system has no such locks (Windows, some network disks), nothing is held.

    Args:
        path: The file.
        what_for: Written into it behind the process's number.
        place: What it stands for, where that is not its folder.

    Raises:
        LockedError: Another process holds it; it is named.
        FileWriteError: The place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise unwritable(path, error) from error
    with handle:
        if fcntl is not None:
            try:
                _lock(handle)
            except BlockingIOError as error:
                holder = last_holder(path) or "another process"
                raise LockedError(
                    f"{place or path.parent} is being written by {holder}; wait for it, or choose another path"
                ) from error
            except OSError:  # the file system has no locks, of which `il-rl doctor` warns
                pass
        try:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}{what_for}".encode())
        except OSError as error:
            raise unwritable(path, error) from error
        yield


def _lock(handle: IO[bytes]) -> None:
    """Lock a file; one who only asked whether it is held lets it go at once, so that it is tried a few times."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not tries_left:
                raise
        time.sleep(_PAUSE)


def sweep(folder: Path, name: str | None = None, *, held: bool = True) -> None:
    """Remove what a killed process has left half-written in a folder.

    Args:
        folder: Where.
        name: Of one file, and of what is kept of it as `.bak`; None means all.
        held: Whether a lock says that nobody else writes there; without one, what a living process has begun stays.
    """
    known = re.compile(".*" if name is None else rf"\.{re.escape(name)}(\.bak\d*)?\.[^.]+\.tmp")
    for leftover in folder.glob(".*.tmp"):
        if known.fullmatch(leftover.name) and (held or not _is_begun_by_the_living(leftover)):
            remove_file(leftover)


def _is_begun_by_the_living(temporary: Path) -> bool:
    """Whether another process that lives may be writing this."""
    process = temporary.suffixes[-2][1:]
    if not process.isdecimal() or int(process) == os.getpid():
        return False
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def require_writable(path: str | Path) -> None:
    """Raise FileWriteError now rather than after hours of work, if a file, or its backup, could not be written at `path`."""
    path = Path(path)
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # As long as any name that is written there, and as `sweep` knows them.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.bak.", suffix=".tmp"):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def _require_replaceable(path: Path) -> None:
    """Raise OSError if the path is there and is anything but a file: a folder, a pipe or a device is never replaced."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")


def unwritable(path: str | Path, error: OSError) -> FileWriteError:
    """Return the error that says so, with the remedy."""
    remedy = "give the path of a file" if isinstance(error, IsADirectoryError) else "choose a path that can be written"
    return FileWriteError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def move_aside(path: Path, *, leave_copy: bool = False) -> Path | None:
    """Rename a file to its name with `.bak` behind it, or copy it there; an older one becomes `.bak2`, and so on.

    Returns:
        The new path, or None where there was nothing to move.

    Raises:
        FileWriteError: The folder cannot be written.
    """
    if not path.exists():
        return None
    backup = path.with_name(path.name + ".bak")
    try:
        _require_replaceable(path)
        older = [backup]
        while older[-1].exists():
            older.append(path.with_name(f"{path.name}.bak{len(older) + 1}"))
        for newer, place in reversed(list(itertools.pairwise(older))):
            os.replace(newer, place)
        if not leave_copy:
            os.replace(path, backup)
            return backup
        with atomic_file(backup) as handle:
            handle.write(path.read_bytes())
    except OSError as error:
        raise FileWriteError(f"cannot move {path} to {backup}: {error.strerror or error}") from error
    return backup


def remove_file(path: Path) -> None:
    """Remove a file that is no longer needed; one that cannot be removed does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
