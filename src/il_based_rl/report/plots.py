"""Figures: learning curves, how returns are distributed, and errors over an episode's time. The command that draws curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import PlotConfig
from il_based_rl.errors import ConfigError, FileMissingError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from il_based_rl.report.found import FoundRun

# What is heavy (matplotlib, torch) is imported inside the functions, so that --help need not wait for it.

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind too (Okabe and Ito 2008), and readable on white and on black."""
_INK = "#010203"
"""Stands for the colour of the text around a figure, until it is written as SVG."""
_LONGEST = 60
_NOT_COMPARED = {
    "demo_path",
    "demonstrations",
    "device",
    "env_timeout",
    "max_time",
    "quiet",
    "resume",
    "save_path",
    "seed",
    "bounds",
    "tracking",
    "vectorization",
}
"""Settings in which runs of one curve may differ."""


def figure(x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of all others."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink: Any = {f"{part}.color": _INK for part in ("text", "xtick", "ytick")}
    with mpl.rc_context({**ink, "axes.labelcolor": _INK, "axes.edgecolor": _INK}):
        drawn = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = drawn.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, color=_INK)
    return drawn, axes


def _plain(name: str) -> str:
    """Write a name so that it is taken for no formula, and is not hidden from the legend as one that begins with _ is."""
    shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return " " * shown.startswith("_") + shown.replace("$", r"\$")


def _marker(steps: np.ndarray) -> str | None:
    """Return what makes a line of few points visible."""
    return "o" if len(steps) < 3 else None


def _told_apart(k: int) -> dict[str, Any]:
    """Return how the k-th of lines that may lie on each other is drawn."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": ("-", "--", ":")[k % 3]}


def legend(axes: Axes) -> None:
    """Add a legend that hides nothing."""
    axes.legend(frameon=False, labelcolor=_INK)


def svg(drawn: Figure, description: str) -> str:
    """Write a figure as an SVG element whose ink is that of the text around it, with words for who cannot see it."""
    import hashlib
    import html
    import re

    import matplotlib as mpl

    stream = io.StringIO()
    salt = hashlib.sha256(description.encode("utf-8", "replace")).hexdigest()[:8]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{salt}-", text)  # no two in one page alike
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def learning_curves(curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], x: str, y: str) -> Figure:
    """Draw one line for each name: a single run's, or the mean of several with its 95 % interval over seeds (Student's t)."""
    import numpy as np

    drawn, axes = figure(x, y)
    for (name, series), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        told = [(np.asarray(steps), np.asarray(values)) for steps, values in series if len(steps)]
        steps, middle, low, high = _over_seeds(told) if len(told) > 1 else (np.zeros(0),) * 4
        if len(steps) == 0:  # a single run, or runs that have no steps in common
            for k, one in enumerate(told):
                axes.plot(*one, label=_plain(name) if k == 0 else None, color=colour, linewidth=1.5, marker=_marker(one[0]))
        else:
            axes.plot(steps, middle, label=_plain(f"{name} ({len(told)} seeds)"), color=colour, linewidth=1.5)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    if any(curves.values()):
        legend(axes)
    return drawn


def _over_seeds(
    series: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps that all runs have come to, and the mean of their values there with its interval."""
    import numpy as np

    from il_based_rl.statistics import mean_interval

    steps = np.unique(np.concatenate([each for each, _ in series]))
    steps = steps[(steps >= max(each[0] for each, _ in series)) & (steps <= min(each[-1] for each, _ in series))]
    values = np.array([np.interp(steps, *each) for each in series])
    ends = np.array([mean_interval(column) for column in values.T]).reshape(-1, 2)
    return steps, values.mean(axis=0), ends[:, 0], ends[:, 1]


def performance_profiles(returns: Mapping[str, np.ndarray]) -> Figure:
    """Draw, for each policy, the share of episodes that reach at least some return (Agarwal et al. 2021)."""
    import numpy as np

    drawn, axes = figure("return", "share of episodes that reach it")
    for k, (name, values) in enumerate(returns.items()):
        ordered = np.sort(values)
        shares = 1.0 - np.arange(len(ordered)) / len(ordered)
        axes.step(ordered, shares, where="pre", label=_plain(name), linewidth=1.5, **_told_apart(k))
    axes.set_ylim(0.0, 1.02)
    legend(axes)
    return drawn


def errors_over_time(errors: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw action errors over an episode's steps."""
    drawn, axes = figure("step of the episode", "error of the student's actions")
    for k, (name, parts) in enumerate(errors.items()):
        middles = [(part["from_step"] + part["to_step"]) / 2 for part in parts]
        axes.plot(middles, [part["error"] for part in parts], label=_plain(name), linewidth=1.5, **_told_apart(k))
    axes.set_ylim(bottom=0.0)
    legend(axes)
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl plot`."""
    description = "Draw learning curves of runs, those that differ in nothing but their seed as one."
    cli.run(lambda: plot(cli.parse(PlotConfig(), argv, prog="il-rl plot", description=description)))


def plot(config: PlotConfig) -> None:
    """Read runs, draw their curves, and write the figure.

    Raises:
        FileMissingError: A path is not one of a run.
        ConfigError: No run has the metric.
    """
    from il_based_rl.files import atomic_path, require_writable

    runs = list({run.folder.resolve(): run for run in (_run_at(Path(path)) for path in config.runs)}.values())
    if len(axes := sorted({run.axis for run in runs})) > 1:
        raise ConfigError(f"some of these runs learn over {axes[0]}, others over {axes[1]}; draw them one after the other")
    require_writable(config.save_path)
    told = [run for run in runs if run.series(config.metric)[0]]
    if not told:
        known = sorted({name for run in runs for row in run.rows for name in row} - {"step", "wall_seconds"})
        raise ConfigError(f"no run has rows with --metric {config.metric}; expected one of {', '.join(known) or 'none'}")
    curves: dict[str, list[tuple[list[float], list[float]]]] = {}
    for label, run in zip(_labels(told), told, strict=True):
        curves.setdefault(label, []).append(run.series(config.metric))
    drawn = learning_curves(curves, axes[0], config.metric.replace("_", " "))
    with atomic_path(config.save_path) as temporary:
        drawn.savefig(temporary, format=Path(config.save_path).suffix.removeprefix("."), dpi=150)
    counts = [f"{count} {noun}{'s' * (count > 1)}" for count, noun in ((len(told), "run"), (len(curves), "curve"))]
    cli.say(f"{' in '.join(counts)} saved to {config.save_path}")
    if without := [str(run.folder) for run in runs if not run.series(config.metric)[0]]:
        cli.say(f"left out, as there are no rows with --metric {config.metric}: {', '.join(without)}")


def _run_at(path: Path) -> FoundRun:
    """Read the run of a save path, or of its folder."""
    from il_based_rl.experiment.run import RunFiles
    from il_based_rl.report.found import METRICS, read_run

    for folder in (path, *([RunFiles(path).folder] if path.name else [])):
        if (folder / METRICS).is_file():
            return read_run(folder)
    raise FileMissingError(f"there is no run at {path}; expected its --save-path, or the folder of that name")


def _labels(runs: Sequence[FoundRun]) -> list[str]:
    """Name runs by the settings in which they differ, so that those that differ in none but the seed have one name."""
    settings = [_flat({name: x for name, x in run.settings.items() if name not in _NOT_COMPARED}) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]
    return [
        ", ".join(f"{name} {each.get(name)}" for name in differing) or run.env_id
        for run, each in zip(runs, settings, strict=True)
    ]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        inner: x
        for name, value in settings.items()
        for inner, x in (value.items() if isinstance(value, dict) else [(name, value)])
    }


if __name__ == "__main__":
    main()
