"""From steps to minibatches."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from il_based_rl.buffer import RolloutBatch, RolloutBuffer


def labelled_batch(size, as_arrays=True):
    """A batch whose every field says, in its own unit, which transition it belongs to."""
    label = np.arange(size, dtype=np.float32)
    batch = RolloutBatch(
        normalized=np.stack([label, label + 0.5], -1),
        raw_actions=label[:, None] * 10,
        log_probs=label * 100,
        advantages=label * 1000,
        returns=-label,
    )
    return batch if as_arrays else batch.to(torch.device("cpu"))


def drawn_labels(minibatches):
    return [(-np.asarray(minibatch.returns)).astype(int).tolist() for minibatch in minibatches]


def column(*values):
    return np.array(values)[:, None]


def buffer_of(num_steps=4, num_envs=1):
    buffer = RolloutBuffer(num_steps, num_envs, num_features=2, num_actions=1, raw_dtype=np.dtype(np.float32))
    buffer.valid[:] = True
    return buffer


@pytest.mark.parametrize("as_arrays", [True, False])
def test_every_transition_comes_once_in_each_epoch_and_the_last_minibatch_holds_the_rest(as_arrays):
    drawn = drawn_labels(labelled_batch(10, as_arrays).minibatches(4, np.random.default_rng(0)))
    assert [len(labels) for labels in drawn] == [4, 4, 2]
    assert sorted(itertools.chain(*drawn)) == list(range(10))


def test_the_order_differs_from_epoch_to_epoch_and_is_no_order_of_collection():
    batch, random = labelled_batch(50), np.random.default_rng(0)
    epochs = [tuple(itertools.chain(*drawn_labels(batch.minibatches(7, random)))) for _ in range(3)]
    assert len({*epochs, tuple(range(50))}) == 4


def test_the_same_generator_gives_the_same_order():
    one, same, other = (drawn_labels(labelled_batch(50).minibatches(7, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert one == same != other


def test_arrays_and_tensors_come_in_the_same_order():
    arrays, tensors = (labelled_batch(23, kind).minibatches(5, np.random.default_rng(0)) for kind in (True, False))
    for one, other in zip(arrays, tensors, strict=True):
        for each in fields(RolloutBatch):
            assert isinstance(getattr(other, each.name), torch.Tensor)
            np.testing.assert_allclose(getattr(one, each.name), getattr(other, each.name).numpy(), rtol=1e-6)


@pytest.mark.parametrize("as_arrays", [True, False])
def test_the_fields_of_a_transition_stay_beside_each_other(as_arrays):
    for minibatch in labelled_batch(23, as_arrays).minibatches(5, np.random.default_rng(0)):
        label = -np.asarray(minibatch.returns)
        assert np.asarray(minibatch.normalized).tolist() == np.stack([label, label + 0.5], -1).tolist()
        assert np.asarray(minibatch.raw_actions).tolist() == (label[:, None] * 10).tolist()
        assert np.asarray(minibatch.log_probs).tolist() == (label * 100).tolist()
        # Advantages keep their order, and are standardised within their minibatch.
        np.testing.assert_allclose(minibatch.advantages, zscore(label), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_arrays", [True, False])
def test_advantages_are_standardised_by_minibatch_and_a_single_one_says_nothing(as_arrays):
    # Minibatches of two: whatever their distance, the larger becomes 1 and the smaller -1. The fifth is alone: 0.
    batch = labelled_batch(5, as_arrays)
    *pairs, (alone,) = [np.asarray(m.advantages).tolist() for m in batch.minibatches(2, np.random.default_rng(0))]
    assert [sorted(pair) for pair in pairs] == [pytest.approx([-1.0, 1.0], rel=1e-6)] * 2
    assert alone == 0.0


@pytest.mark.parametrize("as_arrays", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.25, 1.3151038, -1e-7, 12345.679])
def test_equal_advantages_favour_no_action(value, as_arrays):
    advantages = np.full(250, value, np.float32)  # whose mean is rounded
    batch = replace(labelled_batch(250, as_arrays), advantages=advantages if as_arrays else torch.from_numpy(advantages))
    for minibatch in batch.minibatches(100, np.random.default_rng(0)):
        assert set(np.asarray(minibatch.advantages).tolist()) == {0.0}


@pytest.mark.parametrize("as_arrays", [True, False])
def test_drawing_minibatches_leaves_the_batch_as_it_was(as_arrays):
    batch, untouched = labelled_batch(9, as_arrays), labelled_batch(9)
    list(batch.minibatches(4, np.random.default_rng(0)))
    for each in fields(batch):
        assert np.asarray(getattr(batch, each.name)).tolist() == getattr(untouched, each.name).tolist()


def test_a_minibatch_larger_than_the_batch_holds_all_of_it():
    (only,) = drawn_labels(labelled_batch(5).minibatches(64, np.random.default_rng(0)))
    assert sorted(only) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("global_generators_untouched")
def test_minibatches_are_drawn_from_the_given_generator_alone():
    assert sum(map(len, drawn_labels(labelled_batch(9).minibatches(4, np.random.default_rng(0))))) == 9


def test_steps_and_environments_are_joined_step_by_step():
    buffer = buffer_of(num_steps=2, num_envs=3)
    assert buffer.flat(np.array([[1, 2, 3], [4, 5, 6]])).tolist() == [1, 2, 3, 4, 5, 6]
    buffer.features[:] = np.arange(12).reshape(2, 3, 2)
    assert buffer.flat(buffer.features).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_fake_transitions_are_left_out_of_what_is_joined():
    buffer = buffer_of(num_steps=2, num_envs=3)
    buffer.valid[0, 1] = buffer.valid[1, 2] = False
    assert buffer.flat(np.array([[1, 2, 3], [4, 5, 6]])).tolist() == [1, 3, 4, 5]


def test_an_episode_is_done_for_either_reason():
    buffer = buffer_of()
    buffer.terminated[:, 0], buffer.truncated[:, 0] = [True, False, True, False], [False, True, True, False]
    assert buffer.done[:, 0].tolist() == [True, True, True, False]


def test_clearing_forgets_the_truncations_of_the_last_rollout():
    buffer = buffer_of()
    buffer.truncations.append((1, 0))
    buffer.final_features.append(np.zeros(2))
    buffer.clear()
    assert buffer.truncations == []
    assert buffer.final_features == []


def test_truncated_episodes_bootstrap_from_their_own_final_values():
    # One environment, gamma = 0.5, lambda = 0: advantage = reward + 0.5 * next value - value.
    #   step 0: next value is that of step 1:  1 + 0.5*20 - 10 =   1
    #   step 1: truncated, final value 100:    2 + 0.5*100 - 20 = 32
    #   step 2: terminated, nothing follows:   3 - 30           = -27
    #   step 3: the rollout ends, last value 8: 4 + 0.5*8 - 40  = -32
    buffer = buffer_of()
    buffer.truncated[1, 0] = buffer.terminated[2, 0] = True
    buffer.truncations.append((1, 0))
    advantages = buffer.advantages(
        np.array([[1.0], [2.0], [3.0], [4.0]]),
        np.array([[10.0], [20.0], [30.0], [40.0]]),
        final_values=np.array([100.0]),
        last_values=np.array([8.0]),
        gamma=0.5,
        gae_lambda=0.0,
    )
    assert advantages[:, 0].tolist() == [1.0, 32.0, -27.0, -32.0]


def test_final_values_go_to_their_own_step_and_environment():
    # Nothing but next values, gamma = 1: each place shows where its next value came from.
    buffer = buffer_of(num_steps=2, num_envs=2)
    buffer.truncated[:] = [[False, True], [True, False]]
    buffer.truncations.extend([(0, 1), (1, 0)])
    advantages = buffer.advantages(
        np.zeros((2, 2)),
        np.zeros((2, 2)),
        final_values=np.array([11.0, 22.0]),
        last_values=np.array([5.0, 6.0]),
        gamma=1.0,
        gae_lambda=0.0,
    )
    assert advantages.tolist() == [[0.0, 11.0], [22.0, 6.0]]


def test_the_next_rollouts_truncations_alone_count():
    buffer = buffer_of(num_steps=1)
    buffer.truncations.append((0, 0))
    buffer.clear()
    advantages = buffer.advantages(
        np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(0), last_values=np.array([7.0]), gamma=1.0, gae_lambda=1.0
    )
    assert advantages.tolist() == [[7.0]]


def test_fake_transitions_do_not_change_the_advantages_of_true_ones():
    # The same two episodes twice: a truncated one of two steps and a terminated one of two steps. The second buffer has
    # the fake transition between them, which acts upon the final observation and leads to the next episode's first.
    without, with_fake = buffer_of(4), buffer_of(5)
    without.truncated[1, 0] = without.terminated[3, 0] = True
    with_fake.truncated[1, 0] = with_fake.terminated[4, 0] = True
    with_fake.valid[2, 0] = False
    for buffer in (without, with_fake):
        buffer.truncations.append((1, 0))
    rest = {"final_values": np.array([50.0]), "last_values": np.array([0.0]), "gamma": 0.9, "gae_lambda": 0.8}
    expected = without.advantages(column(1.0, 2.0, 3.0, 4.0), column(10.0, 20.0, 30.0, 40.0), **rest)
    found = with_fake.advantages(column(1.0, 2.0, 0.0, 3.0, 4.0), column(10.0, 20.0, 50.0, 30.0, 40.0), **rest)
    assert with_fake.flat(found).tolist() == without.flat(expected).tolist()


def test_raw_actions_are_stored_in_the_number_type_of_their_kind():
    buffer = RolloutBuffer(3, 2, num_features=5, num_actions=4, raw_dtype=np.dtype(np.int64))
    assert buffer.raw_actions.shape == (3, 2, 4)
    assert buffer.raw_actions.dtype == np.int64
    assert buffer.features.shape == (3, 2, 5)
    assert len(labelled_batch(6)) == 6
