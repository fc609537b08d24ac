"""A training run: what it prints, what it keeps on disk, and how it goes on."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_envs import STILL

import il_based_rl.evaluate
from il_based_rl import collect, train, train_ppo
from il_based_rl.__main__ import main
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, PPOConfig, TrainConfig, TrainPPOConfig
from il_based_rl.envs import InProcessEnvs
from il_based_rl.errors import FileWriteError, LockedError, ResumeError, TimeIsUp
from il_based_rl.experiment.hardware import SMALL_WIDTH, fitting_threads, require_device
from il_based_rl.experiment.run import TIME_FIELDS, Run, RunFiles
from il_based_rl.files import RowFile, exclusive, read_checkpoint, read_rows, sweep, write_checkpoint
from il_based_rl.ppo_agent import PPOAgent

TINY = "--env-id toy/Counter-v0 --n-steps 64 --batch-size 32 --n-epochs 1 --hidden-dims 8 --eval-interval 100 --eval-episodes 2"


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_ppo(flags="", *, total=320, seed=0, path="c/a.pt"):
    return train_ppo.main(f"{TINY} --total-timesteps {total} --seed {seed} --save-path {path} {flags}".split())


def resume(flags="", path="c/a.pt"):
    return train_ppo.main(f"--resume --save-path {path} {flags}".split())


def steps_of(path="c/a/metrics.jsonl"):
    return [row["step"] for row in read_rows(path)]


def tree(folder="."):
    return sorted(
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"
    )


def read(path):
    return Path(path).read_bytes()


def refusal(capsys, call, *arguments, **named):
    """Run a command that must refuse; return its one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        call(*arguments, **named)
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    (line,) = captured.err.splitlines()
    return line


@pytest.fixture
def demos():
    collect_demos("toy/Counter-v0", STILL, 4).save("demos.npz")
    return ["--demo-path", "demos.npz", "--epochs", "20", "--hidden-dims", "8", "--seed", "0", "--save-path", "c/s.pt"]


def test_standard_output_is_as_promised(capsys):
    assert run_ppo() is None
    captured = capsys.readouterr()
    opening, *evaluations, closing = captured.out.splitlines()
    assert opening == "Training PPO on toy/Counter-v0 for 320 timesteps..."
    assert closing == "Checkpoint saved to c/a.pt"
    number = r"-?\d+\.\d"
    for step, line in zip((128, 256, 320), evaluations, strict=True):
        assert re.fullmatch(
            rf"\[ +{step}\] policy_loss={number}{{4}}  value_loss={number}{{2}}  eval_reward=6\.00",
            line,  # each episode from a seed brings 1 + 2 + 3, whatever training scales rewards by
        )
        assert line.index("]") == 9
    assert captured.err == ""  # no progress bar where no terminal is


def test_a_step_of_more_than_eight_digits_is_written_whole():
    metrics = {"policy_loss": -0.00134, "value_loss": 3451.6, "eval_reward": -1135.6}
    assert train_ppo._line(10240, metrics) == "[   10240] policy_loss=-0.0013  value_loss=3451.60  eval_reward=-1135.60"
    assert train_ppo._line(1234567890, metrics).startswith("[1234567890] policy_loss=")


def test_every_line_of_standard_output_is_flushed_at_once(monkeypatch):
    class Screen(io.StringIO):
        seen = 0

        def write(self, text):
            assert self.getvalue()[self.seen :].count("\n") == 0, "a line waited for the next one"
            return super().write(text)

        def flush(self):
            self.seen = len(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Screen())
    run_ppo()
    assert sys.stdout.seen == len(sys.stdout.getvalue()) > 0


def test_progress_bars_are_drawn_on_a_terminals_standard_error_only(monkeypatch, capsys, demos):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    run_ppo()
    train.main(demos)
    bars = sys.stderr.getvalue()
    assert "/320" in bars
    assert "/20" in bars
    assert "%|" not in capsys.readouterr().out


def test_a_run_lies_in_the_folder_named_like_its_save_path():
    run_ppo(path="new/place/expert.pt")
    assert tree() == [
        "new/place/expert.pt",
        "new/place/expert/best.pt",
        "new/place/expert/metrics.jsonl",
        "new/place/expert/step_0000000128.pt",
        "new/place/expert/step_0000000256.pt",
        "new/place/expert/step_0000000320.pt",
    ]


def test_a_save_path_without_a_suffix_does_not_meet_its_folder():
    run_ppo(path="new/expert", total=128)
    assert tree() == ["new/expert", *(f"new/expert.run/{name}" for name in ("best.pt", "metrics.jsonl", "step_0000000128.pt"))]


def test_there_is_a_row_for_every_update_and_its_numbers_are_the_printed_ones(capsys):
    run_ppo()
    rows = read_rows("c/a/metrics.jsonl")
    assert [row["step"] for row in rows] == [64, 128, 192, 256, 320]
    assert [row["step"] for row in rows if "eval_reward" in row] == [128, 256, 320]
    for row in rows:
        assert {"policy_loss", "value_loss", "entropy", "learning_rate", "wall_seconds"} <= set(row)
        assert row["learning_rate"] == 3e-4
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert printed == [train_ppo._line(row["step"], row) for row in rows if "eval_reward" in row]


def test_episode_returns_are_raw_means_of_the_episodes_that_ended_in_the_rollout():
    run_ppo("--num-envs 2", total=128)
    (row,) = read_rows("c/a/metrics.jsonl")
    # Episodes bring 6, 410, 606, 810, ... as steps 1 to 3 and 1 to 4 take turns; of 64 steps 18 episodes are whole.
    returns = [100 * number * length + length * (length + 1) // 2 for number in range(18) for length in [3 + number % 2]]
    assert row["episode_return"] == pytest.approx(np.mean(returns))
    assert row["episode_length"] == pytest.approx(3.5)


def test_the_total_is_rounded_up_to_whole_rollouts_over_all_environments():
    run_ppo("--num-envs 2 --n-steps 32", total=100)
    assert steps_of() == [64, 128]
    assert PPOAgent.load("c/a.pt").env_steps == 128


@pytest.mark.parametrize(("interval", "evaluated"), [(64, [64, 128, 192, 256, 320]), (65, [128, 192, 256, 320]), (400, [])])
def test_evaluations_come_at_the_first_update_at_or_past_each_multiple(interval, evaluated, capsys):
    run_ppo(f"--eval-interval {interval}")
    assert [int(line[1:9]) for line in capsys.readouterr().out.splitlines() if line.startswith("[")] == evaluated


def test_only_the_last_three_periodic_checkpoints_are_kept():
    run_ppo("--eval-interval 64")
    assert [name for name in tree("c/a") if name.startswith("step")] == [f"step_0000000{step}.pt" for step in (192, 256, 320)]
    assert [PPOAgent.load(f"c/a/step_0000000{step}.pt").env_steps for step in (192, 256, 320)] == [192, 256, 320]


@pytest.fixture
def eval_rewards(monkeypatch):
    """Evaluations whose means are the numbers put into this list."""
    means = []
    results = lambda *_, **__: types.SimpleNamespace(mean=means.pop(0))  # noqa: E731
    monkeypatch.setattr(il_based_rl.evaluate, "play_evaluation", results)
    return means


def test_best_is_the_policy_with_the_highest_evaluation_also_after_a_resume(eval_rewards):
    eval_rewards += [-50.0, -20.0, -30.0]
    run_ppo()
    assert PPOAgent.load("c/a/best.pt").env_steps == 256
    assert PPOAgent.load("c/a.pt").env_steps == 320
    eval_rewards += [-25.0]
    resume("--total-timesteps 448")
    assert PPOAgent.load("c/a/best.pt").env_steps == 256
    eval_rewards += [-19.0]
    resume("--total-timesteps 512")
    assert PPOAgent.load("c/a/best.pt").env_steps == 512


def test_a_fresh_run_over_an_old_one_keeps_the_old_files_and_says_so(capsys):
    run_ppo(seed=1)
    old = {name: read(name) for name in ("c/a.pt", "c/a/best.pt", "c/a/metrics.jsonl")}
    capsys.readouterr()
    run_ppo(seed=2, total=128)
    captured = capsys.readouterr()
    assert {name: read(name + ".bak") for name in old} == old
    (notice,) = captured.err.splitlines()
    assert "c/a.pt is replaced" in notice
    assert "c/a.pt.bak" in notice
    assert "replaced" not in captured.out
    assert steps_of() == [64, 128]
    assert [name for name in tree("c/a") if name.startswith("step") and name.endswith(".pt")] == ["step_0000000128.pt"]
    assert PPOAgent.load("c/a.pt").seed == 2


def test_a_seed_decides_the_whole_run():
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run_ppo(seed=seed, path=f"{name}.pt")
    measures = [
        [{key: value for key, value in row.items() if key not in TIME_FIELDS} for row in read_rows(f"{name}/metrics.jsonl")]
        for name in "abc"
    ]
    assert measures[0] == measures[1]
    assert measures[0] != measures[2]


def test_a_run_without_a_seed_draws_one_and_writes_it_down():
    for name in ("a", "b"):
        train_ppo.main(f"{TINY} --total-timesteps 64 --save-path {name}.pt".split())
    seeds = [read_checkpoint(f"{name}.pt")["run"]["settings"]["seed"] for name in ("a", "b")]
    assert len(set(seeds)) == 2
    run_ppo(seed=seeds[0], total=64, path="again.pt")
    losses = [read_rows(f"{name}/metrics.jsonl")[0]["policy_loss"] for name in ("a", "again", "b")]
    assert losses[0] == losses[1] != losses[2]


def test_the_callers_random_generators_are_left_alone(demos):
    ppo = PPOConfig(n_steps=64, batch_size=32, n_epochs=1)
    config = TrainPPOConfig(
        "toy/Counter-v0", 128, hidden_dims=(8,), save_path="a.pt", eval_interval=64, eval_episodes=2, ppo=ppo
    )
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    train_ppo.train_ppo(config)
    train.train(TrainConfig("demos.npz", hidden_dims=(8,), save_path="s.pt", bc=BCConfig(epochs=2)))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_command_computes_on_one_thread_and_puts_the_number_back(monkeypatch, demos):
    threads, used = torch.get_num_threads(), []
    real = Run.log
    monkeypatch.setattr(Run, "log", lambda *given: (used.append(torch.get_num_threads()), real(*given)))
    torch.set_num_threads(2)
    try:
        run_ppo(total=128)
        assert torch.get_num_threads() == 2
        train.main(demos)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert used == [1] * (2 + 20)


@pytest.mark.parametrize(("hidden_dims", "inside"), [((8,), 1), ((), 1), ((SMALL_WIDTH,), 1), ((8, SMALL_WIDTH + 1), 2)])
def test_small_networks_compute_on_one_thread_even_if_they_fail(hidden_dims, inside):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ZeroDivisionError), fitting_threads(hidden_dims):
            assert torch.get_num_threads() == inside
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", ["gpu", "", "mps", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(ValueError, match=f"--device '?{device}'? .*cpu"):
        require_device(device)


def test_a_resumed_run_goes_on_with_step_optimiser_statistics_and_rows(capsys):
    run_ppo()
    first = read_checkpoint("c/a.pt")
    capsys.readouterr()
    assert resume("--total-timesteps 448") is None
    captured = capsys.readouterr()
    last = read_checkpoint("c/a.pt")
    assert steps_of() == [64, 128, 192, 256, 320, 384, 448]
    assert [int(line[1:9]) for line in captured.out.splitlines() if line.startswith("[")] == [448]
    assert captured.out.splitlines()[0] == "Training PPO on toy/Counter-v0 for 448 timesteps..."
    # A counter's observations tell how often it was reset, which no replay of one episode brings back.
    (message,) = captured.err.splitlines()
    assert message.startswith("resuming c/a.pt at step 320: with new episodes")
    assert last["training"]["gradient_steps"] == first["training"]["gradient_steps"] + 4 == 14
    assert [payload["training"]["optimizer"]["step"].item() for payload in (first, last)] == [10, 14]
    assert [payload["parameters"]["actor.normalizer.count"].item() for payload in (first, last)] == [320, 448]
    walls = [row["wall_seconds"] for row in read_rows("c/a/metrics.jsonl")]
    assert walls == sorted(walls)


def test_settings_that_are_not_given_are_those_of_the_resumed_run():
    run_ppo("--lr 0.001 --gamma 0.9 --clip-range 0.3 --no-normalize-reward --num-envs 2")
    before = read_checkpoint("c/a.pt")["run"]["settings"]
    resume("--total-timesteps 640")
    after = read_checkpoint("c/a.pt")["run"]["settings"]
    assert after | {"resume": None} == before | {"total_timesteps": 640}
    assert before["ppo"]["gamma"] == 0.9


def test_settings_that_are_given_win_over_those_of_the_resumed_run():
    run_ppo("--lr 0.001")
    resume("--total-timesteps 384 --lr 0.0001")
    assert [row["learning_rate"] for row in read_rows("c/a/metrics.jsonl")] == [0.001] * 5 + [0.0001]


@pytest.mark.parametrize("flags", ["--n-steps 32", "--batch-size 4096"])
def test_given_settings_are_judged_beside_those_of_the_resumed_run(flags):
    run_ppo("--n-steps 32 --batch-size 32" if flags.startswith("--n-steps") else "--n-steps 4096", total=64)
    resume(f"--total-timesteps 8192 --eval-interval 100000 {flags}")
    assert PPOAgent.load("c/a.pt").env_steps == 8192


def test_resume_with_a_path_goes_on_from_that_file_and_takes_back_what_came_after():
    run_ppo()
    train_ppo.main(["--resume", "c/a/step_0000000128.pt", "--total-timesteps", "192"])
    assert PPOAgent.load("c/a.pt").env_steps == 192
    assert steps_of() == [64, 128, 192]
    assert [name for name in tree("c/a") if name.startswith("step") and name.endswith(".pt")] == ["step_0000000128.pt"]


def test_a_run_resumed_from_an_earlier_checkpoint_keeps_what_came_after(capsys):
    run_ppo()
    last, rows, latest_periodic = read("c/a.pt"), read("c/a/metrics.jsonl"), read("c/a/step_0000000320.pt")
    capsys.readouterr()
    train_ppo.main(["--resume", "c/a/step_0000000128.pt", "--total-timesteps", "192"])
    assert read("c/a.pt.bak") == last
    assert read("c/a/metrics.jsonl.bak") == rows
    assert read("c/a/step_0000000320.pt.bak") == latest_periodic
    assert "goes back to step 128" in capsys.readouterr().err


def test_a_run_resumed_into_another_save_path_leaves_its_own_files_alone():
    run_ppo()
    before = {name: read(f"c/{name}") for name in tree("c")}
    train_ppo.main(["--resume", "c/a.pt", "--save-path", "d/b.pt", "--total-timesteps", "448"])
    assert {name: read(f"c/{name}") for name in tree("c")} == before
    assert PPOAgent.load("d/b.pt").env_steps == 448


def test_a_run_resumed_over_another_one_keeps_the_other_ones_file():
    run_ppo(path="c/a.pt")
    run_ppo(path="d/b.pt", seed=1)
    other = read("d/b.pt")
    train_ppo.main(["--resume", "c/a.pt", "--save-path", "d/b.pt", "--total-timesteps", "448"])
    assert read("d/b.pt.bak") == other


def test_a_run_resumed_over_another_one_does_not_go_on_with_the_other_ones_rows():
    run_ppo(path="c/a.pt", total=128)
    run_ppo("--lr 0.007", path="d/b.pt", total=128)
    train_ppo.main(["--resume", "c/a.pt", "--save-path", "d/b.pt", "--total-timesteps", "192"])
    assert 0.007 not in [row["learning_rate"] for row in read_rows("d/b/metrics.jsonl")]


def test_an_interrupted_run_leaves_with_130_and_can_be_resumed(capsys, monkeypatch):
    real = Run.log

    def log(self, metrics, step):
        if step == 192:
            raise KeyboardInterrupt
        real(self, metrics, step)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", log)
        with pytest.raises(SystemExit) as leaving:
            run_ppo()
    assert leaving.value.code == 130
    assert capsys.readouterr().err.splitlines() == ["saved at step 128; go on with --resume", "interrupted"]
    resume()
    assert capsys.readouterr().err.startswith("resuming c/a.pt at step 128: ")
    assert steps_of() == [64, 128, 192, 256, 320]


def test_rows_beyond_the_resumed_checkpoint_and_a_cut_off_row_are_taken_back():
    run_ppo()
    os.replace("c/a/step_0000000256.pt", "c/a.pt")
    with open("c/a/metrics.jsonl", "a") as rows:
        rows.write('{"step": 38')
    resume()
    assert steps_of() == [64, 128, 192, 256, 320]


def test_a_finished_run_says_so_and_changes_nothing(capsys):
    run_ppo()
    before = {name: (read(name), Path(name).stat().st_mtime_ns) for name in tree()}
    capsys.readouterr()
    assert resume() is None
    captured = capsys.readouterr()
    assert "the run is finished: it has 320 steps" in captured.err
    assert {name: (read(name), Path(name).stat().st_mtime_ns) for name in tree()} == before


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_notice(capsys):
    run_ppo()
    for name in ("c/a.pt", "c/a/step_0000000320.pt"):
        with open(name, "r+b") as file:
            file.truncate(5000)
    capsys.readouterr()
    resume()
    notices = capsys.readouterr().err.splitlines()
    assert [line for line in notices if line.startswith("passed over: c/a.pt is damaged")]
    assert [line for line in notices if line.startswith("passed over: c/a/step_0000000320.pt is damaged")]
    assert any(notice.startswith("resuming c/a/step_0000000256.pt at step 256") for notice in notices)
    assert steps_of() == [64, 128, 192, 256, 320]
    assert PPOAgent.load("c/a.pt").env_steps == 320


def test_each_notice_about_a_damaged_checkpoint_comes_once(capsys):
    run_ppo()
    with open("c/a.pt", "r+b") as file:
        file.truncate(5000)
    capsys.readouterr()
    resume("--total-timesteps 384")
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("passed over")]) == 1


def test_nothing_to_resume_is_refused_and_makes_nothing(capsys):
    line = refusal(capsys, resume)
    assert "nothing to resume" in line
    assert "c/a.pt" in line
    assert tree() == []


def test_nothing_but_damaged_checkpoints_is_nothing_to_resume(capsys):
    run_ppo(total=64)
    with open("c/a.pt", "r+b") as file:
        file.truncate(5000)
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        resume()
    assert leaving.value.code == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert len(read("c/a.pt")) == 5000


def test_a_wrong_path_to_resume_is_refused_even_beside_a_run(capsys):
    run_ppo(total=64)
    before = read("c/a.pt")
    line = refusal(capsys, train_ppo.main, ["--resume", "c/other.pt", "--save-path", "c/a.pt"])
    assert "there is no file c/other.pt" in line
    assert read("c/a.pt") == before


@pytest.mark.parametrize(
    ("flags", "stored", "given"),
    [
        ("--env-id toy/Truncated-v0", "toy/Counter-v0", "toy/Truncated-v0"),
        ("--hidden-dims 16 16", "8", "16, 16"),
        ("--seed 7", "0", "7"),
        ("--num-envs 2", "1", "2"),
    ],
)
def test_settings_that_contradict_the_resumed_run_are_refused_with_both_values(flags, stored, given, capsys):
    run_ppo(total=64)
    before = {name: read(name) for name in tree()}
    line = refusal(capsys, resume, f"--total-timesteps 640 {flags}")
    assert "c/a.pt" in line
    assert stored in line
    assert given in line
    assert "--resume" in line
    assert {name: read(name) for name in tree()} == before


def test_cloning_keeps_a_row_for_every_epoch_and_prints_some(demos, capsys):
    assert train.main(demos) is None
    captured = capsys.readouterr()
    rows = read_rows("c/s/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all({"train_loss", "validation_loss"} <= set(row) for row in rows)
    opening, *progress, closing = captured.out.splitlines()
    assert opening == "Cloning demos.npz: 4 episodes, 12 transitions..."
    assert closing == "Student saved to c/s.pt"
    assert progress == [train._line(row["step"], row) for row in rows if row["step"] % 2 == 0]
    assert captured.err == ""


def test_one_episode_is_cloned_whole_without_validation(demos):
    collect_demos("toy/Counter-v0", STILL, 1).save("demos.npz")
    train.main(demos)
    assert not any("validation_loss" in row for row in read_rows("c/s/metrics.jsonl"))


def test_cloning_over_an_old_student_keeps_it(demos, capsys):
    train.main(demos)
    old = read("c/s.pt")
    train.main([*demos, "--epochs", "1"])
    assert read("c/s.pt.bak") == old
    assert "c/s.pt is replaced" in capsys.readouterr().err


def test_the_seed_decides_what_is_cloned(demos):
    for name in ("one", "two"):
        train.main([*demos, "--save-path", f"{name}.pt"])
    one, two = (read_checkpoint(f"{name}.pt")["parameters"] for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_failing_run_closes_its_file_and_keeps_its_rows(tmp_path):
    files = RunFiles(tmp_path / "x.pt")
    with contextlib.suppress(ZeroDivisionError), Run(files, {}, numerics={}) as run:
        run.log({"loss": 1.0}, 1)
        raise ZeroDivisionError
    assert run._rows._handle.closed
    assert [json.loads(line)["step"] for line in files.metrics.read_text().splitlines()] == [1]


class Learner:
    """As far as a run needs to know an agent."""

    def __init__(self, step):
        self.step = step

    def payload(self):
        return {"training": {"env_steps": self.step}}


@pytest.mark.parametrize("at", range(4))
def test_a_kill_between_the_writes_of_a_save_never_loses_the_best_policy(at, tmp_path, monkeypatch):
    """Evaluations and saves need not fall on one step: the best of step 10 is written with the last of step 12."""
    files, written = RunFiles(tmp_path / "a.pt"), []

    def write(path, payload):
        if len(written) == at:
            os._exit(9)
        written.append(path)
        write_checkpoint(path, payload)

    if (child := os.fork()) == 0:
        with Run(files, {}, numerics={}) as run:
            run.keep(Learner(0), 0)
            run.save()
            monkeypatch.setattr("il_based_rl.experiment.run.write_checkpoint", write)
            run.keep(Learner(10), 10, 5.0)
            run.keep(Learner(12), 12, periodic=True)
            run.save()
        os._exit(0)
    os.waitpid(child, 0)
    saved = read_checkpoint(files.save_path)
    assert saved["training"]["env_steps"] == (12 if at > 1 else 0)
    if saved["run"]["best_eval_reward"] is not None:
        assert read_checkpoint(files.best)["training"]["env_steps"] == 10
    with Run(files, {}, numerics={}, resumed_from=(files.save_path, saved), step=saved["training"]["env_steps"]) as run:
        assert run.best_eval_reward == (5.0 if at > 1 else None)
        assert files.best.exists() == (at > 1)


def test_a_limit_of_time_onto_a_full_disk_is_an_error(tmp_path, monkeypatch, capsys):
    files = RunFiles(tmp_path / "a.pt")

    def full(path, payload):
        raise FileWriteError("the disk is full")

    def run_out_of_time():
        with contextlib.suppress(TimeIsUp), Run(files, {}, numerics={}) as run:
            run.keep(Learner(0), 0)
            run.save()
            run.keep(Learner(5), 5)
            monkeypatch.setattr("il_based_rl.experiment.run.write_checkpoint", full)
            raise TimeIsUp

    with pytest.raises(FileWriteError) as caught:
        run_out_of_time()
    assert caught.value.exit_code == 1
    assert read_checkpoint(files.save_path)["training"]["env_steps"] == 0


@pytest.mark.parametrize("ending", ["saves once more", "removes an old checkpoint"])
def test_a_run_that_ends_while_another_process_reads_it_is_not_rewound(ending, tmp_path):
    files = RunFiles(tmp_path / "a.pt")
    with Run(files, {}, numerics={}) as run:
        run.keep(Learner(5), 5)
        run.save()
        read = files.save_path, read_checkpoint(files.save_path)
        run.keep(Learner(10), 10)
        run.save()
    if ending == "removes an old checkpoint":
        files.save_path.unlink()
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    with pytest.raises(ResumeError, match=r"a\.pt was written again .* try once more"):
        Run(files, {}, numerics={}, resumed_from=read, step=5)
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before


def test_nobody_else_is_told_of_a_run_that_is_refused(tmp_path):
    files, told = RunFiles(tmp_path / "a.pt"), []
    with files.exclusive(), pytest.raises(LockedError):
        Run(files, {}, numerics={}, open_sinks=lambda: told.append("opened") or [])
    assert told == []


@pytest.mark.parametrize("odd", [float("inf"), torch.ones(2), None, "12", [1]], ids=str)
def test_a_checkpoint_that_does_not_say_how_far_it_got_is_passed_over(odd, capsys):
    run_ppo(total=64)
    payload = read_checkpoint("c/a.pt")
    payload["training"]["env_steps"] = odd
    write_checkpoint("c/a.pt", payload)
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        resume()
    assert leaving.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert re.match("error: (there is nothing to resume|.* damaged)", last)


def test_an_interrupt_saves_what_was_learned_and_the_run_can_go_on(tmp_path):
    # Enough steps for minutes, so that the interrupt comes in the middle.
    command = [sys.executable, "-m", "il_based_rl.train_ppo", "--total-timesteps", "5000000", "--save-path", "c/a.pt"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("["):
                break
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in messages
    steps = PPOAgent.load(tmp_path / "c/a.pt").env_steps
    assert f"saved at step {steps}; go on with --resume" in messages
    assert steps >= 10_240
    assert read_rows(tmp_path / "c/a/metrics.jsonl")[-1]["step"] == steps
    before = signal.getsignal(signal.SIGINT)
    train_ppo.main(
        ["--resume", str(tmp_path / "c/a.pt"), "--save-path", str(tmp_path / "c/a.pt"), "--total-timesteps", str(steps + 1)]
    )
    assert PPOAgent.load(tmp_path / "c/a.pt").env_steps == steps + 2048
    assert signal.getsignal(signal.SIGINT) is before


def test_an_agent_that_was_saved_by_itself_goes_on_with_its_own_hyperparameters():
    own = PPOConfig(lr=1e-5, gamma=0.5, n_steps=64, batch_size=32, n_epochs=1)
    with InProcessEnvs("toy/Counter-v0") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, own, hidden_dims=(8,), seed=5)
        list(agent.learn(envs, 64))
    agent.save("mine.pt")
    train_ppo.main(
        [
            "--resume",
            "mine.pt",
            "--env-id",
            "toy/Counter-v0",
            "--save-path",
            "c/a.pt",
            "--total-timesteps",
            "128",
            "--eval-episodes",
            "1",
        ]
    )
    resumed = PPOAgent.load("c/a.pt")
    assert (resumed.config, resumed.hidden_dims, resumed.seed, resumed.env_steps) == (own, (8,), 5, 128)


def test_resuming_in_another_environment_is_refused_before_anything_is_written(capsys):
    run_ppo(total=64)
    before = {name: read(name) for name in tree()}
    PPOAgent.load("c/a.pt").save("mine.pt")
    line = refusal(capsys, train_ppo.main, ["--resume", "mine.pt", "--env-id", "CartPole-v1", "--save-path", "d/b.pt"])
    assert "CartPole-v1" in line
    assert {name: read(name) for name in tree() if name != "mine.pt"} == before


def test_older_demonstrations_are_kept_when_new_ones_take_their_place(capsys):
    run_ppo(total=64)
    flags = "--env-id toy/Counter-v0 --checkpoint c/a.pt --num-episodes 2 --save-path d.npz"
    collect.main(flags.split())
    older = read("d.npz")
    collect.main([*flags.split(), "--seed", "1"])
    assert read("d.npz.bak") == older != read("d.npz")
    assert "d.npz.bak" in capsys.readouterr().err


def test_what_is_read_is_never_written_over(capsys):
    run_ppo(total=64)
    collect.main(["--env-id", "toy/Counter-v0", "--checkpoint", "c/a.pt", "--num-episodes", "2", "--save-path", "d.npz"])
    before = {name: read(name) for name in tree()}
    cases = [(collect, "--checkpoint c/a.pt --save-path c/../c/a.pt"), (train, "--demo-path d.npz --save-path ./d.npz")]
    for command, flags in cases:
        with pytest.raises(SystemExit) as leaving:
            command.main(flags.split())
        assert leaving.value.code == 2
        assert "choose another" in " ".join(capsys.readouterr().err.split())
    assert {name: read(name) for name in tree()} == before


def test_a_file_of_metrics_that_holds_only_a_cut_off_row_does_not_swallow_the_next():
    run_ppo(total=64)
    Path("c/a/metrics.jsonl").write_bytes(b'{"step": 12')
    resume("--total-timesteps 192")
    assert steps_of() == [128, 192]


def test_rows_go_on_in_a_new_file_where_somebody_removed_the_old_one(tmp_path):
    rows = RowFile(tmp_path / "run" / "metrics.jsonl")
    for step in (1, 2, 3):
        rows.append({"step": step})
        rows.flush()
        if step == 1:
            shutil.rmtree(tmp_path / "run")
    rows.close()
    assert rows.path.read_bytes() == b'{"step": 2}\n{"step": 3}\n'


def test_rows_that_could_not_be_written_to_the_end_are_an_error(monkeypatch, capsys):
    def full(self):
        raise FileWriteError("cannot write metrics.jsonl: No space left on device")

    monkeypatch.setattr(RowFile, "flush", full)
    with pytest.raises(SystemExit) as leaving:
        run_ppo(total=128)
    assert leaving.value.code == 1
    assert "2 rows of metrics are lost" in capsys.readouterr().err
    assert read_checkpoint("c/a.pt")["training"]["env_steps"] == 128


def test_a_file_of_metrics_that_somebody_empties_takes_all_later_rows(tmp_path):
    rows = RowFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        rows.append({"step": step})
        rows.flush()
        if step == 1:
            os.truncate(rows.path, 0)
    rows.close()
    assert rows.path.read_bytes() == b'{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize("depth", [1, 2, 960, 990, 5000])
def test_rows_that_are_nested_are_none_of_ours_and_do_not_stop_a_resume(depth):
    run_ppo(total=64)
    with open("c/a/metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "x": ' + b"[" * depth + b"]" * depth + b"}\n")
    resume("--total-timesteps 128")
    assert steps_of() == [64, 128]


@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b"5", b'{"step": null}', b"[1", b""])
def test_a_line_of_the_metrics_that_is_damaged_does_not_stop_a_resume(line):
    run_ppo(total=128)
    path = Path("c/a/metrics.jsonl")
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    resume("--total-timesteps 192")
    assert steps_of() == [64, 128, 192]


def test_save_paths_that_differ_after_the_last_dot_are_two_runs(tmp_path):
    one, other = RunFiles(tmp_path / "lr_0.001"), RunFiles(tmp_path / "lr_0.003")
    assert one.folder != other.folder
    assert RunFiles(tmp_path / "agent.pt").folder == tmp_path / "agent"


def test_what_somebody_has_copied_into_the_folder_is_no_checkpoint_of_the_run(tmp_path):
    files = RunFiles(tmp_path / "a.pt")
    files.folder.mkdir()
    names = ["step_0000000128.pt", "step_0000000128_good.pt", "step_best.pt", "step_0000000256.pt", "step_12345678901.pt"]
    for name in names:
        (files.folder / name).touch()
    assert [path.name for path in files.all_periodic()] == ["step_12345678901.pt", "step_0000000256.pt", "step_0000000128.pt"]


@pytest.mark.parametrize(
    ("save_path", "folder"),
    [
        ("c/a.pt", "c/a"),
        ("c/a.pth", "c/a"),
        ("c/a.b.ckpt", "c/a.b"),
        ("c/a", "c/a.run"),
        ("c/rate_0.001", "c/rate_0.001.run"),
        ("c/.hidden", "c/.hidden.run"),
    ],
)
def test_a_runs_folder_is_named_like_the_save_path_without_its_suffix(save_path, folder):
    assert RunFiles(save_path).folder == Path(folder)


def test_who_only_asks_whether_a_run_is_held_keeps_nobody_out(tmp_path, monkeypatch):
    asked = io.open(tmp_path / ".lock", "a+b")  # noqa: SIM115, UP020 - held beyond this line
    fcntl = pytest.importorskip("fcntl")
    fcntl.flock(asked, fcntl.LOCK_SH)
    monkeypatch.setattr("il_based_rl.files.writing.time.sleep", lambda _: asked.close())
    with exclusive(tmp_path / ".lock"):
        assert asked.closed


def test_what_is_swept_is_only_what_was_half_written_under_that_very_name(tmp_path):
    names = [".a.1.tmp", ".a.pt.1.tmp", ".a.x_9.tmp", f".a.{os.getppid()}.tmp", ".b.1.tmp", "a.1.tmp"]
    for name in names:
        (tmp_path / name).touch()
    sweep(tmp_path, "a", held=False)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert f".a.{os.getppid()}.tmp" in kept  # a living process may still be writing it
    assert ".a.x_9.tmp" not in kept
    sweep(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.pt.1.tmp", ".b.1.tmp", "a.1.tmp"]
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.1.tmp"]


@pytest.mark.parametrize("command", ["train", "dagger", "finetune"])
def test_a_seed_gives_the_same_policy_whatever_number_of_threads_was_set_before(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with InProcessEnvs("Pendulum-v1") as envs:
        expert = PPOAgent.for_spaces(envs.observation_space, envs.action_space, hidden_dims=(256, 256), seed=0)
    expert.save("expert.pt")
    collect_demos("Pendulum-v1", expert, 2, seed=0).save("demos.npz")
    few = "--eval-episodes 2 --final-episodes 2"
    flags = {
        "train": "--demo-path demos.npz --epochs 1",
        "dagger": f"--expert expert.pt --rounds 1 --round-steps 10 --epochs 1 {few}",
        "finetune": f"--checkpoint expert.pt --total-timesteps 64 --n-steps 64 --num-envs 1 {few}",
    }[command]
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            main([command, *flags.split(), "--seed", "0", "--quiet", "--save-path", f"{threads}.pt"])
        finally:
            torch.set_num_threads(before)
        found.append(read_checkpoint(f"{threads}.pt")["parameters"])
    one, two = found
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_presets_are_for_runs_that_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--env-id CartPole-v1 --n-steps 64 --total-timesteps 64 --eval-episodes 1 --save-path a.pt"
    small = flags.split()
    train_ppo.main(small)
    with pytest.raises(SystemExit) as leaving:
        train_ppo.main([*small, "--preset", "--resume"])
    assert leaving.value.code == 2
    assert "--preset is for a run that begins, and a.pt was trained without it" in capsys.readouterr().err


def test_an_agent_that_was_saved_by_itself_goes_on_under_its_own_activation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with InProcessEnvs("CartPole-v1") as envs:
        spaces = envs.observation_space, envs.action_space
    config = PPOConfig(n_steps=64)
    PPOAgent.for_spaces(*spaces, config, hidden_dims=(8,), activation="relu", seed=0).save("own.pt")
    flags = "--env-id CartPole-v1 --resume own.pt --total-timesteps 64 --eval-episodes 1 --save-path a.pt"
    train_ppo.main(flags.split())
    assert read_checkpoint("a.pt")["run"]["settings"]["activation"] == "relu"


def test_two_save_paths_that_differ_in_the_suffix_alone_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--env-id CartPole-v1 --n-steps 64 --total-timesteps 64 --eval-episodes 1 --quiet --save-path"
    train_ppo.main([*flags.split(), "m.pth"])
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path) if not name.endswith(".lock")}
    for given in ([], ["--resume"]):
        with pytest.raises(SystemExit) as leaving:
            train_ppo.main([*flags.split(), "m.pt", *given])
        assert leaving.value.code == 2
        assert "m holds what belongs to m.pth; choose another name than m.pt" in capsys.readouterr().err
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    (tmp_path / "m.pth").rename(tmp_path / "m.pt")  # and now it is the run of m.pt
    train_ppo.main([*flags.split(), "m.pt", "--resume", "--total-timesteps", "128"])
    assert PPOAgent.load("m.pt").env_steps == 128


def test_a_run_of_before_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--env-id CartPole-v1 --n-steps 64 --total-timesteps 64 --eval-episodes 1 --quiet --save-path m.pth"
    Path("m.pth.run").mkdir()
    train_ppo.main(flags.split())
    assert Path("m.pth.run/metrics.jsonl").is_file()
    assert not Path("m").exists()
