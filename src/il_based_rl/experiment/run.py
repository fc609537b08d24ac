"""What a training command keeps on disk, and where."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from il_based_rl.cli import notice
from il_based_rl.errors import FileFormatError, FileMissingError, FileWriteError, ResumeError
from il_based_rl.experiment.wandb_sink import WandbSink
from il_based_rl.files import (
    RowFile,
    copy_file,
    move_aside,
    read_checkpoint,
    read_rows,
    remove_file,
    require_writable,
    rewrite_rows,
)

_KEPT_CHECKPOINTS = 3


class RunFiles:
    """The places of one run: the save path, which is the last policy, and beside it the run's folder.

        checkpoints/ppo_agent.pt                      the last policy
        checkpoints/ppo_agent/metrics.jsonl           one row an update
        checkpoints/ppo_agent/best.pt                 the best policy by evaluation
        checkpoints/ppo_agent/step_0000010240.pt      the last three periodic checkpoints

    A save path without a suffix has its folder under the name with `.run` behind it.
    """

    def __init__(self, save_path: str | Path) -> None:
        self.save_path = Path(save_path)
        named_like_file = self.save_path.with_suffix("") if self.save_path.suffix else None
        self.folder = named_like_file or self.save_path.with_name(self.save_path.name + ".run")
        self.metrics = self.folder / "metrics.jsonl"
        self.best = self.folder / "best.pt"

    def periodic(self, step: int) -> Path:
        """Return the place of the periodic checkpoint of a step."""
        return self.folder / f"step_{step:010d}.pt"

    def all_periodic(self) -> list[Path]:
        """Return the periodic checkpoints, the newest first."""
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def require_writable(self) -> None:
        """Raise FileWriteError now if the run could not be written."""
        require_writable(self.save_path)
        require_writable(self.metrics)

    def start_afresh(self) -> None:
        """Put an older run's files out of the way: its last and best policy and its metrics are kept as `.bak`."""
        moved = [backup for path in (self.save_path, self.best, self.metrics) if (backup := move_aside(path))]
        for path in self.all_periodic():
            remove_file(path)
        if moved:
            notice(f"{self.save_path} is replaced by this run; the old files are kept as {', '.join(map(str, moved))}")

    def holds(self, path: Path) -> bool:
        """Whether a checkpoint is one of this run's, or a copy that was kept of one."""
        return path.resolve() == self.save_path.resolve() or path.resolve().parent == self.folder.resolve()

    def rewind(self, step: int) -> None:
        """Take back what was written after the step that a run is resumed from; later policies are kept as `.bak`."""
        later = [path for path in (self.save_path, self.best) if path.exists() and self._step_of(path) > step]
        later += [path for path in self.all_periodic() if path > self.periodic(step)]
        rows = read_rows(self.metrics) if self.metrics.exists() else []
        kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= step]
        if later and self.metrics.exists():
            later.append(self.metrics)
        moved = [move_aside(path) for path in later]
        if rows:
            rewrite_rows(self.metrics, kept)
        if moved:
            notice(f"the run goes back to step {step}; what it had after that is kept as {', '.join(map(str, moved))}")

    def _step_of(self, path: Path) -> float:
        try:
            return float(read_checkpoint(path)["training"]["env_steps"])
        except (FileFormatError, KeyError, TypeError):
            return math.inf

    def latest_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that can be read, with its path; damaged ones are named and passed over.

        Raises:
            ResumeError: There is none.
        """
        for path in (self.save_path, *self.all_periodic()):
            with contextlib.suppress(FileMissingError):
                try:
                    return path, read_checkpoint(path)
                except FileFormatError as error:
                    notice(f"passed over: {error}")
        raise ResumeError(f"there is nothing to resume: no readable checkpoint at {self.save_path} or in {self.folder}")


class Savable(Protocol):
    """An agent, as far as a run needs to know it."""

    def save(self, path: str | Path, run: dict[str, Any] | None = None) -> None:
        """Write the agent, with plain values that the run keeps beside it."""


class Run:
    """A run that is going on: rows of metrics, checkpoints, and whoever else is told.

    Args:
        files: Its places.
        settings: All its settings, as plain values; kept in every checkpoint.
        resumed_from: The checkpoint that it goes on from, and what was read from it; None for a fresh run.
        step: Where it begins.
        sink: Weights & Biases, or None.

    Raises:
        FileWriteError: Its places cannot be written.
    """

    def __init__(
        self,
        files: RunFiles,
        settings: dict[str, Any],
        *,
        resumed_from: tuple[Path, dict[str, Any]] | None = None,
        step: int = 0,
        sink: WandbSink | None = None,
    ) -> None:
        self._files, self._settings, self._sink = files, settings, sink
        before: dict[str, Any] = {} if resumed_from is None else resumed_from[1].get("run") or {}
        self._best: float | None = before.get("best_eval_reward")
        self._started = time.monotonic() - float(before.get("wall_seconds") or 0.0)
        if resumed_from is not None and files.holds(resumed_from[0]):
            files.rewind(step)
        else:
            files.start_afresh()
        self._best = self._best if files.best.exists() else None
        self._rows: RowFile | None = RowFile(files.metrics)

    @property
    def wall_seconds(self) -> float:
        """Time since the run began, without that between an interruption and a resume."""
        return time.monotonic() - self._started

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one row, and pass it on; rows that cannot be written never stop a run."""
        if self._rows is not None:
            try:
                self._rows.append({"step": step, "wall_seconds": round(self.wall_seconds, 3), **metrics})
            except FileWriteError as error:
                notice(f"no more metrics are written: {error}")
                self._rows = None
        if self._sink is not None:
            self._sink.log(metrics, step)

    def save(self, agent: Savable) -> None:
        """Write the agent to the save path."""
        beside = {"settings": self._settings, "wall_seconds": self.wall_seconds, "best_eval_reward": self._best}
        agent.save(self._files.save_path, run=beside)

    def checkpoint(self, agent: Savable, step: int, eval_reward: float) -> None:
        """Save the agent, and keep copies: of the last three saved this way, and of the best."""
        is_best = self._best is None or eval_reward >= self._best
        self._best = eval_reward if is_best else self._best
        self.save(agent)
        copy_file(self._files.save_path, self._files.periodic(step))
        for path in self._files.all_periodic()[_KEPT_CHECKPOINTS:]:
            remove_file(path)
        if is_best:
            copy_file(self._files.save_path, self._files.best)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._rows is not None:
            self._rows.close()
        if self._sink is not None:
            self._sink.close()
