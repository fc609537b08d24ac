"""Whether all works together: the installation, the machine and, if asked, one environment. The command."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import __version__, cli
from il_based_rl.config import DoctorConfig
from il_based_rl.errors import DoctorError, EnvironmentFaultError, UnsupportedSpaceError, UserError

if TYPE_CHECKING:
    from il_based_rl.envs import Player

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

PASS, WARN, FAIL = "pass", "warn", "fail"
Finding = tuple[str, str]
"""A level, and what was found and what to do about it."""

OLDEST = {  # of each package the version that works, what is wrong with older ones and what to do
    "Python": ((3, 10), "its syntax is too old; install a newer Python"),
    "torch": ((2, 10), "a hostile checkpoint can corrupt its memory (CVE-2026-24747); pip install --upgrade torch"),
    "gymnasium": ((1, 1), "it lacks the modes of resetting; pip install --upgrade gymnasium"),
    "numpy": ((1, 26), "it was never tested here; pip install --upgrade numpy"),
}
EXTRAS = {  # the names that each is published under, of which only one may be there, and how to get the first
    "wandb": (("wandb",), 'pip install "il_based_rl[wandb]"'),
    "envpool": (("envpool",), 'pip install "il_based_rl[envpool]", with Python 3.11 or newer'),
    "mujoco": (("mujoco",), 'pip install "gymnasium[mujoco]"'),
    "box2d": (("box2d", "box2d-py"), 'pip install "gymnasium[box2d]"'),
    "pygame": (("pygame-ce", "pygame"), 'pip install "gymnasium[classic-control]"'),
}
MUJOCO_PARTS = "mujoco mujoco-core mujoco-studio"
"""What the package mujoco consists of since version 4."""

LEAST_FREE = 2**30
"""Bytes of disk below which a run may not end well."""
STEPS = 200
"""Random actions that an environment is judged by."""
SEED, OTHER_SEEDS = 7, range(100, 110)
OWN_CODE = "this comes from the environment's own code; mend it there"


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
    checks = [_versions(), _cuda(), _extras(), _combinations(), _rendering(), _storage(Path(config.save_path)), _processor()]
    if config.env_id is not None:
        checks.append(_environment(config.env_id))
    for check in checks:
        try:
            yield from check
        except UserError as error:
            yield FAIL, str(error)
        except Exception as error:  # what is installed badly may fail in any way
            yield FAIL, f"{type(error).__name__}: {error}; a package is missing or broken: install it again"


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
    try:
        return importlib.metadata.distribution(name).version
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def _cuda() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield (
            PASS,
            f"torch sees {torch.cuda.device_count()} CUDA devices, the first {torch.cuda.get_device_name(0)}: --device cuda",
        )
    else:
        yield PASS, "torch sees no CUDA device: updates run on the CPU"


def _extras() -> Iterator[Finding]:
    for extra, (names, remedy) in EXTRAS.items():
        found = {name: version for name in names if (version := _installed(name)) is not None}
        described = " and ".join(f"{name} {version}" for name, version in found.items())
        if not found:
            yield PASS, f"{extra} is not installed, and need not be ({remedy})"
        elif len(found) > 1:
            mend = f"pip uninstall {' '.join(names)}, then {remedy}"
            yield WARN, f"{described} overwrite each other's files; {mend}"
        elif lost := _lost_files(*found):
            yield WARN, f"{described} lacks {lost} of its files; pip install --force-reinstall --no-deps {names[0]}"
        else:
            yield PASS, described


def _lost_files(name: str) -> int:
    """Count the files of a package that are no longer there, as removing another one that shares its folder leaves it."""
    files = importlib.metadata.distribution(name).files or []
    return sum(not Path(str(file.locate())).exists() for file in files if file.suffix in (".py", ".so", ".pyd"))


def _combinations() -> Iterator[Finding]:
    """Find packages that do not work together; where there are none, nothing is said."""
    if (gym := _installed("gym")) is not None:
        yield WARN, f"gym {gym} is there beside gymnasium, and its environments cannot be played here; import gymnasium as gym"
    if (envpool := _installed("envpool")) is not None and _numbers(envpool) < (1, 2):
        yield WARN, f"envpool {envpool} is older than 1.2, which --env-backend envpool needs; pip install --upgrade envpool"
    mujoco = _installed("mujoco")
    if mujoco is not None and _numbers(mujoco) < (2, 3, 3):
        yield (
            WARN,
            f"mujoco {mujoco} is older than 2.3.3, which environments such as Hopper-v5 need; pip install --upgrade mujoco",
        )
    elif mujoco is not None and _numbers(mujoco) >= (4,):
        core = _installed("mujoco-core")
        if core != mujoco:
            yield FAIL, f"mujoco {mujoco} with mujoco-core {core} cannot be imported; pip install --upgrade {MUJOCO_PARTS}"
        elif _lost_files("mujoco-core"):  # mujoco 3 took them along when it was replaced
            mend = f"pip install --force-reinstall --no-deps {MUJOCO_PARTS}"
            yield FAIL, f"mujoco-core {core} lacks files and cannot be imported; {mend}"


def _rendering() -> Iterator[Finding]:
    """Look for what draws; commands that do not draw need none of it."""
    if sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        yield PASS, "drawing goes to the display"
        return
    if any(_installed(name) for name in EXTRAS["pygame"][0]) and "SDL_VIDEODRIVER" not in os.environ:
        yield WARN, "there is no display: to draw with pygame, set SDL_VIDEODRIVER=dummy"
    if _installed("mujoco") and os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"):
        yield WARN, "there is no display: to draw with MuJoCo, set MUJOCO_GL=egl, or MUJOCO_GL=osmesa where there is no GPU"


def _storage(path: Path) -> Iterator[Finding]:
    from il_based_rl.files import require_writable

    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        require_writable(path)
        yield PASS, f"{path} can be written"
    finally:
        for folder in missing:  # those that the attempt has made, the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
    free = shutil.disk_usage(path.parents[len(missing)]).free
    if free < LEAST_FREE:
        yield WARN, f"only {free / 2**20:.0f} MiB are free where {path} goes; make room, or choose another --save-path"
    else:
        yield PASS, f"{free / 2**30:.0f} GiB are free there"
    if importlib.util.find_spec("fcntl") is None:
        yield WARN, "this system has no file locks: give runs that go on at the same time save paths of their own"
    else:
        yield PASS, "file locks keep two runs from one save path"


def _processor() -> Iterator[Finding]:
    import torch

    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield PASS, f"{allowed} of {cores} CPU cores may be used; torch computes with up to {torch.get_num_threads()} threads"


def _environment(env_id: str) -> Iterator[Finding]:
    from il_based_rl.envs import make_env
    from il_based_rl.heads import action_head
    from il_based_rl.rollout import MAX_EPISODE_STEPS
    from il_based_rl.spaces import ObservationCodec

    try:
        with contextlib.closing(make_env(env_id)) as env:
            yield PASS, f"{env_id} can be made"
            supported = True
            for reader, space in ((ObservationCodec, env.observation_space), (action_head, env.action_space)):
                try:
                    reader(space)
                except UnsupportedSpaceError as error:
                    supported = False
                    yield FAIL, str(error)
            limit = env.spec.max_episode_steps if env.spec is not None else None
        if limit is None:
            yield (
                WARN,
                (
                    f"no time limit is registered: an episode that does not end is cut after {MAX_EPISODE_STEPS:,} steps, "
                    "or never in training; give gymnasium.register max_episode_steps"
                ),
            )
        else:
            yield PASS, f"an episode ends after {limit:,} steps at the latest"
        if supported:
            yield PASS, "its spaces are supported"
            for check in (_values, _seeding, _repeatability, _resuming):
                yield from check(env_id)
    except EnvironmentFaultError as error:
        yield FAIL, f"{error}; {OWN_CODE}"
    except UserError:
        raise
    except Exception as error:  # another author's code may fail in any way
        yield FAIL, f"environment {env_id}: {type(error).__name__}: {error}; {OWN_CODE}"


def _values(env_id: str) -> Iterator[Finding]:
    """Play, and look at the observations and at the time that steps take; what is not finite is raised by the player."""
    import numpy as np

    with _fresh(env_id) as player:
        space, seconds, misfit = player.env.observation_space, list[float](), None
        for taken, _ in _walk(player, STEPS):
            seconds.append(taken)
            if misfit is None and not space.contains(player.obs):
                misfit = f"the observation of step {len(seconds)}, of {player.row.dtype}, is not in its space {space}"
    yield PASS, f"{STEPS} random steps gave finite numbers of the right shape"
    if misfit is None:
        yield PASS, "observations are in their space"
    else:
        yield WARN, f"{misfit}: what is learned does not rely on that, other packages may; mend the bounds or the number type"
    yield PASS, f"a step takes {np.median(seconds) * 1e6:.0f} µs (median)"


@contextlib.contextmanager
def _fresh(env_id: str) -> Iterator[Player]:
    """Make an environment that has played nothing yet, and begin an episode from the common seed."""
    from il_based_rl.envs import Player, make_env

    with contextlib.closing(Player(make_env(env_id))) as player:
        _begin(player, SEED)
        yield player


def _begin(player: Player, seed: int) -> None:
    player.reset(seed)
    player.env.action_space.seed(seed)


def _walk(player: Player, steps: int, longest: int | None = None) -> Iterator[tuple[float, tuple[Any, ...]]]:
    """Take random actions, through several episodes of at most `longest` steps; yield the seconds and all that was seen."""
    for _ in range(steps):
        action, started = player.env.action_space.sample(), time.perf_counter()
        ends = player.step(action)
        yield time.perf_counter() - started, (player.row.tobytes(), *ends)
        if ends[1] or ends[2] or player.steps == longest:
            player.reset()


def _seen(player: Player, steps: int = STEPS, longest: int | None = None) -> list[tuple[Any, ...]]:
    return [seen for _, seen in _walk(player, steps, longest)]


def _parting(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> int | None:
    """Return the first step at which two walks are not the same, bit for bit."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=True), 1) if a != b), None)


def _seeding(env_id: str) -> Iterator[Finding]:
    with _fresh(env_id) as player:
        starts = [player.row.tobytes()]
        for seed in (SEED, *OTHER_SEEDS):
            player.reset(seed)
            starts.append(player.row.tobytes())
    if starts[0] != starts[1]:
        yield WARN, "one seed gave two first observations: no run can be repeated; draw from self.np_random alone"
    elif len(set(starts)) == 1:
        yield (
            WARN,
            (
                f"{len(OTHER_SEEDS)} seeds all gave the same first observation: unless steps are random, so are all episodes of a "
                "deterministic policy; draw the start from self.np_random"
            ),
        )
    else:
        yield PASS, "a seed decides the first observation"


def _repeatability(env_id: str) -> Iterator[Finding]:
    """Play the same actions in two fresh environments, and in one that has played other episodes before."""
    with _fresh(env_id) as one, _fresh(env_id) as other:
        first = _seen(one)
        if (step := _parting(first, _seen(other))) is not None:
            yield (
                WARN,
                (
                    f"two environments of one seed part at step {step} of the same actions: no run can be repeated; "
                    "draw from self.np_random alone"
                ),
            )
            return
        yield PASS, "the same seed and actions give the same observations and rewards"
        for seed in OTHER_SEEDS[:3]:
            _begin(other, seed)
            _seen(other)
            _begin(other, SEED)
            if (step := _parting(first, _seen(other))) is not None:
                yield (
                    WARN,
                    (
                        f"from the same seed, an environment that has played before parts from a fresh one at step {step}: "
                        "evaluations are not exactly repeatable; let reset undo all that steps have changed"
                    ),
                )
                return
    yield PASS, "and so they do after other episodes"


def _resuming(env_id: str) -> Iterator[Finding]:
    """Come back to a moment in a second environment, and see whether both go on alike."""
    from il_based_rl.envs import EXACT, FROM_WEIGHTS

    with _fresh(env_id) as played, _fresh(env_id) as resumed:
        _seen(played, 150, longest=40)
        state = played.state()
        level = FROM_WEIGHTS if state is None else resumed.restore(state)
        for player in (played, resumed):
            player.env.action_space.seed(SEED)
        alike = level == EXACT and _seen(played) == _seen(resumed)
    if alike:
        yield PASS, "a resumed run goes on exactly as an uninterrupted one"
    elif level == EXACT:
        yield (
            WARN,
            "a resumed run finds its last observation again but goes on otherwise; let reset undo what steps have changed",
        )
    elif level == FROM_WEIGHTS:
        yield WARN, "a resumed run begins its episodes from the first seeds again; draw from self.np_random alone"
    else:
        yield WARN, "a resumed run begins new episodes, unlike an uninterrupted one; call super().reset(seed=seed) in reset"


if __name__ == "__main__":
    main()
