"""Files: whole or not at all, found out when damaged, and never executed."""

import builtins
import errno
import io
import os
import pickle
import signal
import stat
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from il_based_rl import files
from il_based_rl.agent import BCAgent
from il_based_rl.checkpoint import load_agent
from il_based_rl.envs import make_env
from il_based_rl.errors import ArchitectureMismatchError, FileFormatError, FileMissingError, FileWriteError, Terminated
from il_based_rl.files import (
    RowFile,
    atomic_file,
    move_aside,
    read_checkpoint,
    read_rows,
    require_writable,
    rewrite_rows,
    write_arrays,
    write_checkpoint,
    write_text,
)
from il_based_rl.files import rows as rows_module
from il_based_rl.policy import MLPPolicy, arguments_from
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.spaces import space_to_plain

WRITERS = {
    "checkpoint": lambda path: write_checkpoint(path, {"weights": torch.ones(50_000)}),
    "arrays": lambda path: write_arrays(path, {"rewards": np.ones(50_000)}, {}),
    "rows": lambda path: rewrite_rows(path, [{"step": step} for step in range(5000)]),
    "text": lambda path: _write_text(path, "new" * 10_000),
}


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def _write_text(path, text):
    with atomic_file(path) as handle:
        handle.write(text.encode())


class FullDisk(io.FileIO):
    """A file on a disk that has room for a thousand bytes."""

    def write(self, data):
        room = 1000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data).cast("B")[:room])


def full_disk(monkeypatch):
    def opener(path, mode="r", **kwargs):
        if "w" not in mode:
            return builtins.open(path, mode, **kwargs)
        return io.BufferedWriter(FullDisk(path, "w"))

    monkeypatch.setattr(files.writing, "open", opener, raising=False)


def broken_replace(monkeypatch):
    def replace(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.writing.os, "replace", replace)


def broken_fsync(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.writing.os, "fsync", fsync)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("trouble", [full_disk, broken_replace, broken_fsync])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(write, trouble, tmp_path, monkeypatch):
    path = tmp_path / "kept.pt"
    path.write_bytes(b"old")
    trouble(monkeypatch)
    with pytest.raises(FileWriteError, match=r"cannot write .*kept\.pt: .*(left|denied|error)"):
        write(path)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["kept.pt"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_bytes(b"old")

    def write():
        with atomic_file(path) as handle:
            handle.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["kept.txt"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_parents_are_made_and_no_temporary_file_is_left(write, tmp_path):
    write(tmp_path / "a" / "b" / "x.pt")
    write(str(tmp_path / "a" / "b" / "x.pt"))
    assert names_in(tmp_path / "a" / "b") == ["x.pt"]


def test_the_new_content_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    order, path = [], tmp_path / "x.txt"
    path.write_text("old")
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        order.append(("sync folder" if is_folder else f"sync {os.fstat(descriptor).st_size}", path.read_text()))
        real_fsync(descriptor)

    def replace(source, target):
        order.append(("replace", path.read_text()))
        real_replace(source, target)

    monkeypatch.setattr(files.writing.os, "fsync", fsync)
    monkeypatch.setattr(files.writing.os, "replace", replace)
    _write_text(path, "brand new")
    assert order == [("sync 9", "old"), ("replace", "old"), ("sync folder", "brand new")]


def unwritable_paths(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    return [tmp_path / "file" / "x.pt", tmp_path / "folder", tmp_path / ("x" * 300), "/proc/nowhere/x.pt"]


@pytest.mark.parametrize("which", range(4), ids=["parent is a file", "is a folder", "name too long", "no such place"])
@pytest.mark.parametrize("write", [require_writable, *WRITERS.values()], ids=["require_writable", *WRITERS])
def test_a_place_that_cannot_be_written_is_named(write, which, tmp_path):
    path = unwritable_paths(tmp_path)[which]
    with pytest.raises(FileWriteError) as refusal:
        write(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_is_refused_at_once_whose_backup_could_not_be_written(tmp_path):
    longest = next(n for n in range(255, 0, -1) if not raises_when_asked(tmp_path / ("x" * n)))
    path = tmp_path / ("x" * longest)
    for text in ("first", "second"):
        move_aside(path, leave_copy=True)
        write_text(path, text)
    assert path.with_name(f"{path.name}.bak").read_text() == "first"


def raises_when_asked(path):
    try:
        require_writable(path)
    except FileWriteError:
        return True
    return False


def test_asking_whether_a_place_can_be_written_leaves_nothing_and_changes_nothing(tmp_path):
    (tmp_path / "old.pt").write_text("old")
    require_writable(tmp_path / "old.pt")
    require_writable(tmp_path / "new.pt")
    assert names_in(tmp_path) == ["old.pt"]
    assert (tmp_path / "old.pt").read_text() == "old"


def test_a_file_moved_aside_pushes_the_older_ones_on(tmp_path):
    path = tmp_path / "x.pt"
    assert move_aside(path) is None
    for text in ("first", "second", "third"):
        path.write_text(text)
        assert move_aside(path) == tmp_path / "x.pt.bak"
    names = ["x.pt.bak", "x.pt.bak2", "x.pt.bak3"]
    assert sorted(names_in(tmp_path)) == names
    assert [(tmp_path / name).read_text() for name in names] == ["third", "second", "first"]


def test_nothing_but_a_file_is_ever_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for refused in (require_writable, move_aside, lambda path: write_checkpoint(path, {})):
        with pytest.raises(FileWriteError, match="not a regular file"):
            refused(tmp_path / "pipe.pt")
    assert names_in(tmp_path) == ["pipe.pt"]
    assert stat.S_ISFIFO((tmp_path / "pipe.pt").stat().st_mode)


def test_rows_come_back_with_null_for_what_is_not_finite(tmp_path):
    rows = RowFile(tmp_path / "new" / "metrics.jsonl")
    rows.append({"step": 1, "loss": float("nan"), "best": float("-inf")})
    rows.append({"step": 2, "loss": 0.5, "name": "x"})
    rows.flush()
    assert read_rows(rows.path) == [{"step": 1, "loss": None, "best": None}, {"step": 2, "loss": 0.5, "name": "x"}]
    rows.close()
    assert "NaN" not in rows.path.read_text()


def test_rows_are_added_to_an_existing_file(tmp_path):
    for step in (1, 2):
        rows = RowFile(tmp_path / "metrics.jsonl")
        rows.append({"step": step})
        rows.flush()
        rows.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_file_system_without_locks_holds_nothing_and_stops_nobody(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with files.exclusive(tmp_path / ".lock"):
        assert not files.is_held(tmp_path / ".lock")
    assert not files.knows_locks(tmp_path)


def test_a_signal_anywhere_in_a_write_neither_loses_nor_doubles_a_row(tmp_path):
    """A signal's handler may raise between any two instructions; here it does so at each in turn."""

    def strike_at(instruction):
        left = instruction

        def trace(frame, event, _):
            nonlocal left
            frame.f_trace_opcodes = frame.f_code.co_filename == rows_module.__file__
            if event == "opcode" and (left := left - 1) < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        return trace

    struck = 0
    while True:
        rows = RowFile(tmp_path / f"{struck}.jsonl")
        for step in (1, 2):
            rows.append({"step": step})
        sys.settrace(strike_at(struck))
        try:
            rows.flush()
        except KeyboardInterrupt:
            struck += 1
        else:
            break
        finally:
            sys.settrace(None)
        rows.append({"step": 3})
        rows.flush()
        rows.close()
        assert [row["step"] for row in read_rows(rows.path)] == [1, 2, 3]
    assert struck > 20


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_last_line_that_was_cut_off_is_left_out(cut, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    path.write_bytes(path.read_bytes()[:-cut])
    expected = [{"step": 1}, {"step": 2}] if cut == 1 else [{"step": 1}]
    assert read_rows(path) == expected


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    write_checkpoint(path, {"kind": "test", "weights": torch.arange(5.0), "settings": {"dims": [1, 2], "seed": None}})
    return path


def test_a_checkpoint_comes_back_as_it_was(checkpoint):
    payload = read_checkpoint(checkpoint)
    assert torch.equal(payload["weights"], torch.arange(5.0))
    assert payload["settings"] == {"dims": [1, 2], "seed": None}


def test_every_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(checkpoint):
    sound, refused = checkpoint.read_bytes(), 0
    for place in range(0, len(sound), 2):
        checkpoint.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << (7 - place // 2 % 8)]) + sound[place + 1 :])
        try:
            payload = read_checkpoint(checkpoint)
        except FileFormatError:
            refused += 1
            continue
        assert torch.equal(payload["weights"], torch.arange(5.0)), f"byte {place}"
        assert payload["settings"] == {"dims": [1, 2], "seed": None}, f"byte {place}"
    assert refused > 100


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(share, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)])
    with pytest.raises(FileFormatError, match=r"x\.pt is damaged"):
        read_checkpoint(checkpoint)


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileMissingError, match=r"there is no file .*none\.pt"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_checkpoint(tmp_path)


def test_foreign_checkpoints_are_refused(tmp_path):
    torch.save({"model_state": {"weight": torch.ones(2)}}, tmp_path / "foreign.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    np.savez(tmp_path / "arrays.pt", weights=np.ones(2))
    os.replace(tmp_path / "arrays.pt.npz", tmp_path / "arrays.pt")
    for name in ("foreign.pt", "module.pt", "list.pt", "arrays.pt"):
        with pytest.raises(FileFormatError, match=f"{name} is not a checkpoint of this package"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_refused_with_both(version, tmp_path):
    torch.save({"format": "il_based_rl checkpoint", "format_version": version}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match=f"format version {version}.*reads version 1"):
        read_checkpoint(tmp_path / "x.pt")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_inside_a_checkpoint_is_never_executed(tmp_path):
    fuse = tmp_path / "exploded"
    torch.save({"format": "il_based_rl checkpoint", "format_version": 1, "x": Bomb(fuse)}, tmp_path / "torch.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb(fuse)))
    for name in ("torch.pt", "pickle.pt"):
        with pytest.raises(FileFormatError, match=name):
            load_agent(tmp_path / name)
    assert not fuse.exists()
    torch.load(tmp_path / "torch.pt", weights_only=False)["x"].close()  # it would have
    assert fuse.exists()


def expert():
    env = make_env("Pendulum-v1")
    return PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8, 4), seed=0)


def student():
    env = make_env("Pendulum-v1")
    policy = MLPPolicy(env.observation_space, env.action_space, (8, 4), generator=torch.Generator().manual_seed(0))
    return BCAgent(policy, seed=0)


@pytest.mark.parametrize("agent", [expert(), student()], ids=["expert", "student"])
def test_any_checkpoint_comes_back_as_the_agent_that_it_was(agent, tmp_path):
    agent.save(tmp_path / "x.pt")
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for loaded in (load_agent(tmp_path / "x.pt"), load_agent(tmp_path / "x.pt", [8, 4]), type(agent).load(tmp_path / "x.pt")):
        assert type(loaded) is type(agent)
        np.testing.assert_array_equal(loaded.predict(obs), agent.predict(obs))


@pytest.mark.parametrize("agent", [expert(), student()], ids=["expert", "student"])
def test_layer_sizes_that_contradict_the_file_are_refused_with_both(agent, tmp_path):
    agent.save(tmp_path / "x.pt")
    for load in (load_agent, type(agent).load):
        with pytest.raises(ArchitectureMismatchError, match=r"x\.pt has hidden_dims \[8, 4\], not \[64, 64\]"):
            load(tmp_path / "x.pt", [64, 64])


def test_an_expert_is_no_student_and_no_agent_is_neither(tmp_path):
    expert().save(tmp_path / "expert.pt")
    student().save(tmp_path / "student.pt")
    write_checkpoint(tmp_path / "x.pt", {"kind": "dqn"})
    with pytest.raises(FileFormatError, match=r"ppo agent, not a student; load it with PPOAgent\.load"):
        BCAgent.load(tmp_path / "expert.pt")
    with pytest.raises(FileFormatError, match=r"bc agent, not a PPO expert; load it with BCAgent\.load"):
        PPOAgent.load(tmp_path / "student.pt")
    with pytest.raises(FileFormatError, match="unknown kind 'dqn'"):
        load_agent(tmp_path / "x.pt")


@pytest.mark.parametrize("part", ["architecture", "parameters", "training"])
@pytest.mark.parametrize("agent", [expert(), student()], ids=["expert", "student"])
def test_a_checkpoint_that_lacks_a_part_or_holds_nonsense_there_is_refused(agent, part, tmp_path):
    agent.save(tmp_path / "whole.pt")
    payload = {name: value for name, value in read_checkpoint(tmp_path / "whole.pt").items() if not name.startswith("format")}
    for nonsense in (None, {}, 3, "text", [1]):
        write_checkpoint(tmp_path / "x.pt", payload | {part: nonsense})
        with pytest.raises(FileFormatError):
            load_agent(tmp_path / "x.pt")


@pytest.mark.parametrize(("hidden_dims", "choices"), [([100_000], 65_536), ([], 65_536), ([300, 300], 40_000)])
def test_the_last_layer_counts_among_what_a_file_may_ask_for(hidden_dims, choices):
    """A small file must not ask for a large network, in any of its layers."""
    architecture = {
        "observation_space": space_to_plain(spaces.Box(-1.0, 1.0, (90,))),
        "action_space": space_to_plain(spaces.Discrete(choices)),
        "hidden_dims": hidden_dims,
        "activation": "tanh",
    }
    parameters = {"weight": torch.zeros(max(choices, 90 * 100_000 if hidden_dims == [100_000] else 0), dtype=torch.float16)}
    with pytest.raises(FileFormatError, match="weights and holds"):
        arguments_from(architecture, parameters)


FILE_WORK = {
    "write a checkpoint": lambda path: write_checkpoint(path, {"weights": torch.ones(3), "run": {"step": 2}}),
    "read a checkpoint": lambda path: read_checkpoint(path),
    "write arrays": lambda path: write_arrays(path, {"rewards": np.ones(3)}, {"step": 2}),
    "read arrays": lambda path: files.read_arrays(path),
}


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals")
@pytest.mark.parametrize("work", FILE_WORK)
def test_a_signal_anywhere_in_the_work_on_a_file_is_neither_lost_nor_taken_for_damage(work, tmp_path, monkeypatch):
    """A signal strikes at several hundred lines, of this package or of others, in turn."""
    path, lines = tmp_path / "file", 0

    def terminate(number, frame):
        raise Terminated

    def count(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return count

    def strike_at(line):
        left = line

        def trace(frame, event, _):
            nonlocal left
            if event == "line" and (left := left - 1) < 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGTERM)
            return trace

        return trace

    whole = FILE_WORK[work.replace("read", "write")]
    whole(path)
    before = path.read_bytes()
    FILE_WORK[work](path)  # what is imported on the way
    sys.settrace(count)
    FILE_WORK[work](path)
    sys.settrace(None)
    monkeypatch.setattr(sys, "unraisablehook", lambda told: pytest.fail(f"{told.err_msg} {told.object}"))
    previous, struck = signal.signal(signal.SIGTERM, terminate), 0
    try:
        for line in range(0, lines - 5, max(1, lines // 400)):
            trace = strike_at(line)
            with pytest.raises(Terminated):  # noqa: PT012 - the second line alone would trace pytest too
                sys.settrace(trace)
                FILE_WORK[work](path)
            struck += 1
            assert path.read_bytes() == before
            assert names_in(tmp_path) == ["file"]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGTERM, previous)
    assert struck > 200


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_text("old")
    with pytest.raises(FileWriteError, match=r"parts.*take fewer episodes or environments"):
        files.write_checkpoint(tmp_path / "a.pt", {"rows": [torch.zeros(1) for _ in range(10_001)]})
    assert (tmp_path / "a.pt").read_text() == "old"
    monkeypatch.setattr("il_based_rl.files.archives.MAX_BYTES", 100_000)
    with pytest.raises(FileWriteError, match="files are read up to 100,000 bytes"):
        write_arrays(tmp_path / "a.npz", {"x": np.zeros(20_000)}, {})
    with pytest.raises(FileWriteError, match="files are read up to 100,000 bytes"):
        files.write_checkpoint(tmp_path / "a.pt", {"x": torch.zeros(50_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_what_is_no_path_of_a_file_is_refused(path):
    with pytest.raises(FileWriteError, match="is not the path of a file"):
        write_text(path, "text")
