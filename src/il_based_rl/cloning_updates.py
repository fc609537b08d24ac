"""The cloning loss on one minibatch and its gradient, twice: by autograd, and by hand on the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.cloning_losses import CloningLoss
from il_based_rl.flat_parameters import FlatParameters
from il_based_rl.fused_mlp import StackedMLP, numpy_grad
from il_based_rl.heads import to_tensor
from il_based_rl.policy import MLPPolicy


class ReferenceCloning:
    """Plain PyTorch: autograd, on any device.

    Args:
        policy: The student.
        loss: What is made small.
        log_std: Beside the policy's, for losses that learn it. Shape (A,).
        flat: All these parameters.
        device: Where it runs.
    """

    def __init__(
        self, policy: MLPPolicy, loss: CloningLoss, log_std: nn.Parameter | None, flat: FlatParameters, device: torch.device
    ) -> None:
        self._policy, self._loss, self._log_std, self._flat, self._device = policy, loss, log_std, flat, device

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return to_tensor(array, self._device)

    def differentiate(self, inputs: Tensor, targets: Tensor) -> Any:
        """Write the loss's gradient, for standardised features and the loss's targets; return the loss."""
        with torch.enable_grad():
            loss = self._loss.loss(self._policy.network(inputs), self._log_std, targets)
        self._flat.grad.zero_()
        loss.backward()
        return loss.detach()


class FusedCloning:
    """The same in closed form, for float32 perceptrons on a CPU."""

    def __init__(self, policy: MLPPolicy, loss: CloningLoss, log_std: nn.Parameter | None) -> None:
        self._loss, self._network = loss, StackedMLP([policy.network])
        self._log_std = None if log_std is None else log_std.detach().numpy()
        self._log_std_grad = None if log_std is None else numpy_grad(log_std)

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return array

    def differentiate(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Write the loss's gradient, for standardised features and the loss's targets; return the loss."""
        (outputs,) = self._network.forward(inputs)
        loss, output_grads, log_std_grads = self._loss.grads(outputs, self._log_std, targets)
        self._network.backward(inputs, [output_grads])
        if self._log_std_grad is not None:
            self._log_std_grad[:] = log_std_grads
        return loss
