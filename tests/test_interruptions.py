"""Signals and the clock, wherever a command is: it ends soon, says so in a line, keeps what was learned and leaves no process.

A server process imports everything once, and forks a child for each command, which ends as any process of its own does. The
environments below sleep where they are told to, and leave a file named `inside` when they begin to.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

# Workers import this module to find the class below, so that nothing heavier than the above may stand here.

sys.modules.setdefault("test_interruptions", sys.modules[__name__])  # where it is a script, and in the workers of that

SLEEP, SOON = 60.0, 5.0
"""Whoever waits for an environment that sleeps is found out; two seconds are promised, and a busy machine may take more."""
CODES = {signal.SIGINT: (130, -signal.SIGINT), signal.SIGTERM: (143, -signal.SIGTERM)}
"""Of an own exit, and as the interpreter has it where it was busy with itself; a shell shows the former for both."""

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied by os.fork"),
    pytest.mark.timeout(120),
]


class Sleepy(gym.Env):
    """Episodes of five steps; sleeps once, `when` is one of the places below."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, when=None):
        self._when, self._steps, self._resets, self._seeded = when, 0, 0, 0
        if self._is_worker() and when == "worker's constructor":
            self._sleep()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._seeded += seed is not None
        self._resets += 1
        if self._when == "reset" and self._resets == 8:
            self._sleep()
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._steps += 1
        if self._steps == 40 and (self._when == "step" or (self._when == "worker's step" and self._is_worker())):
            self._sleep()
        if self._steps == 3 and self._when == "third step":
            self._sleep()
        if self._seeded == 3 and self._when == "evaluation":  # training gives a seed once
            self._sleep()
        return np.zeros(1, np.float32), 1.0, self._steps % 5 == 0, False, {}

    def _sleep(self):
        inside = Path(os.environ["INSIDE"])
        if not inside.exists():
            inside.touch()
            time.sleep(SLEEP)

    def _is_worker(self):
        return multiprocessing.parent_process() is not None


def env_id(when):
    return f"interruptions/{when.title().replace(' ', '').replace(chr(39), '')}-v0"


for _when in ("never", "step", "third step", "reset", "evaluation", "worker's step", "worker's constructor"):
    gym.register(env_id(_when), "test_interruptions:Sleepy", kwargs={"when": _when})


# ---- the server ----


def slow_disk():
    """Let the disk take its time once an environment has slept."""
    real = os.fsync

    def fsync(descriptor):
        if Path("inside").exists():
            Path("saving").touch()
            time.sleep(SLEEP)
        real(descriptor)

    os.fsync = fsync


def serve():
    """Fork a child for each command that is asked for, and wait for it; return the command, in the child."""
    import il_based_rl.agent
    import il_based_rl.collect
    import il_based_rl.evaluate
    import il_based_rl.experiment.run
    import il_based_rl.ppo_agent
    import il_based_rl.train
    import il_based_rl.train_ppo  # noqa: F401

    while line := os.read(0, 10_000):
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(**request)
        elif (answer := os.fork()) == 0:
            os.setsid()
            os.chdir(request["folder"])
            os.environ["INSIDE"] = str(Path("inside").resolve())
            for stream, name in enumerate((os.devnull, "stdout", "stderr")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), stream)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 - to its end
            sys.modules["__main__"] = types.ModuleType("__main__")  # workers need not import this module twice
            if request["slow_disk"]:
                slow_disk()
            return request["command"]
        os.write(1, f"{json.dumps(answer)}\n".encode())
    sys.exit()


def _wait(wait, seconds, codes={}):  # noqa: B006 - it is to remember
    limit = time.monotonic() + seconds
    while wait not in codes and time.monotonic() < limit:
        ended, status = os.waitpid(wait, os.WNOHANG)
        if ended:
            codes[wait] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return codes.get(wait)


@pytest.fixture(scope="module")
def server():
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=surroundings(), start_new_session=True, bufsize=0) as process:

        def ask(**request):
            process.stdin.write(json.dumps(request).encode())
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


# ---- what is asked of it ----


class Command:
    """A command that goes on in a process group of its own, in the present folder."""

    def __init__(self, ask, command, *, slow_disk=False):
        self._ask = ask
        self.pid = ask(folder=str(Path.cwd()), command=command, slow_disk=slow_disk)

    def await_file(self, name="inside", content=b""):
        """Wait until a file is there that holds something."""
        limit = time.monotonic() + 60.0
        while not (Path(name).exists() and content in Path(name).read_bytes()):
            assert self._ask(wait=self.pid, seconds=0.02) is None, f"it has ended: {self.messages}"
            assert time.monotonic() < limit, f"it does not get there: {self.messages}"

    def send(self, number, to="process"):
        (os.kill if to == "process" else os.killpg)(self.pid, number)

    def code(self, seconds=SOON):
        """Wait for the end, of it and of every process that it has started; return its exit code."""
        limit = time.monotonic() + seconds
        code = self._ask(wait=self.pid, seconds=seconds)
        assert code is not None, f"it does not end: {self.messages}"
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < limit:
                os.killpg(self.pid, 0)
                time.sleep(0.01)
            raise AssertionError("it leaves a process behind")
        return code

    @property
    def messages(self):
        return Path("stderr").read_text()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ask(wait=self.pid, seconds=SOON)


@pytest.fixture
def start(server, tmp_path, monkeypatch):
    """Start commands; whatever they leave behind is killed in the end."""
    started = []

    def start(command, **settings):
        started.append(Command(server, command.split(), **settings))
        return started[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSIDE", str(tmp_path / "inside"))
    yield start
    for command in started:
        command.kill()


def train_ppo(when, flags=""):
    tiny = "--n-steps 32 --batch-size 32 --n-epochs 1 --hidden-dims 4 --eval-interval 32 --eval-episodes 1 --seed 0"
    return f"train-ppo --env-id {env_id(when)} {tiny} --save-path c/a.pt --total-timesteps 128 {flags}".strip()


def steps_kept():
    """Steps of the policy at the save path, up to which every row is there once; one row more may be written already."""
    from il_based_rl.files import read_checkpoint, read_rows

    training = read_checkpoint("c/a.pt")["training"]
    steps = training["env_steps"] if "env_steps" in training else training["epochs"]
    rows = [row["step"] for row in read_rows("c/a/metrics.jsonl")]
    assert rows == sorted(set(rows))
    assert rows[-1:] in ([], [steps]) or rows[-2:-1] == [steps]
    return steps


def surroundings(**more):
    """The environment of a process that finds this module."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def main(command):
    """Run a command in this process."""
    from il_based_rl.__main__ import main

    main(command.split() if isinstance(command, str) else command)


def collected():
    """Leave an expert that was hardly trained, and demonstrations of it."""
    main(f"{train_ppo('never')} --total-timesteps 32 --save-path expert.pt")
    main(f"collect --env-id {env_id('never')} --checkpoint expert.pt --num-episodes 4 --save-path d.npz")


def run_script(text, folder):
    """Run a script in a process of its own; return its exit code and what it says."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    command, files = [sys.executable, "script.py"], [folder / "stdout", folder / "stderr"]
    with open(files[0], "wb") as output, open(files[1], "wb") as messages:
        process = subprocess.Popen(
            command, cwd=folder, env=surroundings(), stdout=output, stderr=messages, start_new_session=True
        )
        try:
            code = process.wait(2 * SOON)
        except subprocess.TimeoutExpired:
            code = "it does not end"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, *(path.read_text() for path in files)


def await_process(group, name):
    """Wait until a process group has one whose command line holds a name."""
    limit = time.monotonic() + 30.0
    while time.monotonic() < limit:
        listed = subprocess.run(["ps", "-A", "-o", "pgid=,args="], capture_output=True, text=True).stdout
        if any(line.split()[0] == str(group) and name in line for line in listed.splitlines()):
            return
        time.sleep(0.01)
    raise AssertionError(f"there is no {name}")


def half_written():
    return [str(path) for path in Path().rglob("*.tmp")]


def resume(flags="--vectorization sync"):
    """Go on in this process, where nothing sleeps as all have slept."""
    main(f"train-ppo --resume --save-path c/a.pt {flags}")
    assert steps_kept() >= 128


RARELY = "--eval-interval 1000"
"""So that no checkpoint is written before the end."""
PHASES = {  # what sleeps, and the last whole update, which only its end saves
    "a step of a rollout": ("step", RARELY, 32),
    "a reset of a rollout": ("reset", RARELY, 32),
    "an evaluation": ("evaluation", "--eval-interval 64 --total-timesteps 192", 160),
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("phase", PHASES)
def test_training_ends_soon_in_any_phase_with_the_last_whole_update_saved(phase, number, start):
    when, flags, steps = PHASES[phase]
    command = start(train_ppo(when, flags))
    command.await_file()
    command.send(number)
    assert command.code() in CODES[number]
    assert command.messages.splitlines() == [f"saved at step {steps}; go on with --resume", "interrupted"]
    assert steps_kept() == steps
    assert half_written() == []
    resume("--total-timesteps 192")
    assert steps_kept() == 192


@pytest.mark.parametrize("number", CODES)
def test_training_ends_soon_in_an_update_with_the_last_whole_one_saved(number, start):
    main(train_ppo("never", "--total-timesteps 64"))
    command = start("train-ppo --resume --save-path c/a.pt --total-timesteps 128 --n-epochs 10000000")
    command.await_file("stderr", b"resuming")
    time.sleep(0.3)  # the rollout takes a hundredth of that, the update hours
    command.send(number)
    assert command.code() in CODES[number]
    assert command.messages.splitlines()[1:] == ["saved at step 64; go on with --resume", "interrupted"]
    assert steps_kept() == 64
    resume("--n-epochs 1")


@pytest.mark.parametrize("number", CODES)
def test_cloning_ends_soon_with_the_last_whole_epoch_saved(number, start):
    collected()
    command = start("train --demo-path d.npz --epochs 10000000 --hidden-dims 4 --seed 0 --save-path c/a.pt")
    command.await_file("c/a/metrics.jsonl", b'"step": 100,')
    command.send(number)
    assert command.code() in CODES[number]
    saved, interrupted = command.messages.splitlines()
    assert steps_kept() >= 99  # a signal may come between the 100th row and its student, and the row is then taken back
    assert (saved, interrupted) == (f"saved at step {steps_kept()}; go on with --resume", "interrupted")
    assert half_written() == []


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("old", [False, True], ids=["nothing", "older demonstrations"])
def test_a_collection_ends_soon_and_leaves_what_was_there(old, number, start):
    collected()
    before = Path("d.npz").read_bytes()
    if not old:
        Path("d.npz").unlink()
    command = start(f"collect --env-id {env_id('third step')} --checkpoint expert.pt --num-episodes 4 --save-path d.npz")
    command.await_file()
    command.send(number)
    assert command.code() in CODES[number]
    assert command.messages.splitlines() == ["interrupted"]
    assert [path.read_bytes() for path in Path().glob("*.npz*")] == [before] * old
    assert half_written() == []


@pytest.mark.parametrize("number", CODES)
def test_an_evaluation_by_itself_ends_soon(number, start):
    collected()
    command = start(f"evaluate --env-id {env_id('third step')} --checkpoint expert.pt --num-episodes 4")
    command.await_file()
    command.send(number)
    assert command.code() in CODES[number]
    assert command.messages.splitlines() == ["interrupted"]


# ---- worker processes ----

ASYNC = f"--num-envs 2 --n-steps 16 --vectorization async {RARELY}"


@pytest.mark.parametrize("to", ["process", "group"])
@pytest.mark.parametrize("number", CODES)
def test_no_worker_survives_a_signal_though_it_is_inside_a_long_step(number, to, start):
    # To the group: as a terminal sends Ctrl-C, and a service manager or a batch system ends what it has started.
    command = start(train_ppo("worker's step", ASYNC))
    command.await_file()
    command.send(number, to)
    assert command.code() in CODES[number]
    assert command.messages.splitlines() == ["saved at step 64; go on with --resume", "interrupted"]
    assert steps_kept() == 64
    resume()


@pytest.mark.parametrize("number", CODES)
def test_no_worker_survives_a_signal_though_it_still_makes_its_environment(number, start):
    command = start(train_ppo("worker's constructor", ASYNC))
    command.await_file()
    command.send(number, "group")
    assert command.code() in CODES[number]
    assert command.messages.splitlines() == ["interrupted"]


def test_an_interrupt_of_the_group_while_the_workers_are_started_is_no_traceback(start):
    command = start(train_ppo("never", ASYNC))
    await_process(command.pid, "forkserver")
    time.sleep(0.1)  # it imports the package, which takes several times as long
    command.send(signal.SIGINT, "group")
    assert command.code() in CODES[signal.SIGINT]
    assert command.messages.splitlines()[-1] == "interrupted"
    assert len(command.messages.splitlines()) <= 2


def test_environments_that_nobody_closes_do_not_keep_the_process(tmp_path):
    script = f"""
        from il_based_rl.envs import make_envs
        if __name__ == "__main__":
            envs = make_envs("test_interruptions:{env_id("never")}", 2, vectorization="async")
            envs.reset([1, 2])
            print("at its end")
    """
    assert run_script(script, tmp_path) == (0, "at its end\n", "")


def test_a_signal_that_is_lost_in_a_destructor_ends_the_run_after_the_update(tmp_path):
    script = f"""
        import signal, sys
        import test_interruptions

        class Struck:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)

        class Robot(test_interruptions.Sleepy):
            def step(self, action):
                if self._steps == 40:
                    Struck()
                return super().step(action)

        sys.unraisablehook = lambda told: print("lost", type(told.exc_value).__name__)
        test_interruptions.gym.register("interruptions/Robot-v0", Robot)
        from il_based_rl.__main__ import main
        main({train_ppo("never", RARELY).replace("Never", "Robot").split()})
    """
    code, output, messages = run_script(script, tmp_path)
    assert output.splitlines()[-1] == "lost Terminated"
    assert messages.splitlines() == ["saved at step 64; go on with --resume", "interrupted"]
    assert code == 143


def test_a_time_limit_that_rings_in_a_destructor_rings_again(tmp_path):
    script = f"""
        import sys, time
        import test_interruptions

        class Slow:
            def __del__(self):
                time.sleep({SLEEP})

        class Robot(test_interruptions.Sleepy):
            def step(self, action):
                if self._steps == 40:
                    Slow()
                return super().step(action)

        sys.unraisablehook = lambda told: print("lost", type(told.exc_value).__name__)
        test_interruptions.gym.register("interruptions/Robot-v0", Robot)
        from il_based_rl.__main__ import main
        main({train_ppo("never", f"{RARELY} --max-time 1 --total-timesteps 100000000").replace("Never", "Robot").split()})
    """
    code, output, messages = run_script(script, tmp_path)
    assert "lost TimeIsUp" in output.splitlines()
    assert "go on with --resume" in messages
    assert code == 0


def test_a_second_sigterm_does_not_cut_off_the_save_that_the_first_one_began(start):
    command = start(train_ppo("step", RARELY), slow_disk=False)
    command.await_file()
    for _ in range(200):  # as `timeout` sends it twice, and others more often
        with contextlib.suppress(ProcessLookupError):
            command.send(signal.SIGTERM)
    assert command.code() in CODES[signal.SIGTERM]
    assert command.messages.splitlines() == ["saved at step 32; go on with --resume", "interrupted"]
    assert steps_kept() == 32


# ---- whoever else is waited for ----


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("when", ["in a row", "at the end"])
@pytest.mark.parametrize(
    ("seconds", "told"), [(SLEEP, ["Weights & Biases is still sending, and is not waited for"]), (0.0, [])]
)
def test_a_tracker_that_goes_on_sending_does_not_keep_an_interrupted_run(number, when, seconds, told, tmp_path):
    script = f"""
        import atexit, signal, sys, time, types

        class Run:
            rows = finishing = 0

            def log(self, row, step):
                self.rows += 1
                if self.rows == 2 and {when == "in a row"}:
                    signal.raise_signal({int(number)})

            def finish(self):
                self.finishing += 1
                if {when == "at the end"} and self.finishing == 1:
                    signal.raise_signal({int(number)})
                time.sleep({seconds})

        def init(**settings):
            atexit.register(run.finish)  # as the real one's package does
            return run

        run = Run()
        sys.modules["wandb"] = types.SimpleNamespace(init=init)
        from il_based_rl.__main__ import main
        import test_interruptions
        main({train_ppo("never", "--wandb").split()})
    """
    code, _, messages = run_script(script, tmp_path)
    assert code == CODES[number][0]
    saved = ["saved at step 32; go on with --resume"] if when == "in a row" else []  # all is saved at the end
    assert messages.splitlines()[-len(saved) - len(told) - 1 :] == [*saved, *told, "interrupted"]


def test_a_command_leaves_without_a_look_through_all_that_was_imported(tmp_path):
    script = """
        import atexit, gc
        atexit.register(lambda: print(gc.get_freeze_count() > 10_000))  # the first one is called last
        from il_based_rl.__main__ import main
        main(["presets"])
    """
    code, output, _ = run_script(script, tmp_path)
    assert (code, output.splitlines()[-1]) == (0, "True")


# ---- a second signal ----


@pytest.mark.parametrize("to", ["process", "group"])
def test_a_second_interrupt_leaves_at_once_though_a_worker_is_inside_a_long_step(to, start):
    command = start(train_ppo("worker's step", ASYNC))
    command.await_file()
    command.send(signal.SIGINT, to)
    command.await_file("stderr", b"saved at step 64")
    time.sleep(0.1)
    command.send(signal.SIGINT, to)
    assert command.code() in CODES[signal.SIGINT]
    assert "Traceback" not in command.messages
    assert steps_kept() == 64


def test_a_second_interrupt_while_the_first_ones_checkpoint_is_written_leaves_the_one_before(start):
    command = start(train_ppo("step", RARELY), slow_disk=True)
    command.await_file()
    before = Path("c/a.pt").read_bytes()
    command.send(signal.SIGINT)
    command.await_file("saving")
    command.send(signal.SIGINT)
    assert command.code() in CODES[signal.SIGINT]
    assert "Traceback" not in command.messages
    assert Path("c/a.pt").read_bytes() == before
    assert half_written() == []
    resume()


# ---- the beginning of a process ----


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("module", ["tyro", "torch", "torch.nn", "gymnasium"])
def test_a_signal_while_a_process_imports_its_packages_is_no_traceback(module, number, tmp_path):
    script = f"""
        import importlib.abc, os, sys

        class Signals(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == {module!r}:
                    os.kill(os.getpid(), {int(number)})

        sys.meta_path.insert(0, Signals())
        sys.argv = "il-rl train-ppo --total-timesteps 100000000 --save-path c/a.pt".split()
        from il_based_rl.__main__ import main
        main()
    """
    code, _, messages = run_script(script, tmp_path)
    assert code in CODES[number]
    assert messages in ("interrupted\n", "")
    assert not (tmp_path / "c").exists()


# ---- the clock ----


@pytest.mark.parametrize(
    ("when", "flags", "steps"),
    [*(PHASES[name] for name in ("a step of a rollout", "an evaluation")), ("worker's step", ASYNC, 64)],
    ids=["in a step", "in an evaluation", "in a worker's step"],
)
def test_a_run_ends_by_the_clock_wherever_it_is_with_a_checkpoint_and_without_an_error(when, flags, steps, start):
    command = start(train_ppo(when, f"--max-time 1 {flags}"))
    command.await_file()
    assert command.code() == 0
    assert command.messages.splitlines() == [f"saved at step {steps}; go on with --resume"]
    assert Path("stdout").read_text().splitlines()[-1] == "Checkpoint saved to c/a.pt"
    assert steps_kept() == steps
    resume("--max-time None --vectorization sync")


def test_cloning_ends_by_the_clock(start):
    collected()
    command = start("train --demo-path d.npz --epochs 10000000 --hidden-dims 4 --seed 0 --save-path c/a.pt --max-time 0.5")
    assert command.code() == 0
    assert command.messages.splitlines() == [f"saved at step {steps_kept()}; go on with --resume"]
    assert steps_kept() > 0


def limited(name, seconds):
    """Run a command with a limit of time in this process; return its exit code."""
    if name == "train":
        collected()
    command = train_ppo("never") if name == "train-ppo" else "train --demo-path d.npz --epochs 1 --save-path c/a.pt"
    try:
        main([*command.split(), f"--max-time={seconds}"])
    except SystemExit as leaving:
        return leaving.code
    return 0


@pytest.mark.parametrize("name", ["train-ppo", "train"])
def test_a_limit_of_time_outside_the_main_thread_is_refused_before_anything_is_replaced(name, start, capsys):
    assert limited(name, 100) == 0
    before = {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()}
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(limited, name, 100).result() == 2
    assert "--max-time works in the main thread" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "-inf", "soon", ""])
@pytest.mark.parametrize("name", ["train-ppo", "train"])
def test_a_limit_of_time_that_is_none_is_refused(name, seconds, start, capsys):
    assert limited(name, seconds) == 2
    assert "max-time" in capsys.readouterr().err
    assert not Path("c").exists()


@pytest.mark.parametrize("seconds", ["1e10", "1e300"])
def test_a_limit_of_time_beyond_what_the_clock_can_count_is_refused_or_none(seconds, start):
    assert limited("train-ppo", seconds) == 2 or steps_kept() == 128


# ---- two runs, one save path ----


@pytest.mark.parametrize("flags", ["", "--resume", "--seed 1"])
def test_a_second_run_of_one_save_path_names_the_first_and_touches_nothing(flags, start, capsys):
    first = start(train_ppo("step"))
    first.await_file()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("c").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as leaving:
        main(train_ppo("step", flags))
    assert leaving.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert f"process {first.pid}" in error
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("c").rglob("*") if path.is_file()}
    assert after == before
    first.kill()
    resume()


def test_a_killed_run_lets_go_of_its_save_path_though_its_worker_is_inside_a_long_step(start):
    command = start(train_ppo("worker's step", ASYNC))
    command.await_file()
    os.kill(command.pid, signal.SIGKILL)
    assert command._ask(wait=command.pid, seconds=SOON) == -signal.SIGKILL
    resume()


if __name__ == "__main__" and (asked := serve()):
    from il_based_rl.__main__ import main

    main(asked)
