"""An operator's own models: every output form, read from files built here and answered in source pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import detect_graphs
import numpy as np
import pytest
from onnx import TensorProto

from firsttouch.detect import load_detector
from firsttouch.detect.planes import planes_of_picture
from firsttouch.detect.session import ModelFile
from firsttouch.detect.yolo import class_of_name, read_form
from firsttouch.errors import ModelMismatch

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
NAMES = "{0: 'player', 1: 'referee', 2: 'ball', 3: 'goalkeeper'}"
CELLS = 8400
PICTURE = (1280, 720)
# In a 640x640 input a 1280x720 picture is half as large and begins at row 140.
CENTRE_IN_INPUT, CENTRE_IN_PICTURE = (320, 240), (640, 200)
POINTS = np.stack([np.linspace(20, 600, 32), np.linspace(150, 480, 32)], axis=1)


def detect(detector, width=1280, height=720, pitch=True, colour=(40, 90, 60)):
    picture = np.full((height, width, 3), colour, np.uint8)
    return detector.detect([detector.prepare(*planes_of_picture(picture))], [5], width, height, pitch=pitch)[0]


def anchors(boxes, classes=4, extra=0):
    """[1, 4 + classes + extra, cells] with (cell, centre box, class, score) written in."""
    values = np.zeros((1, 4 + classes + extra, CELLS), np.float32)
    for cell, box, kind, score in boxes:
        values[0, :4, cell] = box
        values[0, 4 + kind, cell] = score
    return values


@pytest.fixture(autouse=True)
def no_bundled(monkeypatch):
    """Only the models of the test."""
    monkeypatch.setattr("firsttouch.detect.load.BUNDLED_MODEL", Path("no such file"))


def test_a_v8_or_v11_model_is_read_mapped_and_brought_back_to_source_pixels(tmp_path):
    values = anchors(
        [(7, (*CENTRE_IN_INPUT, 40, 80), 0, 0.9), (900, (100, 300, 6, 6), 2, 0.7), (50, (50, 200, 9, 20), 1, 0.1)]
    )
    path = detect_graphs.constant(tmp_path / "v8.onnx", values, (640, 640), {"names": NAMES, "task": "detect"})
    found = detect(load_detector(player=path))
    np.testing.assert_allclose(found.xyxy, [[600, 120, 680, 280], [194, 314, 206, 326]], atol=1e-3)
    assert found.class_id.tolist() == [2, 0]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.7])
    assert found.frame_number == 5


def test_nms_keeps_one_box_a_body_whatever_its_class_and_the_ball_apart(tmp_path):
    values = anchors(
        [
            (1, (320, 240, 40, 80), 0, 0.9),
            (2, (322, 241, 40, 80), 3, 0.8),
            (3, (321, 240, 38, 80), 2, 0.7),
            (4, (400, 240, 40, 80), 0, 0.6),
        ]
    )
    path = detect_graphs.constant(tmp_path / "v8.onnx", values, (640, 640), {"names": NAMES})
    found = detect(load_detector(player=path))
    assert found.class_id.tolist() == [2, 0, 2]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_a_model_with_nms_inside_is_read_as_it_is(tmp_path):
    values = np.zeros((1, 300, 6), np.float32)
    values[0, 0] = (300, 200, 340, 280, 0.9, 3)
    values[0, 1] = (302, 200, 342, 280, 0.8, 0)
    path = detect_graphs.constant(tmp_path / "v26.onnx", values, (640, 640), {"names": NAMES, "end2end": "True"})
    found = detect(load_detector(player=path))
    np.testing.assert_allclose(found.xyxy[0], [600, 120, 680, 280], atol=1e-3)
    assert found.class_id.tolist() == [1, 2]


def test_a_yolox_model_is_decoded_from_its_cells(tmp_path):
    values = np.zeros((1, CELLS, 5 + 4), np.float32)
    # Cell 80 * 30 + 40 of stride 8 is column 40, row 30: centre (40.5 * 8, 30.25 * 8), size e^1 * 8 by e^2 * 8.
    values[0, 80 * 30 + 40] = (0.5, 0.25, 1, 2, 0.9, 0, 0, 0.8, 0.1)
    # The last cell is of stride 32: column 19, row 19.
    values[0, -1] = (0, 0, 0, 0, 1, 0.5, 0, 0, 0)
    path = detect_graphs.constant(tmp_path / "x.onnx", values, (640, 640), {})
    found = detect(load_detector(player=path), 640, 640)
    centre, size = np.array([324, 242]), np.array([np.e, np.e**2]) * 8
    np.testing.assert_allclose(found.xyxy[0], [*(centre - size / 2), *(centre + size / 2)], rtol=1e-5)
    assert found.class_scores[0].tolist() == pytest.approx([0, 0, 0.72, 0.09])
    np.testing.assert_allclose(found.xyxy[1], [592, 592, 624, 624])
    assert found.class_id.tolist() == [2, 0]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_pose_model_gives_the_pitch(tmp_path, dimensions):
    values = anchors([(7, (320, 320, 600, 300), 0, 0.8)], classes=1, extra=32 * dimensions)
    points = np.column_stack([POINTS, np.full(32, 0.9)])[:, :dimensions]
    values[0, 5:, 7] = points.ravel()
    metadata = {"names": "{0: 'pitch'}", "task": "pose", "kpt_shape": f"[32, {dimensions}]"}
    pitch = detect_graphs.constant(tmp_path / "pose.onnx", values, (640, 640), metadata)
    detector = load_detector(pitch=pitch)
    found = detect(detector)
    np.testing.assert_allclose(found.keypoints[:, :2], (POINTS - (0, 140)) * 2, atol=1e-3)
    assert found.keypoints[:, 2] == pytest.approx(0.9 if dimensions == 3 else 0.8)
    assert not detect(detector, pitch=False).keypoints.any()


def test_a_pose_model_with_nms_inside_gives_the_pitch(tmp_path):
    values = np.zeros((1, 300, 6 + 96), np.float32)
    values[0, 0, :6] = (0, 140, 640, 500, 0.9, 0)
    values[0, 0, 6:] = np.column_stack([POINTS, np.full(32, 0.7)]).ravel()
    metadata = {"names": "{0: 'pitch'}", "task": "pose", "kpt_shape": "[32, 3]"}
    pitch = detect_graphs.constant(tmp_path / "pose26.onnx", values, (640, 640), metadata)
    found = detect(load_detector(pitch=pitch))
    np.testing.assert_allclose(found.keypoints[:, :2], (POINTS - (0, 140)) * 2, atol=1e-3)


def test_three_models_are_put_together_and_skipping_the_pitch_does_not_run_it(tmp_path, monkeypatch):
    player = detect_graphs.constant(
        tmp_path / "player.onnx",
        anchors([(7, (*CENTRE_IN_INPUT, 40, 80), 0, 0.9), (8, (10, 200, 6, 6), 2, 0.8)]),
        (640, 640),
        {"names": NAMES},
    )
    ball_values = np.zeros((1, 5, CELLS), np.float32)
    ball_values[0, :, 3] = (500, 300, 8, 8, 0.6)
    ball = detect_graphs.constant(tmp_path / "ball.onnx", ball_values, (640, 640), {"names": "['football']"})
    pose = anchors([(7, (320, 320, 600, 300), 0, 0.8)], classes=1, extra=96)
    pose[0, 5:, 7] = np.column_stack([POINTS, np.full(32, 0.9)]).ravel()
    pitch = detect_graphs.constant(
        tmp_path / "pitch.onnx", pose, (640, 640), {"names": "{0: 'pitch'}", "kpt_shape": "[32, 3]"}
    )
    detector = load_detector(player=player, ball=ball, pitch=pitch)
    found = detect(detector)
    assert detector.name == "player+ball+pitch"
    assert found.class_id.tolist() == [2, 0]  # the ball model's ball, not the player model's
    np.testing.assert_allclose(found.xyxy[1], [992, 312, 1008, 328], atol=1e-3)
    assert (found.keypoints[:, 2] > 0).all()
    ran = []
    monkeypatch.setattr(detector._by_role["pitch"], "look", lambda *_: ran.append(1))
    assert not detect(detector, pitch=False).keypoints.any()
    assert ran == []


def test_what_no_own_model_is_named_for_the_bundled_network_does(tmp_path):
    boxes = np.array([[100, 200, 140, 280], [640, 360, 650, 370]], np.float32)
    points = np.zeros((32, 3), np.float32)
    points[3] = (320, 180, 0.9)
    native = detect_graphs.native(
        tmp_path / "own.onnx", boxes, np.array([[0, 0, 0.8, 0], [0.7, 0, 0, 0]], np.float32), points
    )
    values = np.zeros((1, 5, CELLS), np.float32)
    values[0, :, 3] = (500, 300, 8, 8, 0.6)
    ball = detect_graphs.constant(tmp_path / "ball.onnx", values, (640, 640), {"names": "{0: 'ball'}"})
    found = detect(load_detector(model=native, ball=ball), colour=(255, 255, 255))
    assert found.class_id.tolist() == [2, 0]
    np.testing.assert_allclose(found.xyxy[1], [992, 312, 1008, 328], atol=1e-3)
    assert np.flatnonzero(found.keypoints[:, 2]).tolist() == [3]


@pytest.mark.parametrize(("transposed", "colour", "score"), [(False, (0, 0, 255), 1.0), (True, (255, 0, 0), 255.0)])
def test_ultralytics_wants_rgb_of_one_and_yolox_bgr_of_255(tmp_path, transposed, colour, score):
    cells = sum((128 // s) ** 2 for s in (8, 16, 32))
    metadata = {} if transposed else {"names": "{0: 'player'}"}
    path = detect_graphs.first_channel(tmp_path / "c.onnx", cells, (128, 128), metadata, transposed)
    detector = load_detector(player=path, confidence=0.05)
    found = detect(detector, 128, 128, colour=colour)
    assert found.confidence[0] == pytest.approx(score, rel=0.02)
    other = detect(detector, 128, 128, colour=colour[::-1])
    assert len(other) == 0 or other.confidence[0] < 0.1 * score


def test_the_rest_of_the_input_is_grey(tmp_path):
    cells = sum((128 // s) ** 2 for s in (8, 16, 32))
    path = detect_graphs.first_channel(tmp_path / "c.onnx", cells, (128, 128), {"names": "{0: 'player'}"}, False)
    found = detect(load_detector(player=path, confidence=0.05), 128, 64, colour=(0, 0, 0))
    assert found.confidence[0] == pytest.approx(114 / 255, rel=0.01)


def test_img_size_sets_the_input_of_a_model_of_any_size(tmp_path):
    width, height = 416, 256
    cells = sum((width // s) * (height // s) for s in (8, 16, 32))
    values = np.zeros((1, 5, cells), np.float32)
    values[0, :, 3] = (208, 128, 20, 40, 0.6)
    path = detect_graphs.constant(
        tmp_path / "dynamic.onnx", values, ("height", "width"), {"names": "{0: 'player'}"}, [1, 5, "anchors"]
    )
    form = read_form(ModelFile.read(path), "player", 416)
    assert (form.kind, form.width, form.height) == ("anchors", 416, 256)
    found = detect(load_detector(player=path, img_size=416))
    scale = 416 / 1280
    assert found.xyxy[0, [0, 2]].mean() == pytest.approx(640, abs=1)
    assert found.xyxy[0, 2] - found.xyxy[0, 0] == pytest.approx(20 / scale, rel=1e-3)


def test_half_precision_inputs_are_given_halves(tmp_path):
    values = anchors([(7, (*CENTRE_IN_INPUT, 40, 80), 0, 0.9)])
    path = detect_graphs.constant(
        tmp_path / "half.onnx", values, (640, 640), {"names": NAMES}, element_type=TensorProto.FLOAT16
    )
    assert len(detect(load_detector(player=path))) == 1


@pytest.mark.parametrize("size", [(1280, 720), (853, 479), (640, 480), (720, 1280)])
def test_packed_planes_give_the_picture_back(tmp_path, size):
    values = anchors([(7, (*CENTRE_IN_INPUT, 40, 80), 0, 0.9)])
    detector = load_detector(player=detect_graphs.constant(tmp_path / "v8.onnx", values, (640, 640), {"names": NAMES}))
    width, height = size
    picture = np.full((height, width, 3), (50, 120, 200), np.uint8)
    planes = planes_of_picture(picture)
    packed = detector.prepare(*planes)
    assert detector.prepare(*planes, out=packed) is packed
    back = cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_I420)[:height, :width]
    assert np.abs(back.astype(int) - picture).max() <= 4


@pytest.mark.parametrize(
    ("values", "metadata", "role", "message"),
    [
        (np.zeros((1, 17, 33)), {"names": NAMES}, "player", "no form we know"),
        (np.zeros((1, 6, CELLS)), {"names": "{0: 'cat', 1: 'dog'}"}, "player", "'cat', 'dog'"),
        (np.zeros((1, 6, CELLS)), {"names": NAMES}, "player", "6 values a box, but 4 classes"),
        (np.zeros((1, 5, CELLS)), {"names": "{0: 'ball'}"}, "player", "hold no player"),
        (np.zeros((1, 5, CELLS)), {"names": "{0: 'player'}"}, "ball", "hold no ball"),
        (np.zeros((1, 8, CELLS)), {"names": NAMES}, "pitch", "no key points"),
        (np.zeros((1, 56, CELLS)), {"names": "{0: 'person'}", "kpt_shape": "[17, 3]"}, "pitch", "17 key points"),
        (np.zeros((1, CELLS, 12)), {}, "player", "7 classes without names"),
        (np.zeros((1, 8, CELLS)), {"names": "__import__('os')"}, "player", "unreadable class names"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_was_found(tmp_path, values, metadata, role, message):
    path = detect_graphs.constant(tmp_path / "odd.onnx", values, (640, 640), metadata)
    with pytest.raises(ModelMismatch, match=message):
        load_detector(**{role: path})


def test_a_persons_pose_model_can_still_find_players(tmp_path):
    values = anchors([(7, (*CENTRE_IN_INPUT, 40, 80), 0, 0.9)], classes=1, extra=51)
    metadata = {"names": "{0: 'person'}", "kpt_shape": "[17, 3]"}
    found = detect(load_detector(player=detect_graphs.constant(tmp_path / "p.onnx", values, (640, 640), metadata)))
    assert found.class_id.tolist() == [2]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Football", 0),
        ("sports ball", 0),
        ("goal-keeper", 1),
        ("GK", 1),
        ("Players", 2),
        ("person", 2),
        ("referees", 3),
        ("pitch", None),
        ("football player", 2),
        ("football-goal", None),
    ],
)
def test_class_names_are_mapped(name, ours):
    assert class_of_name(name) == ours


@pytest.mark.skipif(not (SHARED / "weights").exists(), reason="the shared weights are not here")
def test_yolox_nano_of_coco_finds_people_on_a_real_frame():
    detector = load_detector(player=SHARED / "weights" / "yolox_nano_coco.onnx", confidence=0.2)
    file = sorted((SHARED / "detection" / "val" / "images").glob("*.jpg"))[0]
    picture = cv2.imread(str(file))
    height, width = picture.shape[:2]
    found = detector.detect([detector.prepare(*planes_of_picture(picture))], [0], width, height, pitch=False)[0]
    people = found.xyxy[found.class_id == 2]
    label = file.parent.parent / "labels" / f"{file.stem}.txt"
    rows = np.array([line.split() for line in label.read_text().splitlines()], float)
    centres = rows[rows[:, 0] > 0][:, 1:3] * (width, height)
    hit = [((people[:, :2] <= c) & (c <= people[:, 2:])).all(axis=1).any() for c in centres]
    assert np.mean(hit) > 0.3  # 416x416 sees a third of such small people at least
