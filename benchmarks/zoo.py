"""Experts for the zoo: `python -m benchmarks.zoo`.

Of each preset that `benchmarks.returns` has trained, the expert whose return is the median of its seeds is put into `zoo/`,
weights only, with a card that says what it returns and how to make it again. A policy that is not on this machine is trained
once more, which gives the same one where floats are computed alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.returns import START_SEEDS, TASKS, Task, command_of, expert_of, read_rows, run
from il_based_rl.collect import collect_demos
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.statistics import mean_interval

ZOO = Path(__file__).parent.parent / "zoo"
DEMONSTRATIONS = 20


def name_of(env_id: str) -> str:
    """Return an environment's name in the zoo: its ID without the version, in small letters."""
    return env_id.rsplit("-v", 1)[0].lower()


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run whose return is the median; of an even number the lower one."""
    return sorted(rows, key=lambda row: row["final"])[(len(rows) - 1) // 2]


def card(task: Task, rows: list[dict[str, Any]], row: dict[str, Any], agent: PPOAgent) -> str:
    """Describe an expert."""
    played = evaluate_policy(agent, task.env_id, start_seeds=START_SEEDS)
    demonstrations = collect_demos(task.env_id, agent, DEMONSTRATIONS, seed=0)
    finals = np.array([each["final"] for each in rows])
    low, high = mean_interval(finals)
    lengths, returns = demonstrations.episode_lengths, demonstrations.returns
    name, env = f"zoo:{name_of(task.env_id)}", f"--env-id {task.env_id}"
    return f"""\
# {name_of(task.env_id)}: an expert for {task.env_id}

    il-rl evaluate {env} --checkpoint {name}

- From the start seeds {START_SEEDS[0]} to {START_SEEDS[-1]} it returns {played.mean:,.1f} on average and \
{played.returns.min():,.1f} at least, with a standard deviation of {played.std:,.1f}, by its most likely action.
- It is the median of {len(rows)} seeds, whose mean is {finals.mean():,.1f} [{low:,.1f}, {high:,.1f}] (95 % interval).
- Made in {row["seconds"]:,.0f} s by `il-rl train-ppo {env} --preset --seed {row["seed"]}`, which is
  `{command_of(task)} --seed {row["seed"]}`; with {row["versions"]}.
- `il-rl collect {env} --checkpoint {name} --num-episodes {DEMONSTRATIONS} --seed 0` gives \
{len(demonstrations):,} transitions, \
{lengths.min():,} to {lengths.max():,} an episode, with returns of {returns.min():,.1f} to {returns.max():,.1f}.
- It reads {agent.policy.actor.codec.size} numbers through {" and ".join(map(str, agent.hidden_dims))} \
{agent.policy.actor.activation} units. Weights only: learning on begins with a fresh optimiser.
"""


def main() -> None:
    """Fill the zoo."""
    ZOO.mkdir(exist_ok=True)
    for task in TASKS:
        rows = [row for row in read_rows() if row["side"] == "ours" and row["settings"] == command_of(task)]
        if not task.preset or len(rows) < len(task.seeds):
            continue
        row = median_row(rows)
        if not expert_of(task, row["seed"]).exists():
            run(task, row["seed"], keep=True)
        agent = PPOAgent.load(expert_of(task, row["seed"]))
        agent.save(ZOO / f"{name_of(task.env_id)}.pt", weights_only=True)
        (ZOO / f"{name_of(task.env_id)}.md").write_text(card(task, rows, row, agent), encoding="utf-8")
        print(name_of(task.env_id), row["seed"], row["final"], flush=True)


if __name__ == "__main__":
    main()
