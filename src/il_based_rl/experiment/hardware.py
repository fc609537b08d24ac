"""What a command computes on: the device, and how many threads."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Sequence

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from il_based_rl.errors import ConfigError
from il_based_rl.files import package_versions

SMALL_WIDTH = 512
"""Up to this layer width one thread is quickest: a minibatch is done before a second one has woken up."""


@contextlib.contextmanager
def fitting_threads(hidden_dims: Sequence[int]) -> Iterator[None]:
    """Compute with one thread while the layers are small; put the former number back afterwards."""
    if max(hidden_dims, default=1) > SMALL_WIDTH:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


def numerics(device: str) -> dict[str, str]:
    """Return what the sums of floats depend on beside the seed."""
    blas = {
        f"{found['internal_api']} {found.get('architecture')}" for found in threadpool_info() if found["user_api"] == "blas"
    }
    return {
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": str(torch.get_num_threads()),
        "linear algebra": ", ".join(sorted(blas)),
        **{name: version for name, version in package_versions().items() if name != "il_based_rl"},
    }


def require_device(device: str) -> None:
    """Raise ConfigError unless updates can run on this device here."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r} is no device; expected cpu, cuda or cuda:NUMBER") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device} is not supported; expected cpu, cuda or cuda:NUMBER")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"--device {device} is not here: torch sees {count} CUDA devices; use --device cpu")
