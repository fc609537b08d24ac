"""What cloning makes small: one loss by name, on tensors for autograd and on arrays with its gradients in closed form.

Raw actions are in units of half the action's range. Losses of a distribution of continuous actions (`nll`, `bounded-nll`,
`kl`) learn a log standard deviation beside the network, one for each component.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss

from il_based_rl.config import BCConfig
from il_based_rl.errors import ConfigError, SpaceMismatchError
from il_based_rl.functional import LOG_TWO_PI
from il_based_rl.heads import ActionHead

Grads = tuple[float, np.ndarray, np.ndarray | None]
"""A loss, and its gradients by the outputs, shape (B, num_outputs), and by the log standard deviation, shape (A,) or None."""

_HUBER_DELTA = 0.1
"""In units of half the action's range: from an error of a twentieth of the whole range on, an error counts linearly."""


class CloningLoss:
    """The loss that a config names, for one kind of action.

    Args:
        config: `loss` and `entropy_coef` are read.
        head: The kind of action.

    Raises:
        ConfigError: The loss does not fit the kind of action.
    """

    def __init__(self, config: BCConfig, head: ActionHead) -> None:
        name = config.loss
        if name == "auto":
            name = "mse" if head.continuous else "cross-entropy"
        fitting = [each for each, kind in _KINDS.items() if head.continuous in kind.continuous]
        if name not in fitting:
            kind_of_action = "continuous" if head.continuous else "discrete"
            raise ConfigError(f"--loss {name} does not fit {kind_of_action} actions; it can be auto, {', '.join(fitting)}")
        of_a_distribution = not head.continuous or _KINDS[name].learns_std
        if config.entropy_coef and not of_a_distribution:
            raise ConfigError(
                f"--entropy-coef needs a loss of a distribution, and {name} has none; choose nll, bounded-nll or kl"
            )
        self._head, self._kind, self._entropy_coef = head, _KINDS[name], config.entropy_coef
        self.learns_std = head.continuous and self._kind.learns_std
        """Whether it learns how widely continuous actions scatter."""

    def targets(self, actions: np.ndarray, distributions: np.ndarray | None) -> np.ndarray:
        """Return what is learned from, one row a transition.

        Args:
            actions: Demonstrated, as the environment takes them. Shape (B, *action).
            distributions: What a data set stores of the expert's distribution. Shape (B, P).

        Raises:
            SpaceMismatchError: The distributions are needed and are not there.
            ValueError: An action or a distribution is none of the head's.
        """
        if not self._kind.from_distribution:
            return self._head.from_env(actions)
        if distributions is None:
            raise SpaceMismatchError(
                "--loss kl needs the expert's distribution of actions, which these demonstrations do not hold; "
                "collect them from an agent of this package that was trained by PPO, or choose another loss"
            )
        return self._head.from_distribution(distributions)

    def loss(self, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: Of the network. Shape (B, num_outputs).
            log_std: Of the raw action. Shape (A,), or None.
            targets: See `targets`.
        """
        loss = self._kind.loss(self._head, outputs, log_std, targets)
        return loss - self._entropy_coef * self._head.entropy(outputs, log_std) if self._entropy_coef else loss

    def grads(self, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
        """Return the same on arrays, with its gradients in closed form."""
        loss, output_grads, log_std_grads = self._kind.grads(self._head, outputs, log_std, targets)
        if self._entropy_coef:
            entropy, by_outputs, by_log_std = self._head.entropy_alone(outputs, log_std)
            loss -= self._entropy_coef * entropy
            if by_outputs is not None:
                output_grads = output_grads - self._entropy_coef * by_outputs
            if by_log_std is not None and log_std_grads is not None:
                log_std_grads = log_std_grads - self._entropy_coef * by_log_std
        return loss, output_grads, log_std_grads


def _plain_loss(head: ActionHead, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    return head.cloning_loss(outputs, targets)


def _plain_grads(head: ActionHead, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    return *head.cloning_grads(outputs, targets), None


def _huber_loss(head: ActionHead, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    return huber_loss(outputs, targets, delta=_HUBER_DELTA)


def _huber_grads(head: ActionHead, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    error = outputs - targets
    near = np.clip(error, -_HUBER_DELTA, _HUBER_DELTA)
    return float(np.vdot(near, error - 0.5 * near)) / error.size, near / error.size, None


def _l1_loss(head: ActionHead, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    return l1_loss(outputs, targets)


def _l1_grads(head: ActionHead, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    error = outputs - targets
    return float(np.abs(error).sum()) / error.size, np.sign(error) / error.size, None


def _nll_loss(head: ActionHead, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    return -head.log_prob(outputs, log_std, targets).mean()


def _nll_grads(head: ActionHead, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    assert log_std is not None
    error, share = outputs - targets, np.exp(-2.0 * log_std)
    share /= len(outputs)
    distances = np.einsum("ba,ba->a", error, error)
    distances *= share
    loss = 0.5 * sum(distances.tolist()) + sum(log_std.tolist()) + 0.5 * LOG_TWO_PI * len(log_std)  # a third of NumPy's time
    error *= share
    return loss, error, 1.0 - distances


def _bounded_loss(head: Any, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    """Negative log-likelihood of a normal that is clipped to the action's bounds, as the environment's action is.

    A label at a bound tells that the raw action was there or beyond, and counts by the probability of that; under a plain
    normal it would pull the mean back to the bound. Source: Tobin (1958), "Estimation of relationships for limited dependent
    variables", https://doi.org/10.2307/1907382.
    """
    assert log_std is not None
    low, high = (torch.from_numpy(bound).to(outputs) for bound in head.raw_bounds)
    at_low, at_high = targets <= low + _AT_BOUND, targets >= high - _AT_BOUND
    inverse = (-log_std).exp()
    inside = -0.5 * ((targets - outputs) * inverse).square() - log_std - 0.5 * LOG_TWO_PI
    # A label at a bound is the bound, so that this is how far the mean lies beyond it.
    beyond = torch.where(at_high, outputs - targets, torch.where(at_low, targets - outputs, torch.zeros_like(outputs)))
    clipped = torch.special.log_ndtr(beyond * inverse)
    return -torch.where(at_low | at_high, clipped, inside).sum(-1).mean()


def _bounded_grads(head: Any, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    from scipy.special import log_ndtr  # 0.1 s that whoever only evaluates or collects need not wait

    assert log_std is not None
    low, high = head.raw_bounds
    at_low, at_high = targets <= low + _AT_BOUND, targets >= high - _AT_BOUND
    at_bound, inverse, rows = at_low | at_high, np.exp(-log_std), len(outputs)
    distance = (targets - outputs) * inverse
    inside = -0.5 * distance * distance - log_std - 0.5 * LOG_TWO_PI
    side = np.where(at_high, 1.0, -1.0)
    beyond = np.where(at_bound, -side * distance, 0.0)
    log_tail = log_ndtr(beyond)
    hazard = np.exp(-0.5 * beyond * beyond - 0.5 * LOG_TWO_PI - log_tail)
    loss = -float(np.where(at_bound, log_tail, inside).sum()) / rows
    by_outputs = np.where(at_bound, side * hazard, distance) * (-inverse / rows)
    by_log_std = np.where(at_bound, -hazard * beyond, distance * distance - 1.0).sum(0) / -rows
    return loss, by_outputs.astype(outputs.dtype), by_log_std.astype(outputs.dtype)


_AT_BOUND = 1e-6
"""A label this close to a bound, in units of half the range, is at it; float32's rounding is a tenth of that."""


def _kl_loss(head: ActionHead, outputs: Tensor, log_std: Tensor | None, targets: Tensor) -> Tensor:
    return head.expert_divergence(outputs, log_std, targets)


def _kl_grads(head: ActionHead, outputs: np.ndarray, log_std: np.ndarray | None, targets: np.ndarray) -> Grads:
    return head.expert_divergence_grads(outputs, log_std, targets)


@dataclass(frozen=True)
class _Kind:
    loss: Callable[[Any, Tensor, Tensor | None, Tensor], Tensor]
    grads: Callable[[Any, np.ndarray, np.ndarray | None, np.ndarray], Grads]
    continuous: tuple[bool, ...]
    """Which kinds of action it fits: continuous (True), discrete (False) or both."""
    learns_std: bool = False
    from_distribution: bool = False


_KINDS = {
    "mse": _Kind(_plain_loss, _plain_grads, (True,)),
    "huber": _Kind(_huber_loss, _huber_grads, (True,)),
    "l1": _Kind(_l1_loss, _l1_grads, (True,)),
    "nll": _Kind(_nll_loss, _nll_grads, (True,), learns_std=True),
    "bounded-nll": _Kind(_bounded_loss, _bounded_grads, (True,), learns_std=True),
    "cross-entropy": _Kind(_plain_loss, _plain_grads, (False,)),
    "kl": _Kind(_kl_loss, _kl_grads, (True, False), learns_std=True, from_distribution=True),
}
