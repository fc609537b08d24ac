"""A policy and a world: fill a buffer with steps to learn from, or play whole episodes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from il_based_rl.buffer import RolloutBuffer
from il_based_rl.cli import notice
from il_based_rl.envs import (
    EXACT,
    FROM_WEIGHTS,
    LEVELS,
    REPLAYED_STEPS,
    Bounds,
    Envs,
    EnvState,
    Player,
    bounds_hold,
    make_players,
)
from il_based_rl.files import STORED_DTYPES
from il_based_rl.heads import ActionHead
from il_based_rl.networks import NumpyFunction
from il_based_rl.policy import MLPPolicy
from il_based_rl.seeding import require_generator_state
from il_based_rl.spaces import ObservationCodec


class Situation(Protocol):
    """What a policy may know of an environment when it is asked for an action; `Player` is one."""

    @property
    def index(self) -> int:
        """The environment's number among its neighbours."""

    @property
    def steps(self) -> int:
        """Steps of the running episode."""

    @property
    def obs(self) -> Any:
        """The present observation, as the environment gave it."""

    @property
    def row(self) -> np.ndarray:
        """The present observation as a row."""


@dataclass(frozen=True)
class Choice:
    """Actions for several situations, by an actor that would have other ones imitated."""

    executed: np.ndarray
    """What the environments are to execute. Shape (number of situations, *action)."""
    labels: np.ndarray
    """What is to be imitated, of the same shape."""
    acted_by: np.ndarray
    """Whose actions are executed, as a number of the actor's own. Shape (number of situations,), int64."""


Actor = Callable[[Sequence[Situation]], np.ndarray]
"""Chooses an action for each situation; shape (number of situations, *action)."""
Teacher = Callable[[Sequence[Situation]], Choice]
"""The same, with another action to be imitated."""

MAX_PLAYERS = 16
"""Episodes played side by side: enough to share the policy's cost, few enough to make and to hold."""
MAX_EPISODE_STEPS = 50_000
"""An episode that has not ended by then is taken for endless, and cut, unless its environment has a time limit."""


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended during a rollout."""

    total_reward: float
    length: int


@dataclass(frozen=True)
class RolloutState:
    """Where the environments of a training run are, and what their running episodes have brought. Arrays of shape (N,)."""

    envs: list[EnvState | None]
    discounted: np.ndarray
    """Discounted sum of rewards."""
    total_rewards: np.ndarray
    """Sum of rewards."""
    lengths: np.ndarray
    """Steps before the next rollout."""


class Rollouts:
    """A policy at work in environments that never stop: each `fill` goes on where the last one ended.

    Args:
        envs: The environments.
        head: The policy's kind of action.
        seeds: One for each environment's first reset.
        since: What `state` returned, to go on from there.
    """

    def __init__(self, envs: Envs, head: ActionHead, seeds: Sequence[int], since: RolloutState | None = None) -> None:
        self._envs, self._head = envs, head
        self._codec = ObservationCodec(envs.observation_space)
        self.discounted = np.zeros(envs.num_envs)
        """Discounted sum of each running episode's rewards. Shape (N,)."""
        self._total_rewards = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        self.level = EXACT
        """How much of the environments is as it was in `since`; the least of all."""
        rows, levels = _restored(envs, since)
        if since is None or rows is None:
            rows, self.level = envs.reset(seeds), EXACT if since is None else FROM_WEIGHTS
        else:
            self.level = max(levels, key=LEVELS.index)
            same_episode = np.array([level == EXACT for level in levels])
            self.discounted = np.where(same_episode, since.discounted, 0.0)
            self._total_rewards = np.where(same_episode, since.total_rewards, 0.0)
            self._lengths = np.where(same_episode, since.lengths, 0)
        self.features = np.array(self._codec.features(rows))
        """Features of the observations to act upon next. Shape (N, O)."""

    def state(self) -> RolloutState:
        """Return what it takes to go on from here."""
        running = (self.discounted, self._total_rewards, self._lengths)
        return RolloutState(self._envs.states(), *(np.array(each) for each in running))

    def fill(self, buffer: RolloutBuffer, actor: NumpyFunction, noise: np.ndarray) -> list[FinishedEpisode]:
        """Act until the buffer is full.

        Args:
            buffer: Overwritten.
            actor: Features to the head's outputs.
            noise: What is added to the outputs of each step. Shape (T, N, num_outputs).

        Returns:
            The episodes that ended, in raw reward.
        """
        buffer.clear()
        features, head, codec, envs = self.features, self._head, self._codec, self._envs
        features_of, raw_actions, rewards = buffer.features, buffer.raw_actions, buffer.rewards
        terminated, truncated, valid = buffer.terminated, buffer.truncated, buffer.valid
        for t in range(buffer.num_steps):
            raw = head.mode(actor(features) + noise[t])
            features_of[t], raw_actions[t] = features, raw  # before the step, which may overwrite them
            record = envs.step(head.to_env(raw))
            rewards[t], valid[t] = record.rewards, record.valid
            terminated[t], truncated[t] = record.terminated, record.truncated
            for i, row in record.final_rows.items():
                if not record.terminated[i]:
                    buffer.truncations.append((t, i))
                    buffer.final_features.append(codec.features(row[None])[0])
            features = codec.features(record.rows)
        self.features = np.array(features)
        return self._finished(buffer)

    def _finished(self, buffer: RolloutBuffer) -> list[FinishedEpisode]:
        """Add up the rewards of each episode, from the rollout that it began in to the one that it ended in."""
        rewards = np.where(buffer.valid, buffer.rewards, 0.0)
        episodes: list[FinishedEpisode] = []
        for i in range(rewards.shape[1]):
            start = 0
            for end in (np.flatnonzero(buffer.done[:, i]) + 1).tolist():
                total = self._total_rewards[i] + rewards[start:end, i].sum()
                episodes.append(FinishedEpisode(float(total), int(self._lengths[i] + buffer.valid[start:end, i].sum())))
                self._total_rewards[i], self._lengths[i], start = 0.0, 0, end
            self._total_rewards[i] += rewards[start:, i].sum()
            self._lengths[i] += buffer.valid[start:, i].sum()
        return episodes


def _restored(envs: Envs, since: RolloutState | None) -> tuple[np.ndarray | None, list[str]]:
    states = [] if since is None else [state for state in since.envs if state is not None]
    if since is None or len(states) < len(since.envs):
        return None, []
    try:
        return envs.restore(states)
    except NotImplementedError:  # of a kind that gives none
        return None, []


def to_plain(state: RolloutState) -> dict[str, Any]:
    """Describe a state by tensors and plain values, as a checkpoint holds them; `from_plain` reads it again."""
    numbers = {name: torch.from_numpy(getattr(state, name)) for name in ("discounted", "total_rewards", "lengths")}
    return {**numbers, "envs": [None if each is None else _plain_env(each) for each in state.envs]}


def _plain_env(state: EnvState) -> dict[str, Any] | None:
    arrays = {name: None if (array := getattr(state, name)) is None else _storable(array) for name in ("actions", "row")}
    if any(array is not None and str(array.dtype) not in STORED_DTYPES for array in arrays.values()):
        return None
    tensors = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
    return {**asdict(state), **tensors}


def _storable(array: np.ndarray) -> np.ndarray:
    """Turn whole numbers without a sign, of types that a checkpoint does not hold, into int64; `_unsigned` undoes that."""
    return array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array


def _unsigned(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Turn int64 into the type of a space that has no sign."""
    return array.astype(dtype) if np.dtype(dtype).kind == "u" and array.dtype == np.int64 else array


def from_plain(plain: Mapping[str, Any], policy: MLPPolicy) -> RolloutState:
    """Build the state that `to_plain` described, for environments of a policy's spaces.

    Raises:
        ValueError: It contradicts itself, or is of other spaces.
    """
    envs = [None if each is None else _env_from_plain(each, policy) for each in plain["envs"]]
    numbers = [plain[name].numpy() for name in ("discounted", "total_rewards", "lengths")]
    if any(each.shape != (len(envs),) or not np.isfinite(each).all() for each in numbers):
        raise ValueError("the running episodes' sums do not fit the environments")
    return RolloutState(envs, *numbers)


def _env_from_plain(plain: Mapping[str, Any], policy: MLPPolicy) -> EnvState:
    actions: Any = None if plain["actions"] is None else _unsigned(plain["actions"].numpy(), policy.action_space.dtype)
    row, total_reward = _unsigned(plain["row"].numpy(), policy.codec.row_dtype), plain.get("total_reward")
    require_generator_state(plain["generator"])
    if plain["generator_at_reset"] is not None:
        require_generator_state(plain["generator_at_reset"])
    steps, shape = -1 if actions is None else len(actions), policy.action_space.shape or ()
    if row.shape != policy.codec.row_shape or (steps > 0 and actions.shape[1:] != shape):
        raise ValueError("an environment's observation or actions are not of the policy's spaces")
    whole = type(plain["episode"]) is int and type(plain["seed"]) is int
    if steps > REPLAYED_STEPS or not whole or plain["episode"] < 1 or not 0 <= plain["seed"] < 2**63:
        raise ValueError("an environment's steps, episode or seed are out of range")
    if steps > 0 and not np.isfinite(actions).all():
        raise ValueError("an environment's actions are not finite")
    if total_reward is not None and type(total_reward) is not float:
        raise ValueError("an environment's rewards are no number")
    return EnvState(**{**plain, "actions": actions, "row": row})


@dataclass(frozen=True)
class Episode:
    """One whole episode; T is its length, or 1 where only its last step was kept, but for the rewards."""

    index: int
    """Its place in the order of the start seeds."""
    seed: int
    rows: np.ndarray
    """Raw observation before each action. Shape (T, *row)."""
    actions: np.ndarray
    """As executed. Shape (T, *action)."""
    labels: np.ndarray
    """What to imitate: the same, unless the actor gave a `Choice`. Shape (T, *action)."""
    acted_by: np.ndarray
    """See `Choice`; 0 without one. Shape (T,), int64."""
    rewards: np.ndarray
    """Raw, of all its steps. Shape (length,)."""
    terminated: bool
    truncated: bool
    final_row: np.ndarray
    """Raw observation that it ended in. Shape (*row,)."""
    success: bool | None = None
    """Whether it reached its goal; None where the environment does not say (`is_success` or `success` at its last step)."""

    @property
    def total_reward(self) -> float:
        """Undiscounted return, in raw reward."""
        return float(self.rewards.sum())


class EpisodePlayers:
    """A few environments of one kind that play whole episodes from given start seeds.

    Args:
        env_id: Gymnasium environment ID.
        count: Episodes played side by side.
        bounds: Whether an observation outside its space's bounds is an error, see `envs.make_envs`; None, where nothing is
            learned from the episodes, says so once and takes it as it is.

    Raises:
        See `envs.make_env`.
    """

    def __init__(self, env_id: str, count: int, *, bounds: str | None = None) -> None:
        self.env_id = str(getattr(env_id, "id", env_id))
        self._players = make_players(env_id, min(count, MAX_PLAYERS), bounds=bounds or "any")
        self.observation_space = self._players[0].env.observation_space
        self.action_space = self._players[0].env.action_space
        self.codec = self._players[0].codec
        self._watched = Bounds.of(self.codec) if bounds is None and bounds_hold(env_id, "auto") else None

    def play(
        self,
        actor: Actor | Teacher,
        start_seeds: Iterable[int],
        max_steps: int | None = None,
        *,
        one_by_one: bool = False,
        whole: bool = True,
    ) -> Iterator[Episode]:
        """Play one episode from each seed, and yield each as it ends.

        Which episodes are played does not depend on how long they take, so that short ones are not preferred.

        Args:
            actor: Chooses the actions.
            start_seeds: For `reset`.
            max_steps: Steps of all episodes together, after which those that are being played are cut.
            one_by_one: Whether an episode begins only when the one before has ended.
            whole: Whether episodes hold what was seen and done at each step, or at the last one alone.

        Raises:
            EnvironmentFaultError: The environment failed.
        """
        players = self._players[:1] if one_by_one else self._players
        left = math.inf if max_steps is None else max_steps
        waiting = enumerate(start_seeds)
        playing = [p for player in players for p in [self._begun(player, waiting, whole)] if p is not None]
        while playing:
            if left < len(playing):
                yield from (running.cut() for running in playing[int(left) :] if running.player.steps > 0)
                playing = playing[: int(left)]
                if not playing:
                    return
            left -= len(playing)
            chosen = actor([running.player for running in playing])
            if isinstance(chosen, Choice):
                for running, label, by in zip(playing, chosen.labels, chosen.acted_by, strict=True):
                    running.note(label, int(by))
                chosen = chosen.executed
            still_playing: list[_Running] = []
            for running, action in zip(playing, chosen, strict=True):
                episode = running.step(action)
                self._look_at_bounds(running)
                if episode is None:
                    still_playing.append(running)
                    continue
                yield episode
                if (following := self._begun(running.player, waiting, whole)) is not None:
                    still_playing.append(following)
            playing = still_playing

    def _begun(self, player: Player, waiting: Iterator[tuple[int, int]], whole: bool) -> _Running | None:
        if (following := next(waiting, None)) is None:
            return None
        running = _Running(player, *following, whole)
        self._look_at_bounds(running)
        return running

    def _look_at_bounds(self, running: _Running) -> None:
        """Say so, once, if the present observation is outside the bounds."""
        bounds, player = self._watched, running.player
        if bounds is None or bounds.surely_hold(player.row) or (misfit := bounds.misfit(player.row)) is None:
            return
        where = f"{self.env_id}, start seed {running.seed}, step {player.steps}"
        notice(f"{where}: {misfit}; it is taken as it is, and nothing more said")
        self._watched = None

    def close(self) -> None:
        """Close the environments."""
        for player in self._players:
            player.close()

    def __enter__(self) -> EpisodePlayers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Running:
    """An episode that is being played; `whole` as in `EpisodePlayers.play`."""

    def __init__(self, player: Player, index: int, seed: int, whole: bool) -> None:
        self.player, self.seed = player, seed
        self._index, self._whole = index, whole
        self._rows: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._acted_by: list[int] = []
        self._rewards: list[float] = []
        player.reset(seed)

    def note(self, label: np.ndarray, acted_by: int) -> None:
        """Keep what is to be imitated in the step that follows."""
        self._keep(self._labels, np.array(label))
        self._keep(self._acted_by, acted_by)

    def _keep(self, kept: list[Any], step: Any) -> None:
        if not self._whole:
            kept.clear()
        kept.append(step)

    def step(self, action: np.ndarray) -> Episode | None:
        player = self.player
        self._keep(self._rows, np.array(player.row))
        self._keep(self._actions, np.array(action))  # a copy, as an environment may write into what it is given
        reward, terminated, truncated = player.step(action)
        self._rewards.append(reward)
        if not (terminated or truncated):
            if player.steps < MAX_EPISODE_STEPS or (player.env.spec is not None and player.env.spec.max_episode_steps):
                return None
            truncated = True
            notice(f"an episode (start seed {self.seed}) is cut after {player.steps} steps; the environment has no time limit")
        return self._ended(terminated, truncated)

    def cut(self) -> Episode:
        """End it where it is; it has had a step."""
        return self._ended(terminated=False, truncated=True)

    def _ended(self, terminated: bool, truncated: bool) -> Episode:
        player = self.player
        return Episode(
            index=self._index,
            seed=self.seed,
            rows=np.stack(self._rows),
            actions=np.stack(self._actions),
            labels=np.stack(self._labels or self._actions),
            acted_by=np.array(self._acted_by or [0] * len(self._actions), np.int64),
            rewards=np.array(self._rewards),
            terminated=terminated,
            truncated=truncated,
            final_row=np.array(player.row),
            success=_success(player.info),
        )


def _success(info: Any) -> bool | None:
    told = [info[key] for key in ("is_success", "success") if key in info] if isinstance(info, Mapping) else []
    if not told:
        return None
    with contextlib.suppress(Exception):  # another author's value may be anything
        value = np.asarray(told[0])
        if value.size == 1 and value.dtype.kind in "biuf" and np.isfinite(value).all():
            return bool(value.item())
    return None
