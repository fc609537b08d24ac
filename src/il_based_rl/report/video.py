"""A policy at work, filmed. The command and the function."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from il_based_rl import cli
from il_based_rl.config import VideoConfig
from il_based_rl.errors import MissingExtraError, RenderError

if TYPE_CHECKING:
    import numpy as np

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_FRAMES_PER_SECOND, _MOST_PER_SECOND = 30, 1_000
"""Where the environment does not say, or says what cannot be."""
_TRIAL = "from mujoco.egl import GLContext; GLContext(64, 64).make_current()"


def film(
    agent: Any, env_id: str, start_seed: int, *, max_frames: int = 2_000, deterministic: bool = True
) -> Iterator[np.ndarray]:
    """Play one episode and yield its frames, without a display if there is none.

    Yields:
        Frames of shape (height, width, 3), uint8, all alike.

    Raises:
        RenderError: The environment cannot be drawn here; the message says what to do.
        See `evaluate.evaluate_policy`.
    """
    from il_based_rl.envs import Player, make_env
    from il_based_rl.interop import actor_from
    from il_based_rl.seeding import sampled_actions

    _do_without_display()
    with contextlib.closing(Player(make_env(env_id, render_mode="rgb_array"))) as player:
        env = player.env
        spaces, random = (env.observation_space, env.action_space), sampled_actions(start_seed)
        actor = actor_from(agent, *spaces, deterministic=deterministic, random=random)
        player.reset(start_seed)
        first = frame = _frame(env)
        yield frame
        for _ in range(max_frames - 1):
            _, terminated, truncated = player.step(actor([player])[0])
            frame = _frame(env)
            if frame.shape != first.shape:
                raise RenderError(f"{env_id} draws pictures of shape {first.shape}, then of {frame.shape}")
            yield frame
            if terminated or truncated:
                return


def frames_per_second(env_id: str) -> int:
    """Return how many frames of an environment make a second, by its own word if it has one that can be used."""
    from il_based_rl.envs import make_env

    with contextlib.closing(make_env(env_id)) as env:
        told = env.metadata.get("render_fps")
    return round(told) if isinstance(told, int | float) and 1 <= told <= _MOST_PER_SECOND else _FRAMES_PER_SECOND


def _do_without_display() -> None:
    """Where there is no display, choose what pygame and MuJoCo draw with instead, unless the user has."""
    if sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if "MUJOCO_GL" not in os.environ and importlib.util.find_spec("mujoco") is not None:
        # Tried in another process, as one that has tried EGL in vain cannot go back. OSMesa draws without a graphics card.
        trial = [sys.executable, "-c", _TRIAL]
        works = subprocess.run(trial, capture_output=True, env={**os.environ, "MUJOCO_GL": "egl"}).returncode == 0
        os.environ["MUJOCO_GL"] = "egl" if works else "osmesa"


def _frame(env: Any) -> np.ndarray:
    import numpy as np

    try:
        frame = np.asarray(env.render())
    except (Exception, SystemExit) as error:  # whatever draws may fail in any way
        why = f": {error}" if str(error) else ""
        raise RenderError(f"{_name(env)} cannot be drawn here: {type(error).__name__}{why}; see il-rl doctor") from error
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or min(frame.shape[:2]) < 2:
        raise RenderError(f"{_name(env)} draws {frame.dtype} of shape {frame.shape}; expected uint8 (height, width, 3)")
    return frame


def _name(env: Any) -> str:
    return "the environment" if env.spec is None else str(env.spec.id)


def write_video(path: str | Path, frames: Iterable[np.ndarray], speed: int) -> int:
    """Write frames as an MP4 file (H.264), and return how many there were.

    Args:
        path: The file; its folder is made.
        frames: Each of shape (height, width, 3), uint8, all alike.
        speed: Frames per second.

    Raises:
        MissingExtraError: The package imageio-ffmpeg is not installed.
        FileWriteError: The file cannot be written.
        RenderError: There are no frames, or the encoder failed.
    """
    from il_based_rl.files import atomic_path

    encoder, count, writer = require_encoder(), 0, None
    with atomic_path(path) as temporary, contextlib.ExitStack() as stack:
        for frame in frames:
            # Sizes are made even, which is all that the codec asks for; its default of 16 would stretch the picture.
            height, width = frame.shape[0] - frame.shape[0] % 2, frame.shape[1] - frame.shape[1] % 2
            try:
                if writer is None:
                    writer = encoder.write_frames(
                        str(temporary),
                        (width, height),
                        fps=speed,
                        macro_block_size=2,
                        output_params=["-movflags", "+faststart", "-f", "mp4"],
                        ffmpeg_log_level="error",
                    )
                    stack.callback(_closed, writer)  # whatever happens, before what it writes is removed
                    writer.send(None)
                writer.send(frame[:height, :width].copy(order="C"))
            except Exception as error:  # another program may fail in any way
                raise _unencoded(path, error) from error
            count += 1
        try:
            if writer is not None:
                writer.close()
        except Exception as error:  # as above
            raise _unencoded(path, error) from error
        if not temporary.is_file():
            raise _unencoded(path, "nothing was written")
    return count


def _closed(writer: Any) -> None:
    with contextlib.suppress(Exception):  # as above
        writer.close()


def _unencoded(path: str | Path, reason: object) -> RenderError:
    return RenderError(f"the video {path} cannot be encoded: {reason}; see il-rl doctor")


def require_encoder() -> Any:
    """Import imageio-ffmpeg, or raise MissingExtraError."""
    try:
        return importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise MissingExtraError('videos need the package imageio-ffmpeg: pip install "il_based_rl[video]"') from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl video`."""
    description = "Film episodes of a saved policy."
    cli.run(lambda: video(cli.parse(VideoConfig(), argv, prog="il-rl video", description=description)))


def video(config: VideoConfig) -> None:
    """Load a policy, film it, and write the file."""
    from il_based_rl.checkpoint import load_agent
    from il_based_rl.experiment.hardware import fitting_threads
    from il_based_rl.files import require_writable
    from il_based_rl.seeding import start_seeds

    require_encoder()
    require_writable(config.save_path)
    agent, speed = load_agent(config.checkpoint), frames_per_second(config.env_id)
    seeds = start_seeds(config.seed, "evaluation", config.num_episodes)
    how: dict[str, Any] = {"max_frames": config.max_frames, "deterministic": config.deterministic}
    filmed = (film(agent, config.env_id, seed, **how) for seed in seeds)
    with fitting_threads(agent.hidden_dims):
        frames = itertools.islice(itertools.chain.from_iterable(filmed), config.max_frames)
        count = write_video(config.save_path, frames, speed)
    cli.say(f"{count} frames, {count / speed:.1f} s, saved to {config.save_path}")


if __name__ == "__main__":
    main()
