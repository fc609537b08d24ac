"""A run that is interrupted and resumed ends exactly where one straight through ends, wherever it is struck."""

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers the environments

import il_based_rl.experiment.run
from benchmarks.reliability import first_difference
from il_based_rl import train, train_ppo
from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.config import GONE, BCConfig, PPOConfig, TrainConfig, TrainPPOConfig
from il_based_rl.envs import InProcessEnvs, WorkerEnvs
from il_based_rl.errors import FileWriteError, Terminated, TimeIsUp
from il_based_rl.experiment.run import TIME_FIELDS, Run
from il_based_rl.files import read_checkpoint, read_rows, write_checkpoint
from il_based_rl.flat_parameters import FlatAdam
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.rollout import EpisodePlayers

ROLLOUT, UPDATES = 128, 8
SMALL = PPOConfig(n_steps=ROLLOUT, batch_size=32, n_epochs=2)
PENDULUM = TrainPPOConfig(
    "Pendulum-v1",
    ROLLOUT * UPDATES,
    hidden_dims=(8,),
    seed=0,
    save_path="a.pt",
    eval_interval=2 * ROLLOUT,
    eval_episodes=2,
    vectorization="sync",
    ppo=SMALL,
)
CARTPOLE = replace(PENDULUM, env_id="CartPole-v1")
FOUR = {"num_envs": 4}
SHORT = replace(SMALL, n_steps=ROLLOUT // 4)
# Every pair of environment, number, path and schedule is somewhere among these.
RUNS = {
    "Pendulum, fast path": PENDULUM,
    "four Pendulums, reference path": replace(PENDULUM, **FOUR, ppo=replace(SHORT, fast_path=False, lr_schedule="linear")),
    "CartPole, reference path": replace(CARTPOLE, ppo=replace(SMALL, fast_path=False)),
    "four CartPoles, fast path": replace(CARTPOLE, **FOUR, ppo=replace(SHORT, lr_schedule="linear")),
    "four Pendulums in workers": replace(PENDULUM, **FOUR, vectorization="async", ppo=replace(SHORT, lr_schedule="linear")),
    "Pendulum, small first steps": replace(
        PENDULUM,
        activation="relu",
        initial_log_std=-0.5,
    ),
    "CartPole in a worker, plain numbers": replace(
        CARTPOLE, vectorization="async", ppo=replace(SMALL, normalize_obs=False, normalize_reward=False, entropy_coef=0.01)
    ),
}
CLONING = TrainConfig("demos.npz", hidden_dims=(8,), save_path="a.pt", seed=0, bc=BCConfig(epochs=12, batch_size=32))
HOW = {"interrupted": KeyboardInterrupt, "terminated": Terminated, "out of time": TimeIsUp, "killed": KeyboardInterrupt}


class NoGenerator(gym.Env):
    """An environment that draws from a random generator of its own."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    np_random = None

    def reset(self, *, seed=None, options=None):
        self._random = np.random.default_rng(seed) if seed is not None else self._random
        self._steps = 0
        return self._random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self._steps += 1
        return self._random.normal(size=2).astype(np.float32), float(action), self._steps == 5, False, {}


class Impatient(gym.Env):
    """An environment that writes into the actions that it is given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._steps = self.np_random.normal(size=2).astype(np.float32), 0
        return self._place.copy(), {}

    def step(self, action):
        action *= 0.5
        self._place, self._steps = self._place + action, self._steps + 1
        return self._place.copy(), -float(np.abs(self._place).sum()), False, self._steps == 50, {}


class Wearing(gym.Env):
    """An environment whose reward falls as it wears out, which no observation shows."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self._life = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self._life, self._steps = self._life + 1, self._steps + 1
        obs = self.np_random.normal(size=2).astype(np.float32)
        return obs, float(action[0]) + (self._life > 300), False, self._steps == 50, {}


class Pixels(gym.Env):
    """An environment of numbers without a sign, in what it shows and in what it takes."""

    observation_space = gym.spaces.Box(0, 60_000, (2,), np.uint16)
    action_space = gym.spaces.Box(0, 2**32 - 1, (1,), np.uint32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.integers(60_000, size=2, dtype=np.uint16), {}

    def step(self, action):
        self._steps += 1
        obs = self.np_random.integers(60_000, size=2, dtype=np.uint16)
        return obs, float(action[0]) / 2**32, False, self._steps == 50, {}


gym.register("toy/Wearing-v0", entry_point=Wearing)
gym.register("toy/Pixels-v0", entry_point=Pixels)
gym.register("toy/NoGenerator-v0", entry_point=NoGenerator)
gym.register("toy/Impatient-v0", entry_point=Impatient)


class Strike:
    """Ends a run at the k-th time that it is called, once; `how` it does so.

    What a killed process leaves behind is what lies on the disk at that moment; it is put aside then, and put back by
    `after`, as the interruption that stands for the kill saves more.
    """

    def __init__(self, folder, at, how):
        self.folder, self.at, self.how = Path(folder), at, how
        self.seen, self.landed = 0, False

    def __call__(self):
        self.seen += 1
        if self.seen == self.at and not self.landed:
            self.landed = True
            if self.how == "killed":
                shutil.copytree(self.folder, self._left_behind)
            raise HOW[self.how]

    def after(self):
        if self.landed and self.how == "killed":
            shutil.rmtree(self.folder)
            self._left_behind.rename(self.folder)

    @property
    def _left_behind(self):
        return self.folder.with_name(self.folder.name + " left behind")


def called(owner, name, when="before"):
    """Let a strike count the calls of a function, before or after they do anything."""

    def place(patch, strike):
        real = getattr(owner, name)

        def counted(*given, **named):
            if when == "before":
                strike()
            result = real(*given, **named)
            if when == "after":
                strike()
            return result

        patch.setattr(owner, name, counted)

    return place


def environment_step(patch, strike):
    for kind in (InProcessEnvs, WorkerEnvs):
        called(kind, "step")(patch, strike)


def evaluation(patch, strike):
    real = EpisodePlayers.play

    def play(self, actor, seeds, **how):
        def acting(players):
            strike()
            return actor(players)

        return real(self, acting, seeds, **how)

    patch.setattr(EpisodePlayers, "play", play)


PLACES = {
    "environment step": environment_step,
    "minibatch": called(FlatAdam, "step"),
    "evaluation": evaluation,
    "row": called(Run, "log", "after"),
    "copying the agent": called(PPOAgent, "payload"),
    "copying the student": called(BCAgent, "payload"),
    "writing": called(os, "replace", "before"),
    "written": called(os, "replace", "after"),
}


def command(config):
    return (train_ppo.train_ppo if isinstance(config, TrainPPOConfig) else train.train)(config)


def struck(config, place, at, how):
    """Run until the strike; whether it landed."""
    strike = Strike(Path(config.save_path).parent, at, how)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        PLACES[place](patch, strike)
        command(config)
    strike.after()
    return strike.landed


def resumed(config):
    """The settings that go on with a run, or begin it where nothing of it was saved."""
    path = Path(config.save_path)
    return replace(config, resume="latest" if path.exists() or any(path.with_suffix("").glob("step_*.pt")) else None)


def resumes(path="a.pt"):
    return read_checkpoint(path)["run"]["resumes"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that was never interrupted; made once for each settings."""
    folders = {}

    def run(config):
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp("straight")
            command(replace(config, save_path=str(folders[config] / "a.pt")))
        return folders[config]

    return run


@pytest.fixture
def folder(tmp_path):
    """A place of its own for a run, in a folder of its own."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Demonstrations with continuous and with discrete actions."""
    place = tmp_path_factory.mktemp("demos")
    collect_demos("Pendulum-v1", lambda obs: np.tanh(obs[:1]), 3).save(place / "continuous.npz")
    collect_demos("CartPole-v1", lambda obs: np.int64(obs[2] > 0), 8).save(place / "discrete.npz")
    return place


STRIKES = [
    ("Pendulum, fast path", "environment step", 333, "interrupted"),
    ("Pendulum, fast path", "minibatch", 21, "killed"),
    ("Pendulum, fast path", "evaluation", 250, "out of time"),
    ("Pendulum, fast path", "row", 3, "terminated"),
    ("Pendulum, fast path", "copying the agent", 4, "killed"),
    ("four Pendulums, reference path", "environment step", 90, "killed"),
    ("four Pendulums, reference path", "minibatch", 19, "out of time"),
    ("four Pendulums, reference path", "evaluation", 210, "killed"),
    ("four Pendulums, reference path", "copying the agent", 4, "terminated"),
    ("CartPole, reference path", "environment step", 300, "terminated"),
    ("CartPole, reference path", "minibatch", 15, "interrupted"),
    ("CartPole, reference path", "row", 4, "killed"),
    ("CartPole, reference path", "copying the agent", 3, "out of time"),
    ("four CartPoles, fast path", "environment step", 77, "out of time"),
    ("four CartPoles, fast path", "minibatch", 21, "terminated"),
    ("four CartPoles, fast path", "evaluation", 25, "interrupted"),
    ("four CartPoles, fast path", "row", 4, "interrupted"),
    ("four Pendulums in workers", "environment step", 100, "interrupted"),
    ("four Pendulums in workers", "evaluation", 205, "killed"),
    ("CartPole in a worker, plain numbers", "minibatch", 21, "killed"),
    ("CartPole in a worker, plain numbers", "copying the agent", 4, "terminated"),
]


@pytest.mark.parametrize(("run", "place", "at", "how"), STRIKES)
def test_a_run_struck_three_times_ends_where_one_straight_through_ends(run, place, at, how, folder, straight):
    config = replace(RUNS[run], save_path=str(folder / "a.pt"))
    for strikes in range(3):
        if not struck(resumed(config), place, at, how):
            assert strikes > 0
            break
        rows, saved = read_rows(folder / "a" / "metrics.jsonl"), read_checkpoint(folder / "a.pt")["training"]["env_steps"]
        if how != "killed":  # all that was learned is saved, but for an update whose agent was not kept yet
            assert saved == rows[-1]["step"] - (ROLLOUT if place in ("row", "copying the agent") else 0)
    command(resumed(config))
    assert {each["level"] for each in resumes(folder / "a.pt")} == {"exact"}
    assert first_difference(straight(RUNS[run]), folder) is None


@pytest.mark.parametrize(("place", "how"), [("writing", "killed"), ("written", "interrupted")])
@pytest.mark.parametrize("kind", ["PPO", "cloning"])
def test_a_run_struck_between_any_two_writes_ends_where_one_straight_through_ends(kind, place, how, tmp_path, straight, demos):
    epochs = replace(CLONING.bc, epochs=5)
    config = PENDULUM if kind == "PPO" else replace(CLONING, demo_path=str(demos / "continuous.npz"), bc=epochs)
    differences = {}
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        mine = replace(config, save_path=str(folder / "a.pt"))
        landed = struck(mine, place, at, how)
        if not landed:
            break
        command(resumed(mine))
        differences[at] = first_difference(straight(config), folder)
    assert len(differences) > 8  # files were written
    assert {at: found for at, found in differences.items() if found is not None} == {}


def test_a_run_that_goes_back_and_is_killed_on_the_way_keeps_its_rows(tmp_path, straight):
    lost = {}
    for at in itertools.count(1):
        shutil.copytree(straight(PENDULUM), tmp_path / str(at))
        mine = replace(PENDULUM, save_path=str(tmp_path / str(at) / "a.pt"))
        earlier = min((tmp_path / str(at) / "a").glob("step_*.pt"))
        if not struck(replace(mine, resume=str(earlier)), "written", at, "killed"):
            break
        command(resumed(mine))
        try:
            lost[at] = first_difference(straight(PENDULUM), tmp_path / str(at))
        except FileNotFoundError as error:
            lost[at] = str(error)
    assert at > 5  # files were put aside
    assert {at: found for at, found in lost.items() if found is not None} == {}


def test_a_run_of_many_short_spells_by_the_clock_ends_where_one_straight_through_ends(folder, straight):
    config = replace(CARTPOLE, total_timesteps=40 * ROLLOUT, eval_interval=5 * ROLLOUT)
    for spell in range(200):
        seconds = 0.08 + 0.005 * spell  # for at least one update a spell, in the end, on a machine with other work too
        with torch.enable_grad():  # the alarm may strike inside torch.no_grad, which then leaves gradients off
            command(resumed(replace(config, save_path=str(folder / "a.pt"), max_time=seconds)))
        if read_checkpoint(folder / "a.pt")["training"]["env_steps"] == config.total_timesteps:
            break
    rows = read_rows(folder / "a" / "metrics.jsonl")
    expected = read_rows(straight(config) / "a" / "metrics.jsonl")
    assert [row | dict.fromkeys(TIME_FIELDS, 0) for row in rows] == [row | dict.fromkeys(TIME_FIELDS, 0) for row in expected]
    ended, whole = (read_checkpoint(place / "a.pt") for place in (folder, straight(config)))
    assert resumes(folder / "a.pt")
    assert all(torch.equal(ended["parameters"][name], whole["parameters"][name]) for name in whole["parameters"])


@pytest.mark.parametrize("kind", ["PPO", "cloning"])
def test_a_run_whose_time_is_over_before_it_has_begun_ends_well(kind, folder, demos):
    config = PENDULUM if kind == "PPO" else replace(CLONING, demo_path=str(demos / "continuous.npz"))
    command(replace(config, save_path=str(folder / "a.pt"), max_time=1e-6))
    training = read_checkpoint(folder / "a.pt")["training"]
    assert training["env_steps" if kind == "PPO" else "epochs"] == 0
    assert read_rows(folder / "a" / "metrics.jsonl") == []


@pytest.mark.parametrize("kind", ["PPO", "cloning"])
def test_a_run_struck_inside_torchs_own_switch_of_gradients_can_go_on_in_this_process(kind, folder, straight, demos):
    plain = RUNS["CartPole, reference path"]
    if kind == "cloning":
        plain = replace(CLONING, demo_path=str(demos / "continuous.npz"), bc=replace(CLONING.bc, fast_path=False))
    config, before = replace(plain, save_path=str(folder / "a.pt")), straight(plain)
    with torch.enable_grad():
        assert struck(config, "row", 3, "interrupted")
        torch.set_grad_enabled(False)  # as an interruption between the last two lines of torch.no_grad leaves it
        command(resumed(config))
    assert first_difference(before, folder) is None


def test_environments_in_workers_go_on_as_those_in_one_process_would(folder, straight):
    config = replace(RUNS["four CartPoles, fast path"], save_path=str(folder / "a.pt"))
    assert struck(config, "minibatch", 21, "interrupted")
    command(replace(resumed(config), vectorization="async"))
    ended, whole = (read_checkpoint(place / "a.pt") for place in (folder, straight(RUNS["four CartPoles, fast path"])))
    assert resumes(folder / "a.pt") == [{"step": 2 * ROLLOUT, "level": "exact"}]
    assert all(torch.equal(ended["parameters"][name], whole["parameters"][name]) for name in whole["parameters"])


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
@pytest.mark.parametrize(
    ("fast_path", "place", "at", "how"),
    [
        (True, "minibatch", 45, "interrupted"),
        (True, "copying the student", 5, "killed"),
        (False, "minibatch", 45, "killed"),
        (False, "row", 3, "terminated"),
        (True, "row", 5, "out of time"),
    ],
)
def test_cloning_struck_three_times_ends_where_it_ends_straight_through(
    actions, fast_path, place, at, how, folder, straight, demos
):
    plain = replace(CLONING, demo_path=str(demos / f"{actions}.npz"), bc=replace(CLONING.bc, fast_path=fast_path))
    config = replace(plain, save_path=str(folder / "a.pt"))
    for strikes in range(3):
        assert struck(resumed(config), place, at, how) or strikes > 0
    command(resumed(config))
    assert {each["level"] for each in resumes(folder / "a.pt")} == {"exact"}
    assert first_difference(straight(plain), folder) is None


def test_a_student_resumed_without_a_seed_takes_its_own(folder, demos):
    config = replace(CLONING, demo_path=str(demos / "continuous.npz"), save_path=str(folder / "a.pt"), seed=None)
    assert struck(config, "row", 3, "interrupted")
    assert command(resumed(config)).epochs == config.bc.epochs


def test_other_demonstrations_are_refused_and_the_same_ones_elsewhere_are_taken(folder, demos, capsys):
    config = replace(CLONING, demo_path=str(demos / "discrete.npz"), save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    before = (folder / "a.pt").read_bytes()
    collect_demos("CartPole-v1", lambda obs: np.int64(obs[2] > 0), 8, seed=1).save(folder / "others.npz")
    with pytest.raises(SystemExit) as leaving:
        train.main(["--resume", "--save-path", str(folder / "a.pt"), "--demo-path", str(folder / "others.npz")])
    assert leaving.value.code == 2
    assert "others.npz holds other demonstrations" in capsys.readouterr().err
    assert (folder / "a.pt").read_bytes() == before
    shutil.copy(demos / "discrete.npz", folder / "moved.npz")
    train.main(["--resume", "--save-path", str(folder / "a.pt"), "--demo-path", str(folder / "moved.npz")])
    assert BCAgent.load(folder / "a.pt").epochs == config.bc.epochs


@pytest.mark.parametrize("flags", ["--lr 0.1", "--epochs 20", "--batch-size 8", "--hidden-dims 9", "--seed 1"])
def test_changed_settings_of_cloning_are_refused(flags, folder, demos, capsys):
    config = replace(CLONING, demo_path=str(demos / "discrete.npz"), save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    with pytest.raises(SystemExit) as leaving:
        train.main(["--resume", "--save-path", config.save_path, *flags.split()])
    assert leaving.value.code == 2
    assert "leave the flag out" in capsys.readouterr().err


def test_a_finished_student_says_so_and_is_left_alone(folder, demos, capsys):
    config = replace(CLONING, demo_path=str(demos / "continuous.npz"), save_path=str(folder / "a.pt"))
    command(config)
    before = (folder / "a.pt").read_bytes()
    assert train.main(["--resume", "--save-path", config.save_path]) is None
    assert "the run is finished: it has had its 12 epochs" in capsys.readouterr().err
    assert (folder / "a.pt").read_bytes() == before


def test_a_student_that_cannot_be_written_at_the_end_is_no_success(folder, demos, monkeypatch):
    config = replace(CLONING, demo_path=str(demos / "continuous.npz"), save_path=str(folder / "a.pt"))
    real = il_based_rl.experiment.run.write_checkpoint

    def write(path, payload):
        if payload["training"]["epochs"] == config.bc.epochs:
            raise FileWriteError("the disk is full")
        real(path, payload)

    monkeypatch.setattr(il_based_rl.experiment.run, "write_checkpoint", write)
    with pytest.raises(FileWriteError):
        command(config)


LEVELS = {
    "exact": ("Pendulum-v1", "exactly as if it had run straight through"),
    "episode": ("toy/Counter-v0", "with new episodes"),  # its observations tell how often it was reset
    "weights": ("toy/NoGenerator-v0", "with environments that start anew"),
}


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("level", LEVELS)
def test_how_much_is_back_is_said_and_recorded(level, num_envs, folder, capsys):
    env_id, said = LEVELS[level]
    config = replace(PENDULUM, env_id=env_id, num_envs=num_envs, ppo=SHORT if num_envs == 4 else SMALL)
    config = replace(config, save_path=str(folder / "a.pt"))
    for at in (3, 4):
        assert struck(resumed(config), "row", at, "interrupted")
    command(resumed(config))
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming")]
    assert [f": {said}" in line for line in messages] == [True, True]
    assert "other settings" not in "".join(messages)
    assert resumes(folder / "a.pt") == [{"step": step * ROLLOUT, "level": level} for step in (2, 5)]
    assert [row["step"] for row in read_rows(folder / "a" / "metrics.jsonl")] == [ROLLOUT * (k + 1) for k in range(UPDATES)]


def test_hidden_wear_that_only_rewards_show_is_noticed(folder, capsys):
    config = replace(PENDULUM, env_id="toy/Wearing-v0", save_path=str(folder / "a.pt"))
    assert struck(config, "row", 5, "interrupted")
    command(resumed(config))
    assert "with new episodes" in capsys.readouterr().err
    assert resumes(folder / "a.pt") == [{"step": 4 * ROLLOUT, "level": "episode"}]


def test_environments_of_numbers_without_a_sign_are_back_exactly(folder, tmp_path):
    config = replace(PENDULUM, env_id="toy/Pixels-v0", save_path=str(folder / "a.pt"))
    command(replace(config, save_path=str(tmp_path / "straight" / "a.pt")))
    assert struck(config, "row", 5, "interrupted")
    command(resumed(config))
    assert resumes(folder / "a.pt") == [{"step": 4 * ROLLOUT, "level": "exact"}]
    one, other = (read_checkpoint(place / "a.pt")["parameters"] for place in (folder, tmp_path / "straight"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_environments_of_envpool_start_anew(folder):
    pytest.importorskip("envpool")
    config = replace(CARTPOLE, env_backend="envpool", num_envs=4, ppo=SHORT, save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    command(resumed(config))
    assert [each["level"] for each in resumes(folder / "a.pt")] == ["weights"]


@pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="envpool is not installed")
def test_a_run_can_go_on_in_environments_of_envpool(folder):
    config = replace(CARTPOLE, num_envs=4, ppo=SHORT, save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    command(replace(resumed(config), env_backend="envpool"))
    assert [each["level"] for each in resumes(folder / "a.pt")] == ["weights"]


def test_an_environment_that_writes_into_its_actions_is_brought_back(folder):
    config = replace(PENDULUM, env_id="toy/Impatient-v0", save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    command(resumed(config))
    assert [each["level"] for each in resumes(folder / "a.pt")] == ["exact"]


def test_a_library_that_was_loaded_meanwhile_changes_nothing(tmp_path):
    code = """
import sys
from dataclasses import replace
from il_based_rl.config import PPOConfig, TrainPPOConfig
from il_based_rl.train_ppo import train_ppo
config = TrainPPOConfig("CartPole-v1", 256, seed=0, save_path="a.pt", eval_episodes=1, ppo=PPOConfig(n_steps=128))
train_ppo(config)
assert "scipy" not in sys.modules
import scipy.stats
train_ppo(replace(config, resume="latest", total_timesteps=384))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert resumes(tmp_path / "a.pt") == [{"step": 256, "level": "exact"}], done.stderr


def test_another_machine_is_said_and_recorded(folder, monkeypatch, capsys):
    import il_based_rl.experiment.hardware as hardware

    config = replace(PENDULUM, save_path=str(folder / "a.pt"))
    assert struck(config, "row", 3, "interrupted")
    real = hardware.numerics
    monkeypatch.setattr(hardware, "numerics", lambda device: real(device) | {"torch": "9.9"})
    command(resumed(config))
    assert "not bit for bit" in (message := capsys.readouterr().err)
    assert "now 9.9" in message
    assert "from the state that it was in" in message
    assert [each["level"] for each in resumes(folder / "a.pt")] == ["state"]


def test_another_end_is_named_where_the_rate_falls_towards_it(folder, capsys):
    config = replace(PENDULUM, save_path=str(folder / "a.pt"), ppo=replace(SMALL, lr_schedule="linear"))
    command(config)
    command(replace(resumed(config), total_timesteps=config.total_timesteps * 2))
    said = f"from the state that it was in; other settings from here on: total_timesteps {config.total_timesteps * 2}\n"
    assert said in capsys.readouterr().err


CHANGES = [
    "--total-timesteps 1280",
    "--lr 0.01",
    "--gamma 0.9",
    "--gae-lambda 0.5",
    "--clip-range 0.1",
    "--n-steps 64",
    "--n-epochs 2",
    "--batch-size 16",
    "--entropy-coef 0.1",
    "--value-coef 1.0",
    "--max-grad-norm 1.0",
    "--lr-schedule linear",
    "--reward-clip 1.0",
    "--eval-interval 300",
    "--max-time 1000.0",
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was interrupted after two updates."""
    place = tmp_path_factory.mktemp("begun")
    assert struck(replace(PENDULUM, save_path=str(place / "a.pt")), "row", 3, "interrupted")
    return place


@pytest.mark.parametrize("change", CHANGES)
def test_a_hyperparameter_may_change_at_a_resume_and_holds_from_then_on(change, begun, tmp_path, capsys):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    train_ppo.main(["--resume", "--save-path", str(tmp_path / "a.pt"), *change.split()])
    flag, value = change.split()
    payload, name = read_checkpoint(tmp_path / "a.pt"), flag[2:].replace("-", "_")
    settings = payload["run"]["settings"]
    assert str({**settings, **settings["ppo"]}[name]) == value
    said = f"from the state that it was in; other settings from here on: {name} {value}"
    former = read_checkpoint(begun / "a.pt")["run"]["settings"]["ppo"]
    assert (said in capsys.readouterr().err) == (name in former and str(former[name]) != value)
    if name in settings["ppo"]:
        assert str(payload["training"]["config"][name]) == value
    assert payload["training"]["env_steps"] == settings["total_timesteps"]


@pytest.mark.parametrize(
    ("flags", "before", "now"),
    [
        ("--env-id CartPole-v1", "Pendulum-v1", "CartPole-v1"),
        ("--num-envs 2", "1", "2"),
        ("--hidden-dims 9", "8", "9"),
        ("--seed 1", "0", "1"),
        ("--no-normalize-obs", "True", "False"),
        ("--no-normalize-reward", "True", "False"),
        ("--eval-episodes 3", "2", "3"),
        ("--obs-clip 5", "10.0", "5.0"),
        ("--no-orthogonal-init", "True", "False"),
    ],
)
def test_what_a_run_is_made_of_may_not_change_at_a_resume(flags, before, now, begun, tmp_path, capsys):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(SystemExit) as leaving:
        train_ppo.main(["--resume", "--save-path", str(tmp_path / "a.pt"), *flags.split()])
    assert leaving.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    name = flags.split()[0].removeprefix("--no-").removeprefix("--").replace("-", "_")
    assert name in line
    assert before in line
    assert now in line
    assert {path: path.read_bytes() for path in files} == files


def test_real_signals_at_any_moment_leave_a_run_that_ends_where_one_straight_through_ends(tmp_path):
    flags = "--env-id CartPole-v1 --seed 0 --total-timesteps 8192 --n-steps 256 --eval-interval 1000 --eval-episodes 2"
    command = [sys.executable, "-m", "il_based_rl", "train-ppo", *flags.split(), "--save-path", "a.pt"]
    numbers = {"straight": None, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in numbers:
            (tmp_path / name).mkdir()
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes[name] = stack.enter_context(subprocess.Popen(command, cwd=tmp_path / name, **pipes))
        for name, number in numbers.items():
            if number is not None:
                next(line for line in processes[name].stdout if line.startswith("["))
                processes[name].send_signal(number)
        ended = {name: (*process.communicate(timeout=120), process.returncode) for name, process in processes.items()}
    assert {name: code for name, (_, _, code) in ended.items()} == {"straight": 0, "SIGTERM": 143, "SIGKILL": -9}
    saved = read_checkpoint(tmp_path / "SIGTERM/a.pt")["training"]["env_steps"]
    assert ended["SIGTERM"][1].splitlines()[-2:] == [f"saved at step {saved}; go on with --resume", "interrupted"]
    rest = {
        name: subprocess.Popen([*command, "--resume"], cwd=tmp_path / name, stderr=subprocess.PIPE, text=True)
        for name in ("SIGTERM", "SIGKILL")
    }
    for name, process in rest.items():
        _, messages = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "exactly as if it had run straight through" in messages
        assert first_difference(tmp_path / "straight", tmp_path / name) is None


def test_the_comparison_notices_whatever_differs(straight, tmp_path):
    folder = straight(PENDULUM)
    assert first_difference(folder, folder) is None

    def altered(alter):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "x")
        alter(tmp_path / "x")
        return first_difference(folder, tmp_path / "x")

    def payload_with(change, name="a.pt"):
        def alter(place):
            payload = torch.load(place / name, weights_only=True)
            change(payload)
            torch.save(payload, place / name)

        return altered(alter)

    def row_with(change):
        def alter(place):
            path = place / "a" / "metrics.jsonl"
            path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

        return altered(alter)

    assert "rows[2].value_loss" in row_with(
        lambda rows: [*rows[:2], rows[2].replace('"value_loss": ', '"value_loss": 1'), *rows[3:]]
    )
    assert "rows" in row_with(lambda rows: rows[:-1])
    assert "rows" in row_with(lambda rows: [*rows, rows[-1]])
    assert "best.pt" in altered(lambda place: (place / "a/best.pt").unlink())
    assert "parameters" in payload_with(lambda payload: payload["parameters"]["log_std"].add_(1e-7))
    assert "best.pt" in payload_with(lambda payload: payload["training"]["optimizer"]["exp_avg"].mul_(-1), "a/best.pt")
    assert "random" in payload_with(lambda payload: payload["training"]["random"]["minibatch order"].update(uinteger=1))
    assert "environments" in payload_with(lambda payload: payload["training"]["environments"]["lengths"].add_(1))
    assert "best_eval_reward" in payload_with(lambda payload: payload["run"].update(best_eval_reward=0.5))
    assert payload_with(lambda payload: payload["run"].update(wall_seconds=0.5)) is None


@pytest.mark.parametrize("name", GONE)
def test_a_setting_that_is_gone_is_left_out_where_it_did_nothing_and_refused_where_it_did(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_ppo.train_ppo(replace(PENDULUM, total_timesteps=ROLLOUT))
    payload = read_checkpoint("a.pt")
    settings = payload["run"]["settings"]
    of_before = [settings] if name == "critic_hidden_dims" else [settings["ppo"], payload["training"]["config"]]
    resume = ["train-ppo", "--resume", "a.pt", "--total-timesteps", str(2 * ROLLOUT)]
    for each in of_before:
        each[name] = [12, 6]
    if name == "critic_hidden_dims":
        payload["architecture"][name] = [12, 6]
    write_checkpoint("a.pt", payload)
    for command in (resume, ["evaluate", "--env-id", "Pendulum-v1", "--checkpoint", "a.pt", "--num-episodes", "2"]):
        with pytest.raises(SystemExit) as leaving:
            main(command)
        assert leaving.value.code == 2
        assert re.search(r"\[12, 6\].*, which is gone; install the version", " ".join(capsys.readouterr().err.split()))
    for each in of_before:
        each[name] = GONE[name]
    if name == "critic_hidden_dims":
        payload["architecture"][name] = [8]
    write_checkpoint("a.pt", payload)
    main(resume)
    assert PPOAgent.load("a.pt").env_steps == 2 * ROLLOUT
