"""Demonstrations: arrays and plain metadata as one `.npz` file."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from il_based_rl.errors import FileFormatError, FileWriteError
from il_based_rl.files.archives import read_archive, require_readable
from il_based_rl.files.checkpoints import require_version
from il_based_rl.files.writing import atomic_file
from il_based_rl.signals import signals_held

_FORMAT, _VERSION = "il_based_rl demonstrations", 1
_METADATA = "metadata_json"
_MAX_HEADER = 10_000


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays and plain metadata as one `.npz` file; signals wait for the bytes, not for the disk.

    Raises:
        FileWriteError: See `atomic_path`; or it would be larger than what is read; or the metadata are not plain.
    """
    try:
        text = json.dumps({"format": _FORMAT, "format_version": _VERSION, "metadata": dict(metadata)})
    except (TypeError, ValueError) as error:
        raise FileWriteError(f"cannot write {path}: of the metadata, {error}; take text, numbers, lists and dicts") from error
    heads = (len(arrays) + 1) * _MAX_HEADER
    require_readable(path, sum(array.nbytes for array in arrays.values()) + 4 * len(text) + heads, len(arrays) + 1)
    with atomic_file(path) as handle, signals_held():
        np.savez(handle, allow_pickle=False, **{_METADATA: np.array(text)}, **dict(arrays))


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` wrote: the arrays and the metadata.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
    """
    members = read_archive(path, "a file of demonstrations")
    try:
        arrays = {name.removesuffix(".npy"): _array(content) for name, content in members.items()}
        envelope = json.loads(str(arrays.pop(_METADATA)))
    except Exception as error:  # what a foreign file holds may fail in any way
        raise FileFormatError(f"{path} holds no demonstrations of this package; collect writes them") from error
    if not isinstance(envelope, dict) or envelope.get("format") != _FORMAT:
        raise FileFormatError(f"{path} holds no demonstrations of this package; collect writes them")
    require_version(path, envelope.get("format_version"), _VERSION)
    metadata = envelope.get("metadata")
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path} is damaged: its metadata are missing; collect it again")
    return arrays, metadata


def _array(content: bytes) -> np.ndarray:
    """Read one array whose header claims exactly the bytes that follow it, so that a header alone asks for no memory."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran_order, dtype = read_header(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.names is not None or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype}")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError("an array's header does not fit its size")
    array = np.frombuffer(content, dtype, offset=stream.tell()).copy()
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
