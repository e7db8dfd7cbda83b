"""Which runtime, file and precision really run a model here: by what works, and by a short self-test of speed."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firsttouch.detect.openvino import OpenVino
from firsttouch.detect.ort import OrtCoreMl, OrtCpu, OrtCuda, OrtTensorRt, OrtTensorRtRtx
from firsttouch.detect.pytorch import Torch
from firsttouch.detect.session import (
    ModelFile,
    Problem,
    Runtime,
    Session,
    milliseconds_per_run,
)
from firsttouch.detect.upgrade import EngineWhenBuilt, Layout, UpgradingSession
from firsttouch.detect.wish import Wish
from firsttouch.errors import ModelMismatch, ModelNotFound, RuntimeUnavailable

log = logging.getLogger(__name__)

_MAKES_HALF = ("tensorrt", "torch")
"""Runtimes that make FP16 of the fp32 file themselves."""
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


@dataclass(frozen=True, slots=True)
class Choice:
    """What will run: `milliseconds` a frame of the self-test, None when there was nothing to choose.

    The session of the self-test (for `tested_for`) is kept: opening it again would cost as much as the test.
    """

    runtime: Runtime
    file: Path
    precision: str
    milliseconds: float | None = None
    tested: Session | None = None
    tested_for: tuple[tuple[str, ...], tuple[int, ...]] | None = None

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...]) -> Session:
        """Opened to be used: an engine that is not built yet begins to be."""
        if self.tested is not None and self.tested_for == (outputs, shape):
            session = self.tested
        else:
            session = self.runtime.open(model, outputs, shape, self.precision)
        if isinstance(session, UpgradingSession):
            session.begin()
        return session


@functools.cache
def choose(path: Path, wish: Wish, layout: Layout) -> Choice:
    """The choice for this process: tried, tested and, where a wish cannot be met, warned about once."""
    return choose_among(serving_at_once(runtimes_for(wish), layout), path, wish, layout)


def serving_at_once(runtimes: Sequence[Runtime], layout: Layout) -> list[Runtime]:
    """The same, with TensorRT, where it can be had, in the place of CUDA, which serves until an engine is built."""
    for runtime in runtimes:
        if isinstance(runtime, OrtTensorRt) and runtime.problem("fp16") is None:
            return [EngineWhenBuilt(runtime, OrtCuda(), layout), *(r for r in runtimes if r.device != "cuda")]
    return list(runtimes)


def runtimes_for(wish: Wish) -> list[Runtime]:
    """The ways to run a model that the wish allows, best first."""
    everything: list[Runtime] = [OrtCuda(), OrtCpu()]
    if wish.tensorrt or wish.runtime == "tensorrt":
        everything.insert(0, OrtTensorRt(wish.cache_dir.expanduser()))
    if wish.runtime == "openvino":
        everything.append(OpenVino())
    if wish.runtime == "tensorrt-rtx":
        everything.append(OrtTensorRtRtx(wish.cache_dir.expanduser()))
    if wish.runtime == "torch":
        everything += [Torch("cuda"), Torch("cpu")]
    if wish.device == "mps" or sys.platform == "darwin":
        everything.insert(0, OrtCoreMl())
    return [
        runtime
        for runtime in everything
        if wish.device in ("auto", runtime.device) and wish.runtime in ("auto", runtime.name)
    ]


def choose_among(
    runtimes: Sequence[Runtime], path: Path, wish: Wish, layout: Layout, fallback: Runtime | None = None
) -> Choice:
    """The fastest of what works. When nothing that was wished for does: one warning, and the plain CPU.

    Raises ModelNotFound when the file, or the one of the precision asked for, is not there.
    """
    if not path.exists():
        raise ModelNotFound(f"no model {path}")
    problems: list[tuple[Runtime, Problem]] = []
    working: list[Choice] = []
    for runtime in runtimes:
        for file, precision in _files(path, runtime, wish.precision):
            problem = runtime.problem(precision)
            if problem is None:
                working.append(Choice(runtime, file, precision))
            else:
                problems.append((runtime, problem))
    chosen = _fastest(working, layout, problems)
    if chosen is None:
        chosen = _on_plain_cpu(fallback or OrtCpu(), path, layout)
        _warn(wish, problems, chosen)
    elif wish.tensorrt and chosen.runtime.name != "tensorrt":
        _warn(wish, [p for p in problems if p[0].name == "tensorrt"], chosen)
    return chosen


def _on_plain_cpu(cpu: Runtime, path: Path, layout: Layout) -> Choice:
    """The fastest precision there: the guide's DEVICE=cuda on a machine without a GPU need not be slower than auto."""
    choices = [Choice(cpu, file, precision) for file, precision in _files(path, cpu, "auto")]
    return _fastest(choices, layout, []) or Choice(cpu, path, "fp32")


def _files(path: Path, runtime: Runtime, precision: str) -> list[tuple[Path, str]]:
    """Which file to run at which precision; an operator's own model has only the one."""
    quantised, half = path.with_suffix(".int8.onnx"), path.with_suffix(".fp16.onnx")
    if precision == "int8":
        if not quantised.exists():
            raise ModelNotFound(f"no model {quantised}", hint="int8 needs a quantised file beside the model")
        return [(quantised, "int8")]
    if precision != "auto":
        return [
            (half if precision == "fp16" and runtime.name not in _MAKES_HALF and half.exists() else path, precision)
        ]
    if runtime.device == "cuda":
        if runtime.name in _MAKES_HALF:
            return [(path, "fp16")]
        return [(half, "fp16")] if half.exists() else [(path, "fp32")]
    if runtime.device == "cpu" and quantised.exists() and has_int8_instructions():
        return [(path, "fp32"), (quantised, "int8")]
    return [(path, "fp32")]


def _fastest(working: Sequence[Choice], layout: Layout, problems: list[tuple[Runtime, Problem]]) -> Choice | None:
    """Each opened and timed on zeros; what fails to open becomes a problem. One alone is not timed on the CPU."""
    if len(working) == 1 and working[0].runtime.device == "cpu":
        return working[0]
    timed = []
    for choice in working:
        try:
            timed.append(_timed(choice, layout))
        except (RuntimeUnavailable, ModelMismatch) as exc:
            if choice.runtime.device == "cpu" and len(working) == 1:
                raise
            problems.append((choice.runtime, Problem(str(exc), exc.hint)))
    for choice in timed:
        assert choice.tested is not None
        log.info("%s %s: %.1f ms", choice.tested.runtime, choice.tested.precision, choice.milliseconds)
    return min(timed, key=lambda choice: choice.milliseconds or 0.0, default=None)


def _timed(choice: Choice, layout: Layout) -> Choice:
    model = ModelFile.read(choice.file)
    outputs, shape = layout(model)
    session = choice.runtime.open(model, outputs, shape, choice.precision)
    values = np.zeros(shape, model.facts.inputs[0].element_type)
    milliseconds = milliseconds_per_run(session, values, runs=2)
    return Choice(choice.runtime, choice.file, choice.precision, milliseconds, session, (outputs, shape))


def _warn(wish: Wish, problems: Sequence[tuple[Runtime, Problem]], chosen: Choice) -> None:
    """One clear line: what was asked for, why it cannot be, what runs instead, what would help."""
    asked = [f"DEVICE={wish.device}"] if wish.device != "auto" else []
    asked += [f"RUNTIME={wish.runtime}"] if wish.runtime != "auto" else []
    asked += ["TENSORRT=1"] if wish.tensorrt else []
    asked += [f"precision {wish.precision}"] if wish.precision != "auto" else []
    runtime, problem = problems[0] if problems else (None, Problem("nothing fits all of these", "ask for less"))
    log.warning(
        "%s cannot be met: %s. Running %s %s on %s instead. %s: %s",
        " ".join(asked) or "the model",
        problem.reason,
        chosen.runtime.name,
        chosen.precision,
        chosen.runtime.device,
        "To change that" if runtime is None else f"To use {runtime.name} on {runtime.device}",
        problem.remedy,
    )


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
