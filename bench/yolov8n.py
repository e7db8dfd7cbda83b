"""The graph of YOLOv8n at 640 with random weights: what it costs does not depend on their values.

Written from the published description of the architecture (depth 1/3, width 1/4, 80 classes: 3.2 M parameters); no
code or weights of ultralytics, which are AGPL, are used. Its speed is what our detector is compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, BINS = 80, 16
STRIDES = (8, 16, 32)


class Graph:
    """Nodes and weights as they are added; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {"images": 3}
        self.parameters = 0
        self._random = np.random.default_rng(0)

    def add(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.channels[name] = channels
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def plain(self, x: str, out: int, kernel: int = 1, stride: int = 1) -> str:
        """A convolution with its bias."""
        fan_in = self.channels[x] * kernel * kernel
        weights = self._random.normal(0, fan_in**-0.5, (out, self.channels[x], kernel, kernel)).astype(np.float32)
        self.parameters += weights.size + out
        inputs = [x, self.constant(weights), self.constant(np.zeros(out, np.float32))]
        return self.add("Conv", inputs, out, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def conv(self, x: str, out: int, kernel: int = 1, stride: int = 1) -> str:
        """Convolution (its normalisation folded into it) and SiLU."""
        y = self.plain(x, out, kernel, stride)
        return self.add("Mul", [y, self.add("Sigmoid", [y], out)], out)

    def concat(self, parts: list[str], axis: int = 1) -> str:
        return self.add("Concat", parts, sum(self.channels[part] for part in parts), axis=axis)

    def c2f(self, x: str, out: int, blocks: int, shortcut: bool) -> str:
        half = out // 2
        y = self.conv(x, out)
        sides = [f"{y}_a", f"{y}_b"]
        self.nodes.append(helper.make_node("Split", [y, self.constant(np.array([half, half]))], sides, axis=1))
        self.channels |= dict.fromkeys(sides, half)
        parts = list(sides)
        for _ in range(blocks):
            inner = self.conv(self.conv(parts[-1], half, 3), half, 3)
            parts.append(self.add("Add", [parts[-1], inner], half) if shortcut else inner)
        return self.conv(self.concat(parts), out)

    def sppf(self, x: str, out: int) -> str:
        parts = [self.conv(x, self.channels[x] // 2)]
        for _ in range(3):
            last = parts[-1]
            pooled = self.add("MaxPool", [last], self.channels[last], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4)
            parts.append(pooled)
        return self.conv(self.concat(parts), out)

    def twice(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.add("Resize", [x, "", scales], self.channels[x], mode="nearest")


def write(path: Path, size: int = 640) -> int:
    """Writes the graph: images (1, 3, size, size) float32 -> (1, 84, anchors). Returns its number of parameters."""
    graph = Graph()
    levels = _neck(graph, _backbone(graph))
    outputs = [_head(graph, x, (size // stride) ** 2) for x, stride in zip(levels, STRIDES, strict=True)]
    boxes = _decoded(graph, graph.concat([box for box, _ in outputs], axis=2), size)
    scores = graph.add("Sigmoid", [graph.concat([score for _, score in outputs], axis=2)], CLASSES)
    answer = graph.concat([boxes, scores])
    made = helper.make_graph(
        graph.nodes, "yolov8n",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, size, size))],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, (1, 4 + CLASSES, None))],
        graph.weights,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return graph.parameters


def _backbone(graph: Graph) -> tuple[str, str, str]:
    x = graph.conv("images", 16, 3, 2)
    x = graph.c2f(graph.conv(x, 32, 3, 2), 32, 1, shortcut=True)
    eighth = graph.c2f(graph.conv(x, 64, 3, 2), 64, 2, shortcut=True)
    sixteenth = graph.c2f(graph.conv(eighth, 128, 3, 2), 128, 2, shortcut=True)
    x = graph.c2f(graph.conv(sixteenth, 256, 3, 2), 256, 1, shortcut=True)
    return eighth, sixteenth, graph.sppf(x, 256)


def _neck(graph: Graph, levels: tuple[str, str, str]) -> tuple[str, str, str]:
    eighth, sixteenth, coarse = levels
    middle = graph.c2f(graph.concat([graph.twice(coarse), sixteenth]), 128, 1, shortcut=False)
    fine = graph.c2f(graph.concat([graph.twice(middle), eighth]), 64, 1, shortcut=False)
    middle = graph.c2f(graph.concat([graph.conv(fine, 64, 3, 2), middle]), 128, 1, shortcut=False)
    coarse = graph.c2f(graph.concat([graph.conv(middle, 128, 3, 2), coarse]), 256, 1, shortcut=False)
    return fine, middle, coarse


def _head(graph: Graph, x: str, anchors: int) -> tuple[str, str]:
    """Box bins (1, 64, anchors) and class logits (1, 80, anchors) of one level."""
    box = graph.plain(graph.conv(graph.conv(x, 4 * BINS, 3), 4 * BINS, 3), 4 * BINS)
    score = graph.plain(graph.conv(graph.conv(x, CLASSES, 3), CLASSES, 3), CLASSES)
    flat = [graph.constant(np.array([1, c, anchors])) for c in (4 * BINS, CLASSES)]
    return graph.add("Reshape", [box, flat[0]], 4 * BINS), graph.add("Reshape", [score, flat[1]], CLASSES)


def _decoded(graph: Graph, bins: str, size: int) -> str:
    """(1, 4, anchors) boxes: the mean of each side's distribution over its bins, from the cell's centre."""
    cells = [np.indices((size // s, size // s)).reshape(2, -1)[::-1] + 0.5 for s in STRIDES]
    centres = graph.constant(np.concatenate(cells, 1).astype(np.float32)[None])
    strides = graph.constant(np.repeat(STRIDES, [c.shape[1] for c in cells]).astype(np.float32)[None, None])
    sides = graph.add("Reshape", [bins, graph.constant(np.array([1, 4, BINS, -1]))], 4)
    share = graph.add("Softmax", [sides], 4, axis=2)
    steps = graph.constant(np.arange(BINS, dtype=np.float32)[None, None, :, None])
    mean = graph.add("ReduceSum", [graph.add("Mul", [share, steps], 4), graph.constant(np.array([2]))], 4, keepdims=0)
    low, high = f"{mean}_low", f"{mean}_high"
    graph.nodes.append(helper.make_node("Split", [mean, graph.constant(np.array([2, 2]))], [low, high], axis=1))
    first, last = graph.add("Sub", [centres, low], 2), graph.add("Add", [centres, high], 2)
    return graph.add("Mul", [graph.concat([first, last]), strides], 4)
