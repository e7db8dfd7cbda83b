"""The view of the pitch from its key points: found, refused, steadied and carried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from firsttouch.carry import carry
from firsttouch.homography import moved_points
from firsttouch.keypoints import GENERATED, everywhere
from firsttouch.pitch import POINTS, fit
from firsttouch.track import link, motions_between
from tests.clips import SHARED_CLIPS
from tests.motions import detections, motion
from train.render import KEYPOINTS, make_scene, render_frame

WIDTH, HEIGHT = 1280, 720
LABELS = SHARED_CLIPS.parent
MIRRORED_LABEL = "42ba34_9_2.txt"
"""In this one labelled frame y grows upwards: a pitch seen in a mirror."""


def camera(pan=0.0, zoom=1.0, tilt=0.0):
    """Homography of a broadcast camera beyond the near touch line, from metres to source pixels."""
    focal, centre = 1500.0 * zoom, np.array([52.5, 110.0, 22.0])
    heading, down = np.radians(pan), np.radians(14.0 + tilt)
    forward = np.array([np.sin(heading) * np.cos(down), -np.cos(heading) * np.cos(down), -np.sin(down)])
    right = np.array([np.cos(heading), np.sin(heading), 0.0])
    below = np.cross(right, forward)  # x right, y near, z up is a left-handed frame
    rotation = np.stack([right, below, forward])
    inner = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    full = inner @ np.concatenate([rotation, -(rotation @ centre)[:, None]], 1)
    return full[:, [0, 1, 3]]


def keypoints(homography, confidence=0.9, noise=0.0, rng=None):
    """(32, 3) the points in the picture, each `noise` pixels off."""
    xy = moved_points(homography, POINTS)
    inside = (xy >= 0).all(1) & (xy[:, 0] < WIDTH) & (xy[:, 1] < HEIGHT)
    xy = xy + (rng or np.random.default_rng(0)).normal(0, noise, xy.shape)
    return np.where(inside[:, None], np.column_stack([xy, np.full(32, confidence)]), 0.0)


def rms(a, b):
    return float(np.sqrt(((a - b) ** 2).sum(-1).mean()))


def test_the_table_is_the_renderers_and_mirrors_onto_itself():
    assert np.allclose(POINTS, KEYPOINTS, atol=0.02)
    flip = [24, 25, 26, 27, 28, 29, 22, 23, 21, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 8, 6, 7]
    flip += [0, 1, 2, 3, 4, 5, 31, 30]
    assert np.allclose(POINTS[flip], POINTS * [-1, 1] + [105, 0])


@pytest.mark.parametrize("pan", [-30.0, 0.0, 25.0])
def test_a_view_is_found_from_exact_points(pan):
    truth = camera(pan)
    view = fit(keypoints(truth), WIDTH, HEIGHT)
    assert view is not None
    corners = np.array([(40.0, 10.0), (65.0, 10.0), (52.5, 60.0)])
    assert rms(moved_points(view.homography, corners), moved_points(truth, corners)) < 0.05
    assert view.error_pixels < 0.01


def test_wrong_points_are_outvoted():
    points = keypoints(camera(-25.0), noise=1.0)
    seen = np.flatnonzero(points[:, 2])
    points[seen[:2], :2] += 150
    view = fit(points, WIDTH, HEIGHT)
    assert view is not None
    assert not view.seen[seen[:2]].any()
    assert rms(view.points[seen], moved_points(camera(-25.0), POINTS[seen])) < 5


def refused():
    truth = keypoints(camera(0.0))
    seen = np.flatnonzero(truth[:, 2])
    few = truth.copy()
    few[seen[3:]] = 0
    line = np.zeros((32, 3))
    line[13:17] = np.column_stack([moved_points(camera(0.0), POINTS[13:17]), np.full(4, 0.9)])
    mirrored = truth.copy()
    mirrored[seen, 0] = WIDTH - 1 - mirrored[seen, 0]
    nonsense = truth.copy()
    nonsense[seen, :2] = np.random.default_rng(1).uniform((0, 0), (WIDTH, HEIGHT), (len(seen), 2))
    faint = truth * [1, 1, 0.1]
    tiny = truth.copy()
    tiny[seen, :2] = 600 + truth[seen, :2] / 60
    return {"few": few, "line": line, "mirrored": mirrored, "nonsense": nonsense, "faint": faint, "tiny": tiny}


@pytest.mark.parametrize("why", ["few", "line", "mirrored", "nonsense", "faint", "tiny"])
def test_a_view_that_does_not_hold_is_refused(why):
    assert fit(refused()[why], WIDTH, HEIGHT) is None


MIDFIELD = [13, 14, 15, 30]
"""Three points of the halfway line and one of the circle: no homography follows from them."""


def at_midfield(homography, noise=0.0, rng=None):
    points = keypoints(homography, noise=noise, rng=rng)
    assert points[MIDFIELD, 2].all()
    return np.where(np.isin(np.arange(32), MIDFIELD)[:, None], points, 0.0)


@pytest.mark.parametrize(("pan", "zoom", "tilt"), [(0.0, 1.0, 0.0), (-12.0, 1.0, 0.0), (5.0, 1.3, -1.0)])
def test_a_line_and_a_point_beside_it_tell_the_likeliest_camera(pan, zoom, tilt):
    truth = camera(pan, zoom, tilt)
    view = fit(at_midfield(truth), WIDTH, HEIGHT)
    assert view is not None
    around = np.array([(45.0, 20.0), (60.0, 20.0), (48.0, 45.0), (57.0, 45.0)])
    assert rms(moved_points(view.homography, around), moved_points(truth, around)) < 0.01 * WIDTH
    assert view.uncertainty[31] < 0.01 * WIDTH < view.uncertainty[12]
    mirrored = at_midfield(truth)
    mirrored[MIDFIELD, 0] = WIDTH - 1 - mirrored[MIDFIELD, 0]
    assert fit(mirrored, WIDTH, HEIGHT) is None


def test_one_wrong_point_of_four_is_refused():
    points = at_midfield(camera())
    points[14, 1] += 60
    assert fit(points, WIDTH, HEIGHT) is None


def test_the_likeliest_cameras_uncertainty_is_honest():
    rng, misses, said = np.random.default_rng(3), [], []
    for _ in range(60):
        truth = camera(rng.normal(0, 6), np.exp(rng.normal(0, 0.1)), rng.normal(0, 1))
        view = fit(at_midfield(truth, noise=2.0, rng=rng), WIDTH, HEIGHT)
        assert view is not None
        near = np.isfinite(view.uncertainty) & (view.uncertainty < 60)
        misses.append(np.hypot(*(view.points - moved_points(truth, POINTS)).T)[near])
        said.append(view.uncertainty[near])
    ratio = np.sqrt((np.concatenate(misses) ** 2).mean() / (np.concatenate(said) ** 2).mean())
    assert 0.4 < ratio < 2.5


def test_uncertainty_grows_away_from_the_points():
    points = keypoints(camera(-30.0), noise=2.0)
    view = fit(points, WIDTH, HEIGHT)
    assert view is not None
    seen = view.seen > 0
    assert view.uncertainty[seen].max() < view.uncertainty[~seen].max()


def test_uncertainty_says_how_far_off_the_points_really_are():
    truth = camera(-20.0)
    goal = moved_points(truth, POINTS)
    misses, said = [], []
    rng = np.random.default_rng(5)
    for _ in range(60):
        view = fit(keypoints(truth, noise=3.0, rng=rng), WIDTH, HEIGHT)
        assert view is not None
        near = np.isfinite(view.uncertainty) & (view.uncertainty < 30)
        misses.append(np.hypot(*(view.points - goal).T)[near])
        said.append(view.uncertainty[near])
    ratio = np.sqrt((np.concatenate(misses) ** 2).mean() / (np.concatenate(said) ** 2).mean())
    assert 0.4 < ratio < 2.5


@pytest.mark.skipif(not (LABELS / "pitch").exists(), reason="the labelled frames are not here")
@pytest.mark.parametrize(("folder", "least"), [("pitch", 0.99), ("pitch_broadcast", 0.99)])
def test_labels_hold_with_few_pixels_error(folder, least):
    found, errors = [], []
    for path in sorted((LABELS / folder).glob("*/labels/*.txt")):
        label = np.array(path.read_text().split()[5:101], float).reshape(32, 3)
        seen = np.flatnonzero(label[:, 2])
        if len(seen) < 4 or path.name == MIRRORED_LABEL:
            continue
        points = np.zeros((32, 3))
        points[seen] = np.column_stack([label[seen, :2] * [WIDTH, HEIGHT], np.full(len(seen), 0.9)])
        view = fit(points, WIDTH, HEIGHT)
        found.append(view is not None)
        if view is not None:
            errors.append(view.error_pixels)
    assert np.mean(found) >= least
    assert np.median(errors) < 3.0


def still(numbers):
    """Motions of a camera that does not move, known to a tenth of a pixel."""
    rng = np.random.default_rng(2)
    motions = []
    for a, b in itertools.pairwise(numbers):
        steps = b - a + 1
        cameras = np.tile(np.eye(3), (steps, 1, 1))
        cameras[1:, :2, 2] = rng.normal(0, 0.1, (steps - 1, 2))
        none = np.zeros((steps, 0, 4))
        motions.append(motion(np.arange(a, b + 1), none, none, [], cameras))
    return motions


def test_jitter_on_a_still_camera_is_below_a_pixel():
    """Key points seen 3 px off in every glance, as a network sees them; still, from frame to frame, they
    hardly move."""
    rng = np.random.default_rng(4)
    numbers = list(range(0, 161, 16))
    truth = camera(-20.0)
    seen = [detections(n, [], keypoints=keypoints(truth, noise=3.0, rng=rng)) for n in numbers]
    moving = still(numbers)
    wanted = np.arange(161, dtype=np.int32)
    path = everywhere(seen, motions_between(seen, moving), wanted, WIDTH, HEIGHT)
    known = path[:, keypoints(truth)[:, 2] > 0]
    steps = np.hypot(*np.moveaxis(np.diff(known[..., :2], axis=0), -1, 0))
    assert (known[..., 2] > 0).all()
    assert steps.mean() < 0.5
    assert np.percentile(steps, 95) < 1.0


def test_points_are_carried_along_a_pan_and_stay_exact():
    pans = np.linspace(-20, -10, 17)
    cameras = [camera(p) for p in pans]
    between = np.stack([c @ np.linalg.inv(cameras[0]) for c in cameras])
    between /= between[:, 2:, 2:]
    none = np.zeros((17, 0, 4))
    seen = [detections(0, [], keypoints=keypoints(cameras[0])), detections(16, [], keypoints=keypoints(cameras[-1]))]
    moving = [motion(np.arange(17), none, none, [], between)]
    wanted = np.arange(17, dtype=np.int32)
    found = carry(link(seen, moving), seen, moving, wanted, wanted / 25.0, WIDTH, HEIGHT)
    for answer, truth in zip(found, cameras, strict=True):
        visible = keypoints(truth)[:, 2] > 0
        shown = answer.keypoints[:, 2] > 0
        assert shown[visible].mean() > 0.9
        assert not shown[~visible].any()
        assert rms(answer.keypoints[shown, :2], moved_points(truth, POINTS[shown])) < 0.5


def test_a_point_no_glance_saw_says_so_by_its_confidence():
    points = keypoints(camera(-20.0))
    hidden = np.flatnonzero(points[:, 2])[3]
    points[hidden] = 0
    seen = [detections(0, [], keypoints=points)]
    answer = everywhere(seen, [], np.array([0], np.int32), WIDTH, HEIGHT)[0]
    assert 0 < answer[hidden, 2] <= GENERATED
    assert rms(answer[hidden, :2], moved_points(camera(-20.0), POINTS[hidden])) < 1.0
    assert answer[points[:, 2] > 0, 2] == pytest.approx(0.9)


def test_a_hole_is_crossed_only_when_it_is_short():
    a, b = camera(-20.0), camera(-14.0)
    seen = [detections(0, [], keypoints=keypoints(a)), detections(40, [], keypoints=keypoints(b))]
    wanted = np.arange(41, dtype=np.int32)
    short = everywhere(seen, [None], wanted, WIDTH, HEIGHT)
    assert (short[20, :, 2] > 0).any()
    middle = short[20, :, 2] > 0
    assert rms(short[20, middle, :2], moved_points(camera(-17.0), POINTS[middle])) < 10
    seen[1] = detections(200, [], keypoints=keypoints(b))
    long = everywhere(seen, [None], np.arange(201, dtype=np.int32), WIDTH, HEIGHT)
    assert not long[100].any()


def test_every_frame_looked_at_without_motion_is_steadied_too():
    rng = np.random.default_rng(6)
    truth = camera(-20.0)
    seen = [detections(n, [], keypoints=keypoints(truth, noise=2.0, rng=rng)) for n in range(40)]
    wanted = np.arange(40, dtype=np.int32)
    path = everywhere(seen, [None] * 39, wanted, WIDTH, HEIGHT)
    visible = keypoints(truth)[:, 2] > 0
    raw = np.stack([d.keypoints[visible, :2] for d in seen])
    smooth = path[4:-4, visible, :2]
    assert np.diff(smooth, axis=0).std() < 0.35 * np.diff(raw, axis=0).std()


def test_too_few_points_to_judge_are_answered_as_seen_and_contradictory_ones_not_at_all():
    wanted = np.array([0], np.int32)
    few, nonsense = refused()["few"], refused()["nonsense"]
    assert np.allclose(everywhere([detections(0, [], keypoints=few)], [], wanted, WIDTH, HEIGHT)[0], few, atol=1e-4)
    assert not everywhere([detections(0, [], keypoints=nonsense)], [], wanted, WIDTH, HEIGHT).any()


def test_the_renderers_homography_is_found_from_its_labels():
    scene = make_scene(5, 1, (WIDTH, HEIGHT))
    _, labels = render_frame(scene, 0)
    assert np.count_nonzero(labels.keypoints[:, 2]) >= 4
    view = fit(labels.keypoints.astype(np.float32), WIDTH, HEIGHT)
    assert view is not None
    ours, theirs = moved_points(view.homography, POINTS), moved_points(labels.homography, POINTS)
    near = (theirs > 0).all(1) & (theirs < [WIDTH, HEIGHT]).all(1)
    assert rms(ours[near], theirs[near]) < 1.0
