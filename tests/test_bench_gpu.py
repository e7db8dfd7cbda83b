"""`python -m bench gpu` without a GPU: what it says there, and that no wrong answer is ever timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_detect_upgrade import Fake

from bench import gpu, reference
from bench.gpu import Report, Way
from firsttouch.decode import Frame
from firsttouch.detect import BUNDLED_MODEL, Detections
from firsttouch.detect.ort import OrtCpu
from firsttouch.detect.session import Problem
from firsttouch.detect.upgrade import UpgradingSession
from train.render import write_clip

needs_model = pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
CPU = Way("CPU fp32", OrtCpu(), "fp32")


class Lying(OrtCpu):
    """Answers, but its boxes lie 40 pixels off."""

    def open(self, model, outputs, shape, precision):
        inner = super().open(model, outputs, shape, precision)

        class Moved:
            runtime, device, precision, on_calling_thread = "onnxruntime", "cpu", "fp32", True

            def run(self, values):
                found = inner.run(values)
                return [found[0] + 40, *found[1:]]

        return Moved()


class Absent(OrtCpu):
    def problem(self, precision):
        return Problem("there is no such device", "buy one")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, frames=20, size=(1280, 720), gop=10)
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "LOOKS", 3)
    monkeypatch.setattr(reference, "CACHE", tmp_path)


def test_without_a_gpu_it_says_what_is_missing_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"gpu": ""})
    assert gpu.main([]) == 0
    said, last = capsys.readouterr().out.splitlines()
    assert "no NVIDIA driver answers" in said
    assert json.loads(last) == {"bench": "gpu", "skipped": said.removeprefix("bench gpu measures nothing here: ")}


def test_a_gpu_that_nothing_can_use_is_told_with_every_reason_once(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"gpu": "NVIDIA H200"})
    monkeypatch.setattr(gpu, "gpu_ways", lambda _: [Way("a", Absent(), "fp32"), Way("b", Absent(), "fp16")])
    assert gpu.main([]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == "there is no such device: buy one"


def looks(*boxes: tuple[float, float, float, float], number: int = 0) -> list[Detections]:
    scores = np.zeros((len(boxes), 4), np.float32)
    scores[:, 2] = 0.9
    return [Detections(number, np.array(boxes, np.float32).reshape(-1, 4), scores, np.zeros((32, 3), np.float32))]


@pytest.mark.parametrize(
    ("found", "precision", "reason"),
    [
        (looks((10, 10, 40, 90)), "fp32", None),
        (looks((11, 10, 41, 90)), "fp16", None),
        (looks((11, 10, 41, 90)), "fp32", "1.00 px apart"),
        (looks((30, 10, 60, 90)), "fp16", "F1 0.000"),
        (looks(), "fp32", "F1 0.000"),
        (looks((10, 10, 40, 90), number=1), "fp32", "other frame numbers"),
    ],
)
def test_boxes_may_differ_as_far_as_the_precision_makes_them(found, precision, reason):
    said = gpu.difference(found, looks((10, 10, 40, 90)), precision)
    assert said is None if reason is None else reason in said


@needs_model
def test_all_of_it_runs_where_the_paths_do_and_the_wrong_one_is_not_timed(clip, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"gpu": "none, really"})
    monkeypatch.setattr(gpu, "the_match", lambda gop: clip)
    ways = [CPU, Way("lying", Lying(), "fp32"), Way("absent", Absent(), "fp32"), replace(CPU, name="x", suffix=".x")]
    monkeypatch.setattr(gpu, "gpu_ways", lambda _: ways)
    plot = tmp_path / "gpu.png"
    assert gpu.main(["--runs", "1", "--batches", "1", "2", "--plot", str(plot)]) == 1
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line["detector"]) == {"CPU fp32"}
    assert set(line["detector"]["CPU fp32"]) == {"1", "2"}
    assert len(line["wrong"]) >= 2
    assert all("lying: " in wrong for wrong in line["wrong"] if "detector" in wrong)
    assert line["streams"]["ratio"] > 0
    assert line["P6"]["f1"] > 0.97
    assert "decode" not in line  # there is no chip: software is not passed off as NVDEC
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_frames_of_the_chip_are_compared_before_they_are_timed(clip, monkeypatch):
    class Chip(gpu.GopDecoder):
        shift = 0

        def __init__(self, *given, device, **more):
            super().__init__(*given, **more)
            self.hardware, self._moved = device == "chip", self.shift if device == "chip" else 0

        def frames(self, until_row=None):
            for frame in super().frames(until_row):
                yield replace(frame, frame_number=frame.frame_number + self._moved)

    monkeypatch.setattr(gpu, "GopDecoder", Chip)
    right, wrong = Report(), Report()
    gpu.nvdec(right, clip, 1, device="chip")
    assert set(right.body["decode"]) == {"software", "NVDEC"}
    assert not right.wrong
    Chip.shift = 1
    gpu.nvdec(wrong, clip, 1, device="chip")
    assert "decode" not in wrong.body
    assert len(wrong.wrong) == 1
    assert "frame numbers are not the same" in wrong.wrong[0]


def test_pictures_kept_on_the_gpu_are_a_way_of_their_own(clip, monkeypatch):
    class Chip(gpu.GopDecoder):
        def __init__(self, *given, device, keep_on_device=False, **more):
            super().__init__(*given, **more)
            self.hardware = device == "chip"
            kept.append(keep_on_device)

    class Kept:
        """The planes never left the CPU: `surfaces` is the frame itself."""

        error = 0

        def takes(self, width, height):
            return (width, height) == (1280, 720)

        def grey(self, frame):
            return frame.grey() + self.error

    kept = []
    monkeypatch.setattr(gpu, "GopDecoder", Chip)
    monkeypatch.setattr(Frame, "on_device", True)
    monkeypatch.setattr(Frame, "surfaces", property(lambda self: (self, None)))
    right, wrong, surfaces = Report(), Report(), Kept()
    gpu.nvdec(right, clip, 1, device="chip", surfaces=surfaces)
    assert set(right.body["decode"]) == {"software", "NVDEC", "NVDEC, kept on the GPU"}
    assert set(kept) == {True, False}
    Kept.error = 20
    gpu.nvdec(wrong, clip, 1, device="chip", surfaces=surfaces)
    assert set(wrong.body["decode"]) == {"software", "NVDEC"}
    assert "kept on the GPU: frame" in wrong.wrong[0]


@needs_model
@pytest.mark.parametrize(("moved", "taken"), [(0.0, True), (40.0, False)], ids=["the same", "other boxes"])
def test_a_take_over_is_timed_where_the_engine_answers_rightly(clip, monkeypatch, moved, taken):
    monkeypatch.setattr(UpgradingSession.__init__, "__defaults__", (0.0,))
    engine, report = Fake("tensorrt", moved=moved), Report()
    engine.may_build.set()
    gpu.take_over(report, clip, Fake("onnxruntime"), engine)
    assert report.rows[0][1] == "tensorrt while onnxruntime serves"
    assert ("take_over" in report.body) == taken
    assert taken or "not taken" in report.rows[0][4]
    assert not report.wrong


def test_another_picture_under_the_right_number_is_found():
    plane = np.full((4, 4), 100, np.uint8)
    assert gpu._other_pictures({0: plane}, {0: plane + 1}) is None
    assert "frame 3 is another picture: 20.0" in gpu._other_pictures({3: plane}, {3: plane + 20})
