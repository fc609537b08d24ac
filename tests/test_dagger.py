"""DAgger: who acts, who labels, what is kept and for how many questions; and that a resumed run is the same run."""

from __future__ import annotations

import enum
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers the environments

from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.algorithms import aggregation
from il_based_rl.algorithms import dagger as dagger_module
from il_based_rl.algorithms.aggregation import Aggregation
from il_based_rl.algorithms.dagger import dagger, run_dagger
from il_based_rl.checkpoint import load_agent
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, DaggerConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import ConfigError, EnvironmentFaultError, FileFormatError, FileWriteError, SpaceMismatchError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.experiment.run import TIME_FIELDS
from il_based_rl.files import read_checkpoint, read_rows, write_checkpoint
from il_based_rl.interop import disturbed, mixture
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.report.found import find_runs
from il_based_rl.rollout import EpisodePlayers

ENV = "Pendulum-v1"
TINY = {"eval_episodes": 2, "final_episodes": 2, "hidden_dims": (8,), "bc": BCConfig(epochs=2), "seed": 0}


def lazy(obs):
    """An expert of a kind: it brakes."""
    return np.float32([-obs[2] / 4])


def learned(expert=lazy, env_id=ENV, demos=None, **settings):
    """Go through all rounds; return the learner, and after each round a copy of its data set."""
    learner = Aggregation(DaggerConfig(env_id=env_id, **{**TINY, **settings}), expert, demos)
    seen = [(progress, learner.dataset) for progress in learner.learn()]
    learner.close()
    return learner, seen


# ---- who acts, and who labels ----


def situations(count):
    return list(range(count))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_in_a_mixture_the_expert_acts_in_its_share_of_the_steps_and_labels_all(share, expected):
    expert, student = (lambda count, x=x: np.full((len(count), 2), x, np.float32) for x in (1.0, -1.0))
    choice = mixture(expert, student, share, 7, np.random.default_rng(0))(situations(5000))
    assert (choice.labels == 1.0).all()
    by_expert = choice.acted_by == 0
    assert set(choice.acted_by) <= {0, 7}
    assert by_expert.mean() == pytest.approx(expected, abs=0.03)
    assert (choice.executed[by_expert] == 1.0).all()
    assert (choice.executed[~by_expert] == -1.0).all()


def test_the_first_round_is_the_experts_and_later_ones_the_students():
    _, seen = learned(rounds=3, round_steps=250)
    dataset = seen[-1][1]
    assert [progress.metrics["expert_acted"] for progress, _ in seen] == [1.0, 0.0, 0.0]
    assert dataset.metadata["policies"] == ["expert", "student of round 1", "student of round 2"]
    assert dataset.metadata["labelled_by"] == "expert"
    assert dataset.acted_by.tolist() == [0] * 250 + [1] * 250 + [2] * 250
    labels = np.stack([lazy(obs) for obs in dataset.observations])
    np.testing.assert_allclose(dataset.actions, labels, rtol=1e-6)
    np.testing.assert_array_equal(dataset.executed_actions[:250], dataset.actions[:250])
    assert not np.array_equal(dataset.executed_actions[250:], dataset.actions[250:])


def test_students_see_the_states_that_their_own_actions_lead_to():
    _, seen = learned(rounds=2, round_steps=200)
    dataset = seen[-1][1].episodes[1]
    with EpisodePlayers(ENV, 1) as players:
        actions = iter(dataset.executed_actions)
        (played,) = players.play(lambda _: next(actions)[None], dataset.seeds.tolist())
    np.testing.assert_array_equal(played.rows, dataset.observations)


def test_the_experts_share_falls_from_round_to_round():
    _, seen = learned(rounds=4, round_steps=1000, expert_share=0.8, expert_decay=0.5)
    shares = [progress.metrics["expert_acted"] for progress, _ in seen]
    assert shares[0] == 1.0
    assert shares[1:] == pytest.approx([0.8, 0.4, 0.2], abs=0.05)


def test_every_round_starts_from_states_of_its_own():
    learner, seen = learned(rounds=3, round_steps=400)
    seeds = seen[-1][1].seeds.tolist()
    judged = set(learner._judging_seeds())
    assert len(set(seeds)) == len(seeds) == 6
    assert not judged & set(seeds)


# ---- questions and memory ----


@pytest.mark.parametrize(("budget", "expected"), [(None, [300, 600, 900]), (700, [300, 600, 700]), (600, [300, 600]), (1, [1])])
def test_no_more_questions_are_asked_than_allowed(budget, expected):
    asked = []

    def expert(obs):
        asked.append(obs)
        return lazy(obs)

    learner = Aggregation(DaggerConfig(env_id=ENV, rounds=3, round_steps=300, query_budget=budget, **TINY), expert)
    learner.evaluated = lambda agent, **_: evaluate_policy(lazy, ENV, start_seeds=[1, 2], quiet=True)  # which asks nothing here
    queries = [progress.queries for progress in learner.learn()]
    learner.close()
    assert queries == expected
    assert len(asked) == expected[-1] == len(learner.asked)
    assert learner.finished


def test_what_is_cut_counts_as_truncated_and_not_as_terminated():
    _, seen = learned(rounds=1, round_steps=250)
    dataset = seen[0][1]
    assert dataset.episode_lengths.tolist() == [200, 50]
    assert dataset.truncated.sum() == 2
    assert not dataset.terminated.any()


def test_memory_is_bounded_and_the_last_round_is_kept():
    learner, seen = learned(rounds=5, round_steps=400, memory=1000)
    assert [len(dataset) for _, dataset in seen] == [400, 800, 1000, 1000, 1000]
    assert len(learner.asked) == 2000
    for k, (_, dataset) in enumerate(seen[2:], 2):
        assert (dataset.acted_by[-400:] == k).all()
        assert len({*dataset.acted_by}) > 2  # older rounds, drawn at random, are there too


def test_a_memory_smaller_than_a_round_holds_that_round():
    _, seen = learned(rounds=2, round_steps=300, memory=100)
    assert [len(dataset) for _, dataset in seen] == [300, 300]
    assert (seen[1][1].acted_by == 1).all()


def test_it_stops_when_a_student_is_good_enough():
    learner = Aggregation(DaggerConfig(env_id=ENV, rounds=9, round_steps=100, stop_at=-1.0, **TINY), lazy)
    learner.ends = (-1500.0, -200.0)
    (progress,) = learner.learn()
    learner.close()
    share = (progress.metrics["eval_reward"] + 1500.0) / 1300.0
    assert progress.metrics["share_of_expert"] == pytest.approx(share)
    assert share >= -1.0


def test_the_best_student_is_the_one_of_the_highest_return_even_if_the_expert_is_none(capsys):
    # An expert that pushes the pendulum round is worse than random actions, so that a share of its advantage means nothing.
    def pushes(obs):
        return np.float32([2.0])

    learner = Aggregation(DaggerConfig(env_id=ENV, rounds=3, round_steps=200, stop_at=0.5, **TINY), pushes)
    learner.ends = (-100.0, -200.0)
    returns = [progress.metrics["eval_reward"] for progress in learner.learn()]
    learner.close()
    assert len(returns) == 3
    assert learner.share is None
    assert learner.best_mean == max(returns)
    assert learner.best["training"]["epochs"] == 2


def test_an_expert_that_is_not_above_a_random_policy_is_named(capsys):
    learner = Aggregation(DaggerConfig(env_id="MountainCar-v0", rounds=1, round_steps=50, **TINY), lambda obs: 1)
    (progress,) = learner.learn()
    learner.close()
    assert "share_of_expert" not in progress.metrics
    assert "the expert returns -200.00 here, a random policy -200.00: which share" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [199, 200])
def test_rounds_that_cut_episodes_are_named(steps, capsys):
    learner = Aggregation(DaggerConfig(env_id=ENV, rounds=2, round_steps=steps, **TINY), lazy)
    list(learner.learn())
    learner.close()
    says = "rounds of 199 steps cut the expert's episodes of up to 200: no label tells how those go on; with `il-rl d"
    assert capsys.readouterr().err.count(says) == (steps < 200)


@pytest.mark.parametrize(("above", "says"), [(1.0, "returns 9.50, the expert 10.00, a random policy 9.00"), (100.0, "keeps")])
def test_a_share_is_told_only_where_the_expert_is_clearly_above_a_random_policy(above, says):
    noise = np.random.default_rng(0).normal(0.0, 30.0, (3, 50))
    noise += 9.0 - noise.mean(axis=1, keepdims=True)
    student = BCAgent.for_dataset(collect_demos(ENV, lazy, 1, seed=0, quiet=True), hidden_dims=(8,), seed=0)
    returns = {type(None): noise[0], BCAgent: noise[1] + above / 2, PPOAgent: noise[2] + above}
    expert = PPOAgent.for_spaces(student.policy.observation_space, student.policy.action_space, hidden_dims=(8,), seed=0)
    learner = SimpleNamespace(best=student.payload(), expert=expert, seed=0)
    learner.evaluated = lambda agent, final: SimpleNamespace(returns=returns[type(agent)])
    assert says in dagger_module._told_in_the_end(learner)


def test_one_long_episode_is_cloned_whole_although_patience_holds_episodes_out():
    _, seen = learned(rounds=2, round_steps=100, bc=BCConfig(epochs=2, patience=1))
    assert len(seen) == 2


def test_a_loss_of_distributions_needs_an_expert_and_demonstrations_that_tell_them():
    settings = {"bc": BCConfig(epochs=1, loss="kl")}
    with pytest.raises(SpaceMismatchError, match="this expert does not tell it"):
        learned(**settings)
    with EpisodePlayers(ENV, 1) as players:
        tells = PPOAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=0)
        silent = BCAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=0)
    with pytest.raises(SpaceMismatchError, match="this expert does not tell it"):
        learned(silent, **settings)
    with pytest.raises(SpaceMismatchError, match="the demonstrations do not hold it"):
        learned(tells, demos=collect_demos(ENV, lazy, 1, quiet=True), **settings)


# ---- students ----


def test_a_warm_start_goes_on_from_the_last_student_and_a_cold_one_does_not(monkeypatch):
    begun = []
    real = BCAgent.learn

    def noted(self, dataset):
        begun.append(self.policy.network.layers[0].weight.detach().clone())
        yield from real(self, dataset)
        begun.append(self.policy.network.layers[0].weight.detach().clone())

    monkeypatch.setattr(BCAgent, "learn", noted)
    for warm_start in (True, False):
        begun.clear()
        learned(rounds=2, round_steps=100, warm_start=warm_start)
        assert torch.equal(begun[1], begun[2]) == warm_start


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_goes_on_from_the_scatter_that_was_learned_too(warm, monkeypatch):
    began = []
    learn = BCAgent.learn
    monkeypatch.setattr(BCAgent, "learn", lambda self, dataset: began.append(float(self.log_std[0])) or learn(self, dataset))
    learner, _ = learned(rounds=2, round_steps=250, warm_start=warm, bc=BCConfig(epochs=5, loss="nll"))
    assert began[0] == 0.0
    assert (began[1] != 0.0) is warm
    assert float(learner.agent.log_std[0]) != 0.0


def test_the_best_student_is_what_is_returned(monkeypatch):
    means = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(Aggregation, "_judged", lambda self: next(means))
    after_two = learned(rounds=2, round_steps=100)[0].agent.policy.state_dict()
    means = iter([1.0, 3.0, 2.0])
    student, dataset = dagger(lazy, ENV, rounds=3, round_steps=100, **TINY)
    assert all(torch.equal(one, after_two[name]) for name, one in student.policy.state_dict().items())
    assert len(dataset) == 300


def test_demonstrations_can_be_the_first_round():
    demos = collect_demos(ENV, lazy, 2, seed=3, quiet=True)
    _, seen = learned(rounds=2, round_steps=100, demos=demos)
    first, second = (dataset for _, dataset in seen)
    np.testing.assert_array_equal(first.observations, demos.observations)
    assert [len(first), len(second)] == [400, 500]
    assert second.acted_by.tolist() == [0] * 400 + [1] * 100


def test_its_own_data_set_can_be_the_first_round_again():
    _, seen = learned(rounds=3, round_steps=100)
    _, again = learned(rounds=2, round_steps=100, demos=seen[-1][1])
    assert again[-1][1].acted_by.tolist() == [0] * 100 + [1] * 100 + [2] * 100 + [3] * 100
    policies = ["expert", "student of round 1 of the demonstrations", "student of round 2 of the demonstrations"]
    assert again[-1][1].metadata["policies"] == [*policies, "student of round 1"]
    assert [round(progress.metrics["expert_acted"], 6) for progress, _ in again] == [pytest.approx(1 / 3, abs=1e-6), 0.0]


def test_discrete_actions_and_experts_that_tell_their_distribution():
    with EpisodePlayers("CartPole-v1", 1) as players:
        expert = PPOAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=0)
    learner, seen = learned(expert, "CartPole-v1", rounds=2, round_steps=50, bc=BCConfig(epochs=2, loss="kl"))
    dataset = seen[-1][1]
    assert dataset.distributions.shape == (100, 2)
    np.testing.assert_array_equal(dataset.distributions.argmax(-1), dataset.actions)
    assert learner.round == 2


def test_an_expert_of_another_environment_is_refused():
    with EpisodePlayers("CartPole-v1", 1) as players:
        expert = PPOAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=0)
    with pytest.raises(SpaceMismatchError, match="do not fit"):
        dagger(expert, ENV, **TINY)


def test_demonstrations_of_another_environment_are_refused():
    with pytest.raises(SpaceMismatchError, match=f"the demonstrations are of CartPole-v1, not of {ENV}"):
        learned(demos=collect_demos("CartPole-v1", lambda obs: 0, 1, quiet=True))


def test_demonstrations_that_use_up_all_questions_are_refused():
    with pytest.raises(ConfigError, match="--query-budget 200 leaves no question beyond the 200 demonstrations"):
        learned(demos=collect_demos(ENV, lazy, 1, quiet=True), query_budget=200)


def test_an_expert_that_fails_is_named():
    def fails(obs):
        raise RuntimeError("asleep")

    with pytest.raises(EnvironmentFaultError, match=r"the agent failed in environment 0.*asleep"):
        learned(fails)


# ---- noise in collection ----


def test_noise_disturbs_what_is_executed_and_not_what_is_to_be_imitated():
    demos = collect_demos(ENV, lazy, 5, seed=0, action_noise=0.25, quiet=True)
    np.testing.assert_allclose(demos.actions, np.stack([lazy(obs) for obs in demos.observations]), rtol=1e-6)
    inside = np.abs(demos.executed_actions) < 2.0
    disturbance = (demos.executed_actions - demos.actions)[inside]
    assert disturbance.std() == pytest.approx(0.5, rel=0.1)  # a quarter of half the range of -2 to 2
    assert demos.metadata["action_noise"] == 0.25
    with EpisodePlayers(ENV, 1) as players:
        actions = iter(demos.executed_actions)
        (played,) = players.play(lambda _: next(actions)[None], demos.seeds[:1].tolist())
    np.testing.assert_array_equal(played.rows, demos.observations[:200])


@pytest.mark.parametrize(
    ("env_id", "action"), [("toy/Gears-v0", 6), ("toy/Levers-v0", np.array([1, 2])), ("toy/Bits-v0", np.array([1, 0, 1, 1]))]
)
def test_noise_replaces_discrete_actions_with_its_probability(env_id, action):
    demos = collect_demos(env_id, lambda obs: action, 300, seed=0, action_noise=0.5, quiet=True)
    assert (demos.actions == action).all()
    space = demos.executed_actions
    changed = (space != demos.actions).reshape(len(demos), -1).any(-1)
    choices = {"toy/Gears-v0": 3, "toy/Levers-v0": 6, "toy/Bits-v0": 16}[env_id]
    assert changed.mean() == pytest.approx(0.5 * (1 - 1 / choices), abs=0.06)


def test_without_noise_nothing_is_stored_twice():
    assert collect_demos(ENV, lazy, 1, quiet=True).executed_actions is None


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_is_a_number(noise):
    with pytest.raises(ConfigError, match="--action-noise must be 0 or more"):
        collect_demos(ENV, lazy, 1, action_noise=noise)


def test_noise_on_discrete_actions_is_a_probability():
    with pytest.raises(ConfigError, match="a probability for discrete actions, at most 1, got 20"):
        collect_demos("CartPole-v1", lambda obs: 0, 1, action_noise=20.0, quiet=True)


def test_demonstrations_may_name_their_environment_with_its_module_or_without(aggregated):
    with EpisodePlayers(ENV, 1) as players:
        spaces = (players.observation_space, players.action_space)
    aggregated.require_env(f"some.module:{ENV}", *spaces)
    replace(aggregated, metadata={**aggregated.metadata, "env_id": f"some.module:{ENV}"}).require_env(ENV, *spaces)
    with pytest.raises(SpaceMismatchError, match=r"are of Pendulum-v1, not of some\.module:Other-v0"):
        aggregated.require_env("some.module:Other-v0", *spaces)


def test_noise_asks_for_as_many_actions_as_there_are_situations():
    with EpisodePlayers(ENV, 1) as players:
        actor = disturbed(
            lambda some: np.zeros((len(some), 1), np.float32), players.action_space, 0.1, np.random.default_rng(0)
        )
    assert actor(situations(3)).executed.shape == (3, 1)


# ---- data sets ----


@pytest.fixture(scope="module")
def aggregated():
    return learned(rounds=2, round_steps=250)[1][-1][1]


def test_further_arrays_are_saved_selected_and_part_of_the_fingerprint(aggregated, tmp_path):
    aggregated.save(tmp_path / "a.npz")
    again = DemoDataset.load(tmp_path / "a.npz")
    assert again.fingerprint == aggregated.fingerprint
    for name in ("executed_actions", "acted_by"):
        np.testing.assert_array_equal(getattr(again, name), getattr(aggregated, name))
        np.testing.assert_array_equal(getattr(again.episodes[2], name), getattr(aggregated, name)[250:450])
        assert replace(aggregated, **{name: None}).fingerprint != aggregated.fingerprint
    assert again.distributions is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: {"acted_by": d.acted_by[:-1]}, "499 acted_by for 500 observations"),
        (lambda d: {"acted_by": d.acted_by + 1}, "others than the 2 policies"),
        (lambda d: {"executed_actions": d.executed_actions[:, :0]}, "another shape than the labels"),
        (lambda d: {"distributions": np.full((500, 2), np.nan)}, "not finite in distributions of episode 0, step 0"),
    ],
)
def test_further_arrays_that_contradict_the_others_are_refused(aggregated, damage, says):
    with pytest.raises(ValueError, match=says):
        replace(aggregated, **damage(aggregated))


# ---- the command ----


@pytest.fixture
def expert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with EpisodePlayers(ENV, 1) as players:
        PPOAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=0).save("expert.pt")


SMALL = "--rounds 4 --round-steps 100 --eval-episodes 2 --final-episodes 3 --epochs 2 --hidden-dims 8 --seed 0"
RUN = f"dagger --env-id {ENV} --expert expert.pt {SMALL} --save-path c/s.pt"


@pytest.mark.usefixtures("expert")
def test_the_command_writes_a_student_and_demonstrations_that_every_other_command_takes(capsys):
    main(RUN.split())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"DAgger on {ENV}: expert.pt is asked in 4 rounds of 100 steps..."
    assert [line[:19] for line in printed[1:5]] == [f"[{100 * k:>8}] round {k}:" for k in range(1, 5)]
    assert printed[-3].startswith("From 3 start states never seen before, the best student ")
    assert printed[-2:] == ["Demonstrations saved to c/s/demos.npz", "Student saved to c/s.pt"]
    assert isinstance(load_agent("c/s.pt"), BCAgent)
    assert len(DemoDataset.load("c/s/demos.npz")) == 400
    main(f"evaluate --env-id {ENV} --checkpoint c/s.pt --num-episodes 2".split())
    main(
        [
            "train",
            "--demo-path",
            "c/s/demos.npz",
            "--epochs",
            "1",
            "--loss",
            "kl",
            "--hidden-dims",
            "8",
            "--save-path",
            "again.pt",
        ]
    )
    main(f"finetune --env-id {ENV} --checkpoint c/s.pt --total-timesteps 1 --n-steps 64 --save-path f.pt".split())
    assert [row["step"] for row in read_rows("c/s/metrics.jsonl")] == [100, 200, 300, 400]
    main(["runs", "c"])
    assert "dagger  400" in capsys.readouterr().out


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize("place", ["_played", "_cloned", "_judged"])
@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize(
    "flags", ["", "--memory 150 --query-budget 350 --expert-share 0.5", "--no-warm-start --loss nll", "--loss nll"]
)
def test_a_run_that_was_interrupted_ends_where_one_straight_through_ends(place, nth, flags, monkeypatch):
    main([*RUN.split(), *flags.split()])
    whole, rows = read_checkpoint("c/s.pt"), read_rows("c/s/metrics.jsonl")
    real, calls = getattr(Aggregation, place), []

    def struck(self, *given):
        calls.append(1)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return real(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Aggregation, place, struck)
        with pytest.raises(SystemExit) as leaving:
            main([*RUN.replace("c/s.pt", "d/s.pt").split(), *flags.split()])
    assert leaving.value.code == 130
    main(["dagger", "--resume", "--save-path", "d/s.pt"])
    ended = read_checkpoint("d/s.pt")
    for part in ("parameters", "log_std", "training", "dagger"):
        assert repr(whole[part]) == repr(ended[part])
    for mine, theirs in [(whole["parameters"], ended["parameters"]), (whole["dagger"]["learner"], ended["dagger"]["learner"])]:
        assert all(torch.equal(one, theirs[name]) for name, one in mine.items())
    again = read_rows("d/s/metrics.jsonl")
    assert [row | dict.fromkeys(TIME_FIELDS, 0) for row in again] == [row | dict.fromkeys(TIME_FIELDS, 0) for row in rows]
    assert DemoDataset.load("c/s/demos.npz").fingerprint == DemoDataset.load("d/s/demos.npz").fingerprint


@pytest.mark.usefixtures("expert")
def test_a_run_that_begins_with_what_another_asked_goes_on_identically(monkeypatch):
    main(RUN.split())
    begun = f"{RUN} --demo-path c/s/demos.npz --rounds 3"
    main(begun.replace("c/s.pt", "d/s.pt").split())
    main(begun.replace("c/s.pt", "e/s.pt").replace("--rounds 3", "--rounds 2").split())
    main(["dagger", "--resume", "--save-path", "e/s.pt", "--rounds", "3"])
    whole, resumed = DemoDataset.load("d/s/demos.npz"), DemoDataset.load("e/s/demos.npz")
    assert whole.fingerprint == resumed.fingerprint
    assert whole.metadata["policies"] == resumed.metadata["policies"]
    assert len(whole.metadata["policies"]) == 1 + 3 + 2
    main(["dagger", "--resume", "d/s/step_0000000500.pt", "--save-path", "g/s.pt"])
    assert DemoDataset.load("g/s/demos.npz").metadata["policies"] == whole.metadata["policies"]


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize("place", ["evaluated", "payload"])
def test_a_run_that_is_interrupted_while_it_is_compared_in_the_end_is_compared_when_resumed(place, monkeypatch, capsys):
    main(RUN.split())
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("From 3 start states")]
    real = getattr(Aggregation, place)

    def struck(self, *given, **named):
        if self.finished and (named.get("final") or self.compared):
            raise KeyboardInterrupt
        return real(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Aggregation, place, struck)
        with pytest.raises(SystemExit):
            main(RUN.replace("c/s.pt", "d/s.pt").split())
    assert not read_checkpoint("d/s.pt")["dagger"]["compared"]
    assert [run.state for run in find_runs(Path("d"))] == ["interrupted"]
    capsys.readouterr()
    main(["dagger", "--resume", "--save-path", "d/s.pt"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("From")] == told
    assert read_checkpoint("d/s.pt")["dagger"]["compared"]
    assert [run.state for run in find_runs(Path("d"))] == ["finished"]
    main(["dagger", "--resume", "--save-path", "d/s.pt"])
    assert "From" not in capsys.readouterr().out


@pytest.mark.usefixtures("expert")
def test_settings_that_it_goes_on_otherwise_by_are_named(capsys):
    main(RUN.split())
    others = ["--rounds", "5", "--round-steps", "50", "--no-warm-start", "--final-episodes", "4"]
    main(["dagger", "--resume", "--save-path", "c/s.pt", *others])
    said = "from the state that it was in; other settings from here on: round_steps 50, warm_start False\n"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("expert")
def test_a_damaged_data_set_is_named_when_a_run_is_resumed(capsys):
    main(RUN.split())
    asked = Path("c/s/demos.npz")
    asked.write_bytes(asked.read_bytes()[:500])
    with pytest.raises(SystemExit) as leaving:
        main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "5"])
    assert leaving.value.code == 2
    assert "(c/s/demos.npz is damaged or is not a file of demonstrations" in capsys.readouterr().err


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize(
    ("other", "flags", "says"),
    [
        (lambda demos: {"actions": np.repeat(demos.actions, 2, 1)}, "", "actions of shape (2,), the policy reads (3,)"),
        (lambda demos: {}, "--rounds 1", "--rounds 1 is the round of the demonstrations, and leaves none"),
    ],
)
def test_demonstrations_that_cannot_begin_a_run_are_refused_before_anything_is_written(other, flags, says, capsys):
    main(RUN.split())
    demos = collect_demos(ENV, lazy, 2, seed=0, quiet=True)
    replace(demos, **other(demos), metadata={}).save("unfit.npz")
    before = {path: path.read_bytes() for path in Path("c").rglob("*.*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(f"{RUN} --demo-path unfit.npz {flags}".split())
    assert leaving.value.code == 2
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("c").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rounds": 2.5}, "--rounds must be a whole number, not 2.5"),
        ({"rounds": "2"}, "--rounds must be a whole number, not '2'"),
        ({"query_budget": 60.5}, "--query-budget must be a whole number or None, not 60.5"),
        ({"hidden_dims": (8.0,)}, "--hidden-dims must be a list, each of it a whole number, not (8.0,)"),
        ({"bc": {"epochs": 2}}, "--bc must be a BCConfig, not {'epochs': 2}"),
        ({"device": "cuda:99"}, "--device cuda:99 is not here"),
    ],
)
def test_a_setting_of_another_type_is_named(settings, says):
    with pytest.raises(ConfigError) as refused:
        dagger(lazy, ENV, **{**TINY, **settings})
    assert says in str(refused.value)


def test_lists_paths_and_numpys_numbers_are_taken():
    given = {"hidden_dims": [np.int64(8)], "rounds": np.int32(2), "stop_at": np.float32(2.0), "save_path": Path("c/s.pt")}
    given |= {"device": torch.device("cpu"), "quiet": np.bool_(True)}
    config = DaggerConfig(ENV, **given)
    assert (config.hidden_dims, config.rounds, config.stop_at, config.save_path) == ((8,), 2, 2.0, "c/s.pt")
    assert (config.device, config.quiet) == ("cpu", True)
    assert type(config.hidden_dims[0]) is int
    assert DaggerConfig(ENV, hidden_dims=np.array([8, 4])).hidden_dims == (8, 4)


@pytest.mark.usefixtures("expert")
def test_texts_of_an_enumeration_are_stored_as_texts():
    class Chosen(enum.StrEnum):
        LOSS, ENV = "nll", ENV

    bc = BCConfig(epochs=2, loss=Chosen.LOSS)
    run_dagger(DaggerConfig(Chosen.ENV, "expert.pt", save_path="c/s.pt", rounds=2, round_steps=50, **{**TINY, "bc": bc}))
    settings = read_checkpoint("c/s.pt")["run"]["settings"]
    assert (settings["env_id"], settings["bc"]["loss"]) == (ENV, "nll")


@pytest.mark.usefixtures("expert")
def test_a_kill_between_the_data_set_and_its_checkpoint_loses_nothing(monkeypatch):
    main(RUN.split())
    from il_based_rl.experiment.run import Run

    real, calls = Run.checkpoint, []

    def struck(self):
        calls.append(1)
        if len(calls) == 2:
            self._kept = replace(self._kept, payload=self._saved)  # as if nothing were left to save
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "checkpoint", struck)
        with pytest.raises(SystemExit):
            main(RUN.replace("c/s.pt", "d/s.pt").split())
    assert len(DemoDataset.load("d/s/demos.npz")) == 200
    assert read_checkpoint("d/s.pt")["dagger"]["round"] == 1
    main(["dagger", "--resume", "--save-path", "d/s.pt"])
    assert repr(read_checkpoint("c/s.pt")["dagger"]) == repr(read_checkpoint("d/s.pt")["dagger"])


@pytest.mark.usefixtures("expert")
def test_going_on_from_another_run_keeps_what_this_one_asked():
    main(RUN.split())
    asked = DemoDataset.load("c/s/demos.npz").fingerprint
    main(f"{RUN.replace('c/s.pt', 'd/s.pt')} --seed 1".split())
    other = DemoDataset.load("d/s/demos.npz").fingerprint
    main(["dagger", "--resume", "d/s.pt", "--save-path", "c/s.pt", "--rounds", "5"])
    assert DemoDataset.load("c/s/demos.npz.bak").fingerprint == asked
    assert DemoDataset.load("d/s/demos.npz").fingerprint == other
    main(["dagger", "--resume", "c/s.pt.bak", "--save-path", "e/s.pt"])


@pytest.mark.usefixtures("expert")
def test_a_finished_run_says_so_and_a_fresh_one_keeps_the_old(capsys):
    main(RUN.split())
    main(["dagger", "--resume", "--save-path", "c/s.pt"])
    assert "the run is finished: it has 4 rounds and 400 questions" in capsys.readouterr().err
    main(RUN.split())
    assert "what was asked before in c/s/demos.npz is kept as c/s/demos.npz.bak" in capsys.readouterr().err
    assert {"demos.npz.bak", "best.pt.bak"} <= {path.name for path in Path("c/s").glob("*.bak")}
    main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "6"])
    assert read_checkpoint("c/s.pt")["dagger"]["round"] == 6
    assert len(DemoDataset.load("c/s/demos.npz")) == 600


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize("memory", ["", "--memory 150"])
@pytest.mark.parametrize("begun", ["c/s/best.pt", "c/s/step_0000000200.pt"])
def test_any_checkpoint_can_be_gone_on_from_here_or_elsewhere(begun, memory):
    main([*RUN.split(), *memory.split()])
    whole = read_checkpoint("c/s.pt")
    main(["dagger", "--resume", begun, "--save-path", "n/s.pt"])
    elsewhere = read_checkpoint("n/s.pt")
    assert repr(elsewhere["dagger"]) == repr(whole["dagger"])
    main(["dagger", "--resume", "--save-path", "n/s.pt", "--rounds", "5"])
    assert read_checkpoint("n/s.pt")["dagger"]["round"] == 5
    main(["dagger", "--resume", begun, "--save-path", "c/s.pt"])
    assert repr(read_checkpoint("c/s.pt")["dagger"]) == repr(whole["dagger"])


@pytest.mark.usefixtures("expert")
def test_a_finished_run_goes_on_elsewhere_with_what_was_asked():
    main(RUN.split())
    main(["dagger", "--resume", "c/s.pt", "--save-path", "n/s.pt"])
    main(["dagger", "--resume", "--save-path", "n/s.pt", "--rounds", "5"])
    assert len(DemoDataset.load("n/s/demos.npz")) == 500


@pytest.mark.usefixtures("expert")
def test_another_expert_at_the_same_place_is_noticed(capsys):
    main(RUN.split())
    with EpisodePlayers(ENV, 1) as players:
        PPOAgent.for_spaces(players.observation_space, players.action_space, hidden_dims=(8,), seed=1).save("expert.pt")
    with pytest.raises(SystemExit) as leaving:
        main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "6"])
    assert leaving.value.code == 2
    assert "was begun with another expert" in capsys.readouterr().err


@pytest.mark.usefixtures("expert")
def test_demonstrations_are_not_needed_any_more_once_they_were_read():
    collect_demos(ENV, lazy, 1, quiet=True).save("d.npz")
    main([*RUN.split(), "--demo-path", "d.npz", "--rounds", "2"])
    Path("d.npz").unlink()
    main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "3"])
    assert len(DemoDataset.load("c/s/demos.npz")) == 200 + 2 * 100


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize(
    ("failing", "code", "rounds"),
    [
        ([2], 0, 4),
        ([2, 3], 0, 4),
        ([2, 3, 4], 1, 1),
        ([1, 2, 4], 0, 4),  # not in a row; what failed last is written before the end
        ([4], 0, 4),
        ([4, 5], 1, 3),  # not even then
    ],
    ids=str,
)
def test_a_full_disk_is_borne_for_two_rounds(failing, code, rounds, monkeypatch, capsys):
    real, calls = DemoDataset.save, []

    def full(self, path):
        calls.append(path)
        if len(calls) in failing:
            raise FileWriteError(f"{path} cannot be written: no space left on device")
        real(self, path)

    found = 0
    with monkeypatch.context() as patched:
        patched.setattr(DemoDataset, "save", full)
        try:
            main(RUN.split())
        except SystemExit as leaving:
            found = leaving.code
    assert found == code
    assert read_checkpoint("c/s.pt")["dagger"]["round"] == rounds
    assert "no space left" in capsys.readouterr().err
    assert len(DemoDataset.load("c/s/demos.npz")) == rounds * 100
    saved = read_checkpoint("c/s.pt")
    assert saved["run"]["best_eval_reward"] == saved["dagger"]["best_mean"]
    main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "5"])
    assert read_checkpoint("c/s.pt")["dagger"]["round"] == 5


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("dagger --expert nowhere.pt", "nowhere.pt"),
        ("dagger --expert expert.pt --env-id CartPole-v1", "do not fit"),
        ("dagger --expert expert.pt --env-id Pendulm-v1", "Pendulum-v1"),
        ("dagger --expert expert.pt --save-path expert.pt", "is a file that is read"),
        ("dagger --expert expert/best.pt --save-path expert.pt", "--expert expert/best.pt would be replaced by the run's own"),
        ("dagger --expert expert.pt --demo-path s/demos.npz --save-path s.pt", "would be replaced by the run's own demos.npz"),
        ("dagger --expert expert.pt --expert-share 1.5", "--expert-share must be between 0 and 1"),
        ("dagger --expert expert.pt --loss cross-entropy", "does not fit continuous actions"),
        ("dagger --expert expert.pt --demo-path nowhere.npz", "nowhere.npz"),
        ("dagger --resume expert.pt", "no checkpoint of dagger"),
        ("dagger --resume --save-path c/none.pt", "nothing to resume"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(arguments, says, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments.split())
    told = " ".join(capsys.readouterr().err.split())
    assert leaving.value.code == 2
    assert says in told
    assert "Traceback" not in told
    assert [path.name for path in Path().rglob("*") if path.is_file()] == ["expert.pt"]


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--seed 1", "leave the flag out"),
        ("--hidden-dims 9", "leave the flag out"),
        ("--expert other.pt", "leave the flag out"),
        ("--missing", "is in none of c/s/demos.npz"),
        ("--changed", "is in none of c/s/demos.npz"),
    ],
)
def test_a_resume_that_is_no_longer_the_same_run_is_refused(arguments, says, capsys):
    main(RUN.split())
    if arguments == "--missing":
        Path("c/s/demos.npz").unlink()
    if arguments == "--changed":
        collect_demos(ENV, lazy, 1, quiet=True).save("c/s/demos.npz")
    flags = [] if arguments in ("--missing", "--changed") else arguments.split()
    with pytest.raises(SystemExit) as leaving:
        main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "6", *flags])
    assert leaving.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"round": -1},
        {"round": True},
        {"round": 10**600},
        {"learner": {}},
        {"best_mean": None},
        {"ends": [1.0]},
        {"round": 9},
    ],
)
def test_a_damaged_state_is_named(damage, capsys):
    main(RUN.split())
    payload = read_checkpoint("c/s.pt")
    payload["dagger"] = {**payload["dagger"], **damage} if damage else 3
    write_checkpoint("c/s.pt", payload)
    for path in Path("c/s").glob("step_*.pt"):
        path.unlink()
    with pytest.raises(SystemExit) as leaving:
        main(["dagger", "--resume", "--save-path", "c/s.pt", "--rounds", "6"])
    assert leaving.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("expert")
def test_settings_that_ask_for_more_than_the_file_holds_are_refused_before_anything_is_made(capsys):
    main(RUN.split())
    payload = read_checkpoint("c/s.pt")
    payload["run"]["settings"]["hidden_dims"] = [65536, 65536]
    write_checkpoint("x.pt", payload)
    with pytest.raises(SystemExit) as leaving:
        main(["dagger", "--resume", "x.pt", "--save-path", "n/s.pt"])
    assert leaving.value.code == 2
    assert "hidden_dims [8], not [65536, 65536]" in capsys.readouterr().err


def test_a_state_of_another_kind_is_refused():
    learner = Aggregation(DaggerConfig(env_id=ENV, **TINY), lazy)
    payload = learner.payload()
    with pytest.raises(FileFormatError, match="holds no rounds to go on with"):
        learner.restore({**payload, "dagger": {**payload["dagger"], "learner": 3}}, "x.pt", None)
    learner.close()
    assert aggregation.EXPERT == "expert"
