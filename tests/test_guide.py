"""Every row of the guide, and every defect of its predecessor (PROTOCOL), as a test.

The rows that need a file of their own stand elsewhere: `download_video_partial` in test_download, the three
benchmark commands in test_benchmark_miner, sizing in test_size, PM2 in test_miner, troubleshooting in test_doctor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from bench.origin import Fault, Origin
from firsttouch.answer import to_challenge
from firsttouch.detect import Detections, Detector
from firsttouch.errors import AddressRefused, DeadlineExceeded, NotAVideo, SourceTooLarge
from firsttouch.netpolicy import Policy
from firsttouch.pipeline import Analysis, Options, analyze, analyze_steps, detector_for
from firsttouch.settings import Settings, load
from firsttouch.source import Connections
from tests.seeing import NumberReader, number_answered
from tests.test_benchmark_miner import COMMANDS
from tests.test_miner import GUIDE_BLOCK
from tests.test_size import GUIDE_SIZES
from tests.toy import BOXES, still_clip, toy_clip, toy_model

GUIDE = Path(__file__).parents[2] / "shared" / "guide" / "SPEED_TRICK_GUIDE.md"
FRAMES = 100

# --- the tables ------------------------------------------------------------------------------------------------------

ENVIRONMENT: list[tuple[str, str, object]] = [
    ("PARTIAL_DOWNLOAD", "1", True),
    ("PARTIAL_DOWNLOAD_MB", "4", 4.0),
    ("PARTIAL_DOWNLOAD_MB", "2", 2.0),
    ("PARTIAL_DOWNLOAD_MB", "3", 3.0),
    ("PARTIAL_DOWNLOAD_MB", "5", 5.0),
    ("DEVICE", "cuda", "cuda"),
    ("DEVICE", "cpu", "cpu"),
    ("DEVICE", "mps", "mps"),
    ("DEVICE", "auto", "auto"),
    ("IMG_SIZE", "416", 416),
    ("IMG_SIZE", "384", 384),
    ("IMG_SIZE", "512", 512),
    ("BATCH_SIZE", "32", 32),
    ("FRAME_STRIDE", "5", 5),
    ("FRAME_STRIDE", "6", 6),
    ("FRAME_STRIDE", "3", 3),
    ("PREFETCH_FRAMES", "128", 128),
    ("RAMP_UP", "1", True),
    ("RAMP_UP_FIRST_BATCH", "2", 2),
    ("DISABLE_TRACKING", "1", True),
    ("DISABLE_TRACKING", "0", False),
    ("SKIP_PITCH", "1", True),
    ("CONF_THRESHOLD", "0.5", 0.5),
    ("CONF_THRESHOLD", "0.6", 0.6),
    ("MAX_DETECTIONS", "80", 80),
    ("MAX_DETECTIONS", "60", 60),
    ("TIME_BUDGET_S", "2.0", 2.0),
    ("START_BUDGET_AFTER_FIRST_FRAME", "1", True),
    ("EARLY_FLUSH_FIRST_FRAME", "1", True),
    ("DIRECT_URL_STREAM", "0", False),
    ("STREAMING_DOWNLOAD", "0", False),
    ("USE_NVDEC", "1", True),
    # the deployed service (PROTOCOL)
    ("NETUID", "44", 44),
    ("SUBTENSOR_NETWORK", "finney", "finney"),
    ("SUBTENSOR_ADDRESS", "ws://127.0.0.1:9944", "ws://127.0.0.1:9944"),
    ("WALLET_NAME", "cold", "cold"),
    ("HOTKEY_NAME", "hot", "hot"),
    ("MIN_STAKE_THRESHOLD", "500", 500.0),
    ("REFRESH_NODES", "true", True),
    ("LOAD_OLD_NODES", "false", False),
    ("VERIFY_ENABLED", "false", False),
    ("BLACKLIST_ENABLED", "false", False),
    ("ALLOW_PRIVATE_ORIGINS", "1", True),
    ("WARM_ORIGINS", "https://cdn.example", ("https://cdn.example",)),
    ("MODEL_PLAYER", "player.onnx", Path("player.onnx")),
    ("MODEL_BALL", "ball.onnx", Path("ball.onnx")),
    ("MODEL_PITCH", "pitch.onnx", Path("pitch.onnx")),
    ("MAX_CLIP_MB", "50", 50.0),
    ("PROFILE", "guide", "guide"),
]

MODES = ("sparse", "head", "stream", "direct", "full")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in {n.upper() for n in Settings.model_fields} & set(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return toy_model(folder / "toy.onnx")


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[Origin]:
    files = {
        "first.mp4": toy_clip(folder, "first", frames=FRAMES),
        "last.mp4": toy_clip(folder, "last", frames=FRAMES, faststart=False),
        "still.mp4": still_clip(folder / "still.mp4", frames=FRAMES),
        "large.mp4": still_clip(folder / "large.mp4", width=1280, height=720, frames=20),
    }
    with Origin(files) as running:
        yield running


def answer(origin: Origin, name: str = "first.mp4", *, detector: Detector | None = None, **settings: Any) -> Analysis:
    """What `analyze` makes of these settings, with no deadline unless one is set."""
    chosen = load({"time_budget_s": "none", **settings})
    return asyncio.run(
        analyze(
            origin.url(name),
            deadline=chosen.deadline_seconds,
            options=Options.of(chosen),
            detector=detector or NumberReader(),
        )
    )


# --- environment, commands, modes, log lines -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "value"), ENVIRONMENT)
def test_every_environment_variable_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    settings = load(env_file=None)
    assert getattr(settings, name.lower()) == value
    assert settings.origin(name.lower()) == "environment"
    [row] = [row for row in settings.rows() if row.name == name]
    assert row.description
    assert row.allowed


@pytest.fixture(scope="module")
def guide() -> str:
    if not GUIDE.exists():
        pytest.skip("the guide is not here")
    return GUIDE.read_text()


def test_the_table_above_has_every_setting_and_value_that_the_guide_names(guide: str) -> None:
    rows = set(re.findall(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)=([\w.]+)", guide))
    rows |= set(re.findall(r"^\s*([A-Z_]+): '([^']+)'", guide, re.MULTILINE))
    for name, one, other in re.findall(r"`([A-Z_]+)` from (\d+) to (\d+)", guide):
        rows |= {(name, one), (name, other)}
    assert len(rows) > 30
    sizing = {"STRIDE", "BUDGET"}  # the variables of its formula
    assert {row for row in rows if row[0] not in sizing} <= {(name, text) for name, text, _ in ENVIRONMENT}


def test_every_command_of_the_guide_is_run_by_a_test(guide: str) -> None:
    lines = re.findall(r"^python scripts/.*?[^\\]$", guide, re.MULTILINE | re.DOTALL)
    commands = {" ".join(line.partition("#")[0].replace("\\\n", " ").split()) for line in lines}
    assert len(commands) == 3
    assert commands == {" ".join(command.split()) for command in COMMANDS.values()}


def test_every_line_that_the_guide_computes_is_in_the_sizing_test(guide: str) -> None:
    computed = re.findall(r"^# STRIDE=(\d+), BUDGET=(\d+)s: .* = (\d+) frames", guide, re.MULTILINE)
    defaults = re.findall(r"`STRIDE=(\d+), BUDGET=(\d+)s`: `PARTIAL_DOWNLOAD_MB=(\d+)`", guide)
    assert len(computed) == len(defaults) == 3
    assert {tuple(map(float, row)) for row in computed} == {row[:3] for row in GUIDE_SIZES}
    assert {tuple(map(float, row)) for row in defaults} == {(*row[:2], row[4]) for row in GUIDE_SIZES}


def test_every_log_line_of_the_guide_is_looked_for(guide: str) -> None:
    quoted = set(re.findall(r'"((?:Downloading|Processed|Completed|Using) [^"]+)"', guide))
    assert quoted == {
        "Downloading first X MB",
        "Processed 0 frames in X.Xs",
        "Completed processing X frames in Y.Ys",
        "Using NVDEC",
    }


def test_the_production_block_works_as_one(monkeypatch: pytest.MonkeyPatch, origin: Origin, model: Path) -> None:
    for name, value in GUIDE_BLOCK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIME_BUDGET_S", "60")  # this machine may be busy
    monkeypatch.setenv("MODEL_PLAYER", str(model))
    settings = load()
    detector = detector_for(settings)
    analysis = asyncio.run(
        analyze(
            origin.url("first.mp4"),
            deadline=settings.deadline_seconds,
            options=Options.of(settings),
            detector=detector,
        )
    )
    assert analysis.fetch == "head"
    looked = [f.frame_number for f in analysis.frames if f.how == "detected"]
    assert len(looked) == pytest.approx(FRAMES / 5, abs=3)
    assert all(frame.ids.size for frame in analysis.frames)
    assert not any(frame.keypoints.any() for frame in analysis.frames)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_answer_type(origin: Origin, mode: str) -> None:
    size_mb = 0.05 if mode == "head" else None
    analysis = answer(origin, fetch=mode, frame_stride=5, partial_download_mb=size_mb)
    assert isinstance(analysis, Analysis)
    assert analysis.fetch == mode
    assert analysis.frame_count == FRAMES or mode in ("stream", "direct")
    numbers = [frame.frame_number for frame in analysis.frames]
    assert numbers == sorted(numbers)
    if mode == "head":
        assert 0 < len(numbers) < FRAMES
    else:
        assert numbers == list(range(FRAMES))


@pytest.mark.parametrize("name", ["partial_download", "streaming_download", "direct_url_stream"])
def test_the_guides_switches_are_the_modes(origin: Origin, name: str) -> None:
    mode = {"partial_download": "head", "streaming_download": "stream", "direct_url_stream": "direct"}[name]
    assert answer(origin, **{name: True}, frame_stride=10).fetch == mode


def test_the_log_has_the_guides_lines(origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        analysis = answer(origin, partial_download=True, partial_download_mb=4.0, frame_stride=2)
    lines = [record.getMessage() for record in caplog.records]
    assert "Downloading first 4 MB" in lines
    assert any(re.fullmatch(r"Processed \d+ frames in \d+\.\ds", line) for line in lines)
    assert any(re.fullmatch(rf"Completed processing {FRAMES} frames in \d+\.\ds", line) for line in lines)
    assert ("Using NVDEC" in lines) == analysis.hardware_decoding


# --- each switch does what the guide says, measurably ----------------------------------------------------------------


class Spy:
    """A detector that notes how it is asked."""

    def __init__(self, inner: Detector) -> None:
        self.inner = inner
        self.pitch: list[bool] = []
        self.batches: list[int] = []
        self.shapes: set[tuple[int, ...]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def detect(
        self, inputs: Sequence[Any], frame_numbers: Sequence[int], width: int, height: int, *, pitch: bool
    ) -> list[Detections]:
        self.pitch.append(pitch)
        self.batches.append(len(inputs))
        self.shapes |= {np.shape(one) for one in inputs}
        return self.inner.detect(inputs, frame_numbers, width, height, pitch=pitch)


def toy(model: Path, **settings: Any) -> Spy:
    return Spy(detector_for(load({"model_player": model, **settings})))


def test_skip_pitch_does_not_ask_for_key_points(origin: Origin, model: Path) -> None:
    """That the head is then not in the graph that runs is shown in test_detect."""
    without, with_pitch = toy(model), toy(model)
    skipped = answer(origin, detector=without, skip_pitch=True, frame_stride=10)
    asked = answer(origin, detector=with_pitch, skip_pitch=False, frame_stride=10)
    assert set(without.pitch) == {False}
    assert set(with_pitch.pitch) == {True}
    assert not any(frame.keypoints.any() for frame in skipped.frames)
    assert any(frame.keypoints.any() for frame in asked.frames)


@pytest.mark.parametrize(("size", "width"), [(384, 384), (416, 416), (512, 512)])
def test_img_size_changes_the_input_and_not_the_coordinates(origin: Origin, model: Path, size: int, width: int) -> None:
    spy = toy(model, img_size=size)
    analysis = answer(origin, detector=spy, frame_stride=25)
    assert {shape[-2] for shape in spy.shapes} == {width}
    assert all(frame.xyxy.max() <= 320 for frame in analysis.frames if frame.ids.size)


def test_conf_threshold_and_max_detections_leave_boxes_out(origin: Origin, model: Path) -> None:
    def counts(**settings: Any) -> set[int]:
        detector = toy(model, **settings)
        analysis = answer(origin, "still.mp4", detector=detector, frame_stride=10, **settings)
        return {len(frame.ids) for frame in analysis.frames if frame.how == "detected"}

    assert counts(conf_threshold=0.3) == {4}
    assert counts(conf_threshold=0.7) == {3}  # the toy is less sure of a dark picture
    assert counts(max_detections=2) == {2}


@pytest.mark.parametrize("stride", [1, 5, 10])
def test_frame_stride_is_how_many_frames_are_looked_at(origin: Origin, stride: int) -> None:
    reader = NumberReader()
    analysis = answer(origin, detector=reader, frame_stride=stride)
    assert analysis.frames_detected == pytest.approx(FRAMES / stride, abs=FRAMES / stride * 0.15 + 1)
    assert len(reader.saw) == analysis.frames_detected


def test_ramp_up_is_the_size_of_the_first_batch() -> None:
    assert Options.of(load({"ramp_up": "1", "ramp_up_first_batch": "2", "batch_size": "32"})).first_batch == 2
    assert Options.of(load({"ramp_up": "0", "batch_size": "32"})).first_batch == 32


def test_partial_answers_begin_with_the_first_looked_at_frames(origin: Origin) -> None:
    """EARLY_FLUSH_FIRST_FRAME: the server streams these; the first holds less than the last."""

    async def lengths() -> list[int]:
        steps = analyze_steps(origin.url("first.mp4"), options=Options(stride=2), detector=NumberReader())
        return [analysis.frames_detected async for analysis in steps]

    found = asyncio.run(lengths())
    assert found == sorted(found)
    assert found[0] < found[-1]


# --- the eleven defects of its predecessor ---------------------------------------------------------------------------


@pytest.mark.parametrize("tracking", [True, False])
def test_defect_1_ids_are_given_and_stable_with_tracking_off(origin: Origin, model: Path, tracking: bool) -> None:
    analysis = answer(origin, "still.mp4", detector=toy(model), disable_tracking=not tracking, frame_stride=5)
    seen = [frozenset(frame.ids.tolist()) for frame in analysis.frames]
    assert all(len(ids) == len(BOXES) for ids in seen)
    assert len(set().union(*seen)) == len(BOXES)  # nobody moves: one identity each


@pytest.mark.parametrize("mode", MODES)
def test_defect_2_a_stride_keeps_the_numbers_of_the_source(origin: Origin, mode: str) -> None:
    """The detector reads the number out of the picture itself."""
    analysis = answer(origin, fetch=mode, frame_stride=5)
    looked = [frame for frame in analysis.frames if frame.how == "detected"]
    assert looked[1].frame_number > 1
    for frame in looked:
        assert number_answered(frame.xyxy) == pytest.approx(frame.frame_number, abs=0.4)
    body = orjson.loads(to_challenge(analysis, "c", 1.0))
    assert [frame["frame_number"] for frame in body["frames"]] == [f.frame_number for f in analysis.frames]


def test_defect_3_boxes_are_in_source_pixels(origin: Origin, model: Path) -> None:
    small = answer(origin, "still.mp4", detector=toy(model), frame_stride=10)
    large = answer(origin, "large.mp4", detector=toy(model), frame_stride=10)
    a = np.sort(small.frames[0].xyxy[:, 0]) * (1280 / 320)
    b = np.sort(large.frames[0].xyxy[:, 0])
    np.testing.assert_allclose(a, b, atol=2.0)
    np.testing.assert_allclose(b, sorted(box[0] for box in BOXES), atol=2.0)


def test_defect_4_skip_pitch_costs_no_pitch_run(origin: Origin) -> None:
    reader = NumberReader()
    answer(origin, detector=reader, skip_pitch=True)
    assert reader.pitch_asked == {False}


def test_defect_5_a_prefix_of_a_file_with_moov_last_is_answered(origin: Origin) -> None:
    analysis = answer(origin, "last.mp4", fetch="head", partial_download_mb=0.05, frame_stride=5)
    assert 0 < len(analysis.frames) < FRAMES
    assert analysis.fetch == "head"


def test_defect_6_a_server_without_ranges_is_streamed_and_nonsense_is_no_video(folder: Path) -> None:
    """Its body is not buffered and cut; a 416 (an empty file) is not taken for a video."""
    files = {"first.mp4": toy_clip(folder, "first", frames=FRAMES), "empty.mp4": b""}
    with Origin(files, ranges=False) as origin:
        analysis = answer(origin, fetch="head", partial_download_mb=0.05)
        assert analysis.fetch == "stream"
        assert any("range" in warning for warning in analysis.warnings)
        assert origin.counts().requests <= 2  # head and tail, asked for side by side
    with Origin(files) as origin, pytest.raises(NotAVideo):
        answer(origin, "empty.mp4")


def test_defect_7_the_budget_counts_the_download_and_keeps_work_already_done(folder: Path) -> None:
    files = {"clip.mp4": toy_clip(folder, "long", frames=400)}
    seconds_for_all = 5.0
    bits = Path(files["clip.mp4"]).stat().st_size * 8 / seconds_for_all
    with Origin(files) as origin:
        answer(origin, "clip.mp4", frame_stride=10)  # everything is loaded once
        origin.shape(bandwidth=bits)
        analysis = answer(origin, "clip.mp4", time_budget_s=4.0, frame_stride=10)
        assert analysis.stopped_by == "deadline"
        assert analysis.frames_detected > 0
        assert analysis.stage_seconds["total"] < 4.0 + 2.0  # this machine may be busy
        with pytest.raises(DeadlineExceeded):
            answer(origin, "clip.mp4", time_budget_s=0.05)


def test_defect_7_the_guides_meaning_begins_at_the_first_frame(folder: Path) -> None:
    with Origin({"clip.mp4": toy_clip(folder, "first", frames=FRAMES)}) as origin:
        origin.fault("clip.mp4", Fault(slow_headers=1.0))
        settings = {"time_budget_s": 0.9, "frame_stride": 10}
        with pytest.raises(DeadlineExceeded):
            answer(origin, **settings, name="clip.mp4")
        analysis = answer(origin, **settings, name="clip.mp4", start_budget_after_first_frame=True)
        assert analysis.frames_detected > 0
        assert analysis.stage_seconds["total"] > 1.0


def test_defect_8_nothing_is_held_after_a_cancelled_or_failed_answer(origin: Origin, folder: Path) -> None:
    async def trouble() -> Analysis:
        url, options = origin.url("first.mp4"), Options(stride=1)
        task = asyncio.ensure_future(analyze(url, options=options, detector=NumberReader()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DeadlineExceeded):
            await analyze(url, deadline=0.001, detector=NumberReader())
        async with asyncio.timeout(60):
            return await analyze(url, detector=NumberReader())

    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("firsttouch")}
    assert len(asyncio.run(trouble()).frames) == FRAMES
    after = {thread.name for thread in threading.enumerate() if thread.name.startswith("firsttouch")}
    assert after <= before


def test_defect_9_the_event_loop_stays_free(origin: Origin) -> None:
    async def beats() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(
            analyze(origin.url("first.mp4"), options=Options(every_frame=True), detector=NumberReader())
        )
        count, begun = 0, loop.time()
        while not task.done():
            await asyncio.sleep(0.005)
            count += 1
        return count, loop.time() - begun

    count, seconds = asyncio.run(beats())
    assert count >= min(5, seconds / 0.1)


def test_defect_10_no_file_is_left_and_no_private_address_or_giant_is_fetched(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    origin.reset()
    with pytest.raises(AddressRefused):
        asyncio.run(analyze(origin.url("first.mp4"), detector=NumberReader(), policy=Policy(ports=(origin.port,))))
    assert origin.counts().connections == 0
    with pytest.raises(SourceTooLarge):
        asyncio.run(analyze(origin.url("first.mp4"), detector=NumberReader(), options=Options(max_bytes=1000)))
    assert list(tmp_path.iterdir()) == []


def test_defect_11_the_connection_is_kept(origin: Origin) -> None:
    async def twice() -> None:
        async with Connections() as connections:
            await connections.warm([origin.base])
            origin.reset()
            for _ in range(2):
                await analyze(origin.url("first.mp4"), detector=NumberReader(), connections=connections)

    asyncio.run(twice())
    assert origin.counts().connections <= 2  # at most one beside the warm ones, for ranges side by side
    assert origin.counts().requests >= 4
