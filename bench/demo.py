"""`make demo`: renders a sample clip, serves it from a local origin and runs `firsttouch analyze` on its URL."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.origin import Origin
from train.render import write_clip

FRAMES = 750
MBIT, RTT_SECONDS = 100.0, 0.03


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the answer and the video")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--deadline", default="2", help="seconds, or none")
    asked = parser.parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    clip = asked.output / f"sample-{asked.frames}.mp4"
    if not clip.exists():
        print(f"rendering a sample clip of {asked.frames} frames, about half a minute: {clip}", file=sys.stderr)
        _render(clip, asked.frames)
    with Origin({"sample.mp4": clip}, bandwidth=MBIT * 1e6, rtt=RTT_SECONDS) as origin:
        answer, video = asked.output / "answer.json", asked.output / "overlay.mp4"
        command = ["firsttouch", "analyze", origin.url("sample.mp4"), "--deadline", asked.deadline]
        command += ["--output", str(answer), "--video", str(video)]
        link = f"{MBIT:g} Mbit/s, {RTT_SECONDS * 1000:g} ms round trip"
        print(f"serving it from a local origin ({link})\n$ {shlex.join(command)}", file=sys.stderr)
        return subprocess.run([sys.executable, "-m", "firsttouch.cli", *command[1:]], check=False).returncode


def _render(clip: Path, frames: int) -> None:
    """Into a file beside it first, so that an interrupted run leaves nothing half made."""
    with tempfile.TemporaryDirectory(dir=clip.parent) as folder:
        made = Path(folder) / clip.name
        write_clip(made, frames=frames)
        made.rename(clip)


if __name__ == "__main__":
    sys.exit(main())
