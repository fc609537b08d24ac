"""The document of `benchmarks.returns`, from its rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from il_based_rl.statistics import mean_interval

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Asked:
    """What an expert is to return on average, and what others have published."""

    at_least: float
    published: str
    every_seed: bool = False


ASKED = {
    "Pendulum-v1, no preset": Asked(-160, "the optimum is -140"),
    "Pendulum-v1": Asked(-165, "RL Zoo -172 (100,000 steps)"),
    "CartPole-v1": Asked(500, "RL Zoo 500 (100,000 steps)", every_seed=True),
    "Acrobot-v1": Asked(-80, "CleanRL -86 (500,000), RL Zoo -74 (1M)"),
    "MountainCarContinuous-v0": Asked(90, "RL Zoo 88 (20,000)"),
    "LunarLander-v3": Asked(255, "RL Zoo 242 (v2, 1M)"),
    "LunarLanderContinuous-v3": Asked(271, "RL Zoo 271 (v2, 1M)"),
    "BipedalWalker-v3": Asked(288, "RL Zoo 288 (5M)"),
    "HalfCheetah-v5": Asked(5850, "RL Zoo 5,819 (v3, 1M), Tianshou 5,784 (v3, 1M), CleanRL 1,443 (v4, 1M)"),
    "Hopper-v5": Asked(3000, "Tianshou 2,609 (v3, 1M), RL Zoo 2,410 (v3, 1M), CleanRL 2,383 (v4, 1M)"),
    "Walker2d-v5": Asked(4300, "Tianshou 3,589 (v3, 1M), RL Zoo 3,479 (v3, 1M), CleanRL 2,288 (v4, 1M)"),
    "Ant-v5": Asked(3300, "Tianshou 3,258 (v3, 1M), RL Zoo 1,327 (v3, 1M)"),
    "Swimmer-v5": Asked(282, "RL Zoo 282 (v3, 1M), Tianshou 67 (v3, 1M)"),
    "InvertedDoublePendulum-v5": Asked(9000, ""),
    "Reacher-v5": Asked(-4.0, "Tianshou -4.1 (v2, 1M)"),
}

HOW = """\
Measured by `python -m benchmarks.returns`; every run is a row of `benchmarks/results/returns.jsonl`. Returns are of the policy
after the last update, with its most likely action, averaged over the start seeds 10000-10099, which nothing was chosen by. In
brackets are 95 % intervals of the mean over seeds of training, on these start states. All seeds share them, so that their
spread says nothing of how lucky those are: *starts* is by how much an average over all start states may differ from these (two
standard errors of one policy's mean). *Above* and *below* are said where both together (the root of the sum of their squares)
lie on one side of what was asked. *Best* is the policy that did best in the evaluations during training, on the same start
states as the last one. The same seed gives the same policy bit for bit on one machine; another processor's arithmetic gives
another policy."""

SOURCES = """\
Published figures are of other versions of the environments and of other libraries' settings: RL Baselines3 Zoo's
`benchmark.md` (one run each), Tianshou's `examples/mujoco/README.md` (10 seeds), CleanRL's `docs/benchmark/` (3 seeds). They
are put beside ours for orientation; what was run in the same place, on the same start states, is the column of SB3. By
Gymnasium's version histories v5 differs from v4 so: Hopper, Walker2d, Ant and InvertedDoublePendulum are paid for being
healthy only while they are; Ant's reward always includes the contact cost, and 78 of the 105 numbers that it observes are
contact forces, which v4 leaves out by default and which were 0 in v3 with mujoco-py after 2.0; both feet of Walker2d have
the same friction; Reacher's distance is taken after the step. LunarLander-v3 draws its wind anew in each episode."""

CURVES = """\
Learning curves, of ten episodes at each point: the median over seeds, the middle half of ours shaded, and what was asked
dotted; over steps, and over the seconds of training alone, on one core. Dashed: SB3's median over its seeds, where its
curve was taken. For Ant-v5 of one million steps RL Zoo keeps defaults and normalisation alone; those for BipedalWalker-v3 are
meant for five million steps, and had one million here, as ours.

![Learning curves over steps and over seconds](returns.svg)"""

REASONS = {
    "Ant-v5": " What v5 observes of contacts is what makes it hard: without it the same PPO gets from 1,558 to 2,786 (below), "
    "and clipping observations at 1 brings most of that back. Seeds differ by more than most settings do, so that a search "
    "of one or two seeds a setting tells little.",
    "BipedalWalker-v3": " The first ten seeds reach what was asked, and all twenty on average, the second ten do not. Policies "
    "fall now and then, which costs 100 and the rest of the way.",
    "HalfCheetah-v5": " What was asked lies well inside both intervals: seeds return from 3,796 to 7,447.",
}
"""What holds back what falls short."""

AGAIN = """\
`python -m benchmarks.returns again` trained the presets once more, on the same seeds, all on one machine and with the code of
2026-11-27 (rows in `benchmarks/results/returns_again.jsonl`). Most of the first runs were made on another processor, whose
arithmetic gives other policies, so that this shows how much of a mean of ten seeds is chance. Those of Ant-v5, Hopper-v5 and
Walker2d-v5 are of that machine and day themselves; Walker2d-v5 with its former preset, a row of the next table, came to 4,384.0
and once more to 4,154.6. For BipedalWalker-v3 two million steps with an entropy bonus of 0.001 came to 304 and 309 on two seeds
of the search, but to 270.4 and 290.3 on the first two of these ten, and were given up: its policies fall now and then, with the
preset as well, and no setting that was tried ends that."""

Compared = list[tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]]
"""The task, what is changed of its preset, the preset's rows and those of the change."""


def write_page(
    rows: list[dict[str, Any]],
    commands: dict[str, str],
    changes: list[tuple[str, str, str]],
    former: list[tuple[str, str, str]],
    searched: list[dict[str, Any]],
    again: list[dict[str, Any]],
) -> None:
    """Write `docs/returns.md` and `docs/returns.svg` from the rows of the present settings.

    Args:
        rows: All rows that there are.
        commands: By task, the command line that trains it; other rows of ours are of settings of before, and left out.
        changes: The task, what is changed of its preset, and the command line that trains it so.
        former: The same of settings that are gone.
        searched: The rows that settings were chosen by.
        again: Those of the presets' runs once more.
    """
    ours = {task: found for task, command in commands.items() if (found := _rows_of(rows, command))}
    theirs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["side"] == "sb3":
            theirs.setdefault(row["task"], []).append(row)
    DOCS.mkdir(exist_ok=True)
    compared, gone = (
        [
            (task, f"`{change}`", ours[task], found)
            for task, change, command in each
            if task in ours and (found := _rows_of(rows, command))
        ]
        for each in (changes, former)
    )
    later = {task: _rows_of(again, commands[task]) for task in ours}
    later = {task: found for task, found in later.items() if len(found) == len(ours[task])}
    tables = [
        *_page(ours, theirs, commands),
        *_not_reached(ours, later, theirs, searched),
        *_again(ours, later),
        *_changes(compared, gone, _one_flag_more(searched), _without_a_flag(searched)),
    ]
    page = "\n".join([*tables, *_search(searched)])
    (DOCS / "returns.md").write_text(page + "\n", encoding="utf-8")
    if ours:
        _plot(ours, theirs)


def _rows_of(rows: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    found = [row for row in rows if row["side"] == "ours" and row["settings"] == command]
    return sorted(found, key=lambda row: row["seed"])


def _page(ours: dict[str, Any], theirs: dict[str, Any], commands: dict[str, str]) -> list[str]:
    lines = [
        "# How good our experts are",
        "",
        HOW,
        "",
        "| task | steps | asked | seeds | mean ± std | starts | interquartile mean | lowest | | best "
        "| SB3, RL Zoo's | published |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(task, found, theirs.get(task, [])) for task, found in ours.items()]
    lines += ["", SOURCES, "", CURVES, ""]
    lines += ["## Settings", "", "`il-rl train-ppo --env-id ID --preset` takes them; spelled out they are:", ""]
    lines += [
        f"- {task}: `{commands[task]}` ({_seconds(found)} s a run; {found[0]['versions']})" for task, found in ours.items()
    ]
    if theirs:
        lines += ["", "Stable-Baselines3 had RL Baselines3 Zoo's settings:", ""]
        lines += [f"- {task}: `{found[0]['settings']}` ({_seconds(found)} s a run)" for task, found in theirs.items()]
    missing = [task for task in commands if task not in ours]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return lines


def _not_reached(
    ours: dict[str, Any], again: dict[str, Any], theirs: dict[str, Any], searched: list[dict[str, Any]]
) -> list[str]:
    """Say of each row that falls short what was found, what it was searched among, and what Stable-Baselines3 reaches."""
    lines = []
    for task, found in ours.items():
        finals, peer = _column(found, "final"), theirs.get(task, [])
        later = _column(again.get(task, []), "final")
        if min(each.mean() for each in (finals, later) if len(each)) < ASKED[task].at_least:
            once_more = f", and {_shown(later)} once more ([below](#the-same-once-more))" if len(later) else ""
            tried = len({row["settings"] for row in searched if row["task"] == task})
            reached = f"reaches {_shown(_column(peer, 'final'))} here, over {len(peer)} seeds" if peer else "was not run here"
            lines.append(
                f"- {task}: {_shown(finals)}{once_more}, where {ASKED[task].at_least:,g} was asked. {tried} settings were "
                f"tried ([below](#the-search)). Stable-Baselines3 with RL Zoo's settings {reached}.{REASONS.get(task, '')}"
            )
    return ["", "## What falls short", "", *lines] if lines else []


def _again(ours: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Put the same runs beside those that were there first."""
    lines = []
    for task, found in ours.items():
        if later := again.get(task):
            first, second = _column(found, "final"), _column(later, "final")
            both = np.concatenate([first, second])
            same = np.array_equal(first, second)
            cells = [task, f"{ASKED[task].at_least:,g}", _shown(first), "the same" if same else _shown(second)]
            lines.append(f"| {' | '.join([*cells, _verdict(later, ASKED[task]), '' if same else f'{both.mean():,.1f}'])} |")
    table = ["| task | asked | first | again | | mean of both |", "|---|---|---|---|---|---|", *lines]
    return ["", "## The same once more", "", AGAIN, "", *table] if lines else []


def _by_settings(searched: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in searched:
        rows.setdefault(row["settings"], []).append(row)
    return rows


def _one_flag_more(searched: list[dict[str, Any]]) -> Compared:
    """Return what differs by one flag from other settings, on eight seeds of the search or more."""
    rows = _by_settings(searched)
    return [
        (tried[0]["task"], f"`{settings[len(others) + 1 :]}`", rows[others], tried)
        for settings, tried in rows.items()
        if (others := settings.rpartition(" --")[0]) in rows and len(tried) >= 8
    ]


def _without_a_flag(searched: list[dict[str, Any]]) -> Compared:
    """Return what was tried without a flag, named in parentheses, on four seeds of the search or more."""
    rows = _by_settings(searched)
    return [
        (tried[0]["task"], settings[len(flags) + 2 : -1], rows[flags], tried)
        for settings, tried in rows.items()
        if (flags := settings.partition(" (")[0]) != settings and len(tried) >= 4
    ]


def _changes(compared: Compared, gone: Compared, one_flag_more: Compared, without_a_flag: Compared) -> list[str]:
    return [
        "",
        "## What the settings bring",
        "",
        "Measured by `python -m benchmarks.returns changes`: the preset with one setting changed, on the same seeds. The",
        "difference is the changed return less the preset's, seed by seed, with the 95 % interval of its mean. For the",
        "learning rate on InvertedDoublePendulum-v5 five seeds came first, -439 [-1,157, 280], and then five more.",
        "",
        *_table_of_changes(compared),
        "",
        "The same on seeds of the search, and from its start states:",
        "",
        *_table_of_changes(one_flag_more),
        "",
        "These settings were not shown to be better where they were tried, and are gone; the rows are of the version before:",
        "",
        *_table_of_changes(gone),
        "",
        "These were tried without a flag, on seeds of the search, and got none: none is better, but what Ant-v5 observes,",
        "which makes it another environment. Of the 28 seeds on MountainCarContinuous-v0 eight were looked at before the",
        "others were run.",
        "",
        *_table_of_changes(without_a_flag),
    ]


def _table_of_changes(compared: Compared) -> list[str]:
    lines = ["| task | changed | seeds | preset | changed to that | difference | |", "|---|---|---|---|---|---|---|"]
    for task, change, preset, changed in compared:
        of_seed = {row["seed"]: row["final"] for row in preset}
        pairs = np.array([(of_seed[row["seed"]], row["final"]) for row in changed if row["seed"] in of_seed])
        differences = pairs[:, 1] - pairs[:, 0]
        low, high = mean_interval(differences)
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        cells = [task, change, str(len(pairs)), *(f"{mean:,.1f}" for mean in pairs.mean(axis=0))]
        lines.append(f"| {' | '.join([*cells, _shown(differences), verdict])} |")
    return lines


def _search(searched: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## The search",
        "",
        "Settings were chosen on seeds from 100 on, by the last policy's mean return from the start seeds 5000-5019: on",
        "neither seeds nor start states of the tables above. What is not named is as the defaults are, and what stands in",
        "parentheses was tried without a flag; the rows are in `benchmarks/results/search.jsonl`.",
        "",
        "| task | settings | seeds | mean | each |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[float]] = {}
    for row in searched:
        groups.setdefault((row["task"], row["settings"]), []).append(row["final"])
    for (task, settings), finals in sorted(groups.items(), key=lambda group: (group[0][0], -np.mean(group[1]))):
        flags = settings.removeprefix(f"il-rl train-ppo --env-id {task} ")
        each = ", ".join(f"{final:,.1f}" for final in finals)
        lines.append(f"| {task} | `{flags}` | {len(finals)} | {np.mean(finals):,.1f} | {each} |")
    return lines


def _line(task: str, found: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str:
    from il_based_rl.statistics import interquartile_mean

    asked, finals, best = ASKED[task], _column(found, "final"), _column(found, "best")
    cells = [
        task,
        f"{found[0]['curve'][-1][0]:,}",
        f"{asked.at_least:,g}{' on every seed' if asked.every_seed else ''}",
        str(len(found)),
        f"{_shown(finals)} ± {finals.std(ddof=1) if len(finals) > 1 else 0.0:,.1f}",
        f"{_luck(found):,.1f}",
        f"{interquartile_mean(finals):,.1f}",
        f"{finals.min():,.1f}",
        _verdict(found, asked),
        _shown(best),
        f"{_shown(_column(peer, 'final'))} ({len(peer)} seed{'s' if len(peer) > 1 else ''})" if peer else "",
        asked.published,
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(found: list[dict[str, Any]], asked: Asked) -> str:
    from il_based_rl.statistics import Estimate, widened

    finals = _column(found, "final")
    if asked.every_seed:
        reached = int((finals >= asked.at_least).sum())
        return "reached" if reached == len(finals) else f"reached by {reached}"
    joined = widened(Estimate(float(finals.mean()), *mean_interval(finals)), _luck(found))
    if joined.low > asked.at_least:
        return "above"
    if joined.high < asked.at_least:
        return "below"
    return "reached, not shown to be above" if finals.mean() >= asked.at_least else "not reached, not shown to be below"


def _luck(found: list[dict[str, Any]]) -> float:
    """Return two standard errors of the mean over the 100 start states of one policy."""
    return 2.0 * float(np.sqrt(np.mean(np.square(_column(found, "final_std"))) / 100))


def _shown(values: np.ndarray) -> str:
    low, high = mean_interval(values)
    return f"{values.mean():,.1f} [{low:,.1f}, {high:,.1f}]" if len(values) > 1 else f"{values.mean():,.1f}"


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def _seconds(rows: list[dict[str, Any]]) -> str:
    return f"{np.median(_column(rows, 'seconds')):,.0f}"


def _plot(ours: dict[str, list[dict[str, Any]]], theirs: dict[str, list[dict[str, Any]]]) -> None:
    """Draw the median over seeds, and the middle half of ours, over steps and over seconds of training."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(ours)), layout="constrained")
    axes = figure.subplots(len(ours), 2, squeeze=False)
    for (task, rows), pair in zip(ours.items(), axes, strict=True):
        curves, others = _curves(rows), _curves([row for row in theirs.get(task, []) if "curve" in row])
        for column, (axis, name) in enumerate(zip(pair, ("steps", "seconds"), strict=True)):
            x = np.median(curves[:, :, column], axis=0)
            low, middle, high = np.quantile(curves[:, :, 2], [0.25, 0.5, 0.75], axis=0)
            axis.fill_between(x, low, high, alpha=0.25, linewidth=0)
            axis.plot(x, middle, label="il_based_rl")
            if len(others):
                axis.plot(*np.median(others[:, :, [column, 2]], axis=0).T, linestyle="--", label="SB3, RL Zoo's settings")
                axis.legend(fontsize="small")
            axis.axhline(ASKED[task].at_least, color="grey", linestyle=":", linewidth=1)
            axis.set(title=task, xlabel=name, ylabel="mean return")
    with mpl.rc_context({"svg.hashsalt": "returns"}):  # else every drawing of the same rows is another file
        figure.savefig(DOCS / "returns.svg", metadata={"Date": None})


def _curves(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return steps, seconds and mean returns of the runs that were evaluated equally often. Shape (runs, points, 3)."""
    return np.array([row["curve"] for row in rows if len(row["curve"]) == len(rows[0]["curve"])])
