"""Train an expert with PPO: the command that watches `PPOAgent.learn`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import TrainPPOConfig, from_plain
from il_based_rl.errors import ConfigError, FileFormatError, ResumeError, TimeIsUp, UserError
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
from il_based_rl.presets import PRESETS, with_preset

if TYPE_CHECKING:
    from il_based_rl.envs import Envs
    from il_based_rl.ppo_agent import PPOAgent

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_SHAPE = ("hidden_dims", "activation", "initial_log_std", "orthogonal_init", "obs_clip")
_FIXED_AT_RESUME = ("env_id", "num_envs", "seed", "eval_episodes", *_SHAPE)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl train-ppo`."""

    def command() -> None:
        defaults = TrainPPOConfig()
        if (checkpoint := named_checkpoint(argv, defaults.save_path)) is not None:
            defaults = _own_settings(checkpoint, defaults, cli.given("--env-id", argv))
        elif cli.has("--preset", argv) and not cli.asks_for_help(argv):
            defaults = with_preset(defaults, cli.given("--env-id", argv) or defaults.env_id)
        config = cli.parse(defaults, argv, prog="il-rl train-ppo", description="Train an expert with PPO.")
        train_ppo(config, checkpoint)

    cli.run(command)


def train_ppo(config: TrainPPOConfig, checkpoint: Checkpoint | None = None) -> PPOAgent:
    """Train an expert, print its progress, and write its checkpoints.

    Args:
        config: All settings.
        checkpoint: What `config.resume` names, where it was read already.

    Returns:
        The agent after its last update.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from il_based_rl.envs import make_envs
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.experiment.hardware import fitting_threads, numerics, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.sinks import open_sinks, require_tracking
    from il_based_rl.experiment.time_limit import require_time_limit, time_limit
    from il_based_rl.ppo_agent import PPOAgent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds

    require_device(config.device)
    require_tracking(config.tracking)
    require_time_limit(config.max_time)
    if config.resume is not None and checkpoint is None:
        checkpoint = resumed_checkpoint(config.resume, config.save_path)
    files = RunFiles(config.save_path)
    with (
        fitting_threads(config.hidden_dims),
        make_envs(
            config.env_id,
            config.num_envs,
            vectorization=config.vectorization,
            backend=config.env_backend,
            timeout=config.env_timeout,
            bounds=config.bounds,
        ) as envs,
        EpisodePlayers(config.env_id, config.eval_episodes, bounds=config.bounds) as players,
    ):
        agent, config = _begin(config, envs, checkpoint)
        files.require_writable()
        cli.say(f"Training PPO on {config.env_id} for {config.total_timesteps} timesteps...")
        if config.env_id in PRESETS and not config.preset and checkpoint is None:
            cli.notice(f"settings that make an expert of {config.env_id} are kept: --preset takes them")
        if agent.env_steps >= config.total_timesteps:
            cli.notice(
                f"the run is finished: it has {agent.env_steps} steps, and --total-timesteps is {config.total_timesteps}"
            )
            if checkpoint is None or files.complete(checkpoint):
                return agent
        fast_path = cli.notice_path(agent.reason_against_fast_path)
        evaluation_seeds = list(start_seeds(agent.seed, "evaluation in training", config.eval_episodes))
        label = f"{config.env_id}_{config.total_timesteps}"
        step = agent.env_steps
        updates = agent.learn(envs, config.total_timesteps)
        bar = cli.Progress("training", config.total_timesteps, "step", initial=agent.env_steps, quiet=config.quiet)
        run = Run(
            files,
            asdict(config),
            numerics=numerics(config.device),
            resumed_from=checkpoint,
            step=step,
            of_learning=["env_backend", *(["total_timesteps"] if config.ppo.lr_schedule == "linear" else [])],
            level=agent.resume_level,
            open_sinks=lambda: open_sinks(config.tracking, asdict(config), label, files.folder, step),
        )
        with contextlib.suppress(TimeIsUp), bar, run:
            run.keep(agent, agent.env_steps)
            run.save()
            with time_limit(config.max_time):
                started = time.perf_counter()
                for progress in updates:
                    rate = progress.rollout_steps / (time.perf_counter() - started)
                    facts = {"fast_path": fast_path, "steps_per_second": rate}
                    metrics = progress.metrics | progress.episode_means | facts
                    evaluate = progress.passes_multiple_of(config.eval_interval)
                    if evaluate:
                        metrics["eval_reward"] = play_evaluation(agent, players, evaluation_seeds, quiet=config.quiet).mean
                    run.log(metrics, progress.env_steps)
                    run.keep(agent, progress.env_steps, metrics.get("eval_reward"), periodic=evaluate)
                    if evaluate:
                        run.checkpoint()
                        if not config.quiet:
                            cli.say(_line(progress.env_steps, metrics))
                    bar.update(progress.rollout_steps, **progress.episode_means)
                    started = time.perf_counter()
            run.save()
        cli.say(f"Checkpoint saved to {config.save_path}")
    return PPOAgent.from_payload(run.kept, config.save_path, device=config.device)


def fresh_agent(config: TrainPPOConfig, envs: Envs) -> PPOAgent:
    """Return an agent by these settings that has learned nothing yet."""
    from il_based_rl.ppo_agent import PPOAgent

    return PPOAgent.for_spaces(
        envs.observation_space,
        envs.action_space,
        config.ppo,
        seed=config.seed,
        device=config.device,
        **{name: getattr(config, name) for name in _SHAPE},
    )


def _begin(config: TrainPPOConfig, envs: Envs, checkpoint: Checkpoint | None) -> tuple[PPOAgent, TrainPPOConfig]:
    """Return a fresh agent or the resumed one, and the settings made complete."""
    from il_based_rl.policy import require_spaces
    from il_based_rl.ppo_agent import PPOAgent

    if checkpoint is None:
        config = with_seed(config)
        return fresh_agent(config, envs), config
    path, payload = checkpoint
    stored = _stored_settings(checkpoint)
    if config.preset and not stored.preset:
        raise ConfigError(f"--preset is for a run that begins, and {path} was trained without it; leave the flag out")
    config = with_seed(config, stored.seed)
    # An agent that was saved by itself knows no more than these.
    fixed = _FIXED_AT_RESUME if payload["run"] else ("hidden_dims", "activation", "obs_clip", "seed")
    require_unchanged(path, stored, config, fixed)
    require_unchanged(path, stored.ppo, config.ppo, ("normalize_obs", "normalize_reward"))
    agent = PPOAgent.from_payload(payload, path, config.hidden_dims, device=config.device)
    agent.config = config.ppo
    require_spaces(agent.policy.actor, envs.observation_space, envs.action_space, str(path), config.env_id)
    return agent, config


def _own_settings(checkpoint: Checkpoint, defaults: TrainPPOConfig, env_id: str | None) -> TrainPPOConfig:
    """Return what the command line may leave out; a file does not choose which module is imported."""
    stored = _stored_settings(checkpoint)
    require_trusted(checkpoint[0], stored.env_id, env_id)
    return own_settings(checkpoint, stored, defaults)


def _stored_settings(checkpoint: Checkpoint) -> TrainPPOConfig:
    """Return the settings of the run that wrote a checkpoint; of an agent that was saved by itself, its own."""
    path, payload = checkpoint
    if payload.get("kind") != "ppo":
        raise ResumeError(f"{path} holds a {payload.get('kind')} agent, not an expert that train-ppo can go on with")
    run = payload.get("run")
    if not isinstance(run, dict) or "settings" in run:
        return stored_settings(checkpoint, TrainPPOConfig, "train-ppo")
    try:
        known = {"obs_clip": 10.0} | payload["architecture"]
        shape = {name: known[name] for name in ("hidden_dims", "activation", "obs_clip")}
        own = {"seed": payload["training"]["seed"], "ppo": payload["training"]["config"]}
        return from_plain(TrainPPOConfig, shape | own)
    except UserError:
        raise
    except Exception as error:  # what a foreign file holds may be wrong in any way
        raise FileFormatError(f"{path} holds no settings that train-ppo can go on with: {error}") from error


def _line(step: int, metrics: dict[str, float]) -> str:
    return (
        f"[{step:>8}] policy_loss={metrics['policy_loss']:.4f}  value_loss={metrics['value_loss']:.2f}  "
        f"eval_reward={metrics['eval_reward']:.2f}"
    )


if __name__ == "__main__":
    main()
