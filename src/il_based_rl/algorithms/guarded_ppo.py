"""PPO that goes on from a clone and does not fall behind it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from il_based_rl.actor_critic_policy import ActorCriticPolicy
from il_based_rl.config import GuardConfig, PPOConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.envs import Envs
from il_based_rl.errors import FileFormatError
from il_based_rl.flat_parameters import GroupedAdam
from il_based_rl.heads import to_tensor
from il_based_rl.interop import policy_actor
from il_based_rl.networks import MLP
from il_based_rl.policy import MLPPolicy, copied, load_parameters, require_counts, shown_to
from il_based_rl.ppo_agent import PPOAgent, Progress
from il_based_rl.ppo_updates import Anchor
from il_based_rl.rollout import Actor, EpisodePlayers
from il_based_rl.seeding import generator, generator_state, restore_generator, torch_seed
from il_based_rl.statistics import Estimate, difference

_DEMO_BATCH = 64
_STDS = (1.0, 0.7, 0.5, 0.35, 0.2)
"""Standard deviations to begin with that are tried, in units of half the action's range."""
_KEPT_SHARE = 0.6
"""Of the clone's advantage over a random policy, that it must keep under one of them, but for the last."""


class GuardedPPO:
    """PPO given a clone, behind guard rails; what each of them prevents is told in docs/improve.md.

    A new critic learns from the clone's own rollouts until it foresees their returns; only then does the actor move, slowly
    at first, its observation statistics as they are, its standard deviation small and bounded, drawn back to the clone on the
    states that it visits and, with demonstrations, to them. Actor and critic have learning rates and gradient norms of their
    own. `judge` compares the policy with the clone from the same start states, keeps the best, and goes back to its
    actor from one that is clearly below the clone.

    Args:
        agent: Learns from now on; its actor is the clone, or what has become of it.
        anchor: The clone.
        guard: The guard rails.
        demos: Demonstrations whose likelihood is kept up, see Rajeswaran et al. (2018, https://arxiv.org/abs/1709.10087), who
            weight it by the largest advantage as well.
    """

    def __init__(self, agent: PPOAgent, anchor: MLPPolicy, guard: GuardConfig, demos: DemoDataset | None = None) -> None:
        self.agent, self.guard = agent, guard
        policy, state = agent.policy, agent.optimizer.state_dict()
        inner = [*policy.actor.parameters(), *([] if policy.log_std is None else [policy.log_std])]
        self._optimizer = GroupedAdam(agent.flat, agent.config.lr, [inner, list(policy.critic.parameters())], eps=1e-5)
        self._optimizer.load_state_dict(state)
        agent.optimizer, agent.penalty = self._optimizer, self._penalty
        self._clone = copy.deepcopy(anchor).to(agent.device).requires_grad_(False)
        self._anchor = Anchor(self._clone)
        self._demos = None if demos is None else self._prepared(demos)
        self._draws = generator(agent.seed, "minibatch order", 1)
        self.warming, self.rollouts, self.updates = guard.warmup_rollouts > 0, 0, 0
        """Whether the actor is still; rollouts since the last warm-up began; updates of the actor so far."""
        self.below = 0
        """Evaluations in a row that were clearly below the clone's."""
        self.caution = 1.0
        """Divides the actor's learning rate, and multiplies the divergence's weight; doubles with each step back."""
        self.clone_returns: np.ndarray | None = None
        """Of the clone, from the start states that `judge` is given. Shape (E,)."""
        self.best, self.best_mean = copied(policy.state_dict()), -math.inf
        """Parameters of the best policy by `judge`, and its mean return."""
        self.settled = False
        """Whether `best` is what `settle` chose, and nothing was learned since."""
        self._schedule()

    @classmethod
    def from_clone(
        cls,
        clone: MLPPolicy,
        guard: GuardConfig,
        ppo: PPOConfig,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        critic: MLP | None = None,
        demos: DemoDataset | None = None,
    ) -> GuardedPPO:
        """Begin with a clone, which is copied, and a new critic; or with an expert's actor and its `critic`."""
        weights = torch.Generator().manual_seed(torch_seed(seed, "initial weights"))
        spaces: tuple[gym.Space[Any], gym.Space[Any]] = (clone.observation_space, clone.action_space)
        shape: dict[str, Any] = {"activation": clone.activation, "obs_clip": clone.normalizer.clip}
        policy = ActorCriticPolicy(*spaces, clone.hidden_dims, generator=weights, **shape)
        policy.actor.load_state_dict(clone.state_dict())
        if critic is not None:
            policy.critic.load_state_dict(critic.state_dict())
        if policy.log_std is not None:
            policy.log_std.data.fill_(math.log(_stds(guard)[0] if guard.action_std is None else guard.action_std))
        return cls(PPOAgent(policy, ppo, seed=seed, device=device), clone, guard, demos)

    @classmethod
    def from_payload(
        cls,
        payload: dict[str, Any],
        path: str | Path,
        guard: GuardConfig,
        ppo: PPOConfig,
        *,
        device: str | torch.device = "cpu",
        demos: DemoDataset | None = None,
    ) -> GuardedPPO:
        """Go on from what `payload` returned; `path` is for messages.

        Raises:
            FileFormatError: It is of another kind, or damaged.
        """
        agent = PPOAgent.from_payload(payload, path, device=device)
        try:
            state = payload["finetune"]
            anchor = copy.deepcopy(agent.policy.actor)
            load_parameters(anchor, state["anchor"])
            agent.config = ppo
            tuner = cls(agent, anchor, guard, demos)
            load_parameters(agent.policy, state["learner"])
            require_counts(state, "rollouts", "updates", "below")
            tuner.warming, tuner.rollouts, tuner.updates = bool(state["warming"]), state["rollouts"], state["updates"]
            tuner.below, tuner.settled = state["below"], bool(state["settled"])
            tuner.caution, tuner.best_mean = float(state["caution"]), float(state["best_mean"])
            tuner.clone_returns = None if state["clone_returns"] is None else state["clone_returns"].numpy()
            restore_generator(tuner._draws, state["draws"])
            tuner._schedule()
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"{path} holds no fine-tuning to go on with: {' '.join(str(error).split())}") from error
        return tuner

    def payload(self) -> dict[str, Any]:
        """Return what a checkpoint holds: an expert whose policy is the best one, and beside it what learning goes on from."""
        payload = self.agent.payload()
        state = {
            "learner": payload["parameters"],
            "anchor": copied(self._clone.state_dict()),
            "warming": self.warming,
            "rollouts": self.rollouts,
            "updates": self.updates,
            "below": self.below,
            "settled": self.settled,
            "caution": self.caution,
            "best_mean": self.best_mean,
            "clone_returns": None if self.clone_returns is None else torch.from_numpy(self.clone_returns.copy()),
            "draws": generator_state(self._draws),
        }
        return payload | {"parameters": self.best, "finetune": state}

    def learn(self, envs: Envs, total_timesteps: int) -> Iterator[Progress]:
        """Train as `PPOAgent.learn` does, which comes back to where the environments were at once; yield after each update."""
        return self._watched(self.agent.learn(envs, total_timesteps))

    def _watched(self, updates: Iterator[Progress]) -> Iterator[Progress]:
        normalizer = self.agent.policy.actor.normalizer
        statistics = copied(normalizer.state_dict())
        for progress in updates:
            moved = not self.warming
            if not moved:  # else actions would move with the statistics that they are read by
                normalizer.load_state_dict(statistics)
            facts = {"actor_moves": float(moved), "actor_lr": self._optimizer.shares[0] * self._optimizer.lr}
            self._advance(progress.metrics["explained_variance"])
            if (log_std := self.agent.policy.log_std) is not None:
                facts["action_std"] = float(log_std.detach().exp().mean())
            if divergences := self._anchor.divergences:
                facts["divergence_from_clone"] = float(np.mean(divergences))
                divergences.clear()
            yield replace(progress, metrics=progress.metrics | facts)
            statistics = copied(normalizer.state_dict())  # by then `judge` may have gone back

    def _advance(self, explained_variance: float) -> None:
        """Go on to the next update: end the warm-up, move the schedules, bound the standard deviation."""
        self.rollouts += 1
        self.settled = False
        if not self.warming:
            self.updates += 1
        elif explained_variance >= self.guard.warmup_variance or self.rollouts >= self.guard.warmup_rollouts:
            self.warming = False
            self._optimizer.forget()  # the critic's moments too: counted from before, the actor's steps would be far too long
        self._bound_std()
        self._schedule()

    def _schedule(self) -> None:
        guard = self.guard
        rise = min(1.0, (self.updates + 1) / max(guard.actor_rampup, 1))
        share = 0.0 if self.warming else guard.actor_lr / self.agent.config.lr * rise / self.caution
        self._optimizer.shares = [share, 1.0]
        self._anchor.weight = guard.kl_coef * guard.kl_decay**self.updates * self.caution
        self.agent.anchor = None if self.warming else self._anchor
        self._bc_weight = guard.bc_coef * guard.bc_decay**self.updates

    def _bound_std(self) -> None:
        log_std = self.agent.policy.log_std
        if log_std is not None:
            log_std.data.clamp_(math.log(self.guard.min_action_std), math.log(self.guard.max_action_std))

    def _penalty(self) -> None:
        """Add the gradient that draws the actor back to the demonstrations; keep the standard deviation in its bounds."""
        self._bound_std()
        if self.warming or self._demos is None or self._bc_weight == 0.0:
            return
        policy, (shown, raw) = self.agent.policy, self._demos
        drawn = torch.from_numpy(self._draws.integers(len(shown), size=_DEMO_BATCH)).to(shown.device)
        with torch.enable_grad():
            log_probs = policy.actor.head.log_prob(policy.actor(shown[drawn]), policy.log_std, raw[drawn])
            (-self._bc_weight * log_probs.mean()).backward()

    def _prepared(self, demos: DemoDataset) -> tuple[Tensor, Tensor]:
        """Return features and raw actions of demonstrations, as tensors."""
        features, raw = examples_for(self.agent.policy.actor, demos)
        return to_tensor(features, self.agent.device), to_tensor(raw, self.agent.device)

    def judge(self, returns: np.ndarray) -> Estimate:
        """Compare the present policy with the clone, from the same start states; keep it, or go back to the best one.

        The first call is about the clone itself.

        Args:
            returns: Of whole episodes by the policy, by start state. Shape (E,).

        Returns:
            By how much the policy's mean return is above the clone's.
        """
        if self.clone_returns is None:
            self.clone_returns = returns
        margin = difference(returns, self.clone_returns, paired=True)
        self.below = self.below + 1 if margin.high < 0.0 else 0
        if self.guard.gate and self.below >= self.guard.gate_patience:
            self._go_back()
        elif not self.below and returns.mean() >= self.best_mean:
            self.best, self.best_mean = copied(self.agent.policy.state_dict()), float(returns.mean())
        return margin

    def _go_back(self) -> None:
        """Take the best actor, more carefully; the critic, which has learned on since then, warms up on its rollouts."""
        policy = self.agent.policy
        critic = copied(policy.critic.state_dict())
        policy.load_state_dict(self.best)
        policy.critic.load_state_dict(critic)
        self.below = self.rollouts = 0
        self.warming = self.guard.warmup_rollouts > 0
        if not self.warming:  # else that comes with its end
            self._optimizer.forget()
        self.caution *= 2.0
        self._schedule()

    def settle(self, play: Callable[[], np.ndarray]) -> Estimate:
        """Make sure that the best policy is not clearly below the clone from start states never seen before, or take the clone.

        What learns is left as it is, so that learning may go on.

        Args:
            play: Lets the agent's policy play from those, and returns its returns by start state.

        Returns:
            By how much the result's mean return is above the clone's there.
        """
        policy = self.agent.policy
        learner = copied(policy.state_dict())
        policy.load_state_dict(self.best)
        best = play()
        policy.actor.load_state_dict(self._clone.state_dict())
        clone = play()
        margin = difference(best, clone, paired=True)
        if margin.high < 0.0:
            self.best, margin = copied(policy.state_dict()), difference(clone, clone, paired=True)
            self.best_mean = -math.inf if self.clone_returns is None else float(self.clone_returns.mean())
        policy.load_state_dict(learner)
        self.settled = True
        return margin


def examples_for(actor: MLPPolicy, demos: DemoDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of demonstrations, shape (B, O), and their raw actions, shape (B, A).

    Raises:
        SpaceMismatchError: They do not fit the actor's spaces.
    """
    return shown_to(actor, demos.observations, demos.actions, lambda: actor.head.from_env(demos.actions))


def _stds(guard: GuardConfig) -> list[float]:
    """Return the standard deviations to try, the largest first."""
    return [std for std in _STDS if guard.min_action_std <= std <= guard.max_action_std] or [guard.max_action_std]


def fitting_std(clone: MLPPolicy, players: EpisodePlayers, start_seeds: Sequence[int], guard: GuardConfig, seed: int) -> float:
    """Return the largest standard deviation to explore with that leaves a clone 60% of its advantage over random actions.

    Under one that leaves less, PPO improves the disturbed policy, and the undisturbed one, which is judged and saved, gets
    worse for long. The smallest is taken in any case: under less, too little is tried out to learn from.

    Args:
        clone: A student's policy, or an expert's actor.
        players: Where.
        start_seeds: From where.
        guard: Bounds the deviation.
        seed: Of the noise.
    """

    def mean(actor: Actor) -> float:
        return float(np.mean([episode.total_reward for episode in players.play(actor, start_seeds, whole=False)]))

    players.action_space.seed(seed)
    low = mean(lambda situations: np.stack([players.action_space.sample() for _ in situations]))
    high = mean(policy_actor(clone))
    for std in _stds(guard):
        log_std = np.full(clone.head.num_outputs, math.log(std), np.float32)
        if mean(policy_actor(clone, generator(seed, "action noise", 2), log_std)) - low >= _KEPT_SHARE * (high - low):
            return std
    return _stds(guard)[-1]
