"""Anybody's agent acts: ours, another library's, a plain function."""

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import Steady

from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.envs import make_players
from il_based_rl.errors import ConfigError, EnvironmentFaultError, SpaceMismatchError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.interop import actor_from
from il_based_rl.policy import MLPPolicy
from il_based_rl.ppo_agent import PPOAgent


def players_of(env_id, count=1, seed=1):
    players = make_players(env_id, count)
    for player in players:
        player.reset(seed + player.index)
    return players


def actor_of(agent, players, deterministic=True):
    env = players[0].env
    random = np.random.default_rng(0)
    return actor_from(agent, env.observation_space, env.action_space, deterministic=deterministic, random=random)


def answer(agent, env_id="toy/Counter-v0", **kwargs):
    players = players_of(env_id)
    return actor_of(agent, players, **kwargs)(players)[0]


@pytest.mark.parametrize(
    "agent",
    [
        Steady(np.array([0.25, -0.5])),
        Steady([0.25, -0.5]),
        Steady(torch.tensor([0.25, -0.5])),
        Steady(np.array([[0.25, -0.5]])),
        Steady((np.array([0.25, -0.5]), None)),
        Steady((np.array([0.25, -0.5]), {"hidden": 1})),
        Steady((0.25, -0.5)),
        Steady((np.float32(0.25), np.float32(-0.5))),
        lambda obs: np.array([0.25, -0.5]),
    ],
    ids=["array", "list", "tensor", "batch", "with no state", "with a state", "tuple", "tuple of numpy's", "plain callable"],
)
def test_every_kind_of_answer_is_one_action_of_the_space(agent):
    action = answer(agent)
    assert action.tolist() == [0.25, -0.5]
    assert gym.make("toy/Counter-v0").action_space.contains(action)


@pytest.mark.parametrize(
    ("env_id", "given", "expected"),
    [
        ("toy/Gears-v0", 6, 6),
        ("toy/Gears-v0", np.array([7]), 7),
        ("toy/Gears-v0", 5.0, 5),
        ("toy/Levers-v0", [1, 2], [1, 2]),
        ("toy/Bits-v0", [True, False, True, False], [1, 0, 1, 0]),
    ],
)
def test_discrete_actions_get_their_spaces_shape_and_number_type(env_id, given, expected):
    action = answer(Steady(given), env_id)
    assert action.tolist() == expected
    assert gym.make(env_id).action_space.contains(action)


def test_a_foreign_agent_gets_one_observation_at_a_time_as_the_environment_gave_it():
    seen = []
    players = players_of("toy/Dict-v0", 2)
    actor_of(lambda obs: seen.append(obs) or 0, players)(players)
    assert set(seen[0]) == {"gear", "position"}
    for obs, player in zip(seen, players, strict=True):
        assert obs["gear"] == player.obs["gear"]
        np.testing.assert_array_equal(obs["position"], player.obs["position"])


@pytest.mark.parametrize("env_id", ["toy/Counter-v0", "toy/Dict-v0"])
def test_a_foreign_agent_that_writes_into_its_observation_changes_no_demonstration(env_id):
    action = gym.make(env_id).action_space.sample()

    def scaling(obs):
        for part in obs.values() if isinstance(obs, dict) else [obs]:
            if isinstance(part, np.ndarray):
                part *= 0
        return action

    clean, scaled = (collect_demos(env_id, agent, 2, seed=0) for agent in (lambda obs: action, scaling))
    np.testing.assert_array_equal(clean.observations, scaled.observations)
    assert clean.observations.any()


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_is_passed_on_where_the_signature_has_it(deterministic):
    class Agent:
        def predict(self, obs, deterministic=None):
            self.asked = deterministic
            return np.zeros(2)

    agent = Agent()
    answer(agent, deterministic=deterministic)
    assert agent.asked is deterministic


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_wrapper_that_passes_all_keywords_on_gets_them(deterministic):
    told = {}

    def predict(obs, **keywords):
        told.update(keywords)
        return np.zeros(2)

    answer(predict, deterministic=deterministic)
    assert told == {"deterministic": deterministic}


def test_a_wrapper_of_what_knows_no_keywords_is_asked_without():
    module = torch.nn.Module()
    module.forward = lambda obs: np.array([0.25, -0.5])
    assert answer(module).tolist() == [0.25, -0.5]
    with pytest.raises(EnvironmentFaultError, match="no such joint"):
        answer(lambda obs, **keywords: raises(TypeError("no such joint")))


def raises(error):
    raise error


@pytest.mark.parametrize("state", [5, np.int64(5), None])
def test_a_number_may_be_a_state_where_an_action_is_one_number(state):
    assert answer(Steady((7, state)), "toy/Gears-v0") == 7


class Remembering:
    """Acts on how many observations it has had since its last reset, as a filter or a plan of several actions would."""

    def __init__(self):
        self.seen = 0

    def predict(self, obs):
        self.seen += 1
        return np.full(2, self.seen / 1000, np.float32)


class Resetting(Remembering):
    def reset(self):
        self.seen = 0


@pytest.mark.parametrize("kind", [Remembering, Resetting])
def test_an_agent_that_remembers_sees_one_episode_after_the_other(kind):
    one = collect_demos("toy/Counter-v0", kind(), 5, seed=0, quiet=True)
    for k, episode in enumerate(one.episodes):
        begins = 1 if kind is Resetting else 1 + sum(one.episode_lengths[:k])
        np.testing.assert_allclose(episode.actions[:, 0] * 1000, begins + np.arange(len(episode)), rtol=1e-5)
    agent = kind()
    played = [evaluate_policy(agent, "toy/Counter-v0", start_seeds=[each], quiet=True).mean for each in range(3)]
    assert evaluate_policy(kind(), "toy/Counter-v0", start_seeds=range(3), quiet=True).returns.tolist() == played


class NeedsSeed(Remembering):
    def reset(self, seed):
        raise AssertionError("it asks for what nobody knows")


class TakesAnything(Remembering):
    def reset(self, **options):
        raise AssertionError(f"it asks for {options['seed']}")


@pytest.mark.parametrize("agent", [NeedsSeed(), TakesAnything(), Resetting().predict])
def test_a_reset_that_may_need_arguments_or_is_not_handed_over_is_left_alone(agent):
    players = players_of("toy/Counter-v0")
    actor = actor_of(agent, players)
    assert [actor(players)[0][0] for _ in range(2)] == [pytest.approx(0.001), pytest.approx(0.002)]


class Recurrent:
    """The signature of Stable-Baselines3; its state counts the steps of an episode."""

    def __init__(self):
        self.asked = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.asked.append((observation[0].item(), state, bool(episode_start[0]), deterministic))
        return np.zeros(2), (0 if state is None else state) + 1


def test_the_state_of_a_recurrent_agent_belongs_to_its_player_and_ends_with_the_episode():
    agent = Recurrent()
    players = players_of("toy/Counter-v0", 2, seed=7)
    actor = actor_of(agent, players)

    def step(chosen):
        agent.asked.clear()
        for player, action in zip(chosen, actor(chosen), strict=True):
            player.step(action)
        return agent.asked.copy()

    assert step(players) == [(7, None, True, True), (8, None, True, True)]
    assert step(players[1:]) == [(8, 1, False, True)]
    assert step(players) == [(7, 1, False, True), (8, 2, False, True)]
    players[1].reset(9)
    assert step(players) == [(7, 2, False, True), (9, None, True, True)]


def test_a_state_is_handed_back_where_nothing_asks_for_the_start_of_episodes(capsys):
    asked = []

    def predict(obs, state=None):
        asked.append(state)
        return np.zeros(2), (0 if state is None else state) + 1

    players = players_of("toy/Counter-v0")
    actor = actor_of(predict, players)
    for _ in range(2):
        players[0].step(actor(players)[0])
    players[0].reset(1)
    actor(players)
    assert asked == [None, 1, None]
    assert capsys.readouterr().err == ""


def test_the_observation_may_be_called_state():
    asked = []
    answer(lambda state: asked.append(state) or np.zeros(2))
    assert asked[0].shape == (3,)


@pytest.mark.parametrize("predict", [lambda obs: (np.zeros(2), 5), lambda obs, **known: (np.zeros(2), 5)])
def test_a_state_that_cannot_be_handed_back_is_said_once(predict, capsys):
    players = players_of("toy/Counter-v0")
    actor = actor_of(predict, players)
    for _ in range(3):
        players[0].step(actor(players)[0])
    assert capsys.readouterr().err.count("takes no `state`") == 1


@pytest.mark.parametrize("agent", [object(), None, 3, "agent"])
def test_what_cannot_be_asked_is_refused_by_its_type(agent):
    with pytest.raises(TypeError, match=rf"predict\(obs\) or be callable, got {type(agent).__name__}"):
        answer(agent)


@pytest.mark.parametrize(
    ("env_id", "given", "executed"),
    [
        ("toy/Counter-v0", [7.0, -3.0], [1.0, -1.0]),
        ("toy/Counter-v0", [0.5, 1.0000001], [0.5, 1.0]),
        ("toy/Wide-v0", [-9.0, 1e6], [-2.0, 1e6]),
        ("toy/Wide-v0", [9.0, -1e6], [3.0, -1e6]),
    ],
)
def test_a_continuous_action_is_moved_to_finite_bounds(env_id, given, executed):
    action = answer(Steady(given), env_id)
    assert action.tolist() == executed
    assert action.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "given", "executed"),
    [(np.int64, [3.7, 0.9], [4, 1]), (np.uint8, [-2.0, 9.0], [0, 4]), (bool, [0.1, 0.9], [False, True])],
)
def test_an_action_of_a_whole_number_box_is_rounded_as_our_own_are(dtype, given, executed):
    players, space = players_of("toy/Counter-v0", 1), spaces.Box(0, 1 if dtype is bool else 4, (2,), dtype)
    random = np.random.default_rng(0)
    actor = actor_from(Steady(given), players[0].env.observation_space, space, deterministic=True, random=random)
    assert actor(players).tolist() == [executed]


@pytest.mark.parametrize(
    ("env_id", "given"),
    [
        ("toy/Counter-v0", [0.5]),
        ("toy/Counter-v0", [0.5, 0.5, 0.5]),
        ("toy/Counter-v0", [np.nan, 0.5]),
        ("toy/Counter-v0", [np.inf, 0.5]),
        ("toy/Counter-v0", None),
        ("toy/Counter-v0", "left"),
        ("toy/Counter-v0", [[0.5], [0.5, 0.5]]),
        ("toy/Gears-v0", 4),
        ("toy/Gears-v0", 8),
        ("toy/Gears-v0", 5.5),
        ("toy/Gears-v0", np.nan),
        ("toy/Gears-v0", [5, 6]),
        ("toy/Levers-v0", [1, 3]),
        ("toy/Levers-v0", [-1, 0]),
        ("toy/Bits-v0", [0, 1, 2, 0]),
        ("toy/Bits-v0", [0.5, 1, 1, 0]),
    ],
)
def test_an_action_that_is_none_of_the_space_is_an_error_that_names_the_place(env_id, given):
    players = players_of(env_id, 3)
    players[2].steps = 12
    with pytest.raises(EnvironmentFaultError, match=r"environment 2, step 12 .*does not fit") as fault:
        actor_of(Steady(given), players)(players[2:])
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(("given", "told"), [([1.0, 2.0], "expected 1 numbers, not 2"), (None, "expected finite numbers")])
def test_what_is_wrong_with_an_action_is_said(given, told):
    players = players_of("Pendulum-v1", 1)
    with pytest.raises(EnvironmentFaultError, match=told):
        actor_of(lambda obs: given, players)(players)


@pytest.mark.parametrize("call", [evaluate_policy, collect_demos])
def test_an_environment_is_named_and_not_given(call):
    given = {evaluate_policy: (always, "env"), collect_demos: ("env", always)}[call]
    with contextlib.closing(gym.make("CartPole-v1")) as env, pytest.raises(ConfigError, match="named by its ID"):
        call(*(env if each == "env" else each for each in given), 2)


def always(obs):
    return 1


def test_a_failing_agent_is_an_error_that_names_the_place():
    def agent(obs):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(EnvironmentFaultError, match=r"environment 0, step 0 .*division by zero"):
        answer(agent)


SPACES = (gym.make("toy/Counter-v0").observation_space, gym.make("toy/Counter-v0").action_space)


@pytest.mark.parametrize("deterministic", [True, False])
def test_our_experts_act_as_they_predict(deterministic):
    agent = PPOAgent.for_spaces(*SPACES, hidden_dims=(8,), seed=0)
    players = players_of("toy/Counter-v0", 3)
    batch = actor_of(agent, players, deterministic)(players)
    expected = agent.predict(np.stack([player.obs for player in players]))
    assert np.array_equal(batch, expected) is deterministic
    assert batch.shape == (3, 2)


def test_our_students_and_bare_policies_act_as_they_predict():
    policy = MLPPolicy(*SPACES, (8,), generator=torch.Generator().manual_seed(1))
    policy.normalizer.fit(np.random.default_rng(0).normal(5.0, 3.0, (50, 3)).astype(np.float32))
    players = players_of("toy/Counter-v0", 3)
    obs = np.stack([player.obs for player in players])
    for agent in (policy, BCAgent(policy, seed=0)):
        np.testing.assert_allclose(actor_of(agent, players)(players), policy.predict(obs), rtol=1e-6, atol=1e-7)


def test_the_caller_s_random_generator_decides_our_samples():
    agent = PPOAgent.for_spaces(*SPACES, hidden_dims=(8,), seed=0)
    players = players_of("toy/Counter-v0", 2)
    first, second = (actor_of(agent, players, deterministic=False)(players) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_an_agent_of_ours_made_for_other_spaces_is_refused_with_both():
    agent = PPOAgent.for_spaces(*SPACES, hidden_dims=(8,), seed=0)
    with pytest.raises(
        SpaceMismatchError, match=r"action space Box\(-1.0, 1.0, \(2,\), float32\) against Discrete\(3, start=5\)"
    ):
        answer(agent, "toy/Gears-v0")
    with pytest.raises(SpaceMismatchError, match="observation space"):
        answer(agent, "toy/Dict-v0")


def test_moving_an_action_to_the_bounds_leaves_the_agents_own_array_alone():
    agent = Steady(np.array([7.0, -3.0], np.float32))
    answer(agent)
    assert agent.action.tolist() == [7.0, -3.0]


class Filter:
    """Chooses 0.5 whatever the agent inside would do."""

    def __init__(self, agent):
        self.agent = agent
        self.policy = agent.policy

    def predict(self, obs, deterministic=True):
        return np.array([0.5, 0.5], np.float32)

    def __getattr__(self, name):
        return getattr(self.agent, name)


class Extended(PPOAgent):
    def predict(self, obs, deterministic=True):
        return np.array([0.5, 0.5], np.float32)


def test_what_wraps_or_extends_an_agent_of_ours_chooses_itself():
    agent = PPOAgent.for_spaces(*SPACES, hidden_dims=(8,), seed=0)
    extended = Extended(agent.policy, seed=0)
    for each in (Filter(agent), extended):
        assert answer(each).tolist() == [0.5, 0.5]
        demonstrations = collect_demos("toy/Counter-v0", each, 1, seed=0)
        assert (demonstrations.actions == 0.5).all()
    assert demonstrations.distributions is None


def test_what_only_passes_on_to_an_agent_of_ours_is_that_agent():
    agent = PPOAgent.for_spaces(*SPACES, hidden_dims=(8,), seed=0)

    class Passing:
        def __getattr__(self, name):
            return getattr(agent, name)

    one, other = (collect_demos("toy/Counter-v0", each, 2, seed=0) for each in (agent, Passing()))
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.distributions, other.distributions)


@pytest.mark.parametrize(
    "told",
    [{"mean": 0.0}, np.zeros((1, 4), np.float32), np.zeros(2), "normal", ValueError("no such thing")],
    ids=["a dict", "too few rows", "one row", "a text", "it fails"],
)
def test_what_a_foreign_agent_means_otherwise_by_a_distribution_is_left_out(told, capsys):
    class Agent(Steady):
        def action_distribution(self, observations):
            if isinstance(told, Exception):
                raise told
            return told

    demonstrations = collect_demos("toy/Counter-v0", Agent(np.array([0.25, -0.5])), 1, seed=0)
    assert demonstrations.distributions is None
    assert "the agent's action_distribution is left out" in capsys.readouterr().err


def test_a_foreign_agent_may_tell_its_distribution():
    class Agent(Steady):
        def action_distribution(self, observations):
            return np.tile(np.array([0.25, -0.5, 0.1, 0.2], np.float32), (len(observations), 1))

    demonstrations = collect_demos("toy/Counter-v0", Agent(np.array([0.25, -0.5])), 1, seed=0)
    assert demonstrations.distributions.shape == (len(demonstrations), 4)
