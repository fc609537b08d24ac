"""Behavioural cloning, from demonstrations to a student."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from il_based_rl.agent import BCAgent
from il_based_rl.config import BCConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import (
    ArchitectureMismatchError,
    ConfigError,
    FileFormatError,
    FileMissingError,
    FileWriteError,
    SpaceMismatchError,
    TrainingDivergedError,
)
from il_based_rl.policy import MLPPolicy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.spaces import space_to_plain

PLANE = spaces.Box(-np.inf, np.inf, (2,))
FIXED = 1e-12  # a learning rate at which float32 weights do not move
BOTH_PATHS = pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "reference path"])


def demos_of(observations, actions, observation_space, action_space, num_episodes=5):
    """These transitions in so many episodes of equal length."""
    length, rest = divmod(len(observations), num_episodes)
    assert rest == 0
    truncated = np.zeros(len(observations), bool)
    truncated[length - 1 :: length] = True
    return DemoDataset(
        observations=np.asarray(observations),
        actions=np.asarray(actions),
        rewards=np.zeros(len(observations)),
        terminated=np.zeros(len(observations), bool),
        truncated=truncated,
        final_observations=np.asarray(observations)[:num_episodes],
        episode_lengths=np.full(num_episodes, length, np.int64),
        seeds=np.arange(num_episodes),
        metadata={
            "observation_space": space_to_plain(observation_space),
            "action_space": space_to_plain(action_space),
        },
    )


def linear_actions(observations):
    """A map whose answers stay far inside bounds of -10 and 10."""
    return np.stack([0.5 * observations[:, 0] - observations[:, 1] + 1.0, 0.25 * observations[:, 1] - 2.0], -1)


def linear_demos(count=400, num_episodes=5, seed=0):
    observations = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    actions = linear_actions(observations).astype(np.float32)
    return demos_of(observations, actions, PLANE, spaces.Box(-10.0, 10.0, (2,)), num_episodes)


def with_changed_episode(dataset, name, episode):
    """The data set with one array of one episode moved a little."""
    rows = np.flatnonzero(np.repeat(np.arange(dataset.num_episodes), dataset.episode_lengths) == episode)
    changed = np.array(getattr(dataset, name))
    changed[rows] += 0.5
    return replace(dataset, **{name: changed})


def cloned(dataset, config, seed=0, hidden_dims=(8,)):
    agent = BCAgent.for_dataset(dataset, config, hidden_dims=hidden_dims, seed=seed)
    return agent, [progress.metrics for progress in agent.learn(dataset)]


def state_of(agent):
    return b"".join(tensor.numpy().tobytes() for tensor in agent.policy.state_dict().values())


def held_out_episodes(dataset, config, seed=0):
    """Which episodes leave a student as it is when their actions change."""
    before = state_of(cloned(dataset, config, seed)[0])
    changed = [with_changed_episode(dataset, "actions", k) for k in range(dataset.num_episodes)]
    return [k for k, other in enumerate(changed) if state_of(cloned(other, config, seed)[0]) == before]


# ---- behaviour ----


@BOTH_PATHS
def test_a_linear_map_is_cloned(fast_path):
    dataset = linear_demos()
    agent, _ = cloned(dataset, BCConfig(epochs=60, lr=0.03, fast_path=fast_path), hidden_dims=())
    observations = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    np.testing.assert_allclose(agent.predict(observations), linear_actions(observations), atol=0.01)


def test_a_curve_is_cloned_by_hidden_layers():
    observations = np.random.default_rng(0).uniform(-2.0, 2.0, size=(1000, 1)).astype(np.float32)
    dataset = demos_of(observations, np.sin(2.0 * observations), spaces.Box(-2, 2, (1,)), spaces.Box(-1.0, 1.0, (1,)))
    agent, _ = cloned(dataset, BCConfig(epochs=60, lr=3e-3), hidden_dims=(32, 32))
    grid = np.linspace(-1.9, 1.9, 50, dtype=np.float32)[:, None]
    np.testing.assert_allclose(agent.predict(grid), np.sin(2.0 * grid), atol=0.06)


def test_observations_of_any_scale_are_cloned_alike():
    # Without statistics of its own a student would see the first feature only.
    observations = np.random.default_rng(0).normal(size=(400, 2)) * [1e5, 1e-2] + [3e6, 0.5]
    standard = (observations - [3e6, 0.5]) / [1e5, 1e-2]
    actions = (standard @ [[0.2], [0.3]]).astype(np.float32)
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    agent, _ = cloned(
        demos_of(observations, actions, space, spaces.Box(-10.0, 10.0, (1,))), BCConfig(epochs=60, lr=0.03), 0, ()
    )
    np.testing.assert_allclose(agent.predict(observations), actions, atol=0.02)


@BOTH_PATHS
@pytest.mark.parametrize(
    ("action_space", "rule"),
    [
        (spaces.Discrete(3, start=5), lambda x: 5 + (x[:, 0] > 0) + (x[:, 1] > 0)),
        (spaces.MultiDiscrete([2, 3]), lambda x: np.stack([x[:, 0] > 0, (x[:, 0] > 0) + 1 * (x[:, 1] > 0)], -1).astype(int)),
        (spaces.MultiBinary(2), lambda x: (x > 0).astype(np.int8)),
    ],
    ids=["discrete", "multi-discrete", "bits"],
)
def test_choices_are_cloned(action_space, rule, fast_path):
    random = np.random.default_rng(0)
    # Away from the borders, where no student can be right.
    observations = (random.choice([-1.0, 1.0], size=(400, 2)) * random.uniform(0.3, 1.0, size=(400, 2))).astype(np.float32)
    dataset = demos_of(observations, rule(observations), PLANE, action_space)
    agent, metrics = cloned(dataset, BCConfig(epochs=60, lr=0.01, fast_path=fast_path), hidden_dims=(16,))
    assert agent.predict(observations).tolist() == rule(observations).tolist()
    assert metrics[-1]["train_loss"] < 0.05


def test_a_student_learns_how_often_each_choice_was_made():
    # 3 of 4 demonstrations choose 1: sampling does so as often. 2,000 samples have a standard error of 0.01.
    observations = np.zeros((400, 2), np.float32)
    dataset = demos_of(observations, np.tile([1, 1, 0, 1], 100), PLANE, spaces.Discrete(2), num_episodes=4)
    agent, metrics = cloned(dataset, BCConfig(epochs=100, lr=0.05, batch_size=100), hidden_dims=())
    sampled = agent.predict(np.zeros((2000, 2), np.float32), deterministic=False)
    assert sampled.mean() == pytest.approx(0.75, abs=0.03)
    assert agent.predict(np.zeros(2, np.float32)) == 1
    # The entropy of the demonstrations: -(0.75 ln 0.75 + 0.25 ln 0.25)
    assert metrics[-1]["train_loss"] == pytest.approx(0.5623351, abs=1e-3)


def test_both_paths_clone_the_same_student():
    dataset = linear_demos()
    students = [cloned(dataset, BCConfig(epochs=5, fast_path=fast_path)) for fast_path in (True, False)]
    assert [agent.reason_against_fast_path is None for agent, _ in students] == [True, False]
    (one, one_metrics), (other, other_metrics) = students
    for name, tensor in one.policy.state_dict().items():
        torch.testing.assert_close(tensor, other.policy.state_dict()[name], rtol=1e-3, atol=1e-5)
    for found, wanted in zip(one_metrics, other_metrics, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


# ---- the loss ----


def student_of_zeros(observation_space, action_space, config):
    """A linear student whose every output is 0, at a learning rate that leaves it so."""
    policy = MLPPolicy(observation_space, action_space, ())
    with torch.no_grad():
        policy.network.layers[0].weight.zero_()
    return BCAgent(policy, replace(config, lr=FIXED), seed=0)


@BOTH_PATHS
def test_the_loss_of_box_actions_is_the_mean_squared_error_in_half_ranges(fast_path):
    # Half range 4 around 2: actions 2, 4, 6, -2 are 0, 0.5, 1, -1 half ranges from the centre: (0 + 0.25 + 1 + 1) / 4
    space = spaces.Box(-2.0, 6.0, (1,))
    dataset = demos_of(np.zeros((4, 2), np.float32), np.array([[2.0], [4.0], [6.0], [-2.0]], np.float32), PLANE, space, 1)
    (progress,) = student_of_zeros(PLANE, space, BCConfig(epochs=1, fast_path=fast_path)).learn(dataset)
    assert progress.metrics["train_loss"] == pytest.approx(0.5625, rel=1e-6)


@BOTH_PATHS
@pytest.mark.parametrize(
    ("action_space", "actions", "loss"),
    [
        (spaces.Discrete(3, start=1), [1, 2, 3, 3], math.log(3)),
        (spaces.MultiDiscrete([2, 4]), [[0, 3], [1, 0], [1, 2], [0, 1]], math.log(2) + math.log(4)),
        (spaces.MultiBinary(3), [[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]], 3 * math.log(2)),
    ],
    ids=["discrete", "multi-discrete", "bits"],
)
def test_the_loss_of_choices_is_the_cross_entropy(action_space, actions, loss, fast_path):
    # An indifferent student finds each choice as likely as the others.
    dataset = demos_of(np.zeros((4, 2), np.float32), np.array(actions), PLANE, action_space, 1)
    (progress,) = student_of_zeros(PLANE, action_space, BCConfig(epochs=1, fast_path=fast_path)).learn(dataset)
    assert progress.metrics["train_loss"] == pytest.approx(loss, rel=1e-6)


@BOTH_PATHS
def test_the_training_loss_is_the_mean_over_all_transitions_once_each(fast_path):
    # Squared actions 1, 4, ..., 100 have the mean 38.5; a last minibatch of two must count as two transitions, not as four.
    space = spaces.Box(-np.inf, np.inf, (1,))
    dataset = demos_of(np.zeros((10, 2), np.float32), np.arange(1.0, 11.0, dtype=np.float32)[:, None], PLANE, space, 1)
    agent = student_of_zeros(PLANE, space, BCConfig(epochs=3, batch_size=4, fast_path=fast_path))
    assert [p.metrics["train_loss"] for p in agent.learn(dataset)] == pytest.approx([38.5] * 3, rel=1e-6)


def test_minibatches_come_in_another_order_in_each_epoch():
    # One transition at a time, each known by its action.
    space = spaces.Box(-np.inf, np.inf, (1,))
    dataset = demos_of(np.zeros((50, 2), np.float32), np.arange(50.0, dtype=np.float32)[:, None], PLANE, space, 1)
    policy, seen = MLPPolicy(PLANE, space, ()), []
    head_loss = policy.head.cloning_loss

    def recorded(outputs, raw):
        seen.append(int(raw[0, 0]))
        return head_loss(outputs, raw)

    policy.head.cloning_loss = recorded
    list(BCAgent(policy, BCConfig(epochs=3, batch_size=1, fast_path=False), seed=0).learn(dataset))
    epochs = [tuple(seen[start : start + 50]) for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({*epochs, tuple(range(50))}) == 4


# ---- what is held out ----


@pytest.mark.parametrize(("fraction", "expected"), [(0.4, 2), (0.2, 1), (0.01, 1), (0.99, 4)])
def test_held_out_episodes_are_whole_and_never_trained_on(fraction, expected):
    config = BCConfig(epochs=2, lr=0.01, validation_fraction=fraction)
    assert len(held_out_episodes(linear_demos(50), config)) == expected


@BOTH_PATHS
def test_statistics_come_from_the_training_episodes_alone(fast_path):
    dataset, config = linear_demos(50), BCConfig(epochs=1, validation_fraction=0.4, fast_path=fast_path)
    held_out = held_out_episodes(dataset, config)
    training = dataset.select([k for k in range(5) if k not in held_out]).observations
    normalizer = cloned(dataset, config)[0].policy.normalizer
    assert normalizer.count.item() == len(training) == 30
    np.testing.assert_allclose(normalizer.mean.numpy(), training.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(normalizer.variance.numpy(), training.var(0, dtype=np.float64), rtol=1e-6)
    for k in held_out:
        assert state_of(cloned(with_changed_episode(dataset, "observations", k), config)[0]) == state_of(
            cloned(dataset, config)[0]
        )


def test_the_validation_loss_is_that_of_the_held_out_episodes():
    # In units of half the range, which is 10.
    dataset, config = linear_demos(50), BCConfig(epochs=3, validation_fraction=0.4)
    held_out = dataset.select(held_out_episodes(dataset, config))
    agent, metrics = cloned(dataset, config)
    errors = (agent.predict(held_out.observations) - held_out.actions) / 10.0
    assert metrics[-1]["validation_loss"] == pytest.approx(np.mean(errors**2), rel=1e-5)


def test_which_episodes_are_held_out_depends_on_the_seed():
    dataset, config = linear_demos(80, num_episodes=8), BCConfig(epochs=1, validation_fraction=0.25)
    chosen = {tuple(held_out_episodes(dataset, config, seed)) for seed in range(4)}
    assert all(len(episodes) == 2 for episodes in chosen)
    assert len(chosen) > 1


@pytest.mark.parametrize("num_episodes", [1, 5])
def test_without_validation_every_transition_is_trained_on(num_episodes):
    # One episode is trained on whole whatever the fraction; several are with a fraction of 0.
    dataset = linear_demos(20, num_episodes)
    config = BCConfig(epochs=1, validation_fraction=0.5 if num_episodes == 1 else 0.0)
    agent, metrics = cloned(dataset, config)
    assert "validation_loss" not in metrics[0]
    assert agent.policy.normalizer.count.item() == 20.0
    for row in range(20):
        changed = dataset.actions.copy()
        changed[row] += 0.5
        assert state_of(cloned(replace(dataset, actions=changed), config)[0]) != state_of(agent)


# ---- the loop ----


def test_epochs_are_counted_and_the_learning_rate_falls_to_zero():
    dataset = linear_demos(50)
    agent = BCAgent.for_dataset(dataset, BCConfig(epochs=4, lr=0.04), hidden_dims=(8,), seed=0)
    progress = list(agent.learn(dataset))
    assert [each.epoch for each in progress] == [1, 2, 3, 4]
    assert [each.metrics["learning_rate"] for each in progress] == pytest.approx([0.04, 0.03, 0.02, 0.01])
    assert agent.epochs == 4


def test_a_stopped_run_goes_on_with_the_epoch_that_follows():
    dataset = linear_demos(50)
    agent = BCAgent.for_dataset(dataset, BCConfig(epochs=4, lr=0.04), hidden_dims=(8,), seed=0)
    next(agent.learn(dataset))
    rest = list(agent.learn(dataset))
    assert [each.epoch for each in rest] == [2, 3, 4]
    assert rest[0].metrics["learning_rate"] == pytest.approx(0.03)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    dataset, config = linear_demos(50), BCConfig(epochs=3, batch_size=8)
    one, same, other = (cloned(dataset, config, seed) for seed in (0, 0, 1))
    assert state_of(one[0]) == state_of(same[0]) != state_of(other[0])
    assert one[1] == same[1]


def test_a_constant_feature_does_not_blow_up_when_it_moves():
    # Divided by its spread of zero it would saturate the student at the slightest change.
    dataset = linear_demos()
    observations = np.concatenate([dataset.observations[:, :1], np.full((400, 1), 3.0, np.float32)], 1)
    agent, _ = cloned(replace(dataset, observations=observations, final_observations=observations[:5]), BCConfig(epochs=5))
    calm, moved = agent.predict(np.array([[0.5, 3.0], [0.5, 3.001]], np.float32))
    np.testing.assert_allclose(moved, calm, atol=0.02)


@pytest.mark.usefixtures("global_generators_untouched")
def test_the_agent_leaves_the_global_generators_alone(tmp_path):
    agent, _ = cloned(linear_demos(50), BCConfig(epochs=2))
    agent.predict(np.zeros(2, np.float32), deterministic=False)
    agent.save(tmp_path / "student.pt")
    BCAgent.load(tmp_path / "student.pt")
    BCAgent.for_dataset(linear_demos(50))


def test_predicting_leaves_the_student_as_it_is():
    agent, _ = cloned(linear_demos(50), BCConfig(epochs=1))
    before = state_of(agent)
    agent.predict(np.full((10, 2), 9.0, np.float32))
    agent.predict(np.full(2, -9.0, np.float32), deterministic=False)
    assert state_of(agent) == before


def test_a_student_of_box_actions_has_one_answer_only():
    agent, _ = cloned(linear_demos(50), BCConfig(epochs=1))
    obs = np.array([0.5, -0.5], np.float32)
    assert agent.predict(obs, deterministic=False).tolist() == agent.predict(obs).tolist()


def test_a_student_of_choices_samples_when_asked_to():
    dataset = demos_of(np.zeros((20, 2), np.float32), np.tile([0, 1], 10), PLANE, spaces.Discrete(2))
    agent, _ = cloned(dataset, BCConfig(epochs=1))
    batch = np.zeros((100, 2), np.float32)
    assert len(set(agent.predict(batch).tolist())) == 1
    assert len(set(agent.predict(batch, deterministic=False).tolist())) == 2


def test_a_fresh_student_has_the_spaces_that_the_demonstrations_name():
    dataset = demos_of([0, 1, 2, 3], [5, 6, 5, 6], spaces.Discrete(4), spaces.Discrete(2, start=5), 2)
    agent = BCAgent.for_dataset(dataset, hidden_dims=(7,), seed=0)
    assert agent.policy.observation_space == spaces.Discrete(4)
    assert agent.policy.action_space == spaces.Discrete(2, start=5)
    assert agent.hidden_dims == (7,)


def test_whole_number_observations_are_cloned_one_by_one():
    # A table: every second place wants the other action.
    places = np.tile(np.arange(6), 20)
    dataset = demos_of(places, places % 2, spaces.Discrete(6), spaces.Discrete(2))
    agent, _ = cloned(dataset, BCConfig(epochs=40, lr=0.05))
    assert agent.predict(np.arange(6)).tolist() == [0, 1, 0, 1, 0, 1]


# ---- files ----


def test_a_saved_student_comes_back_whole(tmp_path):
    agent, _ = cloned(linear_demos(50), BCConfig(epochs=2, lr=0.01), seed=3)
    agent.save(tmp_path / "deep" / "student.pt")
    loaded = BCAgent.load(tmp_path / "deep" / "student.pt", hidden_dims=[8])
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    assert loaded.predict(obs).tobytes() == agent.predict(obs).tobytes()
    assert state_of(loaded) == state_of(agent)
    assert (loaded.epochs, loaded.seed, loaded.config, loaded.hidden_dims) == (2, 3, agent.config, (8,))


def saved(tmp_path):
    BCAgent(MLPPolicy(PLANE, spaces.Discrete(2), (8, 4)), seed=0).save(tmp_path / "student.pt")
    return tmp_path / "student.pt"


def test_layer_sizes_that_contradict_the_file_are_refused_with_both(tmp_path):
    with pytest.raises(ArchitectureMismatchError, match=r"student.pt has hidden_dims \[8, 4\], not \[256, 256\]"):
        BCAgent.load(saved(tmp_path), hidden_dims=(256, 256))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileMissingError, match=r"there is no file .*nowhere\.pt"):
        BCAgent.load(tmp_path / "nowhere.pt")


def test_a_damaged_file_is_refused(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(FileFormatError, match=r"student\.pt is damaged"):
        BCAgent.load(path)


def test_an_experts_file_is_refused(tmp_path):
    PPOAgent.for_spaces(PLANE, spaces.Discrete(2), hidden_dims=(8,), seed=0).save(tmp_path / "expert.pt")
    with pytest.raises(FileFormatError, match=r"holds a ppo agent, not a student; load it with PPOAgent\.load"):
        BCAgent.load(tmp_path / "expert.pt")


@pytest.mark.parametrize("missing", ["config", "seed", "epochs"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, missing):
    from il_based_rl.files import read_checkpoint

    payload = read_checkpoint(saved(tmp_path))
    del payload["training"][missing]
    with pytest.raises(FileFormatError, match=f"student.pt is damaged: '{missing}'"):
        BCAgent.from_payload(payload, "student.pt")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileWriteError, match=r"cannot write .*student\.pt"):
        BCAgent(MLPPolicy(PLANE, spaces.Discrete(2), (8,)), seed=0).save(tmp_path / "file" / "student.pt")


# ---- refusals while learning ----


@pytest.mark.parametrize(
    ("policy_spaces", "message"),
    [
        ((spaces.Box(-1, 1, (3,)), spaces.Box(-10, 10, (2,))), r"observations of shape \(2,\) .*the policy reads \(3,\)"),
        ((PLANE, spaces.Box(-10, 10, (3,))), r"actions of shape \(2,\), the policy reads \(2,\) and writes \(3,\)"),
        ((PLANE, spaces.Discrete(4)), r"actions of shape \(2,\), .* writes \(\)"),
        ((PLANE, spaces.MultiBinary(2)), "do not fit the policy's spaces: .* neither 0 nor 1"),
        ((PLANE, spaces.MultiDiscrete([2, 2])), "do not fit the policy's spaces: an action is no whole number"),
    ],
)
def test_demonstrations_that_do_not_fit_the_policy_are_refused(policy_spaces, message):
    agent = BCAgent(MLPPolicy(*policy_spaces, (8,)), seed=0)
    before = state_of(agent)
    with pytest.raises(SpaceMismatchError, match=message):
        next(agent.learn(linear_demos(50)))
    assert state_of(agent) == before


@pytest.mark.parametrize(
    ("places", "actions"), [([0, 1, 2, 4], [0, 1, 0, 1]), ([0, 1, 2, -1], [0, 1, 0, 1]), ([0, 1, 2, 3], [0, 1, 0, 2])]
)
def test_whole_numbers_outside_the_policys_spaces_are_refused(places, actions):
    dataset = demos_of(places, actions, spaces.Discrete(9), spaces.Discrete(9), 1)
    agent = BCAgent(MLPPolicy(spaces.Discrete(4), spaces.Discrete(2), (8,)), seed=0)
    with pytest.raises(SpaceMismatchError, match="do not fit the policy's spaces"):
        next(agent.learn(dataset))


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_demonstrations_that_name_no_spaces_need_a_policy(missing):
    dataset = linear_demos(50)
    metadata = {name: plain for name, plain in dataset.metadata.items() if name != missing}
    nameless = replace(dataset, metadata=metadata)
    with pytest.raises(SpaceMismatchError, match=r"name no observation_space and action_space; .*space_to_plain"):
        BCAgent.for_dataset(nameless)
    agent = BCAgent(MLPPolicy(PLANE, spaces.Box(-10, 10, (2,)), (8,)), BCConfig(epochs=1), seed=0)
    assert len(list(agent.learn(nameless))) == 1


def test_demonstrations_of_damaged_spaces_are_refused():
    dataset = linear_demos(50)
    with pytest.raises(FileFormatError, match="action_space is damaged"):
        BCAgent.for_dataset(replace(dataset, metadata={**dataset.metadata, "action_space": {"kind": "Text"}}))


def test_observations_beyond_float32_are_refused():
    dataset = linear_demos(50)
    observations = dataset.observations.astype(np.float64)
    observations[7, 1] = 1e200
    agent = BCAgent(MLPPolicy(PLANE, spaces.Box(-10, 10, (2,)), (8,)), BCConfig(epochs=1, validation_fraction=0.0), seed=0)
    with pytest.raises(SpaceMismatchError, match="observation 7 of 50 holds a number that is too large for float32"):
        agent.require_fits(replace(dataset, observations=observations))


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_is_told(fast_path):
    dataset, actions = linear_demos(200), spaces.Box(-np.inf, np.inf, (2,))
    far = dataset.actions.copy()
    far[3, 0] = 1e30
    config = BCConfig(epochs=2, validation_fraction=0.0, fast_path=fast_path)
    agent = BCAgent(MLPPolicy(PLANE, actions, (8,)), config, seed=0)
    with pytest.raises(TrainingDivergedError, match=r"cloning diverged in epoch 1: "):
        list(agent.learn(replace(dataset, actions=far, metadata={})))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverged_student_stops_learning():
    agent = BCAgent.for_dataset(linear_demos(200), BCConfig(epochs=5, lr=1e38), hidden_dims=(8,), seed=0)
    with pytest.raises(TrainingDivergedError, match=r"cloning diverged in epoch \d: .* lower --lr \(now 1e\+38\)"):
        list(agent.learn(linear_demos(200)))


def test_a_student_that_has_had_its_epochs_is_left_as_it_is():
    student, _ = cloned(linear_demos(), BCConfig(epochs=1))
    before = state_of(student)
    with pytest.raises(ConfigError, match="has had its 1 epochs"):
        next(student.learn(linear_demos(seed=9)))
    assert state_of(student) == before
