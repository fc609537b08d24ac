"""PPO's loss on one minibatch and its gradient, twice: by autograd, and by hand on the fast path.

Both read the same batch and write the same gradient vector. `measures` are always policy loss, value loss
(of scaled rewards), entropy, approximate KL and clip fraction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from il_based_rl.actor_critic_policy import ActorCriticPolicy
from il_based_rl.buffer import RolloutBatch
from il_based_rl.config import PPOConfig
from il_based_rl.flat_parameters import FlatParameters
from il_based_rl.functional import ppo_clip_grads, ppo_clip_loss, value_grads
from il_based_rl.fused_mlp import StackedMLP, numpy_grad
from il_based_rl.heads import to_tensor
from il_based_rl.networks import RunningNormalizer
from il_based_rl.policy import MLPPolicy

MEASURES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


@dataclass
class Anchor:
    """A fixed policy that the actor is drawn back to on the states that it visits."""

    policy: MLPPolicy
    weight: float = 0.0
    """Of the divergence from it in the loss."""
    divergences: list[float] = field(default_factory=list)
    """Of each minibatch since this was cleared, in nats."""

    def reads_as(self, normalizer: RunningNormalizer) -> bool:
        """Whether features that the actor has standardised are what this policy reads."""
        own = self.policy.normalizer
        pairs = zip(own.state_dict().values(), normalizer.state_dict().values(), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    def read(self, normalized: Tensor, normalizer: RunningNormalizer) -> Tensor:
        """Return features as this policy standardises them, of those that the actor has; but for what that clipped."""
        return self.policy.normalizer(normalizer.inverse(normalized))


class ReferenceUpdate:
    """Plain PyTorch: autograd, on any device."""

    def __init__(
        self, policy: ActorCriticPolicy, flat: FlatParameters, device: torch.device, anchor: Anchor | None = None
    ) -> None:
        self._policy, self._flat, self._device, self._anchor = policy, flat, device, anchor
        self._reads_alike = anchor is None or anchor.reads_as(policy.actor.normalizer)

    @torch.no_grad()
    def judge(self, features: np.ndarray, raw_actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return standardised features, shape (B, O), and log-probabilities and values, shape (B,), of a whole rollout."""
        normalized = self._policy.actor.normalizer(to_tensor(features, self._device))
        log_probs, _, values = self._policy.evaluate_actions(normalized, to_tensor(raw_actions, self._device))
        return normalized.cpu().numpy(), log_probs.cpu().numpy(), values.cpu().numpy()

    @torch.no_grad()
    def values(self, features: np.ndarray) -> np.ndarray:
        """Return the values of observations, shape (B,)."""
        normalized = self._policy.actor.normalizer(to_tensor(features, self._device))
        return self._policy.critic(normalized).squeeze(-1).cpu().numpy()

    def prepared(self, batch: RolloutBatch) -> RolloutBatch:
        """Return the batch as this path reads it."""
        return batch.to(self._device)

    def differentiate(self, minibatch: RolloutBatch, config: PPOConfig) -> Any:
        """Write the loss's gradient; return the measures, shape (5,)."""
        with torch.enable_grad():
            log_probs, entropy, values = self._policy.evaluate_actions(minibatch.normalized, minibatch.raw_actions)
            policy_loss, measures = ppo_clip_loss(log_probs, minibatch.log_probs, minibatch.advantages, config.clip_range)
            value_loss = (values - minibatch.returns).square().mean()
            loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
            if (anchor := self._anchor) is not None:
                loss = loss + anchor.weight * self._divergence(minibatch.normalized, anchor)
        self._flat.grad.zero_()
        loss.backward()
        parts = [policy_loss, value_loss, entropy, measures["approx_kl"], measures["clip_fraction"]]
        return torch.stack(parts).detach()

    def _divergence(self, inputs: Any, anchor: Anchor) -> Tensor:
        """Return the actor's mean divergence from a fixed policy, a scalar."""
        actor = self._policy.actor
        read = inputs if self._reads_alike else anchor.read(inputs, actor.normalizer)
        divergence = actor.head.divergence(actor.network(inputs), anchor.policy.network(read), self._policy.log_std)
        anchor.divergences.append(float(divergence.detach()))
        return divergence


class FusedUpdate:
    """The same in closed form, for float32 perceptrons on a CPU."""

    def __init__(self, policy: ActorCriticPolicy, anchor: Anchor | None = None) -> None:
        self._policy, self._anchor = policy, anchor
        self._anchored = None if anchor is None else anchor.policy.network.as_numpy()
        self._reads_alike = anchor is None or anchor.reads_as(policy.actor.normalizer)
        self._head = policy.actor.head
        self._networks = StackedMLP([policy.actor.network, policy.critic])
        self._log_std = None if policy.log_std is None else policy.log_std.detach().numpy()
        self._log_std_grad = None if policy.log_std is None else numpy_grad(policy.log_std)

    def judge(self, features: np.ndarray, raw_actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return standardised features, shape (B, O), and log-probabilities and values, shape (B,), of a whole rollout."""
        normalized = self._policy.actor.normalizer.as_numpy()(features)
        log_probs, _, _ = self._head.score(self._policy.actor.network.as_numpy()(normalized), self._log_std, raw_actions)
        return normalized, log_probs, self._policy.critic.as_numpy()(normalized)[:, 0]

    def values(self, features: np.ndarray) -> np.ndarray:
        """Return the values of observations, shape (B,)."""
        return self._policy.critic.as_numpy()(self._policy.actor.normalizer.as_numpy()(features))[:, 0]

    def prepared(self, batch: RolloutBatch) -> RolloutBatch:
        """Return the batch as this path reads it."""
        return batch

    def differentiate(self, minibatch: RolloutBatch, config: PPOConfig) -> Any:
        """Write the loss's gradient; return the measures, shape (5,)."""
        head, log_std, inputs = self._head, self._log_std, minibatch.normalized
        outputs, values = self._networks.forward(inputs)
        log_probs, entropy, kept = head.score(outputs, log_std, minibatch.raw_actions)
        weights, (policy_loss, approx_kl, clip_fraction) = ppo_clip_grads(
            log_probs, minibatch.log_probs, minibatch.advantages, config.clip_range
        )
        output_grads, log_std_grads = head.score_grads(kept, weights)
        if config.entropy_coef > 0.0:
            entropy_by_outputs, entropy_by_log_std = head.entropy_grads(kept)
            if entropy_by_outputs is not None:
                output_grads -= config.entropy_coef * entropy_by_outputs
            if entropy_by_log_std is not None and log_std_grads is not None:
                log_std_grads -= config.entropy_coef * entropy_by_log_std
        if self._anchor is not None and self._anchored is not None:
            normalizer = self._policy.actor.normalizer
            read = inputs if self._reads_alike else self._anchor.read(torch.from_numpy(inputs), normalizer).numpy()
            divergence, by_outputs = head.divergence_grads(outputs, self._anchored(read), log_std)
            output_grads += self._anchor.weight * by_outputs
            self._anchor.divergences.append(divergence)
        if self._log_std_grad is not None and log_std_grads is not None:
            self._log_std_grad[:] = log_std_grads
        error_grads, value_loss = value_grads(values[:, 0], minibatch.returns)
        error_grads *= config.value_coef
        self._networks.backward(inputs, [output_grads, error_grads[:, None]])
        return np.array([policy_loss, value_loss, entropy, approx_kl, clip_fraction])
