"""ONNX Runtime on the CPU: the default, always there. The only runtime a plain install brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime  # type: ignore[import-untyped]

from firsttouch.detect.session import ModelFile, Values
from firsttouch.errors import ModelMismatch

RUNTIME = "onnxruntime"


class OrtSession:
    """An `onnxruntime.InferenceSession`, of which `get_providers()` says where it really runs."""

    runtime = RUNTIME

    def __init__(self, session: Any, input_name: str, outputs: Sequence[str], precision: str) -> None:
        self._session = session
        self._input = input_name
        self._outputs = list(outputs)
        self.precision = precision
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    @property
    def device(self) -> str:
        return "cpu" if self.providers[0] == "CPUExecutionProvider" else "cuda"

    def run(self, values: Values) -> list[Values]:
        # No I/O binding on the CPU: a contiguous input is read in place, and the outputs are a few kB.
        result: list[Values] = self._session.run(self._outputs, {self._input: values})
        return result


def open_cpu(model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str = "fp32") -> OrtSession:
    """The model on the calling thread alone: the pipeline has one worker per core."""
    options = session_options(model, shape)
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = open_session(model, outputs, options, ["CPUExecutionProvider"])
    return OrtSession(session, model.facts.inputs[0].name, outputs, precision)


def session_options(model: ModelFile, shape: tuple[int, ...]) -> Any:
    """Options that pin every named dimension of the input, so that memory is planned once, when opening."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for declared, wanted in zip(model.facts.inputs[0].shape, shape, strict=True):
        if isinstance(declared, str) and declared:
            options.add_free_dimension_override_by_name(declared, wanted)
    return options


def open_session(model: ModelFile, outputs: tuple[str, ...], options: Any, providers: list[Any]) -> Any:
    try:
        return onnxruntime.InferenceSession(model.cut_to(outputs), options, providers=providers)
    except Exception as exc:  # the pybind exceptions have no common base but Exception
        first_line = str(exc).strip().splitlines()[0]
        raise ModelMismatch(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {model.path.name}: {first_line}",
            hint="check the file with onnx.checker, and its opset and operators with the runtime's version",
        ) from exc
