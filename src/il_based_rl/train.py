"""Clone a student from demonstrations: the command that watches `BCAgent.learn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from il_based_rl import cli
from il_based_rl.config import TrainConfig

if TYPE_CHECKING:
    from il_based_rl.agent import BCAgent

# What is heavy (torch, Gymnasium) is imported inside the functions, so that --help need not wait for it.

_LINES = 10
"""About as many lines are printed, whatever the number of epochs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `il-rl train`."""
    description = "Clone a student from demonstrations."
    cli.run(lambda: train(cli.parse(TrainConfig(), argv, prog="il-rl train", description=description)))


def train(config: TrainConfig) -> BCAgent:
    """Clone a student, print its progress, and write it.

    Returns:
        The student after its last epoch.

    Raises:
        UserError: Whatever the user can mend; see `il_based_rl.errors`.
    """
    from tqdm import tqdm

    from il_based_rl.agent import BCAgent
    from il_based_rl.dataset import DemoDataset
    from il_based_rl.experiment.hardware import fitting_threads, require_device
    from il_based_rl.experiment.run import Run, RunFiles
    from il_based_rl.experiment.wandb_sink import open_sink, require_wandb
    from il_based_rl.seeding import fresh_seed

    require_device(config.device)
    if config.tracking.wandb:
        require_wandb()
    files = RunFiles(config.save_path)
    dataset = DemoDataset.load(config.demo_path)
    config = replace(config, seed=fresh_seed() if config.seed is None else config.seed)
    agent = BCAgent.for_dataset(dataset, config.bc, hidden_dims=config.hidden_dims, seed=config.seed, device=config.device)
    agent.require_fits(dataset)
    files.require_writable()
    cli.say(f"Cloning {config.demo_path}: {dataset.num_episodes} episodes, {len(dataset)} transitions...")
    fast_path = cli.notice_path(agent.reason_against_fast_path)
    sink = open_sink(config.tracking, asdict(config), f"{dataset.metadata.get('env_id')}_{config.bc.epochs}")
    bar = tqdm(total=config.bc.epochs, unit="epoch", leave=False, disable=None)
    with fitting_threads(config.hidden_dims), bar, Run(files, asdict(config), sink=sink) as run:
        for progress in agent.learn(dataset):
            run.log(progress.metrics | {"fast_path": fast_path}, progress.epoch)
            bar.update()
            if progress.epoch % max(1, config.bc.epochs // _LINES) == 0 or progress.epoch == config.bc.epochs:
                cli.say(_line(progress.epoch, progress.metrics))
        run.save(agent)
    cli.say(f"Student saved to {config.save_path}")
    return agent


def _line(epoch: int, metrics: dict[str, float]) -> str:
    names = [name for name in ("train_loss", "validation_loss") if name in metrics]
    return f"[{epoch:>8}] " + "  ".join(f"{name}={metrics[name]:.6f}" for name in names)


if __name__ == "__main__":
    main()
