"""Checkpoints: tensors and plain values as one `.pt` file."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from il_based_rl.errors import FileFormatError
from il_based_rl.files.archives import pack, read_archive, require_readable
from il_based_rl.files.instructions import require_plain
from il_based_rl.files.writing import atomic_file
from il_based_rl.signals import signals_held

_FORMAT, _VERSION = "il_based_rl checkpoint", 1
STORED_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Number types of tensors that a checkpoint may hold."""
_KNOWN_PARTS = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,6}"
)
_MAX_DEPTH, _MAX_DIMENSIONS = 20, 16


def write_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write tensors and plain values as one `.pt` file.

    Raises:
        FileWriteError: See `atomic_path`; or it would be larger than what is read.
    """
    import torch

    image = io.BytesIO()  # in memory first: on a full disk torch's own writer fails in ways of its own
    with signals_held():
        torch.save({"format": _FORMAT, "format_version": _VERSION, **payload}, image)
        with zipfile.ZipFile(image) as archive:
            members = len(archive.infolist())
    require_readable(path, len(image.getbuffer()), members)
    with atomic_file(path) as handle:
        handle.write(image.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, without running any code from it.

    Before torch's own restricted reader (`weights_only=True`) sees the file, every instruction and every name in it is
    compared with the few that a checkpoint needs.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
    """
    import torch

    members = read_archive(path, "a checkpoint")
    try:
        size = sum(map(len, members.values()))
        placed = {_place(name): content for name, content in members.items()}
        if len(placed) < len(members):
            raise ValueError("it has a part in two folders")
        with signals_held():  # an archive that is interrupted complains of being half written
            archive = pack(placed)
        (description,) = [content for name, content in members.items() if name.endswith("/data.pkl")]
        require_plain(description)
        payload = torch.load(archive, map_location="cpu", weights_only=True)
        if _bytes_in(payload, set(), 0) > size:
            raise ValueError("its tensors are larger than the file")
    except Exception as error:  # the reader of a foreign file may fail in any way
        raise FileFormatError(
            f"{path} is not a checkpoint of this package: it is of another kind, or holds more than tensors and plain values"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of this package; train-ppo and train write them")
    require_version(path, payload.get("format_version"), _VERSION)
    return payload


def _place(name: str) -> str:
    """Name a part of a checkpoint as torch looks for it; ValueError for one that no checkpoint has."""
    folder, _, inner = name.partition("/")
    if not folder or not _KNOWN_PARTS.fullmatch(inner):
        raise ValueError(f"it has the part {name}")
    return f"checkpoint/{inner}"


def _bytes_in(value: Any, seen: set[int], depth: int) -> int:
    """Return how many bytes of tensors a tree of tensors and plain values holds; ValueError if it is anything else."""
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and value.dim() <= _MAX_DIMENSIONS and value.is_contiguous()
        if not plain or value.is_neg() or value.is_conj() or str(value.dtype).removeprefix("torch.") not in STORED_DTYPES:
            raise ValueError("a tensor is no plain array")
        return value.numel() * value.element_size()
    if type(value) in (dict, list, tuple):
        if depth > _MAX_DEPTH or (len(value) > 0 and id(value) in seen):
            raise ValueError("values are nested too deeply, or one inside another twice")
        seen.add(id(value))
        if type(value) is dict and not all(type(key) is str for key in value):
            raise ValueError("a name is no text")
        parts = value.values() if type(value) is dict else value
        return sum(_bytes_in(part, seen, depth + 1) for part in parts)
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"a value is a {type(value).__name__}")
    return 0


def require_version(path: str | Path, found: object, known: int) -> None:
    """Raise FileFormatError unless a file is of the version that this package reads."""
    if type(found) is not int or found != known:
        raise FileFormatError(
            f"{path} has format version {found}, this package reads version {known}; "
            "install the version of il_based_rl that wrote it"
        )
