"""How fast we are, and the peers on the same work: `python -m benchmarks.run`.

Sets up Stable-Baselines3, sbx and imitation in virtual environments of their own under `.benchmarks/`, and measures every
job in a process of its own, all sides in turn and all turns several times (A B C, A B C, …), so that a drift of the machine
meets all alike. Updates and acting run on one thread of the CPU, with the same environment, hyperparameters and network;
evaluation is off on both sides. Ours standardises observations and rewards on top, and steps slow environments in worker
processes, as its defaults do.

Writes `benchmarks/results/performance.json`, `docs/performance.md` and `docs/performance.svg`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".benchmarks"
RESULTS = Path(__file__).parent / "results" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"

REQUIREMENTS = {
    "sb3": ["torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0"],
    "sbx": ["torch==2.13.0", "sbx-rl==0.28.0", "gymnasium[mujoco]==1.4.0"],
    "imitation": ["torch==2.13.0", "imitation==1.0.1", "numpy<2"],
}
SCRIPTS = {"sb3": "sb3.py", "sbx": "sb3.py", "imitation": "imitation.py"}
LIBRARY = {"sb3": "stable_baselines3", "sbx": "sbx"}


@dataclass(frozen=True)
class Job:
    """One piece of work, with what each side is given of it."""

    name: str
    figure: str
    """Which number of a process's result counts."""
    sides: dict[str, dict[str, Any]]
    asked: str = ""
    """The least ratio of ours to the first peer's, or the figure, that is asked for."""
    hoped: float | None = None
    """What is hoped for beyond, likewise."""
    higher_is_better: bool = True
    measured: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def ppo(env_id: str, num_envs: int, ours: int, theirs: int, **settings: Any) -> dict[str, Any]:
    """Describe a training job; the quicker side takes more steps, as rates are compared."""
    return {"kind": "ppo", "env_id": env_id, "num_envs": num_envs, "steps": (ours, theirs), **settings}


def both(settings: dict[str, Any], *peers: str, **own: Any) -> dict[str, dict[str, Any]]:
    """Give the same settings to our side and to some peers; `own` are ours alone."""
    ours, theirs = settings.pop("steps", (None, None))
    mine = {**settings, **own, **({"steps": ours} if ours else {})}
    return {"ours": mine, **{peer: {**settings, **({"steps": theirs} if theirs else {})} for peer in peers}}


def comparisons() -> list[Job]:
    """Return the jobs that are measured against a peer."""
    rate = "steps_per_second"
    pendulum = both(ppo("Pendulum-v1", 1, 61_440, 20_480), "sb3", "sbx")
    pendulum["reference path"] = {**pendulum["ours"], "steps": 40_960, "fast_path": False}
    return [
        Job("PPO, Pendulum-v1, 1 environment, default flags", rate, pendulum, "10x, reference path 2.5x", 15.0),
        Job("PPO, Pendulum-v1, 8 environments", rate, both(ppo("Pendulum-v1", 8, 65_536, 16_384), "sb3")),
        Job("PPO, CartPole-v1, 8 environments", rate, both(ppo("CartPole-v1", 8, 65_536, 16_384), "sb3"), "8x", 15.0),
        Job("PPO, HalfCheetah-v5, 1 environment", rate, both(ppo("HalfCheetah-v5", 1, 40_960, 12_288), "sb3"), "6x", 9.0),
        Job(
            "PPO, HalfCheetah-v5, 8 environments, ours with envpool",
            rate,
            both(ppo("HalfCheetah-v5", 8, 65_536, 16_384), "sb3", envpool=True),
            "5x",
            8.0,
        ),
        Job("PPO, HalfCheetah-v5, 8 environments", rate, both(ppo("HalfCheetah-v5", 8, 65_536, 16_384), "sb3")),
        Job("PPO, Hopper-v5, 8 environments", rate, both(ppo("Hopper-v5", 8, 65_536, 16_384), "sb3")),
        *(
            Job(
                f"cloning, {width}x{width}, batch 64, samples/s",
                "samples_per_second",
                {
                    "ours": {"kind": "cloning", "width": width, "samples": ours},
                    "imitation": {"kind": "cloning", "width": width, "samples": 60_000},
                    "reference path": {"kind": "cloning", "width": width, "samples": 60_000, "fast_path": False},
                },
                "10x",
                20.0,
            )
            for width, ours in ((32, 600_000), (256, 150_000))
        ),
        Job(
            "evaluation, Pendulum-v1, episodes/s",
            "evaluation_episodes_per_second",
            both({"kind": "play", "env_id": "Pendulum-v1", "episodes": 64}, "sb3"),
        ),
        Job(
            "collection, Pendulum-v1, episodes/s",
            "collection_episodes_per_second",
            both({"kind": "play", "env_id": "Pendulum-v1", "episodes": 64}, "imitation"),
        ),
        Job(
            "predict, one observation of Pendulum-v1, us",
            "microseconds",
            both({"kind": "predict", "env_id": "Pendulum-v1"}, "sb3"),
            "at most 25 us",
            10.0,
            higher_is_better=False,
        ),
        Job(
            "from process start to the first environment step, s",
            "seconds",
            both({"kind": "start", "env_id": "Pendulum-v1"}, "sb3"),
            "not later",
            higher_is_better=False,
        ),
    ]


def scaling() -> list[Job]:
    """Return the jobs that show how our rate changes with one number at a time."""
    sizes = [(f"width {width}", ppo("Pendulum-v1", 1, 20_480, 0, width=width)) for width in (32, 64, 128, 256)]
    sizes += [
        (f"environments {num_envs}", ppo("Pendulum-v1", num_envs, 40_960, 0, n_steps=2048 // num_envs))
        for num_envs in (1, 2, 4, 8, 16, 32, 64)
    ]
    sizes += [
        (f"minibatch {batch_size}", ppo("Pendulum-v1", 1, 40_960, 0, batch_size=batch_size))
        for batch_size in (64, 128, 256, 512, 1024, 2048)
    ]
    return [Job(name, "steps_per_second", both(settings)) for name, settings in sizes]


def set_up_peers() -> None:
    """Make the peers' virtual environments where they are missing."""
    for peer, requirements in REQUIREMENTS.items():
        python, done = PEERS / peer / "bin" / "python", PEERS / peer / "installed"
        if done.exists() and done.read_text() == str(requirements):
            continue
        print(f"setting up {peer}: {' '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS / peer], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(str(requirements))


def measure(side: str, settings: dict[str, Any]) -> dict[str, float]:
    """Run one process, and return what it printed with the time that the whole of it took."""
    script = "ours.py" if side not in REQUIREMENTS else f"peers/{SCRIPTS[side]}"
    python = sys.executable if side not in REQUIREMENTS else PEERS / side / "bin" / "python"
    environment = {**os.environ, "LIBRARY": LIBRARY.get(side, ""), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [python, Path(__file__).parent / script, json.dumps(settings), f"{folder}/agent.pt"]
        started = time.perf_counter()
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        wall = time.perf_counter() - started
    if finished.returncode != 0:
        raise RuntimeError(f"{side} failed at {settings}:\n{finished.stderr[-2000:]}")
    return {**json.loads(finished.stdout.splitlines()[-1]), "wall_seconds": wall}


def median(job: Job, side: str, figure: str | None = None) -> float:
    """Return a side's median of the job's figure, or of another one."""
    return float(np.median([result[figure or job.figure] for result in job.measured[side]]))


def ratio(job: Job, side: str, peer: str) -> tuple[float, float, float]:
    """Return median, lowest and highest of the ratios between neighbouring runs, so that above 1 is better."""
    pairs = zip(job.measured[side], job.measured[peer], strict=True)
    ratios = [ours[job.figure] / theirs[job.figure] for ours, theirs in pairs]
    ratios = ratios if job.higher_is_better else [1 / each for each in ratios]
    return float(np.median(ratios)), min(ratios), max(ratios)


def number(value: float) -> str:
    """Write a figure with three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


HELD_BACK = [
    "What holds each back: of a step of the small environments, the floor below is about half, and the rest is some seventy",
    "calls of NumPy for a minibatch and a dozen for a step; where the processor has no AVX-512, the hyperbolic tangent alone",
    "takes a fifth of an update. HalfCheetah-v5 is mostly the environment's own time. Cloning at 256x256 is all matrix",
    "products: the eight of a minibatch, alone in a loop, take as long as all of it. In `predict` the network is a quarter of",
    "the time, and the rest makes features of an observation, checks it and clips the action.",
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
    "- Weights stored transposed: one of the three products of a layer takes the slow form whichever way they lie.",
    "",
]


def short_lines(jobs: list[Job], sizes: list[Job]) -> list[str]:
    """Return the section on what was hoped for and not reached."""
    lines = ["## What falls short, and what holds it back", ""]
    for job in jobs:
        peer = next(side for side in job.measured if side not in ("ours", "reference path"))
        if job.hoped is not None:
            reached = ratio(job, "ours", peer)[0] if job.higher_is_better else median(job, "ours")
            unit = "times the peer's" if job.higher_is_better else "us"
            missed = reached < job.hoped if job.higher_is_better else reached > job.hoped
            verdict = f"hoped for {job.hoped:.0f}" if missed else f"the hoped-for {job.hoped:.0f} is reached"
            lines.append(f"- {job.name}: {number(reached)} {unit}; asked {job.asked}, {verdict}.")
    several = [job for job in sizes if job.name.startswith("environments")]
    for fewer, more in itertools.pairwise(several):
        if median(more, "ours") < median(fewer, "ours"):
            rates = f"{number(median(fewer, 'ours'))} and {number(median(more, 'ours'))} steps/s"
            lines.append(
                f"- From {fewer.name.split()[-1]} to {more.name.split()[-1]} environments a step gets dearer: {rates}."
            )
    return [*lines, "", *HELD_BACK]


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


def soak_lines(soaked: dict[str, Any]) -> list[str]:
    """Return the section on a long run."""
    lines = [
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
        f"Measured by `python -m benchmarks.run` on {machine['date']}: {machine['processor']}, {machine['cores']} cores, one",
        f"thread a process, Python {machine['python']}, torch {machine['torch']}, Gymnasium {machine['gymnasium']},",
        f"NumPy {machine['numpy']} with {machine['linear_algebra']}.",
        f"Medians of {machine['repetitions']} runs, all sides in turn; ratios of neighbours, with lowest and highest.",
        "Peers: Stable-Baselines3 2.9.2 (sb3), sbx 0.28.0, imitation 1.0.1 with its old pins.",
        "",
        "Same environment, hyperparameters and network on all sides, evaluation off. Ours standardises observations and",
        "rewards on top, and steps several slow environments (of MuJoCo, here) in worker processes, one for each core, as its",
        "defaults do; Stable-Baselines3's defaults step them in the process that learns. Rates are of training alone; `whole`",
        "is the rate over the process from start to end, with imports.",
        "",
        "| work | ours | peer | ratio [lowest, highest] | asked | whole: ours, peer | memory MiB: ours, peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        for peer in [side for side in job.measured if side not in ("ours", "reference path")]:
            lines.append(_row(job, "ours", peer, job.asked if peer != "sbx" else ""))
            if "reference path" in job.measured and peer != "sbx":
                lines.append(_row(job, "reference path", peer, ""))
    lines += ["", "![Steps per second](performance.svg)", "", "## How the rate changes", ""]
    lines += ["PPO on Pendulum-v1 with the default flags but for one, steps a second of training alone:", ""]
    for what in ("width", "environments", "minibatch"):
        mine = [job for job in sizes if job.name.startswith(what)]
        lines.append(f"| {what} | " + " | ".join(job.name.split()[-1] for job in mine) + " |")
        lines.append("|---" * (len(mine) + 1) + "|")
        lines.append("| steps/s | " + " | ".join(number(median(job, "ours")) for job in mine) + " |")
        ends = [sorted(result[job.figure] for result in job.measured["ours"]) for job in mine]
        lines.append("| lowest, highest | " + " | ".join(f"{number(each[0])}, {number(each[-1])}" for each in ends) + " |")
        lines.append("")
    lines += [
        "Environments share one rollout of 2,048 steps, so that each rollout brings the same number of updates. A larger",
        "minibatch means fewer updates for the same steps.",
        "",
        *further,
    ]
    return "\n".join(lines) + "\n"


def _row(job: Job, side: str, peer: str, asked: str) -> str:
    middle, low, high = ratio(job, side, peer)
    figures = f"{number(median(job, side))} | {peer} {number(median(job, peer))}"
    whole = ""
    if job.figure == "steps_per_second":
        rates = [job.sides[each]["steps"] / median(job, each, "wall_seconds") for each in (side, peer)]
        whole = ", ".join(number(rate) for rate in rates)
    memory = ", ".join(f"{median(job, each, 'peak_mib'):.0f}" for each in (side, peer))
    name = job.name if side == "ours" else f"{job.name}, reference path"
    return f"| {name} | {figures} | {middle:.1f}x [{low:.1f}, {high:.1f}] | {asked} | {whole} | {memory} |"


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
    axes.set_xlabel("environment steps per second of training, one thread")
    axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})


def machine_facts(repetitions: int) -> dict[str, Any]:
    """Say what the numbers were measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "gymnasium", "il_based_rl")}
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "linear_algebra": _linear_algebra(),
        "date": time.strftime("%Y-%m-%d"),
        "repetitions": repetitions,
        **versions,
    }


def _linear_algebra() -> str:
    """Say which library NumPy multiplies matrices with, and its kernels; OpenBLAS takes those of OPENBLAS_CORETYPE, if set."""
    found = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]
    return ", ".join(f"{each['internal_api']} ({each.get('architecture', 'unknown')} kernels)" for each in found)


def main() -> None:
    """Measure everything and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each side of each job")
    parser.add_argument("--scaling-repetitions", type=int, default=5, help="runs of each size")
    parser.add_argument("--page-only", action="store_true", help="write the document from the results of the last time")
    arguments = parser.parse_args()
    if not arguments.page_only:
        measure_all(arguments.repetitions, arguments.scaling_repetitions)
    write_page()


def measure_all(repetitions: int, scaling_repetitions: int) -> None:
    """Measure every job, all sides in turn, and write the results."""
    set_up_peers()
    jobs, sizes = comparisons(), scaling()
    for turns, several in ((repetitions, jobs), (scaling_repetitions, sizes)):
        for turn in range(turns):
            for job in several:
                for side, settings in job.sides.items():
                    job.measured.setdefault(side, []).append(measure(side, settings))
                print(
                    turn,
                    job.name,
                    {side: number(results[-1][job.figure]) for side, results in job.measured.items()},
                    flush=True,
                )
    broken_down = {
        env_id: [measure("ours", {"kind": "breakdown", "env_id": env_id, "steps": 20_480}) for _ in range(repetitions)]
        for env_id in ("Pendulum-v1", "CartPole-v1", "HalfCheetah-v5")
    }
    soaked = measure("ours", {"kind": "soak", "env_id": "Pendulum-v1", "steps": 2_000_000, "marks": 8})
    kept = {
        "machine": machine_facts(repetitions),
        "jobs": [{"name": job.name, "sides": job.sides, "measured": job.measured} for job in jobs + sizes],
        "breakdown": broken_down,
        "soak": soaked,
    }
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def write_page() -> None:
    """Write the document and its plot from the results on disk."""
    kept, jobs, sizes = json.loads(RESULTS.read_text(encoding="utf-8")), comparisons(), scaling()
    measured = {each["name"]: each["measured"] for each in kept["jobs"]}
    for job in jobs + sizes:
        job.measured.update(measured[job.name])
    further = [*breakdown_lines(kept["breakdown"]), "", *soak_lines(kept["soak"]), "", *short_lines(jobs, sizes), *LEFT_OUT]
    PAGE.write_text(page(jobs, sizes, kept["machine"], further), encoding="utf-8")
    plot(jobs)


if __name__ == "__main__":
    main()
