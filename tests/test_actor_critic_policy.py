"""The expert: actor, critic, and how widely the actor explores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical, Normal

from il_based_rl.actor_critic_policy import ActorCriticPolicy, actor_critic_from
from il_based_rl.errors import FileFormatError, UnsupportedSpaceError
from il_based_rl.networks import parameter_count

PLANE = spaces.Box(-np.inf, np.inf, (2,))
BOX = spaces.Box(-1.0, 1.0, (3,))


def policy_of(action_space=BOX, hidden_dims=(16, 8), seed=0):
    """A policy in float64, with outputs large enough for no two distributions to look alike."""
    policy = ActorCriticPolicy(PLANE, action_space, hidden_dims, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        policy.actor.network.layers[-1].weight.mul_(200.0)
        if policy.log_std is not None:
            policy.log_std.copy_(torch.linspace(-1.0, 0.5, len(policy.log_std)))
    return policy


def inputs(count=6):
    return torch.tensor(np.random.default_rng(0).normal(size=(count, 2)))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_actions_of_a_box_are_judged_as_independent_normals():
    policy, x = policy_of(), inputs()
    raw = torch.tensor(np.random.default_rng(1).normal(0.0, 3.0, size=(6, 3)))  # many outside the bounds, and not clipped
    log_probs, entropy, values = policy.evaluate_actions(x, raw)
    normal = Normal(policy.actor.network(x), policy.log_std.exp())
    close(log_probs, normal.log_prob(raw).sum(-1))
    close(entropy, normal.entropy().sum(-1).mean())
    close(values, policy.critic(x)[:, 0])


def test_discrete_actions_are_judged_as_choices():
    policy, x = policy_of(spaces.Discrete(4)), inputs()
    raw = torch.tensor([[0], [1], [2], [3], [0], [1]])
    log_probs, entropy, _ = policy.evaluate_actions(x, raw)
    choice = Categorical(logits=policy.actor.network(x))
    close(log_probs, choice.log_prob(raw[:, 0]))
    close(entropy, choice.entropy().mean())


def test_bits_are_judged_one_by_one():
    policy, x = policy_of(spaces.MultiBinary(3)), inputs()
    raw = torch.tensor(np.random.default_rng(1).integers(2, size=(6, 3))).double()
    log_probs, entropy, _ = policy.evaluate_actions(x, raw)
    bits = Bernoulli(logits=policy.actor.network(x))
    close(log_probs, bits.log_prob(raw).sum(-1))
    close(entropy, bits.entropy().sum(-1).mean())


def test_outputs_come_with_one_value_for_each_observation():
    policy, x = policy_of(), inputs(5)
    outputs, values = policy(x)
    assert outputs.shape == (5, 3)
    assert values.shape == (5,)
    one_by_one = torch.cat([policy(row[None])[1] for row in x])
    close(values, one_by_one)


def test_actor_and_critic_share_no_parameter():
    policy = policy_of()
    policy(inputs())[1].sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor.parameters())
    assert all(parameter.grad is not None for parameter in policy.critic.parameters())


def test_the_entropy_of_a_box_moves_the_standard_deviation_alone():
    # The entropy of a normal grows by 1 for each unit of its log standard deviation, whatever its mean.
    policy = policy_of()
    policy.evaluate_actions(inputs(), torch.zeros(6, 3, dtype=torch.float64))[1].backward()
    assert policy.log_std.grad.tolist() == [1.0, 1.0, 1.0]
    assert all(parameter.grad is None for parameter in policy.actor.parameters())


def test_a_fresh_policy_explores_with_a_standard_deviation_of_one():
    policy = ActorCriticPolicy(PLANE, BOX)
    assert policy.log_std_array().tolist() == [0.0, 0.0, 0.0]
    assert policy.log_std_array().dtype == np.float32


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)], ids=str)
def test_discrete_actions_have_no_standard_deviation(action_space):
    policy = ActorCriticPolicy(PLANE, action_space)
    assert policy.log_std is None
    assert policy.log_std_array() is None
    assert "log_std" not in policy.state_dict()


def test_the_actors_last_layer_starts_small_and_the_critics_does_not():
    policy = ActorCriticPolicy(PLANE, BOX, (16,), generator=torch.Generator().manual_seed(0))
    actor, critic = policy.actor.network.layers[-1].weight.detach(), policy.critic.layers[-1].weight.detach()
    assert torch.linalg.vector_norm(actor, dim=1).tolist() == pytest.approx([0.01] * 3, rel=1e-5)
    assert torch.linalg.vector_norm(critic).item() == pytest.approx(1.0, rel=1e-5)


def test_actor_and_critic_have_the_same_layer_sizes():
    # Actor 2*64 + 64 + 64*64 + 64 + 64*3 + 3 = 4547; critic 2*64 + 64 + 64*64 + 64 + 64 + 1 = 4417; log std 3.
    assert parameter_count(ActorCriticPolicy(PLANE, BOX)) == 4547 + 4417 + 3


@pytest.mark.usefixtures("global_generators_untouched")
def test_the_generator_alone_decides_the_weights():
    one, same, other = (policy_of(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["critic.layers.0.weight"], other["critic.layers.0.weight"])
    assert not torch.equal(one["critic.layers.0.weight"], one["actor.network.layers.0.weight"])
    ActorCriticPolicy(PLANE, BOX)


def test_the_actors_statistics_are_saved_with_the_policy():
    policy = policy_of()
    policy.actor.normalizer.update(np.array([[1.0, 2.0], [3.0, 6.0]]))
    state = policy.state_dict()
    assert state["actor.normalizer.mean"].tolist() == [2.0, 4.0]
    assert state["actor.normalizer.variance"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize("spaces_given", [(spaces.Text(3), BOX), (PLANE, spaces.Text(3))], ids=["observation", "action"])
def test_other_kinds_of_spaces_are_refused(spaces_given):
    with pytest.raises(UnsupportedSpaceError, match="is not supported; expected Box, Discrete"):
        ActorCriticPolicy(*spaces_given)


@pytest.mark.parametrize(
    "odd", [[2**40], [-3], [8.5], [torch.ones(2)], "8", {8: 1}, None, 8, [1] * 1_000_000], ids=lambda odd: str(odd)[:20]
)
def test_a_critic_that_a_file_does_not_hold_is_refused(odd):
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), (8,))
    with pytest.raises(FileFormatError, match="checkpoint describes"):
        actor_critic_from({**policy.actor.architecture, "critic_hidden_dims": odd}, policy.state_dict())


def test_a_file_that_names_the_critics_sizes_as_well_is_read():
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), (8, 4))
    found = actor_critic_from({**policy.actor.architecture, "critic_hidden_dims": [8, 4]}, policy.state_dict())
    assert [layer.in_features for layer in found.critic.linear] == [3, 8, 4]
