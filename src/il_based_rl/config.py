"""Every command's settings, as frozen dataclasses that are valid once they exist.

The command lines, their help texts and the README's flag tables are generated from these classes. Nothing heavy is
imported, so that `--help` is instant.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from il_based_rl.errors import ConfigError, FileFormatError

Settings = TypeVar("Settings")
Activation = Literal["tanh", "relu"]
Bounds = Literal["auto", "strict", "any"]

MAX_WIDTH = 65_536
"""Widest hidden layer; a typing error beyond it would ask for more memory than there is."""
MAX_LAYERS = 100
"""Most hidden layers, for the same reason."""
MAX_EPISODES = 10**6
"""Most episodes of a collection or an evaluation; their start seeds are numbers below 2**27, each used once."""
MAX_ROLLOUT = 2**27
"""Most steps of one rollout, for the reason of a layer's width."""
MAX_SECONDS = 10**9
"""Longest time limit, 31 years; a clock that is set further ahead may not ring."""


_MOST = 3.4e38
"""What float32 holds, in which it is computed."""


def _is_finite(value: float) -> bool:
    return abs(value) <= _MOST  # a whole number may be too large to be asked otherwise


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, got {value}")


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value > 0 and _is_finite(value), name, value, "above 0 and finite")


def _require_widths(hidden_dims: tuple[int, ...] | None) -> None:
    layers = len(hidden_dims or ())
    _require(layers <= MAX_LAYERS, "hidden_dims", f"{layers} sizes", f"at most {MAX_LAYERS} sizes")
    for width in hidden_dims or ():
        expected = f"whole numbers above 0 and at most {MAX_WIDTH}"
        _require(0 < width <= MAX_WIDTH, "hidden_dims", " ".join(map(str, hidden_dims or ())), expected)


def _require_file(name: str, path: str) -> None:
    _require(Path(path).name != "" and not path.endswith(("/", os.sep)), name, repr(path), "the path of a file")


def _require_types(settings: object) -> None:
    """Take NumPy's numbers, enumerations, lists, paths and devices for what a file can hold; then require each one's type.

    The command line takes care of that itself; Python and files do not.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = _plain(getattr(settings, name))
        object.__setattr__(settings, name, value)
        if not _is_of(value, kind):
            raise ConfigError(f"--{name.replace('_', '-')} must be {_described(kind)}, not {value!r:.50}")


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return tuple(map(_plain, value))
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, where it is of a kind that an enumeration has made
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if repr(type(value)) == "<class 'torch.device'>" else value  # torch is not imported here


def _described(kind: Any) -> str:
    """Return what is expected, in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each of it {_described(get_args(kind)[0])}"
    return " or ".join(map(_described, get_args(kind))) or words.get(kind, f"a {getattr(kind, '__name__', kind)}")


GONE = {
    "clip_schedule": "constant",
    "value_clip_range": None,
    "recompute_advantages": False,
    "critic_hidden_dims": None,
    "target_kl": None,
}
"""Settings that files of before may name, as they brought nothing (docs/returns.md); each with what is left of it."""


def require_none_gone(settings: Any, path: object) -> None:
    """Raise FileFormatError if what a file was trained with, a setting that is gone, did something."""
    for name, left in GONE.items():
        if isinstance(settings, Mapping) and repr(found := settings.get(name, left)) != repr(left):
            raise FileFormatError(
                f"{path} was trained with {name} {found!r:.50}, which is gone; install the version of il_based_rl that wrote it"
            )


def from_plain(kind: type[Settings], plain: Mapping[str, Any]) -> Settings:
    """Build settings again from what `dataclasses.asdict` made of them; a file may hold anything in their place.

    Raises:
        FileFormatError: It names a setting that is gone, and that did something.
        ConfigError, KeyError, TypeError, AttributeError: It is none of this kind's.
    """
    kinds, values = get_type_hints(kind), dict(plain)
    require_none_gone(values, "the run")
    values = {name: value for name, value in values.items() if name not in GONE}
    for name, value in values.items():
        if is_dataclass(kinds[name]):
            values[name] = from_plain(kinds[name], value)
    return kind(**values)


def _is_of(value: object, kind: Any) -> bool:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        return type(value) is tuple and all(_is_of(part, parts[0]) for part in value)
    if parts:  # one of several
        return any(_is_of(value, part) for part in parts)
    if is_dataclass(kind) and isinstance(kind, type):
        return isinstance(value, kind)
    return type(value) is kind or (kind is float and type(value) is int)


def _require_time(max_time: float | None) -> None:
    expected = f"above 0 and at most {MAX_SECONDS}"
    _require(max_time is None or 0 < max_time <= MAX_SECONDS, "max_time", max_time, expected)


def _require_episodes(settings: object, *names: str, least: int = 2) -> None:
    expected = "above 0" if least == 1 else "at least 2, as one episode says nothing about a spread"
    for name in names:
        value = getattr(settings, name)
        _require(value >= least, name, value, expected)
        _require(value <= MAX_EPISODES, name, value, f"at most {MAX_EPISODES}")


def _require_threshold(success_threshold: float | None) -> None:
    finite = success_threshold is None or _is_finite(success_threshold)
    _require(finite, "success_threshold", success_threshold, "a finite number")


def _require_seed(seed: int | None) -> None:
    _require(seed is None or seed >= 0, "seed", seed, "0 or more")


@dataclass(frozen=True)
class TrackingConfig:
    """Who else is told about every row, the same flags in every training command."""

    tensorboard: bool = False
    """Write TensorBoard's files, into the run's folder, as well."""
    wandb: bool = False
    """Log to Weights & Biases; without an account or a network the run is kept offline."""
    wandb_project: str = "il-based-rl"
    """Project in Weights & Biases."""
    wandb_run_name: str | None = None
    """Run name in Weights & Biases; None stands for run_YYYYMMDD_HHMM_<env>_<steps>."""

    def __post_init__(self) -> None:
        _require_types(self)


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347)."""

    lr: float = 3e-4
    """Learning rate of Adam."""
    gamma: float = 0.99
    """Discount factor per step."""
    gae_lambda: float = 0.95
    """Mixing weight of generalised advantage estimation: 0 one-step errors, 1 Monte Carlo."""
    clip_range: float = 0.2
    """PPO clip range: half-width of the trust interval around a probability ratio of 1."""
    n_steps: int = 2048
    """Rollout length per update, in steps of each environment."""
    n_epochs: int = 10
    """PPO epochs per update."""
    batch_size: int = 64
    """Minibatch size."""
    entropy_coef: float = 0.0
    """Entropy bonus coefficient."""
    value_coef: float = 0.5
    """Weight of the critic's mean squared error in the loss."""
    max_grad_norm: float = 0.5
    """Largest norm of a minibatch's gradient; longer ones are scaled down to it."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """Whether the learning rate stays, or falls linearly towards 0, update by update."""
    normalize_obs: bool = True
    """Standardise observations by running statistics that are saved with the policy."""
    normalize_reward: bool = True
    """Train on rewards divided by the running standard deviation of the discounted return."""
    reward_clip: float = 10.0
    """Largest magnitude of a reward that was so divided."""
    fast_path: bool = True
    """Compute updates by hand where that models the policy (float32 perceptrons on a CPU), else and when off by autograd."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "lr", "clip_range", "n_steps", "n_epochs", "max_grad_norm", "reward_clip")
        _require(0.0 <= self.gamma <= 1.0, "gamma", self.gamma, "between 0 and 1")
        _require(0.0 <= self.gae_lambda <= 1.0, "gae_lambda", self.gae_lambda, "between 0 and 1")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, as advantages are normalised over it")
        for name in ("entropy_coef", "value_coef"):
            value = getattr(self, name)
            _require(value >= 0.0 and _is_finite(value), name, value, "0 or more")


def _require_rollout(ppo: PPOConfig, num_envs: int) -> None:
    rollout = ppo.n_steps * num_envs
    if rollout > MAX_ROLLOUT:
        raise ConfigError(
            f"a rollout of {rollout} steps (--n-steps {ppo.n_steps} times --num-envs {num_envs}) "
            f"does not fit into memory; at most {MAX_ROLLOUT} do"
        )
    if ppo.batch_size > rollout:
        raise ConfigError(
            f"--batch-size {ppo.batch_size} is larger than a rollout of {rollout} steps "
            f"(--n-steps {ppo.n_steps} times --num-envs {num_envs}); lower the first or raise the others"
        )


@dataclass(frozen=True)
class TrainPPOConfig:
    """Settings of `il-rl train-ppo`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID, with continuous or discrete actions."""
    total_timesteps: int = 200_000
    """Environment steps in all, rounded up to whole rollouts."""
    num_envs: int = 1
    """Environments stepped side by side; a rollout has n-steps of each."""
    hidden_dims: tuple[int, ...] = (64, 64)
    """Hidden layer sizes of the actor, and of the critic; without any both are linear."""
    activation: Activation = "tanh"
    """Between the layers."""
    initial_log_std: float = 0.0
    """Where the logarithm of the standard deviation of continuous actions starts: 0 is half the action's range."""
    orthogonal_init: bool = True
    """Begin with orthogonal weights, the actor's last ones near 0; when off, with uniform ones, as PyTorch's layers do."""
    obs_clip: float = 10.0
    """Largest magnitude of a standardised observation; kept with the policy."""
    seed: int | None = None
    """Random seed; None draws one and writes it down."""
    save_path: str = "checkpoints/ppo_agent.pt"
    """Where the checkpoint goes; the run's other files lie in the folder of that name without the suffix."""
    resume: str | None = None
    """Go on with a run: bare from the latest checkpoint of this save path, with a PATH from that file."""
    eval_interval: int = 10_000
    """Evaluate and save a checkpoint at the first update at or past each multiple of this many steps."""
    eval_episodes: int = 10
    """Episodes of each evaluation, always from the same start states."""
    max_time: float | None = None
    """Seconds after which the run is saved and ended, to be resumed; None sets no limit."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """Step the environments in this process (sync), in worker processes (async), or as their cost suggests (auto)."""
    env_backend: Literal["gymnasium", "envpool"] = "gymnasium"
    """Whose environments to train in; evaluation is always in Gymnasium's."""
    env_timeout: float = 20.0
    """Seconds that a worker process may take for one step of its environments before it is taken for dead."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error (strict) or taken as it is (any); auto is strict, but for
    Gymnasium's LunarLander and BipedalWalker, which leave theirs."""
    device: str = "cpu"
    """Where the updates run: cpu, cuda, or cuda:1 and so on."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    preset: bool = False
    """Take the settings that are kept for the environment, see `il-rl presets`; flags given beside it win. From Python
    `presets.with_preset` does it."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "total_timesteps", "num_envs", "obs_clip", "eval_interval", "env_timeout")
        _require_episodes(self, "eval_episodes", least=1)
        _require_time(self.max_time)
        _require_widths(self.hidden_dims)
        _require(-20.0 <= self.initial_log_std <= 2.0, "initial_log_std", self.initial_log_std, "between -20 and 2")
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require_rollout(self.ppo, self.num_envs)


@dataclass(frozen=True)
class CollectConfig:
    """Settings of `il-rl collect`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    checkpoint: str = "checkpoints/ppo_agent.pt"
    """The expert: a checkpoint of train-ppo or of train."""
    num_episodes: int = 50
    """Whole episodes to keep."""
    seed: int = 0
    """Random seed; every episode starts from a state of its own."""
    save_path: str = "demos/ppo_expert_demos.npz"
    """Where the demonstrations go."""
    deterministic: bool = True
    """Whether the expert takes its most likely action, or samples."""
    action_noise: float = 0.0
    """Disturb what is executed, and keep the undisturbed action to imitate: standard deviation in units of half the action's
    range, or for discrete actions the probability of a random one."""
    min_return: float | None = None
    """Keep only episodes whose return is at least this."""
    max_attempts: int | None = None
    """With min-return: episodes to play before giving up; None allows ten for each one wanted."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error, see `il-rl train-ppo`."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""

    def __post_init__(self) -> None:
        _require_types(self)
        check_collection(self.num_episodes, self.min_return, self.max_attempts, self.action_noise)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        if os.path.realpath(self.save_path) == os.path.realpath(self.checkpoint):
            raise ConfigError(f"--save-path {self.save_path} is the checkpoint that is read; choose another")


def _require_noise(action_noise: float) -> None:
    _require(action_noise >= 0.0 and _is_finite(action_noise), "action_noise", action_noise, "0 or more")


def check_collection(num_episodes: int, min_return: float | None, max_attempts: int | None, action_noise: float) -> None:
    """Raise ConfigError unless these settings of a collection fit together."""
    _require_noise(action_noise)
    _require(0 < num_episodes <= MAX_EPISODES, "num_episodes", num_episodes, f"above 0 and at most {MAX_EPISODES}")
    _require(min_return is None or not math.isnan(min_return), "min_return", min_return, "a number")
    if max_attempts is not None:
        _require(max_attempts >= num_episodes, "max_attempts", max_attempts, f"at least --num-episodes {num_episodes}")


@dataclass(frozen=True)
class BCConfig:
    """Hyperparameters of behavioural cloning."""

    epochs: int = 100
    """Passes over the training episodes."""
    batch_size: int = 64
    """Minibatch size."""
    lr: float = 1e-3
    """Learning rate of Adam at the start; it falls linearly towards 0, epoch by epoch."""
    loss: Literal["auto", "mse", "huber", "l1", "nll", "bounded-nll", "cross-entropy", "kl"] = "auto"
    """What is made small; auto is mse for continuous and cross-entropy for discrete actions (see docs/cloning.md)."""
    l2_coef: float = 0.0
    """Weight of half the sum of squared network parameters, added to the loss."""
    entropy_coef: float = 0.0
    """Weight of the student's entropy, subtracted from the loss, for losses of a distribution."""
    validation_fraction: float = 0.1
    """Share of the episodes held out to report the validation loss; a data set of one episode is trained on whole."""
    patience: int | None = None
    """Stop after so many epochs in a row without a lower validation loss; None goes through all epochs."""
    fast_path: bool = True
    """Compute updates by hand where that models the policy (float32 perceptrons on a CPU), else and when off by autograd."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "epochs", "batch_size", "lr")
        fraction = self.validation_fraction
        _require(0.0 <= fraction < 1.0, "validation_fraction", fraction, "at least 0 and below 1")
        for name in ("l2_coef", "entropy_coef"):
            value = getattr(self, name)
            _require(value >= 0.0 and _is_finite(value), name, value, "0 or more")
        if self.patience is not None:
            _require_positive(self, "patience")
            _require(fraction > 0.0, "patience", self.patience, "left out where --validation-fraction is 0")


def _bc_of_a_round() -> BCConfig:
    return BCConfig(epochs=30)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `il-rl train`."""

    demo_path: str = "demos/ppo_expert_demos.npz"
    """Demonstrations to clone."""
    max_demos: int | None = None
    """Use the first so many episodes of them; None uses all."""
    eval_env_id: str | None = None
    """Gymnasium environment ID in which the student plays from time to time; its best policy is then kept as best.pt."""
    eval_interval: int = 10
    """Epochs from one such evaluation to the next."""
    eval_episodes: int = 20
    """Episodes of each, always from the same start states."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layer sizes of the student."""
    save_path: str = "checkpoints/bc_student.pt"
    """Where the student goes; the run's other files lie in the folder of that name without the suffix."""
    seed: int | None = None
    """Random seed; None draws one and writes it down."""
    resume: str | None = None
    """Go on with a run: bare from the latest checkpoint of this save path, with a PATH from that file."""
    max_time: float | None = None
    """Seconds after which the run is saved and ended, to be resumed; None sets no limit."""
    device: str = "cpu"
    """Where training runs: cpu, cuda, or cuda:1 and so on."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    bc: BCConfig = field(default_factory=BCConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "eval_interval")
        _require_episodes(self, "eval_episodes", least=1)
        if self.max_demos is not None:
            _require_positive(self, "max_demos")
        _require_widths(self.hidden_dims)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require_time(self.max_time)
        if os.path.realpath(self.save_path) == os.path.realpath(self.demo_path):
            raise ConfigError(f"--save-path {self.save_path} is the file of demonstrations that is read; choose another")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `il-rl evaluate`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    checkpoint: str = "checkpoints/bc_student.pt"
    """The policy: a checkpoint of train or of train-ppo."""
    hidden_dims: tuple[int, ...] | None = None
    """Hidden layer sizes that the file must have; None takes the file's."""
    num_episodes: int = 20
    """Episodes, each from a start state of its own."""
    seed: int = 0
    """Picks the start states; the same seed gives every policy the same ones, and none that training or collection used."""
    deterministic: bool = True
    """Whether the policy takes its most likely action, or samples."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_episodes(self, "num_episodes", least=1)
        _require_widths(self.hidden_dims)
        _require_seed(self.seed)


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `il-rl compare`."""

    policies: tuple[str, ...] = ("expert=checkpoints/ppo_agent.pt", "student=checkpoints/bc_student.pt")
    """Checkpoints as NAME=PATH or PATH, the one that the others are measured against first; several of one name are training
    runs of one policy. A random policy is added."""
    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    num_episodes: int = 100
    """Start states, the same ones for every policy."""
    seed: int = 0
    """Picks the start states, as in evaluate."""
    deterministic: bool = True
    """Whether the policies take their most likely actions, or sample."""
    success_threshold: float | None = None
    """Return from which an episode counts as a success; None asks the environment."""
    save_path: str = "comparison.json"
    """Where the numbers go; the table goes beside it, with the suffix .md."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_episodes(self, "num_episodes")
        _require(len(self.policies) > 0, "policies", self.policies, "at least one checkpoint")
        _require_threshold(self.success_threshold)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require(Path(self.save_path).suffix == ".json", "save_path", self.save_path, "a path that ends in .json")


@dataclass(frozen=True)
class GuardConfig:
    """Guard rails of fine-tuning; docs/improve.md says what each of them prevents."""

    fresh_critic: bool = True
    """Start with a new critic; an expert's own may be kept."""
    warmup_variance: float = 0.5
    """Explained variance of returns from which the critic is good enough for the actor to move."""
    warmup_rollouts: int = 3
    """Rollouts of the still actor after which it moves in any case; 0 lets it move at once."""
    actor_lr: float = 3e-4
    """Learning rate of the actor, while --lr is the critic's."""
    actor_rampup: int = 3
    """Updates over which the actor's learning rate rises to that."""
    action_std: float | None = None
    """Standard deviation of continuous actions at the start, in units of half their range; None tries which is the largest,
    from 1 to 0.2, that leaves the clone 60% of what it is above a random policy."""
    min_action_std: float = 0.05
    """Least standard deviation."""
    max_action_std: float = 1.0
    """Largest standard deviation."""
    kl_coef: float = 0.005
    """Weight of the divergence from the clone on the states that are visited."""
    kl_decay: float = 0.95
    """What that weight is multiplied by after each update."""
    bc_coef: float = 0.01
    """Weight of the demonstrations' negative log-likelihood, where there are any."""
    bc_decay: float = 0.95
    """What that weight is multiplied by after each update."""
    gate: bool = True
    """Go back to the best actor, with half the rate and twice the divergence's weight, from one that is clearly worse; the
    critic stays, and warms up again."""
    gate_patience: int = 5
    """Evaluations in a row that must be clearly below the clone's for that; what is saved is the best policy all the time."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "actor_lr", "min_action_std", "max_action_std")
        low, high = self.min_action_std, self.max_action_std
        _require(low <= high, "min_action_std", low, f"at most --max-action-std {high}")
        if self.action_std is not None:
            _require_positive(self, "action_std")
            _require(low <= self.action_std <= high, "action_std", self.action_std, f"between {low} and {high}")
        _require_positive(self, "gate_patience")
        for name in ("warmup_rollouts", "actor_rampup", "kl_coef", "bc_coef"):
            value = getattr(self, name)
            _require(value >= 0 and _is_finite(value), name, value, "0 or more")
        for name in ("kl_decay", "bc_decay"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "between 0 and 1")
        _require(self.warmup_variance <= 1.0, "warmup_variance", self.warmup_variance, "at most 1")


def _ppo_of_a_clone() -> PPOConfig:
    return PPOConfig(lr=1e-3, gamma=0.995, gae_lambda=0.97, lr_schedule="linear", normalize_obs=False)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `il-rl finetune`."""

    checkpoint: str = "checkpoints/bc_student.pt"
    """The policy to improve: a checkpoint of train or of train-ppo."""
    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    total_timesteps: int = 200_000
    """Environment steps in all, rounded up to whole rollouts."""
    demo_path: str | None = None
    """Demonstrations whose likelihood is kept up at first."""
    num_envs: int = 1
    """Environments stepped side by side; a rollout has n-steps of each."""
    seed: int | None = None
    """Random seed; None draws one and writes it down."""
    save_path: str = "checkpoints/finetuned.pt"
    """Where the best policy goes; the run's other files lie in the folder of that name without the suffix."""
    resume: str | None = None
    """Go on with a run: bare from the latest checkpoint of this save path, with a PATH from that file."""
    eval_interval: int = 10_000
    """Compare with the clone at the first update at or past each multiple of this many steps, and at the last one."""
    eval_episodes: int = 40
    """Episodes of each evaluation, always from the same start states."""
    final_episodes: int = 100
    """Start states, never seen before, on which the best policy must not be clearly below the clone."""
    max_time: float | None = None
    """Seconds after which the run is saved and ended, to be resumed; None sets no limit."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """Step the environments in this process (sync), in worker processes (async), or as their cost suggests (auto)."""
    env_timeout: float = 20.0
    """Seconds that a worker process may take for one step of its environments before it is taken for dead."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error (strict) or taken as it is (any); auto is strict, but for
    Gymnasium's LunarLander and BipedalWalker, which leave theirs."""
    device: str = "cpu"
    """Where the updates run: cpu, cuda, or cuda:1 and so on."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    ppo: PPOConfig = field(default_factory=_ppo_of_a_clone)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "total_timesteps", "num_envs", "eval_interval", "env_timeout")
        _require_episodes(self, "eval_episodes", "final_episodes")
        _require_time(self.max_time)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require_rollout(self.ppo, self.num_envs)
        if os.path.realpath(self.save_path) in map(os.path.realpath, filter(None, (self.checkpoint, self.demo_path))):
            raise ConfigError(f"--save-path {self.save_path} is a file that is read; choose another")


@dataclass(frozen=True)
class DaggerConfig:
    """Settings of `il-rl dagger`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    expert: str = "checkpoints/ppo_agent.pt"
    """Who is asked what to do: a checkpoint of train-ppo, finetune or train."""
    demo_path: str | None = None
    """Demonstrations to begin with; None lets the expert act alone in the first round."""
    save_path: str = "checkpoints/dagger_student.pt"
    """Where the best student goes; the run's other files, all demonstrations among them, lie in the folder of that name without
    the suffix."""
    rounds: int = 10
    """Rounds of playing and cloning; the first one is the demonstrations', where they are given."""
    round_steps: int = 2_000
    """Steps of each round, each with one question to the expert."""
    expert_share: float = 0.0
    """Share of the steps in which the expert acts itself in the second round; in the first it acts alone."""
    expert_decay: float = 0.5
    """What that share is multiplied by after each further round."""
    query_budget: int | None = None
    """Questions to the expert in all, the demonstrations at the beginning included; None sets no limit."""
    memory: int | None = None
    """Transitions to clone from; of more, whole episodes are left out at random, those of the last round excepted."""
    warm_start: bool = True
    """Clone on from the last round's student; else from a new one."""
    stop_at: float | None = None
    """End once an evaluation gives this share of what the expert is above a random policy; None goes through all rounds."""
    eval_episodes: int = 20
    """Episodes of the evaluation after each round, always from the same start states."""
    final_episodes: int = 100
    """Start states, never seen before, from which the best student is compared with the expert at the end."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layer sizes of the student."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error in the rounds, see `il-rl train-ppo`."""
    seed: int | None = None
    """Random seed; None draws one and writes it down."""
    resume: str | None = None
    """Go on with a run: bare from the latest checkpoint of this save path, with a PATH from that file."""
    max_time: float | None = None
    """Seconds after which the run is saved and ended, to be resumed; None sets no limit."""
    device: str = "cpu"
    """Where cloning runs: cpu, cuda, or cuda:1 and so on."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    bc: BCConfig = field(default_factory=_bc_of_a_round)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "rounds", "round_steps")
        _require_episodes(self, "eval_episodes", "final_episodes")
        for name in ("query_budget", "memory"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        for name in ("expert_share", "expert_decay"):
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "between 0 and 1")
        finite = self.stop_at is None or _is_finite(self.stop_at)
        _require(finite, "stop_at", self.stop_at, "a finite number")
        _require_widths(self.hidden_dims)
        _require_time(self.max_time)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        if os.path.realpath(self.save_path) in map(os.path.realpath, filter(None, (self.expert, self.demo_path))):
            raise ConfigError(f"--save-path {self.save_path} is a file that is read; choose another")


@dataclass(frozen=True)
class DemosNeededConfig:
    """Settings of `il-rl demos-needed`."""

    demo_path: str = "demos/ppo_expert_demos.npz"
    """Demonstrations to draw from."""
    env_id: str | None = None
    """Gymnasium environment ID in which students play; None takes that of the demonstrations."""
    counts: tuple[int, ...] = ()
    """Numbers of demonstrations to clone from; none stands for 1, 2, 4 and so on, and all."""
    num_seeds: int = 5
    """Students of each number, each from episodes of its own."""
    eval_episodes: int = 50
    """Episodes that each student plays, all from the same start states."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layer sizes of the students."""
    seed: int = 0
    """Random seed of the draws, the students and the start states."""
    save_path: str = "demos_needed.json"
    """Where the numbers go; the figure goes beside them, with the suffix .svg."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    bc: BCConfig = field(default_factory=BCConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "num_seeds")
        _require(all(count > 0 for count in self.counts), "counts", " ".join(map(str, self.counts)), "whole numbers above 0")
        _require_episodes(self, "eval_episodes")
        _require_widths(self.hidden_dims)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require(Path(self.save_path).suffix == ".json", "save_path", self.save_path, "a path that ends in .json")


@dataclass(frozen=True)
class TuneConfig:
    """Settings of `il-rl tune`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    trials: int = 50
    """Settings to try in all, those of a search that is gone on with included."""
    total_timesteps: int = 100_000
    """Environment steps of each trial; what is best for so many need not be for ten times as many."""
    eval_episodes: int = 20
    """Episodes by which a trial is judged, from the same start states for all."""
    confirm_seeds: int = 3
    """Seeds that the search never saw, on which the best settings and the defaults are trained in the end; 0 for none."""
    seed: int = 0
    """Random seed of the search."""
    save_path: str = "tuning/search.db"
    """The search's SQLite file; one that is there is gone on with."""
    workers: int | None = None
    """Trials side by side, in processes of their own; None runs as many as there are cores. One alone gives the same search
    every time."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error, see `il-rl train-ppo`."""
    quiet: bool = False
    """Print no line for each trial."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "trials", "total_timesteps")
        _require_episodes(self, "eval_episodes")
        _require(self.confirm_seeds >= 0, "confirm_seeds", self.confirm_seeds, "0 or more")
        _require(self.workers is None or self.workers > 0, "workers", self.workers, "above 0")
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of `il-rl pipeline`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    ppo_timesteps: int = 200_000
    """Environment steps that the expert trains for."""
    num_demo_episodes: int = 50
    """Episodes that the expert demonstrates."""
    bc_epochs: int = 100
    """Epochs that the student is cloned for."""
    dagger: int = 0
    """Rounds in which the expert is then asked what to do where the student goes; 0 leaves that out."""
    finetune: int = 0
    """Environment steps that the last student is then fine-tuned for; 0 leaves that out."""
    action_noise: float = 0.0
    """Disturb what is executed in the demonstrations, see `il-rl collect`."""
    num_eval_episodes: int = 100
    """Episodes that each policy of the closing table plays, all from the same start states."""
    seed: int = 42
    """Random seed of all stages."""
    output_dir: str = "."
    """Folder under which checkpoints/, demos/ and report.html are written."""
    bounds: Bounds = "auto"
    """Whether an observation outside its space's bounds is an error, see `il-rl train-ppo`."""
    video: bool = True
    """Whether to film expert and student for the report, where that can be done."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""
    preset: bool = False
    """Train the expert by the settings that are kept for the environment, see `il-rl presets`; flags given beside it win (from
    Python, `ppo_timesteps` does)."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "ppo_timesteps", "bc_epochs")
        _require_episodes(self, "num_demo_episodes", least=1)
        _require_noise(self.action_noise)
        for name in ("dagger", "finetune"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require_episodes(self, "num_eval_episodes")
        _require_seed(self.seed)


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `il-rl report`."""

    folder: Positional[str] = "."
    """Folder with runs below it, such as a pipeline's output-dir; the page goes there, as report.html and report.json."""
    expert: str | None = None
    """The expert's save path; None takes the one whose actions the students' demonstrations show, or else the newest."""
    env_id: str | None = None
    """Gymnasium environment ID; None takes the expert's, unless code would have to be imported for it."""
    num_episodes: int = 100
    """Start states that the policies are compared from."""
    seed: int = 0
    """Picks them."""
    success_threshold: float | None = None
    """Return from which an episode counts as a success; None asks the environment."""
    video: bool = True
    """Whether to film expert and student, where that can be done."""
    quiet: bool = False
    """Show no progress: neither bars nor lines."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_episodes(self, "num_episodes")
        _require_threshold(self.success_threshold)
        _require_seed(self.seed)


@dataclass(frozen=True)
class VideoConfig:
    """Settings of `il-rl video`."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment ID."""
    checkpoint: str = "checkpoints/bc_student.pt"
    """The policy: a checkpoint of train or of train-ppo."""
    num_episodes: int = 1
    """Episodes, one after the other."""
    max_frames: int = 2_000
    """Where the film ends at the latest."""
    seed: int = 0
    """Picks the start states, as in evaluate."""
    deterministic: bool = True
    """Whether the policy takes its most likely action, or samples."""
    save_path: str = "video.mp4"
    """Where the film goes."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_positive(self, "max_frames")
        _require_episodes(self, "num_episodes", least=1)
        _require_seed(self.seed)
        _require_file("save_path", self.save_path)
        _require(Path(self.save_path).suffix == ".mp4", "save_path", self.save_path, "a path that ends in .mp4")


@dataclass(frozen=True)
class PresetsConfig:
    """Settings of `il-rl presets`."""

    env_id: Positional[str | None] = None
    """Gymnasium environment ID; None lists all."""

    def __post_init__(self) -> None:
        _require_types(self)


@dataclass(frozen=True)
class RunsConfig:
    """Settings of `il-rl runs`."""

    folder: Positional[str] = "."
    """Folder to look in, and below."""

    def __post_init__(self) -> None:
        _require_types(self)


@dataclass(frozen=True)
class PlotConfig:
    """Settings of `il-rl plot`."""

    runs: Positional[tuple[str, ...]] = ("checkpoints/ppo_agent.pt",)
    """Save paths of runs, or their folders."""
    metric: str = "eval_reward"
    """What is drawn: a name in metrics.jsonl."""
    save_path: str = "curves.png"
    """Where the figure goes; its suffix is png, svg or pdf."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require(len(self.runs) > 0, "runs", self.runs, "at least one run")
        _require_file("save_path", self.save_path)
        known = (".png", ".svg", ".pdf")
        _require(Path(self.save_path).suffix in known, "save_path", self.save_path, f"a path that ends in {', '.join(known)}")


@dataclass(frozen=True)
class DoctorConfig:
    """Settings of `il-rl doctor`."""

    env_id: str | None = None
    """Gymnasium environment ID; this environment is checked as well."""
    save_path: str = "checkpoints/ppo_agent.pt"
    """Where a write is tried; nothing stays there."""

    def __post_init__(self) -> None:
        _require_types(self)
        _require_file("save_path", self.save_path)
