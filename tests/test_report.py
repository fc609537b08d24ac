"""Lists, curves, films and the page, made from real runs of a few steps."""

from __future__ import annotations

import html
import html.parser
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from il_based_rl import pipeline
from il_based_rl.__main__ import main
from il_based_rl.agent import BCAgent
from il_based_rl.collect import collect_demos
from il_based_rl.compare import compare_policies
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import MissingExtraError, RenderError
from il_based_rl.failure_analysis import analyse
from il_based_rl.files import read_checkpoint, read_rows, write_checkpoint
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.report import video as video_module
from il_based_rl.report.found import find_runs
from il_based_rl.report.gather import Findings, _distance, _named
from il_based_rl.report.page import page
from il_based_rl.report.plots import learning_curves, svg
from il_based_rl.report.video import film, frames_per_second, write_video

SMALL = "--n-steps 64 --batch-size 32 --n-epochs 1 --hidden-dims 8 --eval-interval 64 --eval-episodes 2 --total-timesteps 192"
REAL = importlib.import_module
MARKUP = "<img src=x onerror=alert(1)>&\"'</style>"


class Still(gym.Env):
    """Four steps in which nothing happens; a picture of one colour."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None, broken=False):
        self.render_mode, self._broken, self._steps = render_mode, broken, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return np.float32([self.np_random.uniform(-1, 1), 0]), {}

    def step(self, action):
        self._steps += 1
        return np.float32([0, self._steps / 4]), -float(action[0] ** 2), False, self._steps == 4, {}

    def render(self):
        if self._broken:
            raise RuntimeError("no\ngraphics")
        return np.full((31, 45, 3), 10 * self._steps, np.uint8)


@pytest.fixture(autouse=True)
def _environments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, settings in (("still/Still-v0", {}), ("still/Broken-v0", {"broken": True})):
        monkeypatch.setitem(gym.registry, name, gym.envs.registration.EnvSpec(name, Still, kwargs=settings))


def train(save_path, *flags, env_id="still/Still-v0", seed=0):
    main(f"train-ppo --env-id {env_id} --seed {seed} --save-path {save_path} {SMALL}".split() + list(flags))


@pytest.fixture
def finished(tmp_path):
    """A folder in which a whole pipeline has run."""
    flags = "--env-id still/Still-v0 --ppo-timesteps 1 --num-demo-episodes 4 --bc-epochs 3 --num-eval-episodes 12"
    pipeline.main([*flags.split(), "--output-dir", "out"])
    return tmp_path / "out"


class Reader(html.parser.HTMLParser):
    """Collects elements, and sees that every one is closed."""

    EMPTY = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


# ---- the page ----


def test_the_pipeline_writes_a_page_with_all_its_parts(finished):
    text = (finished / "report.html").read_text()
    read = Reader(text)
    titles = [texts for texts in read.texts if texts.strip()]
    for title in (
        "How good they are",
        "At work",
        "How they learned",
        "Where the student fails",
        "Demonstrations",
        "Settings and versions",
    ):
        assert title in titles
    assert len(read.of("svg")) == 4  # profiles, two learning curves, errors over time
    assert len(read.of("video")) == 1
    assert read.of("video")[0]["src"].startswith("data:video/mp4;base64,")
    assert len(text) < 5 * 2**20


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(finished):
    text = (finished / "report.html").read_text()
    read = Reader(text)
    assert read.of("script") == read.of("link") == read.of("iframe") == []
    for _, attributes in read.seen:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_for_ears_and_keys_too(finished):
    read = Reader((finished / "report.html").read_text())
    assert read.of("html")[0]["lang"] == "en"
    assert read.of("meta")[1]["content"] == "width=device-width, initial-scale=1"
    for picture in read.of("svg"):
        assert picture["role"] == "img"
        assert len(picture["aria-label"]) > 20
    assert read.of("video")[0]["aria-label"]
    for scrolled in (each for each in read.of("div") if each.get("class") == "scroll"):
        assert scrolled["tabindex"] == "0"
        assert scrolled["aria-label"]
    assert all(cell["scope"] in ("row", "col") for cell in read.of("th"))
    headings = [int(tag[1]) for tag, _ in read.seen if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(headings))


def test_the_page_says_what_the_comparison_says(finished, capsys):
    text = (finished / "report.html").read_text()
    main(["report", "out", "--no-video", "--seed", "1"])
    again = (finished / "report.html").read_text()
    assert "<video" not in again
    sentences = re.findall(r'<p class="verdict">(.*?)</p>', text)
    assert sentences[0].startswith("The student ")
    assert sentences[1].startswith("The random policy")


def test_every_text_is_escaped(finished):
    runs = list(find_runs(finished))
    for run in runs:
        run.payload["run"]["settings"] |= {"env_id": MARKUP, "wandb_run_name": MARKUP}
    comparison = compare_policies(
        {MARKUP: lambda obs: np.zeros(1, np.float32), "student": runs[0].save_path}, "still/Still-v0", 5
    )
    comparison.numbers["env_id"] = MARKUP
    expert, student = comparison.contenders[:2]
    failure = analyse(student, expert, Still.observation_space, Still.action_space) | {"reasons": [MARKUP]}
    metadata = {"env_id": MARKUP, "seed": MARKUP}
    demos = replace(DemoDataset.load(finished / "demos" / "ppo_expert_demos.npz"), metadata=metadata)
    text = page(Findings(MARKUP, runs, comparison, [failure], {MARKUP: demos}, b"film", MARKUP, [MARKUP]))
    read = Reader(text)
    assert MARKUP not in text
    assert "<img" not in text
    assert read.of("img") == []
    assert sum(MARKUP in part for part in read.texts) > 8


def test_a_page_is_made_without_what_draws_films(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    main(["report", "out"])
    assert 'pip install "il_based_rl[video]"' in capsys.readouterr().err
    text = (finished / "report.html").read_text()
    assert "no video" in text
    assert "<video" not in text


def test_an_environment_that_cannot_be_drawn_costs_the_film_alone(capsys):
    flags = "--env-id still/Broken-v0 --ppo-timesteps 1 --num-demo-episodes 2 --bc-epochs 1 --num-eval-episodes 3"
    pipeline.main([*flags.split(), "--output-dir", "out"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no video" in line]
    assert "RuntimeError: no graphics" in line
    assert "How good they are" in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("nowhere", "there is no folder nowhere"), (".", "there is no expert under"), (". --num-episodes 1", "--num-episodes")],
)
def test_a_report_of_nothing_is_one_line_and_no_page(arguments, says, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["report", *arguments.split()])
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
    assert list(Path().iterdir()) == []


def test_a_file_does_not_choose_which_module_is_imported(finished, capsys, monkeypatch):
    payload = read_checkpoint(finished / "checkpoints" / "ppo_expert.pt")
    payload["run"]["settings"]["env_id"] = "hostile_module:still/Still-v0"
    write_checkpoint(finished / "checkpoints" / "ppo_expert.pt", payload)
    imported = []
    monkeypatch.setattr(importlib, "import_module", lambda name, *more: imported.append(name) or REAL(name, *more))
    with pytest.raises(SystemExit) as leaving:
        main(["report", "out", "--no-video"])
    assert leaving.value.code == 2
    assert "--env-id hostile_module:still/Still-v0" in capsys.readouterr().err
    assert "hostile_module" not in imported
    main(["report", "out", "--no-video", "--env-id", "still/Still-v0"])


def test_the_expert_is_the_one_that_the_demonstrations_show(finished, capsys):
    train(f"{finished}/checkpoints/a_newer_one.pt", "--lr", "0.5", seed=9)
    capsys.readouterr()
    main(["report", "out", "--no-video", "--num-episodes", "5"])
    captured = capsys.readouterr()
    assert "Comparing out/checkpoints/ppo_expert.pt with its student" in captured.out
    assert "left out: out/checkpoints/a_newer_one.pt" in captured.err
    main(["report", "out", "--no-video", "--num-episodes", "5", "--expert", "out/checkpoints/a_newer_one.pt"])
    assert "Comparing out/checkpoints/a_newer_one.pt" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["report", "out", "--expert", "nowhere.pt"])
    assert "no expert nowhere.pt under out" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_an_expert_is_known_by_actions_that_a_subtraction_would_wrap(dtype):
    space = spaces.Box(0, 1 if dtype is bool else 200, (2,), dtype)
    demonstrator, other = (
        PPOAgent.for_spaces(spaces.Box(-1.0, 1.0, (2,)), space, hidden_dims=(8,), initial_log_std=-3.0, seed=seed)
        for seed in (0, 1)
    )
    demonstrator.policy.actor.network.layers[-1].bias.data.fill_(0.5)
    other.policy.actor.network.layers[-1].bias.data.fill_(-0.9)
    states = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2)).astype(np.float32)
    actions = demonstrator.predict(states)
    shown = SimpleNamespace(observations=states, actions=actions if dtype is bool else actions + np.uint8(1))
    near, far = (
        _distance(SimpleNamespace(payload=agent.payload(), save_path=Path("a.pt")), [shown]) for agent in (demonstrator, other)
    )
    assert near == (0.0 if dtype is bool else 1.0)
    assert near < far


def test_runs_whose_names_differ_behind_the_last_dot_are_told_apart():
    paths = ["expert.pt", "run_0.001", "run_0.002", "b.pt", "student.pt", "random", "DAgger student"]
    runs = [SimpleNamespace(kind="bc" if path != "expert.pt" else "ppo", save_path=Path(path)) for path in paths]
    named = _named(runs)
    assert list(named) == ["expert", "run_0.001", "run_0.002", "b", "student.pt", "./random", "./DAgger student"]
    assert [str(path) for path in named.values()] == paths


def test_a_run_called_random_is_named_by_its_file():
    runs = [
        SimpleNamespace(kind=kind, save_path=Path(name))
        for kind, name in (("ppo", "e.pt"), ("bc", "random.pt"), ("bc", "b.pt"))
    ]
    assert list(_named(runs)) == ["expert", "random.pt", "b"]


def test_each_student_is_judged_by_its_own_demonstrations(finished):
    other = collect_demos("still/Still-v0", lambda obs: np.float32([0.9 * obs[1]]), 5, seed=3)
    other.save(finished / "demos" / "other.npz")
    flags = f"--demo-path {finished}/demos/other.npz --save-path {finished}/checkpoints/other.pt --epochs 200 --hidden-dims 16"
    main(["train", *flags.split()])
    main(["report", "out", "--no-video", "--num-episodes", "5"])
    failures = json.loads((finished / "report.json").read_text())["failures"]
    (found,) = [each for each in failures if each["student"].endswith("other")]
    demos = DemoDataset.load(finished / "demos" / "other.npz")
    student = BCAgent.load(finished / "checkpoints" / "other.pt")
    far = float(np.sqrt(np.mean((student.predict(demos.observations) - demos.actions) ** 2)))
    assert found["error_on_demonstrations"] > 0
    assert found["error_on_demonstrations"] * 0.02 <= far * 1.01  # in units of at least that
    assert (finished / "report.html").read_text().count('<p class="caption">What the ') == 2


def test_a_damaged_student_is_said_to_be_left_out(finished, capsys):
    (finished / "checkpoints" / "bc_student.pt").write_bytes(b"nonsense")
    main(["report", "out", "--no-video", "--num-episodes", "5"])
    assert "bc_student.pt is left out, as it cannot be read" in capsys.readouterr().err
    assert "bc_student.pt is left out, as it cannot be read" in (finished / "report.html").read_text()


def test_a_student_that_does_not_fit_what_its_file_says_is_left_out_and_named(finished, monkeypatch):
    monkeypatch.chdir(finished)
    payload = read_checkpoint("checkpoints/bc_student.pt")
    for name, damage in (("unfit", {"parameters": {"x": torch.zeros(9999)}}), ("negative", {})):
        damaged = {**payload, **damage}
        if name == "negative":
            damaged["parameters"] = {
                **payload["parameters"],
                "normalizer.variance": -payload["parameters"]["normalizer.variance"],
            }
        shutil.copytree("checkpoints/bc_student", f"checkpoints/{name}")
        write_checkpoint(f"checkpoints/{name}.pt", damaged)
    main(["report", ".", "--num-episodes", "3", "--no-video", "--quiet"])
    text = Path("report.html").read_text()
    assert "unfit.pt is left out" in text
    assert "negative.pt is left out" in text


def test_a_run_is_listed_from_inside_its_own_folder(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished / "checkpoints" / "bc_student")
    main(["runs"])
    assert "bc_student.pt" in capsys.readouterr().out


def test_no_two_parts_of_a_page_have_one_name(finished):
    read = Reader((finished / "report.html").read_text())
    names = [attributes["id"] for _, attributes in read.seen if "id" in attributes]
    assert len(names) == len(set(names))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as Debian's package has it")
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_overflows_in_a_browser(width, finished):
    # In a frame, as a browser without a window has a least width of its own.
    inner = html.escape((finished / "report.html").read_text())
    probe = """<script>addEventListener('load', () => {
        const inside = frames[0].document, root = inside.documentElement, video = inside.querySelector('video');
        const drawn = [...inside.querySelectorAll('figure svg, figure video')];
        const shown = drawn.every(each => each.getBoundingClientRect().height > 50);
        document.title = JSON.stringify([root.clientWidth, root.scrollWidth, drawn.length, shown, video.readyState, faults]);
    });</script>"""
    listen = (
        "<script>const faults = []; addEventListener('error', event => faults.push(event.message || 'loading'), true);</script>"
    )
    outer = finished / "probe.html"
    outer.write_text(f'{listen}<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>{probe}')
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1600,1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]
    done = subprocess.run([CHROMIUM, *flags, outer.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
    inside, wide, count, shown, ready, faults = found
    assert inside in range(width - 20, width + 1)  # but for a scroll bar
    assert wide <= inside
    assert count == 5
    assert shown
    assert ready >= 1  # the film's size and length are known
    assert faults == []


# ---- films ----


def test_a_film_has_a_frame_for_each_state():
    frames = list(film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 10, 20, 30, 40]
    assert frames_per_second("still/Still-v0") == 10
    assert len(list(film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0, max_frames=3))) == 3


@pytest.mark.parametrize("told", [None, "abc", 0.0, 0.5, -3, 1e9, float("nan")])
def test_a_speed_that_cannot_be_is_not_taken(told, monkeypatch):
    monkeypatch.setattr(Still, "metadata", {"render_modes": ["rgb_array"], "render_fps": told})
    assert frames_per_second("still/Still-v0") == 30


def test_a_film_can_be_read_again_frame_by_frame(tmp_path):
    encoder = pytest.importorskip("imageio_ffmpeg")
    frames = [np.full((31, 45, 3), 40 * k, np.uint8) for k in range(6)]
    write_video(tmp_path / "made" / "film.mp4", frames, 10)
    reading = encoder.read_frames(str(tmp_path / "made" / "film.mp4"))
    facts = next(reading)
    assert facts["codec"] == "h264"
    assert facts["size"] == (44, 30)
    assert facts["fps"] == 10
    shown = [np.frombuffer(each, np.uint8).mean() for each in reading]
    np.testing.assert_allclose(shown, [40 * k for k in range(6)], atol=4)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "LunarLander-v3"])
def test_environments_are_drawn_without_a_display(env_id, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make(env_id)
    env.action_space.seed(0)
    frames = list(film(lambda obs: env.action_space.sample(), env_id, 0, max_frames=4))
    assert all(frame.std() > 0 for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("name", ["a.mdl", "a.pth", "a.b"])
def test_runs_of_any_suffix_are_found(name, capsys):
    train(name)
    main(["runs", "."])
    assert re.search(rf"{name}.*finished", capsys.readouterr().out)


def test_the_command_films_a_checkpoint(capsys):
    pytest.importorskip("imageio_ffmpeg")
    train("c/a.pt")
    flags = "--env-id still/Still-v0 --checkpoint c/a.pt --num-episodes 2 --save-path films/a.mp4"
    main(["video", *flags.split()])
    assert capsys.readouterr().out.splitlines()[-1] == "10 frames, 1.0 s, saved to films/a.mp4"
    assert Path("films/a.mp4").stat().st_size > 500


def test_films_that_cannot_be_made_are_one_line(capsys, monkeypatch):
    train("c/a.pt", env_id="still/Broken-v0")
    Path("c.mp4").mkdir()
    for flags, code, says in (
        ("--env-id still/Broken-v0", 1, "cannot be drawn here: RuntimeError: no graphics"),
        ("--env-id CartPole-v1", 2, "do not fit"),
        ("--env-id still/Still-v0 --save-path c.mp4", 2, "it is a folder"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(f"video --checkpoint c/a.pt --save-path films/a.mp4 {flags}".split())
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (leaving.value.code, says in line) == (code, True), line
        assert list(Path().rglob("*.mp4")) == [Path("c.mp4")]
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"il_based_rl\[video\]"):
        write_video("a.mp4", [np.zeros((2, 2, 3), np.uint8)], 10)


def leaves(self):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("render", "says"),
    [
        (lambda self: None, "expected uint8"),
        (lambda self: np.zeros((1, 1, 3), np.uint8), "expected uint8"),
        (lambda self: np.zeros((4, 4 + self._steps, 3), np.uint8), r"shape \(4, 4, 3\), then of \(4, 5, 3\)"),
        (leaves, "SystemExit: 3"),
    ],
    ids=["nothing", "a point", "another size", "leaves"],
)
def test_what_cannot_be_filmed_is_named_and_costs_a_report_the_film_alone(render, says, finished, monkeypatch):
    monkeypatch.setattr(Still, "render", render)
    with pytest.raises(RenderError, match=says):
        list(film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0))
    main(["report", "out"])
    text = (finished / "report.html").read_text()
    assert "no video" in text
    assert "How good they are" in text


def test_a_film_that_fails_in_its_middle_leaves_nothing(tmp_path):
    pytest.importorskip("imageio_ffmpeg")

    def frames():
        yield from [np.zeros((64, 64, 3), np.uint8)] * 5
        raise RenderError("it grew")

    with pytest.raises(RenderError, match="it grew"):
        write_video(tmp_path / "film.mp4", frames(), 10)
    time.sleep(0.5)  # for an encoder that would go on alone
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_fails_is_named(tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "bad").write_text("#!/bin/sh\ncat > /dev/null\nexit 1\n")
    (tmp_path / "bad").chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "bad"))
    with pytest.raises(RenderError, match=r"film\.mp4 cannot be encoded"):
        write_video(tmp_path / "film.mp4", [np.zeros((8, 8, 3), np.uint8)] * 3, 10)
    with pytest.raises(RenderError, match="nothing was written"):
        write_video(tmp_path / "film.mp4", [], 10)
    assert not (tmp_path / "film.mp4").exists()


def test_how_mujoco_draws_is_chosen_only_where_there_is_no_display_and_no_choice(monkeypatch):
    environment = {"MUJOCO_GL": "glfw"}
    monkeypatch.setattr(video_module.os, "environ", environment)
    video_module._do_without_display()
    assert environment["MUJOCO_GL"] == "glfw"
    environment.clear()
    environment["DISPLAY"] = ":0"
    video_module._do_without_display()
    assert environment == {"DISPLAY": ":0"}


# ---- lists and curves ----


def test_what_lies_beside_a_run_is_not_taken_for_it():
    train("c/a.pt")
    for name in ("a.best.pt", "a.mp4", "a.json", "a.0.pt", "a.pt.bak"):
        Path("c", name).write_bytes(b"nonsense")
    (run,) = find_runs(Path("c"))
    assert (run.save_path, run.state) == (Path("c/a.pt"), "finished")


def test_strangers_entries_neither_stop_nor_hang_a_list(capsys):
    train("c/a.pt")
    for name in ("link", "pipe", "lock", "rows"):
        Path("c", name).mkdir()
    Path("c/link/metrics.jsonl").symlink_to("nowhere")
    os.mkfifo("c/pipe/metrics.jsonl")
    Path("c/lock/metrics.jsonl").write_text("")
    os.mkfifo("c/lock/.lock")
    huge = "1" + "0" * 400
    lines = [f'{{"step": {huge}, "eval_reward": 1}}', '{"step": 1, "eval_reward": 1e308}', '{"step": 2, "eval_reward": NaN}']
    lines += ['{"step": 3, "eval_reward": -Infinity}', '{"step": 4, "eval_reward": 5}']
    Path("c/rows/metrics.jsonl").write_text("\n".join(lines))
    capsys.readouterr()
    main(["runs", "c"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["a.pt", "lock.pt", "rows.pt"]
    assert " 5.00 " in lines[3]
    main(["plot", "c/rows", "--save-path", "one.svg"])
    assert "use" in Path("one.svg").read_text()  # the marker of a single point


def test_a_name_from_a_file_commands_no_terminal(capsys):
    train("c/a.pt")
    payload = read_checkpoint("c/a.pt")
    payload["run"]["settings"]["env_id"] = "\x1b[31mred\x1b[2J\nforged line"
    write_checkpoint("c/a.pt", payload)
    capsys.readouterr()
    main(["runs", "c"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 2


def test_names_are_no_formulas_and_no_legend_hides_them():
    lines = {"$x_{": [([0.0, 1.0], [0.0, 1.0])], "_b": [([0.0, 1.0], [1.0, 0.0])], "s\udcff": []}
    axes = learning_curves(lines, "a", "b").axes[0]
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == [r"\$x_{", "_b"]
    assert "<svg" in svg(axes.figure, "s\udcff")


def test_runs_without_the_metric_are_named(capsys):
    train("a.pt")
    train("b.pt", seed=1)
    Path("b/metrics.jsonl").write_text('{"step": 64, "value_loss": 1.0}\n')
    capsys.readouterr()
    main(["plot", "a.pt", "b.pt", "--metric", "eval_reward", "--save-path", "curves.png"])
    assert capsys.readouterr().out.splitlines() == [
        "1 run in 1 curve saved to curves.png",
        "left out, as there are no rows with --metric eval_reward: b",
    ]


def test_experts_and_students_have_no_common_axis(finished, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["plot", "out/checkpoints/ppo_expert.pt", "out/checkpoints/bc_student.pt", "--metric", "fast_path"])
    assert leaving.value.code == 2
    assert "one after the other" in capsys.readouterr().err


def test_one_run_named_twice_is_one_and_how_loud_it_was_makes_no_difference(capsys):
    train("a0.pt")
    train("a1.pt", "--quiet", seed=1)
    capsys.readouterr()
    main(["plot", "a0.pt", "a0", "a1", "--save-path", "curves.png"])
    assert capsys.readouterr().out.startswith("2 runs in 1 curve saved")


def test_runs_are_listed_with_how_far_they_are(capsys):
    train("runs/a.pt")
    train("runs/deep/b.pt", seed=1)
    Path("runs/.hidden").mkdir()
    shutil.copytree("runs/a", "runs/.hidden/a")
    shutil.copy("runs/a/step_0000000064.pt", "runs/deep/b.pt")  # as one that was interrupted has it
    Path("runs/c").mkdir()
    Path("runs/c/metrics.jsonl").write_text('{"step": 64, "eval_reward": -1.0}\nnonsense\n')
    Path("runs/c.pt").write_bytes(b"nonsense")
    capsys.readouterr()
    main(["runs", "runs"])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "run"
    assert [line.split()[0] for line in lines] == ["a.pt", "c.pt", "deep/b.pt"]
    returns = [row["eval_reward"] for row in read_rows("runs/a/metrics.jsonl")]
    assert re.search(rf"still/Still-v0 +ppo +192 of 192 +{returns[-1]:.2f} +{max(returns):.2f} +finished +20\d\d-", lines[0])
    assert "damaged" in lines[1]
    assert "64 of 192" in lines[2]
    assert "interrupted" in lines[2]


def test_a_run_that_is_going_on_is_listed_as_that():
    from il_based_rl.experiment.run import RunFiles

    train("a.pt")
    (run,) = find_runs(Path())
    assert run.state == "finished"
    with RunFiles("a.pt").exclusive():
        assert run.state == "running"


def test_a_list_of_nothing_says_so(capsys):
    main(["runs"])
    assert "no run under ." in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["runs", "nowhere"])
    assert leaving.value.code == 2


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_runs_that_differ_only_in_their_seed_are_one_curve(suffix, capsys):
    for seed in (0, 1):
        train(f"a{seed}.pt", seed=seed)
    train("fast.pt", "--lr", "0.01")
    capsys.readouterr()
    main(f"plot a0.pt a1 fast.pt --save-path figures/curves.{suffix}".split())
    assert capsys.readouterr().out == f"3 runs in 2 curves saved to figures/curves.{suffix}\n"
    beginning = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert Path(f"figures/curves.{suffix}").read_bytes().startswith(beginning)


def test_a_curve_of_several_seeds_is_their_mean_with_its_interval():
    series = [([0.0, 10.0, 20.0], [0.0, 1.0, 2.0]), ([0.0, 20.0], [2.0, 4.0]), ([5.0, 20.0], [4.0, 4.0])]
    axes = learning_curves({"a": series}, "steps", "return").axes[0]
    steps, middle = axes.lines[0].get_data()
    np.testing.assert_array_equal(steps, [5.0, 10.0, 20.0])
    np.testing.assert_allclose(middle, [(0.5 + 2.5 + 4) / 3, (1 + 3 + 4) / 3, (2 + 4 + 4) / 3])
    band = axes.collections[0].get_paths()[0].vertices
    # At step 20: standard deviation of 2, 4, 4 is 1.1547, over sqrt(3) 0.66667, times t(0.975, 2) = 4.302653.
    assert band[band[:, 0] == 20.0, 1].max() == pytest.approx(10 / 3 + 4.302653 * 2 / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nowhere.pt", "no run at nowhere.pt"),
        (".", "no run at ."),
        ("a.pt --metric speed", "--metric speed"),
        ("a.pt --save-path c.txt", ".png"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(arguments, says, capsys):
    train("a.pt")
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(["plot", *arguments.split()])
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
    assert not list(Path().glob("c*.*"))


def test_a_figure_takes_the_ink_of_the_page():
    text = svg(learning_curves({"a": [([0.0, 1.0], [0.0, 1.0])]}, "steps", "return"), 'what it "shows"')
    assert "currentColor" in text
    assert "#010203" not in text
    assert 'aria-label="what it &quot;shows&quot;"' in text
    assert text == svg(learning_curves({"a": [([0.0, 1.0], [0.0, 1.0])]}, "steps", "return"), 'what it "shows"')


def test_the_command_films_as_many_frames_as_it_is_told(capsys, monkeypatch):
    train("c/a.pt")
    monkeypatch.setattr(video_module, "require_encoder", lambda: None)
    monkeypatch.setattr(video_module, "write_video", lambda path, frames, speed: len(list(frames)))
    monkeypatch.setattr(film, "__kwdefaults__", {**film.__kwdefaults__, "max_frames": 2})
    for told, frames in ((3, 3), (100, 5)):
        main(
            f"video --env-id still/Still-v0 --checkpoint c/a.pt --num-episodes 1 --max-frames {told} --save-path a.mp4".split()
        )
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{frames} frames")
