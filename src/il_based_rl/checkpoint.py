"""Any checkpoint back into its agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from il_based_rl import agent, ppo_agent
from il_based_rl.agent import BCAgent
from il_based_rl.errors import FileFormatError, FileMissingError
from il_based_rl.files import read_checkpoint
from il_based_rl.ppo_agent import PPOAgent

ZOO = "zoo:"
_AGENTS: dict[str, type[PPOAgent] | type[BCAgent]] = {agent.KIND: BCAgent, ppo_agent.KIND: PPOAgent}


def load_agent(path: str | Path, hidden_dims: Sequence[int] | None = None) -> PPOAgent | BCAgent:
    """Read an expert or a student, whichever the file holds; nothing in the file is executed.

    Args:
        path: The file; `zoo:hopper` names an expert that comes with this package.
        hidden_dims: May be left out, as the file knows its own.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
        ArchitectureMismatchError: `hidden_dims` contradict the file.
    """
    path = located(path)
    payload = read_checkpoint(path)
    kind = payload.get("kind")
    if not isinstance(kind, str) or kind not in _AGENTS:
        raise FileFormatError(f"{path} holds an agent of the unknown kind {kind!r}")
    return _AGENTS[kind].from_payload(payload, path, hidden_dims)


def located(path: str | Path) -> Path:
    """Return the file that is meant, which may be an expert that comes with this package.

    Raises:
        FileMissingError: The zoo has none of this name; those that there are are named.
    """
    if not str(path):
        raise FileMissingError("the path of a checkpoint is empty; expected that of a file, or zoo:NAME")
    if not str(path).startswith(ZOO):
        return Path(path)
    package, name = Path(__file__).parent, str(path).removeprefix(ZOO)
    folders = (package / "zoo", package.parents[1] / "zoo")  # as it is installed, and as the repository has it
    found = {file.stem: file for folder in folders for file in sorted(folder.glob("*.pt"))}
    if name not in found:
        raise FileMissingError(f"the zoo has no {name!r:.50}; it has {', '.join(found) or 'none'}")
    return found[name]
