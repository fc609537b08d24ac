"""Building blocks of policies: multi-layer perceptrons and running statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.config import Activation

NumpyFunction = Callable[[np.ndarray], np.ndarray]

_CONSTANT_VARIANCE = 1e-12
"""A feature that varies less than this over a whole data set is a constant; its scale is left alone."""


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Weights are orthogonal, with a gain of sqrt(2) in the hidden layers and `last_gain` in the last, and biases are zero;
    or both are uniform within 1 / sqrt(inputs of the layer), as `torch.nn.Linear` has them.

    Args:
        sizes: Numbers of inputs, of units in each hidden layer, and of outputs.
        activation: Between the layers.
        last_gain: Scale of the last layer: near 0 a policy starts indifferent, 1 suits a critic.
        orthogonal: Which of the two.
        generator: Source of the initial weights; the global generators are never touched.

    Source:
        Initialisation: Andrychowicz et al. (2021), "What matters in on-policy reinforcement learning?",
        https://arxiv.org/abs/2006.05990.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation,
        *,
        last_gain: float,
        orthogonal: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.activation = activation
        with torch.random.fork_rng(devices=[]):  # torch draws weights of its own first, from the global generator
            self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes))
        for k, layer in enumerate(self.linear):
            if orthogonal:
                gain = last_gain if k == len(self.layers) - 1 else math.sqrt(2.0)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)
            else:
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    @property
    def linear(self) -> list[nn.Linear]:
        """The layers, from inputs to outputs."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs, shape (B, inputs), to outputs, shape (B, outputs)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.tanh(layer(x)) if self.activation == "tanh" else torch.relu(layer(x))
        return last(x)

    def as_numpy(self) -> NumpyFunction:
        """Return the same function on NumPy arrays, three to five times quicker on few rows.

        On a CPU it reads the parameters' own memory, so that it follows every update in place; from another device it
        holds a copy of the present ones.
        """
        layers = [(_array(layer.weight).T, _array(layer.bias)[None]) for layer in self.linear]  # of a row's shape: see below
        *hidden, (last_weight, last_bias) = layers
        tanh = self.activation == "tanh"

        def forward(x: np.ndarray) -> np.ndarray:
            for weight, bias in hidden:
                x = np.dot(x, weight)
                x += bias
                np.tanh(x, out=x) if tanh else np.maximum(x, 0.0, out=x)
            x = np.dot(x, last_weight)
            x += last_bias
            return x

        return forward


class RunningNormalizer(nn.Module):
    """Standardise features by statistics that belong to the policy: saved, moved and frozen with it.

        normalized = clip((x - mean) / sqrt(variance + 1e-8), -clip, clip)

    The statistics change in `update` and `fit` only, never by reading. Before the first update they are those of a
    standard normal, which leaves features as they are.

    Args:
        measured: Which features to standardise; the others (one-hot marks) pass unchanged. Shape (O,), bool.
        clip: Largest magnitude that comes out.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    measured: Tensor

    def __init__(self, measured: np.ndarray, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = float(clip)
        self.register_buffer("measured", torch.from_numpy(measured), persistent=False)
        self.register_buffer("mean", torch.zeros(len(measured), dtype=torch.float64))
        self.register_buffer("variance", torch.ones(len(measured), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise features, shape (B, O), float32."""
        if self.count == 0:
            return x
        return ((x - self.mean.float()) * self._inverse_std().float()).clamp(-self.clip, self.clip)

    def inverse(self, normalized: Tensor) -> Tensor:
        """Undo `forward`, but for what it clipped. Shape (B, O)."""
        return normalized if self.count == 0 else normalized / self._inverse_std().float() + self.mean.float()

    def _inverse_std(self) -> Tensor:
        return torch.rsqrt(self.variance + 1e-8)

    def as_numpy(self) -> NumpyFunction:
        """Return the same function on NumPy arrays, with the statistics as they are now."""
        if self.count == 0:
            return lambda x: x
        # Of one row's shape, as NumPy adds equal shapes three times as quickly as it broadcasts so few numbers.
        mean, inverse_std = _array(self.mean.float())[None], _array(self._inverse_std().float())[None]
        low, high = np.array(-self.clip, np.float32), np.array(self.clip, np.float32)

        def forward(x: np.ndarray) -> np.ndarray:
            x = x - mean
            x *= inverse_std
            return np.minimum(np.maximum(x, low, out=x), high, out=x)

        return forward

    @torch.no_grad()
    def update(self, features: np.ndarray) -> None:
        """Merge the statistics of more features, shape (B, O), into the running ones.

        Source:
            Chan et al. (1979), "Updating formulae and a pairwise algorithm for computing sample variances": exact
            whatever the sizes of the parts.
        """
        count = len(features)
        if count == 0:
            return
        column_means = features.mean(0, dtype=np.float64)
        mean = torch.from_numpy(column_means).to(self.mean.device)
        variance = torch.from_numpy(np.square(features - column_means).mean(0)).to(self.mean.device)
        before, total = float(self.count), float(self.count) + count
        delta = mean - self.mean
        if before == 0:
            merged_mean, merged_variance = mean, variance
        else:
            merged_mean = self.mean + delta * (count / total)
            merged_variance = (before * self.variance + count * variance) / total
            merged_variance += delta.square() * (before * count / total**2)
        self.mean.copy_(torch.where(self.measured, merged_mean, 0.0))
        self.variance.copy_(torch.where(self.measured, merged_variance, 1.0))
        self.count.fill_(total)

    @torch.no_grad()
    def fit(self, features: np.ndarray) -> None:
        """Take the statistics of one data set, shape (B, O); a feature that is constant in it keeps its scale."""
        self.count.zero_()
        self.update(features)
        self.variance.masked_fill_(self.variance < _CONSTANT_VARIANCE, 1.0)


class RewardScaler(nn.Module):
    """Divide rewards by the running standard deviation of the discounted return, without moving their mean.

        scaled = clip(reward / standard deviation, -clip, clip)

    Source:
        Engstrom et al. (2020), "Implementation matters in deep policy gradients", section 3,
        https://arxiv.org/abs/2005.12729. Differs: the statistics take in a whole rollout before it is scaled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.return_statistics = RunningNormalizer(np.ones(1, bool))

    def update(self, discounted_returns: np.ndarray) -> None:
        """Take in the discounted returns of a rollout, of any shape."""
        self.return_statistics.update(discounted_returns.reshape(-1, 1))

    @property
    def scale(self) -> float:
        """What a reward is divided by, in reward units; where returns do not vary, their size."""
        std, mean = math.sqrt(self.return_statistics.variance.item()), abs(self.return_statistics.mean.item())
        return std if std > 1e-4 * mean else (mean or 1.0)

    def scaled(self, rewards: np.ndarray, clip: float) -> np.ndarray:
        """Scale rewards of any shape; `clip` is the largest magnitude that comes out."""
        return np.clip(rewards / self.scale, -clip, clip)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def parameter_count(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
