"""What an operator may ask of the runtimes; importing it loads none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from firsttouch.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")
RUNTIMES = ("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch")
PRECISIONS = ("auto", "fp32", "int8", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for. `runtime="auto"` on the CPU is ONNX Runtime: OpenVINO may be a little faster
    once it runs, but opens in hundreds of milliseconds, so it wants to be asked for."""

    device: str = "auto"
    runtime: str = "auto"
    precision: str = "auto"
    tensorrt: bool = False
    cache_dir: Path = Path("~/.cache/firsttouch")

    def __post_init__(self) -> None:
        named = (("device", DEVICES), ("runtime", RUNTIMES), ("precision", PRECISIONS))
        for name, allowed in named:
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} is {getattr(self, name)!r}", hint=f"one of {', '.join(allowed)}")
