"""Augmentation on uint8 planes: what the data lacks is other cameras, light, kits, codecs and graphics.

Geometry is one affine map on luma and the same on chroma; photometry is table look-ups and small maps, so that
one view costs a few milliseconds and the trainer is never kept waiting on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train import kits, pitch
from train.data import HEIGHT, WIDTH, Frame

Plane = NDArray[Any]  # uint8; cv2 types its answers more loosely

FULL = (1280, 736)
CROP = (640, 384)
TEAMS: dict[tuple[str, str], NDArray[np.int64] | None] = {}  # a frame's teams do not change: found once a process
NOISE = np.random.default_rng(0).normal(0, 1, (2048, 2048)).astype(np.float16)


@dataclass(frozen=True, slots=True)
class View:
    """What the network is shown: planes [h/2, w/2, 6] uint8 and labels in canvas pixels (as in `Frame`)."""

    planes: Plane
    boxes: NDArray[np.float32] | None
    keypoints: NDArray[np.float32] | None
    ignore: NDArray[np.float32]


def stack_planes(luma: Plane, chroma: Plane) -> Plane:
    """[h, w] and [2, h/2, w/2] to [h/2, w/2, 6]: four luma phases, U, V."""
    luma_of_cell = luma[0::2, 0::2], luma[0::2, 1::2], luma[1::2, 0::2], luma[1::2, 1::2]
    return np.stack((*luma_of_cell, *chroma), -1)


def plain_view(frame: Frame) -> View:
    """The frame as the runtime shows it: unscaled, 16 rows padded below."""
    luma = np.full((FULL[1], FULL[0]), 16, np.uint8)
    chroma = np.full((2, FULL[1] // 2, FULL[0] // 2), 128, np.uint8)
    luma[:HEIGHT], chroma[:, : HEIGHT // 2] = frame.luma, frame.chroma
    return View(stack_planes(luma, chroma), frame.boxes, frame.keypoints, frame.ignore)


def augmented_view(frame: Frame, size: tuple[int, int], rng: np.random.Generator) -> View:
    """A random view of the frame on a canvas of `size` (w, h)."""
    if frame.source != "rendered" and frame.boxes is not None and rng.random() < 0.5:
        frame = _redressed(frame, rng)
    anchor = _anchor(frame, rng) if size == CROP else None
    matrix, mirrored = _random_affine(size, anchor, rng)
    luma, chroma = _warp(frame, matrix, size, rng)
    boxes = None if frame.boxes is None else _move_boxes(frame.boxes, matrix, size)
    ignore = _move_boxes(np.insert(frame.ignore, 0, 0, 1).astype(np.float32), matrix, size)[:, 1:]
    points = None if frame.keypoints is None else _move_points(frame.keypoints, matrix, mirrored, size)
    luma, chroma = _photometry(luma, chroma, rng)
    if rng.random() < 0.35:
        boxes = _erase(luma, chroma, boxes, rng)
    return View(stack_planes(luma, chroma), boxes, points, ignore)


def _redressed(frame: Frame, rng: np.random.Generator) -> Frame:
    key = (frame.source, frame.name)
    if key not in TEAMS:
        TEAMS[key] = kits.teams(frame)
    team = TEAMS[key]
    if team is None:
        return frame
    luma, chroma = kits.redress(frame, team, rng)
    return replace(frame, luma=luma, chroma=chroma)


def _anchor(frame: Frame, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """A box centre to look at; the rare classes (ball, goalkeeper, referee) far more often than their share."""
    if frame.boxes is None or len(frame.boxes) == 0:
        return None
    wanted = rng.choice(4, p=(0.4, 0.2, 0.15, 0.25))
    rows = frame.boxes[frame.boxes[:, 0] == wanted]
    row = (rows if len(rows) else frame.boxes)[rng.integers(len(rows) or len(frame.boxes))]
    return np.array(((row[1] + row[3]) / 2, (row[2] + row[4]) / 2), np.float32)


def _random_affine(
    size: tuple[int, int], anchor: NDArray[np.float32] | None, rng: np.random.Generator
) -> tuple[NDArray[np.float64], bool]:
    """[2, 3] source -> canvas pixels, and whether it mirrors."""
    w, h = size
    mirrored = bool(rng.random() < 0.5)
    if anchor is None and rng.random() < 0.3:
        scale, aspect, angle = 1.0, 1.0, 0.0  # nothing resampled: the picture as the runtime sees it
        shift = np.array((0.0, 0.0)) if rng.random() < 0.5 else rng.integers((-160, -100), (160, 120)).astype(float)
    else:
        low, high = (0.75, 1.9) if anchor is None else (0.7, 2.2)
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        aspect, angle = float(np.exp(rng.normal(0, 0.06))), float(np.deg2rad(rng.normal(0, 1.5)))
        if anchor is None:
            slack = np.array((w - WIDTH * scale, h - HEIGHT * scale))
            shift = rng.uniform(np.minimum(slack, 0) - 30, np.maximum(slack, 0) + 30)
        else:
            shift = np.zeros(2)
    sign = -1.0 if mirrored else 1.0
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.array(((c * aspect * sign, -s), (s * sign, c)))
    if anchor is None:
        start = np.array((WIDTH * scale * aspect if mirrored else 0.0, 0.0))
        return np.column_stack((linear, start + shift)), mirrored
    shift = rng.uniform((0.08 * w, 0.08 * h), (0.92 * w, 0.92 * h)) - linear @ anchor
    # keep the canvas inside the picture (up to a small border): beyond it there is nothing to learn
    corners = np.array(((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT))) @ linear.T + shift
    low, high = corners.min(0), corners.max(0)
    inside = np.clip(np.zeros(2), np.array((w, h)) - high, -low) if (high - low > (w, h)).all() else np.zeros(2)
    return np.column_stack((linear, shift + inside + rng.normal(0, 4, 2))), mirrored


def _warp(
    frame: Frame, matrix: NDArray[np.float64], size: tuple[int, int], rng: np.random.Generator
) -> tuple[Plane, Plane]:
    w, h = size
    # pixel centres sit at +0.5: a corner-based map M becomes M' with t' = A*0.5 + t - 0.5 for cv2's centre-based one
    linear, shift = matrix[:, :2], matrix[:, 2]
    fine = np.column_stack((linear, linear @ (0.5, 0.5) + shift - 0.5))
    coarse = np.column_stack((linear, linear @ (0.5, 0.5) + shift / 2 - 0.5))
    how = cv2.INTER_LINEAR
    scale = np.sqrt(abs(np.linalg.det(linear)))
    luma_in = np.asarray(frame.luma)
    if scale < 0.8:  # bilinear alone would alias and lose the ball
        luma_in = cv2.GaussianBlur(luma_in, (0, 0), 0.45 / scale)
    fill = int(rng.integers(10, 120)) if rng.random() < 0.5 else 16
    luma = cv2.warpAffine(luma_in, fine, (w, h), flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    chroma = [
        cv2.warpAffine(
            np.asarray(c), coarse, (w // 2, h // 2), flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=128
        )
        for c in frame.chroma
    ]
    return luma, np.stack(chroma)


def _move_boxes(boxes: NDArray[np.float32], matrix: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes on the canvas, clipped; one that keeps under 40 % of its area is gone."""
    if len(boxes) == 0:
        return boxes
    centre = (boxes[:, 1:3] + boxes[:, 3:5]) / 2
    extent = boxes[:, 3:5] - boxes[:, 1:3]
    # a person stays upright under a small roll: scale the sides, do not box the rotated box
    sides = extent * np.linalg.norm(matrix[:, :2], axis=0)
    centre = centre @ matrix[:, :2].T + matrix[:, 2]
    xyxy = np.concatenate((centre - sides / 2, centre + sides / 2), 1)
    clipped = xyxy.copy()
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, size[0])
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, size[1])
    area = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    keep = area > 0.4 * sides.prod(1)
    return np.asarray(np.concatenate((boxes[:, :1], clipped), 1)[keep], np.float32)


def _move_points(
    points: NDArray[np.float32], matrix: NDArray[np.float64], mirrored: bool, size: tuple[int, int]
) -> NDArray[np.float32]:
    out = points.copy()
    out[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    if mirrored:
        out = out[pitch.FLIP]
    outside = (out[:, :2] < 0).any(1) | (out[:, :2] >= size).any(1)
    out[(out[:, 2] > 0) & outside, 2] = 0
    return out.astype(np.float32)


def _photometry(luma: Plane, chroma: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    if rng.random() < 0.2:
        luma = _shade(luma, rng)
    if rng.random() < 0.8:
        luma = cv2.LUT(luma, _tone(rng))
        chroma = _tint(chroma, rng)
    if rng.random() < 0.25:
        luma, chroma = _soften(luma, chroma, rng)
    if rng.random() < 0.12:
        luma = _sharpen(luma, rng)
    if rng.random() < 0.25:
        luma = _noise(luma, rng)
    if rng.random() < 0.25:
        luma, chroma = _compress(luma, chroma, rng)
    return luma, chroma


def _tone(rng: np.random.Generator) -> Plane:
    x = (np.arange(256) - 16) / 219
    gamma = np.exp(rng.uniform(-0.4, 0.4))
    y = np.clip(x, 0, 1) ** gamma * rng.uniform(0.8, 1.25) + rng.uniform(-0.05, 0.08)
    return np.asarray(np.clip(np.round(16 + 219 * y), 16, 235), np.uint8)


def _tint(chroma: Plane, rng: np.random.Generator) -> Plane:
    """Hue turn, saturation and cast: other kits, other grass, BT.601 seen as BT.709."""
    angle = np.deg2rad(rng.normal(0, 12) if rng.random() < 0.85 else rng.uniform(-60, 60))
    saturation = np.exp(rng.uniform(-0.5, 0.4))
    c, s = np.cos(angle) * saturation, np.sin(angle) * saturation
    u, v = (cv2.transform(np.dstack((chroma[0], chroma[1])), _tint_matrix(c, s, rng)))[..., 0:2].transpose(2, 0, 1)
    return np.stack((u, v))


def _tint_matrix(c: float, s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    cast = rng.normal(0, 3, 2)
    return np.array(((c, -s, 128 - 128 * (c - s) + cast[0]), (s, c, 128 - 128 * (s + c) + cast[1])))


def _shade(luma: Plane, rng: np.random.Generator) -> Plane:
    """A stand's shadow: one side of a random line darker, with a hard or soft edge."""
    h, w = luma.shape
    y, x = np.mgrid[0 : h // 8, 0 : w // 8].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    distance = (x - rng.uniform(0, w / 8)) * np.cos(angle) + (y - rng.uniform(0, h / 8)) * np.sin(angle)
    soft = 1 / (1 + np.exp(-distance / rng.uniform(0.5, 12)))
    mask = np.round(255 * (1 - soft * rng.uniform(0.2, 0.55))).astype(np.uint8)
    return cv2.multiply(luma, cv2.resize(mask, (w, h)), scale=1 / 255)


def _soften(luma: Plane, chroma: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    kind = rng.random()
    if kind < 0.35:
        return cv2.GaussianBlur(luma, (0, 0), rng.uniform(0.5, 1.4)), chroma
    if kind < 0.55:  # a panning camera smears along x
        n = int(rng.integers(3, 8))
        return cv2.blur(luma, (n, 1)), np.stack([cv2.blur(c, (max(1, n // 2), 1)) for c in chroma])
    k = rng.uniform(0.45, 0.85)  # a smaller stream scaled up, as 480p is

    def through(a: Plane) -> Plane:
        small = cv2.resize(a, None, fx=k, fy=k, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (a.shape[1], a.shape[0]), interpolation=cv2.INTER_LINEAR)

    return through(luma), np.stack([through(c) for c in chroma])


def _sharpen(luma: Plane, rng: np.random.Generator) -> Plane:
    k = rng.uniform(0.3, 1.0)
    return cv2.addWeighted(luma, 1 + k, cv2.GaussianBlur(luma, (0, 0), 1.2), -k, 0)


def _noise(luma: Plane, rng: np.random.Generator) -> Plane:
    h, w = luma.shape
    y, x = rng.integers(0, 2048 - h), rng.integers(0, 2048 - w)
    grain = (NOISE[y : y + h, x : x + w].astype(np.float32) * rng.uniform(1, 7)).astype(np.int16)
    return np.asarray(np.clip(luma.astype(np.int16) + grain, 0, 255), np.uint8)


def _compress(luma: Plane, chroma: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(22, 75))]

    def through(a: Plane) -> Plane:
        return np.asarray(cv2.imdecode(cv2.imencode(".jpg", a, quality)[1], cv2.IMREAD_GRAYSCALE), np.uint8)

    return through(luma), np.stack([through(c) for c in chroma])


def _erase(
    luma: Plane, chroma: Plane, boxes: NDArray[np.float32] | None, rng: np.random.Generator
) -> NDArray[np.float32] | None:
    """Score bars, logos, black boxes: random rectangles; a label whose centre they cover is gone."""
    h, w = luma.shape
    for _ in range(int(rng.integers(1, 4))):
        bw, bh = int(rng.integers(30, w // 3)), int(rng.integers(12, h // 7))
        x, y = int(rng.integers(0, w - bw)) // 2 * 2, int(rng.integers(0, h - bh)) // 2 * 2
        if rng.random() < 0.7:  # graphics live near the edges
            y = y % max(2, h // 6) if rng.random() < 0.5 else (h - bh - y % max(2, h // 6)) // 2 * 2
        if rng.random() < 0.5:
            luma[y : y + bh, x : x + bw] = rng.integers(16, 235)
        else:
            luma[y : y + bh, x : x + bw] = rng.integers(16, 235, (bh, bw))
        if rng.random() < 0.5:
            chroma[:, y // 2 : (y + bh) // 2, x // 2 : (x + bw) // 2] = rng.integers(60, 200, (2, 1, 1))
        if rng.random() < 0.5:
            text = "".join(rng.choice(list("ABCDEFGHKLMNOPRSTUVW0123456789 :-"), 8))
            cv2.putText(
                luma, text, (x, y + bh), cv2.FONT_HERSHEY_SIMPLEX, bh / 30, int(rng.integers(16, 235)), 1 + bh // 15
            )
        if boxes is not None and len(boxes):
            cx, cy = (boxes[:, 1] + boxes[:, 3]) / 2, (boxes[:, 2] + boxes[:, 4]) / 2
            boxes = boxes[~((cx > x) & (cx < x + bw) & (cy > y) & (cy < y + bh))]
    return boxes
