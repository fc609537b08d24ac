"""envpool's environments behind the same record of a step."""

from __future__ import annotations

import re
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from il_based_rl import train_ppo
from il_based_rl.config import PPOConfig
from il_based_rl.envs import EnvPoolEnvs, make_envs
from il_based_rl.errors import EnvironmentFaultError, MissingExtraError, UnknownEnvironmentError
from il_based_rl.ppo_agent import PPOAgent

# envpool writes the bounds of its own spaces in float64; they are not looked at.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")


@pytest.fixture
def envpool():
    return pytest.importorskip("envpool")


def still(count):
    return np.zeros((count, 1), np.float32)


def swung(rows):
    """Angular velocity that a pendulum without torque has one step later: 3g/2l * sin * dt = 0.75 sin more, at most 8."""
    return np.clip(rows[:, 2] + 0.75 * rows[:, 1], -8.0, 8.0)


def trained(env_id, seed=0, n_steps=256, updates=2):
    with make_envs(env_id, 2, backend="envpool") as envs:
        config = PPOConfig(n_steps=n_steps, n_epochs=2)
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, config, hidden_dims=(8,), seed=seed)
        return agent, list(agent.learn(envs, 2 * n_steps * updates))


def weights_of(agent):
    return torch.cat([parameter.detach().ravel() for parameter in agent.policy.parameters()])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.usefixtures("envpool")
def test_spaces_and_rows_are_those_of_gymnasiums_environment(env_id):
    with gym.make(env_id) as twin, make_envs(env_id, 3, backend="envpool") as envs:
        assert isinstance(envs, EnvPoolEnvs)
        assert (envs.observation_space, envs.action_space) == (twin.observation_space, twin.action_space)
        rows = envs.reset([1, 2, 3])
        assert rows.shape == (3, *twin.observation_space.shape)
        assert all(twin.observation_space.contains(row.astype(np.float32)) for row in rows)


@pytest.mark.usefixtures("envpool")
def test_a_time_limit_ends_in_its_own_observation_and_the_step_after_it_is_marked():
    # 200 true steps, one fake; the final row follows from the row before it, the first one of the next episode does not.
    with make_envs("Pendulum-v1", 2, backend="envpool") as envs:
        rows = np.array(envs.reset([1, 2]))
        for t in range(1, 410):
            record = envs.step(still(2))
            fake, last = t % 201 == 0, t % 201 == 200
            assert record.valid.tolist() == [not fake] * 2, t
            assert record.truncated.tolist() == [last] * 2, t
            assert not record.terminated.any()
            assert sorted(record.final_rows) == ([0, 1] if last else [])
            if last:
                finals = np.stack([record.final_rows[i] for i in range(2)])
                np.testing.assert_allclose(finals[:, 2], swung(rows), atol=1e-5)
            agrees = np.isclose(record.rows[:, 2], swung(rows), atol=1e-5)
            assert not agrees.any() if fake else agrees.all()
            rows = np.array(record.rows)


@pytest.mark.usefixtures("envpool")
def test_a_fallen_pole_terminates_alone_while_its_neighbour_goes_on():
    # Pushed to one side always, a pole falls, beyond 0.2095 rad, after 8 to 11 steps: not all of them on the same one.
    with make_envs("CartPole-v1", 8, backend="envpool") as envs:
        envs.reset(range(8))
        ended, before = np.zeros(8, bool), 0
        for _ in range(60):
            record = envs.step(np.ones(8, np.int64))
            assert record.valid.tolist() == (~ended).tolist()
            ended = record.terminated | record.truncated
            assert sorted(record.final_rows) == np.flatnonzero(record.terminated).tolist()
            assert all(abs(row[2]) > 0.2094 for row in record.final_rows.values())
            before += 0 < ended.sum() < 8
        assert before > 0


@pytest.mark.usefixtures("envpool")
def test_each_environment_starts_from_its_own_seed_again_at_every_reset():
    with make_envs("Pendulum-v1", 3, backend="envpool") as envs:
        first = np.array(envs.reset([5, 6, 5]))
        envs.step(still(3))
        again = np.array(envs.reset([5, 6, 5]))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])


@pytest.mark.usefixtures("envpool")
def test_training_learns_from_true_transitions_alone():
    # Of 512 steps in each environment two are fake: the 201st and the 402nd.
    agent, progress = trained("Pendulum-v1")
    assert agent.env_steps == 2 * 512
    assert agent.policy.actor.normalizer.count.item() == 2 * 510
    assert agent.reward_scaler.return_statistics.count.item() == 2 * 510
    episodes = [episode for each in progress for episode in each.episodes]
    assert [episode.length for episode in episodes] == [200] * 4
    assert all(-16.3 * 200 < episode.total_reward < 0.0 for episode in episodes)


@pytest.mark.usefixtures("envpool")
def test_training_on_choices_counts_one_point_a_true_step():
    agent, progress = trained("CartPole-v1")
    episodes = [episode for each in progress for episode in each.episodes]
    assert len(episodes) > 10
    assert all(episode.total_reward == episode.length for episode in episodes)  # a fake step has no reward, and no length
    # Each finished episode but those that ended on the very last step was followed by one fake step.
    assert len(episodes) - 2 <= 2 * 512 - agent.policy.actor.normalizer.count.item() <= len(episodes)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.usefixtures("envpool")
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(env_id):
    one, same, other = (trained(env_id, seed, n_steps=64)[0] for seed in (3, 3, 4))
    assert torch.equal(weights_of(one), weights_of(same))
    assert not torch.equal(weights_of(one), weights_of(other))


@pytest.mark.usefixtures("envpool")
def test_stepping_before_the_first_reset_is_refused():
    with (
        make_envs("Pendulum-v1", 1, backend="envpool") as envs,
        pytest.raises(EnvironmentFaultError, match="before their first reset; call reset first"),
    ):
        envs.step(still(1))


@pytest.mark.usefixtures("envpool")
def test_closing_twice_is_fine():
    envs = make_envs("Pendulum-v1", 2, backend="envpool")
    envs.reset([1, 2])
    envs.close()
    envs.close()
    assert envs.reset([1, 2]).shape == (2, 3)
    envs.close()


@pytest.mark.usefixtures("envpool")
def test_an_unknown_id_names_the_nearest_that_envpool_has():
    with pytest.raises(UnknownEnvironmentError, match=r"envpool has no environment 'Pendulm-v1' \(nearest: Pendulum-v1"):
        make_envs("Pendulm-v1", 1, backend="envpool")


@pytest.mark.usefixtures("envpool")
def test_an_observation_outside_its_bounds_names_environment_seed_episode_and_step():
    seeds, fire = [5, 6, 7, 8], np.full(4, 3)
    episodes, steps = np.ones(4, int), np.zeros(4, int)
    with make_envs("LunarLander-v3", 4, backend="envpool", bounds="strict") as envs:
        low, high = envs.observation_space.low - 1e-5, envs.observation_space.high + 1e-5
        envs.reset(seeds)

        def play():
            for _ in range(2000):
                record = envs.step(fire)
                assert ((record.rows >= low) & (record.rows <= high)).all()
                steps[:] += record.valid
                for i in record.final_rows:
                    episodes[i], steps[i] = episodes[i] + 1, 0

        with pytest.raises(EnvironmentFaultError, match="outside its space's bounds") as fault:
            play()
    place = r"^environment (\d), seed (\d), episode (\d+), step (\d+), after action 3: .*--bounds any$"
    i, seed, episode, step = map(int, re.match(place, str(fault.value)).groups())
    assert (seed, episode, step) == (seeds[i], episodes[i], steps[i] + 1)
    assert sum(episodes) > 4
    with make_envs("LunarLander-v3", 4, backend="envpool") as envs:  # it is known to leave them
        envs.reset(seeds)
        seen = [envs.step(fire).rows for _ in range(2000)]
    assert any(((rows < low) | (rows > high)).any() for rows in seen)


@pytest.mark.usefixtures("envpool")
def test_observations_of_another_kind_than_gymnasiums_are_a_fault():
    with (
        make_envs("Blackjack-v1", 2, backend="envpool") as envs,
        pytest.raises(EnvironmentFaultError, match=r"^the vector environment failed at reset: .*; its seeds: \[1, 2\]"),
    ):
        envs.reset([1, 2])


def refusal_of(capsys, *arguments):
    """The one line in which the command refuses, with exit code 2."""
    with pytest.raises(SystemExit) as leaving:
        train_ppo.main(["--env-backend", "envpool", *arguments])
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("envpool")
def test_the_command_refuses_an_id_that_envpool_lacks_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "Pendulum-v1" in refusal_of(capsys, "--env-id", "Pendulm-v1")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtraError, match=r'pip install "il_based_rl\[envpool\]"'):
        make_envs("Pendulum-v1", 1, backend="envpool")
    assert 'pip install "il_based_rl[envpool]"' in refusal_of(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("envpool")
def test_the_command_trains_in_envpool_and_writes_its_checkpoint(tmp_path, capsys):
    path = tmp_path / "agent.pt"
    arguments = ["--n-steps", "64", "--num-envs", "2", "--total-timesteps", "128", "--eval-episodes", "1", "--hidden-dims", "8"]
    train_ppo.main(["--env-backend", "envpool", "--save-path", str(path), *arguments])
    assert f"Checkpoint saved to {path}" in capsys.readouterr().out
    assert PPOAgent.load(path).env_steps == 128
