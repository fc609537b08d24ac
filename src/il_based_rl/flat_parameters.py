"""All parameters of a policy as one vector, and Adam on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from il_based_rl.networks import MLP


class FlatParameters:
    """All parameters of some networks as one vector, and their gradients as another.

    The networks' own parameters become views of the vector, and their gradients of its gradient, so that there is one truth
    however it is reached. In networks that the fast path models, layers of equal place stand side by side, which lets equal
    ones be computed together.

    Args:
        networks: Their parameters come first.
        others: Further parameters.
    """

    def __init__(self, networks: Sequence[nn.Module], others: Sequence[nn.Parameter] = ()) -> None:
        self._owners: list[nn.Module] = list(networks)
        self._others = list(others)
        self._parameters = list(dict.fromkeys([*_in_order(networks), *others]))  # a shared one counts once
        self.vector = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters]))
        self._share_memory()

    @classmethod
    def of(cls, policy: Any, others: Sequence[nn.Parameter] = ()) -> FlatParameters:
        """Flatten a policy, its `networks` first, and `others` last."""
        inside = {id(parameter) for network in policy.networks for parameter in network.parameters()}
        outside = [parameter for parameter in policy.parameters() if id(parameter) not in inside]
        flat = cls(policy.networks, [*outside, *others])
        flat._owners, flat._others = [policy], list(others)
        return flat

    def _share_memory(self) -> None:
        self.grad = torch.zeros_like(self.vector.data)
        self.vector.grad = self.grad
        for parameter, part in zip(self._parameters, self._parts(self.vector.data), strict=True):
            parameter.data = part
        self._share_gradients()

    def _share_gradients(self) -> None:
        for parameter, part in zip(self._parameters, self._parts(self.grad), strict=True):
            parameter.grad = part

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters]
        return [part.view(each.shape) for part, each in zip(vector.split(sizes), self._parameters, strict=True)]

    def places(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return where in the vector some parameters' numbers are."""
        wanted = {id(parameter) for parameter in parameters}
        ends = np.cumsum([0, *(parameter.numel() for parameter in self._parameters)]).tolist()
        ranges = [
            torch.arange(start, start + parameter.numel())
            for start, parameter in zip(ends, self._parameters, strict=False)
            if id(parameter) in wanted
        ]
        return torch.cat(ranges).to(self.vector.device)

    def require_intact(self) -> None:
        """Make gradients that were dropped views again.

        Raises:
            RuntimeError: A parameter was moved or replaced, so that it is no view of the vector any more.
        """
        places = [part.data_ptr() for part in self._parts(self.vector.data)]
        present = {*self._others, *(parameter for owner in self._owners for parameter in owner.parameters())}
        if [parameter.data_ptr() for parameter in self._parameters] != places or present != {*self._parameters}:
            raise RuntimeError("a policy's parameters were moved or replaced after its agent was made; make a new agent")
        self._share_gradients()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_memory()  # which neither a deep copy nor a pickle keeps


class FlatAdam:
    """Adam on one vector, by the kernel of `torch.optim.Adam(fused=True)`.

    That class itself imports a compiler when it is made, which takes most of a second, and its step costs five times as much.

    Args:
        flat: The parameters and their gradients.
        lr: Learning rate; may be set anew before each step.
        eps: Added to the root of the second moment.

    Source:
        Kingma and Ba (2015), "Adam: a method for stochastic optimization", algorithm 1, https://arxiv.org/abs/1412.6980.
    """

    def __init__(self, flat: FlatParameters, lr: float, eps: float = 1e-8) -> None:
        self._flat, self.lr, self._eps = flat, lr, eps
        vector = flat.vector.data
        self._state = {
            "step": torch.zeros((), device=vector.device),
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
        }

    def step(self, max_grad_norm: float = math.inf) -> None:
        """Scale the gradient down to a norm of `max_grad_norm` if it is longer, and take one step."""
        grad, state = self._flat.grad, self._state
        if grad.is_cpu:
            count = state["step"].numpy()
            count += 1  # a twentieth of the time of the same on the tensor
            if max_grad_norm < math.inf:
                array = grad.numpy()
                norm = math.sqrt(float(np.dot(array, array)))
                if norm + 1e-6 > max_grad_norm:
                    array *= max_grad_norm / (norm + 1e-6)
        else:
            state["step"] += 1
            if max_grad_norm < math.inf:
                grad.mul_((max_grad_norm / (grad.norm() + 1e-6)).clamp(max=1.0))
        torch._fused_adam_(
            [self._flat.vector.data],
            [grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )

    @property
    def begun(self) -> bool:
        """Whether a step was taken, so that there are moments."""
        return bool(self._state["step"] > 0)

    def forget(self) -> None:
        """Begin anew, as after the parameters were replaced."""
        for tensor in self._state.values():
            tensor.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the count of steps and the two moments, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self._state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy what `state_dict` returned.

        Raises:
            ValueError: A part is missing, of another shape, or not finite.
        """
        for name, tensor in self._state.items():
            found = state.get(name)
            if not isinstance(found, Tensor) or found.shape != tensor.shape or not bool(torch.isfinite(found).all()):
                raise ValueError(f"the optimiser's {name} is missing or does not fit the policy")
            if name != "exp_avg" and bool((found < 0).any()):
                raise ValueError(f"the optimiser's {name} is negative")
            tensor.copy_(found)


class GroupedAdam(FlatAdam):
    """Adam on several groups of parameters, each with a gradient norm and a share of the learning rate of its own.

    Steps are counted for all of them together, so that whoever lets one move that kept still calls `forget`.

    Args:
        flat: See `FlatAdam`.
        lr: See `FlatAdam`.
        groups: Parameters of each group; all of them together are those of `flat`.
        eps: See `FlatAdam`.
    """

    def __init__(self, flat: FlatParameters, lr: float, groups: Sequence[Sequence[nn.Parameter]], eps: float = 1e-8) -> None:
        super().__init__(flat, lr, eps)
        self._marks = [torch.zeros_like(flat.vector.data).index_fill_(0, flat.places(group), 1.0) for group in groups]
        self.shares = [1.0] * len(groups)
        """Of the learning rate, by group; a group with 0 keeps still, and its gradients are forgotten."""

    def step(self, max_grad_norm: float = math.inf) -> None:
        """Scale each group's gradient down to a norm of `max_grad_norm` if it is longer, and take one step."""
        grad, vector = self._flat.grad, self._flat.vector.data
        before = vector.clone()
        scales, shares = torch.zeros_like(grad), torch.zeros_like(grad)
        for mark, share in zip(self._marks, self.shares, strict=True):
            if share:
                scales.add_(mark, alpha=min(1.0, max_grad_norm / (float((grad * mark).norm()) + 1e-6)))
                shares.add_(mark, alpha=share)
        grad *= scales
        super().step()
        torch.lerp(before, vector, shares, out=vector)  # exactly what it was for 0, and Adam's own step for 1


def _in_order(networks: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Parameters layer by layer where the networks can be stacked, else network by network."""
    if reason_against_stacking(networks) is not None:
        return [parameter for network in networks for parameter in network.parameters()]
    layers = zip(*(network.linear for network in networks if isinstance(network, MLP)), strict=True)
    return [getattr(layer, name) for equal in layers for name in ("weight", "bias") for layer in equal]


def reason_against_stacking(networks: Sequence[nn.Module]) -> str | None:
    """Say why networks cannot be computed side by side; None where they can."""
    shapes, parameters = set(), list[int]()
    for network in networks:
        if type(network) is not MLP or any(type(layer) is not nn.Linear or layer.bias is None for layer in network.layers):
            return "a network is no perceptron of linear layers with biases"
        shapes.add((network.activation, *(layer.in_features for layer in network.linear)))
        parameters += [id(each) for layer in network.linear for each in (layer.weight, layer.bias)]
    if len(shapes) > 1:
        return "its networks differ in activation or layer sizes"
    return None if len(set(parameters)) == len(parameters) else "its layers share parameters"
