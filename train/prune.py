"""Structured pruning of a trained network (Torch-Pruning, MIT): the channels that matter least for the time they take.

What int8 kernels make of a width decides: they work on `KERNEL_CHANNELS` channels at a time, so that 24 cost as much
as 32. Step by step a whole kernel's worth of channels goes where the loss is expected to grow least for each part of
the time that is saved, and no layer loses more than half: the expectation is one of first order, for a network that is
still whole. So it is better to prune and tune twice. The result is a smaller dense network; `fit --start` tunes it,
`export` and `quantise` take its checkpoint as any other.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
import torch_pruning
from torch import Tensor, nn

from train import losses
from train.data import SOURCES
from train.export import stamped_facts
from train.fit import Batches, load_network, load_training_frames, opened
from train.network import Network, normalised
from train.targets import Targets

KERNEL_CHANNELS = 16
PIXEL_COST = 2200
"""What a convolution costs for each pixel of its output apart from its multiply-adds, in multiply-adds. Of ONNX
Runtime's int8 convolutions of 16 and 32 channels at 92x160, one core with VNNI: 135 us, and
62 us for 1,000 multiply-adds a pixel."""
BATCHES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", type=Path, help="a checkpoint, or an fp32 ONNX file that ships")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--time", type=float, default=0.7, help="share of the convolutions' time to leave")
    parser.add_argument("--out", type=Path, required=True)


def main(args: argparse.Namespace) -> None:
    frames = load_training_frames(args.data, args.out.parent / "cache", [])
    shares = dict.fromkeys(SOURCES, 1.0)
    if args.network.suffix == ".onnx":
        network, facts = opened(args.network, frames, shares), stamped_facts(onnx.load(args.network))
    else:
        network, facts = load_network(args.network)
    before, parameters = cost(network), count(network)
    batches = list(itertools.islice(Batches(frames, shares, 0.0, seed=0), BATCHES))
    scores = gate_scores(network, batches)
    widths = {m: m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)}
    while (left := cost(network) / before) > args.time:
        print(f"{left:.3f} of the time, {prune_once(network, scores, widths)}", flush=True)
    torch.save({"module": network, "facts": facts | {"pruned_to": left}}, args.out)
    print(f"{left:.3f} of the time, {parameters / 1e6:.3f} -> {count(network) / 1e6:.3f} M parameters")


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def cost(network: Network) -> float:
    """Expected time of the int8 convolutions on a 1280x736 picture, in multiply-adds."""
    return sum(pixels * conv_cost(conv) for conv, pixels in output_pixels(network).items())


def conv_cost(conv: nn.Conv2d, fewer_in: int = 0, fewer_out: int = 0) -> float:
    """Of one pixel of the output, after taking channels away."""
    outputs = -(-(conv.out_channels - fewer_out) // KERNEL_CHANNELS) * KERNEL_CHANNELS
    taps = math.prod(conv.kernel_size)
    return float(outputs * (conv.in_channels - fewer_in) * taps + PIXEL_COST)


def output_pixels(network: Network) -> dict[nn.Conv2d, int]:
    """Of every convolution, for a 1280x736 picture."""
    pixels: dict[nn.Conv2d, int] = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        pixels[module] = output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(1, 6, 368, 640))
    for hook in hooks:
        hook.remove()
    return pixels


def prune_once(network: Network, scores: dict[nn.Module, Tensor], widths: dict[nn.Conv2d, int]) -> str:
    """One kernel's worth of channels goes, in place, also from `scores`: those of the least score for the time saved.

    `scores` are of every batch norm (`gate_scores`), `widths` the channels of every convolution at the start.
    """
    pixels = output_pixels(network)
    dependencies = torch_pruning.DependencyGraph().build_dependency(network, torch.zeros(1, 6, 368, 640))
    best, least = None, float("inf")
    for group in groups(dependencies, network):
        root = group[0].dep.target.module
        fewer = root.out_channels % KERNEL_CHANNELS or KERNEL_CHANNELS
        if root.out_channels - fewer < max(KERNEL_CHANNELS, widths[root] / 2):
            continue
        of_channel = torch.stack([scores[d.target.module] for d, _ in group if d.target.module in scores]).sum(0)
        weakest = of_channel.argsort()[:fewer]
        price = float(of_channel[weakest].sum()) / saved(dependencies, group, fewer, pixels)
        if price < least:
            best, least = (root, weakest.tolist()), price
    if best is None:
        raise SystemExit("no layer can lose more: tune this one, and prune what comes of it")
    root, channels = best
    name = next(n for n, m in network.named_modules() if m is root)
    group = dependencies.get_pruning_group(root, torch_pruning.prune_conv_out_channels, channels)
    for dependency, gone in group:
        if (norm := dependency.target.module) in scores:
            kept = sorted(set(range(len(scores[norm]))) - set(gone))
            scores[norm] = scores[norm][kept]
    group.prune()
    return f"{name}: {root.out_channels + len(channels)} -> {root.out_channels} channels"


def groups(dependencies: torch_pruning.DependencyGraph, network: Network) -> Iterator[torch_pruning.dependency.Group]:
    """Layers whose outputs must lose the same channels; the network's own outputs keep theirs."""
    outputs = [network.person_out, network.ball_out, network.keypoint_out, network.role_out]
    yield from dependencies.get_all_groups(ignored_layers=outputs, root_module_types=[nn.Conv2d])


def saved(
    dependencies: torch_pruning.DependencyGraph,
    group: torch_pruning.dependency.Group,
    fewer: int,
    pixels: dict[nn.Conv2d, int],
) -> float:
    """Expected time that goes with so many channels of a group."""
    lost: dict[nn.Conv2d, list[int]] = {}
    for dependency, _ in group:
        layer = dependency.target.module
        if isinstance(layer, nn.Conv2d):
            lost.setdefault(layer, [0, 0])[dependencies.is_out_channel_pruning_fn(dependency.handler)] = fewer
    return sum(pixels[layer] * (conv_cost(layer) - conv_cost(layer, *less)) for layer, less in lost.items())


def gate_scores(network: Network, batches: list[tuple[Tensor, Targets]]) -> dict[nn.Module, Tensor]:
    """How much the loss would change without each channel of a batch norm: the squared gradient of a gate on it, mean
    of the batches (Molchanov et al. 2019)."""
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    scores: dict[nn.Module, Tensor] = {m: torch.zeros(m.num_features) for m in norms}
    for planes, targets in batches:
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = network(normalised(planes))
        loss, _ = losses.total(outputs, targets, whole=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for m in norms:
            assert m.weight.grad is not None
            assert m.bias.grad is not None
            scores[m] += (m.weight * m.weight.grad + m.bias * m.bias.grad).detach().square() / len(batches)
    network.zero_grad()
    return scores
