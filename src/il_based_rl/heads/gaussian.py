"""Continuous actions."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import mse_loss

from il_based_rl.functional import LOG_TWO_PI, gaussian_entropy, gaussian_log_prob

_UNBOUNDED = 1e10
"""Bounds of this magnitude (some spaces say float32's largest number for "any") give an action no scale."""

_Kept = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Distance from the mean and its square, shape (B, A) each; the inverse of the variance, shape (A,)."""


class GaussianHead:
    """Box actions under independent normals, whose means are the network's outputs.

    The policy samples an unbounded raw action, and log-probabilities are of that one; the environment gets
    `clip(centre + half_range * raw, low, high)`. Where both bounds are finite, centre and half range are theirs, so that raw
    actions in [-1, 1] span the space whatever its units; where they are the same, the half range is 1. Elsewhere it is 1 too,
    and the centre is 1 inside a single bound, or 0. Whole-number spaces get it rounded.
    """

    continuous = True
    raw_dtype: np.dtype = np.dtype(np.float32)

    def __init__(self, space: spaces.Box) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        self.num_outputs = self.num_actions = int(np.prod(space.shape, dtype=int))
        self._whole = not np.issubdtype(np.dtype(space.dtype), np.floating)
        number = np.dtype(np.float64) if self._whole else np.result_type(space.dtype, np.float32)
        low, high = (bound.reshape(1, -1).astype(number) for bound in (space.low, space.high))  # one row: quicker than none
        above, below = np.abs(low) < _UNBOUNDED, np.abs(high) < _UNBOUNDED
        finite = above & below
        ranged = finite & (high > low)
        self._centre = np.where(above & ~below, low + 1, np.where(below & ~above, high - 1, np.zeros_like(low)))
        self._half_range = np.ones_like(low)
        self._centre[finite] = 0.5 * (low[finite] + high[finite])
        self._half_range[ranged] = 0.5 * (high[ranged] - low[ranged])
        self._low, self._high = low, high
        self._centred = not self._centre.any()  # the common case, which saves an addition a step
        self._whole_bounds = space.low.reshape(1, -1), space.high.reshape(1, -1)
        with np.errstate(over="ignore"):  # "any" may be more than float32 holds
            self.raw_bounds = tuple(((bound - self._centre) / self._half_range).astype(np.float32) for bound in (low, high))
        """Raw actions from which on the environment's is clipped, below and above. Shape (1, A) each."""

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
        actions: np.ndarray = raw * self._half_range
        if not self._centred:
            actions += self._centre
        actions = self._rounded(actions) if self._whole else np.minimum(np.maximum(actions, self._low), self._high)
        if actions.dtype == self._dtype and len(self._shape) == 1:
            return actions  # the common case, which saves two calls a step
        return actions.astype(self._dtype, copy=False).reshape(len(actions), *self._shape)

    def _rounded(self, actions: np.ndarray) -> np.ndarray:
        """Round and clip to whole-number bounds, which a float need not be able to tell apart."""
        low, high = self._whole_bounds
        inside = (actions > self._low) & (actions < self._high)
        whole = np.where(inside, np.rint(actions), 0.0).astype(self._dtype)
        return np.where(actions >= self._high, high, np.where(inside, np.clip(whole, low, high), low))

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

    def divergence(self, outputs: Tensor, others: Tensor, log_std: Tensor | None) -> Tensor:
        """Half the squared distance of the means in standard deviations, which both have alike; they do not learn from it."""
        assert log_std is not None
        return 0.5 * (((outputs - others) / log_std.detach().exp()) ** 2).sum(-1).mean()

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Mean squared error, in units of half the action's range."""
        return mse_loss(outputs, raw)

    def distribution(self, outputs: np.ndarray, log_std: np.ndarray | None) -> np.ndarray | None:
        """Mean and standard deviation of the unbounded action side by side, in the environment's units."""
        if log_std is None:
            return None
        stds = np.broadcast_to(np.exp(log_std), outputs.shape)
        return np.concatenate([outputs * self._half_range + self._centre, stds * self._half_range], -1).astype(np.float32)

    def from_distribution(self, parameters: np.ndarray) -> np.ndarray:
        """Mean and logarithm of the standard deviation of the raw action, side by side."""
        _require_width(parameters, 2 * self.num_outputs)
        means, stds = np.split(parameters, 2, axis=-1)
        if not (stds > 0.0).all():
            raise ValueError("a standard deviation is not above 0")
        return np.concatenate([(means - self._centre) / self._half_range, np.log(stds / self._half_range)], -1).astype(
            np.float32
        )

    def expert_divergence(self, outputs: Tensor, log_std: Tensor | None, expert: Tensor) -> Tensor:
        """Between independent normals."""
        assert log_std is not None
        means, log_stds = expert.chunk(2, -1)
        distances = (2.0 * log_stds).exp() + (means - outputs) ** 2
        return (log_std - log_stds + 0.5 * (distances * (-2.0 * log_std).exp() - 1.0)).sum(-1).mean()

    def score(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> tuple[np.ndarray, float, _Kept]:
        """See `ActionHead`."""
        assert log_std is not None
        precision = np.exp(-2.0 * log_std)
        distance = raw - outputs
        squares = distance * distance
        scale = sum(log_std.tolist()) + 0.5 * LOG_TWO_PI * self.num_actions
        log_probs = np.dot(squares, -0.5 * precision)
        log_probs -= scale
        return log_probs, scale + 0.5 * self.num_actions, (distance, squares, precision)

    def score_grads(self, kept: _Kept, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        distance, squares, precision = kept
        log_std_grads = np.dot(weights, squares)
        log_std_grads *= precision
        log_std_grads -= np.add.reduce(weights)
        return distance * np.multiply.outer(weights, precision), log_std_grads

    def entropy_grads(self, kept: _Kept) -> tuple[np.ndarray | None, float | None]:
        """See `ActionHead`; the entropy does not depend on the outputs."""
        return None, 1.0

    def entropy_alone(self, outputs: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray | None, float | None]:
        """See `ActionHead`."""
        assert log_std is not None
        return sum(log_std.tolist()) + 0.5 * (1.0 + LOG_TWO_PI) * self.num_actions, None, 1.0

    def divergence_grads(self, outputs: np.ndarray, others: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        assert log_std is not None
        distance, precision = outputs - others, np.exp(-2.0 * log_std)
        scaled = distance * (precision / len(outputs))
        return 0.5 * float(np.vdot(distance, scaled)), scaled

    def cloning_grads(self, outputs: np.ndarray, raw: np.ndarray) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        error = outputs - raw
        loss = float(np.einsum("ba,ba->", error, error)) / error.size
        error *= 2.0 / error.size
        return loss, error

    def expert_divergence_grads(
        self, outputs: np.ndarray, log_std: np.ndarray | None, expert: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        assert log_std is not None
        means, log_stds = np.split(expert, 2, axis=-1)
        error, precision, rows = outputs - means, np.exp(-2.0 * log_std), len(outputs)
        distances = (np.exp(2.0 * log_stds) + error * error) * precision
        loss = float((log_std - log_stds + 0.5 * (distances - 1.0)).sum()) / rows
        return loss, error * (precision / rows), (1.0 - distances).sum(0) / rows


def _require_width(parameters: np.ndarray, width: int) -> None:
    if parameters.ndim != 2 or parameters.shape[1] != width:
        raise ValueError(f"distributions of {parameters.shape[1:]} parameters; expected {width}")
