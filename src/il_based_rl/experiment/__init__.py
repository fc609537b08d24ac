"""A run on disk: its folder, its checkpoints, its rows of metrics, and the threads it may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from il_based_rl.cli import LATEST

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


def own_save_path(path: Path, stored: str, default: str) -> str:
    """Return the save path of the run that a checkpoint is one of; the default where it lies elsewhere than it says."""
    from il_based_rl.experiment.run import RunFiles

    return stored if RunFiles(stored).holds(path) else default
