"""Does fine-tuning a clone pay, and never fall behind it? `python -m benchmarks.improve`.

For each task an expert is trained, and for each seed a clone that is imperfect on purpose, from few and subsampled
demonstrations. From the same clone go on: fine-tuning behind guard rails; plain PPO that takes the clone's weights (naive);
and, with the same number of steps, plain PPO from scratch. All are judged from start states that nothing was chosen by.

Rows are appended to `benchmarks/results/improve.jsonl`, and runs that have one are left out, so that an interrupted benchmark
goes on where it was. `docs/improve_measured.md` is written from the file; experts are kept under `.benchmarks/improve/`.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".benchmarks" / "improve"
RESULTS = Path(__file__).parent / "results" / "improve.jsonl"
PAGE = ROOT / "docs" / "improve_measured.md"
SEEDS = range(10, 15)
"""Others than those that the defaults were chosen by, 0 and 1."""
POINTS, EPISODES = 10, 100
"""Evaluations of each run, and the start states of each."""
ARMS = ("fine-tuned", "naive", "scratch")
HOW = f"""On the scale from a random policy (0) to the expert (1), from {EPISODES} start states a seed that nothing was chosen
by; means over seeds with Student's t intervals of 95 %. The same clone begins every arm of a seed, but for scratch. *Lowest* is
the lowest of the evaluations during training, of the policy that would be saved then. *Steps to 95 %* is the median over seeds
of the first evaluation at or above 95 % of the expert (a run that never gets there counts with all its steps); *area* the mean
over all evaluations."""


@dataclass(frozen=True)
class Task:
    """What an expert, a clone and its improvement are given."""

    env_id: str
    steps: int
    """Of every arm."""
    expert_steps: int
    episodes: int
    """Demonstrated, of which every `stride`-th transition is kept."""
    stride: int
    epochs: int
    num_envs: int = 4
    n_steps: int = 512
    gamma: float = 0.99
    gae_lambda: float = 0.95


TASKS = {
    "lander": Task(
        "LunarLanderContinuous-v3", 150_000, 500_000, 3, 2, 45, num_envs=8, n_steps=256, gamma=0.999, gae_lambda=0.98
    ),
    "hopper": Task("Hopper-v5", 200_000, 1_000_000, 4, 1, 60),
    "pendulum": Task("InvertedDoublePendulum-v5", 50_000, 300_000, 6, 1, 150),
    "cheetah": Task("HalfCheetah-v5", 300_000, 1_000_000, 2, 1, 100),
}


def expert_of(task: Task) -> Path:
    """Return the task's expert, trained where it is missing."""
    from il_based_rl.train_ppo import main

    path = KEPT / f"{task.env_id}.pt"
    if not path.exists():
        flags = (
            f"--env-id {task.env_id} --total-timesteps {task.expert_steps} --num-envs {task.num_envs} --n-steps {task.n_steps}"
            f" --gamma {task.gamma} --gae-lambda {task.gae_lambda} --lr-schedule linear --seed 1000 --vectorization sync"
            " --quiet"
        )
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


def learners(task: Task, arm: str, seed: int, clone: Any, envs: Any, judge: Any) -> Iterator[tuple[int, Any]]:
    """Train one arm; yield its steps and the policy that would be saved, at each evaluation."""
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO
    from il_based_rl.config import FinetuneConfig, GuardConfig
    from il_based_rl.ppo_agent import PPOAgent

    every = task.steps // POINTS
    if arm == "fine-tuned":
        ppo = replace(FinetuneConfig().ppo, n_steps=task.n_steps, gamma=task.gamma, gae_lambda=task.gae_lambda)
        tuner = GuardedPPO.from_clone(clone.policy, GuardConfig(), ppo, seed=seed)
        judge(tuner)
        for progress in tuner.learn(envs, task.steps):
            if progress.passes_multiple_of(every):
                judge(tuner)
                shown = PPOAgent.from_payload(tuner.payload(), "memory")
                yield progress.env_steps, shown
        return
    agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, plain(task), hidden_dims=(64, 64), seed=seed)
    if arm == "naive":
        import torch

        from il_based_rl.actor_critic_policy import ActorCriticPolicy

        spaces = (envs.observation_space, envs.action_space)
        draws = torch.Generator().manual_seed(seed)
        policy = ActorCriticPolicy(*spaces, clone.policy.hidden_dims, activation=clone.policy.activation, generator=draws)
        policy.actor.load_state_dict(clone.policy.state_dict())
        agent = PPOAgent(policy, plain(task), seed=seed)
    for progress in agent.learn(envs, task.steps):
        if progress.passes_multiple_of(every):
            yield progress.env_steps, agent


def run(name: str, arm: str, seed: int) -> dict[str, Any]:
    """Train and judge one arm on one task with one seed; `clone`, `expert` and `random` are judged as they are."""
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
            tuner.judge(played, generator(seed, "comparison", tuner.agent.env_steps))

        if arm in ("clone", "expert", "random"):
            players.action_space.seed(seed)
            made = {
                "clone": lambda: clone_of(task, seed),
                "expert": lambda: PPOAgent.load(expert_of(task)),
                "random": lambda: lambda obs: players.action_space.sample(),
            }
            row["returns"].append(returns(made[arm]()))
        else:
            clone = clone_of(task, seed)
            with make_envs(task.env_id, task.num_envs, vectorization="sync") as envs:
                for steps, agent in learners(task, arm, seed, clone, envs, judge):
                    row["steps"].append(steps)
                    row["returns"].append(returns(agent))
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def page(rows: list[dict[str, Any]]) -> str:
    """Write the document."""
    from il_based_rl.statistics import Estimate, difference, mean_interval

    random = np.random.default_rng(0)
    found = {(row["task"], row["arm"], row["seed"]): np.array(row["returns"]) for row in rows}
    steps = {(row["task"], row["arm"], row["seed"]): np.array(row["steps"]) for row in rows}
    lines = [
        "# What fine-tuning brings, measured",
        "",
        *textwrap.wrap(f"`python -m benchmarks.improve`, {time.strftime('%Y-%m-%d')}. {HOW}", 124),
        "",
    ]
    for name, task in TASKS.items():
        ready = [seed for seed in SEEDS if all((name, arm, seed) in found for arm in ("clone", "expert", "random", *ARMS))]
        if not ready:
            continue
        lines += [f"## {task.env_id}, {task.steps:,} steps, {len(ready)} seeds", ""]
        lines += ["| arm | final | lowest | final above the clone | steps to 95 % | area |", "|---|---|---|---|---|---|"]

        def scaled(arm: str, seed: int, name: str = name) -> np.ndarray:
            low, high = (found[name, end, seed].mean() for end in ("random", "expert"))
            return (found[name, arm, seed].mean(axis=1) - low) / (high - low)

        def shown(values: list[float]) -> str:
            array = np.array(values)
            low, high = mean_interval(array)
            return f"{array.mean():.2f}" if np.isnan(low) else f"{array.mean():.2f} [{low:.2f}, {high:.2f}]"

        clones = {seed: float(scaled("clone", seed)[0]) for seed in ready}
        lines.append(f"| clone | {shown(list(clones.values()))} | | | | |")
        clearly_below = 0
        for arm in ARMS:
            curves = {seed: scaled(arm, seed) for seed in ready}
            gained = [float(curves[seed][-1] - clones[seed]) for seed in ready]
            reached = []
            for seed in ready:
                above = np.flatnonzero(curves[seed] >= 0.95)
                reached.append(float(steps[name, arm, seed][above[0]]) if len(above) else float(task.steps))
            cells = [
                shown([float(curve[-1]) for curve in curves.values()]),
                shown([float(curve.min()) for curve in curves.values()]),
                shown(gained),
                f"{np.median(reached):,.0f}",
                shown([float(curve.mean()) for curve in curves.values()]),
            ]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
            if arm == "fine-tuned":
                for seed in ready:
                    margins: list[Estimate] = [
                        difference(found[name, arm, seed][k], found[name, "clone", seed][0], random, paired=True)
                        for k in range(len(curves[seed]))
                    ]
                    clearly_below += sum(margin.high < 0 for margin in margins)
        count = len(ready) * POINTS
        lines += [
            "",
            f"At {clearly_below} of {count} evaluations the fine-tuned policy that would be saved was below the clone, the",
            "paired interval excluding zero (uncorrected for their number).",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="tasks whose name holds this")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    KEPT.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    there = {(row["task"], row["arm"], row["seed"]) for row in rows}
    wanted = [
        (name, arm, seed)
        for name in TASKS
        if arguments.only in name
        for seed in SEEDS
        for arm in ("clone", "expert", "random", *ARMS)
        if (name, arm, seed) not in there
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        list(pool.map(expert_of, [TASKS[name] for name in dict.fromkeys(name for name, _, _ in wanted)]))
        for done in as_completed([pool.submit(run, *each) for each in wanted]):
            row = done.result()
            rows.append(row)
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            means = [round(float(np.mean(each)), 1) for each in row["returns"]]
            print(row["task"], row["arm"], row["seed"], means, f"{row['seconds']} s", flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
