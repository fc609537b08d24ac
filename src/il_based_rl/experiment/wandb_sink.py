"""Weights & Biases: told about every row, and never able to stop a run."""

from __future__ import annotations

import datetime
import importlib
import netrc
import os
import socket
import urllib.parse
from collections.abc import Mapping
from typing import Any

from il_based_rl.cli import notice
from il_based_rl.config import WandbConfig
from il_based_rl.errors import MissingExtraError

_CONNECT_SECONDS = 3.0


class WandbSink:
    """One run in Weights & Biases; the first failure of its calls switches it off, with a notice.

    Args:
        tracking: Project and run name.
        settings: All hyperparameters, kept as the run's config.
        label: Stands in the default run name: `<env>_<steps>`.

    Raises:
        MissingExtraError: The package wandb is not installed.
    """

    def __init__(self, tracking: WandbConfig, settings: Mapping[str, Any], label: str) -> None:
        wandb = require_wandb()
        self._run: Any = None
        mode = os.environ.get("WANDB_MODE") or _reachable_mode()
        name = tracking.wandb_run_name or f"run_{datetime.datetime.now():%Y%m%d_%H%M}_{label}"
        try:
            self._run = wandb.init(project=tracking.wandb_project, name=name, config=dict(settings), mode=mode)
        except Exception as error:  # whatever a service does, training goes on
            self._switch_off(error)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass on one row."""
        if self._run is not None:
            try:
                self._run.log(dict(metrics), step=step)
            except Exception as error:  # as above
                self._switch_off(error)

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:  # as above
                self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        self._run = None
        notice(f"Weights & Biases failed and is switched off; training goes on: {' '.join(str(error).split())}")


def require_wandb() -> Any:
    """Import wandb, or raise MissingExtraError."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise MissingExtraError('--wandb needs the package wandb: pip install "il_based_rl[wandb]"') from error


def open_sink(tracking: WandbConfig, settings: Mapping[str, Any], label: str) -> WandbSink | None:
    """Return a sink if one is wanted; arguments and errors as in `WandbSink`."""
    return WandbSink(tracking, settings, label) if tracking.wandb else None


def _reachable_mode() -> str:
    """Decide before the first call, as a call without an account or a network fails, or waits for minutes."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        address = urllib.parse.urlsplit(host)
        host = address.hostname or host
        if not (os.environ.get("WANDB_API_KEY") or _stored_key(host)):
            notice("Weights & Biases: no account found (WANDB_API_KEY, wandb login); the run is kept offline, see wandb sync")
            return "offline"
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: no address at all
        notice(f"Weights & Biases: {host} is out of reach ({error}); the run is kept offline, see wandb sync")
        return "offline"
    return "online"


def _stored_key(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
