"""Environments that misbehave: a command ends with one line that says where, and with a checkpoint that can be gone on with."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

# Workers import this module to find the classes below, so that nothing heavier than the above may stand here.

LENGTH, FAULTY_STEP = 7, 40
"""Steps of an episode; and the step at which something is wrong, counted over all episodes."""
MOTOR = r"RuntimeError: motor on fire \(test_faults\.py, line \d+\)"
PLACE = rf"episode {FAULTY_STEP // LENGTH + 1}, step {FAULTY_STEP % LENGTH}, after action \[-?\d\.\d+\]: "
AT_RESET = r"episode 6, at reset: "
ROLLOUT = 32

pytestmark = pytest.mark.timeout(120)


class Unprintable(Exception):  # noqa: N818
    def __str__(self):
        raise ValueError("nothing to say")


class Faulty(gym.Env):
    """Does what `fault` says in the step or reset named above, if its first reset had this seed."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault, seed, byte=False):
        if byte:
            self.observation_space = gym.spaces.Box(0, 255, (2,), np.uint8)
        self._fault, self._faulty_seed, self._first_seed = fault, seed, None
        self._steps = self._resets = 0
        if fault == "hangs when made" and multiprocessing.parent_process() is not None:
            time.sleep(600.0)
        if fault == "raises when made":
            raise OSError("no such device\n/dev/robot")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._first_seed = seed if self._first_seed is None else self._first_seed
        self._resets += 1
        if self._resets == 6 and self._first_seed == self._faulty_seed and self._fault in AT_RESETS:
            return RESETS[self._fault](self._obs())
        return self._obs(), {}

    def step(self, action):
        self._steps += 1
        whole = [self._obs(), 1.0, self._steps % LENGTH == 0, False, {}]
        if self._steps == FAULTY_STEP and self._first_seed == self._faulty_seed and self._fault in STEPS:
            return STEPS[self._fault](*whole)
        return tuple(whole)

    def close(self):
        if self._fault == "raises when closed":
            raise OSError("no such device\n/dev/robot")

    def _obs(self):
        return np.array([self._steps % 2, 0.5], self.observation_space.dtype)


def raises(error):
    raise error


def unpicklable():
    error = RuntimeError("motor on fire")
    error.hold = lambda: None
    return error


STEPS = {
    # environments that raise
    "raises": lambda *_: raises(RuntimeError("motor\n  on fire")),
    "raises what cannot be pickled": lambda *_: raises(unpicklable()),
    "raises what cannot be printed": lambda *_: raises(Unprintable()),
    "raises for want of memory": lambda *_: raises(MemoryError("robot")),
    "raises as a closed pipe does": lambda *_: raises(BrokenPipeError(32, "robot")),
    "leaves": lambda *_: sys.exit(0),
    "leaves with a text": lambda *_: sys.exit("bye"),
    "interrupts": lambda *_: raises(KeyboardInterrupt()),
    # that return what is none
    "nothing": lambda *_: None,
    "four parts": lambda obs, reward, terminated, truncated, info: (obs, reward, terminated, info),
    "six parts": lambda *whole: (*whole, {}),
    # observations
    "nan observation": lambda obs, *rest: (obs * np.nan, *rest),
    "inf observation": lambda obs, *rest: (np.float32([np.inf, 0.0]), *rest),
    "short observation": lambda obs, *rest: (obs[:1], *rest),
    "ragged observation": lambda obs, *rest: ([[1.0], [2.0, 3.0]], *rest),
    "object observation": lambda obs, *rest: (obs.astype(object), *rest),
    "complex observation": lambda obs, *rest: (obs.astype(complex), *rest),
    "huge observation": lambda obs, *rest: (np.array([1e300, 0.0]), *rest),
    "observation beyond bytes": lambda obs, *rest: (np.array([300, 0]), *rest),
    "observation between bytes": lambda obs, *rest: (np.array([0.5, np.nan]), *rest),
    "text observation": lambda obs, *rest: (obs.astype(str), *rest),
    "no observation": lambda obs, *rest: (None, *rest),
    "observation outside": lambda obs, *rest: (obs + np.float32([0.0, 0.75]), *rest),
    # rewards
    "nan reward": lambda obs, reward, *rest: (obs, np.nan, *rest),
    "inf reward": lambda obs, reward, *rest: (obs, -np.inf, *rest),
    "no reward": lambda obs, reward, *rest: (obs, None, *rest),
    "text reward": lambda obs, reward, *rest: (obs, "1.5", *rest),
    "two rewards": lambda obs, reward, *rest: (obs, np.ones(2), *rest),
    "complex reward": lambda obs, reward, *rest: (obs, np.complex128(1 + 2j), *rest),
    # flags
    "two flags": lambda obs, reward, terminated, *rest: (obs, reward, np.array([True, False]), *rest),
    "text flag": lambda obs, reward, terminated, truncated, info: (obs, reward, terminated, "False", info),
    # processes
    "hangs": lambda *_: time.sleep(600.0),
    "exits": lambda *_: os._exit(7),
}
RESETS = {
    "raises at reset": lambda obs: raises(RuntimeError("no power")),
    "hangs at reset": lambda obs: time.sleep(600.0),
    "exits at reset": lambda obs: os._exit(7),
    "leaves at reset": lambda obs: sys.exit(0),
    "nan at reset": lambda obs: (obs * np.nan, {}),
    "no info at reset": lambda obs: obs[0],
    "short at reset": lambda obs: (obs[:1], {}),
}
AT_RESETS = frozenset(RESETS)

SAYS = {  # what the line says
    "raises": "RuntimeError: motor on fire",
    "raises what cannot be pickled": "RuntimeError: motor on fire",
    "raises what cannot be printed": "Unprintable",
    "raises for want of memory": "MemoryError: robot",
    "raises as a closed pipe does": r"BrokenPipeError: .*robot",
    "leaves": "SystemExit",
    "leaves with a text": "SystemExit: bye",
    "nothing": "TypeError",
    "four parts": "step returned 4 values; expected observation, reward, terminated, truncated, info",
    "six parts": "step returned 6 values; expected observation",
    "nan observation": "the observation is not finite.*nan",
    "inf observation": "the observation is not finite.*inf",
    "short observation": r"shape \(1,\).*\(2,\)",
    "ragged observation": "shape",
    "object observation": "object, not numbers",
    "complex observation": "complex128, not numbers",
    "huge observation": "the observation is not finite in float32.*1e[+]300",
    "observation beyond bytes": "numbers that uint8, the type of its space, does not",
    "observation between bytes": "numbers that uint8, the type of its space, does not",
    "text observation": "not numbers",
    "no observation": r"shape \(\)|not numbers",
    "nan reward": "the reward is nan",
    "inf reward": "the reward is -inf",
    "no reward": "None",
    "text reward": "1.5",
    "two rewards": "",
    "complex reward": "",
    "two flags": "",
    "text flag": "False",
    "raises at reset": "RuntimeError: no power",
    "leaves at reset": "SystemExit",
    "nan at reset": "the observation is not finite",
    "no info at reset": "reset returned no pair; expected \\(observation, info\\)",
    "short at reset": r"shape \(1,\).*\(2,\)",
}
LEFT = {  # what of these is said where a worker has ended, rather than told what was wrong
    "leaves": "its worker process died with exit code 0|SystemExit",
    "leaves with a text": "its worker process died with exit code 1|SystemExit",
    "leaves at reset": "its worker process died with exit code 0|SystemExit",
    "exits": "its worker process died with exit code 7",
    "exits at reset": "its worker process died with exit code 7",
}
ASYNC = [
    *("raises", "raises what cannot be pickled", "raises what cannot be printed", "leaves", "six parts", "nan reward"),
    *("two flags", "exits", "raises at reset", "leaves at reset", "exits at reset"),
]


def running():
    return {child.pid for child in multiprocessing.active_children()}


@pytest.fixture(autouse=True)
def _no_process_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = running()
    yield
    assert running() == before


def seed_of(index, purpose="training environments"):
    """First seed of an environment of the runs below."""
    from il_based_rl.seeding import start_seeds

    return list(start_seeds(0, purpose, index + 1))[index]


def register(monkeypatch, fault, index, *, seed=None):
    """Register an environment of which one misbehaves; return its id."""
    kwargs = {"fault": fault, "seed": seed_of(index) if seed is None else seed, "byte": "bytes" in fault}
    env_id = f"faults/{fault.replace(' ', '-')}-v0"
    spec = gym.envs.registration.EnvSpec(env_id, "test_faults:Faulty", kwargs=kwargs)
    monkeypatch.setitem(gym.registry, env_id, spec)
    return env_id


def main(capsys, command):
    """Run a command; return its exit code and its lines on standard error."""
    from il_based_rl.__main__ import main

    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:  # a shell would show them
        warnings.simplefilter("always", RuntimeWarning)
        try:
            main(command.split())
            code = 0
        except SystemExit as leaving:
            code = leaving.code
    return code, [*map(str, caught), *capsys.readouterr().err.splitlines()]


def train_ppo(env_id, flags):
    tiny = f"--n-steps {ROLLOUT} --batch-size 32 --n-epochs 1 --hidden-dims 4 --eval-interval 1000 --eval-episodes 1 --seed 0"
    return f"train-ppo --env-id {env_id} {tiny} --save-path c/a.pt {flags}"


def steps_kept(num_envs=1):
    """Steps of the policy at the save path, for each of whose updates there is one row."""
    from il_based_rl.files import read_checkpoint, read_rows

    steps, rollout = read_checkpoint("c/a.pt")["training"]["env_steps"], ROLLOUT * num_envs
    assert [row["step"] for row in read_rows("c/a/metrics.jsonl")] == list(range(rollout, steps + 1, rollout))
    return steps


def misbehave(capsys, monkeypatch, fault, num_envs, vectorization, flags=""):
    """Train until the last environment misbehaves; see that the run can go on without that; return what was said."""
    env_id = register(monkeypatch, fault, num_envs - 1)
    total = 3 * ROLLOUT * num_envs
    run = f"--num-envs {num_envs} --vectorization {vectorization} --total-timesteps {total} {flags}"
    code, lines = main(capsys, train_ppo(env_id, run))
    assert code == 1, lines
    saved, error = lines
    assert saved == f"saved at step {ROLLOUT * num_envs}; go on with --resume"
    assert steps_kept(num_envs) == ROLLOUT * num_envs
    assert not list(Path().rglob("*.tmp"))
    monkeypatch.setitem(gym.registry[env_id].kwargs, "seed", -1)  # mended
    code, _ = main(capsys, "train-ppo --resume --save-path c/a.pt --vectorization sync")
    assert code == 0
    assert steps_kept(num_envs) == total
    return error


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("fault", SAYS)
def test_a_fault_in_this_process_is_one_line_that_says_where_and_the_run_can_go_on(fault, num_envs, capsys, monkeypatch):
    error = misbehave(capsys, monkeypatch, fault, num_envs, "sync")
    where = AT_RESET if fault in AT_RESETS else PLACE
    assert re.fullmatch(f"error: environment {num_envs - 1}, seed {seed_of(num_envs - 1)}, {where}.*({SAYS[fault]}).*", error)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("fault", ASYNC)
def test_a_fault_in_a_worker_is_one_line_that_says_where_and_the_run_can_go_on(fault, num_envs, capsys, monkeypatch):
    error = misbehave(capsys, monkeypatch, fault, num_envs, "async")
    says = LEFT.get(fault) or SAYS[fault]
    where = AT_RESET if fault in AT_RESETS else PLACE
    assert re.fullmatch(f"error: environment {num_envs - 1}, seed {seed_of(num_envs - 1)}, {where}.*({says}).*", error)


@pytest.mark.parametrize(("num_envs", "vectorization"), [(1, "sync"), (3, "sync"), (3, "async")])
@pytest.mark.parametrize("flags", ["", "--bounds strict"])
def test_an_observation_outside_its_bounds_is_a_fault(flags, num_envs, vectorization, capsys, monkeypatch):
    error = misbehave(capsys, monkeypatch, "observation outside", num_envs, vectorization, flags)
    says = r"the observation is outside its space's bounds: \[1.25\] where \[-1.0\] to \[1.0\] are allowed; .*--bounds any"
    assert re.fullmatch(f"error: environment {num_envs - 1}, seed {seed_of(num_envs - 1)}, {PLACE}{says}", error)


def test_an_observation_outside_its_bounds_is_taken_as_it_is_where_any_may_be(capsys, monkeypatch):
    code, _ = main(capsys, train_ppo(register(monkeypatch, "observation outside", 0), "--total-timesteps 96 --bounds any"))
    assert code == 0
    assert steps_kept() == 96


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("bounds", ["auto", "strict", "any"])
def test_lunar_lander_is_known_to_leave_its_bounds(bounds, vectorization):
    from il_based_rl.envs import make_envs
    from il_based_rl.errors import EnvironmentFaultError

    with make_envs("LunarLander-v3", 2, vectorization=vectorization, bounds=bounds) as envs:
        envs.reset([1, 1])
        ascend = lambda: [envs.step(np.array([2, 2])) for _ in range(60)]  # noqa: E731 - which leads out of sight
        if bounds == "strict":
            with pytest.raises(EnvironmentFaultError, match=r"step 56, after action 2: .* outside its space's bounds: \[2.5"):
                ascend()
        else:
            assert ascend()[-1].rows[0, 1] > envs.observation_space.high[1]


@pytest.mark.parametrize(("dtype", "beyond"), [(np.float32, 1e-7), (np.float64, 1e-7), (np.float16, 1e-3)])
@pytest.mark.parametrize("sent", [np.float32, np.float64])
def test_what_rounding_adds_to_a_bound_is_no_fault_and_more_is(dtype, beyond, sent):
    from il_based_rl.envs import Player
    from il_based_rl.errors import EnvironmentFaultError

    env = Faulty("none", -1)
    env.observation_space = gym.spaces.Box(np.array([-1.0, -np.inf], dtype), np.array([1.0, 0.0], dtype), dtype=dtype)
    player = Player(env, strict_bounds=True)
    for fitting in ([1.0 + beyond, beyond], [-1.0 - beyond, -0.0], [0.5, -1e9 if dtype is not np.float16 else -6e4]):
        env.reset = lambda fitting=fitting, **_: (np.array(fitting, sent), {})
        player.reset(1)
    for outside in ([1.02, 0.0], [-1.02, 0.0], [0.0, 0.02]):
        env.reset = lambda outside=outside, **_: (np.array(outside, sent), {})
        with pytest.raises(EnvironmentFaultError, match=r"outside its space's bounds: \[-?[01]\.[^,]*\] where"):
            player.reset(1)


@pytest.mark.parametrize("size", [2, 40])
def test_the_largest_number_of_a_type_is_no_bound(size):
    from il_based_rl.envs import Player

    env, most = Faulty("none", -1), np.finfo(np.float32).max
    env.observation_space = gym.spaces.Box(-most, most, (size,), np.float32)
    player = Player(env, strict_bounds=True)
    env.reset = lambda **_: (np.full(size, most), {})
    player.reset(1)
    assert (player.row == most).all()


@pytest.mark.parametrize("size", [2, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_what_is_not_finite_is_a_fault_whatever_the_bounds(size, value):
    from il_based_rl.envs import Player
    from il_based_rl.errors import EnvironmentFaultError

    env = Faulty("none", -1)
    env.observation_space = gym.spaces.Box(-1.0, np.array([np.inf] * size, np.float32), (size,), np.float32)
    player = Player(env, strict_bounds=True)
    env.reset = lambda **_: (np.append(np.zeros(size - 1), value), {})
    with pytest.raises(EnvironmentFaultError, match="not finite in float32"):
        player.reset(1)


def test_whole_numbers_outside_their_bounds_are_a_fault():
    from il_based_rl.envs import Player
    from il_based_rl.errors import EnvironmentFaultError

    env = Faulty("none", -1)
    env.observation_space = gym.spaces.Box(0, 4, (2,), np.int64)
    player = Player(env, strict_bounds=True)
    env.reset = lambda **_: (np.array([0, 4]), {})
    player.reset(1)
    env.reset = lambda **_: (np.array([0, 5]), {})
    with pytest.raises(EnvironmentFaultError, match=r"\[5\] where \[0\] to \[4\] are allowed"):
        player.reset(1)


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.SAME_STEP, gym.vector.AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize(
    "fault", ["observation outside", "nan observation", "inf observation", "nan reward", "inf reward", "nan at reset"]
)
def test_a_fault_in_somebodys_vector_environment_says_where(fault, mode):
    from il_based_rl.envs import VectorEnvs
    from il_based_rl.errors import EnvironmentFaultError

    envs = gym.vector.SyncVectorEnv([lambda: Faulty(fault, 12)] * 3, autoreset_mode=mode)
    envs = VectorEnvs(envs, strict_bounds=True)
    envs.reset([11, 12, 13])
    says = SAYS.get(fault, r"the observation is outside its space's bounds: \[1.25\] where .*--bounds any")
    where = AT_RESET if fault in AT_RESETS else PLACE
    step = lambda k: envs.step(np.full((3, 1), k / 100, np.float32))  # noqa: E731
    with pytest.raises(EnvironmentFaultError, match=rf"^environment 1, seed 12, {where}{says}"):
        list(map(step, range(2 * FAULTY_STEP)))


@pytest.mark.parametrize(("fault", "says"), [("raises", SAYS["raises"]), ("short observation", "ValueError: ")])
def test_a_vector_environment_that_raises_is_named_by_its_seeds(fault, says):
    from il_based_rl.envs import VectorEnvs
    from il_based_rl.errors import EnvironmentFaultError

    envs = VectorEnvs(gym.vector.SyncVectorEnv([lambda: Faulty(fault, 12)] * 2))
    envs.reset([11, 12])
    where = rf"failed in step \d+ since its reset: {says}.*; its seeds: \[11, 12\]; the actions: \[\[0.0\], \[0.0\]\]"
    with pytest.raises(EnvironmentFaultError, match=where):
        list(map(envs.step, [np.zeros((2, 1), np.float32)] * 2 * FAULTY_STEP))


def test_evaluation_in_training_keeps_to_the_same_bounds(capsys, monkeypatch):
    env_id = register(monkeypatch, "observation outside", 0, seed=seed_of(0, "evaluation in training"))
    flags = "--total-timesteps 384 --eval-interval 32"
    code, (saved, error) = main(capsys, train_ppo(env_id, flags))
    assert code == 1
    assert saved == f"saved at step {5 * ROLLOUT}; go on with --resume"
    assert "episode 1, step 5, after action" in error
    assert "outside its space's bounds: [1.25]" in error
    assert main(capsys, train_ppo(env_id, f"{flags} --bounds any --save-path c/b.pt")) == (0, [])


def test_bounds_are_kept_where_demonstrations_are_made_and_named_where_a_policy_is_judged(capsys, monkeypatch):
    main(capsys, train_ppo(register(monkeypatch, "none", 0), "--total-timesteps 32"))
    monkeypatch.setattr(sys.modules[Faulty.__module__], "FAULTY_STEP", 3)
    misfit = r"the observation is outside its space's bounds: \[1.25\] where \[-1.0\] to \[1.0\] are allowed; "
    seed = seed_of(2, "collection")
    env_id = register(monkeypatch, "observation outside", 0, seed=seed)
    collect = f"collect --env-id {env_id} --checkpoint c/a.pt --num-episodes 4 --seed 0 --save-path d.npz"
    code, (error,) = main(capsys, collect)
    assert code == 1
    assert re.fullmatch(
        rf"error: environment 2, seed {seed}, episode 1, step 3, after action .*: {misfit}.*--bounds any", error
    )
    assert not Path("d.npz").exists()
    assert main(capsys, f"{collect} --bounds any") == (0, [])

    seed = seed_of(2, "evaluation")
    env_id = register(monkeypatch, "observation outside", 0, seed=seed)
    evaluate = f"evaluate --env-id {env_id} --checkpoint c/a.pt --num-episodes 20 --seed 0"
    code, (line,) = main(capsys, evaluate)
    assert code == 0
    assert re.fullmatch(rf"{env_id}, start seed {seed}, step 3: {misfit}it is taken as it is, and nothing more said", line)


def test_bounds_are_kept_where_the_expert_is_asked(capsys, monkeypatch):
    main(capsys, train_ppo(register(monkeypatch, "none", 0), "--total-timesteps 32"))
    env_id = register(monkeypatch, "observation outside", 0, seed=seed_of(0, "aggregation"))
    dagger = f"dagger --env-id {env_id} --expert c/a.pt --save-path s.pt --seed 0 --rounds 2 --round-steps 64 --epochs 1"
    dagger += " --hidden-dims 4 --eval-episodes 2 --final-episodes 2"
    code, (*_, error) = main(capsys, dagger)
    assert code == 1
    assert re.fullmatch(
        r"error: environment 0, seed \d+, episode 1, step \d+, after action .*outside its space's bounds: .*", error
    )
    code, _ = main(capsys, f"{dagger} --bounds any")
    assert code == 0


@pytest.mark.parametrize("fault", ["hangs", "hangs at reset"])
def test_a_worker_that_hangs_is_given_up_after_the_allowed_time(fault, capsys, monkeypatch):
    error = misbehave(capsys, monkeypatch, fault, 3, "async", "--env-timeout 1")
    where = AT_RESET if fault in AT_RESETS else PLACE
    assert re.fullmatch(f"error: environment 2, seed {seed_of(2)}, {where}its worker process has not answered for 1 s.*", error)


def test_a_worker_that_hangs_while_it_makes_its_environment_is_given_up(capsys, monkeypatch):
    from il_based_rl.envs import workers

    monkeypatch.setattr(workers, "STARTING_SECONDS", 2.0)
    env_id = register(monkeypatch, "hangs when made", 0)
    code, (error,) = main(capsys, train_ppo(env_id, "--num-envs 3 --vectorization async"))
    assert code in (1, 2)
    assert re.fullmatch(r"error: the worker of environments 0 to \d has not answered for 2 s.*", error)
    assert not Path("c").exists()


@pytest.mark.parametrize("when", ["between two rollouts", "in a rollout"])
def test_a_worker_killed_from_outside_is_named_by_its_environment(when, capsys, monkeypatch):
    from il_based_rl.envs.workers import WorkerEnvs
    from il_based_rl.ppo_agent import PPOAgent

    owner, name, nth = (PPOAgent, "update", 2) if when == "between two rollouts" else (WorkerEnvs, "step", FAULTY_STEP)
    real, calls, before = getattr(owner, name), [], running()

    def counted(self, *given):
        calls.append(given)
        if len(calls) == nth:
            for pid in running() - before:
                os.kill(pid, signal.SIGKILL)
        return real(self, *given)

    env_id = register(monkeypatch, "none", 0)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, counted)
        code, lines = main(capsys, train_ppo(env_id, "--num-envs 3 --vectorization async --total-timesteps 384"))
    assert code == 1
    saved, error = lines
    assert saved == f"saved at step {3 * ROLLOUT}; go on with --resume"
    assert re.fullmatch(
        r"error: environment \d, seed \d+, episode \d+, .*: its worker process died with exit code -9 \(killed.*", error
    )
    code, _ = main(capsys, "train-ppo --resume --save-path c/a.pt --vectorization sync")
    assert code == 0
    assert steps_kept(3) == 384


def test_an_environment_that_raises_an_interrupt_in_this_process_is_taken_for_one(capsys, monkeypatch):
    env_id = register(monkeypatch, "interrupts", 0)
    code, lines = main(capsys, train_ppo(env_id, "--total-timesteps 96"))
    assert code == 130
    assert lines == [f"saved at step {ROLLOUT}; go on with --resume", "interrupted"]


def test_workers_themselves_say_nothing_from_a_shell_whatever_their_environment_does(tmp_path):
    script = f"""
        import gymnasium as gym, sys
        from il_based_rl import train_ppo
        from il_based_rl.seeding import start_seeds

        if __name__ == "__main__":
            seed = list(start_seeds(0, "training environments", 1))[0]
            for fault in ("interrupts", "leaves with a text", "raises what cannot be pickled", "raises when closed"):
                gym.register("faults/Shell-v0", "test_faults:Faulty", kwargs={{"fault": fault, "seed": seed}})
                try:
                    print(fault, file=sys.stderr)
                    train_ppo.main({train_ppo("faults/Shell-v0", "--vectorization async --total-timesteps 96").split()[1:]})
                except SystemExit as leaving:
                    print("code", leaving.code, file=sys.stderr)
                del gym.registry["faults/Shell-v0"]
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=100, env=surroundings)
    lines = [line for line in done.stderr.splitlines() if "is replaced by this run" not in line]
    names = ("interrupts", "leaves with a text", "raises what cannot be pickled", "raises when closed")
    told = {name: lines[lines.index(name) + 1 :] for name in names}
    assert "Traceback" not in done.stderr, done.stderr
    for name in names[:3]:
        saved, error, code = told[name][:3]
        assert saved == f"saved at step {ROLLOUT}; go on with --resume"
        assert error.startswith(f"error: environment 0, seed {seed_of(0)}, episode 6, step 5, after action [")
        assert code == "code 1"
    assert told["raises when closed"] == []


# ---- elsewhere than in a rollout ----


def test_a_fault_in_an_evaluation_keeps_the_last_whole_update(capsys, monkeypatch):
    seed = seed_of(0, "evaluation in training")
    env_id = register(monkeypatch, "raises", 0, seed=seed)
    flags = "--total-timesteps 960 --eval-interval 32 --eval-episodes 1"
    code, lines = main(capsys, train_ppo(env_id, flags))
    assert code == 1
    assert lines[0] == f"saved at step {5 * ROLLOUT}; go on with --resume"
    # The sixth evaluation, each of one episode from the same seed.
    assert re.fullmatch(
        rf"error: environment 0, seed {seed}, episode 1, step 5, after action .*: {MOTOR}",
        lines[1],
    )


@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_a_fault_in_a_collection_or_an_evaluation_is_one_line_and_leaves_what_was_there(command, capsys, monkeypatch):
    main(capsys, train_ppo(register(monkeypatch, "none", 0), "--total-timesteps 32"))
    Path("d.npz").write_bytes(b"old")
    purpose = {"collect": "collection", "evaluate": "evaluation"}[command]
    env_id = register(monkeypatch, "raises", 0, seed=seed_of(2, purpose))
    monkeypatch.setattr(sys.modules[Faulty.__module__], "FAULTY_STEP", 3)
    flags = "--save-path d.npz" if command == "collect" else ""
    code, lines = main(capsys, f"{command} --env-id {env_id} --checkpoint c/a.pt --num-episodes 4 --seed 0 {flags}")
    assert code == 1
    (error,) = lines
    assert re.fullmatch(
        rf"error: environment 2, seed {seed_of(2, purpose)}, episode 1, step 3, after action .*: {MOTOR}",
        error,
    )
    assert [path.read_bytes() for path in Path().glob("d.npz*")] == [b"old"]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_made_is_one_line_and_nothing_is_begun(vectorization, capsys, monkeypatch):
    env_id = register(monkeypatch, "raises when made", 0)
    code, lines = main(capsys, train_ppo(env_id, f"--num-envs 3 --vectorization {vectorization}"))
    assert code == 2
    (line,) = lines
    says = rf"error: environment {env_id} cannot be made: OSError: no such device /dev/robot \(test_faults.py, line \d+\)"
    assert re.fullmatch(says, line)
    assert not Path("c").exists()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_closed_loses_nothing_and_is_no_traceback(vectorization, capsys, monkeypatch):
    env_id = register(monkeypatch, "raises when closed", 0)
    code, lines = main(capsys, train_ppo(env_id, f"--vectorization {vectorization} --total-timesteps 64"))
    assert code in (0, 1)
    assert len(lines) <= 1
    assert steps_kept() == 64


# ---- what is let pass ----


@pytest.mark.parametrize("flag", [np.bool_(True), 1, np.array(True), np.array([True])], ids=repr)
def test_flags_of_any_kind_of_truth_end_an_episode(flag):
    from il_based_rl.envs import Player

    env = Faulty("none", -1)
    env.step = lambda action: (np.zeros(2, np.float32), np.float32(1.0), flag, np.bool_(False), {})
    player = Player(env)
    player.reset(1)
    assert player.step(np.zeros(1, np.float32)) == (1.0, True, False)


# ---- constructors, and environments that random actions break ----


class Leaving(Faulty):
    def __init__(self):
        sys.exit(0)


class WithoutSpaces(gym.Env):
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}


@pytest.mark.parametrize(("kind", "says"), [(Leaving, "SystemExit: 0"), (WithoutSpaces, "AttributeError.*space")])
def test_a_constructor_that_leaves_or_forgets_a_space_is_one_line(kind, says, capsys):
    gym.register("faults/Made-v0", kind)
    code, lines = main(capsys, train_ppo("faults/Made-v0", ""))
    assert code == 2
    assert re.search(f"environment faults/Made-v0 cannot be made: {says}", " ".join(lines))
    assert not Path("c").exists()
    del gym.registry["faults/Made-v0"]


def test_an_environment_that_random_actions_break_is_resumed_with_new_episodes():
    from il_based_rl.envs import FROM_EPISODE, InProcessEnvs, resume_level

    class Limited(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.np_random.random()
            self._place = np.zeros(1, np.float32)
            return self._place, {}

        def step(self, action):
            self._place = self._place + action
            if abs(self._place[0]) > 2.0:
                raise RuntimeError("joint limit")
            return self._place.astype(np.float32), 0.0, False, False, {}

    gym.register("faults/Limited-v0", Limited)
    assert resume_level("faults/Limited-v0") == FROM_EPISODE
    with InProcessEnvs("faults/Limited-v0") as envs:
        envs.reset([1])
        envs.step(np.zeros((1, 1), np.float32))
        _, levels = envs.restore(envs.states())
    assert levels == [FROM_EPISODE]
    del gym.registry["faults/Limited-v0"]
