"""Evaluation: the same start states for whatever is compared, and none that anything was trained on."""

import numpy as np
import pytest
import torch
import toy_envs
from toy_envs import STILL, Steady

from il_based_rl import rollout
from il_based_rl.collect import collect_demos
from il_based_rl.envs import make_env
from il_based_rl.errors import SpaceMismatchError
from il_based_rl.evaluate import EvaluationResult, evaluate_policy
from il_based_rl.policy import MLPPolicy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.seeding import start_seeds


def result_of(*returns):
    return EvaluationResult(np.array(returns), np.ones(len(returns), int), np.arange(len(returns)))


def test_returns_and_lengths_are_raw_and_in_the_order_of_the_start_seeds():
    result = evaluate_policy(STILL, "toy/ShortOrLong-v0", num_episodes=40, seed=1)
    assert result.start_seeds.tolist() == list(start_seeds(1, "evaluation", 40))
    assert result.lengths.tolist() == [1 if seed % 2 else 20 for seed in result.start_seeds]
    assert result.returns.tolist() == [1.0 if seed % 2 else 210.0 for seed in result.start_seeds]


def test_mean_standard_deviation_and_interval_of_known_returns():
    result = result_of(1.0, 2.0, 3.0)
    assert (result.mean, result.std) == (2.0, 1.0)
    assert result.interval == pytest.approx((-0.484138, 4.484138), abs=1e-6)  # t(0.975, 2) = 4.302653


def test_a_single_episode_has_no_interval():
    assert np.isnan(result_of(5.0).interval).all()
    assert result_of(5.0).std == 0.0


def test_different_policies_start_from_the_same_states():
    firsts = []
    for action in (-2.0, 2.0):
        seen = []
        evaluate_policy(lambda obs, seen=seen, action=action: seen.append(obs) or [action], "Pendulum-v1", 3)
        firsts.append(np.stack(seen[::200]))  # one episode after the other
    np.testing.assert_array_equal(*firsts)


def test_the_same_seed_gives_the_same_result_and_another_one_other_start_states():
    first, again, other = (evaluate_policy(Steady([0.5]), "Pendulum-v1", 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not set(first.start_seeds.tolist()) & set(other.start_seeds.tolist())
    assert len(set(first.returns.tolist())) == 3


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_start_seeds_of_evaluation_collection_and_training_never_meet(seed):
    evaluation = set(evaluate_policy(STILL, "toy/Counter-v0", 200, seed).start_seeds.tolist())
    collection = set(collect_demos("toy/Counter-v0", STILL, 200, seed).seeds.tolist())
    training = set(start_seeds(seed, "training environments", 200))
    assert len(evaluation | collection | training) == 600


def test_given_start_seeds_are_played_instead():
    toy_envs.RESETS.clear()
    result = evaluate_policy(STILL, "toy/Counter-v0", num_episodes=3, start_seeds=[10_001, 10_000])
    assert result.start_seeds.tolist() == [10_001, 10_000]
    assert toy_envs.RESETS == [10_001, 10_000]


def test_the_most_likely_action_is_the_default():
    env = make_env("Pendulum-v1")
    agent = PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=0)
    first, again = (evaluate_policy(agent, "Pendulum-v1", 2) for _ in range(2))
    sampled, resampled = (evaluate_policy(agent, "Pendulum-v1", 2, deterministic=False) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    np.testing.assert_array_equal(sampled.returns, resampled.returns)
    assert not np.array_equal(first.returns, sampled.returns)


def test_evaluation_changes_nothing_of_the_policy():
    env = make_env("toy/Counter-v0")
    policy = MLPPolicy(env.observation_space, env.action_space, (8,), generator=torch.Generator().manual_seed(0))
    policy.normalizer.fit(np.random.default_rng(0).normal(5.0, 2.0, (20, 3)).astype(np.float32))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    evaluate_policy(policy, "toy/Counter-v0", 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize("settings", [{"num_episodes": 0}, {"num_episodes": -1}, {"start_seeds": []}])
def test_no_episode_at_all_is_refused(settings):
    with pytest.raises(ValueError, match=r"at least one|islice|must be"):
        evaluate_policy(STILL, "toy/Counter-v0", **settings)


def test_a_policy_of_another_environment_is_refused():
    env = make_env("toy/Counter-v0")
    agent = PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=0)
    with pytest.raises(SpaceMismatchError, match="observation space"):
        evaluate_policy(agent, "Pendulum-v1", 1)


def test_start_seeds_may_be_those_of_a_result():
    result = evaluate_policy(lambda obs: 0, "CartPole-v1", 3, quiet=True)
    again = evaluate_policy(lambda obs: 0, "CartPole-v1", start_seeds=result.start_seeds, quiet=True)
    assert again.returns.tolist() == result.returns.tolist()
    with pytest.raises(TypeError):
        evaluate_policy(lambda obs: 0, "CartPole-v1", start_seeds=[1.7])


def test_an_episode_has_as_many_steps_as_its_environment_allows(monkeypatch):
    monkeypatch.setattr(rollout, "MAX_EPISODE_STEPS", 50)
    assert evaluate_policy(lambda obs: [0.0], "Pendulum-v1", 2).lengths.tolist() == [200, 200]


@pytest.mark.parametrize("wrong", [{"num_episodes": 2.5}, {"seed": None}])
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(TypeError):
        evaluate_policy(lambda obs: [0.0], "Pendulum-v1", **wrong)
