"""Labelled frames as uint8 4:2:0 planes, cached once, as a video decoder would hand them over.

Folders follow the YOLO convention: `images/NAME.jpg` beside `labels/NAME.txt`. A box line has five fields
(class, centre x, centre y, width, height), a key-point line 5 + 32 * 3. One picture may have both kinds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.pitch import POINTS
from train import pitch

Plane = NDArray[Any]  # uint8; cv2 types its answers more loosely

WIDTH, HEIGHT = 1280, 720
SOURCES = ("detection", "pitch", "pitch_broadcast")


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: luma [720, 1280], chroma [2, 360, 640], limited range; labels in pixels.

    `boxes` [n, 5] class and xyxy, None when nobody labelled boxes; `ignore` [m, 4] xyxy where nothing is known.
    `keypoints` [32, 3] x, y, state (1 a target, 0 not in the picture, -1 unknown), None when not labelled.
    """

    name: str
    source: str
    luma: Plane
    chroma: Plane
    boxes: NDArray[np.float32] | None = None
    keypoints: NDArray[np.float32] | None = None
    labelled: NDArray[np.float32] | None = None  # the hand-made [32, 3] labels, for evaluation
    ignore: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))


def to_limited(luma: Plane, chroma: Plane) -> tuple[Plane, Plane]:
    """Full-range (JPEG) planes to the limited range of video."""
    y = np.arange(256)
    luma_table = np.round(16 + y * 219 / 255).astype(np.uint8)
    chroma_table = np.clip(np.round(128 + (y - 128) * 224 / 255), 16, 240).astype(np.uint8)
    return cv2.LUT(luma, luma_table), np.stack([cv2.LUT(c, chroma_table) for c in chroma])


def read_planes(path: Path) -> tuple[Plane, Plane]:
    """A JPEG or PNG at 1280x720, un-stretched if need be, as limited-range luma and chroma."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    frame = frame.reformat(format="yuvj420p")
    planes = [np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
    luma, chroma = to_limited(np.ascontiguousarray(planes[0]), np.stack(planes[1:]))
    if luma.shape != (HEIGHT, WIDTH):
        how = cv2.INTER_AREA if luma.shape[1] > WIDTH else cv2.INTER_CUBIC
        luma = cv2.resize(luma, (WIDTH, HEIGHT), interpolation=how)
        chroma = np.stack([cv2.resize(c, (WIDTH // 2, HEIGHT // 2), interpolation=how) for c in chroma])
    return luma, chroma


def read_labels(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """(boxes [n, 5], key points [32, 3] or None) in pixels of a 1280x720 picture."""
    boxes, points = [], None
    for line in path.read_text().splitlines():
        values = np.array(line.split(), np.float32)
        if len(values) == 5:
            c, x, y, w, h = values
            boxes.append((c, (x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, (x + w / 2) * WIDTH, (y + h / 2) * HEIGHT))
        elif len(values) == 5 + 96:
            points = values[5:].reshape(32, 3) * np.array([WIDTH, HEIGHT, 1], np.float32)
            points[:, 2] = points[:, 2] > 0
    return np.array(boxes, np.float32).reshape(-1, 5), points


def dense_keypoints(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """All points inside the picture from the homography fitted to the labels; the label itself where there is one.

    Where no homography holds (over 1 % of the width), the points without a label are unknown.
    """
    out = labels.copy()
    labels64 = labels.astype(np.float64)
    homography = pitch.fit_homography(labels64, threshold=0.01 * WIDTH)
    seen = labels[:, 2] > 0
    if homography is None or seen.sum() < 5:
        out[~seen, 2] = -1
        return out
    projected = pitch.project(homography, POINTS)
    error = np.linalg.norm(projected[seen] - labels64[seen, :2], axis=1)
    if not float(np.mean(error)) < 0.01 * WIDTH:
        out[~seen, 2] = -1
        return out
    inside = pitch.inside(projected)
    take = inside & ~seen
    out[take, :2], out[take, 2] = projected[take], 1
    wrong = np.flatnonzero(seen)[error > 0.02 * WIDTH]
    out[wrong, :2] = projected[wrong]
    out[wrong, 2] = inside[wrong]
    return out


def list_images(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "images").glob("*") if p.suffix in {".jpg", ".png"})


def fingerprint(folder: Path) -> str:
    """SHA-256 over names, pictures and labels of one folder, first 16 hex digits."""
    digest = hashlib.sha256()
    for image in list_images(folder):
        label = folder / "labels" / f"{image.stem}.txt"
        digest.update(image.name.encode() + image.read_bytes() + (label.read_bytes() if label.exists() else b""))
    return digest.hexdigest()[:16]


def load(folder: Path, source: str, cache: Path | None = None) -> list[Frame]:
    """All frames of one folder; decoded planes are kept in `cache` as one memory-mapped array each."""
    images = list_images(folder)
    luma, chroma = _planes(images, cache and cache / f"{source}-{folder.name}")
    frames = []
    for i, image in enumerate(images):
        label = folder / "labels" / f"{image.stem}.txt"
        boxes, points = read_labels(label) if label.exists() else (None, None)
        if boxes is not None and points is not None and len(boxes) == 0:
            boxes = None  # a pitch label says nothing about people
        frames.append(
            Frame(
                image.stem,
                source,
                luma[i],
                chroma[i],
                boxes,
                None if points is None else dense_keypoints(points),
                points,
            )
        )
    return frames


def _planes(images: list[Path], cache: Path | None) -> tuple[Plane, Plane]:
    if cache is not None and (cache.parent / f"{cache.name}.uv.npy").exists():
        luma = np.load(cache.parent / f"{cache.name}.y.npy", mmap_mode="r")
        if len(luma) == len(images):
            return luma, np.load(cache.parent / f"{cache.name}.uv.npy", mmap_mode="r")
    luma = np.zeros((len(images), HEIGHT, WIDTH), np.uint8)
    chroma = np.zeros((len(images), 2, HEIGHT // 2, WIDTH // 2), np.uint8)
    for i, image in enumerate(images):
        luma[i], chroma[i] = read_planes(image)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache.parent / f"{cache.name}.y.npy", luma)
        np.save(cache.parent / f"{cache.name}.uv.npy", chroma)
    return luma, chroma


def join_same_pictures(boxed: list[Frame], pointed: list[Frame]) -> list[Frame]:
    """Frames that two folders share become one frame with both kinds of label."""
    if not boxed or not pointed:
        return boxed + pointed
    a, b = _thumbnails(boxed), _thumbnails(pointed)
    distance = np.abs(a[:, None] - b[None]).mean(-1)
    joined, used = [], set()
    for i, frame in enumerate(boxed):
        j = int(distance[i].argmin())
        if distance[i, j] < 1.0 and j not in used:
            used.add(j)
            other = pointed[j]
            frame = Frame(
                frame.name, frame.source, frame.luma, frame.chroma, frame.boxes, other.keypoints, other.labelled
            )
        joined.append(frame)
    return joined + [f for j, f in enumerate(pointed) if j not in used]


def _thumbnails(frames: list[Frame]) -> NDArray[np.float32]:
    small = [cv2.resize(np.asarray(f.luma), (64, 36), interpolation=cv2.INTER_AREA).ravel() for f in frames]
    return np.array(small, np.float32)
