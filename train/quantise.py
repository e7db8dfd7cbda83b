"""Static int8 quantisation of the shipped graph: U8 activations, S8 weights per channel, heads and decode in float32.

The input is already uint8: its normalisation becomes the first DequantizeLinear (scale 1/64, zero point 128), so that
no pass over the picture is left before the first convolution.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from train import data
from train.augment import FULL, augmented_view, plain_view
from train.export import session, stamp, stamped_facts
from train.fit import load_training_frames
from train.network import SCALE, ZERO_POINT

HEADS = ("/network/Conv", "/network/keypoint_out/Conv", "/network/role_out/Conv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the fp32 graph")
    parser.add_argument("--out", type=Path, default=Path("src/firsttouch/weights/firsttouch.int8.onnx"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--frames", type=int, default=240)


def main(args: argparse.Namespace) -> None:
    frames = load_training_frames(args.data, args.cache, [])
    quantise(args.model, args.out, calibration_planes(frames, args.frames))
    print(f"{args.out} {args.out.stat().st_size / 1e6:.2f} MB")


def calibration_planes(frames: list[data.Frame], count: int, seed: int = 1) -> list[NDArray[np.uint8]]:
    """Pictures of every source in turn, every third one augmented."""
    rng = np.random.default_rng(seed)
    sources = sorted({f.source for f in frames})
    planes = []
    for i in range(count):
        mine = [f for f in frames if f.source == sources[i % len(sources)]]
        frame = mine[rng.integers(len(mine))]
        view = augmented_view(frame, FULL, rng) if i % 3 == 2 else plain_view(frame)
        planes.append(view.planes[None])
    return planes


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, planes: list[NDArray[np.uint8]]) -> None:
        self._feed: Iterator[NDArray[np.uint8]] = iter(planes)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        planes = next(self._feed, None)
        return None if planes is None else {"planes": planes}


def quantise(source: Path, target: Path, planes: list[NDArray[np.uint8]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ready, raw = Path(folder) / "ready.onnx", Path(folder) / "raw.onnx"
        # without this pass (BatchNorm and ReLU folded, shapes known) half the convolutions stay in float32
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        nodes = [n.name for n in onnx.load(ready).graph.node]
        keep = [n for n in nodes if not n.startswith("/network/") or n in HEADS]
        scale, zero_point = np.array(SCALE, np.float32), np.array(int(ZERO_POINT), np.uint8)
        quantize_static(
            str(ready), str(raw), Reader(planes), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=keep,
            calibrate_method=CalibrationMethod.MinMax,
            # the scale must be known before the first convolution's bias is rounded to it
            extra_options={"TensorQuantOverrides": {_normalised(ready): [{"scale": scale, "zero_point": zero_point}]}},
            op_types_to_quantize=["Conv", "Add", "Concat", "MaxPool", "Resize", "Relu", "Slice"],
        )  # fmt: skip
        model = onnx.load(raw)
    feed_uint8(model)
    fold_stem(model)
    repeat_pixels(model)
    multiply_heads(model)
    drop_unread(model)
    stamp(model, stamped_facts(onnx.load(source)) | {"calibration_frames": len(planes)}, "int8")
    onnx.checker.check_model(model)
    onnx.save(model, target)
    session(target)  # it must load


def _normalised(path: Path) -> str:
    """Name of the tensor that enters the network: the output of the first Mul."""
    return str(next(n for n in onnx.load(path).graph.node if n.op_type == "Mul").output[0])


def feed_uint8(model: onnx.ModelProto) -> None:
    """Cast, Sub, Mul, QuantizeLinear, DequantizeLinear on the transposed input become one DequantizeLinear."""
    graph = model.graph

    def reads(name: str) -> list[onnx.NodeProto]:
        return [n for n in graph.node if name in n.input]

    (transpose,) = reads("planes")
    chain: list[onnx.NodeProto] = []
    tensor = transpose.output[0]
    while len(chain) < 4:
        (node,) = [n for n in reads(tensor) if n.op_type in {"Cast", "Sub", "Mul", "QuantizeLinear"}]
        chain.append(node)
        tensor = node.output[0]
    if [n.op_type for n in chain] != ["Cast", "Sub", "Mul", "QuantizeLinear"]:
        raise ValueError(f"unexpected start of the graph: {[n.op_type for n in chain]}")
    (first,) = reads(tensor)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(SCALE, np.float32), "planes_scale"),
            numpy_helper.from_array(np.array(int(ZERO_POINT), np.uint8), "planes_zero_point"),
        ]
    )
    first.input[:] = [transpose.output[0], "planes_scale", "planes_zero_point"]
    for node in chain:
        graph.node.remove(node)


def fold_stem(model: onnx.ModelProto) -> None:
    """The 2x2 convolution of stride 2 on six planes as a 2x1 one on twelve: the same sums.

    Each of its four taps reads six bytes; gathering them took ONNX Runtime three times as long as multiplying them.
    Two neighbours in a row are twelve bytes in one piece, so half the gathering goes.
    """
    graph = model.graph
    (transpose,) = [n for n in graph.node if "planes" in n.input]
    (dequantise,) = [n for n in graph.node if transpose.output[0] in n.input]
    (conv,) = [n for n in graph.node if n.op_type == "Conv" and dequantise.output[0] in n.input]
    (weights,) = [n for n in graph.node if conv.input[1] in n.output]
    (kernel,) = [i for i in graph.initializer if i.name == weights.input[0]]
    old = numpy_helper.to_array(kernel)
    out, planes, rows, columns = old.shape
    if (planes, rows, columns) != (6, 2, 2):
        raise ValueError(f"the first convolution must be 2x2 on six planes, got {old.shape}")
    new = np.ascontiguousarray(old.transpose(0, 3, 1, 2)).reshape(out, 12, 2, 1)
    kernel.CopyFrom(numpy_helper.from_array(new, kernel.name))
    del conv.attribute[:]
    conv.attribute.extend(
        onnx.helper.make_attribute(k, v) for k, v in (("kernel_shape", [2, 1]), ("strides", [2, 1]), ("pads", [0] * 4))
    )
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1, 12], np.int64), "pair_shape"))
    node = onnx.helper.make_node
    graph.node.insert(0, node("Reshape", ["planes", "pair_shape"], ["pairs_last"], "pairs_last"))
    graph.node.insert(1, node("Transpose", ["pairs_last"], ["pairs"], "pairs", perm=[0, 3, 1, 2]))
    dequantise.input[0] = "pairs"
    graph.node.remove(transpose)


def repeat_pixels(model: onnx.ModelProto) -> None:
    """Nearest-neighbour doubling as two concatenations of bytes, channels last: same bytes, several times faster."""
    graph = model.graph
    node = onnx.helper.make_node
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 2, 1], np.int64), "twice"))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "rows_flat"))
    for resize in [n for n in graph.node if n.op_type == "Resize"]:
        (source,) = [n for n in graph.node if resize.input[0] in n.output]
        if source.op_type != "DequantizeLinear":
            raise ValueError(f"{resize.name} does not read a quantised tensor")
        name = resize.name
        steps = [
            node("Transpose", [source.input[0]], [f"{name}/last"], f"{name}/last", perm=[0, 2, 3, 1]),
            node("Shape", [f"{name}/last"], [f"{name}/shape"], f"{name}/shape"),
            node("Mul", [f"{name}/shape", "twice"], [f"{name}/doubled"], f"{name}/doubled"),
            node("Concat", [f"{name}/last"] * 2, [f"{name}/columns"], f"{name}/columns", axis=3),
            node("Reshape", [f"{name}/columns", "rows_flat"], [f"{name}/flat"], f"{name}/flat"),
            node("Concat", [f"{name}/flat"] * 2, [f"{name}/rows"], f"{name}/rows", axis=2),
            node("Reshape", [f"{name}/rows", f"{name}/doubled"], [f"{name}/big"], f"{name}/big"),
            node("Transpose", [f"{name}/big"], [f"{name}/first"], f"{name}/first", perm=[0, 3, 1, 2]),
            node("DequantizeLinear", [f"{name}/first", *source.input[1:]], [resize.output[0]], f"{name}/dequantise"),
        ]
        at = list(graph.node).index(resize)
        graph.node.remove(resize)
        for i, step in enumerate(steps):
            graph.node.insert(at + i, step)


def multiply_heads(model: onnx.ModelProto) -> None:
    """The last 1x1 convolutions as products of their bytes with an int8 matrix, the sums kept in float32.

    Nothing is rounded but the weights, and no float map of the features is made, put in another order and back.
    """
    graph = model.graph
    node = onnx.helper.make_node
    for name in HEADS:
        (conv,) = [n for n in graph.node if n.name == name]
        (dequantise,) = [n for n in graph.node if conv.input[0] in n.output]
        features, scale, zero_point = dequantise.input
        initial = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        weight, bias = initial[conv.input[1]][:, :, 0, 0], initial[conv.input[2]]
        scales = (np.abs(weight).max(1) / 127).astype(np.float32)
        values = {
            "weight": np.rint(weight / scales[:, None]).astype(np.int8),
            "scale": scales,
            "zero": np.zeros(len(weight), np.int8),
            "bias": np.rint(bias / (scales * initial[scale])).astype(np.int32),
            "bias_scale": (scales * initial[scale]).astype(np.float32),
            "bias_zero": np.zeros(len(weight), np.int32),
            "rows": np.array([-1, weight.shape[1]], np.int64),
            "outputs": np.array([len(weight)], np.int64),
            "first": np.array([0], np.int64),
            "third": np.array([3], np.int64),
        }
        graph.initializer.extend(numpy_helper.from_array(v, f"{name}/{k}") for k, v in values.items())

        def of(*names: str, name: str = name) -> list[str]:
            return [f"{name}/{n}" for n in names]

        steps = [
            node("Transpose", [features], of("last"), *of("last"), perm=[0, 2, 3, 1]),
            node("Shape", of("last"), of("shape"), *of("shape")),
            node("Slice", of("shape", "first", "third"), of("places"), *of("places")),
            node("Concat", of("places", "outputs"), of("map_shape"), *of("map_shape"), axis=0),
            node("Reshape", of("last", "rows"), of("bytes"), *of("bytes")),
            node("DequantizeLinear", [*of("bytes"), scale, zero_point], of("values"), *of("values")),
            node("DequantizeLinear", of("weight", "scale", "zero"), of("matrix"), *of("matrix"), axis=0),
            node("DequantizeLinear", of("bias", "bias_scale", "bias_zero"), of("start"), *of("start"), axis=0),
            node("Gemm", of("values", "matrix", "start"), of("sums"), *of("sums"), transB=1),
            node("Reshape", of("sums", "map_shape"), of("map"), *of("map")),
            node("Transpose", of("map"), [conv.output[0]], *of("first_again"), perm=[0, 3, 1, 2]),
        ]
        at = list(graph.node).index(conv)
        graph.node.remove(conv)
        for i, step in enumerate(steps):
            graph.node.insert(at + i, step)


def drop_unread(model: onnx.ModelProto) -> None:
    """What the passes above left without a reader: ONNX Runtime would run it all the same."""
    graph = model.graph
    results = {o.name for o in graph.output}
    while True:
        read = results | {name for n in graph.node for name in n.input}
        unread = [n for n in graph.node if not read & set(n.output)]
        if not unread:
            break
        for n in unread:
            graph.node.remove(n)
    for value in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(value)
