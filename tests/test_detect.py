"""The native network's detector: its input, its boxes back in source pixels, what it runs and what not."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import detect_graphs
import numpy as np
import onnx
import pytest

from firsttouch.detect import BUNDLED_MODEL, Detections, load_detector
from firsttouch.detect.choose import has_int8_instructions
from firsttouch.detect.graph import keep_outputs, read_facts
from firsttouch.detect.native import ALL_OUTPUTS
from firsttouch.detect.ort import OrtCpu
from firsttouch.detect.planes import Canvas, fill, planes_of_picture
from firsttouch.detect.session import ModelFile
from firsttouch.errors import ModelMismatch, ModelNotFound
from train.render import make_scene, render_frame

BOXES = np.array([[100, 200, 140, 280], [1270, 700, 1300, 730], [640, 360, 644, 364]], np.float32)
SCORES = np.array([[0, 0.1, 0.8, 0.05], [0, 0.6, 0.1, 0], [0.3, 0, 0, 0]], np.float32)
POINTS = np.zeros((32, 3), np.float32)
POINTS[3] = (320, 180, 0.9)
POINTS[4] = (500, 500, 0.1)
POINTS[5] = (1280, 10, 0.9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return detect_graphs.native(tmp_path / "tiny.onnx", BOXES, SCORES, POINTS)


def picture(width: int, height: int, seed: int = 0):
    random = np.random.default_rng(seed)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    y = random.integers(16, 236, (height, width), np.uint8)
    y[:8, :8] = 255
    return y, random.integers(16, 240, chroma, np.uint8), random.integers(16, 240, chroma, np.uint8)


def test_a_720p_picture_is_only_dealt_out_to_planes_not_resampled():
    y, u, v = picture(1280, 720)
    planes = fill(Canvas.of_size(640), y, u, v)
    assert planes.shape == (368, 640, 6)
    rebuilt = np.empty_like(y)
    for phase in range(4):
        rebuilt[phase // 2 :: 2, phase % 2 :: 2] = planes[:360, :, phase]
    assert (rebuilt == y).all()
    assert (planes[:360, :, 4] == u).all()
    assert (planes[:360, :, 5] == v).all()
    assert (planes[360:, :, :4] == 16).all()
    assert (planes[360:, :, 4:] == 128).all()


def test_rows_of_a_decoder_buffer_with_padding_at_their_end_are_read_right():
    y, u, v = picture(1280 + 64, 720)
    inside = fill(Canvas.of_size(640), y[:, :1280], u[:, :640], v[:, :640])
    alone = fill(Canvas.of_size(640), y[:, :1280].copy(), u[:, :640].copy(), v[:, :640].copy())
    assert (inside == alone).all()


@pytest.mark.parametrize("size", [(1920, 1080), (854, 480), (640, 480), (720, 1280), (853, 479), (96, 64)])
@pytest.mark.parametrize("img_size", [640, 416])
def test_other_sizes_are_scaled_without_distortion(size, img_size):
    width, height = size
    canvas = Canvas.of_size(img_size)
    fitted_width, fitted_height = canvas.fit(width, height)
    assert fitted_width <= 2 * canvas.width
    assert fitted_height <= 2 * canvas.height
    factor_x, factor_y = canvas.to_source(width, height)
    assert factor_x == pytest.approx(factor_y, rel=2 / min(fitted_width, fitted_height))


@pytest.mark.parametrize("size", [(1920, 1080), (854, 480), (640, 480), (720, 1280), (853, 479)])
def test_a_spot_lands_where_to_source_says(size):
    width, height = size
    y, u, v = (np.full(p.shape, 16, np.uint8) for p in picture(width, height))
    cv2.circle(y, (width // 3, height // 4), 9, 235, -1)
    canvas = Canvas.of_size(640)
    planes = fill(canvas, y, u, v)
    luma = np.empty((2 * canvas.height, 2 * canvas.width), np.uint8)
    for phase in range(4):
        luma[phase // 2 :: 2, phase % 2 :: 2] = planes[..., phase]
    rows, columns = np.nonzero(luma > 120)
    factor_x, factor_y = canvas.to_source(width, height)
    centre = ((columns.mean() + 0.5) * factor_x, (rows.mean() + 0.5) * factor_y)
    assert centre == pytest.approx((width // 3 + 0.5, height // 4 + 0.5), abs=0.7)


def test_a_reused_input_holds_nothing_of_the_picture_before():
    canvas = Canvas.of_size(640)
    out = fill(canvas, *picture(1280, 720))
    again = fill(canvas, *picture(640, 480), out=out)
    assert again is out
    assert (again == fill(canvas, *picture(640, 480))).all()


def test_boxes_and_points_come_back_in_source_pixels_cut_at_the_edge(model):
    detector = load_detector(model=model, confidence=0.25)
    found = detector.detect([detector.prepare(*picture(1920, 1080))], [7], 1920, 1080, pitch=True)[0]
    assert found.frame_number == 7
    np.testing.assert_allclose(found.xyxy, np.minimum(BOXES * 1.5, [1920, 1080, 1920, 1080]), atol=1e-3)
    np.testing.assert_allclose(found.class_scores, SCORES, atol=1e-5)
    assert found.class_id.tolist() == [2, 1, 0]
    assert found.confidence.tolist() == pytest.approx([0.8, 0.6, 0.3], abs=1e-5)
    assert np.flatnonzero(found.keypoints[:, 2]).tolist() == [3]  # 4 is unsure, 5 outside the picture
    np.testing.assert_allclose(found.keypoints[3], (480, 270, 0.9), atol=1e-3)


def test_confidence_and_max_detections_limit_the_answer(model):
    picked = load_detector(model=model, confidence=0.5)
    found = picked.detect([picked.prepare(*picture(1280, 720))], [0], 1280, 720, pitch=True)[0]
    assert len(found) == 2
    few = load_detector(model=model, confidence=0.1, max_detections=1)
    assert len(few.detect([few.prepare(*picture(1280, 720))], [0], 1280, 720, pitch=False)[0]) == 1


def test_without_pitch_the_key_point_head_is_not_in_the_graph_that_runs(model):
    detector = load_detector(model=model)
    found = detector.detect([detector.prepare(*picture(1280, 720))], [0], 1280, 720, pitch=False)[0]
    assert not found.keypoints.any()
    assert len(found) == 3
    cut = onnx.load_from_string(keep_outputs(model.read_bytes(), ["boxes", "scores"]))
    onnx.checker.check_model(cut)
    assert "pitch_head" not in {n.name for n in cut.graph.node}
    assert "kernel" not in {i.name for i in cut.graph.initializer}


def test_cut_graph_equals_the_one_the_onnx_package_extracts(model):
    whole = onnx.load(model)
    for outputs in (["boxes"], ["scores"], ["keypoints"], ["boxes", "scores"]):
        expected = onnx.utils.Extractor(whole).extract_model(["planes"], outputs)
        cut = onnx.load_from_string(keep_outputs(model.read_bytes(), outputs))
        assert [n.output for n in cut.graph.node] == [n.output for n in expected.graph.node]
        assert {i.name for i in cut.graph.initializer} == {i.name for i in expected.graph.initializer}
        assert [o.name for o in cut.graph.output] == outputs


def test_facts_of_a_file_equal_what_the_onnx_package_reads(model):
    facts = read_facts(model.read_bytes())
    assert [(t.name, t.element_type, t.shape) for t in facts.inputs] == [
        ("planes", "uint8", ("batch", "height", "width", 6))
    ]
    assert [t.name for t in facts.outputs] == ["boxes", "scores", "keypoints"]
    assert json.loads(facts.metadata["firsttouch"]) == detect_graphs.NATIVE_FACTS


def test_two_threads_get_the_answers_of_one(model):
    detector = load_detector(model=model, confidence=0.0)
    inputs = []
    for seed in range(12):
        y, u, v = picture(1280, 720, seed)
        inputs.append(detector.prepare(np.minimum(y, 60 + 10 * seed), u, v))
    numbers = list(range(12))
    alone = detector.detect(inputs, numbers, 1280, 720, pitch=True)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(detector.detect, [planes], [number], 1280, 720, pitch=bool(number % 2))
            for number, planes in zip(numbers, inputs, strict=True)
        ]
        together = [job.result()[0] for job in jobs]
    for one, other in zip(alone, together, strict=True):
        assert one.frame_number == other.frame_number
        assert (one.class_scores == other.class_scores).all()


@pytest.mark.parametrize(("img_size", "shape"), [(416, (240, 416, 6)), (512, (288, 512, 6))])
def test_img_size_changes_the_input_not_the_answer(model, img_size, shape):
    detector = load_detector(model=model, img_size=img_size)
    planes = detector.prepare(*picture(1280, 720))
    assert planes.shape == shape
    factor = 640 / img_size
    found = detector.detect([planes], [0], 1280, 720, pitch=False)[0]
    np.testing.assert_allclose(found.xyxy[0], BOXES[0] * factor, rtol=1e-4)


def test_a_missing_model_and_a_wrong_one_are_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"gone\.onnx"):
        load_detector(model=tmp_path / "gone.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"<html>not a model</html>")
    with pytest.raises(ModelMismatch):
        load_detector(model=broken)
    other = detect_graphs.NATIVE_FACTS | {"layout": 9}
    path = detect_graphs.native(tmp_path / "future.onnx", BOXES, SCORES, POINTS, other)
    with pytest.raises(ModelMismatch, match="layout 9"):
        load_detector(model=path)


def test_int8_is_only_tried_where_the_processor_has_the_instructions(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : old\nflags\t\t: sse2 avx2 avx512f\n")
    assert not has_int8_instructions(cpuinfo)
    cpuinfo.write_text("model name : new\nflags\t\t: sse2 avx2 avx512_vnni\n")
    assert has_int8_instructions(cpuinfo)
    assert has_int8_instructions(tmp_path / "no such file")


def test_detections_of_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="class_scores"):
        Detections(0, *(np.zeros(shape, np.float32) for shape in ((2, 4), (1, 4), (32, 3))))
    with pytest.raises(ValueError, match="shirts"):
        Detections(0, *(np.zeros(shape, np.float32) for shape in ((2, 4), (2, 4), (32, 3), (1, 2, 3))))
    assert len(Detections.none(3)) == 0
    assert Detections.none(3).confidence.shape == (0,)


def test_reading_detections_does_not_import_a_runtime():
    code = "import sys, firsttouch.detect; print('onnxruntime' in sys.modules, 'openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
def test_the_fp16_file_that_ships_decodes_its_boxes_and_points_in_float32():
    picture, _ = render_frame(make_scene(seed=3, frames=1), 0)
    planes = fill(Canvas.of_size(640), *planes_of_picture(picture))[None]
    whole, half = (
        OrtCpu().open(ModelFile.read(path), ALL_OUTPUTS, planes.shape, "fp32").run(planes)
        for path in (BUNDLED_MODEL, BUNDLED_MODEL.with_suffix(".fp16.onnx"))
    )
    sure = whole[1][0].max(1) > 0.5
    assert sure.sum() > 10
    for box in whole[0][0][sure]:  # half precision knows half pixels there
        assert np.abs(half[0][0] - box).max(1).min() < 0.1
    seen = whole[2][0][:, 2] > 0.5
    assert seen.sum() > 4
    np.testing.assert_allclose(half[2][0][seen, :2], whole[2][0][seen, :2], atol=0.1)
