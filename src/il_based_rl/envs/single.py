"""One environment: made with errors that name the remedy, and played with errors that name the place."""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from il_based_rl.envs.bounds import REMEDY, Bounds, short
from il_based_rl.envs.record import EXACT, FROM_EPISODE, FROM_WEIGHTS, EnvState
from il_based_rl.errors import ConfigError, EnvironmentFaultError, MissingExtraError, RenderError, UnknownEnvironmentError
from il_based_rl.spaces import ObservationCodec

_PACKAGE = Path(__file__).parents[1]
REPLAYED_STEPS = 20_000
"""An episode's actions are kept for a replay up to so many; a longer one is begun anew when a run is resumed."""


def make_env(env_id: str | EnvSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make a Gymnasium environment, from its id or from what another one was made from.

    Raises:
        ConfigError: It is neither.
        UnknownEnvironmentError: No such id is registered; the nearest ones are named.
        MissingExtraError: The environment needs a package that is not installed.
        EnvironmentFaultError: Its constructor failed.
        RenderError: It was to be made for drawing, and its constructor knows of none.
    """
    if not isinstance(env_id, str | EnvSpec):
        raise ConfigError(f"an environment is named by its ID, such as 'CartPole-v1'; got {env_id!s:.100}")
    registration, env_id = env_id, env_id if isinstance(env_id, str) else env_id.id
    settings: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}  # an environment may know of none
    module = env_id.rpartition(":")[0]
    if module.endswith(".py") or "/" in module or os.sep in module:
        raise UnknownEnvironmentError(
            f"{env_id!r:.200} names a file; expected the name of a module, without .py and folder, as in "
            f"{Path(module).stem}:ID, run from the folder that it lies in"
        )
    if module:
        _find_modules_here()
    with warnings.catch_warnings(record=True) as caught:
        try:
            env = gym.make(registration, disable_env_checker=True, **settings)
            _ = env.observation_space, env.action_space  # what every environment has
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            missing, module = getattr(error, "name", None), env_id.partition(":")[0].partition(".")[0]
            remedy = "" if "pip install" in str(error) else f" (pip install {missing or 'what it names'})"
            if f"No module named {module!r}" in str(error):  # it may be a file of the user's own
                remedy = f" (run from the folder that {module} lies in, or pip install the package that holds it)"
            raise MissingExtraError(
                f"environment {env_id} needs a package that is missing or unfit: {error}{remedy}"
            ) from error
        except gym.error.NamespaceNotFound as error:
            package = '"gymnasium[atari]"' if env_id.startswith("ALE/") else "it, then give the id as MODULE:ID"
            raise MissingExtraError(f"environment {env_id} is of a package that is not there: pip install {package}") from error
        except gym.error.Error as error:
            raise UnknownEnvironmentError(f"unknown environment id {env_id!r}: {error}{_nearest(env_id)}") from error
        except (Exception, SystemExit) as error:  # another author's constructor may fail in any way
            if render_mode is not None and "unexpected keyword argument 'render_mode'" in str(error):
                raise RenderError(
                    f"environment {env_id} cannot be drawn: its constructor takes no render_mode; give it one, and name "
                    f"{render_mode!r} in its metadata's render_modes"
                ) from error
            fault = EnvironmentFaultError(f"environment {env_id} cannot be made: {_describe(error)}")
            fault.exit_code = 2  # nothing has begun yet
            raise fault from error
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return env


def registration(env: gym.Env[Any, Any]) -> EnvSpec:
    """Return what an environment was made from by its ID, for another process.

    Its own `spec` holds the wrappers too that its entry point has put around it, with arguments that need not survive that.
    """
    own = env.unwrapped.spec
    assert own is not None
    return gym.registry.get(own.id, own)


def _find_modules_here() -> None:
    """Let MODULE:ID name a module of the working directory, which is searched last from now on, as its files may import others.

    `python -m` searches it by itself, and first.
    """
    with contextlib.suppress(OSError):  # the folder may be gone
        if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)


def _nearest(env_id: str) -> str:
    matches = difflib.get_close_matches(env_id, gym.registry.keys(), n=3, cutoff=0.6)
    nearest = f"nearest: {', '.join(matches)}; " if matches else ""
    return f" ({nearest}one of a package of its own is given as MODULE:ID)"


def _describe(error: BaseException) -> str:
    """Return an error's kind and text, and where in another's code it arose."""
    kind, text = type(error).__name__, ""
    with contextlib.suppress(Exception):  # some cannot even be printed
        text = str(error)
    while error.__cause__ is not None:  # Gymnasium's own of one that a constructor raised
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    inner = Path(frames[-1].filename) if frames else _PACKAGE
    place = "" if _PACKAGE in inner.parents or inner == _PACKAGE else f" ({inner.name}, line {frames[-1].lineno})"
    return f"{kind}{f': {text}' if text else ''}{place}"


class Player:
    """One environment with its running episode; whatever goes wrong in it is named.

    Args:
        env: The environment; it is closed with the player.
        index: Its number among its neighbours, for messages.
        strict_bounds: Whether an observation outside its space's bounds is an error.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int = 0, *, strict_bounds: bool = False) -> None:
        self.env, self.index = env, index
        self.codec = ObservationCodec(env.observation_space)
        self._bounds = Bounds.of(self.codec) if strict_bounds else None
        self.seed: int | None = None
        """Of the last reset that was given one."""
        self.episode = 0
        """Episodes begun since then."""
        self.steps = 0
        """Steps of the running episode; 0 right after a reset."""
        self.total_reward = 0.0
        """Of those steps."""
        self.obs: Any = None
        """The present observation, as the environment gave it."""
        self.row: np.ndarray = np.zeros(0)
        """The present observation as a row."""
        self.info: Any = {}
        """What the environment told beside the last step."""
        self._action: Any = None
        self._actions: list[Any] = []
        self._generator_at_reset: dict[str, Any] | None = None

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode.

        Raises:
            EnvironmentFaultError: The environment failed, or gave an observation that is not of its space or not finite.
        """
        if seed is not None:
            self.seed, self.episode = seed, 0
        self._generator_at_reset = self._generator_state() if seed is None else None
        self.episode, self.steps, self._action, self._actions = self.episode + 1, 0, None, []
        self.total_reward = 0.0
        try:
            answer = self.env.reset(seed=seed)
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise ValueError("reset returned no pair; expected (observation, info), as in Gymnasium")
            self.obs = answer[0]
            self.row = self.codec.row(self.obs)
        except (Exception, SystemExit) as error:  # another author's code may fail in any way
            raise self._fault(_describe(error)) from error
        self._require_sound(0.0)

    def step(self, action: Any) -> tuple[float, bool, bool]:
        """Take one step; the observation that it leads to is left in `obs` and `row`.

        Returns:
            Reward, terminated, truncated.

        Raises:
            EnvironmentFaultError: As in `reset`, or the reward is not finite.
        """
        self._action = np.array(action)  # a copy, as an environment may change what it is given
        self.steps += 1
        if self.steps <= REPLAYED_STEPS:
            self._actions.append(self._action)
        try:
            answer = self.env.step(action)
            if len(answer) != 5:
                told = "expected observation, reward, terminated, truncated, info, as in Gymnasium"
                raise ValueError(f"step returned {len(answer)} values; {told}")
            self.obs, reward, terminated, truncated, self.info = answer
            reward = reward if isinstance(reward, float) else _number(reward)
            self.row = self.codec.row(self.obs)
            ended = _flag(terminated), _flag(truncated)
        except (Exception, SystemExit) as error:  # as above
            raise self._fault(_describe(error)) from error
        self._require_sound(reward)
        self.total_reward += reward
        return reward, *ended

    def state(self) -> EnvState | None:
        """Return what `restore` needs to come back to this moment; None where the environment has no generator of ours."""
        generator = self._generator_state()
        if self.seed is None or generator is None:
            return None
        return EnvState(
            seed=self.seed,
            episode=self.episode,
            generator_at_reset=self._generator_at_reset,
            generator=generator,
            actions=np.array(self._actions) if self.steps == len(self._actions) else None,
            row=np.array(self.row),
            total_reward=float(self.total_reward),
        )

    def restore(self, state: EnvState, *, replay: bool = True, watch: Callable[[int], object] | None = None) -> str:
        """Come back to a moment by playing its episode again, action by action.

        Args:
            state: The moment.
            replay: Whether that is worth a try, see `resume_level`.
            watch: Told the number of each step that is played again.

        Returns:
            `EXACT` if that led to the same rewards in sum, the same observation and the same state of the environment's
            generator; `FROM_EPISODE` if it did not, so that a new episode begins from that state; `FROM_WEIGHTS` if there is
            no such state either.

        Raises:
            EnvironmentFaultError: As in `reset`.
        """
        self.reset(state.seed)
        if self._generator_state() is None:
            return FROM_WEIGHTS
        if replay and self._replayed(state, watch):
            return EXACT
        self.reset(state.seed)
        self.episode = state.episode
        self.env.unwrapped.np_random.bit_generator.state = state.generator
        self.reset()
        return FROM_EPISODE

    def _replayed(self, state: EnvState, watch: Callable[[int], object] | None) -> bool:
        if state.actions is None:
            return False
        try:
            if state.generator_at_reset is not None:
                self.episode = state.episode - 1
                self.env.unwrapped.np_random.bit_generator.state = state.generator_at_reset
                self.reset()
            for action in state.actions:
                if watch is not None:
                    watch(self.steps + 1)
                _, terminated, truncated = self.step(action)
                if terminated or truncated:
                    return False
        except EnvironmentFaultError:
            return False
        same_rewards = state.total_reward in (None, self.total_reward)
        return same_rewards and np.array_equal(self.row, state.row) and self._generator_state() == state.generator

    def _generator_state(self) -> dict[str, Any] | None:
        """State of the random generator that Gymnasium gives every environment, where it is of the usual kind."""
        generator = getattr(self.env.unwrapped, "np_random", None)
        if isinstance(generator, np.random.Generator) and isinstance(generator.bit_generator, np.random.PCG64):
            return dict(generator.bit_generator.state)
        return None

    def _require_sound(self, reward: float) -> None:
        if not math.isfinite(reward):
            raise self._fault(f"the reward is {reward}")
        if self._bounds is not None and self._bounds.surely_hold(self.row):
            return
        # A moderate sum of squares has finite parts, and takes a tenth of the time of looking at each as the float32 read.
        row = self.row
        if not (row.ndim == 1 and float(np.vdot(row, row)) < 1e30) and not _all_finite(row):  # unlike dot, vdot never warns
            raise self._fault(f"the observation is not finite in float32: {short(row)}")
        if self._bounds is not None and (misfit := self._bounds.misfit(row)) is not None:
            raise self._fault(f"{misfit}; {REMEDY}")

    def _fault(self, what: str) -> EnvironmentFaultError:
        return EnvironmentFaultError(f"{place(self.index, self.seed, self.episode, self.steps, self._action)}: {what}")

    def close(self) -> None:
        """Close the environment; what it has against that is of no interest any more."""
        with contextlib.suppress(Exception, SystemExit):
            self.env.close()


def resume_level(env_id: str | EnvSpec) -> str:
    """Try how much of an environment a replay brings back, with what is hidden in it.

    One environment wanders through several episodes, another one is brought to where it is, and both go on with the same
    random actions for a while: one that only looks the same parts from the other.

    Returns:
        `EXACT`, `FROM_EPISODE` or `FROM_WEIGHTS`, see `Player.restore`; `FROM_EPISODE` too where random actions break it.
    """
    try:
        return _tried_level(env_id)
    except EnvironmentFaultError:
        return FROM_EPISODE


def _tried_level(env_id: str | EnvSpec) -> str:
    with (
        contextlib.closing(Player(make_env(env_id))) as played,
        contextlib.closing(Player(make_env(env_id))) as resumed,
    ):
        actions, started = played.env.action_space, time.monotonic()
        actions.seed(0)
        played.reset(1)
        for _ in range(_TRIALS):
            for _ in range(_TRIAL_STEPS):
                if any(played.step(actions.sample())[1:]) or played.steps >= _TRIAL_STEPS // 2:
                    played.reset()
            state = played.state()
            level = FROM_WEIGHTS if state is None else resumed.restore(state)
            if level != EXACT:
                return level
            for _ in range(_TRIAL_STEPS):
                action = actions.sample()
                one, other = played.step(copy.deepcopy(action)), resumed.step(action)  # either may write into it
                if one != other or not np.array_equal(played.row, resumed.row):
                    return FROM_EPISODE
                if one[1] or one[2]:
                    played.reset()
                    resumed.reset()
            if time.monotonic() - started > _TRIAL_SECONDS:
                break
    return EXACT


_TRIALS, _TRIAL_STEPS, _TRIAL_SECONDS = 3, 100, 10.0


def _all_finite(row: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(row.astype(np.float32)).all())


def _flag(ended: Any) -> bool:
    return ended if type(ended) is bool else bool(_number(ended))


def _number(reward: Any) -> float:
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise TypeError(f"a reward or flag is {reward!r}; expected a number")
    return float(array.item())


def place(index: int, seed: int | None, episode: int, step: int, action: Any) -> str:
    """Say where in an environment's life something happened, so that it can be made to happen again."""
    how = "at reset" if step == 0 else f"step {step}, after action {short(action)}"
    return f"environment {index}, seed {seed}, episode {episode}, {how}"
