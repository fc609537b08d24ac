"""Observations as rows and features, and spaces as plain values."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from hypothesis import example, given, settings
from hypothesis import strategies as st

from il_based_rl.errors import FileFormatError, UnsupportedSpaceError
from il_based_rl.heads import action_head
from il_based_rl.spaces import ObservationCodec, same_space, space_from_plain, space_to_plain
from tests.conftest import action_spaces, boxes, multi_discretes, observation_spaces


def through_json(space):
    return space_from_plain(json.loads(json.dumps(space_to_plain(space))))


def samples(space, count, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def as_batch(space, observations):
    """Observations side by side, the way Gymnasium's vector environments hand them out."""
    return concatenate(space, observations, create_empty_array(space, n=len(observations)))


@settings(max_examples=200, deadline=None)
@given(space=st.one_of(action_spaces(), observation_spaces()))
@example(spaces.MultiBinary(4))
@example(spaces.MultiBinary((4,)))
@example(spaces.Box(np.uint64(0), np.uint64(2**64 - 1), (2,), np.uint64))
def test_a_space_survives_json(space):
    assert through_json(space) == space


@settings(max_examples=100, deadline=None)
@given(space=boxes())
def test_the_bounds_of_a_box_survive_json_exactly(space):
    back = through_json(space)
    assert back.low.tolist() == space.low.tolist()
    assert back.high.tolist() == space.high.tolist()
    assert back.dtype == space.dtype


@settings(max_examples=50, deadline=None)
@given(space=multi_discretes())
def test_the_number_type_of_choices_survives_json(space):
    # An action of another number type is not inside the space, so a loaded policy needs the same one.
    assert through_json(space).dtype == space.dtype


def test_a_space_in_plain_values_is_readable_and_strictly_json():
    plain = space_to_plain(spaces.Box(np.array([0.0, -np.inf]), np.array([1.5, np.inf]), dtype=np.float64))
    text = json.dumps(plain, allow_nan=False)
    assert json.loads(text) == {
        "kind": "Box",
        "shape": [2],
        "dtype": "float64",
        "low": ["0.0", "-inf"],
        "high": ["1.5", "inf"],
    }


def test_the_space_of_an_image_is_small_in_plain_values():
    assert len(json.dumps(space_to_plain(spaces.Box(0, 255, (96, 96, 3), np.uint8)))) < 120


def test_the_order_of_a_dict_survives_json():
    space = spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
    assert list(through_json(space).spaces) == list(space.spaces)


@pytest.mark.parametrize(
    "other",
    [
        spaces.Box(-1.0, 1.0, (3,)),
        spaces.Box(-1.0, 2.0, (2,)),
        spaces.Box(-1.0, 1.0, (2,), np.float64),
        spaces.Box(-1.0, 1.0, (2, 1)),
        spaces.Discrete(2),
    ],
    ids=str,
)
def test_spaces_that_differ_in_anything_are_not_the_same(other):
    assert same_space(spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (2,)))
    assert not same_space(spaces.Box(-1.0, 1.0, (2,)), other)


def test_discrete_spaces_that_start_elsewhere_or_count_in_another_type_are_not_the_same():
    assert same_space(spaces.Discrete(3, start=1), spaces.Discrete(3, start=1))
    assert not same_space(spaces.Discrete(3), spaces.Discrete(3, start=1))
    assert not same_space(spaces.MultiDiscrete([3, 3]), spaces.MultiDiscrete([3, 3], dtype=np.int32))


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"kind": "Text"},
        {"kind": "Discrete", "n": 0, "start": 0},
        {"kind": "Discrete", "n": "many", "start": 0},
        {"kind": "Box", "shape": [2], "dtype": "float32", "low": ["0.0"], "high": "1.0"},
        {"kind": "Box", "shape": [2], "dtype": "no type", "low": "0.0", "high": "1.0"},
        {"kind": "Box", "shape": [2], "dtype": "float32", "low": "zero", "high": "1.0"},
        {"kind": "MultiDiscrete", "nvec": [0], "start": [0]},
        {"kind": "Tuple", "spaces": [{"kind": "Box"}]},
    ],
    ids=str,
)
def test_a_damaged_description_of_a_space_is_refused(plain):
    with pytest.raises(FileFormatError, match="the description of a space"):
        space_from_plain(plain)


def test_a_space_of_another_kind_has_no_description():
    with pytest.raises(UnsupportedSpaceError, match=r"space Text\(1, 5, .* is not supported"):
        space_to_plain(spaces.Text(5))


def test_a_whole_number_becomes_a_mark_at_its_place():
    codec = ObservationCodec(spaces.Discrete(4, start=10))
    rows, single = codec.rows(12)
    assert single
    assert codec.features(rows).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    rows, single = codec.rows(np.array([10, 13]))
    assert not single
    assert codec.features(rows).tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


def test_an_image_becomes_its_pixels_in_order():
    codec = ObservationCodec(spaces.Box(0, 255, (2, 2), np.uint8))
    features = codec.features(np.array([[[1, 2], [3, 255]]], np.uint8))
    assert features.tolist() == [[1.0, 2.0, 3.0, 255.0]]
    assert features.dtype == np.float32


def test_a_dict_becomes_its_parts_side_by_side_with_marks_unmeasured():
    # Gymnasium sorts the keys of a plain dict: "place" (3 marks), then "speed" (2 numbers).
    codec = ObservationCodec(spaces.Dict({"speed": spaces.Box(-9.0, 9.0, (2,)), "place": spaces.Discrete(3)}))
    rows, single = codec.rows({"speed": np.array([0.5, -4.0], np.float32), "place": 1})
    assert single
    assert codec.features(rows).tolist() == [[0.0, 1.0, 0.0, 0.5, -4.0]]
    assert codec.measured.tolist() == [False, False, False, True, True]


def test_what_is_measured_follows_the_parts_however_nested():
    inner = spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1, 2))])
    codec = ObservationCodec(spaces.Tuple([spaces.Box(0, 1, ()), inner, spaces.Discrete(1)]))
    assert codec.measured.tolist() == [True, False, False, True, True, False]


@settings(max_examples=100, deadline=None)
@given(space=observation_spaces(), seed=st.integers(0, 1000))
def test_one_observation_alone_and_in_a_batch_have_the_same_features(space, seed):
    codec = ObservationCodec(space)
    observations = samples(space, 3, seed)
    rows, single = codec.rows(as_batch(space, observations))
    assert not single
    together = codec.features(rows)
    assert together.shape == (3, codec.size)
    assert together.dtype == np.float32
    for obs, features in zip(observations, together, strict=True):
        row, single = codec.rows(obs)
        assert single
        assert codec.features(row).tobytes() == features[None].tobytes()
        assert codec.row(obs).tobytes() == row[0].tobytes()


@settings(max_examples=100, deadline=None)
@given(space=observation_spaces())
def test_features_are_what_gymnasium_flattens_to(space):
    (obs,) = samples(space, 1)
    codec = ObservationCodec(space)
    features = codec.features(codec.rows(obs)[0])
    np.testing.assert_array_equal(features[0], np.asarray(gym.spaces.flatten(space, obs), np.float32))


@settings(max_examples=100, deadline=None)
@given(space=observation_spaces())
def test_stored_rows_are_read_like_the_observations_they_came_from(space):
    observations = samples(space, 2)
    codec = ObservationCodec(space)
    stored = np.stack([codec.row(obs) for obs in observations])
    assert stored.shape == (2, *codec.row_shape)
    rows, single = codec.rows(stored)
    assert not single
    assert codec.features(rows).tobytes() == codec.features(codec.rows(as_batch(space, observations))[0]).tobytes()


def test_the_strategy_of_batches_is_gymnasiums_own():
    space = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Discrete(3)})
    assert batch_space(space, 2).contains(as_batch(space, samples(space, 2)))


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((2, 3)), np.zeros((2, 2, 2)), 0.0], ids=lambda x: str(np.shape(x)))
def test_an_observation_of_another_shape_is_refused(obs):
    codec = ObservationCodec(spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"expected one observation of shape \(2,\) or a batch"):
        codec.rows(obs)
    with pytest.raises(ValueError, match=r"the observation has shape .*, its space \(2,\)"):
        codec.row(obs)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), r"Graph\(.*\)"),
        (spaces.Dict({"text": spaces.Text(4), "n": spaces.Discrete(2)}), r"Text\(.*\) inside Dict"),
        (spaces.Tuple([spaces.Tuple([spaces.Sequence(spaces.Discrete(2))])]), r"Sequence\(.*\) inside Tuple"),
    ],
    ids=str,
)
def test_other_observation_spaces_are_refused_by_name(space, part):
    with pytest.raises(UnsupportedSpaceError, match=f"observation space {part} is not supported; expected Box, Discrete"):
        ObservationCodec(space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (0,)),
        spaces.Dict({}),
        spaces.Tuple([]),
        spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Dict({})]),
    ],
    ids=str,
)
def test_an_observation_space_without_numbers_is_refused(space):
    with pytest.raises(UnsupportedSpaceError, match="holds no numbers to read"):
        ObservationCodec(space)


def test_several_choices_become_a_mark_each_and_switches_stay_as_they_are():
    codec = ObservationCodec(spaces.MultiDiscrete([3, 2], start=[5, 0]))
    assert codec.features(codec.rows([7, 0])[0]).tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0]]
    assert not codec.measured.any()
    codec = ObservationCodec(spaces.MultiBinary((2, 2)))
    assert codec.features(codec.rows([[0, 1], [1, 0]])[0]).tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert not codec.measured.any()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (spaces.Discrete(3), -1, "not one of Discrete"),
        (spaces.Discrete(3, start=1), 4, "not one of Discrete"),
        (spaces.Box(0, 255, (2,), np.uint8), [300, -5], "uint8"),
        (spaces.Box(0, 255, (2,), np.uint8), [0.5, 2.9], "uint8"),
        (spaces.Box(-1, 1, (2,)), [0.5], "shape"),
        (spaces.Box(-1, 1, (1,)), ["0.1"], "not numbers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("nested", [False, True])
def test_each_part_of_a_dict_or_tuple_is_looked_at_before_it_is_flattened(nested, part, value, message):
    space, obs = spaces.Dict({"odd": part, "plain": spaces.Box(-1, 1, (1,))}), {"odd": np.array(value), "plain": np.zeros(1)}
    if nested:
        space, obs = spaces.Tuple([space, spaces.Discrete(2)]), (obs, 1)
    with pytest.raises(ValueError, match=message):
        ObservationCodec(space).row(obs)


def test_the_parts_of_a_batch_have_as_many_rows_each():
    codec = ObservationCodec(spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Tuple([spaces.Discrete(3)])}))
    rows, single = codec.rows({"a": np.ones((2, 2), np.float32), "b": (np.array([1, 2]),)})
    assert (rows.shape, single) == ((2, 5), False)
    for a, b in ((2, 5), (5, 2)):
        with pytest.raises(ValueError, match="parts have 2 to 5 rows"):
            codec.rows({"a": np.ones((a, 2), np.float32), "b": (np.ones(b, np.int64),)})
    assert codec.rows({"a": np.ones((0, 2), np.float32), "b": (np.ones(0, np.int64),)})[0].shape == (0, 5)
    with pytest.raises((ValueError, IndexError)):
        codec.rows(np.ones((2, 3, 5), np.float32))


@pytest.mark.parametrize(
    ("space", "obs", "key"),
    [
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}), {"a": np.zeros(2, np.float32)}, "'b'"),
        (spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)]), (np.zeros(2, np.float32),), "1"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), None, "'a'"),
    ],
)
def test_a_part_that_an_observation_lacks_is_named(space, obs, key):
    with pytest.raises(ValueError, match=f"the observation lacks {key}, a part of its space"):
        ObservationCodec(space).row(obs)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="here it is float64")
@pytest.mark.parametrize("reader", [ObservationCodec, action_head])
def test_numbers_that_no_file_could_hold_are_refused_at_once(reader):
    with pytest.raises(UnsupportedSpaceError, match="64 bits"):
        reader(spaces.Box(-1, 1, (2,), np.longdouble))


def test_keys_that_no_file_could_hold_are_refused_at_once():
    with pytest.raises(UnsupportedSpaceError, match=r"key \('arm', 'q'\) is not supported; expected a str or an int"):
        ObservationCodec(spaces.Tuple([spaces.Dict({("arm", "q"): spaces.Box(-1, 1, (2,))})]))
    assert ObservationCodec(spaces.Dict({1: spaces.Box(-1, 1, (2,)), 2: spaces.Discrete(2)})).size == 4
