"""Points through homographies; what everything that speaks of camera or pitch shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]


def moved_points(homography: Float, points: Float) -> Float:
    """Points (..., 2) through homographies (..., 3, 3)."""
    x, y = points[..., 0], points[..., 1]
    h = homography
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = 1.0 / (h[..., 2, 0] * x + h[..., 2, 1] * y + h[..., 2, 2])
        u = (h[..., 0, 0] * x + h[..., 0, 1] * y + h[..., 0, 2]) * depth
        v = (h[..., 1, 0] * x + h[..., 1, 1] * y + h[..., 1, 2]) * depth
    moved = np.empty((*u.shape, 2))
    moved[..., 0], moved[..., 1] = u, v
    return moved
