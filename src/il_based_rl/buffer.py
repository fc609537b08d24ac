"""RolloutBuffer: what a policy did and what came of it, from steps to minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from il_based_rl.functional import generalized_advantages
from il_based_rl.heads import in_order, to_tensor

Array = Any
"""A NumPy array, or a tensor."""
_ROUNDING = 1e-6
"""Share of float32 numbers that their mean may be off by."""


@dataclass(frozen=True)
class RolloutBatch:
    """Transitions to learn from, as arrays or as tensors; every field has the batch axis first."""

    normalized: Array
    """Standardised features. Shape (B, O)."""
    raw_actions: Array
    """Unbounded, or counted from 0. Shape (B, num_actions)."""
    log_probs: Array
    """Log-probabilities under the policy that acted. Shape (B,)."""
    advantages: Array
    """Shape (B,), in the scaled reward's unit."""
    returns: Array
    """Targets of the critic. Shape (B,), in the scaled reward's unit."""

    def __len__(self) -> int:
        return len(self.advantages)

    def minibatches(self, batch_size: int, random: np.random.Generator) -> Iterator[RolloutBatch]:
        """Yield every transition once in a fresh order, `batch_size` at a time; the last one holds what is left.

        The batch is permuted as a whole, so that each minibatch is a contiguous view. Advantages come out standardised
        within their minibatch.
        """
        order = random.permutation(len(self))
        shuffled = [in_order(getattr(self, each.name), order) for each in fields(self)]
        shuffled[3] = _standardized_in_groups(shuffled[3], batch_size)
        for start in range(0, len(self), batch_size):
            yield RolloutBatch(*(column[start : start + batch_size] for column in shuffled))

    def to(self, device: torch.device) -> RolloutBatch:
        """Return the batch as tensors on a device."""
        return RolloutBatch(*(to_tensor(getattr(self, each.name), device) for each in fields(self)))


def _standardized_in_groups(values: Array, size: int) -> Array:
    """Subtract from each run of `size` values their mean, and divide by their standard deviation."""
    whole = len(values) // size * size
    for part in (values[:whole].reshape(-1, size), values[whole:].reshape(1, -1)):
        if part.shape[1] > 0:  # in words that arrays and tensors share
            mean = part.mean(1)
            part -= mean[:, None]
            std = (part * part).mean(1) ** 0.5
            part *= (std > _ROUNDING * abs(mean))[:, None]  # of equal values only the mean's own rounding is left
            part /= (std + 1e-8)[:, None]
    return values


@dataclass
class RolloutBuffer:
    """T steps of N environments, as NumPy arrays that are filled step by step and reused from rollout to rollout.

    Args:
        num_steps: T.
        num_envs: N.
        num_features: O.
        num_actions: Columns of a raw action.
        raw_dtype: Number type of a raw action.
    """

    num_steps: int
    num_envs: int
    num_features: int
    num_actions: int
    raw_dtype: np.dtype
    features: np.ndarray = field(init=False)
    """Of the observation that was acted upon. Shape (T, N, O), float32."""
    raw_actions: np.ndarray = field(init=False)
    """Shape (T, N, num_actions)."""
    rewards: np.ndarray = field(init=False)
    """Raw. Shape (T, N), float64."""
    terminated: np.ndarray = field(init=False)
    """Shape (T, N), bool."""
    truncated: np.ndarray = field(init=False)
    """Shape (T, N), bool."""
    valid: np.ndarray = field(init=False)
    """False for the fake transition that some vector environments insert after an episode. Shape (T, N), bool."""
    truncations: list[tuple[int, int]] = field(init=False)
    """Step and environment of each truncation that is no termination."""
    final_features: list[np.ndarray] = field(init=False)
    """Of the observation that each of these episodes ended in. Shape (O,) each."""

    def __post_init__(self) -> None:
        shape = (self.num_steps, self.num_envs)
        self.features = np.zeros((*shape, self.num_features), np.float32)
        self.raw_actions = np.zeros((*shape, self.num_actions), self.raw_dtype)
        self.rewards = np.zeros(shape)
        self.terminated, self.truncated, self.valid = (np.zeros(shape, bool) for _ in range(3))
        self.clear()

    def clear(self) -> None:
        """Forget the last rollout's truncations; all else is overwritten by the next one."""
        self.truncations, self.final_features = [], []

    @property
    def done(self) -> np.ndarray:
        """Whether an episode ended with the step, for whatever reason. Shape (T, N), bool."""
        return self.terminated | self.truncated

    def flat(self, array: np.ndarray) -> np.ndarray:
        """Join the step and environment axes of an array, (T, N, ...) to (B, ...), without fake transitions."""
        joined = array.reshape(self.num_steps * self.num_envs, *array.shape[2:])
        return joined if self.valid.all() else joined[self.valid.ravel()]

    def advantages(
        self,
        rewards: np.ndarray,
        values: np.ndarray,
        final_values: np.ndarray,
        last_values: np.ndarray,
        *,
        gamma: float,
        gae_lambda: float,
    ) -> np.ndarray:
        """Estimate the advantages of the whole rollout.

        Args:
            rewards: As the critic knows them, that is scaled. Shape (T, N).
            values: Of the observations acted upon. Shape (T, N).
            final_values: Of the observations that the truncated episodes ended in, in the order of `truncations`.
            last_values: Of the observations that follow the last step. Shape (N,).
            gamma: Discount per step, in [0, 1].
            gae_lambda: Mixing weight, in [0, 1].

        Returns:
            Shape (T, N).
        """
        next_values = np.concatenate([values[1:], last_values[None]])
        for place, value in zip(self.truncations, final_values, strict=True):
            next_values[place] = value
        return generalized_advantages(
            rewards, values, next_values, self.terminated, self.truncated, gamma=gamma, gae_lambda=gae_lambda
        )
