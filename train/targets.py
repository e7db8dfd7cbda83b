"""Labels to dense maps: what each cell of the three outputs should say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.augment import View
from train.network import CELL, KEYPOINT_CELL, KEYPOINTS

CLASS_OF = {1: 0, 2: 1, 3: 2}  # goalkeeper, player, referee -> class logit


@dataclass(frozen=True, slots=True)
class Targets:
    """Maps of one batch; b = batch, h x w cells of 8 pixels, H x W cells of 16.

    `heat` [b, 2, h, w] person and ball; `weight` [b, 2, h, w] of the heat loss (0 = say nothing);
    `box` [b, 2, 4, h, w] offset x y, log size x y (cells); `box_weight` [b, 2, h, w]; `kind` [b, h, w] class logit;
    `points` [b, 32, 3] x y (cells of 16) and state (1, 0, -1 unknown).
    """

    heat: Tensor
    weight: Tensor
    box: Tensor
    box_weight: Tensor
    kind: Tensor
    points: Tensor


def _stamp(
    view_box: NDArray[np.float32], heat: NDArray[np.float32], box: NDArray[np.float32], box_weight: NDArray[np.float32],
    kind: NDArray[np.int64] | None, label: int, minimum: float,
) -> None:  # fmt: skip
    """One object's Gaussian (1 at the cell of its centre) and, where it is the strongest, its box and class."""
    h, w = heat.shape
    x0, y0, x1, y1 = (view_box / CELL).tolist()
    cx, cy, bw, bh = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, 0.1), max(y1 - y0, 0.1)
    sx, sy = max(bw / 6, minimum), max(bh / 6, minimum)
    ix, iy = min(int(cx), w - 1), min(int(cy), h - 1)
    left, right = max(0, int(ix - 3 * sx)), min(w, int(ix + 3 * sx) + 2)
    top, bottom = max(0, int(iy - 3 * sy)), min(h, int(iy + 3 * sy) + 2)
    xs, ys = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    bump = np.exp(-((ys - cy) ** 2) / (2 * sy * sy))[:, None] * np.exp(-((xs - cx) ** 2) / (2 * sx * sx))[None]
    bump = np.minimum(bump / max(bump[iy - top, ix - left], 1e-6), 1.0).astype(np.float32)
    if bump.max() < 1:
        bump[iy - top, ix - left] = 1
    part = (slice(top, bottom), slice(left, right))
    mine = bump > heat[part]
    heat[part] = np.maximum(heat[part], bump)
    values = np.stack(np.broadcast_arrays(cx - xs[None], cy - ys[:, None], np.log(bw), np.log(bh)))
    box[(slice(None), *part)] = np.where(mine, values, box[(slice(None), *part)])
    box_weight[part] = np.where(mine, np.where(bump > 0.3, bump, 0), box_weight[part])
    if kind is not None:
        kind[part] = np.where(mine, label, kind[part])


def encode(views: list[View]) -> tuple[Tensor, Targets]:
    """(planes [b, H, W, 6] uint8, targets) of views of one size."""
    n, (ph, pw) = len(views), views[0].planes.shape[:2]
    h, w = 2 * ph // CELL, 2 * pw // CELL
    heat, weight = np.zeros((n, 2, h, w), np.float32), np.zeros((n, 2, h, w), np.float32)
    box, box_weight = np.zeros((n, 2, 4, h, w), np.float32), np.zeros((n, 2, h, w), np.float32)
    kind = np.zeros((n, h, w), np.int64)
    points = np.full((n, KEYPOINTS, 3), -1, np.float32)
    for i, view in enumerate(views):
        if view.keypoints is not None:
            points[i] = view.keypoints / np.array((KEYPOINT_CELL, KEYPOINT_CELL, 1), np.float32)
        if view.boxes is None:
            continue
        weight[i] = 1
        for x0, y0, x1, y1 in np.round(view.ignore / CELL).astype(int):
            weight[i, :, max(0, y0) : y1 + 1, max(0, x0) : x1 + 1] = 0
        for row in view.boxes:
            c = int(row[0])
            if c == 0:
                _stamp(row[1:], heat[i, 1], box[i, 1], box_weight[i, 1], None, 0, 0.6)
            else:
                _stamp(row[1:], heat[i, 0], box[i, 0], box_weight[i, 0], kind[i], CLASS_OF[c], 0.5)
        weight[i] = np.maximum(weight[i], box_weight[i] > 0)
    planes = torch.from_numpy(np.stack([v.planes for v in views]))
    return planes, Targets(*(torch.from_numpy(a) for a in (heat, weight, box, box_weight, kind, points)))
