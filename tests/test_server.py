"""The service over real HTTP: the wire's shapes, deadlines, sharing, refusals, streams."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import engine_standin
import httpx
import pytest
from serving import CLIP, OPEN, FakeEngine, post, serving

from firsttouch.answer import to_challenge
from firsttouch.auth import Key, make_nonce
from firsttouch.clock import Stopwatch
from firsttouch.commands import serve
from firsttouch.commands.sign import curl_command
from firsttouch.errors import SettingsError
from firsttouch.logs import JsonLines
from firsttouch.metagraph import Metagraph
from firsttouch.pipeline import Analysis
from firsttouch.server import create_app, writing
from firsttouch.server.metrics import Metrics
from firsttouch.server.service import Service
from firsttouch.server.writing import accepts_gzip, coarse_to_fine
from firsttouch.settings import Settings
from firsttouch.wallet import own_hotkey

OURS = Key.from_seed(b"\1" * 32).hotkey
CALLER = Key.from_seed(b"\2" * 32)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving() as made:
        yield made


def challenge(what: str = "clip", **more: Any) -> dict[str, Any]:
    return {
        "challenge_id": "c-1",
        "type": "gsr",
        "video_url": CLIP + what,
        "created_at": "2026-11-23T12:00:00Z",
    } | more


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    return dict(body)


# --- the challenge


def test_the_answer_has_the_wires_shape(client: httpx.Client) -> None:
    answer = client.post("/soccer/challenge", json=challenge())
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"challenge_id", "frames", "processing_time"}
    assert body["challenge_id"] == "c-1"
    assert 0 <= body["processing_time"] < 5
    assert [frame["frame_number"] for frame in body["frames"]] == list(range(50))
    for frame in body["frames"]:
        assert frame.keys() == {"frame_number", "keypoints", "objects"}
        assert [len(point) for point in frame["keypoints"]] == [2] * 32
        for seen in frame["objects"]:
            assert seen.keys() == {"id", "bbox", "class_id"}
            assert len(seen["bbox"]) == 4
            assert seen["class_id"] in (0, 1, 2, 3)
    sent = engine_standin.frame(7)
    assert body["frames"][7]["objects"][1] == {"id": 8, "bbox": sent.xyxy[1].tolist(), "class_id": 1}


def test_numbers_have_two_decimals(client: httpx.Client) -> None:
    text = client.post("/soccer/challenge", json=challenge()).text
    frames = text[: text.index('"challenge_id"')]
    assert all(len(number.partition(".")[2]) <= 2 for number in frames.replace("]", ",").replace("[", ",").split(","))
    assert " " not in frames


def test_gzip_is_sent_to_those_who_accept_it(client: httpx.Client) -> None:
    with client.stream("POST", "/soccer/challenge", json=challenge(), headers={"accept-encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(packed))["frames"]) == 50
    plain = client.post("/soccer/challenge", json=challenge(), headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(packed) < len(plain.content) / 3


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("", False),
        ("br", False),
        ("GZIP", True),
    ],
)
def test_accept_encoding_is_read(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"{}", b'{"challenge_id": 7, "video_url": "https://a.com/b"}',
     b'{"challenge_id": "7"}', b'{"challenge_id": "7", "video_url": ""}', b'{"challenge_id": "7", "video_url": 3}',
     b'{"challenge_id": "7", "type": "tennis", "video_url": "https://a.com/b"}',
     json.dumps({"challenge_id": "7" * 5000, "video_url": "https://a.com/b"}).encode(), b"[" * 5000],
)  # fmt: skip
def test_a_malformed_body_is_422_and_says_what_to_send(client: httpx.Client, body: bytes) -> None:
    told = problem(client.post("/soccer/challenge", content=body))
    assert (told["status"], told["title"]) == (422, "RequestMalformed")
    assert "challenge_id" in told["hint"]


def test_a_large_body_is_413_however_it_is_sent(client: httpx.Client) -> None:
    assert problem(client.post("/soccer/challenge", content=b" " * 100_000))["title"] == "RequestTooLarge"
    chunks = (b" " * 1000 for _ in range(100))
    assert problem(client.post("/soccer/challenge", content=chunks))["status"] == 413


def test_a_lying_content_length_is_refused_at_once(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as raw:
        raw.sendall(b"POST /soccer/challenge HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n")
        assert b" 413 " in raw.recv(1000)


@pytest.mark.parametrize(
    ("url", "status", "title"),
    [("http://127.0.0.1/a.mp4", 403, "AddressRefused"), ("http://169.254.169.254/", 403, "AddressRefused"),
     ("file:///etc/passwd", 422, "UnsupportedScheme"), ("/etc/passwd", 422, "UnsupportedScheme"),
     (CLIP + "not-a-video", 422, "NotAVideo"), (CLIP + "dead", 500, "EngineFailed")],
)  # fmt: skip
def test_errors_are_problems_with_the_trees_names(client: httpx.Client, url: str, status: int, title: str) -> None:
    told = problem(client.post("/soccer/challenge", json=challenge(video_url=url)))
    assert (told["status"], told["title"]) == (status, title)
    assert told["type"] == f"urn:firsttouch:error:{title}"
    assert told["hint"]


def test_a_bug_is_500_and_tells_nothing(client: httpx.Client) -> None:
    answer = client.post("/soccer/challenge", json=challenge("bug"))
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_other_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    assert problem(client.get("/nothing"))["status"] == 404
    assert problem(client.get("/soccer/challenge"))["status"] == 405


# --- deadlines, sharing, queue


def test_the_deadline_counts_from_the_arrival_and_leaves_a_reserve() -> None:
    with serving(time_budget_s=0.6) as client:
        begun = time.monotonic()
        answer = client.post("/soccer/challenge", json=challenge("stuck"))
        took = time.monotonic() - begun
        assert len(answer.json()["frames"]) == 3
        assert 0.4 < took < 5.0
        job = client.engine.jobs[-1]  # type: ignore[attr-defined]
        assert 0.05 <= job.reserve_seconds <= 0.25
        assert 0.6 <= job.deadline.moment + job.reserve_seconds - begun < 0.6 + took


def test_the_same_clip_is_computed_once_for_all_who_ask_together() -> None:
    with serving(time_budget_s=30.0) as client, ThreadPoolExecutor(60) as pool:
        engine, desk = client.engine, client.service.desk  # type: ignore[attr-defined]
        bodies = [challenge("held", challenge_id=f"c{number}") for number in range(60)]
        asked = [pool.submit(post, client, "/soccer/challenge", body) for body in bodies]
        _until(lambda: len(engine.jobs) + desk.joined == 60)
        engine.released = True
        answers = [future.result() for future in asked]
        assert [status for status, _, _ in answers] == [200] * 60
        assert [body["challenge_id"] for _, _, body in answers] == [f"c{number}" for number in range(60)]
        assert len(engine.jobs) == 1


def test_what_all_callers_of_a_clip_share_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = writing.challenge_start
    monkeypatch.setattr(writing, "challenge_start", lambda frames: written.append(1) or real(frames))
    with serving(time_budget_s=30.0) as client, ThreadPoolExecutor(20) as pool:
        engine, desk = client.engine, client.service.desk  # type: ignore[attr-defined]
        bodies = [challenge("held", challenge_id=f"c{number}") for number in range(20)]
        asked = [pool.submit(post, client, "/soccer/challenge", body) for body in bodies]
        _until(lambda: len(engine.jobs) + desk.joined == 20)
        engine.released = True
        assert all(future.result()[0] == 200 for future in asked)
        assert len(written) == 1
        client.post("/soccer/challenge", json=challenge("clip"))
        assert len(written) == 2


def test_a_shared_answer_is_one_gzip_member_that_says_what_the_plain_one_says() -> None:
    at = Stopwatch(clock=lambda: 1.0)

    async def both(challenges: writing.Challenges, analysis: Analysis, name: str) -> tuple[bytes, bytes]:
        plain = await challenges.write(analysis, name, at, compress=False)
        return plain, await challenges.write(analysis, name, at, compress=True)

    async def of_two_clips() -> None:
        challenges = writing.Challenges()
        for count in (50, 0):
            analysis = engine_standin.analysis(CLIP, [engine_standin.frame(number) for number in range(count)])
            for name in ("a", 'quote " and ü'):
                plain, packed = await both(challenges, analysis, name)
                assert plain == to_challenge(analysis, name, 0.0)
                member = zlib.decompressobj(wbits=31)
                assert member.decompress(packed) == plain
                assert member.eof
                assert not member.unused_data

    asyncio.run(of_two_clips())


def test_different_budgets_do_not_share_a_computation() -> None:
    with serving(time_budget_s=20.0) as client, ThreadPoolExecutor(1) as pool:
        engine = client.engine  # type: ignore[attr-defined]
        patient = pool.submit(post, client, "/v1/analyze", {"url": CLIP + "held", "deadline_seconds": 15.0})
        _until(lambda: engine.at_work == 1)
        hasty = client.post("/v1/analyze", json={"url": CLIP + "held", "deadline_seconds": 0.5})
        assert hasty.status_code == 503  # not an answer after 15 s
        engine.released = True
        assert patient.result()[0] == 200


def test_slow_writing_makes_the_next_deadlines_earlier_until_it_is_forgotten() -> None:
    service = Service.of(Settings(**OPEN, time_budget_s=2.0), FakeEngine())
    analysis = engine_standin.analysis(CLIP, [])
    now = 100.0
    arrived = Stopwatch(clock=lambda: now)

    def written_after_its_deadline(*seconds: float) -> float:
        """How long before the caller's deadline the engine's is, for the job after one that was written so often."""
        nonlocal now
        job = service.job(arrived, CLIP)
        service.desk.on_done(analysis)
        for after in seconds:
            now = job.deadline.moment + after
            service.wrote(job)
        now = 100.0
        following = service.job(arrived, CLIP)
        assert following.deadline.moment + following.reserve_seconds == pytest.approx(102.0)
        return following.reserve_seconds

    assert written_after_its_deadline(0.2) == pytest.approx(0.2)
    assert written_after_its_deadline(60.0) == pytest.approx(0.25)  # a stalled machine takes no more
    assert written_after_its_deadline(-0.5) == pytest.approx(0.95 * 0.25)
    assert written_after_its_deadline(*[0.01] * 60) == pytest.approx(0.95**2 * 0.25)  # sixty callers are one clip
    assert [written_after_its_deadline(0.01) for _ in range(100)][-1] == pytest.approx(0.05)


def test_different_clips_wait_their_turn_and_too_many_are_refused_with_retry_after() -> None:
    with serving(queue_length=2, time_budget_s=30.0) as client, ThreadPoolExecutor(12) as pool:
        engine, desk = client.engine, client.service.desk  # type: ignore[attr-defined]
        asked = [pool.submit(post, client, "/soccer/challenge", challenge(f"held?{n}")) for n in range(12)]
        _until(lambda: sum(future.done() for future in asked) == 9)
        assert (desk.running, desk.queued) == (1, 2)
        engine.released = True
        answers = [future.result() for future in asked]
        refused = [(headers, body) for status, headers, body in answers if status == 503]
        assert len(refused) == 9
        assert all(body["title"] == "Busy" and int(headers["retry-after"]) >= 1 for headers, body in refused)
        assert engine.most_at_work == 1
        assert (desk.running, desk.queued) == (0, 0)


def test_a_challenge_that_would_be_late_is_refused_at_once_and_availability_says_so() -> None:
    with serving(time_budget_s=10.0) as client, ThreadPoolExecutor(1) as pool:
        engine, desk = client.engine, client.service.desk  # type: ignore[attr-defined]
        assert client.get("/availability").json() == {"available": True}
        first = pool.submit(post, client, "/soccer/challenge", challenge("held"))
        _until(lambda: engine.at_work == 1)
        desk.typical_seconds = 60.0
        assert client.get("/availability").json() == {"available": False}
        refused = client.post("/soccer/challenge", json=challenge("held?2"))
        assert (refused.status_code, desk.queued) == (503, 0)
        assert 5 <= int(refused.headers["retry-after"]) <= 10
        engine.released = True
        assert first.result()[0] == 200
        assert client.get("/availability").json() == {"available": True}


def test_a_caller_that_goes_away_cancels_its_work_unless_others_wait() -> None:
    with serving(time_budget_s=20.0) as client, ThreadPoolExecutor(1) as pool:
        engine, desk = client.engine, client.service.desk  # type: ignore[attr-defined]

        def come(what: str) -> socket.socket:
            body = json.dumps(challenge(what)).encode()
            raw = socket.create_connection((client.base_url.host, client.base_url.port))
            raw.sendall(
                b"POST /soccer/challenge HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            return raw

        with come("stuck"):
            _until(lambda: engine.at_work == 1)
        _until(lambda: (engine.cancelled, desk.running) == (1, 0))
        with come("held"):
            _until(lambda: engine.at_work == 1)
            stays = pool.submit(post, client, "/soccer/challenge", challenge("held"))
            _until(lambda: desk.joined == 1)
        _until(lambda: 'status="499"} 2.0' in client.get("/metrics").text)  # both who left have been noticed
        engine.released = True
        assert stays.result()[0] == 200
        assert engine.cancelled == 1


def _until(true: Any) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_slots_and_queue_are_free_again_after_every_kind_of_end() -> None:
    with serving(time_budget_s=1.0) as client, ThreadPoolExecutor(8) as pool:
        kinds = ["clip", "not-a-video", "dead", "bug", "stuck", "breaks", "slow", "steps"]
        list(pool.map(lambda kind: post(client, "/soccer/challenge", challenge(kind)), kinds * 3))
        desk = client.service.desk  # type: ignore[attr-defined]
        _until(lambda: (desk.running, desk.queued) == (0, 0))
        assert client.post("/soccer/challenge", json=challenge()).status_code == 200


def test_sigterm_drains_what_was_begun() -> None:
    engine = FakeEngine()
    with serving(engine) as client, ThreadPoolExecutor(1) as pool:
        begun = pool.submit(post, client, "/soccer/challenge", challenge("slow"))
        _until(lambda: engine.at_work == 1)
        client.server.should_exit = True  # type: ignore[attr-defined]  # as its SIGTERM handler does
        assert begun.result()[0] == 200
    assert engine.closed


# --- our own interface


def test_analyze_gives_the_full_answer(client: httpx.Client) -> None:
    body = client.post("/v1/analyze", json={"url": CLIP + "clip"}).json()
    assert body["schema"] == "firsttouch/1"
    assert body["source"]["frame_count"] == 50
    assert body["frames"][5]["how"] == "detected"
    assert len(body["frames"][5]["keypoints"][0]) == 3


def test_an_analysis_takes_its_own_deadline(client: httpx.Client) -> None:
    begun = time.monotonic()
    body = client.post("/v1/analyze", json={"url": CLIP + "stuck", "deadline_seconds": 0.3}).json()
    assert body["stopped_by"] == "deadline"
    assert time.monotonic() - begun < 0.6
    assert problem(client.post("/v1/analyze", json={"url": CLIP, "deadline_seconds": -1}))["status"] == 422
    assert problem(client.post("/v1/analyze", json={"url": CLIP, "surprise": 1}))["status"] == 422


def _lines(client: httpx.Client, what: str, **headers: str) -> list[tuple[float, dict[str, Any]]]:
    begun, found = time.monotonic(), []
    wants = {"accept": "application/x-ndjson", "accept-encoding": "identity"} | headers
    with client.stream("POST", "/v1/analyze", json={"url": CLIP + what}, headers=wants) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        for line in answer.iter_lines():
            found.append((time.monotonic() - begun, json.loads(line)))
    return found


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_stream_begins_at_once_and_the_first_looked_at_frame_comes_early(client: httpx.Client, coding: str) -> None:
    lines = _lines(client, "steps", **{"accept-encoding": coding})
    events = [line["event"] for _, line in lines]
    assert (events[0], events[1], events[-1]) == ("start", "frame", "end")
    first, last = lines[1][0], lines[-1][0]
    assert last - first > 0.15
    latest = {line["frame_number"]: line for _, line in lines if line["event"] == "frame"}
    assert sorted(latest) == list(range(50))
    assert lines[-1][1]["frames_answered"] == 50
    numbers = [line["frame_number"] for _, line in lines if line["event"] == "frame"]
    assert numbers[0] == 0
    assert all(number % 5 == 0 for number in numbers[:10])  # the looked-at ones come first
    assert numbers[10] == 1
    assert numbers[11] > 20  # then coarse to fine


def test_early_flush_can_be_switched_off() -> None:
    with serving(early_flush_first_frame=False) as client:
        lines = _lines(client, "steps")
        frames = [at for at, line in lines if line["event"] == "frame"]
        assert frames[-1] - frames[0] < 0.15


def test_an_error_in_a_stream_is_its_last_line(client: httpx.Client) -> None:
    lines = [line for _, line in _lines(client, "breaks")]
    assert [line["event"] for line in lines] == ["start", "frame", "error"]
    assert lines[-1]["title"] == "EngineFailed"
    assert (
        problem(
            client.post("/v1/analyze", json={"url": "http://10.0.0.1/"}, headers={"accept": "application/x-ndjson"})
        )["status"]
        == 403
    )


def test_leaving_a_stream_cancels_its_work() -> None:
    with serving(time_budget_s=20.0) as client:
        with client.stream(
            "POST", "/v1/analyze", json={"url": CLIP + "stuck"}, headers={"accept": "application/x-ndjson"}
        ) as answer:
            next(answer.iter_lines())
        _until(lambda: client.engine.cancelled == 1)  # type: ignore[attr-defined]


def test_coarse_to_fine_has_every_frame_once() -> None:
    for count in (0, 1, 2, 3, 17, 50):
        frames = [engine_standin.frame(number) for number in range(count)]
        assert sorted(frame.frame_number for frame in coarse_to_fine(frames)) == list(range(count))


# --- the subnet's shapes


def test_predict_answers_a_clip(client: httpx.Client) -> None:
    body = client.post("/predict", json={"url": CLIP + "clip", "meta": {"n_keypoints": 40}}).json()
    assert body["success"] is True
    assert body["error"] is None
    frame = body["predictions"]["frames"][3]
    assert frame.keys() == {"frame_id", "boxes", "polygons", "keypoints"}
    assert frame["boxes"][0].keys() == {"x1", "y1", "x2", "y2", "cls_id", "conf"}
    assert len(frame["keypoints"]) == 40


def test_predict_says_what_went_wrong_in_its_own_shape(client: httpx.Client) -> None:
    for body in (
        {"url": CLIP + "not-a-video"},
        {"url": "http://127.0.0.1/"},
        {"frames": [{"frame_id": 0, "data": "***"}]},
    ):
        answer = client.post("/predict", json=body).json()
        assert (answer["success"], answer["predictions"]) == (False, None)
        assert answer["error"]
    for wrong in (
        {},
        {"url": CLIP, "frames": []},
        {"frames": [{"frame_id": 0}]},
        {"url": CLIP, "meta": {"n_keypoints": -1}},
    ):
        assert (
            client.post("/predict", json=wrong).status_code == 422
            or not client.post("/predict", json=wrong).json()["success"]
        )


def test_predict_hands_pictures_to_the_engine(client: httpx.Client) -> None:
    data = base64.b64encode(b"a picture").decode()
    client.post("/predict", json={"frames": [{"frame_id": 3, "data": data}, {"frame_id": 4, "url": CLIP + "p.jpg"}]})
    assert client.engine.jobs[-1].pictures == ((3, None, b"a picture"), (4, CLIP + "p.jpg", b""))  # type: ignore[attr-defined]


def test_the_private_track_is_told_that_there_is_no_action_model(client: httpx.Client) -> None:
    answer = client.post("/challenge", json={"challenge_id": "9", "video_url": CLIP + "clip"})
    told = problem(answer)
    assert (told["status"], told["title"]) == (501, "NoActionModel")
    assert told["prediction"] == {"type": "soccer_action", "items": []}
    assert told["challenge_id"] == "9"


# --- operations


def test_metrics_name_only_what_runs_now() -> None:
    metrics = Metrics()
    for runtime in ("onnxruntime fp16 on cuda", "tensorrt fp16 on cuda"):  # an engine took over
        metrics.analyzed(engine_standin.analysis("u", [], runtime=runtime))
    told = [line for line in metrics.text().decode().splitlines() if line.startswith("firsttouch_runtime{")]
    assert told == ['firsttouch_runtime{runtime="tensorrt fp16 on cuda"} 1.0']


def test_health_readiness_and_metrics() -> None:
    engine = FakeEngine()
    with serving(engine) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        engine.is_ready = False
        assert problem(client.get("/readyz"))["status"] == 503
        assert client.get("/availability").json() == {"available": False}
        assert client.post("/soccer/challenge", json=challenge()).headers["retry-after"]
        engine.is_ready = True
        client.post("/soccer/challenge", json=challenge())
        client.post("/soccer/challenge", json=challenge("not-a-video"))
        text = client.get("/metrics").text
        assert 'firsttouch_requests_total{path="/soccer/challenge",status="200"} 1.0' in text
        assert 'firsttouch_refusals_total{reason="NotAVideo"} 1.0' in text
        assert 'firsttouch_refusals_total{reason="Busy"} 1.0' in text
        assert 'firsttouch_frames_total{how="carried"} 40.0' in text
        assert "firsttouch_queue_length 0.0" in text


def test_the_log_has_one_json_object_a_line_with_challenge_id_and_stage_times(client: httpx.Client) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("firsttouch.server")
    logger.addHandler(handler)
    try:
        client.post("/soccer/challenge", json=challenge(challenge_id="logged-1"))
    finally:
        logger.removeHandler(handler)
    lines = {line["message"]: line for line in map(json.loads, written.getvalue().splitlines())}
    assert lines.keys() == {"Challenge received: logged-1", "computed", "answered"}
    assert all(line["challenge_id"] == "logged-1" for line in lines.values())
    assert lines["computed"]["stage_seconds"] == {"total": 0.1, "decode": 0.05}
    assert lines["answered"]["bytes"] > 100


def test_unknown_paths_do_not_become_labels(client: httpx.Client) -> None:
    for number in range(5):
        client.get(f"/wp-admin/{number}")
    assert "wp-admin" not in client.get("/metrics").text


def test_the_openapi_document_describes_every_endpoint_with_examples(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/soccer/challenge", "/v1/analyze", "/predict", "/challenge"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["examples"]
        assert "application/problem+json" in document["paths"][path]["post"]["responses"]["422"]["content"]


# --- who may ask, end to end


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "metagraph-finney-44.json").write_bytes(Metagraph({CALLER.hotkey: 5000.0}, 1.0).to_json())
    with serving(
        verify_enabled=True, blacklist_enabled=True, miner_hotkey=OURS, cache_dir=folder, refresh_nodes=False
    ) as made:
        yield made


def _signed(client: httpx.Client, body: bytes, key: Key = CALLER, **more: str) -> httpx.Response:
    return client.post("/soccer/challenge", content=body, headers=key.headers(body, OURS) | more)


def test_signed_challenges_over_http(closed: httpx.Client) -> None:
    body = json.dumps(challenge()).encode()
    assert _signed(closed, body).status_code == 200
    headers = CALLER.headers(body, OURS)
    assert closed.post("/soccer/challenge", content=body, headers=headers).status_code == 200
    assert problem(closed.post("/soccer/challenge", content=body, headers=headers))["status"] == 401  # replayed
    assert (
        problem(closed.post("/soccer/challenge", content=body + b" ", headers=CALLER.headers(body, OURS)))["status"]
        == 401
    )
    assert problem(closed.post("/soccer/challenge", content=body))["title"] == "RequestUnauthorized"
    assert problem(_signed(closed, body, Key.throw_away()))["status"] == 403
    assert problem(_signed(closed, b"{}"))["status"] == 422
    late = CALLER.headers(body, OURS, nonce=make_nonce(time.time_ns() - 130 * 10**9))
    assert problem(closed.post("/soccer/challenge", content=body, headers=late))["status"] == 401


def test_a_stranger_is_refused_everywhere_before_the_body_is_read(closed: httpx.Client) -> None:
    for path in ("/soccer/challenge", "/v1/analyze", "/predict", "/challenge"):
        assert problem(closed.post(path, content=b"not even JSON"))["status"] == 401
        assert problem(closed.post(path, content=b" " * 9_000_000))["status"] == 413
    for path in ("/availability", "/healthz", "/readyz", "/metrics"):
        assert closed.get(path).status_code == 200


def test_the_sign_command_makes_a_request_that_is_accepted(closed: httpx.Client) -> None:
    import shlex

    for scheme in ("fiber", "blake2b"):
        words = shlex.split(curl_command(str(closed.base_url), CLIP + "clip", "s-1", OURS, scheme, "02" * 32))
        headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
        answer = closed.post("/soccer/challenge", content=words[words.index("--data-binary") + 1], headers=headers)
        assert answer.json()["challenge_id"] == "s-1"
    with pytest.raises(SettingsError):
        curl_command("http://a", CLIP, "s", OURS, "rsa")
    with pytest.raises(SettingsError):
        curl_command("http://a", CLIP, "s", OURS, "fiber", "zz")


# --- where it listens, and as whom


def test_a_service_without_checks_binds_to_loopback() -> None:
    assert serve.default_host(Settings()) == "0.0.0.0"
    assert serve.default_host(Settings(verify_enabled=False)) == "127.0.0.1"
    assert serve.default_host(Settings(blacklist_enabled=False)) == "127.0.0.1"


def test_the_start_says_what_a_prefix_costs_with_the_predicted_score() -> None:
    from firsttouch.predict import predict
    from firsttouch.server.service import warnings_of
    from firsttouch.settings import load

    settings = load({"partial_download": "1"}, env_file=None)
    [line] = [line for line in warnings_of(settings) if line.startswith("PARTIAL_DOWNLOAD=1 costs score")]
    assert f"predicted {predict(settings.choice).final:.2f}" in line
    assert line.endswith("set PARTIAL_DOWNLOAD=0")


def test_switched_off_checks_are_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    from firsttouch.server.service import warnings_of

    text = "\n".join(warnings_of(Settings(**OPEN, allow_private_origins=True)))
    for word in ("VERIFY_ENABLED=0", "BLACKLIST_ENABLED=0", "ALLOW_PRIVATE_ORIGINS=1"):
        assert word in text


def test_a_service_that_verifies_must_know_its_hotkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsError) as error:
        create_app(Settings(wallet_name="nobody"), engine=FakeEngine())
    assert "MINER_HOTKEY" in str(error.value.hint)


def test_our_hotkey_is_read_from_the_wallet_and_its_secret_is_not_needed(tmp_path: Path) -> None:
    folder = tmp_path / "w" / "hotkeys"
    folder.mkdir(parents=True)
    settings = Settings(wallet_name="w", hotkey_name="h")
    assert own_hotkey(settings, tmp_path) is None
    (folder / "h").write_text(json.dumps({"ss58Address": OURS, "secretPhrase": "never read"}))
    assert own_hotkey(settings, tmp_path) == OURS
    (folder / "h").write_text(json.dumps({"ss58Address": "nonsense"}))
    with pytest.raises(SettingsError):
        own_hotkey(settings, tmp_path)
    (folder / "hpub.txt").write_text(json.dumps({"ss58Address": OURS}))
    assert own_hotkey(settings, tmp_path) == OURS
    with pytest.raises(SettingsError):
        own_hotkey(Settings(miner_hotkey="5x"), tmp_path)


def test_the_dashboard_asks_only_for_metrics_that_exist(client: httpx.Client) -> None:
    import re

    client.post("/soccer/challenge", json=challenge())
    client.post("/soccer/challenge", json=challenge("not-a-video"))
    shown = {line.split("{")[0].split(" ")[0] for line in client.get("/metrics").text.splitlines() if line[:1] != "#"}
    dashboard = (Path(__file__).parents[1] / "deploy" / "grafana.json").read_text()
    asked = set(re.findall(r"\b(?:firsttouch|process)_[a-z_]+(?=\{|\[)", dashboard))
    assert len(asked) > 12
    assert asked - shown <= {"firsttouch_metagraph_age_seconds"}  # only with BLACKLIST_ENABLED
