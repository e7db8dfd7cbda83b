"""`firsttouch evaluate` on small folders whose right figures are known by construction."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import detect_graphs
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from firsttouch.commands import evaluate as command
from firsttouch.detect import load_detector
from firsttouch.detect.planes import planes_of_picture, unstretched
from firsttouch.errors import SettingsError
from firsttouch.evaluate import evaluate, find_groups, keypoint_figures, read_label
from firsttouch.pitch import POINTS

BOXES = np.array([[100, 200, 140, 280], [600, 300, 640, 380], [900, 400, 940, 480], [800, 500, 812, 512]], np.float32)
CLASSES = np.array([2, 1, 3, 0])
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def scores(classes):
    values = np.full((len(classes), 4), 0.02, np.float32)
    values[np.arange(len(classes)), classes] = np.linspace(0.9, 0.6, len(classes))
    return values


def seen_points():
    """A view of the left penalty area, with the points the table says."""
    corners = np.array([[0, 0], [0, 68], [40, 68], [40, 0]], np.float32)
    pixels = np.array([[400, 150], [100, 600], [1200, 680], [1000, 140]], np.float32)
    view = cv2.getPerspectiveTransform(corners, pixels)
    points = cv2.perspectiveTransform(POINTS.reshape(-1, 1, 2), view).reshape(-1, 2)
    inside = (POINTS[:, 0] < 20) & (points >= 0).all(1) & (points[:, 0] < 1280) & (points[:, 1] < 720)
    return np.where(inside[:, None], np.column_stack([points, np.full(32, 0.9)]), 0).astype(np.float32)


@pytest.fixture
def detector(tmp_path):
    path = detect_graphs.native(tmp_path / "tiny.onnx", BOXES, scores(CLASSES), seen_points())
    return load_detector(model=path, confidence=0.01)


def write(folder: Path, name: str, size=(1280, 720), boxes=True, pitch=False, shift=0.0):
    """A grey picture with a white corner, and its labels."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    picture = np.full((size[1], size[0], 3), 90, np.uint8)
    picture[:40, :40] = 255
    cv2.imwrite(str(folder / "images" / f"{name}.jpg"), picture)
    lines = []
    if boxes:
        for kind, (x1, y1, x2, y2) in zip(CLASSES, BOXES, strict=True):
            x, y, w, h = (x1 + x2) / 2 + shift, (y1 + y2) / 2, x2 - x1, y2 - y1
            lines.append(f"{kind} {x / 1280} {y / 720} {w / 1280} {h / 720}")
    if pitch:
        points = seen_points()
        moved = points[:, :2] + np.where(points[:, 2:] > 0, [shift, 0], 0)
        values = np.column_stack([moved / (1280, 720), 2 * (points[:, 2] > 0)]).ravel()
        lines.append("0 0.5 0.5 1 1 " + " ".join(f"{v:.8f}" for v in values))
    (folder / "labels" / f"{name}.txt").write_text("\n".join(lines))


def test_a_row_is_ranked_in_every_class_by_its_score_for_it(tmp_path):
    """The keeper is called a player, but its second guess is the best there is for a keeper."""
    values = scores(CLASSES)
    values[1] = [0.01, 0.3, 0.5, 0.0]
    path = detect_graphs.native(tmp_path / "unsure.onnx", BOXES, values, seen_points())
    data = tmp_path / "data"
    write(data / "val", "match_1")
    found = evaluate(load_detector(model=path, confidence=0.01), data)
    assert found["map50"]["goalkeeper"] == pytest.approx(1)
    assert found["map50"]["player"] == pytest.approx(1), "the false player ranks behind the true one"


def test_a_detector_that_answers_the_labels_has_figures_of_one(tmp_path, detector):
    data = tmp_path / "data"
    write(data / "detection" / "val", "match_1")
    write(data / "pitch" / "val", "match_2", boxes=False, pitch=True)
    write(data / "pitch_broadcast" / "val", "tv_1", (640, 640), boxes=False, pitch=True)
    write(data / "detection" / "train", "not_looked_at", shift=500)
    found = evaluate(detector, data)
    assert found["map50"] == pytest.approx({"player": 1, "goalkeeper": 1, "referee": 1, "ball": 1})
    assert found["map50_95"]["player"] == pytest.approx(1)
    assert found["by_size"]["small"]["ball"] == pytest.approx(1)
    assert found["keypoint_error_share_of_width"] == pytest.approx(0, abs=1e-4)
    assert found["keypoints_within_1_percent"] == 1
    assert found["homography_found"] == 1
    assert found["milliseconds_per_frame"] > 0
    assert (found["box_frames"], found["pitch_frames"]) == (1, 2)
    assert set(found["groups"]) == {"detection/val", "pitch/val", "pitch_broadcast/val"}


def test_labels_beside_the_boxes_are_missed_and_points_10_px_off_are_measured(tmp_path, detector):
    write(tmp_path / "val", "match_1", pitch=True, shift=10.24)
    found = evaluate(detector, tmp_path / "val")
    # A shift of 10.24 px leaves people of 40 px an IoU of 0.59, and no ball of 12 px.
    assert found["map50"]["player"] == pytest.approx(1)
    assert found["map50_95"]["player"] == pytest.approx(0.2)
    assert found["map50"]["ball"] == 0
    assert found["keypoint_error_share_of_width"] == pytest.approx(0.008, abs=1e-5)


def test_a_shifted_pitch_is_not_a_right_homography():
    points = seen_points()
    moved = points.copy()
    moved[points[:, 2] > 0, 0] += 0.02 * 1280
    right, wrong = (keypoint_figures(p, points, 1280, 720) for p in (points, moved))
    assert (right.frames, right.right_homographies) == (1, 1)
    assert (wrong.frames, wrong.right_homographies) == (1, 0)
    assert np.mean(wrong.errors) == pytest.approx(0.02, abs=1e-6)


def test_frames_of_clips_are_found_by_the_labels_names(tmp_path, detector):
    clips, labels = tmp_path / "clips", tmp_path / "broadcast"
    clips.mkdir()
    labels.mkdir()
    writer = cv2.VideoWriter(str(clips / "a_720p.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (1280, 720))
    for _ in range(5):
        picture = np.full((720, 1280, 3), 90, np.uint8)
        picture[:40, :40] = 255
        writer.write(picture)
    writer.release()
    write(tmp_path / "scratch", "a_3")
    (labels / "a_3.txt").write_text((tmp_path / "scratch" / "labels" / "a_3.txt").read_text())
    (labels / "README.txt").write_text("what the labels are\n")
    found = evaluate(detector, labels, clips=clips)
    assert found["box_frames"] == 1
    assert found["map50"]["player"] == pytest.approx(1)
    with pytest.raises(SettingsError, match="no pictures"):
        evaluate(detector, labels)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="no labels"):
        find_groups(tmp_path)
    with pytest.raises(SettingsError, match="no folder"):
        find_groups(tmp_path / "gone")


def test_a_line_of_another_form_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(SettingsError, match="4 numbers"):
        read_label(file, 1280, 720)


def test_planes_of_a_picture_give_the_picture_back():
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (9, 16, 3), np.uint8)
    picture = cv2.resize(small, (640, 360), interpolation=cv2.INTER_CUBIC)
    y, u, v = planes_of_picture(picture)
    assert (y.shape, u.shape, v.shape) == ((360, 640), (180, 320), (180, 320))
    back = cv2.cvtColor(np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(540, 640), cv2.COLOR_YUV2BGR_I420)
    assert np.abs(back.astype(int) - picture).mean() < 4
    odd = planes_of_picture(picture[:359, :639])
    assert (odd[0].shape, odd[1].shape) == ((359, 639), (180, 320))


def test_only_squares_are_unstretched():
    assert unstretched(np.zeros((640, 640, 3), np.uint8)).shape == (720, 1280, 3)
    assert unstretched(np.zeros((480, 640, 3), np.uint8)).shape == (480, 640, 3)


def test_the_command_prints_one_object_or_a_table(tmp_path, detector):
    write(tmp_path / "data" / "val", "match_1", pitch=True)
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    arguments = ["evaluate", "--data", str(tmp_path / "data"), "--model", str(tmp_path / "tiny.onnx")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = {"map50", "map50_95", "by_size", "keypoint_error_share_of_width", "homography_found"}
    assert names | {"milliseconds_per_frame"} <= set(found)
    assert "player" in CliRunner().invoke(app, arguments).stdout


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_the_shared_folders_are_found_and_read():
    groups = find_groups(SHARED)
    assert [g.name for g in groups] == ["detection/val", "pitch/val", "pitch_broadcast/val"]
    assert all(g.images is not None for g in groups)


def test_labels_of_our_own_are_boxes_of_known_classes_inside_the_picture():
    files = sorted((Path(__file__).parent.parent / "train/labels/people").rglob("*.txt"))
    rows = np.array([line.split() for file in files for line in file.read_text().splitlines()], float)
    assert len(files) == 277
    assert set(rows[:, 0]) == {-1, 0, 1, 2, 3}
    low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
    assert (low >= -1e-4).all()
    assert (high <= 1 + 1e-4).all()
    assert (rows[:, 3:] > 0).all()
