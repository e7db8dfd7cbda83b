"""The JSON is what the schema says, with two decimals, whatever the frame holds."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from firsttouch.analysis import STAGES, Analysis
from firsttouch.answer import SCHEMA, to_challenge, to_json
from firsttouch.carry import FrameAnswer


def frame(number: int, objects: int) -> FrameAnswer:
    rng = np.random.default_rng(number)
    return FrameAnswer(
        frame_number=number,
        pts_seconds=number / 25,
        how="detected" if number % 5 == 0 else "carried",
        ids=np.arange(objects, dtype=np.int32),
        class_ids=np.full(objects, 2, np.uint8),
        confidence=rng.random(objects).astype(np.float32),
        xyxy=(rng.random((objects, 4)) * 1280).astype(np.float32),
        keypoints=(rng.random((32, 3)) * 700).astype(np.float32),
    )


@pytest.fixture
def analysis() -> Analysis:
    return Analysis(
        source="clip.mp4",
        size_bytes=1000,
        width=1280,
        height=720,
        frame_count=4,
        frames_per_second=25.0,
        duration_seconds=0.16,
        stopped_by="end",
        fetch="sparse",
        runtime="none",
        hardware_decoding=False,
        bytes_fetched=1000,
        requests=2,
        frames_decoded=4,
        frames_detected=1,
        stage_seconds=dict.fromkeys(STAGES, 0.25),
        frames=[frame(0, 3), frame(1, 0), frame(2, 1), frame(3, 2)],
    )


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def test_every_member_of_the_schema_is_there(analysis: Analysis) -> None:
    body = orjson.loads(to_json(analysis))
    assert body["schema"] == SCHEMA
    assert set(body["source"]) >= {"url", "size_bytes", "width", "height", "frame_count", "duration_seconds"}
    assert list(body["stage_seconds"]) == list(STAGES)
    assert [entry["frame_number"] for entry in body["frames"]] == [0, 1, 2, 3]
    assert [len(entry["objects"]) for entry in body["frames"]] == [3, 0, 1, 2]
    for entry, given in zip(body["frames"], analysis.frames, strict=True):
        assert np.array(entry["keypoints"]) == pytest.approx(given.keypoints, abs=0.006)
        for thing, box in zip(entry["objects"], given.xyxy, strict=True):
            assert thing["xyxy"] == pytest.approx(box.tolist(), abs=0.006)


def test_a_challenge_answer_has_the_three_keys_the_judge_reads(analysis: Analysis) -> None:
    text = to_challenge(analysis, "c1", 1.23456)
    body = orjson.loads(text)
    assert body["challenge_id"] == "c1"
    assert body["processing_time"] == 1.2346
    for entry in body["frames"]:
        assert set(entry) == {"frame_number", "keypoints", "objects"}
        assert len(entry["keypoints"]) == 32
        assert all(len(point) == 2 for point in entry["keypoints"])
        for thing in entry["objects"]:
            assert set(thing) == {"id", "bbox", "class_id"}
            assert all(decimals(repr(value)) <= 2 for value in thing["bbox"])


def test_no_frames_is_an_empty_list(analysis: Analysis) -> None:
    analysis.frames.clear()
    assert orjson.loads(to_challenge(analysis, "c", 0.1))["frames"] == []
