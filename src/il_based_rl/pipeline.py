"""All stages, one after the other: expert, demonstrations, student, how good each is, and the page about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import BCConfig, CollectConfig, PipelineConfig, ReportConfig, TrainConfig, TrainPPOConfig

if TYPE_CHECKING:
    from il_based_rl.comparison import Comparison

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl pipeline`."""
    description = "Train an expert, collect its demonstrations, clone a student, and compare them."
    cli.run(lambda: pipeline(cli.parse(PipelineConfig(), argv, prog="il-rl pipeline", description=description)))


def pipeline(config: PipelineConfig) -> Comparison:
    """Run all stages, print how good each policy is, write the report, and return the comparison."""
    from il_based_rl.collect import collect
    from il_based_rl.envs import make_players
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.files import require_writable
    from il_based_rl.heads import action_head
    from il_based_rl.report.found import read_run
    from il_based_rl.report.gather import PAGE, report
    from il_based_rl.train import train
    from il_based_rl.train_ppo import train_ppo

    folder = Path(config.output_dir)
    expert_path = folder / "checkpoints" / "ppo_expert.pt"
    demo_path = folder / "demos" / "ppo_expert_demos.npz"
    student_path = folder / "checkpoints" / "bc_student.pt"
    (player,) = make_players(config.env_id, 1)
    action_head(player.env.action_space)
    player.close()
    for path in (expert_path, demo_path, student_path, folder / PAGE):
        require_writable(path)
    train_ppo(
        TrainPPOConfig(
            env_id=config.env_id,
            total_timesteps=config.ppo_timesteps,
            seed=config.seed,
            save_path=str(expert_path),
            tracking=config.tracking,
            quiet=config.quiet,
        )
    )
    collect(
        CollectConfig(
            env_id=config.env_id,
            checkpoint=str(expert_path),
            num_episodes=config.num_demo_episodes,
            seed=config.seed,
            save_path=str(demo_path),
            quiet=config.quiet,
        )
    )
    train(
        TrainConfig(
            demo_path=str(demo_path),
            save_path=str(student_path),
            seed=config.seed,
            bc=BCConfig(epochs=config.bc_epochs),
            tracking=config.tracking,
            quiet=config.quiet,
        )
    )
    comparison = _compared(config, expert_path, student_path)
    cli.say(f"\n{comparison.markdown()}")
    runs = [read_run(RunFiles(path).folder) for path in (expert_path, student_path)]
    page = report(ReportConfig(config.output_dir, seed=config.seed, video=config.video, quiet=config.quiet), runs, comparison)
    for name, path in (("Expert", expert_path), ("Demonstrations", demo_path), ("Student", student_path), ("Report", page)):
        cli.say(f"{name:<16}{path}")
    return comparison


def _compared(config: PipelineConfig, expert_path: Path, student_path: Path) -> Comparison:
    """Let expert, student and a random policy play from start states that neither evaluation nor collection has used."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.compare import compare_policies
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.seeding import start_seeds

    seeds = list(start_seeds(config.seed, "evaluation", config.num_eval_episodes, key=1))
    with fitting_threads(BCAgent.load(student_path).hidden_dims):
        policies = {"expert": expert_path, "student": student_path}
        return compare_policies(policies, config.env_id, seed=config.seed, start_seeds=seeds, quiet=config.quiet)


if __name__ == "__main__":
    main()
