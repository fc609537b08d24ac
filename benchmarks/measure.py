"""What every measuring process does alike, ours and the peers': run one job, print one JSON line.

Imported by scripts that run in other libraries' virtual environments, so it needs nothing but the standard library, and
Gymnasium for `mean_return`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def report(job: Callable[..., dict[str, Any]]) -> None:
    """Run the job that the first argument describes, and print what it measured with the process's peak memory."""
    result = job(**json.loads(sys.argv[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + result.pop("children_mib", 0.0)
    print(json.dumps({**result, "peak_mib": round(peak, 1), "process_seconds": time.perf_counter() - STARTED}), flush=True)


def children_mib() -> float:
    """Return the memory that the processes below this one hold now, what they share counted once among them."""
    found, below = 0.0, [os.getpid()]
    while below:
        parent = below.pop()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        below += map(int, children)
        for child in children:
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return found


def mean_return(env_id: str, predict: Callable[[Any], Any], episodes: int = 100) -> float:
    """Play from the same start states on every side, and return the mean return."""
    import gymnasium as gym

    env, total = gym.make(env_id), 0.0
    for k in range(episodes):
        obs, _ = env.reset(seed=10_000 + k)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(predict(obs))
            total, ended = total + float(reward), terminated or truncated
    return total / episodes


def seconds(function: Callable[[], Any]) -> float:
    """Time one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def microseconds_a_call(function: Callable[[], Any], calls: int = 3000) -> float:
    """Time many calls after a warm-up, in five runs; return the median a call."""
    for _ in range(calls // 10):
        function()
    runs = sorted(seconds(lambda: [function() for _ in range(calls)]) for _ in range(5))
    return runs[2] / calls * 1e6
