"""What do fine-tuning and DAgger bring, and does fine-tuning never fall behind its clone? `python -m benchmarks.improve`.

For each task an expert is trained, and for each seed a clone that is imperfect on purpose, from few and subsampled
demonstrations. From the same clone go on: fine-tuning behind guard rails; the same with one of them removed; plain PPO that
takes the clone's weights (naive); and, with the same number of steps, plain PPO from scratch. DAgger is compared with cloning
from as many of the expert's labels, and fine-tuned on. All are judged from start states that nothing was chosen by.

Rows are appended to `benchmarks/results/improve.jsonl`, and runs that have one are left out, so that an interrupted benchmark
goes on where it was. `docs/improve_measured.md` is written from the file; experts and DAgger's students are kept under
`.benchmarks/improve/`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.improve_page import write_page

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".benchmarks" / "improve"
RESULTS = Path(__file__).parent / "results" / "improve.jsonl"
SEEDS = range(10, 15)
"""Others than those that the defaults were chosen by, 0 to 2."""
POINTS, EPISODES = 10, 100
"""Evaluations of each run, and the start states of each."""
ARMS = ("fine-tuned", "naive", "scratch")
WITHOUT: dict[str, dict[str, Any]] = {
    "without warm-up": {"warmup_rollouts": 0},
    "without a deviation tried out": {"action_std": 0.7},
    "without a small rate": {"actor_lr": 1e-3, "actor_rampup": 0},
    "without divergence": {"kl_coef": 0.0},
    "without the gate": {"gate": False},
}
"""Guard rails removed, one at a time."""
ABLATED = ("pendulum", "lander")
ROUNDS, ROUND_STEPS = 15, 2_000
"""Of DAgger: 2,000 steps of the expert's, then 28,000 of the student's."""
CLONED_EPOCHS = 240
"""Of the clone from as many labels: it sees as many examples as DAgger's student in all its rounds together."""
AFTER_STEPS, GATE_STEPS = 300_000, 10_000
"""Of fine-tuning after DAgger, and from one gate to the next in it, as the command has by default."""
AFTER: dict[str, Any] = {"actor_lr": 1e-4, "lr_schedule": "linear"}
"""What differs from the defaults in it, chosen on seed 0: a student that is as good as its expert is changed with more care."""


@dataclass(frozen=True)
class Task:
    """What an expert, a clone and its improvement are given."""

    env_id: str
    steps: int
    """Of every arm."""
    episodes: int
    """Demonstrated, of which every `stride`-th transition is kept."""
    stride: int
    epochs: int
    num_envs: int = 4
    n_steps: int = 512
    gamma: float = 0.99
    gae_lambda: float = 0.95


TASKS = {
    "lander": Task("LunarLanderContinuous-v3", 150_000, 3, 2, 45, num_envs=8, n_steps=256, gamma=0.999, gae_lambda=0.98),
    "hopper": Task("Hopper-v5", 200_000, 4, 1, 60),
    "pendulum": Task("InvertedDoublePendulum-v5", 50_000, 6, 1, 150),
    "cheetah": Task("HalfCheetah-v5", 300_000, 2, 1, 100),
    "walker": Task("Walker2d-v5", 300_000, 4, 1, 60),
}
FINE_TUNED, ASKED = ("lander", "hopper", "pendulum", "cheetah"), ("hopper", "walker")
"""Tasks of the two questions."""


def expert_of(task: Task) -> Path:
    """Return the task's expert, trained by its preset where it is missing."""
    from il_based_rl.train_ppo import main

    path = KEPT / f"{task.env_id}.pt"
    if not path.exists():
        flags = f"--env-id {task.env_id} --preset --seed 1000 --vectorization sync --quiet"
        main([*flags.split(), "--save-path", str(path)])
    return path


def clone_of(task: Task, seed: int) -> Any:
    """Return a student from few and subsampled demonstrations."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.collect import collect_demos
    from il_based_rl.config import BCConfig
    from il_based_rl.ppo_agent import PPOAgent

    demos = collect_demos(task.env_id, PPOAgent.load(expert_of(task)), task.episodes, seed=seed, quiet=True)
    parts = list(demos.episodes)
    rows = [np.arange(0, len(part), task.stride) for part in parts]
    ends = [np.arange(len(kept)) == len(kept) - 1 for kept in rows]
    thinned = replace(
        demos,
        **{
            name: np.concatenate([getattr(part, name)[kept] for part, kept in zip(parts, rows, strict=True)])
            for name in ("observations", "actions", "rewards")
        },
        distributions=None,
        terminated=np.zeros(sum(map(len, rows)), bool),
        truncated=np.concatenate(ends),
        episode_lengths=np.array([len(kept) for kept in rows]),
    )
    student = BCAgent.for_dataset(thinned, BCConfig(epochs=task.epochs), hidden_dims=(64, 64), seed=seed)
    for _ in student.learn(thinned):
        pass
    return student


def plain(task: Task) -> Any:
    """Return the settings of plain PPO."""
    from il_based_rl.config import PPOConfig

    return PPOConfig(n_steps=task.n_steps, gamma=task.gamma, gae_lambda=task.gae_lambda, lr_schedule="linear")


def tuned(task: Task, after: bool, guard: Any, student: Any, seed: int, envs: Any, judge: Any) -> Iterator[tuple[int, Any]]:
    """Fine-tune a clone, or a student after DAgger; yield its steps and the policy that would be saved, at each evaluation."""
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO
    from il_based_rl.config import FinetuneConfig
    from il_based_rl.ppo_agent import PPOAgent

    steps, gates = (AFTER_STEPS, GATE_STEPS) if after else (task.steps, task.steps // POINTS)
    ppo = replace(FinetuneConfig().ppo, n_steps=task.n_steps, gamma=task.gamma, gae_lambda=task.gae_lambda)
    if after:
        guard, ppo = replace(guard, actor_lr=AFTER["actor_lr"]), replace(ppo, lr_schedule=AFTER["lr_schedule"])
    tuner = GuardedPPO.from_clone(student.policy, guard, ppo, seed=seed)
    judge(tuner)
    for progress in tuner.learn(envs, steps):
        if progress.passes_multiple_of(gates):
            judge(tuner)
        if progress.passes_multiple_of(steps // POINTS):
            yield progress.env_steps, PPOAgent.from_payload(tuner.payload(), "memory")


def plainly(task: Task, clone: Any, seed: int, envs: Any) -> Iterator[tuple[int, Any]]:
    """Train by plain PPO, with a clone's weights or from scratch for None; yield as `tuned` does."""
    import torch

    from il_based_rl.actor_critic_policy import ActorCriticPolicy
    from il_based_rl.ppo_agent import PPOAgent

    agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, plain(task), hidden_dims=(64, 64), seed=seed)
    if clone is not None:
        spaces = (envs.observation_space, envs.action_space)
        draws = torch.Generator().manual_seed(seed)
        policy = ActorCriticPolicy(*spaces, clone.policy.hidden_dims, activation=clone.policy.activation, generator=draws)
        policy.actor.load_state_dict(clone.policy.state_dict())
        agent = PPOAgent(policy, plain(task), seed=seed)
    for progress in agent.learn(envs, task.steps):
        if progress.passes_multiple_of(task.steps // POINTS):
            yield progress.env_steps, agent


def asked(task: Task, seed: int) -> Path:
    """Return DAgger's student, made where it is missing."""
    from il_based_rl.algorithms.dagger import dagger
    from il_based_rl.ppo_agent import PPOAgent

    path = KEPT / f"dagger_{task.env_id}_{seed}.pt"
    if not path.exists():
        expert = PPOAgent.load(expert_of(task))
        student, _ = dagger(expert, task.env_id, rounds=ROUNDS, round_steps=ROUND_STEPS, seed=seed, quiet=True)
        student.save(path)
    return path


def shown(task: Task, seed: int) -> Any:
    """Return a clone from as many labels as DAgger's student had."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.collect import collect_demos
    from il_based_rl.config import BCConfig
    from il_based_rl.ppo_agent import PPOAgent

    labels, count = ROUNDS * ROUND_STEPS, 30
    expert = PPOAgent.load(expert_of(task))
    while len(demos := collect_demos(task.env_id, expert, count, seed=seed, quiet=True)) < labels:
        count += 10
    enough = int((np.cumsum(demos.episode_lengths) < labels).sum()) + 1  # the last one passes the number
    student = BCAgent.for_dataset(demos, BCConfig(epochs=CLONED_EPOCHS), seed=seed)
    for _ in student.learn(demos.episodes[:enough]):
        pass
    return student


def run(name: str, arm: str, seed: int) -> dict[str, Any]:
    """Train and judge one arm on one task with one seed."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.guarded_ppo import fitting_std
    from il_based_rl.config import GuardConfig
    from il_based_rl.envs import make_envs
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.ppo_agent import PPOAgent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import generator, start_seeds

    task, started = TASKS[name], time.perf_counter()
    seeds = list(start_seeds(seed, "evaluation", EPISODES, key=5))
    gates = list(start_seeds(seed, "evaluation in training", 40))
    row: dict[str, Any] = {"task": name, "arm": arm, "seed": seed, "steps": [], "returns": []}
    with fitting_threads([64]), EpisodePlayers(task.env_id, EPISODES) as players:

        def returns(agent: Any) -> list[float]:
            return [round(x, 3) for x in play_evaluation(agent, players, seeds, quiet=True).returns.tolist()]

        def judge(tuner: Any) -> None:
            played = play_evaluation(tuner.agent, players, gates, quiet=True).returns
            row.setdefault("training", []).append(round(float(played.mean()), 3))
            tuner.judge(played, generator(seed, "comparison", tuner.agent.env_steps))

        players.action_space.seed(seed)
        still = {
            "clone": lambda: clone_of(task, seed),
            "expert": lambda: PPOAgent.load(expert_of(task)),
            "random": lambda: lambda obs: players.action_space.sample(),
            "DAgger": lambda: BCAgent.load(asked(task, seed)),
            "as many labels": lambda: shown(task, seed),
        }
        if arm in still:
            row["returns"].append(returns(still[arm]()))
        else:
            begun = None if arm == "scratch" else BCAgent.load(asked(task, seed)) if "DAgger" in arm else clone_of(task, seed)
            with make_envs(task.env_id, task.num_envs, vectorization="sync") as envs:
                if arm in ("naive", "scratch"):
                    points = plainly(task, begun, seed, envs)
                else:
                    guard = replace(GuardConfig(), **WITHOUT.get(arm, {}))
                    if guard.action_std is None:
                        row["action_std"] = fitting_std(begun, players, gates[:20], guard, seed)
                        guard = replace(guard, action_std=row["action_std"])
                    points = tuned(task, "DAgger" in arm, guard, begun, seed, envs, judge)
                for steps, agent in points:
                    row["steps"].append(steps)
                    row["returns"].append(returns(agent))
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def wanted() -> list[tuple[str, str, int]]:
    """Return all runs: task, arm and seed."""
    arms = {name: ["clone", "expert", "random", *ARMS] for name in FINE_TUNED}
    for name in ASKED:
        arms[name] = list(dict.fromkeys([*arms.get(name, ["expert", "random"]), "DAgger", "as many labels"]))
    arms["hopper"].append("DAgger, then fine-tuned")
    for name in ABLATED:
        arms[name] += list(WITHOUT)
    return [(name, arm, seed) for name, listed in arms.items() for seed in SEEDS for arm in listed]


def main() -> None:
    """Run what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help='runs whose task and arm, as in "hopper, naive", hold this')
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    KEPT.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    there = {(row["task"], row["arm"], row["seed"]) for row in rows}
    missing = [each for each in wanted() if each not in there and arguments.only in f"{each[0]}, {each[1]}"]
    with ProcessPoolExecutor(arguments.workers) as pool:
        list(pool.map(expert_of, [TASKS[name] for name in dict.fromkeys(name for name, _, _ in missing)]))
        for done in as_completed([pool.submit(run, *each) for each in missing]):
            row = done.result()
            rows.append(row)
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            means = [round(float(np.mean(each)), 1) for each in row["returns"]]
            print(row["task"], row["arm"], row["seed"], means, f"{row['seconds']} s", flush=True)
    write_page(rows, TASKS, list(WITHOUT))


if __name__ == "__main__":
    main()
