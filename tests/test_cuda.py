"""Training on a GPU against training on the CPU; skipped where torch sees none."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_updates import EVERY_KIND, batch_for, demos_of, policy_of, vector_of

from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, PPOConfig
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.experiment.hardware import numerics
from il_based_rl.files import read_checkpoint, read_rows
from il_based_rl.ppo_agent import PPOAgent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

ENV = "Pendulum-v1"
TRAIN_PPO = (
    f"train-ppo --env-id {ENV} --device cuda --total-timesteps 4096 --seed 0 --eval-interval 2048 --eval-episodes 2 --quiet"
)
FINETUNE = f"finetune --env-id {ENV} --checkpoint s.pt --demo-path d.npz --device cuda --total-timesteps 4096 --seed 0 --quiet"


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ran(arguments):
    main(arguments.split())


def tensors_in(value):
    if isinstance(value, dict | list | tuple):
        return [tensor for each in (value.values() if isinstance(value, dict) else value) for tensor in tensors_in(each)]
    return [value] if isinstance(value, torch.Tensor) else []


def distance(found, wanted, start):
    """Between two ends, over the distance gone."""
    return ((found - wanted).norm() / (wanted - start).norm()).item()


@EVERY_KIND
def test_an_update_on_a_gpu_is_the_cpus(action_space):
    policy = policy_of(action_space, (3, (32, 32), "tanh", 1))
    batch = batch_for(policy, 500, 0.2, 0.3, 1)
    ends, measured = [], []
    for device in ("cuda", "cpu"):
        agent = PPOAgent(copy.deepcopy(policy), PPOConfig(fast_path=False), seed=0, device=device)
        measured.append(agent.update(copy.deepcopy(batch)))
        ends.append(vector_of(agent.policy).cpu())
    assert distance(*ends, vector_of(policy)) < 1e-3
    assert measured[0] == pytest.approx(measured[1], rel=1e-3, abs=1e-5)


@EVERY_KIND
def test_cloning_on_a_gpu_is_the_cpus(action_space):
    dataset, ends = demos_of(action_space), []
    for device in ("cuda", "cpu"):
        agent = BCAgent.for_dataset(dataset, BCConfig(epochs=3), hidden_dims=(16, 8), seed=0, device=device)
        start = vector_of(agent.policy).cpu()
        list(agent.learn(dataset))
        ends.append(vector_of(agent.policy).cpu())
    assert distance(*ends, start) < 1e-3


@pytest.mark.parametrize("loss", ["mse", "huber", "l1", "nll", "bounded-nll", "kl"])
def test_every_loss_of_continuous_actions_runs_on_a_gpu(loss):
    with gym.make(ENV) as env:
        expert = PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=0)
    dataset, ends = collect_demos(ENV, expert, 2, seed=0, quiet=True), []
    config = BCConfig(loss=loss, epochs=2, l2_coef=1e-3)
    for device in ("cuda", "cpu"):
        agent = BCAgent.for_dataset(dataset, config, hidden_dims=(8,), seed=0, device=device)
        start = vector_of(agent.policy).cpu()
        list(agent.learn(dataset))
        ends.append(vector_of(agent.policy).cpu())
    assert distance(*ends, start) < 1e-3


def test_an_expert_of_a_gpu_acts_and_goes_on_elsewhere():
    ran(f"{TRAIN_PPO} --save-path a.pt")
    there = PPOAgent.load("a.pt", device="cuda")
    assert {tensor.device.type for tensor in there.policy.parameters()} == {"cuda"}
    assert {tensor.device.type for tensor in tensors_in(there.payload())} == {"cpu"}
    expert = PPOAgent.load("a.pt")
    assert expert.device.type == "cpu"
    assert np.isfinite(evaluate_policy(expert, ENV, 2, seed=0).returns).all()
    ran("train-ppo --resume a.pt --device cpu --total-timesteps 6144 --quiet")
    ran("train-ppo --resume a.pt --device cuda --total-timesteps 8192 --quiet")
    assert PPOAgent.load("a.pt").env_steps == 8192
    assert torch.cuda.get_device_name("cuda") == numerics("cuda")["device"]


def require_same_parameters(*paths):
    one, other = (tensors_in(read_checkpoint(path)["parameters"]) for path in paths)
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_the_same_seed_gives_the_same_numbers_on_a_gpu():
    for path in ("a.pt", "b.pt"):
        ran(f"{TRAIN_PPO} --save-path {path}")
    require_same_parameters("a.pt", "b.pt")


def test_a_run_that_is_stopped_and_resumed_on_a_gpu_is_the_one_that_was_not():
    ran(f"{TRAIN_PPO} --save-path whole.pt")
    ran(f"{TRAIN_PPO.replace('4096', '2048')} --save-path parts.pt")
    ran("train-ppo --resume parts.pt --device cuda --total-timesteps 4096 --quiet")
    require_same_parameters("whole.pt", "parts.pt")


def test_students_are_cloned_improved_and_relabelled_on_a_gpu():
    ran(f"{TRAIN_PPO} --save-path e.pt")
    ran(f"collect --env-id {ENV} --checkpoint e.pt --num-episodes 3 --seed 0 --save-path d.npz --quiet")
    ran("train --demo-path d.npz --hidden-dims 16 --epochs 3 --loss nll --device cuda --seed 0 --save-path s.pt --quiet")
    ran(f"{FINETUNE} --save-path f.pt")
    dagger = f"dagger --env-id {ENV} --expert e.pt --device cuda --rounds 2 --round-steps 400 --epochs 2 --hidden-dims 16"
    ran(f"{dagger} --seed 0 --save-path g.pt --quiet")
    for path, kind in [("s.pt", BCAgent), ("f.pt", PPOAgent), ("g.pt", BCAgent)]:
        assert {tensor.device.type for tensor in tensors_in(kind.load(path, device="cuda").payload())} == {"cpu"}
        assert np.isfinite(evaluate_policy(kind.load(path), ENV, 2, seed=0).returns).all()
    ran("finetune --resume f.pt --device cuda --total-timesteps 6144 --demo-path d.npz --quiet")
    assert PPOAgent.load("f.pt").env_steps == 6144
    assert read_rows("f/metrics.jsonl")
