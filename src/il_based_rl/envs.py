"""The world: make one environment or many, with one uniform record of a step.

Gymnasium's vector environments reset a finished episode in two ways. SAME_STEP hands out the next episode's first observation
and puts the final one into `infos["final_obs"]`; NEXT_STEP hands out the final one and inserts a fake transition after it. Both
become the same `StepRecord` here, and nothing above this module needs to know.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from il_based_rl.errors import ConfigError, EnvironmentFaultError, MissingExtraError, UnknownEnvironmentError
from il_based_rl.spaces import ObservationCodec


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a Gymnasium environment.

    Raises:
        UnknownEnvironmentError: No such id is registered; the nearest ones are named.
        MissingExtraError: The environment needs a package that is not installed.
        EnvironmentFaultError: Its constructor failed.
    """
    with warnings.catch_warnings(record=True) as caught:
        try:
            env = gym.make(env_id, disable_env_checker=True, **kwargs)
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            raise MissingExtraError(f"environment {env_id} needs a package that is not installed: {error}") from error
        except gym.error.NamespaceNotFound as error:
            remedy = 'pip install "gymnasium[atari]"' if env_id.startswith("ALE/") else "install it, then give MODULE:ID"
            raise MissingExtraError(f"environment {env_id} is of a package that is not imported: {remedy}") from error
        except gym.error.Error as error:
            raise UnknownEnvironmentError(f"unknown environment id {env_id!r}: {error}{_nearest(env_id)}") from error
        except Exception as error:  # another author's constructor may fail in any way
            raise EnvironmentFaultError(f"environment {env_id} cannot be made: {_describe(error)}") from error
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return env


def _nearest(env_id: str) -> str:
    matches = difflib.get_close_matches(env_id, gym.registry.keys(), n=3, cutoff=0.6)
    return f" (nearest: {', '.join(matches)})" if matches else ""


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Player:
    """One environment with its running episode; whatever goes wrong in it is named.

    Args:
        env: The environment; it is closed with the player.
        index: Its number among its neighbours, for messages.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int = 0) -> None:
        self.env, self.index = env, index
        self.codec = ObservationCodec(env.observation_space)
        self.steps = 0
        """Steps of the running episode; 0 right after a reset."""
        self.obs: Any = None
        """The present observation, as the environment gave it."""
        self.row: np.ndarray = np.zeros(0)
        """The present observation as a row."""
        self._action: Any = None

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode.

        Raises:
            EnvironmentFaultError: The environment failed, or gave an observation that is not of its space or not finite.
        """
        self.steps, self._action = 0, None
        try:
            self.obs, _ = self.env.reset(seed=seed)
            self.row = self.codec.row(self.obs)
        except Exception as error:  # another author's code may fail in any way
            raise self._fault(_describe(error)) from error
        self._require_finite(0.0)

    def step(self, action: Any) -> tuple[float, bool, bool]:
        """Take one step; the observation that it leads to is left in `obs` and `row`.

        Returns:
            Reward, terminated, truncated.

        Raises:
            EnvironmentFaultError: As in `reset`, or the reward is not finite.
        """
        self._action = action
        self.steps += 1
        try:
            self.obs, reward, terminated, truncated, _ = self.env.step(action)
            reward = float(reward)
            self.row = self.codec.row(self.obs)
        except Exception as error:  # as above
            raise self._fault(_describe(error)) from error
        self._require_finite(reward)
        return reward, bool(terminated), bool(truncated)

    def _require_finite(self, reward: float) -> None:
        if not math.isfinite(reward):
            raise self._fault(f"the reward is {reward}")
        # A sum is finite unless a part is not, or it overflows; it takes half the time of looking at each number.
        if not math.isfinite(np.add.reduce(self.row, axis=None)) and not np.isfinite(self.row).all():
            raise self._fault(f"the observation is not finite: {_short(self.row)}")

    def _fault(self, what: str) -> EnvironmentFaultError:
        where = f"environment {self.index}, step {self.steps} of its episode"
        how = "at reset" if self.steps == 0 else f"after action {_short(self._action)}"
        return EnvironmentFaultError(f"{where}, {how}: {what}")

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def _short(value: Any) -> str:
    array = np.asarray(value)
    return f"{array.tolist()}" if array.size <= 32 else f"{array.ravel()[:32].tolist()} and {array.size - 32} more"


@dataclass
class StepRecord:
    """What one step of N environments led to. Its arrays may be overwritten by the next step."""

    rows: np.ndarray
    """Observations to act upon next: after an episode's end the first ones of the next. Shape (N, *row)."""
    rewards: np.ndarray
    """Shape (N,), float64."""
    terminated: np.ndarray
    """Shape (N,), bool."""
    truncated: np.ndarray
    """Shape (N,), bool."""
    final_rows: dict[int, np.ndarray]
    """Observation that an episode ended in, by environment."""
    valid: np.ndarray
    """False where no step was taken, as the environment was being reset. Shape (N,), bool."""


class Envs(Protocol):
    """N environments stepped side by side, each starting its next episode by itself."""

    num_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each; return the rows, shape (N, *row)."""

    def step(self, actions: np.ndarray) -> StepRecord:
        """Step each with its action, shape (N, *action)."""

    def close(self) -> None:
        """Close them all."""


class InProcessEnvs:
    """Environments in this process, stepped one after the other.

    Args:
        env_id: Gymnasium environment ID.
        num_envs: N.

    Raises:
        UnsupportedSpaceError: Its observations cannot be read.
        See `make_env`.
    """

    def __init__(self, env_id: str, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self._players = [Player(make_env(env_id), i) for i in range(num_envs)]
        self.observation_space = self._players[0].env.observation_space
        self.action_space = self._players[0].env.action_space
        codec = self._players[0].codec
        self._record = StepRecord(
            rows=np.zeros((num_envs, *codec.row_shape), codec.row_dtype),
            rewards=np.zeros(num_envs),
            terminated=np.zeros(num_envs, bool),
            truncated=np.zeros(num_envs, bool),
            final_rows={},
            valid=np.ones(num_envs, bool),
        )

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`."""
        for player, seed in zip(self._players, seeds, strict=True):
            player.reset(seed)
            self._record.rows[player.index] = player.row
        return self._record.rows

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        record = self._record
        record.final_rows = {}
        for i, player in enumerate(self._players):
            reward, terminated, truncated = player.step(actions[i])
            if terminated or truncated:
                record.final_rows[i] = np.array(player.row)
                player.reset()
            record.rows[i], record.rewards[i] = player.row, reward
            record.terminated[i], record.truncated[i] = terminated, truncated
        return record

    def close(self) -> None:
        """See `Envs`."""
        for player in self._players:
            player.close()

    def __enter__(self) -> InProcessEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class VectorEnvs:
    """Any Gymnasium vector environment that resets finished episodes by itself, SAME_STEP or NEXT_STEP.

    Args:
        envs: The vector environment; closed with this.

    Raises:
        ConfigError: Its autoreset mode is DISABLED.
        UnsupportedSpaceError: Its observations cannot be read.
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigError(f"the vector environment's autoreset mode is {mode}; expected SAME_STEP or NEXT_STEP")
        self._envs, self._same_step = envs, mode == AutoresetMode.SAME_STEP
        self.num_envs = envs.num_envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space
        self._codec = ObservationCodec(self.observation_space)
        self._resetting = np.zeros(self.num_envs, bool)
        self._steps = 0

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`."""
        every_seed: Any = list(seeds)  # Gymnasium annotates one seed only, and takes one for each environment
        obs, _ = self._envs.reset(seed=every_seed)
        self._resetting = np.zeros(self.num_envs, bool)
        return self._checked(self._codec.rows(obs)[0], np.zeros(self.num_envs), None)

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        obs, rewards, terminated, truncated, infos = self._envs.step(actions)
        self._steps += 1
        rewards = np.asarray(rewards, np.float64)
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        rows = self._codec.rows(obs)[0]
        valid = ~self._resetting
        terminated, truncated = terminated & valid, truncated & valid
        true_rows = np.array(rows)
        for i in np.flatnonzero(terminated | truncated):
            if self._same_step:
                true_rows[i] = self._codec.row(infos["final_obs"][i])
        self._checked(true_rows, rewards, actions)
        self._checked(rows, rewards, actions)
        finals = {int(i): true_rows[i] for i in np.flatnonzero(terminated | truncated)}
        if not self._same_step:
            self._resetting = terminated | truncated
        return StepRecord(rows, rewards, terminated, truncated, finals, valid)

    def _checked(self, rows: np.ndarray, rewards: np.ndarray, actions: np.ndarray | None) -> np.ndarray:
        finite = np.isfinite(rows).reshape(self.num_envs, -1).all(1) & np.isfinite(rewards)
        if not finite.all():
            i = int(np.argmin(finite))
            how = "at reset" if actions is None else f"after action {_short(actions[i])}"
            raise EnvironmentFaultError(
                f"environment {i}, step {self._steps}, {how}: the observation {_short(rows[i])} or the reward {rewards[i]} "
                "is not finite"
            )
        return rows

    def close(self) -> None:
        """See `Envs`."""
        self._envs.close()


def as_envs(envs: Envs | gym.vector.VectorEnv[Any, Any, Any]) -> Envs:
    """Take environments of ours, or any Gymnasium vector environment."""
    return VectorEnvs(envs) if isinstance(envs, gym.vector.VectorEnv) else envs


def make_players(env_id: str, count: int) -> list[Player]:
    """Make environments whose episodes are begun one by one, each from a chosen seed."""
    return [Player(make_env(env_id), i) for i in range(count)]


def close_all(players: Iterable[Player]) -> None:
    """Close every player."""
    for player in players:
        player.close()
