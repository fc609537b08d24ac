"""One choice from each of several lists."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from torch import Tensor

from il_based_rl.functional import categorical_divergence, categorical_entropy, categorical_log_prob

_Kept = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Log-probabilities and probabilities of all choices, shape (B, sum of choices) each; where the chosen ones lie."""


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
        self._ones = np.ones((self.num_outputs, 1), np.float32)

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

    def divergence(self, outputs: Tensor, others: Tensor, log_std: Tensor | None) -> Tensor:
        """Of all choices together."""
        return categorical_divergence(outputs, others, self._choices).mean()

    def cloning_loss(self, outputs: Tensor, raw: Tensor) -> Tensor:
        """Cross-entropy of all choices together."""
        return -categorical_log_prob(outputs, raw, self._choices).mean()

    def distribution(self, outputs: np.ndarray, log_std: np.ndarray | None) -> np.ndarray | None:
        """The logits."""
        return outputs

    def from_distribution(self, parameters: np.ndarray) -> np.ndarray:
        """The logits."""
        if parameters.ndim != 2 or parameters.shape[1] != self.num_outputs:
            raise ValueError(f"distributions of {parameters.shape[1:]} parameters; expected {self.num_outputs} logits")
        return parameters.astype(np.float32)

    def expert_divergence(self, outputs: Tensor, log_std: Tensor | None, expert: Tensor) -> Tensor:
        """Of all choices together."""
        return categorical_divergence(expert, outputs, self._choices).mean()

    def score(self, outputs: np.ndarray, log_std: np.ndarray | None, raw: np.ndarray) -> tuple[np.ndarray, float, _Kept]:
        """See `ActionHead`."""
        log_probs, places = self._log_softmax(outputs), self._places(raw)
        probabilities = np.exp(log_probs)
        entropy = -float(np.vdot(probabilities, log_probs)) / len(raw)
        return self._chosen(log_probs, places), entropy, (log_probs, probabilities, places)

    def score_grads(self, kept: _Kept, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        _, probabilities, places = kept
        return self._indicator_minus(probabilities, places) * weights[:, None], None

    def entropy_grads(self, kept: _Kept) -> tuple[np.ndarray | None, float | None]:
        """See `ActionHead`."""
        log_probs, probabilities, _ = kept
        parts = probabilities * log_probs
        entropies = -np.add.reduceat(parts, self._offsets, axis=-1)
        return -(parts + probabilities * np.repeat(entropies, self._choices, axis=-1)) / len(parts), None

    def entropy_alone(self, outputs: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray | None, float | None]:
        """See `ActionHead`."""
        _, entropy, kept = self.score(outputs, log_std, self.mode(outputs))
        return entropy, *self.entropy_grads(kept)

    def divergence_grads(self, outputs: np.ndarray, others: np.ndarray, log_std: np.ndarray | None) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        ours = self._log_softmax(outputs)
        likely, ratios = np.exp(ours), ours - self._log_softmax(others)
        parts = likely * ratios
        divergences = np.add.reduceat(parts, self._offsets, axis=-1)
        grads = parts - likely * np.repeat(divergences, self._choices, axis=-1)
        return float(divergences.sum()) / len(outputs), grads / len(outputs)

    def cloning_grads(self, outputs: np.ndarray, raw: np.ndarray) -> tuple[float, np.ndarray]:
        """See `ActionHead`."""
        log_probs, places = self._log_softmax(outputs), self._places(raw)
        loss = -float(np.add.reduce(self._chosen(log_probs, places))) / len(raw)
        return loss, self._indicator_minus(np.exp(log_probs), places) * (-1.0 / len(raw))

    def expert_divergence_grads(
        self, outputs: np.ndarray, log_std: np.ndarray | None, expert: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """See `ActionHead`."""
        ours, theirs = self._log_softmax(outputs), self._log_softmax(expert)
        likely = np.exp(theirs)
        return float(np.vdot(likely, theirs - ours)) / len(outputs), (np.exp(ours) - likely) / len(outputs), None

    def _places(self, raw: np.ndarray) -> np.ndarray:
        """Where the logit of each choice lies in the outputs as one long row; an array of shape (B * K,)."""
        rows = np.arange(0, len(raw) * self.num_outputs, self.num_outputs)
        return raw[:, 0] + rows if self.num_actions == 1 else (raw + self._offsets + rows[:, None]).ravel()

    def _chosen(self, log_probs: np.ndarray, places: np.ndarray) -> np.ndarray:
        chosen = log_probs.take(places)
        return chosen if self.num_actions == 1 else chosen.reshape(len(log_probs), -1).sum(-1)

    def _indicator_minus(self, probabilities: np.ndarray, places: np.ndarray) -> np.ndarray:
        """1 at each choice, minus the probabilities: the gradient of the log-probabilities by the logits."""
        difference = -probabilities
        difference.reshape(-1)[places] += 1.0
        return difference

    def _log_softmax(self, outputs: np.ndarray) -> np.ndarray:
        if self.num_actions == 1:
            shifted = outputs - outputs.max(-1, keepdims=True)
            shifted -= np.log(np.dot(np.exp(shifted), self._ones))
            return shifted
        largest = np.maximum.reduceat(outputs, self._offsets, axis=-1)
        shifted = outputs - np.repeat(largest, self._choices, axis=-1)
        sums = np.add.reduceat(np.exp(shifted), self._offsets, axis=-1)
        return shifted - np.repeat(np.log(sums), self._choices, axis=-1)
