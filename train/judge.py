"""Figures of a checkpoint or an ONNX file on the validation folders, one JSON line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from train import export, fit, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra-val", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))


def main(args: argparse.Namespace) -> None:
    validation = fit.load_validation_frames(args.data, args.cache, args.extra_val)
    torch.set_num_threads(1)
    run = (
        export.answering(args.model) if args.model.suffix == ".onnx" else fit.answering(fit.load_network(args.model)[0])
    )
    print(json.dumps({k: round(v, 4) for k, v in measure.report(validation, run).items()}))
