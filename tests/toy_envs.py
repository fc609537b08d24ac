"""Small environments whose numbers tell where they come from, and environments that break a rule in a known place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

RESETS: list[int | None] = []
"""Seed of every reset of a `Counter`, in order; clear it before use."""
ACTIONS: list[np.ndarray] = []
"""Every action that a `Counter` executed, in order; clear it before use."""


class Counter(gym.Env):
    """Observation (seed % 1000, episode since that seed, step); reward 100 * episode + step after the action.

    Args:
        ends: "terminated", "truncated", "both" or "never".
        length: Steps of an episode by its seed's tag and its number.
        fault: What happens at step 2: "nan obs", "inf obs", "nan reward", "inf reward", "raise", "shape" or None;
            "raise at reset" and "nan at reset" happen before the first step.
    """

    def __init__(
        self,
        ends: str = "terminated",
        length: Callable[[int, int], int] = lambda tag, episode: 3 + episode % 2,
        fault: str | None = None,
        action_space: gym.Space[Any] | None = None,
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._ends, self._length, self._fault = ends, length, fault
        self._tag, self._episode, self._step = 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        RESETS.append(seed)
        self._tag, self._episode = (self._tag, self._episode + 1) if seed is None else (seed % 1000, 0)
        self._step = 0
        if self._fault == "raise at reset":
            raise RuntimeError("no power")
        return (np.full(3, np.nan, np.float32) if self._fault == "nan at reset" else self._obs()), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        ACTIONS.append(np.array(action))
        self._step += 1
        obs, reward = self._obs(), 100.0 * self._episode + self._step
        if self._step == 2 and self._fault is not None:
            if self._fault == "raise":
                raise RuntimeError("motor on fire")
            bad = {"nan obs": np.full_like(obs, np.nan), "inf obs": np.full_like(obs, np.inf), "shape": obs[:2]}
            obs = bad.get(self._fault, obs)
            reward = {"nan reward": np.nan, "inf reward": np.inf}.get(self._fault, reward)
        over = self._step >= self._length(self._tag, self._episode) and self._ends != "never"
        return obs, reward, over and self._ends in ("terminated", "both"), over and self._ends in ("truncated", "both"), {}

    def _obs(self) -> np.ndarray:
        return np.array([self._tag, self._episode, self._step], np.float32)


class Plain(gym.Env):
    """Episodes of two steps without reward in any spaces; observations are sampled, or always `obs`."""

    def __init__(self, observation_space: gym.Space[Any], action_space: gym.Space[Any], obs: Any = None) -> None:
        self.observation_space, self.action_space, self._fixed = observation_space, action_space, obs
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        self._step += 1
        return self._obs(), 0.0, self._step == 2, False, {}

    def _obs(self) -> Any:
        return self.observation_space.sample() if self._fixed is None else self._fixed


class Unmakeable(gym.Env):
    """Its constructor fails."""

    def __init__(self) -> None:
        raise OSError("no such device /dev/robot")


def short_or_long(tag: int, episode: int) -> int:
    """One step for odd seeds, twenty for even ones."""
    return 1 if tag % 2 else 20


_LOW, _HIGH = np.array([-2.0, -np.inf], np.float32), np.array([3.0, np.inf], np.float32)
_BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
_DICT = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,), np.float32), "gear": spaces.Discrete(3)})

_TOYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Counter": (Counter, {}),
    "Truncated": (Counter, {"ends": "truncated"}),
    "Both": (Counter, {"ends": "both"}),
    "Endless": (Counter, {"ends": "never"}),
    "ShortOrLong": (Counter, {"length": short_or_long}),
    "NanObs": (Counter, {"fault": "nan obs"}),
    "InfObs": (Counter, {"fault": "inf obs"}),
    "NanReward": (Counter, {"fault": "nan reward"}),
    "InfReward": (Counter, {"fault": "inf reward"}),
    "Raises": (Counter, {"fault": "raise"}),
    "WrongShape": (Counter, {"fault": "shape"}),
    "RaisesAtReset": (Counter, {"fault": "raise at reset"}),
    "NanAtReset": (Counter, {"fault": "nan at reset"}),
    "Bits": (Counter, {"action_space": spaces.MultiBinary(4)}),
    "Gears": (Counter, {"action_space": spaces.Discrete(3, start=5)}),
    "Levers": (Counter, {"action_space": spaces.MultiDiscrete([2, 3])}),
    "Wide": (Counter, {"action_space": spaces.Box(_LOW, _HIGH)}),
    "Dict": (Plain, {"observation_space": _DICT, "action_space": spaces.Discrete(2)}),
    "OutsideItsSpace": (Plain, {"observation_space": spaces.Discrete(3), "action_space": _BOX, "obs": np.int64(7)}),
    "Switches": (Plain, {"observation_space": spaces.MultiBinary((2, 3)), "action_space": _BOX}),
    "Dials": (Plain, {"observation_space": spaces.MultiDiscrete([2, 3], start=[4, 0]), "action_space": _BOX}),
    "TextObs": (Plain, {"observation_space": spaces.Text(5), "action_space": _BOX}),
    "TupleAction": (Plain, {"observation_space": _BOX, "action_space": spaces.Tuple([_BOX, _BOX])}),
    "Unmakeable": (Unmakeable, {}),
}

for _name, (_entry_point, _kwargs) in _TOYS.items():
    gym.register(id=f"toy/{_name}-v0", entry_point=_entry_point, kwargs=_kwargs)


class Steady:
    """An agent of nobody's library that always gives the same action."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def predict(self, obs: Any) -> Any:
        return self.action


STILL = Steady(np.zeros(2, np.float32))
