"""The answer to compare with: our own `--every-frame` run of a clip, computed once for each clip and model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from bench.match import CACHE
from firsttouch.answer import to_json
from firsttouch.detect import BUNDLED_MODEL
from firsttouch.labels import Labels, from_frames, read_answer
from firsttouch.pipeline import Analysis, Options, analyze_sync, detector_for
from firsttouch.settings import Settings


def every_frame(clip: Path, precision: Literal["auto", "fp32"] = "auto") -> Labels:
    """Boxes of every frame of `clip`, each looked at; kept in the cache folder."""
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(BUNDLED_MODEL.parent.glob("*.onnx"))))
    key = hashlib.sha256(clip.read_bytes() + weights.digest() + _code_digest() + precision.encode()).hexdigest()[:16]
    kept = CACHE / f"every-frame-{clip.stem}-{key}.json"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        detector = detector_for(Settings(device="cpu", precision=precision))  # the truth, on a machine with a GPU too
        analysis = analyze_sync(clip, options=Options(every_frame=True), detector=detector)
        assert [frame.frame_number for frame in analysis.frames] == list(range(analysis.frame_count))
        kept.write_bytes(to_json(analysis))
    return read_answer(kept)


def labels_of(analysis: Analysis, *, only_detected: bool = False) -> Labels:
    """An analysis as labels; `only_detected`: without what was carried, as the guide's mode answers."""
    frames = [frame for frame in analysis.frames if frame.how == "detected" or not only_detected]
    return from_frames(frames, width=analysis.width, height=analysis.height, frame_count=analysis.frame_count)


def _code_digest() -> bytes:
    """What else the reference depends on: how detections become identities and classes."""
    package = BUNDLED_MODEL.parent.parent
    files = [package / "track.py", *sorted((package / "detect").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()
