"""Comparisons: the same start states for all, numbers that agree with themselves, and words that agree with the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from il_based_rl import compare
from il_based_rl.collect import collect_demos
from il_based_rl.compare import _named, compare_policies
from il_based_rl.config import CompareConfig
from il_based_rl.errors import ConfigError, FileMissingError, SpaceMismatchError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.files import write_json
from il_based_rl.ppo_agent import PPOAgent


class Goals(gym.Env):
    """Start states are worth between 0 and 100; an action adds its own value; says whether more than 50 was reached."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)

    def __init__(self, says=True):
        self._says = says

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._worth, self._steps = float(self.np_random.uniform(0, 100)), 0
        return np.array([self._worth, 0.0], np.float32), {}

    def step(self, action):
        self._steps += 1
        reward = self._worth / 4 + float(action[0]) / 4
        done = self._steps == 4
        info = {"is_success": self._worth > 50} if done and self._says else {}
        return np.array([self._worth, self._steps], np.float32), reward, done, False, info


@pytest.fixture(autouse=True)
def _environments(monkeypatch):
    for name, says in (("goals/Goals-v0", True), ("goals/Silent-v0", False)):
        monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, Goals, kwargs={"says": says}))


def always(value):
    return lambda obs: np.array([value], np.float32)


def agent(seed=0):
    env = gym.make("goals/Goals-v0")
    return PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=seed)


def of(numbers, name):
    return next(policy for policy in numbers["policies"] if policy["name"] == name)


def test_odd_arguments_are_taken_as_they_are_meant_or_refused(tmp_path):
    policies, env_id = {"five": always(5.0)}, "goals/Goals-v0"
    comparison = compare_policies(policies, gym.spec(env_id), np.int64(3), success_threshold=np.float32(9.0))
    write_json(tmp_path / "c.json", comparison.numbers)
    assert comparison.numbers["env_id"] == env_id
    with pytest.raises(TypeError):
        compare_policies(policies, env_id, start_seeds=[0.5, 1.5])
    with pytest.raises(ConfigError, match="two policies have one name"):
        compare_policies({1: always(5.0), "1": always(4.0)}, env_id, 3)


def test_all_play_from_the_start_states_that_evaluate_has_for_this_seed():
    comparison = compare_policies({"five": always(5.0), "four": always(4.0)}, "goals/Goals-v0", 30, seed=7)
    alone = evaluate_policy(always(5.0), "goals/Goals-v0", 30, seed=7)
    assert comparison.numbers["start_seeds"] == alone.start_seeds.tolist()
    assert of(comparison.numbers, "five")["returns"] == [alone.returns.tolist()]
    np.testing.assert_allclose(comparison.contenders[0].values - comparison.contenders[1].values, 1.0, atol=1e-5)


def test_a_small_difference_is_found_though_start_states_differ_far_more():
    numbers = compare_policies({"expert": always(5.0), "student": always(4.0)}, "goals/Goals-v0", 50).numbers
    pair = numbers["pairs"][0]
    assert (pair["policy"], pair["against"], pair["paired"]) == ("student", "expert", True)
    assert pair["difference"]["value"] == pytest.approx(-1.0, abs=1e-5)
    assert pair["difference"]["high"] < -0.99
    assert pair["probability_of_improvement"]["value"] == 0.0
    assert of(numbers, "student")["mean"]["high"] > of(numbers, "expert")["mean"]["low"] + 1.0  # apart they tell nothing
    share = numbers["shares_of_advantage"]["student"]
    assert share["value"] == pytest.approx(0.8, abs=0.1)  # of 5 over a random policy's 0, one is lost
    sentence = numbers["sentences"][0]
    assert sentence.startswith(f"The student keeps {100 * share['value']:.1f} %")
    assert "worse than the expert, by 1.0" in sentence


def test_policies_that_do_the_same_do_not_differ():
    numbers = compare_policies({"one": always(3.0), "other": always(3.0)}, "goals/Goals-v0", 40).numbers
    assert numbers["pairs"][0]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert numbers["pairs"][0]["probability_of_improvement"]["value"] == 0.5
    assert "does not clearly differ from one" in numbers["sentences"][0]
    assert numbers["sentences"][0].startswith("other keeps 100.0 % [100.0, 100.0] of one's advantage over random")


def test_no_share_is_claimed_of_an_advantage_that_is_none():
    numbers = compare_policies({"expert": always(-5.0), "student": always(-6.0)}, "goals/Goals-v0", 40).numbers
    assert numbers["shares_of_advantage"] == {}
    assert numbers["sentences"][0].startswith("The student is worse than the expert")
    assert numbers["sentences"][1].startswith("The random policy is better than the expert")


@pytest.mark.parametrize(
    ("env_id", "threshold", "rate"), [("Goals", None, "own"), ("Goals", 80.0, 80.0), ("Silent", None, None)]
)
def test_success_is_the_environments_word_or_a_threshold(env_id, threshold, rate):
    comparison = compare_policies({"zero": always(0.0)}, f"goals/{env_id}-v0", 50, success_threshold=threshold)
    found = of(comparison.numbers, "zero")["success_rate"]
    if rate is None:
        assert found is None
        assert "success" not in comparison.markdown()
    else:
        returns = comparison.contenders[0].values
        assert found["value"] == np.mean(returns > 50 if rate == "own" else returns >= rate)
        assert found["low"] < found["value"] < found["high"]


def test_several_training_runs_are_judged_by_the_means_of_each():
    runs = [always(x) for x in (4.0, 5.0, 6.0)]
    numbers = compare_policies({"expert": always(9.0), "student": runs}, "goals/Goals-v0", 40).numbers
    student = of(numbers, "student")
    assert student["runs"] == 3
    means, of_starts = np.mean(student["returns"], axis=1), np.mean(student["returns"], axis=0)
    # t(0.975, 2) = 4.302653 of the runs; t(0.975, 39) = 2.022691 of the start states, whose luck all runs share
    half = math.hypot(4.302653 * means.std(ddof=1) / 3**0.5, 2.022691 * of_starts.std(ddof=1) / 40**0.5)
    assert student["mean"]["high"] - student["mean"]["value"] == pytest.approx(half, rel=1e-5)
    assert numbers["pairs"][0]["paired"] is False
    assert any("student (3)" in warning for warning in numbers["warnings"])


def test_a_callable_an_agent_and_a_checkpoint_are_all_policies(tmp_path):
    ours = agent()
    ours.save(tmp_path / "a.pt")
    comparison = compare_policies({"agent": ours, "file": tmp_path / "a.pt", "callable": always(0.0)}, "goals/Goals-v0", 10)
    first, second, third, random = comparison.numbers["policies"]
    assert first["returns"] == second["returns"]
    assert first["parameters"] == second["parameters"] == 2 * 8 + 8 + 8 + 1
    assert second["file_bytes"] == (tmp_path / "a.pt").stat().st_size
    assert first["file_bytes"] is third["file_bytes"] is third["parameters"] is None
    assert 0 < first["latency_us"]["p50"] <= first["latency_us"]["p99"]
    assert (random["name"], random["latency_us"]) == ("random", None)


@pytest.mark.parametrize("policies", [{"random": always(0.0)}, {"a": "random"}, {"a": [always(0.0), "random"]}])
def test_random_is_the_name_of_the_random_policy_alone(policies):
    with pytest.raises(ConfigError, match="random stands for"):
        compare_policies(policies, "goals/Goals-v0", 5)


def test_one_training_run_is_not_told_apart_from_several():
    runs = [always(x) for x in (4.0, 5.0, 6.0, 5.0)]
    numbers = compare_policies({"expert": always(9.0), "student": runs}, "goals/Goals-v0", 40).numbers
    pair = numbers["pairs"][0]
    assert pair["difference"]["value"] == pytest.approx(-4.0, abs=1e-5)
    assert math.isnan(pair["difference"]["low"])
    assert math.isnan(pair["probability_of_improvement"]["low"])
    assert "one training run against several" in numbers["sentences"][0]
    assert "keeps" not in numbers["sentences"][0]


def test_several_runs_of_both_are_compared_by_welchs_t_and_have_a_share():
    experts, students = ([always(x) for x in xs] for xs in ((9.0, 8.0, 10.0), (4.0, 5.0, 6.0)))
    numbers = compare_policies({"expert": experts, "student": students}, "goals/Goals-v0", 40).numbers
    pair, share = numbers["pairs"][0]["difference"], numbers["shares_of_advantage"]["student"]
    # Both standard deviations are 1, of three runs each: sqrt(2/3), times t(0.975, 4) = 2.776445.
    assert pair["high"] - pair["value"] == pytest.approx(2.776445 * (2 / 3) ** 0.5, rel=1e-3)
    assert share["low"] < 5 / 9 < share["high"]
    # The random policy's share is what differs between start states: its own chance, by 4/9 over the advantage of 9.
    random = np.array(of(numbers, "random")["returns"][0]) - np.mean(of(numbers, "expert")["returns"], axis=0)
    luck = 2.022691 * random.std(ddof=1) / 40**0.5 * (1 - share["value"]) / abs(random.mean())
    # Of the runs: standard errors of 1 and 5/9 of 1, of three each, and t(0.975, 2) = 4.302653.
    of_runs = 4.302653 * math.hypot(1, share["value"]) / 3**0.5 / abs(random.mean())
    assert share["high"] - share["value"] == pytest.approx(math.hypot(luck, of_runs), rel=1e-3)


def test_runs_that_are_alike_are_no_surer_than_one_of_them():
    alone = of(compare_policies({"a": always(5.0)}, "goals/Goals-v0", 60).numbers, "a")
    runs = {"a": [always(5.0), always(5.0), always(5.0)], "b": [always(5.001), always(5.001)]}
    numbers = compare_policies(runs, "goals/Goals-v0", 60).numbers
    for name in runs:
        together = of(numbers, name)
        for kind in ("mean", "success_rate"):
            widths = [each[kind]["high"] - each[kind]["low"] for each in (together, alone)]
            assert widths[0] == pytest.approx(widths[1], rel=0.1)
    against_random = next(pair for pair in numbers["pairs"] if (pair["policy"], pair["against"]) == ("random", "a"))
    single = compare_policies({"a": always(5.0)}, "goals/Goals-v0", 60).numbers["pairs"][0]["difference"]
    widths = [each["high"] - each["low"] for each in (against_random["difference"], single)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    between = next(pair for pair in numbers["pairs"] if (pair["policy"], pair["against"]) == ("b", "a"))["difference"]
    assert between["high"] - between["low"] < 0.01  # what is hard for both is told from what differs


def test_success_rates_stay_rates():
    runs = [always(x) for x in (-10.0, 0.0, 10.0)]
    numbers = compare_policies({"a": runs, "b": always(10.0)}, "goals/Goals-v0", 20, success_threshold=100.0).numbers
    for policy in numbers["policies"]:
        assert 0.0 <= policy["success_rate"]["low"] <= policy["success_rate"]["value"] <= policy["success_rate"]["high"] <= 1.0
    assert of(numbers, "random")["success_rate"]["high"] > 0.05


def test_the_same_seed_gives_the_same_numbers(global_generators_untouched):
    def numbers():
        found = compare_policies({"agent": agent(), "five": always(5.0)}, "goals/Goals-v0", 40, seed=3).numbers
        return [{name: x for name, x in policy.items() if name != "latency_us"} for policy in found["policies"]], found["pairs"]

    assert numbers() == numbers()


def test_a_bare_path_does_not_join_a_policy_of_that_name():
    given = ["student=a.pt", "student=b.pt", "c/student.pt"]
    assert _named(given) == {"student": ["a.pt", "b.pt"], "c/student.pt": ["c/student.pt"]}


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ConfigError, match="two start states"):
        compare_policies({"five": always(5.0)}, "goals/Goals-v0", 1)
    for none in ({}, {"five": []}):
        with pytest.raises(ConfigError, match="needs policies"):
            compare_policies(none, "goals/Goals-v0")
    with pytest.raises(SpaceMismatchError):
        compare_policies({"agent": agent()}, "CartPole-v1", 2)
    with pytest.raises(FileMissingError):
        compare_policies({"agent": "nowhere.pt"}, "goals/Goals-v0", 2)


def test_one_policy_does_not_stand_for_two_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = agent()
    one.save("a.pt")
    one.save("b.pt")
    for twice in (["a.pt", "b.pt", "./a.pt"], [one, one]):
        with pytest.raises(ConfigError, match=r"method names .* twice"):
            compare_policies({"method": twice}, "goals/Goals-v0", 2, quiet=True)
    numbers = compare_policies({"method": ["a.pt"], "same": ["a.pt"]}, "goals/Goals-v0", 2, quiet=True).numbers
    assert [policy["name"] for policy in numbers["policies"]] == ["method", "same", "random"]


# ---- the command ----


def test_the_command_writes_the_numbers_as_json_and_as_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agent(0).save("expert.pt")
    agent(1).save("b.pt")
    agent(2).save("c.pt")
    flags = "--policies expert.pt student=b.pt student=c.pt --env-id goals/Goals-v0 --num-episodes 12 --save-path out/it.json"
    compare.main(flags.split())
    numbers = json.loads(Path("out/it.json").read_text())
    assert [(each["name"], each["runs"]) for each in numbers["policies"]] == [("expert", 1), ("student", 2), ("random", 1)]
    page = Path("out/it.md").read_text()
    assert page in capsys.readouterr().out
    for policy in numbers["policies"]:
        assert f"{policy['mean']['value']:.1f}" in page


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--policies nowhere.pt", "nowhere.pt"),
        ("--policies a.pt --env-id Nowhere-v9", "Nowhere-v9"),
        ("--policies a.pt --env-id CartPole-v1", "do not fit"),
        ("--num-episodes 1", "--num-episodes"),
        ("--policies a.pt --save-path .", "--save-path"),
        ("--policies a.pt --save-path a.pt/x.json", "a.pt/x.json"),
        ("--policies a.pt --success-threshold nan", "--success-threshold"),
        ("--policies random=a.pt", "random stands for"),
        ("--policies =a.pt", "names no policy"),
        ("--policies a.pt --save-path a.pt", "ends in .json"),
        ("--policies a.pt --save-path x.md", "ends in .json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agent().save("a.pt")
    with pytest.raises(SystemExit) as leaving:
        compare.main(["--num-episodes", "2", *flags.split()])
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
    assert [path.name for path in Path().iterdir()] == ["a.pt"]


def test_a_table_keeps_its_form_whatever_a_policy_is_called():
    comparison = compare_policies({"a|b": always(0.0)}, "goals/Goals-v0", 5)
    rows = [line for line in comparison.markdown().splitlines() if line.startswith("|")]
    assert "a\\|b" in rows[2]
    assert not math.isnan(comparison.numbers["pairs"][0]["difference"]["value"])


def test_episodes_tell_of_success_in_a_collection_too():
    dataset = collect_demos("goals/Goals-v0", always(0.0), 3, seed=0)
    assert dataset.num_episodes == 3


def test_what_lay_where_the_comparison_is_written_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agent().save("a.pt")
    Path("README.md").write_text("mine")
    compare.compare(CompareConfig(("a.pt",), "goals/Goals-v0", 3, save_path="README.json"))
    assert Path("README.md.bak").read_text() == "mine"
    assert Path("README.md").read_text().startswith("# goals/Goals-v0")
    assert not Path("README.json.bak").exists()
    assert "README.md is replaced; the old file is kept as README.md.bak" in capsys.readouterr().err


def test_paths_that_hold_a_sign_of_equality_or_end_alike_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("lr=0.1.pt", "p/a.pt", "q/a.pt"):
        agent().save(path)
    found = compare.compare(CompareConfig(("lr=0.1.pt", "p/a.pt", "q/a.pt", "x=p/a.pt"), "goals/Goals-v0", 3))
    assert [each.name for each in found.contenders] == ["lr=0.1", "p/a.pt", "q/a.pt", "x", "random"]
