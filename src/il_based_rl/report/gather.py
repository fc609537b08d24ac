"""What a report says, gathered from the runs in a folder: the command, and what it plays and films for it."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import ReportConfig
from il_based_rl.errors import FileMissingError, RenderError, UserError

if TYPE_CHECKING:
    import numpy as np

    from il_based_rl.comparison import Comparison
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.report.found import FoundRun

# What is heavy (torch, Gymnasium, matplotlib) is imported inside the functions, so that --help need not wait for it.

PAGE, NUMBERS = "report.html", "report.json"
_MOST_VIDEO_BYTES = 12 * 2**20
_MOST_FRAMES = 1_000
_COMPARED_STATES = 500
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Which Gymnasium's warnings are written in."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl report`."""
    description = "Write one page about the expert and the students under a folder, which needs no network to be read."
    cli.run(lambda: report(cli.parse(ReportConfig(), argv, prog="il-rl report", description=description)))


@dataclass
class Findings:
    """All that a page is made of."""

    title: str
    runs: Sequence[FoundRun]
    comparison: Comparison
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Of each student, see `failure_analysis.analyse`; with `reasons`, in words."""
    demos: dict[str, DemoDataset | None] = field(default_factory=dict)
    """Of each student, where they are still there."""
    film: bytes | None = None
    """Expert and student side by side, as MP4."""
    caption: str = ""
    warnings: list[str] = field(default_factory=list)


def report(config: ReportConfig, runs: Sequence[FoundRun] = (), comparison: Comparison | None = None) -> Path:
    """Gather what a page says, write it and, beside it, its numbers, and return its path.

    Args:
        config: All settings.
        runs: The expert and its students; where none are given, those that are found under the folder.
        comparison: Of these runs, where it was made already.

    Raises:
        FileMissingError: There is no such folder, or no expert in it.
        See `compare.compare_policies`.
    """
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.compare import compare_policies
    from il_based_rl.experiment import require_trusted
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable, write_json, write_text
    from il_based_rl.report.found import find_runs
    from il_based_rl.report.page import page

    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileMissingError(f"there is no folder {folder}; expected one with runs in it, such as a pipeline's --output-dir")
    for name in (PAGE, NUMBERS):
        require_writable(folder / name)
    damaged: list[str] = []
    if not runs:
        found = list(find_runs(folder))
        damaged = [f"{run.save_path} is left out, as it cannot be read" for run in found if not run.payload]
        first, *others = _chosen([run for run in found if run.payload], folder, config.expert)
        runs = [first]
        for other in others:
            try:
                load_agent(other.save_path)
                runs.append(other)
            except UserError as error:
                damaged.append(f"{other.save_path} is left out: {error}")
    expert = runs[0]
    require_trusted(expert.save_path, expert.env_id, config.env_id)
    env_id = config.env_id or expert.env_id
    with warnings.catch_warnings(record=True) as raised, fitting_threads([]):
        if comparison is None:
            count = f"{len(runs) - 1} students" if len(runs) != 2 else "its student"
            cli.say(f"Comparing {expert.save_path} with {count} on {env_id}, {config.num_episodes} episodes each...")
            comparison = compare_policies(
                _named(runs),
                env_id,
                config.num_episodes,
                config.seed,
                success_threshold=config.success_threshold,
                quiet=config.quiet,
            )
        names = [each.name for each in comparison.contenders if not isinstance(each.agents[0], str)]
        findings = Findings(f"{env_id}: {' and '.join(names)}", runs, comparison, warnings=damaged)
        for run, student in zip(runs[1:], comparison.contenders[1:], strict=False):
            findings.demos[student.name] = _demonstrations(run, folder)
        findings.failures = list(_failures(comparison, findings.demos))
        if config.video:
            _film(findings)
    findings.warnings += sorted({" ".join(_COLOURS.sub("", str(each.message)).split()) for each in raised})
    for warning in findings.warnings:
        cli.notice(warning)
    write_json(folder / NUMBERS, comparison.numbers | {"failures": findings.failures})
    write_text(folder / PAGE, page(findings))
    cli.say(f"Report saved to {folder / PAGE}")
    return folder / PAGE


def _named(runs: Sequence[FoundRun]) -> dict[str, Path]:
    """Call the only expert and the only student of each kind so; several by their files, as short as is clear."""
    words = {"ppo": "expert", "bc": "student", "dagger": "DAgger student", "finetune": "fine-tuned student"}
    kinds, short = [run.kind for run in runs], [str(run.save_path.with_suffix("")) for run in runs]
    names, reserved = {}, ("random", *words.values())
    for run, own in zip(runs, short, strict=True):
        alone = kinds.count(run.kind) == 1 and run.kind in words
        clear = short.count(own) == 1 and own not in reserved
        full = f"./{run.save_path}" if str(run.save_path) in reserved else str(run.save_path)
        names[words[run.kind] if alone else own if clear else full] = run.save_path
    return names


def _chosen(runs: Sequence[FoundRun], folder: Path, wanted: str | None) -> list[FoundRun]:
    """Return the expert, and the students of its environment.

    Raises:
        FileMissingError: There is none.
    """
    experts = [run for run in runs if run.kind == "ppo"] or [run for run in runs if run.kind == "finetune"]
    if wanted is not None:
        all_experts = [run for run in runs if run.kind in ("ppo", "finetune")]
        experts = [run for run in all_experts if run.save_path.resolve() == Path(wanted).resolve()]
    if not experts:
        missing = f"no expert under {folder}" if wanted is None else f"no expert {wanted} under {folder}"
        raise FileMissingError(f"there is {missing}; train-ppo writes one, and pipeline all of it")
    newest = max(experts, key=lambda run: run.written)
    shown = {run.save_path: demos for run in runs if (demos := _demonstrations(run, folder)) is not None}
    expert = min(experts, key=lambda run: (_distance(run, list(shown.values())), run is not newest))
    improved = [run for run in runs if run.kind in ("bc", "dagger", "finetune") and run is not expert]
    students = [run for run in improved if run.env_id == expert.env_id]
    others = [str(run.save_path) for run in experts if run.kind == "ppo" and run is not expert]
    if others:
        cli.notice(f"{expert.save_path} is taken for the expert; left out: {', '.join(others)} (choose by --expert)")
    return [expert, *students]


def _distance(run: FoundRun, shown: Sequence[DemoDataset]) -> float:
    """Return how far an expert's actions are from those of the demonstrations nearest to it."""
    import numpy as np

    from il_based_rl.ppo_agent import PPOAgent

    distances = [math.inf]
    for demos in shown:
        try:
            agent = PPOAgent.from_payload(run.payload, run.save_path)
            found = agent.predict(demos.observations[:_COMPARED_STATES]).astype(np.float64)
            distances.append(float(np.mean(np.abs(found - demos.actions[:_COMPARED_STATES]))))
        except (UserError, ValueError):  # of other spaces
            continue
    return min(distances)


def _demonstrations(run: FoundRun, folder: Path) -> DemoDataset | None:
    """Read the demonstrations that a student learned from, if they are still those."""
    from il_based_rl.dataset import DemoDataset

    path, rounds = run.settings.get("demo_path"), run.payload.get("dagger")
    wanted = rounds.get("demonstrations") if isinstance(rounds, dict) else run.settings.get("demonstrations")
    places = [] if not isinstance(path, str) else [Path(path), folder / path, folder / "demos" / Path(path).name]
    for place in [*places, run.folder / "demos.npz"]:
        with contextlib.suppress(UserError):
            demos = DemoDataset.load(place)
            most = run.settings.get("max_demos")
            demos = demos.episodes[:most] if isinstance(most, int) and most > 0 else demos
            if demos.fingerprint == wanted:
                return demos
    return None


def _failures(comparison: Comparison, demos: Mapping[str, DemoDataset | None]) -> Iterator[dict[str, Any]]:
    from il_based_rl.agent import BCAgent
    from il_based_rl.comparison import difference_is_clear
    from il_based_rl.failure_analysis import analyse, reasons

    expert = comparison.contenders[0]
    for student in comparison.contenders[1:]:
        if isinstance(student.agents[0], BCAgent):
            policy = student.agents[0].policy
            found = analyse(student, expert, policy.codec.space, policy.action_space, demos.get(student.name))
            worse = difference_is_clear(comparison.numbers["pairs"], expert.name, student.name)
            yield found | {"reasons": reasons(found, falls_short=worse)}


def _film(findings: Findings) -> None:
    """Film the expert, and the first student beside it, from where that loses most; never fail for it."""
    from il_based_rl.files import bytes_written
    from il_based_rl.report.video import film, frames_per_second, write_video

    contenders, numbers = findings.comparison.contenders, findings.comparison.numbers
    pair = [contenders[0], *(each for each in contenders[1:] if not isinstance(each.agents[0], str))][:2]
    lost = pair[0].returns[0] - pair[-1].returns[0]
    start = int(lost.argmax())
    seed = numbers["start_seeds"][start]
    try:
        speed = frames_per_second(numbers["env_id"])
        films = [film(each.agents[0], numbers["env_id"], seed, max_frames=_MOST_FRAMES) for each in pair]
        content = bytes_written(lambda path: write_video(path, _side_by_side(films), speed), "film.mp4")
        if len(content) > _MOST_VIDEO_BYTES:
            raise RenderError(f"its {len(content) / 2**20:.0f} MiB are too many for a page; see il-rl video")
    except Exception as error:  # another author's drawing may fail in any way
        findings.warnings.append(f"no video: {error}")
        return
    findings.film = content
    names = " and ".join(f"{each.name} (return {each.returns[0, start]:.2f})" for each in pair)
    where = "where the student loses most" if lost[start] > 0 else "drawn first"
    findings.caption = f"{names}{', left to right' * (len(pair) > 1)}, from the start state {where}: seed {seed}."


def _side_by_side(films: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Join films frame by frame; one that is over stands still."""
    import numpy as np

    shown: list[Any] = [None] * len(films)
    for frames in itertools.zip_longest(*films):
        shown = [last if frame is None else frame for frame, last in zip(frames, shown, strict=True)]
        yield np.concatenate(shown, axis=1)


if __name__ == "__main__":
    main()
