"""Small ONNX files that have the layouts the detectors read, with answers known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NATIVE_FACTS = {
    "layout": 2,
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
        node("Transpose", ["planes"], ["planes_first"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes_first"], ["x"], to=TensorProto.FLOAT),
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
    inputs = [info("planes", TensorProto.UINT8, ["batch", "height", "width", 6])]
    outputs = [
        info("boxes", TensorProto.FLOAT, ["batch", count, 4]),
        info("scores", TensorProto.FLOAT, ["batch", count, 4]),
        info("keypoints", TensorProto.FLOAT, ["batch", 32, 3]),
    ]
    return save(path, nodes, inputs, outputs, weights, {"firsttouch": json.dumps(facts or NATIVE_FACTS)})


def constant(
    path: Path,
    values: NDArray[np.float32],
    size: tuple[int | str, int | str],
    metadata: dict,
    output_shape: list | None = None,
    element_type: int = TensorProto.FLOAT,
) -> Path:
    """A YOLO-like model of input [1, 3, *size] that answers `values` whatever it sees."""
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        node("Mul", ["means", "nothing"], ["no_means"]),
        node("ReduceSum", ["no_means", "channel_axis"], ["no_sum"], keepdims=0),
        node("Squeeze", ["no_sum", "batch_axis"], ["no_scalar"]),
        node("Add", ["values", "no_scalar"], ["output0"]),
    ]
    weights = {
        "nothing": np.array(0, np.float32),
        "channel_axis": np.array([1]),
        "batch_axis": np.array([0]),
        "values": values.astype(np.float32),
    }
    info = helper.make_tensor_value_info
    inputs = [info("images", element_type, [1, 3, *size])]
    outputs = [info("output0", TensorProto.FLOAT, output_shape or list(values.shape))]
    return save(path, nodes, inputs, outputs, weights, metadata)


def first_channel(path: Path, cells: int, size: tuple[int, int], metadata: dict, transposed: bool) -> Path:
    """A YOLO-like model of one class whose score in cell 0 is the highest value of the input's first channel:
    [1, 5, cells], or [1, cells, 6] for YOLOX."""
    node = helper.make_node
    width = 6 if transposed else 5
    layout = np.zeros((1, cells, width), np.float32)
    mask = np.zeros_like(layout)
    mask[0, 0, -1] = 1
    if transposed:
        layout[0, 0] = (0, 0, 3, 3, 1, 0)
    else:
        layout[0, 0] = (size[1] / 2, size[0] / 2, size[1] / 2, size[0] / 2, 0)
        layout, mask = layout.transpose(0, 2, 1), mask.transpose(0, 2, 1)
    nodes = [
        node("Slice", ["images", "zero", "one", "axes"], ["first"]),
        node("ReduceMax", ["first"], ["brightest"], axes=[0, 1, 2, 3], keepdims=0),
        node("Mul", ["brightest", "mask"], ["scaled"]),
        node("Add", ["layout", "scaled"], ["output0"]),
    ]
    weights = {"zero": np.array([0]), "one": np.array([1]), "axes": np.array([1])}
    weights |= {"layout": layout, "mask": mask}
    info = helper.make_tensor_value_info
    inputs = [info("images", TensorProto.FLOAT, [1, 3, *size])]
    outputs = [info("output0", TensorProto.FLOAT, list(layout.shape))]
    return save(path, nodes, inputs, outputs, weights, metadata)
