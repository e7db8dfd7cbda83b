"""Who is who by the whole picture: shirts, the pitch, and what the shipped roles make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firsttouch.detect import BUNDLED_MODEL
from firsttouch.detect.native import native_roles
from firsttouch.detect.roles import LEAST_SCORE, UNHEARD, Roles, facts, see, shared_out, shirts
from firsttouch.detect.session import ModelFile
from firsttouch.errors import ModelMismatch
from firsttouch.homography import moved_points
from firsttouch.pitch import POINTS, fit, ground

LAWN, RED, BLUE, BLACK = (90, 110, 118), (80, 100, 190), (70, 190, 110), (25, 128, 128)
GOALKEEPER, PLAYER, REFEREE = 1, 2, 3
Floats = np.ndarray[Any, np.dtype[np.float32]]


def people(count: int) -> Floats:
    """Boxes (count, 4) of 20 x 50 canvas pixels, side by side over the middle of the picture."""
    left = np.linspace(200, 1000, count, dtype=np.float32)
    top = 300 + 60 * (np.arange(count, dtype=np.float32) % 4)
    return np.stack([left, top, left + 20, top + 50], 1)


def cell(colour: tuple[int, int, int]) -> list[int]:
    """The six bytes of a cell of one colour."""
    y, u, v = colour
    return [y, y, y, y, u, v]


def drawn(boxes: Floats, colours: list[tuple[int, int, int]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Six planes (368, 640, 6) of a lawn with a block of one colour in each box."""
    planes = np.empty((368, 640, 6), np.uint8)
    planes[:] = cell(LAWN)
    for (x0, y0, x1, y1), colour in zip((boxes / 2).astype(int), colours, strict=True):
        planes[y0:y1, x0:x1] = cell(colour)
    return planes


def view_from_the_stand() -> Floats:
    """A homography from metres to canvas pixels: the half line in the middle of the picture."""
    corners = np.array([(20, 0), (85, 0), (75, 68), (30, 68)], np.float64)
    pixels = np.array([(150, 180), (1130, 180), (1200, 690), (80, 690)], np.float64)
    rows = [
        row
        for (x, y), (u, v) in zip(corners, pixels, strict=True)
        for row in ((x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y))
    ]
    return np.append(np.linalg.solve(np.array(rows), pixels.ravel()), 1.0).reshape(3, 3)


def keypoints() -> Floats:
    """(32, 3) of the points that lie in that picture."""
    xy = moved_points(view_from_the_stand(), POINTS)
    inside = (xy > 0).all(1) & (xy < (1280, 720)).all(1)
    return np.where(inside[:, None], np.column_stack([xy, np.full(32, 0.9)]), 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def roles() -> Roles:
    shipped = native_roles(ModelFile.read(BUNDLED_MODEL))
    assert shipped is not None
    return shipped


def test_colours_are_those_of_the_shirt_and_not_of_the_lawn_beside_it() -> None:
    boxes = people(3)
    planes = drawn(boxes, [RED, BLUE, LAWN])
    planes[:, : int(boxes[0, 0] / 2) + 3] = cell(LAWN)
    colours, clear = shirts(planes, boxes)
    assert colours.shape == (3, 2, 3)
    np.testing.assert_allclose(colours[0, 0], RED, atol=2)  # a third of the box is lawn
    np.testing.assert_allclose(colours[1], [BLUE, BLUE], atol=1)
    assert clear[1] > 0.99
    assert clear[2] < 0.01


def test_boxes_beyond_the_edge_are_looked_at_as_far_as_they_go() -> None:
    boxes = np.array([(-30, -10, 10, 60), (1270, 700, 1300, 760)], np.float32)
    colours, clear = shirts(drawn(people(1), [RED]), boxes)
    assert np.isfinite(colours).all()
    assert np.isfinite(clear).all()


def test_the_ground_is_the_view_that_the_fit_finds() -> None:
    to_metres = ground(keypoints(), 1280)
    view = fit(keypoints(), 1280, 720)
    assert to_metres is not None
    assert view is not None
    spots = np.array([(640, 400), (300, 600), (1000, 300)], np.float64)
    np.testing.assert_allclose(
        moved_points(to_metres, spots), moved_points(np.linalg.inv(view.homography), spots), atol=0.05
    )
    assert ground(np.zeros((32, 3), np.float32), 1280) is None


def test_a_body_knows_how_many_are_dressed_like_it() -> None:
    boxes = people(11)
    scores = np.tile(np.array([(0.02, 0.6, 0.05)], np.float32), (11, 1))
    told = facts(see(drawn(boxes, [RED] * 10 + [BLACK]), boxes, scores, None))
    many, alone = told[0, 3], told[10, 3]
    assert many > 1.5  # the logarithm of five
    assert alone < -2


def test_ten_black_shirts_are_a_team_and_one_is_the_referee(roles: Roles) -> None:
    boxes = people(20)
    doubtful = np.array([(0.0, 0.01, 0.35, 0.45)], np.float32)
    for black in (10, 1):
        planes = drawn(boxes, [BLACK] * black + [RED] * (20 - black))
        scores = np.concatenate(
            [np.repeat(doubtful, black, 0), np.repeat([(0.0, 0.01, 0.7, 0.05)], 20 - black, 0)]
        ).astype(np.float32)
        refined, _ = roles.refined(planes, boxes, scores, keypoints())
        expected = PLAYER if black > 1 else REFEREE
        assert (refined[:black].argmax(1) == expected).mean() > 0.8
        assert (refined[black:].argmax(1) == PLAYER).all()


def test_the_ball_keeps_its_score_and_nobody_gains(roles: Roles) -> None:
    boxes = people(12)
    scores = np.random.default_rng(0).uniform(0, 0.9, (12, 4)).astype(np.float32)
    scores[3] = LEAST_SCORE / 2
    refined, worn = roles.refined(drawn(boxes, [RED] * 12), boxes, scores, None)
    np.testing.assert_array_equal(refined[:, 0], scores[:, 0])
    np.testing.assert_allclose(refined[3, 1:], UNHEARD * scores[3, 1:])
    assert (refined[:, 1:].max(1) <= scores[:, 1:].max(1) + 1e-6).all()
    assert np.isnan(worn[3]).all()
    assert np.isfinite(np.delete(worn, 3, 0)).all()
    nobody = np.zeros((0, 4), np.float32)
    assert roles.refined(drawn(boxes, [RED] * 12), nobody, nobody, None)[0].shape == (0, 4)


def test_many_pictures_at_once_say_what_each_says_alone(roles: Roles) -> None:
    rng = np.random.default_rng(4)
    planes = np.stack([drawn(people(12), [RED] * 6 + [BLUE] * 5 + [BLACK]) for _ in range(5)])
    boxes = np.stack([people(12)] * 5)
    scores = rng.uniform(0.2, 0.9, (5, 12, 4)).astype(np.float32)
    scores[1, 4:] = scores[2] = scores[3, ::3] = LEAST_SCORE / 2  # four bodies, none, gaps
    points = np.stack([keypoints(), keypoints(), keypoints(), np.zeros((32, 3), np.float32), keypoints()])
    for seen in (points, None):
        shared, worn = roles.refined(planes, boxes, scores, seen)
        for k in range(5):
            alone = roles.refined(planes[k], boxes[k], scores[k], None if seen is None else seen[k])
            np.testing.assert_allclose(shared[k], alone[0], atol=1e-6)
            np.testing.assert_allclose(worn[k], alone[1], atol=1e-4)
    one = roles.refined(planes[:1], boxes[:1], scores[:1], points[:1])
    np.testing.assert_array_equal(one[0][0], roles.refined(planes[0], boxes[0], scores[0], points[0])[0])


def test_whoever_is_nobody_of_the_match_is_less_a_referee_but_no_less_a_player() -> None:
    scores = np.array([(0.1, 0.2, 0.8)], np.float32)
    sure = shared_out(scores, np.array([(0.0, 0.1, 0.3, 0.6)], np.float32))
    doubted = shared_out(scores, np.array([(0.75, 0.025, 0.075, 0.15)], np.float32))
    np.testing.assert_allclose(sure, [(0.08, 0.24, 0.48)], atol=1e-6)
    np.testing.assert_allclose(doubted, [(0.04, 0.24, 0.24)], atol=1e-6)


def test_roles_come_back_from_their_text(roles: Roles) -> None:
    again = Roles.from_text(roles.text())
    for name in Roles.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(roles, name))


def test_unreadable_roles_are_a_model_that_does_not_fit(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFile.read(BUNDLED_MODEL)
    for text in ("{}", "none", "[1]"):
        monkeypatch.setitem(model.facts.metadata, "roles", text)
        with pytest.raises(ModelMismatch, match="roles"):
            native_roles(model)
    monkeypatch.delitem(model.facts.metadata, "roles")
    assert native_roles(model) is None
