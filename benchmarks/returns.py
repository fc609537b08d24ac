"""How good our experts are: `python -m benchmarks.returns`.

Trains every preset on ten seeds, evaluates the policy after the last update and the best one by the evaluations in between
from start states that neither training nor the choice of settings has seen, and does the same to Stable-Baselines3 with the
settings that RL Baselines3 Zoo keeps for it. One row a run is added to `benchmarks/results/returns.jsonl` as the run ends,
and runs that have a row of the same settings are left out, so that an interrupted benchmark goes on where it was.
`python -m benchmarks.returns changes` trains with one setting of a preset changed, on the same seeds as the preset, which
shows what the setting brings; `python -m benchmarks.returns peers` trains Stable-Baselines3; and
`python -m benchmarks.returns again` trains all presets once more, on the same seeds, which shows what another processor or
later code makes of them: its rows go to `benchmarks/results/returns_again.jsonl`. `docs/returns.md` and `docs/returns.svg` are
written from the rows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.returns_page import write_page
from benchmarks.run import measure, set_up_peers
from il_based_rl.config import TrainPPOConfig
from il_based_rl.presets import PRESETS, applied, flag_of, with_preset

ROWS = Path(__file__).parent / "results" / "returns.jsonl"
AGAIN = Path(__file__).parent / "results" / "returns_again.jsonl"
SEARCHED = Path(__file__).parent / "results" / "search.jsonl"
"""What the presets were chosen by."""
EXPERTS = Path(__file__).parent.parent / ".benchmarks" / "experts"
START_SEEDS = range(10_000, 10_100)
"""What finished policies play; on both sides."""
POINTS, EPISODES = 20, 10
"""Evaluations on the way, and episodes of each."""


@dataclass(frozen=True)
class Task:
    """An environment, by its preset or without one."""

    env_id: str
    preset: bool = True
    seeds: range = range(10)
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not the preset's."""

    @property
    def name(self) -> str:
        """What it is called in rows and tables."""
        return self.env_id if self.preset else f"{self.env_id}, no preset"

    @property
    def change(self) -> str:
        """The flags of what is changed."""
        return " ".join(flag_of(name, value) for name, value in self.changed.items())


SEEDS = {"CartPole-v1": range(10, 20)}
"""Where they are not 0 to 9: of these two had been looked at with settings of before."""
TASKS = [Task("Pendulum-v1", preset=False), *(Task(env_id, seeds=SEEDS.get(env_id, range(10))) for env_id in PRESETS)]
_SMALL_TASKS = ("Pendulum-v1", "MountainCarContinuous-v0", "InvertedDoublePendulum-v5")
_ANY: list[dict[str, Any]] = [
    {"lr_schedule": "constant"},
    {"activation": "relu"},
    {"reward_clip": 1.0},
    {"orthogonal_init": False},
]
_GONE: list[dict[str, Any]] = [
    {"clip_schedule": "linear"},
    {"value_clip_range": 0.2},
    {"recompute_advantages": True},
    {"critic_hidden_dims": (128, 128)},
    {"target_kl": 0.02},
]
CHANGES = [
    Task("Ant-v5", changed={"initial_log_std": -3.0, "obs_clip": 10.0}),
    Task("Ant-v5", seeds=range(5), changed={"obs_clip": 10.0}),
    Task("HalfCheetah-v5", seeds=range(5), changed={"lr_schedule": "constant"}),
    Task("HalfCheetah-v5", seeds=range(5), changed={"initial_log_std": 0.0}),
    Task("Hopper-v5", changed={"gamma": 0.99, "gae_lambda": 0.95}),
    Task("Walker2d-v5", changed={"orthogonal_init": True}),
    *(Task(env_id, changed={"orthogonal_init": False}) for env_id in ("LunarLander-v3", "Reacher-v5")),
    *(Task(env_id, changed=each) for env_id in _SMALL_TASKS for each in _ANY),
]
"""What the settings bring, one at a time."""
FORMER = [Task(env_id, changed=each) for env_id in _SMALL_TASKS for each in _GONE]
"""The same of settings that brought nothing, and are gone; their rows are of the version before."""

PEER_SEEDS = range(3)
PEER_TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "steps": 100_000,
        "num_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": "linear 0.001",
        "clip_range": "linear 0.2",
    },
    "Pendulum-v1": {
        "steps": 100_000,
        "num_envs": 4,
        "n_steps": 1024,
        "gamma": 0.9,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "Acrobot-v1": {"steps": 1_000_000, "normalize": True, "num_envs": 16, "n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4},
    "LunarLanderContinuous-v3": {
        "steps": 1_000_000,
        "num_envs": 16,
        "n_steps": 1024,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "HalfCheetah-v5": {
        "steps": 1_000_000,
        "normalize": True,
        "num_envs": 1,
        "n_steps": 512,
        "gamma": 0.98,
        "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "activation": "relu", "net_arch": [256, 256]},
    },
    "Ant-v5": {"steps": 1_000_000, "normalize": True, "num_envs": 1},
    "BipedalWalker-v3": {
        "steps": 1_000_000,
        "normalize": True,
        "num_envs": 32,
        "n_steps": 2048,
        "gamma": 0.999,
        "clip_range": 0.18,
    },
}
"""RL Baselines3 Zoo's settings of PPO (hyperparams/ppo.yml; where it knows no v5, of HalfCheetah-v3 and Ant-v3 for
one million steps); what is left out is Stable-Baselines3's default."""


@dataclass(frozen=True)
class Job:
    """One run, and what its row is known by."""

    side: str
    env_id: str
    settings: str
    seed: int
    train: Callable[[], dict[str, Any]]
    """Returns the row."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two rows have in common."""
        return self.side, self.settings, self.seed


def own_jobs(tasks: list[Task], keep: bool = False) -> list[Job]:
    """Return all runs of ours."""
    return [
        Job("ours", task.env_id, command_of(task), seed, partial(run, task, seed, keep))
        for task in tasks
        for seed in task.seeds
    ]


def peer_jobs() -> list[Job]:
    """Return all runs of Stable-Baselines3."""
    return [
        Job("sb3", env_id, json.dumps(settings), seed, partial(run_peer, env_id, seed))
        for env_id, settings in PEER_TASKS.items()
        for seed in PEER_SEEDS
    ]


def run(task: Task, seed: int, keep: bool) -> dict[str, Any]:
    """Train on one seed, and keep the expert for `benchmarks.zoo` if asked to; return the row."""
    from il_based_rl.envs import make_envs
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.ppo_agent import PPOAgent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds
    from il_based_rl.train_ppo import fresh_agent

    config = replace(settings_of(task), seed=seed)
    on_the_way = list(start_seeds(seed, "evaluation in training", EPISODES))
    with (
        fitting_threads(config.hidden_dims),
        make_envs(config.env_id, config.num_envs, vectorization="sync") as envs,
        EpisodePlayers(config.env_id, len(START_SEEDS)) as players,
    ):
        agent = fresh_agent(config, envs)
        updates, training, curve, best, kept = agent.learn(envs, config.total_timesteps), 0.0, [], float("-inf"), {}
        while True:
            started = time.perf_counter()
            progress = next(updates, None)
            training += time.perf_counter() - started
            if progress is None:
                break
            if progress.passes_multiple_of(max(1, config.total_timesteps // POINTS)):
                mean = play_evaluation(agent, players, on_the_way, quiet=True).mean
                curve.append((progress.env_steps, round(training, 2), round(mean, 2)))
                if mean >= best:
                    best, kept = mean, agent.payload()
        if keep:
            agent.save(expert_of(task, seed), weights_only=True)
        final = play_evaluation(agent, players, START_SEEDS, quiet=True)
        chosen = play_evaluation(PPOAgent.from_payload(kept, "memory"), players, START_SEEDS, quiet=True)
    return {
        "side": "ours",
        "task": task.name,
        "settings": command_of(task),
        "seed": seed,
        "final": round(final.mean, 2),
        "final_worst": round(float(final.returns.min()), 2),
        "final_std": round(float(final.returns.std()), 2),
        "best": round(chosen.mean, 2),
        "seconds": round(training, 1),
        "curve": curve,
        "versions": versions(config.env_id),
    }


def expert_of(task: Task, seed: int) -> Path:
    """Return where the policy of a run is kept."""
    return EXPERTS / f"{task.env_id}-{seed}.pt" if task.preset else EXPERTS / f"{task.env_id}-no-preset-{seed}.pt"


def settings_of(task: Task) -> TrainPPOConfig:
    """Return the settings that a task is trained with."""
    config = with_preset(TrainPPOConfig(), task.env_id) if task.preset else TrainPPOConfig(task.env_id)
    return applied(task.changed, config)


def command_of(task: Task) -> str:
    """Return the command line that trains a task, its settings spelled out."""
    preset = PRESETS[task.env_id].settings if task.preset else {}
    settings = {name: value for name, (value, _) in preset.items()} | task.changed
    return " ".join([f"il-rl train-ppo --env-id {task.env_id}", *map(flag_of, settings.keys(), settings.values())])


def versions(env_id: str) -> str:
    """Name the packages that an environment comes from."""
    packages = ["gymnasium", "mujoco"] if env_id.endswith("-v5") else ["gymnasium"]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def run_peer(env_id: str, seed: int) -> dict[str, Any]:
    """Train Stable-Baselines3 on one seed; return the row."""
    found = measure(
        "sb3",
        {"kind": "returns", "env_id": env_id, "seed": seed, "points": POINTS, "episodes": EPISODES, **PEER_TASKS[env_id]},
    )
    return {
        "side": "sb3",
        "task": env_id,
        "settings": json.dumps(PEER_TASKS[env_id]),
        "seed": seed,
        "final": round(found["mean_return"], 2),
        "seconds": round(found["seconds"], 1),
        "curve": found["curve"],
    }


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """Return the rows of before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(job: Job) -> dict[str, Any]:
    """Run a job, in a process of its own."""
    return job.train()


def main() -> None:
    """Run what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=["presets", "again", "changes", "peers"], default="presets", help="what to train"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", nargs="*", help="environments; all where none is given")
    parser.add_argument("--page-only", action="store_true", help="write the document from the rows that there are")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if not arguments.page_only:
        path = AGAIN if arguments.what == "again" else ROWS
        if arguments.what == "peers":
            set_up_peers()
            jobs = peer_jobs()
        else:
            jobs = own_jobs(CHANGES if arguments.what == "changes" else TASKS, keep=arguments.what == "presets")
        there = {(row["side"], row["settings"], row["seed"]) for row in read_rows(path)}
        wanted = [job for job in jobs if job.key not in there and (arguments.only is None or job.env_id in arguments.only)]
        path.parent.mkdir(exist_ok=True)
        context = multiprocessing.get_context("spawn")
        with context.Pool(arguments.workers, maxtasksperchild=1) as pool, open(path, "a", encoding="utf-8") as file:
            for row in pool.imap_unordered(train, wanted):
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(row["side"], row["task"], row["seed"], row["final"], row["seconds"], flush=True)
    write_page(
        read_rows(),
        {task.name: command_of(task) for task in TASKS},
        [(task.env_id, task.change, command_of(task)) for task in CHANGES],
        [(task.env_id, task.change, command_of(task)) for task in FORMER],
        read_rows(SEARCHED),
        read_rows(AGAIN),
    )


if __name__ == "__main__":
    main()
