"""Search for settings of PPO that make an expert, and prove them on seeds that the search never saw. The command.

The first trial is of the defaults. Further settings are drawn by a tree-structured Parzen estimator (Bergstra et al. 2011,
"Algorithms for hyper-parameter optimization"), and a trial is given up once it falls below the median of those before it.
All trials are kept in one SQLite file, from which a search that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from il_based_rl import cli
from il_based_rl.config import PPOConfig, TrainPPOConfig, TuneConfig, from_plain
from il_based_rl.errors import (
    EnvironmentFaultError,
    FileFormatError,
    MissingExtraError,
    ResumeError,
    Terminated,
    TrainingDivergedError,
    UserError,
)
from il_based_rl.presets import applied, flag_of
from il_based_rl.train_ppo import fresh_agent

if TYPE_CHECKING:
    import optuna
    from gymnasium.envs.registration import EnvSpec

# What is heavy (torch, Gymnasium, Optuna) is imported inside the functions, so that --help need not wait for it.

Settings = dict[str, Any]
"""Values by the name of their flag; the others are the defaults."""
Curve = list[tuple[int, float]]
"""Steps, and the mean return after them."""
Name = TypeVar("Name")
Result = TypeVar("Result")

_ROLLOUTS = {"1 x 2048": (1, 2048), "4 x 512": (4, 512), "8 x 256": (8, 256), "16 x 256": (16, 256), "8 x 32": (8, 32)}
"""Environments, and steps of each in a rollout."""
_CHOICES: dict[str, tuple[Any, ...]] = {
    "gamma": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    "gae_lambda": (0.9, 0.95, 0.98),
    "clip_range": (0.1, 0.2, 0.3),
    "n_epochs": (5, 10, 20),
    "batch_size": (64, 128, 256),
    "entropy_coef": (0.0, 0.001, 0.01),
    "lr_schedule": ("constant", "linear"),
    "initial_log_std": (0.0, -0.5, -1.0),
    "activation": ("tanh", "relu"),
    "orthogonal_init": (True, False),
}
_RATES = (1e-4, 2e-3)
"""Range of learning rates, drawn evenly in their logarithm."""
_POINTS, _UNTOUCHED = 8, 6
"""Evaluations of a trial; and trials from which on one that falls below their median after a quarter is given up."""
_CONFIRMING_EPISODES = 100
_PATIENCE = 1.0
"""Seconds that a process has to end by itself."""
_FIXED = ("env_id", "total_timesteps", "eval_episodes", "seed")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl tune`."""
    description = "Search for settings of PPO that make an expert, and prove them on seeds that the search never saw."
    cli.run(lambda: tune(cli.parse(TuneConfig(), argv, prog="il-rl tune", description=description)))


def tune(config: TuneConfig) -> Settings:
    """Search, or go on with a search that was interrupted; print the best settings, and return them.

    Raises:
        MissingExtraError: Optuna is not installed.
        ResumeError: The file holds a search for something else.
        FileFormatError: The file holds no search.
        LockedError: Another process searches there.
        EnvironmentFaultError: An environment failed; the trials that ended before are kept.
    """
    from il_based_rl.envs import Player, can_be_sent, make_env, registration, usable_cores
    from il_based_rl.files import exclusive, require_writable
    from il_based_rl.heads import action_head

    states, path = _optuna().trial.TrialState, Path(config.save_path)
    with contextlib.closing(Player(make_env(config.env_id))) as player:  # before anything is written, as it may not be there
        unused = set() if action_head(player.env.action_space).continuous else {"initial_log_std"}
        spec = registration(player.env)
    processes = config.workers or usable_cores()
    if processes > 1 and not can_be_sent(spec):
        cli.notice(f"{config.env_id} cannot be sent to other processes; trials run here, one after the other")
        processes = 1
    side_by_side = partial(_side_by_side, processes, spec)
    with _readable(path):
        _require_search(path)
    require_writable(path)
    with exclusive(path.with_name(f".{path.name}.lock"), place=path), _readable(path):
        study = _study(config)
        for cut_off in study.get_trials(states=(states.RUNNING,)):
            study.tell(cut_off.number, state=states.FAIL)
        _enqueue_defaults(study)
        ended = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
        cli.say(f"Searching settings of PPO for {config.env_id}: {config.trials} trials, {ended} of them done...")
        asked = (study.ask() for _ in range(config.trials - ended))  # each once a process is free for it
        drawn = ((trial, _drawn(trial, unused)) for trial in asked)
        jobs = ((each, (config, each[1], each[0].number, _bars(study))) for each in drawn)
        for (trial, settings), (curve, whole) in side_by_side(_tried, jobs):
            for steps, value in curve:
                trial.report(value, steps)
            study.tell(trial, curve[-1][1] if whole else None, state=states.COMPLETE if whole else states.PRUNED)
            if not config.quiet:
                shown = f"{curve[-1][1]:.2f}" if whole else "given up"
                cli.say(f"[{trial.number:>4}] {shown:>10}  {flags_of(settings)}")
        best = _best(study, config)
        cli.say(f"Best trial: number {study.best_trial.number}, mean return {study.best_value:.2f}")
        trainings = ((name, job) for name, job in _confirmations(config, best) if name not in study.user_attrs)
        for name, mean in side_by_side(_confirmed, trainings):
            study.set_user_attr(name, mean)
        if config.confirm_seeds:
            cli.say(_verdict(study, config, best))
        flags = flags_of({"bounds": config.bounds, **best})
        cli.say(f"il-rl train-ppo --env-id {config.env_id} --total-timesteps {config.total_timesteps} {flags}".rstrip())
    return best


def _drawn(trial: optuna.Trial, unused: set[str]) -> Settings:
    """Let the search draw settings, but for those that the environment has no use for."""
    trial.suggest_categorical("rollout", list(_ROLLOUTS))
    for name, choices in _CHOICES.items():
        if name not in unused:
            trial.suggest_categorical(name, choices)
    trial.suggest_float("lr", *_RATES, log=True)
    return _settings_of(trial.params)


def _settings_of(params: Mapping[str, Any]) -> Settings:
    """Return the settings that a trial's parameters stand for; a search of before may have left some at the defaults."""
    usual = _defaults()
    num_envs, n_steps = _ROLLOUTS[params["rollout"]]
    lr = float(f"{params['lr']:.2g}")  # what is printed is what was tried
    return {"num_envs": num_envs, "n_steps": n_steps, "lr": lr, **{name: params.get(name, usual[name]) for name in _CHOICES}}


def _bars(study: optuna.Study) -> dict[int, float]:
    """Return the median of the trials so far after each number of steps, below which a further trial is given up."""
    curves = [trial.intermediate_values for trial in study.trials if trial.intermediate_values]
    points = sorted({steps for curve in curves for steps in curve})
    reached = {steps: [curve[steps] for curve in curves if steps in curve] for steps in points[_POINTS // 4 :]}
    return {steps: statistics.median(values) for steps, values in reached.items() if len(values) >= _UNTOUCHED}


def _tried(config: TuneConfig, settings: Settings, number: int, bars: dict[int, float]) -> tuple[Curve, bool]:
    """Train one policy by these settings; return its evaluations, and whether it was not given up."""
    from il_based_rl.seeding import generator, start_seeds

    seed = int(generator(config.seed, "search", 0, number).integers(2**31))
    starts = list(start_seeds(config.seed, "evaluation in training", config.eval_episodes))
    curve: Curve = []
    with contextlib.suppress(TrainingDivergedError):
        for steps, value in _learning_curve(config, settings, seed, starts, _POINTS):
            curve.append((steps, value))
            if value < bars.get(steps, -math.inf):
                return curve, False
        return curve, True
    return curve, False


def _confirmed(config: TuneConfig, settings: Settings, k: int) -> float | None:
    """Train by these settings on a seed that the search never saw; return the mean return from start states of its own.

    None stands for training that diverged.
    """
    from il_based_rl.seeding import generator, start_seeds

    seed = int(generator(config.seed, "search", 1, k).integers(2**31))
    starts = list(start_seeds(seed, "evaluation", _CONFIRMING_EPISODES, key=6))  # so that seeds share no luck
    with contextlib.suppress(TrainingDivergedError):
        return list(_learning_curve(config, settings, seed, starts, 1))[-1][1]
    return None


def _learning_curve(
    config: TuneConfig, settings: Settings, seed: int, starts: Sequence[int], points: int
) -> Iterator[tuple[int, float]]:
    """Train, and yield steps and mean return at some points, the last of them at the end."""
    from il_based_rl.envs import make_envs
    from il_based_rl.evaluate import play_evaluation
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.rollout import EpisodePlayers

    full = _applied(settings, config)
    with (
        fitting_threads(full.hidden_dims),
        make_envs(config.env_id, full.num_envs, vectorization="sync", bounds=config.bounds) as envs,
        EpisodePlayers(config.env_id, len(starts), bounds=config.bounds) as players,
    ):
        agent = fresh_agent(replace(full, seed=seed), envs)
        reached = 0
        for progress in agent.learn(envs, config.total_timesteps):
            _leave_if_told()
            if (now := min(points, progress.env_steps * points // config.total_timesteps)) > reached:
                reached = now
                played = play_evaluation(agent, players, starts, watch=lambda _: _leave_if_told(), quiet=True)
                yield config.total_timesteps * now // points, played.mean


def _applied(settings: Settings, config: TuneConfig) -> TrainPPOConfig:
    """Return the settings that these make out of the defaults."""
    return applied(settings, TrainPPOConfig(config.env_id, config.total_timesteps))


def _defaults() -> Settings:
    return {**asdict(TrainPPOConfig()), **asdict(PPOConfig())}


def flags_of(settings: Settings) -> str:
    """Write settings as flags of train-ppo, those that are not its defaults."""
    usual = _defaults()
    return " ".join(flag_of(name, value) for name, value in settings.items() if value != usual[name])


def _best(study: optuna.Study, config: TuneConfig) -> Settings:
    """Return the settings of the best whole trial, checked as those of a command line are."""
    states = _optuna().trial.TrialState
    if not study.get_trials(states=(states.COMPLETE,)):
        raise TrainingDivergedError("no trial went through to its end; more --trials go on with the search")
    best = _settings_of(study.best_trial.params)
    _applied(best, config)
    return best


def _confirmations(config: TuneConfig, best: Settings) -> Iterator[tuple[str, tuple[TuneConfig, Settings, int]]]:
    """Yield the trainings on new seeds, of the best settings and of the defaults in turn, each with its name in the file."""
    for k in range(config.confirm_seeds):
        for settings in (best, {}):
            yield _confirmation(settings, k), (config, settings, k)


def _confirmation(settings: Settings, k: int) -> str:
    return f"new seed {k}: {flags_of(settings) or 'defaults'}"


def _verdict(study: optuna.Study, config: TuneConfig, best: Settings) -> str:
    """Say how the best settings and the defaults compare on the new seeds."""
    import numpy as np

    from il_based_rl.statistics import mean_interval

    seeds = range(config.confirm_seeds)
    found = [[study.user_attrs[_confirmation(each, k)] for k in seeds] for each in (best, {})]
    if any(None in values for values in found):
        best_fell, defaults_fell = (f"{values.count(None)} of {len(seeds)}" for values in found)
        return f"On new seeds training diverged: by the best settings {best_fell} times, by the defaults {defaults_fell} times"
    ours, usual = (np.array(values, float) for values in found)

    def shown(values: np.ndarray) -> str:
        low, high = mean_interval(values)
        return f"{values.mean():.2f}" + ("" if len(values) < 2 else f" [{low:.2f}, {high:.2f}]")

    shown_to_be = "better" if mean_interval(ours - usual)[0] > 0.0 else "not shown to be better"
    return (
        f"On {len(seeds)} new seeds: the best settings {shown(ours)}, the defaults {shown(usual)}, "
        f"difference {shown(ours - usual)}: {shown_to_be} (mean return, 95% interval)"
    )


def _study(config: TuneConfig) -> optuna.Study:
    """Open the search, or begin it."""
    from il_based_rl.seeding import generator

    optuna = _optuna()
    from sqlalchemy.pool import QueuePool  # which comes with it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = {"creator": partial(sqlite3.connect, config.save_path, check_same_thread=False), "poolclass": QueuePool}
    storage = optuna.storages.RDBStorage("sqlite://", database)  # by its path, as a URL would read a "?" or "%" in it
    study = optuna.create_study(storage=storage, study_name="il-rl tune", direction="maximize", load_if_exists=True)
    if "settings" in study.user_attrs:
        former = from_plain(TuneConfig, study.user_attrs["settings"])
        for name in _FIXED:
            before, now = getattr(former, name), getattr(config, name)
            if before != now:
                raise ResumeError(
                    f"{config.save_path} holds a search with {flag_of(name, before)}, not {now}; choose another --save-path"
                )
        known = {"rollout", "lr", *_CHOICES}
        if others := sorted({name for trial in study.trials for name in trial.params} - known):
            raise ResumeError(f"{config.save_path} searched {', '.join(others)} too, which is gone; choose another --save-path")
    study.set_user_attr("settings", asdict(config))
    draws = int(generator(config.seed, "search", 2, len(study.trials)).integers(2**31))  # one that goes on draws other settings
    study.sampler = optuna.samplers.TPESampler(seed=draws, multivariate=True)
    return study


def _enqueue_defaults(study: optuna.Study) -> None:
    """Let the defaults be tried next, unless they were tried to an end or wait already."""
    states = _optuna().trial.TrialState
    usual = {"rollout": "1 x 2048", **{name: _defaults()[name] for name in ("lr", *_CHOICES)}}
    known = study.get_trials(states=(states.COMPLETE, states.PRUNED, states.WAITING))
    if not any(trial.state == states.WAITING or usual | trial.params == usual for trial in known):
        study.enqueue_trial(usual)


def _require_search(path: Path) -> None:
    """Raise FileFormatError for a file that holds something else, in which the search would begin to write."""
    if path.exists() and path.stat().st_size > 0:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"studies", "trials"} <= tables:
            raise FileFormatError(f"{path} is a database of something else; choose another --save-path")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file where what it holds cannot be read or written as a search."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # what a foreign file holds may be wrong in any way
        what = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{path} cannot be read or written as a search ({what}); choose another --save-path") from error


def _optuna() -> Any:
    """Import Optuna, or raise MissingExtraError."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError('a search needs the package optuna: pip install "il_based_rl[tune]"') from error
    return optuna


_LOOK_SECONDS = 1.0
"""How often whoever waits for a trial looks whether the search is to end."""


def _side_by_side(
    count: int, spec: EnvSpec, call: Callable[..., Result], jobs: Iterable[tuple[Name, tuple[Any, ...]]]
) -> Iterator[tuple[Name, Result]]:
    """Run jobs in so many processes, each of which knows the environment; yield each one's name and result as it ends.

    A job is taken when a process is free for it. However this ends, the processes end soon after.
    """
    if count == 1:
        for name, arguments in jobs:
            yield name, call(*arguments)
            cli.raise_if_terminated()
        return
    context, waiting = multiprocessing.get_context("spawn"), iter(jobs)
    told, others = context.Event(), set(multiprocessing.active_children())
    running: dict[Future[Result], Name] = {}
    with ProcessPoolExecutor(count, context, _begin_process, (told, spec)) as pool:
        try:
            while True:
                while len(running) < count and (job := next(waiting, None)) is not None:
                    running[pool.submit(call, *job[1])] = job[0]
                if not running:
                    return
                cli.raise_if_terminated()
                for future in wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            hint = "try --workers 1; a script begins a search under `if __name__ == '__main__':`"
            raise EnvironmentFaultError(f"a process of the search has ended by itself ({error}); {hint}") from error
        except BaseException:  # an interruption does not wait for long, as for processes that are still importing
            told.set()
            until = time.monotonic() + _PATIENCE
            for process in set(multiprocessing.active_children()) - others:
                process.join(max(0.0, until - time.monotonic()))
                process.terminate()
            raise
        finally:
            told.set()


_told: Any = None
"""In a process of the search: set once it is to end."""


def _begin_process(told: Any, spec: EnvSpec) -> None:
    import gymnasium as gym

    global _told
    _told = told
    gym.registry.setdefault(spec.id, spec)  # which may be known to the one that searches alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that searches decides when to end


def _leave_if_told() -> None:
    """End the process's job where the one that searches wants it so, or is gone."""
    parent = multiprocessing.parent_process()
    if _told is not None and (_told.is_set() or (parent is not None and not parent.is_alive())):
        raise Terminated


if __name__ == "__main__":
    main()
