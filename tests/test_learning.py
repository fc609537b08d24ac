"""The whole loop learns: a weaker but quick form of what `python -m benchmarks.learning` shows."""

import gymnasium as gym
import pytest

from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.envs import InProcessEnvs
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.ppo_agent import PPOAgent

START_SEEDS = range(30_000, 30_050)


def mean_of(agent, env_id):
    return evaluate_policy(agent, env_id, start_seeds=START_SEEDS).mean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "steps", "at_least"),
    # The optimum is about -140 and 500; random policies reach about -1200 and 22.
    [("Pendulum-v1", 120_000, -250.0), ("CartPole-v1", 50_000, 450.0)],
)
def test_an_expert_learns_and_its_student_is_as_good(env_id, steps, at_least):
    with InProcessEnvs(env_id) as envs:
        expert = PPOAgent.for_spaces(envs.observation_space, envs.action_space, seed=1000)
        list(expert.learn(envs, steps))
    demos = collect_demos(env_id, expert, 50, seed=1000)
    student = BCAgent.for_dataset(demos, seed=1000, hidden_dims=(64, 64))
    list(student.learn(demos))
    space = gym.make(env_id).action_space
    space.seed(0)
    best, clone, random = mean_of(expert, env_id), mean_of(student, env_id), mean_of(lambda obs: space.sample(), env_id)
    assert best >= at_least
    assert abs(clone - best) <= 0.03 * (best - random)
