"""ActorCriticPolicy: the expert; an actor that chooses, a critic that judges, and how widely the actor explores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.config import Activation
from il_based_rl.errors import ConfigError, FileFormatError
from il_based_rl.networks import MLP
from il_based_rl.policy import MLPPolicy, arguments_from


class ActorCriticPolicy(nn.Module):
    """An `MLPPolicy` as actor, a critic, and a learned log standard deviation.

    Actor and critic share the actor's observation statistics and nothing else. The standard deviation does not depend on
    the observation, and exists for continuous actions only.

    Args:
        observation_space: See `ObservationCodec`.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        hidden_dims: Hidden layer sizes of the actor, and of the critic.
        activation: Between the layers.
        initial_log_std: Where the log standard deviation starts; 0 is half the range of a bounded action.
        orthogonal_init: Whether the weights begin orthogonal, or uniform, see `MLP`.
        obs_clip: Largest magnitude of a standardised observation.
        generator: Source of the initial weights; None draws them from a generator of its own.

    Raises:
        UnsupportedSpaceError: One of the spaces is of another kind.
        ConfigError: Another argument is out of range.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Activation = "tanh",
        initial_log_std: float = 0.0,
        orthogonal_init: bool = True,
        obs_clip: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        self.actor = MLPPolicy(
            observation_space,
            action_space,
            hidden_dims,
            activation=activation,
            orthogonal_init=orthogonal_init,
            obs_clip=obs_clip,
            generator=generator,
        )
        sizes = [self.actor.codec.size, *hidden_dims, 1]
        self.critic = MLP(sizes, activation, last_gain=1.0, orthogonal=orthogonal_init, generator=generator)
        if not math.isfinite(initial_log_std):
            raise ConfigError(f"initial_log_std must be finite, got {initial_log_std}")
        log_std = torch.full((self.actor.head.num_outputs,), float(initial_log_std))
        self.log_std = nn.Parameter(log_std) if self.actor.head.continuous else None

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that learn: the actor's and the critic."""
        return [self.actor.network, self.critic]

    def forward(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a batch of standardised features.

        Args:
            normalized: What `actor.normalizer` returns. Shape (B, O).

        Returns:
            The head's outputs, shape (B, num_outputs), and the values, shape (B,), in the units of the rewards it learns from.
        """
        return self.actor.network(normalized), self.critic(normalized).squeeze(-1)

    def evaluate_actions(self, normalized: Tensor, raw_actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge actions that were taken.

        Args:
            normalized: As in `forward`.
            raw_actions: Unbounded or counted from 0, as the head's `mode` gives them. Shape (B, num_actions).

        Returns:
            Log-probabilities, shape (B,); mean entropy, a scalar; values, shape (B,).
        """
        outputs, values = self(normalized)
        head = self.actor.head
        return head.log_prob(outputs, self.log_std, raw_actions), head.entropy(outputs, self.log_std), values

    def log_std_array(self) -> np.ndarray | None:
        """Return the log standard deviation, shape (A,), or None for discrete actions."""
        return None if self.log_std is None else self.log_std.detach().cpu().numpy()


def actor_critic_from(architecture: Any, parameters: Any) -> ActorCriticPolicy:
    """Build the policy that a file describes, its parameters yet to be loaded; arguments and errors as in `arguments_from`."""
    arguments = arguments_from(architecture, parameters)
    own = list(arguments["hidden_dims"])
    critic = architecture.get("critic_hidden_dims", own)  # an entry that files of before have
    if repr(critic) != repr(own):
        raise FileFormatError(
            f"the checkpoint describes a critic of {critic!r:.50} beside an actor of {own}, which is gone; "
            "install the version of il_based_rl that wrote it"
        )
    return ActorCriticPolicy(**arguments)
