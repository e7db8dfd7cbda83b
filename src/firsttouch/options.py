"""What a caller may choose of an analysis, and the detector that settings name."""

from __future__ import annotations

from dataclasses import dataclass

from .detect import Detector, Wish, load_detector
from .predict import Choice, Fetch
from .ranges import MEGABYTE
from .settings import Settings

WEAKER = 0.1
"""Detections this much below the threshold still continue a track that a surer one began (ByteTrack's idea)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose; the defaults are the `complete` profile."""

    stride: int | None = None
    """Frames between looked-at frames; None lets the plan choose."""
    every_frame: bool = False
    """Look at every frame and carry nothing: the reference of all comparisons."""
    fetch: Fetch = "sparse"
    fetch_mb: float = 4.0
    """Megabytes (1024 * 1024 bytes) of the start that `fetch="head"` takes."""
    tracking: bool = True
    confidence: float = 0.4
    """What a detection needs to begin a track; a little less continues one."""
    pitch: bool = True
    first_batch: int = 1
    workers: int = 2
    prefetch_frames: int = 24
    """Model inputs that may wait before decoding pauses: 1.4 MB each at the default size."""
    nvdec: bool = True
    """Decode on the GPU where the detector runs on one and the chip takes the clip."""
    max_bytes: int = 512 * 1024 * 1024
    start_budget_after_first_frame: bool = False
    """The guide's meaning of the deadline: it runs from the first looked-at frame."""
    auto_deadline: bool = False
    """Stop when another second costs more score than it brings, by `tune`'s model; the deadline is then the latest."""

    @classmethod
    def of(cls, settings: Settings, *, every_frame: bool = False) -> Options:
        """What these settings ask of the pipeline."""
        return cls(
            stride=settings.stride,
            every_frame=every_frame or settings.stride == 1,
            fetch=settings.fetch_mode,
            fetch_mb=settings.partial_download_mb,
            tracking=not settings.disable_tracking,
            confidence=settings.conf_threshold,
            pitch=not settings.skip_pitch,
            first_batch=settings.ramp_up_first_batch if settings.ramp_up else settings.batch_size,
            prefetch_frames=settings.prefetch_frames,
            nvdec=settings.use_nvdec,
            max_bytes=settings.max_clip_bytes,
            start_budget_after_first_frame=settings.start_budget_after_first_frame,
            auto_deadline=settings.deadline_is_auto,
        )

    @property
    def sure(self) -> float:
        """What a detection needs to continue a track."""
        return _weaker(self.confidence)

    @property
    def choice(self) -> Choice:
        """What `tune`'s model wants to know."""
        stride = 1 if self.every_frame else self.stride
        return Choice(self.fetch, self.fetch_mb * MEGABYTE / 1e6, stride, pitch=self.pitch)


def _weaker(confidence: float) -> float:
    return max(0.01, confidence - WEAKER)


def wish_for(settings: Settings) -> Wish:
    """On what these settings want the models run."""
    return Wish(settings.device, settings.runtime, settings.precision, settings.tensorrt, settings.cache_dir)


def detector_for(settings: Settings) -> Detector:
    """The detector these settings name, loaded and ready."""
    return load_detector(
        player=settings.model_player,
        ball=settings.model_ball,
        pitch=settings.model_pitch,
        wish=wish_for(settings),
        img_size=settings.input_width,
        batch_size=settings.batch_size,
        confidence=_weaker(settings.conf_threshold),
        max_detections=settings.max_detections,
    )
