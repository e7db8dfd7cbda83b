"""Writes the shipped graph: decode inside, dynamic batch, height and width, checked against torch."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from train.decode import Shipped
from train.fit import load_network
from train.measure import Answer, Answering
from train.network import CLASSES, Network

OPSET = 17
OUTPUTS = ("boxes", "scores", "keypoints")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/firsttouch/weights/firsttouch.onnx"))


def main(args: argparse.Namespace) -> None:
    network, facts = load_network(args.checkpoint)
    write(network, args.out, facts)
    difference = check(network, args.out)
    print(f"{args.out} {args.out.stat().st_size / 1e6:.2f} MB, largest difference from torch {difference:.4f} px")


def write(network: Network, path: Path, facts: dict[str, Any]) -> None:
    """The fp32 graph with its metadata."""
    sample = torch.randint(0, 255, (1, 112, 192, 6), dtype=torch.uint8)  # any size: the axes are free
    axes = {"planes": {0: "batch", 1: "height", 2: "width"}} | {name: {0: "batch"} for name in OUTPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Shipped(network).eval(), (sample,), str(path), opset_version=OPSET, dynamo=False,
            input_names=["planes"], output_names=list(OUTPUTS), dynamic_axes=axes,
        )  # fmt: skip
    model = onnx.load(path)
    stamp(model, facts, "fp32")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def stamp(model: onnx.ModelProto, facts: dict[str, Any], precision: str) -> None:
    """The `firsttouch` metadata entry that the runtime reads."""
    layout = {"layout": 2, "classes": list(CLASSES), "input": "planes", "img_size": 640, "precision": precision}
    onnx.helper.set_model_props(model, {"firsttouch": json.dumps(layout | {"trained": facts})})


def stamped_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """The training facts that `stamp` wrote into a graph."""
    facts: dict[str, Any] = json.loads(next(p.value for p in model.metadata_props if p.key == "firsttouch"))["trained"]
    return facts


def session(path: Path, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answering(path: Path) -> Answering:
    """An ONNX file in the shape the judge asks."""
    run = session(path)

    def answer(planes: NDArray[np.uint8]) -> Answer:
        boxes, scores, points = run.run(None, {"planes": planes})
        return boxes, scores, points

    return answer


def check(network: Network, path: Path) -> float:
    """Largest difference of a confident row or point, in pixels, on noise of three shapes."""
    rng, worst, ours = np.random.default_rng(0), 0.0, session(path)
    for shape in ((1, 368, 640, 6), (2, 240, 416, 6), (3, 96, 160, 6)):
        planes = rng.integers(16, 235, shape, dtype=np.uint8)
        with torch.inference_mode():
            expected = [o.numpy() for o in Shipped(network)(torch.from_numpy(planes))]
        found = ours.run(None, {"planes": planes})
        worst = max(worst, _difference(expected, found))
    return worst


def _difference(expected: list[NDArray[np.float32]], found: list[NDArray[np.float32]]) -> float:
    """Rows of nearly equal score may swap places: each row is compared with its nearest neighbour in rank."""
    boxes = 0.0
    for b, e, s in zip(found[0], expected[0], expected[1], strict=True):
        distance = np.abs(b[None] - e[:, None]).max(-1)[s.max(-1) > 0.02]
        boxes = max(boxes, float(distance.min(1).max(initial=0.0)))
    sure = expected[2][..., 2] > 0.02
    points = np.abs(found[2] - expected[2])[sure]
    return max(boxes, float(points.max(initial=0.0)))
