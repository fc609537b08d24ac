"""What every measuring process does alike, ours and the peers': run one job, print one JSON line.

Imported by scripts that run in other libraries' virtual environments, so it needs nothing but the standard library and NumPy.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

STARTED = time.perf_counter()


def report(job: Callable[..., dict[str, Any]]) -> None:
    """Run the job that the first argument describes, and print what it measured with the process's peak memory."""
    result = job(**json.loads(sys.argv[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "peak_mib": round(peak, 1), "process_seconds": time.perf_counter() - STARTED}), flush=True)


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
