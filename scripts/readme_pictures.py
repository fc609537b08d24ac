"""Make the README's pictures from a finished pipeline: `python scripts/readme_pictures.py FOLDER`, with chromium installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from il_based_rl.agent import BCAgent
from il_based_rl.ppo_agent import PPOAgent
from il_based_rl.report.found import read_run
from il_based_rl.report.video import film

DOCS = Path(__file__).parent.parent / "docs"
WIDTH, HEIGHT = 1400, 1060
MOMENTS, SIZE, SEED = 10, 120, 814464587


def screenshot(page: Path) -> None:
    """Photograph the top of a report as a browser shows it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium is not installed; apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}"]
        subprocess.run([chromium, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        Image.open(taken).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(DOCS / "report.png", optimize=True)


def strip(folder: Path) -> None:
    """Put moments of one episode in a row: the expert above, the student below, from the same start state."""
    expert, student = folder / "checkpoints" / "ppo_expert", folder / "checkpoints" / "bc_student"
    env_id, rows = read_run(expert).env_id, []
    for agent in (PPOAgent.load(f"{expert}.pt"), BCAgent.load(f"{student}.pt")):
        frames = list(film(agent, env_id, SEED))
        chosen = [frames[k] for k in np.linspace(0, len(frames) // 2, MOMENTS).astype(int)]
        rows.append(np.concatenate([np.array(Image.fromarray(each).resize((SIZE, SIZE))) for each in chosen], axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(DOCS / "strip.png", optimize=True)


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]) / "report.html")
    strip(Path(sys.argv[1]))
