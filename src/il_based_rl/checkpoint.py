"""Any checkpoint back into its agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from il_based_rl import agent, ppo_agent
from il_based_rl.agent import BCAgent
from il_based_rl.errors import FileFormatError
from il_based_rl.files import read_checkpoint
from il_based_rl.ppo_agent import PPOAgent

_AGENTS: dict[str, type[PPOAgent] | type[BCAgent]] = {agent.KIND: BCAgent, ppo_agent.KIND: PPOAgent}


def load_agent(path: str | Path, hidden_dims: Sequence[int] | None = None) -> PPOAgent | BCAgent:
    """Read an expert or a student, whichever the file holds; nothing in the file is executed.

    Raises:
        FileMissingError: There is no such file.
        FileFormatError: It is damaged, foreign or of another version.
        ArchitectureMismatchError: `hidden_dims` contradict the file.
    """
    payload = read_checkpoint(path)
    kind = payload.get("kind")
    if not isinstance(kind, str) or kind not in _AGENTS:
        raise FileFormatError(f"{path} holds an agent of the unknown kind {kind!r}")
    return _AGENTS[kind].from_payload(payload, path, hidden_dims)
