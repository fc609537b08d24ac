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


EXACT, FROM_EPISODE, FROM_WEIGHTS = "exact", "episode", "weights"
"""How much of the environments a resumed run has back: everything; their generators, with new episodes; nothing."""
LEVELS = (EXACT, FROM_EPISODE, FROM_WEIGHTS)


@dataclass(frozen=True)
class EnvState:
    """A moment in an environment's life, as what leads to it; what is inside most environments cannot be read or written."""

    seed: int
    """Of the last reset that was given one."""
    episode: int
    """Episodes begun since then, the running one included."""
    generator_at_reset: dict[str, Any] | None
    """State of the environment's random generator when the running episode began; None where `seed` began it."""
    generator: dict[str, Any]
    """State of that generator now."""
    actions: np.ndarray | None
    """Actions of the running episode, shape (steps, *action); None where they are too many to keep."""
    row: np.ndarray
    """The present observation. Shape (*row,)."""
    total_reward: float | None = None
    """Of the running episode's steps; None where it was not kept."""


class Envs(Protocol):
    """N environments stepped side by side, each starting its next episode by itself."""

    num_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each; return the rows, shape (N, *row)."""

    def step(self, actions: np.ndarray) -> StepRecord:
        """Step each with its action, shape (N, *action)."""

    def states(self) -> list[EnvState | None]:
        """Return what `restore` needs to come back to this moment; None for an environment of which nothing can be known."""

    def restore(self, states: Sequence[EnvState]) -> tuple[np.ndarray, list[str]]:
        """Come back to a moment; return the rows, shape (N, *row), and how much of each environment is back."""

    def close(self) -> None:
        """Close them all."""

    def __enter__(self) -> Envs:
        """Return itself; the environments are closed when the block ends."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close them all."""
