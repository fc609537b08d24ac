"""Whoever else is told about a run's rows, and never able to stop it."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from il_based_rl.cli import notice
from il_based_rl.config import TrackingConfig
from il_based_rl.experiment.wandb_sink import WandbSink, require_wandb

_CLOSING_SECONDS = 1.0


class Sink(Protocol):
    """Told about every row."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one row."""

    def close(self) -> None:
        """Take no more."""


class GuardedSink:
    """Passes rows on to a sink until its first failure, which switches it off with a notice.

    Args:
        name: What it is called in that notice.
        make: Makes the sink; that may fail too.
    """

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._guarded(lambda: setattr(self, "_sink", make()))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        if (sink := self._sink) is not None:
            self._guarded(lambda: sink.log(metrics, step))

    def close(self) -> None:
        """See `Sink`; an interruption ends the waiting, and goes on."""
        if (sink := self._sink) is not None:
            try:
                self._guarded(sink.close)
            except KeyboardInterrupt as interruption:
                self.close_soon(getattr(interruption, "exit_code", 130))
                raise

    def close_soon(self, exit_code: int) -> None:
        """Close it within a second, as somebody wants the process to end; what it has not passed on by then is left.

        Args:
            exit_code: What the process then ends with, where the sink's own package would go on waiting at its end.
        """
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        atexit.register(_leave_if_alive, closing, exit_code)  # which comes before what was registered before it
        closing.join(_CLOSING_SECONDS)
        if closing.is_alive():
            notice(f"{self._name} is still sending, and is not waited for")

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever a service does, training goes on
            self._sink = None
            notice(f"{self._name} failed and is switched off; training goes on: {' '.join(str(error).split())}")


def _leave_if_alive(closing: threading.Thread, exit_code: int) -> None:
    if closing.is_alive():
        sys.stdout.flush()
        os._exit(exit_code)


class TensorBoardSink:
    """Rows as TensorBoard's scalars.

    Args:
        folder: Where its files go.
        step: Where the run begins; what an earlier attempt has written after that is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ImportError('it needs the package tensorboard: pip install "il_based_rl[tensorboard]"') from error
        self._writer: Any = module.SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


def require_tracking(tracking: TrackingConfig) -> None:
    """Raise MissingExtraError now if Weights & Biases is asked for and not there; of TensorBoard `open_sinks` gives notice."""
    if tracking.wandb:
        require_wandb()


def open_sinks(tracking: TrackingConfig, settings: Mapping[str, Any], label: str, folder: Path, step: int) -> list[GuardedSink]:
    """Open those that are wanted.

    Args:
        tracking: Which.
        settings: All hyperparameters.
        label: Stands in Weights & Biases' default run name: `<env>_<steps>`.
        folder: The run's.
        step: Where the run begins.
    """
    sinks = []
    if tracking.wandb:
        sinks.append(GuardedSink("Weights & Biases", lambda: WandbSink(tracking, settings, label)))
    if tracking.tensorboard:
        sinks.append(GuardedSink("TensorBoard", lambda: TensorBoardSink(folder / "tensorboard", step)))
    return sinks
