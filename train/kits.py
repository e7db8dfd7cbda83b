"""New shirts for real people: the data has a dozen matches, so a network learns that black means referee.

Players are parted into two teams by colour; each team, the referees and every goalkeeper then get a random colour,
so that what remains to be learned is who dresses unlike whom, where they stand, and what they do.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.data import Frame, Plane

SHIRT, SHORTS = (0.13, 0.52), (0.48, 0.72)  # rows of a standing person's box
GOALKEEPER, PLAYER = 1, 2


def random_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Limited-range Y, U, V of a shirt: white, black and grey as often as real kits have them, else any hue."""
    kind = rng.random()
    if kind < 0.22:
        return np.array((rng.uniform(175, 230), *rng.normal(128, 2, 2)))
    if kind < 0.4:
        return np.array((rng.uniform(18, 55), *rng.normal(128, 3, 2)))
    hue, strength = rng.uniform(0, 2 * np.pi), rng.uniform(15, 75)
    return np.array((rng.uniform(40, 190), 128 + strength * np.cos(hue), 128 + strength * np.sin(hue)))


def _unlike(others: list[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour that a viewer would not take for one of the others."""
    best, best_distance = random_colour(rng), 0.0
    for _ in range(12):
        colour = random_colour(rng)
        distance = min((_distance(colour, o) for o in others), default=99.0)
        if distance > best_distance:
            best, best_distance = colour, distance
        if best_distance > 60:
            break
    return best


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.linalg.norm((a - b) * (0.5, 1.0, 1.0)))


def teams(frame: Frame) -> NDArray[np.int64] | None:
    """Team 0 or 1 of every box that is a player, -1 for the rest; None when there is nothing to part."""
    assert frame.boxes is not None
    players = np.flatnonzero(frame.boxes[:, 0] == PLAYER)
    if len(players) < 6:
        return None
    colours = np.array([_shirt_colour(frame, frame.boxes[i, 1:]) for i in players], np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, _ = cv2.kmeans(colours, 2, np.empty(0, np.int32), criteria, 4, cv2.KMEANS_PP_CENTERS)
    out = np.full(len(frame.boxes), -1)
    out[players] = labels.ravel()
    return out


def _part(box: NDArray[np.float32], rows: tuple[float, float]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in chroma pixels of a band of the box, inside the picture."""
    x0, y0, x1, y1 = box / 2
    top, bottom = y0 + rows[0] * (y1 - y0), y0 + rows[1] * (y1 - y0)
    return max(0, int(x0)), max(0, int(top)), min(640, int(np.ceil(x1))), min(360, int(np.ceil(bottom)))


def _shirt_colour(frame: Frame, box: NDArray[np.float32]) -> tuple[float, float, float]:
    x0, y0, x1, y1 = _part(box, SHIRT)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return (64.0, 128.0, 128.0)
    mask = _not_lawn(frame.chroma, box, (x0, y0, x1, y1)) + 1e-3
    luma = cv2.resize(np.ascontiguousarray(frame.luma[2 * y0 : 2 * y1, 2 * x0 : 2 * x1]), (x1 - x0, y1 - y0))
    u, v = frame.chroma[:, y0:y1, x0:x1]
    return tuple(float((p * mask).sum() / mask.sum()) for p in (luma * 0.5, u, v))  # type: ignore[return-value]


def _not_lawn(chroma: Any, box: NDArray[np.float32], part: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """0..1 for each chroma pixel of `part`: how unlike the lawn beside the box it is."""
    x0, y0, x1, y1 = part
    left, right = chroma[:, y0:y1, max(0, x0 - 6) : max(1, x0 - 1)], chroma[:, y0:y1, x1 + 1 : x1 + 6]
    around = np.concatenate((left.reshape(2, -1), right.reshape(2, -1)), 1)
    lawn = np.median(around, 1) if around.shape[1] else np.array((110.0, 118.0))
    distance = np.linalg.norm(chroma[:, y0:y1, x0:x1].astype(np.float32) - lawn[:, None, None], axis=0)
    across = np.linspace(-1, 1, x1 - x0)  # arms and legs thin out towards the sides of the box
    return np.asarray(np.clip((distance - 6) / 7, 0, 1) * np.exp(-((across / 0.85) ** 6)), np.float32)


def redress(frame: Frame, team: NDArray[np.int64], rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Copies of luma and chroma in which everybody wears something else."""
    assert frame.boxes is not None
    luma, chroma = np.array(frame.luma), np.array(frame.chroma)
    shirts = [random_colour(rng)]
    shirts.append(_unlike(shirts, rng))
    referee = _unlike(shirts, rng)
    shorts = [random_colour(rng) if rng.random() < 0.5 else s for s in (*shirts, referee)]
    for row, side in zip(frame.boxes, team, strict=True):
        if row[0] == 0:
            continue
        if row[0] == GOALKEEPER:
            shirt = short = _unlike([*shirts, referee], rng)
        else:
            shirt, short = ((*shirts, referee)[side], shorts[side])  # side -1: the referee
        _paint(luma, chroma, row[1:], SHORTS, short)
        _paint(luma, chroma, row[1:], SHIRT, shirt)
    return luma, chroma


def _paint(
    luma: Plane, chroma: Plane, box: NDArray[np.float32], rows: tuple[float, float], colour: NDArray[np.float64]
) -> None:
    """Moves the band of the box that is not lawn to `colour`, keeping its folds."""
    part = x0, y0, x1, y1 = _part(box, rows)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    mask = _not_lawn(chroma, box, part)
    for plane, target in zip(chroma[:, y0:y1, x0:x1], colour[1:], strict=True):
        plane[:] = np.clip(plane + mask * (target - plane) * 0.9, 16, 240)
    patch = luma[2 * y0 : 2 * y1, 2 * x0 : 2 * x1]
    fine = cv2.resize(mask, (patch.shape[1], patch.shape[0]))
    mean = float((patch * fine).sum() / max(float(fine.sum()), 1e-3))
    folds = (patch - mean) * (0.35 if colour[0] < 60 else 0.6)
    patch[:] = np.clip(patch + fine * (colour[0] + folds - patch), 16, 235)
