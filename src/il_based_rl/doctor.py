"""Whether all works together: the installation, the machine and, if asked, one environment. The command."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from il_based_rl import __version__, cli
from il_based_rl.config import DoctorConfig
from il_based_rl.errors import DoctorError, EnvironmentFaultError, UnsupportedSpaceError, UserError

if TYPE_CHECKING:
    from il_based_rl.envs import Player

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

PASS, WARN, FAIL = "pass", "warn", "fail"
Finding = tuple[str, str]
"""A level; and what was found, with what to do about it."""
Seen = tuple[bytes, float, bool, bool, float]  # what a step led to: observation, reward, terminated, truncated; seconds

OLDEST = {  # the oldest version that works, what is wrong with those before it, and what to do
    "Python": ((3, 10), "its syntax is too old; install a newer Python"),
    "torch": ((2, 10), "a hostile checkpoint can corrupt its memory (CVE-2026-24747); pip install --upgrade torch"),
    "gymnasium": ((1, 1), "its vector environments have no autoreset modes; pip install --upgrade gymnasium"),
    "numpy": ((1, 26), "it was never tested here; pip install --upgrade numpy"),
}
EXTRAS = {  # the names that each is published under, of which only one may be there, and how to get the first
    "wandb": (("wandb",), 'pip install "il_based_rl[wandb]"'),
    "tensorboard": (("tensorboard",), 'pip install "il_based_rl[tensorboard]"'),
    "imageio-ffmpeg": (("imageio-ffmpeg",), 'pip install "il_based_rl[video]"'),
    "envpool": (("envpool",), 'pip install "il_based_rl[envpool]", with Python 3.11 or newer'),
    "mujoco": (("mujoco",), 'pip install "gymnasium[mujoco]"'),
    "box2d": (("box2d", "box2d-py"), 'pip install "gymnasium[box2d]"'),
    "pygame": (("pygame-ce", "pygame"), 'pip install "gymnasium[classic-control]"'),
}
STEPS, SEED, OTHER_SEEDS = 200, 7, range(100, 110)
"""Random actions that an environment is judged by, and the seeds of its resets."""
TINY = 1e-5
"""A standard deviation below which a number of observations is hardly told from a constant, see `RunningNormalizer`."""
REPEATABLE = "draw all chance from self.np_random after super().reset(seed=seed), and let reset undo what steps have changed"


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl doctor`."""
    description = "Check the installation, the machine and, if asked, an environment; say what to do about what is wrong."
    cli.run(lambda: diagnose(cli.parse(DoctorConfig(), argv, prog="il-rl doctor", description=description)))


def diagnose(config: DoctorConfig) -> None:
    """Check everything, and print a line for each thing found.

    Raises:
        DoctorError: Something failed.
    """
    levels = []
    for level, text in _findings(config):
        cli.say(f"{level}  {' '.join(text.split())}")
        levels.append(level)
    if failed := levels.count(FAIL):
        raise DoctorError(f"{failed} of {len(levels)} checks failed; do what the lines that begin with fail say")


def _findings(config: DoctorConfig) -> Iterator[Finding]:
    checks = [_versions(), _processors(), _extras(), _rendering(), _storage(Path(config.save_path))]
    if config.env_id is not None:
        checks.append(_environment(config.env_id))
    for check in checks:
        try:
            yield from check
        except EnvironmentFaultError as error:
            yield FAIL, f"{error}; mend the environment"
        except UserError as error:
            yield FAIL, str(error)
        except Exception as error:  # what is installed badly, or another author's code, may fail in any way
            yield FAIL, f"{type(error).__name__}: {error}; install again, or mend, what this comes from"


def _versions() -> Iterator[Finding]:
    yield PASS, f"il_based_rl {__version__}"
    for name, (oldest, remedy) in OLDEST.items():
        version = platform.python_version() if name == "Python" else _installed(name)
        if version is None:
            yield FAIL, f"{name} is not installed; pip install {name}"
        elif _numbers(version) < oldest:
            yield FAIL, f"{name} {version} is older than {'.'.join(map(str, oldest))}: {remedy}"
        else:
            yield PASS, f"{name} {version}"


def _installed(name: str) -> str | None:
    """Return the version of a package, without importing it; None if it is not there."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.distribution(name).version
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def _processors() -> Iterator[Finding]:
    import torch

    from il_based_rl.envs import usable_cores

    cores = f"{usable_cores()} of {os.cpu_count() or 1} CPU cores"
    yield PASS, f"{cores} may be used; torch computes with up to {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield PASS, f"torch sees CUDA devices: {', '.join(gpus) or 'none'}"


def _extras() -> Iterator[Finding]:
    for extra, (names, remedy) in EXTRAS.items():
        found = {name: version for name in names if (version := _installed(name)) is not None}
        described = " and ".join(f"{name} {version}" for name, version in found.items())
        if not found:
            yield PASS, f"{extra} is not installed, and need not be ({remedy})"
        elif len(found) > 1:
            yield WARN, f"{described} overwrite each other's files; pip uninstall {' '.join(names)}, then {remedy}"
        elif lost := _lost_files(*found):
            yield WARN, f"{described} lacks {lost} of its files; pip install --force-reinstall --no-deps {' '.join(found)}"
        else:
            yield PASS, described
    for name, oldest, user in (("envpool", (1, 2), "--env-backend envpool"), ("mujoco", (2, 3, 3), "Hopper-v5 and its like")):
        if (version := _installed(name)) is not None and _numbers(version) < oldest:
            yield WARN, f"{name} {version} is too old for {user}; pip install --upgrade {name}"
    if (gym := _installed("gym")) is not None:
        yield WARN, f"gym {gym} is there beside gymnasium, and its environments cannot be played here; import gymnasium as gym"
    mujoco, core = _installed("mujoco"), _installed("mujoco-core")  # the latter was split off by version 4
    if mujoco is not None and _numbers(mujoco) >= (4,) and (core != mujoco or _lost_files("mujoco-core")):
        mend = f"pip install --force-reinstall --no-deps mujoco=={mujoco} mujoco-core=={mujoco} mujoco-studio=={mujoco}"
        yield FAIL, f"mujoco {mujoco} cannot be imported: mujoco-core ({core or 'none'}) differs or has lost files; {mend}"


def _lost_files(name: str) -> int:
    """Count a package's files that are gone, as removing another one with the same folder leaves it."""
    package = importlib.metadata.distribution(name)  # its own list of files leaves out what is gone, since Python 3.12
    files = [line.partition(",")[0] for line in (package.read_text("RECORD") or "").splitlines()]
    return sum(not Path(str(package.locate_file(file))).exists() for file in files if file.endswith((".py", ".so", ".pyd")))


def _rendering() -> Iterator[Finding]:
    """Look for what draws; commands that do not draw need none of it."""
    if sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        yield PASS, "there is a display to draw on"
        return
    if any(_installed(name) for name in EXTRAS["pygame"][0]) and "SDL_VIDEODRIVER" not in os.environ:
        yield WARN, "there is no display: to draw with pygame, set SDL_VIDEODRIVER=dummy"
    if _installed("mujoco") and os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"):
        yield WARN, "there is no display: to draw with MuJoCo, set MUJOCO_GL=egl, or MUJOCO_GL=osmesa where there is no GPU"


def _storage(path: Path) -> Iterator[Finding]:
    from il_based_rl.files import knows_locks, require_writable

    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        require_writable(path)
    finally:
        for folder in missing:  # those that the attempt has made, the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
    free = shutil.disk_usage(path.parents[len(missing)]).free
    if free < 2**30:  # room for the few checkpoints of a large policy, each of which is written beside the one it replaces
        yield WARN, f"only {free / 2**20:.0f} MiB are free where {path} goes; make room, or choose another --save-path"
    else:
        yield PASS, f"{path} can be written, and {free / 2**30:.0f} GiB are free there"
    if not knows_locks(path.parents[len(missing)]):
        yield WARN, "there are no file locks here: let no two runs that go on at the same time have one save path"
    else:
        yield PASS, "file locks keep two runs from one save path"


def _environment(env_id: str) -> Iterator[Finding]:
    from il_based_rl.envs import make_env
    from il_based_rl.heads import action_head
    from il_based_rl.rollout import MAX_EPISODE_STEPS
    from il_based_rl.spaces import ObservationCodec

    supported = True
    with contextlib.closing(make_env(env_id)) as env:
        yield PASS, f"{env_id} can be made"
        for reader, space in ((ObservationCodec, env.observation_space), (action_head, env.action_space)):
            try:
                reader(space)
            except UnsupportedSpaceError as error:
                supported = False
                yield FAIL, str(error)
        limit = None if env.spec is None else env.spec.max_episode_steps
    if limit is None:
        cut = f"an episode that does not end is cut after {MAX_EPISODE_STEPS:,} steps, and never in training"
        yield WARN, f"no time limit is registered: {cut}; give gymnasium.register max_episode_steps"
    else:
        yield PASS, f"an episode ends after {limit:,} steps at the latest"
    if supported:
        yield PASS, "its spaces are supported"
        for check in (_values, _seeding, _repeatability, _resuming):
            yield from check(env_id)


def _fresh(env_id: str) -> contextlib.closing[Player]:
    """Make an environment that has played nothing yet, to be closed when a block ends."""
    from il_based_rl.envs import Player, make_env

    return contextlib.closing(Player(make_env(env_id)))


def _walk(player: Player, seed: int = SEED) -> Iterator[Seen]:
    """Take random actions from a seed, through several episodes."""
    player.reset(seed)
    player.env.action_space.seed(seed)
    yield player.row.tobytes(), 0.0, False, False, 0.0
    for _ in range(STEPS):
        action, started = player.env.action_space.sample(), time.perf_counter()
        reward, terminated, truncated = player.step(action)
        yield player.row.tobytes(), reward, terminated, truncated, time.perf_counter() - started
        if terminated or truncated:
            player.reset()


def _parting(one: Iterable[Seen], other: Iterable[Seen]) -> int | None:
    """Return the first step at which two walks differ; 0 where they begin in different observations."""
    return next((step for step, (a, b) in enumerate(zip(one, other, strict=True)) if a[:4] != b[:4]), None)


def _values(env_id: str) -> Iterator[Finding]:
    """Look at observations and at the clock; the player raises what is not finite or of a wrong shape."""
    import numpy as np

    times, rows, misfit = list[float](), list[np.ndarray](), ""
    with _fresh(env_id) as player:
        for step, seen in enumerate(_walk(player)):
            times.append(seen[4])
            rows.append(np.array(player.row, np.float64).ravel())
            if not misfit and not player.codec.space.contains(player.obs):
                misfit = f"step {step} led to {player.row.dtype} {player.obs}, which is not in {player.codec.space}"
    yield PASS, f"{STEPS} random actions gave finite numbers of the right shape"
    if misfit:
        yield (
            WARN,
            f"{misfit}; out of bounds is an error where something is learned, but with --bounds any or in Gymnasium's that are "
            "known for it; mend the bounds or the number type",
        )
    else:
        yield PASS, "observations are in their space"
    values = np.array(rows)
    deviations, steps = values.std(axis=0), np.spacing(np.abs(values).max(axis=0).astype(np.float32))
    varies = deviations > 1e-13 * np.abs(values).max(axis=0)  # by more than float64 rounds
    coarse = varies & (steps > deviations / 100)
    if coarse.any():
        k = int(coarse.argmax())  # the first of them
        yield (
            WARN,
            f"number {k} of an observation varies by {deviations[k]:.3g} around {values[:, k].mean():.8g}, where float32, "
            f"which policies read, goes in steps of {steps[k]:.3g}; let the environment subtract its offset",
        )
    if (tiny := varies & ~coarse & (deviations < TINY)).any():
        k = int(tiny.argmax())
        yield (
            WARN,
            f"number {k} of an observation varies by {deviations[k]:.3g}, which is hardly told from a constant; let the "
            "environment give it in a smaller unit",
        )
    yield PASS, f"a step takes {statistics.median(times) * 1e6:.0f} µs (median)"


def _seeding(env_id: str) -> Iterator[Finding]:
    with _fresh(env_id) as player:
        starts = [next(_walk(player, seed))[0] for seed in (SEED, SEED, *OTHER_SEEDS)]
    if starts[0] != starts[1]:
        yield WARN, f"one seed gave two first observations: no run can be repeated; {REPEATABLE}"
    elif len(set(starts)) == 1:
        yield WARN, f"all seeds gave one first observation: episodes may all be the same; {REPEATABLE}"
    else:
        yield PASS, "a seed decides the first observation"


def _repeatability(env_id: str) -> Iterator[Finding]:
    """Play the same actions in two fresh environments, and in one that has played other episodes before."""
    with _fresh(env_id) as one, _fresh(env_id) as other:
        first = list(_walk(one))
        if (step := _parting(first, _walk(other))) is not None:
            what = f"two environments of one seed part at step {step} of the same actions"
            yield WARN, f"{what}: no run can be repeated; {REPEATABLE}"
            return
        yield PASS, "the same seed and actions give the same observations and rewards"
        for seed in OTHER_SEEDS[:3]:
            list(_walk(other, seed))
            if (step := _parting(first, _walk(other))) is not None:
                what = f"after other episodes, the same seed and actions lead elsewhere from step {step} on"
                yield WARN, f"{what}: evaluations are not exactly repeatable; {REPEATABLE}"
                return
        yield PASS, "and so they do after other episodes"


def _resuming(env_id: str) -> Iterator[Finding]:
    """Come back to a moment in a second environment, and see whether both go on alike."""
    from il_based_rl.envs import EXACT, FROM_EPISODE, FROM_WEIGHTS, resume_level

    shortcoming = {
        FROM_EPISODE: "begins new episodes instead of going on with those that it was in",
        FROM_WEIGHTS: "has the policy back, but begins episodes of its own",
    }
    level = resume_level(env_id)
    if level == EXACT:
        yield PASS, "a resumed run goes on exactly as an uninterrupted one"
    else:
        yield WARN, f"a resumed run {shortcoming[level]}; {REPEATABLE}"


if __name__ == "__main__":
    main()
