"""Plain values as text: rows of metrics, of which a line is added whole or not at all, and `.json` files."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from il_based_rl.errors import FileFormatError
from il_based_rl.files.writing import atomic_file, unwritable, write_text


class RowFile:
    """A text file of JSON objects, one a line (`.jsonl`), to which rows are added.

    Rows that cannot be written wait. Wherever a signal interrupts it, and whatever a failed write left behind, the next
    `flush` goes on from the end of what is known to be written, so that no row is lost and none is there twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise unwritable(path, error) from error
        self._state: tuple[int, tuple[bytes, ...]] = (self._handle.seek(0, os.SEEK_END), ())
        # Where the file ends, and the rows that are to follow: in one, as a signal may come between two assignments.

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to those that wait; NaN and infinity, which JSON lacks, become null."""
        end, waiting = self._state
        self._state = end, (*waiting, (json.dumps(_finite(dict(row))) + "\n").encode())

    @property
    def waiting(self) -> int:
        """Number of rows that wait."""
        return len(self._state[1])

    def flush(self) -> None:
        """Write the rows that wait.

        Raises:
            FileWriteError: They could not be written; the file is as it was, and they wait on.
        """
        end, waiting = self._state
        lines = b"".join(waiting)
        try:
            if not self._is_there():  # somebody has removed it, or put another one in its place
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle.close()
                self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
                end = self._handle.seek(0, os.SEEK_END)
            found = self._handle.seek(0, os.SEEK_END)
            if found > end:
                self._handle.truncate(end)
            end = min(found, end)  # somebody may have emptied it meanwhile
            if self._handle.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._handle.truncate(end)
            raise unwritable(self.path, error) from error
        self._state = end + len(lines), ()

    def _is_there(self) -> bool:
        try:
            return not self._handle.closed and os.path.samestat(os.fstat(self._handle.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Let what was written outlast a loss of power.

        Raises:
            FileWriteError: The disk does not take it.
        """
        try:
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file; what could not be written was reported by `flush`."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a `.jsonl` file; lines that hold no object of plain values, such as a last one that was cut off, are left out.

    Raises:
        FileFormatError: It cannot be read.
    """
    rows: list[dict[str, Any]] = []
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}") from error
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict) and not any(isinstance(each, dict | list) for each in row.values()):
                rows.append(row)
    return rows


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as a `.json` file; NaN and infinity, which JSON lacks, become null.

    Raises:
        FileWriteError: See `atomic_path`.
    """
    write_text(path, json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewrite_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Replace a `.jsonl` file by these rows."""
    with atomic_file(path) as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in rows).encode())
