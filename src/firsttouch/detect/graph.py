"""Reads what an ONNX file says about itself, and cuts its graph down to what some outputs need.

ONNX Runtime runs every node of a graph whatever outputs are asked for (measured with 1.32: neither naming
fewer outputs nor `only_execute_path_to_fetches` saves time, nor does it drop nodes without a reader), so a
head that is not wanted has to be gone from the model. The `onnx` package would do it, at 18 MB of install;
the few messages that matter are read here from the protobuf wire format, and tested against that package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from firsttouch.errors import ModelMismatch

# Field numbers of onnx.proto3.
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_TENSOR_NAME, _VALUE_NAME, _VALUE_TYPE = 8, 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE, _SHAPE_DIMENSION = 1, 1, 2, 1
_DIMENSION_VALUE, _DIMENSION_NAME = 1, 2
_ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as the file declares it; a dimension is a number, a name, or "" (unknown)."""

    name: str
    element_type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphFacts:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    number: int
    raw: memoryview
    value: memoryview
    integer: int = 0


def read_facts(model: bytes) -> GraphFacts:
    """Inputs, outputs and metadata of an ONNX file's bytes. Raises ModelMismatch when they are none."""
    try:
        fields = list(_fields(memoryview(model)))
        graph = [f for top in fields if top.number == _MODEL_GRAPH for f in _fields(top.value)]
        weights = {_name(f.value, _TENSOR_NAME) for f in graph if f.number == _GRAPH_INITIALIZER}
        # Old exporters list the weights among the inputs.
        inputs = (_tensor(f.value) for f in graph if f.number == _GRAPH_INPUT)
        entries = [f.value for f in fields if f.number == _MODEL_METADATA]
        return GraphFacts(
            inputs=tuple(t for t in inputs if t.name not in weights),
            outputs=tuple(_tensor(f.value) for f in graph if f.number == _GRAPH_OUTPUT),
            metadata={_name(e, _ENTRY_KEY): _name(e, _ENTRY_VALUE) for e in entries},
        )
    except (IndexError, UnicodeDecodeError) as exc:
        raise ModelMismatch("the file is not an ONNX model") from exc


def keep_outputs(model: bytes, outputs: Iterable[str]) -> bytes:
    """The model with only these graph outputs, and only the nodes and weights they need.

    Raises ModelMismatch when one of them is not an output of the graph, when the graph has control flow
    (whose bodies read outer names), or when the bytes are not an ONNX model.
    """
    wanted = set(outputs)
    try:
        fields = list(_fields(memoryview(model)))
        return b"".join(
            _message(_MODEL_GRAPH, _cut_graph(field.value, wanted))
            if field.number == _MODEL_GRAPH
            else bytes(field.raw)
            for field in fields
        )
    except (IndexError, UnicodeDecodeError) as exc:
        raise ModelMismatch("the file is not an ONNX model") from exc


def _cut_graph(graph: memoryview, wanted: set[str]) -> bytes:
    fields = list(_fields(graph))
    present = {_name(f.value, _VALUE_NAME) for f in fields if f.number == _GRAPH_OUTPUT}
    if not wanted <= present:
        raise ModelMismatch(f"the model has no output {sorted(wanted - present)}, only {sorted(present)}")
    nodes = [f for f in fields if f.number == _GRAPH_NODE]
    kept = _needed(nodes, wanted)
    read = wanted | {name for node in nodes if node in kept for name in _names(node.value, _NODE_INPUT)}
    parts = []
    for field in fields:
        dropped = (
            (field.number == _GRAPH_NODE and field not in kept)
            or (field.number == _GRAPH_OUTPUT and _name(field.value, _VALUE_NAME) not in wanted)
            or (field.number == _GRAPH_INITIALIZER and _name(field.value, _TENSOR_NAME) not in read)
        )
        if not dropped:
            parts.append(bytes(field.raw))
    return b"".join(parts)


def _needed(nodes: list[_Field], wanted: set[str]) -> set[_Field]:
    """The nodes that `wanted` values come from. ONNX lists nodes in topological order: one pass back."""
    reads = set(wanted)
    kept = set()
    for node in reversed(nodes):
        if reads.isdisjoint(_names(node.value, _NODE_OUTPUT)):
            continue
        if _has_body(node.value):
            raise ModelMismatch("the model has control flow, and cannot be cut")
        kept.add(node)
        reads.update(_names(node.value, _NODE_INPUT))
    return kept


def _tensor(value_info: memoryview) -> Tensor:
    types = (f.value for f in _fields(value_info) if f.number == _VALUE_TYPE)
    tensor = next((f.value for t in types for f in _fields(t) if f.number == _TYPE_TENSOR), memoryview(b""))
    parts = list(_fields(tensor))
    element = next((f.integer for f in parts if f.number == _TENSOR_ELEMENT), 0)
    shapes = (f.value for f in parts if f.number == _TENSOR_SHAPE)
    shape = tuple(_dimension(d.value) for s in shapes for d in _fields(s) if d.number == _SHAPE_DIMENSION)
    return Tensor(_name(value_info, _VALUE_NAME), _ELEMENT_TYPES.get(element, f"type {element}"), shape)


def _dimension(dimension: memoryview) -> int | str:
    for field in _fields(dimension):
        if field.number == _DIMENSION_VALUE:
            return field.integer
        if field.number == _DIMENSION_NAME:
            return bytes(field.value).decode()
    return ""


def _has_body(node: memoryview) -> bool:
    attributes = (f.value for f in _fields(node) if f.number == _NODE_ATTRIBUTE)
    return any(f.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) for a in attributes for f in _fields(a))


def _names(message: memoryview, number: int) -> list[str]:
    return [bytes(f.value).decode() for f in _fields(message) if f.number == number and f.value]


def _name(message: memoryview, number: int) -> str:
    return next(iter(_names(message, number)), "")


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start, integer = at, 0
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
            value = message[at : at + size]
            if len(value) != size:
                raise IndexError("a field ends after its message")
            at += size
        elif kind == _VARINT:
            value = message[at:at]
            integer, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            value = message[at:at]
            at += 8 if kind == _FIXED64 else 4
        else:
            raise IndexError(f"wire type {kind}")
        yield _Field(key >> 3, message[start:at], value, integer)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _message(number: int, body: bytes) -> bytes:
    return _packed(number << 3 | _BYTES) + _packed(len(body)) + body


def _packed(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
