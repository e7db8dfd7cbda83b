"""A TensorRT engine that is built while CUDA serves: when it takes over, when not, and what is said. All with fakes."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import detect_graphs
import numpy as np
import pytest

from firsttouch.detect import Wish, ort, upgrade
from firsttouch.detect.choose import choose_among, runtimes_for, serving_at_once
from firsttouch.detect.native import ALL_OUTPUTS, NativeDetector, NativeLayout
from firsttouch.detect.ort import OrtCpu, OrtCuda, OrtTensorRt, engine_folder
from firsttouch.detect.session import ModelFile
from firsttouch.detect.upgrade import EngineWhenBuilt, UpgradingSession, difference
from firsttouch.detect.yolo import YoloLayout
from firsttouch.errors import RuntimeUnavailable

BOXES = np.array([[100, 60, 140, 90]], np.float32)
SCORES = np.array([[0, 0.1, 0.8, 0.05]], np.float32)
POINTS = np.zeros((32, 3), np.float32)
LAYOUT = NativeLayout(160)
SHAPE = (1, 96, 160, 6)
BRIGHT, DARK = np.full(SHAPE, 255, np.uint8), np.zeros(SHAPE, np.uint8)
SOON = 10.0
"""Seconds that a thread is waited for, at most."""


@pytest.fixture
def model(tmp_path) -> ModelFile:
    return ModelFile.read(detect_graphs.native(tmp_path / "tiny.onnx", BOXES, SCORES, POINTS))


@dataclass
class Named:
    """The session of the CPU under another name; `moved` pixels off."""

    inner: object
    runtime: str
    moved: float = 0.0
    device: str = "cuda"
    precision: str = "fp16"
    on_calling_thread: bool = False

    def run(self, values):
        boxes, *others = self.inner.run(values)
        return [boxes + self.moved, *others]


@dataclass
class Fake:
    """A runtime on a GPU we do not have; as an engine it is built once it is told to be."""

    name: str
    moved: float = 0.0
    fails: Exception | None = None
    built: bool = False
    may_build: threading.Event = field(default_factory=threading.Event)
    opened: list = field(default_factory=list)
    device: str = "cuda"

    def problem(self, precision):
        return None

    def open(self, model, outputs, shape, precision):
        self.opened.append((model.path.name, precision))
        if self.fails is not None:
            raise self.fails
        return Named(OrtCpu().open(model, outputs, shape, "fp32"), self.name, self.moved)

    def has_engine(self, *_):
        return self.built

    def build_apart(self, model, outputs, shape, precision):
        assert self.may_build.wait(SOON)
        if self.fails is not None:
            raise self.fails
        self.built = True


def opened(engine: Fake, model: ModelFile, meanwhile: Fake | None = None):
    return EngineWhenBuilt(engine, meanwhile or Fake("onnxruntime"), LAYOUT).open(model, ALL_OUTPUTS, SHAPE, "fp16")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(UpgradingSession.__init__, "__defaults__", (0.0,))


def thread() -> threading.Thread:
    [found] = [t for t in threading.enumerate() if t.name == "firsttouch-engine"]
    return found


def test_cuda_serves_until_the_engine_is_built_and_agrees(model, caplog):
    engine = Fake("tensorrt")
    session = opened(engine, model)
    worker = session.begin()
    assert worker.daemon
    assert session.begin() is None
    before = session.run(BRIGHT)
    assert session.runtime == "onnxruntime"
    with caplog.at_level(logging.INFO):
        engine.may_build.set()
        session.run(DARK)  # finds nothing: nothing to compare with
        while worker.is_alive():
            session.run(BRIGHT)
            worker.join(0.01)
    assert session.runtime == "tensorrt"
    assert "tensorrt fp16 runs from now on" in caplog.text
    for mine, expected in zip(session.run(BRIGHT), before, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Fake("tensorrt", moved=40.0), "only 0 of 2 boxes are the same"),
        (Fake("tensorrt", fails=RuntimeUnavailable("no TensorRT engine was built: out of memory")), "out of memory"),
        (Fake("tensorrt", fails=MemoryError()), "MemoryError"),
    ],
    ids=["other boxes", "no build", "no words"],
)
def test_an_engine_that_fails_or_answers_otherwise_is_one_warning(model, caplog, engine, reason):
    session = opened(engine, model)
    with caplog.at_level(logging.WARNING):
        worker = session.begin()
        engine.may_build.set()
        while worker.is_alive():
            session.run(BRIGHT)
            worker.join(0.01)
    assert session.runtime == "onnxruntime"
    [record] = caplog.records
    assert "onnxruntime goes on" in record.getMessage()
    assert reason in record.getMessage()


def test_a_session_that_is_given_up_is_not_built_for(model):
    """Out of memory the batch is halved and the sessions are dropped: nothing may keep their memory."""
    engine = Fake("tensorrt")
    session = opened(engine, model)
    worker = session.begin()
    engine.may_build.set()  # the thread makes, then waits for a run to compare with
    del session
    gc.collect()
    worker.join(SOON)
    assert not worker.is_alive()


def test_the_self_test_builds_nothing_and_what_is_used_does(model):
    engine = Fake("tensorrt")
    runtime = EngineWhenBuilt(engine, Fake("onnxruntime"), LAYOUT)
    chosen = choose_among([runtime], model.path, Wish(tensorrt=True), LAYOUT)
    assert [t for t in threading.enumerate() if t.name == "firsttouch-engine"] == []
    detector = NativeDetector(model, chosen.open, img_size=160)
    worker = thread()
    assert (detector.runtime, detector.device) == ("onnxruntime", "cuda")
    engine.may_build.set()
    inputs = [np.full(detector.canvas.shape, 255, np.uint8)]
    while worker.is_alive():
        [found] = detector.detect(inputs, [3], 1280, 720, pitch=True)
        assert len(found) == 1
        worker.join(0.01)
    assert detector.runtime == "tensorrt"
    assert len(detector.detect(inputs, [3], 1280, 720, pitch=True)[0]) == 1


def test_a_built_engine_is_opened_and_one_that_is_broken_is_a_warning(model, caplog):
    assert opened(Fake("tensorrt", built=True), model).runtime == "tensorrt"
    broken = Fake("tensorrt", built=True, fails=RuntimeUnavailable("the engine is of another version"))
    with caplog.at_level(logging.WARNING):
        assert opened(broken, model).runtime == "onnxruntime"
    assert "tensorrt does not run, onnxruntime does: the engine is of another version" in caplog.text


def test_what_serves_meanwhile_runs_its_own_half_precision_file(model):
    meanwhile = Fake("onnxruntime")
    opened(Fake("tensorrt"), model, meanwhile)
    model.path.with_suffix(".fp16.onnx").write_bytes(model.data)
    opened(Fake("tensorrt"), model, meanwhile)
    assert meanwhile.opened == [("tiny.onnx", "fp32"), ("tiny.fp16.onnx", "fp16")]


def test_tensorrt_stands_in_cudas_place_only_where_it_can_be_had(monkeypatch, tmp_path):
    wish = Wish(tensorrt=True, cache_dir=tmp_path)
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "")
    assert [type(r) for r in serving_at_once(runtimes_for(wish), LAYOUT)][:2] == [OrtTensorRt, OrtCuda]
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "NVIDIA H100")
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: providers)
    first, *others = serving_at_once(runtimes_for(wish), LAYOUT)
    assert isinstance(first, EngineWhenBuilt)
    assert isinstance(first.meanwhile, OrtCuda)
    assert [other.device for other in others] == ["cpu"]
    [alone] = serving_at_once(runtimes_for(Wish(runtime="tensorrt", cache_dir=tmp_path)), LAYOUT)
    assert isinstance(alone, EngineWhenBuilt)


def test_boxes_are_compared_as_far_as_half_precision_moves_them():
    def answer(*rows):
        values = np.array(rows, np.float32)
        return [values[None, :, :4], values[None, :, 4:]]

    def boxes(outputs, least):
        return LAYOUT.boxes(None, outputs, least)

    one, moved = (10, 10, 40, 90, 0, 0, 0.9, 0), (11, 10, 41, 91, 0, 0, 0.88, 0)
    edge, gone = (100, 10, 130, 90, 0, 0.41, 0, 0), (100, 10, 130, 90, 0, 0.35, 0, 0)
    assert difference(boxes, answer(one, edge), answer(gone, moved)) is None  # in any order
    assert difference(boxes, answer(one, edge), answer(one, (*edge[:5], 0.1, 0, 0))) == "only 2 of 3 boxes are the same"
    assert difference(boxes, answer(gone), answer(one)) == "only 0 of 1 boxes are the same"


def test_a_key_point_counts_as_a_box():
    points = np.zeros((1, 32, 3), np.float32)
    points[0, 5] = (100, 50, 0.9)
    outputs = [np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32), points]
    np.testing.assert_array_equal(LAYOUT.boxes(None, outputs, 0.3)[0], [[92, 42, 108, 58]])


@pytest.mark.parametrize("transposed", [False, True], ids=["anchors", "yolox"])
def test_boxes_of_an_operators_model_are_compared_too(tmp_path, transposed):
    facts = {} if transposed else {"names": "{0: 'ball'}"}
    path = detect_graphs.first_channel(tmp_path / "ball.onnx", 8400, (640, 640), facts, transposed)
    file, layout = ModelFile.read(path), YoloLayout("ball", 640)
    outputs, shape = layout(file)
    values = np.full(shape, 0.9, np.float32)
    found = layout.boxes(file, OrtCpu().open(file, outputs, shape, "fp32").run(values), 0.4)
    assert [len(boxes) for boxes in found] == [1]


def test_an_engine_is_moved_to_its_place_whole(model, tmp_path, monkeypatch):
    arguments = (ALL_OUTPUTS, SHAPE, "fp16")
    folder = engine_folder(tmp_path, model, *arguments)
    places = []

    def opened_in(self, place, *_):
        places.append(place)
        if len(places) == 1:
            (place / "half.engine").write_bytes(b"x")
            raise RuntimeUnavailable("killed on the way")
        if len(places) == 3:
            (place / "whole.engine").write_bytes(b"x")
        return "session"

    monkeypatch.setattr(OrtTensorRt, "_open", opened_in)
    runtime = OrtTensorRt(tmp_path, build=True)
    with pytest.raises(RuntimeUnavailable, match="killed"):
        runtime.open(model, *arguments)
    assert not runtime.has_engine(model, *arguments)
    with pytest.raises(RuntimeUnavailable, match=r"took no part of tiny\.onnx"):
        runtime.open(model, *arguments)  # and the half one is not taken for it
    assert runtime.open(model, *arguments) == "session"
    assert [file.name for file in folder.iterdir()] == ["whole.engine"]
    assert folder not in places
    runtime.open(model, *arguments)
    assert places[3] == folder


def test_the_process_that_builds_is_told_what_and_says_why_not(model, tmp_path, monkeypatch):
    real, commands = subprocess.run, []

    def noted(command, **options):
        if command[0] == sys.executable:
            commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(ort.subprocess, "run", noted)
    gone = replace(model, path=tmp_path / "gone.onnx")
    with pytest.raises(RuntimeUnavailable, match=r"no TensorRT engine was built: cannot read the model .*gone\.onnx"):
        OrtTensorRt(tmp_path).build_apart(gone, ALL_OUTPUTS, SHAPE, "fp16")
    [command] = commands
    assert command[1:3] == ["-m", "firsttouch.detect.build"]
    job = json.loads(command[3])
    assert (Path(job["model"]), job["shape"]) == (gone.path, list(SHAPE))


def test_a_build_that_takes_too_long_is_given_up(model, tmp_path, monkeypatch):
    monkeypatch.setattr(ort, "BUILD_SECONDS", 0.01)
    with pytest.raises(RuntimeUnavailable, match="timed out"):
        OrtTensorRt(tmp_path).build_apart(model, ALL_OUTPUTS, SHAPE, "fp16")


def python(script: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_nobody_waits_for_a_build_at_the_end():
    script = """
import threading
from types import SimpleNamespace
from firsttouch.detect.upgrade import UpgradingSession
begun = threading.Event()
def make():
    begun.set()
    threading.Event().wait()
session = UpgradingSession(SimpleNamespace(runtime="onnxruntime"), make, None, delay=0.0)
session.begin()
begun.wait()
"""
    assert python(script).wait(SOON) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a build ends by itself")
def test_a_build_ends_with_who_asked_for_it_and_is_not_held_by_its_memory_cap():
    child = """
import resource, sys
from firsttouch.detect.build import _serve_first
_serve_first()
soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
print(soft == hard, flush=True)
sys.stdin.read()
"""
    parent = f"""
import os, resource, subprocess, sys
_, hard = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (2_000_000_000, hard))
reading, writing = os.pipe()
os.set_inheritable(writing, True)
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=reading, stdout=subprocess.PIPE, close_fds=False)
print(child.pid, child.stdout.readline().decode().strip(), flush=True)
os._exit(0)
"""
    pid, lifted = python(parent).stdout.readline().split()
    assert lifted == "True"
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):  # its standard input stays open: only the system can have ended it
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        threading.Event().wait(0.05)
    pytest.fail("the build outlives its parent")


def test_a_session_waits_before_it_builds(model):
    assert upgrade.BEGIN_SECONDS >= 5  # a command that answers one clip is over by then
    session = UpgradingSession(Fake("cuda").open(model, ALL_OUTPUTS, SHAPE, "fp16"), pytest.fail, None, delay=600.0)
    worker = session.begin()
    del session
    gc.collect()
    worker.join(SOON)
    assert not worker.is_alive()
