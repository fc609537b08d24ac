"""The command lines: every promised flag and default, and one clear line for every bad input."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers the environments
from toy_envs import STILL, Steady

from il_based_rl import __main__ as front_door
from il_based_rl import __version__, cli, collect, doctor, evaluate, experiment, pipeline, train, train_ppo
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.config import BCConfig, TrainPPOConfig
from il_based_rl.dataset import DemoDataset
from il_based_rl.envs import make_env
from il_based_rl.errors import ConfigError
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.files import read_checkpoint, write_arrays, write_checkpoint
from il_based_rl.ppo_agent import PPOAgent

MODULES = {
    "train_ppo": train_ppo,
    "collect": collect,
    "train": train,
    "evaluate": evaluate,
    "pipeline": pipeline,
    "doctor": doctor,
}

WANDB_FLAGS = [
    ("--wandb", "wandb", False, "", True),
    ("--wandb-project", "wandb_project", "il-based-rl", "robots", "robots"),
    ("--wandb-run-name", "wandb_run_name", None, "tuesday", "tuesday"),
]
FLAGS = {  # flag, setting, default, a value given, what it means
    "train_ppo": [
        ("--env-id", "env_id", "Pendulum-v1", "CartPole-v1", "CartPole-v1"),
        ("--total-timesteps", "total_timesteps", 200_000, "5000", 5000),
        ("--lr", "lr", 3e-4, "1e-3", 1e-3),
        ("--hidden-dims", "hidden_dims", (64, 64), "32 16 8", (32, 16, 8)),
        ("--gamma", "gamma", 0.99, "0.9", 0.9),
        ("--clip-range", "clip_range", 0.2, "0.1", 0.1),
        ("--n-steps", "n_steps", 2048, "512", 512),
        ("--n-epochs", "n_epochs", 10, "4", 4),
        ("--batch-size", "batch_size", 64, "32", 32),
        ("--entropy-coef", "entropy_coef", 0.0, "0.01", 0.01),
        ("--seed", "seed", None, "7", 7),
        ("--save-path", "save_path", "checkpoints/ppo_agent.pt", "x/y.pt", "x/y.pt"),
        ("--num-envs", "num_envs", 1, "8", 8),
        ("--gae-lambda", "gae_lambda", 0.95, "0.9", 0.9),
        ("--eval-interval", "eval_interval", 10_000, "500", 500),
        ("--eval-episodes", "eval_episodes", 10, "3", 3),
        ("--device", "device", "cpu", "cuda", "cuda"),
        ("--lr-schedule", "lr_schedule", "constant", "linear", "linear"),
        ("--activation", "activation", "tanh", "relu", "relu"),
        ("--initial-log-std", "initial_log_std", 0.0, "-0.5", -0.5),
        ("--no-normalize-obs", "normalize_obs", True, "", False),
        ("--no-normalize-reward", "normalize_reward", True, "", False),
        *WANDB_FLAGS,
    ],
    "collect": [
        ("--env-id", "env_id", "Pendulum-v1", "CartPole-v1", "CartPole-v1"),
        ("--checkpoint", "checkpoint", "checkpoints/ppo_agent.pt", "x.pt", "x.pt"),
        ("--num-episodes", "num_episodes", 50, "3", 3),
        ("--seed", "seed", 0, "7", 7),
        ("--save-path", "save_path", "demos/ppo_expert_demos.npz", "x.npz", "x.npz"),
        ("--no-deterministic", "deterministic", True, "", False),
        ("--min-return", "min_return", None, "-200", -200.0),
        ("--max-attempts", "max_attempts", None, "90", 90),
    ],
    "train": [
        ("--demo-path", "demo_path", "demos/ppo_expert_demos.npz", "x.npz", "x.npz"),
        ("--epochs", "epochs", 100, "7", 7),
        ("--batch-size", "batch_size", 64, "32", 32),
        ("--lr", "lr", 1e-3, "1e-4", 1e-4),
        ("--hidden-dims", "hidden_dims", (256, 256), "32 16", (32, 16)),
        ("--save-path", "save_path", "checkpoints/bc_student.pt", "x.pt", "x.pt"),
        ("--seed", "seed", None, "7", 7),
        *WANDB_FLAGS,
    ],
    "evaluate": [
        ("--env-id", "env_id", "Pendulum-v1", "CartPole-v1", "CartPole-v1"),
        ("--checkpoint", "checkpoint", "checkpoints/bc_student.pt", "x.pt", "x.pt"),
        ("--hidden-dims", "hidden_dims", None, "256 256", (256, 256)),
        ("--num-episodes", "num_episodes", 20, "3", 3),
        ("--seed", "seed", 0, "7", 7),
    ],
    "pipeline": [
        ("--env-id", "env_id", "Pendulum-v1", "CartPole-v1", "CartPole-v1"),
        ("--ppo-timesteps", "ppo_timesteps", 200_000, "5000", 5000),
        ("--num-demo-episodes", "num_demo_episodes", 50, "3", 3),
        ("--bc-epochs", "bc_epochs", 100, "7", 7),
        ("--action-noise", "action_noise", 0.0, "0.2", 0.2),
        ("--seed", "seed", 42, "7", 7),
        *WANDB_FLAGS,
    ],
}


def settings_of(command, argv, monkeypatch):
    """Return the settings that a command reads from an argument list, by name."""
    seen = []
    monkeypatch.setattr(MODULES[command], command, lambda config, *rest: seen.append(config))
    assert MODULES[command].main(argv) is None
    (config,) = seen
    found = dict(vars(config))
    for part in ("ppo", "bc", "tracking"):
        found |= vars(found.pop(part)) if part in found else {}
    return found


@pytest.mark.parametrize("command", FLAGS)
def test_every_promised_default_holds(command, monkeypatch):
    settings = settings_of(command, [], monkeypatch)
    promised = {name: default for _, name, default, _, _ in FLAGS[command]}
    assert {name: settings[name] for name in promised} == promised


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command, flags in FLAGS.items() for flag in flags])
def test_every_promised_flag_sets_its_setting_and_nothing_else(command, flag, monkeypatch):
    option, name, _, given, expected = flag
    defaults = settings_of(command, [], monkeypatch)
    assert settings_of(command, [option, *given.split()], monkeypatch) == defaults | {name: expected}


def test_resume_is_off_bare_or_with_a_path(monkeypatch):
    seen = []
    monkeypatch.setattr(experiment, "resumed_checkpoint", lambda resume, save_path: seen.append(resume) or (Path("x"), {}))
    monkeypatch.setattr(train_ppo, "_stored_settings", lambda checkpoint: TrainPPOConfig())
    assert settings_of("train_ppo", [], monkeypatch)["resume"] is None
    for argv, resume in (
        (["--resume"], "latest"),
        (["--resume", "--seed", "3"], "latest"),
        (["--seed", "3", "--resume"], "latest"),
        (["--resume", "x/y.pt", "--seed", "3"], "x/y.pt"),
        (["--resume=x/y.pt"], "x/y.pt"),
    ):
        assert settings_of("train_ppo", argv, monkeypatch)["resume"] == resume
        assert seen.pop() == resume
    assert seen == []


def test_the_front_door_passes_the_rest_on_to_the_command(monkeypatch):
    for name, (module, _) in front_door.COMMANDS.items():
        seen = []
        monkeypatch.setattr(importlib.import_module(module), "main", seen.append)
        assert front_door.main([name, "--seed", "3"]) is None
        assert seen == [["--seed", "3"]]
    assert {"train-ppo", "collect", "train", "evaluate", "pipeline"} <= set(front_door.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_front_door_lists_its_commands(argv, capsys):
    assert front_door.main(argv) is None
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in front_door.COMMANDS)


@pytest.mark.parametrize("command", ["presets", "train --help", "--help", "--version"])
@pytest.mark.parametrize(
    ("redirected", "code", "says"),
    [
        (">/dev/full", 1, "error: cannot write to standard output: No space left on device"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("| head -1", 0, ""),
    ],
)
def test_what_cannot_be_written_to_standard_output_is_told(command, redirected, code, says):
    line = f"{sys.executable} -m il_based_rl {command} {redirected}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    told = done.stderr.removesuffix("\n").removesuffix("; the rest was done")
    assert (done.returncode, told) == (code, says)


def test_the_front_door_knows_its_version(capsys):
    front_door.main(["--version"])
    assert capsys.readouterr().out == f"il_based_rl {__version__}\n"


@pytest.mark.parametrize(("given", "hint"), [("trian", "did you mean train?"), ("dance", "expected one of train-ppo, collect")])
def test_an_unknown_command_is_refused_with_a_hint(given, hint, capsys):
    with pytest.raises(SystemExit) as leaving:
        front_door.main([given])
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"unknown command '{given}'" in line
    assert hint in line


class NeedsRobots(gym.Env):
    """An environment whose extra is not installed."""

    def __init__(self):
        raise gym.error.DependencyNotInstalled('robots is not installed, run `pip install "gymnasium[robots]"`')


gym.register(id="toy/NeedsRobots-v0", entry_point=NeedsRobots)


def demos_with(demos, **changes):
    names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations", "episode_lengths", "seeds")
    return {name: changes.get(name, getattr(demos, name)) for name in names}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with sound and unsound files of every kind."""
    folder = tmp_path_factory.mktemp("originals")
    env = make_env("toy/Counter-v0")
    expert = PPOAgent.for_spaces(env.observation_space, env.action_space, hidden_dims=(8,), seed=0)
    expert.save(folder / "expert.pt")
    demos = collect_demos("toy/Counter-v0", STILL, 3)
    demos.save(folder / "demos.npz")
    student = BCAgent.for_dataset(demos, BCConfig(epochs=1), hidden_dims=(8,), seed=0)
    for _ in student.learn(demos):
        student.save(folder / "student.pt")
    for name in ("expert.pt", "demos.npz"):
        whole = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        (folder / f"empty_{name}").write_bytes(b"")
    torch.save({"state_dict": {"weight": torch.ones(2)}}, folder / "foreign.pt")
    np.savez(folder / "foreign.npz", obs=np.ones(3))
    payload = read_checkpoint(folder / "expert.pt")
    torch.save(payload | {"format_version": 99}, folder / "newer.pt")
    weights = {name: tensor * float("nan") for name, tensor in payload["parameters"].items()}
    write_checkpoint(folder / "nan.pt", payload | {"parameters": weights})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("il_based_rl.files.arrays._VERSION", 99)
        write_arrays(folder / "newer.npz", demos_with(demos), demos.metadata)
    rewards = np.array(demos.rewards)
    rewards[4] = np.nan
    write_arrays(folder / "nan.npz", demos_with(demos, rewards=rewards), demos.metadata)
    write_arrays(folder / "uneven.npz", demos_with(demos, actions=demos.actions[:-1]), demos.metadata)
    write_arrays(folder / "nameless.npz", demos_with(demos), {"env_id": "toy/Counter-v0"})
    write_arrays(folder / "other_shape.npz", demos_with(demos, actions=np.zeros((len(demos), 5))), demos.metadata)
    gears = collect_demos("toy/Gears-v0", Steady(6), 3)
    write_arrays(folder / "other_choice.npz", demos_with(gears, actions=np.full(len(gears), 9)), gears.metadata)
    (folder / "old.pt").write_text("a file that must not be lost")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def workplace(originals, tmp_path):
    """A copy of this folder."""
    return Path(shutil.copytree(originals, tmp_path / "workplace"))


LONG = "x" * 300 + ".pt"
BAD_INPUT = {  # command and flags; what the message must hold: the value given, what was expected or what to do
    "train_ppo": [
        ("--env-id Pendulm-v1", "Pendulm-v1", "Pendulum-v1"),
        ("--env-id Pendulum-v0", "Pendulum-v0", "Pendulum-v1"),
        ("--env-id toy/NeedsRobots-v0", "toy/NeedsRobots-v0", 'pip install "gymnasium[robots]"'),
        ("--env-id ALE/Pong-v5", "ALE/Pong-v5", 'pip install "gymnasium[atari]"'),
        ("--env-id toy/TextObs-v0", "Text(", "expected Box"),
        ("--env-id toy/TupleAction-v0", "Tuple(", "expected Box"),
        ("--gamma 1.5", "--gamma", "1.5", "between 0 and 1"),
        ("--gamma -0.1", "--gamma", "-0.1", "between 0 and 1"),
        ("--gamma nan", "--gamma", "nan", "between 0 and 1"),
        ("--gae-lambda 2", "--gae-lambda", "2", "between 0 and 1"),
        ("--lr 0", "--lr", "0", "above 0"),
        ("--lr -1", "--lr", "-1", "above 0"),
        ("--lr inf", "--lr", "inf", "above 0"),
        ("--clip-range 0", "--clip-range", "0", "above 0"),
        ("--n-steps 0", "--n-steps", "0", "above 0"),
        ("--n-epochs 0", "--n-epochs", "0", "above 0"),
        ("--max-grad-norm 0", "--max-grad-norm", "0", "above 0"),
        ("--entropy-coef -1", "--entropy-coef", "-1", "0 or more"),
        ("--value-coef -1", "--value-coef", "-1", "0 or more"),
        ("--batch-size 1", "--batch-size", "1", "at least 2"),
        ("--batch-size 4096", "--batch-size 4096", "2048", "lower the first"),
        ("--n-steps 16 --num-envs 2", "--batch-size 64", "32", "raise the others"),
        ("--total-timesteps 0", "--total-timesteps", "0", "above 0"),
        ("--num-envs 0", "--num-envs", "0", "above 0"),
        ("--eval-interval 0", "--eval-interval", "0", "above 0"),
        ("--eval-episodes -1", "--eval-episodes", "-1", "above 0"),
        ("--hidden-dims 64 0", "--hidden-dims", "64 0", "above 0"),
        ("--seed -1", "--seed", "-1", "0 or more"),
        ("--lr fast", "--lr", "fast"),
        ("--n-step 64", "--n-step", "--n-steps"),
        ("--lr-schedule cosine", "cosine", "linear"),
        ("--device gpu", "gpu", "cpu"),
        ("--device cuda:99", "cuda:99", "--device cpu"),
        ("--save-path old.pt/x.pt", "old.pt/x.pt", "choose a path"),
        ("--save-path folder", "folder", "give the path of a file"),
        (f"--save-path {LONG}", LONG, "choose a path"),
        ("--resume", "checkpoints/ppo_agent.pt", "nothing to resume"),
        ("--resume --save-path new/x.pt", "new/x.pt", "nothing to resume"),
        ("--resume none.pt", "none.pt", "no file"),
        ("--resume folder", "folder", "checkpoint"),
        ("--resume cut_expert.pt", "cut_expert.pt", "damaged"),
        ("--resume empty_expert.pt", "empty_expert.pt", "damaged"),
        ("--resume foreign.pt", "foreign.pt", "train-ppo"),
        ("--resume newer.pt", "newer.pt", "99", "version 1", "install"),
        ("--resume student.pt", "student.pt", "expert"),
        ("--resume demos.npz", "demos.npz", "checkpoint"),
    ],
    "collect": [
        ("--checkpoint none.pt", "none.pt", "no file"),
        ("--checkpoint cut_expert.pt", "cut_expert.pt", "damaged"),
        ("--checkpoint empty_expert.pt", "empty_expert.pt", "damaged"),
        ("--checkpoint foreign.pt", "foreign.pt", "train-ppo"),
        ("--checkpoint newer.pt", "newer.pt", "99", "version 1", "install"),
        ("--checkpoint nan.pt", "nan.pt", "not finite"),
        ("--checkpoint expert.pt --env-id Pendulm-v1", "Pendulm-v1", "Pendulum-v1"),
        ("--checkpoint expert.pt --env-id Pendulum-v1", "observation space", "(3,)", "trained on"),
        ("--checkpoint expert.pt --env-id toy/Gears-v0", "action space", "Discrete(3, start=5)", "trained on"),
        ("--checkpoint expert.pt --env-id toy/Counter-v0 --num-episodes 1 --min-return 7", "7.0", "10 attempts", "lower"),
        ("--num-episodes 0", "--num-episodes", "0", "above 0"),
        ("--max-attempts 3", "--max-attempts", "3", "at least --num-episodes 50"),
        ("--min-return nan", "--min-return", "nan", "a number"),
        ("--seed -1", "--seed", "-1", "0 or more"),
        ("--checkpoint expert.pt --save-path old.pt/x.npz", "old.pt/x.npz", "choose a path"),
        ("--checkpoint expert.pt --save-path folder", "folder", "give the path of a file"),
    ],
    "train": [
        ("--demo-path none.npz", "none.npz", "no file"),
        ("--demo-path cut_demos.npz", "cut_demos.npz", "damaged"),
        ("--demo-path empty_demos.npz", "empty_demos.npz", "damaged"),
        ("--demo-path foreign.npz", "foreign.npz", "no demonstrations"),
        ("--demo-path expert.pt", "expert.pt", "no demonstrations"),
        ("--demo-path newer.npz", "newer.npz", "99", "version 1", "install"),
        ("--demo-path nan.npz", "nan.npz", "rewards", "episode 1, step 1"),
        ("--demo-path uneven.npz", "uneven.npz", "8 actions for 9 observations"),
        ("--demo-path nameless.npz", "action_space"),
        ("--demo-path other_shape.npz --save-path old.pt", "(5,)", "(2,)"),
        ("--demo-path other_choice.npz --save-path old.pt", "outside the space"),
        ("--epochs 0", "--epochs", "0", "above 0"),
        ("--batch-size 0", "--batch-size", "0", "above 0"),
        ("--lr nan", "--lr", "nan", "above 0"),
        ("--validation-fraction 1", "--validation-fraction", "1", "below 1"),
        ("--hidden-dims -8", "--hidden-dims", "-8", "above 0"),
        ("--seed -1", "--seed", "-1", "0 or more"),
        ("--demo-path demos.npz --device gpu", "gpu", "cpu"),
        ("--demo-path demos.npz --save-path old.pt/x.pt", "old.pt/x.pt", "choose a path"),
        ("--demo-path demos.npz --save-path folder", "folder", "give the path of a file"),
    ],
    "evaluate": [
        ("--checkpoint none.pt", "none.pt", "no file"),
        ("--checkpoint cut_expert.pt", "cut_expert.pt", "damaged"),
        ("--checkpoint foreign.pt", "foreign.pt", "train-ppo"),
        ("--checkpoint newer.pt", "newer.pt", "99", "version 1", "install"),
        ("--checkpoint expert.pt --hidden-dims 64 64", "expert.pt", "[64, 64]", "[8]", "leave them out"),
        ("--checkpoint student.pt --hidden-dims 8 8", "student.pt", "[8, 8]", "[8]", "leave them out"),
        ("--checkpoint student.pt --env-id CartPole-v1", "observation space", "trained on"),
        ("--checkpoint student.pt --env-id CartPol-v1", "CartPol-v1", "CartPole-v1"),
        ("--num-episodes 0", "--num-episodes", "0", "above 0"),
        ("--hidden-dims 0", "--hidden-dims", "0", "above 0"),
        ("--seed -1", "--seed", "-1", "0 or more"),
    ],
    "pipeline": [
        ("--env-id Pendulm-v1", "Pendulm-v1", "Pendulum-v1"),
        ("--env-id toy/NeedsRobots-v0", "toy/NeedsRobots-v0", "pip install"),
        ("--env-id toy/TextObs-v0", "Text(", "expected Box"),
        ("--ppo-timesteps 0", "--ppo-timesteps", "0", "above 0"),
        ("--num-demo-episodes 0", "--num-demo-episodes", "0", "above 0"),
        ("--bc-epochs 0", "--bc-epochs", "0", "above 0"),
        ("--num-eval-episodes 1", "--num-eval-episodes", "1", "at least 2"),
        ("--action-noise -1", "--action-noise", "-1", "0 or more"),
        ("--env-id toy/Levers-v0 --action-noise 1.5", "--action-noise", "1.5", "at most 1"),
        ("--seed -1", "--seed", "-1", "0 or more"),
        ("--output-dir old.pt --ppo-timesteps 1 --num-demo-episodes 1 --bc-epochs 1", "old.pt", "choose a path"),
    ],
}


def files_in(folder):
    """Return every file's content, and when it was last written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "case"), [(command, case) for command, cases in BAD_INPUT.items() for case in cases])
def test_bad_input_is_refused_in_one_clear_line_and_touches_no_file(command, case, workplace, capsys, monkeypatch):
    flags, *fragments = case
    monkeypatch.chdir(workplace)
    before = files_in(workplace)
    with pytest.raises(SystemExit) as leaving:
        MODULES[command].main(flags.split())
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert "Traceback" not in captured.err
    if "For full helptext" in captured.err:  # the parser's own box
        message = " ".join(re.sub("[╭─╮│╰╯]", " ", captured.err).split())
    else:
        (message,) = captured.err.splitlines()
    for fragment in fragments:
        assert fragment in message
    assert "eval_reward=" not in captured.out
    assert "loss=" not in captured.out
    assert files_in(workplace) == before


def test_the_collect_command_writes_what_the_function_returns(workplace, tmp_path, capsys):
    path = tmp_path / "new" / "folder" / "d.npz"
    flags = f"--env-id toy/Counter-v0 --checkpoint {workplace}/expert.pt --num-episodes 3 --seed 5 --save-path {path}"
    assert collect.main(flags.split()) is None
    written = DemoDataset.load(path)
    expected = collect_demos("toy/Counter-v0", PPOAgent.load(workplace / "expert.pt"), 3, seed=5)
    for name in ("observations", "actions", "rewards", "seeds"):
        np.testing.assert_array_equal(getattr(written, name), getattr(expected, name))
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"Demonstrations saved to {path}"
    assert "3 episodes, 9 transitions, return mean 6.00" in captured.out
    assert captured.err == ""


def test_a_filter_that_fails_leaves_the_old_demonstrations(workplace, tmp_path):
    path = tmp_path / "d.npz"
    path.write_text("old")
    flags = f"--env-id toy/Counter-v0 --checkpoint {workplace}/expert.pt --num-episodes 1 --min-return 7 --save-path {path}"
    with pytest.raises(SystemExit):
        collect.main(flags.split())
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["expert.pt", "student.pt"])
def test_the_evaluate_command_prints_what_the_function_returns(name, workplace, capsys):
    flags = f"--env-id toy/ShortOrLong-v0 --checkpoint {workplace}/{name} --hidden-dims 8 --num-episodes 12 --seed 3"
    assert evaluate.main(flags.split()) is None
    result = evaluate_policy(lambda obs: np.zeros(2), "toy/ShortOrLong-v0", 12, 3)
    output = capsys.readouterr().out
    low, high = result.interval
    assert "12 episodes" in output
    assert f"mean return {result.mean:.2f}" in output
    assert f"[{low:.2f}, {high:.2f}]" in output
    assert f"standard deviation {result.std:.2f}" in output
    assert f"mean {result.lengths.mean():.1f}  min 1  max 20" in output


def test_one_episode_has_no_spread(workplace, capsys):
    evaluate.main(f"--env-id toy/ShortOrLong-v0 --checkpoint {workplace}/expert.pt --hidden-dims 8 --num-episodes 1".split())
    output = capsys.readouterr().out
    assert "1 episode, start seed 0" in output
    assert "interval" not in output
    assert "deviation" not in output


def run_shell(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "il_based_rl.train_ppo", "--env-id", "Pendulm-v1"],
        [sys.executable, "-m", "il_based_rl", "evaluate", "--checkpoint", "none.pt"],
        [str(Path(sys.executable).with_name("il-rl")), "train", "--demo-path", "none.npz"],
    ],
    ids=["python -m il_based_rl.train_ppo", "python -m il_based_rl", "il-rl"],
)
def test_from_a_shell_bad_input_is_one_line_and_exit_code_2(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_shell(*command)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert command[-1] in line
    assert list(tmp_path.iterdir()) == []


def test_every_command_finds_a_module_of_the_folder_that_it_is_run_in(tmp_path, monkeypatch):
    text = "import gymnasium as gym\ngym.register('mine/Pole-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    (tmp_path / "my_own_poles.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    flags = ["train-ppo", "--env-id", "my_own_poles:mine/Pole-v0", "--total-timesteps", "64", "--n-steps", "64"]
    done = run_shell(str(Path(sys.executable).with_name("il-rl")), *flags)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path.parent)
    done = run_shell(str(Path(sys.executable).with_name("il-rl")), *flags)
    assert done.returncode == 2
    assert "run from the folder that my_own_poles lies in" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError("8 GiB"), 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1),
        (torch.OutOfMemoryError("CUDA out of memory"), 1),
        (RuntimeError("another"), None),
    ],
    ids=["Python", "torch", "CUDA", "another error"],
)
def test_memory_that_cannot_be_had_is_one_line(error, code, capsys):
    def command():
        raise error

    if code is None:
        with pytest.raises(RuntimeError, match="another"):
            cli.run(command)
        return
    with pytest.raises(SystemExit) as leaving:
        cli.run(command)
    assert leaving.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ")


@pytest.mark.parametrize("command", ["evaluate", "collect"])
def test_more_episodes_than_there_are_start_states_are_refused(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        MODULES[command].main(["--num-episodes", "1000000000"])
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--num-episodes must be" in line
    assert "1000000" in line


def test_a_collection_without_its_expert_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        collect.main(["--checkpoint", "none.pt", "--save-path", "demos/d.npz"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outer", [ConfigError("outer"), SystemExit(2)], ids=["an error", "the end of another command"])
def test_what_was_handled_around_a_command_has_no_say_in_it(outer, capsys):
    try:
        raise outer from ConfigError("outer")
    except BaseException:
        with pytest.raises(SystemExit) as leaving:
            train_ppo.main(["--help"])
        assert leaving.value.code == 0
        with pytest.raises(SystemExit) as leaving:
            train_ppo.main(["--nope"])
        assert leaving.value.code == 2
    complaint = capsys.readouterr().err
    assert "--nope" in complaint
    assert "outer" not in complaint


def test_warnings_of_the_parser_are_passed_on(monkeypatch, capsys):
    real = cli.tyro.cli

    def warning(*given, **named):
        print("the parser warns", file=sys.stderr)
        return real(*given, **named)

    monkeypatch.setattr(cli.tyro, "cli", warning)
    cli.parse(TrainPPOConfig(), [], prog="x", description="")
    assert "the parser warns" in capsys.readouterr().err


def test_a_module_of_this_folder_serves_worker_processes_and_may_import_others(tmp_path, monkeypatch):
    (tmp_path / "my_helper.py").write_text("START = 0.5\n")
    (tmp_path / "my_walks.py").write_text(
        "import gymnasium as gym\nimport numpy as np\n"
        "class Walk(gym.Env):\n"
        "    observation_space = action_space = gym.spaces.Box(-1, 1, (1,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        import my_helper\n"
        "        return np.float32([my_helper.START]), {}\n"
        "    def step(self, action):\n"
        "        return np.float32([0]), 0.0, True, False, {}\n"
        "gym.register('mine/Walk-v0', Walk)\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = "train-ppo --env-id my_walks:mine/Walk-v0 --num-envs 2 --vectorization async --total-timesteps 64 --n-steps 32"
    done = run_shell(str(Path(sys.executable).with_name("il-rl")), *flags.split(), "--eval-episodes", "1")
    assert done.returncode == 0, done.stderr
