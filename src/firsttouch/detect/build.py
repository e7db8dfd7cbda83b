"""Builds one TensorRT engine into the cache and ends: `python -m firsttouch.detect.build JOB`, JOB being JSON.

A process of its own, because a build takes minutes and gigabytes: it must not count against the memory cap of what
serves, nor take that along when it fails. Not verified on hardware.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from firsttouch.detect.ort import OrtTensorRt
from firsttouch.detect.session import ModelFile
from firsttouch.errors import FirsttouchError
from firsttouch.orphan import die_with_parent


def main(text: str) -> str | None:
    """What went wrong; None when the engine is in the cache."""
    job = json.loads(text)
    try:
        OrtTensorRt(Path(job["cache_dir"]), build=True).open(
            ModelFile.read(Path(job["model"])), tuple(job["outputs"]), tuple(job["shape"]), job["precision"]
        )
    except FirsttouchError as exc:
        return str(exc)
    return None


def _serve_first() -> None:
    """End with who asked, without the memory cap of that process, and behind it on the CPU."""
    die_with_parent()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.nice(10)


if __name__ == "__main__":
    _serve_first()
    sys.exit(main(sys.argv[1]))
