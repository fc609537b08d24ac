"""Two paths, one truth: updates in closed form against updates by autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from il_based_rl.actor_critic_policy import ActorCriticPolicy
from il_based_rl.agent import BCAgent
from il_based_rl.buffer import RolloutBatch
from il_based_rl.cloning_losses import CloningLoss
from il_based_rl.cloning_updates import FusedCloning, ReferenceCloning
from il_based_rl.config import BCConfig, PPOConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.envs import InProcessEnvs
from il_based_rl.flat_parameters import FlatParameters
from il_based_rl.fused_mlp import reason_against
from il_based_rl.networks import MLP
from il_based_rl.policy import MLPPolicy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.ppo_updates import Anchor, FusedUpdate, ReferenceUpdate
from il_based_rl.spaces import space_to_plain

CPU = torch.device("cpu")
KINDS = [spaces.Box(-1, 1, (2,)), spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
EVERY_KIND = pytest.mark.parametrize("action_space", KINDS, ids=["box", "discrete", "multi-discrete", "bits"])
CLONING = 2e-5
"""Distance between two students over the distance gone, after three epochs: at most 7.0e-6 in 200 random cases, median 7e-7."""
BOTH_PATHS = pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "reference path"])


def action_spaces():
    return st.one_of(
        st.integers(1, 5).map(lambda size: spaces.Box(-1, 1, (size,))),
        st.integers(1, 6).map(spaces.Discrete),
        st.lists(st.integers(1, 4), min_size=1, max_size=4).map(spaces.MultiDiscrete),
        st.integers(1, 5).map(spaces.MultiBinary),
    )


def networks():
    """Numbers of features, hidden layer sizes, activation and the seed of the weights."""
    widths = st.lists(st.integers(1, 24), max_size=3)
    return st.tuples(st.integers(1, 7), widths, st.sampled_from(["tanh", "relu"]), st.integers(0, 2**31))


def randomized(module, seed):
    """The module with biases, and a last layer, far enough from 0 that everything in it matters."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 1.0 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.4, generator=random)
    return module


def policy_of(action_space, network=(3, (16, 8), "tanh", 0)):
    size, hidden_dims, activation, seed = network
    observation_space = spaces.Box(-np.inf, np.inf, (size,))
    return randomized(ActorCriticPolicy(observation_space, action_space, hidden_dims, activation=activation), seed)


def batch_for(policy, size, clip_range, clipped_share, seed):
    """A rollout in the policy's number type, of whose ratios that share is clipped, and none is near the edges."""
    random, head = np.random.default_rng(seed), policy.actor.head
    dtype = np.float64 if policy.critic.layers[0].weight.dtype == torch.float64 else np.float32
    normalized = random.normal(size=(size, policy.actor.codec.size)).astype(dtype)
    with torch.no_grad():
        outputs = policy.actor.network(torch.from_numpy(normalized)).numpy()
        raw = head.mode(outputs + head.noise(random, (size,), policy.log_std_array()).astype(dtype))
        raw = raw.astype(dtype) if raw.dtype.kind == "f" else raw
        log_probs = policy.evaluate_actions(torch.from_numpy(normalized), torch.from_numpy(raw))[0].numpy()
    inside = random.uniform(1 - 0.9 * clip_range, 1 + 0.9 * clip_range, size)
    above, below = random.uniform(1 + 1.1 * clip_range, 3.0, size), random.uniform(0.3, 1 - 1.1 * clip_range, size)
    ratios = np.where(random.random(size) < clipped_share, np.where(random.random(size) < 0.5, above, below), inside)
    return RolloutBatch(
        normalized=normalized,
        raw_actions=raw,
        log_probs=(log_probs - np.log(ratios)).astype(dtype),
        advantages=random.normal(size=size).astype(dtype),
        returns=(3.0 * random.normal(size=size)).astype(dtype),
    )


def vector_of(policy):
    return torch.cat([parameter.detach().ravel() for parameter in policy.parameters()]).clone()


def relative(found, wanted):
    difference = (found - wanted).norm().item()
    return difference / wanted.norm().item() if difference else 0.0


def test_an_anchor_of_other_statistics_reads_the_same_observations():
    policy, random = policy_of(KINDS[0]), np.random.default_rng(0)
    anchor = copy.deepcopy(policy.actor).requires_grad_(False)
    features = random.normal(3.0, 2.0, (64, 3)).astype(np.float32)
    anchor.normalizer.fit(features)
    policy.actor.normalizer.fit(2.0 * features - 1.0)
    normalized = policy.actor.normalizer(torch.from_numpy(features))
    with torch.no_grad():
        head, outputs = policy.actor.head, policy.actor.network(normalized)
        wanted = float(head.divergence(outputs, anchor(torch.from_numpy(features)), policy.log_std))
    batch = batch_for(policy, 64, 0.2, 0.0, 0)
    batch = replace(batch, normalized=normalized.numpy())
    for rule in (ReferenceUpdate, lambda p, flat, device, anchored: FusedUpdate(p, anchored)):
        anchored = Anchor(anchor, 0.5)
        update = rule(policy, FlatParameters.of(policy), CPU, anchored)
        update.differentiate(update.prepared(batch), PPOConfig())
        assert anchored.divergences == pytest.approx([wanted], rel=1e-4)
        assert wanted > 0.01


# ---- judging a rollout ----


@pytest.mark.parametrize(
    "rule", [lambda p, flat: ReferenceUpdate(p, flat, CPU), lambda p, _: FusedUpdate(p)], ids=["plain", "fast"]
)
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=str)
def test_a_rollout_is_judged_by_the_statistics_of_the_policy(space, rule):
    policy, random = policy_of(space), np.random.default_rng(0)
    seen = random.normal(5.0, 3.0, (100, 3)).astype(np.float32)
    policy.actor.normalizer.fit(seen)
    raw = policy.actor.head.mode(random.normal(size=(100, policy.actor.head.num_outputs)).astype(np.float32))
    standardized = torch.from_numpy((seen - seen.mean(0)) / seen.std(0))
    with torch.no_grad():
        wanted_log_probs, _, wanted_values = policy.evaluate_actions(standardized, torch.from_numpy(raw))
    judge = rule(policy, FlatParameters.of(policy))
    normalized, log_probs, values = judge.judge(seen, raw)
    np.testing.assert_allclose(normalized, standardized.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_probs, wanted_log_probs.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values, wanted_values.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(judge.values(seen), wanted_values.numpy(), rtol=1e-4, atol=1e-4)


# ---- gradients ----


@settings(max_examples=150, deadline=None)
@given(
    action_space=action_spaces(),
    network=networks(),
    size=st.integers(1, 100),
    clip_range=st.sampled_from([0.1, 0.2, 0.4]),
    clipped_share=st.sampled_from([0.0, 0.5, 1.0]),
    entropy_coef=st.sampled_from([0.0, 0.01, 0.3]),
    value_coef=st.sampled_from([0.0, 0.5, 2.0]),
    drawn_back=st.sampled_from([None, 0.0, 0.5]),
)
def test_the_gradient_of_ppos_whole_loss_is_autograds(
    action_space, network, size, clip_range, clipped_share, entropy_coef, value_coef, drawn_back
):
    policy = policy_of(action_space, network).double()
    other = policy_of(action_space, (*network[:-1], network[-1] + 1)).double().actor.requires_grad_(False)
    anchors = [None, None] if drawn_back is None else [Anchor(other, drawn_back), Anchor(other, drawn_back)]
    batch = batch_for(policy, size, clip_range, clipped_share, network[-1])
    config = PPOConfig(entropy_coef=entropy_coef, value_coef=value_coef, clip_range=clip_range)
    assert reason_against(policy.float(), CPU) is None  # that it is double is the only reason against it
    policy.double()
    others = [] if policy.log_std is None else [policy.log_std]
    flat = FlatParameters([policy.actor.network, policy.critic], others)
    reference, fused = ReferenceUpdate(policy, flat, CPU, anchors[0]), FusedUpdate(policy, anchors[1])
    wanted_measures = reference.differentiate(reference.prepared(batch), config)
    wanted = flat.grad.clone()
    flat.grad.fill_(7.0)  # what was there must not matter
    measures = fused.differentiate(fused.prepared(batch), config)
    # 1e-5 is promised; the largest relative difference of 2,000 random cases was 3.4e-15.
    assert relative(flat.grad, wanted) < 1e-9
    np.testing.assert_allclose(measures, wanted_measures.numpy(), rtol=1e-6, atol=1e-9)
    assert abs(measures[-1] - clipped_share) <= (0.0 if clipped_share != 0.5 else 0.5)
    if drawn_back is not None:
        assert anchors[1].divergences == pytest.approx(anchors[0].divergences, rel=1e-9, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(action_space=action_spaces(), network=networks(), size=st.integers(1, 100), which=st.integers(0, 5))
def test_the_gradients_of_the_cloning_losses_are_autograds(action_space, network, size, which):
    num_features, hidden_dims, activation, seed = network
    space = spaces.Box(-np.inf, np.inf, (num_features,))
    policy = randomized(MLPPolicy(space, action_space, hidden_dims, activation=activation), seed).double()
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(size, num_features))
    head = policy.head
    fitting = ("mse", "huber", "l1", "nll", "bounded-nll", "kl") if head.continuous else ("cross-entropy", "kl")
    loss = CloningLoss(BCConfig(loss=fitting[which % len(fitting)]), head)
    outputs = random.normal(size=(size, head.num_outputs))
    log_std = nn.Parameter(torch.from_numpy(random.normal(size=head.num_outputs))) if loss.learns_std else None
    targets = loss.targets(head.to_env(head.mode(outputs)), head.distribution(outputs, random.normal(size=head.num_outputs)))
    targets = targets.astype(np.float64) if targets.dtype.kind == "f" else targets
    flat = FlatParameters([policy.network], [] if log_std is None else [log_std])
    reference, fused = ReferenceCloning(policy, loss, log_std, flat, CPU), FusedCloning(policy, loss, log_std)
    wanted_loss = reference.differentiate(reference.prepared(inputs), reference.prepared(targets))
    wanted = flat.grad.clone()
    flat.grad.fill_(7.0)
    found = fused.differentiate(fused.prepared(inputs), fused.prepared(targets))
    assert relative(flat.grad, wanted) < 1e-8
    assert found == pytest.approx(wanted_loss.item(), rel=1e-9, abs=1e-12)


# ---- whole updates ----


def updated(policy, batch, config):
    """A copy of the policy after one update, and what it measured."""
    agent = PPOAgent(copy.deepcopy(policy), config, seed=0)
    metrics = agent.update(copy.deepcopy(batch))
    return vector_of(agent.policy), metrics


@EVERY_KIND
@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
def test_a_whole_update_on_one_rollout_is_the_same_on_both_paths(action_space, entropy_coef):
    # The distance between the two ends, over the distance gone: of 760 random cases all but one were below 1.5e-6. In that one
    # a rounding error had put one ratio of 5,000 on the other side of the clip range, and it was 1.06e-4. The measures differed
    # by 4.6e-7 of themselves at most, the clip fraction by that one ratio.
    config, distances = PPOConfig(entropy_coef=entropy_coef), []
    for seed in range(4):
        policy = policy_of(action_space, (3, (32, 32), "tanh" if seed % 2 else "relu", seed))
        batch = batch_for(policy, 500, 0.2, 0.3, seed)
        fast, fast_metrics = updated(policy, batch, config)
        reference, metrics = updated(policy, batch, replace(config, fast_path=False))
        distances.append(((fast - reference).norm() / (reference - vector_of(policy)).norm()).item())
        assert fast_metrics.pop("clip_fraction") == pytest.approx(metrics.pop("clip_fraction"), abs=6e-4)
        assert fast_metrics == pytest.approx(metrics, rel=1.5e-6, abs=1e-7)
    assert max(distances) < 3e-4
    assert np.median(distances) < 5e-6


@EVERY_KIND
def test_cloning_gives_the_same_student_on_both_paths(action_space):
    dataset, students = demos_of(action_space), {}
    for fast_path in (True, False):
        agent = student_for(dataset, BCConfig(epochs=3, fast_path=fast_path))
        start = vector_of(agent.policy)
        metrics = [progress.metrics for progress in agent.learn(dataset)]
        students[fast_path] = vector_of(agent.policy), metrics
    (fast, fast_metrics), (reference, metrics) = students[True], students[False]
    assert ((fast - reference).norm() / (reference - start).norm()).item() < CLONING
    for found, wanted in zip(fast_metrics, metrics, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-8)


# ---- which path, and the same numbers ----


def demos_of(action_space, count=200, num_episodes=5):
    random, space = np.random.default_rng(0), spaces.Box(-np.inf, np.inf, (3,))
    action_space.seed(0)
    observations = random.normal(size=(count, 3)).astype(np.float32)
    truncated = np.arange(1, count + 1) % (count // num_episodes) == 0
    return DemoDataset(
        observations=observations,
        actions=np.stack([np.asarray(action_space.sample()) for _ in range(count)]),
        rewards=np.zeros(count),
        terminated=np.zeros(count, bool),
        truncated=truncated,
        final_observations=observations[:num_episodes],
        episode_lengths=np.full(num_episodes, count // num_episodes, np.int64),
        seeds=np.arange(num_episodes),
        metadata={"observation_space": space_to_plain(space), "action_space": space_to_plain(action_space)},
    )


def student_for(dataset, config, hidden_dims=(16, 8), seed=0):
    return BCAgent.for_dataset(dataset, config, hidden_dims=hidden_dims, seed=seed)


def learned_expert(env_id, fast_path, seed=0):
    with InProcessEnvs(env_id, 2) as envs:
        config = PPOConfig(n_steps=64, n_epochs=2, fast_path=fast_path)
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, config, hidden_dims=(8, 8), seed=seed)
        return agent, [progress.metrics for progress in agent.learn(envs, 256)]


def test_the_fast_path_is_chosen_unless_it_is_turned_off():
    expert, student = PPOAgent(policy_of(KINDS[0]), seed=0), student_for(demos_of(KINDS[0]), BCConfig())
    assert expert.reason_against_fast_path is None
    assert student.reason_against_fast_path is None
    expert.config, student.config = PPOConfig(fast_path=False), BCConfig(fast_path=False)
    assert expert.reason_against_fast_path == student.reason_against_fast_path == "it is turned off"


def zero_gradients(grad):
    return torch.zeros_like(grad)


FALLBACKS = {
    "has hooks": lambda policy: policy.register_forward_hook(lambda module, inputs, output: None),
    "torch.float64": lambda policy: policy.double(),
    "layers.0.weight is frozen": lambda policy: first_weight(policy).requires_grad_(False),
    "layers.0.weight has hooks": lambda policy: first_weight(policy).register_hook(zero_gradients),
}


def first_weight(policy):
    return getattr(policy, "actor", policy).network.layers[0].weight


@pytest.mark.parametrize("reason", FALLBACKS)
def test_an_expert_whose_policy_is_not_modelled_takes_the_reference_path_and_says_why(reason):
    policy = policy_of(KINDS[0])
    FALLBACKS[reason](policy)
    agent = PPOAgent(policy, PPOConfig(lr=1e-2, n_epochs=2, batch_size=32), seed=0)
    assert reason in agent.reason_against_fast_path
    before, whole = first_weight(policy).detach().clone(), vector_of(policy)
    agent.update(batch_for(policy, 64, 0.2, 0.3, 0))
    assert not torch.equal(vector_of(policy), whole)
    stays = reason.startswith("layers.0.weight")  # frozen, or its hook leaves no gradient
    assert torch.equal(first_weight(policy), before) is stays


@pytest.mark.parametrize("reason", [reason for reason in FALLBACKS if reason != "torch.float64"])
def test_a_student_whose_policy_is_not_modelled_takes_the_reference_path_and_says_why(reason):
    dataset = demos_of(KINDS[0])
    agent = student_for(dataset, BCConfig(epochs=2))
    FALLBACKS[reason](agent.policy)
    assert reason.replace("layers", "network.layers") in agent.reason_against_fast_path or reason == "has hooks"
    before, whole = first_weight(agent.policy).detach().clone(), vector_of(agent.policy)
    list(agent.learn(dataset))
    assert not torch.equal(vector_of(agent.policy), whole)
    assert torch.equal(first_weight(agent.policy), before) is reason.startswith("layers.0.weight")


def test_a_policy_of_other_modules_learns_on_the_reference_path_as_the_same_function_does():
    policy = policy_of(KINDS[1])
    other = copy.deepcopy(policy)
    one, two, three = other.critic.layers
    other.critic = nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), three)
    batch, config = batch_for(policy, 128, 0.2, 0.3, 0), PPOConfig(fast_path=False)
    wanted, _ = updated(policy, batch, config)
    agent = PPOAgent(other, PPOConfig(), seed=0)
    assert agent.reason_against_fast_path is not None
    agent.update(batch)
    torch.testing.assert_close(vector_of(other), wanted, rtol=1e-5, atol=1e-7)


class Doubled(MLP):
    def forward(self, x):
        return 2.0 * super().forward(x)


def doubled(actor):
    actor.network = Doubled([3, 8, 2], "tanh", last_gain=1.0, generator=torch.Generator().manual_seed(0))


def of_other_modules(actor):
    actor.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


OTHER_ACTORS = {
    "subclass": doubled,
    "other modules": of_other_modules,
    "hook": lambda actor: actor.network.register_forward_hook(lambda module, inputs, output: 2.0 * output),
    "parametrised": lambda actor: nn.utils.parametrizations.weight_norm(actor.network.layers[0]),
}


@pytest.mark.parametrize("what", OTHER_ACTORS)
def test_a_policy_that_is_not_modelled_acts_by_the_function_that_it_learns(what):
    # Else PPO would compare the probabilities of one policy with the actions of another one. No bounds, so nothing is clipped.
    policy = policy_of(spaces.Box(-np.inf, np.inf, (2,)))
    OTHER_ACTORS[what](policy.actor)
    agent = PPOAgent(policy, PPOConfig(lr=1e-2), seed=0)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for _ in range(2):  # and follows its updates
        wanted = policy.actor(torch.from_numpy(obs)).detach().numpy()
        np.testing.assert_allclose(agent.predict(obs), wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(policy.actor.as_numpy()(obs), wanted, rtol=1e-4, atol=1e-5)  # as rollouts do
        agent.update(batch_for(policy_of(KINDS[0]), 64, 0.2, 0.3, 0))


@BOTH_PATHS
def test_gradients_that_somebody_dropped_do_not_stop_the_learning(fast_path):
    policy, config = policy_of(KINDS[0]), PPOConfig(fast_path=fast_path)
    batch = batch_for(policy, 128, 0.2, 0.3, 0)
    wanted, _ = updated(policy, batch, config)
    agent = PPOAgent(policy, config, seed=0)
    policy.zero_grad()
    agent.update(batch)
    assert torch.equal(vector_of(policy), wanted)


@BOTH_PATHS
@pytest.mark.parametrize("change", ["moved", "replaced"])
def test_an_agent_whose_parameters_were_taken_away_says_so(change, fast_path):
    policy = policy_of(KINDS[0])
    agent = PPOAgent(policy, PPOConfig(fast_path=fast_path), seed=0)
    batch = batch_for(policy, 64, 0.2, 0.3, 0)
    if change == "moved":
        policy.double().float()
    else:
        policy.critic.layers[0].weight = nn.Parameter(policy.critic.layers[0].weight.detach().clone())
    with pytest.raises(RuntimeError, match="moved or replaced after its agent was made; make a new agent"):
        agent.update(batch)


@BOTH_PATHS
def test_a_copied_agent_learns_the_same_and_leaves_the_first_one_alone(fast_path):
    policy = policy_of(KINDS[0])
    agent, batch = PPOAgent(policy, PPOConfig(fast_path=fast_path), seed=0), batch_for(policy, 128, 0.2, 0.3, 0)
    agent.update(copy.deepcopy(batch))
    before, twin = vector_of(policy), copy.deepcopy(agent)
    twin_metrics = twin.update(copy.deepcopy(batch))
    assert torch.equal(vector_of(policy), before)
    assert agent.update(batch) == twin_metrics
    assert torch.equal(vector_of(policy), vector_of(twin.policy))


@BOTH_PATHS
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_the_same_seed_gives_the_same_expert_twice_on_each_path(env_id, fast_path):
    (one, one_metrics), (same, same_metrics), (other, _) = (learned_expert(env_id, fast_path, seed) for seed in (3, 3, 4))
    assert torch.equal(vector_of(one.policy), vector_of(same.policy))
    assert one_metrics == same_metrics
    assert not torch.equal(vector_of(one.policy), vector_of(other.policy))


@BOTH_PATHS
@EVERY_KIND
def test_the_same_seed_gives_the_same_student_twice_on_each_path(action_space, fast_path):
    dataset, config = demos_of(action_space), BCConfig(epochs=2, fast_path=fast_path)
    one, same, other = (student_for(dataset, config, seed=seed) for seed in (3, 3, 4))
    losses = [[progress.metrics for progress in agent.learn(dataset)] for agent in (one, same, other)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(vector_of(one.policy), vector_of(same.policy))


# ---- checkpoints cross over ----


@BOTH_PATHS
def test_an_expert_saved_on_one_path_goes_on_along_the_other(tmp_path, fast_path):
    # Moments, step count and minibatch order come along: the second half ends where it would have on the first path, within
    # the difference between the paths.
    agent, _ = learned_expert("Pendulum-v1", fast_path)
    agent.save(tmp_path / "agent.pt")
    crossed = PPOAgent.load(tmp_path / "agent.pt")
    crossed.config = replace(agent.config, fast_path=not fast_path)
    assert (crossed.reason_against_fast_path is None) is not fast_path
    before, batch = vector_of(agent.policy), batch_for(agent.policy, 500, 0.2, 0.3, 0)
    metrics, crossed_metrics = agent.update(copy.deepcopy(batch)), crossed.update(batch)
    distance = (vector_of(agent.policy) - before).norm()
    assert ((vector_of(agent.policy) - vector_of(crossed.policy)).norm() / distance).item() < 3e-4
    assert crossed_metrics == pytest.approx(metrics, rel=1e-3)
    assert agent.gradient_steps == crossed.gradient_steps


@BOTH_PATHS
def test_a_student_saved_on_one_path_goes_on_along_the_other(tmp_path, fast_path):
    dataset, config = demos_of(KINDS[0]), BCConfig(epochs=4, fast_path=fast_path)
    agent, ends = student_for(dataset, config), []
    for progress in agent.learn(dataset):
        if progress.epoch == 2:
            break
    agent.save(tmp_path / "student.pt")
    for path in (fast_path, not fast_path):
        loaded = BCAgent.load(tmp_path / "student.pt")
        loaded.config = replace(config, fast_path=path)
        assert [progress.epoch for progress in loaded.learn(dataset)] == [3, 4]
        ends.append(vector_of(loaded.policy))
    distance = (ends[0] - vector_of(agent.policy)).norm()
    assert ((ends[0] - ends[1]).norm() / distance).item() < CLONING
