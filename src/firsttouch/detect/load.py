"""From a wish (files, device, runtime, precision) to a detector that works here."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from firsttouch.detect.detections import Detector
from firsttouch.detect.native import ALL_OUTPUTS, NativeDetector, native_facts
from firsttouch.detect.planes import Canvas
from firsttouch.detect.session import ModelFile, OpenSession, milliseconds_per_run

BUNDLED_MODEL = Path(__file__).parent.parent / "weights" / "firsttouch.onnx"
PRECISIONS = ("auto", "fp32", "int8", "bf16")

_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


def load_detector(
    *,
    model: Path | None = None,
    img_size: int | None = None,
    confidence: float = 0.25,
    max_detections: int = 100,
    precision: str = "auto",
) -> Detector:
    """The detector for these wishes.

    `model` is an ONNX file (the bundled one when None), `img_size` the input's width in planes (half the
    canvas in pixels), `precision` "auto" (the fastest that works here, by a short test), "fp32", "int8" or
    "bf16". Raises ModelNotFound, ModelMismatch or RuntimeUnavailable.
    """
    path = model or BUNDLED_MODEL
    chosen, found = _choose_precision(path, precision, img_size)
    return NativeDetector(
        ModelFile.read(chosen),
        _cpu_opener(found),
        img_size=img_size,
        confidence=confidence,
        max_detections=max_detections,
    )


def _cpu_opener(precision: str) -> OpenSession:
    from firsttouch.detect import ort

    return functools.partial(ort.open_cpu, precision=precision)


@functools.cache
def _choose_precision(path: Path, precision: str, img_size: int | None) -> tuple[Path, str]:
    """The file and precision to run, tried once per process."""
    quantised = path.with_suffix(".int8.onnx")
    if precision == "int8":
        return quantised, "int8"
    if precision == "fp32" or not (quantised.exists() and has_int8_instructions()):
        return path, "fp32"
    times = {}
    for candidate, name in ((path, "fp32"), (quantised, "int8")):
        file = ModelFile.read(candidate)
        shape = (1, *Canvas.of_size(img_size or native_facts(file)["img_size"]).shape)
        session = _cpu_opener(name)(file, ALL_OUTPUTS, shape)
        times[candidate, name] = milliseconds_per_run(session, np.zeros(shape, np.uint8))
    return min(times, key=times.__getitem__)


def has_int8_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether int8 can be faster here: without VNNI (or ARM's dot product) it is slower than fp32.

    True when the system does not say; the self-test decides then.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return True
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return not _INT8_FLAGS.isdisjoint(flags.split())
