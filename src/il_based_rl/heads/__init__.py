"""What a policy does: from a network's outputs to actions that an environment takes, and how likely they are.

One small class for each kind of action, with the same methods and no base class. Three forms of an action are told apart:
the network's *outputs* (B, num_outputs); the *raw action* that learning reasons about (B, num_actions), unbounded or counted
from 0; and the *action* of the environment, of its space's shape, number type and bounds.

Sampling adds noise to the outputs and takes the most likely raw action of the result, whatever the kind. What learning needs is
there twice: on tensors, for autograd, and on arrays with gradients in closed form, for the fast path.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from il_based_rl.errors import UnsupportedSpaceError
from il_based_rl.heads.bernoulli import BernoulliHead
from il_based_rl.heads.categorical import CategoricalHead
from il_based_rl.heads.gaussian import GaussianHead


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
        """Actions of the environment as raw ones, to learn from; ValueError where a discrete one is not of the space."""

    def log_prob(self, outputs: Tensor, log_std: Tensor | None, raw: Tensor) -> Tensor:
        """Log-probability of raw actions, shape (B,), in nats."""

    def entropy(self, outputs: Tensor, log_std: Tensor | None) -> Tensor:
        """Mean entropy of the batch, a scalar, in nats."""

    def divergence(self, outputs: Tensor, others: Tensor, log_std: Tensor | None) -> Tensor:
        """Mean Kullback-Leibler divergence from the distributions of `others` to those of `outputs`, a scalar, in nats."""

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """How far the outputs are from demonstrated raw actions, a scalar."""

    def distribution(self, outputs: np.ndarray, log_std: np.ndarray | None) -> np.ndarray | None:
        """Parameters of the distribution, shape (B, P), as a data set stores them; None where no deviation is known."""

    def from_distribution(self, parameters: np.ndarray) -> np.ndarray:
        """What `expert_divergence` reads, of `distribution`'s parameters; ValueError if there are not as many as wanted."""

    def expert_divergence(self, outputs: Tensor, log_std: Tensor | None, expert: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence KL(expert || policy), a scalar, in nats."""

    def score(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> tuple[np.ndarray, float, Any]:
        """Log-probabilities, shape (B,), as `log_prob`; mean entropy, as `entropy`; and what the gradients are made of."""

    def score_grads(self, kept: Any, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Gradients of `sum(weights * log_probs)` by the outputs, and by the log standard deviation where there is one."""

    def entropy_grads(self, kept: Any) -> tuple[np.ndarray | None, float | None]:
        """Gradients of the mean entropy by the outputs and by each log standard deviation; None for zero."""

    def entropy_alone(self, outputs: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray | None, float | None]:
        """The mean entropy, and its gradients as `entropy_grads` gives them, where no action is scored."""

    def divergence_grads(self, outputs: np.ndarray, others: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray]:
        """The divergence, as `divergence`, and its gradient by the outputs."""

    def cloning_grads(self, outputs: np.ndarray, raw: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss, as `cloning_loss`, and its gradient by the outputs."""

    def expert_divergence_grads(
        self, outputs: np.ndarray, log_std: np.ndarray | None, expert: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """The loss, as `expert_divergence`, and its gradients by the outputs and by the log standard deviation."""


def action_head(space: gym.Space[Any]) -> ActionHead:
    """Return the head for an action space.

    Raises:
        UnsupportedSpaceError: The space is none of Box, Discrete, MultiDiscrete and MultiBinary, or empty, or of longer numbers
            than 64 bits.
    """
    if isinstance(space, spaces.Box) and np.prod(space.shape, dtype=int) > 0 and np.dtype(space.dtype).itemsize <= 8:
        return GaussianHead(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return CategoricalHead(space)
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(space)
    raise UnsupportedSpaceError(
        f"action space {space} is not supported; expected Box, Discrete, MultiDiscrete or MultiBinary, of 64 bits a number at "
        "most (a gymnasium.ActionWrapper can translate it)"
    )


def to_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """Move an array to a device as a tensor; on a CPU the memory is shared."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def in_order(values: Any, order: np.ndarray) -> Any:
    """Return the rows of an array or a tensor in another order."""
    if isinstance(values, Tensor):
        return values[torch.from_numpy(order).to(values.device)]
    return values.take(order, 0)  # a quarter of the time of an index
