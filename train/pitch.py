"""Pitch geometry that training needs: the mirror permutation of the 32 points, a homography fit."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.pitch import POINTS

FLIP = np.array(
    [24, 25, 26, 27, 28, 29, 22, 23, 21, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 8, 6, 7,
     0, 1, 2, 3, 4, 5, 31, 30],
)  # fmt: skip


def fit_homography(points: NDArray[np.float64], threshold: float) -> NDArray[np.float64] | None:
    """Metres -> pixels from [32, 3] labels (x, y, visible), or None when under 4 points agree."""
    seen = points[:, 2] > 0
    if int(seen.sum()) < 4:
        return None
    found, inliers = cv2.findHomography(POINTS[seen], points[seen, :2], cv2.RANSAC, threshold)
    if found is None or int(inliers.sum()) < max(4, 0.6 * int(seen.sum())):
        return None
    return np.asarray(found, np.float64)


def inside(xy: NDArray[Any], width: int = 1280, height: int = 720) -> NDArray[np.bool_]:
    """[n] whether each [n, 2] pixel lies in the picture; NaN does not."""
    return np.asarray(((xy >= 0) & (xy < (width, height))).all(1))


def project(homography: NDArray[Any], metres: NDArray[Any]) -> NDArray[np.float64]:
    """[n, 2] metres to [n, 2] pixels; NaN for a point behind the camera."""
    h = np.concatenate((metres, np.ones((len(metres), 1))), 1) @ homography.T
    # The sign of w in front of the camera is the one the pitch points in view have; findHomography scales h33 to 1,
    # so the sign is taken from the caller's points by majority.
    front = np.sign(np.median(h[:, 2]))
    w = np.where(h[:, 2] * front > 1e-6, h[:, 2], np.nan)
    return np.asarray(h[:, :2] / w[:, None])
