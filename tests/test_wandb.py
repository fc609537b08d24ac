"""Weights & Biases: told everything that was promised, and never able to stop a run."""

import re
import socket
import sys
import types
from pathlib import Path

import pytest
import toy_envs  # noqa: F401 - registers the environments
from toy_envs import STILL

from il_based_rl import train, train_ppo
from il_based_rl.collect import collect_demos
from il_based_rl.experiment import wandb_sink
from il_based_rl.files import read_rows

TINY = (
    "--env-id toy/Counter-v0 --n-steps 64 --batch-size 32 --n-epochs 1 --hidden-dims 8 --eval-interval 100 --eval-episodes 2"
    " --total-timesteps 256 --seed 0 --save-path c/a.pt"
)


@pytest.fixture(autouse=True)
def _without_an_account(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Service:
    """Stands in for the package: remembers what it was told, and fails where it is told to."""

    def __init__(self):
        self.inits, self.rows, self.finished, self.failing = [], [], 0, set()

    def _fail(self, call):
        if call in self.failing:
            raise ConnectionError(f"{call}:\nno network")

    def init(self, **settings):
        self.inits.append(settings)
        self._fail("init")
        return types.SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, row, step=None):
        self._fail("log")
        self.rows.append((step, row))

    def finish(self):
        self.finished += 1
        self._fail("finish")


@pytest.fixture
def service(monkeypatch):
    service = Service()
    module = types.ModuleType("wandb")
    module.init = service.init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return service


def run_ppo(flags=""):
    train_ppo.main(f"{TINY} --wandb {flags}".split())


def test_every_update_and_every_evaluation_is_passed_on(service):
    run_ppo()
    assert [step for step, _ in service.rows] == [64, 128, 192, 256]
    assert all({"policy_loss", "value_loss", "entropy"} <= set(row) for _, row in service.rows)
    assert {step: row["eval_reward"] for step, row in service.rows if "eval_reward" in row} == {128: 6.0, 256: 6.0}
    kept = [(row.pop("step"), row) for row in read_rows("c/a/metrics.jsonl") if row.pop("wall_seconds") >= 0]
    assert service.rows == kept
    assert service.finished == 1


def leaves(settings):
    found = {}
    for name, value in settings.items():
        found |= leaves(value) if isinstance(value, dict) else {name: value}
    return found


def test_all_hyperparameters_are_the_runs_config(service):
    run_ppo("--gamma 0.9 --num-envs 2")
    (init,) = service.inits
    expected = {
        "env_id": "toy/Counter-v0",
        "total_timesteps": 256,
        "lr": 3e-4,
        "hidden_dims": (8,),
        "gamma": 0.9,
        "clip_range": 0.2,
        "n_steps": 64,
        "n_epochs": 1,
        "batch_size": 32,
        "entropy_coef": 0.0,
        "seed": 0,
        "save_path": "c/a.pt",
        "num_envs": 2,
        "gae_lambda": 0.95,
        "normalize_obs": True,
        "lr_schedule": "constant",
    }
    config = leaves(init["config"])
    assert {name: config.get(name) for name in expected} == expected


def test_a_seed_that_was_drawn_is_in_the_config(service):
    train_ppo.main(f"{TINY} --wandb".replace("--seed 0", "").split())
    assert isinstance(leaves(service.inits[0]["config"])["seed"], int)


def test_project_and_run_name_have_the_promised_defaults(service):
    run_ppo()
    assert service.inits[0]["project"] == "il-based-rl"
    assert re.fullmatch(r"run_20\d{6}_([01]\d|2[0-3])[0-5]\d_toy/Counter-v0_256", service.inits[0]["name"])


def test_project_and_run_name_can_be_given(service):
    run_ppo("--wandb-project robots --wandb-run-name tuesday")
    assert (service.inits[0]["project"], service.inits[0]["name"]) == ("robots", "tuesday")


def test_nobody_is_told_without_the_flag(service):
    train_ppo.main(TINY.split())
    assert service.inits == []


def test_without_a_key_the_mode_is_offline_from_the_first_call_and_it_is_said(service, capsys):
    run_ppo()
    captured = capsys.readouterr()
    assert [init["mode"] for init in service.inits] == ["offline"]
    (notice,) = captured.err.splitlines()
    assert "offline" in notice
    assert "WANDB_API_KEY" in notice
    assert "offline" not in captured.out


def test_with_a_key_but_no_network_the_mode_is_offline_and_it_is_said(service, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    run_ppo()
    assert [init["mode"] for init in service.inits] == ["offline"]
    assert re.search(r"127\.0\.0\.1 is out of reach.*offline", capsys.readouterr().err)


def test_a_machine_without_home_folders_takes_the_usual_server(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert wandb_sink._stored_address() is None


@pytest.mark.parametrize("how", ["the server that wandb login noted", "through a proxy", "through a proxy without a scheme"])
def test_a_server_of_ones_own_and_a_proxy_are_reached(how, service, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"http://127.0.0.1:{server.getsockname()[1]}"
        if how.startswith("through a proxy"):
            monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
            monkeypatch.setenv("http_proxy", there.removeprefix("http://") if "without" in how else there)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
        else:
            settings = tmp_path / ".config" / "wandb" / "settings"
            settings.parent.mkdir(parents=True)
            settings.write_text(f"[default]\nbase_url = {there}\n")
        run_ppo()
    assert [init["mode"] for init in service.inits] == ["online"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_with_a_key_and_a_network_the_mode_is_online(where, service, monkeypatch, tmp_path, capsys):
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        run_ppo()
    assert [init["mode"] for init in service.inits] == ["online"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["offline", "disabled", "online"])
def test_a_mode_that_the_user_chose_is_kept(mode, service, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    run_ppo()
    assert [init["mode"] for init in service.inits] == [mode]


@pytest.mark.parametrize("url", ["http://localhost:port", "http://[::1", "localhost", "http://localhost:99999"])
def test_a_malformed_address_never_stops_training(url, service, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    run_ppo()
    assert len(read_rows("c/a/metrics.jsonl")) == 4


@pytest.mark.parametrize("content", [b"machine \xff\xfe login \x80", b"machine", b"\x00"])
def test_an_unreadable_netrc_never_stops_training(content, service, tmp_path):
    (tmp_path / ".netrc").write_bytes(content)
    run_ppo()
    assert len(read_rows("c/a/metrics.jsonl")) == 4


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_failing_service_never_stops_training_and_is_said_once(call, service, capsys):
    service.failing = {call}
    run_ppo()
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "Checkpoint saved to c/a.pt"
    assert len(read_rows("c/a/metrics.jsonl")) == 4
    (notice,) = [line for line in captured.err.splitlines() if "switched off" in line]
    assert f"{call}: no network" in notice


def test_a_failure_in_the_middle_ends_the_telling_only(service, monkeypatch):
    real = service.log

    def log(row, step=None):
        if step == 192:
            service.failing = {"log", "finish"}
        real(row, step)

    monkeypatch.setattr(service, "log", log)
    run_ppo()
    assert [step for step, _ in service.rows] == [64, 128]
    assert [row["step"] for row in read_rows("c/a/metrics.jsonl")] == [64, 128, 192, 256]


def test_cloning_takes_the_same_flags(service, capsys):
    collect_demos("toy/Counter-v0", STILL, 2).save("demos.npz")
    flags = "--demo-path demos.npz --epochs 3 --hidden-dims 8 --save-path s.pt --wandb --wandb-project robots"
    train.main(flags.split())
    (init,) = service.inits
    assert (init["project"], init["mode"]) == ("robots", "offline")
    assert re.fullmatch(r"run_\d{8}_\d{4}_toy/Counter-v0_3", init["name"])
    assert leaves(init["config"])["epochs"] == 3
    assert [step for step, _ in service.rows] == [1, 2, 3]
    assert all({"train_loss", "validation_loss"} <= set(row) for _, row in service.rows)


@pytest.mark.parametrize("command", ["train_ppo", "train"])
def test_a_missing_package_is_refused_with_the_pip_command_before_anything_is_written(command, monkeypatch, capsys):
    collect_demos("toy/Counter-v0", STILL, 2).save("demos.npz")
    Path("old.pt").write_text("old")
    monkeypatch.setitem(sys.modules, "wandb", None)
    main, flags = {"train_ppo": (train_ppo.main, TINY), "train": (train.main, "--demo-path demos.npz")}[command]
    with pytest.raises(SystemExit) as leaving:
        main(f"{flags} --save-path old.pt --wandb".split())
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "il_based_rl[wandb]"' in line
    assert sorted(path.name for path in Path().rglob("*") if path.is_file()) == ["demos.npz", "old.pt"]
    assert Path("old.pt").read_text() == "old"


def test_the_real_package_keeps_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run_ppo("--wandb-run-name tuesday")
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for text in (b"tuesday", b"policy_loss", b"value_loss", b"entropy", b"eval_reward", b"clip_range"):
        assert text in content
    assert wandb.run is None


@pytest.mark.parametrize(("place", "logs"), [("c/a.pt", True), ("elsewhere/x.pt", False)])
def test_a_resumed_run_goes_on_logging_but_a_file_from_elsewhere_does_not_begin_to(place, logs, service):
    train_ppo.main([*TINY.split(), "--wandb"])
    Path("elsewhere").mkdir()
    Path("elsewhere/x.pt").write_bytes(Path("c/a.pt").read_bytes())
    service.inits.clear()
    train_ppo.main(["--resume", place, "--total-timesteps", "320", "--save-path", "c/a.pt" if logs else "d/x.pt"])
    assert len(service.inits) == logs
