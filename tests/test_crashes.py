"""A process killed, or a disk that fails, at any call of the file system: what is on disk stays whole, and a run goes on.

The calls are counted from inside: every open, rename, removal and folder by Python's audit hook, every write, close and sync
by a file object that stands in for the real one. A forked child has its own count and its own copy of the files, and is killed
at one call, or has that one fail; the parent, which shares the warm import, looks at what is left.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import resource
import shutil
import sys
import traceback
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import il_based_rl.evaluate
from il_based_rl import collect, train, train_ppo
from il_based_rl.agent import BCAgent
from il_based_rl.dataset import DemoDataset
from il_based_rl.experiment.run import TIME_FIELDS, Run, RunFiles
from il_based_rl.files import read_arrays, read_checkpoint, read_rows, write_arrays

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied by os.fork")


class Walk(gym.Env):
    """A random walk of seven steps, of which nothing is hidden."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._steps = self.np_random.normal(size=1).astype(np.float32), 0
        return self._place.copy(), {}

    def step(self, action):
        self._steps += 1
        self._place = (self._place + action + self.np_random.normal(size=1)).astype(np.float32)
        return self._place.copy(), -float(np.abs(self._place).sum()), self._steps == 7, False, {}


gym.register("crashes/Walk-v0", Walk)

TINY = "--env-id crashes/Walk-v0 --n-steps 32 --batch-size 32 --n-epochs 1 --hidden-dims 4 --eval-interval 32 --eval-episodes 1"
FRESH = f"{TINY} --seed 0 --save-path c/a.pt --total-timesteps 160".split()
RESUMED = ["--resume", "--save-path", "c/a.pt", "--total-timesteps", "160"]
REWOUND = ["--resume", "c/a/step_0000000064.pt", "--save-path", "c/a.pt", "--total-timesteps", "160"]
STEPS = [32, 64, 96, 128, 160]
KILLED, NOT_STRUCK, BROKEN = 9, 99, 70
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk(monkeypatch):
    """What is killed here is a process, not the machine, so that nobody has to wait; syncs are counted all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _later_policies_are_better(monkeypatch):
    """Let every evaluation find a new best policy, so that every checkpoint is written to all of its places."""
    better = lambda agent, *_, **__: types.SimpleNamespace(mean=float(agent.env_steps))  # noqa: E731
    monkeypatch.setattr(il_based_rl.evaluate, "play_evaluation", better)


# ---- a child that fails at one call ----


class Strike:
    """Counts the calls of the file system below the present folder, and strikes at one of them: kills, or raises an error."""

    def __init__(self, at: int, error: int | None = None) -> None:
        self.at, self.error, self.count, self.armed = at, error, 0, True

    def call(self, begin=None) -> None:
        """Count a call; `begin` does half of it."""
        if not self.armed:
            return
        self.count += 1
        if self.count == self.at:
            self.armed = False
            if begin is not None:
                begin()
            if self.error is None:
                os._exit(KILLED)
            raise OSError(self.error, os.strerror(self.error))

    def install(self) -> None:
        """Begin to count, in this process and for good."""
        here, real_open, real_fsync = Path.cwd(), builtins.open, os.fsync
        strike = self

        class Counted(io.FileIO):
            def write(self, data):
                data = memoryview(data).cast("B")
                strike.call(begin=lambda: super(Counted, self).write(data[: len(data) // 2]))
                return super().write(data)

            def truncate(self, size=None):
                strike.call()
                return super().truncate(size)

            def close(self):
                was_open = not self.closed
                super().close()
                if was_open:
                    strike.call()

        def is_below(path):
            return isinstance(path, str | os.PathLike) and here in (here / path).parents

        def opened(path, mode="r", buffering=-1, encoding=None, **named):
            if set(mode) & set("wax+") == set() or not is_below(path):
                return real_open(path, mode, buffering, encoding, **named)
            raw = Counted(path, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding)

        def synced(descriptor):
            self.call()
            real_fsync(descriptor)

        def audited(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link") and is_below(arguments[0]):
                self.call()

        builtins.open, os.fsync = opened, synced
        sys.addaudithook(audited)


def leave(code):
    """End a child as a process ends, but without anything that its parent has to tidy up."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def code_of(call, *arguments):
    """Run a command; return its exit code, or `BROKEN` where it fails in a way that no command may."""
    try:
        call(*arguments)
    except SystemExit as leaving:
        return leaving.code or 0
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return BROKEN
    return 0


class Branches:
    """Where a function is called for the n-th time, a child leaves for each call of the file system that follows.

    The child goes on with a copy of the present folder, and is struck at that call.

    Args:
        monkeypatch: The test's.
        function: Its owner and its name.
        nth: Which of its calls.
        until: At whose end a child that was not struck has nothing more to be struck in, its owner and its name; None for the
            command itself.
        errors: With which the calls fail, in turn; none kills the child instead.
        ends: Whether a child ends with `until`, rather than with the command.
    """

    def __init__(self, monkeypatch, function, nth=1, *, until=None, errors=(), ends=False):
        self.statuses: dict[Path, int] = {}
        self._parent, self._strike, self._errors, self._ends = os.getpid(), None, errors, ends
        real, calls = getattr(*function), itertools.count(1)

        def branching(*given, **named):
            if next(calls) == nth and os.getpid() == self._parent:
                self._branch()
            return real(*given, **named)

        monkeypatch.setattr(*function, branching)
        if until is None:
            return
        real_end = getattr(*until)

        def end(*given, **named):
            result = real_end(*given, **named)
            if self._strike is not None and (self._strike.armed or self._ends):
                leave(NOT_STRUCK if self._strike.armed else 0)
            return result

        monkeypatch.setattr(*until, end)

    def _branch(self):
        here = Path.cwd()
        for n in range(1, 300):
            folder = here.with_name(f"{here.name}, call {n}")
            shutil.copytree(here, folder)
            if (child := os.fork()) == 0:
                _move_to(here, folder)
                self._strike = Strike(n, self._errors[n % len(self._errors)] if self._errors else None)
                self._strike.install()
                return
            self.statuses[folder] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if self.statuses[folder] == NOT_STRUCK:
                del self.statuses[folder]
                return
        raise AssertionError("there is no end to the calls")

    def run(self, call, *arguments):
        """Run a command that the children leave from, which end with its exit code; return their folders."""
        code = code_of(call, *arguments)
        if os.getpid() != self._parent:
            leave(NOT_STRUCK if self._strike.armed else code)
        assert code == 0
        assert len(self.statuses) > 5
        return list(self.statuses)


def _move_to(here, folder):
    """Go on in another folder, with what is said and with the metrics that are open."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"{folder} output", "w")  # noqa: SIM115 - to the end of the process
    for metrics in here.rglob("metrics.jsonl"):
        for descriptor in range(3, 256):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), metrics.stat()):
                    os.dup2(os.open(folder / metrics.relative_to(here), os.O_WRONLY | os.O_APPEND), descriptor)


def output_of(folder):
    return Path(f"{folder} output").read_text()


def tree(folder):
    """The files of a folder, but locks, by name; the name of a half-written one without the number of its process."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name != ".lock":
            found[re.sub(r"\.\d+\.tmp$", ".tmp", path.relative_to(folder).as_posix())] = path
    return found


def distinct(folders):
    """One folder of each content, whatever a half-written file holds."""
    kept = {}
    for folder in folders:
        content = [(name, not name.endswith(".tmp") and path.read_bytes()) for name, path in tree(folder).items()]
        kept.setdefault(hashlib.sha256(repr(content).encode()).digest(), folder)
    return list(kept.values())


# ---- what must be so afterwards ----


def policy(path, known={}):  # noqa: B006 - it is to remember, as most copies hold the same files
    """What a checkpoint holds, but for how long it took; it has to be whole."""
    content = Path(path).read_bytes()
    if content not in known:
        payload = read_checkpoint(path)
        training = payload["training"]
        known[content] = (
            training["env_steps"],
            [tensor.tolist() for tensor in payload["parameters"].values()],
            [tensor.tolist() for tensor in (training["optimizer"] or {}).values()],
            training["random"],
            payload["run"]["best_eval_reward"],
        )
    return known[content]


def rows_of(path):
    return [{name: value for name, value in row.items() if name not in TIME_FIELDS} for row in read_rows(path)]


def facts(folder):
    """Everything about a run that must not depend on how often it was cut off; copies of older runs are left out."""
    readers = {".pt": policy, ".jsonl": rows_of}
    return {
        name: readers.get(Path(name).suffix, Path.read_bytes)(path) for name, path in tree(folder).items() if ".bak" not in name
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run straight through: what is known of it at its end, its policy at each of its steps, and its folder at step 96."""
    with pytest.MonkeyPatch.context() as patch:
        better = lambda agent, *_, **__: types.SimpleNamespace(mean=float(agent.env_steps))  # noqa: E731
        patch.setattr(il_based_rl.evaluate, "play_evaluation", better)
        patch.chdir(tmp_path_factory.mktemp("straight"))
        policies = {}
        for step in STEPS:
            resumed = (
                ["--resume", "--save-path", "c/a.pt"] if policies else [*TINY.split(), "--seed", "0", "--save-path", "c/a.pt"]
            )
            train_ppo.main([*resumed, "--total-timesteps", str(step)])
            policies[step] = policy("c/a.pt")
            if step == 96:
                shutil.copytree("c", "at step 96")
        shutil.rmtree("c")
        train_ppo.main(FRESH)
        return types.SimpleNamespace(facts=facts("c"), policies=policies, halfway=Path("at step 96").resolve())


def test_a_run_in_pieces_is_the_run_straight_through(straight):
    # Or else nothing below would mean anything.
    assert straight.facts["a.pt"] == straight.policies[160] == straight.facts["a/best.pt"]
    assert [row["step"] for row in straight.facts["a/metrics.jsonl"]] == STEPS
    assert [name for name in straight.facts if "step" in name] == [f"a/step_{step:010d}.pt" for step in (96, 128, 160)]


def require_whole(folder, straight, steps):
    """Every file under its name can be read, and the newest of them is a policy of one of these steps; return which."""
    files = RunFiles(folder / "c/a.pt")
    for path in [files.save_path, files.best, *files.all_periodic()]:
        if path.exists():
            assert policy(path) == straight.policies[policy(path)[0]]
    path, payload = files.latest_checkpoint()
    assert policy(path) == straight.policies[payload["training"]["env_steps"]]
    assert payload["training"]["env_steps"] in steps
    return payload["training"]["env_steps"]


CHECKPOINT = (Run, "checkpoint")
FOURTH = 4
"""Of five: it is the best so far, and an older one has to go."""
CALLS = 3 * 7
"""At least; of each of three files: make the folder, open, write, sync, close, rename, sync the folder."""


def test_a_process_killed_at_any_call_of_a_checkpoint_leaves_the_old_or_the_new_one_and_is_resumed(straight, monkeypatch):
    with monkeypatch.context() as patched:
        branches = Branches(patched, CHECKPOINT, FOURTH, until=CHECKPOINT)
        folders = branches.run(train_ppo.main, FRESH)
    assert set(branches.statuses.values()) == {KILLED}
    assert len(folders) >= CALLS
    found, half_written = set(), 0
    for folder in distinct(folders):
        found.add(require_whole(folder, straight, (96, 128)))
        half_written += any(name.endswith(".tmp") for name in tree(folder))
        monkeypatch.chdir(folder)
        train_ppo.main(RESUMED)
        assert facts("c") == straight.facts
    assert found == {96, 128}
    assert half_written  # the facts know no such file, so that they were swept


def test_any_call_of_a_checkpoint_may_fail_and_the_run_goes_on_to_the_same_end(straight, monkeypatch):
    branches = Branches(monkeypatch, CHECKPOINT, FOURTH, until=CHECKPOINT, errors=ERRORS)
    folders = branches.run(train_ppo.main, FRESH)
    assert len(folders) >= CALLS
    for folder in folders:
        assert branches.statuses[folder] == 0, output_of(folder)
        found = facts(folder / "c")
        kept = {name: found.pop(name) for name in list(found) if "step" in name}  # that of step 128 may be missing
        assert found == {name: fact for name, fact in straight.facts.items() if "step" not in name}
        assert list(kept.values()) == [straight.policies[fact[0]] for fact in kept.values()]
        assert [fact[0] for fact in kept.values()] in ([96, 128, 160], [64, 96, 160])
    noticed = [folder for folder in folders if "training goes on, and the next checkpoint tries again" in output_of(folder)]
    assert len(noticed) >= 3 * 5  # of what only could not be tidied up nothing is said


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_checkpoint_that_fails_at_any_call_leaves_the_old_or_the_new_one(error, straight, monkeypatch):
    branches = Branches(monkeypatch, CHECKPOINT, FOURTH, until=CHECKPOINT, errors=[error], ends=True)
    folders = branches.run(train_ppo.main, FRESH)
    assert set(branches.statuses.values()) == {0}
    assert {require_whole(folder, straight, (96, 128)) for folder in distinct(folders)} == {96, 128}
    assert not any(name.endswith(".tmp") for folder in folders for name in tree(folder))


BEGINNINGS = {"over an old run": FRESH, "resumed": RESUMED, "from an earlier checkpoint": REWOUND}


def begin(monkeypatch, straight, name, **strike):
    """Begin a run where there is one at step 96, with children struck from its first change of a file to its first row."""
    shutil.copytree(straight.halfway, "c")
    branches = Branches(monkeypatch, (Run, "__init__"), until=(Run, "log"), **strike)
    return branches, branches.run(train_ppo.main, BEGINNINGS[name])


def require_kept(folder, straight):
    """The policy and the rows of step 96 are there, whole, under their names or as copies."""
    names = tree(folder / "c")
    policies = [policy(path) for name, path in names.items() if re.fullmatch(r"a\.pt(\.bak\d*)?", name)]
    assert straight.policies[96] in policies
    rows = [rows_of(path) for name, path in names.items() if name.startswith("a/metrics.jsonl")]
    assert straight.facts["a/metrics.jsonl"][:3] in [each[:3] for each in rows]


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_process_killed_at_any_call_of_a_runs_beginning_loses_nothing_and_may_begin_again(name, straight, monkeypatch):
    with monkeypatch.context() as patched:
        branches, folders = begin(patched, straight, name)
    assert set(branches.statuses.values()) == {KILLED}
    for folder in distinct(folders):
        require_kept(folder, straight)
        if name == "resumed":
            assert require_whole(folder, straight, (96,))
        monkeypatch.chdir(folder)
        train_ppo.main(BEGINNINGS[name])
        assert facts("c") == straight.facts


@pytest.mark.parametrize("name", ["over an old run", "from an earlier checkpoint"])
def test_a_disk_that_fails_at_any_call_of_a_runs_beginning_is_one_line_and_loses_nothing(name, straight, monkeypatch):
    branches, folders = begin(monkeypatch, straight, name, errors=ERRORS, ends=True)
    for folder in folders:
        assert branches.statuses[folder] in (0, 2), output_of(folder)
        require_kept(folder, straight)
        errors = [line for line in output_of(folder).splitlines() if line.startswith("error: ")]
        assert len(errors) == bool(branches.statuses[folder]), output_of(folder)
    assert set(branches.statuses.values()) == {0, 2}


ASKING = (RunFiles, "require_writable")


def test_asking_whether_a_run_can_be_written_leaves_nothing_that_the_next_run_does_not_sweep(straight, monkeypatch):
    with monkeypatch.context() as patched:
        folders = Branches(patched, ASKING, until=ASKING).run(train_ppo.main, FRESH)
    assert any(tree(folder) for folder in folders)
    for folder in distinct(folders):
        monkeypatch.chdir(folder)
        train_ppo.main(FRESH)
        assert sorted(facts("c")) == sorted(straight.facts)


# ---- arrays, and commands that write them ----


def test_arrays_are_the_old_or_the_new_ones_at_whatever_call_the_writer_is_killed_or_fails(tmp_path, monkeypatch):
    old, new = ({"rewards": np.full(20_000, value)} for value in (1.0, 2.0))
    write_arrays("d.npz", old, {"which": "old"})
    for errors in ((), ERRORS):
        folder = tmp_path / f"{len(errors)} errors"
        shutil.copytree(".", folder, ignore=shutil.ignore_patterns("*,*", "* errors"))
        monkeypatch.chdir(folder)
        writer = types.SimpleNamespace(write=write_arrays)
        branches = Branches(monkeypatch, (writer, "write"), errors=errors)
        folders = branches.run(lambda writer=writer: writer.write("d.npz", new, {"which": "new"}))
        assert len(folders) >= 7
        found = set()
        for each in folders:
            arrays, metadata = read_arrays(each / "d.npz")
            expected = old if metadata["which"] == "old" else new
            np.testing.assert_array_equal(arrays["rewards"], expected["rewards"])
            found.add(metadata["which"])
            if errors:
                assert list(tree(each)) == ["d.npz"]
        assert found == {"old", "new"}
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def collecting(straight):
    """The command that collects where older demonstrations lie, and these."""
    shutil.copy(straight.halfway / "a.pt", "a.pt")
    flags = ["--env-id", "crashes/Walk-v0", "--checkpoint", "a.pt", "--num-episodes", "2", "--save-path", "d.npz", "--seed"]
    collect.main([*flags, "1"])
    return [*flags, "2"], DemoDataset.load("d.npz").fingerprint


def fingerprints(folder):
    return {name: DemoDataset.load(path).fingerprint for name, path in tree(folder).items() if name.startswith("d.npz")}


def test_a_collection_killed_at_any_call_loses_no_demonstrations_and_the_next_one_sweeps(collecting, monkeypatch):
    flags, old = collecting
    with monkeypatch.context() as patched:
        folders = Branches(patched, (collect, "collect_demos")).run(collect.main, flags)
    new = DemoDataset.load("d.npz").fingerprint
    assert old != new
    assert any(name.endswith(".tmp") for folder in folders for name in tree(folder))
    for folder in distinct(folders):
        assert old in fingerprints(folder).values()
        monkeypatch.chdir(folder)
        collect.main(flags)
        assert fingerprints(".")["d.npz"] == new
        assert not [name for name in tree(".") if name.endswith(".tmp")]


def test_a_collection_whose_disk_fails_at_any_call_is_one_line_and_leaves_demonstrations_under_their_name(
    collecting, monkeypatch
):
    flags, old = collecting
    branches = Branches(monkeypatch, (collect, "collect_demos"), errors=ERRORS)
    folders = branches.run(collect.main, flags)
    new = DemoDataset.load("d.npz").fingerprint
    for folder in folders:
        status, found = branches.statuses[folder], fingerprints(folder)
        assert status in (0, 1, 2), output_of(folder)
        assert old in found.values()
        assert found.get("d.npz") in ([new] if status == 0 else [old, new]), output_of(folder)
        assert len([line for line in output_of(folder).splitlines() if line.startswith("error: ")]) == bool(status)
    assert len(set(branches.statuses.values())) > 1


# ---- a disk that is full indeed ----


def in_child(call, *arguments, stderr=None):
    """Run a command in a forked child, as limits to its files must not be this process's; return code, output and messages."""
    pipes = [os.pipe(), os.pipe()]
    if (child := os.fork()) == 0:
        try:
            for stream, (_, end) in enumerate(pipes, start=1):
                os.dup2(end, stream)
            if stderr is not None:
                os.dup2(os.open(stderr, os.O_WRONLY), 2)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 - to its end
            leave(code_of(call, *arguments))
        finally:
            os._exit(BROKEN)  # never a second pytest
    texts = []
    for ours, theirs in pipes:
        os.close(theirs)
        with open(ours) as stream:
            texts.append(stream.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts


def leave_room(size):
    """Let no file of this process grow beyond a size; None lets them."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


METRICS = Path("c/a/metrics.jsonl")
NO_ROOM = {
    "for nothing": lambda: 0,
    "for half a row": lambda: METRICS.stat().st_size + 100,
}


@pytest.fixture
def before_row(monkeypatch):
    """What a child does before the row of a step is written."""
    todo, real, parent = {}, Run.log, os.getpid()

    def log(self, metrics, step):
        if step in todo and os.getpid() != parent:
            todo[step]()
        real(self, metrics, step)

    monkeypatch.setattr(Run, "log", log)
    return todo


@pytest.mark.parametrize("room", NO_ROOM)
@pytest.mark.parametrize("stderr", [None, "/dev/full"], ids=["", "messages have no room either"])
def test_a_disk_that_is_full_for_a_while_stops_nothing_and_no_row_is_lost_or_doubled(room, stderr, straight, before_row):
    def room_again():
        leave_room(None)
        shutil.copytree("c", "meanwhile")

    before_row[64], before_row[128] = lambda: leave_room(NO_ROOM[room]()), room_again
    code, output, messages = in_child(train_ppo.main, FRESH, stderr=stderr)
    assert code == 0, messages
    assert output.splitlines()[-1] == "Checkpoint saved to c/a.pt"
    assert Path("meanwhile/a/metrics.jsonl").read_bytes().count(b"\n") == 1
    assert facts("meanwhile") == dict.fromkeys(("a.pt", "a/best.pt", "a/step_0000000032.pt"), straight.policies[32]) | {
        "a/metrics.jsonl": straight.facts["a/metrics.jsonl"][:1]
    }
    found = facts("c")
    assert found["a/metrics.jsonl"] == straight.facts["a/metrics.jsonl"]
    assert found["a.pt"] == found["a/best.pt"] == found["a/step_0000000160.pt"] == straight.policies[160]
    assert found["a/step_0000000128.pt"] == straight.policies[128]
    if stderr is None:
        full = "(File too large|No space left on device); choose a path that can be written; training goes on"
        rows = [line for line in messages.splitlines() if "its rows of metrics wait" in line]
        saves = [line for line in messages.splitlines() if line not in rows]
        assert all(
            re.fullmatch(rf"cannot write c/a/metrics\.jsonl: {full}, and its rows of metrics wait", line) for line in rows
        )
        assert all(re.fullmatch(rf"cannot write c/a\.pt: {full}, and the next checkpoint tries again", line) for line in saves)
        assert len(rows) >= 1
        assert len(saves) == 2


def test_rows_that_waited_are_written_when_there_is_room_again_after_the_last_one(straight, before_row, monkeypatch):
    real = Run.checkpoint

    def checkpoint(self):
        real(self)
        leave_room(None)  # the next save, which is the last, finds room

    monkeypatch.setattr(Run, "checkpoint", checkpoint)
    before_row[160] = lambda: leave_room(0)
    code, _, messages = in_child(train_ppo.main, FRESH)
    assert code == 0, messages
    assert policy("c/a.pt") == straight.policies[160]
    assert rows_of(METRICS) == straight.facts["a/metrics.jsonl"]


def test_a_disk_that_stays_full_ends_the_run_at_the_third_checkpoint_and_it_is_resumed_when_there_is_room(straight, before_row):
    before_row[64] = lambda: leave_room(0)
    code, output, messages = in_child(train_ppo.main, FRESH)
    assert code == 1
    assert [int(line[1:9]) for line in output.splitlines() if line.startswith("[")] == [32, 64, 96]
    reason = "cannot write c/a.pt: File too large; choose a path that can be written"
    *notices, lost, error = [line for line in messages.splitlines() if "metrics.jsonl" not in line]
    assert re.search(r"^\d rows of metrics are lost: cannot write c/a/metrics.jsonl", messages, re.MULTILINE)
    assert notices == [f"{reason}; training goes on, and the next checkpoint tries again"] * 2
    assert lost == f"step 128 is lost: {reason}"
    assert error == f"error: {reason}"
    assert require_whole(Path.cwd(), straight, [32]) == 32
    assert not any(name.endswith(".tmp") for name in tree("c"))
    train_ppo.main(RESUMED)
    assert facts("c") == straight.facts


@pytest.mark.parametrize("old", [False, True], ids=["", "over an old run"])
@pytest.mark.parametrize("room", [0, 50, 2000])
def test_a_disk_that_is_full_from_the_beginning_is_one_line_before_the_first_step(room, old, straight, before_row):
    if old:
        shutil.copytree(straight.halfway, "c")
    before_row[32] = lambda: print("a row")

    def command():
        leave_room(room)
        train_ppo.main(FRESH)

    code, output, messages = in_child(command)
    assert code == 2, messages
    assert output == "Training PPO on crashes/Walk-v0 for 160 timesteps...\n"
    (error,) = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: cannot write c/a\S*: File too large; choose a path that can be written", error)
    if old:
        require_kept(Path.cwd(), straight)


def test_cloning_onto_a_disk_that_is_full_at_the_end_says_so_and_keeps_the_last_checkpoint(collecting, before_row):
    flags = ["--demo-path", "d.npz", "--epochs", "20", "--hidden-dims", "4", "--seed", "0", "--save-path", "c/a.pt"]
    before_row[20] = lambda: leave_room(0)
    code, output, messages = in_child(train.main, flags)
    assert code == 1, messages
    assert "saved to" not in output
    assert messages.splitlines()[-1] == "error: cannot write c/a.pt: File too large; choose a path that can be written"
    assert BCAgent.load("c/a.pt").epochs == 18
    train.main(["--resume", "--save-path", "c/a.pt"])
    assert BCAgent.load("c/a.pt").epochs == 20
