"""Multi-layer perceptrons and running statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from il_based_rl.networks import MLP, RewardScaler, RunningNormalizer, parameter_count


def mlp(sizes=(3, 16, 8, 2), activation="tanh", last_gain=0.5, seed=0, **more):
    return MLP(sizes, activation, last_gain=last_gain, generator=torch.Generator().manual_seed(seed), **more)


def set_layer(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def measured(*flags):
    return np.array(flags, bool)


def test_a_perceptron_of_two_units_by_hand():
    # Units: relu(1*2 - 1*3 + 0.5) = relu(-0.5) = 0 and relu(2 + 3 - 1) = 4; output: 10*0 - 2*4 + 1 = -7
    network = mlp((2, 2, 1), "relu")
    set_layer(network.layers[0], [[1.0, -1.0], [1.0, 1.0]], [0.5, -1.0])
    set_layer(network.layers[1], [[10.0, -2.0]], [1.0])
    assert network(torch.tensor([[2.0, 3.0]])).tolist() == [[-7.0]]
    assert network.as_numpy()(np.array([[2.0, 3.0]], np.float32)).tolist() == [[-7.0]]


def test_the_tanh_stands_between_the_layers_and_not_after_the_last():
    # tanh(0.5) = 0.46211716; times 100 it could not come out of a tanh.
    network = mlp((1, 1, 1), "tanh")
    set_layer(network.layers[0], [[1.0]], [0.0])
    set_layer(network.layers[1], [[100.0]], [0.0])
    assert network(torch.tensor([[0.5]])).item() == pytest.approx(46.211716, rel=1e-6)


def test_weights_are_orthogonal_with_their_gains_and_biases_zero():
    network = mlp((5, 7, 6, 2), last_gain=0.01)
    gains = [2.0**0.5, 2.0**0.5, 0.01]
    for layer, gain in zip(network.layers, gains, strict=True):
        weight = layer.weight.detach() if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.detach().T
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=1e-5, atol=1e-6 * gain**2 + 1e-9)
        assert layer.bias.tolist() == [0.0] * len(layer.bias)


def test_uniform_weights_and_biases_fill_what_a_linear_layer_of_torch_fills():
    network = mlp((100, 400, 3), orthogonal=False)
    for layer in network.layers:
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            assert parameter.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # of a uniform variable
        assert layer.bias.unique().numel() == len(layer.bias)


@pytest.mark.usefixtures("global_generators_untouched")
def test_the_generator_alone_decides_the_weights():
    one, same, other = mlp(seed=1), mlp(seed=1), mlp(seed=2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(3, 16, 8, 2), (3, 16, 2), (3, 2)])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_the_numpy_form_computes_the_same(activation, sizes, num_rows):
    network = mlp(sizes, activation)
    x = np.random.default_rng(0).normal(size=(num_rows, 3)).astype(np.float32)
    kept = x.copy()
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    found = network.as_numpy()(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    assert x.tobytes() == kept.tobytes()


def test_the_numpy_form_follows_every_update():
    network, x = mlp(), np.ones((1, 3), np.float32)
    function = network.as_numpy()
    before = function(x)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.from_numpy(x)).sum().backward()
    optimizer.step()
    assert not np.allclose(function(x), before)
    np.testing.assert_allclose(function(x), network(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_parameters_are_counted():
    # 3*64 + 64 + 64*64 + 64 + 64*1 + 1
    assert parameter_count(mlp((3, 64, 64, 1))) == 4481


def test_standardising_by_hand():
    # Column 0: 1, 3, 5: mean 3, variance 8/3, standard deviation 1.632993; column 1 is not measured.
    normalizer = RunningNormalizer(measured(True, False))
    normalizer.update(np.array([[1.0, 1.0], [3.0, 0.0], [5.0, 1.0]], np.float32))
    out = normalizer(torch.tensor([[3.0, 1.0], [5.0, 0.0]]))
    np.testing.assert_allclose(out.numpy(), [[0.0, 1.0], [2.0 / 1.632993, 0.0]], rtol=1e-6)
    assert normalizer.count.item() == 3.0


def test_before_the_first_update_features_pass_as_they_are():
    normalizer = RunningNormalizer(measured(True, True))
    x = np.array([[1e6, -3.0]], np.float32)
    assert normalizer(torch.from_numpy(x)).tolist() == x.tolist()
    assert normalizer.as_numpy()(x).tolist() == x.tolist()


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_statistics_merged_from_parts_are_those_of_all_data(sizes, seed):
    random = np.random.default_rng(seed)
    parts = [(random.normal(5.0, 3.0, size=(size, 4)) * [1.0, 10.0, 0.1, 1e4]).astype(np.float32) for size in sizes]
    normalizer = RunningNormalizer(np.ones(4, bool))
    for part in parts:
        normalizer.update(part)
    everything = np.concatenate(parts).astype(np.float64)
    assert normalizer.count.item() == sum(sizes)
    np.testing.assert_allclose(normalizer.mean.numpy(), everything.mean(0), rtol=1e-10)
    np.testing.assert_allclose(normalizer.variance.numpy(), everything.var(0), rtol=1e-8, atol=1e-12)


def test_a_small_spread_far_from_zero_is_not_lost():
    # Variance 0.25 around 1e6: the difference of two float32 mean squares would be far off.
    normalizer = RunningNormalizer(measured(True))
    for _ in range(50):
        normalizer.update(np.array([[1e6], [1e6 + 1.0]], np.float32))
    assert normalizer.mean.item() == pytest.approx(1e6 + 0.5, rel=1e-12)
    assert normalizer.variance.item() == pytest.approx(0.25, rel=1e-9)


def test_marks_pass_unchanged_however_often_the_statistics_change():
    normalizer = RunningNormalizer(measured(True, False))
    for _ in range(3):
        normalizer.update(np.random.default_rng(0).normal(7.0, 3.0, size=(10, 2)).astype(np.float32))
    assert normalizer(torch.tensor([[0.0, 0.25], [1.0, 1.0]]))[:, 1].tolist() == [0.25, 1.0]


def test_no_feature_comes_out_larger_than_the_clip():
    normalizer = RunningNormalizer(measured(True), clip=3.0)
    normalizer.update(np.array([[-1.0], [1.0]], np.float32))
    x = np.array([[100.0], [-100.0], [2.0]], np.float32)
    np.testing.assert_allclose(normalizer(torch.from_numpy(x)).numpy(), [[3.0], [-3.0], [2.0]], rtol=1e-6)
    np.testing.assert_allclose(normalizer.as_numpy()(x), [[3.0], [-3.0], [2.0]], rtol=1e-6)


def test_reading_never_changes_the_statistics():
    normalizer = RunningNormalizer(measured(True, True))
    normalizer.update(np.random.default_rng(0).normal(size=(10, 2)))
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    normalizer.train()
    normalizer(torch.full((5, 2), 100.0))
    normalizer.as_numpy()(np.full((5, 2), 100.0, np.float32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in normalizer.state_dict().items())


def test_the_numpy_form_standardises_the_same_and_leaves_its_input_alone():
    normalizer = RunningNormalizer(measured(True, False, True))
    random = np.random.default_rng(3)
    normalizer.update(random.normal(3.0, 2.0, size=(100, 3)).astype(np.float32))
    x = random.normal(3.0, 20.0, size=(50, 3)).astype(np.float32)
    kept = x.copy()
    np.testing.assert_allclose(normalizer.as_numpy()(x), normalizer(torch.from_numpy(x)).numpy(), rtol=1e-6, atol=1e-7)
    assert x.tobytes() == kept.tobytes()


def test_the_numpy_form_keeps_the_statistics_it_was_made_with():
    normalizer, x = RunningNormalizer(measured(True)), np.array([[4.0]], np.float32)
    normalizer.update(np.array([[0.0], [4.0]], np.float32))
    function = normalizer.as_numpy()
    normalizer.update(np.array([[100.0], [200.0]], np.float32))
    assert function(x).item() == pytest.approx(1.0, rel=1e-6)  # (4 - 2) / 2


def test_fitting_takes_one_data_set_and_forgets_all_before():
    normalizer = RunningNormalizer(measured(True))
    normalizer.update(np.full((10, 1), 1000.0))
    normalizer.fit(np.array([[1.0], [3.0]]))
    assert (normalizer.mean.item(), normalizer.variance.item(), normalizer.count.item()) == (2.0, 1.0, 2.0)


def test_a_feature_that_is_constant_in_the_data_set_keeps_its_scale():
    # Divided by its own spread of zero, the slightest change of it at deployment would be amplified ten-thousandfold.
    normalizer = RunningNormalizer(measured(True, True))
    normalizer.fit(np.array([[5.0, 1.0], [5.0, 3.0]]))
    np.testing.assert_allclose(normalizer(torch.tensor([[5.0, 3.0], [5.5, 1.0]])).numpy(), [[0.0, 1.0], [0.5, -1.0]], rtol=1e-6)


def test_statistics_are_saved_with_the_module():
    normalizer, other = RunningNormalizer(measured(True, False)), RunningNormalizer(measured(True, False))
    normalizer.update(np.random.default_rng(0).normal(5.0, 2.0, size=(10, 2)))
    other.load_state_dict(normalizer.state_dict())
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(other(x), normalizer(x))
    assert other.count.item() == 10.0


def test_rewards_are_divided_by_the_spread_of_the_returns_and_not_moved():
    # Discounted returns 0, 40: standard deviation 20. A reward of 10 becomes 0.5, and 0 stays 0 though the mean is 20.
    scaler = RewardScaler()
    scaler.update(np.array([[0.0], [40.0]]))
    assert scaler.scale == pytest.approx(20.0, rel=1e-9)
    np.testing.assert_allclose(scaler.scaled(np.array([[10.0, 0.0, -30.0]]), 10.0), [[0.5, 0.0, -1.5]], rtol=1e-9)


def test_scaled_rewards_are_clipped():
    scaler = RewardScaler()
    scaler.update(np.array([[0.0], [2.0]]))
    np.testing.assert_allclose(scaler.scaled(np.array([5.0, -5.0, 1.5]), 2.0), [2.0, -2.0, 1.5], rtol=1e-7)


def test_the_scale_is_that_of_all_returns_so_far():
    scaler, random = RewardScaler(), np.random.default_rng(0)
    parts = [random.normal(-100.0, 30.0, size=(8, 2)) for _ in range(4)]
    for part in parts:
        scaler.update(part)
    assert scaler.scale == pytest.approx(np.concatenate(parts).std(), rel=1e-9)
