"""Environments in worker processes: the same numbers as in this one, and nothing left behind whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import toy_envs  # noqa: F401  registers its environments
from gymnasium import spaces

from il_based_rl.config import PPOConfig
from il_based_rl.envs import InProcessEnvs, WorkerEnvs, make_envs, workers
from il_based_rl.errors import ConfigError, EnvironmentFaultError, UnknownEnvironmentError
from il_based_rl.ppo_agent import PPOAgent

# Workers import this module to find the classes below, so that nothing heavier than the above may stand here.

FAULTY = 13
"""The environment whose first reset gets this seed misbehaves."""


class Faulty(gym.Env):
    """Observation (seed, step); what is wrong happens in the third step."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault):
        self.fault, self.tag, self.count = fault, 0, 0
        if multiprocessing.parent_process() is not None:  # in a worker
            if fault == "raises when made":
                raise OSError("no such device /dev/robot")
            if fault == "dies when made":
                os._exit(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag, self.count = self.tag if seed is None else seed, 0
        if self.tag == FAULTY and self.fault == "raises at reset":
            raise RuntimeError("no power")
        if self.tag == FAULTY and self.fault == "dies at reset":
            os._exit(8)
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        if self.tag == FAULTY and self.count == 3:
            self._misbehave()
        reward = np.nan if self.tag == FAULTY and self.count == 3 and self.fault == "nan" else 1.0
        return self._obs(), reward, False, False, {}

    def _misbehave(self):
        class Unpicklable(Exception):  # noqa: N818
            def __init__(self):
                super().__init__("motor on fire")
                self.hold = lambda: None

        if self.fault == "raises":
            raise RuntimeError("motor on fire")
        if self.fault == "unpicklable":
            raise Unpicklable
        if self.fault == "exits":
            os._exit(7)
        if self.fault == "leaves":
            sys.exit(6)
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hangs":
            time.sleep(600.0)

    def _obs(self):
        return np.array([self.tag, self.count], np.float32)


class Smooth(Faulty):
    """Its reward is how far an action is from the last one, which it keeps; it ends after five steps."""

    def __init__(self):
        super().__init__(None)
        self.last = np.zeros(1, np.float32)

    def step(self, action):
        reward, self.last = float(np.abs(action - self.last).sum()), action
        obs, _, _, _, info = super().step(action)
        return obs, reward, False, self.count == 5, info


class Slow(Faulty):
    """A step takes a millisecond."""

    def __init__(self):
        super().__init__(None)

    def step(self, action):
        time.sleep(1e-3)
        return super().step(action)


class Closing(Faulty):
    """Leaves a file named like its seed in a folder when it is closed."""

    def __init__(self, folder):
        super().__init__(None)
        self.folder = folder

    def close(self):
        if self.tag:
            (Path(self.folder) / str(self.tag)).touch()


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2.0 * reward


def wrapped():
    return Doubled(Faulty(None))


def rescaled():
    """Wrappers with an array and with a lambda, which neither compare nor go to another process."""
    ends = np.array([-2.0], np.float32), np.array([2.0], np.float32)
    return gym.wrappers.TransformReward(gym.wrappers.RescaleAction(Smooth(), *ends), lambda reward: 2.0 * reward)


class SlowToStart(Faulty):
    """Its first reset takes a while, as where something is compiled then."""

    def __init__(self):
        super().__init__(None)

    def reset(self, *, seed=None, options=None):
        time.sleep(0.0 if seed is None else 0.7)
        return super().reset(seed=seed)


FAULTS = (
    "raises",
    "unpicklable",
    "nan",
    "exits",
    "leaves",
    "killed",
    "hangs",
    "raises at reset",
    "dies at reset",
    "raises when made",
    "dies when made",
)
for _fault in FAULTS:
    gym.register(f"workers/{_fault.replace(' ', '-')}-v0", "test_workers:Faulty", kwargs={"fault": _fault})
gym.register("workers/Smooth-v0", Smooth)
gym.register("workers/Limited-v0", "test_workers:wrapped", max_episode_steps=3)
gym.register("workers/Slow-v0", "test_workers:Slow")
gym.register("workers/Rescaled-v0", "test_workers:rescaled")
gym.register("workers/SlowToStart-v0", "test_workers:SlowToStart")
gym.register("workers/Lambda-v0", lambda: Smooth())

pytestmark = pytest.mark.timeout(120)


def running():
    return {child.pid for child in multiprocessing.active_children()}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    before = running()
    yield
    assert running() == before


@contextlib.contextmanager
def workers_gone_after():
    """Whatever happens inside, the processes that ran when the pids were noted are gone afterwards."""
    pids = set()
    yield pids
    assert pids
    assert running().isdisjoint(pids)
    assert all(gone(pid) for pid in pids)


def records(envs, count, seed=0):
    """Everything that so many steps gave, as bytes and numbers; the actions are the same for all who ask."""
    seeds = [seed + 10 * i for i in range(envs.num_envs)]
    envs.action_space.seed(seed)
    with envs:
        found = [np.array(envs.reset(seeds)).tobytes()]
        for _ in range(count):
            actions = np.stack([np.asarray(envs.action_space.sample()) for _ in seeds])
            record = envs.step(actions)
            columns = (record.rows, record.rewards, record.terminated, record.truncated, record.valid)
            finals = {i: (row.dtype, row.shape, row.tobytes()) for i, row in record.final_rows.items()}
            found.append(([(c.dtype, c.shape, c.tobytes()) for c in columns], finals))
    return found


# ---- the same numbers ----


@pytest.mark.parametrize(("num_envs", "num_workers"), [(1, 1), (1, 3), (2, 1), (2, 2), (5, 1), (5, 2), (5, 3)])
@pytest.mark.parametrize(
    ("env_id", "count"), [("Pendulum-v1", 410), ("CartPole-v1", 150), ("toy/Truncated-v0", 25), ("toy/Both-v0", 15)]
)
def test_the_records_are_those_of_environments_in_this_process(env_id, count, num_envs, num_workers):
    expected = records(InProcessEnvs(env_id, num_envs), count)
    assert sum(bool(finals) for _, finals in expected[1:]) >= 2  # several episodes
    assert records(WorkerEnvs(env_id, num_envs, num_workers), count) == expected


@pytest.mark.parametrize(
    "env_id",
    [
        "toy/Bits-v0",
        "toy/Gears-v0",
        "toy/Levers-v0",
        "toy/Wide-v0",
        "toy/Dict-v0",
        "workers/Limited-v0",
        "workers/Rescaled-v0",
    ],
)
def test_every_kind_of_space_and_registration_gives_the_same_records(env_id):
    assert records(WorkerEnvs(env_id, 3, 2), 12) == records(InProcessEnvs(env_id, 3), 12)


def test_an_environment_that_keeps_the_action_it_was_given_gives_the_same_records():
    # As those do whose reward is for smooth actions: the last action must still be the last one when the next one comes.
    assert records(WorkerEnvs("workers/Smooth-v0", 3, 2), 12) == records(InProcessEnvs("workers/Smooth-v0", 3), 12)


def test_a_second_reset_begins_anew():
    with WorkerEnvs("Pendulum-v1", 3, 2) as envs:
        first = np.array(envs.reset([1, 2, 3]))
        envs.step(np.ones((3, 1), np.float32))
        np.testing.assert_array_equal(envs.reset([1, 2, 3]), first)
        assert not np.array_equal(envs.reset([1, 2, 4])[2], first[2])


def test_a_final_row_outlives_the_next_step():
    with WorkerEnvs("toy/Truncated-v0", 1) as envs:
        envs.reset([5])
        record = [envs.step(np.zeros((1, 2), np.float32)) for _ in range(3)][-1]
        (final,) = record.final_rows.values()
        for _ in range(5):
            envs.step(np.zeros((1, 2), np.float32))
        assert final.tolist() == [5.0, 0.0, 3.0]


def test_every_environment_needs_a_seed_of_its_own():
    with WorkerEnvs("toy/Counter-v0", 2) as envs, pytest.raises(ValueError, match=r"argument|shape|seeds"):
        envs.reset([1])


def test_a_run_trains_the_same_policy_in_workers_and_in_this_process():
    import torch

    from il_based_rl.config import PPOConfig
    from il_based_rl.ppo_agent import PPOAgent

    policies = []
    for vectorization in ("sync", "async"):
        with make_envs("Pendulum-v1", 3, vectorization=vectorization) as envs:
            assert isinstance(envs, WorkerEnvs if vectorization == "async" else InProcessEnvs)
            spaces_of = (envs.observation_space, envs.action_space)
            agent = PPOAgent.for_spaces(*spaces_of, PPOConfig(n_steps=128, n_epochs=2), hidden_dims=(8,), seed=0)
            metrics = [progress.metrics for progress in agent.learn(envs, 3 * 128 * 3)]
        policies.append((agent.policy.state_dict(), metrics))
    (one, one_metrics), (other, other_metrics) = policies
    assert one_metrics == other_metrics
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- processes ----


@pytest.mark.parametrize(("num_envs", "cores", "expected"), [(5, 3, 3), (2, 8, 2), (1, 8, 1), (4, None, 1)])
def test_there_are_as_many_workers_as_cores_and_no_more_than_environments(num_envs, cores, expected, monkeypatch):
    if cores is None:  # a system that does not say
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: None)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    before = running()
    with WorkerEnvs("toy/Counter-v0", num_envs):
        assert len(running() - before) == expected


def test_workers_are_started_once_and_gone_when_closed():
    before = running()
    with workers_gone_after() as pids, WorkerEnvs("toy/Counter-v0", 3, 2) as envs:
        pids.update(running() - before)
        for seed in (1, 2):
            envs.reset([seed] * 3)
            envs.step(np.zeros((3, 2), np.float32))
        assert running() - before == pids
        assert len(pids) == 2


def test_closing_twice_leaves_no_worker():
    before = running()
    envs = WorkerEnvs("toy/Counter-v0", 2)
    envs.reset([1, 2])
    assert running() - before
    envs.close()
    envs.close()
    assert not running() - before


@pytest.mark.parametrize("make", [InProcessEnvs, WorkerEnvs])
def test_closing_closes_every_environment(make, tmp_path, monkeypatch):
    spec = gym.envs.registration.EnvSpec("workers/Closing-v0", "test_workers:Closing", kwargs={"folder": str(tmp_path)})
    monkeypatch.setitem(gym.registry, spec.id, spec)
    with make(spec.id, 3) as envs:
        envs.reset([1, 2, 3])
        envs.step(np.zeros((3, 1), np.float32))
        assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


# ---- faults ----


def play(env_id, seeds, num_workers, steps=5):
    """Step until something is wrong; the workers must be gone afterwards."""
    before = running()
    with workers_gone_after() as pids, WorkerEnvs(env_id, len(seeds), num_workers) as envs:
        pids.update(running() - before)
        envs.reset(seeds)
        for _ in range(steps):
            envs.step(np.full((len(seeds), 1), 0.5, np.float32))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", r"RuntimeError: motor on fire"),
        ("unpicklable", r"Unpicklable: motor on fire"),
        ("nan", r"the reward is nan"),
        ("leaves", r"SystemExit: 6"),
    ],
)
def test_a_fault_names_its_environment_step_and_action(fault, message, num_workers):
    where = rf"environment 3, seed {FAULTY}, episode 1, step 3, after action \[0\.5\]: "
    with pytest.raises(EnvironmentFaultError, match=where + message):
        play(f"workers/{fault}-v0", [1, 2, 3, FAULTY, 5], num_workers)


def test_a_fault_at_reset_names_its_environment():
    with pytest.raises(
        EnvironmentFaultError, match=rf"environment 2, seed {FAULTY}, episode 1, at reset: RuntimeError: no power"
    ):
        play("workers/raises-at-reset-v0", [1, 2, FAULTY], 2)


@pytest.mark.parametrize(("fault", "code"), [("exits", "7"), ("killed", r"-9 \(killed")])
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_a_worker_that_dies_is_named_by_the_environment_that_it_stepped(fault, code, num_workers):
    where = rf"environment 3, seed {FAULTY}, episode 1, step 3, after action \[0\.5\]"
    with pytest.raises(EnvironmentFaultError, match=rf"{where}: its worker process died with exit code {code}"):
        play(f"workers/{fault}-v0", [1, 2, 3, FAULTY, 5], num_workers)


def test_a_worker_killed_from_outside_is_named():
    before = running()
    with workers_gone_after() as pids, WorkerEnvs("Pendulum-v1", 4, 2) as envs:
        envs.reset([1, 2, 3, 4])
        pids.update(running() - before)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            EnvironmentFaultError, match=r"environment \d, .*: its worker process died with exit code -9 \(killed"
        ):
            envs.step(np.zeros((4, 1), np.float32))


def test_a_first_reset_may_take_longer_than_a_step():
    with WorkerEnvs("workers/SlowToStart-v0", 2, 1, timeout=0.5) as envs:
        assert envs.reset([1, 2])[:, 0].tolist() == [1.0, 2.0]


def test_a_worker_that_hangs_is_reported(monkeypatch):
    before = running()
    with workers_gone_after() as pids, WorkerEnvs("workers/hangs-v0", 4, 2) as envs:
        pids.update(running() - before)
        envs.reset([1, 2, 3, FAULTY])
        for _ in range(2):
            envs.step(np.zeros((4, 1), np.float32))
        monkeypatch.setattr(workers, "ANSWER_SECONDS", 0.5)
        with pytest.raises(
            EnvironmentFaultError, match=rf"environment 3, seed {FAULTY}, .*: its worker process has not answered for"
        ):
            envs.step(np.zeros((4, 1), np.float32))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("workers/raises-when-made-v0", r"workers/raises-when-made-v0.* cannot be made: OSError: no such device /dev/robot"),
        ("workers/dies-when-made-v0", r"the worker of environments \d to \d died with exit code 5"),
    ],
)
def test_environments_that_cannot_be_made_in_a_worker_leave_no_process(env_id, message):
    with pytest.raises(EnvironmentFaultError, match=message) as caught:
        WorkerEnvs(env_id, 4, 2)
    assert caught.value.exit_code == 2  # as nothing has begun


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from il_based_rl.envs import make_envs\nmake_envs('Pendulum-v1', 2, vectorization='async')\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "died with exit code 1; a script begins workers under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


def test_an_unknown_id_is_refused_before_a_process_is_started():
    with pytest.raises(UnknownEnvironmentError, match="Pendulum-v1"):
        WorkerEnvs("Pendulm-v1", 2)


def test_a_registration_that_cannot_be_sent_names_the_way_out():
    with pytest.raises(ConfigError, match=r"workers/Lambda-v0 cannot be sent.*--vectorization sync"):
        WorkerEnvs("workers/Lambda-v0", 2)


def test_a_registration_of_a_local_class_names_the_way_out(monkeypatch):
    class Local(Smooth):
        pass

    monkeypatch.setitem(gym.registry, "workers/Local-v0", gym.envs.registration.EnvSpec("workers/Local-v0", Local))
    with pytest.raises(ConfigError, match=r"workers/Local-v0 cannot be sent.*--vectorization sync"):
        WorkerEnvs("workers/Local-v0", 2)


def test_what_cannot_be_sent_is_stepped_here_where_nothing_else_is_asked(monkeypatch):
    monkeypatch.setattr(workers, "SHARING_SECONDS", -1.0)
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    assert not workers.pays_to_share("workers/Lambda-v0", 2)
    assert workers.pays_to_share("workers/Smooth-v0", 2)
    with make_envs("workers/Lambda-v0", 2) as envs:
        assert isinstance(envs, InProcessEnvs)


def test_an_environment_of_a_notebook_is_not_sent():
    script = """
import sys
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv
from il_based_rl.envs import can_be_sent
class Mine(PendulumEnv):
    pass
gym.register("Mine-v0", entry_point=Mine)
print(can_be_sent(gym.spec("Mine-v0")), can_be_sent(gym.spec("Pendulum-v1")), hasattr(sys.modules["__main__"], "__file__"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


@pytest.mark.parametrize(("fault", "message"), [("raises", "environment 2, seed"), ("killed", "its worker process died with")])
def test_from_a_shell_a_fault_in_a_worker_is_one_line_and_exit_code_1(fault, message, tmp_path, monkeypatch):
    # The other workers have answered by then, which nobody reads any more; they must go quietly.
    arguments = f"--env-id test_workers:workers/{fault}-v0 --num-envs 4 --vectorization async --total-timesteps 64 --n-steps 64"
    script = f"""
        import os
        from il_based_rl import seeding, train_ppo
        if __name__ == "__main__":
            os.sched_getaffinity = lambda _: range(4)
            seeding.start_seeds = lambda *args, **kwargs: [1, 2, {FAULTY}, 4]
            train_ppo.main({arguments.split()})
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    saved, line = done.stderr.splitlines()
    assert saved == "saved at step 0; go on with --resume"
    assert line.startswith("error: ")
    assert message in line


# ---- which of the two ----


def kind_of(env_id, num_envs, **settings):
    with make_envs(env_id, num_envs, **settings) as envs:
        return type(envs)


@pytest.mark.parametrize(
    ("env_id", "num_envs", "cores", "expected"),
    [
        ("CartPole-v1", 4, 2, InProcessEnvs),  # a step is not worth a message
        ("workers/Slow-v0", 4, 2, WorkerEnvs),
        ("workers/Slow-v0", 4, 1, InProcessEnvs),  # nobody to share with
        ("workers/Slow-v0", 1, 2, InProcessEnvs),  # nothing to share
    ],
)
def test_auto_shares_what_is_slow_where_there_are_cores_to_share_it(env_id, num_envs, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    assert kind_of(env_id, num_envs) is expected


def test_sync_and_async_are_obeyed_whatever_a_step_costs():
    assert kind_of("workers/Slow-v0", 2, vectorization="sync") is InProcessEnvs
    assert kind_of("CartPole-v1", 2, vectorization="async") is WorkerEnvs


@pytest.mark.parametrize("env_id", ["toy/RaisesAtReset-v0", "toy/Raises-v0", "toy/NanObs-v0"])
def test_an_environment_that_fails_is_named_under_auto_as_well(env_id, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))

    def make_and_step():
        with make_envs(env_id, 2) as envs:
            envs.reset([1, 2])
            for _ in range(3):
                envs.step(np.zeros((2, 2), np.float32))

    with pytest.raises(EnvironmentFaultError, match="environment 0"):
        make_and_step()


def test_a_worker_that_plays_a_long_episode_again_may_take_its_time(monkeypatch):
    """However long it takes in all: only one that gets no further is given up."""
    with WorkerEnvs("workers/Slow-v0", 2, 2) as envs:
        envs.reset([1, 2])
        for _ in range(5):
            envs.step(np.zeros((2, 1), np.float32))
        states = [replace(state, actions=np.zeros((4000, 1), np.float32)) for state in envs.states()]
        monkeypatch.setattr(workers, "STARTING_SECONDS", 3.0)
        monkeypatch.setattr(workers, "ANSWER_SECONDS", 30.0)
        started = time.monotonic()
        _, levels = envs.restore(states)
        assert time.monotonic() - started > 3.0  # four thousand steps of a thousandth, and the trial before
    assert len(levels) == 2


def test_a_worker_that_dies_while_it_plays_an_episode_again_is_named_with_the_action_of_then():
    with WorkerEnvs("workers/killed-v0", 3, 2) as envs:
        envs.reset([1, 2, 3])
        for t in range(5):
            envs.step(np.full((3, 1), t / 8, np.float32))
        states = envs.states()
        states[1] = replace(states[1], seed=FAULTY)
        where = rf"environment 1, seed {FAULTY}, episode 1, step 3, after action \[0\.25\]"
        with pytest.raises(EnvironmentFaultError, match=rf"{where}: its worker process died with exit code -9"):
            envs.restore(states)


def test_a_worker_that_dies_at_the_reset_before_it_plays_anything_again_is_named():
    with WorkerEnvs("workers/dies-at-reset-v0", 3, 2) as envs:
        envs.reset([1, 2, 3])
        states = envs.states()  # no step was taken yet
        states[1] = replace(states[1], seed=FAULTY)
        where = rf"environment 1, seed {FAULTY}, episode 1, at reset: its worker process died with exit code 8"
        with pytest.raises(EnvironmentFaultError, match=where):
            envs.restore(states)


def test_an_agent_is_saved_whole_after_its_environments_are_closed(tmp_path):
    with make_envs("CartPole-v1", 2, vectorization="async") as envs:
        config = PPOConfig(n_steps=16, n_epochs=1, batch_size=16)
        agent = PPOAgent.for_spaces(envs.observation_space, envs.action_space, config, hidden_dims=(8,), seed=0)
        for _ in agent.learn(envs, 32):
            pass
    agent.save(tmp_path / "a.pt")
    assert PPOAgent.load(tmp_path / "a.pt").env_steps == 32


@pytest.mark.parametrize("wrong", [{"vectorization": "foo"}, {"backend": "foo"}, {"bounds": "Strict"}, {"num_envs": 0}])
def test_what_kind_of_environments_is_not_guessed(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_envs("CartPole-v1", **wrong)
