"""What stepping many environments means, whoever steps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


@dataclass
class StepRecord:
    """What one step of N environments led to. Its arrays may be overwritten by the next step."""

    rows: np.ndarray
    """Observations to act upon next: after an episode's end the first ones of the next. Shape (N, *row)."""
    rewards: np.ndarray
    """Shape (N,), float64."""
    terminated: np.ndarray
    """Shape (N,), bool."""
    truncated: np.ndarray
    """Shape (N,), bool."""
    final_rows: dict[int, np.ndarray]
    """Observation that an episode ended in, by environment."""
    valid: np.ndarray
    """False where no step was taken, as the environment was being reset. Shape (N,), bool."""


class Envs(Protocol):
    """N environments stepped side by side, each starting its next episode by itself."""

    num_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each; return the rows, shape (N, *row)."""

    def step(self, actions: np.ndarray) -> StepRecord:
        """Step each with its action, shape (N, *action)."""

    def close(self) -> None:
        """Close them all."""

    def __enter__(self) -> Envs:
        """Return itself; the environments are closed when the block ends."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close them all."""
