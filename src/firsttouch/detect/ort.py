"""ONNX Runtime: on the CPU (always there), on CUDA and TensorRT where a GPU build of it is installed, and on
TensorRT for RTX where that plug-in is.

ONNX Runtime falls back to the CPU without a word, so `get_providers()` of the opened session decides what we
say. CUDA, TensorRT, its plug-in and Core ML are not verified on hardware: their selection, options, cache keys and
fall-back are tested with fakes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import importlib.util
import io
import json
import logging
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from firsttouch.detect.session import ModelFile, OutOfDeviceMemory, Problem, Session, Values
from firsttouch.detect.surfaces import copy_into
from firsttouch.errors import ModelMismatch, RuntimeUnavailable

log = logging.getLogger(__name__)

DEVICE_OF_PROVIDER = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "CoreMLExecutionProvider": "mps",
}
GPU_WHEEL_REMEDY = (
    "pip uninstall onnxruntime && pip install 'firsttouch[gpu]' "
    "(onnxruntime and onnxruntime-gpu are the same module and exclude each other)"
)

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
ELEMENT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
"""What an output may be of to get memory of its own."""
BUILD_SECONDS = 1800.0
"""A build that takes longer is given up."""
_LIBRARIES_REMEDY = (
    "CUDA, cuDNN and TensorRT must be of the versions this onnxruntime-gpu was built with: pip install firsttouch[gpu] "
    "brings the first two, firsttouch[tensorrt] all; LOG_LEVEL=debug says what was loaded"
)
_NO_DRIVER = Problem("no NVIDIA driver answers (nvidia-smi)", "install the driver, or set DEVICE=cpu")


class OrtSession:
    """An opened model; several threads may run it, each on its own thread."""

    runtime = "onnxruntime"

    def __init__(self, session: Any, input_name: str, outputs: Sequence[str], precision: str) -> None:
        self._session = session
        self._input = input_name
        self._outputs = list(outputs)
        self.precision = precision
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    @property
    def device(self) -> str:
        return DEVICE_OF_PROVIDER.get(self.providers[0], "cpu")

    @property
    def on_calling_thread(self) -> bool:
        return self.device == "cpu"

    def run(self, values: Values) -> list[Values]:
        # No I/O binding on the CPU: a contiguous input is read in place, and the outputs are a few kB.
        result: list[Values] = self._session.run(self._outputs, {self._input: values})
        return result


class DeviceSession(OrtSession):
    """A model on a GPU: input and outputs live there, at fixed addresses, so that a CUDA graph can be replayed.

    A tensor that lies on the device is copied there. One run at a time, and all on one thread: the addresses are
    shared, and ONNX Runtime captures a graph of its own for each thread that runs. Not verified on hardware (tested
    with `memory="cpu"`).
    """

    def __init__(
        self,
        session: Any,
        input_name: str,
        outputs: Sequence[str],
        precision: str,
        values: Values,
        memory: str = "cuda",
    ) -> None:
        super().__init__(session, input_name, outputs, precision)
        self._thread = ThreadPoolExecutor(1, "firsttouch-gpu")
        self._memory = memory
        self._on_device = onnxruntime.OrtValue.ortvalue_from_numpy(values, memory, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(input_name, self._on_device)
        asked = [output for output in session.get_outputs() if output.name in self._outputs]
        fixed = [output for output in asked if is_fixed(output)]
        for output in fixed:
            element_type = ELEMENT_TYPES[output.type]
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, element_type, memory, 0)
            self._binding.bind_ortvalue_output(output.name, value)
        self._anew = [output.name for output in asked if not is_fixed(output)]
        """Outputs that get memory in each run, since their size comes from the picture."""
        self._bound = [*(output.name for output in fixed), *self._anew]
        self.runtime = "tensorrt" if self.providers[0].startswith("Tensorrt") else "onnxruntime"

    def run(self, values: Values) -> list[Values]:
        return self._thread.submit(self._run, values).result()

    def _run(self, values: Values) -> list[Values]:
        with _memory_errors():
            if isinstance(values, np.ndarray):
                self._on_device.update_inplace(values)
            else:
                copy_into(self._on_device, values)
            for name in self._anew:  # bound once, it would keep the first run's size
                self._binding.bind_output(name, self._memory)
            self._session.run_with_iobinding(self._binding)
            found = dict(zip(self._bound, self._binding.copy_outputs_to_cpu(), strict=True))
        return [found[name] for name in self._outputs]


def is_fixed(output: Any) -> bool:
    """Whether an output's size and type are known before the picture is, so that it can have an address of its own."""
    return output.type in ELEMENT_TYPES and all(isinstance(size, int) and size > 0 for size in output.shape)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """ONNX Runtime's error for it as ours, which halves the batch."""
    try:
        yield
    except Exception as exc:  # the pybind exceptions have no common base but Exception
        if is_out_of_memory(exc):
            raise OutOfDeviceMemory("the device has not enough memory for this batch") from exc
        raise


def is_out_of_memory(exc: Exception) -> bool:
    """ONNX Runtime has no type of its own for it."""
    text = str(exc).lower()
    return "out of memory" in text or "failed to allocate memory" in text or "cudaerrormemoryallocation" in text


@dataclass(frozen=True, slots=True)
class OrtCpu:
    """The calling thread alone: the pipeline has one worker per core."""

    name: str = "onnxruntime"
    device: str = "cpu"

    def problem(self, precision: str) -> Problem | None:
        if precision == "bf16" and platform.machine() not in ("aarch64", "arm64"):
            return Problem("ONNX Runtime has bf16 on ARM only", "set RUNTIME=openvino, or precision fp32 or int8")
        if precision == "fp16":
            return Problem("ONNX Runtime has no fast fp16 on the CPU", "use fp32, int8 or bf16")
        return None

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        options = session_options(model, shape)
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        if precision == "bf16":
            options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
        session = open_session(model, outputs, options, ["CPUExecutionProvider"])
        return OrtSession(session, model.facts.inputs[0].name, outputs, precision)


@dataclass(frozen=True, slots=True)
class OrtCoreMl:
    """Apple's GPU and neural engine. Not verified on hardware."""

    name: str = "onnxruntime"
    device: str = "mps"

    def problem(self, precision: str) -> Problem | None:
        if "CoreMLExecutionProvider" not in onnxruntime.get_available_providers():
            return Problem("this build of ONNX Runtime has no Core ML", "DEVICE=mps works on macOS only")
        return None

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        providers = ["CoreMLExecutionProvider", "CPUExecutionProvider"]
        session = open_session(model, outputs, session_options(model, shape), providers)
        return _checked(OrtSession(session, model.facts.inputs[0].name, outputs, precision), self.device)


@dataclass(frozen=True, slots=True)
class OrtCuda:
    """CUDA with everything on the device and a CUDA graph for the fixed shape. Not verified on hardware."""

    name: str = "onnxruntime"
    device: str = "cuda"
    cuda_graph: bool = True

    def problem(self, precision: str) -> Problem | None:
        return _no_gpu("CUDAExecutionProvider") or _not_on_gpu(precision)

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        def providers(graph: str) -> list[Any]:
            options = {"enable_cuda_graph": graph, "cudnn_conv_use_max_workspace": "1"}
            return [("CUDAExecutionProvider", options)]

        return _open_on_gpu(model, outputs, shape, precision, providers, cuda_graph=self.cuda_graph)


@dataclass(frozen=True, slots=True)
class OrtTensorRt:
    """TensorRT FP16 with engine and timing cache in `cache_dir`. Not verified on hardware.

    Building an engine takes minutes, so only `build=True` does it; otherwise one must be there. It is built beside its
    place and moved there whole: who is killed on the way leaves nothing that looks like an engine.
    """

    cache_dir: Path
    build: bool = False
    name: str = "tensorrt"
    device: str = "cuda"

    def problem(self, precision: str) -> Problem | None:
        return _no_gpu("TensorrtExecutionProvider") or _not_on_gpu(precision)

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        """Raises RuntimeUnavailable when no engine is built, or TensorRT takes no part of the model."""
        folder = engine_folder(self.cache_dir, model, outputs, shape, precision)
        if _has_engine(folder):
            return self._open(folder, model, outputs, shape, precision)
        if not self.build:
            raise RuntimeUnavailable(
                f"no TensorRT engine of {model.path.name} for {shape} is built yet",
                hint=f"firsttouch engine build --batch {shape[0]}",
            )
        part = folder.with_name(folder.name + ".part")
        with _alone(part):
            if _has_engine(folder):  # somebody else was first
                return self._open(folder, model, outputs, shape, precision)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            session = self._open(part, model, outputs, shape, precision)
            if not _has_engine(part):
                raise RuntimeUnavailable(f"TensorRT took no part of {model.path.name}")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        return session

    def _open(
        self, folder: Path, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str
    ) -> Session:
        def providers(graph: str) -> list[Any]:
            options = {
                "trt_fp16_enable": "1" if precision == "fp16" else "0",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(folder),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(self.cache_dir / "engines"),
                "trt_cuda_graph_enable": graph,
            }
            return [("TensorrtExecutionProvider", options), "CUDAExecutionProvider"]

        return _open_on_gpu(model, outputs, shape, precision, providers)

    def has_engine(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> bool:
        """Whether opening will find a built engine; building one takes minutes."""
        return _has_engine(engine_folder(self.cache_dir, model, outputs, shape, precision))

    def build_apart(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> None:
        """Build in a process of its own (see `build`). Raises RuntimeUnavailable with the reason."""
        job = {
            "cache_dir": str(self.cache_dir),
            "model": str(model.path),
            "outputs": outputs,
            "shape": shape,
            "precision": precision,
        }
        command = [sys.executable, "-m", "firsttouch.detect.build", json.dumps(job)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=BUILD_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise RuntimeUnavailable(f"no TensorRT engine was built: {exc}") from exc
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise RuntimeUnavailable(f"no TensorRT engine was built: {last}", hint="firsttouch engine build")


def _has_engine(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.engine"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time builds this one; the system lets go of the lock when its holder dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class PluginSession(OrtSession):
    """A model on a plug-in provider, one run at a time: numpy arrays in and out, which ONNX Runtime copies itself.

    Not verified on hardware.
    """

    runtime = "tensorrt-rtx"

    def __init__(self, session: Any, input_name: str, outputs: Sequence[str], precision: str) -> None:
        super().__init__(session, input_name, outputs, precision)
        self._lock = threading.Lock()

    def run(self, values: Values) -> list[Values]:
        with self._lock, _memory_errors():
            return super().run(values)


@dataclass(frozen=True, slots=True)
class OrtTensorRtRtx:
    """TensorRT for RTX, a plug-in of the plain ONNX Runtime that compiles in seconds. Not verified on hardware.

    Strongly typed: FP16 is what an `.fp16.onnx` file says. What it compiles is kept in `cache_dir`, for this model,
    shape, GPU and these versions only.
    """

    cache_dir: Path
    name: str = "tensorrt-rtx"
    device: str = "cuda"

    def problem(self, precision: str) -> Problem | None:
        if not _nvidia_smi("name"):
            return _NO_DRIVER
        if importlib.util.find_spec(RTX_PACKAGE) is None:
            return Problem("the TensorRT-RTX plug-in is not installed", "pip install 'firsttouch[tensorrt-rtx]'")
        if not hasattr(onnxruntime, "register_execution_provider_library"):
            return Problem(f"ONNX Runtime {onnxruntime.__version__} takes no plug-ins", "install onnxruntime>=1.24")
        return _not_on_gpu(precision)

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        """Raises RuntimeUnavailable when the plug-in does not load or finds no GPU, and as `open_session`."""
        devices = _plugin_devices()
        folder = engine_folder(self.cache_dir, model, outputs, shape, f"rtx {precision}")
        folder.mkdir(parents=True, exist_ok=True)
        options = session_options(model, shape)
        options.add_provider_for_devices(devices[:1], {"nv_runtime_cache_path": str(folder)})
        session = open_session(model, outputs, options, None)
        return _checked(PluginSession(session, model.facts.inputs[0].name, outputs, precision), self.device)


def _plugin_devices() -> list[Any]:
    """The GPUs that the plug-in drives."""
    try:
        name = _register_plugin()
    except Exception as exc:  # the pybind exceptions have no common base but Exception
        first_line = str(exc).strip().splitlines()[0]
        raise RuntimeUnavailable(
            f"the TensorRT-RTX plug-in does not load: {first_line}",
            hint="it needs an NVIDIA driver for CUDA 13, and onnxruntime 1.24 or later",
        ) from exc
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise RuntimeUnavailable(
            "the TensorRT-RTX plug-in finds no GPU that it drives",
            hint="it drives RTX GPUs from Ampere on; set RUNTIME=tensorrt or onnxruntime for others",
        )
    return devices


@functools.cache
def _register_plugin() -> str:
    """Registered once a process; the provider's name."""
    plugin = importlib.import_module(RTX_PACKAGE)
    name = str(plugin.get_ep_name())
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    return name


def engine_folder(
    cache_dir: Path,
    model: ModelFile,
    outputs: tuple[str, ...],
    shape: tuple[int, ...],
    precision: str,
    facts: Callable[[], dict[str, str]] | None = None,
) -> Path:
    """Where the engine of this model lies. An engine works only for the very model, outputs, shape, GPU, driver and
    libraries it was built with: all of them are in the name, so a stale one is never found."""
    key = {
        "model": model.sha256,
        "outputs": outputs,
        "shape": shape,
        "precision": precision,
        **(facts or gpu_facts)(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir / "engines" / f"{model.path.stem}-{digest}"


def gpu_facts() -> dict[str, str]:
    """GPU, driver and library versions, as far as they can be known; empty words for what is not there."""
    return {
        "gpu": _nvidia_smi("name,compute_cap"),
        "driver": _nvidia_smi("driver_version"),
        "onnxruntime": onnxruntime.__version__,
        "tensorrt": _version("tensorrt-cu13") or _version("tensorrt-cu12") or _version("tensorrt"),
        "tensorrt-rtx": _version("onnxruntime-ep-nv-tensorrt-rtx-cu13"),
        "cudnn": _version("nvidia-cudnn-cu13") or _version("nvidia-cudnn-cu12"),
    }


def _nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _no_gpu(provider: str) -> Problem | None:
    """Why there is no GPU to be had, the plainest reason first."""
    if not _nvidia_smi("name"):
        return _NO_DRIVER
    if provider not in onnxruntime.get_available_providers():
        return Problem(f"ONNX Runtime {onnxruntime.__version__} was built without {provider}", GPU_WHEEL_REMEDY)
    return None


def _not_on_gpu(precision: str) -> Problem | None:
    if precision in ("fp32", "fp16"):
        return None
    return Problem(f"{precision} is not run on the GPU", "use fp16 or fp32 there")


def _open_on_gpu(
    model: ModelFile,
    outputs: tuple[str, ...],
    shape: tuple[int, ...],
    precision: str,
    providers: Callable[[str], list[Any]],
    *,
    cuda_graph: bool = True,
) -> Session:
    """Opened and tried there, with a CUDA graph (`providers("1")`) where the model can be captured as one.

    It cannot where ONNX Runtime leaves a part to the CPU, or the size of an output comes from the picture. Raises
    RuntimeUnavailable, and OutOfDeviceMemory.
    """
    if cuda_graph:
        try:
            return _tried_on_gpu(model, outputs, shape, precision, providers("1"), cuda_graph=True)
        except (OutOfDeviceMemory, _FellBack):
            raise
        except RuntimeUnavailable as exc:
            log.info("no CUDA graph of %s: %s", model.path.name, exc)
    return _tried_on_gpu(model, outputs, shape, precision, providers("0"), cuda_graph=False)


def _tried_on_gpu(
    model: ModelFile,
    outputs: tuple[str, ...],
    shape: tuple[int, ...],
    precision: str,
    providers: list[Any],
    *,
    cuda_graph: bool,
) -> Session:
    load_libraries(tensorrt="TensorrtExecutionProvider" in providers[0])
    try:
        session = open_session(model, outputs, session_options(model, shape), providers)
    except ModelMismatch as exc:
        raise RuntimeUnavailable(str(exc), hint=_LIBRARIES_REMEDY) from exc
    input_name = model.facts.inputs[0].name
    _checked(OrtSession(session, input_name, outputs, precision), "cuda")
    if cuda_graph and not all(is_fixed(output) for output in session.get_outputs()):
        raise RuntimeUnavailable("the size of an output comes from the picture")
    values = np.zeros(shape, model.facts.inputs[0].element_type)
    try:
        with _memory_errors():
            on_device = DeviceSession(session, input_name, outputs, precision, values)
        for _ in range(2):  # the first captures the graph
            on_device.run(values)
    except OutOfDeviceMemory:
        raise
    except Exception as exc:  # whatever a provider throws where it cannot run what it took
        first_line = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise RuntimeUnavailable(f"{model.path.name} does not run on the GPU: {first_line}") from exc
    return on_device


class _FellBack(RuntimeUnavailable):
    """ONNX Runtime runs the model elsewhere: a library of the GPU does not load, or there is no GPU."""


def _checked(session: OrtSession, device: str) -> Session:
    """The session, if it really runs where it was sent: ONNX Runtime falls back without a word."""
    if session.device != device:
        raise _FellBack(f"ONNX Runtime fell back to {session.providers[0]}", hint=_LIBRARIES_REMEDY)
    return session


@functools.cache
def load_libraries(*, tensorrt: bool = False) -> None:
    """CUDA and cuDNN, and TensorRT, from the wheels that they came in, where no loader looks for them. What is not
    there is left to the system's own paths, and whether it works to the session that is opened next."""
    said = io.StringIO()
    with redirect_stdout(said):  # ONNX Runtime prints, and our standard output is an answer
        try:
            onnxruntime.preload_dlls()
            if tensorrt and importlib.util.find_spec("tensorrt_libs") is not None:
                importlib.import_module("tensorrt_libs")
        except Exception as exc:  # of a version without it, or a library that does not load
            log.debug("libraries of the GPU: %s", exc)
    for line in said.getvalue().splitlines():
        log.debug("libraries of the GPU: %s", line)


def session_options(model: ModelFile, shape: tuple[int, ...]) -> Any:
    """Options that pin every named dimension of the input, so that memory is planned once, when opening."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for declared, wanted in zip(model.facts.inputs[0].shape, shape, strict=True):
        if isinstance(declared, str) and declared:
            options.add_free_dimension_override_by_name(declared, wanted)
    return options


def open_session(model: ModelFile, outputs: tuple[str, ...], options: Any, providers: list[Any] | None) -> Any:
    """`providers` is None where the options name a plug-in's devices. Raises ModelMismatch, OutOfDeviceMemory."""
    try:
        with _memory_errors():
            # Without its own fall-back, which prints to standard output and says nothing else.
            return onnxruntime.InferenceSession(model.cut_to(outputs), options, providers=providers, enable_fallback=0)
    except OutOfDeviceMemory:
        raise
    except Exception as exc:  # the pybind exceptions have no common base but Exception
        first_line = str(exc).strip().splitlines()[0]
        raise ModelMismatch(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {model.path.name}: {first_line}",
            hint="check the file with onnx.checker, and its opset and operators with the runtime's version",
        ) from exc
