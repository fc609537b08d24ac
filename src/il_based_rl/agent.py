"""BCAgent: behavioural cloning, from demonstrations to a student."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from il_based_rl.cloning_losses import CloningLoss
from il_based_rl.cloning_updates import FusedCloning, ReferenceCloning
from il_based_rl.config import BCConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import ConfigError, FileFormatError, SpaceMismatchError, TrainingDivergedError
from il_based_rl.files import package_versions, read_checkpoint, write_checkpoint
from il_based_rl.flat_parameters import FlatAdam, FlatParameters
from il_based_rl.fused_mlp import reason_against
from il_based_rl.heads import in_order
from il_based_rl.policy import (
    MLPPolicy,
    arguments_from,
    copied,
    load_parameters,
    load_tensor,
    require_counts,
    require_hidden_dims,
    shown_to,
)
from il_based_rl.seeding import fresh_seed, generator, generator_state, restore_generator, torch_seed
from il_based_rl.spaces import numbers_in, space_from_plain

KIND = "bc"
_MIN_LOG_STD = math.log(0.01)
"""In raw units, that is a two-hundredth of the action's range."""


@dataclass(frozen=True)
class EpochProgress:
    """What one epoch brought."""

    epoch: int
    """Epochs so far."""
    metrics: dict[str, float]
    """`train_loss`, `validation_loss` where episodes are held out, `learning_rate`."""


class BCAgent:
    """Learns to act as demonstrated, with its optimiser and random streams.

    Args:
        policy: The student; changed in place. Its input statistics are replaced by the demonstrations'.
        config: Hyperparameters.
        seed: Of the validation split and the minibatch order; None draws one.
        device: Where training runs. Acting always runs on the CPU.

    Raises:
        ConfigError: The loss does not fit the policy's actions.

    Example:
        agent = BCAgent.for_dataset(DemoDataset.load("demos/ppo_expert_demos.npz"), seed=0)
        for progress in agent.learn(dataset):
            print(progress.epoch, progress.metrics["train_loss"])
    """

    def __init__(
        self,
        policy: MLPPolicy,
        config: BCConfig | None = None,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.policy = policy.to(device)
        self.config = config or BCConfig()
        self.seed = fresh_seed() if seed is None else operator.index(seed)
        self.device = torch.device(device)
        self._loss = CloningLoss(self.config, policy.head)
        scatter = torch.zeros(policy.head.num_outputs, device=device)
        self.log_std = nn.Parameter(scatter) if self._loss.learns_std else None
        """How widely continuous actions scatter, as the losses of a distribution learn it; in raw units. Shape (A,)."""
        self._flat = FlatParameters.of(policy, [] if self.log_std is None else [self.log_std])
        self._weights = slice(sum(parameter.numel() for parameter in policy.network.parameters()))
        self.optimizer = FlatAdam(self._flat, lr=self.config.lr)
        self.epochs = 0
        self.best_validation, self.epochs_since_best = math.inf, 0
        self._order = generator(self.seed, "minibatch order")
        self._sampling = generator(self.seed, "action noise", 1)

    @classmethod
    def for_dataset(
        cls,
        dataset: DemoDataset,
        config: BCConfig | None = None,
        *,
        hidden_dims: Sequence[int] = (256, 256),
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> BCAgent:
        """Return an agent with a fresh student for the spaces that the demonstrations name.

        Raises:
            SpaceMismatchError: The demonstrations name no spaces, or others than they are of.
            FileFormatError: What they name as a space is none.
        """
        if not {"observation_space", "action_space"} <= set(dataset.metadata):
            raise SpaceMismatchError(
                "the demonstrations' metadata name no observation_space and action_space; add them in Python, as "
                "il_based_rl.spaces.space_to_plain(space) describes each (docs/cloning.md), or collect others"
            )
        _require_sizes(dataset)
        observation_space = space_from_plain(dataset.metadata["observation_space"])
        action_space = space_from_plain(dataset.metadata["action_space"])
        return cls.for_spaces(observation_space, action_space, config, hidden_dims=hidden_dims, seed=seed, device=device)

    @classmethod
    def for_spaces(
        cls,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: BCConfig | None = None,
        *,
        hidden_dims: Sequence[int] = (256, 256),
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> BCAgent:
        """Return an agent with a fresh student for these spaces."""
        seed = fresh_seed() if seed is None else operator.index(seed)
        weights = torch.Generator().manual_seed(torch_seed(seed, "initial weights"))
        policy = MLPPolicy(observation_space, action_space, hidden_dims, generator=weights)
        return cls(policy, config, seed=seed, device=device)

    def learn(self, dataset: DemoDataset) -> Iterator[EpochProgress]:
        """Clone the demonstrations; yield after each epoch.

        Some episodes are held out to report the validation loss; it shows gross over-fitting, and does not rank policies
        (rollouts do). The learning rate falls linearly to 0.

        Raises:
            ConfigError: The student has had all its epochs, or is to stop early without episodes to hold out.
            SpaceMismatchError: The demonstrations do not fit the policy's spaces.
            TrainingDivergedError: The parameters are no longer finite.
        """
        config, policy, rule = self.config, self.policy, self._update_rule()
        if self.finished:
            raise ConfigError(f"this student has had its {self.epochs} epochs; make a new agent, or give it a config with more")
        self._require_patience(dataset)
        training, held_out = self._split(dataset)
        features, examples = self.examples(training)
        policy.normalizer.fit(features)
        inputs, targets = rule.prepared(policy.normalizer.as_numpy()(features)), rule.prepared(examples)
        validation = None if held_out is None else self.examples(held_out)
        regularized = self.config.l2_coef > 0.0 or self.log_std is not None
        while not self.finished:
            self.optimizer.lr = config.lr * (1.0 - self.epochs / config.epochs)
            order = self._order.permutation(len(examples))
            shuffled_inputs, shuffled_targets = in_order(inputs, order), in_order(targets, order)
            loss_sum = 0.0
            for start in range(0, len(examples), config.batch_size):
                minibatch = slice(start, start + config.batch_size)
                wanted = shuffled_targets[minibatch]
                loss = rule.differentiate(shuffled_inputs[minibatch], wanted)
                if regularized:
                    self._regularize()
                self.optimizer.step()
                loss_sum += loss * len(wanted)
            self.epochs += 1
            metrics = {"train_loss": float(loss_sum) / len(examples), "learning_rate": self.optimizer.lr}
            if validation is not None:
                outputs = policy.as_numpy()(validation[0])
                metrics["validation_loss"], _, _ = self._loss.grads(outputs, self.log_std_array(), validation[1])
                self._note(metrics["validation_loss"])
            self._require_finite(metrics["train_loss"])
            yield EpochProgress(self.epochs, metrics)

    def _regularize(self) -> None:
        """Add the gradient of the penalty on large parameters; keep the standard deviation off zero."""
        if self.config.l2_coef:
            self._flat.grad[self._weights].add_(self._flat.vector.data[self._weights], alpha=self.config.l2_coef)
        if self.log_std is not None:
            self.log_std.data.clamp_(min=_MIN_LOG_STD)

    def _note(self, validation_loss: float) -> None:
        better = validation_loss < self.best_validation
        self.best_validation = min(self.best_validation, validation_loss)
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1

    @property
    def finished(self) -> bool:
        """Whether it has had all its epochs, or its patience is over."""
        patience = self.config.patience
        return self.epochs >= self.config.epochs or (patience is not None and self.epochs_since_best >= patience)

    def _update_rule(self) -> ReferenceCloning | FusedCloning:
        """Choose the fast path where it models this policy."""
        self._flat.require_intact()
        if self.reason_against_fast_path is None:
            return FusedCloning(self.policy, self._loss, self.log_std)
        return ReferenceCloning(self.policy, self._loss, self.log_std, self._flat, self.device)

    @property
    def reason_against_fast_path(self) -> str | None:
        """Why updates take the reference path, or None where they take the fast one."""
        return reason_against(self.policy, self.device) if self.config.fast_path else "it is turned off"

    def _split(self, dataset: DemoDataset) -> tuple[DemoDataset, DemoDataset | None]:
        """Hold out whole episodes; a data set of one episode is trained on whole."""
        episodes = dataset.num_episodes
        if episodes == 1 or self.config.validation_fraction == 0.0:
            return dataset, None
        held_out = min(max(1, round(self.config.validation_fraction * episodes)), episodes - 1)
        order = generator(self.seed, "validation split").permutation(episodes)
        return dataset.select(np.sort(order[held_out:])), dataset.select(np.sort(order[:held_out]))

    def require_fits(self, dataset: DemoDataset) -> None:
        """Raise SpaceMismatchError or ConfigError unless the policy can learn from these demonstrations as it is to."""
        self._require_patience(dataset)
        self.examples(dataset)

    def _require_patience(self, dataset: DemoDataset) -> None:
        if self.config.patience is not None and dataset.num_episodes == 1:
            raise ConfigError("--patience needs episodes to hold out, and the demonstrations are of one episode")

    def examples(self, dataset: DemoDataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of demonstrations, shape (B, O), and what the loss learns from, shape (B, …).

        Raises:
            SpaceMismatchError: They do not fit the policy's spaces, or do not tell the distribution that the loss needs.
        """
        actions, distributions = dataset.actions, dataset.distributions
        return shown_to(self.policy, dataset.observations, actions, lambda: self._loss.targets(actions, distributions))

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(self._flat.vector.data.cpu().numpy()).all():  # a twentieth of the time of torch's
            raise TrainingDivergedError(
                f"cloning diverged in epoch {self.epochs}: the policy's parameters are no longer finite; "
                f"lower --lr (now {self.config.lr})"
            )
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"cloning diverged in epoch {self.epochs}: the loss is {loss}, beyond float32; are actions of the "
                f"demonstrations far too large? Else lower --lr (now {self.config.lr})"
            )

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden layer sizes."""
        return self.policy.hidden_dims

    def predict(self, obs: Any, deterministic: bool = True) -> np.ndarray:
        """Choose the action for one raw observation, or for a batch of them; see `MLPPolicy.predict`.

        A student of continuous actions that was cloned by `mse`, `huber` or `l1` has learned no standard deviation, and always
        gives its one answer.
        """
        return self.policy.predict(obs, None if deterministic else self._sampling, self.log_std_array())

    def log_std_array(self) -> np.ndarray | None:
        """Return the log standard deviation of raw actions, shape (A,), or None where none was learned."""
        return None if self.log_std is None else self.log_std.detach().cpu().numpy()

    def action_distribution(self, observations: np.ndarray) -> np.ndarray | None:
        """Return the distribution of the action for rows of observations, as `DemoDataset.distributions` holds it."""
        return self.policy.distribution(observations, self.log_std_array())

    def save(self, path: str | Path) -> None:
        """Write the student as one `.pt` file; errors as in `PPOAgent.save`."""
        write_checkpoint(path, self.payload())

    def payload(self) -> dict[str, Any]:
        """Return what `save` writes, as copies: what acting needs, and while epochs are left what learning goes on from."""
        training = {"config": asdict(self.config), "seed": self.seed, "epochs": self.epochs}
        if self.config.patience is not None:
            training |= {"best_validation": self.best_validation, "epochs_since_best": self.epochs_since_best}
        if not self.finished:
            training["optimizer"] = copied(self.optimizer.state_dict())
            training["random"] = generator_state(self._order)
        return {
            "kind": KIND,
            "versions": package_versions(),
            "architecture": self.policy.architecture,
            "parameters": copied(self.policy.state_dict()),
            "log_std": None if self.log_std is None else self.log_std.detach().to("cpu", copy=True),
            "training": training,
            "run": {},
        }

    @classmethod
    def load(cls, path: str | Path, hidden_dims: Sequence[int] | None = None, *, device: str | torch.device = "cpu") -> BCAgent:
        """Read a student that `save` wrote; arguments and errors as in `PPOAgent.load`."""
        return cls.from_payload(read_checkpoint(path), path, hidden_dims, device=device)

    @classmethod
    def from_payload(
        cls,
        payload: dict[str, Any],
        path: str | Path,
        hidden_dims: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> BCAgent:
        """Build the agent from a checkpoint that was read already; `path` is for messages."""
        if payload.get("kind") != KIND:
            raise FileFormatError(f"{path} holds a {payload.get('kind')} agent, not a student; load it with PPOAgent.load")
        arguments = arguments_from(payload.get("architecture"), payload.get("parameters"))
        require_hidden_dims(hidden_dims, arguments["hidden_dims"], path)
        policy = MLPPolicy(**arguments).to(device)
        try:
            training = payload["training"]
            load_parameters(policy, payload["parameters"])
            config = BCConfig(**training["config"])
            require_counts(training, "seed", "epochs")
            agent = cls(policy, config, seed=training["seed"], device=device)
            if agent.log_std is not None:
                load_tensor(agent.log_std, payload["log_std"])
            agent.epochs = training["epochs"]
            if config.patience is not None:
                require_counts(training, "epochs_since_best")
                agent.best_validation, agent.epochs_since_best = (
                    float(training["best_validation"]),
                    training["epochs_since_best"],
                )
            if "optimizer" in training:
                agent.optimizer.load_state_dict(training["optimizer"])
                restore_generator(agent._order, training["random"])
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        return agent


def _require_sizes(dataset: DemoDataset) -> None:
    """Raise an error if the spaces that demonstrations name are not of their sizes, or none, before a policy is made."""
    for name, rows in (("observation_space", dataset.observations), ("action_space", dataset.actions)):
        plain = dataset.metadata[name]
        try:
            numbers = numbers_in(plain)
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"the demonstrations' {name} is damaged: {error}") from error
        if plain["kind"] not in ("Discrete", "MultiDiscrete") and numbers != rows[0].size:
            described = tuple(plain.get("shape", [numbers]))
            raise SpaceMismatchError(f"the demonstrations hold rows of shape {rows.shape[1:]}, their {name} has {described}")
