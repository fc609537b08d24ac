"""Does an interrupted run end where one straight through ends? `python -m benchmarks.reliability`.

Each cell of a matrix trains the same run twice by the real command: straight through, and interrupted again and again at
random moments by a signal, each time resumed by `--resume`, until it ends. Then all that the two have on disk is compared
bit for bit: every checkpoint, and every row of metrics. Where each signal struck is read from a traceback that the process
writes just before. Rows are kept in `benchmarks/results/reliability.json`, and cells that have one are left out, so that an
interrupted benchmark goes on where it was; `--again` measures them anew. The cost of saving is measured too, and with
`--soak` two million steps are watched from outside. `docs/reliability_measured.md` is written from the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run import machine_facts

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability_measured.md"

SIGNALS = ("SIGTERM", "SIGKILL")
MOST_INTERRUPTIONS = 15
SHARE = 0.4
"""An interruption strikes within this share of a whole run's time after the training has begun."""
PATIENCE = 120.0
SOAK_STEPS, SOAK_SECONDS = 2_000_000, 5.0
WARM_UP = 0.1
"""This share of the soak's samples is left out."""
COST_RUNS = 3

_COMMAND = """
import faulthandler, signal
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # once that is over
faulthandler.register(signal.SIGUSR1, all_threads=False)
from il_based_rl.__main__ import main
main()
"""
"""The command itself, but for a traceback on demand."""
_COSTED_COMMAND = """
import contextlib, time
from il_based_rl import train_ppo
from il_based_rl.experiment.run import Run
spent, depth = [0.0], [0]
@contextlib.contextmanager
def timed():
    started, depth[0] = time.perf_counter(), depth[0] + 1
    yield
    depth[0] -= 1
    if depth[0] == 0:
        spent[0] += time.perf_counter() - started
for name in ("keep", "save", "checkpoint"):
    def wrapped(*given, method=getattr(Run, name), **named):
        with timed():
            return method(*given, **named)
    setattr(Run, name, wrapped)
train_ppo.main()
print(spent[0])
"""
"""The command itself, but for a last line: the seconds that it spent on saving."""
_PLACES = {
    "saving": {"keep", "save", "checkpoint", "payload"},
    "evaluation": {"play_evaluation"},
    "rollout": {"fill"},
    "update": {"update", "_batch", "differentiate", "minibatches"},
    "beginning": {"restore", "reset", "from_payload", "read_checkpoint", "rewind"},
}
"""Where a signal struck, by the functions that were running; the first that fits."""


@dataclass(frozen=True)
class Cell:
    """One run that is interrupted again and again."""

    environment: str
    num_envs: int
    vectorization: str
    signal: str
    work: str = "PPO"
    exact: bool = True
    """Whether it is claimed to end where a run straight through ends."""

    @property
    def name(self) -> str:
        """What its row is found by."""
        return f"{self.work} {self.environment} {self.num_envs} {self.vectorization} {self.signal}"

    @property
    def flags(self) -> list[str]:
        """The command and its settings, small ones: 40 updates, 10 evaluations."""
        if self.work == "cloning":
            return ["train", "--seed", "0", "--demo-path", "demos.npz"]
        n_steps = 256 // self.num_envs
        return (
            f"train-ppo --env-id {self.environment} --num-envs {self.num_envs} --vectorization {self.vectorization} --seed 0 "
            f"--total-timesteps 10240 --n-steps {n_steps} --eval-interval 1000 --eval-episodes 3 --lr-schedule linear"
        ).split()


def groups() -> list[list[Cell]]:
    """Return the matrix; the cells of a group share their straight run."""
    exact = itertools.product(("Pendulum-v1", "CartPole-v1", "LunarLander-v3", "Hopper-v5"), (1, 4), ("sync", "async"))
    cells = [[Cell(*each, number) for number in SIGNALS] for each in exact]
    cells += [[Cell(env_id, 1, "sync", number, "cloning") for number in SIGNALS] for env_id in ("Pendulum-v1", "CartPole-v1")]
    return [*cells, [Cell("BipedalWalker-v3", 1, "sync", number, exact=False) for number in SIGNALS]]


@dataclass(frozen=True)
class Session:
    """One process of a run."""

    code: int
    struck: str | None
    """Where the signal struck; None if the process ended by itself before."""
    seconds_to_leave: float
    """From the signal to its end."""
    messages: list[str]
    """Its lines on standard error, without the traceback."""

    def said(self, pattern: str) -> str | None:
        """Return the first group of the first message that fits."""
        return next((found[1] for line in self.messages if (found := re.match(pattern, line))), None)


def session(arguments: Sequence[str], folder: Path, moment: float | None = None, number: str = "SIGTERM") -> Session:
    """Run a command in a folder, and interrupt it some seconds after training has begun."""
    errors, struck = folder / "errors.txt", None
    with open(errors, "wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments],
            cwd=folder,
            env=_one_thread(),
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(("Training PPO on", "Cloning")):
                break
        started = time.monotonic()
        try:
            process.communicate(timeout=PATIENCE if moment is None else moment)
        except subprocess.TimeoutExpired:
            started = time.monotonic()
            struck = _strike(process, errors, number if moment is not None else "SIGKILL")
            _wait(process)
    lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    traceback = ("  File ", "Current thread ", "Stack (", "  <")
    messages = [line for line in lines if line and not line.startswith(traceback)]
    return Session(process.returncode, struck, time.monotonic() - started, messages)


def _wait(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to end, and kill one that does not."""
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _strike(process: subprocess.Popen[str], errors: Path, number: str) -> str | None:
    """Let a process say where it is, and send it the signal; None if it has ended meanwhile."""
    before = errors.stat().st_size
    process.send_signal(signal.SIGUSR1)
    limit = time.monotonic() + 0.05  # one that is about to end says nothing
    while not (text := errors.read_bytes()[before:]).endswith(b"\n") and time.monotonic() < limit:
        time.sleep(0.0005)
    if process.poll() == 0:
        return None
    process.send_signal(signal.Signals[number])
    running = set(re.findall(r" in (\w+)", text.decode(errors="replace")))
    cloning = "train" in running and "learn" in running
    return next((place for place, names in _PLACES.items() if running & names), "update" if cloning else "start or end")


def measure(group: list[Cell]) -> Iterator[dict[str, Any]]:
    """Run one group of cells straight through, and each interrupted; yield their rows."""
    with tempfile.TemporaryDirectory() as place:
        straight = _folder(Path(place), "straight", group[0])
        whole = session([*group[0].flags, "--save-path", "a.pt"], straight)
        if whole.code != 0:
            raise RuntimeError(f"{group[0].name} fails without any interruption: {whole.messages}")
        seconds = json.loads((straight / "a" / "metrics.jsonl").read_text().splitlines()[-1])["wall_seconds"]
        for cell in group:
            yield _interrupted(cell, straight, _folder(Path(place), cell.signal, cell), seconds)


def _folder(place: Path, name: str, cell: Cell) -> Path:
    """Make a folder to run in, with demonstrations where they are needed."""
    folder = place / name
    folder.mkdir()
    if cell.work == "cloning":
        demos = place / "demos.npz"
        if not demos.exists():
            expert = f"train-ppo --env-id {cell.environment} --total-timesteps 2048 --eval-episodes 1 --seed 0 --save-path e.pt"
            session(expert.split(), place)
            collect = f"collect --env-id {cell.environment} --checkpoint e.pt --num-episodes 20 --save-path demos.npz"
            session(collect.split(), place)
        (folder / "demos.npz").write_bytes(demos.read_bytes())
    return folder


def _interrupted(cell: Cell, straight: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Train a run with interruptions until it ends; compare it."""
    random = np.random.default_rng(zlib.crc32(cell.name.encode()))
    interruptions: list[dict[str, Any]] = []
    resume, finished = False, False
    while True:
        undisturbed = finished or len(interruptions) == MOST_INTERRUPTIONS
        moment = None if undisturbed else float(random.uniform(0.0, SHARE * seconds))
        ran = session([*cell.flags, "--save-path", "a.pt", *(["--resume"] if resume else [])], folder, moment, cell.signal)
        if interruptions:
            step = ran.said(r"resuming .* at step (\d+): ") or ran.said(r"the run is finished: it has (?:had its )?(\d+)")
            at = "anew" if not resume else None if step is None else int(step)
            interruptions[-1] |= {"resumed_at": at, "said": ran.said(r"resuming .*: (.*)")}
        if ran.struck is None or moment is None:  # it is done, or did not end by itself
            break
        left = {"left_with": ran.code, "seconds_to_leave": round(ran.seconds_to_leave, 3)}
        interruptions.append({"seconds": round(moment, 3), "during": ran.struck, **left})
        finished = any("the run is finished" in line for line in ran.messages)
        resume = (folder / "a.pt").exists() or any((folder / "a").glob("step_*.pt"))  # else it had not begun
    differs = f"left with {ran.code}: {ran.messages[-1:]}" if ran.code != 0 else first_difference(straight, folder)
    return {
        **asdict(cell),
        "name": cell.name,
        "straight_seconds": round(seconds, 2),
        "interruptions": interruptions,
        "equal": differs is None,
        "differs": differs,
    }


def first_difference(straight: Path, other: Path, name: str = "a") -> str | None:
    """Compare two finished runs, `NAME.pt` and the folder beside it, in two folders.

    Everything must be equal bit for bit but wall-clock time, the list of resumes, and the settings that say where the files
    lie and what was resumed. Copies that were put aside (`.bak`) are left out.

    Returns:
        What differs first, rows of metrics before checkpoints, or None.
    """
    from il_based_rl.experiment.run import TIME_FIELDS
    from il_based_rl.files import read_checkpoint, read_rows

    one, two = (
        [{key: x for key, x in row.items() if key not in TIME_FIELDS} for row in read_rows(folder / name / "metrics.jsonl")]
        for folder in (straight, other)
    )
    if (found := _difference(one, two, "rows")) is not None:
        return found
    trees = [
        sorted(path.relative_to(folder).as_posix() for path in (folder / name).iterdir() if _counts(path))
        for folder in (straight, other)
    ]
    if trees[0] != trees[1]:
        return f"files {sorted({*trees[0]} ^ {*trees[1]})}"
    for file in [f"{name}.pt", *(each for each in trees[0] if each.endswith(".pt"))]:
        first, second = (_comparable(read_checkpoint(folder / file)) for folder in (straight, other))
        if (found := _difference(first, second, file)) is not None:
            return found
    return None


def _counts(path: Path) -> bool:
    return path.name != ".lock" and ".bak" not in path.name


def _comparable(payload: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a checkpoint what may differ."""
    run = {key: x for key, x in payload["run"].items() if key not in ("wall_seconds", "resumes")}
    settings = {key: x for key, x in run["settings"].items() if key not in ("resume", "save_path", "demo_path")}
    return {**payload, "run": {**run, "settings": settings}}


def _difference(one: Any, two: Any, where: str) -> str | None:
    """Say where two structures of plain values and tensors differ first; None where they do not."""
    if isinstance(one, dict) and isinstance(two, dict):
        if list(one) != list(two):
            return f"{where}: keys {sorted({*one} ^ {*two}) or 'in another order'}"
        return next((found for key in one if (found := _difference(one[key], two[key], f"{where}.{key}"))), None)
    if isinstance(one, (list, tuple)) and type(one) is type(two):
        pairs = enumerate(zip(one, two, strict=False))
        found = next((found for i, pair in pairs if (found := _difference(*pair, f"{where}[{i}]"))), None)
        return found or (f"{where}: {len(one)} against {len(two)}" if len(one) != len(two) else None)
    same = type(one) is type(two)
    if same and hasattr(one, "numpy"):
        same = (one.dtype, one.shape) == (two.dtype, two.shape) and one.numpy().tobytes() == two.numpy().tobytes()
        return None if same else where
    return None if same and repr(one) == repr(two) else f"{where}: {one!r} against {two!r}"


def cost_of_saving() -> dict[str, Any]:
    """Time the default command as a whole, and what it spends inside saving."""
    runs = []
    for _ in range(COST_RUNS):
        with tempfile.TemporaryDirectory() as place:
            started = time.perf_counter()
            command = [sys.executable, "-c", _COSTED_COMMAND, "--seed", "0"]
            done = subprocess.run(command, cwd=place, env=_one_thread(), capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - started
            saving = float(done.stdout.splitlines()[-1])
            runs.append({"seconds": round(seconds, 2), "saving_seconds": round(saving, 3), "share": saving / seconds})
    return {"command": "il-rl train-ppo --seed 0", "runs": runs, "share": float(np.median([run["share"] for run in runs]))}


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def soak() -> dict[str, Any]:
    """Watch a long run of the default command from outside."""
    flags = ["--env-id", "Pendulum-v1", "--total-timesteps", str(SOAK_STEPS), "--seed", "0"]
    samples, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "il_based_rl", "train-ppo", *flags]
        with subprocess.Popen(command, cwd=place, env=_one_thread(), stdout=subprocess.DEVNULL) as process:
            while True:
                try:
                    process.wait(timeout=SOAK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    samples.append({"seconds": round(time.monotonic() - started, 1), **_sample(process.pid)})
        if process.returncode != 0:
            raise RuntimeError(f"the long run left with {process.returncode}")
    return {"command": f"il-rl train-ppo {' '.join(flags)}", "samples": samples, **judged(samples)}


def _sample(pid: int) -> dict[str, Any]:
    """Return a process's resident memory, open files and children, as Linux knows them."""
    place = Path("/proc") / str(pid)
    resident = re.search(r"VmRSS:\s+(\d+) kB", (place / "status").read_text())
    assert resident is not None
    children = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            children += f"\nPPid:\t{pid}\n" in status.read_text()
        except OSError:  # it has ended meanwhile
            continue
    files = len(list((place / "fd").iterdir()))
    return {"resident_mib": round(int(resident[1]) / 1024, 1), "open_files": files, "children": children}


def judged(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare the last third of the samples with the first, after a warm-up."""
    warm = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    first, last = warm[:third], warm[-third:]
    means = [float(np.mean([each["resident_mib"] for each in part])) for part in (first, last)]
    counts = [[max(each[name] for each in part) for name in ("open_files", "children")] for part in (first, last)]
    flat = means[1] <= means[0] * 1.02 and all(after <= before for before, after in zip(*counts, strict=True))
    return {"first_third": [round(means[0], 1), *counts[0]], "last_third": [round(means[1], 1), *counts[1]], "flat": flat}


def page(results: dict[str, Any]) -> str:
    """Write the document from the results."""
    machine, rows = results["machine"], results["cells"]
    claimed = [row for row in rows if row["exact"]]
    struck = Counter(each["during"] for row in claimed for each in row["interruptions"])
    ended = [each for row in claimed if row["signal"] == "SIGTERM" for each in row["interruptions"]]
    codes = Counter(each["left_with"] for each in ended)
    exits = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    lines = [
        "# How reliable it was",
        "",
        f"Measured by `python -m benchmarks.reliability` on {machine['date']}: {machine['processor']}, {machine['cores']}",
        f"cores, Python {machine['python']}, torch {machine['torch']}, NumPy {machine['numpy']}, Gymnasium",
        f"{machine['gymnasium']}.",
        "",
        "## Interrupted and resumed, against straight through",
        "",
        "Each run was interrupted at random moments, by SIGTERM or by kill -9, and resumed each time. Equal means: every",
        "checkpoint (parameters, optimiser, statistics, random streams, environments) and every row of metrics, bit for bit,",
        "but for wall-clock time. `resumed at` gives the steps (epochs) at which the run went on: `anew` where nothing was",
        "saved yet, `-` where the next signal struck before that was said.",
        "",
        f"{sum(row['equal'] for row in claimed)} of {len(claimed)} runs equal, over "
        f"{sum(len(row['interruptions']) for row in claimed)} interruptions.",
        f"Signals struck during: {', '.join(f'{place} ({count})' for place, count in struck.most_common())}.",
        f"Exit codes after SIGTERM: {exits}; 143 is ours, -15 the system's, once a command is done. From SIGTERM to the end it",
        f"took {max((each['seconds_to_leave'] for each in ended), default=0.0):.1f} s at most.",
        "",
        "| work | environment | environments | signal | interruptions | resumed at | said | equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        at = ", ".join("-" if (step := each["resumed_at"]) is None else str(step) for each in row["interruptions"])
        said = ", ".join(dict.fromkeys(_level(each["said"]) for each in row["interruptions"] if each["said"]))
        equal = "yes" if row["equal"] else f"no: {row['differs']}"
        equal += "" if row["exact"] else " (not claimed)"
        vectorization = f"{row['num_envs']} {row['vectorization']}" if row["work"] == "PPO" else ""
        cells = [row["work"], row["environment"], vectorization, row["signal"], len(row["interruptions"]), at, said, equal]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    if "saving" in results:
        saving = results["saving"]
        spent = sorted(run["saving_seconds"] for run in saving["runs"])
        lines += ["", "## What saving costs", "", f"`{saving['command']}`, {len(spent)} runs, the whole process with imports:"]
        lines.append(
            f"{saving['share']:.1%} of the time goes into saving (median; {spent[0]} to {spent[-1]} s). Asked: below 3 %."
        )
    if "soak" in results:
        soaked = results["soak"]
        lines += ["", "## Over two million steps", "", f"`{soaked['command']}`, looked at every {SOAK_SECONDS:.0f} s:", ""]
        lines += ["| | resident MiB, mean | open files, most | child processes, most |", "|---|---|---|---|"]
        lines += [f"| {name} third | {' | '.join(map(str, soaked[f'{name}_third']))} |" for name in ("first", "last")]
        lines += ["", f"{'Flat' if soaked['flat'] else 'Not flat'} over {len(soaked['samples'])} samples, after a warm-up."]
    return "\n".join(lines) + "\n"


def _level(said: str) -> str:
    """Return the short name of what a resumed run says."""
    return "exact" if said.startswith("exactly") else "episode" if said.startswith("with new episodes") else "weights"


def main() -> None:
    """Measure what is missing, two runs side by side, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure cells anew that have a row")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--soak", action="store_true", help="watch two million steps instead, for some minutes")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "cells": []}
    order = [cell.name for group in groups() for cell in group]
    if arguments.again and not arguments.soak:
        results["cells"] = [row for row in results["cells"] if arguments.only not in row["name"]]

    writing = threading.Lock()

    def write() -> None:
        results["machine"] = machine_facts(COST_RUNS)
        results["cells"].sort(key=lambda row: order.index(row["name"]))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results), encoding="utf-8")

    def run(group: list[Cell]) -> None:
        for row in measure(group):
            with writing:
                results["cells"].append(row)
                print(f"{row['name']}: {len(row['interruptions'])} interruptions, {row['differs'] or 'equal'}", flush=True)
                write()

    if arguments.soak:
        results["soak"] = soak()
    else:
        there = {row["name"] for row in results["cells"]}
        missing = [[cell for cell in group if cell.name not in there and arguments.only in cell.name] for group in groups()]
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(run, [group for group in missing if group]))
        if not arguments.only and ("saving" not in results or arguments.again):
            results["saving"] = cost_of_saving()
    write()


if __name__ == "__main__":
    main()
