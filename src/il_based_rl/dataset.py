"""DemoDataset: demonstrations as flat arrays, one row a transition, in whole episodes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from il_based_rl.errors import FileFormatError, SpaceMismatchError
from il_based_rl.files import read_arrays, write_arrays
from il_based_rl.spaces import same_space, space_from_plain

_ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "final_observations",
    "episode_lengths",
    "seeds",
)
_OPTIONAL = ("executed_actions", "distributions", "acted_by")
"""Further arrays, one row a transition."""
_TRUTH, _WHOLE = ("b", "truth values"), ("iu", "whole numbers")
_KINDS = {"terminated": _TRUTH, "truncated": _TRUTH, "episode_lengths": _WHOLE, "seeds": _WHOLE, "acted_by": _WHOLE}
"""NumPy's letters for their kinds of numbers, and what those are called; the others hold any."""


@dataclass(frozen=True, eq=False)
class DemoDataset:
    """Whole episodes of demonstrations, one after the other.

    `len(dataset)` counts transitions; `dataset.episodes` is a sequence of one-episode data sets that can be sliced.

    Raises:
        ValueError: The arrays contradict each other, or hold a number that is not finite.
    """

    observations: np.ndarray
    """Raw observation before each action, not normalised; of a Dict or Tuple space flattened. Shape (T, *observation)."""
    actions: np.ndarray
    """The label to imitate; for plain collection what the environment executed. Shape (T, *action)."""
    rewards: np.ndarray
    """Raw reward after each action. Shape (T,), float64."""
    terminated: np.ndarray
    """The task ended with this transition. Shape (T,), bool."""
    truncated: np.ndarray
    """The clock ran out with this transition. Shape (T,), bool."""
    final_observations: np.ndarray
    """Observation that each episode ended in. Shape (E, *observation)."""
    episode_lengths: np.ndarray
    """Transitions of each episode. Shape (E,), int64."""
    seeds: np.ndarray
    """Seed that each episode's environment was reset with. Shape (E,), int64."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: `env_id`, `observation_space`, `action_space`, who acted and how, package versions."""
    executed_actions: np.ndarray | None = None
    """What the environment executed, where that is not the label (noise, DAgger). Shape (T, *action)."""
    distributions: np.ndarray | None = None
    """Distribution of the action of whoever gave the label: for Box its mean and standard deviation before clipping, side by
    side, in the environment's units; else logits. Shape (T, P)."""
    acted_by: np.ndarray | None = None
    """Who acted, as an index into the metadata's `policies`; the metadata's `labelled_by` gave the label. Shape (T,), int64."""

    def __post_init__(self) -> None:
        for name in (*_ARRAYS, *self._optional):
            array, (kinds, expected) = getattr(self, name), _KINDS.get(name, ("biuf", "numbers"))
            if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in kinds:
                what = getattr(array, "dtype", type(array).__name__)
                raise ValueError(f"demonstrations hold {name} of type {what}; expected an array of {expected}")
        object.__setattr__(self, "episode_lengths", self.episode_lengths.astype(np.int64))  # by which rows are counted
        steps, episodes = len(self.observations), len(self.episode_lengths)
        for name in ("observations", "actions"):
            _require(math.prod(getattr(self, name).shape[1:]) > 0, f"{name} of shape {getattr(self, name).shape}")
        for name in ("rewards", "terminated", "truncated", "episode_lengths", "seeds"):
            _require(getattr(self, name).ndim == 1, f"{name} of shape {getattr(self, name).shape}")
        for name in _ARRAYS[1:5]:
            _require(len(getattr(self, name)) == steps, f"{len(getattr(self, name))} {name} for {steps} observations")
        for name in ("final_observations", "seeds"):
            _require(len(getattr(self, name)) == episodes, f"{len(getattr(self, name))} {name} for {episodes} episodes")
        _require(episodes > 0 and bool((self.episode_lengths > 0).all()), "an episode without transitions")
        _require(
            int(self.episode_lengths.sum()) == steps, f"episodes of {self.episode_lengths.sum()} steps for {steps} observations"
        )
        _require(
            self.observations.shape[1:] == self.final_observations.shape[1:],
            f"observations of shape {self.observations.shape[1:]}, final ones of {self.final_observations.shape[1:]}",
        )
        for name in self._optional:
            _require(len(getattr(self, name)) == steps, f"{len(getattr(self, name))} {name} for {steps} observations")
        executed, acted_by = self.executed_actions, self.acted_by
        _require(executed is None or executed.shape == self.actions.shape, "executed actions of another shape than the labels")
        policies = self.metadata.get("policies")
        known = len(policies) if isinstance(policies, list) else 0
        _require(
            acted_by is None or (acted_by.ndim == 1 and bool(((acted_by >= 0) & (acted_by < known)).all())),
            f"actions by others than the {known} policies that the metadata name",
        )
        ends = np.zeros(steps, bool)
        ends[np.cumsum(self.episode_lengths) - 1] = True
        _require(
            bool((ends == (self.terminated | self.truncated)).all()),
            "episode lengths that do not end where the terminated and truncated flags do",
        )
        for name in ("observations", "actions", "rewards", "final_observations", *self._optional):
            finite = np.isfinite(getattr(self, name)).reshape(len(getattr(self, name)), -1).all(1)
            if not finite.all():
                raise ValueError(self._place_of_fault(name, int(np.argmin(finite))))

    def _place_of_fault(self, name: str, row: int) -> str:
        if name == "final_observations":
            steps = int(self.episode_lengths[row])
            action = np.asarray(self.actions[self.episode_starts[row] + steps - 1]).tolist()
            return (
                f"demonstrations hold a number that is not finite in the final observation of episode {row}, "
                f"step {steps}, after action {action}"
            )
        episode = int(np.searchsorted(np.cumsum(self.episode_lengths), row, side="right"))
        step = row - int(self.episode_lengths[:episode].sum())
        led_there = row if name == "rewards" else row - 1  # a reward follows its own row's action, an observation the last
        action = "" if led_there < row and step == 0 else f", after action {np.asarray(self.actions[led_there]).tolist()}"
        return f"demonstrations hold a number that is not finite in {name} of episode {episode}, step {step}{action}"

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def _optional(self) -> list[str]:
        """Further arrays that are there."""
        return [name for name in _OPTIONAL if getattr(self, name) is not None]

    @property
    def episodes(self) -> Episodes:
        """The episodes, as a sequence: `dataset.episodes[3]`, `dataset.episodes[:10]`, `for episode in dataset.episodes`."""
        return Episodes(self)

    @property
    def num_episodes(self) -> int:
        """How many episodes there are."""
        return len(self.episode_lengths)

    @property
    def episode_starts(self) -> np.ndarray:
        """Row of each episode's first transition. Shape (E,)."""
        return np.cumsum(self.episode_lengths) - self.episode_lengths

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted sum of rewards of each episode. Shape (E,)."""
        return np.add.reduceat(self.rewards, self.episode_starts)

    def require_env(self, env_id: str, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        """Raise SpaceMismatchError unless these are demonstrations in an environment, as far as their metadata tell."""
        own = self.metadata.get("env_id")
        if own is not None and str(own).rpartition(":")[2] != env_id.rpartition(":")[2]:  # which may name a module before it
            raise SpaceMismatchError(
                f"the demonstrations are of {own}, not of {env_id}; collect others, or name their environment"
            )
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if name in self.metadata and not same_space(space_from_plain(self.metadata[name]), space):
                raise SpaceMismatchError(f"the demonstrations' {name} is not that of {env_id}, {space}; collect others")

    def select(self, episodes: Sequence[int] | np.ndarray) -> DemoDataset:
        """Return the data set of these episodes, in this order.

        Args:
            episodes: Their numbers; or of every episode whether it is wanted, shape (E,), bool.

        Raises:
            IndexError: There is no such episode, or none is wanted.
        """
        chosen = np.asarray(episodes)
        if chosen.dtype == bool and chosen.shape == (self.num_episodes,):
            chosen = np.flatnonzero(chosen)
        whole = chosen.ndim == 1 and chosen.dtype.kind in "iu"
        if not whole or len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= self.num_episodes:
            raise IndexError(
                f"episodes {episodes!r:.80} of a data set of {self.num_episodes} episodes; expected whole numbers from 0 to "
                f"{self.num_episodes - 1}, or as many truth values as there are episodes"
            )
        starts, lengths = self.episode_starts[chosen], self.episode_lengths[chosen]
        rows = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
        return DemoDataset(
            **{name: getattr(self, name)[rows] for name in (*_ARRAYS[:5], *self._optional)},
            **{name: getattr(self, name)[chosen] for name in _ARRAYS[5:]},
            metadata=self.metadata,
        )

    @classmethod
    def joined(cls, parts: Iterable[DemoDataset], metadata: Mapping[str, Any]) -> DemoDataset:
        """Return the episodes of several data sets as one; of the further arrays those that all of them have, of one shape."""
        if not (parts := list(parts)):
            raise ValueError("no data sets to join; give one or more")
        if any(part.executed_actions is not None for part in parts):  # of the others it was the label
            parts = [
                part if part.executed_actions is not None else replace(part, executed_actions=part.actions) for part in parts
            ]
        found = {name: [getattr(part, name) for part in parts] for name in _OPTIONAL}
        shared = [
            name
            for name, arrays in found.items()
            if all(each is not None for each in arrays) and len({each.shape[1:] for each in arrays}) == 1
        ]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_ARRAYS, *shared)}
        return cls(**arrays, metadata=metadata)

    def summary(self) -> dict[str, Any]:
        """Return what the data set holds in a few plain numbers."""
        returns, lengths = self.returns, self.episode_lengths
        return {
            "env_id": self.metadata.get("env_id"),
            "episodes": self.num_episodes,
            "transitions": len(self),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "length_min": int(lengths.min()),
            "length_max": int(lengths.max()),
            "terminated": int(self.terminated.sum()),
            "truncated": int((self.truncated & ~self.terminated).sum()),
            "observation_shape": list(self.observations.shape[1:]),
            "action_shape": list(self.actions.shape[1:]),
        }

    @property
    def fingerprint(self) -> str:
        """A digest of all numbers: two data sets with the same one are the same (SHA-256)."""
        digest = hashlib.sha256()
        for name in (*_ARRAYS, *self._optional):
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the data set as one `.npz` file.

        Raises:
            FileWriteError: The file cannot be written; an older one is as it was.
        """
        write_arrays(path, {name: getattr(self, name) for name in (*_ARRAYS, *self._optional)}, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> DemoDataset:
        """Read a data set that `save` wrote; nothing in the file is executed.

        Raises:
            FileMissingError: There is no such file.
            FileFormatError: It is damaged, foreign, of another version, or contradicts itself.
        """
        arrays, metadata = read_arrays(path)
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise FileFormatError(f"{path} lacks {', '.join(missing)}; collect it again")
        names = [*_ARRAYS, *(name for name in _OPTIONAL if name in arrays)]
        try:
            return cls(**{name: arrays[name] for name in names}, metadata=metadata)
        except (ValueError, IndexError, TypeError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(f"demonstrations contradict themselves: {fault}")


class Episodes:
    """The episodes of a data set; a number gives one, a slice a data set of several."""

    def __init__(self, dataset: DemoDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_episodes

    def __getitem__(self, which: int | slice) -> DemoDataset:
        if isinstance(which, slice):
            return self._dataset.select(range(len(self))[which])
        return self._dataset.select([range(len(self))[which]])

    def __iter__(self) -> Iterator[DemoDataset]:
        return (self[i] for i in range(len(self)))
