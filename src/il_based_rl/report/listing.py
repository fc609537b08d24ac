"""A line for each run under a folder. The command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import RunsConfig
from il_based_rl.errors import FileMissingError

if TYPE_CHECKING:
    from il_based_rl.report.found import FoundRun

_COLUMNS = ("run", "environment", "kind", "steps or epochs", "return", "best", "state", "last written")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl runs`."""
    description = "List the runs under a folder."
    cli.run(lambda: list_runs(cli.parse(RunsConfig(), argv, prog="il-rl runs", description=description)))


def list_runs(config: RunsConfig) -> list[FoundRun]:
    """Print a line for each run under a folder, and return them.

    Raises:
        FileMissingError: There is no such folder.
    """
    from il_based_rl.report.found import find_runs

    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileMissingError(f"there is no folder {folder}; expected one with runs in it, such as checkpoints")
    runs = list(find_runs(folder))
    rows = [_COLUMNS, *(tuple(" ".join(cell.split()) for cell in _row(run, folder)) for run in runs)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS))]
    for row in rows:
        cli.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not runs:
        cli.notice(f"no run under {folder}; train-ppo and train write them beside their --save-path")
    return runs


def _row(run: FoundRun, folder: Path) -> tuple[str, ...]:
    returns = run.series("eval_reward")[1] or run.series("episode_return")[1]
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written))
    steps = f"{run.step:,}" + ("" if run.total is None else f" of {run.total:,}")
    last, best = (f"{x:.2f}" for x in (returns[-1], max(returns))) if returns else ("-", "-")
    name = str(run.save_path.relative_to(folder)) if run.save_path.is_relative_to(folder) else str(run.save_path)
    return name[-80:], run.env_id[:40], run.kind[:8], steps, last, best, run.state, written


if __name__ == "__main__":
    main()
