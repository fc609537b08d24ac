"""envpool's environments: the same tasks in C++, stepped by its threads."""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from il_based_rl.envs.record import EnvState, StepRecord
from il_based_rl.envs.single import make_env
from il_based_rl.envs.vector_env import VectorEnvs
from il_based_rl.envs.worker import usable_cores
from il_based_rl.errors import EnvironmentFaultError, MissingExtraError, UnknownEnvironmentError


class EnvPoolEnvs:
    """Environments of envpool under the spaces of Gymnasium's environment of the same id.

    Its random numbers are not Gymnasium's, so that a seed does not give the same episodes as there.

    Args:
        env_id: An id that both know.
        num_envs: N.
        strict_bounds: Whether an observation outside the bounds of Gymnasium's space is an error.

    Raises:
        MissingExtraError: The package envpool is not installed.
        UnknownEnvironmentError: envpool has no such environment; the nearest ones are named.
        See `make_env`.
    """

    def __init__(self, env_id: str, num_envs: int, *, strict_bounds: bool = False) -> None:
        try:
            self._envpool: Any = importlib.import_module("envpool")
        except ImportError as error:
            raise MissingExtraError(
                'the backend envpool needs the package envpool: pip install "il_based_rl[envpool]"'
            ) from error
        known = self._envpool.list_all_envs()
        if env_id not in known:
            nearest = ", ".join(difflib.get_close_matches(env_id, known, n=3)) or "none near"
            raise UnknownEnvironmentError(f"envpool has no environment {env_id!r} (nearest: {nearest}); use gymnasium's")
        twin = make_env(env_id)
        self.observation_space, self.action_space = twin.observation_space, twin.action_space
        twin.close()
        self._env_id, self.num_envs, self._strict_bounds = env_id, num_envs, strict_bounds
        self._envs: VectorEnvs | None = None

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `Envs`; envpool takes seeds only when it makes environments, so they are made here.

        Raises:
            EnvironmentFaultError: They cannot be made, or as in `VectorEnvs.reset`.
        """
        self.close()
        cores = usable_cores()
        threads = min(self.num_envs, cores)
        # One thread on each core where they are as many: left to itself, the system may leave two of them on one for seconds.
        pinned = {"thread_affinity_offset": 0} if threads == cores == os.cpu_count() else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # envpool makes its spaces in a way that Gymnasium frowns upon
            try:
                pool = self._envpool.make(
                    self._env_id, env_type="gymnasium", num_envs=self.num_envs, seed=list(seeds), num_threads=threads, **pinned
                )
            except Exception as error:  # another author's code may fail in any way
                raise EnvironmentFaultError(
                    f"environment {self._env_id} cannot be made by envpool: {type(error).__name__}: {error}"
                ) from error
            spaces = self.observation_space, self.action_space
            self._envs = VectorEnvs(pool, *spaces, seeds=seeds, strict_bounds=self._strict_bounds)
        return self._envs.reset(None)

    def step(self, actions: np.ndarray) -> StepRecord:
        """See `Envs`."""
        if self._envs is None:
            raise EnvironmentFaultError("environments are stepped before their first reset; call reset first")
        return self._envs.step(actions)

    def states(self) -> list[EnvState | None]:
        """See `Envs`; what is inside cannot be known."""
        return [None] * self.num_envs

    def restore(self, states: Sequence[EnvState]) -> tuple[np.ndarray, list[str]]:
        """Raise NotImplementedError; there are no states to come back to."""
        raise NotImplementedError("these environments give no states to come back to")

    def close(self) -> None:
        """See `Envs`."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def __enter__(self) -> EnvPoolEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
