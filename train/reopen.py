"""The shipped graph as a network that can be trained on: `fit --start src/firsttouch/weights/firsttouch.onnx`.

Export folds every batch norm into its convolution. Opening it again puts a norm back whose statistics are those of
training views and whose scale undoes them: the answers are the same, and training goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.network import Conv, Network, Widths, normalised


def reopen(path: Path, views: Iterable[Tensor], widths: Widths | None = None) -> Network:
    """The network of an fp32 file of `export`; `views` are batches of planes as trained on."""
    model = onnx.load(path)
    network = Network(widths)
    kernels = _kernels(model)
    for name, module in network.named_modules():
        if isinstance(module, Conv):
            weight, bias = kernels[f"{name}.0"]
            module[0].weight.data.copy_(torch.from_numpy(weight.copy()))
            _set_norm(module[1], torch.zeros(len(bias)), torch.ones(len(bias)) - module[1].eps, torch.tensor(bias))
        elif name in ("keypoint_out", "role_out"):
            _copy(module, *kernels[name])
    weight, bias = kernels[""]  # export joins the two box outputs
    for out, rows in ((network.person_out, slice(0, 8)), (network.ball_out, slice(8, 13))):
        _copy(out, weight[rows], bias[rows])
    _put_statistics(network.eval(), views)
    return network


def _kernels(model: onnx.ModelProto) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """(weight, bias) by the module path of each convolution."""
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = (n for n in model.graph.node if n.op_type == "Conv")
    return {_module_path(n.name): (values[n.input[1]], values[n.input[2]]) for n in nodes}


def _module_path(node: str) -> str:
    """`/network/csp16/blocks/blocks.0/a/a.0/Conv` -> `csp16.blocks.0.a.0`."""
    parts: list[str] = []
    for part in node.split("/")[2:-1]:
        name, _, index = part.rpartition(".")
        parts.append(index if name and parts and parts[-1] == name else part)
    return ".".join(parts)


def _copy(module: nn.Module, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    assert isinstance(module, nn.Conv2d)
    assert module.bias is not None
    module.weight.data.copy_(torch.from_numpy(weight.copy()))
    module.bias.data.copy_(torch.from_numpy(bias.copy()))


def _set_norm(norm: nn.Module, mean: Tensor, variance: Tensor, bias: Tensor) -> None:
    """A norm of these statistics that adds `bias` and changes nothing else."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.data.copy_((variance + norm.eps).sqrt())
    norm.bias.data.copy_(bias + mean)


@torch.no_grad()
def _put_statistics(network: Network, views: Iterable[Tensor]) -> None:
    """Measures what every convolution gives on `views` and makes that its norm's statistics."""
    sums: dict[Conv, list[Tensor]] = {}

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        row = torch.stack((output.mean((0, 2, 3)), output.square().mean((0, 2, 3))))
        sums.setdefault(owner[module], []).append(row)

    owner = {m[0]: m for m in network.modules() if isinstance(m, Conv)}
    hooks = [convolution.register_forward_hook(add) for convolution in owner]
    for planes in views:
        network(normalised(planes))
    for hook in hooks:
        hook.remove()
    for module, rows in sums.items():
        mean, square = torch.stack(rows).mean(0)
        bias = module[1].bias.data.clone()
        _set_norm(module[1], mean, (square - mean.square()).clamp(min=1e-4), bias)
