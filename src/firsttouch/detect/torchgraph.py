"""An ONNX graph as a function of PyTorch tensors, for one input shape: the operators that our own network uses.

What depends on shapes alone is computed once, when the graph is opened. The rest never asks the device for a number
(shapes are found on the meta device, which has none to give), so that it can be captured as a CUDA graph.

In half precision the convolutions and what lies between them are half. What turns their answer into pixels stays
float32: half is too coarse for it (at 1024 it knows whole pixels only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from firsttouch.errors import ModelMismatch

Tensor = Any
Attributes = Mapping[str, Any]
Plain = list[Any]
"""An input that must be known before any picture is: its numbers, or None for one left out."""

_DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Operator:
    """`run(tensors, plain, attributes)`: the first `tensors` inputs are tensors, the others plain numbers."""

    run: Callable[[list[Tensor], Plain, Attributes], Tensor | Sequence[Tensor]]
    tensors: int = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    operator: Operator
    inputs: tuple[str | Tensor, ...]
    """Names of what earlier steps gave, and constants on the device."""
    plain: Plain
    attributes: Attributes
    outputs: tuple[str, ...]
    dtype: Any
    """What floating inputs are cast to; None leaves them."""
    unneeded: tuple[str, ...]
    """What no later step reads: its memory is given back."""


class TorchGraph:
    """Calls with one tensor of the opened shape; gives the outputs in the order asked for, as float32.

    `model` is an ONNX file's bytes, `dtype` what convolutions compute in. Raises ModelMismatch for an operator, or a
    use of one, that is not among those of our network.
    """

    def __init__(
        self, model: bytes, outputs: Sequence[str], shape: tuple[int, ...], device: str, dtype: Any = torch.float32
    ) -> None:
        graph = onnx.load_model_from_string(model).graph
        weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}
        self._input = next(entry.name for entry in graph.input if entry.name not in weights)
        self._outputs = tuple(outputs)
        element = _DTYPES.get(next(e for e in graph.input if e.name == self._input).type.tensor_type.elem_type)
        traced = torch.empty(shape, dtype=element or torch.uint8, device="meta")
        self._steps = _with_unneeded(_steps(graph.node, weights, self._input, traced, device, dtype), self._outputs)

    def __call__(self, planes: Tensor) -> list[Tensor]:
        values = {self._input: planes}
        for step in self._steps:
            inputs = [values[i] if isinstance(i, str) else i for i in step.inputs]
            if step.dtype is not None:
                inputs = [i.to(step.dtype) if i is not None and i.is_floating_point() else i for i in inputs]
            values.update(
                zip(step.outputs, _listed(step.operator.run(inputs, step.plain, step.attributes)), strict=True)
            )
            for name in step.unneeded:
                del values[name]
        return [values[name].float() for name in self._outputs]


def _steps(
    nodes: Sequence[Any], weights: dict[str, Tensor], input_name: str, traced: Tensor, device: str, dtype: Any
) -> list[_Step]:
    """One step for each node that depends on the picture; the others are computed here.

    Every value is known by its shape (a tensor on the meta device), and what is known whole is in `fixed`.
    """
    fixed, shapes = dict(weights), {input_name: traced}
    before_conv = _leads_to(nodes, "Conv")
    placed: dict[str, Tensor] = {}
    steps = []
    for node in nodes:
        operator = _operator(node)
        attributes = {a.name: _attribute(a) for a in node.attribute}
        if node.op_type == "Shape":  # known whatever the picture is
            known = {**fixed, **shapes}[node.input[0]]
            fixed[node.output[0]] = operator.run([known], [], attributes)
            continue
        names = [name or None for name in node.input]
        tensors, numbers = names[: operator.tensors], names[operator.tensors :]
        plain = [_numbers(node, name, fixed) for name in numbers]
        try:
            if all(name is None or name in fixed for name in tensors):
                given = [None if name is None else fixed[name] for name in tensors]
                fixed.update(zip(node.output, _listed(operator.run(given, plain, attributes)), strict=True))
                continue
            given = [None if n is None else shapes[n] if n in shapes else fixed[n].to("meta") for n in tensors]
            shapes.update(zip(node.output, _listed(operator.run(given, plain, attributes)), strict=True))
        except (IndexError, RuntimeError, TypeError, ValueError) as exc:
            first_line = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise ModelMismatch(f"PyTorch cannot run {node.op_type} {node.name} of this model: {first_line}") from exc
        half = dtype if node.op_type == "Conv" else None if before_conv & set(node.output) else torch.float32
        for name in tensors:
            if name is not None and name not in shapes and name not in placed:
                placed[name] = _placed(fixed[name], device, half)
        inputs = tuple(None if n is None else n if n in shapes else placed[n] for n in tensors)
        steps.append(_Step(operator, inputs, plain, attributes, tuple(node.output), half, ()))
    return steps


def _placed(constant: Tensor, device: str, dtype: Any) -> Tensor:
    """On the device once; kernels in the order that channels-last convolutions read."""
    if constant.is_floating_point() and dtype is not None:
        constant = constant.to(dtype)
    order = torch.channels_last if constant.dim() == 4 else torch.contiguous_format
    return constant.to(device).contiguous(memory_format=order)


def _with_unneeded(steps: Sequence[_Step], outputs: Sequence[str]) -> list[_Step]:
    """The steps that the outputs need, each with what may be dropped after it."""
    needed, kept = set(outputs), list[_Step]()
    for step in reversed(steps):
        if needed.isdisjoint(step.outputs):
            continue
        names = {*step.outputs, *(i for i in step.inputs if isinstance(i, str))}
        unneeded = tuple(sorted(names - needed))
        needed |= names
        kept.append(_Step(step.operator, step.inputs, step.plain, step.attributes, step.outputs, step.dtype, unneeded))
    return kept[::-1]


def _leads_to(nodes: Sequence[Any], op_type: str) -> set[str]:
    """Names of the values from which a node of this type is reached."""
    found: set[str] = set()
    for node in reversed(nodes):
        if node.op_type == op_type or found & set(node.output):
            found.update(node.input)
    return found


def _operator(node: Any) -> Operator:
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        raise ModelMismatch(
            f"the PyTorch runtime does not know the operator {node.op_type}",
            hint="it runs our own network; set RUNTIME=onnxruntime for another one",
        )
    return operator


def _numbers(node: Any, name: str | None, fixed: Mapping[str, Tensor]) -> Any:
    if name is None:
        return None
    if name not in fixed:
        raise ModelMismatch(
            f"{node.op_type} {node.name} of this model takes {name} from the picture",
            hint="the PyTorch runtime needs shapes that the picture does not change; set RUNTIME=onnxruntime",
        )
    return fixed[name].reshape(-1).tolist()


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return value.decode() if isinstance(value, bytes) else value


def _listed(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return found if isinstance(found, (list, tuple)) else [found]


def _conv(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values, kernel, *bias = tensors
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        values, (top, left) = functional.pad(values, (left, right, top, bottom)), (0, 0)
    if values.device.type != "meta":
        values = values.contiguous(memory_format=torch.channels_last)
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    group = attributes.get("group", 1)
    return functional.conv2d(values, kernel, bias[0] if bias else None, strides, (top, left), dilations, group)


def _max_pool(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise ValueError(f"pads {(top, left, bottom, right)} are not the same on both sides")
    return functional.max_pool2d(
        tensors[0],
        attributes["kernel_shape"],
        attributes.get("strides", (1, 1)),
        (top, left),
        attributes.get("dilations", (1, 1)),
        bool(attributes.get("ceil_mode", 0)),
    )


def _resize(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    """Nearest neighbour by whole factors, which is all that our network has."""
    scales = plain[1]
    asked = (attributes.get("mode"), attributes.get("coordinate_transformation_mode"), attributes.get("nearest_mode"))
    if asked != ("nearest", "asymmetric", "floor") or not scales or any(s != int(s) for s in scales):
        raise ValueError(f"{asked} with scales {scales}")
    return functional.interpolate(tensors[0], scale_factor=scales[2:], mode="nearest")


def _reshape(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values = tensors[0]
    sizes = [values.shape[at] if size == 0 else size for at, size in enumerate(plain[0])]
    return values.reshape(sizes)


def _slice(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values, (starts, ends, *others) = tensors[0], plain
    axes = others[0] if others and others[0] is not None else range(len(starts))
    steps = others[1] if len(others) > 1 and others[1] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        rows = range(*slice(start, end, step).indices(values.shape[axis]))
        forward = rows if step > 0 else rows[::-1]
        index = [slice(None)] * values.dim()
        index[axis] = slice(forward.start, forward.stop, forward.step)
        values = values[tuple(index)] if step > 0 else values[tuple(index)].flip(axis)
    return values


def _gather(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values, index = tensors
    axis = attributes.get("axis", 0) % values.dim()
    size = values.shape[axis]
    found = values.index_select(axis, torch.where(index < 0, index + size, index).reshape(-1))
    return found.reshape((*values.shape[:axis], *index.shape, *values.shape[axis + 1 :]))


def _top_k(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Sequence[Tensor]:
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    return tuple(torch.topk(tensors[0], plain[0][0], axis, largest, bool(attributes.get("sorted", 1))))


def _unsqueeze(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values, axes = tensors[0], plain[0]
    for axis in sorted(axis % (values.dim() + len(axes)) for axis in axes):
        values = values.unsqueeze(axis)
    return values


def _squeeze(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return torch.squeeze(tensors[0], tuple(plain[0])) if plain else torch.squeeze(tensors[0])


def _divide(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    whole = not (tensors[0].is_floating_point() or tensors[1].is_floating_point())
    return torch.div(*tensors, rounding_mode="trunc" if whole else None)


def _modulo(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return torch.fmod(*tensors) if attributes.get("fmod", 0) else torch.remainder(*tensors)


def _clip(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    low, high = (bound[0] if bound else None for bound in (*plain, None, None)[:2])
    return torch.clamp(tensors[0], low, high)


def _pad(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    pads, fill = plain[0], plain[1][0] if len(plain) > 1 and plain[1] else 0
    if attributes.get("mode", "constant") != "constant" or any(plain[2:]):
        raise ValueError("only constant padding of every axis is known")
    half = len(pads) // 2
    sides = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    return functional.pad(tensors[0], sides, value=fill)


def _constant_of_shape(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    value = attributes.get("value", torch.zeros(1))
    return torch.full(plain[0], value.item(), dtype=value.dtype)


def _split(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Sequence[Tensor]:
    return torch.split(tensors[0], plain[0], attributes.get("axis", 0))  # type: ignore[no-any-return, unused-ignore]


def _flatten(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    values, axis = tensors[0], attributes.get("axis", 1)
    return values.reshape(int(np.prod(values.shape[:axis])), -1)


def _expand(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return tensors[0].expand(torch.broadcast_shapes(tensors[0].shape, tuple(plain[0])))


def _reduce_max(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return torch.amax(tensors[0], attributes["axes"], bool(attributes.get("keepdims", 1)))


def _reduce_sum(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return torch.sum(tensors[0], plain[0], bool(attributes.get("keepdims", 1)))


def _arg_max(tensors: list[Tensor], plain: Plain, attributes: Attributes) -> Tensor:
    return torch.argmax(tensors[0], attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))


def _same(function: Callable[..., Tensor]) -> Operator:
    """An operator that PyTorch has under another name, with the same inputs in the same order."""
    return Operator(lambda tensors, plain, attributes: function(*tensors))


OPERATORS: dict[str, Operator] = {
    "Add": _same(torch.add),
    "And": _same(torch.logical_and),
    "ArgMax": Operator(_arg_max),
    "Cast": Operator(lambda tensors, plain, attributes: tensors[0].to(_DTYPES[attributes["to"]])),
    "Clip": Operator(_clip, 1),
    "Concat": Operator(lambda tensors, plain, attributes: torch.cat(tensors, attributes["axis"]), 64),
    "Constant": Operator(lambda tensors, plain, attributes: attributes["value"], 0),
    "ConstantOfShape": Operator(_constant_of_shape, 0),
    "Conv": Operator(_conv),
    "Div": Operator(_divide),
    "Equal": _same(torch.eq),
    "Exp": _same(torch.exp),
    "Expand": Operator(_expand, 1),
    "Flatten": Operator(_flatten),
    "Gather": Operator(_gather),
    "GatherElements": Operator(lambda t, plain, attributes: torch.gather(t[0], attributes.get("axis", 0), t[1])),
    "Greater": _same(torch.gt),
    "Less": _same(torch.lt),
    "Max": _same(torch.maximum),
    "MaxPool": Operator(_max_pool),
    "Min": _same(torch.minimum),
    "Mod": Operator(_modulo),
    "Mul": _same(torch.mul),
    "Not": _same(torch.logical_not),
    "Pad": Operator(_pad, 1),
    "ReduceMax": Operator(_reduce_max),
    "ReduceSum": Operator(_reduce_sum, 1),
    "Relu": _same(torch.relu),
    "Reshape": Operator(_reshape, 1),
    "Resize": Operator(_resize, 1),
    "Shape": _same(lambda values: torch.tensor(values.shape)),
    "Sigmoid": _same(torch.sigmoid),
    "Slice": Operator(_slice, 1),
    "Softmax": Operator(lambda tensors, plain, attributes: torch.softmax(tensors[0], attributes.get("axis", -1))),
    "Split": Operator(_split, 1),
    "Squeeze": Operator(_squeeze, 1),
    "Sub": _same(torch.sub),
    "TopK": Operator(_top_k, 1),
    "Transpose": Operator(lambda tensors, plain, attributes: tensors[0].permute(attributes["perm"])),
    "Unsqueeze": Operator(_unsqueeze, 1),
    "Where": _same(torch.where),
    "Xor": _same(torch.logical_xor),
}
