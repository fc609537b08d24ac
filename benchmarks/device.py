"""When a GPU pays: the same training with `--device cuda` and on this machine's CPU: `python -m benchmarks.device`.

Both in turn, several times, in one process. Writes `benchmarks/results/device.json`, which the page of `benchmarks.run` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ours import cloning, ppo

RESULTS = Path(__file__).parent / "results" / "device.json"
DEVICES = ("cuda", "cpu")

WHEN = [
    "So a GPU pays where minibatches have hundreds of rows, from 256 units on, and the more the wider the layers; with 256",
    "units and minibatches of 64, and with the default flags, it waits at every operation and does not. Acting stays on the",
    "CPU either way. `tests/test_cuda.py`, which ran there, holds that updates are the CPU's within rounding, that a seed",
    "gives the same numbers twice, and that checkpoints go on wherever they are read.",
]


def works() -> dict[str, tuple[Callable[..., dict[str, Any]], int, dict[str, Any]]]:
    """Return the kind of each work, its layers' width, and its settings."""
    return {
        "PPO, Pendulum-v1, default flags": (ppo, 64, {"env_id": "Pendulum-v1", "num_envs": 1, "steps": 8_192}),
        "PPO, Pendulum-v1, 16 environments, 256x256, minibatch 512": (
            ppo,
            256,
            {"env_id": "Pendulum-v1", "num_envs": 16, "steps": 16_384, "n_steps": 1024, "batch_size": 512},
        ),
        "PPO, Pendulum-v1, 16 environments, 1024x1024, minibatch 2048": (
            ppo,
            1024,
            {"env_id": "Pendulum-v1", "num_envs": 16, "steps": 16_384, "n_steps": 1024, "batch_size": 2048},
        ),
        "cloning, 256x256, batch 64": (cloning, 256, {"samples": 50_000}),
        "cloning, 256x256, batch 1024": (cloning, 256, {"samples": 50_000, "batch_size": 1024}),
        "cloning, 512x512, batch 256": (cloning, 512, {"samples": 20_000, "batch_size": 256}),
        "cloning, 1024x1024, batch 1024": (cloning, 1024, {"samples": 20_000, "batch_size": 1024}),
        "cloning, 2048x2048, batch 4096": (cloning, 2048, {"samples": 20_000, "batch_size": 4096}),
    }


def measure(work: Callable[..., dict[str, Any]], width: int, settings: dict[str, Any], device: str) -> float:
    """Return the rate of one run, with as many threads as the commands take."""
    from il_based_rl.experiment.hardware import fitting_threads

    with fitting_threads([width]):
        result = work(**settings, width=width, device=device)
    return next(rate for name, rate in result.items() if name.endswith("per_second"))


def facts() -> dict[str, Any]:
    """Say what was measured on."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "gpu": torch.cuda.get_device_name("cuda"),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def device_lines() -> list[str]:
    """Return the page's section on it."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    facts = kept["machine"]
    lines = [
        "## With a GPU",
        "",
        f"`python -m benchmarks.device`, on another machine than the rest: {facts['gpu']}, {facts['processor']} with",
        f"{facts['cores']} cores, torch {facts['torch']}, NumPy {facts['numpy']}. Steps or samples of training a second,",
        f"medians of {kept['repetitions']} runs, both in turn; ratios of neighbours, with lowest and highest. The CPU takes",
        "the fast path.",
        "",
        "| work | `--device cuda` | `--device cpu` | ratio [lowest, highest] |",
        "|---|---|---|---|",
    ]
    for name, rates in kept["rates"].items():
        cuda, cpu = (np.array(rates[device]) for device in DEVICES)
        ratios = cuda / cpu
        told = f"{np.median(ratios):.2f}x [{ratios.min():.2f}, {ratios.max():.2f}]"
        lines.append(f"| {name} | {np.median(cuda):,.0f} | {np.median(cpu):,.0f} | {told} |")
    return [*lines, "", *WHEN, ""]


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    rates: dict[str, dict[str, list[float]]] = {name: {device: [] for device in DEVICES} for name in works()}
    cloning(64, 10_000, device="cuda")  # the first work on a GPU waits for its libraries
    for name, work in works().items():
        for _ in range(repetitions):
            for device in DEVICES:
                rates[name][device].append(measure(*work, device))
        print(name, {device: f"{np.median(found):,.0f}" for device, found in rates[name].items()}, flush=True)
    kept = {"machine": facts(), "repetitions": repetitions, "rates": rates}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
