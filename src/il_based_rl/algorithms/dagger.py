"""DAgger: clone what an expert would have done where the student goes. The command and the function."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import DaggerConfig
from il_based_rl.errors import FileFormatError, ResumeError, TimeIsUp
from il_based_rl.experiment import (
    Checkpoint,
    own_settings,
    require_trusted,
    require_unchanged,
    resumed_checkpoint,
    stored_settings,
)

if TYPE_CHECKING:
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.aggregation import Aggregation
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.statistics import Estimate

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_FIXED_AT_RESUME = ("env_id", "expert", "demo_path", "hidden_dims", "seed", "eval_episodes")
_KEPT_DATA_SETS = 3
"""As many as periodic checkpoints, each of which goes on from its own."""


def dagger(expert: Any, env_id: str, **settings: Any) -> tuple[BCAgent, DemoDataset]:
    """Clone an expert that can be asked, and return the best student and all that the expert said.

    Args:
        expert: An agent of this package, anything with `predict(obs) -> action`, or a plain callable.
        env_id: Gymnasium environment ID.
        settings: Further fields of `DaggerConfig`; of files only `demo_path` is read, and none is written.

    Raises:
        SpaceMismatchError: The expert was made for other spaces, or the demonstrations are of another environment.
        EnvironmentFaultError: The environment or the expert failed.
        See `envs.make_env`.

    Example:
        student, dataset = dagger(PPOAgent.load("checkpoints/ppo_agent.pt"), "Hopper-v5", rounds=10, seed=0)
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.experiment.hardware import fitting_threads

    config = _with_seed(DaggerConfig(env_id=env_id, **settings))
    learner = _started(config, expert)
    with contextlib.closing(learner), fitting_threads(config.hidden_dims):
        for _ in learner.learn():
            pass
    assert learner.dataset is not None
    return BCAgent.from_payload(learner.best, "memory", device=config.device), learner.dataset


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl dagger`."""

    def command() -> None:
        defaults, checkpoint = DaggerConfig(), None
        resume = cli.given("--resume", argv)
        if resume is not None and not cli.asks_for_help(argv):
            checkpoint = resumed_checkpoint(resume, cli.given("--save-path", argv) or defaults.save_path)
            defaults = _own_settings(checkpoint, defaults, cli.given("--env-id", argv))
        description = "Clone what an expert would have done where the student goes."
        run_dagger(cli.parse(defaults, argv, prog="il-rl dagger", description=description), checkpoint)

    cli.run(command)


def run_dagger(config: DaggerConfig, checkpoint: Checkpoint | None = None) -> BCAgent:
    """Go through the rounds, print each, and write checkpoints, each of which holds the best student so far.

    Args:
        config: All settings.
        checkpoint: What `config.resume` names, where it was read already.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment.hardware import fitting_threads, numerics, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.sinks import open_sinks, require_tracking
    from il_based_rl.experiment.time_limit import time_limit

    require_device(config.device)
    require_tracking(config.tracking)
    if config.resume is not None and checkpoint is None:
        checkpoint = resumed_checkpoint(config.resume, config.save_path)
    files = RunFiles(config.save_path)
    config = _with_seed(config) if checkpoint is None else _going_on(config, checkpoint)
    learner = _started(config, load_agent(config.expert))
    with contextlib.closing(learner), fitting_threads(config.hidden_dims):
        if checkpoint is not None:
            learner.restore(checkpoint[1], checkpoint[0], _data_set_of(checkpoint, files))
        files.require_writable()
        cli.say(
            f"DAgger on {config.env_id}: {config.expert} is asked in {config.rounds} rounds of {config.round_steps} steps..."
        )
        if learner.finished:
            cli.notice(f"the run is finished: it has {learner.round} rounds and {learner.queries} questions")
            if checkpoint is None or files.complete(checkpoint):
                return BCAgent.from_payload(learner.best, config.save_path, device=config.device)
        sinks = open_sinks(config.tracking, asdict(config), f"{config.env_id}_{config.rounds}", files.folder, learner.queries)
        bar = cli.Progress("DAgger", config.rounds, "round", initial=learner.round, quiet=config.quiet)
        run = Run(
            files,
            asdict(config),
            numerics=numerics(config.device),
            resumed_from=checkpoint,
            step=learner.queries,
            level="exact",
            sinks=sinks,
        )
        with contextlib.suppress(TimeIsUp), bar, run:
            if checkpoint is None:
                _put_aside(files)
            run.keep(learner, learner.queries)
            run.save()
            with time_limit(config.max_time):
                for progress in learner.learn():
                    run.log(progress.metrics, progress.queries)
                    _save_data_set(learner, files)
                    run.keep(learner, progress.queries, progress.metrics["eval_reward"], periodic=True)
                    run.checkpoint()
                    if not config.quiet:
                        cli.say(_line(progress.round, progress.queries, progress.metrics))
                    bar.update(share=progress.metrics["share_of_expert"])
                share = _share_of_the_best(learner)
            run.save()
            where = f"From {config.final_episodes} start states never seen before"
            cli.say(f"{where}, the best student keeps {share} of what the expert is above a random policy")
            cli.say(f"Demonstrations saved to {_data_sets(files)[0]}")
        cli.say(f"Student saved to {config.save_path}")
    return BCAgent.from_payload(run.kept, config.save_path, device=config.device)


def _with_seed(config: DaggerConfig) -> DaggerConfig:
    from il_based_rl.seeding import fresh_seed

    return replace(config, seed=fresh_seed() if config.seed is None else config.seed)


def _started(config: DaggerConfig, expert: Any) -> Aggregation:
    from il_based_rl.algorithms.aggregation import Aggregation
    from il_based_rl.dataset import DemoDataset

    return Aggregation(config, expert, None if config.demo_path is None else DemoDataset.load(config.demo_path))


def _share_of_the_best(learner: Aggregation) -> Estimate:
    """Estimate what the best student is worth from start states that nothing was chosen by."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.seeding import generator
    from il_based_rl.statistics import share_of_advantage

    best = BCAgent.from_payload(learner.best, "memory")
    student, expert, random = (learner.evaluated(agent, final=True).returns for agent in (best, learner.expert, None))
    return share_of_advantage(student, expert, random, generator(learner.seed, "comparison"), paired=True)


def _data_set_path(files: RunFiles, learner_round: int) -> Path:
    return files.folder / f"demos_{learner_round:03d}.npz"


def _data_sets(files: RunFiles) -> list[Path]:
    """Return the data sets of a run, the newest first."""
    return sorted(files.folder.glob("demos_*.npz"), reverse=True)


def _put_aside(files: RunFiles) -> None:
    """Keep the data sets of an older run as `.bak`."""
    from il_based_rl.files import move_aside

    for path in _data_sets(files):
        move_aside(path)


def _save_data_set(learner: Aggregation, files: RunFiles) -> None:
    """Write the data set before the checkpoint that goes on from it."""
    from il_based_rl.files import remove_file

    assert learner.dataset is not None
    learner.dataset.save(_data_set_path(files, learner.round))
    for path in _data_sets(files)[_KEPT_DATA_SETS + 1 :]:
        remove_file(path)


def _data_set_of(checkpoint: Checkpoint, files: RunFiles) -> DemoDataset | None:
    """Read the data set that a checkpoint goes on from; None before the first round."""
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment.run import RunFiles

    path, payload = checkpoint
    state = payload["dagger"]
    if not isinstance(state, dict) or type(state.get("round")) is not int:
        raise FileFormatError(f"{path} is damaged: it does not say how many rounds it had")
    if state["round"] == 0:
        return None
    # In the run that goes on; else where the checkpoint comes from, which may be a save path or lie in its run's folder.
    name = _data_set_path(files, state["round"]).name
    found = [folder / name for folder in (files.folder, RunFiles(path).folder, path.parent)]
    place = next((each for each in found if each.exists()), found[0])
    dataset = DemoDataset.load(place)
    if dataset.fingerprint != state.get("demonstrations"):
        raise ResumeError(f"{place} holds other demonstrations than those that {path} goes on from")
    return dataset


def _going_on(config: DaggerConfig, checkpoint: Checkpoint) -> DaggerConfig:
    """Return the settings of a resumed run made complete."""
    stored = _stored_settings(checkpoint)
    config = replace(config, seed=stored.seed if config.seed is None else config.seed)
    require_unchanged(checkpoint[0], stored, config, _FIXED_AT_RESUME)
    return config


def _own_settings(checkpoint: Checkpoint, defaults: DaggerConfig, env_id: str | None) -> DaggerConfig:
    """Return what the command line may leave out: see `train_ppo`."""
    stored = _stored_settings(checkpoint)
    require_trusted(checkpoint[0], stored.env_id, env_id)
    return own_settings(checkpoint, stored, defaults)


def _stored_settings(checkpoint: Checkpoint) -> DaggerConfig:
    """Return the settings of the run that wrote a checkpoint."""
    if "dagger" not in checkpoint[1]:
        raise ResumeError(f"{checkpoint[0]} is no checkpoint of dagger")
    return stored_settings(checkpoint, DaggerConfig, "dagger")


def _line(learner_round: int, queries: int, metrics: dict[str, float]) -> str:
    return (
        f"[{queries:>8}] round {learner_round}: eval_reward={metrics['eval_reward']:.2f}  "
        f"share of the expert={metrics['share_of_expert']:.3f}"
    )


if __name__ == "__main__":
    main()
