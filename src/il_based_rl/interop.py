"""Anybody's agent, ours or another library's, as one kind of actor."""

from __future__ import annotations

import copy
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from il_based_rl.agent import BCAgent
from il_based_rl.cli import notice
from il_based_rl.errors import EnvironmentFaultError
from il_based_rl.heads import action_head
from il_based_rl.policy import MLPPolicy, require_spaces
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.rollout import Actor, Choice, Situation, Teacher


def actor_from(
    agent: Any,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    deterministic: bool,
    random: np.random.Generator,
) -> Actor:
    """Turn an agent into an actor.

    Args:
        agent: An agent of this package, anything with `predict(obs) -> action`, or a plain callable of that kind. A foreign one
            is given one observation at a time, `deterministic` if its signature takes it, and `state` and `episode_start` if it
            names them (recurrent policies); it may return `(action, state)`. Before each episode its `reset()` is called, if
            it has one that needs no arguments: it may remember what it saw, so that whoever plays with it lets one episode
            follow the other. Where its `reset` means something else, hand over its bound `predict` alone.
        observation_space: The environment's.
        action_space: The environment's.
        deterministic: Whether to take the most likely action.
        random: Source of the samples of an agent of this package.

    Raises:
        SpaceMismatchError: An agent of this package was made for other spaces.
        TypeError: The agent can be asked in none of these ways.
    """
    own = own_agent(agent)
    if own is None:
        predict = getattr(agent, "predict", agent)
        if not callable(predict):
            raise TypeError(
                f"agent must have predict(obs) or be callable, got {type(agent).__name__}; hand over its function that chooses "
                "an action for one observation"
            )
        return _ForeignActor(predict, getattr(agent, "reset", None), action_space, deterministic)
    if isinstance(own, PPOAgent):
        policy, log_std = own.policy.actor, own.policy.log_std_array()
    else:
        policy, log_std = own.policy, own.log_std_array()
    require_spaces(policy, observation_space, action_space, "the agent", "the environment")
    return policy_actor(policy, None if deterministic else random, log_std)


def own_agent(agent: Any) -> PPOAgent | BCAgent | None:
    """Return the agent of this package whose own `predict` answers for an agent; None where another's code has a say.

    What wraps or extends one of ours to choose other actions (a filter, an ensemble) is another's.
    """
    predict = getattr(agent, "predict", None)
    ours = getattr(predict, "__func__", None) in (PPOAgent.predict, BCAgent.predict)
    return getattr(predict, "__self__", None) if ours else None


def told_distribution(agent: Any, rows: np.ndarray, action_space: gym.Space[Any]) -> np.ndarray | None:
    """Return the distribution of an agent's actions for rows of observations, as `DemoDataset.distributions` holds it.

    None where the agent does not tell it: an agent of this package does, and another's by an `action_distribution(rows)`
    of its own. What that returns in another form is named and left out.
    """
    if (own := own_agent(agent)) is not None:
        return own.action_distribution(rows)
    tell = getattr(agent, "action_distribution", None)
    inherited = getattr(tell, "__func__", None) in (PPOAgent.action_distribution, BCAgent.action_distribution)
    if not callable(tell) or inherited:  # of ours it would be of other actions than the agent's predict chooses
        return None
    try:
        if (told := tell(rows.copy())) is None:
            return None
        told = np.asarray(told)
        if told.shape[:1] != (len(rows),) or told.dtype.kind != "f" or not np.isfinite(told).all():
            raise ValueError(f"an array of {told.dtype} and shape {told.shape}; expected finite floats, one row an observation")
        action_head(action_space).from_distribution(told)
    except Exception as error:  # another author's agent may mean something else by the name
        notice(f"the agent's action_distribution is left out: {type(error).__name__}: {error}")
        return None
    return told


def disturbed(actor: Actor, action_space: gym.Space[Any], noise: float, random: np.random.Generator) -> Teacher:
    """Let an actor's actions be disturbed when they are executed, and the undisturbed ones imitated.

    A student then sees how the expert comes back from where it would not have gone itself.

    Args:
        actor: Whose actions they are.
        action_space: The environment's.
        noise: Standard deviation in units of half the action's range; for discrete actions the probability of a random one.
        random: Source of the noise.

    Source:
        Laskey et al. (2017), "DART: noise injection for robust imitation learning", https://arxiv.org/abs/1703.09327.
        Differs: the noise is given, not fitted to the student's error.
    """
    head = action_head(action_space)

    def act(situations: Sequence[Situation]) -> Choice:
        labels = actor(situations)
        if head.continuous:
            raw = head.from_env(labels)
            executed = head.to_env(raw + noise * random.standard_normal(raw.shape, np.float32))
        else:
            others = head.to_env(head.mode(head.noise(random, (len(labels),), None)))
            replaced = (random.random(len(labels)) < noise).reshape(-1, *(1,) * (labels.ndim - 1))
            executed = np.where(replaced, others, labels).astype(labels.dtype)
        return Choice(executed, labels, np.zeros(len(labels), np.int64))

    return act


def mixture(expert: Actor, student: Actor, share: float, student_number: int, random: np.random.Generator) -> Teacher:
    """Let an expert or a student act, step by step as chance has it, and the expert's actions be imitated.

    Args:
        expert: It is asked in every step, as number 0.
        student: The other one.
        share: Probability that the expert acts.
        student_number: What stands for the student in `Choice.acted_by`.
        random: Source of chance.

    Source:
        Ross et al. (2011), "A reduction of imitation learning and structured prediction to no-regret online learning",
        algorithm 3.1, https://arxiv.org/abs/1011.0686.
    """

    def act(situations: Sequence[Situation]) -> Choice:
        labels = expert(situations)
        by_expert = random.random(len(labels)) < share
        executed = np.where(by_expert.reshape(-1, *(1,) * (labels.ndim - 1)), labels, student(situations))
        return Choice(executed, labels, np.where(by_expert, 0, student_number))

    return act


def policy_actor(policy: MLPPolicy, random: np.random.Generator | None = None, log_std: np.ndarray | None = None) -> Actor:
    """Let a policy take its most likely actions, or with a source of chance sample them; `log_std` is of shape (A,)."""
    outputs_of, codec, head = policy.as_numpy(), policy.codec, policy.head

    def act(players: Sequence[Situation]) -> np.ndarray:
        outputs = outputs_of(codec.features(np.stack([player.row for player in players])))
        if random is not None:
            outputs = outputs + head.noise(random, (len(players),), log_std)
        return head.to_env(head.mode(outputs))

    return act


class _ForeignActor:
    """Asks another library's agent for one action at a time, and keeps the state of a recurrent one for each player."""

    def __init__(self, predict: Callable[..., Any], reset: Any, action_space: gym.Space[Any], deterministic: bool) -> None:
        self._predict, self._space = predict, action_space
        needed, named = _parameters(reset), _parameters(predict)
        self._reset = reset if needed is not None and all(each.default is not each.empty for each in needed) else None
        names = {each.name for each in (named or [])[1:]}  # the first, whatever its name, is the observation
        self._passes_on = "deterministic" not in names and any(each.kind is each.VAR_KEYWORD for each in named or ())
        self._fixed = {"deterministic": deterministic} if "deterministic" in names or self._passes_on else {}
        self._recurrent, self._told_start = "state" in names, "episode_start" in names
        self._states: dict[int, Any] = {}
        self._forgets = False

    def __call__(self, players: Sequence[Situation]) -> np.ndarray:
        return np.stack([self._act(player) for player in players])

    def _act(self, player: Situation) -> np.ndarray:
        known: dict[str, Any] = dict(self._fixed)
        first = player.steps == 0
        if self._recurrent:
            known["state"] = None if first else self._states.get(player.index)
        if self._told_start:
            known["episode_start"] = np.array([first])
        try:
            if first and self._reset is not None:
                self._reset()
            answer = self._asked(player, known)
            if isinstance(answer, tuple) and len(answer) == 2 and not self._is_action(answer):
                answer, state = answer
                self._note_state(player, state)
        except Exception as error:  # another author's agent may fail in any way
            raise EnvironmentFaultError(
                f"the agent failed in environment {player.index}, step {player.steps} of its episode: "
                f"{type(error).__name__}: {error}"
            ) from error
        return self._inside(answer, player)

    def _note_state(self, player: Situation, state: Any) -> None:
        """Keep what is to be handed back in the next step; say so, once, where it cannot be."""
        if self._recurrent:
            self._states[player.index] = state
        elif state is not None and not self._forgets:
            self._forgets = True
            notice(
                "what the agent's predict returns beside the action is not handed back to it, as it takes no `state`; an agent "
                "that remembers by it plays without its memory"
            )

    def _asked(self, player: Situation, known: dict[str, Any]) -> Any:
        try:
            return self._predict(copy.deepcopy(player.obs), **known)  # one may write into what it is given
        except TypeError as error:
            if not (self._passes_on and "deterministic" in str(error)):
                raise
        self._passes_on, self._fixed = False, {}  # whom it passes its keywords on to knows no such thing
        return self._predict(copy.deepcopy(player.obs))

    def _is_action(self, answer: tuple[Any, Any]) -> bool:
        """Whether a pair is an action of two numbers, and no action with a state."""
        wanted = np.prod(self._space.shape or (1,), dtype=int)
        return wanted == 2 and not self._recurrent and all(isinstance(each, numbers.Number) for each in answer)

    def _inside(self, answer: Any, player: Situation) -> np.ndarray:
        """Give an action its space's shape and number type; in a Box it is rounded to those, and moved to finite bounds."""
        space = self._space
        try:
            action = np.asarray(answer.detach().cpu() if isinstance(answer, torch.Tensor) else answer)
            if action.size != (wanted := np.prod(space.shape or (1,), dtype=int)):
                raise ValueError(f"expected {wanted} numbers, not {action.size}")
            if action.dtype.kind not in "biuf" or not np.isfinite(action).all():
                raise ValueError("expected finite numbers")
            action = action.reshape(space.shape or ())
            if isinstance(space, spaces.Box):
                action = np.clip(action, space.low, space.high)
                if not np.issubdtype(np.dtype(space.dtype), np.floating):
                    action = np.rint(action)
            typed = action.astype(space.dtype)
            if not isinstance(space, spaces.Box) and not ((typed == action).all() and space.contains(typed)):
                raise ValueError("expected one of its actions")
        except Exception as error:  # what another author's agent answers may not even be an array
            raise EnvironmentFaultError(
                f"environment {player.index}, step {player.steps} of its episode: "
                f"the agent's action {answer!r} does not fit {space}: {error}"
            ) from error
        return typed


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # no function, or one written in C that has no signature
        return None
