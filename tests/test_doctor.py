"""`il-rl doctor`: what passes, what is warned of, what fails, and how it leaves."""

import errno
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers the environments
from gymnasium import spaces

from il_based_rl import doctor
from il_based_rl.files import writing

REAL_DISTRIBUTION = importlib.metadata.distribution


class Walk(gym.Env):
    """A random walk that keeps every rule, or breaks the one that `rule` names."""

    def __init__(self, rule=None):
        self.observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._rule, self._steps_of_life = rule, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = self.np_random.random()
        if self._rule == "fixed start":
            start = 0.0
        elif self._rule == "unseeded start":
            start = np.random.random()
        elif self._rule == "foreign generator":
            self.np_random = np.random.Generator(np.random.MT19937(0))
        self._at, self._step = np.array([start, 0.0], np.float32), 0
        return self._at, {}

    def step(self, action):
        chance = np.random.random() if self._rule == "unseeded step" else 0.5
        self._at = self._at + np.float32(action[0] + chance)
        self._step += 1
        self._steps_of_life += 1
        if self._rule in ("worn soon", "worn late"):  # nothing of it shows in the first steps
            self._at[1] = self._steps_of_life // (90 if self._rule == "worn soon" else 300)
        reward = None if self._rule == "no reward" else float(self._at[0])
        obs = np.full(2, 2e6, np.float32) if self._rule == "out of bounds" else self._at
        return obs.astype(np.float64 if self._rule == "other type" else np.float32), reward, self._step == 35, False, {}

    def close(self):
        if self._rule == "cannot close":
            raise RuntimeError("the door is stuck")


BROKEN = ["fixed start", "unseeded start", "foreign generator", "unseeded step", "worn soon", "worn late", "no reward"]
for _rule in (*BROKEN, "out of bounds", "other type", "cannot close"):
    gym.register(f"doctor/{_rule.title().replace(' ', '')}-v0", Walk, kwargs={"rule": _rule}, max_episode_steps=100)
gym.register("doctor/Sound-v0", Walk, max_episode_steps=100)
gym.register("doctor/NoLimit-v0", Walk)


class Minute(Walk):
    """The same, told in a unit that is far too large."""

    def reset(self, **told):
        obs, info = super().reset(**told)
        return np.float32(obs * 1e-7), info

    def step(self, action):
        obs, *rest = super().step(action)
        return np.float32(obs * 1e-7), *rest


class FarAway(Walk):
    """The same, told in metres from far away, as satellites tell a place."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-1e7, 1e7, (2,), np.float64)

    def reset(self, **told):
        obs, info = super().reset(**told)
        return self._told(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return self._told(obs), *rest

    def _told(self, obs):
        return np.array([5e6 + float(obs[0]), np.nextafter(8.9, 9.0) if self._step % 2 else 8.9])  # of which one is constant


gym.register("doctor/FarAway-v0", FarAway, max_episode_steps=100)
gym.register("doctor/Minute-v0", Minute, max_episode_steps=100)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, on a machine whose display is not asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPLAY", ":0")
    return tmp_path


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Make packages seem to be installed in a version, or not to be there (None)."""
    changed = {}

    def distribution(name):
        if name not in changed:
            return REAL_DISTRIBUTION(name)
        if changed[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {changed[name]}\n")
        return importlib.metadata.PathDistribution(folder)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return changed


def lines_of(capsys, *flags):
    """Run the command; return its lines, its exit code and what it wrote to standard error."""
    code = 0
    try:
        assert doctor.main(list(flags)) is None
    except SystemExit as leaving:
        code = leaving.code
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert all(re.match(r"(pass|warn|fail)  \S", line) for line in lines)
    assert "Traceback" not in output.err
    assert code == (1 if any(line.startswith("fail") for line in lines) else 0)
    assert [line for line in output.err.splitlines() if line.startswith("error: ")] == output.err.splitlines()
    return lines, code, output.err


def findings(lines, level):
    return [line for line in lines if line.startswith(level)]


def environment_lines(capsys, env_id):
    """Return what is said of an environment alone."""
    lines, _, _ = lines_of(capsys, "--env-id", env_id)
    without, _, _ = lines_of(capsys)
    return lines[len(without) :]


def test_a_sound_installation_passes_and_leaves_nothing_behind(capsys, workplace):
    lines, code, error = lines_of(capsys)
    assert (code, error) == (0, "")
    assert findings(lines, "fail") == []
    for package in ("torch", "gymnasium", "numpy"):
        assert f"pass  {package} {importlib.metadata.version(package)}" in lines
    assert f"pass  Python {platform.python_version()}" in lines
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "doctor/Sound-v0"])
def test_a_sound_environment_passes(env_id, capsys, global_generators_untouched):
    lines = environment_lines(capsys, env_id)
    assert findings(lines, "pass") == lines
    assert len(lines) == 10
    assert lines[-1] == "pass  a resumed run goes on exactly as an uninterrupted one"


def test_the_oldest_versions_are_those_that_the_package_requires():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for name, (oldest, _) in doctor.OLDEST.items():
        required = f">={'.'.join(map(str, oldest))}"
        assert (f'requires-python = "{required}"' if name == "Python" else f'    "{name}{required}",\n') in project


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("torch", "2.9.1+cpu", ["2.9.1+cpu is older than 2.10", "CVE-2026-24747", "pip install --upgrade torch"]),
        ("gymnasium", "1.0.0", ["1.0.0 is older than 1.1", "pip install --upgrade gymnasium"]),
        ("numpy", None, ["numpy is not installed", "pip install numpy"]),
    ],
)
def test_an_old_or_missing_requirement_fails(package, version, said, packages, capsys):
    packages[package] = version
    lines, code, error = lines_of(capsys)
    (line,) = findings(lines, "fail")
    assert all(words in line for words in said)
    assert code == 1
    assert error == f"error: 1 of {len(lines)} checks failed; do what the lines that begin with fail say\n"


def test_an_old_python_fails(monkeypatch, capsys):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    (line,) = findings(lines_of(capsys)[0], "fail")
    assert "Python 3.9.18 is older than 3.10" in line


def test_a_package_that_cannot_be_imported_fails_and_the_rest_is_still_checked(monkeypatch, capsys):
    lines_of(capsys)  # the parser of command lines looks for torch itself, once
    monkeypatch.setitem(sys.modules, "torch", None)
    lines, _, _ = lines_of(capsys)
    (line,) = findings(lines, "fail")
    assert "import of torch halted" in line
    assert "install again" in line
    assert any("can be written" in line for line in lines)


def test_a_missing_extra_is_no_failure(packages, capsys):
    packages.update(dict.fromkeys(["wandb", "envpool", "mujoco", "mujoco-core", "box2d", "box2d-py", "pygame", "pygame-ce"]))
    lines, code, _ = lines_of(capsys)
    assert code == 0
    for extra, install in (("wandb", "il_based_rl[wandb]"), ("mujoco", "gymnasium[mujoco]"), ("pygame", "gymnasium[classic")):
        assert any(line.startswith(f"pass  {extra} is not installed") and install in line for line in lines)


@pytest.mark.parametrize(
    ("there", "level", "said"),
    [
        ({"gym": "0.26.2"}, "warn", ["gym 0.26.2", "import gymnasium as gym"]),
        ({"pygame": "2.6.1", "pygame-ce": "2.5.8"}, "warn", ["pygame-ce 2.5.8 and pygame 2.6.1", "pip uninstall"]),
        ({"envpool": "0.8.4"}, "warn", ["envpool 0.8.4", "--env-backend envpool", "pip install --upgrade envpool"]),
        ({"mujoco": "2.3.2", "mujoco-core": None}, "warn", ["mujoco 2.3.2", "Hopper-v5", "pip install --upgrade mujoco"]),
        ({"mujoco": "4.0.0", "mujoco-core": None}, "fail", ["mujoco 4.0.0", "none", "mujoco-core==4.0.0"]),
        ({"mujoco": "4.1.0", "mujoco-core": "4.0.0"}, "fail", ["mujoco 4.1.0", "4.0.0", "mujoco-core==4.1.0"]),
    ],
)
def test_packages_that_do_not_work_together_are_named(there, level, said, packages, capsys):
    packages.update(there)
    (line,) = findings(lines_of(capsys)[0], level)
    assert all(words in line for words in said)


def test_mujoco_three_needs_no_core(packages, capsys):
    packages.update({"mujoco": "3.3.0", "mujoco-core": None})
    lines, code, _ = lines_of(capsys)
    assert "pass  mujoco 3.3.0" in lines
    assert (code, findings(lines, "warn")) == (0, [])


def test_a_package_that_has_lost_files_is_found(packages, tmp_path, capsys):
    packages["wandb"] = "0.31.0"
    doctor._installed("wandb")
    (tmp_path / "wandb.dist-info" / "RECORD").write_text("wandb/__init__.py,,\nwandb/run.py,,\nwandb/run.pyc,,\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run.py").touch()
    (line,) = findings(lines_of(capsys)[0], "warn")
    assert "wandb 0.31.0 lacks 1 of its files; pip install --force-reinstall --no-deps wandb" in line


def test_without_a_display_what_draws_is_told_how(monkeypatch, packages, capsys):
    packages.update({"pygame-ce": "2.5.8", "mujoco": "3.3.0", "mujoco-core": None})
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    warnings = findings(lines_of(capsys)[0], "warn")
    assert [name for line in warnings for name in ("SDL_VIDEODRIVER=dummy", "MUJOCO_GL=egl") if name in line] == [
        "SDL_VIDEODRIVER=dummy",
        "MUJOCO_GL=egl",
    ]
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert findings(lines_of(capsys)[0], "warn") == []
    packages.update({"pygame-ce": None, "pygame": None, "mujoco": None})
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.delenv("MUJOCO_GL")
    assert findings(lines_of(capsys)[0], "warn") == []


def test_a_place_that_cannot_be_written_fails(workplace, capsys):
    (workplace / "old.pt").write_text("a file that must not be lost")
    for path in ("old.pt/new/x.pt", str(workplace)):
        (line,) = findings(lines_of(capsys, "--save-path", path)[0], "fail")
        assert f"cannot write {path}" in line
    assert [path.name for path in workplace.iterdir()] == ["old.pt"]
    assert (workplace / "old.pt").read_text() == "a file that must not be lost"


def test_folders_that_were_there_stay(workplace, capsys):
    (workplace / "runs").mkdir()
    lines, _, _ = lines_of(capsys, "--save-path", "runs/of/today/x.pt")
    assert any(line.startswith("pass  runs/of/today/x.pt can be written") for line in lines)
    assert list((workplace / "runs").iterdir()) == []


class WithoutLocks:
    """A file system that knows none, as some network disks."""

    LOCK_EX, LOCK_NB = 2, 4

    @staticmethod
    def flock(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("fcntl", [None, WithoutLocks], ids=["system", "file system"])
def test_little_space_and_no_locks_are_warned_of(fcntl, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    monkeypatch.setattr(writing, "fcntl", fcntl)
    space, locks = findings(lines_of(capsys)[0], "warn")
    assert "only 512 MiB are free" in space
    assert "there are no file locks here" in locks


def test_a_cuda_device_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert "pass  torch sees CUDA devices: Card 0, Card 1" in lines_of(capsys)[0]


FAILURES = [  # environment, and what the one line that fails must hold
    ("Pendulm-v1", ["unknown environment id 'Pendulm-v1'", "Pendulum-v1"]),
    ("ALE/Pong-v5", ["ALE/Pong-v5", 'pip install "gymnasium[atari]"']),
    ("toy/Unmakeable-v0", ["cannot be made: OSError: no such device", "mend the environment"]),
    ("toy/TextObs-v0", ["Text(", "expected Box", "ObservationWrapper"]),
    ("toy/TupleAction-v0", ["Tuple(", "expected Box", "ActionWrapper"]),
    ("toy/NanObs-v0", ["step 2", "not finite", "mend the environment"]),
    ("toy/InfReward-v0", ["step 2", "the reward is inf", "mend the environment"]),
    ("doctor/NoReward-v0", ["step 1", "is None; expected a number", "mend the environment"]),
    ("toy/WrongShape-v0", ["step 2", "shape (2,)", "(3,)", "mend the environment"]),
    ("toy/Raises-v0", ["step 2", "motor on fire", "mend the environment"]),
    ("toy/NanAtReset-v0", ["at reset", "not finite", "mend the environment"]),
    ("doctor/CannotClose-v0", ["RuntimeError: the door is stuck", "mend"]),
]


@pytest.mark.parametrize(("env_id", "said"), FAILURES)
def test_an_environment_that_cannot_be_used_fails_in_one_line(env_id, said, capsys):
    (line,) = findings(environment_lines(capsys, env_id), "fail")
    assert all(words in line for words in said)


WARNINGS = [  # environment, and what its warnings must hold, one after the other
    ("doctor/FixedStart-v0", ["all seeds gave one first observation"]),
    ("doctor/UnseededStart-v0", ["one seed gave two first observations", "part at step 0", "begins new episodes"]),
    ("doctor/UnseededStep-v0", ["part at step 1 of the same actions", "begins new episodes"]),
    ("doctor/WornSoon-v0", ["after other episodes, .* evaluations are not exactly repeatable", "begins new episodes"]),
    ("doctor/WornLate-v0", ["after other episodes, .* evaluations are not exactly repeatable", "begins new episodes"]),
    ("doctor/OutOfBounds-v0", ["step 1 led to float32 .*2[.]e[+]06.* not in Box"]),
    ("doctor/OtherType-v0", ["step 1 led to float64 .* not in Box.*float32"]),
    ("doctor/FarAway-v0", [r"number 0 of an observation varies by .* around 50000.*, where float32, .* in steps of 0[.]5"]),
    ("doctor/Minute-v0", [r"number 0 of an observation varies by .*e-0[67], which is hardly told from a constant"]),
    ("doctor/NoLimit-v0", ["no time limit .* cut after 50,000 steps.* max_episode_steps"]),
    ("doctor/ForeignGenerator-v0", ["has the policy back, but begins episodes of its own"]),
]


@pytest.mark.parametrize(("env_id", "said"), WARNINGS)
def test_an_environment_that_breaks_a_rule_is_warned_of_and_does_not_fail(env_id, said, capsys):
    lines = environment_lines(capsys, env_id)
    warnings = findings(lines, "warn")
    assert [pattern for pattern, line in zip(said, warnings, strict=True) if not re.search(pattern, line)] == []
    assert all(";" in line for line in warnings)  # what to do about it
    assert findings(lines, "fail") == []


def test_bipedal_walker_is_known_to_remember_former_episodes(capsys):
    lines = environment_lines(capsys, "BipedalWalker-v3")
    assert any("after other episodes" in line for line in findings(lines, "warn"))
    assert findings(lines, "fail") == []


def test_settings_that_make_no_sense_are_refused(capsys):
    with pytest.raises(SystemExit) as leaving:
        doctor.main(["--save-path", ""])
    assert leaving.value.code == 2
    assert "--save-path must be the path of a file" in capsys.readouterr().err
