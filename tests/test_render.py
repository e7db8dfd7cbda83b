"""The renderer's labels are compared with its pictures, and its clips with what PyAV finds in them."""

import itertools
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from train import render
from train.render import BALL, KEYPOINTS, make_scene, random_still, render_frame, write_clip

SMALL = (640, 360)


def _fit(labels: render.FrameLabels) -> np.ndarray:
    seen = labels.keypoints[:, 2] > 0
    homography, _ = cv2.findHomography(KEYPOINTS[seen], labels.keypoints[seen, :2])
    return homography


def _scene_with_points(least: int) -> tuple[np.ndarray, render.FrameLabels]:
    for seed in range(20):
        picture, labels = render_frame(make_scene(seed, 2, (1280, 720)), 0)
        if labels.keypoints[:, 2].sum() >= least:
            return picture, labels
    raise AssertionError(f"no scene of 20 shows {least} key points")


def test_homography_from_key_points_lands_on_the_drawn_lines() -> None:
    picture, labels = _scene_with_points(6)
    homography = _fit(labels)
    np.testing.assert_allclose(homography, labels.homography, atol=1e-3 * np.abs(labels.homography).max())
    grey = cv2.GaussianBlur(picture, (3, 3), 0).min(axis=2).astype(float)  # lines are white, grass is not
    on, beside = [], []
    lines = np.array([(52.5, y) for y in np.arange(2, 66, 0.5)] + [(x, 0.0) for x in np.arange(2, 103, 0.5)])
    for offset, values in ((0.0, on), (0.6, beside)):
        points = np.append(lines + offset, np.ones((len(lines), 1)), axis=1) @ homography.T
        for x, y in points[:, :2] / points[:, 2:]:
            if 5 < x < 1275 and 5 < y < 715:
                values.append(grey[int(y), int(x)])
    assert len(on) > 30
    assert np.median(on) > 1.5 * np.median(beside)


def test_key_points_follow_the_table_of_the_labels() -> None:
    assert KEYPOINTS.shape == (32, 2)
    np.testing.assert_allclose(KEYPOINTS[[0, 5, 24, 29]], [(0, 0), (0, 68), (105, 0), (105, 68)])
    np.testing.assert_allclose(KEYPOINTS[[10, 11]], [(16.5, 26.69), (16.5, 41.31)], atol=0.005)
    np.testing.assert_allclose(KEYPOINTS[[30, 31]], [(43.35, 34), (61.65, 34)])
    flip = "24 25 26 27 28 29 22 23 21 17 18 19 20 13 14 15 16 9 10 11 12 8 6 7 0 1 2 3 4 5 31 30"
    mirrored = KEYPOINTS[[int(n) for n in flip.split()]]
    np.testing.assert_allclose(mirrored, KEYPOINTS * (-1, 1) + (105, 0), atol=1e-9)


def test_boxes_hold_what_was_drawn() -> None:
    """Two pictures that differ only in one person differ only in that person's box, its shadow aside."""
    scene = make_scene(3, 2, (1280, 720))
    picture, labels = render_frame(scene, 0)
    area = (labels.xyxy[:, 2] - labels.xyxy[:, 0]) * (labels.xyxy[:, 3] - labels.xyxy[:, 1])
    row = int(np.argmax(np.where(labels.class_id == render.PLAYER, area, 0)))
    person = int(labels.identity[row]) - 1
    scene.positions[0, person] = (-500.0, 34.0)
    without, _ = render_frame(scene, 0)
    changed = np.abs(picture.astype(int) - without.astype(int)).max(axis=2) > 60  # more than any shadow here
    y, x = np.nonzero(changed)
    x1, y1, x2, y2 = labels.xyxy[row]
    assert len(x) > 0.1 * area[row]
    inside = (x >= x1 - 2) & (x <= x2 + 2) & (y >= y1 - 2) & (y <= y2 + 2)
    assert inside.mean() > 0.95
    assert np.ptp(y) > 0.7 * (y2 - y1)


def test_the_same_seed_gives_the_same_picture() -> None:
    first, labels = render_frame(make_scene(5, 4, SMALL), 3)
    again, same = render_frame(make_scene(5, 4, SMALL), 3)
    other, _ = render_frame(make_scene(6, 4, SMALL), 3)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels.xyxy, same.xyxy)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_identities_are_stable_and_move_a_little_from_frame_to_frame() -> None:
    scene = make_scene(2, 30, SMALL)
    previous: dict[int, np.ndarray] = {}
    shared = 0
    for number in range(30):
        _, labels = render_frame(scene, number)
        assert len(set(labels.identity.tolist())) == len(labels.identity)
        assert (labels.class_id == BALL).sum() <= 1
        now = dict(zip(labels.identity.tolist(), labels.xyxy, strict=True))
        for identity in now.keys() & previous.keys():
            centre = (now[identity][:2] + now[identity][2:]) / 2 - (previous[identity][:2] + previous[identity][2:]) / 2
            assert np.abs(centre).max() < 20, identity
            shared += 1
        previous = now
    assert shared > 100


def test_boxes_and_points_stay_in_the_picture() -> None:
    rng = np.random.default_rng(11)
    for _ in range(4):
        picture, labels = random_still(rng, SMALL)
        assert picture.shape == (360, 640, 3)
        assert picture.dtype == np.uint8
        assert (labels.xyxy >= 0).all()
        assert (labels.xyxy <= (640, 360, 640, 360)).all()
        assert (labels.xyxy[:, 2:] > labels.xyxy[:, :2]).all()
        hidden = labels.keypoints[:, 2] == 0
        assert (labels.keypoints[hidden] == 0).all()


def test_a_clip_has_the_promised_frames_and_key_frames(tmp_path: Path) -> None:
    labels = write_clip(tmp_path / "clip.mp4", frames=60, size=(320, 180), gop=25, seed=1, cut_at=40)
    assert [frame.frame_number for frame in labels] == list(range(60))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.width, stream.height, stream.average_rate) == (320, 180, 25)
    assert len(packets) == 60
    assert any(packet.pts < before.pts for before, packet in itertools.pairwise(packets)), "no B-frames"
    shown = sorted(packet.pts for packet in packets)
    assert [shown.index(packet.pts) for packet in packets if packet.is_keyframe] == [0, 25, 50]
    assert max(labels[39].identity) < 100 <= min(labels[40].identity)


def test_decoded_clip_is_the_drawn_picture(tmp_path: Path) -> None:
    """Frame numbers as OpenCV counts them are the renderer's, and the colours survive the coding."""
    write_clip(tmp_path / "clip.mp4", frames=12, size=(320, 180), gop=6, seed=4, bit_rate=40_000_000)
    scene = make_scene(4, 12, (320, 180), 25)
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    errors = np.zeros((12, 12))
    drawn = [render_frame(scene, number)[0].astype(int) for number in range(12)]
    for number in range(12):
        found, picture = capture.read()
        assert found
        errors[number] = [np.abs(picture - other).mean() for other in drawn]
    assert not capture.read()[0]
    assert (errors.argmin(axis=1) == np.arange(12)).all()
    assert errors.diagonal().max() < 12


def test_still_camera_does_not_move() -> None:
    scene = make_scene(1, 5, SMALL, still_camera=True)
    first = render_frame(scene, 0)[1].keypoints
    np.testing.assert_array_equal(first, render_frame(scene, 4)[1].keypoints)


def test_command_writes_clip_and_labels_in_the_schema_of_an_answer(tmp_path: Path) -> None:
    clip, answer = tmp_path / "c.mp4", tmp_path / "l.json"
    code = render.main(["--output", str(clip), "--labels", str(answer), "--frames", "3", "--size", "320x180"])
    document = json.loads(answer.read_text())
    assert code == 0
    assert clip.stat().st_size > 1000
    assert [frame["frame_number"] for frame in document["frames"]] == [0, 1, 2]
    frame = document["frames"][1]
    assert frame["pts_seconds"] == pytest.approx(0.04)
    assert len(frame["keypoints"]) == 32
    assert {"id", "class_id", "confidence", "xyxy"} == set(frame["objects"][0])


def test_odd_sizes_and_cuts_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_clip(tmp_path / "c.mp4", frames=2, size=(321, 180))
    with pytest.raises(ValueError, match="cut_at"):
        write_clip(tmp_path / "c.mp4", frames=2, size=(320, 180), cut_at=2)
    with pytest.raises(IndexError):
        render_frame(make_scene(0, 1, SMALL), 1)
