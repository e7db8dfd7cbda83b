"""The search behind `firsttouch tune`: settings, what they would take and score on a clip, and the Pareto front.

Plain functions over an index and measured rates; the plan is the pipeline's own, so the search sees what a run
would do. `commands.tune` measures the rates, runs the best candidates for real and says how far this was off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from firsttouch.index import Index
from firsttouch.plan import Plan, Rates, make_plan
from firsttouch.predict import ANSWER_SECONDS, BUDGETS, FASTEST_SECONDS, Choice, Prediction, best_of, judged
from firsttouch.ranges import ByteRange
from firsttouch.settings import Settings

STRIDES = (3, 5, 8, 12, 18, 25)
PREFIX_MB = (1.0, 2.0, 4.0, 8.0)

Values = Mapping[str, Any]
"""Settings by field name, in the form that `Settings` takes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured: the plan's rates, the time to the first answer on a warm connection, and how many times
    longer than its plan a run takes (stages that wait for each other, other programs on the machine)."""

    rates: Rates
    connect_seconds: float = 0.0
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of settings and what it should do; `measured` once it was run."""

    values: Values
    predicted: Prediction
    measured: Prediction | None = None
    spread_seconds: float = 0.0

    @property
    def best_known(self) -> Prediction:
        return self.measured or self.predicted

    @property
    def name(self) -> str:
        return " ".join(f"{name.upper()}={value}" for name, value in self.values.items())


def candidate_values(deadline: float | None) -> Iterator[Values]:
    """Every set of settings worth a look, none later than `deadline`."""
    budgets = [b for b in BUDGETS if deadline is None or b < deadline] + ([deadline] if deadline else [])
    longest: float | str = deadline if deadline is not None else "none"
    for budget in budgets:
        yield {"fetch": "sparse", "frame_stride": "auto", "time_budget_s": budget}
    for stride in STRIDES:
        yield {"fetch": "sparse", "frame_stride": stride, "time_budget_s": longest}
        yield {"fetch": "full", "frame_stride": stride, "time_budget_s": longest}
    for megabytes in PREFIX_MB:
        for stride in (5, 12):
            prefix = {"partial_download": 1, "partial_download_mb": megabytes}
            yield {**prefix, "frame_stride": stride, "time_budget_s": longest}


def search(
    index: Index, machine: Machine, deadline: float | None = None, fastest: float = FASTEST_SECONDS
) -> list[Candidate]:
    """Every candidate with its prediction for this clip."""
    return [
        Candidate(values, outlook(index, machine, settings_of(values).choice, fastest))
        for values in candidate_values(deadline)
    ]


def settings_of(values: Values) -> Settings:
    """Pure settings: the defaults and these."""
    given: dict[str, Any] = {name: None if value == "none" else value for name, value in values.items()}
    return Settings(**given)


def best_budget(index: Index, machine: Machine, choice: Choice) -> float:
    """TIME_BUDGET_S=auto: when to stop, because another second costs more score than it brings."""
    return best_of({b: outlook(index, machine, replace(choice, budget_seconds=b)).final for b in BUDGETS})


def outlook(index: Index, machine: Machine, choice: Choice, fastest: float = FASTEST_SECONDS) -> Prediction:
    """Time and score of `choice` on the clip of `index`, from the plan the pipeline would make."""
    mode, budget = choice.fetch, choice.budget_seconds
    before = machine.connect_seconds + ANSWER_SECONDS
    download = 0.0
    have: tuple[ByteRange, ...] = ()
    if mode == "full":  # all of it is there before the decoder begins
        download = index.size_bytes / machine.rates.bytes_per_second
        have = (ByteRange(0, index.size_bytes),)
    limit = math.inf if budget is None else budget
    for_plan = max(0.0, limit - before - download) / machine.slowdown
    until = round(choice.megabytes * 1e6) if mode == "head" else None
    plan = make_plan(index, machine.rates, for_plan, stride=choice.stride, until_byte=until, have=have)
    done = min(1.0, for_plan / plan.expected_seconds) if plan.expected_seconds > 0 else 1.0
    seconds = min(before + download + plan.expected_seconds * machine.slowdown, limit)
    coverage = _coverage(plan, index) * done
    # The plan's quality is F1 over the whole clip, 2 found / (answered + all); here it is that of what is answered.
    f1 = min(1.0, plan.expected_quality * done * (1.0 + coverage) / (2.0 * coverage)) if coverage > 0 else 0.0
    return judged(coverage, f1, seconds, pitch=choice.pitch, fastest=fastest)


def _coverage(plan: Plan, index: Index) -> float:
    """Share of the clip from the first to the last look: what lies between is carried."""
    if not plan.look_at:
        return 0.0
    return (plan.look_at[-1] - plan.look_at[0] + 1) / max(1, index.frame_count)


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both time and score, fastest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.best_known.seconds, -c.best_known.final)):
        if not front or candidate.best_known.final > front[-1].best_known.final + 1e-9:
            front.append(candidate)
    return front


def over_clips(per_clip: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The same candidates on several clips as one list of means."""
    joined = []
    for same in zip(*per_clip, strict=True):
        measured = [c.measured for c in same if c.measured is not None]
        joined.append(
            replace(
                same[0],
                predicted=mean([c.predicted for c in same]),
                measured=mean(measured) if len(measured) == len(same) else None,
                spread_seconds=max(c.spread_seconds for c in same),
            )
        )
    return joined


def mean(predictions: Sequence[Prediction]) -> Prediction:
    """Field by field."""
    names = Prediction.__slots__
    return Prediction(*(sum(getattr(p, name) for p in predictions) / len(predictions) for name in names))


@dataclass(frozen=True, slots=True)
class Sureness:
    """How far the predictions were from the runs: mean absolute errors, and how far apart runs were."""

    runs: int
    seconds_error: float
    score_error: float
    spread_seconds: float

    def __str__(self) -> str:
        if self.runs == 0:
            return "nothing was run: these are predictions only"
        return (
            f"{self.runs} settings were run; predictions were off by {self.seconds_error:.2f} s and "
            f"{self.score_error:.2f} points on average, runs of the same settings differed by up to "
            f"{self.spread_seconds:.2f} s"
        )


def sureness(candidates: Iterable[Candidate]) -> Sureness:
    run = [(c, c.measured) for c in candidates if c.measured is not None]
    count = max(1, len(run))
    return Sureness(
        len(run),
        sum(abs(c.predicted.seconds - m.seconds) for c, m in run) / count,
        sum(abs(c.predicted.final - m.final) for c, m in run) / count,
        max((c.spread_seconds for c, _ in run), default=0.0),
    )


def recommend(candidates: Sequence[Candidate]) -> Candidate:
    """The highest score among those that were run, or of all when none was; the faster of equals."""
    run = [c for c in candidates if c.measured is not None] or list(candidates)
    return max(run, key=lambda c: (round(c.best_known.final, 3), -c.best_known.seconds))
