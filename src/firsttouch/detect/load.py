"""From a wish (files, device, runtime, precision) to a detector that works here.

ONNX Runtime is imported when the first model is loaded: what only reads detections does without it.
"""

from __future__ import annotations

from pathlib import Path

from firsttouch.detect.detections import Detector
from firsttouch.detect.native import NativeDetector, NativeLayout, is_native
from firsttouch.detect.session import ModelFile
from firsttouch.detect.wish import Wish
from firsttouch.detect.yolo import CombinedDetector, Role, YoloLayout, YoloModel
from firsttouch.errors import ModelMismatch

BUNDLED_MODEL = Path(__file__).parent.parent / "weights" / "firsttouch.onnx"

TAKES_TENSORS = ("onnxruntime", "tensorrt", "torch")
"""Runtimes whose sessions on CUDA take an input that lies there already."""


def load_detector(
    *,
    model: Path | None = None,
    player: Path | None = None,
    ball: Path | None = None,
    pitch: Path | None = None,
    wish: Wish | None = None,
    img_size: int | None = None,
    batch_size: int = 1,
    confidence: float = 0.25,
    max_detections: int = 100,
    device: str = "auto",
    precision: str = "auto",
) -> Detector:
    """The detector for these wishes.

    `model` is the one network to run: an ONNX file of our own (the bundled one when None) or of the YOLO family.
    `player`, `ball` and `pitch` name an operator's own models, for what they see; the rest stays with `model`.
    `img_size` is the input's width where the file leaves it open (half the canvas in pixels for ours).
    `batch_size` counts on a GPU only. `device` and `precision` are a short form of `wish`.
    Raises ModelNotFound, ModelMismatch, SettingsError; what cannot be met is warned about, and the CPU runs.
    """
    wish = wish or Wish(device=device, precision=precision)
    only = model is not None and not is_native(ModelFile.read(model))
    if player is not None and model is None and is_native(ModelFile.read(player)):
        model, player = player, None
    named: dict[Role, Path | None] = {"player": model if only else player, "ball": ball, "pitch": pitch}
    models = [_yolo(path, role, wish, img_size) for role, path in named.items() if path is not None]
    if not models:
        return _native(model or BUNDLED_MODEL, wish, img_size, batch_size, confidence, max_detections)
    own = None if only else model or (BUNDLED_MODEL if BUNDLED_MODEL.exists() else None)
    needed = player is None or pitch is None
    network = _native(own, wish, None, 1, confidence, max_detections) if own is not None and needed else None
    return CombinedDetector(models, network, confidence=confidence, max_detections=max_detections)


def _native(
    path: Path, wish: Wish, img_size: int | None, batch_size: int, confidence: float, max_detections: int
) -> NativeDetector:
    from firsttouch.detect.choose import choose

    choice = choose(path, wish, NativeLayout(img_size))
    on_gpu = choice.runtime.device == "cuda"
    return NativeDetector(
        ModelFile.read(choice.file),
        choice.open,
        img_size=img_size,
        batch_size=batch_size if on_gpu else 1,
        confidence=confidence,
        max_detections=max_detections,
        on_device=on_gpu and choice.runtime.name in TAKES_TENSORS,
    )


def _yolo(path: Path, role: Role, wish: Wish, img_size: int | None) -> YoloModel:
    file = ModelFile.read(path)
    if is_native(file):
        raise ModelMismatch(
            f"{path.name} is our own network, not a model for the role of {role}",
            hint="leave MODEL_PLAYER, MODEL_BALL and MODEL_PITCH empty to run it",
        )
    from firsttouch.detect.choose import choose

    choice = choose(path, wish, YoloLayout(role, img_size))
    return YoloModel(ModelFile.read(choice.file), role, choice.open, img_size)
