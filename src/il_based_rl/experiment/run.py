"""What a training command keeps on disk, and where."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from il_based_rl.cli import notice
from il_based_rl.errors import ConfigError, FileFormatError, FileMissingError, FileWriteError, ResumeError, TimeIsUp
from il_based_rl.experiment.sinks import GuardedSink
from il_based_rl.files import (
    RowFile,
    exclusive,
    last_holder,
    move_aside,
    read_checkpoint,
    read_rows,
    remove_file,
    require_writable,
    rewrite_rows,
    sweep,
    write_checkpoint,
)

TIME_FIELDS = ("wall_seconds", "steps_per_second")
"""Of a row of metrics: what depends on the clock, and all that differs between a run and its repetition."""
_LOCK = ".lock"
_PERIODIC = r"step_\d{10,}\.pt"
_OURS = re.compile(rf"best\.pt|metrics\.jsonl|{_PERIODIC}|demos\.npz")
"""What a run writes in its folder; the last is DAgger's."""
_KEPT_CHECKPOINTS = 3
_MOST_FAILED_SAVES = 3
_LONGEST_TEXT = 1_000
_LEVELS = {
    "exact": "exactly as if it had run straight through",
    "state": "from the state that it was in",
    "episode": "with new episodes, drawn from its own random streams",
    "weights": "with environments that start anew",
}


class RunFiles:
    """The places of one run: the save path, which is the last policy, and beside it the run's folder.

        checkpoints/ppo_agent.pt                      the last policy
        checkpoints/ppo_agent/metrics.jsonl           one row an update
        checkpoints/ppo_agent/best.pt                 the best policy by evaluation
        checkpoints/ppo_agent/step_0000010240.pt      the last three periodic checkpoints

    A save path of any other suffix (letters after the last dot) has its folder named likewise; one without has it under the
    name with `.run` behind it, as `run_0.001` and `run_0.002` are two runs.
    """

    def __init__(self, save_path: str | Path) -> None:
        self.save_path = Path(save_path)
        if not self.save_path.name:
            raise ConfigError(f"--save-path must be the path of a file, got {str(save_path)!r}")
        usual, other = self.save_path.with_suffix(""), self.save_path.with_name(self.save_path.name + ".run")
        # The other one too where it is there already: runs of before had it with every suffix but .pt.
        other_is_there = os.path.isdir(other)  # noqa: PTH112 - a name that is too long is none
        self.folder = usual if self.save_path.suffix[1:].isalpha() and not other_is_there else other
        self.metrics = self.folder / "metrics.jsonl"
        self.best = self.folder / "best.pt"

    def periodic(self, step: int) -> Path:
        """Return the place of the periodic checkpoint of a step."""
        return self.folder / f"step_{step:010d}.pt"

    def all_periodic(self) -> list[Path]:
        """Return the periodic checkpoints, the newest first."""
        found = self.folder.glob("step_*.pt")
        return sorted((path for path in found if re.fullmatch(_PERIODIC, path.name)), reverse=True)  # no copies of somebody's

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the run's places, so that no other process writes them; what a killed one has left half-written is removed."""
        self.require_own()
        with exclusive(self.folder / _LOCK, f" for {self.save_path.name}"):
            sweep(self.folder)
            sweep(self.save_path.parent, self.save_path.name)
            yield

    def require_own(self) -> None:
        """Raise FileWriteError if the folder is another run's, whose save path differs in the suffix alone."""
        owner = Path(last_holder(self.folder / _LOCK).rpartition(" for ")[2]).name
        other = self.save_path.with_name(owner or self.save_path.name)
        if other != self.save_path and other.is_file() and RunFiles(other).folder == self.folder:
            raise FileWriteError(f"{self.folder} holds what belongs to {other}; choose another name than {self.save_path}")

    def require_not_read(self, **paths: str | None) -> None:
        """Raise ConfigError if the run would write a file that it reads, such as another run's best policy; by their flags."""
        folder = Path(os.path.realpath(self.folder))
        for name, path in paths.items():
            place = Path(os.path.realpath(path or self.save_path))
            if place.parent == folder and _OURS.fullmatch(place.name):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {path} would be replaced by the run's own {place.name}; choose another --save-path")

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
        place = os.path.realpath(path)
        return place == os.path.realpath(self.save_path) or Path(place).parent == Path(os.path.realpath(self.folder))

    def require_as_read(self, checkpoint: tuple[Path, dict[str, Any]]) -> None:
        """Raise ResumeError if a run that was just ending has written one of these files since it was read."""
        path, payload = checkpoint
        if self.holds(path):
            with contextlib.suppress(FileMissingError):
                if self._step_of(path) == _step_in(payload):
                    return
            raise ResumeError(f"{path} was written again after it had been read, by a run that was just ending; try once more")

    def rewind(self, step: int) -> None:
        """Take back what was written after the step that a run is resumed from; later policies are kept as `.bak`."""
        later = [path for path in (self.save_path, self.best) if path.exists() and self._step_of(path) > step]
        later += [path for path in self.all_periodic() if path > self.periodic(step)]
        rows = read_rows(self.metrics) if self.metrics.exists() else []
        kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= step]
        # In this order, as a kill may come in between: rows that are too many do no harm, missing ones would.
        moved = [move_aside(self.metrics, leave_copy=True)] if later and rows else []
        moved += [move_aside(path) for path in later]
        if self.metrics.exists():  # even if it holds no row: one that was cut off would swallow the next
            rewrite_rows(self.metrics, kept)
        if moved:
            notice(f"the run goes back to step {step}; what it had after that is kept as {', '.join(map(str, moved))}")

    def complete(self, checkpoint: tuple[Path, dict[str, Any]]) -> bool:
        """Whether a checkpoint is at the save path, and its copies at their places: nothing cut its saving off."""
        path, payload = checkpoint
        step, run = _step_in(payload), _facts(path, payload)
        copies = [self.best] * bool(run.get("is_best")) + [self.periodic(step)] * bool(run.get("is_periodic"))
        return os.path.realpath(path) == os.path.realpath(self.save_path) and all(
            copy.is_file() and self._step_of(copy) == step for copy in copies
        )

    def _step_of(self, path: Path) -> float:
        try:
            return _step_in(read_checkpoint(path))
        except FileFormatError:
            return math.inf

    def latest_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that can be read, with its path; damaged ones are named and passed over.

        Raises:
            ResumeError: There is none.
            FileWriteError: See `require_own`.
        """
        self.require_own()
        found: list[tuple[int, Path, dict[str, Any]]] = []
        for path in (self.save_path, *self.all_periodic()):
            with contextlib.suppress(FileMissingError):
                try:
                    payload = read_checkpoint(path)
                    found.append((_step_in(payload), path, payload))
                except FileFormatError as error:
                    notice(f"passed over: {error}")
        if found:
            _, path, payload = max(found, key=lambda each: each[0])  # of equal ones the first, which is the save path
            return path, payload
        raise ResumeError(f"there is nothing to resume: no readable checkpoint at {self.save_path} or in {self.folder}")


def _step_in(payload: dict[str, Any]) -> int:
    """Environment steps of an expert, or epochs of a student."""
    try:
        training = payload["training"]
        return int(training["env_steps"] if "env_steps" in training else training["epochs"])
    except Exception as error:  # what a foreign file holds may be wrong in any way
        raise FileFormatError(f"a checkpoint does not say how far it got: {error}") from error


def _facts(path: Path, payload: dict[str, Any]) -> dict[str, Any]:
    """Return what a run has kept in a checkpoint; nothing for an agent that was saved by itself.

    Raises:
        FileFormatError: It is not what `Run.keep` writes.
    """
    facts: Any = payload.get("run")
    if not isinstance(facts, dict) or (facts and not _are_sound(facts)):
        raise FileFormatError(f"{path} is damaged: what its run kept is missing or of a wrong type")
    return facts


def _are_sound(facts: dict[str, Any]) -> bool:
    kinds = {"wall_seconds": float, "resumes": list, "numerics": dict, "best_eval_reward": float | None}
    if not all(isinstance(facts.get(name), kind) for name, kind in kinds.items()):
        return False
    texts = [*facts["numerics"], *facts["numerics"].values()]
    numbers = [facts["wall_seconds"], facts["best_eval_reward"] or 0.0]
    return all(map(math.isfinite, numbers)) and all(type(text) is str and len(text) < _LONGEST_TEXT for text in texts)


def _changed(before: Any, now: Mapping[str, Any], ungrouped: Sequence[str]) -> list[str]:
    """Name the settings of learning, which are grouped but for these, that are not as in the run of before."""
    if not isinstance(before, dict):
        return []
    parts = [(before.get(name), part) for name, part in now.items() if isinstance(part, dict) and name != "tracking"]
    parts.append((before, {name: now[name] for name in ungrouped}))
    return [
        f"{setting} {value}"
        for known, part in parts
        for setting, value in part.items()
        if isinstance(known, dict) and setting in known and known[setting] != value
    ]


def _at_most_the_state(level: str) -> str:
    """Return the level of a run that does not go on as one straight through would, though from the same state."""
    return max(level, "state", key=list(_LEVELS).index)


class Resumable(Protocol):
    """An agent, as far as a run needs to know it."""

    def payload(self) -> dict[str, Any]:
        """Everything that learning goes on from, as copies."""


@dataclass(frozen=True)
class _Kept:
    """An agent as it was after an update."""

    payload: dict[str, Any]
    step: int
    best_eval_reward: float | None
    unwritten_best: dict[str, Any] | None
    """Payload of the best policy so far, until it is on disk."""
    periodic: bool
    """Whether it is one of those that the last three are kept of."""


class Run:
    """A run that is going on: rows of metrics, checkpoints, and whoever else is told.

    After every update the agent is kept in memory. However the block ends early (an interruption, an environment that
    fails), what was kept last is written, so that a resumed run begins where the last whole update ended.

    Args:
        files: Its places; no other process may write them meanwhile.
        settings: All its settings, as plain values; kept in every checkpoint.
        numerics: What its floats depend on, see `hardware.numerics`.
        resumed_from: The checkpoint that it goes on from, and what was read from it; None for a fresh run.
        step: Where it begins.
        of_learning: Settings outside the groups by which learning goes on otherwise.
        level: How much of its environments a resumed run has back.
        open_sinks: Opens whoever else is told about every row, once nobody else can be writing the run.

    Raises:
        LockedError: Another process writes the same run.
        ResumeError: Another process has written what it goes on from since that was read.
        FileWriteError: Its places cannot be written.
    """

    def __init__(
        self,
        files: RunFiles,
        settings: dict[str, Any],
        *,
        numerics: dict[str, str],
        resumed_from: tuple[Path, dict[str, Any]] | None = None,
        step: int = 0,
        of_learning: Sequence[str] = (),
        level: str | None = None,
        open_sinks: Callable[[], Sequence[GuardedSink]] = tuple,
    ) -> None:
        self._files, self._settings, self._numerics = files, settings, numerics
        before = {} if resumed_from is None else _facts(*resumed_from)
        best: float | None = before.get("best_eval_reward")
        self._started = time.monotonic() - float(before.get("wall_seconds", 0.0))
        self._resumes = list(before.get("resumes", []))
        self._saved: dict[str, Any] | None = None
        self._failed_saves = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.exclusive())
            if resumed_from is not None:
                files.require_as_read(resumed_from)
                changed = _changed(before.get("settings"), settings, of_learning)
                level = self._same_numerics(before.get("numerics"), level)
                level = _at_most_the_state(level) if changed else level
                self._resumes.append({"step": step, "level": level})
                other = f"; other settings from here on: {', '.join(changed)}" if changed else ""
                notice(f"resuming {resumed_from[0]} at step {step}: {_LEVELS[level]}{other}")
            if resumed_from is not None and files.holds(resumed_from[0]):
                files.rewind(step)
                self._is_best, self._is_periodic = before.get("is_best") is True, before.get("is_periodic") is True
            else:
                files.start_afresh()
                self._is_best, self._is_periodic = False, False
            self._kept = _Kept({}, step, best if self._is_best or files.best.exists() else None, None, periodic=False)
            self._rows = stack.enter_context(contextlib.closing(RowFile(files.metrics)))
            self._sinks = open_sinks()
            self._open = stack.pop_all()

    def _same_numerics(self, before: dict[str, str] | None, level: str | None) -> str:
        known = before or {}
        changed = [f"{name} {known.get(name)}, now {now}" for name, now in self._numerics.items() if known.get(name) != now]
        if level is None or not changed:
            return level or "weights"
        notice(f"not bit for bit what one run straight through would give, as something changed: {'; '.join(changed)}")
        return _at_most_the_state(level)

    @property
    def wall_seconds(self) -> float:
        """Time since the run began, without that between an interruption and a resume."""
        return time.monotonic() - self._started

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one row, and pass it on; rows that cannot be written wait, and never stop a run."""
        self._rows.append({"step": step, "wall_seconds": round(self.wall_seconds, 3), **metrics})
        self._write_rows()
        for sink in self._sinks:
            sink.log(metrics, step)

    def _write_rows(self) -> None:
        try:
            self._rows.flush()
        except FileWriteError as error:
            if self._rows.waiting == 1:
                notice(f"{error}; training goes on, and its rows of metrics wait")

    def _require_rows(self, *, ended: bool) -> None:
        """Say which rows are lost, after a last try; of a run that has ended otherwise that is an error."""
        try:
            self._rows.flush()
        except FileWriteError as error:
            lost = f"{self._rows.waiting} rows of metrics are lost: {error}"
            if not ended:
                notice(lost)
                return
            unwritten = FileWriteError(f"{lost}; the policy is saved")
            unwritten.exit_code = 1
            raise unwritten from error

    def keep(
        self,
        agent: Resumable,
        step: int,
        eval_reward: float | None = None,
        *,
        periodic: bool = False,
        best_is_refused: bool = False,
    ) -> None:
        """Keep the agent in memory as it is after an update whose row is written.

        Args:
            agent: The agent.
            step: Its steps so far.
            eval_reward: Of its evaluation, where it had one; the best agent by it is kept as `best.pt`.
            periodic: Whether `checkpoint` is to follow.
            best_is_refused: Whether the best one so far is not to count any more.
        """
        best, first = None if best_is_refused else self._kept.best_eval_reward, not self._kept.payload
        is_best = self._is_best if first else eval_reward is not None and (best is None or eval_reward >= best)
        if first:  # a save that was cut off may have left the copies of the policy that is resumed unwritten
            periodic = self._is_periodic
        elif is_best:
            best = eval_reward
        beside = {
            "settings": self._settings,
            "numerics": self._numerics,
            "resumes": self._resumes,
            "wall_seconds": self.wall_seconds,
            "best_eval_reward": best,
            "is_best": is_best,
            "is_periodic": periodic,
        }
        payload = {**agent.payload(), "run": beside}
        self._kept = _Kept(payload, step, best, payload if is_best else self._kept.unwritten_best, periodic)

    @property
    def kept(self) -> dict[str, Any]:
        """What was kept last."""
        return self._kept.payload

    @property
    def best_eval_reward(self) -> float | None:
        """The best evaluation so far, where there was one."""
        return self._kept.best_eval_reward

    def save(self) -> None:
        """Write what was kept last to the save path, then its copies: as the best, and as one of the last three, if it is that.

        A resumed run writes the copies of the policy that it goes on from again, as a kill may have come before them.

        Raises:
            FileWriteError: It cannot be written; older files are as they were.
        """
        kept = self._kept
        if self._saved is kept.payload:
            return
        earlier_best = kept.unwritten_best if kept.unwritten_best is not kept.payload else None
        try:
            self._rows.sync()
            if earlier_best is not None:  # first, as a kill may come in between, and no resumed run would come by it again
                write_checkpoint(self._files.best, earlier_best)
            write_checkpoint(self._files.save_path, kept.payload)
            if kept.unwritten_best is kept.payload:
                write_checkpoint(self._files.best, kept.payload)
            if kept.periodic:
                write_checkpoint(self._files.periodic(kept.step), kept.payload)
        except FileWriteError as error:
            error.exit_code = 2 if self._saved is None else 1
            raise
        self._kept = replace(kept, unwritten_best=None)
        self._saved, self._failed_saves = kept.payload, 0
        for path in self._files.all_periodic()[_KEPT_CHECKPOINTS:]:
            remove_file(path)

    def checkpoint(self) -> None:
        """`save`, but that a full disk does not end the run at once.

        Raises:
            FileWriteError: It could not be written for the third time in a row; before that, a notice is all.
        """
        try:
            self.save()
        except FileWriteError as error:
            self._failed_saves += 1
            if self._failed_saves >= _MOST_FAILED_SAVES:
                error.exit_code = 1
                raise
            notice(f"{error}; training goes on, and the next checkpoint tries again")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._open:
            try:
                self._write_rows()
                if error is not None and self._kept.payload:
                    self.save()
                    notice(f"saved at step {self._kept.step}; go on with --resume")
            except FileWriteError as unwritten:
                if isinstance(error, TimeIsUp):  # who set the limit counts on what was learned until then
                    unwritten.exit_code = 1
                    raise
                notice(f"step {self._kept.step} is lost: {unwritten}")
            finally:
                for sink in self._sinks:
                    if isinstance(error, KeyboardInterrupt) and not isinstance(error, TimeIsUp):
                        sink.close_soon(getattr(error, "exit_code", 130))
                    else:
                        sink.close()
            self._require_rows(ended=error is None)
