"""The document of `benchmarks.improve` and its figures, from the rows that it keeps."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy import stats

from il_based_rl.report.plots import learning_curves
from il_based_rl.statistics import difference, mean_interval

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "improve_measured.md"
REACHED = 0.95
"""Of the expert, from which on a task counts as learned."""
ARMS, TAUGHT = ("fine-tuned", "naive", "scratch"), ("DAgger", "as many labels", "as many, disturbed")
FURTHER = "DAgger, then fine-tuned"
HOW = """On the scale from a random policy (0) to the expert (1), which is the zoo's, or one of fewer steps by the
same preset where that is said, from 100 start states a seed that nothing was chosen by; means over seeds with
Student's t intervals of 95 %. The same clone begins every arm of a seed, but for scratch: from every 20th step (every
8th on the pendulum) of the fewest episodes that bring it to between 0.35 and 0.75 of the way from 20 other start
states, or nearest to that. Curves are of the policy that would be saved at each of ten evaluations: of the fine-tuned
arms the best by their gate's own 40 start states, of the others the last. *Lowest* is the lowest of them; *dip* is
the lowest that the policy in training itself fell to, from the gate's start states, as a share of what the clone has
there (1 is never below). *Steps to 95 %* is the median over seeds of the first evaluation at or above 95 % of the
expert (a run that never gets there counts with all its steps); *area* is the mean over all evaluations. The settings
of fine-tuning are its defaults, but for the size of rollouts and the horizons of the lander and of HalfCheetah-v5,
which all arms share, and for the observation statistics, which move on on the lander and the pendulum, as they do in
the other arms. They were chosen on seeds 0 to 2, on the pendulum 0 to 8, on the lander 20 to 26, and these are
others. *Statistics turned* is the same with frozen ones on these two tasks. *Cloned* is from as many labels as
DAgger's, of the expert's own steps in whole episodes, with as many examples seen; *disturbed*, from steps that were
disturbed while the expert's choice was recorded. When fine-tuning after DAgger was measured, the gate's intervals
were a bootstrap's, which goes back more often than Student's t of the other arms."""


class Found:
    """The rows of the benchmark by task, arm and seed, each on the scale from random (0) to the expert (1)."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = {(row["task"], row["arm"], row["seed"]): row for row in rows}

    def seeds(self, task: str, *arms: str) -> list[int]:
        """Return the seeds for which all of these arms are there, and the ends of the scale."""
        every = sorted({seed for name, _, seed in self._rows if name == task})
        return [seed for seed in every if all((task, arm, seed) in self._rows for arm in (*arms, "random", "expert"))]

    def returns(self, task: str, arm: str, seed: int) -> np.ndarray:
        """Return the returns at each evaluation. Shape (evaluations, E)."""
        return np.array(self._rows[task, arm, seed]["returns"])

    def scaled(self, task: str, arm: str, seed: int) -> np.ndarray:
        """Return the mean at each evaluation, on the scale. Shape (evaluations,)."""
        low, high = (self.returns(task, end, seed).mean() for end in ("random", "expert"))
        return (self.returns(task, arm, seed).mean(axis=1) - low) / (high - low)

    def steps(self, task: str, arm: str, seed: int) -> np.ndarray:
        """Return the environment steps at each evaluation."""
        return np.array(self._rows[task, arm, seed]["steps"])

    def dip(self, task: str, arm: str, seed: int) -> float:
        """Return the lowest mean of the policy in training, as a share of the clone's, which is the first of them."""
        means = self._rows[task, arm, seed].get("training")
        low = self.returns(task, "random", seed).mean()
        return float("nan") if means is None else float((min(means) - low) / (means[0] - low))

    def std(self, task: str, seed: int) -> float | None:
        """Return the standard deviation that fine-tuning began with."""
        found: float | None = self._rows[task, "fine-tuned", seed].get("action_std")
        return found

    def reached(self, task: str, arm: str, seed: int) -> float:
        """Return the steps to 95 % of the expert."""
        above = np.flatnonzero(self.scaled(task, arm, seed) >= REACHED)
        steps = self.steps(task, arm, seed)
        return float(steps[above[0]] if len(above) else steps[-1])

    def below(self, task: str, seeds: Sequence[int], arm: str = "fine-tuned") -> tuple[int, int]:
        """Count the evaluations, and those at which the policy is below the clone (paired t tests, one-sided, Holm, 5 %)."""
        chances = []
        for seed in seeds:
            clone = self.returns(task, "clone", seed)[0]
            for played in self.returns(task, arm, seed):
                same = np.array_equal(played, clone)
                chances.append(1.0 if same else float(stats.ttest_rel(played, clone, alternative="less").pvalue))
        ordered = np.sort(chances)
        rejected = ordered <= 0.05 / np.arange(len(ordered), 0, -1)
        return len(chances), len(chances) if rejected.all() else int(np.argmin(rejected))


def shown(values: Sequence[float]) -> str:
    """Write a mean with its interval."""
    array = np.array(values, float)
    low, high = mean_interval(array)
    return f"{array.mean():.2f}" if np.isnan(low) else f"{array.mean():.2f} [{low:.2f}, {high:.2f}]"


def write_page(rows: Sequence[Mapping[str, Any]], tasks: Mapping[str, Any], without: Sequence[str]) -> None:
    """Write the document and its figures.

    Args:
        rows: What `benchmarks.improve` keeps.
        tasks: Its tasks.
        without: Its arms with a guard rail removed.
    """
    found = Found(rows)
    lines = ["# What fine-tuning and DAgger bring, measured", ""]
    lines += [*textwrap.wrap(f"`python -m benchmarks.improve`, {time.strftime('%Y-%m-%d')}. {' '.join(HOW.split())}", 124), ""]
    for name, task in tasks.items():
        if len(seeds := found.seeds(name, "clone", *ARMS)) > 1:
            lines += _improved(found, name, task, seeds)
    for name, task in tasks.items():
        if len(seeds := found.seeds(name, "clone", "fine-tuned", *without)) > 1:
            lines += _ablated(found, name, task, without, seeds)
    for name, task in tasks.items():
        if len(seeds := found.seeds(name, *TAUGHT)) > 1:
            lines += _asked(found, name, task, seeds)
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _improved(found: Found, name: str, task: Any, seeds: Sequence[int]) -> list[str]:
    """Return the section on one task's arms."""
    clones = {seed: float(found.scaled(name, "clone", seed)[0]) for seed in seeds}
    lines = [f"## {task.env_id}, {task.steps:,} steps, {len(seeds)} seeds", ""]
    lines += ["| arm | final | final above the clone | lowest | dip | steps to 95 % | area |", "|---|---|---|---|---|---|---|"]
    lines.append(f"| clone | {shown(list(clones.values()))} | | | | | |")
    for arm in ARMS:
        curves = {seed: found.scaled(name, arm, seed) for seed in seeds}
        cells = [
            shown([float(curve[-1]) for curve in curves.values()]),
            shown([float(curves[seed][-1]) - clones[seed] for seed in seeds]),
            shown([float(curve.min()) for curve in curves.values()]),
            shown([found.dip(name, arm, seed) for seed in seeds]) if arm == "fine-tuned" else "",
            f"{np.median([found.reached(name, arm, seed) for seed in seeds]):,.0f}",
            shown([float(curve.mean()) for curve in curves.values()]),
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    count, worse = found.below(name, seeds)
    areas = {arm: np.mean([found.scaled(name, arm, seed).mean() for seed in seeds]) for arm in ARMS}
    reached = {arm: np.median([found.reached(name, arm, seed) for seed in seeds]) for arm in ARMS}
    _, fallen = found.below(name, seeds, "naive")
    stds = sorted({std for seed in seeds if (std := found.std(name, seed)) is not None})
    text = (
        f"The fine-tuned policy that would be saved was below the clone at {worse} of {count} evaluations (paired, Holm), "
        f"the naive arm's at {fallen}. "
        f"Fine-tuned against scratch: {areas['fine-tuned'] / areas['scratch']:.1f} times the area, and "
        f"{reached['fine-tuned'] / reached['scratch']:.2f} times the steps to 95 %; naive against scratch: "
        f"{areas['naive'] / areas['scratch']:.1f} and {reached['naive'] / reached['scratch']:.2f}. "
        f"Standard deviations that were tried out to begin with: {', '.join(map(str, stds))}."
    )
    figure = DOCS / f"improve_{name}.svg"
    series = {arm: [(found.steps(name, arm, seed), found.scaled(name, arm, seed)) for seed in seeds] for arm in ARMS}
    drawn = learning_curves(series, "environment steps", "share of the expert")
    drawn.axes[0].axhline(float(np.mean(list(clones.values()))), color="#777777", linestyle=":", linewidth=1.0)
    with mpl.rc_context({"svg.hashsalt": name}):  # else every drawing of the same rows is another file
        drawn.savefig(figure, format="svg", facecolor="white", metadata={"Date": None})
    return [*lines, "", *textwrap.wrap(text, 124), "", f"![{task.env_id}; dotted: the clone]({figure.name})", ""]


def _ablated(found: Found, name: str, task: Any, without: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the section on one task's guard rails."""
    lines = [f"## One guard rail removed: {task.env_id}, {len(seeds)} seeds", ""]
    lines += ["| | final | final above that with all of them | lowest | dip | area |", "|---|---|---|---|---|---|"]
    for arm in ("fine-tuned", *without):
        curves = {seed: found.scaled(name, arm, seed) for seed in seeds}
        gained = [float(curves[seed][-1] - found.scaled(name, "fine-tuned", seed)[-1]) for seed in seeds]
        cells = [
            shown([float(curve[-1]) for curve in curves.values()]),
            "" if arm == "fine-tuned" else shown(gained),
            shown([float(curve.min()) for curve in curves.values()]),
            shown([found.dip(name, arm, seed) for seed in seeds]),
            shown([float(curve.mean()) for curve in curves.values()]),
        ]
        lines.append(f"| {'all of them' if arm == 'fine-tuned' else arm} | {' | '.join(cells)} |")
    return [*lines, ""]


def _asked(found: Found, name: str, task: Any, seeds: Sequence[int]) -> list[str]:
    """Return the section on DAgger in one task."""
    asked, plain, disturbed = (np.array([found.scaled(name, arm, seed) for seed in seeds]) for arm in TAUGHT)
    expert = "" if task.expert_steps is None else f"an expert of {task.expert_steps:,} steps, "
    lines = [f"## DAgger: {task.env_id}, {expert}{len(seeds)} seeds", ""]
    lines += [
        "| labels | DAgger | cloned | cloned, disturbed | DAgger above cloned | above cloned, disturbed |",
        "|---|---|---|---|---|---|",
    ]
    for point, labels in enumerate(found.steps(name, "DAgger", seeds[0])):
        columns = [values[:, point] for values in (asked, plain, disturbed, asked - plain, asked - disturbed)]
        lines.append(f"| {labels:,} | {' | '.join(map(shown, columns))} |")
    returned = shown([float(found.returns(name, "expert", seed).mean()) for seed in seeds])
    lines += ["", f"The expert returns {returned}.", ""]
    if later := found.seeds(name, "DAgger", FURTHER):
        best = [float(found.scaled(name, FURTHER, seed)[-1]) for seed in later]
        clear = [
            difference(found.returns(name, FURTHER, seed)[-1], found.returns(name, "expert", seed)[0], paired=True).low > 0
            for seed in later
        ]
        steps = int(found.steps(name, FURTHER, later[0])[-1])
        lines += [
            f"DAgger's student, fine-tuned for {steps:,} steps ({len(later)} seeds): {shown(best)} of the expert; by seed",
            f"{', '.join(f'{value:.2f}' for value in best)}; "
            f"clearly above the expert in {sum(clear)} of them (paired, each alone).",
            "",
        ]
    return lines
