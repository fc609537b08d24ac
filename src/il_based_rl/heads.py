"""What a policy does: from a network's outputs to actions that an environment takes, and how likely they are.

One small class for each kind of action, with the same methods and no base class. Three forms of an action are told apart:
the network's *outputs* (B, num_outputs); the *raw action* that learning reasons about (B, num_actions), unbounded or counted
from 0; and the *action* of the environment, of its space's shape, number type and bounds.

Sampling adds noise to the outputs and takes the most likely raw action of the result, whatever the kind.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import mse_loss

from il_based_rl.errors import UnsupportedSpaceError
from il_based_rl.functional import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_log_prob,
    gaussian_entropy,
    gaussian_log_prob,
)

_UNBOUNDED = 1e10
"""Bounds of this magnitude (some spaces say float32's largest number for "any") give an action no scale."""


class ActionHead(Protocol):
    """The methods that every kind of action has."""

    num_outputs: int
    num_actions: int
    continuous: bool
    raw_dtype: np.dtype

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """Most likely raw actions."""

    def noise(self, random: np.random.Generator, shape: tuple[int, ...], log_std: np.ndarray | None) -> np.ndarray:
        """Noise of shape (*shape, num_outputs) such that `mode(outputs + noise)` is a sample of the distribution."""

    def to_env(self, raw: np.ndarray) -> np.ndarray:
        """Raw actions as the environment takes them, each inside its space."""

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the environment as raw ones, to learn from; ValueError where one is outside the space."""

    def log_prob(self, outputs: Tensor, log_std: Tensor | None, raw: Tensor) -> Tensor:
        """Log-probability of raw actions, shape (B,), in nats."""

    def entropy(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """Mean entropy of the batch, a scalar, in nats."""

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """How far the outputs are from demonstrated raw actions, a scalar."""


class GaussianHead:
    """Box actions under independent normals, whose means are the network's outputs.

    The policy samples an unbounded raw action, and log-probabilities are of that one; the environment gets
    `clip(centre + half_range * raw, low, high)`. Where both bounds are finite, centre and half range are theirs, so that raw
    actions in [-1, 1] span the space whatever its units; elsewhere they are 0 and 1. Whole-number spaces get it rounded.
    """

    continuous = True
    raw_dtype: np.dtype = np.dtype(np.float32)

    def __init__(self, space: spaces.Box) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        self.num_outputs = self.num_actions = int(np.prod(space.shape, dtype=int))
        low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
        finite = (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED) & (high > low)
        self._centre = np.zeros_like(low)
        self._half_range = np.ones_like(low)
        self._centre[finite] = 0.5 * (low[finite] + high[finite])
        self._half_range[finite] = 0.5 * (high[finite] - low[finite])
        self._low, self._high = space.low.ravel(), space.high.ravel()
        self._whole = not np.issubdtype(np.dtype(space.dtype), np.floating)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """Most likely raw actions: the means."""
        return outputs

    def noise(self, random: np.random.Generator, shape: tuple[int, ...], log_std: np.ndarray | None) -> np.ndarray:
        """Normal noise of the policy's standard deviation; a policy that learned none has none."""
        if log_std is None:
            return np.zeros((*shape, self.num_outputs), np.float32)
        return random.standard_normal((*shape, self.num_outputs), np.float32) * np.exp(log_std)

    def to_env(self, raw: np.ndarray) -> np.ndarray:
        """Scale, clip and shape raw actions, (B, A) to (B, *space.shape)."""
        actions = raw * self._half_range
        actions += self._centre
        if self._whole:
            actions = np.rint(actions)
        actions = np.minimum(np.maximum(actions, self._low), self._high)
        return actions.astype(self._dtype).reshape(-1, *self._shape)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Undo the scaling, (B, *space.shape) to (B, A)."""
        return ((actions.reshape(len(actions), -1) - self._centre) / self._half_range).astype(np.float32)

    def log_prob(self, outputs: Tensor, log_std: Tensor | None, raw: Tensor) -> Tensor:
        """Log-density of unbounded raw actions."""
        assert log_std is not None
        return gaussian_log_prob(outputs, log_std, raw)

    def entropy(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """Entropy of the unbounded raw action."""
        assert log_std is not None
        return gaussian_entropy(log_std)

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Mean squared error, in units of half the action's range."""
        return mse_loss(outputs, raw)


class CategoricalHead:
    """Discrete and MultiDiscrete actions: one choice from each of several lists, whose logits lie side by side."""

    continuous = False
    raw_dtype: np.dtype = np.dtype(np.int64)

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        self._shape, self._dtype = space.shape or (), space.dtype
        self._start = np.asarray(space.start, np.int64).ravel()
        self._choices = [int(n) for n in np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)]
        self._edges = np.cumsum(self._choices)[:-1]
        self.num_outputs, self.num_actions = sum(self._choices), len(self._choices)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """Index of the largest logit of each list."""
        if self.num_actions == 1:
            return outputs.argmax(-1)[..., None]
        return np.stack([part.argmax(-1) for part in np.split(outputs, self._edges, axis=-1)], -1)

    def noise(self, random: np.random.Generator, shape: tuple[int, ...], log_std: np.ndarray | None) -> np.ndarray:
        """Gumbel noise: the largest of the disturbed logits is distributed by their softmax."""
        return random.gumbel(size=(*shape, self.num_outputs)).astype(np.float32)

    def to_env(self, raw: np.ndarray) -> np.ndarray:
        """Count from the space's own start, (B, K) to (B, *space.shape)."""
        return (raw + self._start).astype(self._dtype).reshape(-1, *self._shape)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Count from 0, (B, *space.shape) to (B, K)."""
        raw = actions.reshape(len(actions), -1).astype(np.int64) - self._start
        if ((raw < 0) | (raw >= self._choices)).any():
            raise ValueError(f"an action is outside the space of {self._choices} choices from {self._start.tolist()} on")
        return raw

    def log_prob(self, outputs: Tensor, log_std: Tensor | None, raw: Tensor) -> Tensor:
        """Log-probability of all choices together."""
        return categorical_log_prob(outputs, raw, self._choices)

    def entropy(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """Mean entropy of all choices together."""
        return categorical_entropy(outputs, self._choices).mean()

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Cross-entropy of all choices together."""
        return -categorical_log_prob(outputs, raw, self._choices).mean()


class BernoulliHead:
    """MultiBinary actions: independent bits with one logit each."""

    continuous = False
    raw_dtype: np.dtype = np.dtype(np.float32)

    def __init__(self, space: spaces.MultiBinary) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        self.num_outputs = self.num_actions = int(np.prod(space.shape, dtype=int))

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """1 where the logit is positive."""
        return (outputs > 0).astype(np.float32)

    def noise(self, random: np.random.Generator, shape: tuple[int, ...], log_std: np.ndarray | None) -> np.ndarray:
        """Logistic noise: the disturbed logit is positive with the probability that its sigmoid gives."""
        return random.logistic(size=(*shape, self.num_outputs)).astype(np.float32)

    def to_env(self, raw: np.ndarray) -> np.ndarray:
        """Shape the bits, (B, A) to (B, *space.shape)."""
        return raw.astype(self._dtype).reshape(-1, *self._shape)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Flatten the bits, (B, *space.shape) to (B, A)."""
        if not np.isin(actions, (0, 1)).all():
            raise ValueError("an action of bits is neither 0 nor 1")
        return actions.reshape(len(actions), -1).astype(np.float32)

    def log_prob(self, outputs: Tensor, log_std: Tensor | None, raw: Tensor) -> Tensor:
        """Log-probability of all bits together."""
        return bernoulli_log_prob(outputs, raw)

    def entropy(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """Mean entropy of all bits together."""
        return bernoulli_entropy(outputs).mean()

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Cross-entropy of all bits together."""
        return -bernoulli_log_prob(outputs, raw).mean()


def action_head(space: gym.Space[Any]) -> ActionHead:
    """Return the head for an action space.

    Raises:
        UnsupportedSpaceError: The space is none of Box, Discrete, MultiDiscrete and MultiBinary.
    """
    if isinstance(space, spaces.Box) and np.prod(space.shape, dtype=int) > 0:
        return GaussianHead(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return CategoricalHead(space)
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(space)
    raise UnsupportedSpaceError(
        f"action space {space} is not supported; expected Box, Discrete, MultiDiscrete or MultiBinary "
        "(a gymnasium.ActionWrapper can translate it)"
    )


def to_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """Move an array to a device as a tensor; on a CPU the memory is shared."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
