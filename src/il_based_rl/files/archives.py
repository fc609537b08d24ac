"""Zip archives from anywhere: read in bounded time and memory, or refused; nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from il_based_rl.errors import FileFormatError, FileMissingError, FileWriteError
from il_based_rl.signals import signals_held

MAX_BYTES = 2**32
"""A file larger than this is refused, before memory is asked for."""
MAX_MEMBERS = 10_000
"""So is one of more parts."""


def require_readable(path: str | Path, size: int, members: int) -> None:
    """Raise FileWriteError if a file of this size, in bytes, and of so many parts would be refused when it is read."""
    if size > MAX_BYTES or members > MAX_MEMBERS:
        raise FileWriteError(
            f"cannot write {path}: it would be of {size:,} bytes in {members:,} parts, and files are read up to {MAX_BYTES:,} "
            f"bytes and {MAX_MEMBERS:,} parts; take fewer episodes or environments, or smaller networks"
        )


def read_archive(path: str | Path, what: str) -> dict[str, bytes]:
    """Read a file that is a zip archive of members that are not compressed, as this package writes them.

    Args:
        path: The file.
        what: What it should be, for messages.

    Returns:
        Its members by name, against whose check sums they were read. Together they are no larger than the file, so that no
        small file can ask for much memory. Whoever hands them to another parser packs them anew (`pack`), as two parsers need
        not see the same members in one file.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is no regular file, no archive, too large, compressed, encrypted or damaged.
    """
    if not str(path):
        raise FileMissingError(f"the path is empty; expected that of {what}")
    if not os.path.lexists(path):
        raise FileMissingError(f"there is no file {path}; expected {what}")
    if not Path(path).is_file():
        raise FileFormatError(f"{path} is not a regular file; expected {what}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES // 2**30} GiB")
            whole = file.read(size)  # and no more, as some files in /proc say 0 and never end
        with signals_held():  # an archive swallows what is raised while it is taken down
            return _members(whole)
    except Exception as error:  # a damaged directory of a zip fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FileFormatError(f"{path} is damaged or is not {what}: {reason}") from error


def _members(whole: bytes) -> dict[str, bytes]:
    if whole[:4] != b"PK\x03\x04" or whole[-22:-18] != b"PK\x05\x06":
        raise ValueError("it does not begin and end as an archive does")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = archive.infolist()
        names = {member.filename.casefold() for member in members}
        if len(members) > MAX_MEMBERS or len(names) < len(members):
            raise ValueError("it has too many parts, or two of one name")
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("it is compressed or encrypted, which files of this package are not")
        if sum(member.file_size for member in members) > len(whole):
            raise ValueError("its parts claim to be larger than the whole")
        return {member.filename: archive.read(member) for member in members}


def pack(members: Mapping[str, bytes]) -> io.BytesIO:
    """Put members into an archive in memory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    stream.seek(0)
    return stream
