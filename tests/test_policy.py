"""From observations to actions."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st

from il_based_rl.errors import (
    ArchitectureMismatchError,
    ConfigError,
    FileFormatError,
    NotFiniteError,
    SpaceMismatchError,
    UnsupportedSpaceError,
)
from il_based_rl.policy import MLPPolicy, arguments_from, load_parameters, require_hidden_dims, require_spaces
from il_based_rl.ppo_agent import PPOAgent
from tests.conftest import action_spaces, observation_spaces

PLANE = spaces.Box(-np.inf, np.inf, (2,))
TAXI = max(name for name in gym.registry if name.startswith("Taxi-v"))  # the newest that is registered
ACTION_SPACES = [
    spaces.Box(-2.0, 3.0, (2,)),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3], start=[5, 0]),
    spaces.MultiBinary(3),
]


def policy_of(observation_space=PLANE, action_space=ACTION_SPACES[0], hidden_dims=(8,), seed=0, loudness=1.0):
    """A policy whose outputs are `loudness` times as large as those of a fresh one, which are all near 0."""
    policy = MLPPolicy(observation_space, action_space, hidden_dims, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        policy.network.layers[-1].weight.mul_(loudness)
    return policy


def inside(space, action):
    return space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)


def observed(space, count, seed=0):
    space.seed(seed)
    observations = [space.sample() for _ in range(count)]
    return observations, concatenate(space, observations, create_empty_array(space, n=count))


@settings(max_examples=80, deadline=None)
@given(observation_space=observation_spaces(), action_space=action_spaces(), seed=st.integers(0, 100))
def test_actions_are_inside_the_space_for_one_observation_and_for_a_batch(observation_space, action_space, seed):
    policy = policy_of(observation_space, action_space, (4,), loudness=100.0)
    observations, batch = observed(observation_space, 3, seed)
    log_std = np.full(policy.head.num_outputs, 2.0, np.float32)
    for random in (None, np.random.default_rng(seed)):
        assert inside(action_space, policy.predict(observations[0], random, log_std))
        actions = policy.predict(batch, random, log_std)
        assert len(actions) == 3
        assert all(inside(action_space, action) for action in actions)


@settings(max_examples=50, deadline=None)
@given(observation_space=observation_spaces(), action_space=action_spaces())
def test_a_batch_gets_the_actions_of_its_observations_one_by_one(observation_space, action_space):
    policy = policy_of(observation_space, action_space, (4,), loudness=30.0)
    observations, batch = observed(observation_space, 4)
    one_by_one = np.stack([policy.predict(obs) for obs in observations])
    together = policy.predict(batch)
    assert together.dtype == one_by_one.dtype
    # Matrix products of one row and of many may differ in the last digit, which float16 and whole numbers then show.
    np.testing.assert_allclose(together.astype(float), one_by_one.astype(float), rtol=2e-3, atol=1e-5)


def test_a_linear_policy_by_hand():
    # No hidden layer: raw action 0.25*2 - 0.5*1 + 0.25 = 0.25; the box from 0 to 8 has centre 4, half range 4: 5.
    policy = policy_of(PLANE, spaces.Box(0.0, 8.0, (1,)), ())
    with torch.no_grad():
        policy.network.layers[0].weight.copy_(torch.tensor([[0.25, -0.5]]))
        policy.network.layers[0].bias.fill_(0.25)
    assert policy.predict(np.array([2.0, 1.0], np.float32)).tolist() == [5.0]
    # Statistics of mean (1, 1) and variance 1 move the observation to (1, 0): 0.25 + 0.25 = 0.5, so 6.
    policy.normalizer.fit(np.array([[0.0, 0.0], [2.0, 2.0]]))
    assert policy.predict(np.array([2.0, 1.0], np.float32)).tolist() == pytest.approx([6.0], rel=1e-6)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_numpy_form_computes_the_same_as_torch(action_space, activation):
    policy = MLPPolicy(PLANE, action_space, (16, 8), activation=activation, generator=torch.Generator().manual_seed(1))
    random = np.random.default_rng(0)
    policy.normalizer.update(random.normal(3.0, 5.0, size=(100, 2)))
    features = random.normal(3.0, 5.0, size=(20, 2)).astype(np.float32)
    expected = policy(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(policy.as_numpy()(features), expected, rtol=1e-5, atol=1e-7)


def test_a_single_discrete_action_is_a_whole_number_that_can_be_a_key():
    # Tabular environments look the action up in a dict, which an array cannot be a key of.
    action = policy_of(PLANE, spaces.Discrete(3, start=4)).predict(np.zeros(2, np.float32))
    assert isinstance(action, np.integer)
    assert {4: "a", 5: "b", 6: "c"}[action] in "abc"


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", TAXI, "Blackjack-v1", "Pendulum-v1"])
@pytest.mark.parametrize("sample", [False, True])
def test_gymnasiums_environments_take_the_actions(env_id, sample):
    env = gym.make(env_id)
    policy = MLPPolicy(env.observation_space, env.action_space, (8,), generator=torch.Generator().manual_seed(0))
    random = np.random.default_rng(0) if sample else None
    log_std = np.zeros(1, np.float32)
    obs, _ = env.reset(seed=0)
    for _ in range(10):
        action = policy.predict(obs, random, log_std)
        assert env.action_space.contains(action)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
    env.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "Pendulum-v1"])
def test_the_observations_of_vector_environments_are_read_as_batches(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    policy = policy_of(envs.single_observation_space, envs.single_action_space)
    obs, _ = envs.reset(seed=0)
    actions = policy.predict(obs)
    assert actions.shape == (3, *(envs.single_action_space.shape or ()))
    envs.step(actions)
    envs.close()


def test_observations_may_be_plain_lists():
    policy = policy_of(loudness=50.0)
    assert policy.predict([0.5, -1.0]).tolist() == policy.predict(np.array([0.5, -1.0])).tolist()


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_without_a_generator_the_most_likely_action_is_taken_each_time(action_space):
    policy, obs = policy_of(PLANE, action_space, loudness=50.0), np.array([0.5, -1.0], np.float32)
    outputs = policy(torch.from_numpy(obs[None])).detach().numpy()
    expected = policy.head.to_env(policy.head.mode(outputs))[0]
    np.testing.assert_allclose(policy.predict(obs), expected, rtol=1e-6)
    assert policy.predict(obs).tolist() == policy.predict(obs).tolist()


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_a_generator_samples_actions_and_is_the_only_source_of_chance(action_space):
    policy, batch = policy_of(PLANE, action_space), np.zeros((20, 2), np.float32)
    log_std = np.zeros(policy.head.num_outputs, np.float32)
    one, same, other = (policy.predict(batch, np.random.default_rng(seed), log_std).tolist() for seed in (0, 0, 1))
    assert one == same != other
    assert any(action != one[0] for action in one)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_predicting_changes_neither_parameters_nor_statistics(action_space):
    policy = policy_of(PLANE, action_space)
    policy.normalizer.update(np.random.default_rng(0).normal(size=(10, 2)))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policy.predict(np.full((50, 2), 9.0), np.random.default_rng(0), np.zeros(policy.head.num_outputs))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_predictions_follow_every_change_of_weights_and_statistics():
    # Whatever a policy keeps from call to call must not outlive what it was made from.
    policy, obs = policy_of(loudness=50.0), np.array([[0.5, -1.0]], np.float32)
    optimizer, hooks = torch.optim.Adam(policy.parameters(), lr=0.1), []

    def learn():
        policy(torch.from_numpy(obs)).sum().backward()
        optimizer.step()

    def share_weights_with_a_hooked_layer():
        layer, twin = policy.network.layers[0], torch.nn.Linear(2, 8)
        twin.weight, twin.bias = layer.weight, layer.bias
        twin.register_forward_hook(lambda *given: given[-1] * 2.0)
        policy.network.layers[0] = twin

    changes = [
        learn,
        lambda: policy.normalizer.update(np.array([[1.0, 2.0], [3.0, 5.0]])),
        lambda: policy.normalizer.update(np.array([[9.0, 9.0]])),
        lambda: policy.normalizer.fit(np.array([[0.0, 0.5], [0.5, 1.0]])),
        lambda: setattr(policy.normalizer, "mean", torch.tensor([0.5, -0.9], dtype=torch.float64)),
        lambda: policy.load_state_dict(policy_of(seed=7, loudness=50.0).state_dict()),
        lambda: setattr(policy.network.layers[0], "weight", torch.nn.Parameter(torch.ones(8, 2))),
        lambda: setattr(policy.network.layers[0].bias, "data", torch.full((8,), 0.75)),
        lambda: policy.network.layers.__setitem__(0, torch.nn.Linear(2, 8)),
        lambda: hooks.append(policy.network.layers[0].register_forward_hook(lambda *given: given[-1] * 0.5)),
        lambda: hooks.pop().remove(),
        share_weights_with_a_hooked_layer,
        lambda: policy.network.register_forward_pre_hook(lambda _, given: (given[0] + 1.0,)),
        lambda: policy.register_forward_hook(lambda *given: given[-1] - 0.25),
    ]
    for change in changes:
        before = policy.predict(obs)
        change()
        after = policy.predict(obs)
        assert (after != before).any()
        expected = policy.head.to_env(policy(torch.from_numpy(obs)).detach().numpy())
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_an_earlier_prediction_is_not_overwritten_by_a_later_one():
    policy = policy_of(PLANE, spaces.Box(-np.inf, np.inf, (2,)), loudness=50.0)
    first = policy.predict(np.ones((3, 2), np.float32))
    kept = first.copy()
    policy.predict(np.full((3, 2), -5.0, np.float32))
    assert first.tolist() == kept.tolist()


def test_threads_that_share_a_policy_get_their_own_answers():
    # Layers wide enough for the products to run side by side.
    policy = policy_of(PLANE, spaces.Box(-np.inf, np.inf, (1,)), (256, 256), loudness=50.0)
    batches = [np.random.default_rng(seed).normal(size=(64, 2)).astype(np.float32) for seed in range(4)]
    alone = [policy.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(30):
            for found, expected in zip(threads.map(policy.predict, batches), alone, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_copy_of_a_policy_acts_and_learns_by_itself():
    policy, obs = policy_of(loudness=50.0), np.array([0.5, -1.0], np.float32)
    before = policy.predict(obs)
    twin = copy.deepcopy(policy)
    assert twin.predict(obs).tolist() == before.tolist()
    with torch.no_grad():
        twin.network.layers[-1].bias.add_(0.3)
    assert twin.predict(obs).tolist() != before.tolist()
    assert policy.predict(obs).tolist() == before.tolist()


def test_a_part_that_was_replaced_acts_as_it_learns():
    policy = policy_of()
    policy.normalizer = torch.nn.Identity()
    obs = np.random.default_rng(0).normal(size=(5, *PLANE.shape)).astype(np.float32)
    np.testing.assert_allclose(policy.predict(obs), policy.head.to_env(policy.as_numpy()(obs)), rtol=1e-6)


@pytest.mark.usefixtures("global_generators_untouched")
def test_a_policy_leaves_the_global_generators_alone():
    policy = MLPPolicy(PLANE, spaces.Discrete(3), (8,))
    policy.predict(np.zeros(2), np.random.default_rng(0))


def test_a_policy_without_a_generator_starts_from_weights_of_its_own():
    one, other = (MLPPolicy(PLANE, spaces.Discrete(3), (8,)) for _ in range(2))
    assert not torch.equal(one.network.layers[0].weight, other.network.layers[0].weight)


def test_a_fresh_policy_is_near_indifferent():
    policy = policy_of(PLANE, spaces.Discrete(3))
    outputs = policy(torch.tensor(np.random.default_rng(0).normal(size=(100, 2)), dtype=torch.float32))
    assert outputs.abs().max() < 0.1


def test_hidden_layers_have_the_sizes_that_were_asked_for():
    policy = policy_of(spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), (7, 4))
    assert [tuple(layer.weight.shape) for layer in policy.network.layers] == [(7, 5), (4, 7), (5, 4)]


@settings(max_examples=60, deadline=None)
@given(observation_space=observation_spaces(), action_space=action_spaces())
def test_an_architecture_that_went_through_json_builds_the_same_policy(observation_space, action_space):
    policy = policy_of(observation_space, action_space, (5, 3), loudness=30.0)
    observations, batch = observed(observation_space, 3)
    policy.normalizer.update(policy.codec.features(policy.codec.rows(batch)[0]))
    copy = MLPPolicy(**arguments_from(json.loads(json.dumps(policy.architecture)), policy.state_dict()))
    load_parameters(copy, policy.state_dict())
    assert copy.hidden_dims == (5, 3)
    for obs in (observations[0], batch):
        one, other = policy.predict(obs), copy.predict(obs)
        assert one.tobytes() == other.tobytes()
        assert one.dtype == other.dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "'gelu' units; it is damaged"),
        ({"hidden_dims": [64, 0]}, r"\(64, 0\) units; it is damaged"),
        ({"hidden_dims": [64.0]}, r"\(64.0,\) units; it is damaged"),
        ({"hidden_dims": 64}, "describes no policy: .* of a wrong type"),
        ({"action_space": {"kind": "Text"}}, "unknown kind 'Text'"),
    ],
)
def test_a_damaged_architecture_is_refused(change, message):
    with pytest.raises(FileFormatError, match=message):
        arguments_from({**policy_of().architecture, **change}, policy_of().state_dict())


@pytest.mark.parametrize("missing", ["observation_space", "action_space", "hidden_dims", "activation"])
def test_an_incomplete_architecture_is_refused(missing):
    architecture = policy_of().architecture
    del architecture[missing]
    with pytest.raises(FileFormatError, match=f"describes no policy: '{missing}' is missing"):
        arguments_from(architecture, policy_of().state_dict())


def test_no_architecture_at_all_is_refused():
    with pytest.raises(FileFormatError, match="describes no policy"):
        arguments_from(None, policy_of().state_dict())


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(FileFormatError, match="parameters do not fit the policy that it describes"):
        load_parameters(policy_of(hidden_dims=(8,)), policy_of(hidden_dims=(9,)).state_dict())


def test_missing_parameters_are_refused():
    parameters = policy_of().state_dict()
    del parameters["network.layers.0.bias"]
    with pytest.raises(FileFormatError, match=r"do not fit the policy that it describes: .*network\.layers\.0\.bias"):
        load_parameters(policy_of(), parameters)


@pytest.mark.parametrize("parameters", [None, [], {"network.layers.0.bias": "text"}], ids=str)
def test_what_is_no_parameters_is_refused(parameters):
    with pytest.raises(FileFormatError, match="parameters do not fit"):
        load_parameters(policy_of(), parameters)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused(value):
    parameters = policy_of().state_dict()
    parameters["network.layers.0.bias"][0] = value
    with pytest.raises(FileFormatError, match="parameters that are not finite"):
        load_parameters(policy_of(), parameters)


def test_layer_sizes_that_contradict_the_file_are_refused_with_both():
    require_hidden_dims(None, (64, 64), "a.pt")
    require_hidden_dims([64, 64], (64, 64), "a.pt")
    with pytest.raises(ArchitectureMismatchError, match=r"a.pt has hidden_dims \[64, 64\], not \[256\]"):
        require_hidden_dims([256], (64, 64), "a.pt")


def test_other_spaces_are_refused_with_both():
    policy = policy_of(PLANE, spaces.Discrete(3))
    require_spaces(policy, PLANE, spaces.Discrete(3), "the agent", "the environment")
    with pytest.raises(
        SpaceMismatchError, match=r"the agent and the environment do not fit: action space .* against Discrete\(4\)"
    ):
        require_spaces(policy, PLANE, spaces.Discrete(4), "the agent", "the environment")
    with pytest.raises(SpaceMismatchError, match=r"observation space .* against Box"):
        require_spaces(policy, spaces.Box(-1, 1, (2,)), spaces.Discrete(3), "the agent", "the environment")


@pytest.mark.parametrize(
    "obs", [np.zeros(3), np.zeros((4, 3)), np.zeros((2, 2, 2)), 1.0, "text", None], ids=lambda x: str(np.shape(x))
)
def test_an_observation_that_does_not_fit_is_refused(obs):
    with pytest.raises(SpaceMismatchError, match=r"cannot read this observation of Box\("):
        policy_of().predict(obs)


@pytest.mark.parametrize("obs", [{"speed": np.zeros(2)}, {}, 3, np.zeros(4), None], ids=str)
def test_an_observation_that_lacks_a_part_is_refused(obs):
    space = spaces.Dict({"place": spaces.Discrete(3), "speed": spaces.Box(-1, 1, (2,))})
    with pytest.raises(SpaceMismatchError, match="cannot read this observation of Dict"):
        policy_of(space).predict(obs)


@pytest.mark.parametrize("obs", [-1, 4, 17, 1.5, np.array([0, 4]), np.array([0.0, 3.9])], ids=str)
def test_a_whole_number_outside_its_space_is_refused(obs):
    # Counted from the end, -1 would silently be read as the last one.
    with pytest.raises(SpaceMismatchError, match="cannot read this observation of Discrete"):
        policy_of(spaces.Discrete(4)).predict(obs)


@pytest.mark.parametrize(
    "spaces_given",
    [(spaces.Text(3), spaces.Discrete(2)), (PLANE, spaces.Dict({"a": spaces.Discrete(2)}))],
    ids=["observation", "action"],
)
def test_other_kinds_of_spaces_are_refused(spaces_given):
    with pytest.raises(UnsupportedSpaceError, match="is not supported; expected Box, Discrete"):
        MLPPolicy(*spaces_given)


@pytest.mark.parametrize("action_space", [spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(3)], ids=str)
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_an_observation_that_is_not_finite_is_refused(fault, action_space):
    policy = MLPPolicy(PLANE, action_space, (8,))
    with pytest.raises(NotFiniteError, match="not finite"):
        policy.predict(np.array([0.5, fault], np.float32))
    with pytest.raises(NotFiniteError, match="not finite"):
        policy.predict(np.array([[0.5, 0.5], [fault, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ((PLANE, spaces.Discrete(2), (2,) * 101), ConfigError, "101 sizes; expected at most 100"),
        ((spaces.Discrete(70_000), spaces.Discrete(2), (2,)), UnsupportedSpaceError, "is too large"),
        ((PLANE, spaces.Discrete(70_000), (2,)), UnsupportedSpaceError, "is too large"),
    ],
    ids=["layers", "observation", "action"],
)
def test_a_policy_that_no_file_could_hold_is_refused(given, error, says):
    with pytest.raises(error, match=says):
        MLPPolicy(*given)


def test_where_observations_are_clipped_is_the_policys_own_and_survives_a_file(tmp_path):
    agent = PPOAgent.for_spaces(PLANE, spaces.Discrete(2), hidden_dims=(8,), seed=0, obs_clip=1.5)
    agent.policy.actor.normalizer.fit(np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    far = np.full((1, 2), 99.0, np.float32)
    for each in (agent, None):
        if each is None:
            agent.save(tmp_path / "a.pt")
            each = PPOAgent.load(tmp_path / "a.pt")
        actor = each.policy.actor
        assert actor.normalizer.as_numpy()(far).tolist() == [[1.5, 1.5]]
        assert actor.normalizer(torch.from_numpy(far)).tolist() == [[1.5, 1.5]]


@pytest.mark.parametrize("odd", [0.0, -1.0, float("nan"), float("inf"), "10", None, True], ids=str)
def test_a_clip_that_cannot_be_is_damage(odd):
    policy = MLPPolicy(PLANE, spaces.Discrete(2), (4,))
    with pytest.raises(FileFormatError, match="observations clipped at"):
        arguments_from(policy.architecture | {"obs_clip": odd}, policy.state_dict())
    before = {name: value for name, value in policy.architecture.items() if name != "obs_clip"}
    assert arguments_from(before, policy.state_dict())["obs_clip"] == 10.0
