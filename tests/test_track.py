"""Identities, classes and the one ball, from detections and motions made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firsttouch.track import BALL_ID, link
from tests.motions import ball, detections, gliding, motion, person


def ids_at(tracks, look):
    """Detection row -> identity in one looked-at frame."""
    rows = tracks.at(look)
    return dict(zip(tracks.row[rows].tolist(), tracks.id[rows].tolist(), strict=True))


def classes_at(tracks, look):
    rows = tracks.at(look)
    return dict(zip(tracks.id[rows].tolist(), tracks.class_id[rows].tolist(), strict=True))


def test_identities_follow_flow_where_positions_alone_would_swap_them():
    a, b = [person(100), person(180)], [person(180), person(100)]
    seen = [detections(0, a), detections(16, b)]
    tracks = link(seen, [gliding(0, 16, a, b)])
    assert ids_at(tracks, 0) == ids_at(tracks, 1)


def test_the_nearest_is_taken_where_there_is_no_motion():
    seen = [detections(n, [person(100 + 3 * n), person(180 - 3 * n)]) for n in range(10)]
    tracks = link(seen, [])
    assert all(ids_at(tracks, look) == ids_at(tracks, 0) for look in range(10))


def test_a_body_missed_once_keeps_its_identity_and_is_filled_in():
    seen = [detections(0, [person(100)]), detections(16, []), detections(32, [person(164)])]
    motions = [gliding(0, 16, [person(100)], [None]), gliding(16, 32, [None], [person(164)])]
    motions[0].forward[-1, 0] = person(131)
    motions[1].backward[0, 0] = person(133)
    tracks = link(seen, motions)
    assert np.unique(tracks.id).size == 1
    rows = tracks.at(1)
    assert tracks.row[rows].tolist() == [-1]
    assert np.allclose(tracks.xyxy[rows], person(132), atol=0.1)
    assert tracks.confidence[rows] < 0.9


def test_a_body_away_for_long_is_not_filled_in():
    seen = [detections(0, [person(100)]), *(detections(n, []) for n in range(8, 48, 8)), detections(48, [person(100)])]
    still = [gliding(n, n + 8, [person(100)] if n == 0 else [], [None] if n == 0 else []) for n in range(0, 40, 8)]
    tracks = link(seen, [*still, gliding(40, 48, [None], [person(100)])])
    assert (tracks.row >= 0).all()


def test_weak_detections_continue_tracks_but_start_none():
    seen = [
        detections(0, [person(100), person(500)], confidence=[0.9, 0.35]),
        detections(16, [person(105), person(505)], confidence=[0.35, 0.35]),
    ]
    still = gliding(0, 16, [person(100), person(500)], [person(105), person(505)])
    tracks = link(seen, [still], sure=0.3)
    assert ids_at(tracks, 0).keys() == {0}
    assert ids_at(tracks, 1) == ids_at(tracks, 0)


def test_no_identity_passes_a_cut():
    seen = [detections(0, [person(100)]), detections(16, [person(100)])]
    numbers = [0, 8, 16]
    nan = [np.nan] * 4
    cut = motion(numbers, [person(100), nan, nan], [nan, nan, person(100)], [], cut_after=1)
    tracks = link(seen, [cut])
    assert ids_at(tracks, 0) != ids_at(tracks, 1)


def test_velocity_bridges_a_hole_without_motion():
    before = [detections(0, [person(100), person(400)]), detections(8, [person(140), person(360)])]
    after = [detections(28, [person(240), person(260)])]
    flow = gliding(0, 8, [person(100), person(400)], [person(140), person(360)])
    tracks = link([*before, *after], [flow])
    assert ids_at(tracks, 2) == ids_at(tracks, 0)


def test_the_camera_bridges_a_leap():
    seen = [detections(0, [person(500), person(600)]), detections(30, [person(200), person(300)])]
    leap = gliding(0, 30, [person(500), person(600)], [person(200), person(300)], pan=-10.0)
    nan = np.full((2, 2, 4), np.nan)
    bare = motion([0, 30], nan, nan, [], camera=leap.camera[[0, -1]])
    assert bare.is_leap
    assert ids_at(link(seen, [bare]), 1) == ids_at(link(seen, [bare]), 0)


def test_the_class_is_voted_over_the_whole_track():
    classes = [2, 3, 3, 3, 2, 3]
    boxes = [[person(100 + 10 * n)] for n in range(6)]
    seen = [detections(16 * n, boxes[n], classes=[classes[n]]) for n in range(6)]
    motions = [gliding(16 * n, 16 * n + 16, boxes[n], boxes[n + 1]) for n in range(5)]
    assert set(link(seen, motions).class_id.tolist()) == {3}


WHITE, RED, SKY = (170, 118, 123), (105, 112, 142), (130, 134, 107)


@pytest.mark.parametrize(
    ("doubt", "teams", "told", "expected"),
    [
        ((0.5, 0.4), (WHITE, RED), True, 3),  # in doubt, and in nobody's shirt
        ((0.5, 0.4), (WHITE, RED), False, 2),  # the detector says nothing of shirts
        ((0.5, 0.4), (WHITE, SKY), True, 2),  # a team wears his
        ((0.9, 0.02), (WHITE, RED), True, 2),  # no doubt: the only one of his team in sight
    ],
)
def test_who_is_in_doubt_and_in_nobodys_shirt_is_no_player(doubt, teams, told, expected):
    looks = []
    for k in range(8):
        boxes = [person(60.0 + 60 * i) for i in range(13)]
        seen = detections(16 * k, boxes)
        seen.class_scores[6, 2:] = doubt
        colours = [teams[i % 2] for i in range(13)]
        colours[6] = SKY
        shirts = np.repeat(np.array(colours, np.float32)[:, None], 2, 1) + np.float32(k % 3)
        shirts[6, :, :] = np.nan if k == 5 else shirts[6]
        looks.append(replace(seen, shirts=shirts if told else None))
    tracks = link(looks, [])
    him = tracks.id[6]
    assert set(tracks.class_id[tracks.id == him].tolist()) == {expected}
    assert set(tracks.class_id[tracks.id != him].tolist()) == {2}


def test_there_is_one_ball_and_it_takes_the_path_it_could_have_flown():
    looks = range(0, 96, 16)
    seen = []
    for n in looks:
        boxes, confidence = [ball(100 + 4 * n)], [0.5]
        if n == 32:
            boxes.append(ball(1200, 80))
            confidence.append(0.8)
        seen.append(detections(n, boxes, classes=[0] * len(boxes), confidence=confidence))
    motions = [gliding(n, n + 16, [], []) for n in looks[:-1]]
    tracks = link(seen, motions_without_bodies(motions, seen))
    assert (tracks.id == BALL_ID).all()
    assert np.bincount(tracks.look).tolist() == [1] * 6
    assert tracks.xyxy[2, 0] == pytest.approx(ball(100 + 4 * 32)[0])


def motions_without_bodies(motions, seen):
    """The same cameras, with lost flow for as many boxes as were seen."""
    bare = []
    for move, a, b in zip(motions, seen[:-1], seen[1:], strict=True):
        steps = len(move.frame_numbers)
        forward, backward = np.full((steps, len(a), 4), np.nan), np.full((steps, len(b), 4), np.nan)
        forward[0], backward[-1] = a.xyxy, b.xyxy
        bare.append(motion(move.frame_numbers, forward, backward, [], move.camera))
    return bare


def test_the_ball_is_not_filled_in_where_it_was_taken_up_anew():
    seen = [
        detections(0, [ball(100)], classes=[0], confidence=0.8),
        detections(16, []),
        detections(32, [ball(1250, 60)], classes=[0], confidence=0.8),
        detections(48, [ball(1240, 60)], classes=[0], confidence=0.8),
        detections(64, [ball(1230, 60)], classes=[0], confidence=0.8),
        detections(80, [ball(1220, 60)], classes=[0], confidence=0.8),
    ]
    motions = motions_without_bodies([gliding(n, n + 16, [], []) for n in range(0, 80, 16)], seen)
    tracks = link(seen, motions)
    assert (tracks.row >= 0).all()
    assert 1 not in tracks.look


def test_without_tracking_flow_still_hands_identities_on_and_nothing_is_voted():
    a, b = [person(100), person(400)], [person(140), person(360)]
    seen = [detections(0, a, classes=[2, 3]), detections(16, b, classes=[3, 2]), detections(200, b)]
    tracks = link(seen, [gliding(0, 16, a, b)], tracking=False)
    assert ids_at(tracks, 0) == ids_at(tracks, 1)
    assert not set(ids_at(tracks, 2).values()) & set(ids_at(tracks, 1).values())
    assert sorted(classes_at(tracks, 1).values()) == [2, 3]
    assert classes_at(tracks, 0) != classes_at(tracks, 1)


def test_without_tracking_there_is_still_one_ball():
    seen = [detections(0, [ball(100), ball(900)], classes=[0, 0], confidence=[0.5, 0.7])]
    tracks = link(seen, [], tracking=False)
    assert tracks.row.tolist() == [1]
    assert tracks.id.tolist() == [BALL_ID]


def test_nothing_seen_is_no_track():
    tracks = link([detections(0, []), detections(16, [])], [])
    assert len(tracks.id) == 0
    assert len(link([], []).id) == 0
