"""imitation's side: one job a process, in a virtual environment of its own with the old versions that it needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

here = Path(__file__).parent
sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path or ".").resolve() != here)]
from measure import report, seconds  # noqa: E402 - after this file's own folder, which would hide the library, is off the path


def job(kind: str, **settings: Any) -> dict[str, Any]:
    """Run one kind of job."""
    return {"cloning": cloning, "play": play}[kind](**settings)


def cloning(width: int, samples: int) -> dict[str, Any]:
    """Clone random transitions of HalfCheetah's sizes, on a network of two hidden layers."""
    import numpy as np
    import torch
    from gymnasium.spaces import Box
    from imitation.algorithms import bc
    from imitation.data.types import Transitions
    from stable_baselines3.common.policies import ActorCriticPolicy

    torch.set_num_threads(1)
    random, rows = np.random.default_rng(0), 10_000
    spaces = Box(-np.inf, np.inf, (17,)), Box(-1, 1, (6,))
    policy = ActorCriticPolicy(*spaces, lambda _: 1e-3, net_arch={"pi": [width, width], "vf": [width, width]})
    transitions = Transitions(
        obs=random.standard_normal((rows, 17)).astype(np.float32),
        acts=random.uniform(-1, 1, (rows, 6)).astype(np.float32),
        infos=np.array([{}] * rows),
        next_obs=np.zeros((rows, 17), np.float32),
        dones=np.zeros(rows, bool),
    )
    trainer = bc.BC(
        observation_space=spaces[0],
        action_space=spaces[1],
        rng=random,
        policy=policy,
        demonstrations=transitions,
        batch_size=64,
        device="cpu",
    )
    taken = seconds(lambda: trainer.train(n_epochs=samples // rows, progress_bar=False, log_interval=10**9))
    return {"samples_per_second": samples / taken}


def play(env_id: str, episodes: int) -> dict[str, Any]:
    """Collect demonstrations of an untrained expert, in as many environments as the other side uses."""
    import gymnasium as gym
    import numpy as np
    import torch
    from imitation.data import rollout
    from imitation.data.wrappers import RolloutInfoWrapper
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    expert = PPO("MlpPolicy", env_id, device="cpu")
    envs = DummyVecEnv([lambda: RolloutInfoWrapper(gym.make(env_id)) for _ in range(min(episodes, 16))])
    wanted, random = rollout.make_sample_until(min_episodes=episodes), np.random.default_rng(0)
    taken = seconds(lambda: rollout.rollout(expert, envs, wanted, random))
    return {"collection_episodes_per_second": episodes / taken}


if __name__ == "__main__":
    report(job)
