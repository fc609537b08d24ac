"""The runs under a folder."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from il_based_rl.errors import FileFormatError, FileMissingError
from il_based_rl.files import is_held, read_checkpoint, read_rows

METRICS = "metrics.jsonl"
_LARGEST = 1e100


@dataclass(frozen=True)
class FoundRun:
    """One run, as it lies on disk."""

    save_path: Path
    folder: Path
    payload: dict[str, Any]
    """Of the last policy; empty where it cannot be read."""
    rows: list[dict[str, Any]]
    """Of metrics."""

    @property
    def kind(self) -> str:
        """`ppo` of an expert, `bc` of a student, `dagger` or `finetune` of what those commands wrote, or `-`."""
        return next((each for each in ("dagger", "finetune") if each in self.payload), str(self.payload.get("kind", "-")))

    @property
    def axis(self) -> str:
        """What its steps count."""
        return {"bc": "epochs", "dagger": "questions to the expert"}.get(self.kind, "environment steps")

    @property
    def settings(self) -> dict[str, Any]:
        """What it was started with."""
        settings = self._run.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def _run(self) -> dict[str, Any]:
        run = self.payload.get("run")
        return run if isinstance(run, dict) else {}

    @property
    def env_id(self) -> str:
        """Environment that it learned in, or whose demonstrations it learned from."""
        return str(self.settings.get("env_id", "-"))

    @property
    def step(self) -> int:
        """Environment steps, epochs, or questions to an expert that it has had, see `axis`."""
        training = self.payload.get("training")
        found = training.get("env_steps", training.get("epochs")) if isinstance(training, dict) else None
        return found if isinstance(found, int) else 0

    @property
    def total(self) -> int | None:
        """Environment steps, or epochs, that it is to have; None where that is not known beforehand."""
        cloning = self.settings.get("bc")
        of_epochs = cloning.get("epochs") if isinstance(cloning, dict) else None
        total = {"bc": of_epochs, "dagger": None}.get(self.kind, self.settings.get("total_timesteps"))
        return total if isinstance(total, int) else None

    @property
    def state(self) -> str:
        """`running`, `finished`, `interrupted`, or `damaged`."""
        if is_held(self.folder / ".lock"):
            return "running"
        if not self.payload:
            return "damaged"
        return "finished" if self._finished else "interrupted"

    @property
    def _finished(self) -> bool:
        training, rounds, tuning = (self.payload.get(name) for name in ("training", "dagger", "finetune"))
        if isinstance(rounds, dict):
            return rounds.get("finished") is True and rounds.get("compared") is not False
        if isinstance(tuning, dict) and tuning.get("settled") is False:
            return False
        if self.kind == "bc":  # a student that is to learn on has kept its optimiser
            return isinstance(training, dict) and "optimizer" not in training
        return self.total is not None and self.step >= self.total

    @property
    def written(self) -> float:
        """When its last row was written, in seconds since 1970; 0 where that is not known."""
        with contextlib.suppress(OSError):
            return (self.folder / METRICS).stat().st_mtime
        return 0.0

    @property
    def resumes(self) -> list[Any]:
        """At which steps it was gone on with, and how exactly."""
        resumes = self._run.get("resumes")
        return resumes if isinstance(resumes, list) else []

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps and the values of one metric."""
        pairs = [(row.get("step"), row.get(name)) for row in self.rows]
        told = [(_moderate(step), _moderate(x)) for step, x in pairs]
        kept = [(step, x) for step, x in told if step is not None and x is not None]
        return [step for step, _ in kept], [x for _, x in kept]


def _moderate(x: Any) -> float | None:
    """Return a number that can be drawn; what a file holds may be any, or none."""
    return float(x) if isinstance(x, int | float) and -_LARGEST < x < _LARGEST else None


def find_runs(folder: Path) -> Iterator[FoundRun]:
    """Yield the runs in a folder and in those below it, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # no virtual environment, no repository
        if METRICS in files and (Path(place) / METRICS).is_file():  # and no dangling link, nor a pipe
            yield read_run(Path(place))


def read_run(folder: Path) -> FoundRun:
    """Read the run whose folder this is; what cannot be read of it is left out."""
    save_path = _save_path(folder)
    payload: dict[str, Any] = {}
    with contextlib.suppress(FileMissingError, FileFormatError):
        payload = read_checkpoint(save_path)
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileFormatError):
        rows = read_rows(folder / METRICS)
    return FoundRun(save_path, folder, payload, rows)


def _save_path(folder: Path) -> Path:
    """Return the save path that a run's folder belongs to, see `experiment.run.RunFiles`."""
    folder = folder if folder.name else Path(os.path.abspath(folder))  # noqa: PTH100 - "." has no name
    if folder.name.endswith(".run"):
        return folder.with_name(folder.name.removesuffix(".run"))
    usual = folder.with_name(f"{folder.name}.pt")
    beside = [path for path in sorted(folder.parent.glob(f"{glob.escape(folder.name)}.*")) if path.stem == folder.name]
    kinds = [".npz", ".mp4", ".png", ".json", ".md", ".html", ".csv", ".svg"]  # that lie beside runs and are none
    kept = [path for path in beside if path.is_file() and not path.suffix.startswith(".bak")]
    other = [path for path in kept if path.suffix not in kinds]
    return usual if usual.is_file() or not other else other[0]
