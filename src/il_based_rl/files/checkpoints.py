"""Checkpoints: tensors and plain values as one `.pt` file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from il_based_rl.errors import FileFormatError
from il_based_rl.files.archives import read_archive
from il_based_rl.files.writing import atomic_file

_FORMAT, _VERSION = "il_based_rl checkpoint", 1
_KNOWN_OPCODES = {
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BINPERSID"),
}
STORED_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Number types of tensors that a checkpoint may hold."""
_STORAGES = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool")
_KNOWN_NAMES = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {kind}Storage" for kind in _STORAGES)}
_MAX_DEPTH = 20


def write_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write tensors and plain values as one `.pt` file.

    Raises:
        FileWriteError: See `atomic_file`.
    """
    import torch

    image = io.BytesIO()  # in memory first: on a full disk torch's own writer fails in ways of its own
    torch.save({"format": _FORMAT, "format_version": _VERSION, **payload}, image)
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

    whole, members = read_archive(path, "a checkpoint")
    try:
        _require_known_instructions(members)
        payload = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
        _require_plain(payload, len(whole), set(), 0)
    except Exception as error:  # the reader of a foreign file may fail in any way
        raise FileFormatError(
            f"{path} is not a checkpoint of this package: it is of another kind, or holds more than tensors and plain values"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of this package; train-ppo and train write them")
    require_version(path, payload.get("format_version"), _VERSION)
    return payload


def _require_known_instructions(members: Mapping[str, bytes]) -> None:
    """Raise ValueError if the description of the tensors and values could do anything but describe them."""
    import pickletools

    descriptions = [content for name, content in members.items() if name.rpartition("/")[2] == "data.pkl"]
    if len(descriptions) != 1:
        raise ValueError("it has no description of its tensors, or several")
    for opcode, argument, _ in pickletools.genops(descriptions[0]):
        if opcode.name not in _KNOWN_OPCODES or (opcode.name == "GLOBAL" and argument not in _KNOWN_NAMES):
            raise ValueError(f"it holds the instruction {opcode.name} {argument}")


def _require_plain(value: Any, size: int, seen: set[int], depth: int) -> None:
    """Raise ValueError unless a value is a tree of tensors and plain values that is no larger than the file it came from."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or not value.is_contiguous() or value.numel() * value.element_size() > size:
            raise ValueError("a tensor is no plain array, or larger than the file")
    elif isinstance(value, dict | list | tuple):
        if depth > _MAX_DEPTH or (len(value) > 0 and id(value) in seen):
            raise ValueError("values are nested too deeply, or one inside another twice")
        seen.add(id(value))
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        for part in parts:
            _require_plain(part, size, seen, depth + 1)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"a value is a {type(value).__name__}")


def require_version(path: str | Path, found: object, known: int) -> None:
    """Raise FileFormatError unless a file is of the version that this package reads."""
    if found != known:
        raise FileFormatError(
            f"{path} has format version {found}, this package reads version {known}; "
            "install the version of il_based_rl that wrote it"
        )
