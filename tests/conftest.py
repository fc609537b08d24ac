"""Shared by the tests: a guard over the global random generators, and strategies for spaces."""

from __future__ import annotations

import pickle
import random
import signal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def pytest_configure():
    # A shell lets what it starts in the background ignore Ctrl-C; the commands under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def global_generators_untouched():
    """Fail the test if anything that it called drew from, or seeded, one of the three global generators."""

    def states():
        return [pickle.dumps(state) for state in (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())]

    before = states()
    yield
    assert states() == before


def _float_box(draw, dtype, shape):
    numbers = hnp.arrays(dtype, shape, elements=st.floats(-1000, 1000, width=16))
    one, other = draw(numbers), draw(numbers)
    # Any mixture of bounded, half-bounded and unbounded components, as real environments have.
    open_below, open_above = draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))
    low = np.where(open_below, -np.inf, np.minimum(one, other)).astype(dtype)
    high = np.where(open_above, np.inf, np.maximum(one, other)).astype(dtype)
    return spaces.Box(low, high, shape, dtype.type)


def _integer_box(draw, dtype, shape):
    limits = np.iinfo(dtype)
    numbers = hnp.arrays(dtype, shape, elements=st.integers(max(limits.min, -1000), min(limits.max, 1000)))
    one, other = draw(numbers), draw(numbers)
    return spaces.Box(np.minimum(one, other), np.maximum(one, other), shape, dtype.type)


@st.composite
def boxes(draw):
    """Box spaces of several number types, shapes and bounds, infinite ones and single points among them."""
    dtype = np.dtype(draw(st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    if dtype.kind == "b":
        return spaces.Box(0, 1, shape, bool)
    return _float_box(draw, dtype, shape) if dtype.kind == "f" else _integer_box(draw, dtype, shape)


def discretes():
    return st.builds(
        lambda n, start, dtype: spaces.Discrete(n, start=start, dtype=dtype),
        st.integers(1, 6),
        st.integers(-5, 5),
        st.sampled_from([np.int64, np.int32]),
    )


@st.composite
def multi_discretes(draw):
    shape = draw(hnp.array_shapes(max_dims=2, max_side=3))
    nvec = draw(hnp.arrays(np.int64, shape, elements=st.integers(1, 4)))
    start = draw(hnp.arrays(np.int64, shape, elements=st.integers(-3, 3)))
    return spaces.MultiDiscrete(nvec, dtype=draw(st.sampled_from([np.int64, np.int32])), start=start)


def multi_binaries():
    return st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.sampled_from([(2,), (2, 3)])))


def action_spaces():
    """Every kind of action space that a policy can act in."""
    return st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries())


def observation_spaces():
    """Every kind of observation space that a policy can read, nested two deep."""
    return st.recursive(
        st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries()),
        lambda parts: st.one_of(
            st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
            st.dictionaries(st.sampled_from(["goal", "arm", "image"]), parts, min_size=1).map(spaces.Dict),
        ),
        max_leaves=4,
    )
