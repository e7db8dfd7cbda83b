"""P9: size and time of the JSON of a 750-frame answer: the subnet's form and our own."""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Callable

from bench.match import the_match
from bench.report import print_report, spread, verdict
from firsttouch.answer import to_challenge, to_json
from firsttouch.pipeline import Options, analyze_sync, detector_for
from firsttouch.settings import Settings

GZIP_LEVEL = 6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench answer", description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args(arguments)
    analysis = analyze_sync(the_match(50), options=Options(stride=16), detector=detector_for(Settings()))
    assert len(analysis.frames) == 750
    forms: dict[str, Callable[[], bytes]] = {
        "challenge": lambda: to_challenge(analysis, "bench", 1.0),
        "analysis": lambda: to_json(analysis),
    }
    rows: list[list[object]] = []
    body = {}
    objects = sum(len(frame.ids) for frame in analysis.frames)
    for name, write in forms.items():
        seconds = []
        for _ in range(asked.runs):
            began = time.perf_counter()
            text = write()
            seconds.append((time.perf_counter() - began) * 1000)
        zipped = len(gzip.compress(text, GZIP_LEVEL)) / 1e6
        figure = spread(seconds)
        mark = f"time {verdict(figure['p50'], 15.0)}, size {verdict(zipped, 0.35)}" if name == "challenge" else ""
        rows.append([name, objects, round(len(text) / 1e6, 3), round(zipped, 3), figure["p50"], mark])
        body[name] = {"milliseconds": figure, "megabytes": len(text) / 1e6, "gzipped_megabytes": zipped}
    columns = ["form", "objects", "MB", "MB gzipped", "ms to write (p50)", "<= 15 ms, <= 0.35 MB"]
    print_report("answer", columns, rows, {"objects": objects, **body})
    return 0


if __name__ == "__main__":
    sys.exit(main())
