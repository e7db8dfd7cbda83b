"""Gathers what `fit --extra` reads: labelled frames out of the real clips, and rendered stills with exact labels.

Writes folders of the usual form, `images/` beside `labels/`: `broadcast` (train), `broadcast_val` and `rendered`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from train import render

CLIPS = {
    "a": "a_720p25_faststart.mp4", "b": "b_720p30_moov_last_editlist.mp4",
    "c": "c_480p60_vfr.mp4", "d": "d_480p25_one_keyframe.mp4",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=Path, default=Path("../shared/data/clips"))
    parser.add_argument("--labels", type=Path, default=Path("train/labels"))
    parser.add_argument("--out", type=Path, default=Path("runs/frames"))
    parser.add_argument("--rendered", type=int, default=0, help="how many stills to draw")
    parser.add_argument("--seed", type=int, default=11)


def main(args: argparse.Namespace) -> None:
    for split, name in (("train", "broadcast"), ("val", "broadcast_val")):
        print(name, gather(args.clips, args.labels, split, args.out / name))
    if args.rendered:
        draw(args.rendered, args.seed, args.out / "rendered")


def gather(clips: Path, labels: Path, split: str, out: Path) -> int:
    """Frames that have labels, with every line said about them; how many."""
    lines: dict[str, str] = {}
    for kind in ("broadcast", "broadcast_pitch"):
        for path in sorted((labels / kind / split).glob("*.txt")):
            lines[path.stem] = lines.get(path.stem, "") + path.read_text().rstrip() + "\n"
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for clip in sorted({stem.split("_")[0] for stem in lines}):
        wanted = {int(stem.split("_")[1]): stem for stem in lines if stem.startswith(f"{clip}_")}
        video = cv2.VideoCapture(str(clips / CLIPS[clip]))
        for number in range(max(wanted) + 1):
            if not video.grab():
                raise ValueError(f"{CLIPS[clip]} ends at frame {number}, labels go to {max(wanted)}")
            if number in wanted:
                stem = wanted[number]
                cv2.imwrite(str(out / "images" / f"{stem}.png"), video.retrieve()[1])
                (out / "labels" / f"{stem}.txt").write_text(lines[stem])
    return len(lines)


def draw(count: int, seed: int, out: Path) -> None:
    """Stills of matches that never were; drawn ones stay when the command is run again."""
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = out / "images" / f"r{i:05d}.jpg"
        if image.exists():
            continue
        picture, truth = render.random_still(np.random.default_rng((seed, i)))
        h, w = picture.shape[:2]
        (out / "labels" / f"r{i:05d}.txt").write_text(_lines(truth, np.array((w, h), np.float64)))
        cv2.imwrite(str(image), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])


def _lines(truth: render.FrameLabels, size: NDArray[np.float64]) -> str:
    rows = []
    for c, box in zip(truth.class_id, truth.xyxy, strict=True):
        centre, sides = (box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size
        rows.append(f"{c} " + " ".join(f"{v:.6f}" for v in (*centre, *sides)))
    points = truth.keypoints.copy()
    points[:, :2] /= size
    points[:, 2] *= 2
    rows.append("0 0.5 0.5 1 1 " + " ".join(f"{v:.6f}" for v in points.ravel()))
    return "\n".join(rows) + "\n"
