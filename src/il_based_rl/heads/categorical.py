"""One choice from each of several lists."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from torch import Tensor

from il_based_rl.functional import categorical_entropy, categorical_log_prob


class CategoricalHead:
    """Discrete and MultiDiscrete actions: one choice from each of several lists, whose logits lie side by side."""

    continuous = False
    raw_dtype: np.dtype = np.dtype(np.int64)

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        self._shape, self._dtype = space.shape or (), space.dtype
        self._start = np.asarray(space.start, np.int64).ravel()
        self._choices = [int(n) for n in np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)]
        self._offsets = np.cumsum([0, *self._choices[:-1]])
        self.num_outputs, self.num_actions = sum(self._choices), len(self._choices)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """Index of the largest logit of each list."""
        if self.num_actions == 1:
            return outputs.argmax(-1)[..., None]
        return np.stack([part.argmax(-1) for part in np.split(outputs, self._offsets[1:], axis=-1)], -1)

    def noise(self, random: np.random.Generator, shape: tuple[int, ...], log_std: np.ndarray | None) -> np.ndarray:
        """Gumbel noise: the largest of the disturbed logits is distributed by their softmax."""
        return random.gumbel(size=(*shape, self.num_outputs)).astype(np.float32)

    def to_env(self, raw: np.ndarray) -> np.ndarray:
        """Count from the space's own start, (B, K) to (B, *space.shape)."""
        return (raw + self._start).astype(self._dtype).reshape(-1, *self._shape)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Count from 0, (B, *space.shape) to (B, K)."""
        raw = actions.reshape(len(actions), -1).astype(np.int64) - self._start
        if (raw + self._start != actions.reshape(raw.shape)).any():
            raise ValueError("an action is no whole number")
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

    def score(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `ActionHead`; what the gradient needs is the indicator of the choices minus their probabilities."""
        log_probs = self._log_softmax(outputs)
        chosen = raw + self._offsets
        kept = -np.exp(log_probs)
        rows = np.arange(len(raw))[:, None]
        kept[rows, chosen] += 1.0
        return log_probs[rows, chosen].sum(-1), kept

    def score_grads(
        self, kept: np.ndarray, log_std: np.ndarray | None, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        return kept * weights[:, None], None

    def entropy_grads(
        self, outputs: np.ndarray, log_std: np.ndarray | None
    ) -> tuple[float, np.ndarray | None, np.ndarray | None]:
        """See `ActionHead`."""
        log_probs = self._log_softmax(outputs)
        probabilities = np.exp(log_probs)
        parts = probabilities * log_probs
        entropies = -np.add.reduceat(parts, self._offsets, axis=-1)
        grads = -(parts + probabilities * np.repeat(entropies, self._choices, axis=-1)) / len(outputs)
        return float(entropies.sum()) / len(outputs), grads, None

    def cloning_grads(self, outputs: np.ndarray, raw: np.ndarray) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        log_probs, kept = self.score(outputs, None, raw)
        return -float(log_probs.sum()) / len(raw), kept * (-1.0 / len(raw))

    def _log_softmax(self, outputs: np.ndarray) -> np.ndarray:
        if self.num_actions == 1:
            shifted = outputs - outputs.max(-1, keepdims=True)
            return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        largest = np.maximum.reduceat(outputs, self._offsets, axis=-1)
        shifted = outputs - np.repeat(largest, self._choices, axis=-1)
        sums = np.add.reduceat(np.exp(shifted), self._offsets, axis=-1)
        return shifted - np.repeat(np.log(sums), self._choices, axis=-1)
