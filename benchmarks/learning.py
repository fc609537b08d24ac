"""How well experts and students do: `python -m benchmarks.learning`.

Trains every task below on all its seeds with the commands' own functions, evaluates each expert from start seeds that
nothing else uses, clones a student from 50 of its episodes, and compares the two from the same 100 start states. One row a
run is added to `benchmarks/results/learning.jsonl` as the run ends, and runs that have a row are left out, so that an
interrupted benchmark goes on where it was. `docs/learning.md` is written from the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from il_based_rl.presets import applied, flag_of

ROWS = Path(__file__).parent / "results" / "learning.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "learning.md"
EXPERT_START_SEEDS = range(10_000, 11_000)
STUDENT_START_SEEDS = range(20_000, 20_100)
DEMO_EPISODES = 50


@dataclass(frozen=True)
class Task:
    """One environment with the settings that its expert is trained with."""

    env_id: str
    total_timesteps: int
    seeds: range
    student_seeds: range
    claim: str
    flags: dict[str, Any] = field(default_factory=dict)
    """What differs from the defaults."""

    @property
    def command(self) -> str:
        """The command line that trains this expert."""
        command = f"il-rl train-ppo --env-id {self.env_id} --total-timesteps {self.total_timesteps}"
        return " ".join([command, *map(flag_of, self.flags.keys(), self.flags.values())])


TASKS = [
    Task("Pendulum-v1", 200_000, range(10), range(5), "interquartile mean at least -166, no seed below -190"),
    Task("CartPole-v1", 100_000, range(5), range(5), "every seed at least 475"),
    Task("InvertedPendulum-v5", 100_000, range(5), range(0), "learns (1000 is the most there is)"),
    Task(
        "LunarLanderContinuous-v3",
        400_000,
        range(5),
        range(0),
        "learns (200 counts as solved)",
        {"num_envs": 8, "n_steps": 256, "gamma": 0.999, "gae_lambda": 0.98},
    ),
]


def run(job: tuple[Task, int]) -> dict[str, Any]:
    """Train one expert, and clone its student where the task asks for one; return the row."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.collect import collect_demos
    from il_based_rl.config import TrainConfig, TrainPPOConfig
    from il_based_rl.evaluate import evaluate_policy
    from il_based_rl.train import train
    from il_based_rl.train_ppo import train_ppo

    task, seed = job
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        started = time.monotonic()
        plain = TrainPPOConfig(task.env_id, task.total_timesteps, seed=seed, save_path=f"{folder}/expert.pt")
        expert = train_ppo(applied(task.flags, plain))
        seconds = time.monotonic() - started
        result = evaluate_policy(expert, task.env_id, start_seeds=EXPERT_START_SEEDS)
        row = {
            "task": task.command,
            "env_id": task.env_id,
            "seed": seed,
            "expert_mean": result.mean,
            "expert_worst": float(result.returns.min()),
            "train_seconds": round(seconds, 1),
            "steps_per_second": round(expert.env_steps / seconds),
        }
        if seed in task.student_seeds:
            demos = collect_demos(task.env_id, expert, DEMO_EPISODES, seed)
            demos.save(f"{folder}/demos.npz")
            student = train(TrainConfig(f"{folder}/demos.npz", save_path=f"{folder}/student.pt", seed=seed))
            assert isinstance(student, BCAgent)
            row |= compare(task.env_id, expert, student)
    return row


def compare(env_id: str, expert: Any, student: Any) -> dict[str, float]:
    """Play random, expert and student from the same start states; place the student between the other two."""
    import gymnasium as gym

    from il_based_rl.evaluate import evaluate_policy

    space = gym.make(env_id).action_space
    space.seed(0)
    agents = {"random": lambda obs: space.sample(), "expert": expert, "student": student}
    means = {name: evaluate_policy(agent, env_id, start_seeds=STUDENT_START_SEEDS).mean for name, agent in agents.items()}
    share = (means["student"] - means["random"]) / (means["expert"] - means["random"])
    return {
        "random_100": means["random"],
        "expert_100": means["expert"],
        "student_100": means["student"],
        "student_share": share,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Write the document from the rows."""
    from il_based_rl.statistics import interquartile_mean

    lines = [
        "# How well experts and students do",
        "",
        "Measured by `python -m benchmarks.learning`; every row is in `benchmarks/results/learning.jsonl`. Experts play the",
        "start seeds 10000-10999, the policy after the last update, with its most likely action. Students are cloned from 50",
        "episodes with the defaults of `il-rl train`, and play the start seeds 20000-20099 beside their expert; their place is",
        "given on the scale from random (0 %) to expert (100 %). No setting was chosen on these seeds or start states.",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, one thread a run.",
    ]
    for task in TASKS:
        mine = sorted((row for row in rows if row["task"] == task.command), key=lambda row: row["seed"])
        if not mine:
            continue
        means = np.array([row["expert_mean"] for row in mine])
        lines += ["", f"## {task.env_id}", "", f"`{task.command}`", "", f"Asked: {task.claim}."]
        spread = f"interquartile mean {interquartile_mean(means):.1f}, lowest {means.min():.1f}, highest {means.max():.1f}"
        lines += [f"Measured over {len(mine)} seeds: {spread}.", ""]
        lines += ["| seed | expert | worst episode | student's place | steps/s |", "|---|---|---|---|---|"]
        for row in mine:
            share = f"{row['student_share']:.1%}" if "student_share" in row else ""
            lines.append(
                f"| {row['seed']} | {row['expert_mean']:.1f} | {row['expert_worst']:.1f} | {share} "
                f"| {row['steps_per_second']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    workers = parser.parse_args().workers
    os.environ["OMP_NUM_THREADS"] = "1"
    ROWS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    there = {(row["task"], row["seed"]) for row in rows}
    jobs = [(task, seed) for task in TASKS for seed in task.seeds if (task.command, seed) not in there]
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool, open(ROWS, "a") as file:
        for row in pool.imap_unordered(run, jobs):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
