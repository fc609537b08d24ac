"""The fast path: multi-layer perceptrons forward and backward by hand, on the parameters' own memory.

At the sizes that policies have, a library's cost per operation outweighs the arithmetic. Here a minibatch of several
networks of equal hidden sizes is about thirty NumPy calls, and one Adam step on one vector. Autograd remains the reference:
the gradients agree with its, and whatever is not modelled here (`reason_against`) takes that path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.flat_parameters import reason_against_stacking
from il_based_rl.heads.bernoulli import BernoulliHead
from il_based_rl.heads.categorical import CategoricalHead
from il_based_rl.heads.gaussian import GaussianHead
from il_based_rl.networks import MLP


class StackedMLP:
    """Networks of equal hidden sizes and equal inputs, computed side by side.

    Args:
        networks: S of them; already flattened by `FlatParameters`, and first in it.
    """

    def __init__(self, networks: Sequence[MLP]) -> None:
        self._tanh = networks[0].activation == "tanh"
        self._depth = len(networks[0].linear) - 1
        # Views are made here, once, as making one takes a tenth of the time of multiplying what it views.
        self._weights = [_stacked([network.linear[k].weight for network in networks]) for k in range(self._depth)]
        self._transposed = [weight.transpose(0, 2, 1) for weight in self._weights]
        self._biases = [_stacked([network.linear[k].bias for network in networks])[:, None] for k in range(self._depth)]
        self._weight_grads = [_stacked([_grad(n.linear[k].weight) for n in networks]) for k in range(self._depth)]
        self._bias_grads = [_stacked([_grad(n.linear[k].bias) for n in networks])[:, None] for k in range(self._depth)]
        last = [network.linear[-1] for network in networks]
        self._last = [(_numpy(layer.weight), _numpy(layer.weight).T, _numpy(layer.bias)[None]) for layer in last]
        self._last_grads = [(numpy_grad(layer.weight), numpy_grad(layer.bias)[None]) for layer in last]
        self._spaces: dict[int, _Workspace] = {}

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        """Map inputs, shape (B, inputs), to the outputs of each network, shape (B, outputs); they last until the next call."""
        space = self._workspace(x)
        below: np.ndarray = x
        for transposed, bias, hidden in zip(self._transposed, self._biases, space.hidden, strict=True):
            np.matmul(below, transposed, out=hidden)
            hidden += bias
            np.tanh(hidden, out=hidden) if self._tanh else np.maximum(hidden, 0.0, out=hidden)
            below = hidden
        for (_, transposed, bias), last_hidden, outputs in zip(self._last, space.below_last(x), space.outputs, strict=True):
            np.dot(last_hidden, transposed, out=outputs)
            outputs += bias
        return space.outputs

    def backward(self, x: np.ndarray, output_grads: Sequence[np.ndarray]) -> None:
        """Write the gradients of all parameters, given those of the outputs of the last `forward`, shape (B, outputs) each.

        Once for each forward pass, as the slopes take the place of what it left.
        """
        space = self._workspace(x)
        for s, (grad, last_hidden) in enumerate(zip(output_grads, space.below_last(x), strict=True)):
            weight_grad, bias_grad = self._last_grads[s]
            np.dot(grad.T, last_hidden, out=weight_grad)
            np.dot(space.ones, grad, out=bias_grad)
            if self._depth:
                weight, transposed, _ = self._last[s]
                left, right = (transposed, grad.T) if space.by_unit else (grad, weight)
                np.dot(left, right, out=space.last_hidden_grads[s])
        for k in range(self._depth - 1, -1, -1):
            hidden, grad = space.hidden[k], space.hidden_grads[k]
            if self._tanh:  # 1 - hidden ** 2
                hidden *= hidden
                np.subtract(1.0, hidden, out=hidden)
                grad *= hidden
            else:
                grad *= hidden > 0.0
            if k > 0:
                np.matmul(grad, self._weights[k], out=space.hidden_grads[k - 1])
            np.matmul(space.transposed_grads[k], x if k == 0 else space.hidden[k - 1], out=self._weight_grads[k])
            np.matmul(space.ones, grad, out=self._bias_grads[k])

    def _workspace(self, x: np.ndarray) -> _Workspace:
        if len(x) not in self._spaces:
            hidden_sizes = [weight.shape[:2] for weight in self._weights]
            self._spaces[len(x)] = _Workspace(len(x), hidden_sizes, [bias.shape[1] for _, _, bias in self._last], x.dtype)
        return self._spaces[len(x)]


class _Workspace:
    """Arrays for minibatches of one size, so that no step allocates any.

    Layers that all have 256 units or more, and four times as many as the minibatch has rows, lie unit after unit in memory,
    else row after row; the shapes are the same. OpenBLAS is slow at the product of a matrix with a transposed one: row after
    row that is the forward pass's, unit after unit it is the weights' gradient's, which has only the rows to sum.
    """

    def __init__(self, rows: int, hidden_sizes: Sequence[tuple[int, ...]], outputs: Sequence[int], dtype: np.dtype) -> None:
        self.by_unit = min((width for _, width in hidden_sizes), default=0) >= max(256, 4 * rows)

        def layers() -> list[np.ndarray]:
            if self.by_unit:
                return [np.empty((stack, width, rows), dtype).transpose(0, 2, 1) for stack, width in hidden_sizes]
            return [np.empty((stack, rows, width), dtype) for stack, width in hidden_sizes]

        self.hidden, self.hidden_grads = layers(), layers()
        self.transposed_grads = [grads.transpose(0, 2, 1) for grads in self.hidden_grads]
        self._last_hidden = list(self.hidden[-1]) if hidden_sizes else []
        last_grads = self.transposed_grads if self.by_unit else self.hidden_grads
        self.last_hidden_grads = list(last_grads[-1]) if hidden_sizes else []
        """As they lie in memory: shape (H, B) each where that is unit after unit, else (B, H)."""
        self.outputs = [np.empty((rows, size), dtype) for size in outputs]
        self.ones = np.ones((1, rows), dtype)

    def below_last(self, x: np.ndarray) -> list[np.ndarray]:
        """What the last layer of each network reads."""
        return self._last_hidden or [x] * len(self.outputs)


def numpy_grad(parameter: Tensor) -> np.ndarray:
    """View the gradient of a flattened parameter as an array."""
    return _grad(parameter).numpy()


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _stacked(tensors: Sequence[Tensor]) -> np.ndarray:
    """View equal tensors that lie one behind the other in memory as one array with a first axis of their number."""
    first = tensors[0].detach()
    shape, size = (len(tensors), *first.shape), first.numel()
    for s, tensor in enumerate(tensors):
        assert tensor.data_ptr() == first.data_ptr() + s * size * first.element_size()
    strides = (size, *first.stride())
    return torch.as_strided(first, shape, strides).numpy()


def reason_against(policy: Any, device: torch.device) -> str | None:
    """Say why the fast path does not model a policy, which lists its `networks`, or None where it does."""
    if device.type != "cpu":
        return f"updates run on {device}"
    if (reason := reason_against_forward(policy)) is not None:
        return reason
    for part in policy.modules():
        if part._backward_hooks or part._backward_pre_hooks:
            return f"{type(part).__name__} has hooks"
    for name, parameter in policy.named_parameters():
        if parameter.dtype != torch.float32:
            return f"{name} is {parameter.dtype}"
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"{name} has hooks"
    for part in policy.modules():
        head = getattr(part, "head", None)
        if head is not None and (type(head) not in _HEADS or not set(vars(head)).isdisjoint(dir(type(head)))):
            return f"it does not model {type(head).__qualname__}, as it stands here"
    return reason_against_stacking(policy.networks)


def reason_against_forward(module: nn.Module) -> str | None:
    """Say why a module may compute something else than its layers say, or None."""
    for part in module.modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        if kind not in _MODELLED or not {"forward", "evaluate_actions"}.isdisjoint(vars(part)):
            return f"it does not model {kind}, as it stands here"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{type(part).__name__} has hooks"
    return None


_HEADS = (BernoulliHead, CategoricalHead, GaussianHead)
_MODELLED = {
    "il_based_rl.actor_critic_policy.ActorCriticPolicy",
    "il_based_rl.networks.MLP",
    "il_based_rl.networks.RunningNormalizer",
    "il_based_rl.policy.MLPPolicy",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.linear.Linear",
}
