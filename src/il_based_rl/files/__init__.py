"""The one place that reads and writes files.

A file is written beside its place and moved there once it is safely on disk, so that a name always holds a whole file, the
old one or the new one. Reading never runs code from a file: checkpoints are read as tensors and plain values only, arrays
without pickles, both against the check sums of their parts and in bounded time and memory. Whatever is wrong with a file, the
answer is one `FileFormatError`.
"""

from __future__ import annotations

import functools
import importlib.metadata

from il_based_rl.files.arrays import read_arrays, write_arrays
from il_based_rl.files.checkpoints import STORED_DTYPES, read_checkpoint, write_checkpoint
from il_based_rl.files.rows import RowFile, read_rows, rewrite_rows, write_json
from il_based_rl.files.writing import (
    atomic_file,
    atomic_path,
    bytes_written,
    exclusive,
    is_held,
    knows_locks,
    last_holder,
    move_aside,
    remove_file,
    require_writable,
    sweep,
    write_text,
)

__all__ = [
    "STORED_DTYPES",
    "RowFile",
    "atomic_file",
    "atomic_path",
    "bytes_written",
    "exclusive",
    "is_held",
    "knows_locks",
    "last_holder",
    "move_aside",
    "package_versions",
    "read_arrays",
    "read_checkpoint",
    "read_rows",
    "remove_file",
    "require_writable",
    "rewrite_rows",
    "sweep",
    "write_arrays",
    "write_checkpoint",
    "write_json",
    "write_text",
]


def package_versions() -> dict[str, str]:
    """Return the versions that a file was written with."""
    return {name: _version(name) for name in ("il_based_rl", "torch", "gymnasium", "numpy")}


_version = functools.cache(importlib.metadata.version)  # which looks through files, and is asked after every update
