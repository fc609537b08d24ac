"""One seed in, every random stream out.

Each purpose owns a named child of one `numpy.random.SeedSequence`, so that no two streams overlap and a new purpose
never shifts the numbers of an old one. Nothing here touches the global generators.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from il_based_rl.errors import ConfigError

Purpose = Literal[
    "initial weights",
    "training environments",
    "action noise",
    "minibatch order",
    "collection",
    "evaluation",
    "validation split",
    "evaluation in training",
    "comparison",
    "aggregation",
    "search",
]
_PURPOSES: tuple[str, ...] = get_args(Purpose)
_SEED_BITS = 27  # with the purpose's number above them a start seed stays below 2**31, which every environment accepts


def fresh_seed() -> int:
    """Draw a seed from the operating system, for a run that was given none."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the random generator of one purpose; `key` tells apart its uses. ConfigError for a negative seed."""
    if seed < 0:
        raise ConfigError(f"a seed must be 0 or more, got {seed}")
    spawn_key = (_PURPOSES.index(purpose), *key)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=spawn_key)))


def sampled_actions(seed: int) -> np.random.Generator:
    """Return the generator of the actions that are sampled in an evaluation; its key is none of `start_seeds`'."""
    return generator(seed, "evaluation", 1, 0)


def torch_seed(seed: int, purpose: Purpose) -> int:
    """Return a seed for a `torch.Generator`."""
    return int(generator(seed, purpose).integers(2**63))


def start_seeds(seed: int, purpose: Purpose, count: int | None = None, key: int = 0) -> Iterator[int]:
    """Yield seeds for `env.reset`, each once.

    The first `n` of them are the same however many are asked for, and those of two purposes never meet.

    Args:
        seed: The run's seed.
        purpose: What the episodes are for.
        count: How many, or None for as many as are taken.
        key: Tells apart repeated uses of one purpose.
    """
    return itertools.islice(_start_seeds(seed, purpose, key), count)


def _start_seeds(seed: int, purpose: Purpose, key: int) -> Iterator[int]:
    random = generator(seed, purpose, key)
    prefix = (_PURPOSES.index(purpose) + 1) << _SEED_BITS
    seen: set[int] = set()
    while True:
        candidate = int(random.integers(2**_SEED_BITS))
        if candidate not in seen:
            seen.add(candidate)
            yield prefix | candidate


def generator_state(random: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator as plain values."""
    return dict(random.bit_generator.state)


def restore_generator(random: np.random.Generator, state: dict[str, Any]) -> None:
    """Put a generator back into a state that `generator_state` returned; ValueError for anything else."""
    require_generator_state(state)
    random.bit_generator.state = state


def require_generator_state(state: Any) -> None:
    """Raise ValueError unless this is the state of a generator; NumPy itself takes 1.5 for 1."""
    numbers = [*state["state"].values(), state["has_uint32"], state["uinteger"]]
    if set(state["state"]) != {"state", "inc"} or any(type(number) is not int for number in numbers):
        raise ValueError("a random generator's state is made of other things than whole numbers")
    np.random.PCG64().state = state
