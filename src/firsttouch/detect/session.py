"""What a runtime gives the detectors: a model file opened for one input shape, run on one array."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from firsttouch.clock import THREAD_CLOCK, Stopwatch
from firsttouch.detect.graph import GraphFacts, keep_outputs, read_facts
from firsttouch.errors import ModelMismatch, ModelNotFound, RuntimeUnavailable

Values = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """An ONNX file in memory, with what it says about itself."""

    path: Path
    data: bytes = field(repr=False)
    facts: GraphFacts

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Raises ModelNotFound, and ModelMismatch for a file that is no ONNX model with one input."""
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise ModelNotFound(f"cannot read the model {path}: {exc.strerror or exc}") from exc
        facts = read_facts(data)
        if len(facts.inputs) != 1 or not facts.outputs:
            raise ModelMismatch(
                f"{path.name} has {len(facts.inputs)} inputs and {len(facts.outputs)} outputs",
                hint="give an ONNX file that takes one picture",
            )
        return cls(path, data, facts)

    def cut_to(self, outputs: tuple[str, ...]) -> bytes:
        """The bytes of a model with only these outputs, and only what they need."""
        everything = {t.name for t in self.facts.outputs}
        return self.data if set(outputs) == everything else keep_outputs(self.data, outputs)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Session(Protocol):
    """One model, one input shape, some outputs. Several threads may call `run` at the same time."""

    @property
    def runtime(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def on_calling_thread(self) -> bool:
        """Whether the thread that calls `run` does all the work."""

    def run(self, values: Values) -> list[Values]:
        """The outputs, in the order they were asked for, as arrays the caller owns.

        Sessions on CUDA take a tensor of that device too, which is complete (see `surfaces`).
        """


class OpenSession(Protocol):
    """A chosen runtime: opens a model for `outputs` in the order wanted, and an input of `shape`."""

    def __call__(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...]) -> Session: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a runtime cannot be used here, and what would help."""

    reason: str
    remedy: str


class Runtime(Protocol):
    """One way to run a model. `problem` is asked before `open`, and must be cheap."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    def problem(self, precision: str) -> Problem | None: ...

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        """Raises ModelMismatch, or RuntimeUnavailable when it would run elsewhere than on `device`."""


class OutOfDeviceMemory(RuntimeUnavailable):
    """The device has too little memory for the batch; a smaller one may fit."""


def milliseconds_per_run(session: Session, values: Values, runs: int = 3) -> float:
    """The best of a few runs, after one to warm up: the slower ones measure somebody else's load.

    Where the calling thread does the work, its own computing time is taken, which no other load disturbs.
    """
    clock = THREAD_CLOCK if session.on_calling_thread else None
    session.run(values)
    times = []
    for _ in range(runs):
        watch = Stopwatch(clock) if clock is not None else Stopwatch()
        session.run(values)
        times.append(watch.elapsed)
    return 1000 * min(times)
