"""What part a module plays in a network, from its class; what is known of it before the first step."""

from __future__ import annotations

import torch
from torch import nn

from gradscope.capture.naming import class_of
from gradscope.capture.naming import modules_of
from gradscope.capture.naming import parameters_of
from gradscope.capture.shards import local_of
from gradscope.records import ModuleInfo
from gradscope.records import ParameterInfo

_ROLES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear), "linear"),
    ((nn.modules.conv._ConvNd,), "conv"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm), "norm"),
    ((nn.MultiheadAttention,), "attention"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    ((nn.modules.dropout._DropoutNd,), "dropout"),
)

ACTIVATIONS = {
    "ReLU": "relu", "ReLU6": "relu6", "LeakyReLU": "leaky_relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "GELU": "gelu",
    "SiLU": "silu", "ELU": "elu", "SELU": "selu", "Hardtanh": "hardtanh", "Hardsigmoid": "hardsigmoid", "Softmax": "softmax",
    "LogSoftmax": "log_softmax", "Softplus": "softplus", "PReLU": "prelu", "Mish": "mish", "Hardswish": "hardswish",
}  # fmt: skip


def role_of(module: nn.Module) -> str:
    """One of linear conv embedding norm activation dropout recurrent attention container other."""
    for classes, role in _ROLES:
        if isinstance(module, classes):
            return role
    name = class_of(module).__name__
    if name.lower().endswith("norm"):
        return "norm"
    if class_of(module).__module__ == nn.modules.activation.__name__ or name in ACTIVATIONS:
        return "activation"
    return "container" if next(module.children(), None) is not None else "other"


def batch_axis(module: nn.Module) -> int:
    """The dimension of its output along which the samples of a batch lie."""
    sequence_first = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first
    return 1 if sequence_first else 0


def describe_modules(model: nn.Module) -> tuple[ModuleInfo, ...]:
    """Every module of the model with its type, its part and its own parameters, in the order of ``named_modules``."""
    return tuple(
        ModuleInfo(
            path=path,
            type=class_of(module).__name__,
            role=role_of(module),
            parameters=tuple(_join(path, name) for name, _ in parameters_of(module, recurse=False)),
        )
        for path, module in modules_of(model)
    )


def describe_parameters(model: nn.Module) -> tuple[ParameterInfo, ...]:
    """Every parameter once, with the other names that tied ones have.

    Whether it is all zero is told of those on the host; of others ``nonzero_counts`` brings it.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, nn.Parameter] = {}
    for name, parameter in parameters_of(model, remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    zero = _all_zero(list(tensors.values()))
    return tuple(
        ParameterInfo(
            name=names[key][0],
            module=names[key][0].rpartition(".")[0],
            shape=tuple(parameter.shape),
            dtype=str(parameter.dtype).removeprefix("torch."),
            trainable=parameter.requires_grad,
            zero_at_start=is_zero,
            tied=tuple(names[key][1:]),
        )
        for (key, parameter), is_zero in zip(tensors.items(), zero, strict=True)
    )


def nonzero_counts(model: nn.Module) -> dict[str, torch.Tensor]:
    """How many elements of each parameter are not zero, a scalar where the parameter is; of none that lies on the host."""
    return {
        name: torch.count_nonzero(local_of(p).detach())
        for name, p in parameters_of(model)
        if _has_values(p) and not local_of(p).is_cpu
    }


def _all_zero(parameters: list[nn.Parameter]) -> list[bool]:
    here = [local_of(p).detach() for p in parameters]
    return [_has_values(p) and t.is_cpu and not bool(torch.count_nonzero(t)) for p, t in zip(parameters, here, strict=True)]


def _has_values(parameter: nn.Parameter) -> bool:
    known = not isinstance(parameter, nn.UninitializedParameter) and not parameter.is_meta
    return known and local_of(parameter).numel() > 0


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
