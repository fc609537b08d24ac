"""Environments in worker processes, several in each where there are more environments than cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from threadpoolctl import threadpool_limits

from il_based_rl.envs.in_process import InProcessEnvs
from il_based_rl.envs.record import StepRecord
from il_based_rl.envs.single import Player, make_env
from il_based_rl.errors import ConfigError, EnvironmentFaultError, UserError
from il_based_rl.spaces import ObservationCodec

PAYING_SECONDS = 200e-6
"""A step that takes longer than this is worth a message to another process and back."""
ANSWER_SECONDS = 120.0
"""A worker that has not answered by then is taken for dead."""
_PROBE_STEPS = 32


def pays_to_share(env_id: str) -> bool:
    """Whether an environment's step takes long enough, on this machine, to be taken by a worker process."""
    if (os.cpu_count() or 1) < 2:
        return False
    player, taken = Player(make_env(env_id)), list[float]()
    player.env.action_space.seed(0)
    with contextlib.closing(player):
        player.reset(seed=0)
        for _ in range(_PROBE_STEPS):
            action, started = player.env.action_space.sample(), time.perf_counter()
            _, terminated, truncated = player.step(action)
            taken.append(time.perf_counter() - started)
            if terminated or truncated:
                player.reset()
    return float(np.median(taken)) > PAYING_SECONDS


class WorkerEnvs:
    """Environments stepped by worker processes, which are started once and compute with one thread each.

    Observations, rewards, flags and actions pass through shared memory. Each environment gets the seed that it would have
    in one process, so that the numbers are the same as there.

    Args:
        env_id: Gymnasium environment ID.
        num_envs: N.
        num_workers: Processes; None starts as many as there are cores, and no more than environments.

    Raises:
        ConfigError: The environment's registration cannot be sent to another process.
        EnvironmentFaultError: A worker failed, died or does not answer.
        See `make_env`.
    """

    def __init__(self, env_id: str, num_envs: int, num_workers: int | None = None) -> None:
        self.num_envs = num_envs
        twin = make_env(env_id)
        self.observation_space, self.action_space = twin.observation_space, twin.action_space
        codec, spec = ObservationCodec(twin.observation_space), twin.spec
        twin.close()
        assert spec is not None
        context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None)
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["il_based_rl.envs"])
        shapes = {
            "rows": ((num_envs, *codec.row_shape), codec.row_dtype),
            "final_rows": ((num_envs, *codec.row_shape), codec.row_dtype),
            "actions": ((num_envs, *(self.action_space.shape or ())), np.dtype(self.action_space.dtype)),
            "seeds": ((num_envs,), np.dtype(np.int64)),
            "rewards": ((num_envs,), np.dtype(np.float64)),
            "terminated": ((num_envs,), np.dtype(bool)),
            "truncated": ((num_envs,), np.dtype(bool)),
        }
        memory = {
            name: (context.RawArray("b", max(1, int(np.prod(shape)) * dtype.itemsize)), shape, dtype)
            for name, (shape, dtype) in shapes.items()
        }
        self._shared = _views(memory)
        self._valid = np.ones(num_envs, bool)
        count = min(num_workers or os.cpu_count() or 1, num_envs)
        self._slices = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(num_envs), count)]
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        try:
            for part in self._slices:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, spec, part.start, part.stop, memory), daemon=True)
                _start(process, env_id)
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._answers()
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments; give one for each")
        self._shared["seeds"][:] = seeds
        for pipe in self._pipes:
            self._send(pipe, _RESET)
        self._answers()
        return self._shared["rows"]

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        shared = self._shared
        shared["actions"][:] = actions
        for pipe in self._pipes:
            self._send(pipe, _STEP)
        self._answers()
        done = np.flatnonzero(shared["terminated"] | shared["truncated"])
        finals = {int(i): np.array(shared["final_rows"][i]) for i in done}
        return StepRecord(shared["rows"], shared["rewards"], shared["terminated"], shared["truncated"], finals, self._valid)

    def _send(self, pipe: Connection, message: bytes) -> None:
        try:
            pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self._death(self._pipes.index(pipe)) from error

    def _answers(self) -> None:
        """Wait for every worker; raise what one of them reports, or that it died."""
        reports = [self._answer(i) for i in range(len(self._pipes))]
        for report in reports:
            if report:
                raise EnvironmentFaultError(report.decode())

    def _answer(self, i: int) -> bytes:
        try:
            if self._pipes[i].poll(ANSWER_SECONDS):
                return self._pipes[i].recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death(i) from error
        part = self._slices[i]
        raise EnvironmentFaultError(
            f"the worker of environments {part.start} to {part.stop - 1} has not answered for {ANSWER_SECONDS:.0f} s"
        )

    def _death(self, i: int) -> EnvironmentFaultError:
        self._processes[i].join(1.0)
        part, code = self._slices[i], self._processes[i].exitcode
        return EnvironmentFaultError(
            f"the worker of environments {part.start} to {part.stop - 1} died with exit code {code}"
            + (" (killed, perhaps for want of memory)" if code == -signal.SIGKILL else "")
        )

    def close(self) -> None:
        """See `Envs`."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def __enter__(self) -> WorkerEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_RESET, _STEP = b"reset", b"step"


def _start(process: Any, env_id: str) -> None:
    try:
        process.start()
    except Exception as error:  # whatever a registration holds may fail in its own way on the way to another process
        raise ConfigError(
            f"environment {env_id} cannot be sent to a worker process ({error}); register it with its entry point as a text, "
            "or use --vectorization sync"
        ) from error


def _views(memory: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(block, dtype, int(np.prod(shape))).reshape(shape) for name, (block, shape, dtype) in memory.items()
    }


def _work(pipe: Connection, spec: EnvSpec, start: int, stop: int, memory: dict[str, Any]) -> None:
    """Step the environments from `start` to `stop`, until the other end hangs up; answer with nothing, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    for library in ("OMP", "OPENBLAS", "MKL"):  # for those that an environment imports; the others are limited below
        os.environ[f"{library}_NUM_THREADS"] = "1"
    envs: InProcessEnvs | None = None
    shared = {name: array[start:stop] for name, array in _views(memory).items()}
    with threadpool_limits(limits=1):
        try:
            envs = InProcessEnvs(spec, stop - start, first_index=start)
            pipe.send_bytes(b"")
            while True:
                message = pipe.recv_bytes()
                if message == _STEP:
                    record = envs.step(np.array(shared["actions"]))  # a copy, as an environment may keep what it is given
                    shared["rows"][:], shared["rewards"][:] = record.rows, record.rewards
                    shared["terminated"][:], shared["truncated"][:] = record.terminated, record.truncated
                    for i, row in record.final_rows.items():
                        shared["final_rows"][i] = row
                else:
                    shared["rows"][:] = envs.reset(shared["seeds"].tolist())
                pipe.send_bytes(b"")
        except (EOFError, OSError):
            pass  # the parent hung up
        except UserError as error:
            _report(pipe, str(error))
        except Exception as error:  # sent as a text, as an exception of another author's need not survive the way
            _report(pipe, f"environments {start} to {stop - 1}: {type(error).__name__}: {error}")
        finally:
            if envs is not None:
                envs.close()


def _report(pipe: Connection, fault: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        pipe.send_bytes(fault.encode())
