"""The losses of cloning: known answers, closed forms against autograd, and what a student learns by each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from il_based_rl.agent import BCAgent
from il_based_rl.cloning_losses import CloningLoss
from il_based_rl.config import BCConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import ConfigError, FileFormatError, SpaceMismatchError
from il_based_rl.files import read_checkpoint, write_checkpoint
from il_based_rl.heads import action_head
from il_based_rl.spaces import space_to_plain

PLANE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
HALF_OPEN = spaces.Box(np.float32([-2.0, -np.inf, -np.inf]), np.float32([np.inf, 3.0, np.inf]), dtype=np.float32)
KINDS = [BOX, HALF_OPEN, spaces.Discrete(4, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
CONTINUOUS = ("mse", "huber", "l1", "nll", "bounded-nll", "kl")
DISCRETE = ("cross-entropy", "kl")
FITTING = [(space, name) for space in KINDS for name in (CONTINUOUS if isinstance(space, spaces.Box) else DISCRETE)]
CASES = [(*case, 0.0) for case in FITTING] + [(*case, 0.3) for case in FITTING if case[1] not in ("mse", "huber", "l1")]
BOTH_PATHS = pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "reference path"])


def loss_of(name, space, **settings):
    return CloningLoss(BCConfig(loss=name, **settings), action_head(space))


def batch(space, name, random, rows=7):
    """Outputs, log standard deviation and targets in float64, some targets at a bound."""
    head = action_head(space)
    outputs = 2.0 * random.normal(size=(rows, head.num_outputs))
    if not head.continuous:
        others = 2.0 * random.normal(size=outputs.shape)
        if name == "kl":
            return outputs, None, others
        chosen = head.mode(others)
        return outputs, None, chosen if chosen.dtype == np.int64 else chosen.astype(np.float64)
    log_std = 0.5 * random.normal(size=head.num_outputs)
    means, log_stds = random.normal(size=outputs.shape), 0.3 * random.normal(size=outputs.shape)
    if name == "kl":
        return outputs, log_std, np.concatenate([means, log_stds], -1)
    low, high = (bound.astype(np.float64) for bound in head.raw_bounds)
    return outputs, log_std, np.clip(1.5 * means, low, high)


@pytest.mark.parametrize(("space", "name", "entropy_coef"), CASES, ids=lambda case: str(case)[:30])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_in_closed_form_are_autograds(space, name, entropy_coef, seed):
    loss = loss_of(name, space, entropy_coef=entropy_coef)
    outputs, log_std, targets = batch(space, name, np.random.default_rng(seed))
    outputs_leaf = torch.tensor(outputs, requires_grad=True)
    log_std_leaf = torch.tensor(log_std, requires_grad=True) if loss.learns_std else None
    expected = loss.loss(outputs_leaf, log_std_leaf, torch.from_numpy(targets))
    expected.backward()
    found, output_grads, log_std_grads = loss.grads(outputs.copy(), log_std if loss.learns_std else None, targets)
    assert found == pytest.approx(expected.item(), rel=1e-9)
    np.testing.assert_allclose(output_grads, outputs_leaf.grad.numpy(), rtol=1e-8, atol=1e-12)
    if loss.learns_std:
        np.testing.assert_allclose(log_std_grads, log_std_leaf.grad.numpy(), rtol=1e-8, atol=1e-12)
    else:
        assert log_std_grads is None


def test_errors_within_a_tenth_count_by_the_square_and_larger_ones_by_their_size():
    # Errors 0.1 and 1.1 with a delta of 0.1: 0.5 * 0.1^2 = 0.005 and 0.1 * (1.1 - 0.05) = 0.105; their mean is 0.055.
    space = spaces.Box(-1.0, 1.0, (2,))
    assert loss_of("huber", space).grads(np.array([[0.1, 1.1]]), None, np.zeros((1, 2)))[0] == pytest.approx(0.055)
    assert loss_of("l1", space).grads(np.array([[0.1, -1.1]]), None, np.zeros((1, 2)))[0] == pytest.approx(0.6)


def test_the_likelihood_of_an_action_at_a_bound_is_that_of_all_beyond_it():
    # Raw actions of mean 0.5 and deviation 2, clipped to [-1, 1]: labels at 1, at -1 and at 0.25.
    loss = loss_of("bounded-nll", spaces.Box(-4.0, 4.0, (1,)))
    normal = stats.norm(0.5, 2.0)
    outputs, targets = np.full((3, 1), 0.5), np.array([[1.0], [-1.0], [0.25]])
    expected = -(normal.logsf(1.0) + normal.logcdf(-1.0) + normal.logpdf(0.25)) / 3
    assert loss.grads(outputs, np.log([2.0]), targets)[0] == pytest.approx(expected, rel=1e-6)


def test_a_label_far_beyond_what_the_mean_says_keeps_the_bounded_likelihood_finite():
    loss = loss_of("bounded-nll", spaces.Box(-1.0, 1.0, (1,)))
    outputs = np.array([[-80.0]], np.float32)
    found, output_grads, log_std_grads = loss.grads(outputs, np.log(np.float32([0.5])), np.ones((1, 1), np.float32))
    assert np.isfinite([found, output_grads[0, 0], log_std_grads[0]]).all()
    assert output_grads[0, 0] < 0.0  # upwards


def test_the_divergence_from_the_expert_is_that_of_two_normals():
    # KL(N(1, 0.5^2) || N(0, 1)) = ln 2 + (0.25 + 1) / 2 - 0.5 = 0.8181472
    loss = loss_of("kl", spaces.Box(-1.0, 1.0, (1,)))
    assert loss.grads(np.zeros((1, 1)), np.zeros(1), np.array([[1.0, np.log(0.5)]]))[0] == pytest.approx(0.8181472, rel=1e-6)


@pytest.mark.parametrize(("space", "logits", "others"), [
    (spaces.Discrete(2), [[0.0, 0.0]], [[np.log(3.0), 0.0]]),
    (spaces.MultiBinary(1), [[0.0]], [[np.log(3.0)]]),
])  # fmt: skip
def test_the_divergence_from_the_expert_is_that_of_two_coins(space, logits, others):
    # KL((3/4, 1/4) || (1/2, 1/2)) = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.1308120
    assert loss_of("kl", space).grads(np.array(logits), None, np.array(others))[0] == pytest.approx(0.1308120, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "space", "says"),
    [
        ("mse", spaces.Discrete(3), "--loss mse does not fit discrete actions; it can be auto, cross-entropy, kl"),
        ("bounded-nll", spaces.MultiBinary(3), "does not fit discrete"),
        ("cross-entropy", BOX, "does not fit continuous actions; it can be auto, mse, huber, l1, nll, bounded-nll, kl"),
    ],
)
def test_a_loss_that_does_not_fit_the_actions_is_refused(name, space, says):
    with pytest.raises(ConfigError, match=says):
        loss_of(name, space)


@pytest.mark.parametrize("name", ["auto", "mse", "huber", "l1"])
def test_entropy_needs_a_distribution(name):
    with pytest.raises(ConfigError, match="--entropy-coef needs a loss of a distribution"):
        loss_of(name, BOX, entropy_coef=0.1)


# ---- students ----


def demos_of(actions, observations=None, space=BOX, distributions=None, num_episodes=10):
    rows = len(actions)
    truncated = np.zeros(rows, bool)
    truncated[rows // num_episodes - 1 :: rows // num_episodes] = True
    observations = np.zeros((rows, 2), np.float32) if observations is None else observations
    return DemoDataset(
        observations=observations,
        actions=actions,
        rewards=np.zeros(rows),
        terminated=np.zeros(rows, bool),
        truncated=truncated,
        final_observations=observations[:num_episodes],
        episode_lengths=np.full(num_episodes, rows // num_episodes),
        seeds=np.arange(num_episodes),
        metadata={"observation_space": space_to_plain(PLANE), "action_space": space_to_plain(space)},
        distributions=distributions,
    )


def student(dataset, **settings):
    config = replace(BCConfig(epochs=40, lr=0.02, validation_fraction=0.0), **settings)
    agent = BCAgent.for_dataset(dataset, config, hidden_dims=(8,), seed=0)
    for _ in agent.learn(dataset):
        pass
    return agent


ROBOT = spaces.Box(-2.0, 6.0, (1,), np.float32)
"""Half its range is 4, around 2."""


@BOTH_PATHS
def test_a_likelihood_learns_how_widely_actions_scatter(fast_path):
    # In half ranges around the centre: mean 0.25, deviation 0.125, far from the bounds.
    actions = np.random.default_rng(0).normal(3.0, 0.5, (1000, 1)).astype(np.float32)
    agent = student(demos_of(actions, space=ROBOT), loss="nll", fast_path=fast_path)
    assert float(agent.predict(np.zeros(2))[0]) == pytest.approx(actions.mean(), abs=0.05)
    assert float(np.exp(agent.log_std_array())[0]) == pytest.approx(actions.std() / 4.0, rel=0.05)
    drawn = agent.predict(np.zeros((2000, 2)), deterministic=False)
    assert drawn.std() == pytest.approx(actions.std(), rel=0.1)


@BOTH_PATHS
def test_the_bounded_likelihood_sees_through_clipping_where_others_do_not(fast_path):
    # Unclipped mean 6 is at the upper bound: half of all labels are clipped there, and their mean lies below it.
    unclipped = np.random.default_rng(0).normal(6.0, 1.0, (2000, 1)).astype(np.float32)
    dataset = demos_of(np.clip(unclipped, -2.0, 6.0), space=ROBOT)
    means = {
        name: float(student(dataset, loss=name, fast_path=fast_path).action_distribution(np.zeros((1, 2), np.float32))[0, 0])
        for name in ("nll", "bounded-nll")
    }
    assert means["nll"] == pytest.approx(dataset.actions.mean(), abs=0.1)
    assert means["bounded-nll"] == pytest.approx(6.0, abs=0.1)


@BOTH_PATHS
def test_the_divergence_learns_the_experts_distribution_not_its_actions(fast_path):
    # The labels say 0, the distributions mean 4 and deviation 2, in the environment's units.
    dataset = demos_of(np.zeros((400, 1), np.float32), space=ROBOT, distributions=np.tile(np.float32([4.0, 2.0]), (400, 1)))
    agent = student(dataset, loss="kl", fast_path=fast_path)
    np.testing.assert_allclose(agent.action_distribution(np.zeros((1, 2), np.float32)), [[4.0, 2.0]], atol=0.1)


@BOTH_PATHS
def test_discrete_students_learn_the_experts_probabilities(fast_path):
    space = spaces.Discrete(3, start=5)
    logits = np.log(np.float32([0.2, 0.5, 0.3]))
    dataset = demos_of(np.full(400, 5), space=space, distributions=np.tile(logits, (400, 1)))
    agent = student(dataset, loss="kl", fast_path=fast_path)
    found = agent.action_distribution(np.zeros((1, 2), np.float32))[0]
    np.testing.assert_allclose(np.exp(found) / np.exp(found).sum(), [0.2, 0.5, 0.3], atol=0.02)


def test_a_median_is_learned_by_l1_and_a_mean_by_mse():
    # Three labels of four are 0, the fourth is 4 half ranges away.
    actions = np.tile(np.float32([[0.0], [0.0], [0.0], [1.0]]), (200, 1))
    dataset = demos_of(actions, space=spaces.Box(-1.0, 1.0, (1,), np.float32))
    assert float(student(dataset, loss="mse").predict(np.zeros(2))[0]) == pytest.approx(0.25, abs=0.03)
    assert float(student(dataset, loss="l1").predict(np.zeros(2))[0]) == pytest.approx(0.0, abs=0.03)


def test_both_paths_learn_the_same():
    random = np.random.default_rng(0)
    observations = random.normal(size=(200, 2)).astype(np.float32)
    actions = np.clip(random.normal(size=(200, 3)), -1.0, 1.0).astype(np.float32)
    distributions = np.concatenate([actions, np.full((200, 3), 0.5, np.float32)], -1)
    dataset = demos_of(actions, observations, distributions=distributions)
    for name in set(CONTINUOUS) - {"l1"}:  # whose gradient jumps at every label, so that rounding is enough to part them
        settings = {"loss": name, "epochs": 3, "lr": 1e-3, "l2_coef": 0.01}
        fast, reference = (student(dataset, fast_path=fast_path, **settings) for fast_path in (True, False))
        for one, other in zip(fast.policy.parameters(), reference.policy.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


@BOTH_PATHS
def test_a_penalty_on_large_parameters_makes_them_small(fast_path):
    observations = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    dataset = demos_of(observations @ np.float32([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]) * 0.2, observations)
    norms = [
        sum(
            float(parameter.detach().square().sum())
            for parameter in student(dataset, l2_coef=l2, fast_path=fast_path).policy.parameters()
        )
        for l2 in (0.0, 0.01, 10.0)
    ]
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-2


def test_entropy_keeps_a_discrete_student_undecided():
    dataset = demos_of(np.full(400, 1), space=spaces.Discrete(2))
    sure, undecided = (
        student(dataset, entropy_coef=coef).action_distribution(np.zeros((1, 2), np.float32))[0] for coef in (0.0, 2.0)
    )
    assert sure[1] - sure[0] > undecided[1] - undecided[0] + 1.0


def test_a_student_that_stops_getting_better_stops_early():
    # Noise that cannot be learned: what is held out gets worse.
    random = np.random.default_rng(0)
    observations = random.normal(size=(100, 2)).astype(np.float32)
    dataset = demos_of(random.uniform(-1, 1, (100, 3)).astype(np.float32), observations)
    config = BCConfig(epochs=500, lr=0.01, validation_fraction=0.3, patience=5)
    agent = BCAgent.for_dataset(dataset, config, hidden_dims=(64,), seed=0)
    losses = [progress.metrics["validation_loss"] for progress in agent.learn(dataset)]
    assert agent.finished
    assert len(losses) < 500
    assert int(np.argmin(losses)) == len(losses) - 6
    with pytest.raises(ConfigError, match="has had its"):
        next(agent.learn(dataset))


def test_early_stopping_needs_something_to_hold_out():
    with pytest.raises(ConfigError, match="--patience must be left out where --validation-fraction is 0"):
        BCConfig(patience=3, validation_fraction=0.0)
    dataset = demos_of(np.zeros((10, 3), np.float32), num_episodes=1)
    with pytest.raises(ConfigError, match="of one episode"):
        next(BCAgent.for_dataset(dataset, BCConfig(patience=3)).learn(dataset))


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_student_of_a_distribution_is_the_same_from_its_file(epochs, tmp_path):
    actions = np.random.default_rng(0).normal(3.0, 0.5, (100, 1)).astype(np.float32)
    dataset = demos_of(actions, space=ROBOT)
    straight = BCAgent.for_dataset(dataset, BCConfig(epochs=4, loss="nll", patience=9), hidden_dims=(8,), seed=0)
    learning = straight.learn(dataset)
    for _ in range(epochs):
        next(learning)
    straight.save(tmp_path / "a.pt")
    again = BCAgent.load(tmp_path / "a.pt")
    for agent in (straight, again):
        for _ in learning if agent is straight else (() if again.finished else again.learn(dataset)):
            pass
    np.testing.assert_array_equal(straight.log_std_array(), again.log_std_array())
    np.testing.assert_array_equal(straight.predict(np.ones(2)), again.predict(np.ones(2)))
    assert (straight.best_validation, straight.epochs_since_best) == (again.best_validation, again.epochs_since_best)


@pytest.mark.parametrize("stored", [None, torch.zeros(2), torch.full((1,), torch.nan), "text"])
def test_a_file_without_a_sound_deviation_is_refused(stored, tmp_path):
    dataset = demos_of(np.zeros((10, 1), np.float32), space=ROBOT)
    BCAgent.for_dataset(dataset, BCConfig(loss="nll"), hidden_dims=(8,), seed=0).save(tmp_path / "a.pt")
    payload = read_checkpoint(tmp_path / "a.pt")
    payload["log_std"] = stored
    write_checkpoint(tmp_path / "b.pt", payload)
    with pytest.raises(FileFormatError, match="damaged"):
        BCAgent.load(tmp_path / "b.pt")


def test_the_divergence_needs_distributions():
    dataset = demos_of(np.zeros((10, 3), np.float32))
    with pytest.raises(SpaceMismatchError, match="--loss kl needs the expert's distribution"):
        next(BCAgent.for_dataset(dataset, BCConfig(loss="kl")).learn(dataset))


@pytest.mark.parametrize("distributions", [np.ones((10, 5), np.float32), np.zeros((10, 6), np.float32)])
def test_distributions_that_are_none_are_refused(distributions):
    dataset = demos_of(np.zeros((10, 3), np.float32), distributions=distributions)
    with pytest.raises(SpaceMismatchError, match=r"parameters; expected 6|not above 0"):
        next(BCAgent.for_dataset(dataset, BCConfig(loss="kl")).learn(dataset))
