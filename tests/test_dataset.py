"""Demonstrations: arrays that agree with each other, in memory and on disk."""

import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import FileFormatError, FileMissingError, FileWriteError
from il_based_rl.files import write_arrays

NAMES = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations", "episode_lengths", "seeds")


def arrays(**changes):
    """Three episodes of 2, 1 and 3 steps: observation 10 * episode + step, action its hundredth, reward 1, 2, 4, 8, ..."""
    given = {
        "observations": np.array([[0], [1], [10], [20], [21], [22]], np.float32),
        "actions": np.array([[0.0], [0.01], [0.1], [0.2], [0.21], [0.22]], np.float32),
        "rewards": np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        "terminated": np.array([False, True, False, False, False, True]),
        "truncated": np.array([False, False, True, False, False, True]),
        "final_observations": np.array([[2], [11], [23]], np.float32),
        "episode_lengths": np.array([2, 1, 3]),
        "seeds": np.array([100, 101, 102]),
    }
    return given | changes


def dataset(**changes):
    return DemoDataset(**arrays(**changes), metadata={"env_id": "toy/Counter-v0", "seed": 3})


def saved(tmp_path, **changes):
    path = tmp_path / "demos.npz"
    write_arrays(path, arrays(**changes), {"env_id": "toy/Counter-v0"})
    return path


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) and getattr(one, name).dtype == getattr(other, name).dtype
        for name in NAMES
    )


def test_len_counts_transitions_and_every_promised_array_has_a_row_for_each():
    demos = dataset()
    assert len(demos) == 6
    assert {len(getattr(demos, name)) for name in ("observations", "actions", "rewards", "terminated", "truncated")} == {6}
    assert demos.num_episodes == 3


def test_starts_and_returns_are_by_episode():
    assert dataset().episode_starts.tolist() == [0, 2, 3]
    assert dataset().returns.tolist() == [3.0, 4.0, 56.0]


def test_one_episode_is_a_data_set_of_its_own_rows():
    episode = dataset().episodes[2]
    assert episode.observations.tolist() == [[20], [21], [22]]
    assert episode.rewards.tolist() == [8, 16, 32]
    assert episode.terminated.tolist() == [False, False, True]
    assert episode.final_observations.tolist() == [[23]]
    assert (episode.seeds.tolist(), episode.episode_lengths.tolist()) == ([102], [3])
    assert episode.metadata["env_id"] == "toy/Counter-v0"


def test_episodes_are_a_sequence():
    episodes = dataset().episodes
    assert len(episodes) == 3
    assert [episode.returns.tolist() for episode in episodes] == [[3.0], [4.0], [56.0]]
    assert same(episodes[-1], episodes[2])
    with pytest.raises(IndexError):
        episodes[3]


def test_a_slice_of_episodes_is_a_data_set_of_several():
    assert dataset().episodes[1:].observations.ravel().tolist() == [10, 20, 21, 22]
    assert dataset().episodes[::-1].observations.ravel().tolist() == [20, 21, 22, 10, 0, 1]
    assert same(dataset().episodes[:], dataset())
    with pytest.raises(IndexError, match="3 episodes"):
        dataset().episodes[3:]


def test_select_takes_episodes_in_the_given_order_and_refuses_others():
    chosen = dataset().select([2, 0])
    assert chosen.observations.ravel().tolist() == [20, 21, 22, 0, 1]
    assert chosen.actions.ravel().tolist() == pytest.approx([0.2, 0.21, 0.22, 0.0, 0.01])
    assert chosen.seeds.tolist() == [102, 100]
    assert chosen.final_observations.ravel().tolist() == [23, 2]
    for wrong in ([3], [-1], [], [0.9, 1.9], [[0]], ["0"], 1):
        with pytest.raises(IndexError, match="3 episodes"):
            dataset().select(wrong)


def test_select_takes_a_truth_value_of_every_episode_as_numpy_does():
    assert dataset().select([True, False, True]).seeds.tolist() == [100, 102]
    assert dataset().select(np.array([False, False, True])).seeds.tolist() == [102]
    for wrong in ([True, False], [True] * 4, [False] * 3):
        with pytest.raises(IndexError, match="3 episodes"):
            dataset().select(wrong)


def test_the_summary_counts_each_end_once():
    summary = dataset().summary()
    expected = {
        "env_id": "toy/Counter-v0",
        "episodes": 3,
        "transitions": 6,
        "return_mean": 21.0,
        "return_min": 3.0,
        "return_max": 56.0,
        "length_min": 1,
        "length_max": 3,
        "terminated": 2,  # one of them as the clock ran out as well
        "truncated": 1,
        "observation_shape": [1],
        "action_shape": [1],
    }
    assert {name: summary[name] for name in expected} == expected
    assert summary["return_std"] == pytest.approx(np.std([3.0, 4.0, 56.0]))
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"actions": np.zeros((5, 1))}, "5 actions for 6 observations"),
        ({"rewards": np.zeros(7)}, "7 rewards for 6 observations"),
        ({"terminated": np.zeros(5, bool)}, "5 terminated for 6"),
        ({"truncated": np.zeros(5, bool)}, "5 truncated for 6"),
        ({"final_observations": np.zeros((2, 1))}, "2 final_observations for 3 episodes"),
        ({"final_observations": np.zeros((3, 2))}, r"shape \(1,\), final ones of \(2,\)"),
        ({"seeds": np.zeros(4, int)}, "4 seeds for 3 episodes"),
        ({"episode_lengths": np.array([2, 1, 4])}, "7 steps for 6"),
        ({"episode_lengths": np.array([3, 0, 3])}, "an episode without transitions"),
        ({"episode_lengths": np.array([1, 2, 3])}, "do not end where"),
        ({"episode_lengths": np.array([-2, 5, 3])}, "an episode without transitions"),
        ({"terminated": np.zeros(6, bool)}, "do not end where"),
        ({"truncated": np.array([True, False, True, False, False, True])}, "do not end where"),
        ({name: values[:0] for name, values in arrays().items()}, "an episode without transitions"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(changes, fault, tmp_path):
    with pytest.raises(ValueError, match=fault):
        dataset(**changes)
    path = saved(tmp_path, **changes)
    with pytest.raises(FileFormatError, match=fault) as refusal:
        DemoDataset.load(path)
    assert str(path) in str(refusal.value)


def with_fault(name, row, value):
    values = np.array(arrays()[name])
    values[row] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (with_fault("observations", 4, np.nan), r"observations of episode 2, step 1, after action \[0\.2"),
        (with_fault("observations", 2, np.nan), r"observations of episode 1, step 0$"),
        (with_fault("actions", 5, np.inf), r"actions of episode 2, step 2, after action \[0\.20"),
        (with_fault("rewards", 1, -np.inf), r"rewards of episode 0, step 1, after action \[0\.00999"),
        (with_fault("final_observations", 1, np.nan), "final observation of episode 1"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_place(changes, place, tmp_path):
    with pytest.raises(ValueError, match=place):
        dataset(**changes)
    with pytest.raises(FileFormatError, match=place):
        DemoDataset.load(saved(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"observations": arrays()["observations"].astype(np.uint8), "final_observations": np.zeros((3, 1), np.uint8)},
        {"observations": np.arange(6), "final_observations": np.arange(3)},
        {"observations": np.zeros((6, 2, 3)), "final_observations": np.ones((3, 2, 3))},
        {"actions": np.arange(6)},
        {"actions": np.zeros((6, 4), np.int8)},
    ],
)
def test_saved_and_loaded_is_the_same(changes, tmp_path):
    demos = dataset(**changes)
    demos.save(tmp_path / "new" / "folder" / "x.npz")
    loaded = DemoDataset.load(tmp_path / "new" / "folder" / "x.npz")
    assert same(loaded, demos)
    loaded.save(tmp_path / "again.npz")
    assert same(DemoDataset.load(str(tmp_path / "again.npz")), demos)


def test_saved_and_loaded_metadata_is_the_same(tmp_path):
    dataset().save(tmp_path / "x.npz")
    assert DemoDataset.load(tmp_path / "x.npz").metadata == {"env_id": "toy/Counter-v0", "seed": 3}


def test_metadata_that_a_file_cannot_hold_are_refused_and_the_older_file_stays(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileWriteError, match="of the metadata, Object of type ndarray is not JSON serializable"):
        DemoDataset(**arrays(), metadata={"env_id": "toy/Counter-v0", "gains": [np.ones(2)]}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_of_any_name_does_not_make_a_file_unreadable(tmp_path):
    demos = DemoDataset(**arrays(), metadata={"format": "mine", "format_version": 7})
    demos.save(tmp_path / "x.npz")
    assert same(DemoDataset.load(tmp_path / "x.npz"), demos)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    demos, path = dataset(), tmp_path / "x.npz"
    demos.save(path)
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 3):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        try:
            assert same(DemoDataset.load(path), demos), f"byte {place}"
        except FileFormatError:
            refused += 1
    assert refused > sum(getattr(demos, name).nbytes for name in NAMES) // 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FileFormatError, match=r"demos\.npz (is damaged|holds)"):
        DemoDataset.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileMissingError, match=r"there is no file .*none\.npz"):
        DemoDataset.load(tmp_path / "none.npz")
    with pytest.raises(FileMissingError, match="the path is empty; expected that of a file of demonstrations"):
        DemoDataset.load("")
    with pytest.raises(FileFormatError, match="not a regular file"):
        DemoDataset.load(tmp_path)


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", obs=np.zeros(3), acts=np.zeros(3))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("observations, actions")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for name in ("other.npz", "one.npy", "text.npz", "zip.npz"):
        with pytest.raises(FileFormatError, match=name):
            DemoDataset.load(tmp_path / name)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_refused_with_both(version, tmp_path):
    path = tmp_path / "x.npz"
    text = json.dumps({"format": "il_based_rl demonstrations", "format_version": version})
    np.savez(path, metadata_json=np.array(text), **arrays())
    with pytest.raises(FileFormatError, match=f"format version {version}.*reads version 1"):
        DemoDataset.load(path)


def test_a_file_without_one_of_the_arrays_is_refused_by_its_name(tmp_path):
    path = tmp_path / "x.npz"
    write_arrays(path, {name: values for name, values in arrays().items() if name != "seeds"}, {})
    with pytest.raises(FileFormatError, match="lacks seeds"):
        DemoDataset.load(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("observations", np.array([["a"]] * 6)),
        ("actions", np.zeros((6, 1), complex)),
        ("rewards", np.array(["1"] * 6)),
        ("terminated", np.zeros(6)),
        ("seeds", np.array(["1"] * 3)),
        ("episode_lengths", np.array(3)),
    ],
)
def test_arrays_of_other_than_numbers_are_refused(name, values, tmp_path):
    with pytest.raises(FileFormatError, match=r"demos\.npz"):
        DemoDataset.load(saved(tmp_path, **{name: values}))


def test_whole_numbers_are_needed_where_things_are_counted(tmp_path):
    with pytest.raises(FileFormatError, match=r"demos\.npz (is damaged|holds)"):
        DemoDataset.load(saved(tmp_path, episode_lengths=np.array([2.0, 1.0, 3.0])))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_inside_a_file_is_never_executed(tmp_path):
    fuse = tmp_path / "exploded"
    for name in ("observations", "metadata_json"):
        path = tmp_path / f"{name}.npz"
        bomb = np.empty(6, object)
        bomb[:] = [Bomb(fuse)] * 6
        contents = {"metadata_json": np.array("{}"), **arrays(), name: bomb}
        np.savez(path, **contents)
        with pytest.raises(FileFormatError, match=name):
            DemoDataset.load(path)
    assert not fuse.exists()


def test_a_bare_pickle_is_never_executed(tmp_path):
    fuse, path = tmp_path / "exploded", tmp_path / "x.npz"
    path.write_bytes(pickle.dumps(Bomb(fuse)))
    with pytest.raises(FileFormatError, match="damaged or is not"):
        DemoDataset.load(path)
    assert not fuse.exists()
    pickle.load(io.BytesIO(path.read_bytes())).close()  # it would have
    assert fuse.exists()


def test_observations_of_bits_survive_a_file(tmp_path):
    given = dataset(observations=np.eye(6, 3, dtype=bool), final_observations=np.zeros((3, 3), bool))
    given.save(tmp_path / "bits.npz")
    assert same(DemoDataset.load(tmp_path / "bits.npz"), given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("terminated", np.zeros(6, np.int64)),
        ("seeds", np.array([100.0, 101.0, 102.0])),
        ("rewards", np.zeros(6, complex)),
        ("actions", [[0.0]] * 6),
        ("episode_lengths", np.float64(6)),
    ],
)
def test_what_a_file_could_not_hold_is_refused_at_once(name, given):
    with pytest.raises(ValueError, match=f"hold {name} of type .*; expected an array of"):
        dataclasses.replace(dataset(), **{name: given})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int16])
def test_lengths_of_any_whole_type_count_rows(dtype):
    other = dataset(episode_lengths=dataset().episode_lengths.astype(dtype))
    assert same(other.select([1]), dataset().select([1]))
    assert other.fingerprint == dataset().fingerprint


def test_distributions_of_another_width_are_not_joined():
    narrow, wide = (dataset(distributions=np.zeros((len(dataset()), width))) for width in (1, 2))
    assert DemoDataset.joined([narrow, wide], {}).distributions is None
    assert DemoDataset.joined([wide, wide], {}).distributions.shape == (2 * len(dataset()), 2)


def test_joined_with_a_disturbed_one_the_labels_of_the_other_were_executed():
    still = dataset()
    noisy = dataclasses.replace(still, executed_actions=still.actions + 1)
    joined = DemoDataset.joined([still, noisy], {})
    assert joined.executed_actions.tolist() == [*still.actions.tolist(), *(still.actions + 1).tolist()]
    assert same(DemoDataset.joined((part for part in [still, noisy]), {}), joined)
    with pytest.raises(ValueError, match="no data sets to join"):
        DemoDataset.joined([], {})
