"""DAgger's loop: play, ask the expert what it would have done, add that to the data, clone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from il_based_rl.agent import BCAgent
from il_based_rl.collect import dataset_of
from il_based_rl.config import DaggerConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import ConfigError, FileFormatError
from il_based_rl.evaluate import EvaluationResult, play_evaluation
from il_based_rl.interop import actor_from, mixture
from il_based_rl.policy import load_parameters, require_counts
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
    """`eval_reward`, `share_of_expert`, `train_loss`, `transitions` (that are kept), `expert_acted` (share of this round)."""


class Aggregation:
    """A student, its expert, and all that the expert was asked.

    Which numbers are drawn depends on the seed and the round alone, so that a resumed run goes on as if it had run through.

    Args:
        config: Settings; `seed` is given.
        expert: An agent of this package, or anything with `predict(obs) -> action`.
        demos: Demonstrations for the first round; None lets the expert act.

    Raises:
        SpaceMismatchError: Expert or demonstrations are of other spaces than the environment.
        ConfigError: The demonstrations use up all questions.
    """

    def __init__(self, config: DaggerConfig, expert: Any, demos: DemoDataset | None = None) -> None:
        assert config.seed is not None
        self.config, self.seed, self.expert = config, config.seed, expert
        self._demos = None if demos is None else replace(demos, acted_by=None)  # they name policies of another run
        # One environment, as several side by side would be cut in the same early part of their episodes.
        self._players = EpisodePlayers(config.env_id, 1)
        spaces = self._players.observation_space, self._players.action_space
        self._asked = actor_from(expert, *spaces, deterministic=True, random=generator(self.seed, "aggregation"))
        if demos is not None:
            demos.require_env(config.env_id, *spaces)
            if config.query_budget is not None and len(demos) >= config.query_budget:
                raise ConfigError(
                    f"--query-budget {config.query_budget} leaves no question beyond the {len(demos)} demonstrations"
                )
        self.agent = BCAgent.for_spaces(
            *spaces, config.bc, hidden_dims=config.hidden_dims, seed=self.seed, device=config.device
        )
        self.dataset: DemoDataset | None = None
        self.round, self.queries = 0, 0
        self.ends: tuple[float, float] | None = None
        """Mean returns of a random policy and of the expert from the start states that students are judged from."""
        self.best, self.best_share = self.agent.payload(), -math.inf

    @property
    def finished(self) -> bool:
        """Whether the rounds or the questions are used up, or a student was good enough."""
        config = self.config
        asked_all = config.query_budget is not None and self.queries >= config.query_budget
        return self.round >= config.rounds or asked_all or (config.stop_at is not None and self.best_share >= config.stop_at)

    def learn(self) -> Iterator[Round]:
        """Go through the rounds; yield after each.

        Raises:
            EnvironmentFaultError: The environment or the expert failed.
            TrainingDivergedError: See `BCAgent.learn`.
        """
        while not self.finished:
            fresh = self._demos if self.round == 0 and self._demos is not None else self._played()
            self.queries += len(fresh)
            self.dataset = self._aggregated(fresh)
            loss = self._cloned(self.dataset)
            self.round += 1
            mean, share = self._judged()
            if share >= self.best_share:
                self.best, self.best_share = self.agent.payload(), share
            acted = 1.0 if fresh.acted_by is None else float((fresh.acted_by == 0).mean())
            metrics = {"eval_reward": mean, "share_of_expert": share, "train_loss": loss, "expert_acted": acted}
            yield Round(self.round, self.queries, metrics | {"transitions": float(len(self.dataset))})

    def _played(self) -> DemoDataset:
        """Let expert and student act, and the expert label."""
        config, players = self.config, self._players
        share = config.expert_share * config.expert_decay**self.round if self.round else 1.0
        student = actor_from(
            self.agent,
            players.observation_space,
            players.action_space,
            deterministic=True,
            random=generator(self.seed, "aggregation"),
        )
        actor = mixture(self._asked, student, share, self.round, generator(self.seed, "aggregation", self.round, 0))
        left = math.inf if config.query_budget is None else config.query_budget - self.queries
        seeds = start_seeds(self.seed, "aggregation", key=self.round)
        episodes = list(players.play(actor, seeds, max_steps=int(min(config.round_steps, left))))
        episodes.sort(key=lambda episode: episode.index)
        facts = {"labelled_by": EXPERT, "policies": self._policies(), "agent": type(self.expert).__name__, "seed": self.seed}
        return dataset_of(players, episodes, self.expert, facts)

    def _policies(self) -> list[str]:
        return [EXPERT, *(f"student of round {k}" for k in range(1, self.round + 1))]

    def _aggregated(self, fresh: DemoDataset) -> DemoDataset:
        """Add this round's transitions to those before, of which some are forgotten where there is no room."""
        parts = [fresh] if self.dataset is None else [self._remembered(self.dataset, len(fresh)), fresh]
        whole = [
            replace(
                part,
                executed_actions=part.actions if part.executed_actions is None else part.executed_actions,
                acted_by=np.zeros(len(part), np.int64) if part.acted_by is None else part.acted_by,
                metadata={**part.metadata, "policies": self._policies()},
            )
            for part in parts
            if part is not None
        ]
        return DemoDataset.joined(whole, {**fresh.metadata, "labelled_by": EXPERT, "policies": self._policies()})

    def _remembered(self, dataset: DemoDataset, further: int) -> DemoDataset | None:
        """Return whole episodes of a data set, drawn at random, that leave room for further transitions."""
        if self.config.memory is None or len(dataset) + further <= self.config.memory:
            return dataset
        order = generator(self.seed, "aggregation", self.round, 1).permutation(dataset.num_episodes)
        fitting = order[np.cumsum(dataset.episode_lengths[order]) <= self.config.memory - further]
        return dataset.select(np.sort(fitting)) if len(fitting) else None

    def _cloned(self, dataset: DemoDataset) -> float:
        """Clone from all that is kept; return the last epoch's loss."""
        config = self.config
        seed = int(generator(self.seed, "aggregation", self.round, 2).integers(2**31))
        if self.round and not config.warm_start:
            spaces = self._players.observation_space, self._players.action_space
            self.agent = BCAgent.for_spaces(*spaces, config.bc, hidden_dims=config.hidden_dims, seed=seed, device=config.device)
        else:
            self.agent = BCAgent(self.agent.policy, config.bc, seed=seed, device=config.device)
        loss = math.nan
        for progress in self.agent.learn(dataset):
            loss = progress.metrics["train_loss"]
        return loss

    def _judged(self) -> tuple[float, float]:
        """Let the student play; return its mean return, and which share it has of what the expert is above a random policy."""
        if self.ends is None:
            self.ends = self.evaluated(None).mean, self.evaluated(self.expert).mean
        mean, (low, high) = self.evaluated(self.agent).mean, self.ends
        return mean, (mean - low) / (high - low) if high != low else math.nan

    def evaluated(self, agent: Any, *, final: bool = False) -> EvaluationResult:
        """Let an agent play, or a random policy for None, from the start states that students are judged from.

        Args:
            agent: Who plays.
            final: Whether from others, which nothing is chosen by.
        """
        config = self.config
        count = config.final_episodes if final else config.eval_episodes
        seeds = list(start_seeds(self.seed, "evaluation", count, key=6) if final else self._judging_seeds())
        with EpisodePlayers(config.env_id, count) as players:
            players.action_space.seed(self.seed)
            acting = (lambda obs: players.action_space.sample()) if agent is None else agent
            return play_evaluation(acting, players, seeds, seed=self.seed, quiet=config.quiet)

    def _judging_seeds(self) -> Iterator[int]:
        return start_seeds(self.seed, "evaluation in training", self.config.eval_episodes)

    def payload(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the best student, and beside it what learning goes on from but for the data set."""
        state = {
            "round": self.round,
            "queries": self.queries,
            "ends": None if self.ends is None else list(self.ends),
            "best_share": self.best_share,
            "finished": self.finished,
            "learner": self.agent.payload()["parameters"],
            "demonstrations": None if self.dataset is None else self.dataset.fingerprint,
        }
        training = {**self.best["training"], "env_steps": self.queries}
        return {**self.best, "training": training, "dagger": state}

    def restore(self, payload: dict[str, Any], path: str | Path, dataset: DemoDataset | None) -> None:
        """Go on from what `payload` returned, and the data set of that moment; `path` is for messages.

        Raises:
            FileFormatError: It is of another kind, or damaged.
        """
        self.agent = BCAgent.from_payload(payload, path, self.config.hidden_dims, device=self.config.device)
        try:
            state = payload["dagger"]
            require_counts(state, "round", "queries")
            self.best = {name: part for name, part in payload.items() if name not in ("dagger", "run")}
            load_parameters(self.agent.policy, state["learner"])
            self.round, self.queries, self.dataset = state["round"], state["queries"], dataset
            self.best_share = float(state["best_share"])
            self.ends = None if state["ends"] is None else (float(state["ends"][0]), float(state["ends"][1]))
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"{path} holds no rounds to go on with: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        """Close the environments."""
        self._players.close()
