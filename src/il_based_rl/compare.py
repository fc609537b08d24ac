"""Which policy is better, by how much, and how sure that is. The command and the function."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import CompareConfig
from il_based_rl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from il_based_rl.comparison import Comparison
    from il_based_rl.rollout import Episode

# What is heavy (torch, Gymnasium, scipy) is imported inside the functions, so that --help need not wait for it.

_KEPT_EPISODES = 20
"""So many episodes of each policy are kept whole, for a closer look."""
_LATENCY_CALLS, _LATENCY_SECONDS = 1_000, 1.0
"""So many answers are timed, or for so long."""


def compare_policies(
    policies: Mapping[str, Any],
    env_id: str,
    num_episodes: int = 100,
    seed: int = 0,
    *,
    start_seeds: Sequence[int] | None = None,
    deterministic: bool = True,
    success_threshold: float | None = None,
    quiet: bool = False,
) -> Comparison:
    """Let policies play from the same start states, and compare them.

    The first policy is the one that the others are measured against. A random policy is added where there is none.

    Args:
        policies: By name, an agent of this package, a path of a checkpoint, anything with `predict(obs) -> action`, a plain
            callable, or `RANDOM`; or a list of these, one of each training run of the same method.
        env_id: Gymnasium environment ID.
        num_episodes: Start states, at least 2.
        seed: Picks them; the same ones as `evaluate_policy` has for this seed.
        start_seeds: Reset seeds to play instead.
        deterministic: Whether to take the most likely actions.
        success_threshold: Return from which an episode counts as a success; None asks the environment.
        quiet: Whether to show no progress.

    Raises:
        ConfigError: There is no policy, or fewer than two start states.
        FileMissingError, FileFormatError: A path is not that of a checkpoint.
        SpaceMismatchError: A policy was made for other spaces.
        EnvironmentFaultError: The environment or a policy failed.
        See `envs.make_env`.

    Example:
        comparison = compare_policies({"expert": expert, "student": student}, "Pendulum-v1")
        print(comparison.markdown())
    """
    from il_based_rl.checkpoint import load_agent, located
    from il_based_rl.comparison import RANDOM, Contender, compared
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.seeding import generator
    from il_based_rl.seeding import start_seeds as seeds_for

    chosen = seeds_for(seed, "evaluation", max(operator.index(num_episodes), 0)) if start_seeds is None else start_seeds
    seeds = list(map(operator.index, chosen))
    listed = {str(name): list(given) if isinstance(given, list | tuple) else [given] for name, given in policies.items()}
    if len(listed) < len(policies):
        raise ConfigError(f"two policies have one name, written out: {list(policies)!r:.80}; give each its own")
    _require_one_random(listed)
    if success_threshold is not None:
        success_threshold = float(success_threshold)
        if not math.isfinite(success_threshold):
            raise ConfigError(f"success_threshold must be a finite number, got {success_threshold}")
    if not listed or not all(listed.values()) or len(seeds) < 2:
        raise ConfigError(f"a comparison needs policies and two start states, got {listed} and {len(seeds)} start states")
    _require_different_runs(listed)
    listed.setdefault(RANDOM, [RANDOM])
    loaded = {name: [load_agent(each) if _is_path(each) else each for each in given] for name, given in listed.items()}
    contenders = []
    with EpisodePlayers(env_id, len(seeds)) as players:
        play = partial(play_evaluation, players=players, start_seeds=seeds, seed=seed, deterministic=deterministic, quiet=quiet)
        for name, agents in loaded.items():
            players.action_space.seed(int(seed))
            acting = [(lambda obs: players.action_space.sample()) if isinstance(agent, str) else agent for agent in agents]
            episodes: list[Episode] = []
            results = [play(acting[0], watch=partial(_keep, episodes)), *(play(agent) for agent in acting[1:])]
            episodes.sort(key=lambda episode: episode.index)
            latency = None if isinstance(agents[0], str) else _latency(agents[0], episodes[0].rows)
            paths = [located(each) for each in listed[name] if _is_path(each)]
            contenders.append(Contender(name, agents, results, episodes, paths, latency))
    return compared(contenders, players.env_id, seeds, generator(seed, "comparison"), success_threshold)


def _require_one_random(listed: Mapping[str, Sequence[Any]]) -> None:
    """Raise ConfigError if what is called random is a policy of another kind, or what is random is called otherwise."""
    for name, given in listed.items():
        random = [isinstance(each, str) and not _is_path(each) for each in given]
        if (name == "random") != any(random) or (any(random) and len(given) > 1):
            raise ConfigError(f"the name random stands for the random policy alone, got {name}={given}; choose another name")


def _require_different_runs(listed: Mapping[str, Sequence[Any]]) -> None:
    """Raise ConfigError if one policy stands for two training runs, between which there would be no difference at all."""
    from il_based_rl.checkpoint import located

    for name, given in listed.items():
        known = [located(each).resolve() if _is_path(each) else id(each) for each in given]
        twice = [each for each, key in zip(given, known, strict=True) if known.count(key) > 1]
        if twice:
            raise ConfigError(f"{name} names {twice[0]!s:.200} twice, as if it were two training runs; leave one out")


def _is_path(given: Any) -> bool:
    from il_based_rl.comparison import RANDOM

    return isinstance(given, str | Path) and given != RANDOM


def _keep(episodes: list[Episode], episode: Episode) -> None:
    if episode.index < _KEPT_EPISODES:
        episodes.append(episode)


def _latency(agent: Any, rows: np.ndarray) -> np.ndarray | None:
    """Time single answers, as a controller would ask for them."""
    import numpy as np

    ask, taken, begun = getattr(agent, "predict", agent), [], time.perf_counter()
    try:
        for k in range(_LATENCY_CALLS):
            row = rows[k % len(rows)].copy()  # one may write into what it is given
            started = time.perf_counter()
            ask(row)
            taken.append(time.perf_counter() - started)
            if time.perf_counter() - begun > _LATENCY_SECONDS:
                break
    except Exception:  # another author's agent may want an observation as its environment gives it
        return None
    return np.array(taken)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl compare`."""
    description = "Let saved policies play from the same start states, and say which is better, and how sure that is."
    cli.run(lambda: compare(cli.parse(CompareConfig(), argv, prog="il-rl compare", description=description)))


def compare(config: CompareConfig) -> Comparison:
    """Load policies, compare them, print the table, and write it as Markdown and as JSON."""
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment import keep_older
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable, write_json, write_text

    save_path = Path(config.save_path)
    page = save_path.with_suffix(".md")
    for path in (save_path, page):
        require_writable(path)
    policies = _named(config.policies)
    widths = [load_agent(path).hidden_dims for given in policies.values() for path in given if _is_path(path)]
    with fitting_threads([width for each in widths for width in each]):
        comparison = compare_policies(
            policies,
            config.env_id,
            config.num_episodes,
            config.seed,
            deterministic=config.deterministic,
            success_threshold=config.success_threshold,
            quiet=config.quiet,
        )
    cli.say(comparison.markdown())
    keep_older(save_path, page)
    write_json(save_path, comparison.numbers)
    write_text(page, comparison.markdown())
    cli.say(f"Comparison saved to {save_path} and {page}")
    return comparison


def _named(given: Sequence[str]) -> dict[str, list[str]]:
    """Read `NAME=PATH` or `PATH`; several of one name are training runs of one policy.

    Raises:
        ConfigError: A name is empty.
    """
    named: dict[str, list[str]] = {}
    bare = [text for text in given if "=" not in text or Path(text).is_file()]
    names = {text.partition("=")[0] for text in given if text not in bare}
    for text in given:
        name, _, path = text.partition("=")
        if text in bare:
            alike = [other for other in bare if Path(other).stem == Path(text).stem]
            name, path = Path(text).stem if len(alike) == 1 and Path(text).stem not in names else text, text
        if not name:
            raise ConfigError(f"--policies {text} names no policy; expected NAME=PATH or PATH")
        named.setdefault(name, []).append(path)
    return named


if __name__ == "__main__":
    main()
