"""What do fine-tuning and DAgger bring, and does fine-tuning never fall behind its clone? `python -m benchmarks.improve`.

For each task the zoo has an expert, and for each seed there is a clone that is imperfect on purpose: from few episodes, of
which it is shown only every so many-th step. From the same clone go on: fine-tuning behind guard rails; the same with one of
them removed; plain PPO that takes the clone's weights (naive); and, with the same number of steps, plain PPO from scratch.
DAgger is compared with cloning from as many of the expert's labels, and fine-tuned on, with the zoo's expert and with one of
fewer steps. All are judged from start states that nothing was chosen by.

Rows are appended to `benchmarks/results/improve.jsonl`, and runs that have one are left out, so that an interrupted
benchmark goes on where it was; a row remembers the expert, and those of another one are left out.
`docs/improve_measured.md` is written from the file; clones, DAgger's students and the expert of fewer steps are kept under
`.benchmarks/improve/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.improve_page import ARMS, FURTHER, TAUGHT, write_page
from benchmarks.zoo import ZOO, name_of

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".benchmarks" / "improve"
RESULTS = Path(__file__).parent / "results" / "improve.jsonl"
SEEDS, FEWER = range(10, 20), range(10, 15)
"""Of fine-tuning, and of all else. Settings were chosen by others: 0 to 2, on the pendulum 0 to 8, on the lander 20 to 26."""
POINTS, EPISODES = 10, 100
"""Evaluations of each run, and the start states of each."""
IMPERFECT, NEAR = 0.55, 0.2
"""Where a clone is to be on the way from a random policy to the expert, and how near to that."""
MOST_EPISODES, CLONE_EPOCHS = 40, 1_000
"""That a clone may be shown; of cloning."""
TURNED = "statistics turned"
"""The arm whose observation statistics move on where the task's stay, and stay where they move on, see `Task`."""
WITHOUT: dict[str, dict[str, Any]] = {
    "without warm-up": {"warmup_rollouts": 0},
    "without a deviation tried out": {"action_std": 0.7},
    "without a small rate": {"actor_lr": 1e-3, "actor_rampup": 0},
    "without divergence": {"kl_coef": 0.0},
    "without the gate": {"gate": False},
    TURNED: {},
}
"""Guard rails removed, one at a time, by what differs in their settings."""
ABLATED = ("pendulum", "lander")
LABELS = (1_000, 2_000, 3_000)
"""Of the expert, after which DAgger's student is compared with a clone from as many."""
EPOCHS_A_STEP = 0.24
"""Of cloning after each round of DAgger, for each of its steps."""
NOISE = 0.1
"""Of disturbed demonstrations, as `collect --action-noise`; what is recorded is clean."""
GATE_STEPS, AFTER_STEPS = 10_000, 300_000
"""From one gate to the next at most, as the command has by default; of fine-tuning after DAgger."""
AFTER: dict[str, Any] = {"actor_lr": 1e-4}
"""Guard rails that differ from the defaults in it: a student that is as good as its expert is changed with more care."""


@dataclass(frozen=True)
class Task:
    """What an expert, a clone and its improvement are given."""

    env_id: str
    steps: int = 200_000
    """Of every arm."""
    every: int = 20
    """Of the steps that are demonstrated, one is shown to the clone, and the next that many later."""
    noise: float = 0.0
    """What disturbs them."""
    num_envs: int = 4
    n_steps: int = 500
    gamma: float = 0.995
    gae_lambda: float = 0.97
    """As fine-tuning has by default; of every arm."""
    moving: bool = False
    """Whether the observation statistics move on in fine-tuning, as they do in plain PPO."""
    round_steps: int = 250
    """Of each round of DAgger; in the first the expert acts."""
    expert_steps: int | None = None
    """Of its expert's training by the preset, with seed 0, where it is not the zoo's."""

    @property
    def round_epochs(self) -> int:
        """Of cloning after each of them."""
        return round(EPOCHS_A_STEP * self.round_steps)


TASKS = {
    "lander": Task("LunarLanderContinuous-v3", 150_000, num_envs=8, n_steps=250, gamma=0.999, gae_lambda=0.98, moving=True),
    "hopper": Task("Hopper-v5", num_envs=16, n_steps=125, round_steps=1_000),
    "pendulum": Task("InvertedDoublePendulum-v5", 50_000, every=8, noise=NOISE, n_steps=250, moving=True),
    "cheetah": Task("HalfCheetah-v5", 300_000, gamma=0.98, gae_lambda=0.92),
    "walker": Task("Walker2d-v5", round_steps=1_000),
    "unfinished": Task("Hopper-v5", num_envs=16, n_steps=125, round_steps=1_000, expert_steps=300_000),
}
FINE_TUNED = ("lander", "hopper", "pendulum", "cheetah")
"""Tasks of fine-tuning."""
ASKED = {"hopper": FEWER, "walker": range(10, 25), "pendulum": FEWER, "unfinished": FEWER}
"""Tasks of DAgger, and its seeds: more where a clone of the expert's own steps is as good by some seeds and falls by others."""
AFTER_DAGGER = ("hopper", "unfinished")
"""Tasks whose students by DAgger are fine-tuned."""


def expert_of(task: Task) -> Path:
    """Return the task's expert, which is trained where it is not the zoo's and missing."""
    from il_based_rl.config import TrainPPOConfig
    from il_based_rl.presets import with_preset
    from il_based_rl.train_ppo import train_ppo

    if task.expert_steps is None:
        return ZOO / f"{name_of(task.env_id)}.pt"
    path = KEPT / f"expert_{fingerprint_of(task)}.pt"
    if not path.exists():
        preset = with_preset(TrainPPOConfig(seed=0, quiet=True), task.env_id)
        begun = path.with_name(f"begun_{path.name}")  # which an interruption leaves unfinished
        train_ppo(replace(preset, total_timesteps=task.expert_steps, save_path=str(begun), eval_interval=task.expert_steps))
        begun.replace(path)
    return path


def fingerprint_of(task: Task) -> str:
    """Return what tells the task's expert from others: the file's digest, or how it is made."""
    if task.expert_steps is not None:
        return f"{task.env_id}_{task.expert_steps}"
    return hashlib.sha256(expert_of(task).read_bytes()).hexdigest()[:12]


def clone_of(task: Task, seed: int) -> Path:
    """Return a student from the fewest thinned episodes that make it neither bad nor perfect, made where it is missing.

    Where no number of them does, it is the student that comes nearest.
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.collect import collect_demos
    from il_based_rl.config import BCConfig
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.ppo_agent import PPOAgent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds

    path = KEPT / f"clone_{task.env_id}_{fingerprint_of(task)}_every{task.every}_{seed}.pt"  # no other recipe's
    if path.exists():
        return path
    expert = PPOAgent.load(expert_of(task))
    seeds = list(start_seeds(seed, "evaluation in training", 20))
    with EpisodePlayers(task.env_id, len(seeds)) as players:

        def mean(agent: Any) -> float:
            return play_evaluation(agent, players, seeds, quiet=True).mean

        players.action_space.seed(seed)
        high, low = mean(expert), mean(lambda obs: players.action_space.sample())
        whole = collect_demos(task.env_id, expert, MOST_EPISODES, seed=seed, action_noise=task.noise, quiet=True)
        demos = thinned(whole, task.every)
        nearest, chosen = math.inf, None
        for episodes in range(2, MOST_EPISODES + 1):
            few = demos.episodes[:episodes]
            student = BCAgent.for_dataset(few, BCConfig(epochs=CLONE_EPOCHS), hidden_dims=(64, 64), seed=seed)
            for _ in student.learn(few):
                pass
            distance = abs((mean(student) - low) / (high - low) - IMPERFECT)
            if distance < nearest:
                nearest, chosen = distance, student.payload()
            if distance <= NEAR:
                break
    BCAgent.from_payload(chosen, path).save(path)
    return path


def thinned(demos: Any, every: int) -> Any:
    """Return the data set of every so many-th step of each episode, the first included."""
    from il_based_rl.dataset import DemoDataset

    starts = zip(demos.episode_starts, demos.episode_lengths, strict=True)
    rows = [np.arange(start, start + length, every) for start, length in starts]
    kept, lengths = np.concatenate(rows), np.array([len(each) for each in rows])
    ends = np.isin(np.arange(len(kept)), np.cumsum(lengths) - 1)
    return DemoDataset(
        observations=demos.observations[kept],
        actions=demos.actions[kept],
        rewards=demos.rewards[kept],
        terminated=np.zeros(len(kept), bool),
        truncated=ends,
        final_observations=demos.final_observations,
        episode_lengths=lengths,
        seeds=demos.seeds,
        metadata=demos.metadata,
    )


def plain(task: Task) -> Any:
    """Return the settings of plain PPO."""
    from il_based_rl.config import PPOConfig

    return PPOConfig(n_steps=task.n_steps, gamma=task.gamma, gae_lambda=task.gae_lambda, lr_schedule="linear")


def tuned(task: Task, after: bool, guard: Any, student: Any, seed: int, envs: Any, judge: Any) -> Iterator[tuple[int, Any]]:
    """Fine-tune a clone, or a student after DAgger; yield, at each evaluation, its steps and the policy that would be saved.

    None stands for that of the evaluation before; after DAgger only the end is evaluated.
    """
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO
    from il_based_rl.config import FinetuneConfig
    from il_based_rl.ppo_agent import PPOAgent

    steps, points = (AFTER_STEPS, AFTER_STEPS) if after else (task.steps, task.steps // POINTS)
    gates = min(GATE_STEPS, points)
    shape = {"n_steps": task.n_steps, "gamma": task.gamma, "gae_lambda": task.gae_lambda}
    ppo = replace(FinetuneConfig().ppo, normalize_obs=task.moving, **shape)
    tuner = GuardedPPO.from_clone(student.policy, replace(guard, **AFTER) if after else guard, ppo, seed=seed)
    judge(tuner)
    last = None
    for progress in tuner.learn(envs, steps):
        if progress.passes_multiple_of(gates):
            judge(tuner)
        if progress.passes_multiple_of(points):
            yield progress.env_steps, None if tuner.best is last else PPOAgent.from_payload(tuner.payload(), "memory")
            last = tuner.best


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


def asked(task: Task, seed: int) -> list[Path]:
    """Return DAgger's best students after so many labels, made where they are missing."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.aggregation import Aggregation
    from il_based_rl.config import BCConfig, DaggerConfig
    from il_based_rl.ppo_agent import PPOAgent

    of_all = f"dagger_{task.env_id}_{fingerprint_of(task)}_rounds{task.round_steps}_{seed}"
    paths = [KEPT / f"{of_all}_{labels}.pt" for labels in LABELS]
    if not paths[-1].exists():
        rounds, bc = LABELS[-1] // task.round_steps, BCConfig(epochs=task.round_epochs)
        config = DaggerConfig(task.env_id, rounds=rounds, round_steps=task.round_steps, seed=seed, quiet=True, bc=bc)
        with closing(Aggregation(config, PPOAgent.load(expert_of(task)))) as learner:
            for progress in learner.learn():
                if progress.queries in LABELS:
                    BCAgent.from_payload(learner.best, "memory").save(paths[LABELS.index(progress.queries)])
    return paths


def shown(task: Task, seed: int, labels: int, noise: float) -> Any:
    """Return a clone from as many labels of the expert's own steps, which has seen as many examples as DAgger's student."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.collect import collect_demos
    from il_based_rl.config import BCConfig
    from il_based_rl.ppo_agent import PPOAgent

    expert, count = PPOAgent.load(expert_of(task)), labels // 1_000
    while len(demos := collect_demos(task.env_id, expert, count, seed=seed, action_noise=noise, quiet=True)) < labels:
        count += 1  # as an episode has 1,000 steps at most; the last one may pass the number
    epochs = task.round_epochs * (labels // task.round_steps + 1) // 2
    student = BCAgent.for_dataset(demos, BCConfig(epochs=epochs), seed=seed)
    for _ in student.learn(demos):
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
    from il_based_rl.seeding import start_seeds

    task, started = TASKS[name], time.perf_counter()
    if arm == TURNED:
        task = replace(task, moving=not task.moving)
    seeds = list(start_seeds(seed, "evaluation", EPISODES, key=5))
    gates = list(start_seeds(seed, "evaluation in training", 40))
    row: dict[str, Any] = {"task": name, "expert": fingerprint_of(task), "arm": arm, "seed": seed, "steps": [], "returns": []}
    with fitting_threads([64]), EpisodePlayers(task.env_id, EPISODES) as players:

        def returns(agent: Any) -> list[float]:
            return [round(x, 3) for x in play_evaluation(agent, players, seeds, quiet=True).returns.tolist()]

        def judge(tuner: Any) -> None:
            played = play_evaluation(tuner.agent, players, gates, quiet=True).returns
            row.setdefault("training", []).append(round(float(played.mean()), 3))
            tuner.judge(played)

        players.action_space.seed(seed)
        still = {
            "clone": lambda: BCAgent.load(clone_of(task, seed)),
            "expert": lambda: PPOAgent.load(expert_of(task)),
            "random": lambda: lambda obs: players.action_space.sample(),
        }
        if arm in still:
            row["returns"].append(returns(still[arm]()))
        elif arm in TAUGHT:
            row["steps"] = list(LABELS)
            noise = NOISE if arm == "as many, disturbed" else 0.0
            students = (
                map(BCAgent.load, asked(task, seed)) if arm == "DAgger" else (shown(task, seed, n, noise) for n in LABELS)
            )
            row["returns"] = [returns(student) for student in students]
        else:
            after = arm == FURTHER
            begun = None if arm == "scratch" else BCAgent.load(asked(task, seed)[-1] if after else clone_of(task, seed))
            with make_envs(task.env_id, task.num_envs, vectorization="sync") as envs:
                if arm in ("naive", "scratch"):
                    points = plainly(task, begun, seed, envs)
                else:
                    guard = replace(GuardConfig(), **WITHOUT.get(arm, {}))
                    if guard.action_std is None:
                        row["action_std"] = fitting_std(begun.policy, players, gates[:20], guard, seed)
                        guard = replace(guard, action_std=row["action_std"])
                    points = tuned(task, after, guard, begun, seed, envs, judge)
                for steps, agent in points:
                    row["steps"].append(steps)
                    row["returns"].append(row["returns"][-1] if agent is None else returns(agent))
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def wanted() -> list[tuple[str, str, int]]:
    """Return all runs: task, arm and seed."""
    arms = {name: ["clone", "expert", "random", *ARMS] for name in FINE_TUNED}
    whole = [(name, arm, seed) for name, listed in arms.items() for seed in SEEDS for arm in listed]
    whole += [(name, FURTHER, seed) for name in AFTER_DAGGER for seed in FEWER]
    whole += [(name, arm, seed) for name in ABLATED for seed in FEWER for arm in WITHOUT]
    whole += [(name, arm, seed) for name, seeds in ASKED.items() for seed in seeds for arm in ("expert", "random", *TAUGHT)]
    return list(dict.fromkeys(whole))


def main() -> None:
    """Run what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help='runs whose task and arm, as in "hopper, naive", hold this')
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    KEPT.mkdir(parents=True, exist_ok=True)
    experts = {name: fingerprint_of(task) for name, task in TASKS.items()}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    there = {(row["task"], row["arm"], row["seed"]) for row in rows if row["expert"] == experts[row["task"]]}
    missing = [each for each in wanted() if each not in there and arguments.only in f"{each[0]}, {each[1]}"]
    for name in {name for name, _, _ in missing}:
        expert_of(TASKS[name])  # before runs side by side would each train it
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done in as_completed([pool.submit(run, *each) for each in missing]):
            row = done.result()
            rows.append(row)
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            means = [round(float(np.mean(each)), 1) for each in row["returns"]]
            print(row["task"], row["arm"], row["seed"], means, f"{row['seconds']} s", flush=True)
    write_page([row for row in rows if row["expert"] == experts[row["task"]]], TASKS, list(WITHOUT))


if __name__ == "__main__":
    main()
