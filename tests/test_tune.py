"""The search: outlooks follow the clip and the machine, the front is a front, auto deadlines are sensible."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from firsttouch.clock import Deadline, Stopwatch
from firsttouch.commands import tune as tune_command
from firsttouch.errors import DeadlineExceeded
from firsttouch.index import Index
from firsttouch.pipeline import Options, analyze_sync
from firsttouch.plan import Rates
from firsttouch.predict import (
    BUDGETS,
    Choice,
    Clip,
    Prediction,
    best_deadline,
    carried,
    final_score,
    judged,
    predict,
    speed_term,
)
from firsttouch.score import FORMULAS, LATEST
from firsttouch.server.service import Service
from firsttouch.settings import PROFILES, ProfileName, Settings, load
from firsttouch.size import fetch_index
from firsttouch.source import open_source
from firsttouch.tune import (
    Candidate,
    Machine,
    best_budget,
    candidate_values,
    corrected,
    explore,
    outlook,
    pareto,
    recommend,
    search,
    settings_of,
    sureness,
)
from tests.seeing import NumberReader
from tests.toy import toy_clip, toy_model

MACHINE = Machine(Rates())
PROFILES_MEASURED = [("guide", 0.44), ("extreme", 0.04), ("balanced", 0.49), ("complete", 0.79), ("accurate", 0.65)]


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
    seen = outlook(
        index, MACHINE, settings_of({"partial_download": 1, "partial_download_mb": half, "frame_stride": 5}).choice
    )
    assert seen.coverage == pytest.approx(0.5, abs=0.12)
    assert outlook(index, MACHINE, settings_of({"frame_stride": 5}).choice).coverage > 0.95


def test_a_shorter_budget_is_never_better_answered_nor_later(index: Index) -> None:
    outlooks = [outlook(index, MACHINE, settings_of({"time_budget_s": b}).choice) for b in (0.2, 0.4, 0.8, 1.6)]
    assert [o.seconds for o in outlooks] == sorted(o.seconds for o in outlooks)
    answered = [o.coverage * o.f1 for o in outlooks]
    assert all(a <= b + 0.02 for a, b in pairwise(answered))
    assert all(o.seconds <= b + 1e-6 for o, b in zip(outlooks, (0.2, 0.4, 0.8, 1.6), strict=True))


def test_a_slow_link_makes_the_full_download_slow(index: Index) -> None:
    slow = replace(MACHINE, rates=replace(MACHINE.rates, bytes_per_second=500_000.0))
    full = settings_of({"fetch": "full", "frame_stride": 5, "time_budget_s": "none"})
    assert outlook(index, slow, full.choice).seconds > index.size_bytes / 500_000
    assert outlook(index, MACHINE, full.choice).seconds < outlook(index, slow, full.choice).seconds


def test_candidates_keep_to_the_deadline() -> None:
    for values in candidate_values(1.3):
        assert settings_of(values).deadline_seconds is not None
        assert settings_of(values).deadline_seconds <= 1.3  # type: ignore[operator]
    assert any(values["time_budget_s"] == 1.3 for values in candidate_values(1.3))


def prediction(seconds: float, final: float) -> Prediction:
    return replace(judged(1.0, 0.9, seconds, pitch=True, fastest=1.0), final=final)


def candidate(name: int, seconds: float, final: float, *runs: Prediction) -> Candidate:
    return Candidate({"frame_stride": name}, prediction(seconds, final), runs)


def test_the_front_holds_what_no_other_beats() -> None:
    points = [(1.0, 0.5), (1.5, 0.7), (1.6, 0.6), (2.0, 0.7), (3.0, 0.8), (0.9, 0.2)]
    front = pareto(candidate(n, *point) for n, point in enumerate(points))
    assert [c.values["frame_stride"] for c in front] == [5, 0, 1, 4]
    for c in front:
        assert not any(s <= c.predicted.seconds and f > c.predicted.final for s, f in points)


def test_measured_values_count_before_predicted_ones() -> None:
    candidates = [candidate(1, 1.0, 0.9, prediction(2.0, 0.3)), candidate(2, 1.2, 0.8)]
    assert pareto(candidates)[0].values["frame_stride"] == 2
    assert recommend(candidates).values["frame_stride"] == 1  # the only one that was run
    sure = sureness(candidates)
    assert (sure.settings, sure.runs) == (1, 1)
    assert sure.seconds_error == pytest.approx(1.0)
    assert sure.score_error == pytest.approx(0.6)
    assert "the only run" in str(sure)
    assert "predictions only" in str(sureness([candidate(1, 1.0, 0.5)]))


def test_one_lucky_run_does_not_outweigh_the_median() -> None:
    lucky = candidate(1, 2.0, 0.6, *(prediction(2.0, final) for final in (0.9, 0.5, 0.5)))
    steady = candidate(2, 2.0, 0.6, *(prediction(2.0, final) for final in (0.61, 0.6, 0.59)))
    assert recommend([lucky, steady]) is steady
    assert "no more than runs differ" in str(sureness([lucky, candidate(2, 2.0, 0.6, prediction(2.0, 0.49))]))
    assert "more than runs differ" in str(sureness([steady, candidate(1, 2.0, 0.6, prediction(2.0, 0.4))]))


def explored(
    candidates: list[Candidate], truth: Mapping[int, Sequence[float]], *, seconds: float = 1000.0
) -> tuple[bool, list[int]]:
    """Whether it ended by itself, and what was run: every run gives the next of its score, and takes its seconds."""
    left, ran, scores = seconds, [], {name: iter([*values, *values[-1:] * 100]) for name, values in truth.items()}

    async def run(one: Candidate) -> Prediction:
        nonlocal left
        left -= one.predicted.seconds
        ran.append(one.values["frame_stride"])
        return prediction(one.predicted.seconds, next(scores[ran[-1]]))

    return asyncio.run(explore(candidates, run, lambda: max(0.0, left))), ran


def test_the_best_is_found_though_predictions_are_off_by_a_factor() -> None:
    predicted = {1: 0.70, 2: 0.69, 3: 0.66, 4: 0.50, 5: 0.30}
    truth = {1: (0.50,), 2: (0.49,), 3: (0.55,), 4: (0.36,), 5: (0.21,)}
    candidates = [candidate(name, 2.0, final) for name, final in predicted.items()]
    enough, ran = explored(candidates, truth)
    assert enough
    assert ran[:2] == [1, 1]  # the best foretold, and once more before it is believed
    assert recommend(candidates).values["frame_stride"] == 3
    assert ran.count(3) == 4  # whose spread is then known
    assert not {4, 5} & set(ran)  # by as much as the others were off, these cannot win


def test_a_lucky_leader_is_run_again_before_it_is_believed() -> None:
    candidates = [candidate(1, 2.0, 0.60), candidate(2, 2.0, 0.59)]
    explored(candidates, {1: (0.60,), 2: (0.70, 0.55)})
    assert len(candidates[1].runs) > 1
    assert recommend(candidates).values["frame_stride"] == 1


def test_what_takes_long_is_run_only_with_much_time_left() -> None:
    slow_and_fast = [candidate(1, 20.0, 0.60), candidate(2, 2.0, 0.55), candidate(3, 2.0, 0.54)]
    _, ran = explored(list(slow_and_fast), {1: (0.6,), 2: (0.5,), 3: (0.5,)}, seconds=30.0)
    assert ran[0] == 2
    assert 1 not in ran
    _, ran = explored(list(slow_and_fast), {1: (0.6,), 2: (0.5,), 3: (0.5,)}, seconds=300.0)
    assert ran[0] == 1


def test_time_that_is_over_leaves_one_run_at_least_and_says_so() -> None:
    candidates = [candidate(1, 2.0, 0.60), candidate(2, 1.0, 0.59)]
    assert explored(candidates, {1: (0.5,), 2: (0.5,)}, seconds=0.0) == (False, [2])
    assert recommend(candidates).values["frame_stride"] == 2


def test_what_was_known_when_it_was_cancelled_is_kept() -> None:
    candidates = [candidate(1, 2.0, 0.60), candidate(2, 2.0, 0.59)]

    async def run(one: Candidate) -> Prediction:
        if candidates[0].runs:
            raise asyncio.CancelledError
        return prediction(2.0, 0.5)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(explore(candidates, run, lambda: 10.0))
    assert [len(one.runs) for one in candidates] == [1, 0]


def test_what_was_not_run_is_shown_as_the_runs_say() -> None:
    halved = corrected([candidate(1, 2.0, 0.8, prediction(2.0, 0.4)), candidate(2, 2.0, 0.6)])
    assert halved[0].predicted.final == 0.8
    assert halved[1].predicted.final == pytest.approx(0.3)


def test_several_clips_are_averaged(index: Index) -> None:
    slow = replace(MACHINE, rates=replace(MACHINE.rates, bytes_per_second=500_000.0))
    each = [search([(index, machine)]) for machine in (MACHINE, slow)]
    both = search([(index, MACHINE), (index, slow)])
    for one, other, joined in zip(*each, both, strict=True):
        assert joined.predicted.final == pytest.approx((one.predicted.final + other.predicted.final) / 2)


def test_search_prefers_spread_frames_to_a_prefix_on_a_long_clip(index: Index) -> None:
    candidates = search([(index, MACHINE)])
    assert len({c.name for c in candidates}) == len(candidates)
    best = max(candidates, key=lambda c: c.predicted.final)
    assert best.predicted.coverage > 0.9


def test_auto_deadline_stops_when_another_second_costs_more_than_it_brings() -> None:
    clip = Clip()
    for rates in (Rates(), Rates(bytes_per_second=1.65e6), Rates(workers=16)):
        chosen = best_deadline(clip, rates)
        here = predict(Choice(budget_seconds=chosen), clip, rates).final
        assert predict(Choice(budget_seconds=chosen + 1.0), clip, rates).final <= here + 0.001
        assert predict(Choice(budget_seconds=max(0.5, chosen - 0.5)), clip, rates).final <= here
    assert best_deadline(clip, Rates(workers=16)) < best_deadline(clip, Rates(workers=1))


@pytest.mark.parametrize("bytes_per_second", [300_000.0, 1.65e6, 12.5e6])
def test_auto_deadline_is_the_budget_that_tune_rates_best(index: Index, bytes_per_second: float) -> None:
    machine = replace(MACHINE, rates=replace(MACHINE.rates, bytes_per_second=bytes_per_second))
    auto = {
        c.values["time_budget_s"]: c.predicted.final
        for c in search([(index, machine)])
        if c.values["frame_stride"] == "auto"
    }
    assert auto[best_budget(index, machine, Choice())] == pytest.approx(max(auto.values()), abs=0.001)


def test_a_slower_link_gets_a_later_auto_deadline(index: Index) -> None:
    slow = replace(MACHINE, rates=replace(MACHINE.rates, bytes_per_second=index.size_bytes / 4))
    assert best_budget(index, slow, Choice()) > best_budget(index, MACHINE, Choice())


def test_an_answer_under_auto_stops_when_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Choice]] = []

    def at_once(index: Index, machine: Machine, choice: Choice) -> float:
        asked.append((index.frame_count, choice))
        assert machine.connect_seconds > 0
        return 0.0

    monkeypatch.setattr("firsttouch.pipeline.best_budget", at_once)
    clip, options = toy_clip(tmp_path), Options.of(load({"time_budget_s": "auto", "skip_pitch": "1"}))
    with pytest.raises(DeadlineExceeded):
        analyze_sync(clip, deadline=60.0, options=options, detector=NumberReader())
    assert asked == [(100, Choice(megabytes=4 * 1024 * 1024 / 1e6, pitch=False))]


def test_auto_in_the_service_may_choose_until_the_longest_budget() -> None:
    settings = load({"time_budget_s": "auto", "verify_enabled": "0", "blacklist_enabled": "0"}, env_file=None)
    moment = Service.of(settings).job(Stopwatch(clock=lambda: 0.0), "http://a.example/x.mp4").deadline.moment
    assert moment == pytest.approx(BUDGETS[-1], abs=0.1)
    assert Options.of(settings).auto_deadline


@pytest.mark.parametrize(("name", "measured"), PROFILES_MEASURED)
def test_a_profiles_predicted_score_is_near_the_measured_one(name: ProfileName, measured: float) -> None:
    """The README's table; predicted with nominal rates."""
    clip = Clip(megabytes=14.7)
    assert predict(Settings(**PROFILES[name].values).choice, clip).final == pytest.approx(measured, abs=0.1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Choice(stride=5, width=416), Choice(stride=5)),
        (Choice(stride=5, width=384), Choice(stride=5, width=416)),
        (Choice(stride=5, tracking=False), Choice(stride=5)),
        (Choice(stride=5, confidence=0.25), Choice(stride=5)),
        (Choice(stride=12), Choice(stride=5)),
    ],
)
def test_what_the_guide_gives_up_costs_boxes(one: Choice, other: Choice) -> None:
    assert carried(one)[0] < carried(other)[0]
    assert carried(one)[1] < carried(other)[1]


@pytest.mark.slow
def test_the_command_prints_a_ready_env_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MODEL_PLAYER", str(toy_model(tmp_path / "toy.onnx")))
    monkeypatch.chdir(tmp_path)
    clip = toy_clip(tmp_path, frames=50)
    app = typer.Typer()
    tune_command.register(app)
    plot = tmp_path / "tune.png"
    result = CliRunner().invoke(app, [str(clip), "--minutes", "0.05"])
    assert result.exit_code == 0, result.output
    for words in (
        "Pareto front",
        "<- recommended",
        "TIME_BUDGET_S=auto stops at",
        "predictions were off by",
    ):
        assert words in result.stderr
    assert re.search(r"^# \d+ runs of \d+ settings; predictions were off by \d", result.stdout, re.MULTILINE)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    ready = tmp_path / "ready.env"
    ready.write_text(result.stdout)
    settings = load(env_file=ready)
    assert settings.origin("frame_stride") == ".env"
    assert not [note for note in settings.notes() if note.kind != "cost"]
