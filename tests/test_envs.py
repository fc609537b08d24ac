"""Environments: one record of a step whoever steps them, and faults that say where they happened."""

import re
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from il_based_rl.envs import InProcessEnvs, Player, VectorEnvs, as_envs, make_env, make_envs, make_players
from il_based_rl.envs.bounds import bounds_hold
from il_based_rl.errors import (
    ConfigError,
    EnvironmentFaultError,
    MissingExtraError,
    RenderError,
    UnknownEnvironmentError,
    UnsupportedSpaceError,
)

STILL = np.zeros(2, np.float32)


def gymnasium_envs(env_id, num_envs, mode):
    makers = [lambda: gym.make(env_id, disable_env_checker=True)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=mode)


def transitions(envs, seeds, count):
    """Play each environment for `count` real steps; the k-th one's action is k/1000. Obs, action, reward, ends, next obs."""
    played = [[] for _ in seeds]
    rows = np.array(envs.reset(seeds))
    while min(map(len, played)) < count:
        actions = np.array([[len(steps) / 1000, 0.0] for steps in played], np.float32)
        record = envs.step(actions)
        for i, steps in enumerate(played):
            if record.valid[i]:
                done = record.terminated[i] or record.truncated[i]
                assert done == (i in record.final_rows)
                following = record.final_rows[i] if done else record.rows[i]
                ends = (bool(record.terminated[i]), bool(record.truncated[i]))
                steps.append((rows[i].tolist(), actions[i, 0].item(), record.rewards[i].item(), *ends, following.tolist()))
        rows = np.array(record.rows)
    envs.close()
    return [steps[:count] for steps in played]


def test_in_process_steps_are_the_environments_own_with_its_own_last_observation():
    (steps,) = transitions(InProcessEnvs("toy/Counter-v0"), [5], 5)
    assert [(obs, reward, terminated, after) for obs, _, reward, terminated, _, after in steps] == [
        ([5, 0, 0], 1.0, False, [5, 0, 1]),
        ([5, 0, 1], 2.0, False, [5, 0, 2]),
        ([5, 0, 2], 3.0, True, [5, 0, 3]),  # ends in its own observation, not in the next episode's
        ([5, 1, 0], 101.0, False, [5, 1, 1]),
        ([5, 1, 1], 102.0, False, [5, 1, 2]),
    ]


class Misshapen(gym.vector.VectorWrapper):
    """Answers with one of its five columns in another shape, as simulators on a GPU do."""

    def __init__(self, envs, place, change):
        super().__init__(envs)
        self._place, self._change = place, change

    def step(self, actions):
        answer = list(self.env.step(actions))
        answer[self._place] = self._change(answer[self._place])
        return tuple(answer)


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("place", "change", "says"),
    [
        (0, lambda rows: np.concatenate([rows, rows]), r"observations; expected \d, one an environment"),
        (1, lambda rewards: rewards[:, None], r"rewards of shape \(\d, 1\); expected \(\d,\), one an environment"),
        (1, lambda rewards: 1.0, r"rewards of shape \(\); expected"),
        (2, lambda ends: ends[:, None], r"terminated of shape \(\d, 1\)"),
        (3, lambda ends: None, r"truncated of shape \(\)"),
    ],
)
def test_a_vector_environment_of_wrong_shapes_is_named(num_envs, place, change, says):
    envs = as_envs(Misshapen(gymnasium_envs("toy/Counter-v0", num_envs, AutoresetMode.SAME_STEP), place, change))
    envs.reset(None)
    with pytest.raises(EnvironmentFaultError, match=says):
        envs.step(np.zeros((num_envs, 2), np.float32))


@pytest.mark.parametrize("one", ["CartPole-v1", gym.make("CartPole-v1")])
def test_what_is_no_several_environments_is_refused_with_what_is(one):
    with pytest.raises(TypeError, match="expected several environments, as InProcessEnvs"):
        as_envs(one)


@pytest.mark.parametrize("env_id", ["toy/Counter-v0", "toy/Truncated-v0", "toy/Both-v0"])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_every_way_of_resetting_gives_the_same_transitions(env_id, mode):
    seeds = [5, 6, 7]
    expected = transitions(InProcessEnvs(env_id, 3), seeds, 12)
    assert transitions(as_envs(gymnasium_envs(env_id, 3, mode)), seeds, 12) == expected


def test_a_fake_transition_ends_no_episode_and_is_marked():
    envs = VectorEnvs(gymnasium_envs("toy/Counter-v0", 1, AutoresetMode.NEXT_STEP))
    envs.reset([5])
    records = [envs.step(STILL[None]) for _ in range(5)]
    assert [bool(record.valid[0]) for record in records] == [True, True, True, False, True]
    assert [bool(record.terminated[0]) for record in records] == [False, False, True, False, False]
    assert list(records[3].final_rows) == []


def test_a_reset_forgets_a_reset_that_was_due():
    envs = VectorEnvs(gymnasium_envs("toy/Counter-v0", 1, AutoresetMode.NEXT_STEP))
    envs.reset([5])
    assert [envs.step(STILL[None]).terminated[0] for _ in range(3)] == [False, False, True]
    envs.reset([5])
    assert envs.step(STILL[None]).valid.all()


def test_an_autoreset_mode_without_resets_is_refused():
    with pytest.raises(ConfigError, match=r"DISABLED.*expected SAME_STEP or NEXT_STEP"):
        as_envs(gymnasium_envs("toy/Counter-v0", 1, AutoresetMode.DISABLED))


def test_our_own_environments_are_taken_as_they_are():
    with InProcessEnvs("toy/Counter-v0") as envs:
        assert as_envs(envs) is envs


@pytest.mark.parametrize("make", [InProcessEnvs, lambda i, n: VectorEnvs(gymnasium_envs(i, n, AutoresetMode.SAME_STEP))])
def test_sub_environments_start_from_their_own_seeds(make):
    envs = make("Pendulum-v1", 3)
    rows = np.array(envs.reset([1, 2, 1]))
    assert not np.array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    with pytest.raises(ValueError, match="argument"):
        InProcessEnvs("toy/Counter-v0", 2).reset([1])


@pytest.mark.parametrize(
    ("env_id", "what"),
    [
        ("toy/NanObs-v0", r"observation.*nan"),
        ("toy/InfObs-v0", r"observation.*inf"),
        ("toy/NanReward-v0", r"reward.*nan"),
        ("toy/InfReward-v0", r"reward.*inf"),
        ("toy/Raises-v0", r"RuntimeError: motor on fire"),
        ("toy/WrongShape-v0", r"shape \(2,\).*\(3,\)"),
    ],
)
def test_a_fault_names_environment_step_action_and_what_happened(env_id, what):
    player = Player(make_env(env_id), index=4)
    player.reset(seed=1)
    player.step(np.array([0.125, 0.25], np.float32))
    with pytest.raises(
        EnvironmentFaultError, match=rf"environment 4, seed 1, episode 1, step 2, after action \[0\.5, -0\.75\].*{what}"
    ) as fault:
        player.step(np.array([0.5, -0.75], np.float32))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("env_id", "what"),
    [("toy/NanObs-v0", "nan"), ("toy/InfObs-v0", "inf"), ("toy/NanReward-v0", "nan"), ("toy/InfReward-v0", "inf")],
)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_a_number_that_is_not_finite_is_found_in_vector_environments_too(env_id, what, mode):
    makers = [lambda name=name: gym.make(name, disable_env_checker=True) for name in ("toy/Counter-v0", env_id)]
    envs = as_envs(SyncVectorEnv(makers, autoreset_mode=mode))
    envs.reset([1, 2])
    envs.step(np.array([[0.0, 0.0], [0.125, 0.25]], np.float32))
    with pytest.raises(
        EnvironmentFaultError, match=rf"environment 1, seed 2, episode 1, step 2, after action \[0\.5, -0\.75\].*{what}"
    ):
        envs.step(np.array([[0.0, 0.0], [0.5, -0.75]], np.float32))


def test_a_final_observation_that_is_not_finite_is_found_in_vector_environments():
    makers = [lambda: toy_envs.Counter(fault="nan obs", length=lambda tag, episode: 2)]
    envs = as_envs(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    envs.reset([1])
    envs.step(STILL[None])
    with pytest.raises(EnvironmentFaultError, match="environment 0, seed 1, episode 1, step 2, after"):
        envs.step(STILL[None])


@pytest.mark.parametrize(("env_id", "what"), [("toy/RaisesAtReset-v0", "no power"), ("toy/NanAtReset-v0", "not finite")])
def test_a_fault_at_reset_says_so(env_id, what):
    with pytest.raises(EnvironmentFaultError, match=rf"environment 1, seed 1, episode 1, at reset.*{what}"):
        Player(make_env(env_id), index=1).reset(seed=1)
    with pytest.raises(EnvironmentFaultError, match=rf"environment 0, seed 1, episode 1, at reset.*{what}"):
        InProcessEnvs(env_id, 2).reset([1, 2])


def test_an_observation_outside_a_discrete_space_is_a_fault():
    with pytest.raises(EnvironmentFaultError, match="7"):
        Player(make_env("toy/OutsideItsSpace-v0")).reset(seed=1)


def test_an_observation_that_holds_no_numbers_is_a_fault():
    env = toy_envs.Plain(gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2), obs=np.array([None]))
    with pytest.raises(EnvironmentFaultError, match="environment 3"):
        Player(env, index=3).reset(seed=1)


@pytest.mark.parametrize(
    ("env_id", "nearest"), [("Pendulm-v1", "Pendulum-v1"), ("CartPole-v9", "CartPole-v1"), ("toy/Conter-v0", "toy/Counter-v0")]
)
def test_an_unknown_id_names_itself_and_the_nearest(env_id, nearest):
    with pytest.raises(UnknownEnvironmentError) as refusal:
        make_env(env_id)
    assert env_id in str(refusal.value)
    assert nearest in str(refusal.value).replace(env_id, "")
    assert "MODULE:ID" in str(refusal.value)


@pytest.mark.parametrize("env_id", ["my_robots.py:Arm-v0", "./my_robots.py:Arm-v0", "lab/my_robots:Arm-v0"])
def test_a_file_is_no_module(env_id):
    with pytest.raises(UnknownEnvironmentError, match=r"names a file; .* as in my_robots:ID"):
        make_env(env_id)


def test_a_constructor_that_knows_of_no_drawing_is_named():
    with pytest.raises(RenderError, match=r"toy/Counter-v0 cannot be drawn: its constructor takes no render_mode"):
        make_env("toy/Counter-v0", "rgb_array")


def test_an_environment_whose_package_is_missing_gives_the_pip_command(monkeypatch):
    class NeedsRobots(gym.Env):
        def __init__(self):
            raise gym.error.DependencyNotInstalled('robots is not installed, run `pip install "gymnasium[robots]"`')

    monkeypatch.setitem(gym.registry, "toy/Robots-v0", gym.envs.registration.EnvSpec("toy/Robots-v0", NeedsRobots))
    with pytest.raises(MissingExtraError, match=r'toy/Robots-v0.*pip install "gymnasium\[robots\]"'):
        make_env("toy/Robots-v0")


def test_a_gymnasium_environment_whose_package_is_missing_gives_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r'LunarLanderContinuous-v3.*pip install .*"gymnasium\[box2d\]"'):
        make_env("LunarLanderContinuous-v3")


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "no_such_module_here:Robot-v0", "toy/Jax-v0"])
def test_any_missing_package_gives_a_pip_command(env_id, monkeypatch):
    monkeypatch.setitem(sys.modules, "some_missing_package", None)

    class NeedsPackage(gym.Env):
        def __init__(self):
            import some_missing_package  # noqa: F401

    monkeypatch.setitem(gym.registry, "toy/Jax-v0", gym.envs.registration.EnvSpec("toy/Jax-v0", NeedsPackage))
    with pytest.raises(MissingExtraError, match=r"pip install") as refusal:
        make_env(env_id)
    assert env_id in str(refusal.value)


def test_an_environment_of_a_named_module_is_registered_by_it(monkeypatch):
    module = types.ModuleType("my_robots")
    monkeypatch.setitem(sys.modules, "my_robots", module)
    assert make_env("my_robots:toy/Counter-v0").observation_space.shape == (3,)


def test_a_constructor_that_fails_is_named():
    with pytest.raises(
        EnvironmentFaultError, match=r"toy/Unmakeable-v0 cannot be made: OSError: no such device /dev/robot"
    ) as fault:
        make_env("toy/Unmakeable-v0")
    assert re.search(r"\(toy_envs\.py, line \d+\)$", str(fault.value))


class Silent(gym.Env):
    """Its step breaks an assertion that says nothing."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        raise AssertionError


def test_where_another_s_code_failed_is_said_and_kept():
    player = Player(Silent())
    player.reset(seed=1)
    with pytest.raises(EnvironmentFaultError, match=r": AssertionError \(test_envs\.py, line \d+\)$") as fault:
        player.step(np.zeros(2, np.float32))
    assert isinstance(fault.value.__cause__, AssertionError)


def test_what_we_found_wrong_ourselves_names_no_line_of_ours():
    player = Player(make_env("toy/WrongShape-v0"))
    player.reset(seed=1)
    player.step(np.zeros(2, np.float32))
    with pytest.raises(EnvironmentFaultError, match=r"ValueError: the observation has shape \(2,\), its space \(3,\)$"):
        player.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("make", [lambda i: InProcessEnvs(i, 1), lambda i: make_players(i, 1)])
def test_an_observation_space_that_cannot_be_read_is_named_in_one_line(make):
    with pytest.raises(UnsupportedSpaceError, match=r"Text.*is not supported; expected Box") as refusal:
        make("toy/TextObs-v0")
    assert "\n" not in str(refusal.value)


def test_closing_closes_every_environment():
    closed = []
    with InProcessEnvs("toy/Counter-v0", 3) as envs:
        for player in envs._players:
            player.env.unwrapped.close = lambda player=player: closed.append(player.index)
    assert closed == [0, 1, 2]


class Native(gym.vector.VectorEnv):
    """Takes one seed for all, as Gymnasium says of vector environments."""

    def __init__(self):
        self.num_envs = 2
        self.single_observation_space = self.single_action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, (2, 1)).astype(np.float32), {}


def test_a_vector_environment_of_its_own_kind_is_given_one_seed():
    envs = as_envs(Native())
    first = envs.reset([5, 6])
    np.testing.assert_array_equal(first, envs.reset([5, 9]))
    assert not np.array_equal(first, envs.reset([7, 6]))


def test_no_environments_at_all_are_refused():
    with pytest.raises(ConfigError, match="num_envs must be above 0, got 0"):
        InProcessEnvs("toy/Counter-v0", 0)


def test_large_half_precision_observations_give_no_warning(recwarn):
    player = Player(make_env("toy/Counter-v0"))
    player.reset(0)
    player.row = np.array([3e4, 3e4], np.float16)
    player._require_sound(0.0)
    assert not list(recwarn)


@pytest.mark.parametrize("call", [lambda envs: envs.reset([0, 1]), lambda envs: envs.step(np.zeros(2, np.int64))])
def test_workers_that_are_closed_say_so(call):
    with make_envs("CartPole-v1", 2, vectorization="async") as envs:
        envs.reset([0, 1])
    with pytest.raises(EnvironmentFaultError, match="these environments are closed"):
        call(envs)


def test_a_specification_leaves_its_bounds_as_its_id_does():
    assert bounds_hold(gym.spec("CartPole-v1"), "auto")
    assert not bounds_hold(gym.spec("LunarLander-v3"), "auto")
    assert not bounds_hold("LunarLander-v3", "auto")


def test_infos_as_a_list_hold_the_final_observations():
    def finals(envs):
        envs = as_envs(envs)
        envs.reset([0, 1])
        return [np.stack(list(record.final_rows.values())) for record in stepped(envs) if record.final_rows]

    def stepped(envs):
        for _ in range(30):
            yield envs.step(np.zeros(2, np.int64))

    def made():
        return gymnasium_envs("CartPole-v1", 2, AutoresetMode.SAME_STEP)

    plain, listed = finals(made()), finals(gym.wrappers.vector.DictInfoToList(made()))
    assert len(plain) > 2
    assert all(np.array_equal(one, other) for one, other in zip(plain, listed, strict=True))
