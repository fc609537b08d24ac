"""One page about an expert and its students: how they learned, how good they are, where they fail. The command."""

from __future__ import annotations

import base64
import html
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import ReportConfig
from il_based_rl.errors import FileMissingError, UserError

if TYPE_CHECKING:
    from il_based_rl.comparison import Comparison
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.report.found import FoundRun

# What is heavy (torch, Gymnasium, matplotlib) is imported inside the functions, so that --help need not wait for it.

PAGE, NUMBERS = "report.html", "comparison.json"
_MOST_VIDEO_BYTES = 12 * 2**20
_MOST_FRAMES = 1_000
_STYLE = Path(__file__).with_name("page.css")


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
    demos: DemoDataset | None = None
    film: bytes | None = None
    """Expert and student side by side, as MP4."""
    caption: str = ""
    warnings: list[str] = field(default_factory=list)


def report(config: ReportConfig, runs: Sequence[FoundRun] = (), comparison: Comparison | None = None) -> Path:
    """Gather what a page says, write it and, beside it, its numbers, and return its path.

    Args:
        config: All settings.
        runs: The expert and its students; where none are given, the first expert's in the folder and those of its environment.
        comparison: Of these runs, where it was made already.

    Raises:
        FileMissingError: There is no such folder, or no expert in it.
        See `compare.compare_policies`.
    """
    from il_based_rl.compare import compare_policies
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable, write_json, write_text
    from il_based_rl.report.found import find_runs

    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileMissingError(f"there is no folder {folder}; expected one with runs in it, such as a pipeline's --output-dir")
    require_writable(folder / PAGE)
    if not runs:
        whole = [run for run in find_runs(folder) if run.payload]
        experts = [run for run in whole if run.kind == "ppo"]
        if not experts:
            raise FileMissingError(f"there is no expert under {folder}; train-ppo writes one, and pipeline all of it")
        runs = [experts[0], *(run for run in whole if run is not experts[0] and run.env_id == experts[0].env_id)]
    expert = runs[0]
    with warnings.catch_warnings(record=True) as raised, fitting_threads([]):
        if comparison is None:
            cli.say(f"Comparing {len(runs)} policies on {expert.env_id}, {config.num_episodes} episodes each...")
            comparison = compare_policies(
                _named(runs),
                expert.env_id,
                config.num_episodes,
                config.seed,
                success_threshold=config.success_threshold,
                quiet=config.quiet,
            )
        findings = Findings(f"{expert.env_id}: {comparison.contenders[0].name} and its students", runs, comparison)
        findings.demos = _demonstrations(runs, folder)
        findings.failures = list(_failures(comparison, findings.demos))
        if config.video:
            _film(findings)
    findings.warnings += sorted({" ".join(str(each.message).split()) for each in raised})
    write_json(folder / NUMBERS, comparison.numbers | {"failures": findings.failures})
    write_text(folder / PAGE, page(findings))
    cli.say(f"Report saved to {folder / PAGE}")
    return folder / PAGE


def _named(runs: Sequence[FoundRun]) -> dict[str, Path]:
    """Call the only expert and the only student so; several by their files."""
    kinds = [run.kind for run in runs]
    words = {"ppo": "expert", "bc": "student"}
    return {
        words[run.kind]
        if kinds.count(run.kind) == 1 and run.kind in words
        else str(run.save_path.with_suffix("")): run.save_path
        for run in runs
    }


def _demonstrations(runs: Sequence[FoundRun], folder: Path) -> DemoDataset | None:
    """Read the demonstrations that a student learned from, if they are still those."""
    from il_based_rl.dataset import DemoDataset

    for run in runs:
        path = run.settings.get("demo_path")
        for place in () if not isinstance(path, str) else (Path(path), folder / path, folder / "demos" / Path(path).name):
            try:
                demos = DemoDataset.load(place)
            except UserError:
                continue
            if demos.fingerprint == run.settings.get("demonstrations"):
                return demos
    return None


def _failures(comparison: Comparison, demos: DemoDataset | None) -> Iterator[dict[str, Any]]:
    from il_based_rl.agent import BCAgent
    from il_based_rl.comparison import difference_is_clear
    from il_based_rl.failure_analysis import analyse, reasons

    expert = comparison.contenders[0]
    for student in comparison.contenders[1:]:
        if isinstance(student.agents[0], BCAgent):
            policy = student.agents[0].policy
            found = analyse(student, expert, policy.codec.space, policy.action_space, demos)
            worse = difference_is_clear(comparison.numbers["pairs"], expert.name, student.name)
            yield found | {"reasons": reasons(found, falls_short=worse)}


def _film(findings: Findings) -> None:
    """Film the expert, and the student beside it, from the start state where they part most; never fail for it."""
    from il_based_rl.files import bytes_written
    from il_based_rl.report.video import film, write_video

    contenders, numbers = findings.comparison.contenders, findings.comparison.numbers
    pair = [contenders[0], *(each for each in contenders[1:] if not isinstance(each.agents[0], str))][:2]
    lost = pair[0].returns[0] - pair[-1].returns[0]
    start = int(lost.argmax())
    seed = numbers["start_seeds"][start]
    try:
        films = [film(each.agents[0], numbers["env_id"], seed, max_frames=_MOST_FRAMES) for each in pair]
        frames, speed = _side_by_side([frames for frames, _ in films]), films[0][1]
        content = bytes_written(lambda path: write_video(path, frames, speed), "film.mp4")
    except UserError as error:
        findings.warnings.append(f"no video: {error}")
        cli.notice(f"no video: {error}")
        return
    if len(content) > _MOST_VIDEO_BYTES:
        findings.warnings.append(f"no video: its {len(content) / 2**20:.0f} MiB are too many for a page; see il-rl video")
        return
    findings.film = content
    names = " and ".join(f"{each.name} (return {each.returns[0, start]:.2f})" for each in pair)
    findings.caption = f"{names}, left to right, from the start state where the second loses most: seed {seed}."


def _side_by_side(films: Sequence[Sequence[Any]]) -> list[Any]:
    """Join films frame by frame; one that is over stands still."""
    import numpy as np

    longest = max(map(len, films))
    return [np.concatenate([frames[min(t, len(frames) - 1)] for frames in films], axis=1) for t in range(longest)]


def page(findings: Findings) -> str:
    """Write the page: one file, without scripts, that loads nothing from elsewhere."""
    parts = [
        _section("How good they are", _comparison(findings.comparison)),
        _section("At work", _video(findings)),
        _section("How they learned", _curves(findings.runs)),
        _section("Where the student fails", _failure(findings.failures)),
        _section("Demonstrations", _card(findings.demos)),
        _section("Settings and versions", _settings(findings)),
    ]
    title = html.escape(findings.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        + "".join(parts)
        + "</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}</section>\n" if content else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Write a table that scrolls by itself where it is too wide, by touch and by keyboard."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><caption>{label}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _paragraphs(texts: Sequence[str], kind: str = "") -> str:
    return "".join(f"<p{kind}>{html.escape(text)}</p>\n" for text in texts)


def _figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def _comparison(comparison: Comparison) -> str:
    import numpy as np

    from il_based_rl.comparison import pair_table, table
    from il_based_rl.report.plots import performance_profiles, svg

    numbers = comparison.numbers
    count = len(numbers["start_seeds"])
    returns = {policy["name"]: np.ravel(policy["returns"]) for policy in numbers["policies"]}
    caption = "Share of episodes whose return reaches at least the value below: a line further right is better."
    return (
        _paragraphs(numbers["sentences"], ' class="verdict"')
        + _table(*table(numbers), f"Policies from the same {count} start states; brackets are intervals of 95 %")
        + _figure(svg(performance_profiles(returns), caption), caption)
        + _table(*pair_table(numbers), "Differences between policies, start state by start state")
        + _paragraphs([f"Warning: {each}." for each in numbers["warnings"]])
    )


def _video(findings: Findings) -> str:
    if findings.film is None:
        return _paragraphs([each for each in findings.warnings if each.startswith("no video")])
    data, caption = base64.b64encode(findings.film).decode(), html.escape(findings.caption)
    return (
        f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{caption}" '
        f'src="data:video/mp4;base64,{data}"></video><figcaption>{caption}</figcaption></figure>\n'
    )


def _curves(runs: Sequence[FoundRun]) -> str:
    from il_based_rl.report.plots import learning_curves, svg

    drawn = []
    for run in runs:
        if run.kind == "ppo":
            names, x, y = {"evaluation": "eval_reward", "episodes in training": "episode_return"}, "environment steps", "return"
        else:
            names, x, y = {"training": "train_loss", "validation": "validation_loss"}, "epochs", "loss"
        curves = {label: [run.series(name)] for label, name in names.items() if run.series(name)[0]}
        if curves:
            last = "; ".join(f"{label}: {series[0][1][-1]:.4g} at the end" for label, series in curves.items())
            caption = f"{run.save_path.name}, {y} over {x} ({last})."
            drawn.append(_figure(svg(learning_curves(curves, x, y), caption), caption))
    return "".join(drawn)


def _failure(failures: Sequence[Mapping[str, Any]]) -> str:
    from il_based_rl.report.plots import errors_over_time, svg

    written = ""
    for found in failures:
        student = found["student"]
        errors = [
            ("on the demonstrations", found["error_on_demonstrations"]),
            (f"on the states that the {found['expert']} comes to", found["error_on_expert_states"]),
            (f"on the states that the {student} comes to itself", found["error_on_own_states"]),
            ("ratio of the last two (covariate shift)", found["covariate_shift"]),
        ]
        if found["distance"] is not None:
            errors += [
                (f"distance of the {found['expert']}'s states from the demonstrated ones", found["distance"]["expert"]),
                (f"distance of the {student}'s states", found["distance"]["student"]),
            ]
        rows = [[name, f"{value:.3g}"] for name, value in errors if value is not None]
        over_time = found["error_over_time"]
        caption = f"Error of the {student}'s actions over an episode, on its own states and on the {found['expert']}'s."
        curves = {"on its own states": over_time["own"], f"on the {found['expert']}'s": over_time["expert"]}
        written += f"<h3>{html.escape(student)}</h3>\n" + _paragraphs(found["reasons"], ' class="verdict"')
        meaning = (
            "Errors of actions: 0 does as the expert, 1 is as far off as a policy that always does the same. Distances: from "
            "the nearest demonstrated state, in standard deviations; one state in twenty is further away"
        )
        written += _table(["error", ""], rows, meaning)
        written += _figure(svg(errors_over_time(curves), caption), caption)
        worst = [[str(each["seed"]), f"{each['expert']:.2f}", f"{each['student']:.2f}"] for each in found["worst_starts"]]
        if worst:
            written += _table(["start seed", found["expert"], student], worst, "Start states with the largest loss of return")
    return written


def _card(demos: DemoDataset | None) -> str:
    if demos is None:
        return ""
    facts = demos.summary() | {"seed": demos.metadata.get("seed"), "deterministic": demos.metadata.get("deterministic")}
    saturation = _saturation(demos)
    if saturation is not None:
        facts["actions at a bound"] = f"{saturation:.1%}"
    facts["start seeds"] = len(set(demos.seeds.tolist()))
    rows = [[name.replace("_", " "), f"{x:,.2f}" if isinstance(x, float) else str(x)] for name, x in facts.items()]
    return _table(["demonstrations", ""], rows, "What the student learned from")


def _saturation(demos: DemoDataset) -> float | None:
    """Share of action components that lie at a bound, which a squared error is blind to; None for discrete actions."""
    import numpy as np
    from gymnasium import spaces

    from il_based_rl.spaces import space_from_plain

    try:
        space = space_from_plain(demos.metadata.get("action_space"))
    except UserError:
        return None
    if not isinstance(space, spaces.Box):
        return None
    return float(np.mean((demos.actions <= space.low) | (demos.actions >= space.high)))


def _settings(findings: Findings) -> str:
    written = ""
    for run in findings.runs:
        told = {"file": str(run.save_path), "state": run.state, "step": run.step, "resumes": run.resumes, **run.settings}
        text = html.escape(json.dumps(told, indent=1, default=str))
        written += f'<details><summary>{html.escape(run.save_path.name)}</summary><pre tabindex="0">{text}</pre></details>\n'
    versions = [[name, version] for name, version in findings.comparison.numbers["versions"].items()]
    written += _table(["package", "version"], versions, "Versions that this page was made with")
    return written + _paragraphs([f"Warning: {each}" for each in findings.warnings])


if __name__ == "__main__":
    main()
