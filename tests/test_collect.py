"""Collection: exactly the wanted episodes, raw, from start states of their own."""

import random

import numpy as np
import pytest
import torch
import toy_envs
from toy_envs import STILL, Steady

import il_based_rl
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.dataset import DemoDataset
from il_based_rl.envs import make_env
from il_based_rl.errors import CollectionError, ConfigError, EnvironmentFaultError, SpaceMismatchError
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.seeding import start_seeds
from il_based_rl.spaces import space_from_plain


def expert_for(env_id, seed=0):
    env = make_env(env_id)
    return PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=seed)


def same(one, other):
    names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations", "episode_lengths", "seeds")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_the_data_set_holds_each_episode_as_it_was_played():
    demos = collect_demos("toy/Truncated-v0", agent=lambda obs: obs[1:] / 10, num_episodes=2, seed=4)
    tags = [seed % 1000 for seed in demos.seeds]
    assert demos.observations.tolist() == [[tag, 0, step] for tag in tags for step in range(3)]
    np.testing.assert_allclose(demos.actions, [[0.0, step / 10] for _ in tags for step in range(3)], rtol=1e-6)
    assert demos.rewards.tolist() == [1, 2, 3] * 2
    assert demos.truncated.tolist() == [False, False, True] * 2
    assert not demos.terminated.any()
    assert demos.final_observations.tolist() == [[tag, 0, 3] for tag in tags]
    assert demos.episode_lengths.tolist() == [3, 3]


def test_both_ends_at_once_are_kept_apart():
    demos = collect_demos("toy/Both-v0", STILL, 2)
    assert demos.terminated.tolist() == demos.truncated.tolist() == [False, False, True] * 2


@pytest.mark.parametrize("wrong", [{"num_episodes": 2.5}, {"num_episodes": "2"}, {"num_episodes": 2, "seed": None}])
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        collect_demos("toy/Counter-v0", STILL, **wrong)


@pytest.mark.parametrize("num_episodes", [1, 5, 40])
def test_exactly_the_first_start_seeds_are_kept_with_no_bias_to_short_episodes(num_episodes):
    demos = collect_demos("toy/ShortOrLong-v0", STILL, num_episodes, seed=3)
    assert demos.seeds.tolist() == list(start_seeds(3, "collection", num_episodes))
    assert demos.episode_lengths.tolist() == [1 if seed % 2 else 20 for seed in demos.seeds]


def test_every_episode_starts_from_another_seed():
    assert len(set(collect_demos("toy/Counter-v0", STILL, 60).seeds.tolist())) == 60


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_seed_decides_everything(deterministic):
    first, again, other = (
        collect_demos("Pendulum-v1", expert_for("Pendulum-v1"), 2, seed, deterministic=deterministic) for seed in (7, 7, 8)
    )
    assert same(first, again)
    assert not set(first.seeds.tolist()) & set(other.seeds.tolist())
    assert not np.array_equal(first.observations, other.observations)


def test_the_most_likely_action_is_the_default():
    agent = expert_for("Pendulum-v1")
    demos = collect_demos("Pendulum-v1", agent, 1)
    np.testing.assert_allclose(demos.actions, agent.predict(demos.observations), rtol=1e-5, atol=1e-6)
    sampled = collect_demos("Pendulum-v1", agent, 1, deterministic=False)
    assert np.abs(sampled.actions - agent.predict(sampled.observations)).mean() > 0.1


@pytest.mark.parametrize("kind", ["expert", "student"])
def test_observations_stay_raw_though_the_agent_normalises(kind):
    agent = expert_for("toy/Counter-v0")
    policy = agent.policy.actor
    policy.normalizer.fit(np.random.default_rng(0).normal(500.0, 50.0, (100, 3)).astype(np.float32))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    demos = collect_demos("toy/Counter-v0", agent if kind == "expert" else BCAgent(policy, seed=0), 3)
    assert demos.observations[:, 0].tolist() == [seed % 1000 for seed in demos.seeds for _ in range(3)]
    assert demos.observations[:, 2].tolist() == [0, 1, 2] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_actions_are_what_the_environment_executed():
    toy_envs.ACTIONS.clear()
    demos = collect_demos("toy/Counter-v0", Steady([9.0, -0.25]), 1)
    assert demos.actions.tolist() == [[1.0, -0.25]] * 3
    assert demos.actions.tolist() == [action.tolist() for action in toy_envs.ACTIONS]


@pytest.mark.parametrize(
    ("env_id", "action", "shape"),
    [
        ("toy/Gears-v0", 6, ()),
        ("toy/Levers-v0", [1, 2], (2,)),
        ("toy/Bits-v0", [1, 0, 0, 1], (4,)),
        ("toy/Wide-v0", [0.5, 70.0], (2,)),
    ],
)
def test_every_kind_of_action_has_one_row_a_transition(env_id, action, shape):
    demos = collect_demos(env_id, Steady(action), 2)
    assert demos.actions.shape == (len(demos), *shape)
    assert demos.actions.tolist() == [action] * len(demos)


def test_observations_of_a_dict_are_stored_flat_and_named_in_the_metadata():
    demos = collect_demos("toy/Dict-v0", Steady(1), 2)
    assert demos.observations.shape == (4, 5)
    assert demos.observations[:, :3].sum(1).tolist() == [1] * 4  # the gear, one-hot
    assert space_from_plain(demos.metadata["observation_space"]) == make_env("toy/Dict-v0").observation_space


def test_the_metadata_says_what_was_collected_and_how():
    demos = collect_demos("toy/Counter-v0", STILL, 2, seed=5, min_return=-1.0)
    facts = {"env_id": "toy/Counter-v0", "seed": 5, "min_return": -1.0, "deterministic": True, "attempts": 2}
    assert {name: demos.metadata[name] for name in facts} == facts
    assert demos.metadata["agent"] == "Steady"
    assert space_from_plain(demos.metadata["action_space"]) == make_env("toy/Counter-v0").action_space
    assert demos.metadata["versions"]["il_based_rl"] == il_based_rl.__version__


def test_a_collection_can_be_saved_and_loaded(tmp_path):
    demos = collect_demos("toy/Counter-v0", STILL, 2)
    demos.save(tmp_path / "x.npz")
    assert same(DemoDataset.load(tmp_path / "x.npz"), demos)


@pytest.mark.parametrize("number", [np.int64, np.float32])
def test_settings_that_are_numpy_numbers_can_be_saved_too(number, tmp_path):
    demos = collect_demos("toy/Counter-v0", STILL, 1, seed=np.int64(3), min_return=number(1))
    demos.save(tmp_path / "x.npz")
    assert same(DemoDataset.load(tmp_path / "x.npz"), demos)


def test_the_filter_keeps_exactly_the_wanted_number_of_good_episodes():
    demos = collect_demos("toy/ShortOrLong-v0", STILL, 8, min_return=100.0)
    good = [seed for seed in start_seeds(0, "collection", demos.metadata["attempts"]) if seed % 2 == 0]
    assert demos.num_episodes == 8
    assert (demos.returns == 210.0).all()
    assert demos.seeds.tolist() == good[:8]
    assert 8 < demos.metadata["attempts"] <= 80


def test_a_return_at_the_limit_is_kept():
    assert collect_demos("toy/Counter-v0", STILL, 3, min_return=6.0).num_episodes == 3


@pytest.mark.parametrize(("max_attempts", "attempts"), [(None, 30), (3, 3), (17, 17)])
def test_the_filter_gives_up_at_its_limit_and_says_what_was_reached(max_attempts, attempts):
    toy_envs.RESETS.clear()
    message = rf"0 of 3 episodes reached a return of 6\.5 in {attempts} attempts \(the best was 6\.00\); lower --min-return"
    with pytest.raises(CollectionError, match=message):
        collect_demos("toy/Counter-v0", STILL, 3, min_return=6.5, max_attempts=max_attempts)
    assert len(toy_envs.RESETS) == len(set(toy_envs.RESETS)) == attempts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_episodes": 0}, "num-episodes must be above 0 and at most 1000000, got 0"),
        ({"num_episodes": -3}, "got -3"),
        ({"num_episodes": 3, "max_attempts": 2}, "max-attempts must be at least --num-episodes 3, got 2"),
        ({"num_episodes": 3, "min_return": float("nan")}, "min-return must be a number, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        collect_demos("toy/Counter-v0", STILL, **settings)


def test_an_expert_of_another_environment_is_refused():
    with pytest.raises(SpaceMismatchError, match="observation space"):
        collect_demos("Pendulum-v1", expert_for("toy/Counter-v0"), 1)


@pytest.mark.parametrize("env_id", ["toy/NanObs-v0", "toy/InfReward-v0", "toy/Raises-v0", "toy/WrongShape-v0"])
def test_a_fault_of_the_environment_names_the_place(env_id):
    with pytest.raises(EnvironmentFaultError, match=r"environment 0, seed .*step 2, .*action \[0\.0, 0\.0\]"):
        collect_demos(env_id, STILL, 1)


def test_the_callers_random_generators_are_left_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    collect_demos("Pendulum-v1", expert_for("Pendulum-v1"), 1, deterministic=False)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
