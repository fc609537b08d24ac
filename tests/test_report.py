"""Lists, curves, films and the page, made from real runs of a few steps."""

from __future__ import annotations

import html
import html.parser
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from il_based_rl import pipeline
from il_based_rl.__main__ import main
from il_based_rl.compare import compare_policies
from il_based_rl.dataset import DemoDataset
from il_based_rl.errors import MissingExtraError, RenderError
from il_based_rl.failure_analysis import analyse
from il_based_rl.files import read_rows
from il_based_rl.report import video as video_module
from il_based_rl.report.found import find_runs
from il_based_rl.report.page import Findings, page
from il_based_rl.report.plots import learning_curves, svg
from il_based_rl.report.video import film, write_video

SMALL = "--n-steps 64 --batch-size 32 --n-epochs 1 --hidden-dims 8 --eval-interval 64 --eval-episodes 2 --total-timesteps 192"
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
    text = page(Findings(MARKUP, runs, comparison, [failure], demos, b"film", MARKUP, [MARKUP]))
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
    frames, speed = film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0)
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 10, 20, 30, 40]
    assert speed == 10
    assert len(film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0, max_frames=3)[0]) == 3


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
    frames, _ = film(lambda obs: env.action_space.sample(), env_id, 0, max_frames=4)
    assert all(frame.std() > 0 for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])


def test_the_command_films_a_checkpoint(capsys):
    pytest.importorskip("imageio_ffmpeg")
    train("c/a.pt")
    flags = "--env-id still/Still-v0 --checkpoint c/a.pt --num-episodes 2 --save-path films/a.mp4"
    main(["video", *flags.split()])
    assert capsys.readouterr().out.splitlines()[-1] == "10 frames, 1.0 s, saved to films/a.mp4"
    assert Path("films/a.mp4").stat().st_size > 500


def test_films_that_cannot_be_made_are_one_line(capsys, monkeypatch):
    train("c/a.pt", env_id="still/Broken-v0")
    for flags, code, says in (
        ("--env-id still/Broken-v0", 1, "cannot be drawn here: RuntimeError: no graphics"),
        ("--env-id CartPole-v1", 2, "do not fit"),
        ("--env-id still/Still-v0 --save-path c", 2, "it is a folder"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(f"video --checkpoint c/a.pt --save-path films/a.mp4 {flags}".split())
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (leaving.value.code, says in line) == (code, True), line
        assert list(Path().rglob("*.mp4")) == []
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"il_based_rl\[video\]"):
        write_video("a.mp4", [np.zeros((2, 2, 3), np.uint8)], 10)


def test_what_is_no_picture_is_refused(monkeypatch):
    monkeypatch.setattr(Still, "render", lambda self: None)
    with pytest.raises(RenderError, match="expected uint8"):
        film(lambda obs: np.zeros(1, np.float32), "still/Still-v0", 0)


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
    [("nowhere.pt", "no run at nowhere.pt"), ("a.pt --metric speed", "--metric speed"), ("a.pt --save-path c.txt", ".png")],
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
