"""Searching settings of PPO: what is tried is kept, gone on with, and judged on new seeds."""

import contextlib
import multiprocessing
import os
import re
import shlex
import shutil
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest

from il_based_rl import cli
from il_based_rl.__main__ import main
from il_based_rl.algorithms import tune as module
from il_based_rl.algorithms.tune import flags_of, tune
from il_based_rl.config import TrainPPOConfig, TuneConfig
from il_based_rl.errors import (
    EnvironmentFaultError,
    FileFormatError,
    LockedError,
    ResumeError,
    Terminated,
    TrainingDivergedError,
)
from il_based_rl.files import exclusive

TINY = {"env_id": "tuning/Aim-v0", "total_timesteps": 2048, "eval_episodes": 2, "confirm_seeds": 0, "workers": 1, "quiet": True}


class Aim(gym.Env):
    """Episodes of eight steps; the reward is how near the action is to the observation."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    fails_at = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps, self._aim = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self._aim, {}

    def step(self, action):
        self._steps += 1
        if self._steps == self.fails_at:
            raise RuntimeError("it broke")
        reward = -float(np.abs(self._aim - action).sum())
        self._aim = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self._aim, reward, self._steps == 8, False, {}


gym.register("tuning/Aim-v0", Aim)


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Let every trial return at once what its learning rate is, as a curve that is flat."""

    def learning_curve(config, settings, seed, starts, points):
        value = settings.get("lr", 0.0)
        yield from ((config.total_timesteps * (k + 1) // points, value) for k in range(points))

    monkeypatch.setattr(module, "_learning_curve", learning_curve)


SHORT = "--total-timesteps 2048 --eval-episodes 2"
DATABASE = "tuning/search.db"


def config(**changes):
    return TuneConfig(**(TINY | changes))


def kept():
    return optuna.load_study(storage=f"sqlite:///{DATABASE}", study_name="il-rl tune")


def test_a_search_trains_by_real_and_ends_with_the_best_trial_on_disk(capsys):
    best = tune(config(trials=2, confirm_seeds=2, quiet=False))
    study = kept()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert all(-8.0 < trial.value < 0.0 for trial in study.trials)
    assert list(study.trials[0].intermediate_values.values())[-1] == study.trials[0].value
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Searching settings of PPO for tuning/Aim-v0: 2 trials, 0 of them done..."
    assert printed[3] == f"Best trial: number {study.best_trial.number}, mean return {study.best_value:.2f}"
    assert re.fullmatch(
        r"On 2 new seeds: the best settings -.* \[.*\], the defaults .*: (better|not shown to be better) .*", printed[4]
    )
    assert printed[5].startswith("il-rl train-ppo --env-id tuning/Aim-v0 --total-timesteps 2048")
    assert best["num_envs"] * best["n_steps"] >= 2048


def test_the_defaults_are_tried_first(quick):
    tune(config(trials=1))
    assert flags_of(tune(config(trials=1))) == ""
    assert kept().trials[0].value == TrainPPOConfig().ppo.lr


def test_the_defaults_are_tried_again_if_their_trial_was_cut_off(quick, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(module, "_learning_curve", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune(config(trials=2))
    tune(config(trials=2))
    cut_off, again, other = kept().trials
    assert [cut_off.state.name, again.state.name, other.state.name] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert again.params == cut_off.params
    assert other.params != again.params
    assert again.value == TrainPPOConfig().ppo.lr


def test_a_standard_deviation_is_searched_only_where_actions_are_continuous(quick):
    tune(config(trials=3))
    assert all("initial_log_std" in trial.params for trial in kept().trials)
    tune(config(env_id="CartPole-v1", trials=3, save_path="tuning/discrete.db"))
    study = optuna.load_study(storage="sqlite:///tuning/discrete.db", study_name="il-rl tune")
    assert not any("initial_log_std" in trial.params for trial in study.trials)


def test_what_is_printed_trains_by_what_was_tried(quick, capsys):
    best = tune(config(trials=12))
    line = capsys.readouterr().out.splitlines()[-1]
    parsed = cli.parse(TrainPPOConfig(), shlex.split(line)[2:], prog="il-rl train-ppo", description="")
    assert parsed == module._applied(best, config())
    assert parsed.ppo.lr == pytest.approx(kept().best_value)
    assert parsed.ppo.lr > TrainPPOConfig().ppo.lr


def test_a_search_is_gone_on_with_and_keeps_its_trials(quick, capsys):
    tune(config(trials=3))
    before = [trial.params for trial in kept().trials]
    tune(config(trials=5))
    assert "5 trials, 3 of them done" in capsys.readouterr().out
    after = [trial.params for trial in kept().trials]
    assert after[:3] == before
    assert len({str(params) for params in after}) == 5
    tune(config(trials=5))
    assert len(kept().trials) == 5


def test_a_search_that_was_killed_while_it_wrote_is_gone_on_with(quick, tmp_path):
    tune(config(trials=3))
    with contextlib.closing(sqlite3.connect(DATABASE)) as database:
        database.execute("PRAGMA cache_size = 1")  # so that the changes, and what undoes them, are on disk at once
        database.execute("CREATE TABLE filler (x)")
        database.executemany("INSERT INTO filler VALUES (?)", [("x" * 1000,)] * 200)
        for end in ("", "-journal"):
            shutil.copy(f"{DATABASE}{end}", tmp_path / f"killed.db{end}")
        database.rollback()
    assert (tmp_path / "killed.db-journal").stat().st_size > 0
    tune(config(trials=4, save_path=str(tmp_path / "killed.db")))
    assert len(optuna.load_study(storage=f"sqlite:///{tmp_path}/killed.db", study_name="il-rl tune").trials) == 4


def test_a_termination_that_was_lost_ends_a_search(monkeypatch):
    monkeypatch.setattr(cli, "_terminated", False)
    done = []

    def call(number):
        done.append(number)
        monkeypatch.setattr(cli, "_terminated", number == 2)

    with pytest.raises(Terminated):
        list(module._side_by_side(1, gym.spec("CartPole-v1"), call, ((k, (k,)) for k in range(9))))
    assert done == [0, 1, 2]


def test_one_process_gives_the_same_search_twice_and_another_seed_another(quick):
    for path, seed in (("a.db", 0), ("b.db", 0), ("c.db", 1)):
        tune(config(trials=4, save_path=path, seed=seed))
    one, again, other = (
        [trial.params for trial in optuna.load_study(storage=f"sqlite:///{path}.db", study_name="il-rl tune").trials]
        for path in "abc"
    )
    assert one == again
    assert one[1:] != other[1:]


def test_a_trial_that_was_cut_off_is_tried_again_by_another(quick, monkeypatch):
    curve = module._learning_curve

    def cut_off(*given):
        if len(kept().trials) == 3:
            raise KeyboardInterrupt
        return curve(*given)

    monkeypatch.setattr(module, "_learning_curve", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tune(config(trials=4))
    assert [trial.state.name for trial in kept().trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    monkeypatch.setattr(module, "_learning_curve", curve)
    tune(config(trials=4))
    assert [trial.state.name for trial in kept().trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_trial_below_the_median_of_those_before_is_given_up(monkeypatch):
    values = iter([*range(10, 16), 1, 14])

    def curve(config, settings, seed, starts, points):
        value = next(values)
        yield from ((config.total_timesteps * (k + 1) // points, value) for k in range(points))

    monkeypatch.setattr(module, "_learning_curve", curve)
    tune(config(trials=8))
    trials = kept().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6 + ["PRUNED", "COMPLETE"]
    assert [len(trial.intermediate_values) for trial in trials] == [8] * 6 + [3, 8]  # not in the first quarter
    assert kept().best_value == 15


def test_a_trial_that_diverges_is_given_up(monkeypatch, capsys):
    def curve(config, settings, seed, starts, points):
        raise TrainingDivergedError("no longer finite")
        yield

    monkeypatch.setattr(module, "_learning_curve", curve)
    with pytest.raises(TrainingDivergedError, match="no trial went through to its end"):
        tune(config(trials=2))
    assert [trial.state.name for trial in kept().trials] == ["PRUNED", "PRUNED"]


def test_new_seeds_are_none_of_the_search_and_the_same_for_both(monkeypatch):
    seeds = {"search": [], "new": []}

    def curve(config, settings, seed, starts, points):
        seeds["new" if points == 1 else "search"].append((seed, tuple(starts)))
        yield config.total_timesteps, settings.get("batch_size", 64)

    monkeypatch.setattr(module, "_learning_curve", curve)
    assert tune(config(trials=6, confirm_seeds=4))["batch_size"] > 64
    new, searched = seeds["new"], seeds["search"]
    assert new[0::2] == new[1::2]
    assert len({seed for seed, _ in new}) == 4
    assert len({start for _, starts in new for start in starts}) == 4 * len(new[0][1])  # or seeds would share their luck
    assert not {seed for seed, _ in new} & {seed for seed, _ in searched}
    assert not {start for _, starts in new for start in starts} & {start for _, starts in searched for start in starts}


@pytest.mark.parametrize("diverges", ["best", "defaults"])
def test_settings_that_diverge_on_a_new_seed_are_not_better_and_still_printed(diverges, quick, monkeypatch, capsys):
    tune(config(trials=3))

    def curve(config, settings, seed, starts, points):
        if bool(settings) == (diverges == "best"):
            raise TrainingDivergedError("no longer finite")
        yield config.total_timesteps, 1.0

    monkeypatch.setattr(module, "_learning_curve", curve)
    for _ in range(2):  # it is told again, and nothing trained
        best = tune(config(trials=3, confirm_seeds=2))
    said = capsys.readouterr().out.splitlines()
    counts = (2, 0) if diverges == "best" else (0, 2)
    times = "On new seeds training diverged: by the best settings {} of 2 times, by the defaults {} of 2 times"
    assert said.count(times.format(*counts)) == 2
    assert flags_of(best) in said[-1]


def test_an_interrupted_proof_trains_only_what_is_missing(quick, monkeypatch):
    tune(config(trials=2, confirm_seeds=2))
    count = 0

    def counted(*given):
        nonlocal count
        count += 1
        yield 2048, 0.5

    monkeypatch.setattr(module, "_learning_curve", counted)
    tune(config(trials=2, confirm_seeds=3))
    assert count == (2 if kept().best_trial.number else 1)


def test_processes_side_by_side_try_all_and_leave_none_behind(capsys):
    tune(config(env_id="CartPole-v1", trials=3, workers=2))
    assert sorted(trial.number for trial in kept().trials) == [0, 1, 2]
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in kept().trials)


def test_an_environment_that_was_registered_just_now_is_known_to_the_processes(monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "tuning/Now-v0", replace(gym.spec("CartPole-v1"), id="tuning/Now-v0"))
    tune(config(env_id="tuning/Now-v0", trials=2, workers=2))
    assert len(kept().trials) == 2


def test_an_environment_that_cannot_be_sent_is_searched_here(quick, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "tuning/Lambda-v0", gym.envs.registration.EnvSpec("tuning/Lambda-v0", lambda: Aim()))
    tune(config(env_id="tuning/Lambda-v0", trials=2, workers=2))
    assert len(kept().trials) == 2
    assert "tuning/Lambda-v0 cannot be sent to other processes; trials run here" in capsys.readouterr().err


def test_what_is_printed_trains_where_observations_leave_their_bounds(quick, capsys):
    tune(config(trials=1, bounds="any"))
    assert capsys.readouterr().out.splitlines()[-1].endswith("--total-timesteps 2048 --bounds any")


def test_who_interrupts_does_not_wait_for_processes_that_are_busy():
    before = set(multiprocessing.active_children())
    results = module._side_by_side(2, gym.spec("CartPole-v1"), _slept, [("short", (0.0,)), ("long", (60.0,))])
    assert next(results) == ("short", 0.0)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 30.0  # and not the sixty seconds of the other
    assert set(multiprocessing.active_children()) <= before


def _slept(seconds):
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("name", ["a?b.db", "50%20x.db", "q{x}.db", "a b#ü.db"])
def test_a_search_lies_in_the_file_that_was_named(name, quick):
    tune(config(trials=1, save_path=name))
    tune(config(trials=2, save_path=name))
    assert {path.name for path in Path().iterdir()} == {name, f".{name}.lock"}


def test_what_fails_in_a_process_of_the_search_arrives():
    results = module._side_by_side(2, gym.spec("CartPole-v1"), abs, [("one", (-1,)), ("two", (-2,))])
    assert sorted(results) == [("one", 1), ("two", 2)]
    with pytest.raises(EnvironmentFaultError, match="it broke"):
        list(module._side_by_side(2, gym.spec("CartPole-v1"), _breaks, [("one", ())]))
    with pytest.raises(EnvironmentFaultError, match="--workers 1"):
        list(module._side_by_side(2, gym.spec("CartPole-v1"), os._exit, [("one", (3,))]))


def _breaks():
    raise EnvironmentFaultError("it broke")


def test_an_environment_that_fails_ends_the_search_and_keeps_what_ended(monkeypatch, capsys):
    tune(config(trials=2))
    monkeypatch.setattr(Aim, "fails_at", 5)
    code, error = failing(capsys, f"--env-id tuning/Aim-v0 --save-path {DATABASE} --trials 4 --workers 1 {SHORT}")
    assert code == 1
    assert re.search("environment 0, seed .* step 5, .*it broke", error)
    states = [trial.state.name for trial in kept().trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]


# ---- refusals ----


def failing(capsys, flags):
    with pytest.raises(SystemExit) as leaving:
        main(["tune", *flags.split()])
    return leaving.value.code, capsys.readouterr().err


def test_a_search_for_something_else_is_not_gone_on_with(quick, capsys):
    tune(config(trials=1))
    code, error = failing(capsys, f"--env-id CartPole-v1 {SHORT}")
    assert code == 2
    assert "holds a search with --env-id tuning/Aim-v0, not CartPole-v1; choose another --save-path" in error


def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "text.db").write_text("not a database, and longer than a header")
    with sqlite3.connect("other.db") as database:
        database.execute("CREATE TABLE mine (a)")
    for name in ("text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        code, error = failing(capsys, f"--env-id tuning/Aim-v0 --save-path {name}")
        assert code == 2
        assert error.startswith(f"error: {name} ")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("odd", ['"9 x 9"', "null", "[]", "1e999"])
def test_odd_values_in_a_search_are_a_file_format_error(odd, quick):
    tune(config(trials=2))
    with sqlite3.connect(DATABASE) as database:
        database.execute(
            "UPDATE trial_params SET distribution_json = ?",
            ('{"name": "CategoricalDistribution", "attributes": {"choices": [' + odd + "]}}",),
        )
        database.execute("UPDATE trial_params SET param_value = 0")
    with pytest.raises(FileFormatError, match=r"tuning/search\.db cannot be read or written as a search"):
        tune(config(trials=2))


def test_two_searches_in_one_place_are_refused(quick, tmp_path):
    (tmp_path / "tuning").mkdir()
    with exclusive(tmp_path / "tuning" / ".search.db.lock"), pytest.raises(LockedError, match="process"):
        tune(config(trials=1))


def test_an_unknown_environment_is_told_before_anything_is_written(tmp_path, capsys):
    code, error = failing(capsys, "--env-id CartPole-v7")
    assert code == 2
    assert "CartPole-v7" in error
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, error = failing(capsys, "--env-id tuning/Aim-v0")
    assert code == 2
    assert 'pip install "il_based_rl[tune]"' in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", ["--trials 0", "--workers 0", "--confirm-seeds -1", "--eval-episodes 1", "--seed -1"])
def test_settings_that_make_no_sense_are_refused(flags, capsys):
    code, error = failing(capsys, flags)
    assert code == 2
    assert flags.split()[0] in error


def test_a_search_of_settings_that_are_gone_is_refused_and_stays_as_it_is(quick):
    tune(config(trials=2))
    former = optuna.distributions.CategoricalDistribution(["constant", "linear"])
    trial = optuna.create_trial(params={"clip_schedule": "linear"}, distributions={"clip_schedule": former}, value=1.0)
    kept().add_trial(trial)
    with pytest.raises(ResumeError, match=r"search\.db searched clip_schedule too, which is gone; choose another --save-path"):
        tune(config(trials=4))
    assert len(kept().trials) == 3


def test_a_search_of_fewer_settings_goes_on_and_those_that_it_left_out_are_the_defaults(quick, monkeypatch):
    with monkeypatch.context() as before:
        fewer = {name: choices for name, choices in module._CHOICES.items() if name not in ("activation", "orthogonal_init")}
        before.setattr(module, "_CHOICES", fewer)
        former = tune(config(trials=3))
    settings = tune(config(trials=3))
    assert settings == former | {"activation": "tanh", "orthogonal_init": True}
    tune(config(trials=6))
    defaults = [trial for trial in kept().trials if trial.params["rollout"] == "1 x 2048" and trial.params["lr"] == 3e-4]
    assert len(kept().trials) == 6
    assert len(defaults) == 1  # which were tried once
