"""The bounds of observations: who keeps to those that it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from il_based_rl.errors import ConfigError
from il_based_rl.spaces import ObservationCodec

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

LEAVING_BOUNDS = ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3")
"""Those of Gymnasium's environments that leave the bounds which they declare, in the first episodes already; none of its
others does, in some ten thousand steps of random and of constant actions each."""
REMEDY = "mend the space that it declares, or take it as it is with --bounds any"
_FEW = 32
"""Numbers of an observation that are looked at one by one."""


def bounds_hold(env_id: str | EnvSpec, rule: str) -> bool:
    """Whether an observation outside its space's bounds is an error.

    Args:
        env_id: Gymnasium environment ID, or its specification.
        rule: `strict` yes, `any` no, `auto` yes but in `LEAVING_BOUNDS`.

    Raises:
        ConfigError: It is none of these.
    """
    if rule not in ("auto", "strict", "any"):
        raise ConfigError(f"bounds must be auto, strict or any, got {rule!r:.50}")
    # As text, as `make_env` comes later and says what is wrong where something else than an ID is given.
    name = str(getattr(env_id, "id", env_id)).rpartition(":")[2]
    return rule == "strict" or (rule == "auto" and name not in LEAVING_BOUNDS)


class Bounds:
    """What the numbers of an observation may be, by the space that its environment declares, with room for rounding.

    Args:
        low: Least numbers, shape (*row,).
        high: Largest numbers, shape (*row,).
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self._low, self._high = low, high
        self._least, self._most = low, high
        if low.dtype.kind == "f":
            room = 8 * max(np.finfo(low.dtype).eps, np.finfo(np.float32).eps)
            least, most = (bound.astype(np.float64) for bound in (low, high))
            with np.errstate(over="ignore"):  # the largest number of a type stands for no bound in some spaces
                self._least = (least - room * np.maximum(1.0, np.abs(least))).astype(low.dtype)
                self._most = (most + room * np.maximum(1.0, np.abs(most))).astype(low.dtype)
        few = low.ndim == 1 and low.size <= _FEW
        moderate = (np.clip(bound.astype(np.float64), -1e15, 1e15).tolist() for bound in (self._least, self._most))
        self._moderate = list(zip(*moderate, strict=True)) if few else None

    @classmethod
    def of(cls, codec: ObservationCodec) -> Bounds | None:
        """Return those of a space; None where its observations cannot leave them unnoticed."""
        if codec.bounds is None:
            return None
        low, high = codec.bounds
        kind = low.dtype.kind
        if kind == "f":
            return cls(low, high) if np.isfinite(low).any() or np.isfinite(high).any() else None
        limits = (False, True) if kind == "b" else (np.iinfo(low.dtype).min, np.iinfo(low.dtype).max)
        return None if (low == limits[0]).all() and (high == limits[1]).all() else cls(low, high)

    def surely_hold(self, row: np.ndarray) -> bool:
        """Whether a row's few numbers are all inside and finite: in Python's own numbers, a third of the time of any other way.

        False says nothing.
        """
        if self._moderate is None:
            return False
        for number, (least, most) in zip(row.tolist(), self._moderate, strict=False):  # noqa: SIM110 - all() takes longer
            if not least <= number <= most:
                return False
        return True

    def inside(self, rows: np.ndarray) -> np.ndarray:
        """Say of each number whether it is inside. Shape (*row,) or (B, *row); infinite bounds allow anything finite."""
        if self._low.dtype.kind == "f":
            rows = rows.astype(self._low.dtype, copy=False)
        return (rows >= self._least) & (rows <= self._most)

    def misfit(self, row: np.ndarray) -> str | None:
        """Say which numbers of a finite row are outside, or None."""
        outside = ~self.inside(row)
        if not outside.any():
            return None
        allowed = f"where {short(self._low[outside])} to {short(self._high[outside])} are allowed"
        return f"the observation is outside its space's bounds: {short(row[outside])} {allowed}"


def short(value: Any) -> str:
    """Write an array for a message, the first 32 numbers of it."""
    array = np.asarray(value)
    return f"{array.tolist()}" if array.size <= 32 else f"{array.ravel()[:32].tolist()} and {array.size - 32} more"
