"""MLPPolicy: from observations to actions; the student, and the actor inside the expert."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.config import MAX_LAYERS, Activation
from il_based_rl.errors import (
    ArchitectureMismatchError,
    ConfigError,
    FileFormatError,
    NotFiniteError,
    SpaceMismatchError,
    UnsupportedSpaceError,
)
from il_based_rl.fused_mlp import reason_against_forward
from il_based_rl.heads import action_head
from il_based_rl.networks import MLP, NumpyFunction, RunningNormalizer
from il_based_rl.spaces import ObservationCodec, numbers_in, same_space, space_from_plain, space_to_plain


@dataclass(frozen=True)
class _Kept:
    """A policy's function on arrays, and what it was made from."""

    key: tuple[Any, ...]
    """Which layers there are, where the weights and the statistics are, and the latter's versions."""
    hooks: list[Any]
    """Of all modules, empty or not."""
    hooked: bool
    """Whether one was not empty."""
    function: NumpyFunction


class MLPPolicy(nn.Module):
    """A multi-layer perceptron that reads raw observations and writes actions which the environment's space contains.

    Its observation statistics are part of it. Actions may be Box, Discrete, MultiDiscrete or MultiBinary.

    Args:
        observation_space: See `ObservationCodec`.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        hidden_dims: Hidden layer sizes; none makes a linear policy.
        activation: Between the layers.
        orthogonal_init: Whether the weights begin orthogonal, or uniform, see `MLP`.
        obs_clip: Largest magnitude of a standardised observation.
        generator: Source of the initial weights; None draws them from a generator of its own.

    Raises:
        UnsupportedSpaceError: One of the spaces is of another kind, or too large.
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden_dims: Sequence[int] = (256, 256),
        *,
        activation: Activation = "relu",
        orthogonal_init: bool = True,
        obs_clip: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        self.observation_space, self.action_space = observation_space, action_space
        self.hidden_dims: tuple[int, ...] = tuple(map(operator.index, hidden_dims))
        self.activation = str.__str__(activation) if isinstance(activation, str) else activation  # no enumeration's, or NumPy's
        self.codec = ObservationCodec(observation_space)
        self.head = action_head(action_space)
        self.normalizer = RunningNormalizer(self.codec.measured, obs_clip)
        self._require_readable()
        self._kept: _Kept | None = None
        sizes = [self.codec.size, *hidden_dims, self.head.num_outputs]
        self.network = MLP(sizes, activation, last_gain=0.01, orthogonal=orthogonal_init, generator=generator)

    def _require_readable(self) -> None:
        """Raise an error now if a checkpoint of this policy would be taken for a damaged one when it is read."""
        if len(self.hidden_dims) > MAX_LAYERS:
            raise ConfigError(f"hidden_dims has {len(self.hidden_dims)} sizes; expected at most {MAX_LAYERS}")
        if min(self.hidden_dims, default=1) < 1:
            raise ConfigError(f"hidden_dims must be above 0, got {self.hidden_dims}")
        if self.activation not in ("tanh", "relu"):
            raise ConfigError(f"activation must be tanh or relu, got {self.activation!r:.50}")
        if not 0.0 < self.normalizer.clip < math.inf:
            raise ConfigError(f"obs_clip must be above 0 and finite, got {self.normalizer.clip}")
        for space in (self.observation_space, self.action_space):
            try:
                numbers_in(space_to_plain(space))
            except ValueError as error:
                raise UnsupportedSpaceError(f"the space {space!s:.200} is too large: it has {error}") from error

    def forward(self, features: Tensor) -> Tensor:
        """Map features that are not standardised yet, shape (B, O), to the head's outputs, shape (B, num_outputs)."""
        return self.network(self.normalizer(features))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that learn."""
        return [self.network]

    def as_numpy(self) -> NumpyFunction:
        """Return `forward` on NumPy arrays, for acting; it follows the weights, but not later observation statistics."""
        if reason_against_forward(self) is not None:
            return self._forward_on_arrays
        normalize, network = self.normalizer.as_numpy(), self.network.as_numpy()
        return lambda features: network(normalize(features))

    @torch.no_grad()
    def _forward_on_arrays(self, features: np.ndarray) -> np.ndarray:
        """Run `forward` itself: a module that is not as the fast path knows it acts by the function that it learns."""
        parameter = next(self.parameters())
        return self(torch.from_numpy(features).to(parameter.device, parameter.dtype)).float().cpu().numpy()

    def _acting(self) -> NumpyFunction:
        """Return `as_numpy`, kept from call to call while all that it read is where and what it was."""
        parts: Any = self._modules  # a tenth of an attribute's cost
        network, normalizer = parts["network"], parts["normalizer"]
        if type(network) is not MLP or type(normalizer) is not RunningNormalizer:
            return self._forward_on_arrays
        listed: Any = network._modules["layers"]
        statistics: Any = normalizer._buffers
        layers = listed._modules.values()
        mean, variance, count = statistics["mean"], statistics["variance"], statistics["count"]
        key = (
            [*map(id, layers)],
            [weight.data_ptr() for layer in layers for weight in layer._parameters.values() if weight is not None],
            (mean.data_ptr(), mean._version, variance.data_ptr(), variance._version, count.data_ptr(), count._version),
        )
        kept = self._kept
        if kept is None or kept.key != key or any(kept.hooks) != kept.hooked or not mean.is_cpu:
            parts = (self, network, normalizer, *layers)
            hooks = [each for part in parts for each in (part._forward_hooks, part._forward_pre_hooks)]
            kept = self._kept = _Kept(key, hooks, any(hooks), self.as_numpy())
        return kept.function

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def predict(self, obs: Any, random: np.random.Generator | None = None, log_std: np.ndarray | None = None) -> np.ndarray:
        """Choose actions for one raw observation or a batch of them.

        Args:
            obs: One observation of the space, or a batch along a first axis (of each part, for Dict and Tuple).
            random: Samples from the distribution; None takes the most likely action.
            log_std: Logarithm of the standard deviation of continuous actions, for sampling. Shape (A,).

        Returns:
            The action, or the batch of them; each is inside the action space. A single Discrete action is a NumPy integer.

        Raises:
            SpaceMismatchError: The observation fits the space neither alone nor as a batch.
            NotFiniteError: It holds NaN or infinity.
        """
        try:
            rows, single = self.codec.rows(obs)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SpaceMismatchError(f"cannot read this observation of {self.observation_space}: {error}") from error
        features = self.codec.features(rows)
        # A moderate sum of squares has finite parts, and takes a fifth of the time of looking at each.
        if not np.vdot(features, features) < 1e30 and not np.isfinite(features).all():
            raise NotFiniteError(f"the observation is not finite: {rows[~np.isfinite(features).all(1)][0].tolist()}")
        outputs = self._acting()(features)
        if random is not None:
            outputs = outputs + self.head.noise(random, (len(rows),), log_std)
        actions = self.head.to_env(self.head.mode(outputs))
        if not single:
            return actions
        return np.asarray(actions[0]) if self.head.continuous else actions[0]

    def distribution(self, observations: np.ndarray, log_std: np.ndarray | None) -> np.ndarray | None:
        """Return the distribution of the action for rows of observations, shape (B, *row); see `DemoDataset.distributions`.

        Args:
            observations: Raw, as a data set holds them.
            log_std: Of the raw action. Shape (A,); None where none is known, and the answer is None for continuous actions.
        """
        return self.head.distribution(self.as_numpy()(self.codec.features(observations)), log_std)

    @property
    def architecture(self) -> dict[str, Any]:
        """Everything needed to build this policy again, as plain values; `arguments_from` reads it."""
        return {
            "observation_space": space_to_plain(self.observation_space),
            "action_space": space_to_plain(self.action_space),
            "hidden_dims": list(self.hidden_dims),
            "activation": self.activation,
            "obs_clip": self.normalizer.clip,
        }


def arguments_from(architecture: Any, parameters: Any) -> dict[str, Any]:
    """Turn a stored architecture into constructor arguments.

    Args:
        architecture: What `MLPPolicy.architecture` returned.
        parameters: The tensors stored with it; it must not ask for more than there are, so that no small file asks for
            much memory.

    Raises:
        FileFormatError: It is not what `architecture` returns, or does not fit the parameters.
    """
    try:
        activation, hidden_dims = architecture["activation"], tuple(architecture["hidden_dims"])
        obs_clip = architecture.get("obs_clip", 10.0)  # which files of before do not name
        stored = sum(tensor.numel() for tensor in parameters.values() if tensor.is_floating_point())
        plain = architecture["observation_space"], architecture["action_space"]
        if max(map(numbers_in, plain)) > stored:
            raise ValueError(f"spaces of more numbers than the {stored} that are stored; a network for them")
        observation_space, action_space = (space_from_plain(each) for each in plain)
        inputs, outputs = ObservationCodec(observation_space).size, action_head(action_space).num_outputs
    except Exception as error:  # what a foreign file holds may be wrong in any way
        raise FileFormatError(f"the checkpoint describes no policy: {error} is missing or of a wrong type") from error
    if type(obs_clip) is not float or not 0.0 < obs_clip < math.inf:
        raise FileFormatError(f"the checkpoint describes observations clipped at {obs_clip!r:.50}; it is damaged")
    if activation not in ("tanh", "relu"):
        raise FileFormatError(f"the checkpoint describes a policy of {activation!r:.50} units; it is damaged")
    if len(hidden_dims) > MAX_LAYERS or not all(type(width) is int and width > 0 for width in hidden_dims):
        raise FileFormatError(f"the checkpoint describes hidden layers of {hidden_dims[:9]} units; it is damaged")
    weights = sum(a * b for a, b in itertools.pairwise([inputs, *hidden_dims, outputs]))
    if weights > stored:
        raise FileFormatError(f"the checkpoint describes {weights} weights and holds {stored} numbers; it is damaged")
    return {
        "observation_space": observation_space,
        "action_space": action_space,
        "hidden_dims": hidden_dims,
        "activation": activation,
        "obs_clip": obs_clip,
    }


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_parameters(module: nn.Module, parameters: Any) -> None:
    """Copy stored tensors into a module.

    Raises:
        FileFormatError: They are not this module's in name and shape, or one of them is not finite.
    """
    try:
        module.load_state_dict(parameters)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in parameters.values())
    except (RuntimeError, AttributeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"the checkpoint's parameters do not fit the policy that it describes: {reason}") from error
    if not finite:
        raise FileFormatError("the checkpoint holds parameters that are not finite; it is damaged, or training had diverged")
    for part in module.modules():
        if isinstance(part, RunningNormalizer) and (part.count < 0 or bool((part.variance < 0).any())):
            raise FileFormatError("the checkpoint holds statistics of fewer than no observations, or negative variances")


def load_tensor(target: Tensor, stored: Any) -> None:
    """Copy a stored tensor; ValueError unless it is one of the same shape and finite."""
    if not isinstance(stored, Tensor) or stored.shape != target.shape or not bool(torch.isfinite(stored).all()):
        raise ValueError(f"a tensor of shape {tuple(target.shape)} is missing, of another shape or not finite")
    target.data.copy_(stored)


def require_counts(stored: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError unless these are whole numbers of 0 or more."""
    for name in names:
        if type(stored[name]) is not int or stored[name] < 0:
            raise ValueError(f"{name} is {stored[name]!r:.50}; expected a whole number of 0 or more")


def require_hidden_dims(expected: Sequence[int] | None, found: Sequence[int], path: object) -> None:
    """Raise ArchitectureMismatchError if layer sizes were asked for and a file has others."""
    if expected is not None and tuple(expected) != tuple(found):
        raise ArchitectureMismatchError(
            f"{path} has hidden_dims {list(found)}, not {list(expected)}; leave them out, or give the file's"
        )


def shown_to(
    policy: MLPPolicy, observations: np.ndarray, actions: np.ndarray, targets: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of demonstrated observations, shape (B, O), and what `targets` makes of the actions, shape (B, …).

    Raises:
        SpaceMismatchError: They are of other spaces than the policy's, or beyond what it can read.
    """
    wanted, found = (policy.codec.row_shape, policy.action_space.shape), (observations.shape[1:], actions.shape[1:])
    if wanted != found:
        raise SpaceMismatchError(
            f"the demonstrations have observations of shape {found[0]} and actions of shape {found[1]}, "
            f"the policy reads {wanted[0]} and writes {wanted[1]}"
        )
    try:
        made = targets()
        with np.errstate(over="ignore"):  # as what is too large is told below
            features = policy.codec.features(observations)
    except (ValueError, IndexError) as error:
        raise SpaceMismatchError(f"the demonstrations do not fit the policy's spaces: {error}") from error
    if not (finite := np.isfinite(features).all(axis=1)).all():
        row = int(np.argmin(finite))
        raise SpaceMismatchError(
            f"the demonstrations' observation {row} of {len(finite)} holds a number that is too large for float32, "
            f"in which policies compute: {observations[row].tolist()!s:.100}; leave its episode out"
        )
    return features, made


def require_spaces(
    policy: MLPPolicy, observation_space: gym.Space[Any], action_space: gym.Space[Any], who: str, where: str
) -> None:
    """Raise SpaceMismatchError unless a policy's spaces are the given ones."""
    pairs = [
        ("observation", policy.observation_space, observation_space),
        ("action", policy.action_space, action_space),
    ]
    for name, own, other in pairs:
        if not same_space(own, other):
            raise SpaceMismatchError(
                f"{who} and {where} do not fit: {name} space {own} against {other}; use the environment it was trained on"
            )
