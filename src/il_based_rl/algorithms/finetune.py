"""Improve a clone by PPO without falling behind it. The command and the function."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import FinetuneConfig
from il_based_rl.errors import ConfigError, ResumeError, TimeIsUp
from il_based_rl.experiment import (
    Checkpoint,
    named_checkpoint,
    own_settings,
    require_in_memory,
    require_trusted,
    require_unchanged,
    resumed_checkpoint,
    stored_settings,
    with_seed,
)

if TYPE_CHECKING:
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.envs import Envs
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.policy import MLPPolicy
    from il_based_rl.ppo_agent import PPOAgent, Progress
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.statistics import Estimate

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_TRIED_EPISODES = 20
"""Episodes of each standard deviation that is tried."""
_FIXED_AT_RESUME = ("checkpoint", "env_id", "num_envs", "seed", "eval_episodes", "demo_path")


def finetune(student: Any, env_id: str, total_timesteps: int, **settings: Any) -> PPOAgent:
    """Improve a student in memory, and return an expert whose policy is the best one.

    Args:
        student: A student or an expert of this package; it is left as it is.
        env_id: Gymnasium environment ID.
        total_timesteps: Environment steps, rounded up to whole rollouts.
        settings: Further fields of `FinetuneConfig`; of files only `demo_path` is read, and none is written, so
            that nothing is resumed, or saved at a limit of time.

    Raises:
        ConfigError: It is neither, or a setting is out of range.
        SpaceMismatchError: The student was made for other spaces.
        EnvironmentFaultError: The environment failed.
        See `envs.make_env`.

    Example:
        expert = finetune(BCAgent.load("checkpoints/bc_student.pt"), "Hopper-v5", 200_000, num_envs=4, seed=0)
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.experiment.hardware import fitting_threads, require_device
    from il_based_rl.policy import require_spaces
    from il_based_rl.ppo_agent import PPOAgent

    if not isinstance(student, BCAgent | PPOAgent):
        raise ConfigError(
            f"a {type(student).__name__} cannot be fine-tuned, but a BCAgent or a PPOAgent; clone it first, from demonstrations"
        )
    require_in_memory("finetune", settings)
    config = with_seed(FinetuneConfig(env_id=env_id, total_timesteps=total_timesteps, **settings))
    require_device(config.device)
    with fitting_threads(student.hidden_dims), _world(config) as (envs, players):
        require_spaces(_actor_of(student), envs.observation_space, envs.action_space, "the policy", env_id)
        demos = _demos(config, envs)
        config = _with_std(config, student, players)
        tuner = _started(config, student, demos)
        _judged(tuner, config, players)
        for progress in tuner.learn(envs, config.total_timesteps):
            if _is_judged(progress, config):
                _judged(tuner, config, players)
        _settled(tuner, config)
    return PPOAgent.from_payload(tuner.payload(), "memory", device=config.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl finetune`."""

    def command() -> None:
        defaults = FinetuneConfig()
        if (checkpoint := named_checkpoint(argv, defaults.save_path)) is not None:
            defaults = _own_settings(checkpoint, defaults, cli.given("--env-id", argv))
        description = "Improve a clone by PPO without falling behind it."
        config = cli.parse(defaults, argv, prog="il-rl finetune", description=description)
        run_finetune(config, checkpoint)

    cli.run(command)


def run_finetune(config: FinetuneConfig, checkpoint: Checkpoint | None = None) -> PPOAgent:
    """Improve a saved policy, print its progress, and write its checkpoints, each of which holds the best policy so far.

    Args:
        config: All settings.
        checkpoint: What `config.resume` names, where it was read already.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from il_based_rl.experiment.hardware import fitting_threads, numerics, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.sinks import open_sinks, require_tracking
    from il_based_rl.experiment.time_limit import require_time_limit, time_limit
    from il_based_rl.ppo_agent import PPOAgent

    require_device(config.device)
    require_tracking(config.tracking)
    require_time_limit(config.max_time)
    if config.resume is not None and checkpoint is None:
        checkpoint = resumed_checkpoint(config.resume, config.save_path)
    files = RunFiles(config.save_path)
    if checkpoint is None:
        files.require_not_read(checkpoint=config.checkpoint, demo_path=config.demo_path)
    config = with_seed(config) if checkpoint is None else _going_on(config, checkpoint)
    with contextlib.ExitStack() as stack:
        envs, players = stack.enter_context(_world(config))
        demos = _demos(config, envs)
        tuner, config = _begun(config, envs, players, checkpoint, demos, files)
        agent = tuner.agent
        stack.enter_context(fitting_threads(agent.hidden_dims))
        files.require_writable()
        cli.say(f"Fine-tuning {config.checkpoint} on {config.env_id} for {config.total_timesteps} timesteps...")
        if agent.env_steps >= config.total_timesteps:
            cli.notice(f"the run is finished: it has {agent.env_steps} steps")
            if tuner.settled and (checkpoint is None or files.complete(checkpoint)):
                return PPOAgent.from_payload(tuner.payload(), config.save_path, device=config.device)
        fast_path = cli.notice_path(agent.reason_against_fast_path)
        settings = asdict(config) | {"demonstrations": None if demos is None else demos.fingerprint}
        label = f"{config.env_id}_{config.total_timesteps}"
        step = agent.env_steps
        bar = cli.Progress("fine-tuning", config.total_timesteps, "step", initial=agent.env_steps, quiet=config.quiet)
        updates = tuner.learn(envs, config.total_timesteps)
        run = Run(
            files,
            settings,
            numerics=numerics(config.device),
            resumed_from=checkpoint,
            step=step,
            of_learning=["eval_interval", "total_timesteps"],  # as the gate goes by evaluations, the last of them at the end
            level=agent.resume_level,
            open_sinks=lambda: open_sinks(config.tracking, settings, label, files.folder, step),
        )
        with contextlib.suppress(TimeIsUp), bar, run:
            if tuner.clone_returns is None:
                _judged(tuner, config, players)
            run.keep(tuner, agent.env_steps, tuner.best_mean)
            run.save()
            with time_limit(config.max_time):
                started = time.perf_counter()
                for progress in updates:
                    rate = progress.rollout_steps / (time.perf_counter() - started)
                    facts = {"fast_path": fast_path, "steps_per_second": rate}
                    metrics = progress.metrics | progress.episode_means | facts
                    evaluate = _is_judged(progress, config)
                    if evaluate:
                        metrics |= _facts(tuner, _judged(tuner, config, players))
                    run.log(metrics, progress.env_steps)
                    run.keep(tuner, progress.env_steps, metrics.get("eval_reward"), periodic=evaluate)
                    if evaluate:
                        run.checkpoint()
                        if not config.quiet:
                            cli.say(_line(progress.env_steps, metrics))
                    bar.update(progress.rollout_steps, **progress.episode_means)
                    started = time.perf_counter()
                best_mean = tuner.best_mean
                margin = _settled(tuner, config)
            run.keep(tuner, agent.env_steps, tuner.best_mean, best_is_refused=tuner.best_mean < best_mean)
            run.save()
            cli.say(f"From {config.final_episodes} start states never seen before, it is above the clone by {margin} of return")
        cli.say(f"Checkpoint saved to {config.save_path}")
    return PPOAgent.from_payload(run.kept, config.save_path, device=config.device)


@contextlib.contextmanager
def _world(config: FinetuneConfig) -> Iterator[tuple[Envs, EpisodePlayers]]:
    """Make the environments to learn in, and those to be judged in."""
    from il_based_rl.envs import make_envs
    from il_based_rl.rollout import EpisodePlayers

    with (
        make_envs(
            config.env_id,
            config.num_envs,
            vectorization=config.vectorization,
            timeout=config.env_timeout,
            bounds=config.bounds,
        ) as envs,
        EpisodePlayers(config.env_id, config.eval_episodes, bounds=config.bounds) as players,
    ):
        yield envs, players


def _is_judged(progress: Progress, config: FinetuneConfig) -> bool:
    """Whether the policy after an update is compared with the clone: now and then, and the last one."""
    return progress.passes_multiple_of(config.eval_interval) or progress.env_steps >= config.total_timesteps


def _judged(tuner: GuardedPPO, config: FinetuneConfig, players: EpisodePlayers) -> tuple[float, Estimate]:
    """Let the present policy play from the start states that it is judged by; return its mean return, and its margin."""
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.seeding import start_seeds

    seed = tuner.agent.seed
    seeds = start_seeds(seed, "evaluation in training", config.eval_episodes)
    result = play_evaluation(tuner.agent, players, seeds, quiet=config.quiet)
    return result.mean, tuner.judge(result.returns)


def _settled(tuner: GuardedPPO, config: FinetuneConfig) -> Estimate:
    """Choose the result by start states that nothing was chosen by before; return by how much it is above the clone there."""
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds

    agent = tuner.agent
    seeds = list(start_seeds(agent.seed, "evaluation", config.final_episodes, key=4 + agent.env_steps))
    with EpisodePlayers(config.env_id, len(seeds), bounds=config.bounds) as players:
        return tuner.settle(lambda: play_evaluation(agent, players, seeds, quiet=config.quiet).returns)


def _facts(tuner: GuardedPPO, judged: tuple[float, Estimate]) -> dict[str, float]:
    mean, margin = judged
    return {"eval_reward": mean, "margin_over_clone": margin.value, "best_reward": tuner.best_mean, "caution": tuner.caution}


def _with_std(config: FinetuneConfig, student: Any, players: EpisodePlayers) -> FinetuneConfig:
    """Return the settings with a standard deviation to begin with, tried out where none is given."""
    from gymnasium import spaces

    from il_based_rl.algorithms.guarded_ppo import fitting_std
    from il_based_rl.seeding import start_seeds

    if config.guard.action_std is not None or not isinstance(players.action_space, spaces.Box):
        return config
    assert config.seed is not None
    seeds = list(start_seeds(config.seed, "evaluation in training", min(config.eval_episodes, _TRIED_EPISODES)))
    std = fitting_std(_actor_of(student), players, seeds, config.guard, config.seed)
    if not config.quiet:
        cli.notice(f"actions begin with a standard deviation of {std} of half their range (--action-std sets another)")
    return replace(config, guard=replace(config.guard, action_std=std))


def _started(config: FinetuneConfig, student: Any, demos: DemoDataset | None) -> GuardedPPO:
    """Return a learner that begins with a student or an expert."""
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO
    from il_based_rl.ppo_agent import PPOAgent

    assert config.seed is not None
    return GuardedPPO.from_clone(
        _actor_of(student),
        config.guard,
        config.ppo,
        seed=config.seed,
        device=config.device,
        critic=student.policy.critic if isinstance(student, PPOAgent) and not config.guard.fresh_critic else None,
        demos=demos,
    )


def _actor_of(student: BCAgent | PPOAgent) -> MLPPolicy:
    """Return the policy of a student, or the actor of an expert."""
    from il_based_rl.ppo_agent import PPOAgent

    return student.policy.actor if isinstance(student, PPOAgent) else student.policy


def _demos(config: FinetuneConfig, envs: Envs) -> DemoDataset | None:
    from il_based_rl.dataset import DemoDataset

    if config.demo_path is None:
        return None
    demos = DemoDataset.load(config.demo_path)
    demos.require_env(config.env_id, envs.observation_space, envs.action_space)
    return demos


def _begun(
    config: FinetuneConfig,
    envs: Envs,
    players: EpisodePlayers,
    checkpoint: Checkpoint | None,
    demos: DemoDataset | None,
    files: RunFiles,
) -> tuple[GuardedPPO, FinetuneConfig]:
    """Return a fresh learner or the resumed one, and the settings made complete."""
    from il_based_rl.algorithms.guarded_ppo import GuardedPPO, examples_for
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.policy import require_spaces

    if checkpoint is None:
        student = load_agent(config.checkpoint)
        actor = _actor_of(student)
        require_spaces(actor, envs.observation_space, envs.action_space, config.checkpoint, config.env_id)
        if demos is not None:
            examples_for(actor, demos)
        files.require_writable()  # which makes folders; what follows may take a while, and play
        with fitting_threads(student.hidden_dims):  # by which initial weights differ too
            config = _with_std(config, student, players)
            return _started(config, student, demos), config
    path, payload = checkpoint
    shown = None if demos is None else demos.fingerprint
    if payload["run"]["settings"].get("demonstrations", shown) != shown:
        raise ResumeError(f"{config.demo_path} holds other demonstrations than those that {path} was trained on")
    tuner = GuardedPPO.from_payload(payload, path, config.guard, config.ppo, device=config.device, demos=demos)
    require_spaces(tuner.agent.policy.actor, envs.observation_space, envs.action_space, str(path), config.env_id)
    return tuner, config


def _going_on(config: FinetuneConfig, checkpoint: Checkpoint) -> FinetuneConfig:
    """Return the settings of a resumed run made complete."""
    path, stored = checkpoint[0], _stored_settings(checkpoint)
    config = with_seed(config, stored.seed)
    guard, begun = config.guard, stored.guard.action_std
    if guard.action_std is None and begun is not None:  # by which it began, in the bounds that hold from here on
        guard = replace(guard, action_std=min(max(begun, guard.min_action_std), guard.max_action_std))
    elif guard.action_std != begun:
        raise ResumeError(f"{path} began with --action-std {begun}, not {guard.action_std}; leave the flag out")
    config = replace(config, guard=guard)
    require_unchanged(path, stored, config, _FIXED_AT_RESUME)
    require_unchanged(path, stored.guard, guard, ["fresh_critic"])
    return config


def _own_settings(checkpoint: Checkpoint, defaults: FinetuneConfig, env_id: str | None) -> FinetuneConfig:
    """Return what the command line may leave out: see `train_ppo`."""
    stored = _stored_settings(checkpoint)
    require_trusted(checkpoint[0], stored.env_id, env_id)
    own = own_settings(checkpoint, stored, defaults)
    return replace(own, guard=replace(own.guard, action_std=None))  # else narrower bounds would be refused for it


def _stored_settings(checkpoint: Checkpoint) -> FinetuneConfig:
    """Return the settings of the run that wrote a checkpoint."""
    if "finetune" not in checkpoint[1]:
        raise ResumeError(f"{checkpoint[0]} is no checkpoint of finetune; give it as --checkpoint to begin from")
    return stored_settings(checkpoint, FinetuneConfig, "finetune", beside=("demonstrations",))


def _line(step: int, metrics: dict[str, float]) -> str:
    moves = "" if metrics["actor_moves"] else "  (the critic warms up)"
    return (
        f"[{step:>8}] eval_reward={metrics['eval_reward']:.2f}  above the clone={metrics['margin_over_clone']:.2f}  "
        f"best={metrics['best_reward']:.2f}{moves}"
    )


if __name__ == "__main__":
    main()
