"""The pitch in the picture: a homography from the 32 key points, refused when it does not hold.

The table is the corrected one (metres, 105 x 68): the labels agree with it to 3-5 px at 1920, while the
subnet's own template
is 17-29 px off where the penalty arc meets the area line.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from firsttouch.motion import Float, moved_points

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

SEEN = 0.3
"""Key points at least this confident take part in the fit."""
HOLDS = 0.015
"""Largest root mean square error of the inliers, as a share of the picture's width."""


@dataclass(frozen=True, slots=True)
class PitchView:
    """Where the pitch is in one picture.

    homography: (3, 3) float64, pitch metres -> source pixels. seen: (32,) float32 confidence of the points it
    rests on, 0 for
    the others. error_pixels: root mean square error of those points. uncertainty: (32,) float64 standard
    deviation of each
    projected point in pixels, infinite behind the camera.
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

    RANSAC (MAGSAC++ of OpenCV) finds the consensus, weighted least squares the view. Refused: fewer than four
    agreeing points,
    less than 60 % agreement, points (nearly) on a line, a mirrored or folded pitch, a large error, an absurd scale.
    """
    used = np.flatnonzero(keypoints[:, 2] >= SEEN)
    if len(used) < 4:
        return None
    image, world = keypoints[used, :2].astype(np.float64), POINTS[used]
    threshold = max(4.0, HOLDS * width)
    cv2.setRNGSeed(0)
    _, mask = cv2.findHomography(world, image, cv2.USAC_MAGSAC, threshold, maxIters=1000, confidence=0.999)
    if mask is None:
        return None
    inliers = mask[:, 0].astype(bool)
    if inliers.sum() < max(4, 0.6 * len(used)):
        return None
    seen = np.zeros(32, np.float32)
    seen[used[inliers]] = keypoints[used[inliers], 2]
    return view_from(
        world[inliers], image[inliers], keypoints[used[inliers], 2].astype(np.float64), seen, width, height
    )


def view_from(world: Float, image: Float, weight: Float, seen: Float, width: int, height: int) -> PitchView | None:
    """Weighted least squares view of correspondences (N, 2), with its checks; None when it does not hold."""
    solved = _solve(world, image, weight)
    if solved is None:
        return None
    homography = solved.homography
    misses = ((moved_points(homography, world) - image) ** 2).sum(1)
    error = float(np.sqrt(np.average(misses, weights=weight)))
    if not np.isfinite(error) or error > HOLDS * width or not _plausible(homography, world, width):
        return None
    noise = max(error, 0.001 * width)
    uncertainty = noise * np.sqrt(solved.variance(POINTS))
    return PitchView(homography, seen, error, np.where(_depth(homography, POINTS) > 0, uncertainty, np.inf))


@dataclass(frozen=True, slots=True)
class _Solved:
    """A homography h between normalised coordinates, and the (8, 8) covariance of its entries per unit of
    noise there."""

    h: Float
    covariance: Float
    to_world: Float
    to_image: Float

    @property
    def homography(self) -> Float:
        """From metres to pixels, of the sign that makes depth positive in front of the camera."""
        full = np.linalg.inv(self.to_image) @ self.h @ self.to_world
        return np.asarray(full)

    def variance(self, points: Float) -> Float:
        """(N,) squared pixels by which projected points vary, per pixel of noise in the correspondences."""
        jacobian, _ = _jacobian(self.h, moved_points(self.to_world, points))
        return np.asarray(np.einsum("nij,jk,nik->n", jacobian, self.covariance, jacobian))


def _normaliser(points: Float) -> Float:
    centre = points.mean(0)
    scale = np.sqrt(2) / max(float(np.linalg.norm(points - centre, axis=1).mean()), 1e-9)
    return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])


def _solve(world: Float, image: Float, weight: Float) -> _Solved | None:
    """Weighted Gauss-Newton from the normalised direct linear transform.

    None where the points do not pin the view down (fewer than four, or nearly on a line).
    """
    to_world, to_image = _normaliser(world), _normaliser(image)
    a, b = moved_points(to_world, world), moved_points(to_image, image)
    root = np.sqrt(weight / weight.max())
    h = _direct(a, b, root)
    if h is None:
        return None
    twice = np.repeat(root, 2)
    for _ in range(3):
        jacobian, projected = _jacobian(h, a)
        scaled = jacobian.reshape(-1, 8) * twice[:, None]
        normal = scaled.T @ scaled + 1e-12 * np.eye(8)
        if not np.isfinite(normal).all():
            return None
        step = np.linalg.solve(normal, scaled.T @ ((b - projected).reshape(-1) * twice))
        h = h + np.append(step, 0).reshape(3, 3)
    h = h * (np.sign(_raw_depth(h, a).mean()) or 1.0)
    jacobian, _ = _jacobian(h, a)
    scaled = jacobian.reshape(-1, 8) * twice[:, None]
    return _Solved(h, np.linalg.pinv(scaled.T @ scaled, hermitian=True), to_world, to_image)


def _direct(a: Float, b: Float, root: Float) -> Float | None:
    """The algebraic solution in normalised coordinates, h[2, 2] = 1."""
    zero, one = np.zeros(len(a)), np.ones(len(a))
    x, y, u, v = a[:, 0], a[:, 1], b[:, 0], b[:, 1]
    top = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], 1)
    bottom = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], 1)
    rows = np.concatenate([top, bottom]) * np.tile(root, 2)[:, None]
    values, vectors = np.linalg.eigh(rows.T @ rows)
    h = vectors[:, 0].reshape(3, 3)
    if values[1] < 1e-7 * values[-1] or abs(h[2, 2]) < 1e-9:
        return None
    return np.asarray(h / h[2, 2])


def _jacobian(h: Float, points: Float) -> tuple[Float, Float]:
    """(N, 2, 8) derivative of the projected points by the first eight entries of h, and the points (N, 2)."""
    x, y = points[:, 0], points[:, 1]
    w = h[2, 0] * x + h[2, 1] * y + h[2, 2]
    w = np.where(np.abs(w) < 1e-9, 1e-9, w)
    u, v = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) / w, (h[1, 0] * x + h[1, 1] * y + h[1, 2]) / w
    zero, one = np.zeros_like(x), np.ones_like(x)
    du = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1) / w[:, None]
    dv = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1) / w[:, None]
    return np.stack([du, dv], 1), np.stack([u, v], 1)


def _raw_depth(homography: Float, points: Float) -> Float:
    return np.asarray(points @ homography[2, :2] + homography[2, 2])


def _depth(homography: Float, points: Float) -> Float:
    """Positive in front of the camera; relative to the nearest point, so that a point near the horizon counts
    as behind."""
    depth = _raw_depth(homography, points)
    return depth / max(float(depth.max()), 1e-12) - 0.02


def _plausible(homography: Float, world: Float, width: int) -> bool:
    """Not mirrored, not folded, and between 1 and 150 pixels a metre (at 1280) where the points were seen."""
    depth = _raw_depth(homography, world)
    if (depth <= 0).any():
        return False
    h = homography
    x, y = world[:, 0], world[:, 1]
    u, v = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) / depth, (h[1, 0] * x + h[1, 1] * y + h[1, 2]) / depth
    jxx, jxy = (h[0, 0] - u * h[2, 0]) / depth, (h[0, 1] - u * h[2, 1]) / depth
    jyx, jyy = (h[1, 0] - v * h[2, 0]) / depth, (h[1, 1] - v * h[2, 1]) / depth
    area = (jxx * jyy - jxy * jyx) * (1280.0 / width) ** 2
    return bool((area > 1.0).all() and (area < 150.0**2).all())
