"""Fine-tuning: each guard rail does what it says, nothing saved is clearly below the clone, a resumed run is the same run."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from il_based_rl import evaluate
from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.algorithms import finetune as command
from il_based_rl.algorithms import guarded_ppo
from il_based_rl.algorithms.dagger import dagger
from il_based_rl.algorithms.finetune import finetune
from il_based_rl.algorithms.guarded_ppo import GuardedPPO
from il_based_rl.checkpoint import load_agent
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, GuardConfig, PPOConfig
from il_based_rl.envs import InProcessEnvs
from il_based_rl.errors import ConfigError, SpaceMismatchError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.experiment.run import TIME_FIELDS
from il_based_rl.files import read_checkpoint, read_rows
from il_based_rl.flat_parameters import FlatAdam, FlatParameters, GroupedAdam
from il_based_rl.functional import bernoulli_divergence, categorical_divergence
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.report.found import find_runs

ENV = "Pendulum-v1"
PPO = PPOConfig(lr=1e-3, clip_range=0.1, n_steps=256, n_epochs=2, normalize_obs=False)
SMALL = "--n-steps 128 --n-epochs 1 --eval-interval 256 --eval-episodes 3 --final-episodes 3 --seed 0 --save-path c/f.pt"


def lazy(obs):
    return np.float32([-obs[2] / 4])


def balance(obs):
    return int(obs[2] + 0.5 * obs[3] > 0)


def cloned(env_id, expert, epochs=5):
    demos = collect_demos(env_id, expert, 5, seed=0)
    student = BCAgent.for_dataset(demos, BCConfig(epochs=epochs), hidden_dims=(16, 16), seed=0)
    for _ in student.learn(demos):
        pass
    return student, demos


@pytest.fixture(scope="module")
def clone():
    return cloned(ENV, lazy)


CAREFUL = {"action_std": 0.15, "max_action_std": 0.3}


def tuner_for(clone, guard=None, ppo=PPO, demos=None, seed=0):
    return GuardedPPO.from_clone(clone.policy, guard or GuardConfig(), ppo, seed=seed, demos=demos)


def updates(tuner, count, env_id=ENV):
    with InProcessEnvs(env_id) as envs:
        yield from tuner.learn(envs, tuner.agent.env_steps + count * tuner.agent.config.n_steps)


def actor_of(tuner):
    return {name: tensor.clone() for name, tensor in tuner.agent.policy.actor.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- guard rails ----


def test_it_begins_as_the_clone_with_a_fresh_critic_and_the_set_deviation(clone):
    student, _ = clone
    tuner = tuner_for(student, GuardConfig(action_std=0.2))
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(tuner.agent.predict(obs), student.predict(obs))
    assert float(tuner.agent.policy.log_std.detach().exp()) == pytest.approx(0.2, rel=1e-6)
    before = copy.deepcopy(student.policy.state_dict())
    for _ in updates(tuner, 3):
        pass
    assert equal(before, student.policy.state_dict())  # the student itself is left alone


def test_an_experts_critic_is_kept():
    with InProcessEnvs(ENV) as envs:
        spaces = envs.observation_space, envs.action_space
    expert = PPOAgent.for_spaces(*spaces, hidden_dims=(8,), activation="relu", seed=0)
    critic = expert.policy.critic
    tuner = GuardedPPO.from_clone(expert.policy.actor, GuardConfig(), PPO, seed=0, critic=critic)
    assert equal(critic.state_dict(), tuner.agent.policy.critic.state_dict())
    assert [progress.env_steps for progress in updates(tuner, 1)] == [PPO.n_steps]


def test_an_experts_clip_of_observations_is_kept():
    with InProcessEnvs(ENV) as envs:
        expert = PPOAgent.for_spaces(envs.observation_space, envs.action_space, hidden_dims=(8,), obs_clip=0.5, seed=0)
    expert.policy.actor.normalizer.fit(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    tuner = GuardedPPO.from_clone(expert.policy.actor, GuardConfig(), PPO, seed=0)
    obs = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(tuner.agent.predict(obs), expert.predict(obs))
    assert tuner.agent.policy.actor.normalizer.clip == 0.5


def test_the_actor_is_still_until_the_critic_foresees_returns_or_patience_ends(clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_variance=1.0, warmup_rollouts=3))
    start, moved = actor_of(tuner), []
    critic = copy.deepcopy(tuner.agent.policy.critic.state_dict())
    for progress in updates(tuner, 5):
        moved.append(not equal(start, actor_of(tuner)))
        assert progress.metrics["actor_moves"] == float(moved[-1])
    assert moved == [False, False, False, True, True]
    assert not equal(critic, tuner.agent.policy.critic.state_dict())
    early = tuner_for(clone[0], GuardConfig(warmup_variance=-1e9, warmup_rollouts=9))
    assert [progress.metrics["actor_moves"] for progress in updates(early, 3)] == [0.0, 1.0, 1.0]
    none = tuner_for(clone[0], GuardConfig(warmup_rollouts=0))
    assert [progress.metrics["actor_moves"] for progress in updates(none, 1)] == [1.0]


def test_the_actors_first_steps_are_as_long_as_its_rate_however_long_it_was_still(clone):
    # Adam's first step is the learning rate, whatever the gradient; it would be several times that, had steps counted before.
    ppo = replace(PPO, n_epochs=1, batch_size=PPO.n_steps)  # one step an update
    tuner = tuner_for(clone[0], GuardConfig(warmup_variance=1.0, warmup_rollouts=4, actor_rampup=0, kl_coef=0.0), ppo)
    weight = tuner.agent.policy.actor.network.linear[1].weight
    places, moved = [weight.detach().clone()], []
    for progress in updates(tuner, 5):
        places.append(weight.detach().clone())
        rate = progress.metrics["actor_lr"] or 1.0
        moved.append(float((places[-1] - places[-2]).abs().max()) / rate)
    assert moved == [0.0] * 4 + [pytest.approx(1.0, abs=0.02)]


def test_observation_statistics_are_the_clones(clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_rollouts=0))
    for _ in updates(tuner, 2):
        pass
    assert equal(clone[0].policy.normalizer.state_dict(), tuner.agent.policy.actor.normalizer.state_dict())


@pytest.mark.parametrize("end", ["min_action_std", "max_action_std"])
def test_the_deviation_stays_inside_its_bounds(end, clone):
    guard = replace(GuardConfig(warmup_rollouts=0, actor_rampup=0, actor_lr=1.0), **(CAREFUL | {end: 0.15}))
    tuner = tuner_for(clone[0], guard, replace(PPO, entropy_coef=0.5 if end == "max_action_std" else 0.0))
    for progress in updates(tuner, 3):
        assert 0.05 - 1e-6 <= progress.metrics["action_std"] <= 0.3 + 1e-6
        if end == "max_action_std":
            assert progress.metrics["action_std"] <= 0.15 + 1e-6


def test_the_actors_rate_rises_and_the_weights_fall(clone):
    tuner = tuner_for(
        clone[0], GuardConfig(warmup_rollouts=0, actor_rampup=4, actor_lr=2e-4, kl_coef=0.2, kl_decay=0.5, bc_decay=0.25)
    )
    rates = [progress.metrics["actor_lr"] for progress in updates(tuner, 6)]
    np.testing.assert_allclose(rates, [5e-5, 1e-4, 1.5e-4, 2e-4, 2e-4, 2e-4], rtol=1e-6)
    assert tuner._anchor.weight == pytest.approx(0.2 * 0.5**6)
    assert tuner._bc_weight == pytest.approx(0.01 * 0.25**6)


def test_the_anchor_keeps_it_near_the_clone(clone):
    far = []
    for kl_coef in (0.0, 100.0):
        tuner = tuner_for(
            clone[0], GuardConfig(warmup_rollouts=0, actor_rampup=0, actor_lr=3e-3, kl_coef=kl_coef, kl_decay=1.0)
        )
        far.append([progress.metrics["divergence_from_clone"] for progress in updates(tuner, 8)][-1])
    assert far[1] < far[0] / 3


def test_demonstrations_are_kept_likely(clone):
    student, demos = clone
    errors = []
    for bc_coef in (0.0, 10.0):
        guard = GuardConfig(warmup_rollouts=0, actor_rampup=0, actor_lr=1e-3, kl_coef=0.0, bc_coef=bc_coef, bc_decay=1.0)
        tuner = tuner_for(student, guard, demos=demos)
        for _ in updates(tuner, 8):
            pass
        errors.append(float(np.mean((tuner.agent.predict(demos.observations) - demos.actions) ** 2)))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("fast_path", [True, False])
def test_both_paths_take_the_penalty_alike(fast_path, clone):
    guard = GuardConfig(warmup_rollouts=0, actor_rampup=0, actor_lr=1e-3, kl_coef=1.0)
    tuners = [tuner_for(clone[0], guard, replace(PPO, fast_path=path)) for path in (True, fast_path)]
    ends = []
    for tuner in tuners:
        for _ in updates(tuner, 2):
            pass
        ends.append(torch.cat([tensor.flatten() for tensor in actor_of(tuner).values()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


# ---- the gate ----


def random():
    return np.random.default_rng(0)


def test_the_gate_keeps_the_best_and_goes_back_to_it(clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_rollouts=0, gate_patience=1))
    hard = random().normal(-1000, 100, 40)
    tuner.judge(hard)
    for _ in updates(tuner, 1):
        pass
    better = actor_of(tuner)
    margin = tuner.judge(hard + 50 + random().normal(0, 10, 40))
    assert margin.low > 0
    assert equal(better, {name: tuner.best[f"actor.{name}"] for name in better})
    for _ in updates(tuner, 1):
        pass
    tuner.judge(hard - 50 + random().normal(0, 10, 40))
    assert equal(better, actor_of(tuner))
    assert tuner.caution == 2.0
    rate = tuner._optimizer.shares[0]
    tuner.judge(hard - 50 + random().normal(0, 10, 40))
    assert tuner._optimizer.shares[0] == pytest.approx(rate / 2)


def test_the_critic_is_kept_and_warms_up_when_the_actor_goes_back(clone):
    moving = replace(PPO, normalize_obs=True)
    tuner = tuner_for(clone[0], GuardConfig(warmup_variance=1.0, warmup_rollouts=2, gate_patience=1), moving)
    start = actor_of(tuner)
    tuner.judge(np.zeros(40))
    moves, going = [], updates(tuner, 6)
    for k, progress in enumerate(going):
        moves.append(progress.metrics["actor_moves"])
        if k == 2:
            critic = copy.deepcopy(tuner.agent.policy.critic.state_dict())
            tuner.judge(random().normal(-50, 5, 40))
            assert equal(critic, tuner.agent.policy.critic.state_dict())
        if k in (2, 3, 4):
            assert equal(start, actor_of(tuner))
    assert moves == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 6])
def test_what_was_cut_before_or_in_a_second_warm_up_goes_on_alike(cut, clone):
    guard = GuardConfig(warmup_variance=1.0, warmup_rollouts=2, gate_patience=1)
    moving = replace(PPO, normalize_obs=True)

    def learned(tuner, count):
        for _ in updates(tuner, count):
            if tuner.agent.env_steps == 3 * PPO.n_steps:
                tuner.judge(random().normal(-50, 5, 40))

    straight, begun = (tuner_for(clone[0], guard, moving) for _ in range(2))
    for tuner in (straight, begun):
        tuner.judge(np.zeros(40))
    learned(straight, 7)
    learned(begun, cut)
    gone_on = GuardedPPO.from_payload(begun.payload(), "memory", guard, moving)
    learned(gone_on, 7 - cut)
    assert equal(straight.agent.policy.state_dict(), gone_on.agent.policy.state_dict())
    assert equal(straight.best, gone_on.best)
    assert (straight.caution, straight.updates) == (gone_on.caution, gone_on.updates) == (2.0, 3)


def test_the_gate_waits_for_as_many_bad_evaluations_as_it_is_told(clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_rollouts=0, gate_patience=2))
    start, good, bad = actor_of(tuner), np.zeros(40), random().normal(-50, 5, 40)
    tuner.judge(good)
    for _ in updates(tuner, 1):
        pass
    unclear = np.linspace(-6, 5, 40)  # a little below the clone
    for returns in (bad, unclear, bad):  # not in a row
        tuner.judge(returns)
    assert tuner.caution == 1.0
    assert not equal(start, actor_of(tuner))
    assert equal(start, {name: tuner.best[f"actor.{name}"] for name in start})  # what would be saved
    tuner.judge(bad)
    assert tuner.caution == 2.0
    assert equal(start, actor_of(tuner))


def test_without_the_gate_nothing_is_taken_back(clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_rollouts=0, gate=False))
    tuner.judge(np.zeros(20))
    for _ in updates(tuner, 1):
        pass
    now = actor_of(tuner)
    tuner.judge(np.full(20, -5.0) + random().normal(size=20))
    assert equal(now, actor_of(tuner))


@pytest.mark.parametrize(("best_plays", "taken"), [(-500.0, "best"), (-1500.0, "clone")])
def test_the_result_is_not_clearly_below_the_clone_where_nothing_was_chosen(best_plays, taken, clone):
    tuner = tuner_for(clone[0], GuardConfig(warmup_rollouts=0, actor_rampup=0, actor_lr=1e-2))
    start = actor_of(tuner)
    for _ in updates(tuner, 1):
        pass
    tuner.judge(np.zeros(10))
    tuner.judge(np.ones(10))  # better than the clone, so that it is the best
    noise = random().normal(0, 10, (2, 60))
    plays = iter([best_plays + noise[0], -1000.0 + noise[1]])
    learner = actor_of(tuner)
    margin = tuner.settle(lambda: next(plays))
    saved = tuner.payload()["parameters"]
    assert all(torch.equal(start[name], saved[f"actor.{name}"]) for name in start) == (taken == "clone")
    assert equal(learner, actor_of(tuner))  # which goes on from where it was
    assert margin.high >= 0.0
    for _ in updates(tuner, 1):
        pass
    tuner.judge(np.full(10, 0.5))  # better than the clone, and below what was refused
    kept = tuner.payload()["parameters"]
    assert all(torch.equal(tensor, kept[f"actor.{name}"]) for name, tensor in actor_of(tuner).items()) == (taken == "clone")


def test_statistics_that_move_leave_the_actor_still_at_first_and_the_anchor_the_clone(clone):
    student, demos = clone
    moving = replace(PPO, normalize_obs=True)
    tuner = tuner_for(student, GuardConfig(warmup_variance=1.0, warmup_rollouts=2), moving, demos)
    start = actor_of(tuner)
    for k, progress in enumerate(updates(tuner, 4)):
        assert (progress.metrics["actor_moves"] == 0.0) == (k < 2)
        assert equal(start, actor_of(tuner)) == (k < 2)
    actor = tuner.agent.policy.actor
    assert not torch.equal(actor.normalizer.mean, start["normalizer.mean"])
    features = actor.codec.features(demos.observations)
    seen = tuner._anchor.read(actor.normalizer(torch.from_numpy(features)), actor.normalizer)
    np.testing.assert_allclose(seen, student.policy.normalizer(torch.from_numpy(features)), atol=1e-5)


# ---- mathematics ----


def test_groups_have_norms_and_rates_of_their_own():
    layers = [torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)]
    flat = FlatParameters(layers)
    start = flat.vector.detach().clone()
    optimizer = GroupedAdam(flat, 0.1, [[layers[0].weight], [layers[1].weight]])
    optimizer.shares = [0.5, 1.0]
    flat.grad[flat.places([layers[0].weight])] = 100.0
    flat.grad[flat.places([layers[1].weight])] = 0.01
    optimizer.step(0.5)
    moved = start - flat.vector.detach()
    torch.testing.assert_close(moved[flat.places([layers[0].weight])], torch.full((4,), 0.05), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved[flat.places([layers[1].weight])], torch.full((4,), 0.1), rtol=1e-4, atol=1e-6)
    assert float(flat.grad[flat.places([layers[0].weight])].norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(flat.grad[flat.places([layers[1].weight])].norm()) == pytest.approx(0.02, rel=1e-4)  # short ones stay


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
def test_a_state_of_adam_that_no_step_leads_to_is_refused(name):
    optimizer = FlatAdam(FlatParameters([torch.nn.Linear(2, 2)]), lr=1e-3)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=f"{name} is negative"):
        optimizer.load_state_dict(state | {name: state[name] - 1.0})


def test_a_group_that_keeps_still_leaves_no_moment_behind():
    layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    flat = FlatParameters(layers)
    start = flat.vector.detach().clone()
    optimizer = GroupedAdam(flat, 0.1, [list(layers[0].parameters()), list(layers[1].parameters())])
    optimizer.shares = [0.0, 1.0]
    flat.grad.fill_(1.0)
    optimizer.step()
    still = flat.places(list(layers[0].parameters()))
    assert torch.equal(flat.vector.detach()[still], start[still])
    assert not optimizer.state_dict()["exp_avg"][still].any()


def test_one_group_of_all_is_plain_adam():
    ends = []
    for grouped in (False, True):
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        flat = FlatParameters([layer])
        optimizer = GroupedAdam(flat, 0.1, [list(layer.parameters())]) if grouped else FlatAdam(flat, 0.1)
        for k in range(4):
            flat.grad.copy_(torch.linspace(-1, 1, 8) * (k + 1))
            optimizer.step(0.7)
        ends.append(flat.vector.detach().clone())
    torch.testing.assert_close(*ends)


def test_divergences_are_those_of_torch():
    draws = torch.Generator().manual_seed(0)
    one, other = (torch.randn(6, 5, generator=draws) for _ in range(2))
    kl, choice, bit = torch.distributions.kl_divergence, torch.distributions.Categorical, torch.distributions.Bernoulli
    first = kl(choice(logits=one[:, :2]), choice(logits=other[:, :2]))
    second = kl(choice(logits=one[:, 2:]), choice(logits=other[:, 2:]))
    torch.testing.assert_close(categorical_divergence(one, other, [2, 3]), first + second)
    bits = kl(bit(logits=one), bit(logits=other)).sum(-1)
    torch.testing.assert_close(bernoulli_divergence(one, other), bits, rtol=1e-4, atol=1e-5)


# ---- from Python and from the command line ----


def test_what_it_returns_acts_like_any_expert_and_is_not_below_the_clone(clone):
    student, _ = clone
    expert = finetune(student, ENV, 2048, ppo=PPO, seed=0, eval_interval=512, eval_episodes=5, final_episodes=10)
    assert isinstance(expert, PPOAgent)
    seeds = list(range(30))
    mine, clones = (evaluate_policy(agent, ENV, start_seeds=seeds).returns for agent in (expert, student))
    margin = mine - clones
    assert margin.mean() + 2 * margin.std(ddof=1) / math.sqrt(30) >= 0


def test_the_last_policy_is_compared_with_the_clone_too(clone, monkeypatch):
    judged = []
    monkeypatch.setattr(GuardedPPO, "judge", lambda tuner, returns: judged.append(tuner.agent.env_steps))
    monkeypatch.setattr(command, "_settled", lambda tuner, config: None)
    finetune(clone[0], ENV, 1300, ppo=PPO, seed=0, eval_interval=1000, eval_episodes=2)
    assert judged == [0, 1024, 1536]
    judged.clear()
    finetune(clone[0], ENV, 300, ppo=PPO, seed=0, eval_episodes=2)
    assert judged == [0, 512]


def test_discrete_actions_and_an_experts_own_critic():
    student, _ = cloned("CartPole-v1", balance)
    ppo = replace(PPO, n_steps=128)
    expert = finetune(student, "CartPole-v1", 384, ppo=ppo, seed=0, eval_interval=128, eval_episodes=3, final_episodes=3)
    assert expert.predict(np.zeros(4, np.float32)).shape == ()
    tuner = GuardedPPO.from_clone(expert.policy.actor, GuardConfig(), ppo, seed=1, critic=expert.policy.critic)
    assert equal(tuner.agent.policy.critic.state_dict(), expert.policy.critic.state_dict())


def test_a_student_of_another_environment_is_refused(clone):
    with pytest.raises(SpaceMismatchError):
        finetune(clone[0], "CartPole-v1", 128)


@pytest.fixture
def saved(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone[0].save("student.pt")
    clone[1].save("demos.npz")


RUN = f"finetune --checkpoint student.pt --env-id {ENV} --demo-path demos.npz --total-timesteps 768 {SMALL}"


@pytest.mark.usefixtures("saved")
def test_the_command_writes_an_expert_that_every_other_command_takes(capsys):
    main(RUN.split())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"Fine-tuning student.pt on {ENV} for 768 timesteps..."
    assert sum("above the clone=" in line for line in printed) == 3
    assert printed[-2].startswith("From 3 start states never seen before, it is above the clone by ")
    assert printed[-1] == "Checkpoint saved to c/f.pt"
    assert isinstance(load_agent("c/f.pt"), PPOAgent)
    evaluate.main(f"--env-id {ENV} --checkpoint c/f.pt --num-episodes 2".split())
    main(f"collect --env-id {ENV} --checkpoint c/f.pt --num-episodes 2 --save-path more.npz".split())
    rows = read_rows("c/f/metrics.jsonl")
    assert [row["step"] for row in rows] == [128 * k for k in range(1, 7)]
    assert {"eval_reward", "margin_over_clone", "best_reward", "caution", "actor_moves", "actor_lr"} <= set(rows[1])


def played_badly(monkeypatch):
    """Let the final judgement find that the best policy, which plays first, is far below the clone."""
    real = GuardedPPO.settle

    def settle(self, play):
        plays = iter([np.arange(9.0) - 500.0, np.arange(9.0)])
        return real(self, lambda: next(plays))

    monkeypatch.setattr(GuardedPPO, "settle", settle)
    return {f"actor.{name}": tensor for name, tensor in load_agent("student.pt").policy.state_dict().items()}


@pytest.mark.usefixtures("saved")
def test_a_result_that_is_clearly_below_the_clone_is_not_what_is_saved(monkeypatch, capsys):
    flags = "--actor-lr 0.01 --actor-rampup 0 --warmup-rollouts 0 --no-gate --eval-interval 128"
    with monkeypatch.context() as patched:
        clone = played_badly(patched)
        real = GuardedPPO.judge
        patched.setattr(GuardedPPO, "judge", lambda self, returns: real(self, returns + self.agent.env_steps))
        main(f"{RUN} {flags}".split())
    for path in ("c/f.pt", "c/f/best.pt"):
        saved = read_checkpoint(path)
        assert all(torch.equal(tensor, saved["parameters"][name]) for name, tensor in clone.items())
    learner = saved["finetune"]["learner"]
    assert not all(torch.equal(tensor, learner[name]) for name, tensor in clone.items())
    capsys.readouterr()
    main(["finetune", "--resume", "--save-path", "c/f.pt"])
    assert "the run is finished" in capsys.readouterr().err
    assert read_checkpoint("c/f.pt")["finetune"]["settled"]


@pytest.mark.usefixtures("saved")
def test_a_run_that_is_interrupted_while_it_is_judged_last_is_judged_again(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(GuardedPPO, "settle", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            main(RUN.split())
    assert not read_checkpoint("c/f.pt")["finetune"]["settled"]
    assert [run.state for run in find_runs(Path("c"))] == ["interrupted"]
    with monkeypatch.context() as patched:
        clone = played_badly(patched)
        main(["finetune", "--resume", "--save-path", "c/f.pt"])
    assert "it is above the clone by" in capsys.readouterr().out
    assert [run.state for run in find_runs(Path("c"))] == ["finished"]
    saved = read_checkpoint("c/f.pt")
    assert saved["finetune"]["settled"]
    assert all(torch.equal(tensor, saved["parameters"][name]) for name, tensor in clone.items())


@pytest.mark.usefixtures("saved")
def test_other_demonstrations_under_the_same_name_are_refused(clone, capsys):
    main(RUN.split())
    replace(clone[1], actions=-clone[1].actions).save("demos.npz")
    with pytest.raises(SystemExit) as leaving:
        main(["finetune", "--resume", "--save-path", "c/f.pt", "--total-timesteps", "1024"])
    assert leaving.value.code == 2
    assert "demos.npz holds other demonstrations than those that c/f.pt was trained on" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_a_run_that_was_interrupted_ends_where_one_straight_through_ends(nth, monkeypatch):
    main(RUN.split())
    whole, rows = read_checkpoint("c/f.pt"), read_rows("c/f/metrics.jsonl")
    real, calls = PPOAgent.update, []

    def struck(self, *given):
        calls.append(1)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return real(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(PPOAgent, "update", struck)
        with pytest.raises(SystemExit):
            main(RUN.replace("c/f.pt", "d/f.pt").split())
    main(["finetune", "--resume", "--save-path", "d/f.pt"])
    ended = read_checkpoint("d/f.pt")
    for part in ("parameters", "finetune", "training"):
        assert repr(whole[part]) == repr(ended[part])
        flat = [torch.equal(one, ended["parameters"][name]) for name, one in whole["parameters"].items()]
        assert all(flat)
    assert all(torch.equal(one, ended["finetune"]["learner"][name]) for name, one in whole["finetune"]["learner"].items())
    again = read_rows("d/f/metrics.jsonl")
    assert [row | dict.fromkeys(TIME_FIELDS, 0) for row in again] == [row | dict.fromkeys(TIME_FIELDS, 0) for row in rows]


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("finetune --checkpoint nowhere.pt", "nowhere.pt"),
        ("finetune --checkpoint student.pt --env-id CartPole-v1", "do not fit"),
        ("finetune --checkpoint student.pt --save-path student.pt", "is a file that is read"),
        ("finetune --checkpoint student/best.pt --save-path student.pt", "would be replaced by the run's own best.pt"),
        ("finetune --checkpoint student.pt --demo-path f/demos.npz --save-path f.pt", "replaced by the run's own demos.npz"),
        ("finetune --checkpoint student.pt --action-std 1.9", "--action-std"),
        ("finetune --checkpoint student.pt --demo-path nowhere.npz", "nowhere.npz"),
        ("finetune --resume student.pt", "no checkpoint of finetune"),
        ("finetune --resume --save-path c/none.pt", "nothing to resume"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(arguments, says, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments.split())
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert sorted(path.name for path in Path().rglob("*.pt")) == ["student.pt"]


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("changed", ["--seed 1", "--num-envs 2", "--eval-episodes 4", "--action-std 0.9", "--no-fresh-critic"])
def test_what_a_run_is_may_not_change_when_it_is_resumed(changed, capsys):
    main(RUN.split())
    with pytest.raises(SystemExit) as leaving:
        main(f"finetune --resume --save-path c/f.pt --total-timesteps 896 {changed}".split())
    assert leaving.value.code == 2
    assert "leave the flag out" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
def test_another_environment_is_refused_by_its_name_when_a_run_with_demonstrations_is_resumed(capsys):
    main(RUN.split())
    with pytest.raises(SystemExit) as leaving:
        main(["finetune", "--resume", "--save-path", "c/f.pt", "--env-id", "CartPole-v1"])
    assert leaving.value.code == 2
    assert f"env_id {ENV}, not CartPole-v1; leave the flag out" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
def test_its_rows_hold_all_that_the_experts_training_tells():
    main(RUN.split())
    main(f"train-ppo --env-id {ENV} --total-timesteps 512 --n-steps 256 --save-path c/e.pt".split())
    tuned, trained = ({name for row in read_rows(f"c/{run}/metrics.jsonl") for name in row} for run in "fe")
    assert trained <= tuned
    assert {"fast_path", "episode_return", "episode_length"} <= trained


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("damage", [{}, {"anchor": 3}, {"learner": {}}, {"caution": "x"}, {"draws": {}}, {"updates": -1}])
def test_a_damaged_state_is_named(damage):
    main(RUN.split())
    payload = read_checkpoint("c/f.pt")
    state = {**payload["finetune"], **damage} if damage else 3
    with pytest.raises(Exception, match="no fine-tuning to go on with") as refused:
        GuardedPPO.from_payload({**payload, "finetune": state}, "x.pt", GuardConfig(), PPO)
    assert type(refused.value).__name__ == "FileFormatError"


def test_the_command_is_listed():
    assert command.main.__module__ == "il_based_rl.algorithms.finetune"


@pytest.mark.usefixtures("saved")
def test_the_deviation_may_get_narrower_bounds_when_a_run_is_resumed():
    main([*RUN.split(), "--action-std", "0.9"])
    main(["finetune", "--resume", "--save-path", "c/f.pt", "--total-timesteps", "896", "--max-action-std", "0.1"])
    assert read_rows("c/f/metrics.jsonl")[-1]["action_std"] <= 0.1 + 1e-6
    assert read_checkpoint("c/f.pt")["run"]["settings"]["guard"]["action_std"] == 0.1
    main(["finetune", "--resume", "--save-path", "c/f.pt", "--total-timesteps", "1024"])
    settings = read_checkpoint("c/f.pt")["run"]["settings"]["guard"]
    assert (settings["action_std"], settings["max_action_std"]) == (0.1, 0.1)


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda demos: {"actions": np.repeat(demos.actions, 2, 1)}, "actions of shape (2,), the policy reads (3,)"),
        (
            lambda demos: {"observations": demos.observations[:, :2], "final_observations": demos.final_observations[:, :2]},
            "observations of shape (2,)",
        ),
        (lambda demos: {"observations": np.float64(demos.observations) * 1e200}, "too large for float32"),
    ],
)
def test_demonstrations_that_do_not_fit_are_refused_before_anything_is_written(other, says, warmup, clone, capsys):
    unfit = replace(clone[1], **other(clone[1]), metadata={})
    unfit.save("unfit.npz")
    main(RUN.split())
    before = {path: path.read_bytes() for path in Path("c").rglob("*.*")}
    with pytest.raises(SystemExit) as leaving:
        main(f"{RUN} --demo-path unfit.npz --warmup-rollouts {warmup}".split())
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert {path: path.read_bytes() for path in Path("c").rglob("*.*")} == before
    with pytest.raises(SpaceMismatchError, match="the demonstrations"):
        finetune(clone[0], ENV, 256, demo_path="unfit.npz", eval_episodes=2, final_episodes=2, seed=0, quiet=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"total_timesteps": 1.5}, "--total-timesteps must be a whole number, not 1.5"),
        ({"total_timesteps": True}, "--total-timesteps must be a whole number, not True"),
        ({"total_timesteps": "100"}, "--total-timesteps must be a whole number, not '100'"),
        ({"eval_episodes": 2.5}, "--eval-episodes must be a whole number, not 2.5"),
        ({"seed": 1.5}, "--seed must be a whole number or None, not 1.5"),
        ({"quiet": "yes"}, "--quiet must be True or False, not 'yes'"),
        ({"guard": None}, "--guard must be a GuardConfig, not None"),
        ({"ppo": {"lr": 1.0}}, "--ppo must be a PPOConfig, not {'lr': 1.0}"),
        ({"device": "foo"}, "--device 'foo' is no device"),
    ],
)
def test_a_setting_of_another_type_is_named(settings, says, clone):
    with pytest.raises(ConfigError) as refused:
        finetune(clone[0], ENV, **{"total_timesteps": 256, **settings})
    assert says in str(refused.value)


@pytest.mark.usefixtures("saved")
def test_a_resumed_run_says_how_exactly_it_goes_on(monkeypatch, capsys):
    main([*RUN.split(), "--max-time", "0.000001"])
    main(["finetune", "--resume", "--save-path", "c/f.pt", "--max-time", "100"])
    (resumed,) = read_checkpoint("c/f.pt")["run"]["resumes"]
    assert resumed["level"] == "exact"
    assert f"resuming c/f.pt at step {resumed['step']}: exactly as if it had run straight through\n" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("schedule", ["linear", "constant"])  # the end was judged, which one straight through would not have
def test_settings_that_it_goes_on_otherwise_by_are_named(schedule, capsys):
    main([*RUN.split(), "--lr-schedule", schedule])
    others = ["--total-timesteps", "1024", "--eval-interval", "128", "--final-episodes", "4"]
    main(["finetune", "--resume", "--save-path", "c/f.pt", *others])
    said = "from the state that it was in; other settings from here on: eval_interval 128, total_timesteps 1024\n"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
def test_a_standard_deviation_is_tried_out_where_none_is_given(capsys):
    main(RUN.split())
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("actions begin with a standard deviation")]
    found = read_checkpoint("c/f.pt")["run"]["settings"]["guard"]["action_std"]
    assert said == [f"actions begin with a standard deviation of {found} of half their range (--action-std sets another)"]
    assert 0.05 <= found <= 1.0
    main([*RUN.split(), "--action-std", "0.2"])
    assert "actions begin" not in capsys.readouterr().err


@pytest.mark.parametrize(("frail", "expected"), [(1.0, 1.0), (0.9, 0.7), (0.4, 0.35), (0.01, 0.2)])
def test_the_largest_deviation_that_leaves_most_of_the_advantage_is_taken(frail, expected, monkeypatch, clone):
    # Returns of 100 for the clone and 0 for random actions; under noise of more than `frail` less than 60 is left.
    class Players:
        action_space = gym.spaces.Box(-2.0, 2.0, (1,))

        def play(self, actor, seeds, **how):
            value = 0.0 if callable(actor) else 100.0 if actor is None else 61.0 if actor <= frail + 1e-6 else 59.0
            return [SimpleNamespace(total_reward=value)] * len(seeds)

    def acting(policy, random=None, log_std=None):
        return None if log_std is None else float(np.exp(log_std[0]))

    monkeypatch.setattr(guarded_ppo, "policy_actor", acting)
    assert guarded_ppo.fitting_std(clone[0].policy, Players(), [1, 2], GuardConfig(), 0) == expected


def test_a_deviation_is_tried_out_on_the_policy_that_ppo_samples(clone):
    # Outputs far beyond the bounds leave the actions at them under any noise; so they do while PPO explores.
    policy = copy.deepcopy(clone[0].policy)
    with torch.no_grad():
        policy.network.linear[-1].weight.zero_()
        policy.network.linear[-1].bias.fill_(50.0)
    played = []

    class Players:
        action_space = gym.spaces.Box(-2.0, 2.0, (1,))

        def play(self, actor, seeds, **how):
            situation = SimpleNamespace(row=np.zeros(3, np.float32))
            played.append(actor([situation] * 50))
            return [SimpleNamespace(total_reward=float(len(played) > 1))] * len(seeds)

    assert guarded_ppo.fitting_std(policy, Players(), [1, 2], GuardConfig(), 0) == 1.0
    assert all(np.array_equal(actions, np.full((50, 1), 2.0, np.float32)) for actions in played[1:])


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("flags", ["--checkpoint nowhere.pt", "--env-id CartPole-v1"])
def test_a_policy_that_cannot_be_improved_leaves_nothing_behind(flags, capsys):
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as leaving:
        main([*RUN.split(), *flags.split(), "--save-path", "elsewhere/f.pt"])
    assert leaving.value.code == 2
    assert flags.split()[1] in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("saved")
def test_files_are_looked_at_before_anything_is_played(capsys):
    for flags in ("--demo-path nowhere.npz", "--save-path student.pt/x.pt"):
        with pytest.raises(SystemExit):
            main([*RUN.split(), *flags.split()])
        assert "actions begin" not in capsys.readouterr().err


def test_a_student_of_other_spaces_is_refused_before_it_plays(clone):
    with pytest.raises(SpaceMismatchError, match="the policy and MountainCarContinuous-v0 do not fit"):
        finetune(clone[0], "MountainCarContinuous-v0", 1000)


def test_only_a_student_or_an_expert_of_this_package_is_improved():
    with pytest.raises(ConfigError, match="a function cannot be fine-tuned"):
        finetune(lambda obs: 1, "CartPole-v1", 500)


@pytest.mark.usefixtures("saved")
def test_a_run_of_fine_tuning_is_gone_on_with_by_fine_tuning(capsys):
    main(RUN.split())
    with pytest.raises(SystemExit) as leaving:
        main(["train-ppo", "--resume", "c/f.pt", "--save-path", "o/e.pt"])
    assert leaving.value.code == 2
    assert "c/f.pt is of a run of il-rl finetune; go on with it by il-rl finetune --resume" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"max_time": 1.0}, {"resume": "c/f.pt"}])
def test_the_functions_refuse_what_only_a_run_on_disk_can_do(setting):
    name = next(iter(setting))
    with pytest.raises(ConfigError, match=f"{name} is a setting of il-rl finetune"):
        finetune(PPOAgent.for_spaces(*[gym.spaces.Box(-1.0, 1.0, (2,))] * 2), "Pendulum-v1", 64, **setting)
    with pytest.raises(ConfigError, match=f"{name} is a setting of il-rl dagger"):
        dagger(lambda obs: [0.0], "Pendulum-v1", **setting)
