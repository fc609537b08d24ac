"""All stages in one go, from Python and from the command line."""

import contextlib
import inspect
import io
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import toy_envs  # noqa: F401 - registers the environments

from il_based_rl import config, pipeline
from il_based_rl.__main__ import main as entry
from il_based_rl.agent import BCAgent
from il_based_rl.algorithms.aggregation import Aggregation
from il_based_rl.algorithms.guarded_ppo import GuardedPPO
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import UnknownEnvironmentError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.files import exclusive
from il_based_rl.ppo_agent import PPOAgent
from scripts.run_pipeline import main, run_pipeline

TINY = {"env_id": "toy/Counter-v0", "ppo_timesteps": 1, "num_demo_episodes": 3, "bc_epochs": 2, "seed": 4}


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run on Pendulum: the table's lines, what was printed, and the folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            comparison = run_pipeline("Pendulum-v1", ppo_timesteps=2048, num_demo_episodes=2, bc_epochs=2, seed=4)
    return comparison, printed.getvalue().splitlines(), folder


def test_the_promised_defaults_are_in_the_signature_and_in_the_command():
    promised = {"env_id": "Pendulum-v1", "ppo_timesteps": 200_000, "num_demo_episodes": 50, "bc_epochs": 100, "seed": 42}
    signature = {name: parameter.default for name, parameter in inspect.signature(run_pipeline).parameters.items()}
    assert list(signature)[:5] == list(promised)
    assert {name: signature[name] for name in promised} == promised
    assert {name: getattr(config.PipelineConfig(), name) for name in promised} == promised


def test_arguments_reach_the_stages(monkeypatch):
    seen = []
    monkeypatch.setattr("scripts.run_pipeline.pipeline", seen.append)
    run_pipeline("CartPole-v1", 11, 12, 13, 14)
    expected = config.PipelineConfig("CartPole-v1", ppo_timesteps=11, num_demo_episodes=12, bc_epochs=13, seed=14)
    assert seen == [expected]


def test_every_stage_writes_its_file_where_it_was_promised(finished):
    _, printed, folder = finished
    expert = PPOAgent.load(folder / "checkpoints/ppo_expert.pt", hidden_dims=[64, 64])
    student = BCAgent.load(folder / "checkpoints/bc_student.pt", hidden_dims=[256, 256])
    demos = DemoDataset.load(folder / "demos/ppo_expert_demos.npz")
    assert (expert.env_steps, expert.seed) == (2048, 4)
    assert student.epochs == 2
    assert demos.num_episodes == 2
    np.testing.assert_allclose(demos.actions, expert.predict(demos.observations), rtol=1e-4, atol=1e-5)
    assert "Checkpoint saved to checkpoints/ppo_expert.pt" in printed
    for path in ("checkpoints/ppo_expert.pt", "demos/ppo_expert_demos.npz", "checkpoints/bc_student.pt", "report.html"):
        assert any(path in line for line in printed[-4:])


def test_the_table_shows_expert_student_and_random_side_by_side(finished):
    comparison, printed, _ = finished
    assert [each["name"] for each in comparison.numbers["policies"]] == ["expert", "student", "random"]
    for each in comparison.numbers["policies"]:
        (line,) = [
            line
            for line in printed
            if re.match(rf"\| {each['name']} +\| .* KiB|\| random +\| .*\| - ", line) and each["name"] in line
        ]
        shown = re.search(r"\| (-[\d.]+) \[(-[\d.]+), (-[\d.]+)\]", line).groups()
        assert [float(x) for x in shown] == pytest.approx([each["mean"][end] for end in ("value", "low", "high")], abs=0.051)
        assert each["mean"]["low"] < each["mean"]["value"] < each["mean"]["high"]
    assert any("same 100 start states" in line for line in printed)


def test_the_table_shows_how_large_each_policy_is(finished):
    comparison, printed, _ = finished
    # 3 inputs, layers of 64 and 64 (expert) or 256 and 256 (student), 1 output
    assert [each["parameters"] for each in comparison.numbers["policies"]] == [4481, 67073, None]
    for name, count in (("expert", "4,481"), ("student", "67,073")):
        assert any(line.startswith(f"| {name}") and f" {count} " in line for line in printed)


def test_all_policies_play_the_same_start_states_which_no_demonstration_started_from(finished):
    comparison, _, folder = finished
    seeds = comparison.numbers["start_seeds"]
    for each in comparison.contenders:
        assert each.results[0].start_seeds.tolist() == seeds
    assert len(set(seeds)) == 100
    demos = DemoDataset.load(folder / "demos/ppo_expert_demos.npz")
    assert not set(seeds) & set(demos.seeds.tolist())


def test_the_numbers_of_the_table_are_those_of_the_saved_policies(finished):
    comparison, _, folder = finished
    seeds = comparison.numbers["start_seeds"][:3]
    for each, agent in zip(comparison.contenders, (PPOAgent, BCAgent), strict=False):
        again = evaluate_policy(agent.load(folder / each.paths[0]), "Pendulum-v1", start_seeds=seeds)
        np.testing.assert_allclose(again.returns, each.values[:3], rtol=1e-4)


def test_a_seed_decides_the_whole_pipeline():
    first, again, other = (run_pipeline(**(TINY | {"seed": seed})) for seed in (4, 4, 5))
    for one, two in zip(first.contenders, again.contenders, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
    weights = [BCAgent.load(f"checkpoints/bc_student.pt{end}").policy.network.layers[0].weight for end in ("", ".bak")]
    assert not weights[0].equal(weights[1])
    assert other.numbers["start_seeds"] != first.numbers["start_seeds"]


@pytest.mark.parametrize("env_id", ["toy/Gears-v0", "toy/Levers-v0", "toy/Bits-v0", "toy/Dict-v0"])
def test_every_kind_of_action_goes_through_all_stages(env_id, capsys):
    comparison = run_pipeline(**(TINY | {"env_id": env_id}))
    assert [each.returns.shape for each in comparison.contenders] == [(1, 100)] * 3
    assert f"{env_id}: 3 policies from the same 100" in capsys.readouterr().out
    assert "Where the student fails" in Path("report.html").read_text()


@pytest.mark.parametrize("env_id", ["toy_envs:toy/Counter-v0", "toy/Switches-v0", "toy/Dials-v0"])
def test_an_environment_of_a_module_and_observations_of_choices_go_through_all_stages(env_id):
    run_pipeline(**(TINY | {"env_id": env_id}))
    assert "Where the student fails" in Path("report.html").read_text()


def test_the_command_writes_under_its_output_folder_and_returns_none():
    flags = "--env-id toy/Counter-v0 --ppo-timesteps 1 --num-demo-episodes 2 --bc-epochs 1 --num-eval-episodes 2 --output-dir o"
    assert main is pipeline.main
    assert main(flags.split()) is None
    assert names_in(".") == ["o"]
    assert names_in("o/checkpoints") == [".pipeline.lock", "bc_student", "bc_student.pt", "ppo_expert", "ppo_expert.pt"]
    assert names_in("o/demos") == ["ppo_expert_demos.npz"]


def test_demonstrations_may_be_disturbed():
    flags = "--env-id toy/Gears-v0 --ppo-timesteps 1 --num-demo-episodes 2 --bc-epochs 1 --num-eval-episodes 2"
    main([*flags.split(), "--action-noise", "0.3", "--no-video", "--quiet"])
    demos = DemoDataset.load("demos/ppo_expert_demos.npz")
    assert demos.metadata["action_noise"] == 0.3
    assert not np.array_equal(demos.executed_actions, demos.actions)


def test_a_second_pipeline_in_the_same_folder_is_refused_before_it_writes_anything(capsys):
    flags = "--env-id toy/Counter-v0 --ppo-timesteps 1 --num-demo-episodes 2 --bc-epochs 1 --num-eval-episodes 2 --output-dir o"
    with exclusive(Path("o/checkpoints/.pipeline.lock")), pytest.raises(SystemExit) as leaving:
        main(flags.split())
    assert leaving.value.code == 2
    assert f"o is being written by process {os.getpid()}" in capsys.readouterr().err
    assert names_in("o/checkpoints") == [".pipeline.lock"]


def test_a_wrong_environment_raises_a_named_error_from_python():
    with pytest.raises(UnknownEnvironmentError, match="Pendulum-v1"):
        run_pipeline("Pendulm-v1")
    assert names_in(".") == []


@pytest.mark.parametrize("place", ["checkpoints", "demos", "checkpoints/bc_student.pt", "demos/ppo_expert_demos.npz"])
def test_a_place_that_cannot_be_written_is_refused_before_any_stage_begins(place, capsys):
    if place.endswith((".pt", ".npz")):
        Path(place).mkdir(parents=True)
    else:
        Path(place).write_text("in the way")
    with pytest.raises(SystemExit) as leaving:
        main(["--env-id", "toy/Counter-v0", "--ppo-timesteps", "1", "--num-demo-episodes", "1", "--bc-epochs", "1"])
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert place in captured.err
    assert "Checkpoint saved" not in captured.out
    assert not Path("checkpoints/ppo_expert.pt").is_file()


@pytest.mark.parametrize("stage", ["train-ppo", "train", "dagger", "finetune"])
def test_who_interrupts_a_stage_is_told_which_command_goes_on_with_it(stage, monkeypatch, capsys):
    owner, name = {
        "train-ppo": (PPOAgent, "learn"),
        "train": (BCAgent, "learn"),
        "dagger": (Aggregation, "learn"),
        "finetune": (GuardedPPO, "learn"),
    }[stage]

    def interrupted(*given, **named):
        raise KeyboardInterrupt
        yield

    small = ["--ppo-timesteps", "1", "--num-demo-episodes", "3", "--bc-epochs", "2", "--dagger", "1", "--finetune", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit) as leaving:
            pipeline.main(["--env-id", "toy_envs:toy/Counter-v0", "--seed", "4", "--output-dir", "my runs", *small])
    assert leaving.value.code == 130
    saved, hint, last = capsys.readouterr().err.splitlines()[-3:]
    assert saved.endswith("go on with --resume")
    assert last == "interrupted"
    resume = re.fullmatch(r"`il-rl (.*)` goes on with this stage alone; a pipeline begins anew", hint)
    named = "" if stage == "train" else " --env-id toy_envs:toy/Counter-v0"
    assert resume[1].startswith(f"{stage}{named} --resume --save-path 'my runs")
    assert entry(shlex.split(resume[1])) is None
