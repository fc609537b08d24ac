"""Policies that played from the same start states: how good each is, how they differ, and what that comes to in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from il_based_rl.evaluate import EvaluationResult
from il_based_rl.files import package_versions
from il_based_rl.networks import parameter_count
from il_based_rl.rollout import Episode
from il_based_rl.statistics import (
    FEW,
    STATISTICS,
    Estimate,
    decimals,
    difference,
    estimate,
    luck_of_starts,
    probability_of_improvement,
    share_of_advantage,
    success_rate,
    widened,
)

RANDOM = "random"
"""Name of the policy that draws each action from the action space, and what stands for it."""


@dataclass(frozen=True)
class Contender:
    """One policy, of one training run or of several, and how it played."""

    name: str
    agents: Sequence[Any]
    """One of each training run."""
    results: Sequence[EvaluationResult]
    """Of each agent, from the same start states."""
    episodes: Sequence[Episode]
    """The first episodes of the first agent, by start state."""
    paths: Sequence[Path]
    """Checkpoints of the agents; none where they were given as they are."""
    latency: np.ndarray | None
    """Seconds of single calls of `predict`; None where it cannot be asked for one observation."""

    @property
    def returns(self) -> np.ndarray:
        """Return of each run from each start state. Shape (runs, E)."""
        return np.stack([result.returns for result in self.results])

    @property
    def run_means(self) -> np.ndarray:
        """Mean return of each run. Shape (runs,)."""
        return self.returns.mean(axis=1)

    @property
    def values(self) -> np.ndarray:
        """What intervals are drawn from: returns by start state of a single run, mean returns of several. Shape (n,)."""
        return self.returns[0] if len(self.results) == 1 else self.run_means


@dataclass(frozen=True)
class Comparison:
    """Policies that played from the same start states of one environment."""

    contenders: Sequence[Contender]
    numbers: dict[str, Any]
    """All that is said about them, as plain values. The JSON file, the table and the report hold nothing else."""

    def markdown(self) -> str:
        """Write the numbers as a document."""
        return _markdown(self.numbers)


def compared(
    contenders: Sequence[Contender],
    env_id: str,
    start_seeds: Sequence[int],
    random: np.random.Generator,
    success_threshold: float | None = None,
) -> Comparison:
    """Compare policies; the first is the one that the others are measured against.

    Of single runs, values are paired by their start state. Where a policy has several training runs, its values are their
    mean returns, which is what Agarwal et al. (2021, https://arxiv.org/abs/2108.13264) draw intervals from: what is asked then
    is how good the method is, not one outcome of it. As all runs play from the same start states, the luck of those is added.
    """
    pairs = [_pair(one, other, random) for one, other in itertools.combinations(contenders, 2)]
    baseline = next((each for each in contenders if each.name == RANDOM), None)
    shares = {}
    if baseline is not None and difference_is_clear(pairs, contenders[0].name, RANDOM):
        for each in contenders[1:]:
            if each is not baseline:
                shares[each.name] = _share(each, contenders[0], baseline)
    numbers: dict[str, Any] = {
        "env_id": env_id,
        "reference": contenders[0].name,
        "start_seeds": [int(seed) for seed in start_seeds],
        "success_threshold": success_threshold,
        "versions": package_versions(),
        "policies": [_described(each, success_threshold, random) for each in contenders],
        "pairs": pairs,
        "shares_of_advantage": {name: asdict(share) for name, share in shares.items()},
    }
    numbers["sentences"] = _sentences(numbers)
    numbers["warnings"] = _warnings(contenders)
    return Comparison(contenders, numbers)


def _described(contender: Contender, success_threshold: float | None, random: np.random.Generator) -> dict[str, Any]:
    returns, agent = contender.returns, contender.agents[0]
    lengths = np.stack([result.lengths for result in contender.results])
    policy = getattr(agent, "policy", None)
    actor = getattr(policy, "actor", policy)  # the critic is not needed to act
    latency = None if contender.latency is None else np.quantile(contender.latency * 1e6, [0.5, 0.99])
    return {
        "name": contender.name,
        "runs": len(contender.results),
        "agent": agent if isinstance(agent, str) else type(agent).__name__,
        "paths": [str(path) for path in contender.paths],
        **{name: asdict(_estimated(name, contender, random)) for name in STATISTICS},
        "success_rate": _success_rate(contender, success_threshold, random),
        "episode_length": float(lengths.mean()),
        "parameters": parameter_count(actor) if isinstance(actor, nn.Module) else None,
        "file_bytes": contender.paths[0].stat().st_size if contender.paths else None,
        "latency_us": None if latency is None else {"p50": float(latency[0]), "p99": float(latency[1])},
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
    }


def _estimated(name: str, contender: Contender, random: np.random.Generator) -> Estimate:
    found = estimate(name, contender.values, random)
    return found if len(contender.results) == 1 else widened(found, luck_of_starts((1.0, contender.returns)))


def _success_rate(contender: Contender, threshold: float | None, random: np.random.Generator) -> dict[str, float] | None:
    if threshold is not None:
        succeeded = contender.returns >= threshold
    elif all(result.successes is not None for result in contender.results):
        succeeded = np.stack([result.successes for result in contender.results if result.successes is not None])
    else:
        return None
    return asdict(success_rate(succeeded.astype(float), random))


def _pair(one: Contender, other: Contender, random: np.random.Generator) -> dict[str, Any]:
    paired = len(one.results) == len(other.results) == 1
    # A single run says nothing of how its method varies; the random policy has nothing that varies but its episodes, whose
    # luck is that of the start states.
    a, b = (each.values if paired else each.run_means for each in (other, one))
    known = not paired and RANDOM in (one.name, other.name)
    a, b = np.broadcast_arrays(a, b) if known else (a, b)
    found = difference(a, b, paired=paired or known)
    return {
        "policy": other.name,
        "against": one.name,
        "paired": paired,
        "difference": asdict(found if paired else widened(found, luck_of_starts((1.0, other.returns), (-1.0, one.returns)))),
        "probability_of_improvement": asdict(probability_of_improvement(a, b, random, paired=paired or known)),
    }


def _share(policy: Contender, reference: Contender, baseline: Contender) -> Estimate:
    paired = len(policy.results) == len(reference.results) == 1
    if paired:
        return share_of_advantage(policy.values, reference.values, baseline.values, paired=True)
    a, b = (each.run_means - baseline.run_means for each in (policy, reference))
    found = share_of_advantage(a, b, np.zeros(max(len(a), len(b))), paired=False)
    parts = (1.0, policy.returns), (-found.value, reference.returns), (found.value - 1.0, baseline.returns)
    return widened(found, luck_of_starts(*parts) / abs(float(b.mean())))  # of the ratio made linear


def difference_is_clear(pairs: Sequence[dict[str, Any]], against: str, policy: str) -> bool:
    """Whether a policy is worse than another one by more than chance explains."""
    return any(pair["against"] == against and pair["policy"] == policy and pair["difference"]["high"] < 0.0 for pair in pairs)


def _sentences(numbers: dict[str, Any]) -> list[str]:
    """Say in words how each policy stands to the reference."""
    reference, sentences = _the(numbers["reference"]), []
    for pair in numbers["pairs"]:
        if pair["against"] != numbers["reference"]:
            continue
        name, found, share = pair["policy"], pair["difference"], numbers["shares_of_advantage"].get(pair["policy"])
        if math.isnan(found["low"]):
            verdict = f"cannot be told apart from {reference}: one training run against several says nothing about its luck"
        elif found["high"] < 0.0:
            verdict = f"is worse than {reference}, by {_range(-found['value'], -found['high'], -found['low'])} of return"
        elif found["low"] > 0.0:
            verdict = f"is better than {reference}, by {_range(found['value'], found['low'], found['high'])} of return"
        else:
            shown = _range(found["value"], found["low"], found["high"])
            verdict = f"does not clearly differ from {reference}: {shown} of return"
        if share is not None and math.isfinite(share["low"]):
            kept = _shown(share, 100, " %")
            sentences.append(f"{_the(name)} keeps {kept} of {reference}'s advantage over {RANDOM}; it {verdict}.")
        else:
            sentences.append(f"{_the(name)} {verdict}.")
    return [sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence for sentence in sentences]


def _the(name: str) -> str:
    """Name a policy in a sentence; whatever is no word of ours stands as it is."""
    return {"expert": "the expert", "student": "the student", RANDOM: "the random policy"}.get(name, name)


def _range(value: float, low: float, high: float, unit: str = "") -> str:
    if max(abs(low), abs(high)) >= 1e7:  # as digits they would be none
        return f"{value:.4g}{unit} [{low:.4g}, {high:.4g}]"
    largest = max(abs(low), abs(high))
    d = 1 if unit or largest >= 10 else decimals(low, high)
    return f"{value:.{d}f}{unit} [{low:.{d}f}, {high:.{d}f}]"


def _warnings(contenders: Sequence[Contender]) -> list[str]:
    """Say where intervals hold less often than they claim."""
    few = [f"{each.name} ({len(each.values)})" for each in contenders if len(each.values) < FEW]
    if not few:
        return []
    return [
        f"fewer than {FEW} values: {', '.join(few)}; where some of them are far from the rest, intervals are too narrow "
        "(docs/statistics.md)"
    ]


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "policy": lambda policy: policy["name"] + (f" ({policy['runs']} runs)" if policy["runs"] > 1 else ""),
    "mean return [95 %]": lambda policy: _shown(policy["mean"]),
    "median": lambda policy: _shown(policy["median"]),
    "interquartile mean": lambda policy: _shown(policy["interquartile_mean"]),
    "worst decile": lambda policy: _shown(policy["worst_decile"]),
    "success": lambda policy: _shown(policy["success_rate"], 100, " %"),
    "length": lambda policy: f"{policy['episode_length']:.1f}",
    "parameters": lambda policy: "-" if policy["parameters"] is None else f"{policy['parameters']:,}",
    "file": lambda policy: "-" if policy["file_bytes"] is None else f"{policy['file_bytes'] / 1024:,.0f} KiB",
    "latency p50, p99": lambda policy: (
        "-" if policy["latency_us"] is None else f"{policy['latency_us']['p50']:.0f}, {policy['latency_us']['p99']:.0f} µs"
    ),
}


def _shown(found: dict[str, float] | None, factor: float = 1.0, unit: str = "") -> str:
    if found is None:
        return "-"
    value, low, high = (factor * found[end] for end in ("value", "low", "high"))
    if math.isnan(low):
        return f"{value:.4g}{unit}" if abs(value) >= 1e7 else f"{value:.{decimals(value)}f}{unit}"
    return _range(value, low, high, unit)


def table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of policies; columns that say nothing are left out."""
    rows = [[write(policy) for write in _COLUMNS.values()] for policy in numbers["policies"]]
    told = [k for k in range(len(_COLUMNS)) if any(row[k] != "-" for row in rows)]
    return [list(_COLUMNS)[k] for k in told], [[row[k] for k in told] for row in rows]


def pair_table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of differences."""
    return ["policy", "against", "difference [95 %]", "better with probability"], [
        [pair["policy"], pair["against"], _shown(pair["difference"]), _shown(pair["probability_of_improvement"], 100, " %")]
        for pair in numbers["pairs"]
    ]


def _markdown(numbers: dict[str, Any]) -> str:
    header, rows = table(numbers)
    count = len(numbers["start_seeds"])
    lines = [f"# {numbers['env_id']}: {len(rows)} policies from the same {count} start states", ""]
    lines += [f"- {sentence}" for sentence in numbers["sentences"]]
    lines += ["", *_aligned([header, *rows]), "", "Differences, and the probability of doing better:", ""]
    pair_header, pair_rows = pair_table(numbers)
    lines += [*_aligned([pair_header, *pair_rows]), "", *(f"Warning: {warning}." for warning in numbers["warnings"])]
    return "\n".join(lines).rstrip() + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table that is readable as it is."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    written = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return [written[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *written[1:]]
