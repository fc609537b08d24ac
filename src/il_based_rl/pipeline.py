"""All stages, one after the other: expert, demonstrations, students, how good each is, and the page about it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import (
    BCConfig,
    CollectConfig,
    DaggerConfig,
    FinetuneConfig,
    PipelineConfig,
    ReportConfig,
    TrainConfig,
    TrainPPOConfig,
)
from il_based_rl.presets import with_preset

if TYPE_CHECKING:
    from il_based_rl.comparison import Comparison

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl pipeline`."""
    description = "Train an expert, collect its demonstrations, clone a student, improve it if wished, and compare them."

    def command() -> None:
        defaults = PipelineConfig()
        if cli.has("--preset", argv) and not cli.asks_for_help(argv):
            steps = with_preset(TrainPPOConfig(), cli.given("--env-id", argv) or defaults.env_id).total_timesteps
            defaults = replace(defaults, ppo_timesteps=steps)
        pipeline(cli.parse(defaults, argv, prog="il-rl pipeline", description=description))

    cli.run(command)


def pipeline(config: PipelineConfig) -> Comparison:
    """Run all stages, print how good each policy is, write the report, and return the comparison."""
    from il_based_rl.algorithms.dagger import run_dagger
    from il_based_rl.algorithms.finetune import run_finetune
    from il_based_rl.collect import collect
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.files import exclusive
    from il_based_rl.report.found import read_run
    from il_based_rl.report.gather import PAGE, report
    from il_based_rl.train import train
    from il_based_rl.train_ppo import train_ppo

    folder = Path(config.output_dir)
    policies = {"expert": folder / "checkpoints" / "ppo_expert.pt", "student": folder / "checkpoints" / "bc_student.pt"}
    demo_path = folder / "demos" / "ppo_expert_demos.npz"
    if config.dagger:
        policies["DAgger student"] = folder / "checkpoints" / "dagger_student.pt"
    if config.finetune:
        policies["fine-tuned student"] = folder / "checkpoints" / "finetuned.pt"
    _require_possible(config, [*policies.values(), demo_path, folder / PAGE])
    with exclusive(folder / "checkpoints" / ".pipeline.lock", place=folder):  # a stage holds only what it writes itself
        expert, demos, bc = str(policies["expert"]), str(demo_path), BCConfig(epochs=config.bc_epochs)
        told: dict[str, Any] = {"seed": config.seed, "quiet": config.quiet}
        played: dict[str, Any] = {"bounds": config.bounds}
        tracked = told | {"tracking": config.tracking}
        usual = with_preset(TrainPPOConfig(), config.env_id) if config.preset else TrainPPOConfig(config.env_id)
        named = ["--env-id", config.env_id] if ":" in config.env_id else []  # as a file does not choose what is imported
        with _stage(["train-ppo", *named], expert):
            train_ppo(replace(usual, total_timesteps=config.ppo_timesteps, save_path=expert, **played, **tracked))
        shown: dict[str, Any] = {"num_episodes": config.num_demo_episodes, "action_noise": config.action_noise}
        collect(CollectConfig(config.env_id, expert, save_path=demos, **shown, **played, **told))
        last = str(policies["student"])
        with _stage(["train"], last):
            train(TrainConfig(demos, save_path=last, bc=bc, **tracked))
        if config.dagger:
            last, rounds = str(policies["DAgger student"]), 1 + config.dagger
            with _stage(["dagger", *named], last):
                run_dagger(DaggerConfig(config.env_id, expert, demos, save_path=last, rounds=rounds, **played, **tracked))
        if config.finetune:
            begun, last = last, str(policies["fine-tuned student"])
            with _stage(["finetune", *named], last):
                run_finetune(FinetuneConfig(begun, config.env_id, config.finetune, demos, save_path=last, **played, **tracked))
        comparison = _compared(config, policies)
        cli.say(f"\n{comparison.markdown()}")
        runs = [read_run(RunFiles(path).folder) for path in policies.values()]
        shown_in = ReportConfig(
            config.output_dir, None, config.env_id, seed=config.seed, video=config.video, quiet=config.quiet
        )
        page = report(shown_in, runs, comparison)
        for name, path in {**policies, "demonstrations": demo_path, "report": page}.items():
            cli.say(f"{name[0].upper() + name[1:]:<20}{path}")
        return comparison


@contextlib.contextmanager
def _stage(command: Sequence[str], save_path: str) -> Iterator[None]:
    """Say which command goes on with a stage that ended early, as the pipeline itself begins anew."""
    path = Path(save_path)
    former = path.stat().st_mtime_ns if path.exists() else None
    try:
        yield
    except BaseException:
        if path.exists() and path.stat().st_mtime_ns != former:  # else nothing was saved
            resume = shlex.join(["il-rl", *command, "--resume", "--save-path", save_path])
            cli.notice(f"`{resume}` goes on with this stage alone; a pipeline begins anew")
        raise


def _require_possible(config: PipelineConfig, paths: Sequence[Path]) -> None:
    """Raise now whatever is known to be wrong with the environment or the places, before anything is trained."""
    from il_based_rl.collect import require_noise_fits
    from il_based_rl.envs import make_players
    from il_based_rl.files import require_writable
    from il_based_rl.heads import action_head

    (player,) = make_players(config.env_id, 1)
    action_head(player.env.action_space)
    player.close()
    require_noise_fits(config.action_noise, player.env.action_space)
    for path in paths:
        require_writable(path)


def _compared(config: PipelineConfig, policies: Mapping[str, Path]) -> Comparison:
    """Let all policies and a random one play from start states that neither evaluation nor collection has used."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.compare import compare_policies
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.seeding import start_seeds

    seeds = list(start_seeds(config.seed, "evaluation", config.num_eval_episodes, key=1))
    with fitting_threads(BCAgent.load(policies["student"]).hidden_dims):
        return compare_policies(policies, config.env_id, seed=config.seed, start_seeds=seeds, quiet=config.quiet)


if __name__ == "__main__":
    main()
