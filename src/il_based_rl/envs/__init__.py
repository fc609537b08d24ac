"""The world: make one environment or many, with one uniform record of a step.

Gymnasium's vector environments reset a finished episode in two ways. SAME_STEP hands out the next episode's first observation
and puts the final one into `infos["final_obs"]`; NEXT_STEP hands out the final one and inserts a fake transition after it.
Both become the same `StepRecord` here, and nothing above this room needs to know.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from il_based_rl.envs.bounds import Bounds, bounds_hold
from il_based_rl.envs.in_process import InProcessEnvs
from il_based_rl.envs.pool import EnvPoolEnvs
from il_based_rl.envs.record import EXACT, FROM_EPISODE, FROM_WEIGHTS, LEVELS, Envs, EnvState, StepRecord
from il_based_rl.envs.single import REPLAYED_STEPS, Player, make_env, registration, resume_level
from il_based_rl.envs.vector_env import VectorEnvs
from il_based_rl.envs.worker import usable_cores
from il_based_rl.envs.workers import WorkerEnvs, can_be_sent, pays_to_share
from il_based_rl.errors import ConfigError

__all__ = [
    "EXACT",
    "FROM_EPISODE",
    "FROM_WEIGHTS",
    "LEVELS",
    "REPLAYED_STEPS",
    "Bounds",
    "EnvPoolEnvs",
    "EnvState",
    "Envs",
    "InProcessEnvs",
    "Player",
    "StepRecord",
    "VectorEnvs",
    "WorkerEnvs",
    "as_envs",
    "bounds_hold",
    "can_be_sent",
    "make_env",
    "make_envs",
    "make_players",
    "registration",
    "resume_level",
    "usable_cores",
]


def make_envs(
    env_id: str,
    num_envs: int = 1,
    *,
    vectorization: str = "auto",
    backend: str = "gymnasium",
    timeout: float | None = None,
    bounds: str = "auto",
) -> Envs:
    """Make environments to train in.

    What is learned does not depend on `vectorization`, only how long it takes.

    Args:
        env_id: Gymnasium environment ID.
        num_envs: N.
        vectorization: `sync` steps them in this process, `async` in worker processes, `auto` in workers where a step takes
            long enough to pay for it and there are several environments and cores.
        backend: `gymnasium`, or `envpool` for its C++ environments, which step themselves in threads.
        timeout: Seconds that a worker process may take for a step before it is taken for dead, see `WorkerEnvs`.
        bounds: Whether an observation outside its space's bounds is an error, see `bounds_hold`.

    Raises:
        ConfigError: An argument is none of these.
        See `make_env`, `WorkerEnvs` and `EnvPoolEnvs`.
    """
    strict = bounds_hold(env_id, bounds)
    for name, value, known in (
        ("vectorization", vectorization, ("auto", "sync", "async")),
        ("backend", backend, ("gymnasium", "envpool")),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r:.50}")
    if num_envs < 1:
        raise ConfigError(f"num_envs must be above 0, got {num_envs}")
    if backend == "envpool":
        return EnvPoolEnvs(env_id, num_envs, strict_bounds=strict)
    if vectorization == "async" or (vectorization == "auto" and num_envs > 1 and pays_to_share(env_id, num_envs)):
        return WorkerEnvs(env_id, num_envs, timeout=timeout, strict_bounds=strict)
    return InProcessEnvs(env_id, num_envs, strict_bounds=strict)


def as_envs(envs: Envs | gym.vector.VectorEnv[Any, Any, Any]) -> Envs:
    """Take environments of ours, or any Gymnasium vector environment.

    Raises:
        TypeError: It is a single environment, or the ID of one.
    """
    if isinstance(envs, gym.Env | str):
        raise TypeError(f"expected several environments, as InProcessEnvs(env_id) or gymnasium.make_vec make, got {envs!r}")
    return VectorEnvs(envs) if isinstance(envs, gym.vector.VectorEnv) else envs


def make_players(env_id: str, count: int, *, bounds: str = "any") -> list[Player]:
    """Make environments whose episodes are begun one by one, each from a chosen seed; for `bounds` see `bounds_hold`."""
    strict = bounds_hold(env_id, bounds)
    return [Player(make_env(env_id), i, strict_bounds=strict) for i in range(count)]
