"""Planted bad students are told for what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.compare import compare_policies
from il_based_rl.comparison import difference_is_clear
from il_based_rl.config import BCConfig
from il_based_rl.failure_analysis import _Unit, analyse, reasons

ENV = "Pendulum-v1"


def swing_up(obs):
    """Pump energy into the pendulum until it is nearly upright, and hold it there."""
    cos, sin, speed = (float(x) for x in obs)
    if cos > 0.85:
        torque = -12.0 * np.arctan2(sin, cos) - 2.5 * speed
    else:
        lacking = 0.0 - (speed**2 / 6 + 5 * (cos - 1))
        torque = 2.0 * np.sign(speed if abs(speed) > 1e-3 else 1.0) * np.clip(lacking, -1, 1)
    return np.array([np.clip(torque, -2.0, 2.0)], np.float32)


def test_a_component_that_cannot_be_chosen_has_no_error():
    unit = _Unit(spaces.Box(np.float32([5.0, -1.0]), np.float32([5.0, 1.0])), np.float32([[5.0, -1.0], [5.0, 1.0]]))
    assert unit.total(unit.errors(np.float32([[5.0, 1.0]]), np.float32([[5.0, 0.0]]))) == pytest.approx(0.5**0.5)


def clone(demos, epochs=40):
    student = BCAgent.for_dataset(demos, BCConfig(epochs=epochs), hidden_dims=(64, 64), seed=0)
    for _ in student.learn(demos):
        pass
    return student


@pytest.fixture(scope="module")
def demos():
    return collect_demos(ENV, swing_up, 40, seed=0)


@pytest.fixture(scope="module")
def students(demos):
    order = np.random.default_rng(0).permutation(len(demos))
    shuffled = replace(demos, observations=demos.observations[order])
    return {
        "good": (clone(demos), demos),
        "one episode": (clone(demos.select([0]), 400), demos.select([0])),
        "shuffled": (clone(shuffled), demos),
        "untrained": (BCAgent.for_dataset(demos, BCConfig(), hidden_dims=(64, 64), seed=0), demos),
    }


def analysed(students, name):
    student, demos = students[name]
    comparison = compare_policies({"expert": swing_up, "student": student}, ENV, 40)
    expert, contender = comparison.contenders[:2]
    found = analyse(contender, expert, student.policy.codec.space, student.policy.action_space, demos)
    worse = difference_is_clear(comparison.numbers["pairs"], "expert", "student")
    return found, worse, reasons(found, falls_short=worse)


def test_the_expert_itself_errs_nowhere(demos):
    comparison = compare_policies({"expert": swing_up, "again": swing_up}, ENV, 5)
    expert, again = comparison.contenders[:2]
    env = collect_demos(ENV, swing_up, 2, seed=1)
    found = analyse(again, expert, *spaces_of(demos), env)
    assert found["error_on_expert_states"] == found["error_on_own_states"] == 0.0
    assert found["error_on_demonstrations"] == 0.0
    assert found["covariate_shift"] is None
    assert found["worst_starts"] == []
    assert reasons(found, falls_short=False)[0].startswith("The student is not clearly worse")


def spaces_of(demos):
    from il_based_rl.spaces import space_from_plain

    return (space_from_plain(demos.metadata[name]) for name in ("observation_space", "action_space"))


def test_a_student_of_one_episode_is_told_that_it_has_seen_too_little(students):
    found, worse, why = analysed(students, "one episode")
    assert worse
    assert "too few demonstrations" in why[0]
    assert found["error_on_expert_states"] > 2 * found["error_on_demonstrations"]
    assert found["distance"]["student"] > 0


@pytest.mark.parametrize("name", ["shuffled", "untrained"])
def test_a_student_of_nonsense_is_told_that_it_does_not_do_what_it_was_shown(name, students):
    found, worse, why = analysed(students, name)
    assert worse
    assert "does not even do what it was shown" in why[0]
    assert found["error_on_demonstrations"] > 0.5


def test_a_good_student_errs_less_than_the_bad_ones(students):
    errors = {name: analysed(students, name)[0]["error_on_expert_states"] for name in students}
    assert errors["good"] < min(errors["one episode"], errors["shuffled"], errors["untrained"])


def test_worst_starts_are_those_of_the_largest_loss(students):
    student, demos = students["one episode"]
    comparison = compare_policies({"expert": swing_up, "student": student}, ENV, 30)
    expert, contender = comparison.contenders[:2]
    found = analyse(contender, expert, *spaces_of(demos))
    lost = expert.values - contender.values
    assert [each["seed"] for each in found["worst_starts"]] == [
        comparison.numbers["start_seeds"][i] for i in np.argsort(-lost)[:5]
    ]
    assert found["error_on_demonstrations"] is found["distance"] is None


def test_errors_of_discrete_actions_are_shares_of_disagreement():
    def balance(obs):
        return int(obs[2] + 0.5 * obs[3] > 0)

    comparison = compare_policies({"expert": balance, "left": lambda obs: 0}, "CartPole-v1", 10)
    expert, left = comparison.contenders[:2]
    demos = collect_demos("CartPole-v1", balance, 2, seed=0)
    found = analyse(left, expert, *spaces_of(demos))
    states = np.concatenate([episode.rows for episode in expert.episodes[:8]])
    right = np.mean([balance(row) for row in states])
    assert found["error_on_expert_states"] == pytest.approx(right / min(right, 1 - right), rel=0.02)
    assert sum(part["error"] > 0 for part in found["error_over_time"]["expert"]) > 10
