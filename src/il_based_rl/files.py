"""The one place that reads and writes files.

A file is written beside its place and moved there once it is safely on disk, so that a name always holds a whole file, the
old one or the new one. Reading never runs code from a file: checkpoints are read as tensors and plain values only
(`weights_only=True`), arrays without pickles, and both against the check sums of their zip members.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from il_based_rl.errors import FileFormatError, FileMissingError, FileWriteError, LockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_FORMAT = "il_based_rl checkpoint"
ARRAYS_FORMAT = "il_based_rl demonstrations"
FORMAT_VERSION = 1
_METADATA = "metadata_json"


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        FileWriteError: The place cannot be written, or the disk is full; `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable without
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file that no other process may hold meanwhile; it is let go when the process ends, however it ends.

    Where the system has no such locks (Windows), nothing is held.

    Raises:
        LockedError: Another process holds it; it is named.
        FileWriteError: The place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unwritable(path, error) from error
    with handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                holder = handle.read(200).strip() or "another process"
                raise LockedError(f"{path.parent} is being written by {holder}; wait for it, or choose another path") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        yield


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what a killed process has left half-written in a folder; of one file if a name is given, else of all."""
    for leftover in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        remove_file(leftover)


def require_writable(path: str | Path) -> None:
    """Raise FileWriteError now rather than after hours of work, if a file could not be written at `path`."""
    path = Path(path)
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _require_replaceable(path: Path) -> None:
    """Raise OSError if the path is there and is anything but a file: a folder, a pipe or a device is never replaced."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")


def _unwritable(path: str | Path, error: OSError) -> FileWriteError:
    remedy = "give the path of a file" if isinstance(error, IsADirectoryError) else "choose a path that can be written"
    return FileWriteError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def write_checkpoint(path: str | Path, payload: Mapping[str, Any], *copies: str | Path) -> None:
    """Write tensors and plain values as one `.pt` file, and the same once more at each place of `copies`, these first.

    Raises:
        FileWriteError: See `atomic_file`.
    """
    import torch

    image = io.BytesIO()  # in memory first: on a full disk torch's own writer fails in ways of its own
    torch.save({"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION, **payload}, image)
    for place in (*copies, path):
        with atomic_file(place) as handle:
            handle.write(image.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, without running any code from it.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
    """
    import torch

    _require_sound_zip(path, "a checkpoint")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a foreign file may fail in any way
        raise FileFormatError(
            f"{path} is not a checkpoint of this package: it is of another kind, or holds more than tensors and plain values"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != CHECKPOINT_FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of this package; train-ppo and train write them")
    _require_version(path, payload.get("format_version"))
    return payload


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays and plain metadata as one `.npz` file.

    Raises:
        FileWriteError: See `atomic_file`.
    """
    text = json.dumps({"format": ARRAYS_FORMAT, "format_version": FORMAT_VERSION, "metadata": dict(metadata)})
    with atomic_file(path) as handle:
        np.savez(handle, allow_pickle=False, **{_METADATA: np.array(text)}, **dict(arrays))


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` wrote: the arrays and the metadata.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
    """
    _require_sound_zip(path, "a file of demonstrations")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        envelope = json.loads(str(arrays.pop(_METADATA)))
    except Exception as error:  # as above
        raise FileFormatError(f"{path} holds no demonstrations of this package; collect writes them") from error
    if not isinstance(envelope, dict) or envelope.get("format") != ARRAYS_FORMAT:
        raise FileFormatError(f"{path} holds no demonstrations of this package; collect writes them")
    _require_version(path, envelope.get("format_version"))
    metadata = envelope.get("metadata")
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path} is damaged: its metadata are missing; collect it again")
    return arrays, metadata


def package_versions() -> dict[str, str]:
    """Return the versions that a file was written with."""
    return {name: importlib.metadata.version(name) for name in ("il_based_rl", "torch", "gymnasium", "numpy")}


def _require_sound_zip(path: str | Path, what: str) -> None:
    if not os.path.lexists(path):
        raise FileMissingError(f"there is no file {path}; expected {what}")
    if not Path(path).is_file():
        raise FileFormatError(f"{path} is not a regular file; expected {what}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory of a zip fails in many ways
        raise FileFormatError(f"{path} is damaged or is not {what}: {_first_line(error)}") from error
    if damaged is not None:
        raise FileFormatError(f"{path} is damaged: the check sum of its part {damaged} is wrong; take an older copy")


def _require_version(path: str | Path, version: object) -> None:
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {version}, this package reads version {FORMAT_VERSION}; "
            "install the version of il_based_rl that wrote it"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def move_aside(path: Path) -> Path | None:
    """Rename a file to its name with `.bak` behind it; an older one becomes `.bak2`, and so on.

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
        os.replace(path, backup)
    except OSError as error:
        raise FileWriteError(f"cannot move {path} to {backup}: {error.strerror or error}") from error
    return backup


def remove_file(path: Path) -> None:
    """Remove a file that is no longer needed; one that cannot be removed does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


class RowFile:
    """A text file of JSON objects, one a line (`.jsonl`), to which rows are added and flushed one by one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _unwritable(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; NaN and infinity, which JSON lacks, become null.

        Raises:
            FileWriteError: The row could not be written; the file is as it was.
        """
        finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
        line = (json.dumps(finite) + "\n").encode()
        end = self._handle.seek(0, os.SEEK_END)
        try:
            if self._handle.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._handle.truncate(end)
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file; what could not be written was reported by `append`."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a `.jsonl` file; lines that hold no object, such as a last one that was cut off, are left out."""
    rows: list[dict[str, Any]] = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return rows


def rewrite_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Replace a `.jsonl` file by these rows."""
    with atomic_file(path) as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in rows).encode())
