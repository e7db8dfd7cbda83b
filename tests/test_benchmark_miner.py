"""The guide's three benchmark commands, run as written, with a local URL."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from bench.origin import Origin
from firsttouch.settings import Settings
from tests.toy import toy_clip, toy_model

ROOT = Path(__file__).parent.parent
FRAMES = 150
GUIDE_URL = "https://scoredata.me/chunks/e10ab6a14f43457995316c7c0358d9.mp4"

COMMANDS = {
    "quick": f'python scripts/benchmark_miner.py --video-url "{GUIDE_URL}" --device cuda --partial-download '
    "--partial-mb 4 --quick",
    "sizes": f'python scripts/benchmark_miner.py --video-url "{GUIDE_URL}" --device cuda --partial-download '
    "--partial-mb 3",
    "full": f'python scripts/benchmark_miner.py --video-url "{GUIDE_URL}" --device cuda',
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    clip = toy_clip(tmp_path_factory.mktemp("clip"), "e10ab6", frames=FRAMES)
    with Origin({"chunks/e10ab6.mp4": clip}) as running:
        yield running


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ours = {name.upper() for name in Settings.model_fields}
    model = toy_model(tmp_path_factory.mktemp("model") / "toy.onnx")
    kept = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    return kept | {"MODEL_PLAYER": str(model)}


def run(command: str, url: str, environment: dict[str, str], **extra: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command.replace(GUIDE_URL, url))
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=environment | extra, capture_output=True, text=True, timeout=110
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs"), [("quick", 1), ("sizes", 3), ("full", 3)])
def test_the_guides_command_runs_as_written(origin: Origin, environment: dict[str, str], name: str, runs: int) -> None:
    done = run(COMMANDS[name], origin.url("chunks/e10ab6.mp4"), environment)
    assert done.returncode == 0, done.stderr
    body = orjson.loads(done.stdout.splitlines()[-1])
    assert len(body["runs"]) == runs
    asked = body["runs"][0]
    assert asked["name"].startswith("full" if name == "full" else "partial")
    for outcome in body["runs"]:
        assert outcome["seconds"]["total"] >= outcome["seconds"]["first_frame"] > 0
        assert outcome["megabytes"] > 0
        assert 0 < outcome["frames_looked_at"] <= outcome["frames_answered"] <= FRAMES
        assert 0 < outcome["predicted_score"] < 1
    for words in ("fetched", "first_frame", "looked at", "answered", "predicted score"):
        assert words in done.stderr
    assert "Completed processing" in done.stderr
    assert ("Downloading first" in done.stderr) == (name != "full" or runs > 1)
    assert ("fastest:" in done.stderr) == (runs > 1)


@pytest.mark.slow
def test_a_prefix_answers_less_and_is_predicted_to_score_less(origin: Origin, environment: dict[str, str]) -> None:
    size = sum(origin_size(origin)) / 1024 / 1024
    command = COMMANDS["sizes"].replace("--partial-mb 3", f"--partial-mb {size / 4:.3f}")
    body = orjson.loads(run(command, origin.url("chunks/e10ab6.mp4"), environment).stdout.splitlines()[-1])
    partial, full, ours = body["runs"]
    assert partial["frames_answered"] < 0.5 * FRAMES
    assert full["frames_answered"] == ours["frames_answered"] == FRAMES
    assert partial["predicted_score"] < min(full["predicted_score"], ours["predicted_score"])
    assert partial["megabytes"] < full["megabytes"]


def origin_size(origin: Origin) -> list[int]:
    return [len(value) if isinstance(value, bytes) else value.stat().st_size for value in origin._files.values()]


def test_one_source_must_be_named(environment: dict[str, str]) -> None:
    done = run("python scripts/benchmark_miner.py --quick", "", environment)
    assert done.returncode != 0
    assert "hint:" in done.stderr
