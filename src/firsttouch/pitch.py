"""The pitch in the picture: a homography from the 32 key points, refused when it does not hold.

The table is the corrected one (metres, 105 x 68): the labels agree with it to 3-5 px at 1920, while the subnet's own
template is 17-29 px off where the penalty arc meets the area line.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from firsttouch.camera import SIGHTING, likeliest
from firsttouch.homography import Float, moved_points

# fmt: off
POINTS: Float = np.array([
    (0, 0), (0, 13.84), (0, 24.84), (0, 43.16), (0, 54.16), (0, 68),
    (5.5, 24.84), (5.5, 43.16), (11, 34),
    (16.5, 13.84), (16.5, 26.69), (16.5, 41.31), (16.5, 54.16),
    (52.5, 0), (52.5, 24.85), (52.5, 43.15), (52.5, 68),
    (88.5, 13.84), (88.5, 26.69), (88.5, 41.31), (88.5, 54.16),
    (94, 34), (99.5, 24.84), (99.5, 43.16),
    (105, 0), (105, 13.84), (105, 24.84), (105, 43.16), (105, 54.16), (105, 68),
    (43.35, 34), (61.65, 34),
], np.float64)
# fmt: on
"""(32, 2) metres: x along the touch line, y along the goal line."""


def _lines() -> npt.NDArray[np.float32]:
    """(L, 32) 1 where a point lies on the line through some pair of points; as floats, which multiply faster."""
    one, two = POINTS[:, None, None], POINTS[None, :, None]
    along, to = two - one, POINTS - one
    beside = np.abs(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    pairs = np.triu_indices(32, 1)
    return np.unique((beside <= 0.05 * np.linalg.norm(along, axis=-1))[pairs].astype(np.float32), axis=0)


_LINES = _lines()
SEEN = 0.3
"""Key points at least this confident take part in the fit."""
HOLDS = 0.015
"""Largest root mean square error of the inliers, as a share of the picture's width."""


@dataclass(frozen=True, slots=True)
class PitchView:
    """Where the pitch is in one picture.

    homography: (3, 3) float64, pitch metres -> source pixels. seen: (32,) float32 confidence of the points it rests
    on, 0 for the others. error_pixels: root mean square error of those points. uncertainty: (32,) float64 standard
    deviation of each projected point in pixels, infinite behind the camera.
    """

    homography: Float
    seen: Float
    error_pixels: float
    uncertainty: Float

    @property
    def points(self) -> Float:
        """(32, 2) float64 source pixels of all points, wherever they are; meaningless where `uncertainty` is
        infinite."""
        return moved_points(self.homography, POINTS)


def fit(keypoints: Float, width: int, height: int) -> PitchView | None:
    """The view behind one frame's key points (32, 3) in source pixels; None when no view holds.

    RANSAC (MAGSAC++ of OpenCV) finds the consensus, weighted least squares the view; where all points but one lie on
    a line, the likeliest camera (`camera`) is the view. Refused: fewer than four agreeing points, less than 60 %
    agreement, points (nearly) on a line, a mirrored or folded pitch, a large error, an absurd scale.
    """
    weight = consensus(keypoints, width)[None]
    return views(keypoints[None, :, :2], weight, weight, width, height)[0]


def ground(keypoints: Float, width: int) -> Float | None:
    """(3, 3) from pixels to metres, for one picture's key points (32, 3); None where they do not agree on one.

    A tenth of the time of `fit`: a consensus' own view, no uncertainty. For where people stand, not for points.
    """
    view, agreed = _agreement(keypoints, width, cv2.USAC_ACCURATE)
    return np.linalg.inv(view) if agreed.any() and view is not None and np.linalg.det(view) != 0.0 else None


def consensus(keypoints: Float, width: int) -> Float:
    """(32,) the confidence of the points that agree on one view, 0 for all others; all 0 without agreement."""
    return _agreement(keypoints, width, cv2.USAC_MAGSAC)[1]


def _agreement(keypoints: Float, width: int, method: int) -> tuple[Float | None, Float]:
    """The view (3, 3) from metres to pixels that most points agree on, and `consensus`."""
    agreed = np.zeros(32)
    used = np.flatnonzero(keypoints[:, 2] >= SEEN)
    if len(used) < 4:
        return None, agreed
    if _beside_one_line((keypoints[:, 2] >= SEEN)[None])[0] < 2:  # nothing to vote about: `views` judges
        agreed[used] = keypoints[used, 2]
        return None, agreed
    cv2.setRNGSeed(0)
    view, mask = cv2.findHomography(
        POINTS[used], keypoints[used, :2].astype(np.float64), method, max(4.0, HOLDS * width), maxIters=1000
    )
    if mask is not None and mask.sum() >= max(4, 0.6 * len(used)):
        inliers = used[mask[:, 0] > 0]
        agreed[inliers] = keypoints[inliers, 2]
    return None if view is None else np.asarray(view, np.float64), agreed


def _beside_one_line(known: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(S,) of known points (S, 32) how many are not on the line that most of them are on."""
    on_lines = known.astype(np.float32) @ _LINES.T
    return np.asarray(known.sum(1) - on_lines.max(1).astype(np.int64))


def views(image: Float, weight: Float, seen: Float, width: int, height: int) -> list[PitchView | None]:
    """Weighted least squares views of many frames at once; None for those that do not hold.

    image: (S, 32, 2) pixels of the key points, weight: (S, 32), 0 where a point is not known. seen: (S, 32) what the
    views shall say of their points.
    """
    found: list[PitchView | None] = [None] * len(image)
    enough = np.flatnonzero((weight > 0).sum(1) >= 4)
    if not len(enough):
        return found
    image, weight = image[enough].astype(np.float64), weight[enough].astype(np.float64)
    known = weight > 0
    beside = _beside_one_line(known)
    homography, variance = np.tile(np.eye(3), (len(image), 1, 1)), np.zeros((len(image), 32))
    noise, holds = np.full(len(image), 0.001 * width), np.zeros(len(image), bool)
    many, few = np.flatnonzero(beside > 1), np.flatnonzero(beside == 1)
    if len(many):
        solved = _solve(image[many], weight[many])
        homography[many], variance[many], holds[many] = solved.homography(), solved.variance(), solved.good
    if len(few):  # many homographies fit: the likeliest camera
        homography[few], variance[few], holds[few] = likeliest(POINTS, image[few], weight[few], width, height)
        noise[few] = SIGHTING * width
    points = moved_points(homography[:, None], POINTS)
    misses = np.where(known, ((points - image) ** 2).sum(-1), 0.0)
    error = np.sqrt((misses * weight).sum(1) / weight.sum(1))
    holds &= (error <= HOLDS * width) & _plausible(homography, known, width)
    uncertainty = np.maximum(error, noise)[:, None] * np.sqrt(np.maximum(variance, 0.0))
    uncertainty = np.where(_depth(homography, known) > 0, uncertainty, np.inf)
    for k in np.flatnonzero(holds):
        view = PitchView(homography[k], seen[enough[k]], float(error[k]), uncertainty[k])
        found[enough[k]] = view
    return found


@dataclass(frozen=True, slots=True)
class _Solved:
    """Homographies h (S, 3, 3) between normalised coordinates, the (S, 8, 8) covariances of their entries per unit of
    noise there, and whether the points pin each down."""

    h: Float
    covariance: Float
    good: npt.NDArray[np.bool_]
    to_world: Float
    to_image: Float

    def homography(self) -> Float:
        """(S, 3, 3) from metres to pixels, of the sign that makes depth positive in front of the camera."""
        return np.asarray(np.linalg.inv(self.to_image) @ self.h @ self.to_world)

    def variance(self) -> Float:
        """(S, 32) squared pixels by which projected points vary, per pixel of noise in the correspondences."""
        jacobian, _ = _jacobian(self.h, moved_points(self.to_world[:, None], POINTS))
        return np.asarray((jacobian @ self.covariance[:, None] * jacobian).sum((-1, -2)))


def _solve(image: Float, weight: Float) -> _Solved:
    """Weighted Gauss-Newton from the normalised direct linear transform, for image (S, 32, 2) and weight (S, 32).

    Not good where the points do not pin the view down (fewer than four, or nearly on a line).
    """
    to_world = _normaliser(np.broadcast_to(POINTS, image.shape), weight)
    to_image = _normaliser(image, weight)
    a, b = moved_points(to_world[:, None], POINTS), moved_points(to_image[:, None], image)
    root = np.sqrt(weight / weight.max(1, keepdims=True))
    twice = np.repeat(root, 2, axis=1)
    h, good = _direct(a, np.where(weight[..., None] > 0, b, 0.0), root)
    for _ in range(3):
        normal, gradient = _normal_equations(h, a, b, twice)
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        h = h + np.concatenate([step, np.zeros((len(h), 1))], 1).reshape(-1, 3, 3)
    depth = (_raw_depth(h, a) * weight).sum(1)
    h = h * np.where(depth < 0, -1.0, 1.0)[:, None, None]
    covariance = np.linalg.inv(_normal_equations(h, a, b, twice)[0])
    return _Solved(h, covariance, good, to_world, to_image)


def _normal_equations(h: Float, a: Float, b: Float, twice: Float) -> tuple[Float, Float]:
    """(S, 8, 8) and (S, 8); a failed fit is kept finite, its error refuses it later."""
    jacobian, projected = _jacobian(h, a)
    scaled = jacobian.reshape(len(h), -1, 8) * twice[..., None]
    residual = np.where(twice > 0, (b - projected).reshape(len(h), -1) * twice, 0.0)
    transposed = np.swapaxes(scaled, 1, 2)
    normal = transposed @ scaled + 1e-12 * np.eye(8)
    gradient = (transposed @ residual[..., None])[..., 0]
    broken = ~(np.isfinite(normal).all((1, 2)) & np.isfinite(gradient).all(1))
    normal[broken], gradient[broken] = np.eye(8), 0.0
    return normal, gradient


def _normaliser(points: Float, weight: Float) -> Float:
    """(S, 3, 3) that put the weighted points around the origin, sqrt(2) away on average."""
    share = (weight / weight.sum(1, keepdims=True))[..., None]
    centre = (np.where(share > 0, points, 0.0) * share).sum(1)
    spread = np.where(share > 0, points - centre[:, None], 0.0)
    scale = np.sqrt(2) / np.maximum((np.linalg.norm(spread, axis=-1) * share[..., 0]).sum(1), 1e-9)
    matrix = np.zeros((len(points), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, :2, 2] = -scale[:, None] * centre
    matrix[:, 2, 2] = 1.0
    return matrix


def _direct(a: Float, b: Float, root: Float) -> tuple[Float, npt.NDArray[np.bool_]]:
    """The algebraic solutions in normalised coordinates, (S, 3, 3) with h[2, 2] = 1, and which are well
    determined."""
    zero, one = np.zeros(a.shape[:2]), np.ones(a.shape[:2])
    x, y, u, v = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    top = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1)
    bottom = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], -1)
    rows = np.concatenate([top, bottom], 1) * np.tile(root, 2)[..., None]
    values, vectors = np.linalg.eigh(np.swapaxes(rows, 1, 2) @ rows)
    h = vectors[:, :, 0].reshape(-1, 3, 3)
    good = (values[:, 1] >= 1e-7 * values[:, -1]) & (np.abs(h[:, 2, 2]) >= 1e-9)
    h = np.where(good[:, None, None], h, np.eye(3))
    return h / h[:, 2:, 2:], good


def _jacobian(h: Float, points: Float) -> tuple[Float, Float]:
    """(S, N, 2, 8) derivative of projected points by the first eight entries of h, and the points (S, N, 2)."""
    x, y = points[..., 0], points[..., 1]
    w = _raw_depth(h, points)
    w = np.where(np.abs(w) < 1e-9, 1e-9, w)
    u = (h[:, None, 0, 0] * x + h[:, None, 0, 1] * y + h[:, None, 0, 2]) / w
    v = (h[:, None, 1, 0] * x + h[:, None, 1, 1] * y + h[:, None, 1, 2]) / w
    jacobian = np.zeros((*x.shape, 2, 8))
    x, y, one = x / w, y / w, 1.0 / w
    jacobian[..., 0, 0] = jacobian[..., 1, 3] = x
    jacobian[..., 0, 1] = jacobian[..., 1, 4] = y
    jacobian[..., 0, 2] = jacobian[..., 1, 5] = one
    jacobian[..., 0, 6], jacobian[..., 0, 7] = -u * x, -u * y
    jacobian[..., 1, 6], jacobian[..., 1, 7] = -v * x, -v * y
    return jacobian, np.stack([u, v], -1)


def _raw_depth(homography: Float, points: Float) -> Float:
    """(S, N) of homographies (S, 3, 3) and points (S, N, 2) or (N, 2)."""
    h = homography[:, None, 2]
    return np.asarray(h[..., 0] * points[..., 0] + h[..., 1] * points[..., 1] + h[..., 2])


def _depth(homography: Float, known: npt.NDArray[np.bool_]) -> Float:
    """(S, 32) positive in front of the camera, as a share of the farthest known point; near the horizon counts
    as behind."""
    depth = _raw_depth(homography, POINTS)
    scale = np.where(known, depth, -np.inf).max(1, keepdims=True)
    return np.asarray(depth / np.maximum(scale, 1e-12) - 0.02)


def _plausible(homography: Float, known: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """(S,) not mirrored, not folded, and between 1 and 150 pixels a metre (at 1280) where the known points are."""
    depth = _raw_depth(homography, POINTS)
    h = homography[:, None]
    image = moved_points(h, POINTS)
    u, v = image[..., 0], image[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        jxx, jxy = (h[..., 0, 0] - u * h[..., 2, 0]) / depth, (h[..., 0, 1] - u * h[..., 2, 1]) / depth
        jyx, jyy = (h[..., 1, 0] - v * h[..., 2, 0]) / depth, (h[..., 1, 1] - v * h[..., 2, 1]) / depth
        area = (jxx * jyy - jxy * jyx) * (1280.0 / width) ** 2
        fine = (depth > 0) & (area > 1.0) & (area < 150.0**2)
    return np.asarray((fine | ~known).all(1))
