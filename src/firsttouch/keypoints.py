"""The 32 pitch key points of every frame: views of the looked-at frames steadied by their neighbours, then
carried by the camera.

What one glance sees is off by some pixels; the camera between two glances is known to a fraction of one. So
the points of several
glances are brought to one frame and one view is fitted to them all. A point that no glance saw is answered
where the fit pins it
down, with a confidence that says so; points outside the picture are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firsttouch.detect import Detections
from firsttouch.homography import Float, moved_points
from firsttouch.motion import Motion, Steps, camera_across
from firsttouch.pitch import SEEN, PitchView, consensus, views
from firsttouch.predict import BRIDGE_FRAMES, EXTRAPOLATE_FRAMES

Int = npt.NDArray[np.int32]

SUPPORTED = 0.01
"""A point that no glance saw is answered where the fit's own uncertainty is below this share of the width."""
GENERATED = 0.5
"""Highest confidence of such a point."""
STEADY_FRAMES = 50
"""Looked-at frames at most this far away help to steady a view, the nearer the more."""
STEADY_STEP = 5
"""Of those closer together than this some are left out: they err alike, and cost as much as the others."""
STRAY = 0.015
"""A sighting this share of the width away from the view fitted to all of them is left out."""
NEIGHBOUR_FRAMES = 3
"""Looked-at frames without motion between them at most this far apart are steadied by their neighbours all the
same."""


@dataclass(frozen=True, slots=True)
class _Glance:
    """The points of one looked-at frame: xy (32, 2) float64, seen (32,) confidence or 0, doubt (32,) pixels,
    infinite: unknown."""

    xy: Float
    seen: Float
    doubt: Float


Path = tuple[Float, Float, Float]
"""xy (T, 32, 2), seen (T, 32), doubt (T, 32)."""


def everywhere(
    detections: Sequence[Detections],
    between: Sequence[Motion | None],
    wanted: Int,
    width: int,
    height: int,
) -> Float:
    """(F, 32, 3) float32 x, y, confidence for the wanted frames; zeros where nothing is known, or outside the
    picture.

    between: (S - 1) motions of neighbouring looked-at frames, None where there is none.
    """
    answer = np.zeros((len(wanted), 32, 3), np.float32)
    if not any(d.keypoints[:, 2].any() for d in detections):
        return answer
    views = steady(detections, between, width, height)
    glances = [_glance(d, view) for d, view in zip(detections, views, strict=True)]
    glances = _smoothed(glances, [d.frame_number for d in detections], between)
    numbers = np.array([d.frame_number for d in detections])
    place, known = np.searchsorted(wanted, numbers), np.isin(numbers, wanted)
    looked = _stacked(glances)
    answer[place[known]] = _on_the_wire(*looked, width, height)[known]
    gap = np.searchsorted(numbers, wanted) - 1  # of each wanted frame that lies between two looks
    inside = (gap >= 0) & (gap < len(between)) & ~np.isin(wanted, numbers)
    flown = np.array([motion is not None and not motion.is_leap for motion in between], bool)
    carried = np.flatnonzero(inside & flown[np.where(inside, gap, 0)]) if len(between) else np.zeros(0, np.intp)
    if len(carried):
        path = _along_camera(looked, between, gap[carried], wanted[carried])
        answer[carried] = _on_the_wire(*path, width, height)
    for look in np.unique(gap[inside]).tolist():
        if not flown[look]:
            hole = np.flatnonzero(inside & (gap == look))
            path = _across_hole(look, glances, between, numbers, wanted[hole])
            answer[hole] = _on_the_wire(*path, width, height)
    return answer


def steady(
    detections: Sequence[Detections], between: Sequence[Motion | None], width: int, height: int
) -> list[PitchView | None]:
    """One view per looked-at frame, fitted to its points and those of its neighbours, brought here along the camera.

    Least squares over all sightings of a point is least squares over their mean, so each point is averaged first.
    Sightings far from the first fit are left out of a second. A frame whose pooled fit does not hold keeps its own.
    """
    looks = len(detections)
    if not any(d.keypoints[:, 2].any() for d in detections):
        return [None] * looks
    sighted = np.stack([d.keypoints[:, :2] for d in detections]).astype(np.float64)
    weight = np.stack([consensus(d.keypoints, width) for d in detections])
    other, chain, share = _neighbours(detections, between)
    own = views(sighted, weight, weight, width, height)
    weight[[view is None for view in own]] = 0.0
    here = moved_points(chain[:, :, None], sighted[other])
    trust = np.where(np.isfinite(here).all(-1), weight[other] * share[..., None], 0.0)
    here = np.where(trust[..., None] > 0, here, 0.0)
    first = views(*_averaged(here, trust), weight, width, height) if other.shape[1] > 1 else own
    guess = np.stack([view.points if view is not None else np.full((32, 2), np.nan) for view in first])
    with np.errstate(invalid="ignore"):
        far = ((here - guess[:, None]) ** 2).sum(-1) > (STRAY * width) ** 2
    second = views(*_averaged(here, np.where(far, 0.0, trust)), weight, width, height)
    return [second[k] or first[k] or own[k] for k in range(looks)]


def _averaged(here: Float, trust: Float) -> tuple[Float, Float]:
    """Mean (S, 32, 2) and weight (S, 32) of sightings (S, K, 32, 2) with trust (S, K, 32)."""
    total = trust.sum(1)
    mean = (here * trust[..., None]).sum(1) / np.where(total > 0, total, 1.0)[..., None]
    return mean, total


def cubic(start: Float, stop: Float, leaving: Float, coming: Float, share: Float) -> Float:
    """The cubic from `start` to `stop` that leaves and arrives with these velocities (per whole stretch), at
    `share` of the way."""
    s = share
    rise = 3 * s**2 - 2 * s**3
    return (1 - rise) * start + rise * stop + (s**3 - 2 * s**2 + s) * leaving + (s**3 - s**2) * coming


def _glance(detection: Detections, view: PitchView | None) -> _Glance:
    """The view's points; without a view the points as seen when they are too few to be judged, and nothing
    when they disagree."""
    if view is not None:
        return _Glance(view.points, view.seen.astype(np.float64), view.uncertainty)
    seen = np.where(detection.keypoints[:, 2] >= SEEN, detection.keypoints[:, 2], 0.0).astype(np.float64)
    if np.count_nonzero(seen) > 4:
        seen[:] = 0.0
    return _Glance(detection.keypoints[:, :2].astype(np.float64), seen, np.where(seen > 0, 0.0, np.inf))


def _stacked(glances: Sequence[_Glance]) -> Path:
    return np.stack([g.xy for g in glances]), np.stack([g.seen for g in glances]), np.stack([g.doubt for g in glances])


def _on_the_wire(xy: Float, seen: Float, doubt: Float, width: int, height: int) -> Float:
    """(F, 32, 3): points in the picture that were seen or are supported, else zero. Confidence: the glance's,
    or at most GENERATED."""
    with np.errstate(invalid="ignore"):
        inside = (xy >= 0).all(-1) & (xy[..., 0] <= width - 1) & (xy[..., 1] <= height - 1)
    limit = SUPPORTED * width
    generated = np.where(doubt < limit, GENERATED * np.exp(-np.minimum(doubt, limit) / limit), 0.0)
    confidence = np.where(doubt < 3 * limit, np.maximum(seen, generated), 0.0)
    answer = np.concatenate([xy, confidence[..., None]], -1)
    return np.where((inside & (confidence > 0))[..., None], answer, 0.0).astype(np.float32)


def _neighbours(
    detections: Sequence[Detections], between: Sequence[Motion | None]
) -> tuple[npt.NDArray[np.intp], Float, Float]:
    """For each looked-at frame those near it, as far as the camera is known between: indices (S, K),
    homographies from
    each to it (S, K, 3, 3), and what each counts (S, K), itself 1 and places left over 0."""
    numbers = np.array([d.frame_number for d in detections])
    looks = np.arange(len(numbers))
    cameras = [None if m is not None and m.is_leap else camera_across(m) for m in between]
    known = np.array([camera is not None for camera in cameras], bool)
    forward = np.array([np.eye(3) if camera is None else camera for camera in cameras]).reshape(-1, 3, 3)
    found = [(looks, np.tile(np.eye(3), (len(looks), 1, 1)), np.ones(len(looks), bool))]
    for way, steps in ((-1, forward), (1, np.linalg.inv(forward))):
        (_, chain, joined), last = found[0], numbers
        for away in range(1, len(looks)):
            other = looks + way * away
            joined = joined & (other >= 0) & (other < len(looks))
            other = np.where(joined, other, looks)
            edge = np.where(joined, np.minimum(other, other - way), 0)  # between the two nearest on this way
            joined = joined & known[edge] & (np.abs(numbers[other] - numbers) <= STEADY_FRAMES)
            if not joined.any():
                break
            chain = chain @ steps[edge]
            apart = joined & (np.abs(numbers[other] - last) >= STEADY_STEP)
            last = np.where(apart, numbers[other], last)
            found.append((other, chain, apart))
    index, chains, taken = (np.stack(column, 1) for column in zip(*found, strict=True))
    order = np.argsort(~taken, axis=1, kind="stable")[:, : int(taken.sum(1).max())]
    rows = looks[:, None]
    index, chains, taken = index[rows, order], chains[rows, order], taken[rows, order]
    share = np.exp(-2.0 * np.abs(numbers[index] - numbers[:, None]) / STEADY_FRAMES)
    return index, chains, np.where(taken, share, 0.0)


def _smoothed(glances: list[_Glance], numbers: Sequence[int], between: Sequence[Motion | None]) -> list[_Glance]:
    """Where close frames were looked at without motion between them, each point on the line through it and its
    neighbours."""
    if not any(_unjoined_neighbours(look, numbers, between) for look in range(len(between))):
        return glances
    xy, _, doubt = _stacked(glances)
    smooth = list(glances)
    for look, glance in enumerate(glances):
        near = _run_around(look, numbers, between)
        if len(near) < 3 or not np.isfinite(glance.doubt).any():
            continue
        time = (np.array([numbers[k] for k in near]) - numbers[look]).astype(np.float64)
        weight = np.where(np.isfinite(doubt[near]), 1 / (1 + doubt[near]) ** 2, 0.0)
        w, wt, wtt = weight.sum(0), time @ weight, time**2 @ weight
        good = np.nan_to_num(xy[near], posinf=0.0, neginf=0.0) * weight[..., None]
        sums, moments = good.sum(0), np.tensordot(time, good, 1)
        determinant = w * wtt - wt**2
        level = (wtt[:, None] * sums - wt[:, None] * moments) / np.where(determinant > 1e-9, determinant, 1.0)[:, None]
        usable = (determinant > 1e-9) & np.isfinite(glance.doubt)
        smooth[look] = _Glance(np.where(usable[:, None], level, glance.xy), glance.seen, glance.doubt)
    return smooth


def _unjoined_neighbours(look: int, numbers: Sequence[int], between: Sequence[Motion | None]) -> bool:
    return between[look] is None and numbers[look + 1] - numbers[look] <= NEIGHBOUR_FRAMES


def _run_around(look: int, numbers: Sequence[int], between: Sequence[Motion | None], reach: int = 4) -> list[int]:
    """Up to `reach` looked-at frames on either side, as many before as after, while they are unjoined neighbours."""
    before = after = 0
    while before < reach and look - before > 0 and _unjoined_neighbours(look - before - 1, numbers, between):
        before += 1
    while after < reach and look + after < len(between) and _unjoined_neighbours(look + after, numbers, between):
        after += 1
    return list(range(look - min(before, after), look + min(before, after) + 1))


def zeroed(values: Float) -> Float:
    """NaN as 0: several times faster than nan_to_num on arrays of this size."""
    return np.where(np.isnan(values), 0.0, values)


def _along_camera(
    looked: Path, between: Sequence[Motion | None], gap: npt.NDArray[np.intp], frames: npt.NDArray[np.integer]
) -> Path:
    """The points on frames (T,) in gaps (T,) that flow joins: those of the glance before carried forward, of the one
    after backward, each trusted near itself."""
    gaps, of = np.unique(gap, return_inverse=True)
    motions = [motion for look in gaps.tolist() if (motion := between[look]) is not None]
    steps = Steps.of(motions)
    ahead = np.concatenate([motion.camera for motion in motions])
    behind = np.full_like(ahead, np.nan)
    for k, motion in enumerate(motions):
        rows, across = slice(steps.start[k], steps.start[k + 1]), camera_across(motion)
        if across is not None:
            behind[rows] = motion.camera @ np.linalg.inv(across)
        elif motion.cut_after is not None:
            beyond = slice(rows.start + motion.cut_after + 1, rows.stop)
            behind[beyond] = ahead[beyond]
            ahead[beyond] = np.nan
    (xy, seen, doubt), first = looked, gaps[steps.motion]
    around = steps.around(of, frames)
    left = around.between(moved_points(ahead[:, None], xy[first]))
    right = around.between(moved_points(behind[:, None], xy[first + 1]))
    begins, ends = steps.numbers[steps.start[:-1]][of], steps.numbers[steps.start[1:] - 1][of]
    share = ((frames - begins) / (ends - begins))[:, None]
    weight_left = np.where(np.isfinite(left[..., 0]) & np.isfinite(doubt[gap]), 1 - share, 0.0)
    weight_right = np.where(np.isfinite(right[..., 0]) & np.isfinite(doubt[gap + 1]), share, 0.0)
    total = weight_left + weight_right
    a, b = weight_left / np.where(total > 0, total, 1), weight_right / np.where(total > 0, total, 1)
    path = a[..., None] * zeroed(left) + b[..., None] * zeroed(right)
    doubt_left, doubt_right = np.where(a > 0, doubt[gap], np.inf), np.where(b > 0, doubt[gap + 1], np.inf)
    return path, a * seen[gap] + b * seen[gap + 1], np.minimum(doubt_left, doubt_right)


def _across_hole(
    look: int, glances: Sequence[_Glance], between: Sequence[Motion | None], numbers: npt.NDArray[np.int_], frames: Int
) -> Path:
    """The points in a hole without motion: a cubic that keeps the velocities of both sides, or a few frames
    from either side."""
    one, two = glances[look], glances[look + 1]
    first, last = int(numbers[look]), int(numbers[look + 1])
    length = last - first
    here = between[look]
    v0 = _camera_velocity(one, between[look - 1] if look else None, leaving=True)
    v1 = _camera_velocity(two, between[look + 1] if look + 1 < len(between) else None, leaving=False)
    since, until = (frames - first).astype(np.float64)[:, None], (last - frames).astype(np.float64)[:, None]
    near_left = one.xy + since[..., None] * zeroed(v0)
    near_right = two.xy - until[..., None] * zeroed(v1)
    both = np.isfinite(one.doubt) & np.isfinite(two.doubt) & (length <= BRIDGE_FRAMES)
    if here is not None and here.cut_after is not None:
        both[:] = False
    chord = two.xy - one.xy
    leaving = np.where(np.isfinite(v0), v0 * length, chord)
    coming = np.where(np.isfinite(v1), v1 * length, chord)
    share = (since / length)[..., None]
    joined = cubic(one.xy, two.xy, leaving, coming, share)
    is_left = (since <= EXTRAPOLATE_FRAMES) & (since <= until)
    is_right = (until <= EXTRAPOLATE_FRAMES) & ~is_left
    xy = np.where(both[None, :, None], joined, np.where(is_left[..., None], near_left, near_right))
    nearest = np.where(since <= until, one.seen, two.seen)
    fade = np.exp(-np.minimum(since, until) / EXTRAPOLATE_FRAMES)
    doubt = np.where(is_left, one.doubt, np.where(is_right, two.doubt, np.inf))
    doubt = np.where(both, np.maximum(one.doubt, two.doubt), doubt)
    return xy, nearest * fade, doubt


def _camera_velocity(glance: _Glance, motion: Motion | None, *, leaving: bool) -> Float:
    """(32, 2) pixels a frame at which the camera moves the points beside a hole; NaN where unknown."""
    rows = None if motion is None or motion.is_leap else motion.rows_near_end() if leaving else motion.rows_near_start()
    if motion is None or rows is None:
        return np.full((32, 2), np.nan)
    a, b = rows
    step = motion.camera[b] @ np.linalg.inv(motion.camera[a]) if np.isfinite(motion.camera[[a, b]]).all() else None
    if step is None:
        return np.full((32, 2), np.nan)
    elapsed = float(motion.frame_numbers[b] - motion.frame_numbers[a])
    if leaving:
        return (glance.xy - moved_points(np.linalg.inv(step), glance.xy)) / elapsed
    return (moved_points(step, glance.xy) - glance.xy) / elapsed
