"""Rollouts go on where they ended; whole episodes are played from exactly the seeds that were asked for."""

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import il_based_rl.rollout
from il_based_rl.buffer import RolloutBuffer
from il_based_rl.envs import InProcessEnvs, as_envs
from il_based_rl.heads import action_head
from il_based_rl.rollout import MAX_PLAYERS, EpisodePlayers, Rollouts, _success


def rollouts_of(env_id, num_steps, seeds, make=InProcessEnvs):
    envs = make(env_id, len(seeds))
    head = action_head(envs.action_space)
    buffer = RolloutBuffer(num_steps, len(seeds), 3, head.num_actions, head.raw_dtype)
    rollouts = Rollouts(envs, head, seeds)

    def fill(actor=lambda features: np.zeros((len(features), head.num_outputs), np.float32), noise=0.0):
        return rollouts.fill(buffer, actor, np.full((num_steps, len(seeds), head.num_outputs), noise, np.float32))

    return rollouts, buffer, fill


def next_step_envs(env_id, num_envs):
    makers = [lambda: gym.make(env_id, disable_env_checker=True)] * num_envs
    return as_envs(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))


def test_a_rollout_holds_each_observation_beside_its_own_reward_and_end():
    rollouts, buffer, fill = rollouts_of("toy/Counter-v0", 5, [5, 6])
    fill()
    assert buffer.features[:, 0].tolist() == [[5, 0, 0], [5, 0, 1], [5, 0, 2], [5, 1, 0], [5, 1, 1]]
    assert buffer.features[:, 1, 0].tolist() == [6] * 5
    assert buffer.rewards[:, 0].tolist() == [1, 2, 3, 101, 102]
    assert buffer.terminated[:, 0].tolist() == [False, False, True, False, False]
    assert not buffer.truncated.any()
    assert buffer.valid.all()
    assert rollouts.features.tolist() == [[5, 1, 2], [6, 1, 2]]


def test_the_final_observation_of_a_truncation_is_kept_with_its_place():
    _, buffer, fill = rollouts_of("toy/Truncated-v0", 8, [5, 6])
    fill()
    assert buffer.truncations == [(2, 0), (2, 1), (6, 0), (6, 1)]
    assert [row.tolist() for row in buffer.final_features] == [[5, 0, 3], [6, 0, 3], [5, 1, 4], [6, 1, 4]]
    assert buffer.truncated[:, 0].tolist() == [False, False, True, False, False, False, True, False]


@pytest.mark.parametrize("env_id", ["toy/Counter-v0", "toy/Both-v0"])
def test_a_termination_keeps_no_final_observation_even_if_the_clock_ran_out_as_well(env_id):
    _, buffer, fill = rollouts_of(env_id, 8, [5])
    fill()
    assert buffer.terminated.sum() == 2
    assert buffer.truncations == []
    assert buffer.final_features == []


def test_an_episode_goes_on_over_rollouts_and_its_return_is_raw():
    rollouts, buffer, fill = rollouts_of("toy/Truncated-v0", 2, [5])
    first, second = fill(), fill()
    assert first == []
    assert buffer.features[:, 0].tolist() == [[5, 0, 2], [5, 1, 0]]
    assert [(episode.total_reward, episode.length) for episode in second] == [(1 + 2 + 3, 3)]
    third = fill() + fill()
    assert [(episode.total_reward, episode.length) for episode in third] == [(101 + 102 + 103 + 104, 4)]
    assert rollouts.features.tolist() == [[5, 2, 1]]


def test_a_rollout_forgets_the_truncations_of_the_last_one():
    _, buffer, fill = rollouts_of("toy/Truncated-v0", 3, [5])
    fill()
    assert len(buffer.truncations) == len(buffer.final_features) == 1
    fill()
    assert buffer.truncations == []
    assert buffer.final_features == []


def test_a_fake_transition_reaches_neither_returns_nor_the_flat_buffer():
    _, buffer, fill = rollouts_of("toy/Truncated-v0", 9, [5], make=next_step_envs)
    episodes = fill()
    assert buffer.valid[:, 0].tolist() == [True, True, True, False, True, True, True, True, False]
    assert buffer.flat(buffer.rewards).tolist() == [1, 2, 3, 101, 102, 103, 104]
    assert buffer.flat(buffer.features).tolist() == [
        [5, 0, 0],
        [5, 0, 1],
        [5, 0, 2],
        [5, 1, 0],
        [5, 1, 1],
        [5, 1, 2],
        [5, 1, 3],
    ]
    assert [(episode.total_reward, episode.length) for episode in episodes] == [(6.0, 3), (410.0, 4)]
    assert [row.tolist() for row in buffer.final_features] == [[5, 0, 3], [5, 1, 4]]


def test_the_buffer_holds_the_unbounded_action_and_the_environment_gets_the_clipped_one():
    _, buffer, fill = rollouts_of("toy/Counter-v0", 2, [5])
    toy_envs.ACTIONS.clear()
    fill(actor=lambda features: np.full((1, 2), 3.0, np.float32), noise=-7.5)
    assert buffer.raw_actions[:, 0].tolist() == [[-4.5, -4.5]] * 2
    assert [action.tolist() for action in toy_envs.ACTIONS] == [[-1.0, -1.0]] * 2


def still(players):
    return np.zeros((len(players), 2), np.float32)


def play(env_id, seeds, count, actor=still):
    with EpisodePlayers(env_id, count) as players:
        return list(players.play(actor, seeds))


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_exactly_the_asked_seeds_are_played_however_long_their_episodes_take(count):
    seeds = [2, 1, 4, 3, 5, 6, 7, 9, 8, 11, 13, 15, 17]
    toy_envs.RESETS.clear()
    episodes = play("toy/ShortOrLong-v0", seeds, count)
    assert sorted(episode.index for episode in episodes) == list(range(len(seeds)))
    assert sorted(toy_envs.RESETS) == sorted(seeds)
    for episode in episodes:
        assert episode.seed == seeds[episode.index]
        assert episode.rows[0, 0] == episode.seed
        assert len(episode.rewards) == (1 if episode.seed % 2 else 20)


def test_an_episode_is_the_environments_own_from_its_first_to_its_final_observation():
    (episode,) = play("toy/Truncated-v0", [7], 1, actor=lambda players: np.array([[players[0].steps / 10, 0.5]], np.float32))
    assert episode.rows.tolist() == [[7, 0, 0], [7, 0, 1], [7, 0, 2]]
    np.testing.assert_allclose(episode.actions, [[0.0, 0.5], [0.1, 0.5], [0.2, 0.5]], rtol=1e-6)
    assert episode.rewards.tolist() == [1, 2, 3]
    assert (episode.terminated, episode.truncated) == (False, True)
    assert episode.final_row.tolist() == [7, 0, 3]
    assert episode.total_reward == 6.0


def test_episodes_that_are_judged_alone_hold_their_rewards_and_nothing_that_grows():
    def actor(players):
        return np.array([[players[0].steps / 10, 0.5]], np.float32)

    with EpisodePlayers("toy/Truncated-v0", 1) as players:
        (whole,), (judged,) = (list(players.play(actor, [7], whole=whole)) for whole in (True, False))
    assert judged.rewards.tolist() == whole.rewards.tolist() == [1, 2, 3]
    assert judged.rows.tolist() == whole.rows[-1:].tolist()
    assert judged.actions.tolist() == whole.actions[-1:].tolist()
    assert judged.labels.tolist() == whole.labels[-1:].tolist()
    assert judged.acted_by.tolist() == [0]
    assert judged.final_row.tolist() == whole.final_row.tolist()


def test_no_more_environments_are_made_than_there_are_episodes_or_players_allowed(monkeypatch):
    made = []
    real = il_based_rl.rollout.make_players
    monkeypatch.setattr(
        il_based_rl.rollout, "make_players", lambda env_id, count, **which: made.append(count) or real(env_id, count, **which)
    )
    play("toy/Counter-v0", [1, 2], 2)
    play("toy/Counter-v0", range(100), 100)
    assert made == [2, MAX_PLAYERS]


def test_an_actor_is_asked_for_running_players_only():
    asked = []

    def actor(players):
        asked.append(len(players))
        return still(players)

    play("toy/ShortOrLong-v0", [1, 2], 2, actor)
    assert asked == [2] + [1] * 19


def test_players_can_play_again_and_give_the_same():
    with EpisodePlayers("Pendulum-v1", 2) as players:
        actor = lambda players: np.ones((len(players), 1), np.float32)  # noqa: E731
        first, second = ([episode.total_reward for episode in players.play(actor, [3, 4])] for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_an_episode_without_end_is_cut_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(il_based_rl.rollout, "MAX_EPISODE_STEPS", 30)
    (episode,) = play("toy/Endless-v0", [8], 1)
    assert (len(episode.rewards), episode.terminated, episode.truncated) == (30, False, True)
    assert "start seed 8" in capsys.readouterr().err


def test_an_episode_that_ends_at_the_limit_is_fine(monkeypatch):
    monkeypatch.setattr(il_based_rl.rollout, "MAX_EPISODE_STEPS", 20)
    assert len(play("toy/ShortOrLong-v0", [8], 1)[0].rewards) == 20


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (True, True),
        (np.bool_(False), False),
        (1.0, True),
        (np.array([0]), False),
        (float("nan"), None),
        ("False", None),
        (None, None),
        ({}, None),
        (np.array([True, False]), None),
        ([[1], [1, 2]], None),
    ],
    ids=str,
)
def test_only_what_is_true_or_false_tells_of_success(told, found):
    assert _success({"is_success": told}) is found
    assert _success({"success": told}) is found
    assert _success({}) is None
