"""What stands between Ray and `analyze`: requests, refusals, and a clear word where Ray is not installed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from bench.origin import Origin
from deploy import ray_serve
from firsttouch.detect import BUNDLED_MODEL
from firsttouch.errors import RequestMalformed, RuntimeUnavailable
from train.render import write_clip

needs_model = pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """No .env of the folder the tests are started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")


def test_a_request_is_a_url_and_maybe_a_deadline():
    assert ray_serve.asked(b'{"url": "https://example.org/a.mp4"}') == ("https://example.org/a.mp4", None)
    assert ray_serve.asked(b'{"url": "x", "deadline": 2}') == ("x", 2.0)
    for body in (b"", b"[]", b"{}", b'{"url": 3}', b'{"url": "x", "deadline": "soon"}', b'{"url": "x", "deadline": 0}'):
        with pytest.raises(RequestMalformed):
            ray_serve.asked(body)


@needs_model
def test_a_replica_answers_a_clip_and_a_data_row(quiet, monkeypatch, tmp_path: Path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, frames=10, size=(640, 360), gop=10)
    monkeypatch.setenv("ALLOW_PRIVATE_ORIGINS", "1")
    with Origin({"clip.mp4": clip}) as origin:
        url = origin.url("clip.mp4")
        status, media_type, body = asyncio.run(ray_serve.Answering().reply(json.dumps({"url": url}).encode()))
        row = ray_serve.AnsweringRows(30.0)({"url": url, "id": 7})
    assert (status, media_type) == (200, "application/json")
    assert len(json.loads(body)["frames"]) == 10
    assert (row["id"], row["error"]) == (7, None)
    assert len(json.loads(row["answer"])["frames"]) == 10


@needs_model
@pytest.mark.parametrize("url", ["http://127.0.0.1/clip.mp4", "/etc/hostname", "file:///etc/hostname"])
def test_nothing_private_is_read(quiet, url):
    status, media_type, body = asyncio.run(ray_serve.Answering().reply(json.dumps({"url": url}).encode()))
    assert 400 <= status < 500
    assert media_type == "application/problem+json"
    assert json.loads(body)["status"] == status
    assert ray_serve.AnsweringRows()({"url": url})["answer"] is None


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    for part in ("ray", "ray.serve", "ray.data"):
        monkeypatch.setitem(sys.modules, part, None)
    for use in (lambda: ray_serve.app, lambda: ray_serve.answers(["x"])):
        with pytest.raises(RuntimeUnavailable, match="Ray is not installed") as refused:
            use()
        assert "firsttouch[ray]" in refused.value.hint
    with pytest.raises(AttributeError):
        _ = ray_serve.other
