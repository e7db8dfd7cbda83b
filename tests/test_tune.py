"""The search: outlooks follow the clip and the machine, the front is a front, auto deadlines are sensible."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from firsttouch.clock import Deadline, Stopwatch
from firsttouch.commands import tune as tune_command
from firsttouch.index import Index
from firsttouch.pipeline import analyze_sync
from firsttouch.plan import Rates
from firsttouch.predict import (
    Choice,
    Clip,
    Prediction,
    best_deadline,
    final_score,
    judged,
    predict,
    speed_term,
)
from firsttouch.predict import Rates as PlainRates
from firsttouch.score import FORMULAS, LATEST
from firsttouch.server.service import Service
from firsttouch.settings import load
from firsttouch.size import fetch_index
from firsttouch.source import open_source
from firsttouch.tune import (
    Candidate,
    Machine,
    candidate_values,
    outlook,
    over_clips,
    pareto,
    recommend,
    search,
    settings_of,
    sureness,
)
from tests.seeing import NumberReader
from tests.toy import toy_clip, toy_model

MACHINE = Machine(Rates())


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    clip = toy_clip(tmp_path_factory.mktemp("clip"), frames=200)

    async def read() -> Index:
        source = open_source(clip)
        try:
            return (await fetch_index(source, Deadline.after(10)))[1]
        finally:
            await source.close()

    return asyncio.run(read())


def test_the_model_uses_the_judges_formula() -> None:
    """`predict` is kept light; the formula in `score` is the one that counts."""
    formula = FORMULAS[LATEST]
    for bbox, keypoints, seconds in ((0.9, 0.7, 1.0), (0.5, 0.1, 4.0), (0.2, 0.5, 1.0), (0.8, 0.5, 15.0)):
        speed = formula.speed(seconds, 1.0, bbox)
        assert speed_term(seconds, 1.0, bbox) == pytest.approx(speed)
        assert final_score(bbox, keypoints, speed) == pytest.approx(formula.final(bbox, keypoints, speed))


def test_a_prefix_covers_its_share(index: Index) -> None:
    half = index.size_bytes / 2 / 1024 / 1024
    seen = outlook(index, MACHINE, settings_of({"partial_download": 1, "partial_download_mb": half, "frame_stride": 5}))
    assert seen.coverage == pytest.approx(0.5, abs=0.12)
    assert outlook(index, MACHINE, settings_of({"frame_stride": 5})).coverage > 0.95


def test_a_shorter_budget_is_never_better_answered_nor_later(index: Index) -> None:
    outlooks = [outlook(index, MACHINE, settings_of({"time_budget_s": b})) for b in (0.2, 0.4, 0.8, 1.6)]
    assert [o.seconds for o in outlooks] == sorted(o.seconds for o in outlooks)
    answered = [o.coverage * o.f1 for o in outlooks]
    assert all(a <= b + 0.02 for a, b in pairwise(answered))
    assert all(o.seconds <= b + 1e-6 for o, b in zip(outlooks, (0.2, 0.4, 0.8, 1.6), strict=True))


def test_a_slow_link_makes_the_full_download_slow(index: Index) -> None:
    slow = replace(MACHINE, rates=replace(MACHINE.rates, bytes_per_second=500_000.0))
    full = settings_of({"fetch": "full", "frame_stride": 5, "time_budget_s": "none"})
    assert outlook(index, slow, full).seconds > index.size_bytes / 500_000
    assert outlook(index, MACHINE, full).seconds < outlook(index, slow, full).seconds


def test_candidates_keep_to_the_deadline() -> None:
    for values in candidate_values(1.3):
        assert settings_of(values).deadline_seconds is not None
        assert settings_of(values).deadline_seconds <= 1.3  # type: ignore[operator]
    assert any(values["time_budget_s"] == 1.3 for values in candidate_values(1.3))


def candidate(name: int, seconds: float, final: float, measured: Prediction | None = None) -> Candidate:
    prediction = replace(judged(1.0, 0.9, seconds, pitch=True, fastest=1.0), final=final)
    return Candidate({"frame_stride": name}, prediction, measured)


def test_the_front_holds_what_no_other_beats() -> None:
    points = [(1.0, 0.5), (1.5, 0.7), (1.6, 0.6), (2.0, 0.7), (3.0, 0.8), (0.9, 0.2)]
    front = pareto(candidate(n, *point) for n, point in enumerate(points))
    assert [c.values["frame_stride"] for c in front] == [5, 0, 1, 4]
    for c in front:
        assert not any(s <= c.predicted.seconds and f > c.predicted.final for s, f in points)


def test_measured_values_count_before_predicted_ones() -> None:
    worse = replace(candidate(1, 1.0, 0.9).predicted, final=0.3, seconds=2.0)
    candidates = [candidate(1, 1.0, 0.9, measured=worse), candidate(2, 1.2, 0.8)]
    assert pareto(candidates)[0].values["frame_stride"] == 2
    assert recommend(candidates).values["frame_stride"] == 1  # the only one that was run
    sure = sureness(candidates)
    assert sure.runs == 1
    assert sure.seconds_error == pytest.approx(1.0)
    assert sure.score_error == pytest.approx(0.6)
    assert "predictions only" in str(sureness([candidate(1, 1.0, 0.5)]))


def test_several_clips_are_averaged() -> None:
    [joined] = over_clips([[candidate(1, 1.0, 0.4)], [candidate(1, 2.0, 0.8)]])
    assert (joined.predicted.seconds, joined.predicted.final) == (1.5, pytest.approx(0.6))
    assert joined.measured is None


def test_search_prefers_spread_frames_to_a_prefix_on_a_long_clip(index: Index) -> None:
    candidates = search(index, MACHINE)
    assert len({c.name for c in candidates}) == len(candidates)
    best = max(candidates, key=lambda c: c.predicted.final)
    assert best.predicted.coverage > 0.9


def test_auto_deadline_stops_when_another_second_costs_more_than_it_brings() -> None:
    clip = Clip()
    for rates in (PlainRates(), PlainRates(bytes_per_second=1.65e6), PlainRates(cores=16)):
        chosen = best_deadline(clip, rates)
        here = predict(Choice(budget_seconds=chosen), clip, rates).final
        assert predict(Choice(budget_seconds=chosen + 1.0), clip, rates).final <= here + 0.001
        assert predict(Choice(budget_seconds=max(0.5, chosen - 0.5)), clip, rates).final <= here
    assert best_deadline(clip, PlainRates(cores=16)) < best_deadline(clip, PlainRates(cores=1))


def test_the_service_learns_its_auto_deadline_from_its_answers(tmp_path: Path) -> None:
    settings = load({"time_budget_s": "auto", "verify_enabled": "0", "blacklist_enabled": "0"}, env_file=None)
    service = Service.of(settings)
    watch = Stopwatch(clock=lambda: 0.0)
    at_first = service.job(watch, "http://a.example/x.mp4").deadline.moment
    analysis = analyze_sync(toy_clip(tmp_path), detector=NumberReader())
    stages = {"connect": 0.1, "fetch": 8.0, "decode": 0.3, "detect": 0.2, "carry": 0.1}
    service._done(replace(analysis, stage_seconds=stages, bytes_fetched=14_000_000))
    assert service.rates is not None
    assert service.rates.bytes_per_second == 1_750_000
    later = service.job(watch, "http://a.example/x.mp4").deadline.moment
    assert later > at_first
    assert later == pytest.approx(best_deadline(rates=service.rates), abs=0.1)


def test_rates_of_a_run() -> None:
    stages = {"connect": 0.1, "decode": 3.0, "detect": 0.3, "carry": 1.5}
    rates = PlainRates.of_run(
        stages, frame_count=750, frames_looked_at=50, bytes_per_second=1e6, round_trip_seconds=0.02, cores=2
    )
    assert (rates.decode_ms, rates.detect_ms, rates.flow_ms) == pytest.approx((4.0, 6.0, 1.0))


@pytest.mark.slow
def test_the_command_prints_a_ready_env_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MODEL_PLAYER", str(toy_model(tmp_path / "toy.onnx")))
    monkeypatch.chdir(tmp_path)
    clip = toy_clip(tmp_path, frames=50)
    app = typer.Typer()
    tune_command.register(app)
    plot = tmp_path / "tune.png"
    result = CliRunner().invoke(app, [str(clip), "--minutes", "0.05", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert plot.read_bytes()[:4] == b"\x89PNG"
    ready = tmp_path / "ready.env"
    ready.write_text(result.stdout)
    settings = load(env_file=ready)
    assert settings.origin("frame_stride") == ".env"
    assert not [note for note in settings.notes() if note.kind != "cost"]
