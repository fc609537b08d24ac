"""The front door: `il-rl COMMAND …` and `python -m il_based_rl COMMAND …`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from il_based_rl import __version__

COMMANDS = {
    "train-ppo": ("il_based_rl.train_ppo", "train an expert with PPO"),
    "collect": ("il_based_rl.collect", "let an expert play, and write its demonstrations"),
    "train": ("il_based_rl.train", "clone a student from demonstrations"),
    "dagger": ("il_based_rl.algorithms.dagger", "clone what an expert would have done where the student goes"),
    "finetune": ("il_based_rl.algorithms.finetune", "improve a clone by PPO without falling behind it"),
    "evaluate": ("il_based_rl.evaluate", "play whole episodes with a policy, and print how good it is"),
    "compare": ("il_based_rl.compare", "say which of several policies is better, and how sure that is"),
    "demos-needed": ("il_based_rl.report.demos_needed", "draw the student's return against the number of demonstrations"),
    "report": ("il_based_rl.report.gather", "write one page about the expert and the students under a folder"),
    "video": ("il_based_rl.report.video", "film a policy"),
    "runs": ("il_based_rl.report.listing", "list the runs under a folder"),
    "plot": ("il_based_rl.report.plots", "draw learning curves of runs"),
    "pipeline": ("il_based_rl.pipeline", "all of these, one after the other"),
    "tune": ("il_based_rl.algorithms.tune", "search for settings of PPO, and prove them on new seeds"),
    "presets": ("il_based_rl.presets", "list the settings of PPO that are kept for environments"),
    "doctor": ("il_based_rl.doctor", "check the installation, the machine and an environment"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: With 2 where it names none; or whatever the command exits with.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        _tell(_help())
    elif arguments[0] == "--version":
        _tell(f"il_based_rl {__version__}")
    elif arguments[0] in COMMANDS:
        _imported(COMMANDS[arguments[0]][0]).main(arguments[1:])
    else:
        nearest = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {arguments[0]!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)


def _imported(name: str) -> ModuleType:
    """Import a module; what it imports in turn takes long enough to be interrupted."""
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _tell(text: str) -> None:
    cli = _imported("il_based_rl.cli")
    cli.run(lambda: cli.say(text))


def _help() -> str:
    commands = "\n".join(f"  {name:<14}{text}" for name, (_, text) in COMMANDS.items())
    return f"usage: il-rl COMMAND [flags]\n\n{commands}\n\n`il-rl COMMAND --help` lists the flags of a command."


if __name__ == "__main__":
    main()
