"""How good a policy is: whole episodes from fixed start states, with an interval. The command and the function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import EvaluateConfig
from il_based_rl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from il_based_rl.rollout import Episode, EpisodePlayers

# What is heavy (torch, Gymnasium, scipy) is imported inside the functions, so that --help need not wait for it.


@dataclass(frozen=True)
class EvaluationResult:
    """The episodes of one policy, in the order of their start seeds."""

    returns: np.ndarray
    """Undiscounted return of each episode, in raw reward. Shape (E,)."""
    lengths: np.ndarray
    """Steps of each episode. Shape (E,)."""
    start_seeds: np.ndarray
    """Seed that each episode's environment was reset with. Shape (E,)."""
    successes: np.ndarray | None = None
    """Whether each episode reached its goal, shape (E,), bool; None where the environment does not say."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over the start states."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean return; NaN for a single episode."""
        from il_based_rl.statistics import mean_interval

        return mean_interval(self.returns)


def evaluate_policy(
    agent: Any,
    env_id: str,
    num_episodes: int = 20,
    seed: int = 0,
    *,
    start_seeds: Sequence[int] | None = None,
    deterministic: bool = True,
    quiet: bool = False,
) -> EvaluationResult:
    """Play whole episodes with a policy.

    The same `seed` gives every policy the same start states, and none that training or collection starts from. An agent of
    this package plays up to sixteen episodes at a time, and a product of matrices may round its rows otherwise with another
    number of them: where an environment is chaotic, an episode's return may change with `num_episodes`.

    Args:
        agent: An agent of this package, or anything with `predict(obs) -> action`; see `interop.actor_from`.
        env_id: Gymnasium environment ID.
        num_episodes: How many, at least 1.
        seed: Picks the start states.
        start_seeds: Reset seeds to play instead; `num_episodes` and the seed's start states are then left aside.
        deterministic: Whether to take the most likely action.
        quiet: Whether to show no progress.

    Raises:
        ConfigError: No episode was asked for, or the seed is negative.
        SpaceMismatchError: The agent was made for other spaces.
        EnvironmentFaultError: The environment failed; the message says where.
        See `envs.make_env`.

    Example:
        result = evaluate_policy(PPOAgent.load("checkpoints/ppo_agent.pt"), "Pendulum-v1", num_episodes=100)
        print(result.mean, result.interval)
    """
    from il_based_rl.interop import own_agent
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import start_seeds as seeds_for

    if start_seeds is None:
        start_seeds = list(seeds_for(seed, "evaluation", max(operator.index(num_episodes), 0)))
    start_seeds = list(map(operator.index, start_seeds))
    if not start_seeds:
        raise ConfigError(f"evaluation needs at least one episode, got num_episodes {num_episodes}")
    with EpisodePlayers(env_id, 1 if own_agent(agent) is None else len(start_seeds)) as players:
        return play_evaluation(agent, players, start_seeds, seed=seed, deterministic=deterministic, quiet=quiet)


def play_evaluation(
    agent: Any,
    players: EpisodePlayers,
    start_seeds: Iterable[int],
    *,
    seed: int = 0,
    deterministic: bool = True,
    watch: Callable[[Episode], object] | None = None,
    quiet: bool = False,
) -> EvaluationResult:
    """Play these start seeds in environments that exist already, and show each episode to `watch`; see `evaluate_policy`."""
    import numpy as np

    from il_based_rl.interop import actor_from, own_agent
    from il_based_rl.seeding import sampled_actions

    seeds = np.array(list(start_seeds), np.int64)
    actor = actor_from(
        agent,
        players.observation_space,
        players.action_space,
        deterministic=deterministic,
        random=sampled_actions(seed),
    )
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    successes: list[bool | None] = [None] * len(seeds)
    with cli.Progress("evaluating", len(seeds), "episode", quiet=quiet) as progress:
        alone = own_agent(agent) is None
        for episode in players.play(actor, seeds.tolist(), one_by_one=alone, whole=watch is not None):
            returns[episode.index], lengths[episode.index] = episode.total_reward, len(episode.rewards)
            successes[episode.index] = episode.success
            if watch is not None:
                watch(episode)
            progress.update(episode_return=episode.total_reward)
    return EvaluationResult(returns, lengths, seeds, None if None in successes else np.array(successes, bool))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl evaluate`."""
    description = "Play whole episodes with a saved policy and print how good it is."
    cli.run(lambda: evaluate(cli.parse(EvaluateConfig(), argv, prog="il-rl evaluate", description=description)))


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Load a policy, evaluate it and print the result."""
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.statistics import decimals

    agent = load_agent(config.checkpoint, config.hidden_dims)
    with fitting_threads(agent.hidden_dims):
        result = evaluate_policy(
            agent, config.env_id, config.num_episodes, config.seed, deterministic=config.deterministic, quiet=config.quiet
        )
    low, high = result.interval
    one = len(result.returns) == 1
    d = decimals(result.mean, low, high)
    spread = "" if one else f"  95% interval [{low:.{d}f}, {high:.{d}f}]  standard deviation {result.std:.{d}f}"
    played = "1 episode" if one else f"{len(result.returns)} episodes"
    cli.say(f"Evaluated {config.checkpoint} on {config.env_id}: {played}, start seed {config.seed}")
    cli.say(f"mean return {result.mean:.{d}f}{spread}")
    lengths = result.lengths
    success = "" if result.successes is None else f"  success rate {result.successes.mean():.1%}"
    cli.say(f"episode length mean {lengths.mean():.1f}  min {lengths.min()}  max {lengths.max()}{success}")
    return result


if __name__ == "__main__":
    main()
