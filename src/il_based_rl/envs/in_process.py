"""Environments in this process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from gymnasium.envs.registration import EnvSpec

from il_based_rl.envs.record import EXACT, EnvState, StepRecord
from il_based_rl.envs.single import Player, make_env, resume_level
from il_based_rl.errors import ConfigError


@dataclass(frozen=True)
class Watch:
    """Where somebody outside can see which environment is being stepped; arrays of one number each."""

    index: np.ndarray
    episode: np.ndarray
    step: np.ndarray


class InProcessEnvs:
    """Environments in this process, stepped one after the other.

    Args:
        env_id: Gymnasium environment ID, or a registration.
        num_envs: N.
        first_index: Number of the first one, for messages.
        strict_bounds: See `Player`.

    Raises:
        UnsupportedSpaceError: Its observations cannot be read.
        See `make_env`.
    """

    def __init__(self, env_id: str | EnvSpec, num_envs: int = 1, first_index: int = 0, *, strict_bounds: bool = False) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs must be above 0, got {num_envs}")
        self._env_id, self.num_envs = env_id, num_envs
        self._players = [Player(make_env(env_id), first_index + i, strict_bounds=strict_bounds) for i in range(num_envs)]
        self.observation_space = self._players[0].env.observation_space
        self.action_space = self._players[0].env.action_space
        codec = self._players[0].codec
        self.watch: Watch | None = None
        self.record = StepRecord(
            rows=np.zeros((num_envs, *codec.row_shape), codec.row_dtype),
            rewards=np.zeros(num_envs),
            terminated=np.zeros(num_envs, bool),
            truncated=np.zeros(num_envs, bool),
            final_rows={},
            valid=np.ones(num_envs, bool),
        )

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`."""
        for i, (player, seed) in enumerate(zip(self._players, seeds, strict=True)):
            self._note(player.index, 1, 0)
            player.reset(seed)
            self.record.rows[i] = player.row
        return self.record.rows

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        record, watched = self.record, self.watch is not None
        rows, rewards = record.rows, record.rewards
        record.final_rows = {}
        record.terminated.fill(False)
        record.truncated.fill(False)
        for i, player in enumerate(self._players):
            if watched:
                self._note(player.index, player.episode, player.steps + 1)
            rewards[i], terminated, truncated = player.step(actions[i])
            if terminated or truncated:
                record.terminated[i], record.truncated[i] = terminated, truncated
                record.final_rows[i] = np.array(player.row)
                self._note(player.index, player.episode + 1, 0)
                player.reset()
            rows[i] = player.row
        return record

    def states(self) -> list[EnvState | None]:
        """See `Envs`."""
        return [player.state() for player in self._players]

    def restore(self, states: Sequence[EnvState]) -> tuple[np.ndarray, list[str]]:
        """See `Envs`."""
        levels, replay = [], resume_level(self._env_id) == EXACT
        for i, (player, state) in enumerate(zip(self._players, states, strict=True)):
            note = functools.partial(self._note, player.index, state.episode)
            note(0)
            levels.append(player.restore(state, replay=replay, watch=note))
            self.record.rows[i] = player.row
        return self.record.rows, levels

    def _note(self, index: int, episode: int, step: int) -> None:
        if self.watch is not None:
            self.watch.index[0], self.watch.episode[0], self.watch.step[0] = index, episode, step

    def close(self) -> None:
        """See `Envs`."""
        for player in self._players:
            player.close()

    def __enter__(self) -> InProcessEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
