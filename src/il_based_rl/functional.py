"""Returns and losses as pure functions: no state, no environment, no configuration.

Axis letters: T steps, N environments, B batch, A action size, K discrete choices. Log-probabilities and entropies are in
nats, summed over the components of an action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, softplus

LOG_TWO_PI = math.log(2.0 * math.pi)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    *,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Estimate how much better each action was than the policy's average.

    With `delta[t] = rewards[t] + gamma * next_values[t] - values[t]`, where the next value counts as 0 after termination:

        advantages[t] = delta[t] + gamma * gae_lambda * advantages[t + 1]

    and the sum stops at the end of an episode. `gae_lambda=0` is the one-step error (low variance, biased by `values`);
    `gae_lambda=1` is the Monte Carlo return minus the value.

    Args:
        rewards: Reward received after each step. Shape (T, N).
        values: Value of the observation acted upon. Shape (T, N), discounted reward.
        next_values: Value of the observation that the step truly led to; at a truncation that is the final observation
            of the episode, not the first one of the next. Shape (T, N).
        terminated: The task ended, so nothing follows. It wins where both are set. Shape (T, N), bool.
        truncated: The clock ran out: the future still counts, but is not observed. Shape (T, N), bool.
        gamma: Discount per step, in [0, 1].
        gae_lambda: Mixing weight, in [0, 1].

    Returns:
        Advantages, not normalised. Shape (T, N). Add `values` for the targets of the value function.

    Raises:
        ValueError: The five arrays differ in shape, for example when values keep a trailing axis of size 1; squeeze it.

    Source:
        Schulman et al. (2016), "High-dimensional continuous control using generalized advantage estimation", section 3,
        https://arxiv.org/abs/1506.02438. Differs: the paper has one kind of ending.

    Example:
        Three steps of one environment, cut by the time limit where the next observation is worth 4:

        >>> column = lambda *x: np.array(x)[:, None]
        >>> generalized_advantages(
        ...     rewards=column(1.0, 1.0, 1.0),
        ...     values=column(0.0, 0.0, 0.0),
        ...     next_values=column(0.0, 0.0, 4.0),
        ...     terminated=column(False, False, False),
        ...     truncated=column(False, False, True),
        ...     gamma=0.5,
        ...     gae_lambda=0.5,
        ... )[:, 0].tolist()
        [1.4375, 1.75, 3.0]
    """
    shapes = {array.shape for array in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1:
        raise ValueError(f"all five arrays need one shape (T, N), got {sorted(shapes)}; squeeze what has a further axis")
    deltas = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    carry = gamma * gae_lambda * ~(terminated | truncated)
    backwards = _linear_recurrence(carry[::-1], deltas[::-1], np.zeros(deltas.shape[1]))
    return backwards[::-1]


def _linear_recurrence(factors: np.ndarray, terms: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return x[t] = terms[t] + factors[t] * x[t - 1] for each column, shape (T, N), where x[-1] is `before`.

    In Python's own numbers, a column at a time: for a few environments a NumPy call for each step takes twenty times as long.
    """
    columns = [
        list(itertools.accumulate(zip(factor, term, strict=True), lambda x, step: step[1] + step[0] * x, initial=first))[1:]
        for factor, term, first in zip(factors.T.tolist(), terms.T.tolist(), before.tolist(), strict=True)
    ]
    return np.array(columns).T


def discounted_sums(rewards: np.ndarray, done: np.ndarray, before: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Sum the rewards seen so far in each episode, older ones discounted.

        sums[t] = gamma * sums[t - 1] + rewards[t],   with sums[t - 1] = 0 at the start of an episode

    Args:
        rewards: Shape (T, N).
        done: The episode ended with this step, for whatever reason. Shape (T, N), bool.
        before: The running sums that these steps continue. Shape (N,).
        gamma: Discount per step, in [0, 1].

    Returns:
        The sums, shape (T, N), and the running sums to continue from, shape (N,).
    """
    starts = np.zeros_like(done)
    starts[1:] = done[:-1]
    sums = _linear_recurrence(gamma * ~starts, rewards, before)
    return sums, np.where(done[-1], 0.0, sums[-1])


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of unbounded actions under independent normals.

    Args:
        mean: Shape (B, A).
        log_std: Logarithm of the standard deviation. Shape (A,).
        actions: Not clipped to any bounds. Shape (B, A).

    Returns:
        Shape (B,).
    """
    standardized = (actions - mean) * torch.exp(-log_std)
    return -0.5 * standardized.square().sum(-1) - log_std.sum() - 0.5 * LOG_TWO_PI * mean.shape[-1]


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of independent normals, a scalar; it does not depend on the mean."""
    return log_std.sum() + 0.5 * (1.0 + LOG_TWO_PI) * log_std.shape[-1]


def categorical_log_prob(logits: Tensor, actions: Tensor, choices: Sequence[int]) -> Tensor:
    """Log-probability of one choice from each of several lists.

    Args:
        logits: The lists side by side. Shape (B, sum(choices)).
        actions: Index into each list, from 0. Shape (B, K), integer.
        choices: Length of each list; K numbers.

    Returns:
        Shape (B,).
    """
    parts = [
        log_softmax(part, -1).gather(-1, actions[:, k : k + 1]) for k, part in enumerate(torch.split(logits, list(choices), -1))
    ]
    return torch.cat(parts, -1).sum(-1)


def categorical_entropy(logits: Tensor, choices: Sequence[int]) -> Tensor:
    """Entropy of independent choices from several lists. Shapes as in `categorical_log_prob`; returns (B,)."""
    log_probs = [log_softmax(part, -1) for part in torch.split(logits, list(choices), -1)]
    return -torch.cat([part.exp() * part for part in log_probs], -1).sum(-1)


def categorical_divergence(logits: Tensor, others: Tensor, choices: Sequence[int]) -> Tensor:
    """Kullback-Leibler divergence KL(logits || others) of independent choices. Returns (B,)."""
    parts = [torch.split(each, list(choices), -1) for each in (logits, others)]
    pairs = [(log_softmax(one, -1), log_softmax(other, -1)) for one, other in zip(*parts, strict=True)]
    return torch.cat([one.exp() * (one - other) for one, other in pairs], -1).sum(-1)


def bernoulli_log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of independent bits. Args: logits, shape (B, A); actions, 0 or 1, shape (B, A). Returns (B,)."""
    return -binary_cross_entropy_with_logits(logits, actions, reduction="none").sum(-1)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of independent bits. Args: logits, shape (B, A). Returns (B,)."""
    return (softplus(logits) - logits * torch.sigmoid(logits)).sum(-1)


def bernoulli_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(logits || others) of independent bits. Args: both of shape (B, A). Returns (B,)."""
    return (torch.sigmoid(logits) * (logits - others) + softplus(others) - softplus(logits)).sum(-1)


def ppo_clip_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate, negated so that smaller is better.

        loss = -mean(min(ratio * advantages, clip(ratio, 1 - clip_range, 1 + clip_range) * advantages))

    Args:
        log_probs: Of the actions under the policy that learns. Shape (B,).
        old_log_probs: Of the same actions under the policy that acted. Shape (B,).
        advantages: Shape (B,).
        clip_range: Half-width of the trust interval around a ratio of 1, above 0.

    Returns:
        The loss, and the measures `approx_kl` (nats, the estimator `mean(ratio - 1 - log(ratio))` of
        http://joschu.net/blog/kl-approx.html) and `clip_fraction` (share of ratios outside the interval).

    Source:
        Schulman et al. (2017), "Proximal policy optimization algorithms", eq. (7), https://arxiv.org/abs/1707.06347.

    Example:
        A ratio of 2 with a positive advantage counts as 1.2 only:

        >>> two, one = torch.log(torch.tensor([2.0])), torch.zeros(1)
        >>> round(ppo_clip_loss(two, one, torch.ones(1), clip_range=0.2)[0].item(), 6)
        -1.2
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = -torch.min(ratio * advantages, clipped * advantages).mean()
    with torch.no_grad():
        metrics = {
            "approx_kl": (ratio - 1.0 - log_ratio).mean(),
            "clip_fraction": (ratio != clipped).float().mean(),
        }
    return loss, metrics


def ppo_clip_grads(
    log_probs: np.ndarray, old_log_probs: np.ndarray, advantages: np.ndarray, clip_range: float
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """`ppo_clip_loss` in closed form: its gradient by the log-probabilities, shape (B,), with the loss and its two measures.

    gradient = -ratio * advantages / B   where the surrogate is not clipped, else 0
    """
    rows = len(log_probs)
    log_ratio = log_probs - old_log_probs
    ratio = np.exp(log_ratio)
    trusted = np.minimum(np.maximum(ratio, 1.0 - clip_range), 1.0 + clip_range)
    surrogate, clipped = ratio * advantages, trusted * advantages
    loss = -float(np.add.reduce(np.minimum(surrogate, clipped))) / rows
    approx_kl = float(np.add.reduce(ratio - log_ratio)) / rows - 1.0
    clip_fraction = np.count_nonzero(ratio != trusted) / rows
    surrogate *= surrogate <= clipped
    surrogate *= -1.0 / rows
    return surrogate, (loss, approx_kl, clip_fraction)


def value_grads(values: np.ndarray, returns: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the gradient of the mean squared error by the values, shape (B,), and the error itself."""
    rows, errors = len(values), values - returns
    loss = float(np.dot(errors, errors)) / rows
    errors *= 2.0 / rows
    return errors, loss


def explained_variance(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of the targets' variance that the predictions account for: 1 is perfect, 0 no better than a constant.

    NaN where the targets do not vary, or there are none.

    Example:
        >>> explained_variance(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
        1.0
    """
    variance = float(np.var(targets)) if len(targets) else 0.0
    return math.nan if variance == 0.0 else 1.0 - float(np.var(targets - predictions)) / variance
