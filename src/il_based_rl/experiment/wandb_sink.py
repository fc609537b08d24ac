"""Weights & Biases, told about every row."""

from __future__ import annotations

import configparser
import datetime
import importlib
import netrc
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from il_based_rl.cli import notice
from il_based_rl.config import TrackingConfig
from il_based_rl.errors import MissingExtraError

_CONNECT_SECONDS = 3.0


class WandbSink:
    """One run in Weights & Biases; its calls fail as theirs do.

    Args:
        tracking: Project and run name.
        settings: All hyperparameters, kept as the run's config.
        label: Stands in the default run name: `<env>_<steps>`.
    """

    def __init__(self, tracking: TrackingConfig, settings: Mapping[str, Any], label: str) -> None:
        mode = os.environ.get("WANDB_MODE") or _reachable_mode()
        name = tracking.wandb_run_name or f"run_{datetime.datetime.now():%Y%m%d_%H%M}_{label}"
        wandb = require_wandb()
        self._run: Any = wandb.init(project=tracking.wandb_project, name=name, config=dict(settings), mode=mode)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass on one row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def require_wandb() -> Any:
    """Import wandb, or raise MissingExtraError."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise MissingExtraError('--wandb needs the package wandb: pip install "il_based_rl[wandb]"') from error


def _reachable_mode() -> str:
    """Decide before the first call, as a call without an account or a network fails, or waits for minutes."""
    host = os.environ.get("WANDB_BASE_URL") or _stored_address() or "https://api.wandb.ai"
    kept = "the run is kept offline, see wandb sync (WANDB_MODE=online tries all the same)"
    try:
        address = urllib.parse.urlsplit(host)
        host = address.hostname or host
        if not (os.environ.get("WANDB_API_KEY") or _stored_key(host)):
            notice(f"Weights & Biases: no account found (WANDB_API_KEY, wandb login); {kept}")
            return "offline"
        # Behind a proxy nothing else can be reached, names of hosts included.
        proxy = urllib.request.getproxies().get(address.scheme)
        if proxy and not (urllib.request.proxy_bypass(host) or urllib.request.proxy_bypass(address.netloc)):
            address = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            host = address.hostname or host
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: no address at all
        notice(f"Weights & Biases: {host} is out of reach ({error}); {kept}")
        return "offline"
    return "online"


def _stored_address() -> str | None:
    """Return the server that `wandb login --host` has noted, if any."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")  # noqa: PTH111 - which never raises
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder, "settings"), encoding="utf-8")
        return settings.get("default", "base_url", fallback=None)
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None


def _stored_key(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
