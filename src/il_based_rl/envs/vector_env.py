"""Gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from il_based_rl.envs.bounds import REMEDY, Bounds, short
from il_based_rl.envs.record import EnvState, StepRecord
from il_based_rl.envs.single import place
from il_based_rl.errors import ConfigError, EnvironmentFaultError
from il_based_rl.spaces import ObservationCodec


class VectorEnvs:
    """Any Gymnasium vector environment that resets finished episodes by itself, SAME_STEP or NEXT_STEP.

    Args:
        envs: The vector environment; closed with this.
        observation_space: Of one environment, where it is to pass for another than its own.
        action_space: Likewise; actions are cast to the environment's own number type.
        seeds: What each environment was seeded with when it was made, where it was.
        strict_bounds: Whether an observation outside its space's bounds is an error.

    Raises:
        ConfigError: Its autoreset mode is DISABLED.
        UnsupportedSpaceError: Its observations cannot be read.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Any, Any, Any],
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        strict_bounds: bool = False,
    ) -> None:
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigError(
                f"the vector environment's autoreset mode is {mode!r}; expected SAME_STEP or NEXT_STEP of AutoresetMode"
            )
        self._envs, self._same_step = envs, mode == AutoresetMode.SAME_STEP
        self.num_envs = len(envs) if hasattr(envs, "__len__") else envs.num_envs
        self.observation_space = observation_space or envs.single_observation_space
        self.action_space = action_space or envs.single_action_space
        self._action_dtype = envs.single_action_space.dtype
        self._codec = ObservationCodec(self.observation_space)
        self._bounds = Bounds.of(self._codec) if strict_bounds else None
        self._seeds: list[int | None] = [None] * self.num_envs if seeds is None else list(seeds)
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._resetting = np.zeros(self.num_envs, bool)
        self._episodes = [1] * self.num_envs
        self._begun_at = [0] * self.num_envs  # of `_steps`, when the running episode began

    def reset(self, seeds: Sequence[int] | None) -> np.ndarray:
        """See `Envs`; None leaves the environments their own seeds.

        Raises:
            EnvironmentFaultError: They failed, or gave an observation that is not finite, or outside strict bounds.
        """
        self._begin()
        told: Any = {}
        if seeds is not None:
            # Gymnasium's two take one seed for each environment; of any other it is only known that it takes one for all.
            each = isinstance(self._envs.unwrapped, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv)
            self._seeds = list(seeds) if each else [seeds[0]] * self.num_envs
            told["seed"] = list(seeds) if each else seeds[0]
        try:
            rows = self._codec.rows(self._envs.reset(**told)[0])[0]
            self._require_rows(rows)
        except Exception as error:  # another author's code may fail in any way
            raise self._failure("at reset", error) from error
        self._require_sound(rows, np.zeros(self.num_envs), rows)
        return rows

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`.

        Raises:
            EnvironmentFaultError: As in `reset`, or a reward is not finite.
        """
        self._steps += 1
        try:
            obs, rewards, terminated, truncated, infos = self._envs.step(actions.astype(self._action_dtype, copy=False))
            rows, rewards = self._codec.rows(obs)[0], np.asarray(rewards, np.float64)
            terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
            self._require_rows(rows)
            for name, column in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
                if column.shape != (self.num_envs,):
                    raise ValueError(f"{name} of shape {column.shape}; expected ({self.num_envs},), one an environment")
        except Exception as error:  # as above
            raise self._failure(f"in step {self._steps} since its reset", error, actions) from error
        valid = ~self._resetting
        terminated, truncated = terminated & valid, truncated & valid
        finals = {}
        for i in np.flatnonzero(terminated | truncated).tolist():
            finals[i] = np.array(self._final_row(infos, i, actions[i]) if self._same_step else rows[i])
            self._require_sound(finals[i][None], rewards[i : i + 1], actions[i : i + 1], first=i)
            self._episodes[i] += 1
            self._begun_at[i] = self._steps if self._same_step else self._steps + 1
        self._require_sound(rows, rewards, actions)
        if not self._same_step:
            self._resetting = terminated | truncated
        return StepRecord(rows, rewards, terminated, truncated, finals, valid)

    def _require_rows(self, rows: np.ndarray) -> None:
        if len(rows) != self.num_envs:
            raise ValueError(f"{len(rows)} observations; expected {self.num_envs}, one an environment")

    def _final_row(self, infos: Any, i: int, action: np.ndarray) -> np.ndarray:
        try:
            # Gymnasium's DictInfoToList gives a list, one an environment.
            return self._codec.row(infos[i]["final_obs"] if isinstance(infos, list) else infos["final_obs"][i])
        except Exception as error:  # as above
            raise EnvironmentFaultError(
                f"{self._place(i, action)}: the observation that the episode ended in: {type(error).__name__}: {error}"
            ) from error

    def _place(self, i: int, action: np.ndarray) -> str:
        return place(i, self._seeds[i], self._episodes[i], self._steps - self._begun_at[i], action)

    def _require_sound(self, rows: np.ndarray, rewards: np.ndarray, actions: np.ndarray, first: int = 0) -> None:
        with np.errstate(over="ignore"):
            finite = np.isfinite(rows.astype(np.float32, copy=False))  # as they will be read
            sound = finite if self._bounds is None else finite & self._bounds.inside(rows)
        if sound.all() and np.isfinite(rewards).all():
            return
        k = int(np.argmin(sound.reshape(len(rows), -1).all(1) & np.isfinite(rewards)))
        row, i = rows[k], first + k
        if not np.isfinite(rewards[k]):
            what = f"the reward is {rewards[k]}"
        elif self._bounds is None or not finite[k].all():
            what = f"the observation is not finite in float32: {short(row)}"
        else:
            what = f"{self._bounds.misfit(row)}; {REMEDY}"
        raise EnvironmentFaultError(f"{self._place(i, actions[k])}: {what}")

    def _failure(self, when: str, error: Exception, actions: np.ndarray | None = None) -> EnvironmentFaultError:
        what = f"{type(error).__name__}: {error}"
        seeds = f"; its seeds: {short(self._seeds)}" if self._seeds[0] is not None else ""
        after = "" if actions is None else f"; the actions: {short(actions)}"
        return EnvironmentFaultError(f"the vector environment failed {when}: {what}{seeds}{after}")

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
