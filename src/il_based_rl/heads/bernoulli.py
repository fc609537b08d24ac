"""Independent bits."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from torch import Tensor

from il_based_rl.functional import bernoulli_divergence, bernoulli_entropy, bernoulli_log_prob

_Kept = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Logits, bits, and probabilities; shape (B, A) each."""


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

    def divergence(self, outputs: Tensor, others: Tensor, log_std: Tensor | None) -> Tensor:
        """Of all bits together."""
        return bernoulli_divergence(outputs, others).mean()

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Cross-entropy of all bits together."""
        return -bernoulli_log_prob(outputs, raw).mean()

    def distribution(self, outputs: np.ndarray, log_std: np.ndarray | None) -> np.ndarray | None:
        """The logits."""
        return outputs

    def from_distribution(self, parameters: np.ndarray) -> np.ndarray:
        """The logits."""
        if parameters.ndim != 2 or parameters.shape[1] != self.num_outputs:
            raise ValueError(f"distributions of {parameters.shape[1:]} parameters; expected {self.num_outputs} logits")
        return parameters.astype(np.float32)

    def expert_divergence(self, outputs: Tensor, log_std: Tensor | None, expert: Tensor) -> Tensor:
        """Of all bits together."""
        return bernoulli_divergence(expert, outputs).mean()

    def score(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> tuple[np.ndarray, float, _Kept]:
        """See `ActionHead`."""
        probabilities, softplus = _sigmoid(outputs), _softplus(outputs)
        entropy = float((softplus - outputs * probabilities).sum()) / len(outputs)
        return (raw * outputs - softplus).sum(-1), entropy, (outputs, raw, probabilities)

    def score_grads(self, kept: _Kept, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        _, raw, probabilities = kept
        return (raw - probabilities) * weights[:, None], None

    def entropy_grads(self, kept: _Kept) -> tuple[np.ndarray | None, float | None]:
        """See `ActionHead`."""
        outputs, _, probabilities = kept
        return -outputs * probabilities * (1.0 - probabilities) / len(outputs), None

    def entropy_alone(self, outputs: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray | None, float | None]:
        """See `ActionHead`."""
        _, entropy, kept = self.score(outputs, log_std, self.mode(outputs))
        return entropy, *self.entropy_grads(kept)

    def divergence_grads(self, outputs: np.ndarray, others: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        likely, distance, rows = _sigmoid(outputs), outputs - others, len(outputs)
        divergence = float((likely * distance + _softplus(others) - _softplus(outputs)).sum()) / rows
        return divergence, likely * (1.0 - likely) * distance / rows

    def cloning_grads(self, outputs: np.ndarray, raw: np.ndarray) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        loss = float((_softplus(outputs) - raw * outputs).sum()) / len(raw)
        return loss, (_sigmoid(outputs) - raw) / len(raw)

    def expert_divergence_grads(
        self, outputs: np.ndarray, log_std: np.ndarray | None, expert: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        likely, rows = _sigmoid(expert), len(outputs)
        loss = float((likely * (expert - outputs) + _softplus(outputs) - _softplus(expert)).sum()) / rows
        return loss, (_sigmoid(outputs) - likely) / rows, None


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, np.zeros((), x.dtype))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (np.tanh(0.5 * x) + 1.0)
