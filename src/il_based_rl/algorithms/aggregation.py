"""DAgger's loop: play, ask the expert what it would have done, add that to the data, clone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from il_based_rl.agent import BCAgent
from il_based_rl.cli import notice
from il_based_rl.collect import dataset_of
from il_based_rl.config import DaggerConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import ConfigError, FileFormatError, ResumeError, SpaceMismatchError
from il_based_rl.evaluate import EvaluationResult, play_evaluation
from il_based_rl.interop import actor_from, mixture, told_distribution
from il_based_rl.policy import copied, load_parameters, load_tensor, require_counts
from il_based_rl.rollout import EpisodePlayers
from il_based_rl.seeding import generator, start_seeds

EXPERT = "expert"


@dataclass(frozen=True)
class Round:
    """What one round brought."""

    round: int
    """Rounds so far."""
    queries: int
    """Questions to the expert so far."""
    metrics: dict[str, float]
    """`eval_reward`, `train_loss`, `transitions` (that the student is cloned from), `expert_acted` (share of this round's
    steps), and `share_of_expert` where the expert is above a random policy."""


class Aggregation:
    """A student, its expert, and all that the expert was asked.

    Which numbers are drawn depends on the seed and the round alone, so that a resumed run goes on as if it had run through.

    Args:
        config: Settings; `seed` is given.
        expert: An agent of this package, or anything with `predict(obs) -> action`.
        demos: Demonstrations for the first round; None lets the expert act.

    Raises:
        SpaceMismatchError: Expert or demonstrations are of other spaces than the environment, or do not tell the distribution
            that the loss needs.
        ConfigError: The demonstrations use up all questions, or the only round.
    """

    def __init__(self, config: DaggerConfig, expert: Any, demos: DemoDataset | None = None) -> None:
        assert config.seed is not None
        self.config, self.seed, self.expert = config, config.seed, expert
        self._demos, self._actors_before = demos, _actors_before(demos)
        # One environment, as several side by side would be cut in the same early part of their episodes.
        self._players = EpisodePlayers(config.env_id, 1, bounds=config.bounds)
        try:
            self._require_fitting()
            spaces = self._players.observation_space, self._players.action_space
            self._asked = actor_from(expert, *spaces, deterministic=True, random=generator(self.seed, "aggregation"))
            self.agent = BCAgent.for_spaces(
                *spaces, config.bc, hidden_dims=config.hidden_dims, seed=self.seed, device=config.device
            )
            self._require_distributions()
            if demos is not None:
                self.agent.examples(demos)
        except BaseException:
            self._players.close()
            raise
        self.asked: DemoDataset | None = None
        """All that the expert was asked; its metadata's `episodes_per_round` tell the rounds apart."""
        self._kept: list[int] = []
        """Its episodes that the student is cloned from."""
        self.round = 0
        self.ends: tuple[float, float] | None = None
        """Mean returns of a random policy and of the expert from the start states that students are judged from."""
        self.best, self.best_mean = self.agent.payload(), -math.inf
        """The best student by mean return from those, and that."""
        self.share: float | None = None
        """Of what the expert is above a random policy, that the last student has; None where the expert is not above it."""
        self.compared = False
        """Whether the best student was compared with the expert in the end, and nothing was learned since."""

    def _require_fitting(self) -> None:
        """Raise an error if the demonstrations to begin with are of another environment, or leave nothing to ask."""
        config, demos = self.config, self._demos
        if demos is None:
            return
        demos.require_env(config.env_id, self._players.observation_space, self._players.action_space)
        if config.query_budget is not None and len(demos) >= config.query_budget:
            raise ConfigError(f"--query-budget {config.query_budget} leaves no question beyond the {len(demos)} demonstrations")
        if config.rounds == 1:
            raise ConfigError("--rounds 1 is the round of the demonstrations, and leaves none in which the expert is asked")

    @property
    def queries(self) -> int:
        """Questions to the expert so far, the demonstrations at the beginning included."""
        return 0 if self.asked is None else len(self.asked)

    @property
    def dataset(self) -> DemoDataset | None:
        """What the student is cloned from."""
        return None if self.asked is None else self.asked.select(self._kept)

    @property
    def finished(self) -> bool:
        """Whether the rounds or the questions are used up, or a student was good enough."""
        config = self.config
        asked_all = config.query_budget is not None and self.queries >= config.query_budget
        good_enough = config.stop_at is not None and self.share is not None and self.share >= config.stop_at
        return self.round >= config.rounds or asked_all or good_enough

    def learn(self) -> Iterator[Round]:
        """Go through the rounds; yield after each.

        Raises:
            EnvironmentFaultError: The environment or the expert failed.
            TrainingDivergedError: See `BCAgent.learn`.
        """
        while not self.finished:
            fresh = self._demos if self.round == 0 and self._demos is not None else self._played()
            self.compared = False
            self._aggregate(fresh)
            loss, transitions = self._cloned()
            self.round += 1
            mean = self._judged()
            if mean >= self.best_mean:
                self.best, self.best_mean = self.agent.payload(), mean
            acted = 1.0 if fresh.acted_by is None else float((fresh.acted_by == 0).mean())
            metrics = {"eval_reward": mean, "train_loss": loss, "expert_acted": acted, "transitions": float(transitions)}
            yield Round(self.round, self.queries, metrics | ({} if self.share is None else {"share_of_expert": self.share}))

    def _played(self) -> DemoDataset:
        """Let expert and student act, and the expert label."""
        config, players = self.config, self._players
        share = config.expert_share * config.expert_decay ** (self.round - 1) if self.round else 1.0
        student = actor_from(
            self.agent,
            players.observation_space,
            players.action_space,
            deterministic=True,
            random=generator(self.seed, "aggregation"),
        )
        number = self.round + len(self._actors_before)
        actor = mixture(self._asked, student, share, number, generator(self.seed, "aggregation", self.round, 0))
        left = math.inf if config.query_budget is None else config.query_budget - self.queries
        seeds = start_seeds(self.seed, "aggregation", key=self.round)
        episodes = list(players.play(actor, seeds, max_steps=int(min(config.round_steps, left))))
        episodes.sort(key=lambda episode: episode.index)
        facts = {"labelled_by": EXPERT, "policies": self._policies(), "agent": type(self.expert).__name__, "seed": self.seed}
        return dataset_of(players, episodes, self.expert, facts)

    def _policies(self) -> list[str]:
        return [EXPERT, *self._actors_before, *(f"student of round {k}" for k in range(1, self.round + 1))]

    def _require_distributions(self) -> None:
        """Raise SpaceMismatchError now if the loss needs distributions that nobody will tell."""
        if self.config.bc.loss != "kl":
            return
        space, actions = self._players.observation_space, self._players.action_space
        space.seed(self.seed)
        row = self._players.codec.row(space.sample())
        lacking = self._demos is not None and self._demos.distributions is None
        if lacking or told_distribution(self.expert, row[None], actions) is None:
            who = "the demonstrations do not hold it" if lacking else "this expert does not tell it"
            raise SpaceMismatchError(f"--loss kl needs the expert's distribution of actions, and {who}; choose another loss")

    def _aggregate(self, fresh: DemoDataset) -> None:
        """Add this round's transitions to all before; choose the episodes that the student is cloned from."""
        parts = [fresh] if self.asked is None else [self.asked, fresh]
        rounds = [*([] if self.asked is None else self.asked.metadata["episodes_per_round"]), fresh.num_episodes]
        policies = {"labelled_by": EXPERT, "policies": self._policies(), "episodes_per_round": rounds}
        whole = [
            replace(
                part,
                executed_actions=part.actions if part.executed_actions is None else part.executed_actions,
                acted_by=np.zeros(len(part), np.int64) if part.acted_by is None else part.acted_by,
                metadata={**part.metadata, **policies},
            )
            for part in parts
        ]
        self.asked = DemoDataset.joined(whole, {**fresh.metadata, **policies})
        self._kept = self._remembered(self._kept, self.round)

    def _remembered(self, before: Sequence[int], number: int) -> list[int]:
        """Return the episodes that are kept in a round: its own, and of those before as many at random as there is room for."""
        assert self.asked is not None
        rounds, lengths = self.asked.metadata["episodes_per_round"], self.asked.episode_lengths
        first = sum(rounds[:number])
        own = list(range(first, first + rounds[number]))
        room = math.inf if self.config.memory is None else self.config.memory - lengths[own].sum()
        if not before or lengths[list(before)].sum() <= room:
            return [*before, *own]
        order = np.array(before)[generator(self.seed, "aggregation", number, 1).permutation(len(before))]
        return [*np.sort(order[np.cumsum(lengths[order]) <= room]).tolist(), *own]

    def _cloned(self) -> tuple[float, int]:
        """Clone from all that is kept; return the last epoch's loss, and from how many transitions."""
        config, dataset = self.config, self.dataset
        assert dataset is not None
        seed = int(generator(self.seed, "aggregation", self.round, 2).integers(2**31))
        bc = config.bc if dataset.num_episodes > 1 else replace(config.bc, patience=None)  # as nothing can be held out
        if self.round and not config.warm_start:
            spaces = self._players.observation_space, self._players.action_space
            self.agent = BCAgent.for_spaces(*spaces, bc, hidden_dims=config.hidden_dims, seed=seed, device=config.device)
        else:
            learned = self.agent.log_std
            self.agent = BCAgent(self.agent.policy, bc, seed=seed, device=config.device)
            if learned is not None and self.agent.log_std is not None:
                self.agent.log_std.data.copy_(learned.data)
        loss = math.nan
        for progress in self.agent.learn(dataset):
            loss = progress.metrics["train_loss"]
        return loss, len(dataset)

    def _judged(self) -> float:
        """Let the student play; return its mean return."""
        if self.ends is None:
            expert, steps = self.evaluated(self.expert), self.config.round_steps
            self.ends = self.evaluated(None).mean, expert.mean
            if self.ends[1] <= self.ends[0]:
                returned = f"the expert returns {self.ends[1]:.2f} here, a random policy {self.ends[0]:.2f}"
                notice(f"{returned}: which share a student has of what the expert is above that cannot be told")
            if (longest := int(expert.lengths.max())) > steps:
                cut = f"rounds of {steps} steps cut the expert's episodes of up to {longest}: no label tells how those go on"
                notice(f"{cut}; with `il-rl dagger --round-steps {longest}` a whole one fits")
        mean, (low, high) = self.evaluated(self.agent).mean, self.ends
        self.share = (mean - low) / (high - low) if high > low else None
        return mean

    def evaluated(self, agent: Any, *, final: bool = False) -> EvaluationResult:
        """Let an agent play, or a random policy for None, from the start states that students are judged from.

        Args:
            agent: Who plays.
            final: Whether from others, which nothing is chosen by.
        """
        config = self.config
        count = config.final_episodes if final else config.eval_episodes
        seeds = list(start_seeds(self.seed, "evaluation", count, key=6) if final else self._judging_seeds())
        with EpisodePlayers(config.env_id, count, bounds=config.bounds) as players:
            players.action_space.seed(self.seed)
            acting = (lambda obs: players.action_space.sample()) if agent is None else agent
            return play_evaluation(acting, players, seeds, seed=self.seed, quiet=config.quiet)

    def _judging_seeds(self) -> Iterator[int]:
        return start_seeds(self.seed, "evaluation in training", self.config.eval_episodes)

    def payload(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the best student, and beside it what learning goes on from but for what was asked."""
        learner = self.agent.payload()
        state = {
            "round": self.round,
            "ends": None if self.ends is None else list(self.ends),
            "best_mean": self.best_mean,
            "share": self.share,
            "finished": self.finished,
            "compared": self.compared,
            "learner": learner["parameters"],
            "learner_log_std": learner["log_std"],
            "demonstrations": None if self.asked is None else self.asked.fingerprint,
            "expert": digest_of(self.expert),
        }
        training = {**self.best["training"], "env_steps": self.queries}
        return {**self.best, "training": training, "dagger": state}

    def restore(self, payload: dict[str, Any], path: str | Path, asked: DemoDataset | None) -> None:
        """Go on from what `payload` returned, and what was asked by then; `path` is for messages.

        Raises:
            FileFormatError: It is of another kind, or damaged.
            ResumeError: The expert is another one.
        """
        self.agent = BCAgent.from_payload(payload, path, self.config.hidden_dims, device=self.config.device)
        try:
            state = payload["dagger"]
            require_counts(state, "round")
            self.best = {name: part for name, part in payload.items() if name not in ("dagger", "run")}
            load_parameters(self.agent.policy, state["learner"])
            if self.agent.log_std is not None and "learner_log_std" in state:  # which files of before lack
                load_tensor(self.agent.log_std, state["learner_log_std"])
            self.round, self.asked, self._kept, self.compared = state["round"], asked, [], bool(state.get("compared"))
            if asked is not None:
                self._actors_before = asked.metadata["policies"][1 : 1 + len(asked.metadata["policies"]) - self.round]
            for number in range(self.round):
                self._kept = self._remembered(self._kept, number)
            self.best_mean = float(state["best_mean"])
            self.share = None if state["share"] is None else float(state["share"])
            self.ends = None if state["ends"] is None else (float(state["ends"][0]), float(state["ends"][1]))
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"{path} holds no rounds to go on with: {' '.join(str(error).split())}") from error
        if state.get("expert") != digest_of(self.expert):
            raise ResumeError(f"{path} was begun with another expert than the one that is at its place now; start afresh")

    def close(self) -> None:
        """Close the environments."""
        self._players.close()


def asked_until(asked: DemoDataset, number: int) -> DemoDataset | None:
    """Return what was asked in the first so many rounds; None for none.

    Raises:
        FileFormatError: The data set does not tell its rounds, or has not as many.
    """
    told: Any = asked.metadata.get("episodes_per_round")
    rounds: list[int] = told if isinstance(told, list) and all(type(count) is int and count > 0 for count in told) else []
    if sum(rounds) != asked.num_episodes or len(rounds) < number:
        raise FileFormatError(f"the demonstrations do not hold the {number} rounds that are to be gone on from")
    if number == 0:
        return None
    policies = asked.metadata["policies"] if isinstance(asked.metadata.get("policies"), list) else []
    policies = policies[: number + len(policies) - len(rounds)]  # the last one came with the last round
    part = asked.select(range(sum(rounds[:number])))
    return replace(part, metadata={**part.metadata, "episodes_per_round": rounds[:number], "policies": policies})


def _actors_before(demos: DemoDataset | None) -> list[str]:
    """Return who acted beside the expert in demonstrations of an earlier DAgger."""
    if demos is None or demos.acted_by is None:
        return []
    return [f"{name} of the demonstrations" for name in demos.metadata["policies"][1:]]


def digest_of(agent: Any) -> str | None:
    """Return a digest of a policy's parameters, by which an expert is known again; None for one that is not of this package."""
    policy = getattr(agent, "policy", None)
    if not isinstance(policy, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in copied(policy.state_dict()).items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
