"""The workload clips: the four real ones where they are, and "the match", made from the first.

"The match" is 750 frames of a real broadcast with light temporal noise (about 6 of 255, so that the bit rate is
real), x264 veryfast at 3.9 Mbit/s, with a key frame every 50 or every 250 frames: about 14.7 MB. Where the real clips
are absent, our own renderer's clip takes its place, and every report says so.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import av
import numpy as np

from train.render import write_clip

REAL = Path("../shared/data/clips")
SOURCE = "a_720p25_faststart.mp4"
CACHE = Path(os.environ.get("FIRSTTOUCH_BENCH_CACHE", Path(tempfile.gettempdir()) / "firsttouch-bench"))

FRAMES = 750
NOISE = 6.0
BIT_RATE = 3_900_000


def real_clips() -> list[Path]:
    """The four real clips, or none."""
    return sorted(REAL.glob("*.mp4"))


def the_match(gop: int, frames: int = FRAMES) -> Path:
    """The clip with a key frame every `gop` frames; made once and kept in the cache folder."""
    source = REAL / SOURCE
    made_from = "real" if source.exists() else "rendered"
    path = CACHE / f"match-{made_from}-gop{gop}-{frames}.mp4"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.mp4")
        if source.exists():
            _noisy_copy(source, partial, gop, frames)
        else:
            write_clip(partial, frames=frames, gop=gop, bit_rate=BIT_RATE)
        partial.rename(path)
    return path


def _noisy_copy(source: Path, target: Path, gop: int, frames: int) -> None:
    rng = np.random.default_rng(7)
    with av.open(str(source)) as reader, av.open(str(target), "w", options={"movflags": "faststart"}) as writer:
        stream = writer.add_stream("libx264", rate=25)
        stream.options = {"preset": "veryfast", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        stream.bit_rate = BIT_RATE
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = reader.streams.video[0].width, reader.streams.video[0].height
        for number, frame in enumerate(reader.decode(video=0)):
            if number == frames:
                break
            planes = frame.to_ndarray(format="yuv420p")
            noise = NOISE * rng.standard_normal(planes.shape, np.float32)
            noisy = np.clip(planes + noise, 16, 240).astype(np.uint8)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="yuv420p")))
        writer.mux(stream.encode(None))
