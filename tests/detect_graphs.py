"""Small ONNX files that have the layouts the detectors read, with answers known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NATIVE_FACTS = {
    "layout": 1,
    "classes": ["ball", "goalkeeper", "player", "referee"],
    "input": "planes",
    "img_size": 640,
    "precision": "fp32",
}


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict, metadata: dict) -> Path:
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def native(
    path: Path,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    keypoints: NDArray[np.float32],
    facts: dict | None = None,
) -> Path:
    """A native-layout model that answers these (K, 4), (K, 4), (32, 3) values for a picture whose brightest
    luma is 255, and lower scores for a darker one. Key points hang off a convolution of their own."""
    kernel = np.full((8, 6, 3, 3), 1e-6, np.float32)
    node = helper.make_node
    nodes = [
        node("Cast", ["planes"], ["x"], to=TensorProto.FLOAT),
        node("Slice", ["x", "zero", "four", "one"], ["luma"]),
        node("ReduceMax", ["luma"], ["brightest"], axes=[1, 2, 3], keepdims=1),
        node("Mul", ["brightest", "a_255th"], ["share_4d"]),
        node("Squeeze", ["share_4d", "three"], ["share"]),
        node("Mul", ["all_scores", "share"], ["scores"]),
        node("Mul", ["share", "nothing"], ["no_share"]),
        node("Add", ["all_boxes", "no_share"], ["boxes"]),
        node("Conv", ["x", "kernel"], ["head"], name="pitch_head", strides=[8, 8]),
        node("ReduceMean", ["head"], ["head_mean_4d"], axes=[1, 2, 3], keepdims=1),
        node("Squeeze", ["head_mean_4d", "three"], ["head_mean"]),
        node("Mul", ["head_mean", "nothing"], ["no_head"]),
        node("Add", ["all_points", "no_head"], ["keypoints"]),
    ]
    weights = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "three": np.array([3]),
        "four": np.array([4]),
        "a_255th": np.array(1 / 255, np.float32),
        "nothing": np.array(0, np.float32),
        "kernel": kernel,
        "all_boxes": boxes[None].astype(np.float32),
        "all_scores": scores[None].astype(np.float32),
        "all_points": keypoints[None].astype(np.float32),
    }
    count = len(boxes)
    info = helper.make_tensor_value_info
    inputs = [info("planes", TensorProto.UINT8, ["batch", 6, "height", "width"])]
    outputs = [
        info("boxes", TensorProto.FLOAT, ["batch", count, 4]),
        info("scores", TensorProto.FLOAT, ["batch", count, 4]),
        info("keypoints", TensorProto.FLOAT, ["batch", 32, 3]),
    ]
    return save(path, nodes, inputs, outputs, weights, {"firsttouch": json.dumps(facts or NATIVE_FACTS)})
