"""A still camera over one penalty area: the synthetic case that the judge's known figures were taken on.

What the figures leave open is assumed here, once. The noise of a point is 1 px (normal). The points are those of
one penalty area, so they lie closer together than the people, who walk at 3 px a frame all over the pitch: the
term R is about 0.7, which is what the figure for every fifth frame alone asks for. The pictures are grass
with the lines and the spot drawn white.
"""

from __future__ import annotations

import cv2
import numpy as np

from firsttouch.labels import Labels, parse_answer
from firsttouch.score import TEMPLATE

WIDTH, HEIGHT, FRAMES = 1280, 720, 750
CORNERS_CM = np.array([[0, 1000], [0, 6000], [4500, 6600], [4500, 400]], np.float32)
CORNERS_PX = np.array([[330, 200], [60, 640], [760, 690], [690, 200]], np.float32)


def camera():
    return cv2.getPerspectiveTransform(CORNERS_CM, CORNERS_PX)


def to_picture(points_cm):
    points = np.asarray(points_cm, np.float32).reshape(-1, 1, 2)
    return cv2.perspectiveTransform(points, camera()).reshape(-1, 2)


def picture():
    """Grass with the lines of the left half."""
    image = np.full((HEIGHT, WIDTH, 3), (60, 140, 50), np.uint8)
    lines = [(0, 5), (0, 24), (5, 29), (13, 16), (1, 9), (4, 12), (9, 12), (2, 6), (3, 7), (6, 7)]
    for a, b in lines:
        ends = to_picture(TEMPLATE[[a, b]])
        cv2.line(image, *(tuple(round(float(v)) for v in end) for end in ends), (250, 250, 250), 3, cv2.LINE_AA)
    spot = to_picture(TEMPLATE[[8]])[0]
    cv2.circle(image, (round(float(spot[0])), round(float(spot[1]))), 5, (250, 250, 250), -1, cv2.LINE_AA)
    return image


def keypoints(rng, noise=1.0):
    seen = to_picture(TEMPLATE)
    inside = (seen > 5).all(axis=1) & (seen[:, 0] < WIDTH - 5) & (seen[:, 1] < HEIGHT - 5)
    inside &= (TEMPLATE[:, 0] <= 2100) & (TEMPLATE[:, 1] % 7000 > 0)
    noisy = seen + rng.normal(0, noise, seen.shape)
    return np.where(inside[:, None], noisy, 0).round(2).tolist()


def people(frame):
    """19 people and a ball who walk on straight lines, to and fro, at 3 px a frame."""
    rng = np.random.default_rng(5)
    start = to_picture(rng.uniform((600, 1000), (8200, 6200), (20, 2)))
    way = rng.uniform(0, 2 * np.pi, 20)
    swing = 45 - abs(frame % 90 - 45)
    centres = start + 3 * swing * np.stack([np.cos(way), np.sin(way)], 1)
    centres = np.clip(centres, (30, 185), (1250, 685))
    objects = []
    for i, (x, y) in enumerate(centres):
        kind = 0 if i == 0 else 1 if i == 1 else 3 if i == 2 else 2
        w, h = (12, 12) if kind == 0 else (24, 60)
        box = [round(float(v), 2) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
        objects.append({"id": i, "class_id": kind, "bbox": box})
    return objects


def document(frames=range(FRAMES), carried_from=None):
    """The challenge answer for these frames; `carried_from` gives each frame the key points of another."""
    rng = np.random.default_rng(7)
    points = [keypoints(rng) for _ in range(FRAMES)]
    source = carried_from or (lambda frame: frame)
    return {
        "source": {"width": WIDTH, "height": HEIGHT, "frame_count": FRAMES},
        "frames": [{"frame_number": f, "objects": people(f), "keypoints": points[source(f)]} for f in frames],
    }


def answer(frames=range(FRAMES), carried_from=None) -> Labels:
    return parse_answer(document(frames, carried_from))
