"""What a policy reads: observations of any supported space as rows of numbers; and spaces as plain values.

Two forms of an observation are told apart. A *row* is what a data set stores: the raw observation as one array, of a
Dict or Tuple space the flattened vector. *Features* are what a network reads: float32 of shape (B, O), choices one-hot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from il_based_rl.errors import FileFormatError, UnsupportedSpaceError


class ObservationCodec:
    """Translate between an observation space, the rows that are stored and the features that a network reads.

    Args:
        space: Box of any shape and number type, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these, nested or
            not.

    Raises:
        UnsupportedSpaceError: The space, or one inside it, is of another kind, or has what no file could hold: numbers of more
            than 64 bits, or keys that are neither texts nor whole numbers.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        _require_supported(space, space)
        self.space = space
        self._composite = isinstance(space, spaces.Dict | spaces.Tuple)
        self._parts: dict[Any, ObservationCodec] = {}
        if isinstance(space, spaces.Dict | spaces.Tuple):
            parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            self._parts = {key: ObservationCodec(part) for key, part in parts}
        self._plain = isinstance(space, spaces.Box)
        flat = spaces.flatten_space(space) if self._composite else space
        self.row_shape: tuple[int, ...] = flat.shape or ()
        self.row_dtype = np.dtype(flat.dtype)
        self.bounds = (flat.low, flat.high) if isinstance(flat, spaces.Box) else None
        """Least and largest numbers of a row, shape row_shape each; None where `row` knows what is allowed."""
        self._choices = _choices(space)
        self._first: Any = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0
        self._marks = None if isinstance(space, spaces.MultiBinary) else self._choices
        self.size = int(np.prod(self.row_shape, dtype=int) if self._marks is None else self._marks.sum())
        if self.size == 0:
            raise UnsupportedSpaceError(f"the observation space {space} holds no numbers to read")

    @property
    def measured(self) -> np.ndarray:
        """Which features are measured quantities, to be standardised, and which one-hot marks. Shape (O,), bool."""
        if self._composite:
            return np.concatenate([part.measured for part in self._parts.values()])
        return np.full(self.size, self._choices is None)

    def row(self, obs: Any) -> np.ndarray:
        """Turn one observation, as the environment gives it, into a row.

        Raises:
            ValueError: The observation does not have the shape of the space, or holds what its type of numbers cannot.
        """
        if type(obs) is np.ndarray and obs.dtype == self.row_dtype and obs.shape == self.row_shape and self._plain:
            return obs  # the common case, in a third of the time
        if self._composite:
            for key, part in self._parts.items():
                part.row(_part(obs, key))  # raises where flattening would cast, or take -1 for the last choice
            obs = spaces.flatten(self.space, obs)
        array = np.asarray(obs)
        if array.shape != self.row_shape:
            raise ValueError(f"the observation has shape {array.shape}, its space {self.row_shape}")
        row = self._readable(array)
        if row.dtype != self.row_dtype and self.row_dtype.kind in "biu":
            with np.errstate(invalid="ignore"):
                stored = row.astype(self.row_dtype)
            if not (stored == row).all():
                raise ValueError(f"the observation holds numbers that {self.row_dtype}, the type of its space, does not")
        return row

    def _readable(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "biuf":
            raise ValueError(f"the observation holds {array.dtype}, not numbers")
        if self._choices is None:
            return array
        within = (array >= self._first) & (array < self._first + self._choices)
        if not within.all() or (array.dtype.kind == "f" and (array % 1 != 0).any()):
            raise ValueError(f"the observation {array.tolist()} is not one of {self.space}")
        return array

    def rows(self, obs: Any) -> tuple[np.ndarray, bool]:
        """Turn one observation, or a batch, into rows; and say whether it was one.

        A batch of a Dict or Tuple space has the batch axis in each of its parts, as Gymnasium's vector environments do.

        Raises:
            ValueError: The shape is neither one observation's nor a batch's.
        """
        if self._composite:
            return self._composite_rows(obs)
        array = np.asarray(obs)
        if array.shape == self.row_shape:
            return self._readable(array)[None], True
        if array.ndim == len(self.row_shape) + 1 and array.shape[1:] == self.row_shape:
            return self._readable(array), False
        raise ValueError(
            f"expected one observation of shape {self.row_shape} or a batch of them, got an array of shape {array.shape}"
        )

    def _composite_rows(self, obs: Any) -> tuple[np.ndarray, bool]:
        array = np.asarray(obs) if isinstance(obs, np.ndarray) else None
        if array is not None and array.ndim <= 2 and array.shape[-1:] == self.row_shape:  # flat, as data sets store it
            return array.reshape(-1, *self.row_shape), array.ndim == 1
        leaf_space, leaf = self.space, obs
        while isinstance(leaf_space, spaces.Dict | spaces.Tuple):
            key: Any = next(iter(leaf_space.spaces)) if isinstance(leaf_space, spaces.Dict) else 0
            leaf_space, leaf = leaf_space.spaces[key], leaf[key]
        if np.shape(leaf) == leaf_space.shape:
            return self.row(obs)[None], True
        counts = sorted(set(_counts(self.space, obs)))
        if len(counts) > 1:
            raise ValueError(f"expected a batch of observations, got one whose parts have {counts[0]} to {counts[-1]} rows")
        if counts == [0]:
            return np.empty((0, *self.row_shape), self.row_dtype), False
        batch = [_take(self.space, obs, i) for i in range(len(leaf))]
        return np.stack([self.row(one) for one in batch]), False

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Turn rows, shape (B, *row_shape), into features, shape (B, O), float32.

        Raises:
            ValueError: A whole number is not one of its space.
        """
        if self._marks is None:
            if rows.ndim == 2 and rows.dtype == np.float32:
                return rows
            return rows.reshape(len(rows), self.size).astype(np.float32, copy=False)
        chosen = (self._readable(rows).astype(np.int64) - self._first).reshape(len(rows), -1)
        begins = np.cumsum(self._marks) - self._marks.ravel()
        one_hot = np.zeros((len(rows), self.size), np.float32)
        one_hot[np.arange(len(rows))[:, None], begins + chosen] = 1.0
        return one_hot


def _part(obs: Any, key: Any) -> Any:
    try:
        return obs[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the observation lacks {key!r}, a part of its space") from error


def _choices(space: gym.Space[Any]) -> np.ndarray | None:
    """Return how many whole numbers a space allows in each place, of a row's shape; None where it is not so."""
    if isinstance(space, spaces.Discrete):
        return np.array(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.astype(np.int64)
    return np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) else None


def _require_supported(part: gym.Space[Any], whole: gym.Space[Any]) -> None:
    if isinstance(part, spaces.Dict | spaces.Tuple):
        if not part.spaces:
            raise UnsupportedSpaceError(f"the observation space {whole} holds no numbers to read in {part}")
        if isinstance(part, spaces.Dict) and (other := [key for key in part.spaces if not isinstance(key, str | int)]):
            raise UnsupportedSpaceError(f"the observation space's key {other[0]!r} is not supported; expected a str or an int")
        for inner in part.spaces.values() if isinstance(part, spaces.Dict) else part.spaces:
            _require_supported(inner, whole)
    elif not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        inside = "" if part is whole else f" inside {type(whole).__name__}"
        raise UnsupportedSpaceError(
            f"observation space {part}{inside} is not supported; expected Box, Discrete, MultiDiscrete, MultiBinary, "
            "or a Dict or Tuple of these (a gymnasium.ObservationWrapper can translate it)"
        )
    elif np.dtype(part.dtype).itemsize > 8:
        raise UnsupportedSpaceError(f"observation space {part} is not supported; expected numbers of 64 bits at most")


def _take(space: gym.Space[Any], batch: Any, i: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _take(part, batch[key], i) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_take(part, batch[k], i) for k, part in enumerate(space.spaces))
    return batch[i]


def _counts(space: gym.Space[Any], batch: Any) -> Iterator[int]:
    """Yield how many rows each part of a batch has."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _counts(part, batch[key])
    else:
        yield len(batch)


def space_to_plain(space: gym.Space[Any]) -> dict[str, Any]:
    """Describe a space by plain values that JSON can hold; `space_from_plain` builds it again."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound_to_plain(space.low), "high": _bound_to_plain(space.high)}
        return {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        whole = {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
        return {"kind": "MultiDiscrete", **whole}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": [[key, space_to_plain(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_plain(part) for part in space.spaces]}
    raise UnsupportedSpaceError(f"space {space} is not supported")


def space_from_plain(plain: Any) -> gym.Space[Any]:
    """Build the space that `space_to_plain` described.

    Raises:
        FileFormatError: The description is not one of these.
    """
    try:
        numbers_in(plain)
        return _space_from_plain(plain)
    except Exception as error:  # what a foreign file holds may be wrong in any way
        raise FileFormatError(f"the description of a space is damaged: {error}") from error


def _space_from_plain(plain: Any) -> gym.Space[Any]:
    kind = plain["kind"]
    if kind == "Box":
        shape, dtype = tuple(plain["shape"]), _number_type(plain["dtype"])
        low, high = (_bound_from_plain(plain[end], shape, dtype) for end in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        number: Any = (
            {} if plain["dtype"] == "int64" else {"dtype": _number_type(plain["dtype"]).type}
        )  # unknown to Gymnasium 1.1
        return spaces.Discrete(plain["n"], start=plain["start"], **number)
    if kind == "MultiDiscrete":
        whole = _number_type(plain["dtype"]).type
        return spaces.MultiDiscrete(np.array(plain["nvec"], whole), whole, start=np.array(plain["start"], whole))
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["n"])
    if kind == "Dict":
        return spaces.Dict([(key, _space_from_plain(part)) for key, part in plain["spaces"]])
    return spaces.Tuple([_space_from_plain(part) for part in plain["spaces"]])


_MOST_NUMBERS, _MOST_CHOICES = 2**23, 2**16
"""A space of more numbers than this (a picture in full HD has 6 million), or choices, is taken for damage."""
_DEEPEST = 20


def _number_type(name: str) -> np.dtype[Any]:
    if type(name) is not str or np.dtype(name).kind not in "biuf":
        raise ValueError(f"numbers of type {name}")
    return np.dtype(name)


def numbers_in(plain: Any, depth: int = 0) -> int:
    """Count the numbers of a described space, choices each for one, before memory is asked for it.

    Raises:
        ValueError, KeyError, TypeError: It is no description, or one of an unreasonable size.
    """
    kind = plain["kind"]
    if kind in ("Dict", "Tuple"):
        if depth > _DEEPEST or not plain["spaces"]:
            raise ValueError("spaces inside a space are too deep, or none")
        parts = [part for _, part in plain["spaces"]] if kind == "Dict" else plain["spaces"]
        numbers = sum(numbers_in(part, depth + 1) for part in parts)
    else:
        field = {"Box": "shape", "MultiBinary": "n", "Discrete": "n", "MultiDiscrete": "nvec"}.get(kind)
        if field is None or (kind == "Box" and type(plain[field]) is not list):
            raise ValueError(f"the unknown kind {kind!r}, or a shape that is no list")
        sizes = [int(size) for size in np.ravel(plain[field]).tolist()]
        numbers = sum(sizes) if kind == "MultiDiscrete" else math.prod(sizes)
        if any(size < 0 for size in sizes) or (kind != "Box" and numbers > _MOST_CHOICES):
            raise ValueError(f"a size of {sizes[:9]}")
    if numbers > _MOST_NUMBERS:
        raise ValueError(f"more than {_MOST_NUMBERS} numbers")
    return numbers


def _bound_to_plain(bound: np.ndarray) -> Any:
    """One text for a bound that is the same everywhere, which keeps an image's space small; texts hold infinities exactly."""
    flat = (bound.astype(int) if bound.dtype == bool else bound).ravel()
    return repr(flat[0].item()) if len(flat) and (flat == flat[0]).all() else [repr(x) for x in flat.tolist()]


def _bound_from_plain(plain: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    number = float if np.issubdtype(dtype, np.floating) else int
    if isinstance(plain, str):
        return np.full(shape, number(plain), dtype)
    return np.array([number(text) for text in plain], dtype).reshape(shape)


def same_space(one: gym.Space[Any], other: gym.Space[Any]) -> bool:
    """Whether two spaces agree in kind, shape, number type and bounds."""
    return space_to_plain(one) == space_to_plain(other)
