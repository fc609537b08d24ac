"""Where a student falls short of its expert, and why: on which states it acts otherwise, and from which starts it loses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from scipy.spatial import KDTree

from il_based_rl.comparison import Contender
from il_based_rl.dataset import DemoDataset
from il_based_rl.interop import actor_from
from il_based_rl.rollout import Actor
from il_based_rl.spaces import ObservationCodec

TIME_BINS = 20
"""Parts of the longest episode over which errors are shown."""
_MOST_STATES = 4_000
"""States that errors are measured on, and distances; whole episodes up to there, one at least."""
_MOST_NEIGHBOURS = 20_000
_WORST = 5
_LEAST_SPREAD = 0.02
"""An expert whose actions vary less (in half ranges, or in the share of those that are not the usual one) counts as this."""
_LARGE, _GROWN = 0.3, 2.0
"""An error above the first is large (1 is a policy that always does the same); one that grew by the second has grown."""


@dataclass(frozen=True)
class _Situation:
    """A state that a policy is asked about again, as `Player` would show it."""

    index: int
    steps: int
    obs: Any
    row: np.ndarray


def analyse(
    student: Contender,
    expert: Contender,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    demos: DemoDataset | None = None,
) -> dict[str, Any]:
    """Compare the actions of a student with those of its expert, on the states that each of them comes to.

    An action's error is relative: 0 the expert's own action, 1 as far off as the best policy that always does the same. For
    boxes it is the root mean square over states and components, each in standard deviations of the expert's actions; for all
    others the share of actions that differ, over that of the expert's most frequent one.

    Returns:
        Plain values: `error_on_expert_states`, `error_on_own_states`, their ratio `covariate_shift` (how much worse the student
        acts where its own actions lead it), both errors over time, `worst_starts`, and with demonstrations
        `error_on_demonstrations` and how far from the nearest of them the states are.
    """
    codec = ObservationCodec(observation_space)
    random = np.random.default_rng(0)  # deterministic actions draw nothing
    acting = [
        actor_from(each.agents[0], observation_space, action_space, deterministic=True, random=random)
        for each in (student, expert)
    ]
    own, experts = (_some([episode.rows for episode in each.episodes]) for each in (student, expert))
    answers = {name: [_asked(actor, codec, part) for actor in acting] for name, part in (("own", own), ("expert", experts))}
    unit = _Unit(action_space, np.concatenate(answers["expert"][1]))
    errors = {name: [unit.errors(*pair) for pair in zip(*found, strict=True)] for name, found in answers.items()}
    on_own, on_experts = (unit.total(np.concatenate(errors[name])) for name in ("own", "expert"))
    loss = expert.returns[0] - student.returns[0]
    worst = [int(i) for i in np.argsort(-loss)[:_WORST] if loss[i] > 0]
    numbers: dict[str, Any] = {
        "student": student.name,
        "expert": expert.name,
        "error_on_expert_states": on_experts,
        "error_on_own_states": on_own,
        "covariate_shift": on_own / on_experts if on_experts > 0 else None,
        "error_over_time": {name: _over_time(unit, found) for name, found in errors.items()},
        "worst_starts": [
            {
                "seed": int(student.results[0].start_seeds[i]),
                "student": float(student.returns[0, i]),
                "expert": float(expert.returns[0, i]),
            }
            for i in worst
        ],
        "error_on_demonstrations": None,
        "distance": None,
    }
    if demos is not None:
        shown = _some([episode.observations for episode in demos.episodes])
        answered = np.concatenate(_asked(acting[0], codec, shown))
        # Sampled actions scatter around what the expert means to do, which it is asked for then.
        sampled = demos.metadata.get("deterministic") is False
        labels = np.concatenate(_asked(acting[1], codec, shown)) if sampled else demos.actions[: len(answered)]
        numbers["error_on_demonstrations"] = unit.total(unit.errors(answered, labels))
        numbers["distance"] = _distances(codec, demos, own, experts)
    return numbers


class _Unit:
    """What an action's error is measured in."""

    def __init__(self, space: gym.Space[Any], expert_actions: np.ndarray) -> None:
        flat, self._box = expert_actions.reshape(len(expert_actions), -1), isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            spread = flat.astype(np.float64).std(axis=0)
            low, high = (np.ravel(end).astype(np.float64) for end in (space.low, space.high))
            half_range = np.where(np.isfinite(low) & np.isfinite(high), 0.5 * (high - low), 1.0)
            self._scale = np.maximum(spread, _LEAST_SPREAD * np.where(high > low, half_range, 1.0))
        else:
            most = [np.unique(column, return_counts=True)[1].max() for column in flat.T]
            self._scale = np.array(max(1.0 - float(np.mean(most)) / len(flat), _LEAST_SPREAD))

    def errors(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return one number for each state, of which `total` makes an error. Shape (states,)."""
        a, b = (each.reshape(len(each), -1) for each in (one, other))
        if self._box:
            return np.mean(((a.astype(np.float64) - b) / self._scale) ** 2, axis=1)
        return np.mean(a != b, axis=1)

    def total(self, errors: np.ndarray) -> float:
        mean = float(np.mean(errors))
        return mean**0.5 if self._box else mean / float(self._scale)


def _some(episodes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the states of the first episodes, as many as make up enough."""
    before = np.cumsum([0, *map(len, episodes)])[:-1]
    return [rows for rows, states in zip(episodes, before, strict=True) if states < _MOST_STATES]


def _asked(actor: Actor, codec: ObservationCodec, episodes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Ask a policy about each state of some episodes, in their order, as one with a memory must be."""
    return [
        np.concatenate([actor([_Situation(0, t, _observation(codec, row), row)]) for t, row in enumerate(rows)])
        for rows in episodes
    ]


def _observation(codec: ObservationCodec, row: np.ndarray) -> Any:
    return spaces.unflatten(codec.space, row) if isinstance(codec.space, spaces.Dict | spaces.Tuple) else row


def _over_time(unit: _Unit, errors: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Return the error in each part of the longest episode's time."""
    edges = np.linspace(0, max(map(len, errors)), min(TIME_BINS, max(map(len, errors))) + 1).astype(int)
    found = []
    for start, end in itertools.pairwise(edges.tolist()):
        part = np.concatenate([each[start:end] for each in errors])
        if len(part):
            found.append({"from_step": start, "to_step": end, "error": unit.total(part)})
    return found


def _distances(
    codec: ObservationCodec, demos: DemoDataset, own: Sequence[np.ndarray], experts: Sequence[np.ndarray]
) -> dict[str, float]:
    """Distance from the nearest demonstrated state that one state in twenty exceeds, in the features' standard deviations."""
    shown = codec.features(demos.observations)
    mean, spread = shown.mean(axis=0), shown.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0) * len(mean) ** 0.5
    tree = KDTree(((shown - mean) / scale)[:: max(1, -(-len(shown) // _MOST_NEIGHBOURS))])
    far = [np.quantile(tree.query((codec.features(np.concatenate(part)) - mean) / scale)[0], 0.95) for part in (own, experts)]
    return {"student": float(far[0]), "expert": float(far[1])}


def reasons(numbers: dict[str, Any], *, falls_short: bool) -> list[str]:
    """Say in words why the student falls short, as far as its errors tell."""
    if not falls_short:
        return ["The student is not clearly worse than the expert, so that there is nothing to explain."]
    shown, experts, own = (numbers[f"error_on_{name}"] for name in ("demonstrations", "expert_states", "own_states"))
    found = []
    if shown is not None and shown > _LARGE:
        found.append(
            f"It does not even do what it was shown (error {shown:.2f} on the demonstrations themselves): train it longer, or "
            "a larger network, and make sure that it sees the observations that it was trained on."
        )
    elif shown is not None and experts > _GROWN * shown and experts > _LARGE / 2:
        found.append(
            f"It does what it was shown (error {shown:.2f}), but not on other states of the expert's ({experts:.2f}): it has "
            "seen too few demonstrations; collect more."
        )
    elif shown is None and experts > _LARGE:
        found.append(
            f"It acts otherwise on the expert's own states (error {experts:.2f}): it was trained too little, or on too few "
            "demonstrations."
        )
    if own > _GROWN * experts and own > _LARGE / 2:
        found.append(
            f"Its errors lead it to states where it errs more ({own:.2f} on its own states, {experts:.2f} on the expert's; "
            "covariate shift): more demonstrations, or labels on its own states, help."
        )
    return found or [
        f"Its errors are of one size everywhere ({own:.2f} on its own states, {experts:.2f} on the expert's): this task "
        "forgives little; more demonstrations and longer training both help."
    ]
