"""From a network's outputs to actions, and how likely they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare, kstest
from torch.distributions import Bernoulli, Categorical, Normal

from il_based_rl.errors import UnsupportedSpaceError
from il_based_rl.heads import action_head
from tests.conftest import action_spaces

KINDS = [spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum()


def sampled(head, outputs, count, log_std=None, seed=0):
    """Many sampled raw actions for one row of outputs."""
    noise = head.noise(np.random.default_rng(seed), (count,), log_std)
    return head.mode(np.asarray(outputs, np.float32) + noise)


def test_raw_actions_from_minus_one_to_one_span_a_bounded_box():
    # Low -2, high 6: centre 2, half range 4. 0.5 -> 4; 3 -> 14, which is clipped to 6.
    head = action_head(spaces.Box(-2.0, 6.0, (1,)))
    raw = np.array([[-1.0], [0.0], [0.5], [1.0], [3.0], [-3.0]], np.float32)
    assert head.to_env(raw).tolist() == [[-2.0], [2.0], [4.0], [6.0], [6.0], [-2.0]]


def test_one_open_side_leaves_the_action_unscaled_around_one_inside_the_other():
    # Bounds 0 and inf: centre 1. Bounds -inf and 1: centre 0.
    head = action_head(spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 1.0]), dtype=np.float64))
    assert head.to_env(np.array([[-5.0, -5.0], [7.0, 7.0]], np.float32)).tolist() == [[0.0, -5.0], [8.0, 1.0]]


def test_a_component_that_cannot_be_chosen_is_always_the_same_and_nothing_to_learn():
    head = action_head(spaces.Box(np.float32([1000.0, -1.0]), np.float32([1000.0, 1.0])))
    assert head.to_env(np.array([[0.3, 0.5], [-9.0, -9.0]], np.float32)).tolist() == [[1000.0, 0.5], [1000.0, -1.0]]
    assert head.from_env(np.float32([[1000.0, 0.5]])).tolist() == [[0.0, 0.5]]


def test_bounds_that_only_mean_anything_give_no_scale():
    largest = np.finfo(np.float32).max
    head = action_head(spaces.Box(-largest, largest, (1,)))
    assert head.to_env(np.array([[2.5]], np.float32)).tolist() == [[2.5]]


def test_whole_number_boxes_get_the_nearest_number():
    # Low 0, high 10: centre 5, half range 5. 0.5 -> 7.5 is rounded to the even 8; 0.28 -> 6.4 to 6.
    head = action_head(spaces.Box(0, 10, (1,), np.int32))
    actions = head.to_env(np.array([[0.5], [0.28], [9.0], [-9.0]], np.float32))
    assert actions.tolist() == [[8], [6], [10], [0]]
    assert actions.dtype == np.int32


def test_the_widest_whole_number_box_saturates_at_its_ends():
    # A float beyond the largest int64 must not wrap around to the smallest one.
    limits = np.iinfo(np.int64)
    space = spaces.Box(limits.min, limits.max, (1,), np.int64)
    with np.errstate(invalid="raise"):
        low, high = action_head(space).to_env(np.array([[-1e30], [1e30]], np.float32))
    assert low[0] < 0 < high[0]


def test_whole_number_bounds_beyond_what_a_float_can_tell_apart_are_kept():
    space = spaces.Box(0, 2**53 + 3, (1,), np.int64)  # as a float the upper bound is rounded up to 2**53 + 4
    assert space.contains(action_head(space).to_env(np.array([[1e30]], np.float32))[0])


@pytest.mark.filterwarnings("error")
def test_a_wide_box_of_half_precision_numbers_spans_its_range():
    # Its width of 80000 is beyond the largest float16, 65504.
    head = action_head(spaces.Box(-40_000, 40_000, (1,), np.float16))
    actions = head.to_env(np.array([[-1.0], [0.5], [0.0]], np.float32))
    assert actions.tolist() == [[-40_000.0], [20_000.0], [0.0]]
    assert actions.dtype == np.float16


def test_box_actions_keep_the_order_of_their_components():
    # Half range 2; rows stay rows.
    head = action_head(spaces.Box(-2.0, 2.0, (2, 3)))
    raw = np.array([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]], np.float32)
    assert head.to_env(raw).tolist() == [[[-2.0, -1.0, 0.0], [0.5, 1.0, 2.0]]]
    assert head.from_env(head.to_env(raw)).tolist() == raw.tolist()


def test_a_discrete_action_counts_from_the_start_of_its_space():
    space = spaces.Discrete(3, start=5)
    head = action_head(space)
    raw = head.mode(np.array([[0.0, 9.0, 1.0], [0.0, 1.0, 9.0], [9.0, 1.0, 0.0]], np.float32))
    assert raw.tolist() == [[1], [2], [0]]
    assert head.to_env(raw).tolist() == [6, 7, 5]
    assert head.from_env(np.array([6, 7, 5])).tolist() == [[1], [2], [0]]


def test_each_list_of_a_multi_discrete_action_has_its_own_logits():
    space = spaces.MultiDiscrete([2, 3], start=[10, 20])
    head = action_head(space)
    raw = head.mode(np.array([[1.0, 2.0, 9.0, 3.0, 4.0], [2.0, 1.0, 0.0, 0.0, 1.0]], np.float32))
    assert raw.tolist() == [[1, 0], [0, 2]]
    assert head.to_env(raw).tolist() == [[11, 20], [10, 22]]


def test_the_lists_of_a_matrix_of_choices_keep_their_places():
    space = spaces.MultiDiscrete([[2, 3], [4, 5]])
    head = action_head(space)
    raw = np.array([[1, 2, 3, 4]])
    assert head.num_outputs == 14
    assert head.to_env(raw).tolist() == [[[1, 2], [3, 4]]]
    assert head.from_env(head.to_env(raw)).tolist() == raw.tolist()


def test_bits_are_set_where_their_logits_are_positive():
    head = action_head(spaces.MultiBinary((2, 2)))
    raw = head.mode(np.array([[-1.0, 2.0, 0.5, -0.5]], np.float32))
    assert head.to_env(raw).tolist() == [[[0, 1], [1, 0]]]
    assert head.from_env(head.to_env(raw)).tolist() == [[0.0, 1.0, 1.0, 0.0]]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), space=action_spaces())
def test_whatever_the_outputs_the_action_is_inside_the_space(data, space):
    head = action_head(space)
    # Up to float16's range: beyond it an unbounded float16 action has no finite number to be.
    numbers = st.floats(-60_000, 60_000, width=32)
    outputs = data.draw(hnp.arrays(np.float32, (3, head.num_outputs), elements=numbers))
    actions = head.to_env(head.mode(outputs))
    assert actions.shape == (3, *(space.shape or ()))
    for action in actions:
        assert space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action), (space, action)


@settings(max_examples=150, deadline=None)
@given(space=action_spaces(), seed=st.integers(0, 2**31))
def test_an_action_survives_the_way_to_raw_and_back(space, seed):
    space.seed(seed)
    head = action_head(space)
    actions = np.stack([np.asarray(space.sample()) for _ in range(3)])
    back = head.to_env(head.from_env(actions))
    assert back.dtype == actions.dtype
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        # A raw action is a float32 in units of half the range, so what is lost is a few of its last digits.
        ends = [np.where(np.isfinite(end), abs(end), 0.0) + 1.0 for end in (space.low, space.high)]
        spans = np.where(np.isfinite(space.low) | np.isfinite(space.high), np.maximum(*ends), 0.0)
        digits = np.finfo(np.float16 if space.dtype == np.float16 else np.float32).eps
        assert (abs(back - actions) <= 4 * digits * (abs(actions) + spans)).all()
    else:
        assert back.tolist() == actions.tolist()


@pytest.mark.parametrize("start", [0, -3])
def test_discrete_samples_are_distributed_by_the_softmax(start):
    logits = [0.0, 1.0, -1.0, 2.0]
    space = spaces.Discrete(4, start=start)
    head = action_head(space)
    actions = head.to_env(sampled(head, logits, 20_000))
    counts = np.bincount(actions - start, minlength=4)
    assert chisquare(counts, 20_000 * softmax(logits)).pvalue > 0.01


def test_multi_discrete_samples_are_independent_and_distributed_by_their_softmaxes():
    first, second = [0.0, 1.5], [1.0, 0.0, -1.0]
    head = action_head(spaces.MultiDiscrete([2, 3]))
    raw = sampled(head, first + second, 20_000)
    table = np.zeros((2, 3))
    np.add.at(table, (raw[:, 0], raw[:, 1]), 1)
    expected = 20_000 * np.outer(softmax(first), softmax(second))
    assert chisquare(table.ravel(), expected.ravel()).pvalue > 0.01


def test_bit_samples_are_independent_and_distributed_by_their_sigmoids():
    logits = [-1.0, 0.5]
    head = action_head(spaces.MultiBinary(2))
    raw = sampled(head, logits, 20_000).astype(int)
    table = np.zeros((2, 2))
    np.add.at(table, (raw[:, 0], raw[:, 1]), 1)
    expected = 20_000 * np.outer(softmax([1.0, 0.0]), softmax([0.0, 0.5]))  # sigmoid(x) is the softmax of 0 and x
    assert chisquare(table.ravel(), expected.ravel()).pvalue > 0.01


def test_box_samples_are_normal_around_the_outputs():
    head = action_head(spaces.Box(-1.0, 1.0, (2,)))
    raw = sampled(head, [0.5, -2.0], 20_000, log_std=np.log(np.array([0.1, 3.0], np.float32)))
    assert kstest((raw[:, 0] - 0.5) / 0.1, "norm").pvalue > 0.01
    assert kstest((raw[:, 1] + 2.0) / 3.0, "norm").pvalue > 0.01
    assert abs(np.corrcoef(raw.T)[0, 1]) < 0.03  # four standard errors of independent columns


def test_box_noise_needs_a_standard_deviation():
    noise = action_head(spaces.Box(-1.0, 1.0, (2,))).noise(np.random.default_rng(0), (3, 4), None)
    assert noise.tolist() == np.zeros((3, 4, 2)).tolist()


@pytest.mark.parametrize("space", KINDS, ids=str)
@pytest.mark.usefixtures("global_generators_untouched")
def test_noise_comes_from_the_given_generator_alone(space):
    head = action_head(space)
    log_std = np.zeros(head.num_outputs, np.float32)
    one, same, other = (head.noise(np.random.default_rng(seed), (5, 2), log_std) for seed in (1, 1, 2))
    assert one.shape == (5, 2, head.num_outputs)
    assert one.dtype == np.float32
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_log_probs_and_entropies_are_those_of_torch_distributions():
    torch_random = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 5, generator=torch_random, dtype=torch.float64)
    log_std = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    normal = Normal(outputs, log_std.exp())
    bits = Bernoulli(logits=outputs)
    first, second = Categorical(logits=outputs[:, :2]), Categorical(logits=outputs[:, 2:])
    unbounded = 3.0 * torch.randn(6, 5, generator=torch_random, dtype=torch.float64)
    choices = torch.tensor([[0, 2], [1, 1], [1, 0], [0, 0], [1, 2], [0, 1]])
    set_bits = torch.randint(2, (6, 5), generator=torch_random).double()
    cases = [
        (spaces.Box(-1, 1, (5,)), unbounded, normal.log_prob(unbounded).sum(-1), normal.entropy().sum(-1)),
        (
            spaces.Discrete(5),
            choices[:, 1:],
            Categorical(logits=outputs).log_prob(choices[:, 1]),
            Categorical(logits=outputs).entropy(),
        ),
        (
            spaces.MultiDiscrete([2, 3]),
            choices,
            first.log_prob(choices[:, 0]) + second.log_prob(choices[:, 1]),
            first.entropy() + second.entropy(),
        ),
        (spaces.MultiBinary(5), set_bits, bits.log_prob(set_bits).sum(-1), bits.entropy().sum(-1)),
    ]
    for space, raw, log_probs, entropies in cases:
        head = action_head(space)
        torch.testing.assert_close(head.log_prob(outputs, log_std, raw), log_probs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(head.entropy(outputs, log_std), entropies.mean(), rtol=1e-12, atol=1e-12)


def test_cloning_a_box_action_costs_the_mean_squared_error():
    # Errors 1, 0, 2, 1 over two rows and two columns: (1 + 0 + 4 + 1) / 4
    head = action_head(spaces.Box(-1.0, 1.0, (2,)))
    loss = head.cloning_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [1.0, 5.0]]))
    assert loss.item() == 1.5


def test_cloning_a_choice_costs_its_cross_entropy():
    # Odds 1:3 for the taken choice, then 3:1: -(ln 0.25 + ln 0.75) / 2 = 0.8369882
    head = action_head(spaces.Discrete(2))
    logits = torch.log(torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=torch.float64))
    assert head.cloning_loss(logits, torch.tensor([[0], [0]])).item() == pytest.approx(0.8369882168, rel=1e-9)


def test_cloning_several_choices_sums_their_cross_entropies():
    # Indifferent between 2, and between 4: ln 2 + ln 4 = 2.0794415
    head = action_head(spaces.MultiDiscrete([2, 4]))
    assert head.cloning_loss(torch.zeros(3, 6), torch.tensor([[0, 3], [1, 0], [1, 2]])).item() == pytest.approx(
        2.0794415, rel=1e-6
    )


def test_cloning_bits_sums_their_cross_entropies():
    # Indifferent about three bits: 3 ln 2 = 2.0794415
    head = action_head(spaces.MultiBinary(3))
    assert head.cloning_loss(torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])).item() == pytest.approx(
        2.0794415, rel=1e-6
    )


def scored_head(space):
    """A head with random outputs, log standard deviations and raw actions of five rows, in float64."""
    head, random = action_head(space), np.random.default_rng(0)
    outputs = 2.0 * random.normal(size=(5, head.num_outputs))
    log_std = 0.5 * random.normal(size=head.num_outputs) if head.continuous else None
    raw = head.mode(outputs + 2.0 * random.normal(size=outputs.shape))
    return head, outputs, log_std, raw


def leaf(array):
    return None if array is None else torch.tensor(array, requires_grad=True)


@pytest.mark.parametrize("space", KINDS, ids=str)
def test_scores_and_their_gradients_in_closed_form_are_autograds(space):
    head, outputs, log_std, raw = scored_head(space)
    weights = np.random.default_rng(1).normal(size=5)
    outputs_leaf, log_std_leaf = leaf(outputs), leaf(log_std)
    raw_tensor = torch.from_numpy(raw if raw.dtype == np.int64 else raw.astype(np.float64))
    expected = head.log_prob(outputs_leaf, log_std_leaf, raw_tensor)
    (torch.from_numpy(weights) * expected).sum().backward()
    log_probs, _, kept = head.score(outputs, log_std, raw)
    output_grads, log_std_grads = head.score_grads(kept, weights)
    np.testing.assert_allclose(log_probs, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(output_grads, outputs_leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
    if log_std is None:
        assert log_std_grads is None
    else:
        np.testing.assert_allclose(log_std_grads, log_std_leaf.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("space", KINDS, ids=str)
def test_entropies_and_their_gradients_in_closed_form_are_autograds(space):
    head, outputs, log_std, raw = scored_head(space)
    outputs_leaf, log_std_leaf = leaf(outputs), leaf(log_std)
    expected = head.entropy(outputs_leaf, log_std_leaf)
    expected.backward()
    _, entropy, kept = head.score(outputs, log_std, raw)
    output_grads, log_std_grads = head.entropy_grads(kept)
    alone, *grads_alone = head.entropy_alone(outputs, log_std)
    assert entropy == pytest.approx(expected.item(), rel=1e-10)
    assert alone == pytest.approx(expected.item(), rel=1e-10)
    pairs = [(output_grads, outputs_leaf), (log_std_grads, log_std_leaf)]
    for found, wanted in [*pairs, *zip(grads_alone, (outputs_leaf, log_std_leaf), strict=True)]:
        if found is None:  # stands for zero
            assert wanted is None or wanted.grad is None
        else:
            np.testing.assert_allclose(found, wanted.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("space", KINDS, ids=str)
def test_divergences_and_their_gradients_in_closed_form_are_autograds(space):
    head, outputs, log_std, _ = scored_head(space)
    others = outputs + np.random.default_rng(2).normal(size=outputs.shape)
    outputs_leaf, log_std_leaf = leaf(outputs), leaf(log_std)
    expected = head.divergence(outputs_leaf, torch.from_numpy(others), log_std_leaf)
    expected.backward()
    divergence, output_grads = head.divergence_grads(outputs, others, log_std)
    assert divergence == pytest.approx(expected.item(), rel=1e-10)
    np.testing.assert_allclose(output_grads, outputs_leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert log_std is None or log_std_leaf.grad is None  # which is not drawn back


@pytest.mark.parametrize("space", KINDS, ids=str)
def test_cloning_losses_and_their_gradients_in_closed_form_are_autograds(space):
    head, outputs, _, raw = scored_head(space)
    outputs_leaf = leaf(outputs)
    raw_tensor = torch.from_numpy(raw if raw.dtype == np.int64 else raw.astype(np.float64))
    expected = head.cloning_loss(outputs_leaf, raw_tensor)
    expected.backward()
    loss, output_grads = head.cloning_grads(outputs.copy(), raw)
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    np.testing.assert_allclose(output_grads, outputs_leaf.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (spaces.Discrete(3), [0, 3], r"outside the space of \[3\] choices from \[0\]"),
        (spaces.Discrete(3, start=1), [0], r"outside the space of \[3\] choices from \[1\]"),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [2, 0]], r"outside the space of \[2, 3\] choices"),
        (spaces.MultiBinary(2), [[0, 1], [0, 2]], "neither 0 nor 1"),
    ],
)
def test_actions_outside_the_space_are_refused(space, actions, message):
    with pytest.raises(ValueError, match=message):
        action_head(space).from_env(np.array(actions))


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Tuple([spaces.Discrete(2)]), spaces.Box(-1, 1, (0,))], ids=str)
def test_other_action_spaces_are_refused_by_name(space):
    with pytest.raises(UnsupportedSpaceError) as caught:
        action_head(space)
    assert str(caught.value).startswith(f"action space {space} is not supported; expected Box, Discrete")
