"""What flow finds in pictures whose motion is known exactly."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from firsttouch.detect import Detections
from firsttouch.motion import Steps, find_cuts, follow, moved_points

HEIGHT, WIDTH, SCALE = 360, 640, 2.0


def backdrop(seed=0):
    """A scene wider than the picture, in half-size pixels: a stand full of texture above a lawn with lines and
    stripes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (60, 120), dtype=np.uint8)
    scene = cv2.GaussianBlur(cv2.resize(coarse, (1200, 600), interpolation=cv2.INTER_CUBIC), (0, 0), 1.0)
    lawn = 90 + 6 * (np.arange(1200) // 90 % 2)[None] + rng.normal(0, 2, (430, 1200))
    scene[170:] = lawn.astype(np.uint8)
    for x in range(60, 1200, 160):
        cv2.line(scene, (x, 170), (x + 60, 600), 200, 2)
    cv2.line(scene, (0, 330), (1200, 360), 200, 2)
    return scene


def person(seed):
    """A patch 12 wide and 26 high that looks like nothing else."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 255, (7, 4), dtype=np.uint8), (12, 26), interpolation=cv2.INTER_CUBIC)


def picture(scene, pan, people):
    """The scene seen from `pan` (x, y), with people (patch, x, y) in picture coordinates, sub-pixel."""
    shift = np.array([[1, 0, -pan[0]], [0, 1, -pan[1]]], np.float32)
    grey = cv2.warpAffine(scene, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    for patch, x, y in people:
        place = np.array([[1, 0, x], [0, 1, y]], np.float32)
        drawn = cv2.warpAffine(patch, place, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(np.ones_like(patch), place, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST)
        grey = np.where(mask > 0, drawn, grey)
    return grey


def seen(number, boxes, class_id=2, confidence=0.9):
    """Detections of boxes in source pixels."""
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.zeros((len(xyxy), 4), np.float32)
    scores[:, class_id] = confidence
    return Detections(number, xyxy, scores, np.zeros((32, 3), np.float32))


def box(x, y):
    """The source-pixel box of a person patch at half-size (x, y)."""
    return [SCALE * x, SCALE * y, SCALE * (x + 12), SCALE * (y + 26)]


def centre(boxes):
    return (boxes[..., :2] + boxes[..., 2:]) / 2


NUMBERS = np.array([0, 3, 6, 7, 9, 12], np.int32)


@pytest.fixture(scope="module")
def pan():
    """Two people walk apart while the camera pans: frames are unevenly decoded, as reference frames are."""
    scene, first, second = backdrop(), person(1), person(2)
    paths = [(200 + 1.5 * NUMBERS, 150 + 0.5 * NUMBERS), (400 - 2.0 * NUMBERS, 220 + 0.0 * NUMBERS)]
    greys = []
    for k, n in enumerate(NUMBERS):
        people = [(patch, x[k], y[k]) for patch, (x, y) in zip((first, second), paths, strict=True)]
        greys.append(picture(scene, (100 + 2.0 * n, 80), people))
    truth = np.array([[box(x[k], y[k]) for x, y in paths] for k in range(len(NUMBERS))])
    return greys, truth


def test_flow_carries_boxes_to_within_a_pixel(pan):
    greys, truth = pan
    motion = follow(greys, NUMBERS, seen(0, truth[0]), seen(12, truth[-1]), SCALE)
    assert np.abs(centre(motion.forward) - centre(truth)).max() < 1.0
    assert motion.pairs.tolist() == [[0, 0], [1, 1]]
    assert motion.cut_after is None


def test_backward_flow_takes_what_forward_flow_did_not_reach(pan):
    greys, truth = pan
    motion = follow(greys, NUMBERS, seen(0, truth[0][:1]), seen(12, truth[-1]), SCALE)
    assert np.abs(centre(motion.backward[:, 1]) - centre(truth[:, 1])).max() < 1.0
    assert motion.pairs.tolist() == [[0, 0]]


def test_the_camera_is_the_backgrounds_motion_in_source_pixels(pan):
    greys, truth = pan
    motion = follow(greys, NUMBERS, seen(0, truth[0]), seen(12, truth[-1]), SCALE)
    corners = np.array([(100.0, 100.0), (1100.0, 100.0), (1100.0, 600.0), (100.0, 600.0)])
    for m, n in enumerate(NUMBERS):
        moved = moved_points(motion.camera[m], corners) - corners
        assert np.abs(moved - [-2.0 * SCALE * n, 0.0]).max() < 0.5


def test_a_cut_is_found_and_nothing_is_carried_across_it(pan):
    greys, truth = pan
    other = [picture(backdrop(9), (0, 0), [(person(2), 100, 100)])] * 3
    numbers = np.arange(len(greys) + 3)
    motion = follow(greys + other, numbers, seen(0, truth[0]), seen(8, [box(100, 100)]), SCALE)
    assert motion.cut_after == len(greys) - 1
    assert np.isfinite(motion.forward[: len(greys)]).all()
    assert np.isnan(motion.forward[len(greys) :]).all()
    assert np.isfinite(motion.backward[len(greys) :]).all()
    assert np.isnan(motion.backward[: len(greys)]).all()
    assert np.allclose(motion.camera[len(greys) :], np.eye(3), atol=1e-3)
    assert len(motion.pairs) == 0


def test_a_fast_pan_is_not_a_cut():
    scene = backdrop()
    greys = [picture(scene, (100 + 35 * k, 80 + 4 * k), []) for k in range(8)]
    assert find_cuts(greys) == []


def test_a_body_that_leaves_the_picture_is_lost_and_not_frozen():
    scene, walker = backdrop(), person(1)
    greys = [picture(scene, (100, 80), [(walker, 40 - 9 * k, 150)]) for k in range(8)]
    motion = follow(greys, np.arange(8), seen(0, [box(40, 150)]), seen(7, []), SCALE)
    assert np.isfinite(motion.forward[:4]).all()
    assert np.isnan(motion.forward[7:]).all()


def test_a_body_that_is_covered_up_is_not_carried_on_a_featureless_wall():
    walker = person(1)
    wall = np.full((600, 1200), 90, np.uint8)
    greys = [picture(wall, (0, 0), [(walker, 200, 150)] if k < 3 else []) for k in range(6)]
    motion = follow(greys, np.arange(6), seen(0, [box(200, 150)]), seen(5, []), SCALE)
    assert np.isfinite(motion.forward[2]).all()
    assert np.isnan(motion.forward[4:]).all()


def test_the_ball_is_found_between_its_ends_although_it_is_kicked_on_the_way():
    ball = np.full((4, 4), 250, np.uint8)
    lawn = cv2.GaussianBlur(np.random.default_rng(3).integers(80, 110, (600, 1200), dtype=np.uint8), (0, 0), 1.5)
    lawn[:60] = backdrop()[:60]
    x = np.array([100, 115, 130, 145, 152, 159, 166, 173, 180.0])
    y = np.array([200, 198, 196, 194, 200, 206, 212, 218, 224.0])
    greys = [picture(lawn, (0, 0), [(ball, x[k], y[k])]) for k in range(9)]
    truth = SCALE * np.stack([x, y, x + 4, y + 4], 1)
    motion = follow(greys, np.arange(9) * 2, seen(0, truth[0], class_id=0), seen(16, truth[-1], class_id=0), SCALE)
    assert motion.pairs.tolist() == [[0, 0]]
    assert np.abs(centre(motion.forward[:, 0]) - centre(truth)).max() < 2.5


def test_a_leap_finds_the_camera_over_a_hole_but_carries_no_box():
    scene = backdrop()
    greys = [picture(scene, (100, 80), []), picture(scene, (260, 95), [])]
    motion = follow(greys, [0, 40], seen(0, [box(200, 150)]), seen(40, [box(50, 150)]), SCALE)
    assert motion.is_leap
    assert np.isnan(motion.forward[1]).all()
    moved = moved_points(motion.camera[1], np.array([(640.0, 360.0)]))
    assert np.abs(moved - [640 - 2 * 160, 360 - 2 * 15]).max() < 2.0


def test_a_leap_to_another_scene_is_a_cut():
    greys = [picture(backdrop(), (100, 80), []), np.full((HEIGHT, WIDTH), 240, np.uint8)]
    assert follow(greys, [0, 40], seen(0, []), seen(40, []), SCALE).cut_after == 0


def test_greys_and_numbers_must_belong_together():
    with pytest.raises(ValueError, match="got 1 and 1"):
        follow([np.zeros((10, 10), np.uint8)], [0], seen(0, []), seen(0, []), SCALE)


def test_values_between_decoded_frames_are_interpolated_each_in_its_own_motion(pan):
    greys, truth = pan
    motion = follow(greys, NUMBERS, seen(0, truth[0]), seen(12, truth[-1]), SCALE)
    later = replace(motion, frame_numbers=motion.frame_numbers + 12)
    steps = Steps.of([motion, later])
    frames, of = np.array([0, 1, 8, 11, 12, 12, 13, 24]), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    twice = np.concatenate([2.0 * motion.frame_numbers, 2.0 * later.frame_numbers + 100])
    assert steps.around(of, frames).between(twice).tolist() == [0, 2, 16, 22, 24, 124, 126, 148]
