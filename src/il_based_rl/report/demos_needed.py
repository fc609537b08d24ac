"""How many demonstrations does a student need? Clone from ever more of them, and see how good the students are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import DemosNeededConfig
from il_based_rl.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from il_based_rl.agent import BCAgent
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.statistics import Estimate

# What is heavy (torch, Gymnasium, matplotlib) is imported inside the functions, so that --help need not wait for it.


@dataclass(frozen=True)
class Point:
    """Students of one number of demonstrations."""

    demos: int
    """Episodes that each was cloned from."""
    transitions: float
    """Mean number of transitions in them."""
    returns: list[float]
    """Mean return of each student, by seed."""
    low: float
    """Lower end of the 95 % interval of their mean: Student's t over seeds, joined with the luck of their start states."""
    high: float
    """Upper end."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl demos-needed`."""
    description = "Draw the student's return against the number of demonstrations."
    cli.run(lambda: demos_needed(cli.parse(DemosNeededConfig(), argv, prog="il-rl demos-needed", description=description)))


def demos_needed(config: DemosNeededConfig) -> list[Point]:
    """Clone students from ever more demonstrations, print what they reach, and write it as JSON and as a figure."""
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment import keep_older
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable
    from il_based_rl.rollout import EpisodePlayers
    from il_based_rl.statistics import FEW

    save_path = Path(config.save_path)
    for path in (save_path, save_path.with_suffix(".svg")):
        require_writable(path)
    dataset = DemoDataset.load(config.demo_path)
    counts = _counts(config, dataset)
    demonstrated = _estimate(dataset.returns, config.seed)
    told = f" (an interval of few episodes, {dataset.num_episodes}, is Student's t)" if dataset.num_episodes < FEW else ""
    cli.say(f"Demonstrated: mean return {demonstrated}{_set_apart(dataset)}{told}")
    points: list[Point] = []
    work = cli.Progress("cloning", len(counts) * config.num_seeds, "student", quiet=config.quiet)
    with fitting_threads(config.hidden_dims), EpisodePlayers(_env_id(config, dataset), config.eval_episodes) as players, work:
        dataset.require_env(players.env_id, players.observation_space, players.action_space)
        _student(config, players, seed=0).require_fits(dataset)
        keep_older(save_path, save_path.with_suffix(".svg"))
        for count in counts:
            points.append(_point(config, dataset, count, players, work))
            cli.say(f"{count:>6} demonstration{'s' * (count > 1)}: mean return {_shown(points[-1])}")
            _write(config, points, demonstrated)
    cli.say(_conclusion(points, demonstrated))
    cli.say(f"Numbers and figure saved to {save_path} and {save_path.with_suffix('.svg')}")
    return points


def _set_apart(dataset: DemoDataset) -> str:
    """Say in what the demonstrations' returns differ from what the demonstrator itself would return."""
    noise, least = (dataset.metadata.get(name) for name in ("action_noise", "min_return"))
    facts = [f"under an action noise of {noise}"] if isinstance(noise, float) and noise > 0.0 else []
    if isinstance(least, float):
        facts.append(f"of episodes that were kept as they return {least:g} or more")
    if dataset.acted_by is not None and dataset.acted_by.any():
        facts.append("of students that acted beside the expert, in rounds that may cut an episode")
    return "".join(f", {fact}" for fact in facts)


def _conclusion(points: list[Point], demonstrated: Estimate) -> str:
    """Say from which number of demonstrations on the students' interval meets what was demonstrated, to the last."""
    if math.isnan(demonstrated.low) or any(math.isnan(point.low) for point in points):
        return "How many are enough cannot be told without intervals; several demonstrations and --num-seeds 2 give them"
    meeting = list(itertools.takewhile(lambda point: point.high >= demonstrated.low, reversed(points)))
    if not meeting:
        return "No number of demonstrations gave students whose interval meets what was demonstrated"
    count = meeting[-1].demos
    return f"From {count} demonstration{'s' * (count > 1)} on, the students' interval meets what was demonstrated"


def _counts(config: DemosNeededConfig, dataset: DemoDataset) -> list[int]:
    """Return the numbers of demonstrations to try: those asked for, or 1, 2, 4, … and all."""
    most = dataset.num_episodes
    if too_many := [count for count in config.counts if count > most]:
        raise ConfigError(f"--counts {too_many[0]} is more than the {most} episodes of {config.demo_path}")
    doubling = [2**k for k in range(most.bit_length()) if 2**k < most]
    counts = sorted(set(config.counts)) or [*doubling, most]
    if config.bc.patience is not None and counts[0] == 1:
        if config.counts or most == 1:
            raise ConfigError("--patience needs episodes to hold out, of which --counts 1 leaves none")
        counts = counts[1:]
    return counts


def _env_id(config: DemosNeededConfig, dataset: DemoDataset) -> str:
    env_id = dataset.metadata.get("env_id") if config.env_id is None else config.env_id
    if not isinstance(env_id, str) or (":" in env_id and config.env_id is None):
        raise ConfigError(f"{config.demo_path} does not say where students are to play, or asks to import code; give --env-id")
    return env_id


def _point(config: DemosNeededConfig, dataset: DemoDataset, count: int, players: EpisodePlayers, work: cli.Progress) -> Point:
    """Clone one student for each seed, from the first episodes in an order of its own; all play from the same start states."""
    import numpy as np

    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.seeding import generator, start_seeds
    from il_based_rl.statistics import Estimate, luck_of_starts, mean_interval, widened

    starts = list(start_seeds(config.seed, "evaluation", config.eval_episodes))
    returns: list[np.ndarray] = []
    transitions = []
    for k in range(config.num_seeds):
        random = generator(config.seed, "validation split", 1, k)
        drawn = dataset.select(np.sort(random.permutation(dataset.num_episodes)[:count]))
        seed = int(random.integers(2**31))
        student = _student(config, players, seed)
        for _ in student.learn(drawn):
            pass
        returns.append(play_evaluation(student, players, starts, quiet=True).returns)
        transitions.append(len(drawn))
        work.update(episode_return=float(returns[-1].mean()))
    means = np.mean(returns, axis=1)
    found = widened(Estimate(float(means.mean()), *mean_interval(means)), luck_of_starts((1.0, np.array(returns))))
    return Point(count, float(np.mean(transitions)), means.tolist(), found.low, found.high)


def _student(config: DemosNeededConfig, players: EpisodePlayers, seed: int) -> BCAgent:
    from il_based_rl.agent import BCAgent

    spaces = players.observation_space, players.action_space
    return BCAgent.for_spaces(*spaces, config.bc, hidden_dims=config.hidden_dims, seed=seed)


def _estimate(returns: Any, seed: int) -> Estimate:
    from il_based_rl.seeding import generator
    from il_based_rl.statistics import estimate

    return estimate("mean", returns, generator(seed, "comparison"))


def _shown(point: Point) -> str:
    mean = sum(point.returns) / len(point.returns)
    return f"{mean:.2f}" if len(point.returns) < 2 else f"{mean:.2f} [{point.low:.2f}, {point.high:.2f}]"


def _write(config: DemosNeededConfig, points: list[Point], demonstrated: Estimate) -> None:
    from il_based_rl.files import atomic_path, write_json

    save_path = Path(config.save_path)
    numbers = {"settings": asdict(config), "demonstrated": asdict(demonstrated), "points": [asdict(point) for point in points]}
    write_json(save_path, numbers)
    with atomic_path(save_path.with_suffix(".svg")) as temporary:
        _drawn(points, demonstrated).savefig(temporary, format="svg", metadata={"Date": None})


def _drawn(points: list[Point], demonstrated: Estimate) -> Figure:
    from il_based_rl.report.plots import COLOURS, figure, legend

    drawn, axes = figure("demonstrations (episodes)", "student's mean return")
    counts = [point.demos for point in points]
    means = [sum(point.returns) / len(point.returns) for point in points]
    axes.axhline(demonstrated.value, color=COLOURS[1], linestyle="--", linewidth=1.2, label="demonstrated")
    axes.axhspan(demonstrated.low, demonstrated.high, color=COLOURS[1], alpha=0.12, linewidth=0)
    axes.plot(counts, means, color=COLOURS[0], marker="o", linewidth=1.5, label=f"students ({len(points[0].returns)} seeds)")
    axes.fill_between(counts, [p.low for p in points], [p.high for p in points], color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    legend(axes)
    return drawn


if __name__ == "__main__":
    main()
