"""Clone a student from demonstrations: the command that watches `BCAgent.learn`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import TrainConfig
from il_based_rl.errors import ResumeError, TimeIsUp
from il_based_rl.experiment import (
    Checkpoint,
    named_checkpoint,
    own_settings,
    require_trusted,
    require_unchanged,
    resumed_checkpoint,
    stored_settings,
    with_seed,
)

if TYPE_CHECKING:
    from il_based_rl.agent import BCAgent
    from il_based_rl.dataset import DemoDataset

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_LINES = 10
"""About as many lines are printed, whatever the number of epochs."""


_FIXED_AT_RESUME = ("max_demos", "hidden_dims", "seed", "bc", "eval_env_id", "eval_episodes")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl train`."""

    def command() -> None:
        defaults = TrainConfig()
        if (checkpoint := named_checkpoint(argv, defaults.save_path)) is not None:
            defaults = _own_settings(checkpoint, defaults, cli.given("--eval-env-id", argv))
        config = cli.parse(defaults, argv, prog="il-rl train", description="Clone a student from demonstrations.")
        train(config, checkpoint)

    cli.run(command)


def train(config: TrainConfig, checkpoint: Checkpoint | None = None) -> BCAgent:
    """Clone a student, print its progress, and write it.

    Args:
        config: All settings.
        checkpoint: What `config.resume` names, where it was read already.

    Returns:
        The student after its last epoch.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.envs import EXACT, resume_level
    from il_based_rl.experiment.hardware import fitting_threads, numerics, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.sinks import open_sinks, require_tracking
    from il_based_rl.experiment.time_limit import require_time_limit, time_limit

    require_device(config.device)
    require_tracking(config.tracking)
    require_time_limit(config.max_time)
    if config.resume is not None and checkpoint is None:
        checkpoint = resumed_checkpoint(config.resume, config.save_path)
    files = RunFiles(config.save_path)
    dataset = DemoDataset.load(config.demo_path)
    if config.max_demos is not None:
        if dataset.num_episodes < config.max_demos:
            cli.notice(f"{config.demo_path} holds no more than {dataset.num_episodes} episodes; all are used")
        dataset = dataset.episodes[: config.max_demos]
    with fitting_threads(config.hidden_dims):  # by which initial weights differ too
        agent, config = _begin(config, dataset, checkpoint)
    agent.require_fits(dataset)
    with fitting_threads(config.hidden_dims), _judge(config, agent) as judge:
        files.require_writable()
        cli.say(f"Cloning {config.demo_path}: {dataset.num_episodes} episodes, {len(dataset)} transitions...")
        if agent.finished:
            cli.notice(f"the run is finished: it has had its {agent.epochs} epochs")
            if checkpoint is None or files.complete(checkpoint):
                return agent
        fast_path = cli.notice_path(agent.reason_against_fast_path)
        settings = asdict(config) | {"demonstrations": dataset.fingerprint, "env_id": dataset.metadata.get("env_id")}
        label = f"{dataset.metadata.get('env_id')}_{config.bc.epochs}"
        step = agent.epochs
        bar = cli.Progress("cloning", config.bc.epochs, "epoch", initial=agent.epochs, quiet=config.quiet)
        run = Run(
            files,
            settings,
            numerics=numerics(config.device),
            resumed_from=checkpoint,
            step=step,
            level=EXACT if checkpoint is None or config.eval_env_id is None else resume_level(config.eval_env_id),
            open_sinks=lambda: open_sinks(config.tracking, settings, label, files.folder, step),
        )
        with contextlib.suppress(TimeIsUp), bar, run:
            run.keep(agent, agent.epochs)
            run.save()
            with time_limit(config.max_time):
                for progress in () if agent.finished else agent.learn(dataset):
                    metrics = progress.metrics | {"fast_path": fast_path}
                    if judge is not None and (progress.epoch % config.eval_interval == 0 or agent.finished):
                        metrics["eval_reward"] = judge()
                    run.log(metrics, progress.epoch)
                    periodic = progress.epoch % max(1, config.bc.epochs // _LINES) == 0 or agent.finished
                    run.keep(agent, progress.epoch, metrics.get("eval_reward"), periodic=periodic)
                    if periodic:
                        run.checkpoint()
                    if not config.quiet and (periodic or "eval_reward" in metrics):
                        cli.say(_line(progress.epoch, metrics))
                    bar.update(loss=metrics["train_loss"])
            run.save()
            cli.say(f"Student saved to {config.save_path}")
            if run.best_eval_reward is not None:
                cli.say(f"Best student by evaluation (mean return {run.best_eval_reward:.2f}): {files.best}")
    return BCAgent.from_payload(run.kept, config.save_path, device=config.device)


@contextlib.contextmanager
def _judge(config: TrainConfig, agent: BCAgent) -> Iterator[Callable[[], float] | None]:
    """Make what plays with the student and returns its mean return; None where nothing is to be played.

    Raises:
        SpaceMismatchError: The demonstrations are of another environment.
        See `envs.make_env`.
    """
    if config.eval_env_id is None:
        yield None
        return
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.policy import require_spaces
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds

    seeds = list(start_seeds(agent.seed, "evaluation in training", config.eval_episodes))
    with EpisodePlayers(config.eval_env_id, config.eval_episodes) as players:
        spaces = players.observation_space, players.action_space
        require_spaces(agent.policy, *spaces, "the demonstrations", config.eval_env_id)
        yield lambda: play_evaluation(agent, players, seeds, quiet=config.quiet).mean


def _begin(config: TrainConfig, dataset: DemoDataset, checkpoint: Checkpoint | None) -> tuple[BCAgent, TrainConfig]:
    """Return a fresh student or the resumed one, and the settings made complete."""
    from il_based_rl.agent import BCAgent

    if checkpoint is None:
        config = with_seed(config)
        agent = BCAgent.for_dataset(dataset, config.bc, hidden_dims=config.hidden_dims, seed=config.seed, device=config.device)
        return agent, config
    path, payload = checkpoint
    stored = _stored_settings(checkpoint)
    config = with_seed(config, stored.seed)
    require_unchanged(path, stored, config, _FIXED_AT_RESUME)
    if payload["run"]["settings"].get("demonstrations") != dataset.fingerprint:
        raise ResumeError(f"{config.demo_path} holds other demonstrations than those that {path} was trained on")
    return BCAgent.from_payload(payload, path, config.hidden_dims, device=config.device), config


def _own_settings(checkpoint: Checkpoint, defaults: TrainConfig, eval_env_id: str | None) -> TrainConfig:
    """Return what the command line may leave out: see `train_ppo`."""
    stored = _stored_settings(checkpoint)
    if stored.eval_env_id is not None:
        require_trusted(checkpoint[0], stored.eval_env_id, eval_env_id, "--eval-env-id")
    return own_settings(checkpoint, stored, defaults)


def _stored_settings(checkpoint: Checkpoint) -> TrainConfig:
    """Return the settings of the run that wrote a checkpoint."""
    path, payload = checkpoint
    if payload.get("kind") != "bc":
        raise ResumeError(f"{path} holds a {payload.get('kind')} agent, not a student that train can go on with")
    return stored_settings(checkpoint, TrainConfig, "train", beside=("demonstrations", "env_id"))


def _line(epoch: int, metrics: dict[str, float]) -> str:
    names = [name for name in ("train_loss", "validation_loss") if name in metrics]
    told = f"[{epoch:>8}] " + "  ".join(f"{name}={metrics[name]:.6f}" for name in names)
    return told + (f"  eval_reward={metrics['eval_reward']:.2f}" if "eval_reward" in metrics else "")


if __name__ == "__main__":
    main()
