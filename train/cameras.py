"""Where the cameras of the training pictures stand and how they look: what `firsttouch.camera` expects of all others.

A camera of seven numbers is fitted to every picture with many labelled points, without any expectation; pictures of
one match have one camera, so the table has a row for each: the median of its pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from firsttouch.camera import EXPECTED, SPREAD, homographies
from firsttouch.homography import moved_points
from firsttouch.pitch import POINTS
from train.data import HEIGHT, WIDTH, list_images, read_labels

NAMES = ("log focal", "pan", "tilt", "roll", "along", "across", "height")
LOWEST = np.array([-2.0, -1.6, -0.2, -0.2, 0.0, 70.0, 2.0])
HIGHEST = np.array([3.0, 1.6, 1.4, 0.2, 105.0, 220.0, 80.0])
"""Beyond the near touch line, upright: an image of the same camera upside down, or turned once round, fits as well."""
GOOD_SHARE = 0.01
"""Pictures whose points lie further off than this share of the width, in the root mean square, say nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--points", type=int, default=9, help="labelled points that a picture must have")


def main(args: argparse.Namespace) -> None:
    cameras: dict[str, list[NDArray[np.float64]]] = {}
    for folder in (args.data / s / "train" for s in ("pitch", "pitch_broadcast")):
        for image in list_images(folder):
            _, points = read_labels(folder / "labels" / f"{image.stem}.txt")
            if points is not None and (points[:, 2] > 0).sum() >= args.points:
                camera = fitted(points.astype(np.float64))
                if camera is not None:
                    cameras.setdefault(image.stem.split("_")[0], []).append(camera)
    print(f"{'camera':>16} {'pictures':>8} " + " ".join(f"{n:>9}" for n in NAMES))
    for name, of_match in cameras.items():
        print(_row(name, np.median(of_match, 0), len(of_match)))
    every, medians = np.concatenate(list(cameras.values())), np.array([np.median(c, 0) for c in cameras.values()])
    print(_row("pictures: mean", every.mean(0), len(every)))
    print(_row("spread", every.std(0)))
    print(_row("cameras: mean", medians.mean(0), len(medians)))
    print(_row("spread", medians.std(0)))
    print(_row("expected", EXPECTED))
    print(_row("spread", SPREAD))


def fitted(points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The camera (7,) of labelled points (32, 3) in pixels of 1280x720; None where none fits."""
    seen = points[:, 2] > 0

    def off(camera: NDArray[np.float64]) -> NDArray[np.float64]:
        shown = moved_points(homographies(camera, WIDTH, HEIGHT), POINTS[seen].astype(np.float64))
        return np.nan_to_num((shown - points[seen, :2]) / WIDTH, nan=1.0).ravel()

    starts = [EXPECTED + np.array([0, pan, 0, 0, 0, 0, 0]) for pan in (-0.5, 0.0, 0.5)]
    tries = [
        least_squares(off, start, bounds=(LOWEST, HIGHEST), x_scale=SPREAD, loss="soft_l1", f_scale=0.005)
        for start in starts
    ]
    best = min(tries, key=lambda found: float(found.cost))
    return np.asarray(best.x) if np.sqrt(np.mean(off(best.x) ** 2) * 2) < GOOD_SHARE else None


def _row(name: str, values: NDArray[np.float64], count: int | None = None) -> str:
    return f"{name:>16} {'' if count is None else count:>8} " + " ".join(f"{v:9.3f}" for v in values)
