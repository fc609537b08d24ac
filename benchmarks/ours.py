"""Our side of `benchmarks.run`: one job a process."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import STARTED, children_mib, mean_return, microseconds_a_call, report, seconds


def job(kind: str, **settings: Any) -> dict[str, Any]:
    """Run one kind of job on one thread."""
    from il_based_rl.experiment.hardware import fitting_threads

    with fitting_threads([64]):
        kinds = {
            "ppo": ppo,
            "cloning": cloning,
            "play": play,
            "predict": predict,
            "start": start,
            "returns": returns,
            "command": command,
            "breakdown": breakdown,
            "soak": soak,
        }
        return kinds[kind](**settings)


def ppo(
    env_id: str,
    num_envs: int,
    steps: int,
    *,
    envpool: bool = False,
    width: int = 64,
    device: str = "cpu",
    **flags: Any,
) -> dict[str, Any]:
    """Train without evaluation; the rate is of training alone."""
    from il_based_rl.config import PPOConfig
    from il_based_rl.envs import make_envs
    from il_based_rl.ppo_agent import PPOAgent

    envs = make_envs(env_id, num_envs, backend="envpool" if envpool else "gymnasium")
    config = PPOConfig(**flags)
    spaces = envs.observation_space, envs.action_space
    agent = PPOAgent.for_spaces(*spaces, config, hidden_dims=(width, width), seed=0, device=device)
    taken = seconds(lambda: list(agent.learn(envs, steps)))
    return {"steps_per_second": agent.env_steps / taken, "children_mib": children_mib()}


def returns(env_id: str, num_envs: int, steps: int, seed: int, *, envpool: bool = False, **flags: Any) -> dict[str, Any]:
    """Train on one seed, and say how good the last policy is."""
    from il_based_rl.config import PPOConfig
    from il_based_rl.envs import make_envs
    from il_based_rl.ppo_agent import PPOAgent

    with make_envs(env_id, num_envs, backend="envpool" if envpool else "gymnasium") as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, PPOConfig(**flags), seed=seed)
        for _ in agent.learn(envs, steps):
            pass
    return {"mean_return": mean_return(env_id, agent.predict)}


def command() -> dict[str, Any]:
    """Run the default command, with its evaluations and checkpoints."""
    from il_based_rl.config import TrainPPOConfig
    from il_based_rl.train_ppo import train_ppo

    train_ppo(TrainPPOConfig(save_path=sys.argv[2], seed=0, quiet=True))
    return {"children_mib": children_mib()}


def cloning(width: int, samples: int, *, device: str = "cpu", **flags: Any) -> dict[str, Any]:
    """Clone random transitions of HalfCheetah's sizes, on a network of two hidden layers."""
    import numpy as np
    from gymnasium.spaces import Box

    from il_based_rl.agent import BCAgent
    from il_based_rl.config import BCConfig
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.policy import MLPPolicy

    random, rows = np.random.default_rng(0), 10_000
    ends = np.arange(rows) % 1000 == 999
    dataset = DemoDataset(
        observations=random.standard_normal((rows, 17)).astype(np.float32),
        actions=random.uniform(-1, 1, (rows, 6)).astype(np.float32),
        rewards=np.zeros(rows),
        terminated=np.zeros(rows, bool),
        truncated=ends,
        final_observations=np.zeros((10, 17), np.float32),
        episode_lengths=np.full(10, 1000),
        seeds=np.arange(10),
    )
    policy = MLPPolicy(Box(-np.inf, np.inf, (17,)), Box(-1, 1, (6,)), (width, width), activation="tanh")
    config = BCConfig(epochs=samples // rows, validation_fraction=0.0, **flags)
    taken = seconds(lambda: list(BCAgent(policy, config, seed=0, device=device).learn(dataset)))
    return {"samples_per_second": samples / taken}


def play(env_id: str, episodes: int) -> dict[str, Any]:
    """Evaluate, then collect, with an untrained expert."""
    from il_based_rl.collect import collect_demos
    from il_based_rl.envs import make_env
    from il_based_rl.evaluate import evaluate_policy
    from il_based_rl.ppo_agent import PPOAgent

    env = make_env(env_id)
    agent = PPOAgent.for_spaces(env.observation_space, env.action_space, seed=0)
    evaluation = seconds(lambda: evaluate_policy(agent, env_id, episodes))
    collection = seconds(lambda: collect_demos(env_id, agent, episodes))
    return {"evaluation_episodes_per_second": episodes / evaluation, "collection_episodes_per_second": episodes / collection}


def predict(env_id: str) -> dict[str, Any]:
    """Time `predict` on one observation."""
    import numpy as np

    from il_based_rl.envs import make_env
    from il_based_rl.ppo_agent import PPOAgent

    env = make_env(env_id)
    agent = PPOAgent.for_spaces(env.observation_space, env.action_space, seed=0)
    agent.policy.actor.normalizer.update(np.random.default_rng(0).standard_normal((100, agent.policy.actor.codec.size)))
    obs, _ = env.reset(seed=0)
    return {"microseconds": microseconds_a_call(lambda: agent.predict(obs))}


def start(env_id: str) -> dict[str, Any]:
    """Time from the start of the process to the first environment step of training."""
    import gymnasium as gym

    from il_based_rl.config import TrainPPOConfig
    from il_based_rl.train_ppo import train_ppo

    env_class = type(gym.make(env_id).unwrapped)
    original = env_class.step

    def step(self: Any, action: Any) -> Any:
        raise KeyboardInterrupt

    env_class.step = step
    try:
        train_ppo(TrainPPOConfig(env_id, save_path=sys.argv[2], seed=0))
    except KeyboardInterrupt:
        return {"seconds": time.perf_counter() - STARTED}
    finally:
        env_class.step = original
    raise AssertionError("training took no step")


def breakdown(env_id: str, steps: int) -> dict[str, Any]:
    """Say where the time of one environment step of training goes, in microseconds, one environment and default flags."""
    import numpy as np

    from il_based_rl.envs import InProcessEnvs, make_env
    from il_based_rl.ppo_agent import PPOAgent

    with InProcessEnvs(env_id) as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, seed=0)
        batches = []
        update = agent.update
        agent.update = lambda batch: batches.append(batch) or update(batch)  # keeps the batches, to update from them again
        whole = seconds(lambda: list(agent.learn(envs, steps))) / agent.env_steps
    updating = seconds(lambda: [update(batch) for batch in batches]) / agent.env_steps
    env, head = make_env(env_id), agent.policy.actor.head
    env.reset(seed=0)
    action = head.to_env(np.zeros((1, head.num_actions), head.raw_dtype))[0]

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    actor, features, noise = (
        agent.policy.actor.as_numpy(),
        batches[0].normalized[:1],
        np.zeros((1, head.num_outputs), np.float32),
    )
    parts = {
        "environment": microseconds_a_call(step),
        "acting": microseconds_a_call(lambda: head.to_env(head.mode(actor(features) + noise))),
        "update": updating * 1e6,
    }
    rest = whole * 1e6 - sum(parts.values())
    return {**parts, "rest": rest, "whole": whole * 1e6, "products": products(agent)}


def products(agent: Any) -> float:
    """Time the matrix products of an update alone, in microseconds a step: what no way of writing the rest can go below."""
    import numpy as np

    config, actor = agent.config, agent.policy.actor
    pairs = []
    for last in (actor.head.num_outputs, 1):  # actor and critic
        for inputs, outputs in itertools.pairwise([actor.codec.size, *agent.hidden_dims, last]):
            x, w, y = (
                np.ones(shape, np.float32)
                for shape in ((config.batch_size, inputs), (inputs, outputs), (config.batch_size, outputs))
            )
            pairs += [(x, w), (x.T, y), (y, w.T)]
    pairs = [pair for k, pair in enumerate(pairs) if k % (3 * (1 + len(agent.hidden_dims))) != 2]  # inputs need no gradient
    minibatch = microseconds_a_call(lambda: [np.dot(left, right) for left, right in pairs])
    return minibatch * config.n_epochs / config.batch_size


def soak(env_id: str, steps: int, marks: int) -> dict[str, Any]:
    """Train for long, and note resident memory (MiB) and seconds at equal distances."""
    from il_based_rl.envs import InProcessEnvs
    from il_based_rl.ppo_agent import PPOAgent

    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    noted: list[tuple[int, float, float]] = []
    with InProcessEnvs(env_id) as envs:
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, seed=0)
        started = time.perf_counter()
        for progress in agent.learn(envs, steps):
            if progress.passes_multiple_of(steps // marks):
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
                noted.append((progress.env_steps, round(resident, 1), round(time.perf_counter() - started, 2)))
    return {"noted": noted}


if __name__ == "__main__":
    report(job)
