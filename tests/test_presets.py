"""Presets: what is kept is valid, is taken when asked for, and gives way to flags."""

import numpy as np
import pytest

from benchmarks.returns import AGAIN, Task, command_of, read_rows
from il_based_rl import pipeline, train_ppo
from il_based_rl.__main__ import main
from il_based_rl.config import PipelineConfig, PPOConfig, TrainPPOConfig
from il_based_rl.presets import PRESETS, with_preset


@pytest.fixture
def started(monkeypatch):
    """The settings that `train-ppo` would train with."""
    seen = []
    monkeypatch.setattr(train_ppo, "train_ppo", lambda config, checkpoint: seen.append(config))
    return seen


@pytest.mark.parametrize("env_id", PRESETS)
def test_a_preset_is_valid_and_differs_from_the_defaults_in_what_it_says(env_id):
    config = with_preset(TrainPPOConfig(), env_id)
    assert config.env_id == env_id
    assert config.preset
    settings = PRESETS[env_id].settings
    plain = vars(TrainPPOConfig()) | vars(PPOConfig())
    taken = vars(config) | vars(config.ppo)
    for name, (value, reason) in settings.items():
        assert taken[name] == value != plain[name]
        assert reason
    same = set(plain) - set(settings) - {"env_id", "preset", "ppo"}
    assert {name: taken[name] for name in same} == {name: plain[name] for name in same}


def test_the_command_takes_it_when_asked_and_flags_win(started, capsys):
    main(["train-ppo", "--env-id", "Hopper-v5", "--preset"])
    main(["train-ppo", "--env-id=Hopper-v5", "--preset", "--total-timesteps", "7", "--lr-schedule", "constant"])
    whole, changed = started
    assert whole == with_preset(TrainPPOConfig(), "Hopper-v5")
    assert (whole.total_timesteps, whole.num_envs, whole.ppo.n_steps, whole.ppo.lr_schedule) == (1_000_000, 16, 128, "linear")
    assert (changed.total_timesteps, changed.num_envs, changed.ppo.lr_schedule) == (7, 16, "constant")
    assert "--preset takes them" not in capsys.readouterr().err


def test_without_it_the_promised_defaults_stay(started):
    main(["train-ppo", "--env-id", "Hopper-v5"])
    assert started == [TrainPPOConfig(env_id="Hopper-v5")]


def test_a_notice_says_that_there_is_one_once_the_training_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notice = "settings that make an expert of Pendulum-v1 are kept: --preset takes them"
    flags = ["--total-timesteps", "64", "--n-steps", "64", "--eval-episodes", "1", "--eval-interval", "1000", "--save-path"]
    for more, said in (
        (["a.pt"], True),
        (["a.pt", "--resume"], False),
        (["b.pt", "--preset"], False),
        (["c.pt", "--env-id", "FrozenLake-v1"], False),
    ):
        main(["train-ppo", *flags, *more])
        assert (notice in capsys.readouterr().err.splitlines()) is said
    with pytest.raises(SystemExit):
        main(["train-ppo", "--device", "tpu"])
    assert notice not in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["train-ppo --env-id FrozenLake-v1 --preset", "pipeline --env-id FrozenLake-v1 --preset", "presets FrozenLake-v1"],
)
def test_an_environment_without_one_is_told_which_have_one(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(command.split())
    assert leaving.value.code == 2
    told = "there is no preset for FrozenLake-v1; there are presets for Acrobot-v1, Ant-v5, BipedalWalker-v3, "
    assert told in capsys.readouterr().err


def test_they_are_listed_with_reasons_and_what_to_expect(capsys):
    main(["presets"])
    printed = capsys.readouterr().out
    for env_id, preset in PRESETS.items():
        assert f"{env_id}: mean return {preset.expected}" in printed
    assert "--no-normalize-obs          angles and speeds are of a fit size as they are" in printed
    assert "--gamma 0.999               the landing that is worth most comes hundreds of steps later" in printed
    main(["presets", "Hopper-v5"])
    assert "HalfCheetah" not in capsys.readouterr().out


@pytest.mark.parametrize("env_id", PRESETS)
def test_the_return_to_expect_is_what_was_measured(env_id):
    command = command_of(Task(env_id))
    rows = [*read_rows(), *read_rows(AGAIN)]
    finals = [row["final"] for row in rows if row["side"] == "ours" and row["settings"] == command]
    number, _, reservation = PRESETS[env_id].expected.partition(" ")
    digits = len(number.partition(".")[2])
    assert float(number.replace(",", "")) == pytest.approx(np.mean(finals), abs=0.51 * 10**-digits)
    assert bool(reservation) is (len(finals) < 10)


def test_the_pipeline_takes_it_with_its_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "pipeline", seen.append)
    main(["pipeline", "--env-id", "Hopper-v5", "--preset"])
    main(["pipeline", "--env-id", "Hopper-v5", "--preset", "--ppo-timesteps", "9"])
    main(["pipeline", "--env-id", "Hopper-v5"])
    assert [(config.ppo_timesteps, config.preset) for config in seen] == [(1_000_000, True), (9, True), (200_000, False)]


def test_the_pipeline_trains_its_expert_by_it(monkeypatch):
    class EnoughError(Exception):
        pass

    def noted(config):
        assert (config.num_envs, config.ppo.n_steps, config.total_timesteps) == (16, 128, 5)
        raise EnoughError

    monkeypatch.setattr(train_ppo, "train_ppo", noted)
    monkeypatch.setattr(pipeline, "_require_possible", lambda *_: None)
    with pytest.raises(EnoughError):
        pipeline.pipeline(PipelineConfig("Hopper-v5", ppo_timesteps=5, preset=True))
