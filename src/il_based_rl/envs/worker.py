"""What runs in a worker process: the environments of one part, stepped as its parent says."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from threadpoolctl import threadpool_limits

from il_based_rl.envs.in_process import InProcessEnvs, Watch
from il_based_rl.envs.record import StepRecord
from il_based_rl.errors import UserError

RESET, STEP, STATES, RESTORE, CLOSE = range(5)
"""Commands."""
LOOK_SECONDS = 0.1
"""How often somebody who waits looks whether the other side is still alive."""
_SPIN_SECONDS = 200e-6
"""For so long a worker looks for its next step without going to sleep, from which it takes long to wake."""

Memory = dict[str, tuple[Any, tuple[int, ...], np.dtype[Any]]]
"""Blocks of shared memory by name, each with the shape and number type of the array that lies in it."""


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def views(memory: Memory) -> dict[str, np.ndarray]:
    """Return the arrays that lie in shared memory."""
    return {
        name: np.frombuffer(block, dtype, int(np.prod(shape))).reshape(shape) for name, (block, shape, dtype) in memory.items()
    }


def work(w: int, pipe: Connection, go: Any, done: Any, spec: EnvSpec, part: slice, memory: Memory, strict_bounds: bool) -> None:
    """Step the environments of one part, until told to close or the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    for library in ("OMP", "OPENBLAS", "MKL"):  # for those that an environment imports; the others are limited below
        os.environ[f"{library}_NUM_THREADS"] = "1"
    shared = views(memory)
    names = ("rows", "rewards", "terminated", "truncated", "final_rows", "seeds", "actions")
    rows, rewards, terminated, truncated, final_rows, seeds, actions = (shared[name][part] for name in names)
    envs: InProcessEnvs | None = None
    with threadpool_limits(limits=1):
        try:
            envs = InProcessEnvs(spec, part.stop - part.start, first_index=part.start, strict_bounds=strict_bounds)
            envs.record = StepRecord(rows, rewards, terminated, truncated, {}, envs.record.valid)
            envs.watch = Watch(*(shared[name][w : w + 1] for name in ("index", "episode", "step")))
            done.release()
            while _awaited(go) and (command := shared["commands"][w]) != CLOSE:
                if command == STEP:
                    # A copy of the actions, as an environment may keep what it is given.
                    for i, row in envs.step(np.array(actions)).final_rows.items():
                        final_rows[i] = row
                elif command == RESET:
                    envs.reset(seeds.tolist())
                elif command == STATES:
                    pipe.send(envs.states())
                else:
                    pipe.send(envs.restore(pipe.recv())[1])
                done.release()
        except Exception as error:  # sent as a text, as an exception of another author's need not survive the way
            known = f"environments {part.start} to {part.stop - 1}: {type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # nobody may be there to read it
                pipe.send(str(error) if isinstance(error, UserError) else known)
            shared["failed"][w] = 1
            done.release()
        except KeyboardInterrupt:  # the environment's own; the parent says where
            raise SystemExit(1) from None
        finally:
            if envs is not None:
                envs.close()


def _awaited(go: Any) -> bool:
    """Wait for the next command; False if there is nobody left to give one."""
    parent, end = multiprocessing.parent_process(), time.perf_counter() + _SPIN_SECONDS
    while not go.acquire(False):
        if time.perf_counter() > end:
            while not go.acquire(timeout=LOOK_SECONDS):
                if parent is None or not parent.is_alive():
                    return False
            break
    return True
