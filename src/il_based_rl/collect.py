"""Demonstrations of an expert: whole episodes, from start states of their own. The command and the function."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import CollectConfig, check_collection
from il_based_rl.errors import CollectionError, ConfigError

if TYPE_CHECKING:
    import gymnasium as gym

    from il_based_rl.dataset import DemoDataset
    from il_based_rl.rollout import Episode, EpisodePlayers

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

ATTEMPTS_PER_EPISODE = 10
"""Episodes played for each one wanted, before a collection with a minimum return gives up."""


def require_noise_fits(action_noise: float, space: gym.Space[Any]) -> None:
    """Raise ConfigError where what disturbs is no probability, and the actions are discrete."""
    from gymnasium import spaces

    if action_noise > 1.0 and not isinstance(space, spaces.Box):
        raise ConfigError(f"--action-noise is a probability for discrete actions, at most 1, got {action_noise}")


def collect_demos(
    env_id: str,
    agent: Any,
    num_episodes: int,
    seed: int = 0,
    *,
    deterministic: bool = True,
    action_noise: float = 0.0,
    min_return: float | None = None,
    max_attempts: int | None = None,
    bounds: str = "auto",
    quiet: bool = False,
) -> DemoDataset:
    """Let an expert play, and keep exactly `num_episodes` whole episodes.

    The episodes are chosen by their start seeds before any is played, so that short ones are not preferred. Observations are
    stored raw, and `actions` is what the environment executed, unless there is noise: then it is what the expert chose, and
    `executed_actions` what was executed. The expert's distribution of actions is stored with them where it tells one.

    Args:
        env_id: Gymnasium environment ID.
        agent: An agent of this package, anything with `predict(obs) -> action`, or a plain callable. One that is not of this
            package is asked as `interop.actor_from` says, in one episode after the other; an action of it outside finite bounds
            is moved to them.
        num_episodes: Episodes to keep, at least 1.
        seed: Picks the start states, each used once and none used by training or evaluation.
        deterministic: Whether to take the most likely action.
        action_noise: Disturbs what is executed, see `interop.disturbed`: standard deviation in units of half the range, or
            probability of a random discrete action.
        min_return: Keep only episodes whose undiscounted return is at least this.
        max_attempts: With `min_return`, episodes to play before giving up; None allows ten for each one wanted.
        bounds: Whether an observation outside its space's bounds is an error: `strict` yes, `any` no, `auto` yes but in
            Gymnasium's LunarLander and BipedalWalker, which leave theirs.
        quiet: Whether to show no progress.

    Raises:
        ConfigError: A number is out of range.
        CollectionError: Too few episodes reached `min_return`; the message says what was reached.
        SpaceMismatchError: The agent was made for other spaces.
        EnvironmentFaultError: The environment or the agent failed; the message says where.
        See `envs.make_env`.

    Example:
        dataset = collect_demos("Pendulum-v1", agent=PPOAgent.load("checkpoints/ppo_agent.pt"), num_episodes=50, seed=0)
    """
    from il_based_rl.interop import actor_from, disturbed, own_agent
    from il_based_rl.rollout import Episode, EpisodePlayers
    from il_based_rl.seeding import generator, start_seeds

    num_episodes, seed = operator.index(num_episodes), operator.index(seed)
    check_collection(num_episodes, min_return, max_attempts, action_noise)
    attempts_left = max_attempts or num_episodes * (1 if min_return is None else ATTEMPTS_PER_EPISODE)
    attempts, kept, best = 0, list[Episode](), float("-inf")
    seeds = start_seeds(seed, "collection")
    progress = cli.Progress("collecting", num_episodes, "episode", quiet=quiet)
    side_by_side = 1 if own_agent(agent) is None else num_episodes  # another's agent may remember
    with EpisodePlayers(env_id, side_by_side, bounds=bounds) as players, progress:
        actor = actor_from(
            agent,
            players.observation_space,
            players.action_space,
            deterministic=deterministic,
            random=generator(seed, "collection", 1),
        )
        require_noise_fits(action_noise, players.action_space)
        noise = generator(seed, "collection", 2)
        playing = disturbed(actor, players.action_space, action_noise, noise) if action_noise else actor
        while len(kept) < num_episodes and attempts_left > 0:
            wave = min(num_episodes - len(kept), attempts_left)
            played: list[Episode] = []
            for episode in players.play(playing, [next(seeds) for _ in range(wave)]):
                best = max(best, episode.total_reward)
                wanted = min_return is None or episode.total_reward >= min_return
                if wanted:
                    played.append(episode)
                progress.update(int(wanted), episode_return=episode.total_reward)
            attempts, attempts_left = attempts + wave, attempts_left - wave
            kept += sorted(played, key=lambda episode: episode.index)
        if len(kept) < num_episodes:
            raise CollectionError(
                f"only {len(kept)} of {num_episodes} episodes reached a return of {min_return} in {attempts} attempts "
                f"(the best was {best:.2f}); lower --min-return, raise --max-attempts or train the expert longer"
            )
        facts = {
            "agent": type(agent).__name__,
            "deterministic": bool(deterministic),
            "action_noise": float(action_noise),
            "seed": seed,
            "min_return": None if min_return is None else float(min_return),
            "attempts": int(attempts),
        }
        return dataset_of(players, kept, agent, facts)


def dataset_of(players: EpisodePlayers, episodes: Sequence[Episode], labeller: Any, facts: dict[str, Any]) -> DemoDataset:
    """Return whole episodes as a data set.

    Args:
        players: Who played them.
        episodes: In the order in which they are to stand.
        labeller: Who gave the labels; what it tells of its distribution is stored, see `interop.told_distribution`.
        facts: Further metadata; with `policies` among them, who acted is stored.
    """
    import numpy as np

    from il_based_rl.dataset import DemoDataset
    from il_based_rl.files import package_versions
    from il_based_rl.interop import told_distribution
    from il_based_rl.spaces import space_to_plain

    lengths = np.array([len(episode.rewards) for episode in episodes], np.int64)
    last_rows = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(lengths.sum(), bool), np.zeros(lengths.sum(), bool)
    terminated[last_rows] = [episode.terminated for episode in episodes]
    truncated[last_rows] = [episode.truncated for episode in episodes]
    rows = np.concatenate([episode.rows for episode in episodes])
    labels = np.concatenate([episode.labels for episode in episodes])
    executed = np.concatenate([episode.actions for episode in episodes])
    return DemoDataset(
        observations=rows,
        actions=labels,
        executed_actions=None if np.array_equal(executed, labels) else executed,
        distributions=told_distribution(labeller, rows, players.action_space),
        acted_by=np.concatenate([episode.acted_by for episode in episodes]) if "policies" in facts else None,
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        terminated=terminated,
        truncated=truncated,
        final_observations=np.stack([episode.final_row for episode in episodes]),
        episode_lengths=lengths,
        seeds=np.array([episode.seed for episode in episodes], np.int64),
        metadata={
            "env_id": players.env_id,
            "observation_space": space_to_plain(players.observation_space),
            "action_space": space_to_plain(players.action_space),
            "versions": package_versions(),
            **facts,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl collect`."""
    description = "Let a saved expert play, and write its demonstrations."
    cli.run(lambda: collect(cli.parse(CollectConfig(), argv, prog="il-rl collect", description=description)))


def collect(config: CollectConfig) -> DemoDataset:
    """Load an expert, collect its demonstrations, write them and print what they are."""
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment import keep_older
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable, sweep
    from il_based_rl.statistics import decimals

    agent = load_agent(config.checkpoint)
    require_writable(config.save_path)
    sweep(Path(config.save_path).parent, Path(config.save_path).name, held=False)
    cli.say(f"Collecting {config.num_episodes} episodes of {config.checkpoint} on {config.env_id}...")
    with fitting_threads(agent.hidden_dims):
        dataset = collect_demos(
            config.env_id,
            agent,
            config.num_episodes,
            config.seed,
            deterministic=config.deterministic,
            action_noise=config.action_noise,
            min_return=config.min_return,
            max_attempts=config.max_attempts,
            bounds=config.bounds,
            quiet=config.quiet,
        )
    keep_older(Path(config.save_path))
    dataset.save(config.save_path)
    numbers = dataset.summary()
    mean, least, most = (numbers[f"return_{name}"] for name in ("mean", "min", "max"))
    d = decimals(least, most)
    cli.say(
        f"{numbers['episodes']} episodes, {numbers['transitions']} transitions, return mean {mean:.{d}f} "
        f"(min {least:.{d}f}, max {most:.{d}f})"
    )
    cli.say(f"Demonstrations saved to {config.save_path}")
    return dataset


if __name__ == "__main__":
    main()
