"""The page of a report: one file, without scripts, that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl.errors import UserError

if TYPE_CHECKING:
    from il_based_rl.comparison import Comparison
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.report.found import FoundRun
    from il_based_rl.report.gather import Findings

# What is heavy (Gymnasium, matplotlib) is imported inside the functions.

_STYLE = Path(__file__).with_name("page.css")


def page(findings: Findings) -> str:
    """Write the page: one file, without scripts, that loads nothing from elsewhere."""
    parts = [
        _section("How good they are", _comparison(findings.comparison)),
        _section("At work", _video(findings)),
        _section("How they learned", _curves(findings.runs)),
        _section("Where the student fails", _failure(findings.failures)),
        _section("Demonstrations", "".join(_card(name, demos) for name, demos in findings.demos.items())),
        _section("Settings and versions", _settings(findings)),
    ]
    title = html.escape(findings.title)
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        + "".join(parts)
        + "</main>\n</body>\n</html>\n"
    )
    return text.encode("utf-8", "replace").decode()  # as a file's name may hold what is no text


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
        f'<p class="caption">{label}</p>\n<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'
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
    unpaired = any(not pair["paired"] for pair in numbers["pairs"])
    how = "of the means of their training runs" if unpaired else "start state by start state"
    caption = "Share of episodes whose return reaches at least the value below: a line further right is better."
    return (
        _paragraphs(numbers["sentences"], ' class="verdict"')
        + _table(*table(numbers), f"Policies from the same {count} start states; brackets are intervals of 95 %")
        + _figure(svg(performance_profiles(returns), caption), caption)
        + _table(*pair_table(numbers), f"Differences between policies, {how}")
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
        x = run.axis
        if run.kind == "bc":
            names, y = {"training": "train_loss", "validation": "validation_loss"}, "loss"
        else:
            names, y = {"evaluation": "eval_reward", "episodes in training": "episode_return"}, "return"
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
        written += _table(["error", "value"], rows, meaning)
        written += _figure(svg(errors_over_time(curves), caption), caption)
        worst = [[str(each["seed"]), f"{each['expert']:.2f}", f"{each['student']:.2f}"] for each in found["worst_starts"]]
        if worst:
            written += _table(["start seed", found["expert"], student], worst, "Start states with the largest loss of return")
    return written


def _card(student: str, demos: DemoDataset | None) -> str:
    if demos is None:
        return ""
    facts = demos.summary() | {"seed": demos.metadata.get("seed"), "deterministic": demos.metadata.get("deterministic")}
    saturation = _saturation(demos)
    if saturation is not None:
        facts["actions at a bound"] = f"{saturation:.1%}"
    facts["start seeds"] = len(set(demos.seeds.tolist()))
    rows = [[name.replace("_", " "), f"{x:,.2f}" if isinstance(x, float) else str(x)] for name, x in facts.items()]
    return _table(["demonstrations", "value"], rows, f"What the {student} learned from")


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
