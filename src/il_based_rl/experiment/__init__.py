"""A run on disk: its folder, its checkpoints, its rows of metrics, and the threads it may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from il_based_rl.cli import LATEST
from il_based_rl.errors import ResumeError

Checkpoint = tuple[Path, dict[str, Any]]
"""A checkpoint's path, and what was read from it."""


def resumed_checkpoint(resume: str, save_path: str) -> Checkpoint:
    """Read what `--resume` names: the latest checkpoint of the save path, or one file.

    Raises:
        ResumeError: There is none.
        FileMissingError: There is no such file.
        FileFormatError: It is damaged or foreign.
    """
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.files import read_checkpoint

    return RunFiles(save_path).latest_checkpoint() if resume == LATEST else (Path(resume), read_checkpoint(resume))


def require_trusted(path: Path, env_id: str, given: str | None, flag: str = "--env-id") -> None:
    """Raise ResumeError if a file would choose which module is imported: `MODULE:ID` must be given by the user himself."""
    if given is None and ":" in env_id:
        raise ResumeError(
            f"{path} asks for the environment {env_id}, for which code is imported; "
            f"if you trust that code, say so by {flag} {env_id}"
        )


def is_own(path: Path, save_path: str) -> bool:
    """Whether a checkpoint lies in the run of the save path that it names; one from elsewhere decides less."""
    from il_based_rl.experiment.run import RunFiles

    return RunFiles(save_path).holds(path)
