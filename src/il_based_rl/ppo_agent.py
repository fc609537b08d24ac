"""PPOAgent: proximal policy optimisation, from rollouts to a better policy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from il_based_rl.actor_critic_policy import ActorCriticPolicy, actor_critic_from
from il_based_rl.buffer import RolloutBatch, RolloutBuffer
from il_based_rl.config import GONE, PPOConfig, require_none_gone
from il_based_rl.envs import Envs, as_envs
from il_based_rl.errors import FileFormatError, TrainingDivergedError
from il_based_rl.files import package_versions, read_checkpoint, write_checkpoint
from il_based_rl.flat_parameters import FlatAdam, FlatParameters
from il_based_rl.functional import discounted_sums, explained_variance
from il_based_rl.fused_mlp import reason_against
from il_based_rl.networks import RewardScaler
from il_based_rl.policy import copied, load_parameters, require_counts, require_hidden_dims, require_spaces
from il_based_rl.ppo_updates import MEASURES, Anchor, FusedUpdate, ReferenceUpdate
from il_based_rl.rollout import FinishedEpisode, Rollouts, RolloutState, from_plain, to_plain
from il_based_rl.seeding import fresh_seed, generator, generator_state, restore_generator, start_seeds, torch_seed

KIND = "ppo"


@dataclass(frozen=True)
class Progress:
    """What one update brought."""

    env_steps: int
    """Environment steps so far, over all environments."""
    metrics: dict[str, float]
    """Losses and measures of this update, by name."""
    episodes: list[FinishedEpisode]
    """Episodes that ended during this rollout."""
    rollout_steps: int
    """Environment steps of this rollout."""

    def passes_multiple_of(self, interval: int) -> bool:
        """Whether this is the first update at or past a multiple of `interval` steps."""
        return self.env_steps // interval > (self.env_steps - self.rollout_steps) // interval

    @property
    def episode_means(self) -> dict[str, float]:
        """`episode_return` and `episode_length`: means of the episodes that ended; nothing where none did."""
        if not self.episodes:
            return {}
        count = len(self.episodes)
        return {
            "episode_return": sum(episode.total_reward for episode in self.episodes) / count,
            "episode_length": sum(episode.length for episode in self.episodes) / count,
        }


class PPOAgent:
    """Learns to act by PPO, with its optimiser, reward statistics and random streams.

    Args:
        policy: The actor-critic that learns; changed in place.
        config: Hyperparameters.
        seed: Of action noise, minibatch order and environments; None draws one.
        device: Where updates run. Acting always runs on the CPU.

    Example:
        agent = PPOAgent.for_spaces(env.observation_space, env.action_space, seed=0)
        for progress in agent.learn(InProcessEnvs("Pendulum-v1"), total_timesteps=100_000):
            print(progress.env_steps, progress.metrics["policy_loss"])
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        config: PPOConfig | None = None,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.policy = policy.to(device)
        self.config = config or PPOConfig()
        self.seed = fresh_seed() if seed is None else operator.index(seed)
        self.device = torch.device(device)
        self.flat = FlatParameters.of(policy)
        self.optimizer = FlatAdam(self.flat, lr=self.config.lr, eps=1e-5)
        self.anchor: Anchor | None = None
        """What the actor is drawn back to."""
        self.penalty: Callable[[], object] | None = None
        """Called for each minibatch once its gradient is written, to add that of a further loss to it."""
        self.reward_scaler = RewardScaler()
        self._remaining = 1.0
        """Share of the training that is left, which the schedule of the learning rate follows."""
        self.env_steps = 0
        self.gradient_steps = 0
        self.resume_level: str | None = None
        """After `learn` was called on a loaded agent: how much of its environments is back, see `envs.LEVELS`."""
        self._rollouts: Rollouts | None = None
        self._since: RolloutState | None = None
        self._random = {
            "action noise": generator(self.seed, "action noise"),
            "minibatch order": generator(self.seed, "minibatch order"),
            "sampled predictions": generator(self.seed, "action noise", 1),
        }

    @classmethod
    def for_spaces(
        cls,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: PPOConfig | None = None,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        seed: int | None = None,
        device: str | torch.device = "cpu",
        **shape: Any,
    ) -> PPOAgent:
        """Return an agent with a fresh policy for these spaces, its initial weights drawn from the seed.

        Args:
            observation_space: See `ActorCriticPolicy`.
            action_space: See `ActorCriticPolicy`.
            config: Hyperparameters.
            hidden_dims: See `ActorCriticPolicy`.
            seed: See `PPOAgent`.
            device: See `PPOAgent`.
            **shape: Further arguments of `ActorCriticPolicy`: `activation`, `initial_log_std`, `orthogonal_init`,
                `obs_clip`.
        """
        seed = fresh_seed() if seed is None else operator.index(seed)
        weights = torch.Generator().manual_seed(torch_seed(seed, "initial weights"))
        policy = ActorCriticPolicy(observation_space, action_space, hidden_dims, generator=weights, **shape)
        return cls(policy, config, seed=seed, device=device)

    def learn(self, envs: Envs | gym.vector.VectorEnv[Any, Any, Any], total_timesteps: int) -> Iterator[Progress]:
        """Train until `env_steps` reaches `total_timesteps`, rounded up to whole rollouts; yield after each update.

        The environments are reset at once, so that no two agents learn in the same ones by turns; those of a loaded agent are
        brought back to where they were, if that can be done.
        Every step of a vector environment counts, the fake ones that some insert after an episode too.
        Observation and reward statistics are frozen while a rollout is collected and learned from, and take it in afterwards
        (rewards: before it is scaled), so that the policy that acted is the one whose probabilities are compared.

        Raises:
            SpaceMismatchError: The environments are not of the policy's spaces.
            EnvironmentFaultError: An environment failed.
            TrainingDivergedError: The parameters are no longer finite.
        """
        envs, actor = as_envs(envs), self.policy.actor
        require_spaces(actor, envs.observation_space, envs.action_space, "the agent", "the environments")
        since, self._since = self._since, None
        if since is not None and len(since.envs) != envs.num_envs:
            since = None  # other environments than those that it learned in
        seeds = list(start_seeds(self.seed, "training environments", envs.num_envs, key=self.env_steps))
        self._rollouts = Rollouts(envs, actor.head, seeds, since)
        self.resume_level = None if since is None else self._rollouts.level
        return self._updates(self._rollouts, (self.config.n_steps, envs.num_envs), total_timesteps)

    def _updates(self, rollouts: Rollouts, shape: tuple[int, int], total_timesteps: int) -> Iterator[Progress]:
        """Play, judge, update: the loop of `learn`."""
        config, actor = self.config, self.policy.actor
        buffer = RolloutBuffer(*shape, actor.codec.size, actor.head.num_actions, actor.head.raw_dtype)
        while self.env_steps < total_timesteps:
            noise = actor.head.noise(self._random["action noise"], shape, self.policy.log_std_array())
            episodes = rollouts.fill(buffer, actor.as_numpy(), noise)
            true_rewards = np.where(buffer.valid, buffer.rewards, 0.0)
            sums, rollouts.discounted = discounted_sums(true_rewards, buffer.done, rollouts.discounted, config.gamma)
            if config.normalize_reward:
                self.reward_scaler.update(buffer.flat(sums))
            batch = self._batch(buffer, rollouts.features)
            self._remaining = 1.0 - self.env_steps / total_timesteps
            metrics = self.update(batch)
            if config.normalize_obs:
                actor.normalizer.update(buffer.flat(buffer.features))
            self.env_steps += buffer.rewards.size
            yield Progress(self.env_steps, metrics, episodes, rollout_steps=buffer.rewards.size)

    def _batch(self, buffer: RolloutBuffer, last_features: np.ndarray) -> RolloutBatch:
        """Judge a whole rollout at once, by the policy that acted."""
        config, rule = self.config, self._update_rule()
        steps, num_envs = buffer.rewards.shape
        joined = buffer.features.reshape(steps * num_envs, -1)
        following = np.concatenate([last_features, *(row[None] for row in buffer.final_features)])
        raw_actions = buffer.raw_actions.reshape(steps * num_envs, -1)
        normalized, log_probs, flat_values = rule.judge(joined, raw_actions)
        following_values = rule.values(following).astype(np.float64)
        values = flat_values.astype(np.float64).reshape(steps, num_envs)
        advantages = buffer.advantages(
            self.reward_scaler.scaled(buffer.rewards, config.reward_clip) if config.normalize_reward else buffer.rewards,
            values,
            final_values=following_values[num_envs:],
            last_values=following_values[:num_envs],
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        columns = [np.array(each) for each in (normalized, raw_actions, log_probs)]  # copies, as the buffer is used again
        columns += [each.ravel().astype(np.float32) for each in (advantages, advantages + values)]
        valid = buffer.valid.ravel()
        return RolloutBatch(*(columns if valid.all() else [column[valid] for column in columns]))

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        """Improve the policy on one rollout: some epochs of minibatches.

        Args:
            batch: The rollout, as the policy judged it that acted.

        Returns:
            Means over the minibatches of `policy_loss` (clipped surrogate), `value_loss` (the critic's mean squared error, in
            raw reward units squared), `entropy` and `approx_kl` (nats) and `clip_fraction`; and of the whole rollout
            `explained_variance` (of the critic before the update), `action_std` and `learning_rate`.

        Raises:
            TrainingDivergedError: The parameters are no longer finite.
        """
        config, rule = self.config, self._update_rule()
        self.optimizer.lr = config.lr * (self._remaining if config.lr_schedule == "linear" else 1.0)
        sums: Any = 0.0  # an array or a tensor of the measures, as the path has it
        minibatches, prepared = 0, rule.prepared(batch)
        for _ in range(config.n_epochs):
            for minibatch in prepared.minibatches(config.batch_size, self._random["minibatch order"]):
                measures = rule.differentiate(minibatch, config)
                if self.penalty is not None:
                    self.penalty()
                self.optimizer.step(config.max_grad_norm)
                sums = sums + measures
                minibatches += 1
        self.gradient_steps += minibatches
        self._require_finite()
        means = (sums / minibatches).tolist() if minibatches else [0.0] * len(MEASURES)
        metrics = dict(zip(MEASURES, means, strict=True))
        metrics["value_loss"] *= self.reward_scaler.scale**2 if config.normalize_reward else 1.0
        metrics["explained_variance"] = explained_variance(batch.returns - batch.advantages, batch.returns)
        if self.policy.log_std is not None:
            metrics["action_std"] = float(self.policy.log_std.detach().exp().mean())
        return metrics | {"learning_rate": self.optimizer.lr}

    def _update_rule(self) -> ReferenceUpdate | FusedUpdate:
        """Choose the fast path where it models this policy."""
        self.flat.require_intact()
        if self.reason_against_fast_path is None:
            return FusedUpdate(self.policy, self.anchor)
        return ReferenceUpdate(self.policy, self.flat, self.device, self.anchor)

    @property
    def reason_against_fast_path(self) -> str | None:
        """Why updates take the reference path, or None where they take the fast one."""
        return reason_against(self.policy, self.device) if self.config.fast_path else "it is turned off"

    def _require_finite(self) -> None:
        learned = [*self.policy.state_dict().values(), *self.reward_scaler.state_dict().values()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in learned):
            raise TrainingDivergedError(
                f"training diverged after {self.env_steps} steps: parameters or statistics are no longer finite; "
                f"lower --lr (now {self.config.lr}), or look at the size of the environment's rewards and observations"
            )

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden layer sizes."""
        return self.policy.actor.hidden_dims

    def predict(self, obs: Any, deterministic: bool = True) -> np.ndarray:
        """Choose the action for one raw observation, or for a batch of them; see `MLPPolicy.predict`."""
        if deterministic:
            return self.policy.actor.predict(obs)
        return self.policy.actor.predict(obs, self._random["sampled predictions"], self.policy.log_std_array())

    def action_distribution(self, observations: np.ndarray) -> np.ndarray | None:
        """Return the distribution of the action for rows of observations, as `DemoDataset.distributions` holds it."""
        return self.policy.actor.distribution(observations, self.policy.log_std_array())

    def save(self, path: str | Path, *, weights_only: bool = False) -> None:
        """Write everything that learning goes on from as one `.pt` file; parent folders are made.

        Args:
            path: The file.
            weights_only: Leave out what acting does not need, two thirds of the file: the optimiser's moments and where the
                environments are. Whoever learns on from it begins with fresh ones.

        Raises:
            FileWriteError: The file cannot be written; an older one is as it was.
        """
        payload = self.payload()
        if weights_only:
            payload["training"] |= {"optimizer": None, "environments": None}
        write_checkpoint(path, payload)

    def payload(self) -> dict[str, Any]:
        """Return what `save` writes: copies, so that it stays what it is while learning goes on."""
        environments = self._where()
        return {
            "kind": KIND,
            "versions": package_versions(),
            "architecture": self.policy.actor.architecture,
            "parameters": copied(self.policy.state_dict()),
            "training": {
                "config": asdict(self.config),
                "seed": self.seed,
                "env_steps": self.env_steps,
                "gradient_steps": self.gradient_steps,
                "optimizer": copied(self.optimizer.state_dict()) if self.optimizer.begun else None,
                "reward_scaler": copied(self.reward_scaler.state_dict()),
                "random": {name: generator_state(random) for name, random in self._random.items()},
                "environments": None if environments is None else to_plain(environments),
            },
            "run": {},
        }

    def _where(self) -> RolloutState | None:
        """Return where the environments are, as far as it is known."""
        return self._since if self._rollouts is None else self._rollouts.state()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the environments themselves, so that a copy and a pickle go on as a loaded agent does."""
        return self.__dict__ | {"_rollouts": None, "_since": self._where()}

    @classmethod
    def load(
        cls, path: str | Path, hidden_dims: Sequence[int] | None = None, *, device: str | torch.device = "cpu"
    ) -> PPOAgent:
        """Read an agent that `save` wrote; nothing in the file is executed.

        Args:
            path: The checkpoint.
            hidden_dims: May be left out, as the file knows its own.
            device: Where updates run.

        Raises:
            FileMissingError: There is no such file.
            FileFormatError: It is damaged, foreign, of another version, or no expert's.
            ArchitectureMismatchError: `hidden_dims` contradict the file.
        """
        return cls.from_payload(read_checkpoint(path), path, hidden_dims, device=device)

    @classmethod
    def from_payload(
        cls,
        payload: dict[str, Any],
        path: str | Path,
        hidden_dims: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> PPOAgent:
        """Build the agent from a checkpoint that was read already; `path` is for messages."""
        if payload.get("kind") != KIND:
            raise FileFormatError(f"{path} holds a {payload.get('kind')} agent, not a PPO expert; load it with BCAgent.load")
        policy = actor_critic_from(payload.get("architecture"), payload.get("parameters")).to(device)
        require_hidden_dims(hidden_dims, policy.actor.hidden_dims, path)
        training: Any = payload.get("training")
        require_none_gone(training.get("config") if isinstance(training, dict) else None, path)
        try:
            load_parameters(policy, payload["parameters"])
            config = PPOConfig(**{name: value for name, value in training["config"].items() if name not in GONE})
            require_counts(training, "seed", "env_steps", "gradient_steps")
            agent = cls(policy, config, seed=training["seed"], device=device)
            if training["optimizer"] is not None:
                agent.optimizer.load_state_dict(training["optimizer"])
            load_parameters(agent.reward_scaler, training["reward_scaler"])
            agent.env_steps, agent.gradient_steps = training["env_steps"], training["gradient_steps"]
            for name, random in agent._random.items():
                restore_generator(random, training["random"][name])
            if training["environments"] is not None:
                agent._since = from_plain(training["environments"], policy.actor)
        except Exception as error:  # what a foreign file holds may be wrong in any way
            raise FileFormatError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        return agent
