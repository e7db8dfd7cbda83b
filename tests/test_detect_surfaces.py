"""Pictures that stay in the device's memory: the same arithmetic, bit for bit, and when they may stay. Without a GPU:

PyAV gives the planes of an NV12 picture in the CPU's memory by the very protocol as those of a GPU.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace

import detect_graphs
import numpy as np
import pytest
from av.video.frame import VideoFrame
from test_decode import Chip

from firsttouch.chain import GopChain
from firsttouch.decode import Frame, gop
from firsttouch.detect import BUNDLED_MODEL, choose, load_detector, native, ort, surfaces
from firsttouch.detect.native import ALL_OUTPUTS, NativeDetector, native_roles
from firsttouch.detect.ort import DeviceSession, OrtCpu
from firsttouch.detect.planes import Canvas, fill
from firsttouch.detect.session import ModelFile, OutOfDeviceMemory, Problem
from firsttouch.detect.surfaces import TorchSurfaces, surfaces_problem
from firsttouch.doctor import surface_findings
from firsttouch.index import read_index
from firsttouch.pipeline import Options, analyze_sync
from firsttouch.plan import Rates
from firsttouch.settings import Settings
from firsttouch.sparse import SparseBytes
from train.render import write_clip

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is an extra, and not installed")
needs_model = pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
CANVAS = Canvas.of_size(640)


def noise(width: int, height: int) -> Frame:
    rows = np.random.default_rng(1).integers(0, 256, (height * 3 // 2, width), np.uint8)
    return Frame(0, 0, 0, VideoFrame.from_ndarray(rows, format="nv12"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, frames=24, size=(1280, 720), gop=12)
    return path


@needs_torch
@pytest.mark.parametrize(
    "size", [(1280, 720), (1920, 1080), (1440, 1080), (2560, 1440), (3840, 2160)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_what_is_made_of_a_surface_is_what_the_cpu_makes_of_its_planes(size):
    frame, maker = noise(*size), TorchSurfaces(CANVAS, "cpu")
    made = maker.inputs(*frame.surfaces).numpy()
    np.testing.assert_array_equal(made, fill(CANVAS, frame.y, frame.u, frame.v))
    np.testing.assert_array_equal(maker.grey(frame.surfaces[0]), frame.grey())
    assert maker.takes(*size)


@needs_torch
@pytest.mark.parametrize(
    ("size", "reason"),
    [((2704, 1520), "no whole multiple"), ((640, 360), "would not be the CPU's"), ((1280, 719), "not even")],
    ids=["no multiple", "scaled up", "odd"],
)
def test_a_size_that_would_come_out_otherwise_is_copied_and_said_once(size, reason, caplog):
    maker = TorchSurfaces(CANVAS, "cpu")
    with caplog.at_level(logging.WARNING):
        assert not maker.takes(*size)
        assert not maker.takes(*size)
    [record] = caplog.records
    assert reason in record.getMessage()


@needs_torch
def test_a_batch_may_hold_inputs_of_both_kinds():
    frame, maker = noise(1280, 720), TorchSurfaces(CANVAS, "cpu")
    planes = fill(CANVAS, frame.y, frame.u, frame.v)
    stacked = maker.stacked([planes, maker.inputs(*frame.surfaces)], 3).numpy()
    np.testing.assert_array_equal(stacked[0], stacked[1])
    np.testing.assert_array_equal(stacked[0], planes)
    assert not stacked[2].any()


@needs_torch
@needs_model
@pytest.mark.parametrize("count", [1, 3])
def test_roles_of_inputs_on_the_device_are_those_of_inputs_here(count):
    roles = native_roles(ModelFile.read(BUNDLED_MODEL))
    assert roles is not None
    rng = np.random.default_rng(1)
    planes = rng.integers(0, 256, (count, *CANVAS.shape), np.uint8)
    corners = rng.uniform(0, 900, (count, 20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (count, 20, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 0.9, (count, 20, 4)).astype(np.float32)
    maker = TorchSurfaces(CANVAS, "cpu")
    there, here = (roles.refined(p, boxes, scores, None) for p in (maker.kept(maker.stacked(planes, count)), planes))
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@needs_torch
def test_bound_memory_takes_a_tensor_as_it_takes_an_array(tmp_path):
    import torch

    values = (np.array([[100, 60, 140, 90]]), np.array([[0, 0.1, 0.8, 0.05]]), np.zeros((32, 3)))
    file, shape = ModelFile.read(detect_graphs.native(tmp_path / "tiny.onnx", *values)), (2, 96, 160, 6)
    inner = ort.open_session(file, ALL_OUTPUTS, ort.session_options(file, shape), ["CPUExecutionProvider"])
    session = DeviceSession(inner, "planes", ALL_OUTPUTS, "fp32", np.zeros(shape, np.uint8), memory="cpu")
    array = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    expected = session.run(array)
    session.run(np.zeros(shape, np.uint8))
    for mine, other in zip(session.run(torch.from_numpy(array)), expected, strict=True):
        np.testing.assert_array_equal(mine, other)


class OnGpu:
    """The session of the CPU that says it is on a GPU, and takes what such a one takes."""

    runtime, device, precision, on_calling_thread = "onnxruntime", "cuda", "fp32", False

    def __init__(self, inner):
        self._inner = inner

    def run(self, values):
        return self._inner.run(values if isinstance(values, np.ndarray) else values.numpy())


class Counting(TorchSurfaces):
    """Counts what it makes."""

    made = greys = 0

    def inputs(self, luma, chroma):
        self.made += 1
        return super().inputs(luma, chroma)

    def grey(self, luma):
        self.greys += 1
        return super().grey(luma)


def detector(on_gpu: bool, batch_size: int = 1) -> NativeDetector:
    def open_(file, outputs, shape):
        session = OrtCpu().open(file, outputs, shape, "fp32")
        return OnGpu(session) if on_gpu else session

    made = NativeDetector(ModelFile.read(BUNDLED_MODEL), open_, batch_size=batch_size)
    made.surfaces = Counting(made.canvas, "cpu") if on_gpu else None
    return made


@needs_torch
@needs_model
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_clip_whose_pictures_stay_is_answered_as_one_whose_pictures_are_copied(clip, monkeypatch, batch_size):
    expected = analyze_sync(clip, options=Options(stride=6), detector=detector(on_gpu=False))
    monkeypatch.setattr(gop, "_open_nvdec", lambda index, *_: Chip(index))
    monkeypatch.setattr(Frame, "on_device", property(lambda self: self.picture.format.name == "nv12"))
    staying = detector(on_gpu=True, batch_size=batch_size)
    monkeypatch.setattr(staying, "prepare", lambda *_: pytest.fail("a picture left the device"))
    found = analyze_sync(clip, options=Options(stride=6), detector=staying)
    assert found.hardware_decoding
    assert staying.surfaces.made == found.frames_detected == expected.frames_detected > 1
    assert staying.surfaces.greys > 0
    assert len(found.frames) == len(expected.frames) == 24
    for mine, other in zip(found.frames, expected.frames, strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_allclose(mine.xyxy, other.xyxy, atol=1e-3)


@needs_model
def test_a_gpu_without_memory_for_a_picture_gives_it_back(clip, monkeypatch):
    class Full:
        asked = 0

        def takes(self, width, height):
            return True

        def inputs(self, luma, chroma):
            self.asked += 1
            raise OutOfDeviceMemory("the GPU has not enough memory for this picture")

        def grey(self, luma):
            self.inputs(luma, None)

    expected = analyze_sync(clip, options=Options(stride=6), detector=detector(on_gpu=False))
    monkeypatch.setattr(gop, "_open_nvdec", lambda index, *_: Chip(index))
    monkeypatch.setattr(Frame, "on_device", property(lambda self: self.picture.format.name == "nv12"))
    full = detector(on_gpu=True)
    full.surfaces = Full()
    found = analyze_sync(clip, options=Options(stride=6), detector=full)
    assert full.surfaces.asked > 2 * found.frames_detected
    assert not found.warnings
    assert [len(frame.ids) for frame in found.frames] == [len(frame.ids) for frame in expected.frames]


class Sizes:
    """Surfaces that only say which sizes they take."""

    def __init__(self, *taken):
        self.taken = taken

    def takes(self, width, height):
        return (width, height) in self.taken


@pytest.mark.parametrize(
    ("device", "taken", "rotation", "stays"),
    [
        ("cuda", Sizes((1280, 720)), 0, True),
        ("cuda", Sizes((1920, 1080)), 0, False),
        ("cuda", Sizes((1280, 720)), 180, False),
        ("cuda", None, 0, False),
        ("cpu", Sizes((1280, 720)), 0, False),
    ],
    ids=["taken", "another size", "turned", "no PyTorch", "on the CPU"],
)
def test_pictures_stay_only_where_all_of_the_clip_can_be_worked_on(clip, monkeypatch, device, taken, rotation, stays):
    asked = []
    monkeypatch.setattr(gop, "_open_nvdec", lambda index, options, keep: asked.append(keep) or Chip(index))
    sparse = SparseBytes(clip.stat().st_size)
    sparse.write(0, clip.read_bytes())
    index = read_index(sparse)
    object.__setattr__(index, "rotation", rotation)
    rows = SimpleNamespace(first_row=0, stop_row=12, end_row=12, look_at=())
    chain = GopChain(index, sparse, rows, Rates(), skip_disposable=False, device=device, surfaces=taken)
    assert len(list(chain.advance())) > 0
    assert asked == ([stays] if device == "cuda" else [])


def test_the_chip_is_asked_to_leave_pictures_and_for_room_to_hold_them(clip, monkeypatch):
    sparse = SparseBytes(clip.stat().st_size)
    sparse.write(0, clip.read_bytes())
    index, asked = read_index(sparse), []

    class Context:
        is_hwaccel = True

    monkeypatch.setattr(gop, "HWAccel", lambda *_, **options: asked.append(options["is_hw_owned"]))
    monkeypatch.setattr(gop.av.CodecContext, "create", lambda *_, **__: Context())
    monkeypatch.setattr(gop, "_opened", lambda context, index, options: asked.append(options))
    gop._open_nvdec(index, {}, False)
    gop._open_nvdec(index, {}, True)
    assert asked == [False, {}, True, {"extra_hw_frames": str(index.reorder_depth + gop.FRAMES_HELD)}]


def test_without_pytorch_pictures_are_copied_and_doctor_says_how_to_change_that(monkeypatch, tmp_path):
    monkeypatch.setattr(surfaces.importlib.util, "find_spec", lambda _: None)
    assert "firsttouch[torch]" in surfaces_problem().remedy
    values = (np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((32, 3)))
    file = ModelFile.read(detect_graphs.native(tmp_path / "tiny.onnx", *values))
    made = NativeDetector(file, lambda f, o, s: OnGpu(OrtCpu().open(f, o, s, "fp32")), img_size=160, on_device=True)
    assert made.surfaces is None
    [finding] = surface_findings(Settings(device="cuda"), made)
    assert (finding.state, finding.change) == ("note", "pip install 'firsttouch[torch]'")
    assert "copied from the GPU: PyTorch is not installed" in finding.evidence
    assert surface_findings(Settings(device="cuda", use_nvdec=False), made) == []
    made.surfaces = Sizes()
    assert surface_findings(Settings(device="cuda"), made)[0].state == "ok"


@pytest.mark.parametrize(
    ("runtime", "device", "kept"),
    [
        ("onnxruntime", "cuda", True),
        ("tensorrt", "cuda", True),
        ("torch", "cuda", True),
        ("tensorrt-rtx", "cuda", False),
        ("onnxruntime", "cpu", False),
    ],
)
def test_pictures_stay_only_for_runtimes_that_take_tensors(monkeypatch, tmp_path, runtime, device, kept):
    values = (np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((32, 3)))
    path = detect_graphs.native(tmp_path / "tiny.onnx", *values)
    fake = SimpleNamespace(name=runtime, device=device, open=OrtCpu().open)
    monkeypatch.setattr(choose, "choose", lambda *_: choose.Choice(fake, path, "fp32"))
    monkeypatch.setattr(native, "_surfaces", lambda canvas: "kept there")
    assert load_detector(model=path, img_size=160).surfaces == ("kept there" if kept else None)


@needs_torch
def test_pytorch_that_sees_no_gpu_keeps_nothing_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(problem := surfaces_problem(), Problem)
    assert "sees no CUDA GPU" in problem.reason
