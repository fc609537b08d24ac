"""Settings of PPO that make an expert, by environment: `il-rl train-ppo --env-id Hopper-v5 --preset`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from il_based_rl import cli
from il_based_rl.config import PPOConfig, PresetsConfig, TrainPPOConfig
from il_based_rl.errors import ConfigError

_ANNEALED = {"lr_schedule": ("linear", "large steps at first, none that undo what was learned at the end")}
_MANY = {
    "num_envs": (16, "a rollout shows many episodes"),
    "n_steps": (128, "2,048 steps a rollout, as one environment has by default"),
}
_CALMER = {"initial_log_std": (-0.5, "motors are shaken less, so that gaits are found sooner")}


@dataclass(frozen=True)
class Preset:
    """What differs from the defaults, and what came of it."""

    settings: Mapping[str, tuple[Any, str]]
    """Values by the name of their flag, each with its reason."""
    expected: str
    """Mean return over all runs of `docs/returns.md`; over ten seeds at least where it does not say how many."""


PRESETS = {
    "Acrobot-v1": Preset(
        {"total_timesteps": (500_000, "swings up from a quarter of it on; then it does so sooner"), **_MANY, **_ANNEALED},
        "-78",
    ),
    "Ant-v5": Preset(
        {
            "total_timesteps": (1_000_000, "rises to the end, slowly from half of it on"),
            **_MANY,
            "initial_log_std": (-1.0, "eight joints at once stumble under more"),
            "obs_clip": (1.0, "78 of its numbers are contact forces, which are 0 but for spikes"),
            **_ANNEALED,
        },
        "3,270",
    ),
    "BipedalWalker-v3": Preset(
        {
            "total_timesteps": (1_000_000, "walks from a third of it on; then it falls less often"),
            **_MANY,
            **_CALMER,
            **_ANNEALED,
        },
        "289",
    ),
    "CartPole-v1": Preset(
        {
            "total_timesteps": (50_000, "balances from half of it on; the rest makes it steady"),
            "num_envs": (4, "a rollout shows several episodes"),
            "n_steps": (128, "a short rollout, as little is to be learned from each"),
            "gamma": (0.98, "a fall shows within fifty steps"),
            "lr": (1e-3, "the task is small"),
            "normalize_obs": (False, "angles and speeds are of a fit size as they are"),
            "normalize_reward": (False, "and so are rewards of 1"),
            **_ANNEALED,
        },
        "500",
    ),
    "HalfCheetah-v5": Preset(
        {"total_timesteps": (1_000_000, "rises to the end, slowly from half of it on"), **_MANY, **_CALMER, **_ANNEALED},
        "5,768",
    ),
    "Hopper-v5": Preset(
        {
            "total_timesteps": (1_000_000, "hops from half of it on; the rest makes it steady"),
            **_MANY,
            "gamma": (0.995, "a step that leads to a fall two seconds later is told from one that does not"),
            "gae_lambda": (0.97, "the same"),
            **_CALMER,
            **_ANNEALED,
        },
        "3,344",
    ),
    "InvertedDoublePendulum-v5": Preset(
        {
            "total_timesteps": (500_000, "balances from half of it on, safely from three quarters on"),
            **_MANY,
            "n_epochs": (4, "after ten the actor has hardly a deviation left, and some episodes fall"),
            **_ANNEALED,
        },
        "9,240",
    ),
    "LunarLander-v3": Preset(
        {
            "total_timesteps": (1_000_000, "lands from a quarter of it on; then it lands sooner"),
            "num_envs": (16, "a rollout shows many landings"),
            "n_steps": (256, "4,096 steps a rollout, so that chance is averaged out"),
            "gamma": (0.999, "the landing that is worth most comes hundreds of steps later"),
            "gae_lambda": (0.98, "the same"),
            **_ANNEALED,
        },
        "278",
    ),
    "LunarLanderContinuous-v3": Preset(
        {
            "total_timesteps": (1_000_000, "lands from a quarter of it on; then it lands sooner and more surely"),
            "num_envs": (16, "a rollout shows many landings"),
            "n_steps": (256, "4,096 steps a rollout, so that chance is averaged out"),
            "gamma": (0.999, "the landing that is worth most comes hundreds of steps later"),
            "activation": ("relu", "a little better than tanh in the search"),
            **_ANNEALED,
        },
        "272",
    ),
    "MountainCarContinuous-v0": Preset(
        {
            "total_timesteps": (100_000, "arrives from a quarter of it on; then it saves fuel"),
            "n_steps": (1024, "one episode and most of a second"),
            "gamma": (0.999, "the goal is hundreds of steps away"),
            **_ANNEALED,
        },
        "94",
    ),
    "Pendulum-v1": Preset(
        {
            "total_timesteps": (100_000, "half of what the defaults take"),
            "n_steps": (1024, "twice as many updates"),
            "lr": (5e-4, "in fewer steps"),
            **_ANNEALED,
        },
        "-146",
    ),
    "Reacher-v5": Preset(
        {
            "total_timesteps": (1_000_000, "reaches from a quarter of it on; then it stops nearer to the target"),
            **_MANY,
            "gamma": (0.95, "the arm arrives within twenty steps"),
            "hidden_dims": ((128, 128), "a little nearer than 64 64 in the search"),
            "initial_log_std": (-0.5, "motors are shaken less"),
            **_ANNEALED,
        },
        "-3.7",
    ),
    "Swimmer-v5": Preset(
        {
            "total_timesteps": (1_000_000, "rises to the end"),
            "num_envs": (16, "a rollout shows many strokes"),
            "n_steps": (256, "4,096 steps a rollout, so that chance is averaged out"),
            "batch_size": (256, "the same"),
            "gamma": (0.9999, "episodes have 1,000 steps and no end; a shorter sight settles for a third of the speed"),
            "gae_lambda": (0.98, "the same"),
            "lr": (6e-4, "minibatches are large, and so fewer"),
            **_ANNEALED,
        },
        "338",
    ),
    "Walker2d-v5": Preset(
        {
            "total_timesteps": (1_000_000, "rises to the end, slowly from half of it on"),
            **_MANY,
            **_CALMER,
            **_ANNEALED,
            "orthogonal_init": (False, "a quarter more than from orthogonal weights, in the search"),
        },
        "4,643",
    ),
}
"""By environment ID."""

_OF_PPO = {field.name for field in dataclasses.fields(PPOConfig)}


def applied(settings: Mapping[str, Any], config: TrainPPOConfig) -> TrainPPOConfig:
    """Return settings with some of them replaced, by the names of their flags."""
    ppo = replace(config.ppo, **{name: value for name, value in settings.items() if name in _OF_PPO})
    return replace(config, ppo=ppo, **{name: value for name, value in settings.items() if name not in _OF_PPO})


def flag_of(name: str, value: Any) -> str:
    """Write one setting as it is given on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def with_preset(config: TrainPPOConfig, env_id: str) -> TrainPPOConfig:
    """Return settings with an environment's preset.

    Raises:
        ConfigError: There is none; those that there are are named.
    """
    if env_id not in PRESETS:
        raise ConfigError(f"there is no preset for {env_id}; there are presets for {', '.join(PRESETS)}")
    values = {name: value for name, (value, _) in PRESETS[env_id].settings.items()}
    return applied(values, replace(config, env_id=env_id, preset=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl presets`."""
    description = "List the settings of PPO that are kept for environments, and what came of them."
    cli.run(lambda: list_presets(cli.parse(PresetsConfig(), argv, prog="il-rl presets", description=description)))


def list_presets(config: PresetsConfig) -> None:
    """Print presets: of one environment, or of all."""
    if config.env_id is not None:
        with_preset(TrainPPOConfig(), config.env_id)
    for env_id, preset in PRESETS.items():
        if config.env_id in (None, env_id):
            cli.say(f"{env_id}: mean return {preset.expected}")
            for name, (value, reason) in preset.settings.items():
                cli.say(f"  {flag_of(name, value):<28}{reason}")


if __name__ == "__main__":
    main()
