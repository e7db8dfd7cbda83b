"""Every frame from a few: what is answered between, beside and beyond the looked-at frames."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from firsttouch.carry import carry
from firsttouch.predict import BRIDGE_FRAMES, EXTRAPOLATE_FRAMES
from firsttouch.track import link
from tests.motions import detections, gliding, motion, person

WIDTH, HEIGHT, RATE = 1280, 720, 25.0


def answers(seen, motions, frames, mode="flow", **options):
    wanted = np.arange(frames, dtype=np.int32)
    return carry(link(seen, motions, **options), seen, motions, wanted, wanted / RATE, WIDTH, HEIGHT, mode)


def centre(answer, row=0):
    return (answer.xyxy[row, :2] + answer.xyxy[row, 2:]) / 2


def test_every_wanted_frame_is_answered_in_order_and_says_how():
    boxes = [[person(100)], [person(148)]]
    seen = [detections(2, boxes[0]), detections(14, boxes[1])]
    found = answers(seen, [gliding(2, 14, *boxes)], 20)
    assert [a.frame_number for a in found] == list(range(20))
    assert [a.pts_seconds for a in found] == pytest.approx([n / RATE for n in range(20)])
    assert [a.frame_number for a in found if a.how == "detected"] == [2, 14]


def test_a_looked_at_frame_keeps_what_was_seen():
    seen = [detections(0, [person(100), person(300)]), detections(8, [person(110), person(310)])]
    found = answers(seen, [gliding(0, 8, [person(100), person(300)], [person(110), person(310)])], 9)
    assert np.array_equal(found[0].xyxy, seen[0].xyxy)
    assert np.array_equal(found[8].xyxy, seen[1].xyxy)
    assert np.array_equal(found[0].confidence, seen[0].confidence)


def test_a_body_goes_along_its_flow_and_not_along_the_ruler():
    seen = [detections(0, [person(100)]), detections(16, [person(100)])]
    numbers = np.arange(0, 17, 2)
    path = [person(100 + 40 * np.sin(np.pi * n / 16)) for n in numbers]
    bend = motion(numbers, path, path, [(0, 0)])
    found = answers(seen, [bend], 17)
    assert centre(found[8])[0] == pytest.approx(140, abs=0.5)
    assert centre(found[3])[0] == pytest.approx(100 + 20 * (np.sin(np.pi / 8) + np.sin(np.pi / 4)), abs=0.5)
    ruler = answers(seen, [bend], 17, mode="linear")
    assert centre(ruler[8])[0] == pytest.approx(100)


def test_few_bodies_that_flow_joins_beside_many_that_it_does_not():
    crowd = [person(60 + 50 * k) for k in range(20)]
    seen = [detections(0, crowd[:1]), detections(8, crowd[:1]), detections(20, crowd), detections(28, crowd)]
    found = answers(seen, [gliding(0, 8, crowd[:1], crowd[:1])], 29)
    assert [len(found[n].ids) for n in (0, 4, 8, 20, 24, 28)] == [1, 1, 1, 20, 20, 20]
    np.testing.assert_allclose(found[24].xyxy, crowd, atol=1e-3)


def test_flow_that_drifts_is_corrected_to_arrive():
    seen = [detections(0, [person(100)]), detections(10, [person(150)])]
    numbers = np.arange(11)
    drifting = motion(numbers, [person(100 + 4 * n) for n in numbers], np.full((11, 1, 4), np.nan), [(0, 0)])
    found = answers(seen, [drifting], 11)
    assert [centre(found[n])[0] for n in numbers] == pytest.approx([100 + 5 * n for n in numbers], abs=0.01)


def test_where_flow_fails_the_line_is_drawn_in_the_world_the_camera_sees():
    pan = np.cumsum([0, 1, 2, 4, 8, 8, 4, 2, 1]).astype(float)
    camera = np.tile(np.eye(3), (9, 1, 1))
    camera[:, 0, 2] = pan
    seen = [detections(0, [person(300)]), detections(8, [person(300 + pan[-1])])]
    lost = motion(np.arange(9), np.full((9, 1, 4), np.nan), np.full((9, 1, 4), np.nan), [(0, 0)], camera)
    found = answers(seen, [lost], 9)
    assert [centre(a)[0] for a in found] == pytest.approx((300 + pan).tolist(), abs=0.01)


def test_a_body_that_flow_lost_is_dropped_and_not_frozen():
    seen = [detections(0, [person(100)]), detections(16, [])]
    path = np.array([person(100 + n) if n < 5 else [np.nan] * 4 for n in range(17)])
    found = answers(seen, [motion(np.arange(17), path, np.zeros((17, 0, 4)), [])], 17)
    assert [len(a.ids) for a in found] == [1] * 5 + [0] * 12


def test_a_body_seen_at_one_end_only_is_carried_half_the_way():
    seen = [detections(0, [person(600)]), detections(16, [person(200)])]
    motions = [gliding(0, 16, [person(600), None], [None, person(200)])]
    found = answers(seen, motions, 17)
    assert [len(a.ids) for a in found] == [1] * 8 + [2] + [1] * 8
    assert centre(found[5])[0] == pytest.approx(600)
    assert centre(found[12])[0] == pytest.approx(200)


def test_a_body_that_leaves_by_the_side_is_carried_all_the_way_there():
    path = np.array([person(40 - 3 * n) for n in range(17)])
    path[14:] = np.nan
    seen = [detections(0, [person(40)]), detections(16, [])]
    found = answers(seen, [motion(np.arange(17), path, np.zeros((17, 0, 4)), [])], 17)
    assert [len(a.ids) for a in found] == [1] * 14 + [0] * 3
    assert all(a.xyxy.min() >= 0 for a in found if len(a.ids))


def test_confidence_fades_with_the_distance_from_a_glance():
    seen = [detections(0, [person(600)]), detections(16, [])]
    found = answers(seen, [gliding(0, 16, [person(600)], [None])], 17)
    confidence = [float(a.confidence[0]) for a in found[:9]]
    assert confidence == sorted(confidence, reverse=True)
    assert confidence[8] < confidence[0]


def test_nothing_is_carried_across_a_cut():
    nan = [np.nan] * 4
    forward = [person(100)] * 6 + [nan] * 5
    backward = [nan] * 6 + [person(104)] * 5
    cut = motion(np.arange(11), forward, backward, [], cut_after=5)
    seen = [detections(0, [person(100)]), detections(10, [person(104)])]
    found = answers(seen, [cut], 11)
    before, after = {int(a.ids[0]) for a in found[:6]}, {int(a.ids[0]) for a in found[6:]}
    assert len(before) == len(after) == 1
    assert before != after
    assert all(centre(a)[0] == pytest.approx(100) for a in found[:6])
    assert all(centre(a)[0] == pytest.approx(104) for a in found[6:])


def test_a_hole_is_crossed_with_the_velocities_measured_beside_it():
    speed = 4.0
    at = {n: person(200 + speed * n) for n in (0, 8, 38, 46)}
    seen = [detections(n, [box]) for n, box in at.items()]
    motions = [gliding(0, 8, [at[0]], [at[8]]), gliding(38, 46, [at[38]], [at[46]])]
    found = answers(seen, motions, 47)
    assert all(len(a.ids) == 1 for a in found)
    assert [centre(a)[0] for a in found] == pytest.approx([200 + speed * n for n in range(47)], abs=0.5)
    assert len({int(a.ids[0]) for a in found}) == 1


def test_of_a_long_hole_only_the_ends_are_answered():
    last = 20 + BRIDGE_FRAMES + 20
    seen = [detections(n, [person(300)]) for n in (0, 8, last)]
    found = answers(seen, [gliding(0, 8, [person(300)], [person(300)])], last + 1)
    known = [a.frame_number for a in found if len(a.ids)]
    assert known == [*range(9 + EXTRAPOLATE_FRAMES), *range(last - EXTRAPOLATE_FRAMES, last + 1)]


def test_beyond_the_last_look_a_few_frames_follow_the_velocity():
    seen = [detections(4, [person(300)]), detections(12, [person(324)])]
    found = answers(seen, [gliding(4, 12, [person(300)], [person(324)])], 40)
    assert centre(found[15])[0] == pytest.approx(333, abs=0.1)
    assert centre(found[1])[0] == pytest.approx(291, abs=0.1)
    assert max(a.frame_number for a in found if len(a.ids)) == 12 + EXTRAPOLATE_FRAMES


def test_a_width_that_swings_with_the_stride_goes_to_its_mean_between_glances():
    widths = [14.0, 30.0] * 6
    seen = [detections(24 * k, [person(400, width=w)]) for k, w in enumerate(widths)]
    motions = [
        gliding(24 * k, 24 * k + 24, [person(400, width=a)], [person(400, width=b)])
        for k, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    found = answers(seen, motions, 265)
    middle = found[24 * 5 + 12].xyxy[0]
    assert middle[2] - middle[0] == pytest.approx(22, abs=1.5)
    near = found[24 * 5 + 1].xyxy[0]
    assert near[2] - near[0] > 25


def test_without_tracking_ids_stay_for_a_segment():
    seen = [detections(0, [person(100)]), detections(16, [person(116)])]
    found = answers(seen, [gliding(0, 16, [person(100)], [person(116)])], 17, tracking=False)
    assert len({int(a.ids[0]) for a in found}) == 1


def test_nothing_looked_at_is_nothing_answered():
    found = answers([], [], 3)
    assert [a.how for a in found] == ["carried"] * 3
    assert all(len(a.ids) == 0 and not a.keypoints.any() for a in found)


def test_only_the_wanted_frames_are_answered():
    seen = [detections(0, [person(100)]), detections(16, [person(116)])]
    moving = [gliding(0, 16, [person(100)], [person(116)])]
    wanted = np.array([3, 9, 16], np.int32)
    found = carry(link(seen, moving), seen, moving, wanted, wanted / RATE, WIDTH, HEIGHT)
    assert [a.frame_number for a in found] == [3, 9, 16]
    assert centre(found[1])[0] == pytest.approx(109, abs=0.1)
