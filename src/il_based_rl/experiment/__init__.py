"""A run on disk: its folder, its checkpoints, its rows of metrics, and the threads it may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from il_based_rl import cli
from il_based_rl.config import Settings, from_plain
from il_based_rl.errors import ConfigError, FileFormatError, ResumeError, UserError

Checkpoint = tuple[Path, dict[str, Any]]
"""A checkpoint's path, and what was read from it."""
_ITS_OWN = {"train-ppo": "preset", "train": "max_demos", "dagger": "expert", "finetune": "guard"}
"""Of each command that can be resumed, a setting that no other of them has."""


def resumed_checkpoint(resume: str, save_path: str) -> Checkpoint:
    """Read what `--resume` names: the latest checkpoint of the save path, or one file.

    Raises:
        ResumeError: There is none.
        FileMissingError: There is no such file.
        FileFormatError: It is damaged or foreign.
    """
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.files import read_checkpoint

    return RunFiles(save_path).latest_checkpoint() if resume == cli.LATEST else (Path(resume), read_checkpoint(resume))


def named_checkpoint(argv: Sequence[str] | None, save_path: str) -> Checkpoint | None:
    """Read what the command line's `--resume` names, before all else of it is judged; None without it, or for help."""
    resume = cli.given("--resume", argv)
    if resume is None or cli.asks_for_help(argv):
        return None
    return resumed_checkpoint(resume, cli.given("--save-path", argv) or save_path)


def with_seed(config: Settings, stored: int | None = None) -> Settings:
    """Return settings with a seed: their own, or else that of the run that is resumed, or one drawn for a run that begins."""
    from il_based_rl.seeding import fresh_seed

    run: Any = config
    if run.seed is not None:
        return config
    return replace(run, seed=fresh_seed() if stored is None else stored)


def keep_older(*paths: Path) -> None:
    """Keep files that are about to be replaced, each as `.bak` beside it, and say so."""
    from il_based_rl.files import move_aside

    for path in paths:
        if (backup := move_aside(path, leave_copy=True)) is not None:
            cli.notice(f"{path} is replaced; the old file is kept as {backup}")


def require_in_memory(command: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if settings of a command are given to its function, which keeps nothing on disk."""
    for name in ("resume", "max_time"):
        if settings.get(name) is not None:
            raise ConfigError(
                f"{name} is a setting of il-rl {command}, whose runs are on disk; this function keeps all in memory"
            )


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


def stored_settings(checkpoint: Checkpoint, kind: type[Settings], command: str, beside: Sequence[str] = ()) -> Settings:
    """Return the settings of the run that wrote a checkpoint.

    Args:
        checkpoint: Its path, and what was read from it.
        kind: Of the settings.
        command: Whose they are, for the message.
        beside: Names that the run kept with them, and that are none.

    Raises:
        ResumeError: Another command began the run.
        FileFormatError: There are none, or they are damaged.
        ConfigError: One of them is out of range.
    """
    path, payload = checkpoint
    _require_begun_by(command, checkpoint)
    try:
        settings = {name: value for name, value in payload["run"]["settings"].items() if name not in beside}
        return from_plain(kind, settings | {"resume": None})
    except UserError:
        raise
    except Exception as error:  # what a foreign file holds may be wrong in any way
        raise FileFormatError(f"{path} holds no settings that {command} can go on with: {error}") from error


def _require_begun_by(command: str, checkpoint: Checkpoint) -> None:
    path, payload = checkpoint
    run = payload.get("run")
    settings = run.get("settings") if isinstance(run, dict) else None
    for other, setting in _ITS_OWN.items():
        if other != command and isinstance(settings, dict) and setting in settings:
            raise ResumeError(f"{path} is of a run of il-rl {other}; go on with it by il-rl {other} --resume")


def own_settings(checkpoint: Checkpoint, stored: Settings, defaults: Settings) -> Settings:
    """Return what the command line may leave out when a run is resumed: as in the run, as far as a file may decide that.

    A file from elsewhere does not choose what is overwritten, nor what is sent to others.
    """
    run: Any = stored
    if is_own(checkpoint[0], run.save_path):
        return stored
    usual: Any = defaults
    return replace(run, save_path=usual.save_path, tracking=usual.tracking)


def require_unchanged(path: Path, stored: Any, config: Any, names: Sequence[str]) -> None:
    """Raise ResumeError if one of these settings is not as in the run that is resumed."""
    for name in names:
        before, now = getattr(stored, name), getattr(config, name)
        if is_dataclass(before):
            require_unchanged(path, before, now, [field.name for field in fields(before)])
        elif before != now:
            raise ResumeError(
                f"{path} was trained with {name} {before}, not {now}; leave the flag out, or start afresh without --resume"
            )
