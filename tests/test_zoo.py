"""Experts that come with the package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from il_based_rl import evaluate, train_ppo
from il_based_rl.checkpoint import load_agent, located
from il_based_rl.envs import InProcessEnvs
from il_based_rl.errors import FileMissingError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.presets import PRESETS

ZOO = Path(__file__).parent.parent / "zoo"
NAMES = sorted(path.stem for path in ZOO.glob("*.pt"))


def environment_of(name):
    return next(env_id for env_id in PRESETS if env_id.rsplit("-v", 1)[0].lower() == name)


def test_there_are_experts_and_each_has_its_card():
    assert NAMES
    assert sorted(path.stem for path in ZOO.glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_returns_what_its_card_says(name):
    env_id, card = environment_of(name), (ZOO / f"{name}.md").read_text()
    assert f"il-rl evaluate --env-id {env_id} --checkpoint zoo:{name}" in card
    first, last, *told = re.search(
        r"start seeds (\d+) to (\d+) it returns (-?[\d,.]+) on average and (-?[\d,.]+) at least, "
        r"with a standard deviation of ([\d,.]+), by its",
        card,
    ).groups()
    expected, lowest, spread = (float(each.replace(",", "")) for each in told)
    found = evaluate_policy(load_agent(f"zoo:{name}"), env_id, start_seeds=range(int(first), int(first) + 10))
    assert int(last) - int(first) == 99
    # Ten of the hundred start states: none below the least of all, and their mean no further off than ten values may be.
    scale = max(abs(expected), 1.0)
    assert found.returns.min() >= lowest - 0.02 * scale
    assert abs(found.mean - expected) <= max(4.0 * spread / 10**0.5, 0.02 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_is_small_and_holds_nothing_that_acting_does_not_need(name):
    assert (ZOO / f"{name}.pt").stat().st_size < 200_000
    training = PPOAgent.load(ZOO / f"{name}.pt").payload()["training"]
    assert training["optimizer"] is None
    assert training["environments"] is None


def test_a_name_that_is_not_there_is_answered_with_those_that_are(capsys):
    with pytest.raises(FileMissingError, match=rf"no 'hoper'; it has .*{NAMES[0]}"):
        load_agent("zoo:hoper")
    with pytest.raises(SystemExit) as leaving:
        evaluate.main(["--checkpoint", "zoo:../zoo/x"])
    assert leaving.value.code == 2
    assert "the zoo has no" in capsys.readouterr().err


def test_other_paths_are_taken_as_they_are():
    assert located("zoo/x.pt") == Path("zoo/x.pt")


def test_weights_alone_act_alike_and_learning_goes_on_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    obs = np.array([0.1, -0.9, 2.0], np.float32)
    with InProcessEnvs("Pendulum-v1") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, seed=0)
        list(agent.learn(envs, 2048))
        agent.save("whole.pt")
        agent.save("weights.pt", weights_only=True)
        loaded = PPOAgent.load("weights.pt")
        assert loaded.predict(obs).tolist() == agent.predict(obs).tolist()
        assert Path("weights.pt").stat().st_size < 0.5 * Path("whole.pt").stat().st_size
        assert [progress.env_steps for progress in loaded.learn(envs, 4096)] == [4096]
    train_ppo.main(
        ["--resume", "weights.pt", "--total-timesteps", "4096", "--save-path", "on.pt", "--eval-episodes", "1", "--quiet"]
    )
    assert PPOAgent.load("on.pt").env_steps == 4096
