"""All stages, one after the other: expert, demonstrations, student, and how good each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import BCConfig, CollectConfig, PipelineConfig, TrainConfig, TrainPPOConfig

if TYPE_CHECKING:
    from il_based_rl.evaluate import EvaluationResult

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.


@dataclass(frozen=True)
class Contestant:
    """One line of the closing table."""

    name: str
    result: EvaluationResult
    parameters: int | None
    """Numbers that its policy needs to act; None for the random one."""
    path: Path | None


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl pipeline`."""
    description = "Train an expert, collect its demonstrations, clone a student, and compare them."
    cli.run(lambda: pipeline(cli.parse(PipelineConfig(), argv, prog="il-rl pipeline", description=description)))


def pipeline(config: PipelineConfig) -> list[Contestant]:
    """Run all stages, print the closing table, and return its lines."""
    from il_based_rl.collect import collect
    from il_based_rl.envs import make_players
    from il_based_rl.files import require_writable
    from il_based_rl.heads import action_head
    from il_based_rl.train import train
    from il_based_rl.train_ppo import train_ppo

    folder = Path(config.output_dir)
    expert_path = folder / "checkpoints" / "ppo_expert.pt"
    demo_path = folder / "demos" / "ppo_expert_demos.npz"
    student_path = folder / "checkpoints" / "bc_student.pt"
    (player,) = make_players(config.env_id, 1)
    action_head(player.env.action_space)
    player.close()
    for path in (expert_path, demo_path, student_path):
        require_writable(path)
    train_ppo(
        TrainPPOConfig(
            env_id=config.env_id,
            total_timesteps=config.ppo_timesteps,
            seed=config.seed,
            save_path=str(expert_path),
            tracking=config.tracking,
        )
    )
    collect(
        CollectConfig(
            env_id=config.env_id,
            checkpoint=str(expert_path),
            num_episodes=config.num_demo_episodes,
            seed=config.seed,
            save_path=str(demo_path),
        )
    )
    train(
        TrainConfig(
            demo_path=str(demo_path),
            save_path=str(student_path),
            seed=config.seed,
            bc=BCConfig(epochs=config.bc_epochs),
            tracking=config.tracking,
        )
    )
    contestants = _compare(config, expert_path, student_path)
    for line in _table(config, contestants, demo_path):
        cli.say(line)
    return contestants


def _compare(config: PipelineConfig, expert_path: Path, student_path: Path) -> list[Contestant]:
    """Evaluate random, expert and student from the same start states."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.networks import parameter_count
    from il_based_rl.ppo_agent import PPOAgent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds

    seeds = list(start_seeds(config.seed, "evaluation", config.num_eval_episodes, key=1))
    expert, student = PPOAgent.load(expert_path), BCAgent.load(student_path)
    with fitting_threads(student.hidden_dims), EpisodePlayers(config.env_id, len(seeds)) as players:
        players.action_space.seed(config.seed)
        return [
            Contestant("random", play_evaluation(lambda obs: players.action_space.sample(), players, seeds), None, None),
            Contestant("expert", play_evaluation(expert, players, seeds), parameter_count(expert.policy.actor), expert_path),
            Contestant("student", play_evaluation(student, players, seeds), parameter_count(student.policy), student_path),
        ]


def _table(config: PipelineConfig, contestants: Sequence[Contestant], demo_path: Path) -> list[str]:
    lines = [
        "",
        f"{config.env_id}: all policies from the same {config.num_eval_episodes} start states",
        f"{'policy':<10}{'mean return':>12}{'95% interval':>24}{'episodes':>10}{'parameters':>12}{'file':>10}",
    ]
    for each in contestants:
        low, high = each.result.interval
        parameters = "-" if each.parameters is None else f"{each.parameters:,}"
        size = "-" if each.path is None else f"{each.path.stat().st_size / 1024:,.0f} KiB"
        interval = "-" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"
        lines.append(
            f"{each.name:<10}{each.result.mean:>12.2f}{interval:>24}{len(each.result.returns):>10}{parameters:>12}{size:>10}"
        )
    random, expert, student = (each.result.mean for each in contestants)
    if expert > random:
        share = (student - random) / (expert - random)
        lines.append(f"On the scale from random (0 %) to expert (100 %) the student is at {share:.1%}.")
    written = [str(each.path) for each in contestants if each.path is not None]
    return [*lines, "", f"Expert          {written[0]}", f"Demonstrations  {demo_path}", f"Student         {written[1]}"]


if __name__ == "__main__":
    main()
