"""The guide's troubleshooting pages as a program: findings, each with evidence and the one thing to change.

Every check is a plain function from what was seen to findings; `examine` does the looking: it opens the source
twice on one pool of connections, reads its index, and answers it twice with the settings at hand.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np

from firsttouch.boxes import Box
from firsttouch.clock import Deadline
from firsttouch.detect import Detector
from firsttouch.detect.session import Problem
from firsttouch.detect.surfaces import surfaces_problem
from firsttouch.download import find_moov
from firsttouch.errors import FirsttouchError, IndexNotFound
from firsttouch.index import Index
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.ranges import MEGABYTE
from firsttouch.settings import Settings, shown
from firsttouch.size import read_whole_index, settle
from firsttouch.source import Connections, Facts, open_source

State = Literal["ok", "note", "wrong"]

NEEDED_COVERAGE = 0.7
"""Share of all frames that must carry objects (SCORING)."""
FEW_FRAMES = 20
"""The guide: the video ends too early with fewer."""
SLOW_SECONDS = 3.0
"""The guide: still taking more than this in all."""
LONG_GOP_SECONDS = 4.0
OPEN_SECONDS = 30.0
LATE_SECONDS = 0.05
BUSY_SHARE = 0.75

RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "torch",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, what shows it, and the one thing to change ("" when there is none)."""

    name: str
    state: State
    evidence: str
    change: str = ""


def examine(name: str | None, settings: Settings) -> list[Finding]:
    """All findings on these settings, this machine and, when given, this source."""
    findings = settings_findings(settings)
    try:
        detector = detector_for(settings)
    except FirsttouchError as error:
        return [*findings, Finding("networks", "wrong", f"{error.name}: {error}", error.hint)]
    findings += load_findings(os.getloadavg()[0], os.cpu_count() or 1)
    findings += machine_findings(settings, detector.device, detector.runtime, has_gpu(), installed_runtimes())
    findings += surface_findings(settings, detector)
    if name is not None:
        findings += asyncio.run(examine_source(name, settings, detector))
    return findings


def settings_findings(settings: Settings) -> list[Finding]:
    """Misspelt names and contradictions are wrong; what costs score is a note, with the number."""
    found = [
        Finding("settings", "note" if note.kind == "cost" else "wrong", note.message, note.change)
        for note in settings.notes()
    ]
    return found or [Finding("settings", "ok", "they fit together")]


def load_findings(load: float, cores: int) -> list[Finding]:
    """Is the machine free? Times measured on a busy one say little."""
    evidence = f"load {load:.1f} on {cores} cores"
    if load > 0.75 * cores:
        return [Finding("machine", "note", evidence, "stop what else runs here: every stage waits for it")]
    return [Finding("machine", "ok", evidence)]


def core_findings(share: float) -> list[Finding]:
    """Do the threads get the cores they run on? The load does not show a container's limit."""
    evidence = f"a thread got {share:.0%} of a core while it worked"
    if share < BUSY_SHARE:
        change = "stop what else runs here, or raise the container's CPU limit (docker run --cpus)"
        return [Finding("cores", "note", evidence, change)]
    return [Finding("cores", "ok", evidence)]


def has_gpu() -> bool:
    """An NVIDIA card with its driver."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def installed_runtimes() -> dict[str, str]:
    """Which of the packages that run networks are installed, with their versions."""
    found = {}
    for name in RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine_findings(
    settings: Settings, device: str, runtime: str, gpu: bool, packages: Mapping[str, str]
) -> list[Finding]:
    """Which runtime and device are used, and why not the better one."""
    have = ", ".join(f"{name} {version}" for name, version in packages.items())
    evidence = f"{runtime} on {device}; installed: {have}"
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        change = "pip uninstall onnxruntime: it hides onnxruntime-gpu, they are the same module"
        return [Finding("networks", "wrong", evidence, change)]
    if settings.device not in ("auto", device):
        why = "there is no such device here" if settings.device == "cuda" and not gpu else "it does not work here"
        change = f"set DEVICE={device}" if not gpu else "pip install onnxruntime-gpu in place of onnxruntime"
        return [Finding("networks", "wrong", f"DEVICE={settings.device}, but {why}: {evidence}", change)]
    if gpu and device == "cpu" and settings.device == "auto":
        change = "pip install onnxruntime-gpu in place of onnxruntime"
        return [Finding("networks", "wrong", f"there is a GPU that is not used: {evidence}", change)]
    if settings.tensorrt and runtime != "tensorrt":
        why = "it is built beside what runs, and takes over" if device == "cuda" else "it needs the GPU"
        return [
            Finding("networks", "note", f"no TensorRT engine runs yet, {why}: {evidence}", "firsttouch engine build")
        ]
    reason = "" if gpu or device != "cpu" else "; no GPU here"
    return [Finding("networks", "ok", evidence + reason)]


def surface_findings(settings: Settings, detector: Detector) -> list[Finding]:
    """Whether what NVDEC decodes stays on the GPU; nothing where no GPU is used."""
    if detector.device != "cuda" or not settings.use_nvdec:
        return []
    if detector.surfaces is not None:
        return [Finding("pictures", "ok", "what NVDEC decodes stays on the GPU, in sizes that allow it")]
    problem = surfaces_problem() or Problem("these networks take pictures from memory", "use the bundled network")
    return [Finding("pictures", "note", f"they are copied from the GPU: {problem.reason}", problem.remedy)]


async def examine_source(name: str, settings: Settings, detector: Detector) -> list[Finding]:
    """Connection, Range, index and a whole answer. The first error ends it, as a finding of its own."""
    findings: list[Finding] = []
    remote = "://" in name
    async with Connections() as connections:
        try:
            cold, index, moov = await _look(name, connections)
            if remote:
                warm, _, _ = await _look(name, connections)
                findings += connection_findings(name, settings, cold, warm)
            findings += index_findings(index, moov)
            rates = None
            # The first run warms the process up, and shows the rates to plan with, as in the service.
            for _ in range(2):
                analysis = await analyze(
                    name,
                    deadline=settings.deadline_seconds,
                    options=Options.of(settings),
                    detector=detector,
                    connections=connections,
                    rates=rates,
                )
                rates = analysis.rates
        except FirsttouchError as error:
            return [*findings, Finding("source", "wrong", f"{error.name}: {error}", error.hint)]
    if detector.device == "cpu" and analysis.rates is not None:
        findings += core_findings(analysis.rates.core_share)
    return [*findings, *answer_findings(analysis, settings, index, remote=remote)]


async def _look(name: str, connections: Connections) -> tuple[Facts, Index | None, Box | None]:
    """Facts, index and where moov is; None where the container or the origin gives no index."""
    source = open_source(name, connections=connections)
    try:
        facts, sparse = await source.open(deadline=Deadline.after(OPEN_SECONDS))
        try:
            index = await read_whole_index(source, sparse)
            if facts.accepts_ranges:
                await settle(source, sparse)
        except IndexNotFound:
            return facts, None, None
        return facts, index, find_moov(sparse)[0]
    finally:
        await source.close()


def connection_findings(name: str, settings: Settings, cold: Facts, warm: Facts) -> list[Finding]:
    """Does the server honour Range, and does a connection stay open?"""
    parts = urlsplit(name)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if cold.accepts_ranges:
        ranges = Finding("range", "ok", "a range was answered with 206 and the bytes asked for")
    else:
        evidence = "the server ignored the Range header and sent the file from its start"
        ranges = Finding("range", "wrong", evidence, "let the origin (or a CDN before it) serve ranges")
    took = f"{cold.connect_seconds * 1000:.0f} ms to connect, {warm.connect_seconds * 1000:.0f} ms the second time"
    if not warm.warm:
        change = "switch keep-alive on at the origin: each request pays for a new connection"
        return [ranges, Finding("connection", "wrong", f"the server closes it: {took}", change)]
    if origin not in settings.warm_origins:
        evidence = f"it stays open ({took}), but nothing keeps it so between challenges"
        return [ranges, Finding("connection", "note", evidence, f"set WARM_ORIGINS={origin}")]
    return [ranges, Finding("connection", "ok", f"{took}; {origin} is kept warm")]


def index_findings(index: Index | None, moov: Box | None) -> list[Finding]:
    """Where is moov, and how long are the GOPs?"""
    if index is None or moov is None:
        evidence = "this container keeps no index in one place: it can only be read from its start"
        return [Finding("index", "wrong", evidence, "remux: ffmpeg -i IN -c copy -movflags +faststart OUT.mp4")]
    place = "first" if moov.start < index.size_bytes / 2 else "last"
    evidence = f"moov is {place} (byte {moov.start} of {index.size_bytes}), {(moov.stop - moov.start) / 1024:.0f} KiB"
    found = [Finding("index", "ok", evidence)]
    if index.missing_rows:
        lost = f"{index.missing_rows} samples that the index names lie behind the end of the file"
        found.append(Finding("file", "wrong", lost, "upload it again: it was cut off"))
    lengths = np.diff(np.append(index.key_rows, len(index.pts))) / index.frames_per_second
    seconds = f"{len(lengths)} GOPs, the longest {lengths.max():.1f} s, the median {np.median(lengths):.1f} s"
    if lengths.max() > LONG_GOP_SECONDS:
        change = "encode with a key frame every 2 s (ffmpeg -g): a look needs all of its GOP before it"
        return [*found, Finding("GOPs", "note", seconds, change)]
    return [*found, Finding("GOPs", "ok", seconds)]


def answer_findings(analysis: Analysis, settings: Settings, index: Index | None, *, remote: bool) -> list[Finding]:
    """Is the fetch partial, the decoder the fast one, the answer complete and in time?"""
    return [
        _fetch_finding(analysis, settings, remote),
        _decoder_finding(analysis, settings),
        _coverage_finding(analysis, settings, index),
        _time_finding(analysis, settings),
    ]


def _fetch_finding(analysis: Analysis, settings: Settings, remote: bool) -> Finding:
    size = analysis.size_bytes or 0
    amount = f"{analysis.bytes_fetched / 1e6:.2f} MB"
    evidence = f"{amount} of {size / 1e6:.2f} MB in {analysis.requests} requests ({analysis.fetch})"
    if analysis.fetch != settings.fetch_mode:
        reason = "; ".join(analysis.warnings) or "the source does not allow it"
        change = f"use an origin and a container that allow FETCH={settings.fetch_mode}"
        return Finding("fetch", "wrong", f"{evidence}, not {settings.fetch_mode}: {reason}", change)
    allowed = settings.partial_bytes * 1.1 + 256 * 1024 if analysis.fetch == "head" else size * 1.1
    if remote and size and analysis.bytes_fetched > allowed:
        return Finding("fetch", "wrong", f"more than was asked for: {evidence}", "look for a proxy that ignores Range")
    return Finding("fetch", "ok", evidence)


def _decoder_finding(analysis: Analysis, settings: Settings) -> Finding:
    if analysis.hardware_decoding:
        return Finding("decoder", "ok", "Using NVDEC")
    wished = settings.use_nvdec and (
        settings.device == "cuda" or settings.origin("use_nvdec") not in ("default", "profile")
    )
    took = analysis.stage_seconds.get("decode", 0.0)
    seconds = f"software, {took:.2f} s of decoding (all threads) for {analysis.frames_decoded} frames"
    if wished:
        why = "the driver or the codec refused" if has_gpu() else "there is no GPU here"
        return Finding(
            "decoder", "wrong", f"USE_NVDEC=1, but {why}: {seconds}", "set USE_NVDEC=0, or install the driver"
        )
    return Finding("decoder", "ok", seconds)


def _coverage_finding(analysis: Analysis, settings: Settings, index: Index | None) -> Finding:
    """Objects in at least 70 % of all frames, or the judge takes the speed score away too."""
    count = max(1, analysis.frame_count)
    with_objects = sum(frame.ids.size > 0 for frame in analysis.frames)
    evidence = (
        f"{with_objects} of {analysis.frame_count} frames have objects ({with_objects / count:.0%}), "
        f"{analysis.frames_detected} were looked at"
    )
    if with_objects / count >= NEEDED_COVERAGE:
        few = analysis.frames_detected < min(FEW_FRAMES, count)
        return Finding("answer", "ok", f"{evidence}{'; few, but spread over the clip' if few else ''}")
    if analysis.fetch == "head":
        needed = _megabytes_for(index, NEEDED_COVERAGE)
        more = f"PARTIAL_DOWNLOAD_MB={needed:.1f} would reach 70 %; " if needed else ""
        return Finding("answer", "wrong", f"the clip ends early: {evidence}", f"{more}set PARTIAL_DOWNLOAD=0")
    if analysis.stopped_by == "deadline":
        change = f"raise TIME_BUDGET_S from {shown(settings.time_budget_s)}, or run firsttouch tune"
        return Finding("answer", "wrong", f"the deadline came first: {evidence}", change)
    if len(analysis.frames) / count < NEEDED_COVERAGE:
        return Finding("answer", "wrong", f"frames could not be decoded: {evidence}", "check the file with ffprobe")
    change = f"lower CONF_THRESHOLD from {settings.conf_threshold:g}, or check that the clip shows football"
    return Finding("answer", "wrong", f"little is seen: {evidence}", change)


def _megabytes_for(index: Index | None, coverage: float) -> float | None:
    """How much of the start holds this share of the frames."""
    if index is None:
        return None
    last = int(coverage * index.frame_count)
    rows = np.flatnonzero((index.frame_number >= 0) & (index.frame_number <= last))
    return float((index.offset[rows] + index.size[rows]).max()) / MEGABYTE


SLOWEST: Sequence[tuple[str, str]] = (
    ("connect", "set WARM_ORIGINS to this origin"),
    ("fetch", "move nearer to the origin, or set FETCH=sparse and a shorter TIME_BUDGET_S"),
    ("decode", "use a GPU with USE_NVDEC=1, or more cores"),
    ("detect", "use a faster device (firsttouch models shows what runs)"),
    ("carry", "raise the number of cores"),
)


def _time_finding(analysis: Analysis, settings: Settings) -> Finding:
    seconds = analysis.stage_seconds
    total, budget = seconds["total"], settings.deadline_seconds
    stage, change = max(SLOWEST, key=lambda pair: seconds.get(pair[0], 0.0))
    if settings.stride is not None and stage in ("decode", "detect", "carry"):
        change = "set FRAME_STRIDE=auto: the plan then keeps to the budget"
    evidence = f"{total:.2f} s in all; most of it {stage} ({seconds.get(stage, 0.0):.2f} s)"
    late = budget is not None and not settings.start_budget_after_first_frame and total > budget + LATE_SECONDS
    if late:
        return Finding("time", "wrong", f"later than TIME_BUDGET_S={budget:g}: {evidence}", change)
    if total > SLOW_SECONDS:
        return Finding("time", "wrong", evidence, change)
    return Finding("time", "ok", evidence)
