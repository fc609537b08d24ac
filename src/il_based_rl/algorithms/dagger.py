"""DAgger: clone what an expert would have done where the student goes. The command and the function."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import DaggerConfig
from il_based_rl.errors import FileFormatError, FileMissingError, FileWriteError, ResumeError, TimeIsUp
from il_based_rl.experiment import (
    Checkpoint,
    named_checkpoint,
    own_settings,
    require_in_memory,
    require_trusted,
    require_unchanged,
    resumed_checkpoint,
    stored_settings,
    with_seed,
)

if TYPE_CHECKING:
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.aggregation import Aggregation
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment.run import RunFiles

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_FIXED_AT_RESUME = ("env_id", "expert", "demo_path", "hidden_dims", "seed", "eval_episodes")
_MOST_FAILED_SAVES, _MOST_ROUNDS = 3, 10**6
DEMOS = "demos.npz"
"""All that the expert was asked, in the run's folder; every checkpoint of the run goes on from some of its rounds."""


def dagger(expert: Any, env_id: str, **settings: Any) -> tuple[BCAgent, DemoDataset]:
    """Clone an expert that can be asked, and return the best student and all that the expert said.

    Args:
        expert: An agent of this package, anything with `predict(obs) -> action`, or a plain callable.
        env_id: Gymnasium environment ID.
        settings: Further fields of `DaggerConfig`; of files only `demo_path` is read, and none is written, so
            that nothing is resumed, or saved at a limit of time.

    Raises:
        SpaceMismatchError: The expert was made for other spaces, or the demonstrations are of another environment.
        EnvironmentFaultError: The environment or the expert failed.
        See `envs.make_env`.

    Example:
        student, dataset = dagger(PPOAgent.load("checkpoints/ppo_agent.pt"), "Hopper-v5", rounds=10, seed=0)
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.experiment.hardware import fitting_threads, require_device

    require_in_memory("dagger", settings)
    config = with_seed(DaggerConfig(env_id=env_id, **settings))
    require_device(config.device)
    with fitting_threads(config.hidden_dims), contextlib.closing(_started(config, expert)) as learner:
        for _ in learner.learn():
            pass
    assert learner.asked is not None
    return BCAgent.from_payload(learner.best, "memory", device=config.device), learner.asked


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl dagger`."""

    def command() -> None:
        defaults = DaggerConfig()
        if (checkpoint := named_checkpoint(argv, defaults.save_path)) is not None:
            defaults = _own_settings(checkpoint, defaults, cli.given("--env-id", argv))
        description = "Clone what an expert would have done where the student goes."
        run_dagger(cli.parse(defaults, argv, prog="il-rl dagger", description=description), checkpoint)

    cli.run(command)


def run_dagger(config: DaggerConfig, checkpoint: Checkpoint | None = None) -> BCAgent:
    """Go through the rounds, print each, and write checkpoints, each of which holds the best student so far.

    Args:
        config: All settings.
        checkpoint: What `config.resume` names, where it was read already.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from il_based_rl.agent import BCAgent
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.envs import EXACT, resume_level
    from il_based_rl.experiment.hardware import fitting_threads, numerics, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.sinks import open_sinks, require_tracking
    from il_based_rl.experiment.time_limit import require_time_limit, time_limit

    require_device(config.device)
    require_tracking(config.tracking)
    require_time_limit(config.max_time)
    if config.resume is not None and checkpoint is None:
        checkpoint = resumed_checkpoint(config.resume, config.save_path)
    files = RunFiles(config.save_path)
    if checkpoint is None:
        files.require_not_read(expert=config.expert, demo_path=config.demo_path)
    config = with_seed(config) if checkpoint is None else _going_on(config, checkpoint)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fitting_threads(config.hidden_dims))
        learner = stack.enter_context(contextlib.closing(_started(config, load_agent(config.expert), checkpoint)))
        if checkpoint is not None:
            learner.restore(checkpoint[1], checkpoint[0], _asked_by(checkpoint, files))
        files.require_writable()
        cli.say(f"DAgger on {config.env_id}: {config.expert} is asked in {_asked_in(config)}...")
        if learner.finished:
            cli.notice(f"the run is finished: it has {learner.round} rounds and {learner.queries} questions")
            if learner.compared and (checkpoint is None or files.complete(checkpoint)):
                return BCAgent.from_payload(learner.best, config.save_path, device=config.device)
        label = f"{config.env_id}_{config.rounds}"
        step = learner.queries
        bar = cli.Progress("DAgger", config.rounds, "round", initial=learner.round, quiet=config.quiet)
        run = Run(
            files,
            asdict(config),
            numerics=numerics(config.device),
            resumed_from=checkpoint,
            step=step,
            of_learning=["round_steps", "expert_share", "expert_decay", "query_budget", "memory", "warm_start"],
            level=EXACT if checkpoint is None else resume_level(config.env_id),
            open_sinks=lambda: open_sinks(config.tracking, asdict(config), label, files.folder, step),
        )
        with contextlib.suppress(TimeIsUp), bar, run:
            _put_other_demos_aside(learner, files)
            _save_asked(learner, files)
            run.keep(learner, learner.queries)
            run.save()
            failed = 0
            with time_limit(config.max_time):
                for progress in learner.learn():
                    run.log(progress.metrics, progress.queries)
                    try:
                        _save_asked(learner, files, exit_code=1)  # as --resume goes on from the rounds before
                    except FileWriteError as error:
                        failed = _failed_once_more(error, failed)
                        continue  # what is saved in the end goes on from what is on disk
                    # The best student may be of a round that failed to be saved.
                    mean = learner.best_mean if failed else progress.metrics["eval_reward"]
                    failed = 0
                    run.keep(learner, progress.queries, mean, periodic=True)
                    run.checkpoint()
                    if not config.quiet:
                        cli.say(_line(progress.round, progress.queries, progress.metrics))
                    bar.update(eval_reward=progress.metrics["eval_reward"])
                if failed:
                    _save_asked(learner, files, exit_code=1)
                    run.keep(learner, learner.queries, learner.best_mean, periodic=True)
                    run.checkpoint()
                told = _told_in_the_end(learner)
            run.keep(learner, learner.queries)
            run.save()
            cli.say(f"From {config.final_episodes} start states never seen before, {told}")
            cli.say(f"Demonstrations saved to {files.folder / DEMOS}")
        cli.say(f"Student saved to {config.save_path}")
    return BCAgent.from_payload(run.kept, config.save_path, device=config.device)


def _started(config: DaggerConfig, expert: Any, checkpoint: Checkpoint | None = None) -> Aggregation:
    from il_based_rl.agent import BCAgent
    from il_based_rl.algorithms.aggregation import Aggregation
    from il_based_rl.dataset import DemoDataset

    begun = False
    if checkpoint is not None:  # looked at before anything is made of its size
        BCAgent.from_payload(checkpoint[1], checkpoint[0], config.hidden_dims)
        begun = _rounds_of(checkpoint) > 0
    return Aggregation(config, expert, None if config.demo_path is None or begun else DemoDataset.load(config.demo_path))


def _asked_in(config: DaggerConfig) -> str:
    rounds = f"{config.rounds - 1} of {config.rounds} rounds, after the demonstrations' own, each"
    return f"{rounds if config.demo_path is not None else f'{config.rounds} rounds'} of {config.round_steps} steps"


def _told_in_the_end(learner: Aggregation) -> str:
    """Compare the best student with the expert from start states that nothing was chosen by, and say what it is worth."""
    from il_based_rl.agent import BCAgent
    from il_based_rl.statistics import difference, share_of_advantage

    best = BCAgent.from_payload(learner.best, "memory")
    student, expert, random = (learner.evaluated(agent, final=True).returns for agent in (best, learner.expert, None))
    learner.compared = True
    if not difference(expert, random, paired=True).low > 0.0:  # else a share would be of chance
        means = student.mean(), expert.mean(), random.mean()
        return "the best student returns {:.2f}, the expert {:.2f}, a random policy {:.2f}".format(*means)
    share = share_of_advantage(student, expert, random, paired=True)
    return f"the best student keeps {share} of what the expert is above a random policy"


def _put_other_demos_aside(learner: Aggregation, files: RunFiles) -> None:
    """Keep as `.bak` what lies there of another run, or of rounds after those that are gone on from."""
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.files import move_aside

    with contextlib.suppress(FileMissingError, FileFormatError):
        there = DemoDataset.load(files.folder / DEMOS)
        if learner.asked is not None and there.fingerprint == learner.asked.fingerprint:
            return
    kept = learner.asked is not None  # as a kill may come before the next is written
    if (backup := move_aside(files.folder / DEMOS, leave_copy=kept)) is not None:
        cli.notice(f"what was asked before in {files.folder / DEMOS} is kept as {backup}")


def _save_asked(learner: Aggregation, files: RunFiles, exit_code: int = 2) -> None:
    """Write all that was asked, before the checkpoint that goes on from it; where it cannot be, the error leaves by a code."""
    if learner.asked is None:
        return
    try:
        learner.asked.save(files.folder / DEMOS)
    except FileWriteError as error:
        error.exit_code = exit_code
        raise


def _failed_once_more(error: FileWriteError, failed: int) -> int:
    """Count the rounds in a row that could not be written; raise the error of the third one."""
    if failed + 1 >= _MOST_FAILED_SAVES:
        raise error
    cli.notice(f"{error}; the rounds go on, and the next one tries again")
    return failed + 1


def _rounds_of(checkpoint: Checkpoint) -> int:
    path, payload = checkpoint
    state = payload.get("dagger")
    if not isinstance(state, dict) or type(state.get("round")) is not int or not 0 <= state["round"] <= _MOST_ROUNDS:
        raise FileFormatError(f"{path} is damaged: it does not say how many rounds it had")
    return int(state["round"])


def _asked_by(checkpoint: Checkpoint, files: RunFiles) -> DemoDataset | None:
    """Read what the expert was asked until a checkpoint was written; None before the first round.

    It is looked for in the run that goes on, and where the checkpoint comes from: a save path, or a run's folder; each time
    in what was put aside there too.
    """
    from il_based_rl.algorithms.aggregation import asked_until
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment.run import RunFiles

    path, payload = checkpoint
    number, wanted = _rounds_of(checkpoint), payload["dagger"].get("demonstrations")
    if number == 0:
        return None
    own_name = re.sub(r"\.bak\d*$", "", str(path))
    folders = dict.fromkeys((files.folder, RunFiles(own_name).folder, path.parent))
    places = [place for folder in folders for place in sorted(folder.glob(f"{DEMOS}*"))]
    damaged = ""
    for place in filter(Path.is_file, places):
        try:
            asked = asked_until(DemoDataset.load(place), number)
        except FileFormatError as error:
            damaged = f" ({error})"
            continue
        if asked is not None and asked.fingerprint == wanted:
            return asked
    looked = ", ".join(str(folder / DEMOS) for folder in folders)
    raise ResumeError(f"what the expert was asked until {path} was written is in none of {looked}{damaged}; start afresh")


def _going_on(config: DaggerConfig, checkpoint: Checkpoint) -> DaggerConfig:
    """Return the settings of a resumed run made complete."""
    stored = _stored_settings(checkpoint)
    config = with_seed(config, stored.seed)
    require_unchanged(checkpoint[0], stored, config, _FIXED_AT_RESUME)
    return config


def _own_settings(checkpoint: Checkpoint, defaults: DaggerConfig, env_id: str | None) -> DaggerConfig:
    """Return what the command line may leave out: see `train_ppo`."""
    stored = _stored_settings(checkpoint)
    require_trusted(checkpoint[0], stored.env_id, env_id)
    return own_settings(checkpoint, stored, defaults)


def _stored_settings(checkpoint: Checkpoint) -> DaggerConfig:
    """Return the settings of the run that wrote a checkpoint."""
    if "dagger" not in checkpoint[1]:
        raise ResumeError(f"{checkpoint[0]} is no checkpoint of dagger")
    return stored_settings(checkpoint, DaggerConfig, "dagger")


def _line(learner_round: int, queries: int, metrics: dict[str, float]) -> str:
    share = f"  share of the expert={metrics['share_of_expert']:.3f}" if "share_of_expert" in metrics else ""
    return f"[{queries:>8}] round {learner_round}: eval_reward={metrics['eval_reward']:.2f}{share}"


if __name__ == "__main__":
    main()
