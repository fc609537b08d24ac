"""What is shown and told while work goes on: bars, lines, TensorBoard; and that none of it can stop the work."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import toy_envs  # noqa: F401 - registers the environments

from il_based_rl import cli, train, train_ppo
from il_based_rl.__main__ import main
from il_based_rl.algorithms import dagger, finetune
from il_based_rl.collect import collect_demos
from il_based_rl.experiment.sinks import GuardedSink
from il_based_rl.files import read_rows

TINY = (
    "--env-id toy/Counter-v0 --n-steps 64 --batch-size 32 --n-epochs 1 --hidden-dims 8 --eval-interval 100 --eval-episodes 2"
    " --total-timesteps 256 --seed 0 --save-path c/a.pt"
)


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- progress ----


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(cli.time, "monotonic", lambda: self.now)


def test_where_there_is_no_terminal_a_line_is_written_every_half_minute(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with cli.Progress("training", 1000, "step", initial=100) as progress:
        for _ in range(9):
            clock.now += 10.0
            progress.update(50, episode_return=-12.345678)
    lines = capsys.readouterr().err.splitlines()
    # The first one after 40 s, at 300 of 1000: 200 in 40 s leaves 700 for 140 s.
    assert lines[0] == "training: 300 of 1,000 steps, 5.0/s, 140 s left, episode_return -12.35"
    assert lines[1:] == ["training: 500 of 1,000 steps, 5.0/s, 100 s left, episode_return -12.35"]


def test_quiet_work_says_nothing(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with cli.Progress("training", 10, "step", quiet=True) as progress:
        clock.now += 1000.0
        progress.update(5)
    assert capsys.readouterr() == ("", "")


def on_a_terminal(*arguments):
    """Run a command with a terminal as its standard error; return what the terminal got, and standard output."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "il_based_rl", *arguments],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # nobody holds the other end any more
                break
            if not part:
                break
            shown += part
        printed = process.stdout.read()
    os.close(leader)
    assert process.returncode == 0, shown
    return shown.decode(), printed


LONGER = "train-ppo --env-id toy_envs:toy/Counter-v0 --hidden-dims 8 --total-timesteps 40960 --seed 0 --save-path c/a.pt"


def test_a_terminal_shows_a_bar_with_rate_time_left_and_latest_return():
    shown, printed = on_a_terminal(*LONGER.split())
    last = re.split(r"[\r\n]", shown)
    bar = next(line for line in last if re.search(r"training: .*\|.*/40960", line) and "episode_return=" in line)
    assert re.search(r"\d+:\d\d<\d+:\d\d, +[\d.]+k?step/s, episode_return=", bar), bar
    assert "Training PPO" in printed
    assert "\r" not in printed


def test_quiet_shows_neither_bars_nor_lines():
    shown, printed = on_a_terminal(*LONGER.split(), "--quiet")
    assert shown == ""
    first, last = printed.splitlines()
    assert first == "Training PPO on toy_envs:toy/Counter-v0 for 40960 timesteps..."
    assert last == "Checkpoint saved to c/a.pt"


def test_every_long_command_can_be_quiet(capsys):
    train_ppo.main([*TINY.split(), "--quiet"])
    pipeline = "pipeline --env-id toy/Counter-v0 --ppo-timesteps 1 --num-demo-episodes 2 --bc-epochs 2 --num-eval-episodes 3"
    for arguments in (
        "collect --env-id toy/Counter-v0 --checkpoint c/a.pt --num-episodes 3 --save-path d.npz",
        "train --demo-path d.npz --save-path c/b.pt --epochs 2 --hidden-dims 8",
        "evaluate --env-id toy/Counter-v0 --checkpoint c/b.pt --num-episodes 3",
        "compare --env-id toy/Counter-v0 --policies c/a.pt c/b.pt --num-episodes 3",
        "dagger --env-id toy/Counter-v0 --expert c/a.pt --rounds 2 --round-steps 20 --epochs 2 --save-path c/d.pt",
        "finetune --env-id toy/Counter-v0 --checkpoint c/b.pt --total-timesteps 500 --action-std 0.2 --save-path c/f.pt",
        "demos-needed --demo-path d.npz --num-seeds 2 --eval-episodes 2 --epochs 2 --hidden-dims 8",
        f"{pipeline} --no-video",
        "report . --num-episodes 3 --no-video",
    ):
        capsys.readouterr()
        main([*arguments.split(), "--quiet"])
        captured = capsys.readouterr()
        notices = ("is replaced", "left out", "cannot be told")
        assert [line for line in captured.err.splitlines() if not any(notice in line for notice in notices)] == []
        assert "loss=" not in captured.out
        assert captured.out  # results are said


# ---- rows ----


def test_rows_tell_the_rate_of_training_alone():
    train_ppo.main(TINY.split())
    rates = [row["steps_per_second"] for row in read_rows("c/a/metrics.jsonl")]
    assert len(rates) == 4
    assert all(rate > 0 for rate in rates)


def test_every_metric_is_explained():
    explained = set(re.findall(r"^\| `(\w+)`", (Path(__file__).parents[1] / "docs/metrics.md").read_text(), re.MULTILINE))
    train_ppo.main(TINY.split())
    collect_demos("toy/Counter-v0", lambda obs: [0.0, 0.0], 12, seed=0).save("d.npz")
    student = ["--demo-path", "d.npz", "--save-path", "c/b.pt", "--epochs", "2", "--hidden-dims", "8"]
    train.main([*student, "--eval-env-id", "toy/Counter-v0"])
    small = "--env-id toy/Counter-v0 --eval-episodes 2 --final-episodes 2"
    dagger.main(f"{small} --expert c/a.pt --rounds 2 --round-steps 20 --epochs 1 --save-path c/d.pt".split())
    tuned = "--total-timesteps 256 --n-steps 64 --warmup-rollouts 1 --eval-interval 64 --save-path c/f.pt"
    finetune.main(f"{small} --checkpoint c/b.pt {tuned}".split())
    told = {name for path in ("c/a", "c/b", "c/d", "c/f") for row in read_rows(f"{path}/metrics.jsonl") for name in row}
    assert told | {"share_of_expert"} == explained  # which is told where an expert is above a random policy, as nobody is here


# ---- TensorBoard ----


def curves(folder):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = reading.EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_is_told_every_number_of_every_row():
    pytest.importorskip("tensorboard")
    train_ppo.main([*TINY.split(), "--tensorboard"])
    rows = read_rows("c/a/metrics.jsonl")
    for name, told in curves("c/a/tensorboard").items():
        kept = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in told] == [step for step, _ in kept]
        assert [value for _, value in told] == pytest.approx([value for _, value in kept], rel=1e-6)


def test_a_resumed_run_goes_on_with_its_curves_without_a_zigzag():
    pytest.importorskip("tensorboard")
    train_ppo.main([*TINY.split(), "--tensorboard"])
    early = min(Path("c/a").glob("step_*.pt"))
    train_ppo.main(["--resume", str(early), "--save-path", "c/a.pt"])
    again = curves("c/a/tensorboard")["value_loss"]
    assert [step for step, _ in again] == [64, 128, 192, 256]
    rows = read_rows("c/a/metrics.jsonl")  # without those that were taken back
    assert [value for _, value in again] == pytest.approx([row["value_loss"] for row in rows], rel=1e-6)


def test_a_fresh_run_hides_the_curves_of_the_one_before():
    pytest.importorskip("tensorboard")
    train_ppo.main([*TINY.split(), "--tensorboard"])
    train_ppo.main([*TINY.replace("256", "128").split(), "--tensorboard"])
    assert [step for step, _ in curves("c/a/tensorboard")["value_loss"]] == [64, 128]


def test_without_tensorboard_its_extra_is_named_and_training_goes_on(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train_ppo.main([*TINY.split(), "--tensorboard"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorBoard failed and is switched off; training goes on: ")
    assert 'pip install "il_based_rl[tensorboard]"' in line
    assert len(read_rows("c/a/metrics.jsonl")) == 4


class Failing:
    def __init__(self, fails_in):
        self._fails_in, self.rows = fails_in, []

    def log(self, metrics, step):
        if self._fails_in == "log" and step == 2:
            raise OSError("no\nspace")
        self.rows.append(step)

    def close(self):
        if self._fails_in == "close":
            raise ConnectionError("gone")


@pytest.mark.parametrize(("fails_in", "told", "says"), [("log", [1], "no space"), ("close", [1, 2, 3], "gone")])
def test_the_first_failure_of_a_sink_switches_it_off(fails_in, told, says, capsys):
    sink = Failing(fails_in)
    guarded = GuardedSink("It", lambda: sink)
    for step in (1, 2, 3):
        guarded.log({"x": 1.0}, step)
    guarded.close()
    assert sink.rows == told
    assert capsys.readouterr().err == f"It failed and is switched off; training goes on: {says}\n"


def test_a_sink_that_cannot_be_made_is_switched_off(capsys):
    def make():
        raise ImportError("not here")

    guarded = GuardedSink("It", make)
    guarded.log({"x": 1.0}, 1)
    guarded.close()
    assert "not here" in capsys.readouterr().err
