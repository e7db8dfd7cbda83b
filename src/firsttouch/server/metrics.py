"""What /metrics shows. One registry for each app, so that tests and several apps do not share counts."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from firsttouch.errors import FirsttouchError
from firsttouch.pipeline import Analysis

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 1.75, 2.0, 2.05, 2.5, 3.0, 5.0, 10.0, 30.0)
BYTES = (1e4, 1e5, 5e5, 1e6, 2e6, 4e6, 8e6, 1.6e7, 3.2e7, 1e8)
STAGES = ("connect", "index", "fetch", "decode", "detect", "carry", "first_frame", "total")


class Metrics:
    """Counters, gauges and histograms, all beginning with `firsttouch_`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("firsttouch_requests", "Requests answered", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "firsttouch_request_seconds",
            "From arrival to the last byte",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.late_seconds = Histogram(
            "firsttouch_late_seconds",
            "How long after its deadline a challenge was answered",
            buckets=(0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
            registry=registry,
        )
        self.refusals = Counter(
            "firsttouch_refusals", "Requests that were not answered, by reason", ["reason"], registry=registry
        )
        self.stage_seconds = Histogram(
            "firsttouch_stage_seconds",
            "Seconds of each stage",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.clip_bytes = Histogram(
            "firsttouch_clip_bytes", "Bytes fetched for a clip", buckets=BYTES, registry=registry
        )
        self.answer_bytes = Counter("firsttouch_answer_bytes", "Bytes of answers sent", registry=registry)
        self.frames = Counter("firsttouch_frames", "Frames, by what was done", ["how"], registry=registry)
        self.answers = Counter("firsttouch_answers", "Answers, by what ended them", ["stopped_by"], registry=registry)
        self.runtime = Gauge("firsttouch_runtime", "What really runs the detector", ["runtime"], registry=registry)
        for how in ("decoded", "detected", "carried"):
            self.frames.labels(how)

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def analyzed(self, analysis: Analysis) -> None:
        """Count one finished computation."""
        for stage in STAGES:
            self.stage_seconds.labels(stage).observe(analysis.stage_seconds.get(stage, 0.0))
        self.clip_bytes.observe(analysis.bytes_fetched)
        detected = sum(frame.how == "detected" for frame in analysis.frames)
        self.frames.labels("decoded").inc(analysis.frames_decoded)
        self.frames.labels("detected").inc(detected)
        self.frames.labels("carried").inc(len(analysis.frames) - detected)
        self.answers.labels(analysis.stopped_by).inc()
        self.runtime.clear()  # an engine may have taken over
        self.runtime.labels(analysis.runtime).set(1)

    def refused(self, error: FirsttouchError) -> None:
        self.refusals.labels(error.name).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
