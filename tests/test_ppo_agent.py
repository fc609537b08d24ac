"""Proximal policy optimisation, from rollouts to a better policy."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.distributions import Categorical, Normal

from il_based_rl.actor_critic_policy import ActorCriticPolicy
from il_based_rl.agent import BCAgent
from il_based_rl.buffer import RolloutBatch
from il_based_rl.config import PPOConfig
from il_based_rl.envs import InProcessEnvs, make_envs
from il_based_rl.errors import (
    ArchitectureMismatchError,
    ConfigError,
    EnvironmentFaultError,
    FileFormatError,
    FileMissingError,
    FileWriteError,
    SpaceMismatchError,
    TrainingDivergedError,
)
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.policy import MLPPolicy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.seeding import start_seeds

PLAIN = PPOConfig(n_steps=8, batch_size=4, n_epochs=2, normalize_obs=False, normalize_reward=False)
FIXED = 1e-12  # a learning rate at which float32 weights do not move


class Labelled(gym.Env):
    """Says with every number where it comes from: observation (tag, episode, step), reward 10 * episode + step.

    Episodes of three steps that terminate and of four that are truncated follow each other.
    """

    def __init__(self, tag=0):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)
        self.tag, self.episode, self.step_number = tag, -1, 0
        self.seeds, self.actions = [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seeds.append(seed)
        self.episode, self.step_number = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.actions.append(np.array(action))
        reward = 10.0 * self.episode + self.step_number
        self.step_number += 1
        terminates = self.episode % 2 == 0
        over = self.step_number >= (3 if terminates else 4)
        return self._obs(), reward, over and terminates, over and not terminates, {}

    def _obs(self):
        return np.array([self.tag, self.episode, self.step_number], np.float32)


class Forever(gym.Env):
    """From the first place, without reward, to the second, where each step brings 1; cut after five steps."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return 0, {}

    def step(self, action):
        reward = float(self.step_number > 0)
        self.step_number += 1
        return 1, reward, False, self.step_number == 5, {}


class Huge(gym.Env):
    """Episodes with rewards around 20,000 whatever one does, or all of `reward`."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reward=None, length=4):
        self.reward, self.length = reward, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self._obs(), {}

    def step(self, action):
        self.step_number += 1
        reward = self.np_random.normal(20_000.0, 30_000.0) if self.reward is None else self.reward
        return self._obs(), reward, self.step_number == self.length, False, {}

    def _obs(self):
        return self.np_random.normal(size=2).astype(np.float32)


class Told(gym.Env):
    """One-step episodes in which the observation, -1 or 1, says what to do; the reward says how well it was done."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, action_space, wanted):
        self.action_space, self.wanted = action_space, wanted

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.told = int(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action):
        distance = np.abs(np.asarray(action, float) - self.wanted[self.told])
        reward = -np.square(distance).sum() if isinstance(self.action_space, spaces.Box) else np.mean(distance == 0)
        return self._obs(), float(reward), True, False, {}

    def _obs(self):
        return np.array([2 * self.told - 1], np.float32)


class Broken(Labelled):
    """Labelled, with a reward that is no number in the third step."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return (obs, math.nan if self.step_number == 3 else reward, *rest)


class RewardAtReset(gym.vector.VectorWrapper):
    """A vector environment that hands out nonsense as the reward of its fake transitions."""

    def reset(self, *, seed=None, options=None):
        self.over = np.zeros(self.num_envs, bool)
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        rewards = np.where(self.over, 5000.0, rewards)
        self.over = terminated | truncated
        return obs, rewards, terminated, truncated, infos


gym.register("ppo_tests/Labelled-v0", Labelled)
gym.register("ppo_tests/Forever-v0", Forever)

MODES = {"same step": AutoresetMode.SAME_STEP, "next step": AutoresetMode.NEXT_STEP}


def vector_of(make, count=2, mode="same step"):
    return SyncVectorEnv([lambda k=k: make(k) for k in range(count)], autoreset_mode=MODES[mode])


def agent_for(envs, config=PLAIN, seed=0, hidden_dims=(8,)):
    observation_space = getattr(envs, "single_observation_space", envs.observation_space)
    action_space = getattr(envs, "single_action_space", envs.action_space)
    return PPOAgent.for_spaces(observation_space, action_space, config, hidden_dims=hidden_dims, seed=seed)


def batches_of(agent, monkeypatch):
    """The batches that updates will get, in order, each with the policy as it was when it acted."""
    taken, update = [], agent.update

    def recorded(batch):
        taken.append(copy.deepcopy((batch, agent.policy)))  # a copy, as the batch may share memory with the next rollout
        return update(batch)

    monkeypatch.setattr(agent, "update", recorded)
    return taken


def rollouts(agent, envs, count):
    """Learn from so many rollouts."""
    return list(itertools.islice(agent.learn(envs, 10_000), count))


def snapshot(agent):
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


def unchanged(agent, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in agent.policy.state_dict().items())


def values_of(policy, observations):
    with torch.no_grad():
        features = torch.from_numpy(np.asarray(observations, np.float32))
        return policy.critic(policy.actor.normalizer(features))[:, 0].double().numpy()


def steps_of(num_steps, first_episode=0, first_step=0):
    """(episode, step) of so many true steps of a Labelled environment."""
    episode, step, found = first_episode, first_step, []
    for _ in range(num_steps):
        found.append((episode, step))
        step += 1
        if step == (3 if episode % 2 == 0 else 4):
            episode, step = episode + 1, 0
    return found


# ---- what reaches the update ----


def test_every_true_transition_reaches_the_update_once_beside_its_own_reward(monkeypatch):
    # With gamma 0 a return is the reward alone: 10 * episode + step, as the observation beside it says.
    envs = vector_of(Labelled)
    agent = agent_for(envs, replace(PLAIN, gamma=0.0))
    batches = batches_of(agent, monkeypatch)
    list(agent.learn(envs, 2 * 16))
    rows = np.concatenate([batch.normalized for batch, _ in batches])
    returns = np.concatenate([batch.returns for batch, _ in batches])
    np.testing.assert_allclose(returns, 10 * rows[:, 1] + rows[:, 2], rtol=1e-5, atol=1e-5)
    expected = [(tag, *place) for tag in (0, 1) for place in steps_of(16)]
    assert sorted(map(tuple, rows.astype(int).tolist())) == sorted(expected)


def test_fake_transitions_reach_no_update(monkeypatch):
    # Ten steps of each environment: three true ones, a fake, four, a fake, one; then two, a fake, four, a fake, two.
    envs = vector_of(Labelled, mode="next step")
    agent = agent_for(envs, replace(PLAIN, n_steps=10, gamma=0.0))
    batches = batches_of(agent, monkeypatch)
    rollouts(agent, envs, 2)
    assert [len(batch) for batch, _ in batches] == [16, 16]
    rows = np.concatenate([batch.normalized for batch, _ in batches])
    returns = np.concatenate([batch.returns for batch, _ in batches])
    np.testing.assert_allclose(returns, 10 * rows[:, 1] + rows[:, 2], rtol=1e-5, atol=1e-5)
    expected = [(tag, *place) for tag in (0, 1) for place in steps_of(16)]
    assert sorted(map(tuple, rows.astype(int).tolist())) == sorted(expected)


@pytest.mark.parametrize("source", ["same step", "next step", "in process"])
def test_each_step_bootstraps_from_the_observation_that_it_truly_led_to(source, monkeypatch):
    # With lambda 0 a return is reward + gamma * V(next), and the next observation is (tag, episode, step + 1), at a
    # truncation as well, though the environment has moved on to the next episode by then. The third step of an even episode
    # is a termination.
    envs = InProcessEnvs("ppo_tests/Labelled-v0") if source == "in process" else vector_of(Labelled, mode=source)
    agent = agent_for(envs, replace(PLAIN, n_steps=19, gamma=0.9, gae_lambda=0.0))
    batches = batches_of(agent, monkeypatch)
    rollouts(agent, envs, 2)
    for batch, policy in batches:
        rows = batch.normalized
        terminates = (rows[:, 1] % 2 == 0) & (rows[:, 2] == 2)
        following = np.where(terminates, 0.0, values_of(policy, rows + np.array([0, 0, 1])))
        np.testing.assert_allclose(batch.returns, 10 * rows[:, 1] + rows[:, 2] + 0.9 * following, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch.returns - batch.advantages, values_of(policy, rows), rtol=1e-5, atol=1e-5)
        assert terminates.any()


def test_the_environment_gets_the_clipped_action_and_learning_the_unclipped_one(monkeypatch):
    # The standard deviation is e half ranges: most samples lie outside.
    envs = vector_of(Labelled, count=1)
    agent = agent_for(envs, replace(PLAIN, n_steps=64, batch_size=64, n_epochs=1))
    with torch.no_grad():
        agent.policy.log_std.fill_(1.0)
    batches = batches_of(agent, monkeypatch)
    list(agent.learn(envs, 64))
    ((batch, policy),) = batches
    executed = np.stack(envs.envs[0].actions)
    np.testing.assert_allclose(executed, np.clip(0.5 * batch.raw_actions, -0.5, 0.5), rtol=1e-6)
    assert (np.abs(batch.raw_actions) > 1.0).mean() > 0.5
    means = policy.actor(torch.from_numpy(batch.normalized))
    expected = Normal(means, policy.log_std.exp()).log_prob(torch.from_numpy(batch.raw_actions)).sum(-1)
    np.testing.assert_allclose(batch.log_probs, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_discrete_actions_reach_the_environment_and_the_update_alike(monkeypatch):
    executed = []

    class Listening(Huge):
        action_space = spaces.Discrete(3, start=5)

        def step(self, action):
            executed.append(int(action))
            return super().step(action)

    envs = vector_of(lambda k: Listening(), count=1)
    agent = agent_for(envs, replace(PLAIN, n_steps=64, batch_size=64))
    batches = batches_of(agent, monkeypatch)
    list(agent.learn(envs, 64))
    ((batch, policy),) = batches
    assert executed == (batch.raw_actions[:, 0] + 5).tolist()
    assert set(executed) == {5, 6, 7}
    logits = policy.actor(torch.from_numpy(batch.normalized))
    expected = Categorical(logits=logits).log_prob(torch.from_numpy(batch.raw_actions[:, 0]))
    np.testing.assert_allclose(batch.log_probs, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


# ---- statistics ----


@pytest.mark.parametrize("mode", MODES)
def test_observation_statistics_are_those_of_the_true_transitions(mode):
    envs = vector_of(Labelled, mode=mode)
    agent = agent_for(envs, replace(PLAIN, n_steps=10, normalize_obs=True))
    rollouts(agent, envs, 2)
    steps = 20 if mode == "same step" else 16
    seen = np.array([(tag, *place) for tag in (0, 1) for place in steps_of(steps)], float)
    normalizer = agent.policy.actor.normalizer
    assert normalizer.count.item() == len(seen)
    np.testing.assert_allclose(normalizer.mean.numpy(), seen.mean(0), rtol=1e-10)
    np.testing.assert_allclose(normalizer.variance.numpy(), seen.var(0), rtol=1e-10)


@pytest.mark.parametrize("source", [*MODES, "reward at reset"])
def test_reward_statistics_are_those_of_the_true_transitions(source):
    # The sums of each episode in order, older rewards discounted, over the border between the two rollouts.
    envs = vector_of(Labelled, mode="same step" if source == "same step" else "next step")
    envs = RewardAtReset(envs) if source == "reward at reset" else envs
    agent = agent_for(envs, replace(PLAIN, n_steps=10, gamma=0.5, normalize_reward=True))
    rollouts(agent, envs, 2)
    steps = steps_of(20 if source == "same step" else 16)
    sums = [sum(0.5 ** (step - k) * (10 * episode + k) for k in range(step + 1)) for episode, step in steps]
    statistics = agent.reward_scaler.return_statistics
    assert statistics.count.item() == 2 * len(sums)
    assert statistics.mean.item() == pytest.approx(np.mean(sums), rel=1e-10)
    assert agent.reward_scaler.scale == pytest.approx(np.std(sums), rel=1e-8)


def test_statistics_stay_put_while_a_rollout_is_collected_and_learned_from(monkeypatch):
    envs = vector_of(Labelled)
    agent = agent_for(envs, replace(PLAIN, normalize_obs=True))
    batches = batches_of(agent, monkeypatch)
    list(agent.learn(envs, 3 * 16))
    counts = [policy.actor.normalizer.count.item() for _, policy in batches]
    assert counts == [0.0, 16.0, 32.0]
    _, second = batches[1]
    raw = np.array([(tag, *place) for place in steps_of(16)[8:] for tag in (0, 1)], np.float32)
    np.testing.assert_allclose(batches[1][0].normalized, second.actor.normalizer.as_numpy()(raw), rtol=1e-5, atol=1e-6)


def test_switched_off_normalisation_leaves_the_statistics_empty():
    envs = vector_of(Labelled)
    agent = agent_for(envs)
    list(agent.learn(envs, 16))
    assert agent.policy.actor.normalizer.count.item() == 0.0
    assert agent.reward_scaler.scale == pytest.approx(1.0)


def test_predicting_and_evaluating_leave_the_agent_as_it_is():
    with InProcessEnvs("CartPole-v1") as envs:
        agent = agent_for(envs, PPOConfig(n_steps=64, n_epochs=1))
        list(agent.learn(envs, 64))
    before = snapshot(agent)
    agent.predict(np.full((10, 4), 3.0, np.float32))
    agent.predict(np.full(4, -3.0, np.float32), deterministic=False)
    evaluate_policy(agent, "CartPole-v1", num_episodes=2)
    evaluate_policy(agent, "CartPole-v1", num_episodes=2, deterministic=False)
    assert unchanged(agent, before)


# ---- the update itself ----


def batch_for(policy, size, seed=0):
    """A batch in the policy's number type whose ratios lie on both sides of the clip range."""
    random = np.random.default_rng(seed)
    dtype = np.float64 if policy.critic.layers[0].weight.dtype == torch.float64 else np.float32
    normalized = random.normal(size=(size, policy.actor.codec.size)).astype(dtype)
    with torch.no_grad():
        outputs = policy.actor.network(torch.from_numpy(normalized)).numpy()
        raw = policy.actor.head.mode(outputs + random.normal(size=outputs.shape).astype(dtype))
        log_probs = policy.evaluate_actions(torch.from_numpy(normalized), torch.from_numpy(raw))[0].numpy()
    return RolloutBatch(
        normalized=normalized,
        raw_actions=raw,
        log_probs=(log_probs + 0.3 * random.normal(size=size)).astype(dtype),
        advantages=random.normal(size=size).astype(dtype),
        returns=(3.0 * random.normal(size=size)).astype(dtype),
    )


def plain_ppo(policy, batch, config, distribution):
    """PPO the way a textbook writes it: whole batches, no shared code with the agent but the networks."""
    columns = [torch.from_numpy(x) for x in (batch.normalized, batch.raw_actions, batch.log_probs, batch.advantages)]
    normalized, raw, old_log_probs, advantages = columns
    returns = torch.from_numpy(batch.returns)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, eps=1e-5, foreach=False)
    metrics = []
    for _ in range(config.n_epochs):
        chosen = distribution(policy, normalized)
        log_probs = chosen.log_prob(raw if isinstance(chosen, Normal) else raw[:, 0])
        entropies = chosen.entropy()
        if isinstance(chosen, Normal):
            log_probs, entropies = log_probs.sum(-1), entropies.sum(-1)
        scaled = (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)
        ratio = (log_probs - old_log_probs).exp()
        low, high = 1 - config.clip_range, 1 + config.clip_range
        surrogate = torch.stack([ratio * scaled, ratio.clip(low, high) * scaled]).amin(0).mean()
        values = policy.critic(normalized)[:, 0]
        value_loss = (values - returns).pow(2).mean()
        loss = -surrogate + config.value_coef * value_loss - config.entropy_coef * entropies.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        outside = ((ratio < low) | (ratio > high)).double().mean()
        kl = (ratio - 1 - ratio.log()).mean()
        metrics.append([-surrogate.item(), value_loss.item(), entropies.mean().item(), kl.item(), outside.item()])
    return np.mean(metrics, axis=0)


def normal(policy, normalized):
    return Normal(policy.actor.network(normalized), policy.log_std.exp())


def categorical(policy, normalized):
    return Categorical(logits=policy.actor.network(normalized))


@pytest.mark.parametrize("exact", [True, False], ids=["float64 reference path", "float32 fast path"])
@pytest.mark.parametrize(
    ("action_space", "distribution"),
    [(spaces.Box(-1, 1, (2,)), normal), (spaces.Discrete(4), categorical)],
    ids=["box", "discrete"],
)
def test_an_update_is_a_plain_ppo_loop(action_space, distribution, exact):
    # Whole batches, so that the order does not matter. The gradient norm of 0.5 is passed, and some ratios are clipped.
    config = PPOConfig(lr=1e-2, n_epochs=6, batch_size=128, entropy_coef=0.05, normalize_reward=False, fast_path=not exact)
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), action_space, (16, 8), generator=torch.Generator().manual_seed(0))
    policy = policy.double() if exact else policy
    reference, agent = copy.deepcopy(policy), PPOAgent(policy, config, seed=0)
    batch = batch_for(reference, 128)
    expected = plain_ppo(reference, copy.deepcopy(batch), config, distribution)
    metrics = agent.update(batch)
    assert (agent.reason_against_fast_path is None) is not exact
    tolerance = 1e-8 if exact else 1e-3
    for (name, found), wanted in zip(policy.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=tolerance, atol=tolerance / 10, msg=lambda text, name=name: f"{name}: {text}"
        )
    names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=tolerance, atol=tolerance / 10)
    assert 0.1 < metrics["clip_fraction"] < 0.9


def test_both_paths_train_the_same_policy():
    envs, found = vector_of(lambda k: Huge()), []
    for fast_path in (True, False):
        agent = agent_for(envs, PPOConfig(n_steps=64, batch_size=32, n_epochs=2, fast_path=fast_path))
        list(agent.learn(envs, 128))
        assert (agent.reason_against_fast_path is None) is fast_path
        found.append(torch.cat([parameter.detach().ravel() for parameter in agent.policy.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_an_update_reports_what_it_measured():
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), (8,))
    agent = PPOAgent(policy, PPOConfig(lr=FIXED, n_epochs=1, batch_size=10), seed=0)
    with torch.no_grad():
        policy.log_std.copy_(torch.log(torch.tensor([1.0, 3.0])))
    batch = batch_for(policy, 10)
    # The critic's values before the update explain 3/4 of the returns' variance.
    returns = np.array([0.0, 2.0] * 5, np.float32)
    metrics = agent.update(replace(batch, returns=returns, advantages=0.5 - 0.5 * returns))
    assert metrics["explained_variance"] == pytest.approx(0.75, rel=1e-6)
    assert metrics["action_std"] == pytest.approx(2.0, rel=1e-5)
    assert metrics["learning_rate"] == FIXED
    # Two normals: ln(1) + ln(3) + 2 * 1.4189385
    assert metrics["entropy"] == pytest.approx(1.0986123 + 2.8378771, rel=1e-5)


def test_an_update_takes_all_minibatches_of_all_epochs():
    # Ten transitions in minibatches of four are three steps; three epochs of them nine.
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), (8,))
    agent = PPOAgent(policy, PPOConfig(n_epochs=3, batch_size=4), seed=0)
    agent.update(batch_for(policy, 10))
    assert agent.gradient_steps == 9


# ---- units ----


@pytest.mark.parametrize("normalize_reward", [True, False])
def test_the_value_loss_is_in_raw_reward_units(normalize_reward, monkeypatch):
    # Whole terminated episodes and lambda 1, so that targets are Monte Carlo returns of the raw rewards; weights stand still.
    envs = vector_of(lambda k: Huge(), count=1)
    config = PPOConfig(
        n_steps=64, batch_size=64, n_epochs=1, lr=FIXED, gamma=0.9, gae_lambda=1.0, normalize_reward=normalize_reward
    )
    agent = agent_for(envs, config)
    batches, rewards = batches_of(agent, monkeypatch), []
    step = envs.step

    def recorded(actions):
        result = step(actions)
        rewards.append(float(result[1][0]))
        return result

    monkeypatch.setattr(envs, "step", recorded)
    (progress,) = agent.learn(envs, 64)
    ((batch, policy),) = batches
    episodes = np.array(rewards).reshape(16, 4)
    monte_carlo = np.stack([episodes[:, t:] @ 0.9 ** np.arange(4 - t) for t in range(4)], 1).ravel()
    unit = agent.reward_scaler.scale if normalize_reward else 1.0
    expected = np.mean((values_of(policy, batch.normalized) * unit - monte_carlo) ** 2)
    assert progress.metrics["value_loss"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e8


def test_the_first_value_loss_does_not_depend_on_how_rewards_are_scaled():
    losses = {}
    for normalize_reward in (True, False):
        envs = vector_of(lambda k: Huge())
        (progress,) = agent_for(envs, PPOConfig(n_steps=64, normalize_reward=normalize_reward)).learn(envs, 128)
        losses[normalize_reward] = progress.metrics["value_loss"]
    assert losses[True] == pytest.approx(losses[False], rel=0.5)


def test_the_value_loss_is_in_raw_reward_units_where_returns_never_vary(monkeypatch):
    # One-step episodes of reward 100: there is no spread to divide by, and a fresh critic is still off by about 100.
    envs = vector_of(lambda k: Huge(reward=100.0, length=1))
    agent = agent_for(envs, PPOConfig(n_steps=64, batch_size=128, n_epochs=1, lr=FIXED))
    batches = batches_of(agent, monkeypatch)
    (progress,) = agent.learn(envs, 128)
    ((batch, policy),) = batches
    expected = np.mean((values_of(policy, batch.normalized) * agent.reward_scaler.scale - 100.0) ** 2)
    assert progress.metrics["value_loss"] == pytest.approx(expected, rel=1e-4)
    assert 1e3 < expected < 1e5


def test_finished_episodes_are_reported_in_raw_reward_over_rollouts_borders():
    # Episodes 0, 1, 2 of rewards 0+1+2, 10+11+12+13 and 20+21+22: the third ends in the second rollout.
    envs = vector_of(Labelled, count=1)
    agent = agent_for(envs, replace(PLAIN, normalize_reward=True))
    first, second = agent.learn(envs, 16)
    assert [(episode.total_reward, episode.length) for episode in first.episodes] == [(3.0, 3), (46.0, 4)]
    assert [(episode.total_reward, episode.length) for episode in second.episodes] == [(63.0, 3), (126.0, 4)]


def test_fake_transitions_count_neither_reward_nor_length():
    envs = RewardAtReset(vector_of(Labelled, count=1, mode="next step"))
    (progress,) = rollouts(agent_for(envs, replace(PLAIN, n_steps=9)), envs, 1)
    assert [(episode.total_reward, episode.length) for episode in progress.episodes] == [(3.0, 3), (46.0, 4)]


# ---- the loop ----


def test_steps_are_rounded_up_to_whole_rollouts():
    envs = vector_of(Labelled)
    agent = agent_for(envs)
    progress = list(agent.learn(envs, 33))
    assert [each.env_steps for each in progress] == [16, 32, 48]
    assert [each.rollout_steps for each in progress] == [16, 16, 16]
    assert agent.env_steps == 48
    assert agent.gradient_steps == 3 * 2 * 4


def test_learning_again_goes_on_and_learning_less_does_nothing():
    envs = vector_of(Labelled)
    agent = agent_for(envs)
    list(agent.learn(envs, 32))
    before = snapshot(agent)
    assert list(agent.learn(envs, 32)) == []
    assert unchanged(agent, before)
    assert [each.env_steps for each in agent.learn(envs, 64)] == [48, 64]


def test_the_first_update_at_or_past_each_multiple_is_known():
    envs = vector_of(Labelled)
    progress = list(agent_for(envs).learn(envs, 112))
    # Updates at 16, 32, ..., 112; multiples of 40 are reached at 48, 80 and, past 120, not yet.
    assert [each.env_steps for each in progress if each.passes_multiple_of(40)] == [48, 80]
    assert [each.env_steps for each in progress if each.passes_multiple_of(32)] == [32, 64, 96]
    assert all(each.passes_multiple_of(5) for each in progress)


def test_a_linear_schedule_falls_to_zero_at_the_last_step():
    envs = vector_of(Labelled)
    agent = agent_for(envs, replace(PLAIN, lr=0.4, lr_schedule="linear", n_epochs=1))
    rates = [each.metrics["learning_rate"] for each in agent.learn(envs, 64)]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_the_standard_deviation_starts_where_it_is_told_to():
    space = spaces.Box(-1, 1, (2,))
    agent = PPOAgent.for_spaces(space, space, seed=0, initial_log_std=-0.5)
    assert agent.policy.log_std_array().tolist() == [-0.5, -0.5]
    drawn = np.stack([agent.predict(np.zeros((1, 2), np.float32), deterministic=False)[0] for _ in range(500)])
    inside = drawn[np.abs(drawn).max(1) < 1.0]
    # A normal of standard deviation 0.6065 has 90.1% within 1, where one of 1 has 68.3%; of both coordinates the squares.
    assert 0.75 < len(inside) / 500 < 0.87
    discrete = PPOAgent.for_spaces(space, spaces.Discrete(3), seed=0, initial_log_std=-0.5)
    assert discrete.policy.log_std_array() is None


def test_a_constant_schedule_stays():
    envs = vector_of(Labelled)
    rates = [each.metrics["learning_rate"] for each in agent_for(envs, replace(PLAIN, lr=0.004)).learn(envs, 48)]
    assert rates == [0.004] * 3


def test_every_environment_starts_from_a_seed_of_its_own_kept_for_training():
    envs = vector_of(Labelled, count=4)
    agent = agent_for(envs, seed=3)
    list(agent.learn(envs, 32))
    list(agent.learn(envs, 64))
    seeds = [seed for env in envs.envs for seed in env.seeds]
    assert len(seeds) == len(set(seeds)) == 8
    for purpose in ("evaluation", "collection"):
        assert not set(seeds) & set(start_seeds(3, purpose, 5000))


@pytest.mark.usefixtures("global_generators_untouched")
def test_the_agent_leaves_the_global_generators_alone(tmp_path):
    with InProcessEnvs("Pendulum-v1") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, PPOConfig(n_steps=64, n_epochs=1))
        list(agent.learn(envs, 64))
    agent.predict(np.zeros(3, np.float32), deterministic=False)
    agent.save(tmp_path / "agent.pt")
    PPOAgent.load(tmp_path / "agent.pt")


def trained(seed, steps=256):
    with InProcessEnvs("Pendulum-v1", 2) as envs:
        agent = agent_for(envs, PPOConfig(n_steps=64, n_epochs=2), seed=seed)
        metrics = [each.metrics for each in agent.learn(envs, steps)]
    return agent, metrics


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    (one, one_metrics), (same, same_metrics), (other, _) = (trained(seed) for seed in (5, 5, 6))
    for name, tensor in one.policy.state_dict().items():
        assert tensor.numpy().tobytes() == same.policy.state_dict()[name].numpy().tobytes(), name
    assert one_metrics == same_metrics
    assert not torch.equal(one.policy.critic.layers[0].weight, other.policy.critic.layers[0].weight)


def test_sampling_from_an_agent_does_not_change_how_it_goes_on_learning():
    # Somebody may look at sampled actions between two updates.
    with InProcessEnvs("Pendulum-v1") as envs:
        weights = []
        for looks in (False, True):
            agent = agent_for(envs, PPOConfig(n_steps=64, n_epochs=1))
            for _ in agent.learn(envs, 128):
                if looks:
                    agent.predict(np.zeros(3, np.float32), deterministic=False)
            weights.append(agent.policy.critic.layers[0].weight.detach().clone())
    assert torch.equal(*weights)


# ---- files ----


def test_a_saved_agent_comes_back_whole(tmp_path):
    agent, _ = trained(0)
    agent.save(tmp_path / "deep" / "er" / "agent.pt")
    loaded = PPOAgent.load(tmp_path / "deep" / "er" / "agent.pt", hidden_dims=[8])
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert loaded.predict(obs).tobytes() == agent.predict(obs).tobytes()
    assert loaded.predict(obs, deterministic=False).tobytes() == agent.predict(obs, deterministic=False).tobytes()
    assert unchanged(loaded, snapshot(agent))
    assert (loaded.env_steps, loaded.gradient_steps, loaded.seed) == (256, agent.gradient_steps, 0)
    assert loaded.config == agent.config
    assert loaded.hidden_dims == (8,)
    assert loaded.reward_scaler.scale == agent.reward_scaler.scale
    one, other = agent.optimizer.state_dict(), loaded.optimizer.state_dict()
    assert one["step"] == agent.gradient_steps > 0
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])


def test_an_update_after_loading_is_the_one_that_would_have_followed(tmp_path):
    # Parameters, moments, minibatch order and reward scale must all be back for this.
    agent, _ = trained(0)
    agent.save(tmp_path / "agent.pt")
    loaded = PPOAgent.load(tmp_path / "agent.pt")
    batch = batch_for(agent.policy, 200)
    assert loaded.update(copy.deepcopy(batch)) == agent.update(batch)
    assert unchanged(loaded, snapshot(agent))


def test_learning_goes_on_from_a_file_at_the_right_step_and_rate(tmp_path):
    envs = vector_of(Labelled)
    config = replace(PLAIN, lr=0.4, lr_schedule="linear", normalize_obs=True)
    agent = agent_for(envs, config)
    for progress in agent.learn(envs, 64):
        if progress.env_steps == 32:
            break
    agent.save(tmp_path / "agent.pt")
    loaded = PPOAgent.load(tmp_path / "agent.pt")
    progress = list(loaded.learn(envs, 64))
    assert [each.env_steps for each in progress] == [48, 64]
    assert [each.metrics["learning_rate"] for each in progress] == pytest.approx([0.2, 0.1])
    assert loaded.gradient_steps == agent.gradient_steps * 2
    assert loaded.policy.actor.normalizer.count.item() == 64.0


def test_a_checkpoint_holds_no_environment_steps_of_a_rollout_that_it_has_not_learned_from(tmp_path):
    agent, _ = trained(0)
    agent.save(tmp_path / "one.pt")
    PPOAgent.load(tmp_path / "one.pt").save(tmp_path / "two.pt")
    assert PPOAgent.load(tmp_path / "two.pt").env_steps == 256


def saved(tmp_path, hidden_dims=(8,)):
    agent = PPOAgent.for_spaces(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), hidden_dims=hidden_dims, seed=0)
    agent.save(tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


def test_layer_sizes_that_contradict_the_file_are_refused_with_both(tmp_path):
    path = saved(tmp_path, (8, 4))
    assert PPOAgent.load(path, hidden_dims=(8, 4)).hidden_dims == (8, 4)
    with pytest.raises(ArchitectureMismatchError, match=r"agent.pt has hidden_dims \[8, 4\], not \[64, 64\]"):
        PPOAgent.load(path, hidden_dims=[64, 64])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileMissingError, match=r"there is no file .*nowhere\.pt"):
        PPOAgent.load(tmp_path / "nowhere.pt")


def test_a_damaged_file_is_refused(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"agent\.pt is damaged"):
        PPOAgent.load(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = saved(tmp_path, (64, 64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match=r"check sum|damaged"):
        PPOAgent.load(path)


def test_a_students_file_is_refused(tmp_path):
    BCAgent(MLPPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), (8,)), seed=0).save(tmp_path / "student.pt")
    with pytest.raises(FileFormatError, match=r"holds a bc agent, not a PPO expert; load it with BCAgent\.load"):
        PPOAgent.load(tmp_path / "student.pt")


@pytest.mark.parametrize("missing", ["optimizer", "env_steps", "random", "reward_scaler", "config"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, missing):
    from il_based_rl.files import read_checkpoint

    payload = read_checkpoint(saved(tmp_path))
    del payload["training"][missing]
    with pytest.raises(FileFormatError, match=f"agent.pt is damaged: '{missing}'"):
        PPOAgent.from_payload(payload, "agent.pt")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    agent = PPOAgent.for_spaces(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), hidden_dims=(8,), seed=0)
    with pytest.raises(FileWriteError, match=r"cannot write .*agent\.pt"):
        agent.save(tmp_path / "file" / "agent.pt")


# ---- refusals while learning ----


def test_environments_of_other_spaces_are_refused():
    agent = PPOAgent.for_spaces(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), PLAIN, hidden_dims=(8,), seed=0)
    with pytest.raises(SpaceMismatchError, match="the agent and the environments do not fit: observation space"):
        next(agent.learn(vector_of(Labelled), 16))


def test_a_reward_that_is_no_number_stops_learning_and_is_placed():
    envs = vector_of(lambda k: Broken() if k == 1 else Labelled())
    placed = r"environment 1, seed \d+, episode 1, step 3, after action .*: the reward is nan"
    with pytest.raises(EnvironmentFaultError, match=placed):
        list(agent_for(envs).learn(envs, 16))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverged_policy_stops_learning():
    envs = vector_of(Labelled)
    agent = agent_for(envs, replace(PLAIN, lr=1e38))
    with pytest.raises(TrainingDivergedError, match=r"training diverged after 0 steps: .* lower --lr \(now 1e\+38\)"):
        list(agent.learn(envs, 16))


# ---- behaviour ----


@pytest.mark.parametrize("source", ["same step", "next step", "in process"])
@pytest.mark.parametrize("normalize_reward", [False, True])
def test_a_reward_without_end_is_worth_its_discounted_sum_under_a_time_limit(source, normalize_reward):
    # Worth 1 / (1 - 0.9) = 10 in the second place, and 0.9 * 10 = 9 in the first. Taking the time limit for an end would give
    # less than 5; bootstrapping from the next episode's first observation less than 9.
    make = lambda k: Forever()  # noqa: E731
    envs = InProcessEnvs("ppo_tests/Forever-v0") if source == "in process" else vector_of(make, mode=source)
    config = PPOConfig(
        n_steps=64,
        batch_size=32,
        lr=1e-2,
        gamma=0.9,
        lr_schedule="linear",
        normalize_reward=normalize_reward,
        max_grad_norm=100.0,
    )
    agent = agent_for(envs, config)
    list(agent.learn(envs, 64 * envs.num_envs * 40))
    unit = agent.reward_scaler.scale if normalize_reward else 1.0
    first, second = values_of(agent.policy, np.eye(2)) * unit
    assert second == pytest.approx(10.0, rel=0.03)
    assert first == pytest.approx(9.0, rel=0.03)


@pytest.mark.parametrize(
    ("action_space", "wanted"),
    [
        (spaces.Box(np.array([-2.0, 0.0]), np.array([4.0, 10.0]), dtype=np.float64), ([-1.0, 2.0], [3.0, 7.0])),
        (spaces.Box(-np.inf, np.inf, (1,)), ([-1.0], [2.0])),
        (spaces.Discrete(3, start=5), (7, 5)),
        (spaces.MultiDiscrete([2, 3]), ([1, 0], [0, 2])),
        (spaces.MultiBinary(3), ([0, 1, 1], [1, 0, 1])),
    ],
    ids=["bounded", "unbounded", "discrete", "multi-discrete", "bits"],
)
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_action_is_learned(action_space, wanted, mode):
    envs = vector_of(lambda k: Told(action_space, np.array(wanted)), count=4, mode=mode)
    agent = agent_for(envs, PPOConfig(n_steps=64, lr=3e-3, lr_schedule="linear"), hidden_dims=(16,))
    list(agent.learn(envs, 256 * 80))
    actions = agent.predict(np.array([[-1.0], [1.0]], np.float32))
    if isinstance(action_space, spaces.Box):
        np.testing.assert_allclose(actions, wanted, atol=0.3)
    else:
        assert actions.tolist() == list(wanted)


@pytest.mark.slow
def test_a_pole_is_balanced():
    with InProcessEnvs("CartPole-v1") as envs:
        agent = agent_for(envs, PPOConfig(), hidden_dims=(64, 64))
        list(agent.learn(envs, 60_000))
    assert evaluate_policy(agent, "CartPole-v1", num_episodes=20).mean > 400.0


def test_acting_and_learning_need_no_seed():
    envs = vector_of(Labelled)
    one, other = (
        PPOAgent.for_spaces(envs.single_observation_space, envs.single_action_space, PLAIN, hidden_dims=(8,)) for _ in range(2)
    )
    assert one.seed != other.seed
    assert not torch.equal(one.policy.critic.layers[0].weight, other.policy.critic.layers[0].weight)


def test_rewards_too_large_for_statistics_stop_training_before_anything_is_saved():
    envs = vector_of(lambda k: Huge(reward=1e200, length=3))
    agent = agent_for(envs, PPOConfig(n_steps=64))
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(TrainingDivergedError, match=r"size of .* rewards"):
        list(agent.learn(envs, 256))


def test_a_kept_batch_is_not_overwritten_by_the_next_rollout(monkeypatch):
    envs = vector_of(Labelled)
    agent = agent_for(envs, replace(PLAIN, n_steps=8))
    kept = []
    monkeypatch.setattr(agent, "update", lambda batch: kept.append((batch, copy.deepcopy(batch))) or {})
    list(agent.learn(envs, 3 * 16))
    for batch, then in kept:
        for name in ("normalized", "raw_actions", "log_probs", "advantages", "returns"):
            assert np.array_equal(getattr(batch, name), getattr(then, name)), name
    assert not np.array_equal(kept[0][0].normalized, kept[1][0].normalized)


def test_gymnasiums_own_choice_of_a_vector_environment_can_be_learned_in():
    envs = gym.make_vec("CartPole-v1", 4)
    agent = PPOAgent.for_spaces(envs.single_observation_space, envs.single_action_space, replace(PLAIN, n_steps=16), seed=0)
    assert [progress.env_steps for progress in agent.learn(envs, 128)] == [64, 128]


def test_an_agent_that_is_loaded_and_saved_again_goes_on_all_the_same(tmp_path):
    with InProcessEnvs("Pendulum-v1") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, replace(PLAIN, n_steps=30), seed=0)
        for _ in agent.learn(envs, 60):
            pass
        agent.save(tmp_path / "a.pt")
    PPOAgent.load(tmp_path / "a.pt").save(tmp_path / "b.pt")
    ended = []
    for name in ("a.pt", "b.pt"):
        again = PPOAgent.load(tmp_path / name)
        with InProcessEnvs("Pendulum-v1") as envs:
            for _ in again.learn(envs, 120):
                pass
        assert again.resume_level == "exact"
        ended.append(again.policy.state_dict())
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


def test_a_copy_and_a_pickle_go_on_as_a_loaded_agent_does_while_workers_step(tmp_path):
    with make_envs("Pendulum-v1", 2, vectorization="async") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, replace(PLAIN, n_steps=30), seed=0)
        for _ in agent.learn(envs, 60):
            pass
        agent.save(tmp_path / "a.pt")
        others = [PPOAgent.load(tmp_path / "a.pt"), copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))]
    ended = []
    for other in others:
        with InProcessEnvs("Pendulum-v1", 2) as envs:
            for _ in other.learn(envs, 120):
                pass
        assert other.resume_level == "exact"
        ended.append(other.policy.state_dict())
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name])
        assert torch.equal(tensor, ended[2][name])
    assert agent.env_steps == 60
    assert not torch.equal(ended[0]["log_std"], agent.policy.state_dict()["log_std"])


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_here_is_not_told_as_a_damaged_file(device, tmp_path):
    box = spaces.Box(-1.0, 1.0, (2,))
    PPOAgent.for_spaces(box, box, hidden_dims=[8], seed=0).save(tmp_path / "a.pt")
    BCAgent.for_spaces(box, box, hidden_dims=[8], seed=0).save(tmp_path / "b.pt")
    for kind, name in ((PPOAgent, "a.pt"), (BCAgent, "b.pt")):
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            kind.load(tmp_path / name, device=device)
        assert "damaged" not in str(caught.value)


def test_rewards_are_clipped_where_they_are_told_to_be():
    most = {}
    for clip in (10.0, 0.01):
        config = replace(PLAIN, n_steps=64, gamma=0.0, gae_lambda=0.0, normalize_reward=True, reward_clip=clip)
        with InProcessEnvs("Pendulum-v1") as envs:
            agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, config, seed=0)
            real, seen = agent.update, []
            agent.update = lambda batch, real=real, seen=seen: seen.append(batch.returns) or real(batch)
            for _ in agent.learn(envs, 64):
                pass
        most[clip] = float(np.abs(seen[0]).max())  # of a discount of 0, returns are rewards
    assert most[0.01] == pytest.approx(0.01, rel=1e-4)
    assert 0.1 < most[10.0] < 10.0


def test_numpys_numbers_are_settings_as_pythons_are(tmp_path):
    config = PPOConfig(
        lr=np.float64(1e-3), n_steps=np.int64(32), normalize_obs=np.bool_(True), n_epochs=1, batch_size=np.int32(32)
    )
    space = gym.spaces.Box(-1.0, 1.0, (2,))
    agent = PPOAgent.for_spaces(space, space, config, hidden_dims=np.array([8, 8]), seed=np.int64(3))
    agent.save(tmp_path / "a.pt")
    loaded = PPOAgent.load(tmp_path / "a.pt")
    assert loaded.config == PPOConfig(lr=1e-3, n_steps=32, n_epochs=1, batch_size=32)
    assert (loaded.seed, loaded.hidden_dims) == (3, (8, 8))


@pytest.mark.parametrize(
    "settings", [{"lr_schedule": "cosine"}, {"n_epochs": 2.0}, {"lr": "1e-3"}, {"normalize_obs": 1}, {"lr": np.ones(2)}]
)
def test_settings_of_another_type_are_refused_at_once(settings):
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))} must be ".replace("_", "-")):
        PPOConfig(**settings)


@pytest.mark.parametrize(
    "shape",
    [{"activation": "gelu"}, {"obs_clip": 0.0}, {"obs_clip": math.inf}, {"hidden_dims": (0,)}, {"initial_log_std": math.nan}],
)
def test_a_policy_that_no_file_could_hold_is_refused_at_once(shape):
    space = gym.spaces.Box(-1.0, 1.0, (2,))
    with pytest.raises(ConfigError, match=next(iter(shape))):
        PPOAgent.for_spaces(space, space, **shape)


def test_an_activation_of_numpys_text_is_stored_as_a_text(tmp_path):
    space = gym.spaces.Box(-1.0, 1.0, (2,))
    PPOAgent.for_spaces(space, space, hidden_dims=(8,), activation=np.str_("relu"), seed=0).save(tmp_path / "a.pt")
    assert PPOAgent.load(tmp_path / "a.pt").policy.actor.activation == "relu"


@pytest.mark.parametrize("settings", [{"lr": 10**400}, {"n_steps": 10**400}, {"value_coef": 10**400}])
def test_a_number_beyond_all_others_is_refused(settings):
    with pytest.raises(ConfigError, match="must be"):
        PPOConfig(**settings)
