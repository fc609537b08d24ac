"""The cloning loss on one minibatch and the step that lessens it, twice: by autograd, and by hand on the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from il_based_rl.fused_mlp import FlatAdam, FlatParameters, StackedMLP
from il_based_rl.heads import to_tensor
from il_based_rl.policy import MLPPolicy


class ReferenceCloning:
    """Plain PyTorch: autograd, on any device."""

    def __init__(self, policy: MLPPolicy, flat: FlatParameters, optimizer: torch.optim.Adam, device: torch.device) -> None:
        self._policy, self._flat, self._optimizer, self._device = policy, flat, optimizer, device

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return to_tensor(array, self._device)

    def differentiate(self, inputs: Tensor, targets: Tensor) -> Any:
        """Write the loss's gradient, for standardised features and raw actions; return the loss."""
        loss = self._policy.head.cloning_loss(self._policy.network(inputs), targets)
        self._flat.grad.zero_()
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """Let Adam take a step."""
        self._optimizer.step()


class FusedCloning:
    """The same in closed form, for float32 perceptrons on a CPU."""

    def __init__(self, policy: MLPPolicy, flat: FlatParameters, optimizer: torch.optim.Adam) -> None:
        self._head, self._network = policy.head, StackedMLP([policy.network])
        self._adam = FlatAdam(flat, optimizer)

    def prepared(self, array: np.ndarray) -> Any:
        """Return an array as this path reads it."""
        return array

    def differentiate(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        """Write the loss's gradient, for standardised features and raw actions; return the loss."""
        (outputs,) = self._network.forward(inputs)
        loss, output_grads = self._head.cloning_grads(outputs, targets)
        self._network.backward(inputs, [output_grads])
        return loss

    def step(self) -> None:
        """Let Adam take a step."""
        self._adam.step()
