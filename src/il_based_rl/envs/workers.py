"""Environments in worker processes, several in each where there are more environments than cores."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from il_based_rl.envs.record import EnvState, StepRecord
from il_based_rl.envs.single import Player, make_env, place, registration
from il_based_rl.envs.worker import CLOSE, LOOK_SECONDS, RESET, RESTORE, STATES, STEP, usable_cores, views, work
from il_based_rl.errors import ConfigError, EnvironmentFaultError
from il_based_rl.signals import signals_held

SHARING_SECONDS = 130e-6
"""What a step of all environments has to save to be worth waking this process up again."""
STARTING_SECONDS, ANSWER_SECONDS = 120.0, 20.0
"""A worker that has not answered by then, made its environments or taken a step, is taken for dead."""
_PROBE_STEPS = 32


def pays_to_share(env_id: str, num_envs: int) -> bool:
    """Whether environments can be stepped by worker processes, and take long enough to step, on this machine, for that."""
    spared = num_envs - math.ceil(num_envs / usable_cores())  # steps one after the other
    if spared == 0 or multiprocessing.current_process().daemon:  # a daemon, such as a pool's process, may have no children
        return False
    player, taken = Player(make_env(env_id)), list[float]()
    player.env.action_space.seed(0)
    with contextlib.closing(player):
        if not can_be_sent(registration(player.env)):
            return False
        player.reset(seed=0)
        for _ in range(_PROBE_STEPS):
            action, started = player.env.action_space.sample(), time.perf_counter()
            _, terminated, truncated = player.step(action)
            taken.append(time.perf_counter() - started)
            if terminated or truncated:
                player.reset()
    return spared * float(np.median(taken)) > SHARING_SECONDS


def can_be_sent(spec: EnvSpec) -> bool:
    """Whether another process can make an environment of this registration: not of a class from a notebook, nor of a lambda."""
    try:
        sent = bytes(ForkingPickler.dumps(spec))
    except Exception:  # whatever a registration holds may fail in its own way
        return False
    return b"__main__" not in sent or hasattr(sys.modules["__main__"], "__file__")


class WorkerEnvs:
    """Environments stepped by worker processes, which are started once and compute with one thread each.

    Observations, rewards, flags and actions pass through shared memory, and semaphores say when to read it. Each environment
    gets the seed that it would have in one process, so that the numbers are the same as there.

    Args:
        env_id: Gymnasium environment ID.
        num_envs: N.
        num_workers: Processes; None starts as many as there are cores to use, and no more than environments.
        timeout: Seconds that a worker may take for one step of its environments before it is taken for dead; None allows 20.
        strict_bounds: See `Player`.

    Raises:
        ConfigError: The environment's registration cannot be sent to another process.
        EnvironmentFaultError: A worker failed, died or does not answer.
        See `make_env`.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        num_workers: int | None = None,
        timeout: float | None = None,
        *,
        strict_bounds: bool = False,
    ) -> None:
        self.num_envs, self._timeout = num_envs, timeout
        with contextlib.closing(Player(make_env(env_id))) as twin:
            self.observation_space, self.action_space = twin.env.observation_space, twin.env.action_space
            codec, spec = twin.codec, registration(twin.env)
        context = _context()
        shapes = {
            "rows": ((num_envs, *codec.row_shape), codec.row_dtype),
            "final_rows": ((num_envs, *codec.row_shape), codec.row_dtype),
            "actions": ((num_envs, *(self.action_space.shape or ())), np.dtype(self.action_space.dtype)),
            "seeds": ((num_envs,), np.dtype(np.int64)),
            "rewards": ((num_envs,), np.dtype(np.float64)),
            "terminated": ((num_envs,), np.dtype(bool)),
            "truncated": ((num_envs,), np.dtype(bool)),
        }
        count = min(num_workers or usable_cores(), num_envs)
        for name in ("commands", "failed", "index", "episode", "step"):
            shapes[name] = ((count,), np.dtype(np.int64))
        memory = {
            name: (context.RawArray("b", max(1, int(np.prod(shape)) * dtype.itemsize)), shape, dtype)
            for name, (shape, dtype) in shapes.items()
        }
        self._shared = views(memory)
        self._valid = np.ones(num_envs, bool)
        self._slices = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(num_envs), count)]
        self._workers: list[_Worker] = []
        self._replayed: Sequence[EnvState] = ()
        """What the environments are being brought back to."""
        try:
            for w, part in enumerate(self._slices):
                pipe, theirs = context.Pipe()
                go, done = context.Semaphore(0), context.Semaphore(0)
                known = (w, theirs, go, done, spec, part, memory, strict_bounds)
                process = context.Process(target=work, args=known, daemon=True)
                self._workers.append(_Worker(process, pipe, go, done))
                _start(process, env_id)
                theirs.close()
            self._answers(STARTING_SECONDS)
        except BaseException as error:
            self.close()
            if isinstance(error, EnvironmentFaultError):
                error.exit_code = 2  # nothing has begun yet
            raise

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments; give one for each")
        self._shared["seeds"][:] = seeds
        self._order(RESET)
        self._answers(max(self._timeout or 0.0, STARTING_SECONDS))  # as what is loaded or compiled is so in a first reset
        return self._shared["rows"]

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        shared = self._shared
        shared["actions"][:] = actions
        self._order(STEP)
        self._answers()
        done = np.flatnonzero(shared["terminated"] | shared["truncated"])
        finals = {int(i): np.array(shared["final_rows"][i]) for i in done}
        return StepRecord(shared["rows"], shared["rewards"], shared["terminated"], shared["truncated"], finals, self._valid)

    def states(self) -> list[EnvState | None]:
        """See `Envs`; of environments that are closed nothing is known any more."""
        if not self._workers:
            return [None] * self.num_envs
        self._order(STATES)
        states = [state for w in range(len(self._workers)) for state in self._received(w)]
        self._answers()
        return states

    def restore(self, states: Sequence[EnvState]) -> tuple[np.ndarray, list[str]]:
        """See `Envs`."""
        self._shared["seeds"][:] = [state.seed for state in states]
        self._shared["episode"][:] = 0  # until a worker says where it is
        self._replayed = states
        self._order(RESTORE)
        for worker, part in zip(self._workers, self._slices, strict=True):
            with contextlib.suppress(OSError):  # one that died is noticed below
                worker.pipe.send(list(states[part]))
        levels = [level for w in range(len(self._workers)) for level in self._received(w)]
        self._answers()
        self._replayed = ()
        return self._shared["rows"], levels

    def _received(self, w: int) -> list[Any]:
        """Read what a worker sends before it is done; raise what it reports instead."""
        worker, moved, seen = self._workers[w], time.monotonic(), (-1, -1)
        while not worker.pipe.poll(LOOK_SECONDS) and worker.process.is_alive():
            if (now := (int(self._shared["index"][w]), int(self._shared["step"][w]))) != seen:  # it plays an episode again
                moved, seen = time.monotonic(), now
            if time.monotonic() > moved + STARTING_SECONDS:
                raise self._fault(w, f"has not come further for {STARTING_SECONDS:g} s")
        try:
            answer = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            answer = None
        if isinstance(answer, list):
            return answer
        raise EnvironmentFaultError(answer) if answer is not None else self._fault(w, _exit_of(worker.process))

    def _order(self, command: int) -> None:
        if not self._workers and command != CLOSE:
            raise EnvironmentFaultError("these environments are closed; make others, or learn inside their `with` block")
        self._shared["commands"][:] = command
        for worker in self._workers:
            worker.go.release()

    def _answers(self, patience: float | None = None) -> None:
        """Wait for every worker, for a step where nothing is said; raise what one of them reports, or that it died."""
        patience = patience or self._timeout or ANSWER_SECONDS
        limit = time.monotonic() + patience
        for w, worker in enumerate(self._workers):
            while not worker.done.acquire(timeout=LOOK_SECONDS):
                if not worker.process.is_alive():
                    if worker.done.acquire(block=False):  # its last word
                        break
                    raise self._fault(w, _exit_of(worker.process))
                if time.monotonic() > limit:
                    raise self._fault(w, f"has not answered for {patience:g} s (--env-timeout allows more)")
        for w, failed in enumerate(self._shared["failed"]):
            if failed:
                raise EnvironmentFaultError(self._workers[w].pipe.recv())

    def _fault(self, w: int, what: str) -> EnvironmentFaultError:
        """Say what became of a worker, and in which environment."""
        shared, part = self._shared, self._slices[w]
        if shared["episode"][w] == 0:
            hint = "; a script begins workers under `if __name__ == '__main__':`, or takes vectorization='sync'"
            began = f"the worker of environments {part.start} to {part.stop - 1} {what}"
            return EnvironmentFaultError(began + hint * (self._workers[w].process.exitcode == 1))
        i, step = int(shared["index"][w]), int(shared["step"][w])
        played = self._replayed[i].actions if self._replayed else None
        action = shared["actions"][i] if played is None or step == 0 else played[step - 1]
        where = place(i, int(shared["seeds"][i]), int(shared["episode"][w]), step, action)
        return EnvironmentFaultError(f"{where}: its worker process {what}")

    def close(self) -> None:
        """See `Envs`."""
        self._order(CLOSE)
        limit = time.monotonic() + _CLOSING_SECONDS
        for worker in self._workers:
            if worker.process.pid is None:  # it was interrupted before it was started
                continue
            worker.process.join(max(0.0, limit - time.monotonic()))
            if worker.process.is_alive():  # one that is inside a step does not hear
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers = []

    def __enter__(self) -> WorkerEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_CLOSING_SECONDS = 0.5
"""For so long workers may take leave; what they would still do is of no use to anybody."""


@dataclass(frozen=True)
class _Worker:
    process: Any
    pipe: Connection
    """For what is said seldom: states, and what went wrong, in words."""
    go: Any
    """Semaphore: there is a command."""
    done: Any
    """Semaphore: it is carried out."""


def _exit_of(process: Any) -> str:
    process.join(1.0)
    hint = " (killed, perhaps for want of memory)" if process.exitcode == -signal.SIGKILL else ""
    return f"died with exit code {process.exitcode}{hint}"


def _context() -> Any:
    """Return the way to start processes: from a server that has imported this package once, where the system knows that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["il_based_rl.envs"])
    # The server inherits that Ctrl-C is held back, which a terminal sends to it as well: while it imports, it would print a
    # traceback. The tracker is started first, as its start lets signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start(process: Any, env_id: str) -> None:
    try:
        with signals_held():  # a process that is half started would be unknown to us
            process.start()
    except Exception as error:  # whatever a registration holds may fail in its own way on the way to another process
        raise ConfigError(
            f"environment {env_id} cannot be sent to a worker process ({error}); register it with its entry point as a text, "
            "or use --vectorization sync"
        ) from error
