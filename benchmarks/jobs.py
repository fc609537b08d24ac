"""The work that `benchmarks.run` measures, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

REQUIREMENTS = {
    "sb3": ["torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium[box2d,mujoco]==1.4.0"],
    "sbx": ["torch==2.13.0", "sbx-rl==0.28.0", "gymnasium[mujoco]==1.4.0"],
    "imitation": ["torch==2.13.0", "imitation==1.0.1", "numpy<2"],
}
WHOLE = 200_000
"""Steps of the runs whose whole time is told."""


@dataclass(frozen=True)
class Asked:
    """What a figure must reach: the ratio of one of our sides to the first peer's, or the figure itself."""

    least: float
    hoped: float | None = None
    side: str = "ours"
    of_ratio: bool = True

    def __str__(self) -> str:
        return f"{self.least:g}x" if self.of_ratio else f"at most {self.least:g}"


@dataclass(frozen=True)
class Job:
    """One piece of work, with what each side is given of it."""

    name: str
    figure: str
    """Which number of a process's result counts."""
    sides: dict[str, dict[str, Any]]
    asked: tuple[Asked, ...] = ()
    higher_is_better: bool = True
    measured: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def asked_of(self, side: str) -> Asked | None:
        """Return what is asked of a side of ours."""
        return next((each for each in self.asked if each.side == side), None)


def ppo(env_id: str, num_envs: int, ours: int, theirs: int, **settings: Any) -> dict[str, Any]:
    """Describe a training job; the quicker side takes more steps, as rates are compared."""
    return {"kind": "ppo", "env_id": env_id, "num_envs": num_envs, "steps": (ours, theirs), **settings}


def both(settings: dict[str, Any], *peers: str, **own: Any) -> dict[str, dict[str, Any]]:
    """Give the same settings to our side and to some peers; `own` are ours alone."""
    ours, theirs = settings.pop("steps", (None, None))
    mine = {**settings, **own, **({"steps": ours} if ours else {})}
    return {"ours": mine, **{peer: {**settings, **({"steps": theirs} if theirs else {})} for peer in peers}}


def comparisons() -> list[Job]:
    """Return the jobs that are measured against a peer."""
    rate = "steps_per_second"
    pendulum = both(ppo("Pendulum-v1", 1, 40_960, 10_240), "sb3", "sbx")
    pendulum["reference path"] = {**pendulum["ours"], "steps": 20_480, "fast_path": False}
    eight = {env_id: both(ppo(env_id, 8, 65_536, 16_384), "sb3") for env_id in ("CartPole-v1", "HalfCheetah-v5", "Hopper-v5")}
    pooled = both(ppo("HalfCheetah-v5", 8, 65_536, 16_384), "sb3", envpool=True)
    plain = both(ppo("CartPole-v1", 8, 65_536, 16_384), "sb3", **PLAIN)
    cheetah = both(ppo("HalfCheetah-v5", 1, 40_960, 12_288), "sb3")
    return [
        Job(
            "PPO, Pendulum-v1, 1 environment, default flags",
            rate,
            pendulum,
            (Asked(10, 15), Asked(2.5, 3.5, "reference path")),
        ),
        Job("PPO, Pendulum-v1, 8 environments", rate, both(ppo("Pendulum-v1", 8, 65_536, 16_384), "sb3")),
        Job("PPO, CartPole-v1, 8 environments", rate, eight["CartPole-v1"], (Asked(8, 15),)),
        Job("PPO, CartPole-v1, 8 environments, plain", rate, plain, (Asked(8, 15),)),
        Job("PPO, HalfCheetah-v5, 1 environment", rate, cheetah, (Asked(6, 9),)),
        Job("PPO, HalfCheetah-v5, 8 environments, ours with envpool", rate, pooled, (Asked(5, 8),)),
        Job("PPO, HalfCheetah-v5, 8 environments", rate, eight["HalfCheetah-v5"]),
        Job("PPO, Hopper-v5, 8 environments", rate, eight["Hopper-v5"]),
        *(cloning(width, samples) for width, samples in ((32, 400_000), (256, 100_000))),
        Job(
            "evaluation, Pendulum-v1, episodes/s",
            "evaluation_episodes_per_second",
            both({"kind": "play", "env_id": "Pendulum-v1", "episodes": 64}, "sb3"),
        ),
        Job(
            "collection, Pendulum-v1, episodes/s",
            "collection_episodes_per_second",
            both({"kind": "play", "env_id": "Pendulum-v1", "episodes": 64}, "imitation"),
        ),
        Job(
            "predict, one observation of Pendulum-v1, us",
            "microseconds",
            both({"kind": "predict", "env_id": "Pendulum-v1"}, "sb3"),
            (Asked(25, 10, of_ratio=False),),
            higher_is_better=False,
        ),
        Job(
            "from process start to the first environment step, s",
            "seconds",
            both({"kind": "start", "env_id": "Pendulum-v1"}, "sb3"),
            (Asked(1, 1.25),),
            higher_is_better=False,
        ),
    ]


def cloning(width: int, samples: int) -> Job:
    """Describe cloning by imitation's loss on both sides, and beside it by our default one."""
    settings = {"kind": "cloning", "width": width}
    same = {**settings, "loss": "nll", "entropy_coef": 1e-3}
    sides = {
        "ours": {**same, "samples": samples},
        "imitation": {**settings, "samples": 60_000},
        "reference path": {**same, "samples": 60_000, "fast_path": False},
        "squared error": {**settings, "samples": samples},
    }
    name = f"cloning, {width}x{width}, batch 64, likelihood and entropy, samples/s"
    return Job(name, "samples_per_second", sides, (Asked(10, 20),))


PLAIN = {"normalize_obs": False, "normalize_reward": False}
"""What our defaults have and the peers' have not, turned off."""
POOLED = {"envpool": True}
"""Learning in envpool's environments."""


def trainings() -> list[tuple[str, dict[str, Any]]]:
    """Return what is trained to its end on both sides, to see that speed is not paid for in returns.

    CartPole-v1 has more seeds, as it differs more from one to the next. Where rollouts of the default length would make but
    thirteen updates, which nothing has learned from yet, they are an eighth as long.
    """
    sides: list[tuple[str, dict[str, Any]]] = [("ours", {}), ("ours", PLAIN), ("sb3", {})]
    short = {"n_steps": 256}
    return [
        *trained(sides, 5, env_id="Pendulum-v1", num_envs=1, steps=200_000),
        *trained(sides, 5, env_id="HalfCheetah-v5", num_envs=1, steps=200_000),
        *trained([*sides, ("ours", POOLED)], 5, env_id="HalfCheetah-v5", num_envs=8, steps=200_000, **short),
        *trained(sides, 5, env_id="Hopper-v5", num_envs=8, steps=200_000, **short),
        *trained(sides, 20, env_id="CartPole-v1", num_envs=8, steps=65_536),
    ]


def trained(sides: list[tuple[str, dict[str, Any]]], seeds: int, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return one piece of training for each seed and side."""
    return [(side, {"kind": "returns", **settings, "seed": seed, **flags}) for seed in range(seeds) for side, flags in sides]


def scaling() -> list[Job]:
    """Return the jobs that show how our rate changes with one number at a time."""
    sizes = [(f"width {width}", ppo("Pendulum-v1", 1, 20_480, 0, width=width)) for width in (32, 64, 128, 256)]
    sizes += [
        (f"environments {num_envs}", ppo("Pendulum-v1", num_envs, 20_480, 0, n_steps=2048 // num_envs))
        for num_envs in (1, 2, 4, 8, 16, 32, 64)
    ]
    sizes += [
        (f"minibatch {batch_size}", ppo("Pendulum-v1", 1, 20_480, 0, batch_size=batch_size))
        for batch_size in (64, 128, 256, 512, 1024, 2048)
    ]
    return [Job(name, "steps_per_second", both(settings)) for name, settings in sizes]


def first_peer(job: Job) -> str:
    """Return the peer that a figure is asked against."""
    return next(side for side in job.sides if side in REQUIREMENTS)


def median(job: Job, side: str, figure: str | None = None) -> float:
    """Return a side's median of the job's figure, or of another one."""
    return float(np.median([result[figure or job.figure] for result in job.measured[side]]))


def ratio(job: Job, side: str, peer: str) -> tuple[float, float, float]:
    """Return median, lowest and highest of the ratios between neighbouring runs, so that above 1 is better."""
    pairs = zip(job.measured[side], job.measured[peer], strict=True)
    ratios = [ours[job.figure] / theirs[job.figure] for ours, theirs in pairs]
    ratios = ratios if job.higher_is_better else [1 / each for each in ratios]
    return float(np.median(ratios)), min(ratios), max(ratios)
