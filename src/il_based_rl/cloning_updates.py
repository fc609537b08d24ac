"""The cloning loss on one minibatch and its gradient, twice: by autograd, and by hand on the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from il_based_rl.flat_parameters import FlatParameters
from il_based_rl.fused_mlp import StackedMLP
from il_based_rl.heads import to_tensor
from il_based_rl.policy import MLPPolicy


class ReferenceCloning:
    """Plain PyTorch: autograd, on any device."""

    def __init__(self, policy: MLPPolicy, flat: FlatParameters, device: torch.device) -> None:
        self._policy, self._flat, self._device = policy, flat, device

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return to_tensor(array, self._device)

    def differentiate(self, inputs: Tensor, targets: Tensor) -> Any:
        """Write the loss's gradient, for standardised features and raw actions; return the loss."""
        with torch.enable_grad():
            loss = self._policy.head.cloning_loss(self._policy.network(inputs), targets)
        self._flat.grad.zero_()
        loss.backward()
        return loss.detach()


class FusedCloning:
    """The same in closed form, for float32 perceptrons on a CPU."""

    def __init__(self, policy: MLPPolicy) -> None:
        self._head, self._network = policy.head, StackedMLP([policy.network])

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return array

    def differentiate(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Write the loss's gradient, for standardised features and raw actions; return the loss."""
        (outputs,) = self._network.forward(inputs)
        loss, output_grads = self._head.cloning_grads(outputs, targets)
        self._network.backward(inputs, [output_grads])
        return loss
