"""Stable-Baselines3's side, and sbx's, which has the same interface: one job a process, in its own virtual environment.

The environment variable LIBRARY says which of the two is meant: stable_baselines3 or sbx.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import STARTED, mean_return, microseconds_a_call, report, seconds


def make(env_id: str, num_envs: int, *, normalize: bool = False, **settings: Any) -> Any:
    """Return a PPO model with the library's own defaults but for `settings`, on one thread of the CPU."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    library = importlib.import_module(os.environ["LIBRARY"])
    envs = make_vec_env(env_id, num_envs)
    if normalize:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    return library.PPO("MlpPolicy", envs, device="cpu", **settings)


def job(kind: str, **settings: Any) -> dict[str, Any]:
    """Run one kind of job."""
    return {"ppo": ppo, "returns": returns, "play": play, "predict": predict, "start": start}[kind](**settings)


def ppo(env_id: str, num_envs: int, steps: int, width: int = 64, batch_size: int = 64, n_steps: int = 2048) -> dict[str, Any]:
    """Train without evaluation; the rate is of training alone, and after the compilation in sbx's first rollout."""
    networks = {} if width == 64 else {"policy_kwargs": {"net_arch": [width, width]}}
    compiled = os.environ["LIBRARY"] == "sbx"
    if compiled:
        os.sched_setaffinity(0, {0})  # JAX knows no number of threads
    model = make(env_id, num_envs, batch_size=batch_size, n_steps=n_steps, **networks)
    if compiled:
        model.learn(n_steps * num_envs)
    taken = seconds(lambda: model.learn(steps))
    return {"steps_per_second": model.num_timesteps / taken}


def returns(
    env_id: str, num_envs: int, steps: int, seed: int, points: int = 0, episodes: int = 0, **settings: Any
) -> dict[str, Any]:
    """Train on one seed; say how good the last policy is, and in some episodes at each of some points on the way."""
    model = make(env_id, num_envs, seed=seed, **{name: _understood(value) for name, value in settings.items()})
    statistics, curve, judging = model.get_vec_normalize_env(), [], 0.0

    def predict(obs: Any) -> Any:
        return model.predict(obs if statistics is None else statistics.normalize_obs(obs), deterministic=True)[0]

    def judge(*_: Any) -> bool:
        nonlocal judging
        if model.num_timesteps >= steps * (len(curve) + 1) / points:
            trained = time.perf_counter() - started - judging
            mean = mean_return(env_id, predict, episodes)
            curve.append((model.num_timesteps, round(trained, 2), round(mean, 2)))
            judging = time.perf_counter() - started - trained
        return True

    started = time.perf_counter()
    model.learn(steps, callback=judge if points else None)
    return {"seconds": time.perf_counter() - started - judging, "mean_return": mean_return(env_id, predict), "curve": curve}


def _understood(value: Any) -> Any:
    """Turn what JSON can say into what the library reads: "linear 0.1" falls from 0.1 to 0, "relu" is an activation."""
    if isinstance(value, str):
        start = float(value.removeprefix("linear "))
        return lambda remaining: remaining * start
    if isinstance(value, dict) and "activation" in value:
        import torch

        activation = {"relu": torch.nn.ReLU}[value["activation"]]
        return {name: given for name, given in value.items() if name != "activation"} | {"activation_fn": activation}
    return value


def play(env_id: str, episodes: int) -> dict[str, Any]:
    """Evaluate with an untrained expert, in as many environments as the other side uses."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    model = make(env_id, 1)
    taken = seconds(lambda: evaluate_policy(model, make_vec_env(env_id, min(episodes, 16)), episodes))
    return {"evaluation_episodes_per_second": episodes / taken}


def predict(env_id: str) -> dict[str, Any]:
    """Time `predict` on one observation."""
    import gymnasium as gym

    model = make(env_id, 1)
    obs, _ = gym.make(env_id).reset(seed=0)
    return {"microseconds": microseconds_a_call(lambda: model.predict(obs, deterministic=True), 1000)}


def start(env_id: str) -> dict[str, Any]:
    """Time from the start of the process to the first environment step of training."""
    import gymnasium as gym

    model = make(env_id, 1)

    def step(self: Any, action: Any) -> Any:
        raise KeyboardInterrupt

    type(gym.make(env_id).unwrapped).step = step
    try:
        model.learn(2048)
    except KeyboardInterrupt:
        return {"seconds": time.perf_counter() - STARTED}
    raise AssertionError("training took no step")


if __name__ == "__main__":
    report(job)
