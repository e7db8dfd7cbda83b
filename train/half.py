"""The fp16 graph that a GPU's ONNX Runtime loads: the network in half precision, its decoding in float32.

Boxes reach 1280 pixels, where half precision knows whole pixels only; so everything behind the heads stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from train.export import stamp, stamped_facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the fp32 graph")
    parser.add_argument("--out", type=Path, help="default: beside it, NAME.fp16.onnx")


def main(args: argparse.Namespace) -> None:
    out = args.out or args.model.with_suffix(".fp16.onnx")
    model = onnx.load(args.model)
    facts = stamped_facts(model)
    decoding = [node.name for node in model.graph.node if not node.name.startswith("/network/")]
    half = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=decoding))
    keep_whole(half)
    half.topological_sort()  # the casts are appended at the end
    stamp(half.model, facts, "fp16")
    onnx.checker.check_model(half.model)
    onnx.save(half.model, out)
    print(f"{out} {out.stat().st_size / 1e6:.2f} MB")


def keep_whole(model: OnnxModel) -> None:
    """No trip through half precision between two nodes in float32: the converter makes one at every node it leaves."""
    nodes = model.model.graph.node
    casts = [n for n in nodes if n.op_type == "Cast"]
    to = {n.output[0]: (onnx.helper.get_node_attr_value(n, "to"), n) for n in casts}
    whole: dict[str, str] = {}
    for name, (kind, back) in to.items():
        there, node = to.get(back.input[0], (None, back))
        if kind == TensorProto.FLOAT and there == TensorProto.FLOAT16:
            whole[name] = back.input[0] = node.input[0]  # a cast that gives an output of the graph stays, for its name
    for node in nodes:
        node.input[:] = [whole.get(name, name) for name in node.input]
    model.prune_graph()
