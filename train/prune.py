"""Structured pruning of a trained network (Torch-Pruning, MIT): whole channels go, the least weighty first.

The result is a smaller dense network; `fit --start` tunes it, `export` and `quantise` take its checkpoint as any other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
import torch_pruning
from torch import nn

from train.data import SOURCES
from train.export import stamped_facts
from train.fit import load_network, load_training_frames, opened
from train.network import Network

CHANNEL_STEP = 8  # int8 kernels work on whole groups of channels: an odd width costs as much as the next multiple


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", type=Path, help="a checkpoint, or an fp32 ONNX file that ships")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="what an ONNX file is opened with")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of channels to take away")
    parser.add_argument("--out", type=Path, required=True)


def main(args: argparse.Namespace) -> None:
    cache = args.out.parent / "cache"
    if args.network.suffix == ".onnx":
        network = opened(args.network, load_training_frames(args.data, cache, []), dict.fromkeys(SOURCES, 1.0))
        facts = stamped_facts(onnx.load(args.network))
    else:
        network, facts = load_network(args.network)
    before = work(network)
    prune(network, args.ratio)
    after = work(network)
    torch.save({"module": network, "facts": facts | {"pruned": args.ratio, "work_share": after / before}}, args.out)
    million = count(network) / 1e6
    print(f"ratio {args.ratio}: {before / 1e9:.2f} -> {after / 1e9:.2f} G multiply-adds, {million:.3f} M parameters")


def work(network: Network) -> float:
    """Multiply-adds of one 1280x736 picture."""
    return float(torch_pruning.utils.count_ops_and_params(network, torch.zeros(1, 6, 368, 640))[0])


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def prune(network: Network, ratio: float) -> None:
    """In place; the three outputs and the stem keep their channels."""
    keep = [network.person_out, network.ball_out, network.keypoint_out, network.role_out]
    pruner = torch_pruning.pruner.BasePruner(
        network, torch.zeros(1, 6, 384, 640), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, global_pruning=True, max_pruning_ratio=0.6, ignored_layers=keep, round_to=CHANNEL_STEP,
    )  # fmt: skip
    pruner.step()
