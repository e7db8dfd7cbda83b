"""The mean of checkpoints that were trained on from one another: what each learned too much of is halved.

Wortsman et al. 2022, "Model soups". The batch statistics of a mean are no mean of statistics: they are measured anew.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from train.fit import Batches, load_network, load_training_frames, parse_shares
from train.network import Network, normalised

VIEWS = 60
"""Batches of four whole pictures that the statistics are measured on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of one structure; the facts of the last are kept")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, nargs="*", default=[], help="as for `fit`")
    parser.add_argument("--pseudo", type=Path, help="as for `fit`")
    parser.add_argument("--shares", required=True, help="as for `fit`")
    parser.add_argument("--out", type=Path, required=True)


def main(args: argparse.Namespace) -> None:
    frames = load_training_frames(args.data, args.out.parent / "cache", args.extra, args.pseudo)
    loaded = [load_network(path) for path in args.checkpoints]
    views = itertools.islice(Batches(frames, parse_shares(args.shares), 0.0, seed=0), VIEWS)
    network = mean([network for network, _ in loaded], (planes for planes, _ in views))
    torch.save({"module": network, "facts": loaded[-1][1] | {"averaged": len(loaded)}}, args.out)


@torch.no_grad()
def mean(networks: list[Network], views: Iterable[Tensor]) -> Network:
    """A network of the same structure with the mean of all weights; `views` are batches of planes as trained on."""
    states, result = [network.state_dict() for network in networks], copy.deepcopy(networks[-1])
    result.load_state_dict({k: sum(s[k] for s in states) / len(states) for k in states[0]})
    for module in result.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all views
    result.train()
    for planes in views:
        result(normalised(planes))
    result.eval()
    return result
