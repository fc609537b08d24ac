"""Gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from il_based_rl.envs.bounds import short
from il_based_rl.envs.record import EnvState, StepRecord
from il_based_rl.errors import ConfigError, EnvironmentFaultError
from il_based_rl.spaces import ObservationCodec


class VectorEnvs:
    """Any Gymnasium vector environment that resets finished episodes by itself, SAME_STEP or NEXT_STEP.

    Args:
        envs: The vector environment; closed with this.
        observation_space: Of one environment, where it is to pass for another than its own.
        action_space: Likewise; actions are cast to the environment's own number type.

    Raises:
        ConfigError: Its autoreset mode is DISABLED.
        UnsupportedSpaceError: Its observations cannot be read.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Any, Any, Any],
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
    ) -> None:
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigError(f"the vector environment's autoreset mode is {mode}; expected SAME_STEP or NEXT_STEP")
        self._envs, self._same_step = envs, mode == AutoresetMode.SAME_STEP
        self.num_envs = len(envs) if hasattr(envs, "__len__") else envs.num_envs
        self.observation_space = observation_space or envs.single_observation_space
        self.action_space = action_space or envs.single_action_space
        self._action_dtype = envs.single_action_space.dtype
        self._codec = ObservationCodec(self.observation_space)
        self._resetting = np.zeros(self.num_envs, bool)
        self._steps = 0

    def reset(self, seeds: Sequence[int] | None) -> np.ndarray:
        """See `Envs`; None leaves the environments their own seeds."""
        every_seed: Any = {} if seeds is None else {"seed": list(seeds)}  # annotated as one seed only; one for each is taken
        obs, _ = self._envs.reset(**every_seed)
        self._resetting = np.zeros(self.num_envs, bool)
        return self._checked(self._codec.rows(obs)[0], np.zeros(self.num_envs), None)

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        self._steps += 1
        try:
            obs, rewards, terminated, truncated, infos = self._envs.step(actions.astype(self._action_dtype, copy=False))
        except Exception as error:  # another author's code may fail in any way
            raise EnvironmentFaultError(
                f"the vector environment failed in step {self._steps}, after actions {short(actions)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        rewards = np.asarray(rewards, np.float64)
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        rows = self._codec.rows(obs)[0]
        valid = ~self._resetting
        terminated, truncated = terminated & valid, truncated & valid
        self._checked(rows, rewards, actions)
        finals = {}
        for i in np.flatnonzero(terminated | truncated).tolist():
            finals[i] = np.array(self._codec.row(infos["final_obs"][i]) if self._same_step else rows[i])
            self._checked(finals[i][None], rewards[i : i + 1], actions[i : i + 1], first=i)
        if not self._same_step:
            self._resetting = terminated | truncated
        return StepRecord(rows, rewards, terminated, truncated, finals, valid)

    def _checked(self, rows: np.ndarray, rewards: np.ndarray, actions: np.ndarray | None, first: int = 0) -> np.ndarray:
        if not (np.isfinite(rows).all() and np.isfinite(rewards).all()):
            i = int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(1) & np.isfinite(rewards)))
            how = "at reset" if actions is None else f"after action {short(actions[i])}"
            raise EnvironmentFaultError(
                f"environment {first + i}, step {self._steps}, {how}: the observation {short(rows[i])} or the reward "
                f"{rewards[i]} is not finite"
            )
        return rows

    def states(self) -> list[EnvState | None]:
        """See `Envs`; what is inside cannot be known."""
        return [None] * self.num_envs

    def restore(self, states: Sequence[EnvState]) -> tuple[np.ndarray, list[str]]:
        """Raise NotImplementedError; there are no states to come back to."""
        raise NotImplementedError("these environments give no states to come back to")

    def close(self) -> None:
        """See `Envs`."""
        self._envs.close()

    def __enter__(self) -> VectorEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
