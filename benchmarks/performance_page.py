"""`docs/performance.md` and its plot, from what `benchmarks.run` has measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device import device_lines
from benchmarks.jobs import PLAIN, POOLED, REQUIREMENTS, WHOLE, Asked, Job, comparisons, first_peer, median, ratio, scaling
from il_based_rl.statistics import mean_interval

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"

HELD_BACK = [
    "Nothing else of weight ran beside what is timed. What is near what was asked may come out below it another time: cloning",
    "at 256x256 was at 10.0 times [9.5, 11.0] when it was measured once more an hour later.",
    "",
    "Which machine it is, and which kernels OpenBLAS takes, decides the figures near what was asked. Held to its Haswell",
    "kernels, which make no use of AVX-512 (`OPENBLAS_CORETYPE=Haswell`; the benchmark takes such variables away), a machine",
    "of the same name and pace gave, before the last improvements, Pendulum-v1 9.6 times [9.4, 9.9] and cloning 28 (32x32) and",
    "6.9 times (256x256). Another of that name, on which Stable-Baselines3 took 1,886 steps of Pendulum-v1 a second, gave",
    "Pendulum-v1 11.1 times [10.7, 11.4], reference path 3.7, CartPole-v1 8.7, HalfCheetah-v5 7.7 (one environment) and 5.3",
    "(eight, envpool), cloning 27 (32x32) and 6.7 times (256x256), `predict` 13 us.",
    "",
    "On CartPole-v1 our policies of 65,536 steps, which are four updates, are worse and differ more. That is what",
    "standardising does to so few and so long updates: without it, on the very same work, ours are as good as SB3's. The",
    "preset for CartPole-v1 leaves it out too, and takes shorter rollouts.",
    "",
    "What holds each back: of a step of the small environments, the floor above is a third to a half, and the rest is some",
    "seventy calls of NumPy for a minibatch and a dozen for a step. HalfCheetah-v5 is mostly the environment's own time.",
    "",
    "Cloning at 256x256 is arithmetic: of 226 us for a minibatch the three products of hidden layers take 123 (torch's would",
    "take 240), Adam on 72,000 numbers 25, by divisions and a root for each, and the rest are hyperbolic tangents and their",
    "slopes, the five small products, the loss, biases, and shuffling and drawing rows. At 32x32, where the calls cost more",
    "than the arithmetic, the distance to imitation is greater.",
    "",
    "In `predict` the network takes half of the time, some ten calls of NumPy; the rest makes sure that it still is the",
    "network of the call before, makes features of an observation, checks it and clips the action.",
    "",
    "On another machine, at best half as quick, without AVX-512 and busier, the same work gave on 2026-11-26:",
    "Pendulum-v1 10.1 times [5.7, 12.8], reference path 3.6, CartPole-v1 9.3, HalfCheetah-v5 7.7 (one environment) and 7.6",
    "(eight, envpool), cloning 23 (32x32) and 7.7 times (256x256), `predict` 23 us. Without AVX-512 the hyperbolic tangent",
    "alone takes a fifth of an update.",
    "",
]
LEFT_OUT = [
    "## Tried and left out",
    "",
    "- `torch.compile` of the reference path's forward pass: 22.6 s before the first update is done instead of 0.3 s, and",
    "  8,040 steps a second afterwards instead of 8,470 (Pendulum-v1, one run each).",
    "- Scratch arrays for the hidden layers of the acting policy: 0.71 us a product instead of 0.74, and wrong answers where",
    "  threads share a policy.",
    "- Hidden layers of actor and critic side by side in one array instead of stacked: the heads then read every other part of",
    "  a row, which costs what the layers gain.",
    "- Two threads for the matrix products of cloning at 256x256: 112,300 samples a second instead of 98,700, with nothing",
    "  else on the two cores; with two for torch's operations as well, 7,600 (without AVX-512; here two threads would take",
    "  23 to 27 us instead of 39 to 42 for a product, and runs side by side would wait for each other).",
    "- Half of each minibatch in a second process that shares the parameters' memory (cloning at 256x256, its products and",
    "  Adam alone, on the machine of 2026-11-27): 217 us instead of 350, with both waiting for each other in busy loops; by",
    "  two threads, 300. An estimated ten times imitation, then, as long as nothing else runs on the second core.",
    "- oneDNN's matrix products, which torch offers under no public name for them: 43 to 55 us instead of 68 to 72 for 64x256",
    "  by 256x256. An estimated 8 times imitation.",
    "- torch's hyperbolic tangent instead of NumPy's: 53 us instead of 43 for 64x256 without AVX-512. By NumPy's exponential",
    "  function, 31 us, but near 0 with an error of the whole value.",
    "- Products of 64x256 by 256x256 cut into parts that OpenBLAS takes without packing: 79 to 140 us instead of 72.",
    "- Observation statistics that take in the first rollout before it is learned from: CartPole-v1 325 instead of 375 by the",
    "  default flags (20 other seeds, difference -50 [-129, 29]), Pendulum-v1 -171 instead of -158 (6).",
    "- Weights stored transposed: one of the three products of a layer takes the slow form whichever way they lie. Where",
    "  hidden layers lie unit after unit, as those of 256 units and more do for few rows, it is the one with the fewest sums.",
    "",
]


def write_page(results: Path) -> None:
    """Write the document and its plot from the results on disk."""
    kept, jobs, sizes = json.loads(results.read_text(encoding="utf-8")), comparisons(), scaling()
    measured = {each["name"]: each["measured"] for each in kept["jobs"]}
    for job in jobs + sizes:
        job.measured.update(measured[job.name])
    further = [*return_lines(kept["trained"]), *breakdown_lines(kept["breakdown"]), ""]
    further += [*soak_lines(kept["soak"], kept["commands"]), "", *device_lines()]
    further += [*short_lines(jobs, sizes), *LEFT_OUT]
    PAGE.write_text(page(jobs, sizes, kept["machine"], further), encoding="utf-8")
    plot(jobs)


def number(value: float) -> str:
    """Write a figure with three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def short_lines(jobs: list[Job], sizes: list[Job]) -> list[str]:
    """Return the section on what was asked or hoped for and not reached."""
    missed, unreached = [], []
    for job in jobs:
        for asked in job.asked:
            reached = ratio(job, asked.side, first_peer(job))[0] if asked.of_ratio else median(job, asked.side)
            name = job.name if asked.side == "ours" else f"{job.name}, {asked.side}"
            told = f"{reached:.1f}x" if asked.of_ratio else number(reached)
            short = lambda goal, a=asked, x=reached: x < goal if a.of_ratio else x > goal  # noqa: E731
            if short(asked.least):
                by = abs(1 - reached / asked.least)
                missed.append(f"- **Missed**: {name}: {told}, asked {asked}, by {by:.0%}.")
            elif asked.hoped is not None and short(asked.hoped):
                unreached.append(f"- {name}: {told}, asked {asked} and hoped for {asked.hoped:g}.")
    several = [job for job in sizes if job.name.startswith("environments")]
    for fewer, more in itertools.pairwise(several):
        change, low, high = change_of_rate(fewer, more)
        if high < 1.0:
            sizes_named = f"From {fewer.name.split()[-1]} to {more.name.split()[-1]} environments"
            missed.append(f"- **Missed**: {sizes_named} a step becomes dearer: {change:.2f}x the rate [{low:.2f}, {high:.2f}].")
    everything = ["Every least figure that was asked for is reached. What was hoped for beyond is not:", ""]
    return [
        "## What falls short, and what holds it back",
        "",
        *(missed or everything),
        *unreached,
        "",
        *HELD_BACK,
    ]


def change_of_rate(one: Job, other: Job) -> tuple[float, float, float]:
    """Return how many times as quick the other size is, by the runs of the same turn: geometric mean and its 95% interval."""
    pairs = zip(one.measured["ours"], other.measured["ours"], strict=True)
    logarithms = np.array([np.log(second[other.figure] / first[one.figure]) for first, second in pairs])
    low, high = mean_interval(logarithms)
    return float(np.exp(logarithms.mean())), float(np.exp(low)), float(np.exp(high))


def return_lines(trained: list[tuple[str, dict[str, Any], float]]) -> list[str]:
    """Return the section on how good the policies are."""
    lines = [
        "## How good the policies are",
        "",
        "The same command on both sides; mean return of the last policy from 100 start states that are the same for all, by",
        "training seed, the mean over seeds, and how much ours is above (95% interval over seeds, by Student's t). Plain is",
        "without what our defaults have and SB3's have not, the standardising of observations and rewards. Eight environments",
        "of MuJoCo take `--n-steps 256`, as the thirteen updates of rollouts of the default length teach neither anything:",
        "",
        "| environment id | environments | steps | ours | sb3 | ours, mean | sb3, mean | above [interval] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    works = dict.fromkeys((each["env_id"], each["num_envs"]) for _, each, _ in trained)
    variants: dict[str, dict[str, bool]] = {"": {}, ", plain": PLAIN, ", envpool": POOLED}
    turned = PLAIN.keys() | POOLED.keys()
    for (env_id, num_envs), (variant, flags) in itertools.product(works, variants.items()):
        same = [each for each in trained if (each[1]["env_id"], each[1]["num_envs"]) == (env_id, num_envs)]
        theirs = {settings["seed"]: value for side, settings, value in same if side == "sb3"}
        ours = {
            settings["seed"]: value
            for side, settings, value in same
            if side == "ours" and settings.keys() & turned == flags.keys()
        }
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) > 1:  # one alone says nothing
            pairs = np.array([(ours[seed], theirs[seed]) for seed in seeds])
            cells = [", ".join(f"{value:.0f}" for value in found) for found in pairs.T]
            cells += [f"{mean:.1f}" for mean in pairs.mean(0)]
            above = pairs[:, 0] - pairs[:, 1]
            low, high = mean_interval(above)
            cells.append(f"{above.mean():.1f} [{low:.1f}, {high:.1f}]")
            lines.append(f"| {env_id}{variant} | {num_envs} | {same[0][1]['steps']:,} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def breakdown_lines(broken_down: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the section on where the time of a step goes."""
    parts = ("environment", "acting", "update", "rest", "whole", "products")
    lines = [
        "## Where the time goes",
        "",
        "Microseconds of one environment step of training, one environment, default flags:",
        "",
    ]
    lines += ["| environment id | " + " | ".join(parts[:4]) + " | whole | floor |", "|---" * 7 + "|"]
    for env_id, results in broken_down.items():
        medians = {part: float(np.median([result[part] for result in results])) for part in parts}
        floor = medians["environment"] + medians["products"]
        lines.append(f"| {env_id} | " + " | ".join(number(medians[part]) for part in parts[:5]) + f" | {number(floor)} |")
    return [
        *lines,
        "",
        "`environment` is Gymnasium's own step in a bare loop, `acting` the actor's forward pass with sampling and clipping,",
        "`update` the minibatches, `rest` all else (the checks of each observation, the buffer, advantages, statistics).",
        "The floor is the bare environment and the matrix products of the update, with no cost for anything else.",
    ]


def soak_lines(soaked: dict[str, Any], commands: list[dict[str, float]]) -> list[str]:
    """Return the section on the default command, and on a long run."""
    taken, peak = (float(np.median([each[name] for each in commands])) for name in ("wall_seconds", "peak_mib"))
    lines = [
        "## The default command",
        "",
        f"`il-rl train-ppo`, its evaluations and checkpoints included: {taken:.1f} s from start to end, and {peak:.0f} MiB at",
        "most (asked: below 500).",
        "",
        "## Over two million steps",
        "",
        "PPO on Pendulum-v1, default flags:",
        "",
        "| steps | seconds | resident MiB |",
        "|---|---|---|",
    ]
    return [*lines, *(f"| {steps:,} | {taken:.1f} | {resident:.1f} |" for steps, resident, taken in soaked["noted"])]


def page(jobs: list[Job], sizes: list[Job], machine: dict[str, Any], further: list[str]) -> str:
    """Write the document."""
    lines = [
        "# How fast it is",
        "",
        f"Measured by `python -m benchmarks.run` on {machine['date']}: {machine['processor']}, {machine['cores']} cores,",
        f"Python {machine['python']}, torch {machine['torch']}, Gymnasium {machine['gymnasium']},",
        f"NumPy {machine['numpy']} with {machine['linear_algebra']}.",
        f"Medians of {machine['repetitions']} runs, all sides in turn; ratios of neighbours, with lowest and highest.",
        "Peers: Stable-Baselines3 2.9.2 (sb3), sbx 0.28.0, imitation 1.0.1 with its old pins.",
        "",
        "Same environment, hyperparameters and network on all sides, learning and acting on one thread, evaluation off. Ours",
        "standardises observations and rewards on top, and steps several slow environments (of MuJoCo, here) in worker",
        "processes, one for each core, as its defaults do, or in envpool's threads; Stable-Baselines3's defaults step them in",
        "the process that learns. Cloning minimises imitation's loss on both sides, negative log-likelihood with an entropy",
        "bonus of 0.001; `squared error` is our default loss against it. Rates are of training alone (sbx's after it has",
        f"compiled). `whole` is the time of a run of {WHOLE:,} steps from the start of the process to its end: imports and all",
        "else as measured, the steps at the rate beside it. Memory is the process's at its highest with what its workers hold.",
        "",
        "| work | ours | peer | ratio [lowest, highest] | asked | whole, s: ours, peer | memory MiB: ours, peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        for peer in [side for side in job.measured if side in REQUIREMENTS]:
            first = peer == first_peer(job)
            sides = [side for side in job.measured if side == "ours" or (first and side not in REQUIREMENTS)]
            lines += [_row(job, side, peer, job.asked_of(side) if first else None) for side in sides]
    lines += ["", "![Steps per second](performance.svg)", "", "## How the rate changes", ""]
    lines += ["PPO on Pendulum-v1 with the default flags but for one, steps a second of training alone:", ""]
    for what in ("width", "environments", "minibatch"):
        mine = [job for job in sizes if job.name.startswith(what)]
        lines.append(f"| {what} | " + " | ".join(job.name.split()[-1] for job in mine) + " |")
        lines.append("|---" * (len(mine) + 1) + "|")
        lines.append("| steps/s | " + " | ".join(number(median(job, "ours")) for job in mine) + " |")
        ends = [sorted(result[job.figure] for result in job.measured["ours"]) for job in mine]
        lines.append("| lowest, highest | " + " | ".join(f"{number(each[0])}, {number(each[-1])}" for each in ends) + " |")
        if what == "environments":
            changes = ["{:.2f}x [{:.2f}, {:.2f}]".format(*change_of_rate(*pair)) for pair in itertools.pairwise(mine)]
            lines.append("| times the one before | | " + " | ".join(changes) + " |")
        lines.append("")
    lines += [
        "Environments share one rollout of 2,048 steps, so that each rollout brings the same number of updates. How many times",
        "as quick a size is as the one before is told by the runs of the same turn: geometric mean, and its 95% interval. A",
        "larger minibatch means fewer updates for the same steps.",
        "",
        *further,
    ]
    return "\n".join(lines) + "\n"


def _row(job: Job, side: str, peer: str, asked: Asked | None) -> str:
    middle, low, high = ratio(job, side, peer)
    figures = f"{number(median(job, side))} | {peer} {number(median(job, peer))}"
    whole = ""
    if job.figure == "steps_per_second":
        whole = ", ".join(f"{_whole_seconds(job, each):.1f}" for each in (side, peer))
    memory = ", ".join(f"{median(job, each, 'peak_mib'):.0f}" for each in (side, peer))
    name = job.name if side == "ours" else f"{job.name}, {side}"
    return f"| {name} | {figures} | {middle:.1f}x [{low:.1f}, {high:.1f}] | {asked or ''} | {whole} | {memory} |"


def _whole_seconds(job: Job, side: str) -> float:
    """Return the time of a whole run of `WHOLE` steps, from what a shorter one took."""
    steps = job.sides[side]["steps"]
    return float(np.median([one["wall_seconds"] + (WHOLE - steps) / one[job.figure] for one in job.measured[side]]))


def plot(jobs: list[Job]) -> None:
    """Draw the training rates as bars."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mine = [job for job in jobs if job.figure == "steps_per_second"]
    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(mine) + 1.2), layout="constrained")
    places = np.arange(len(mine))
    axes.barh(places - 0.2, [median(job, "ours") for job in mine], 0.38, label="il_based_rl")
    axes.barh(places + 0.2, [median(job, "sb3") for job in mine], 0.38, label="Stable-Baselines3 2.9.2")
    axes.set_yticks(places, [job.name.removeprefix("PPO, ") for job in mine])
    axes.invert_yaxis()
    axes.set_xlabel("environment steps per second of training")
    axes.legend()
    with mpl.rc_context({"svg.hashsalt": "performance"}):  # else every drawing of the same figures is another file
        figure.savefig(PLOT, metadata={"Date": None})
