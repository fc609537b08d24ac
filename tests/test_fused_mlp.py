"""The fast path's parts: networks side by side by hand, one vector of parameters, and what is not modelled."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from il_based_rl.actor_critic_policy import ActorCriticPolicy
from il_based_rl.flat_parameters import FlatAdam, FlatParameters
from il_based_rl.fused_mlp import StackedMLP, reason_against
from il_based_rl.heads.gaussian import GaussianHead
from il_based_rl.networks import MLP
from il_based_rl.policy import MLPPolicy

CPU = torch.device("cpu")
BOX = spaces.Box(-1.0, 1.0, (3,))


def fresh():
    return torch.Generator().manual_seed(0)


def networks_of(sizes, outputs, activation, seed=0):
    """Float64 networks of these layer sizes, one for each number of outputs, with weights and biases that are all random."""
    random = torch.Generator().manual_seed(seed)
    networks = [MLP([*sizes, size], activation, last_gain=1.0, generator=random).double() for size in outputs]
    with torch.no_grad():
        for network in networks:
            for layer in network.linear:
                layer.weight.normal_(0.0, 1.5 / math.sqrt(layer.in_features), generator=random)
                layer.bias.normal_(0.0, 0.5, generator=random)
    return networks


def two_networks():
    networks = networks_of((3, 6, 5), (2, 1), "tanh")
    return networks, FlatParameters(networks)


def parameters_of(networks):
    return [parameter for network in networks for parameter in network.parameters()]


def relative(found, wanted):
    """Norm of the difference of two lists of tensors, over the second one's norm."""
    found, wanted = (torch.cat([part.detach().ravel() for part in parts]) for parts in (found, wanted))
    difference = (found - wanted).norm().item()
    return difference / wanted.norm().item() if difference else 0.0


# ---- forward and backward ----


@settings(max_examples=120, deadline=None)
@given(
    widths=st.lists(st.integers(1, 33), max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    rows=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    activation=st.sampled_from(["tanh", "relu"]),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_are_autograds_in_float64(widths, inputs, outputs, rows, activation, seed):
    require_autograds(widths, inputs, outputs, rows, activation, seed)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(250, 300), min_size=1, max_size=3),
    outputs=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    rows=st.tuples(st.integers(1, 64), st.integers(60, 80)),
    activation=st.sampled_from(["tanh", "relu"]),
    seed=st.integers(0, 2**31),
)
def test_so_are_those_of_wide_layers_however_they_lie_in_memory(widths, outputs, rows, activation, seed):
    require_autograds(widths, 5, outputs, rows, activation, seed)


def require_autograds(widths, inputs, outputs, rows, activation, seed):
    # Random pre-activations are never exactly on the kink of the ReLU. The largest relative difference seen is about 1e-15.
    networks = networks_of((inputs, *widths), outputs, activation, seed)
    flat = FlatParameters(networks)
    stacked, random = StackedMLP(networks), np.random.default_rng(seed)
    for size in (*rows, rows[0]):  # one object serves minibatches of any size, in turn
        x = random.normal(size=(size, inputs))
        output_grads = [random.normal(size=(size, number)) for number in outputs]
        wanted_outputs = [network(torch.from_numpy(x)) for network in networks]
        wanted = torch.autograd.grad(wanted_outputs, parameters_of(networks), [torch.from_numpy(g) for g in output_grads])
        for found, wanted_output in zip(stacked.forward(x), wanted_outputs, strict=True):
            np.testing.assert_allclose(found, wanted_output.detach().numpy(), rtol=1e-9, atol=1e-11)
        stacked.backward(x, output_grads)
        assert relative([parameter.grad for parameter in parameters_of(networks)], wanted) < 1e-10
        assert flat.grad.norm().item() == pytest.approx(torch.cat([part.ravel() for part in wanted]).norm().item(), rel=1e-9)


def test_inputs_and_output_gradients_are_left_as_they_are():
    networks, _ = two_networks()
    stacked, random = StackedMLP(networks), np.random.default_rng(0)
    given_arrays = [random.normal(size=shape) for shape in [(7, 3), (7, 2), (7, 1)]]
    x, *output_grads = copy.deepcopy(given_arrays)
    stacked.forward(x)
    stacked.backward(x, output_grads)
    for found, wanted in zip([x, *output_grads], given_arrays, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_stack_follows_whoever_changes_the_weights():
    networks, flat = two_networks()
    stacked, x = StackedMLP(networks), np.random.default_rng(0).normal(size=(5, 3))
    other = networks_of((3, 6, 5), (2, 1), "tanh", seed=1)
    for network, source in zip(networks, other, strict=True):
        network.load_state_dict(source.state_dict())
    for found, source in zip(stacked.forward(x), other, strict=True):
        np.testing.assert_allclose(found, source(torch.from_numpy(x)).detach().numpy(), rtol=1e-10)
    with torch.no_grad():
        flat.vector.zero_()
    assert [output.tolist() for output in stacked.forward(x)] == [[[0.0, 0.0]] * 5, [[0.0]] * 5]


# ---- one vector ----


def test_every_parameter_is_a_place_of_its_own_in_the_vector():
    networks = networks_of((3, 6, 5), (2, 1), "tanh")
    other, before = nn.Parameter(torch.arange(2.0, dtype=torch.float64)), copy.deepcopy(networks)
    flat = FlatParameters(networks, [other])
    assert relative(parameters_of(networks), parameters_of(before)) == 0.0
    assert other.tolist() == [0.0, 1.0]
    count = flat.vector.numel()
    assert count == sum(parameter.numel() for parameter in parameters_of(networks)) + 2
    with torch.no_grad():
        flat.vector.copy_(torch.arange(count))
    flat.grad.copy_(torch.arange(count))
    every = [*parameters_of(networks), other]
    assert sorted(torch.cat([parameter.detach().ravel() for parameter in every]).tolist()) == list(range(count))
    for parameter in every:  # a gradient lies where its parameter does
        assert torch.equal(parameter.grad, parameter.detach())


def test_autograd_writes_the_gradient_vector():
    networks, flat = two_networks()
    x = torch.ones(4, 3, dtype=torch.float64)
    wanted = torch.autograd.grad(sum(network(x).sum() for network in networks), parameters_of(networks))
    sum(network(x).sum() for network in networks).backward()
    assert flat.grad.norm().item() == pytest.approx(torch.cat([part.ravel() for part in wanted]).norm().item(), rel=1e-12)


def test_a_step_through_either_door_is_seen_through_the_other():
    networks, flat = two_networks()
    flat.grad.fill_(1.0)
    before = flat.vector.detach().clone()
    torch.optim.SGD(parameters_of(networks), lr=0.25).step()
    torch.testing.assert_close(flat.vector.detach(), before - 0.25, rtol=1e-12, atol=1e-12)
    kept = copy.deepcopy(parameters_of(networks))
    FlatAdam(flat, lr=0.5).step()  # Adam's first step is the learning rate, whatever the gradient
    for parameter, previous in zip(parameters_of(networks), kept, strict=True):
        torch.testing.assert_close(parameter.detach(), previous.detach() - 0.5, rtol=1e-6, atol=1e-6)
    flat.require_intact()


def test_loading_a_state_keeps_the_vector():
    networks, flat = two_networks()
    other = networks_of((3, 6, 5), (2, 1), "tanh", seed=1)
    for network, source in zip(networks, other, strict=True):
        network.load_state_dict(source.state_dict())
    flat.require_intact()
    assert torch.equal(flat.vector.detach(), FlatParameters(other).vector.detach())


def moved(network):
    network.float().double()


def replaced(network):
    network.layers[1].weight = nn.Parameter(network.layers[1].weight.detach().clone())


def assigned(network):
    network.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)


@pytest.mark.parametrize("change", [moved, replaced, assigned])
@pytest.mark.parametrize("which", [0, 1])
def test_parameters_that_left_the_vector_are_noticed(change, which):
    networks, flat = two_networks()
    flat.require_intact()
    change(networks[which])
    with pytest.raises(RuntimeError, match="moved or replaced after its agent was made; make a new agent"):
        flat.require_intact()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_has_a_vector_of_its_own(copied):
    networks, flat = two_networks()
    twins, twin = copied((networks, flat))
    with torch.no_grad():
        twin.vector.zero_()
    twin.grad.fill_(3.0)
    twin.require_intact()
    assert all(parameter.eq(0.0).all() and parameter.grad.eq(3.0).all() for parameter in parameters_of(twins))
    assert flat.vector.ne(0.0).all()
    assert flat.grad.eq(0.0).all()


# ---- Adam ----


@pytest.mark.parametrize("max_grad_norm", [math.inf, 0.7, 7.0])
@pytest.mark.parametrize("seed", range(3))
def test_steps_are_those_of_adam_after_clipping(max_grad_norm, seed):
    # Gradients of norms from far below to far above the limit, and a learning rate that changes on the way.
    networks = networks_of((3, 6, 5), (2, 1), "tanh", seed)
    reference = copy.deepcopy(networks)
    flat = FlatParameters(networks)
    optimizer = FlatAdam(flat, lr=1e-2, eps=1e-5)
    expected = torch.optim.Adam(parameters_of(reference), lr=1e-2, eps=1e-5, foreach=False)
    random = torch.Generator().manual_seed(seed)
    clipped = []
    for k in range(12):
        optimizer.lr = expected.param_groups[0]["lr"] = 1e-2 * (1.0 - k / 20)
        for parameter, twin in zip(parameters_of(networks), parameters_of(reference), strict=True):
            gradient = torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 10.0 ** (k % 4 - 2)
            parameter.grad.copy_(gradient)
            twin.grad = gradient.clone()
        if max_grad_norm < math.inf:
            clipped.append(torch.nn.utils.clip_grad_norm_(parameters_of(reference), max_grad_norm).item() > max_grad_norm)
        optimizer.step(max_grad_norm)
        expected.step()
        assert relative(parameters_of(networks), parameters_of(reference)) < 1e-12
    assert not clipped or 0 < sum(clipped) < len(clipped)


def test_moments_and_step_count_come_back():
    def stepped(optimizer, flat, seeds):
        for seed in seeds:
            flat.grad.copy_(torch.randn(flat.grad.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
            optimizer.step()

    _, flat = two_networks()
    straight = FlatAdam(flat, lr=0.1)
    stepped(straight, flat, range(4))
    _, interrupted_flat = two_networks()
    first = FlatAdam(interrupted_flat, lr=0.1)
    stepped(first, interrupted_flat, range(2))
    second = FlatAdam(interrupted_flat, lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(second, interrupted_flat, range(2, 4))
    assert torch.equal(flat.vector.detach(), interrupted_flat.vector.detach())


@pytest.mark.parametrize("part", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_a_state_that_does_not_fit_is_refused(part, damage):
    _, flat = two_networks()
    optimizer = FlatAdam(flat, lr=0.1)
    state = copy.deepcopy(optimizer.state_dict())
    if damage == "missing":
        del state[part]
    else:
        state[part] = torch.zeros(3) if damage == "shape" else torch.full_like(state[part], math.nan)
    with pytest.raises(ValueError, match=f"the optimiser's {part} is missing or does not fit the policy"):
        optimizer.load_state_dict(state)


# ---- what is not modelled ----


def policy_of(activation="tanh", hidden_dims=(8, 8), action_space=BOX):
    return ActorCriticPolicy(BOX, action_space, hidden_dims, activation=activation, generator=fresh())


class Doubled(MLP):
    def forward(self, x):
        return 2.0 * super().forward(x)


class DoubledLinear(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


class DoubledValues(ActorCriticPolicy):
    def evaluate_actions(self, normalized, raw_actions):
        log_probs, entropy, values = super().evaluate_actions(normalized, raw_actions)
        return log_probs, entropy, 2.0 * values


def critic_of(sizes, activation="tanh", kind=MLP):
    return kind(sizes, activation, last_gain=1.0, generator=fresh())


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden_dims", [(), (8,), (8, 8), (16, 4, 8)])
@pytest.mark.parametrize(
    "action_space", [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str
)
def test_plain_policies_are_modelled(activation, hidden_dims, action_space):
    assert reason_against(policy_of(activation, hidden_dims, action_space), CPU) is None
    assert reason_against(MLPPolicy(BOX, action_space, hidden_dims, activation=activation), CPU) is None


class TwiceAsLikely(GaussianHead):
    def log_prob(self, outputs, log_std, raw):
        return 2.0 * super().log_prob(outputs, log_std, raw)


@pytest.mark.parametrize("policy", [policy_of(), MLPPolicy(BOX, BOX, (8,))], ids=["expert", "student"])
@pytest.mark.parametrize("how", ["another class", "a method of its own"])
def test_another_kind_of_action_is_refused_by_name(how, policy):
    actor = getattr(policy, "actor", policy)
    before = actor.head
    if how == "another class":
        actor.head = TwiceAsLikely(BOX)
        assert "does not model TwiceAsLikely" in reason_against(policy, CPU)
    else:
        actor.head = GaussianHead(BOX)
        actor.head.log_prob = lambda *given: 2.0 * before.log_prob(*given)
        assert "does not model GaussianHead, as it stands here" in reason_against(policy, CPU)
    actor.head = before
    assert reason_against(policy, CPU) is None


def test_another_device_is_refused_by_name():
    assert "cuda:1" in reason_against(policy_of(), torch.device("cuda:1"))


HOOKS = {
    "forward": lambda policy: policy.critic.layers[1].register_forward_hook(lambda module, inputs, output: 2.0 * output),
    "forward pre": lambda policy: policy.actor.network.register_forward_pre_hook(lambda module, inputs: None),
    "of the whole policy": lambda policy: policy.register_forward_hook(lambda module, inputs, output: None),
    "backward": lambda policy: policy.critic.layers[0].register_full_backward_hook(lambda module, inputs, outputs: None),
    "backward pre": lambda policy: policy.critic.register_full_backward_pre_hook(lambda module, outputs: None),
    "tensor": lambda policy: policy.critic.layers[0].weight.register_hook(lambda grad: 2.0 * grad),
    "after accumulation": lambda policy: policy.critic.layers[0].weight.register_post_accumulate_grad_hook(lambda p: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_refused_until_they_are_removed(kind):
    policy = policy_of()
    handle = HOOKS[kind](policy)
    assert "has hooks" in (reason_against(policy, CPU) or "modelled")
    handle.remove()
    assert reason_against(policy, CPU) is None


@pytest.mark.parametrize("name", ["actor.network.layers.0.weight", "critic.layers.2.bias", "log_std"])
def test_a_frozen_parameter_is_refused_by_name(name):
    policy = policy_of()
    policy.get_parameter(name).requires_grad_(False)
    assert reason_against(policy, CPU) == f"{name} is frozen"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("part", ["whole policy", "critic"])
def test_another_number_type_is_refused_by_name(dtype, part):
    policy = policy_of()
    (policy if part == "whole policy" else policy.critic).to(dtype)
    assert str(dtype) in (reason_against(policy, CPU) or "modelled")


def set_actor_network(policy, network):
    policy.actor.network = network


def set_critic(policy, critic):
    policy.critic = critic


def set_critic_layer(policy, k, layer):
    policy.critic.layers[k] = layer


OTHER_FUNCTIONS = {
    "dropout after the network": lambda p: set_actor_network(p, nn.Sequential(p.actor.network, nn.Dropout(0.5))),
    "another module": lambda p: set_critic(p, nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))),
    "dropout between layers": lambda p: set_critic_layer(p, 1, nn.Sequential(p.critic.layers[1], nn.Dropout(0.5))),
    "a layer that is not linear": lambda p: p.critic.layers.insert(1, nn.LayerNorm(8)),
    "a subclass of a layer": lambda p: set_critic_layer(p, 1, DoubledLinear(8, 8)),
    "a layer without bias": lambda p: set_critic_layer(p, 1, nn.Linear(8, 8, bias=False)),
    "a parametrised layer": lambda p: nn.utils.parametrizations.weight_norm(p.critic.layers[1]),
    "a subclassed perceptron": lambda p: set_critic(p, critic_of([3, 8, 8, 1], kind=Doubled)),
    "a forward of its own": lambda p: setattr(p.critic, "forward", lambda x: 2.0 * MLP.forward(p.critic, x)),
    "a shared trunk": lambda p: set_critic_layer(p, 0, p.actor.network.layers[0]),
    "a layer used twice": lambda p: set_critic_layer(p, 2, p.critic.layers[1]),
    "a shared weight": lambda p: setattr(p.critic.layers[1], "weight", p.actor.network.layers[1].weight),
    "a critic of another activation": lambda p: set_critic(p, critic_of([3, 8, 8, 1], "relu")),
    "a wider critic": lambda p: set_critic(p, critic_of([3, 16, 16, 1])),
    "a deeper critic": lambda p: set_critic(p, critic_of([3, 8, 8, 8, 1])),
    "a shallower critic": lambda p: set_critic(p, critic_of([3, 8, 1])),
}


@pytest.mark.parametrize("what", OTHER_FUNCTIONS)
def test_a_policy_that_computes_something_else_is_refused(what):
    policy = policy_of()
    OTHER_FUNCTIONS[what](policy)
    assert reason_against(policy, CPU) is not None


def test_a_policy_that_judges_actions_in_its_own_way_is_refused():
    assert reason_against(DoubledValues(BOX, BOX, (8, 8), generator=fresh()), CPU) is not None


def test_a_student_that_computes_something_else_is_refused():
    student = MLPPolicy(BOX, BOX, (8,), generator=fresh())
    student.network = critic_of([3, 8, 3], "relu", kind=Doubled)
    assert reason_against(student, CPU) is not None
