"""One seed in, every random stream out."""

from __future__ import annotations

import itertools
import json
from typing import get_args

import numpy as np
import pytest
import torch

from il_based_rl.seeding import (
    Purpose,
    fresh_seed,
    generator,
    generator_state,
    restore_generator,
    start_seeds,
    torch_seed,
)

PURPOSES = get_args(Purpose)


def test_the_same_seed_and_purpose_give_the_same_numbers():
    assert generator(7, "action noise").bytes(64) == generator(7, "action noise").bytes(64)


def test_every_purpose_seed_and_key_has_a_stream_of_its_own():
    streams = [generator(seed, purpose, *key).bytes(32) for seed in (0, 1) for purpose in PURPOSES for key in [(), (0,), (1,)]]
    assert len(set(streams)) == len(streams)


def test_streams_stay_the_same_from_release_to_release():
    # Recorded once. A change here changes everybody's evaluation start states, and every published number with them.
    assert list(start_seeds(0, "evaluation", 3)) == [854752498, 910010389, 933757209]
    assert generator(42, "action noise").integers(1000, size=4).tolist() == [703, 71, 771, 710]


def test_start_seeds_of_two_purposes_never_meet():
    taken = {purpose: set(start_seeds(0, purpose, 3000)) for purpose in PURPOSES}
    for one, other in itertools.combinations(PURPOSES, 2):
        assert not taken[one] & taken[other]


def test_start_seeds_of_two_purposes_never_meet_across_runs_either():
    evaluation = set(itertools.chain.from_iterable(start_seeds(seed, "evaluation", 500) for seed in range(20)))
    training = set(itertools.chain.from_iterable(start_seeds(seed, "training environments", 500) for seed in range(20)))
    assert not evaluation & training


def test_no_start_seed_comes_twice_and_every_environment_accepts_it():
    seeds = list(start_seeds(3, "collection", 100_000))
    assert len(set(seeds)) == 100_000  # drawn with repeats, about 37 of them would be the same
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


def test_the_first_start_seeds_do_not_depend_on_how_many_are_asked_for():
    endless = start_seeds(5, "evaluation")
    assert list(start_seeds(5, "evaluation", 10)) == [next(endless) for _ in range(10)]
    assert list(start_seeds(5, "evaluation", 3)) == list(start_seeds(5, "evaluation", 10))[:3]


def test_start_seeds_differ_by_run_and_by_key():
    series = [
        tuple(start_seeds(0, "training environments", 5)),
        tuple(start_seeds(1, "training environments", 5)),
        tuple(start_seeds(0, "training environments", 5, key=2048)),
    ]
    assert len(set(series)) == 3


def test_a_generator_goes_on_from_its_stored_state():
    random = generator(11, "minibatch order")
    random.normal(size=13)
    random.integers(5, size=3, dtype=np.int32)  # leaves half a word over, which must be stored as well
    state = json.loads(json.dumps(generator_state(random)))
    expected = random.integers(2**20, size=50, dtype=np.int32).tolist()
    other = generator(99, "action noise")
    restore_generator(other, state)
    assert other.integers(2**20, size=50, dtype=np.int32).tolist() == expected


def test_torch_seeds_are_stable_differ_by_purpose_and_are_accepted():
    assert torch_seed(3, "initial weights") == torch_seed(3, "initial weights")
    assert torch_seed(3, "initial weights") != torch_seed(4, "initial weights")
    assert torch_seed(3, "initial weights") != torch_seed(3, "action noise")
    assert torch.Generator().manual_seed(torch_seed(3, "initial weights")).initial_seed() == torch_seed(3, "initial weights")


def test_fresh_seeds_differ():
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert min(seeds) >= 0


@pytest.mark.usefixtures("global_generators_untouched")
def test_seeding_leaves_the_global_generators_alone():
    fresh_seed()
    generator(0, "collection").normal(size=3)
    torch_seed(0, "initial weights")
    list(start_seeds(0, "collection", 3))
