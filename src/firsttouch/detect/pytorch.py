"""PyTorch for our own network: an extra (`firsttouch[torch]`), chosen with RUNTIME=torch on the CPU or on CUDA.

On CUDA: FP16 (or bf16), channels last, one CUDA graph for the opened shape in a stream of its own. That part is not
verified on hardware; the CPU, which runs the same graph in fp32, is tested against ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from firsttouch.detect.session import ModelFile, OutOfDeviceMemory, Problem, Session, Values
from firsttouch.errors import RuntimeUnavailable

_INSTALL = "pip install 'firsttouch[torch]'"
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")}


class TorchCpuSession:
    """A graph on the calling thread; several threads may run it, it keeps nothing between runs."""

    runtime = "torch"
    device = "cpu"
    on_calling_thread = True

    def __init__(self, graph: Any, precision: str) -> None:
        self._graph = graph
        self.precision = precision

    def run(self, values: Values) -> list[Values]:
        import torch

        with torch.inference_mode():
            return [np.array(output.numpy()) for output in self._graph(torch.from_numpy(values))]


class TorchCudaSession:
    """One input at a fixed address, a stream of its own, and the graph captured once and replayed (`cuda_graph`).

    One run at a time: the addresses are shared. Opening and running raise OutOfDeviceMemory. Not verified on hardware.
    """

    runtime = "torch"
    device = "cuda"
    on_calling_thread = False

    def __init__(self, graph: Any, empty: Values, precision: str, cuda_graph: bool) -> None:
        import torch

        self.precision = precision
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream()
        self._graph = graph
        self._captured = torch.cuda.CUDAGraph() if cuda_graph else None
        with _memory_errors(), torch.inference_mode(), torch.cuda.stream(self._stream):
            self._pinned = torch.from_numpy(empty).pin_memory()
            self._input = self._pinned.to(self.device)
            for _ in range(3):  # cuDNN chooses its kernels, the allocator finds its size
                graph(self._input)
            self._stream.synchronize()
            if self._captured is not None:
                # thread_local: other sessions may be at work while this one is captured.
                with torch.cuda.graph(self._captured, stream=self._stream, capture_error_mode="thread_local"):
                    self._outputs = graph(self._input)

    def run(self, values: Values) -> list[Values]:
        import torch

        with self._lock, _memory_errors(), torch.inference_mode(), torch.cuda.stream(self._stream):
            if isinstance(values, np.ndarray):
                self._pinned.copy_(torch.from_numpy(values))
                self._input.copy_(self._pinned, non_blocking=True)
            else:
                self._input.copy_(values)
            if self._captured is not None:
                self._captured.replay()
            else:
                self._outputs = self._graph(self._input)
            return [np.array(output.cpu().numpy()) for output in self._outputs]


@contextmanager
def _memory_errors() -> Iterator[None]:
    """PyTorch's own error for it as ours, which halves the batch."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise OutOfDeviceMemory("the GPU has not enough memory for this batch") from exc


@dataclass(frozen=True, slots=True)
class Torch:
    """Runs the operators of our own network; another model is a ModelMismatch."""

    device: str
    name: str = "torch"
    cuda_graph: bool = True

    def problem(self, precision: str) -> Problem | None:
        for package in ("torch", "onnx"):
            if importlib.util.find_spec(package) is None:
                return Problem(f"PyTorch cannot run a model here: no package {package}", _INSTALL)
        if precision not in _PRECISIONS[self.device]:
            known = ", ".join(_PRECISIONS[self.device])
            return Problem(f"PyTorch does not run {precision} on {self.device} here", f"use one of {known}")
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                return Problem(f"PyTorch {torch.__version__} sees no CUDA GPU", "install the driver, or set DEVICE=cpu")
        return None

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        import torch

        from firsttouch.detect.torchgraph import TorchGraph

        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        graph = TorchGraph(model.cut_to(outputs), outputs, shape, self.device, dtype)
        if self.device == "cpu":
            torch.set_num_threads(1)  # one native call, one thread: the pipeline has one worker per core
            return TorchCpuSession(graph, precision)
        try:
            empty = np.zeros(shape, model.facts.inputs[0].element_type)
            torch.backends.cudnn.benchmark = True  # one shape, many runs: trying each kernel once pays
            return TorchCudaSession(graph, empty, precision, self.cuda_graph)
        except RuntimeError as exc:
            first_line = str(exc).strip().splitlines()[0]
            raise RuntimeUnavailable(f"PyTorch cannot run {model.path.name} on the GPU: {first_line}") from exc
