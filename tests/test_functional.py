"""Returns and losses: against literals, and against slower ways of writing them."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from il_based_rl import functional
from il_based_rl.functional import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_log_prob,
    discounted_sums,
    explained_variance,
    gaussian_entropy,
    gaussian_log_prob,
    generalized_advantages,
    ppo_clip_grads,
    ppo_clip_loss,
)


def column(*values):
    return np.array(values)[:, None]


def random_rollout(seed, steps=30, num_envs=3):
    """A rollout with plenty of both endings, some on the same step; the value after an end is not the next row's."""
    random = np.random.default_rng(seed)
    shape = (steps, num_envs)
    terminated, truncated = random.random(shape) < 0.15, random.random(shape) < 0.15
    values = random.normal(size=(steps + 1, num_envs))
    return {
        "rewards": random.normal(size=shape),
        "values": values[:-1],
        "next_values": np.where(terminated | truncated, random.normal(size=shape), values[1:]),
        "terminated": terminated,
        "truncated": truncated,
    }


def lambda_return_advantages(rewards, values, next_values, terminated, truncated, *, gamma, gae_lambda):
    """The estimator in its other form: a geometric mixture of n-step returns, episode by episode, with no recursion."""
    steps, num_envs = rewards.shape
    advantages = np.zeros((steps, num_envs))
    for i in range(num_envs):
        for t in range(steps):
            end = t
            while end < steps - 1 and not (terminated[end, i] or truncated[end, i]):
                end += 1
            n_step_returns = []
            for last in range(t, end + 1):
                observed = sum(gamma ** (k - t) * rewards[k, i] for k in range(t, last + 1))
                bootstrap = 0.0 if terminated[last, i] else gamma ** (last - t + 1) * next_values[last, i]
                n_step_returns.append(observed + bootstrap)
            weights = [(1 - gae_lambda) * gae_lambda**n for n in range(len(n_step_returns))]
            weights[-1] = gae_lambda ** (len(n_step_returns) - 1)
            advantages[t, i] = np.dot(weights, n_step_returns) - values[t, i]
    return advantages


def test_every_example_in_the_docstrings_holds():
    result = doctest.testmod(functional)
    assert result.failed == 0
    assert result.attempted >= 3


def test_advantages_of_an_episode_that_terminates_inside_the_rollout():
    # gamma = 0.5, lambda = 0.5, carry 0.25; a termination after the second step drops its next value of 100.
    # deltas: 1 + 0.5*4 - 2 = 1;  3 + 0 - 4 = -1;  5 + 0.5*8 - 6 = 3
    # advantages, from behind: 3;  -1 (nothing flows back over the end);  1 + 0.25*(-1) = 0.75
    advantages = generalized_advantages(
        rewards=column(1.0, 3.0, 5.0),
        values=column(2.0, 4.0, 6.0),
        next_values=column(4.0, 100.0, 8.0),
        terminated=column(False, True, False),
        truncated=column(False, False, False),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages[:, 0].tolist() == [0.75, -1.0, 3.0]


def test_termination_wins_where_the_clock_ran_out_on_the_same_step():
    # 7 + 0 - 2: the next value of 100 must not count.
    advantages = generalized_advantages(
        column(7.0), column(2.0), column(100.0), column(True), column(True), gamma=0.9, gae_lambda=0.9
    )
    assert advantages.tolist() == [[5.0]]


def test_a_truncation_alone_bootstraps_from_the_final_observation():
    # 7 + 0.9 * 100 - 2
    advantages = generalized_advantages(
        column(7.0), column(2.0), column(100.0), column(False), column(True), gamma=0.9, gae_lambda=0.9
    )
    assert advantages[0, 0] == pytest.approx(95.0, rel=1e-12)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_advantages_do_not_flow_across_an_end_of_an_episode(ending):
    rollout = random_rollout(0, steps=6, num_envs=1)
    rollout |= {"terminated": np.zeros((6, 1), bool), "truncated": np.zeros((6, 1), bool)}
    rollout[ending] = column(False, False, True, False, False, False)
    before = generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    for name in ("rewards", "values", "next_values"):
        rollout[name] = np.concatenate([rollout[name][:3], rollout[name][3:] + 1000.0])
    after = generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    assert after[:3].tobytes() == before[:3].tobytes()
    assert (after[3:] != before[3:]).all()


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
def test_advantages_equal_the_mixture_of_n_step_returns(gamma, gae_lambda):
    for seed in range(3):
        rollout = random_rollout(seed)
        expected = lambda_return_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
        found = generalized_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_lambda_one_is_the_monte_carlo_return_minus_the_value():
    # Three rewards 1, 2, 4 and a termination, gamma = 0.5: returns 1 + 0.5*2 + 0.25*4 = 3, 2 + 0.5*4 = 4, and 4.
    advantages = generalized_advantages(
        rewards=column(1.0, 2.0, 4.0),
        values=column(10.0, 20.0, 30.0),
        next_values=column(20.0, 30.0, 40.0),
        terminated=column(False, False, True),
        truncated=column(False, False, False),
        gamma=0.5,
        gae_lambda=1.0,
    )
    assert (advantages[:, 0] + [10.0, 20.0, 30.0]).tolist() == [3.0, 4.0, 4.0]


def test_environments_side_by_side_do_not_mix():
    rollout = random_rollout(5, num_envs=4)
    together = generalized_advantages(**rollout, gamma=0.97, gae_lambda=0.9)
    for i in range(4):
        alone = generalized_advantages(**{name: x[:, i : i + 1] for name, x in rollout.items()}, gamma=0.97, gae_lambda=0.9)
        assert alone[:, 0].tobytes() == together[:, i].tobytes()


def test_advantages_refuse_arrays_of_different_shapes():
    rollout = random_rollout(0)
    rollout["values"] = rollout["values"][..., None]
    with pytest.raises(ValueError, match=r"one shape \(T, N\), got \[\(30, 3\), \(30, 3, 1\)\]; squeeze"):
        generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)


def test_discounted_sums_start_afresh_after_an_episode():
    # gamma = 0.5, running sum 8 from before: 0.5*8 + 1 = 5;  0.5*5 + 2 = 4.5 and the end;  3;  0.5*3 + 4 = 5.5
    sums, running = discounted_sums(
        column(1.0, 2.0, 3.0, 4.0), column(False, True, False, False), before=np.array([8.0]), gamma=0.5
    )
    assert sums[:, 0].tolist() == [5.0, 4.5, 3.0, 5.5]
    assert running.tolist() == [5.5]


def test_discounted_sums_continue_from_rollout_to_rollout():
    rollout = random_rollout(1)
    rewards, done = rollout["rewards"], rollout["terminated"] | rollout["truncated"]
    whole, last = discounted_sums(rewards, done, np.zeros(3), 0.9)
    first_part, running = discounted_sums(rewards[:11], done[:11], np.zeros(3), 0.9)
    second_part, split_last = discounted_sums(rewards[11:], done[11:], running, 0.9)
    assert np.concatenate([first_part, second_part]).tobytes() == whole.tobytes()
    assert split_last.tobytes() == last.tobytes()


def test_an_episode_that_ends_with_the_rollout_leaves_nothing_running():
    _, running = discounted_sums(column(1.0, 1.0), column(False, True), np.zeros(1), 0.9)
    assert running.tolist() == [0.0]


def test_gaussian_log_prob_and_entropy_are_those_of_independent_normals():
    torch_random = torch.Generator().manual_seed(0)
    mean, actions = (torch.randn(7, 3, generator=torch_random, dtype=torch.float64) for _ in range(2))
    log_std = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64)
    reference = Normal(mean, log_std.exp())
    torch.testing.assert_close(
        gaussian_log_prob(mean, log_std, actions), reference.log_prob(actions).sum(-1), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(gaussian_entropy(log_std), reference.entropy().sum(-1)[0], rtol=1e-12, atol=1e-12)


def test_gaussian_log_prob_at_the_mean_of_a_standard_normal():
    # -log(sqrt(2 pi)) = -0.9189385332
    log_prob = gaussian_log_prob(*(torch.zeros(shape, dtype=torch.float64) for shape in [(1, 1), (1,), (1, 1)]))
    assert log_prob.item() == pytest.approx(-0.9189385332046727, rel=1e-14)


def test_categorical_log_prob_and_entropy_are_those_of_independent_choices():
    torch_random = torch.Generator().manual_seed(1)
    choices = [3, 1, 4]
    logits = 3.0 * torch.randn(9, 8, generator=torch_random, dtype=torch.float64)
    parts = [Categorical(logits=part) for part in (logits[:, :3], logits[:, 3:4], logits[:, 4:])]
    actions = torch.stack([torch.randint(n, (9,), generator=torch_random) for n in choices], -1)
    expected = sum(part.log_prob(actions[:, k]) for k, part in enumerate(parts))
    torch.testing.assert_close(categorical_log_prob(logits, actions, choices), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        categorical_entropy(logits, choices), sum(part.entropy() for part in parts), rtol=1e-12, atol=1e-12
    )


def test_bernoulli_log_prob_and_entropy_are_those_of_independent_bits():
    torch_random = torch.Generator().manual_seed(2)
    logits = 3.0 * torch.randn(9, 4, generator=torch_random, dtype=torch.float64)
    actions = torch.randint(2, (9, 4), generator=torch_random).double()
    reference = Bernoulli(logits=logits)
    torch.testing.assert_close(bernoulli_log_prob(logits, actions), reference.log_prob(actions).sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bernoulli_entropy(logits), reference.entropy().sum(-1), rtol=1e-12, atol=1e-12)


def test_certain_choices_have_no_entropy_and_no_infinity():
    logits = torch.tensor([[1000.0, -1000.0]])
    assert categorical_entropy(logits, [2]).tolist() == [0.0]
    assert bernoulli_entropy(logits).tolist() == [0.0]
    assert categorical_log_prob(logits, torch.tensor([[1]]), [2]).tolist() == [-2000.0]
    assert bernoulli_log_prob(logits, torch.tensor([[0.0, 0.0]])).tolist() == [-1000.0]


def test_clipped_surrogate_by_hand():
    # clip_range 0.2; ratio, advantage -> the smaller of the plain and the clipped product:
    #   2,  1 -> min( 2,    1.2) =  1.2      2, -1 -> min(-2,   -1.2) = -2
    #   .5, 1 -> min( 0.5,  0.8) =  0.5     .5, -1 -> min(-0.5, -0.8) = -0.8
    # loss = -(1.2 - 2 + 0.5 - 0.8) / 4 = 0.275; every ratio lies outside [0.8, 1.2]
    # approx_kl: (2 - 1 - ln 2) and (0.5 - 1 + ln 2), twice each: mean 0.25
    log_probs = torch.tensor([2.0, 2.0, 0.5, 0.5], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss, metrics = ppo_clip_loss(log_probs, torch.zeros(4, dtype=torch.float64), advantages, clip_range=0.2)
    assert loss.item() == pytest.approx(0.275, rel=1e-12)
    assert metrics["approx_kl"].item() == pytest.approx(0.25, rel=1e-12)
    assert metrics["clip_fraction"].item() == 1.0


def test_clipping_stops_the_gradient_only_where_it_would_widen_the_step():
    # At ratio 2 a positive advantage wants more and is stopped; a negative one wants less and is not. Where a slope is left
    # it is -ratio * advantage.
    for ratio, advantage, slope in [(2.0, 1.0, 0.0), (2.0, -1.0, 2.0), (0.5, 1.0, -0.5), (0.5, -1.0, 0.0), (1.0, 3.0, -3.0)]:
        log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
        loss, _ = ppo_clip_loss(
            log_prob, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), clip_range=0.2
        )
        loss.backward()
        assert log_prob.grad.item() == pytest.approx(slope, rel=1e-12)


def test_an_unchanged_policy_has_no_divergence_and_clips_nothing():
    log_probs = torch.tensor([-1.0, -2.0, -300.0])
    loss, metrics = ppo_clip_loss(log_probs, log_probs.clone(), torch.tensor([3.0, -1.0, 4.0]), clip_range=0.2)
    assert loss.item() == -2.0
    assert metrics["approx_kl"].item() == 0.0
    assert metrics["clip_fraction"].item() == 0.0


def test_the_surrogate_in_closed_form_is_autograds():
    random = np.random.default_rng(0)
    old, advantages = random.normal(size=200), random.normal(size=200)
    new = old + 0.4 * random.normal(size=200)  # about half of the ratios are clipped
    log_probs = torch.tensor(new, requires_grad=True)
    expected, expected_metrics = ppo_clip_loss(log_probs, torch.tensor(old), torch.tensor(advantages), clip_range=0.2)
    expected.backward()
    grads, (loss, approx_kl, clip_fraction) = ppo_clip_grads(new, old, advantages, clip_range=0.2)
    np.testing.assert_allclose(grads, log_probs.grad.numpy(), rtol=1e-12, atol=1e-15)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert approx_kl == pytest.approx(expected_metrics["approx_kl"].item(), rel=1e-10)
    assert clip_fraction == pytest.approx(expected_metrics["clip_fraction"].item(), rel=1e-6)
    assert 0.3 < clip_fraction < 0.8


def test_explained_variance_of_half_right_predictions():
    # Targets 0, 2 (variance 1); errors 0.5, -0.5 (variance 0.25): 1 - 0.25 = 0.75. A constant prediction explains nothing.
    targets = np.array([0.0, 2.0])
    assert explained_variance(np.array([-0.5, 2.5]), targets) == 0.75
    assert explained_variance(np.array([7.0, 7.0]), targets) == 0.0
    assert explained_variance(np.array([2.0, 0.0]), targets) == -3.0


def test_explained_variance_of_constant_targets_is_not_a_number():
    assert math.isnan(explained_variance(np.array([1.0, 2.0]), np.array([5.0, 5.0])))
