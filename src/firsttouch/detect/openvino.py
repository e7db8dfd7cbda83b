"""OpenVINO on the CPU: an extra (`firsttouch[openvino]`), chosen with RUNTIME=openvino."""

from __future__ import annotations

import importlib.util
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from firsttouch.detect.session import ModelFile, Problem, Session, Values
from firsttouch.errors import ModelMismatch

_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""OpenVINO reads int8 off the model's own quantisation nodes; the hint is for the rest."""


class OpenVinoSession:
    """A compiled model; every calling thread has a request of its own, every stream one thread of OpenVINO's."""

    runtime = "openvino"
    device = "cpu"
    on_calling_thread = False

    def __init__(self, compiled: Any, outputs: tuple[str, ...], precision: str) -> None:
        self._compiled = compiled
        self._outputs = outputs
        self._local = threading.local()
        self.precision = precision

    def run(self, values: Values) -> list[Values]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        found = request.infer([values], share_inputs=True)
        return [np.array(found[name]) for name in self._outputs]


@dataclass(frozen=True, slots=True)
class OpenVino:
    """One stream per core, each of one thread."""

    name: str = "openvino"
    device: str = "cpu"

    def problem(self, precision: str) -> Problem | None:
        if importlib.util.find_spec("openvino") is None:
            return Problem("OpenVINO is not installed", "pip install 'firsttouch[openvino]'")
        if precision not in _PRECISION_HINT:
            return Problem(f"{precision} is not run by OpenVINO here", "use fp32, bf16 or int8")
        return None

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        import openvino  # type: ignore[import-untyped, import-not-found, unused-ignore]

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings = {
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": cores,
            "INFERENCE_PRECISION_HINT": _PRECISION_HINT[precision],
        }
        try:
            core = openvino.Core()
            network = core.read_model(model=model.cut_to(outputs), weights=b"")
            network.reshape(list(shape))
            compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as exc:
            first_line = str(exc).strip().splitlines()[0]
            raise ModelMismatch(f"OpenVINO cannot open {model.path.name}: {first_line}") from exc
        return OpenVinoSession(compiled, outputs, precision)
