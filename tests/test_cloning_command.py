"""`il-rl train` with evaluation, fewer demonstrations and early stopping; `il-rl demos-needed`; the pipeline that goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, DemosNeededConfig, PipelineConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.experiment.run import TIME_FIELDS
from il_based_rl.files import read_checkpoint, read_rows
from il_based_rl.pipeline import pipeline
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.report.demos_needed import Point, _conclusion, demos_needed
from il_based_rl.seeding import start_seeds
from il_based_rl.statistics import Estimate, mean_interval

ENV = "Pendulum-v1"


def lazy(obs):
    return np.float32([-obs[2] / 4])


@pytest.fixture(autouse=True)
def _demonstrations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collect_demos(ENV, lazy, 6, seed=0, quiet=True).save("d.npz")


TRAIN = "train --demo-path d.npz --hidden-dims 8 --seed 0 --save-path c/s.pt"


def refused(arguments, capsys):
    """Return what a command says that must be refused with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(arguments.split())
    told = " ".join(capsys.readouterr().err.split())
    assert leaving.value.code == 2
    assert "Traceback" not in told
    return told


# ---- evaluation ----

JUDGED = f"{TRAIN} --epochs 7 --eval-env-id {ENV} --eval-interval 3 --eval-episodes 2"


def test_students_are_evaluated_from_time_to_time_and_the_best_is_kept(capsys):
    main(JUDGED.split())
    rows = {row["step"]: row["eval_reward"] for row in read_rows("c/s/metrics.jsonl") if "eval_reward" in row}
    assert list(rows) == [3, 6, 7]
    best = max(rows, key=lambda epoch: (rows[epoch], epoch))
    assert read_checkpoint("c/s/best.pt")["training"]["epochs"] == best
    assert read_checkpoint("c/s.pt")["training"]["epochs"] == 7
    seeds = list(start_seeds(0, "evaluation in training", 2))
    found = evaluate_policy(BCAgent.load("c/s/best.pt"), ENV, start_seeds=seeds, quiet=True).mean
    assert found == pytest.approx(rows[best])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"Best student by evaluation (mean return {rows[best]:.2f}): c/s/best.pt"
    assert f"eval_reward={rows[3]:.2f}" in "".join(printed)


@pytest.mark.parametrize("nth", [1, 4, 7])
def test_an_evaluated_run_that_was_interrupted_ends_where_one_straight_through_ends(nth, monkeypatch):
    main(JUDGED.split())
    real, calls = BCAgent._require_finite, []

    def struck(self, loss):
        calls.append(1)
        if len(calls) == nth:
            raise KeyboardInterrupt
        real(self, loss)

    with monkeypatch.context() as patched:
        patched.setattr(BCAgent, "_require_finite", struck)
        with pytest.raises(SystemExit):
            main(JUDGED.replace("c/s.pt", "e/s.pt").split())
    main(["train", "--resume", "--save-path", "e/s.pt"])
    for name in ("s.pt", "s/best.pt"):
        one, other = read_checkpoint(f"c/{name}"), read_checkpoint(f"e/{name}")
        assert repr(one["parameters"]) == repr(other["parameters"])
        assert one["training"]["epochs"] == other["training"]["epochs"]
    rows = [[row | dict.fromkeys(TIME_FIELDS, 0) for row in read_rows(f"{folder}/s/metrics.jsonl")] for folder in "ce"]
    assert rows[0] == rows[1]


def test_an_environment_of_other_spaces_is_refused_and_nothing_is_written(capsys):
    assert "the demonstrations and CartPole-v1 do not fit" in refused(f"{TRAIN} --eval-env-id CartPole-v1", capsys)
    assert not Path("c").exists()


@pytest.mark.parametrize("level", ["exact", "episode"])
def test_a_resumed_run_says_so_where_evaluations_depend_on_what_was_played_before(level, monkeypatch, capsys):
    monkeypatch.setattr("il_based_rl.envs.resume_level", lambda env_id: level)
    main(f"{JUDGED} --max-time 0.000001".split())
    main(["train", "--resume", "--save-path", "c/s.pt", "--max-time", "100"])
    assert read_checkpoint("c/s.pt")["run"]["resumes"] == [{"step": 0, "level": level}]
    assert ("with new episodes" in capsys.readouterr().err) == (level == "episode")


def test_the_evaluation_may_not_change_when_a_run_is_resumed(capsys):
    main(JUDGED.split())
    assert "leave the flag out" in refused("train --resume --save-path c/s.pt --eval-episodes 3", capsys)


def test_a_hyperparameter_that_may_not_change_is_named_alone(capsys):
    main(f"{TRAIN} --epochs 2".split())
    assert "c/s.pt was trained with epochs 2, not 5; leave the flag out" in refused(
        "train --resume --save-path c/s.pt --epochs 5", capsys
    )


@pytest.mark.parametrize("command", ["train-ppo", "train", "dagger", "finetune"])
@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_is_no_save_path_of_a_run_to_resume(command, place, capsys):
    assert "--save-path must be the path of a file" in refused(f"{command} --resume --save-path {place}", capsys)


# ---- fewer demonstrations, early stopping, losses ----


def test_only_the_first_demonstrations_are_used_if_told_so(capsys):
    main(f"{TRAIN} --epochs 1 --max-demos 2".split())
    assert "Cloning d.npz: 2 episodes, 400 transitions..." in capsys.readouterr().out
    main(f"{TRAIN} --epochs 1 --max-demos 99".split())
    told = capsys.readouterr()
    assert "6 episodes" in told.out
    assert "d.npz holds no more than 6 episodes; all are used" in told.err
    assert "--max-demos must be above 0" in refused(f"{TRAIN} --max-demos 0", capsys)


@pytest.mark.parametrize("flag", ["--l2-coef", "--lr"])
def test_a_setting_beyond_what_is_computed_in_is_refused(flag, capsys):
    assert f"{flag} must be" in refused(f"{TRAIN} {flag} 1e300", capsys)


def test_how_many_demonstrations_are_used_stays_when_a_run_is_resumed(capsys):
    main(f"{TRAIN} --epochs 1".split())
    told = refused("train --resume --save-path c/s.pt --epochs 2 --max-demos 2", capsys)
    assert "max_demos None, not 2; leave the flag out" in told


def test_a_run_that_stops_early_is_finished(capsys):
    main(f"{TRAIN} --epochs 400 --lr 0.03 --patience 2".split())
    epochs = read_checkpoint("c/s.pt")["training"]["epochs"]
    losses = [row["validation_loss"] for row in read_rows("c/s/metrics.jsonl")]
    assert len(losses) == epochs < 400
    assert min(losses) == losses[-3]
    main(["runs", "c"])
    assert "finished" in capsys.readouterr().out
    main(["train", "--resume", "--save-path", "c/s.pt"])
    assert f"it has had its {epochs} epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--loss cross-entropy", "--loss cross-entropy does not fit continuous actions"),
        ("--loss kl", "do not hold"),
        ("--loss mse --entropy-coef 0.1", "--entropy-coef needs a loss of a distribution"),
        ("--l2-coef -1", "--l2-coef must be 0 or more"),
        ("--patience 0", "--patience must be above 0"),
        ("--max-demos 1 --patience 3", "of one episode"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(flags, says, capsys):
    assert says in refused(f"{TRAIN} {flags}", capsys)
    assert not list(Path().rglob("*.pt"))


# ---- demos-needed ----

NEEDED = "demos-needed --demo-path d.npz --num-seeds 2 --eval-episodes 3 --hidden-dims 8 --epochs 2 --save-path n/n.json"


def test_students_are_cloned_from_ever_more_demonstrations(capsys):
    main(NEEDED.split())
    numbers = json.loads(Path("n/n.json").read_text())
    assert [point["demos"] for point in numbers["points"]] == [1, 2, 4, 6]
    assert [point["transitions"] for point in numbers["points"]] == [200.0, 400.0, 800.0, 1200.0]
    assert all(
        len(point["returns"]) == 2 and point["low"] < sum(point["returns"]) / 2 < point["high"] for point in numbers["points"]
    )
    for point in numbers["points"]:
        low, high = mean_interval(np.array(point["returns"]))
        assert point["low"] < low < high < point["high"]  # as the start states have luck of their own
    assert Path("n/n.svg").read_text().count("<svg") == 1
    printed = capsys.readouterr().out
    assert printed.startswith("Demonstrated: mean return -")
    assert "     4 demonstrations: mean return" in printed


def test_what_sets_the_demonstrated_return_apart_is_said(capsys):
    def told(dataset):
        dataset.save("other.npz")
        main(f"{NEEDED} --counts 1 --num-seeds 1 --demo-path other.npz".split())
        return capsys.readouterr().out.splitlines()[0]

    demos = DemoDataset.load("d.npz")
    assert ", of " not in told(demos)
    chosen = replace(demos, metadata={**demos.metadata, "min_return": -900.0})
    assert ", of episodes that were kept as they return -900 or more" in told(chosen)
    who = {**demos.metadata, "policies": ["expert", "student of round 1"]}
    asked = replace(demos, acted_by=np.repeat([0, 0, 0, 0, 1, 1], 200), executed_actions=demos.actions, metadata=who)
    assert ", of students that acted beside the expert" in told(asked)


def test_what_one_number_gives_does_not_depend_on_the_others():
    config = DemosNeededConfig(
        demo_path="d.npz", num_seeds=2, eval_episodes=3, hidden_dims=(8,), bc=BCConfig(epochs=2), save_path="n.json", quiet=True
    )
    Path("n.svg").write_text("mine")
    every = demos_needed(config)
    assert Path("n.svg.bak").read_text() == "mine"
    assert not Path("n.svg.bak2").exists()
    main(f"{NEEDED} --counts 2".split())
    assert json.loads(Path("n/n.json").read_text())["points"][0]["returns"] == every[1].returns


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--counts 7", "--counts 7 is more than the 6 episodes of d.npz"),
        ("--counts 0", "--counts must be whole numbers above 0"),
        ("--env-id CartPole-v1", "the demonstrations are of Pendulum-v1, not of CartPole-v1"),
        ("--demo-path none.npz", "none.npz"),
        ("--save-path n/n.txt", "a path that ends in .json"),
        ("--eval-episodes 1", "at least 2"),
        ("--loss cross-entropy", "does not fit continuous actions"),
        ("--demo-path wide.npz", "observations of shape (2,) and actions of shape (1,), the policy reads (3,)"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_bad_input_is_refused_and_leaves_files_as_they_are(flags, says, there, capsys):
    demos = DemoDataset.load("d.npz")
    narrow = {"observations": demos.observations[:, :2], "final_observations": demos.final_observations[:, :2]}
    replace(demos, **narrow, metadata={"env_id": ENV}).save("wide.npz")
    if there:
        main(f"{NEEDED} --counts 1".split())
    before = {path: path.read_bytes() for path in Path("n").rglob("*")}
    assert says in refused(f"{NEEDED} {flags}", capsys)
    assert {path: path.read_bytes() for path in Path("n").rglob("*")} == before


def test_demonstrations_without_spaces_are_cloned_for_those_of_the_environment():
    replace(DemoDataset.load("d.npz"), metadata={}).save("nameless.npz")
    main(f"{NEEDED} --counts 2".split())
    named = json.loads(Path("n/n.json").read_text())["points"]
    main(f"{NEEDED} --counts 2 --demo-path nameless.npz --env-id {ENV}".split())
    assert json.loads(Path("n/n.json").read_text())["points"] == named


def points(*intervals):
    return [Point(2**k, 100.0 * 2**k, [low, high], low, high) for k, (low, high) in enumerate(intervals)]


@pytest.mark.parametrize(
    ("intervals", "says"),
    [
        ([(0.0, 3.0), (4.0, 9.0), (7.0, 9.0)], "From 2 demonstrations on, the students' interval meets"),
        ([(0.0, 9.0), (4.0, 7.0), (7.0, 9.0)], "From 4 demonstrations on, the students' interval meets"),
        ([(0.0, 9.0), (4.0, 7.0)], "No number of demonstrations gave students whose interval meets"),
        ([(math.nan, math.nan), (4.0, 9.0)], "How many are enough cannot be told without intervals"),
    ],
)
def test_enough_is_from_where_on_all_intervals_meet_the_demonstrators(intervals, says):
    assert _conclusion(points(*intervals), Estimate(10.0, 8.0, 12.0)).startswith(says)


def test_one_demonstrator_gives_no_interval_to_meet():
    assert "cannot be told" in _conclusion(points((0.0, 9.0)), Estimate(10.0, math.nan, math.nan))


def test_one_demonstration_leaves_nothing_for_patience(capsys):
    assert "--patience needs episodes to hold out" in refused(f"{NEEDED} --patience 1 --counts 1 2", capsys)


# ---- the pipeline ----


def test_the_pipeline_goes_on_with_dagger_and_fine_tuning(capsys):
    config = PipelineConfig(
        ENV, ppo_timesteps=2048, num_demo_episodes=2, bc_epochs=2, dagger=2, finetune=2048, num_eval_episodes=5, output_dir="p"
    )
    comparison = pipeline(config)
    assert [each.name for each in comparison.contenders] == [
        "expert",
        "student",
        "DAgger student",
        "fine-tuned student",
        "random",
    ]
    dagger, finetuned = read_checkpoint("p/checkpoints/dagger_student.pt"), read_checkpoint("p/checkpoints/finetuned.pt")
    assert dagger["run"]["settings"]["demo_path"] == "p/demos/ppo_expert_demos.npz"
    assert dagger["training"]["env_steps"] == 400 + 2 * 2000
    assert finetuned["run"]["settings"]["checkpoint"] == "p/checkpoints/dagger_student.pt"
    printed = capsys.readouterr().out
    assert "| fine-tuned student |" in printed
    assert "DAgger student      p/checkpoints/dagger_student.pt" in printed
    page = Path("p/report.html").read_text()
    assert "questions to the expert" in page
    assert "fine-tuned student" in page
    capsys.readouterr()
    main(["report", "p", "--num-episodes", "3", "--no-video"])
    again = json.loads(Path("p/report.json").read_text())
    assert {policy["name"] for policy in again["policies"]} == {
        "expert",
        "student",
        "DAgger student",
        "fine-tuned student",
        "random",
    }


def test_without_dagger_fine_tuning_begins_with_the_clone():
    pipeline(PipelineConfig(ENV, 2048, 2, 2, finetune=2048, num_eval_episodes=3, output_dir="p", video=False))
    assert read_checkpoint("p/checkpoints/finetuned.pt")["run"]["settings"]["checkpoint"] == "p/checkpoints/bc_student.pt"
    assert isinstance(PPOAgent.load("p/checkpoints/finetuned.pt"), PPOAgent)


@pytest.mark.parametrize("flag", ["dagger", "finetune"])
def test_a_negative_stage_is_refused(flag, capsys):
    assert f"--{flag} must be 0 or more" in refused(f"pipeline --{flag} -1", capsys)
