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
    return {"cloning": cloning}[kind](**settings)


def cloning(width: int, samples: int, batch_size: int = 64) -> dict[str, Any]:
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
        batch_size=batch_size,
        device="cpu",
    )
    taken = seconds(lambda: trainer.train(n_epochs=samples // rows, progress_bar=False, log_interval=10**9))
    return {"samples_per_second": samples / taken}


if __name__ == "__main__":
    report(job)
