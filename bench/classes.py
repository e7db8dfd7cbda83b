"""Who is called what over whole clips: our answers against the labelled frames of the four real clips.

Of each labelled goalkeeper, player and referee that an answer boxes (IoU 0.5), what it is called there; with clothes
compared over the clip, and without (`firsttouch.track`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.match import real_clips
from bench.reference import labels_of
from bench.report import print_report
from firsttouch import track
from firsttouch.detect import CLASS_NAMES, load_detector
from firsttouch.labels import Labels, read_truth
from firsttouch.measure import match
from firsttouch.pipeline import analyze_sync

LABELS = Path(__file__).parent.parent / "train" / "labels" / "broadcast"


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m bench classes", description=__doc__).parse_args(arguments)
    clips = real_clips()
    if not clips:
        print("bench classes needs the clips of ../shared/data")
        return 0
    detector, rows, body = load_detector(), [], {}
    for way, weight in (("clothes compared", track.STRANGER), ("not compared", 0.0)):
        total = np.zeros((4, 4), np.int64)
        with _weighing(weight):
            for clip in clips:
                answer = labels_of(analyze_sync(clip, detector=detector))
                counts = confusion(answer, labelled(clip, answer.width, answer.height))
                rows.append([way, clip.stem[0], *_row(counts)])
                total += counts
        rows.append([way, "all", *_row(total)])
        body[way] = {name: total[k, 1:].tolist() for k, name in enumerate(CLASS_NAMES) if k}
    columns = ["way", "clip", *(f"{name}: right of found" for name in CLASS_NAMES[1:])]
    print_report("classes", columns, rows, body)
    return 0


@contextmanager
def _weighing(weight: float) -> Iterator[None]:
    before, track.STRANGER = track.STRANGER, weight
    try:
        yield
    finally:
        track.STRANGER = before


def labelled(clip: Path, width: int, height: int) -> Labels:
    """The frames of a clip that we labelled, in pixels of the clip."""
    with tempfile.TemporaryDirectory() as folder:
        for file in LABELS.glob(f"*/{clip.stem[0]}_*.txt"):
            (Path(folder) / file.name).write_text(file.read_text())
        return read_truth(Path(folder), width=width, height=height)


def confusion(answer: Labels, truth: Labels) -> NDArray[np.int64]:
    """(4, 4) bodies by the class they have and the one they are given, of those that both box."""
    pairs = match(answer, truth, class_aware=False)
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (truth.class_ids[pairs[:, 1]], answer.class_ids[pairs[:, 0]]), 1)
    return counts


def _row(counts: NDArray[np.int64]) -> list[str]:
    return [f"{counts[k, k]} of {counts[k].sum()}" for k in (1, 2, 3)]


if __name__ == "__main__":
    sys.exit(main())
