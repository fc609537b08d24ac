"""How fast we are, and the peers on the same work: `python -m benchmarks.run`.

Sets up Stable-Baselines3, sbx and imitation in virtual environments of their own under `.benchmarks/`, and measures every
job in a process of its own, all sides in turn and all turns several times (A B C, A B C, …), so that a drift of the machine
meets all alike. Updates and acting run on one thread of the CPU, with the same environment, hyperparameters and network;
evaluation is off on both sides. Ours standardises observations and rewards on top, and steps slow environments in worker
processes, as its defaults do. Matrix products take the kernels that libraries choose by themselves, whatever the shell asks
for. Last, both sides train policies to their end, to see how good they are; what a peer of the same packages gave for a seed
before is kept, as it would give the same again.

Writes `benchmarks/results/performance.json`, `docs/performance.md` and `docs/performance.svg`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.jobs import REQUIREMENTS, Job, comparisons, scaling, trainings
from benchmarks.performance_page import number, write_page

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".benchmarks"
RESULTS = Path(__file__).parent / "results" / "performance.json"

SCRIPTS = {"sb3": "sb3.py", "sbx": "sb3.py", "imitation": "imitation.py"}
LIBRARY = {"sb3": "stable_baselines3", "sbx": "sbx"}
KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
"""Variables that name other kernels of matrix products than the libraries would choose."""


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


def installed(peer: str) -> list[str]:
    """Return the packages that a peer was measured with."""
    command = [PEERS / peer / "bin" / "python", "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def measure(side: str, settings: dict[str, Any]) -> dict[str, float]:
    """Run one process, and return what it printed with the time that the whole of it took."""
    script = "ours.py" if side not in REQUIREMENTS else f"peers/{SCRIPTS[side]}"
    python = sys.executable if side not in REQUIREMENTS else PEERS / side / "bin" / "python"
    environment = {**_own_choice_of_kernels(), "LIBRARY": LIBRARY.get(side, ""), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [python, Path(__file__).parent / script, json.dumps(settings), f"{folder}/agent.pt"]
        started = time.perf_counter()
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        wall = time.perf_counter() - started
    if finished.returncode != 0:
        raise RuntimeError(f"{side} failed at {settings}:\n{finished.stderr[-2000:]}")
    return {**json.loads(finished.stdout.splitlines()[-1]), "wall_seconds": wall}


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


def _own_choice_of_kernels() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in KERNELS}


def _linear_algebra() -> str:
    """Say which library NumPy multiplies matrices with, and its kernels, as the measured processes have them."""
    command = [sys.executable, "-m", "threadpoolctl", "-i", "numpy"]
    output = subprocess.run(command, env=_own_choice_of_kernels(), capture_output=True, text=True, check=True).stdout
    found = [each for each in json.loads(output) if each["user_api"] == "blas"]
    return ", ".join(sorted({f"{each['internal_api']} ({each.get('architecture', 'unknown')} kernels)" for each in found}))


def main() -> None:
    """Measure everything and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each side of each job")
    parser.add_argument("--scaling-repetitions", type=int, default=5, help="runs of each size")
    parser.add_argument("--only", help="measure the jobs anew whose name holds this, and keep the rest")
    parser.add_argument("--returns-only", action="store_true", help="keep what was timed the last time")
    parser.add_argument("--page-only", action="store_true", help="write the document from the results of the last time")
    arguments = parser.parse_args()
    if not arguments.page_only:
        set_up_peers()
        if arguments.only:
            measure_again(arguments.only, arguments.repetitions)
        elif not arguments.returns_only:
            measure_speed(arguments.repetitions, arguments.scaling_repetitions)
        if not arguments.only:
            measure_returns()
    write_page(RESULTS)


def measure_speed(repetitions: int, scaling_repetitions: int) -> None:
    """Measure every job, all sides in turn, and write the results."""
    before = _read_results()
    jobs, sizes = comparisons(), scaling()
    measure_in_turn(jobs, repetitions)
    measure_in_turn(sizes, scaling_repetitions)
    broken_down = {
        env_id: [measure("ours", {"kind": "breakdown", "env_id": env_id, "steps": 20_480}) for _ in range(repetitions)]
        for env_id in ("Pendulum-v1", "CartPole-v1", "HalfCheetah-v5")
    }
    soaked = measure("ours", {"kind": "soak", "env_id": "Pendulum-v1", "steps": 2_000_000, "marks": 8})
    commands = [measure("ours", {"kind": "command"}) for _ in range(repetitions)]
    packages = {peer: installed(peer) for peer in REQUIREMENTS}
    kept = {
        "machine": machine_facts(repetitions),
        "jobs": [{"name": job.name, "sides": job.sides, "measured": job.measured} for job in jobs + sizes],
        "breakdown": broken_down,
        "soak": soaked,
        "commands": commands,
        "trained": [row for row in before.get("trained", []) if before["peers"].get(row[0]) == packages.get(row[0], [])],
        "peers": packages,
    }
    _write_results(kept)


def measure_in_turn(jobs: list[Job], turns: int) -> None:
    """Measure jobs, all sides in turn, and all of it several times."""
    for turn in range(turns):
        for job in jobs:
            for side, settings in job.sides.items():
                job.measured.setdefault(side, []).append(measure(side, settings))
            last = {side: number(results[-1][job.figure]) for side, results in job.measured.items()}
            print(turn, job.name, last, flush=True)


def measure_again(text: str, repetitions: int) -> None:
    """Measure the jobs whose name holds a text, and put them in the place of what the results have of them, if anything."""
    kept = _read_results()
    jobs = [job for job in comparisons() + scaling() if text in job.name]
    measure_in_turn(jobs, repetitions)
    again = {job.name: {"name": job.name, "sides": job.sides, "measured": job.measured} for job in jobs}
    kept["jobs"] = list(({each["name"]: each for each in kept["jobs"]} | again).values())
    _write_results(kept)


def measure_returns() -> None:
    """Train both sides to the end where the results do not have it yet, and write each into them; nothing is timed any more."""
    kept = _read_results()
    known = [row[:2] for row in kept["trained"]]
    missing = [each for each in trainings() if list(each) not in known]
    with ThreadPoolExecutor(2) as pool:
        for each, found in zip(missing, pool.map(lambda each: measure(*each)["mean_return"], missing), strict=True):
            kept["trained"].append([*each, found])
            _write_results(kept)


def _read_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _write_results(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
