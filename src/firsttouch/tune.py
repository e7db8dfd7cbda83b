"""The search behind `firsttouch tune`: settings, what they would take and score on a clip, and the Pareto front.

Plain functions over an index and measured rates; the plan is the pipeline's own, so the search sees what a run
would do. `explore` decides what is run for real and when it is enough; `commands.tune` measures, runs and prints.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from firsttouch.index import Index
from firsttouch.plan import Plan, Rates, make_plan
from firsttouch.predict import ANSWER_SECONDS, BUDGETS, FASTEST_SECONDS, Choice, Prediction, best_of, judged
from firsttouch.ranges import ByteRange
from firsttouch.settings import Settings

STRIDES = (3, 5, 8, 12, 18, 25)
PREFIX_MB = (1.0, 2.0, 4.0, 8.0)

BELIEVED_RUNS, LEADER_RUNS = 2, 4
"""A new leader is run once more before it is believed; who leads in the end so often that its spread is known."""

LONGEST_SHARE = 0.25
"""Of the time left, for one run."""

LEAST_UNCERTAINTY = 0.05
"""How far predicted scores are taken to be off at least, few runs being fitted too well: as in `bench profiles`."""

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
    """One set of settings, what it should do, and what it did whenever it was run."""

    values: Values
    predicted: Prediction
    runs: tuple[Prediction, ...] = ()

    @property
    def measured(self) -> Prediction | None:
        """The run with the median score; of two the lower."""
        return sorted(self.runs, key=lambda run: run.final)[(len(self.runs) - 1) // 2] if self.runs else None

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
    clips: Sequence[tuple[Index, Machine]], deadline: float | None = None, fastest: float = FASTEST_SECONDS
) -> list[Candidate]:
    """Every candidate with its prediction, the mean over the clips."""
    return [
        Candidate(values, mean([outlook(*clip, settings_of(values).choice, fastest) for clip in clips]))
        for values in candidate_values(deadline)
    ]


async def explore(
    candidates: list[Candidate],
    run: Callable[[Candidate], Awaitable[Prediction]],
    seconds_left: Callable[[], float],
) -> bool:
    """Run candidates in the list, the most promising first, at least one; True when no other could win any more.

    Where it is stopped, by its time or by a cancellation, the list holds what is known so far.
    """
    while (at := next_run(candidates, seconds_left())) is not None:
        if seconds_left() <= 0 and any(candidate.runs for candidate in candidates):
            return False
        outcome = await run(candidates[at])
        candidates[at] = replace(candidates[at], runs=(*candidates[at].runs, outcome))
    return True


def next_run(candidates: Sequence[Candidate], seconds_left: float) -> int | None:
    """Which candidate to run next: a new leader once more, then whoever could still beat it, then the leader again.

    Could still beat it: by its prediction, corrected by how far those of the others were off, and as uncertain as that
    left them. What takes longer than the leader and than a quarter of the time left is not run: several others could
    be. None: nobody could, and the leader's spread is known.
    """
    longest = seconds_left * LONGEST_SHARE
    if not any(candidate.runs for candidate in candidates):
        return max(_short(candidates, longest), key=lambda at: candidates[at].predicted.final)
    best = recommend(candidates)
    leader = next(at for at, candidate in enumerate(candidates) if candidate is best)
    if len(best.runs) < BELIEVED_RUNS:
        return leader
    correction = Correction.of(candidates)
    short = _short(candidates, max(longest, best.best_known.seconds))
    hopes = {at: correction.of_score(candidates[at].predicted.final) for at in short if not candidates[at].runs}
    hope = max(hopes, key=lambda at: hopes[at], default=None)
    if hope is not None and hopes[hope] + correction.uncertainty > best.best_known.final:
        return hope
    return leader if len(best.runs) < LEADER_RUNS else None


def _short(candidates: Sequence[Candidate], seconds: float) -> list[int]:
    """Those that should not take longer than this, or else the shortest."""
    least = min(candidate.predicted.seconds for candidate in candidates)
    return [at for at, c in enumerate(candidates) if c.predicted.seconds <= max(seconds, least)]


@dataclass(frozen=True, slots=True)
class Correction:
    """What the runs so far say about the predicted scores: the factor they are off by, and how far from them, after
    that, single runs still were (on a busy machine runs of the same settings differ, too)."""

    factor: float = 1.0
    uncertainty: float = LEAST_UNCERTAINTY

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Correction:
        pairs = [(c.predicted.final, run.final) for c in candidates for run in c.runs]
        predicted_sum = sum(predicted for predicted, _ in pairs)
        if predicted_sum <= 0:
            return cls()
        factor = sum(measured for _, measured in pairs) / predicted_sum
        left = math.sqrt(sum((measured - factor * predicted) ** 2 for predicted, measured in pairs) / len(pairs))
        return cls(factor, max(left, LEAST_UNCERTAINTY))

    def of_score(self, predicted: float) -> float:
        return min(1.0, self.factor * predicted)


def corrected(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same, with what the runs say about the predictions of those that were not run."""
    correction = Correction.of(candidates)
    return [
        c if c.runs else replace(c, predicted=replace(c.predicted, final=correction.of_score(c.predicted.final)))
        for c in candidates
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


def mean(predictions: Sequence[Prediction]) -> Prediction:
    """Field by field."""
    names = Prediction.__slots__
    return Prediction(*(sum(getattr(p, name) for p in predictions) / len(predictions) for name in names))


@dataclass(frozen=True, slots=True)
class Sureness:
    """How far to believe the recommendation.

    Mean absolute errors of the predictions; the recommended settings' scores; their lead over the next best settings
    that were run.
    """

    settings: int
    runs: int
    seconds_error: float
    score_error: float
    scores: tuple[float, ...]
    lead: float | None

    def __str__(self) -> str:
        if self.runs == 0:
            return "nothing was run: these are predictions only"
        low, high, times = min(self.scores), max(self.scores), len(self.scores)
        return (
            f"{self.runs} runs of {self.settings} settings; predictions were off by {self.seconds_error:.2f} s and "
            f"{self.score_error:.2f} points on average; the recommended settings scored "
            + (
                f"{low:.3f} to {high:.3f} in {times} runs"
                if times > 1
                else f"{low:.3f} in the only run there was time for"
            )
            + self._lead_text(high - low)
        )

    def _lead_text(self, spread: float) -> str:
        if self.lead is None:
            return ", and nothing else was run"
        sure = "more than" if self.lead > spread and len(self.scores) > 1 else "no more than"
        return f", {self.lead:.3f} above the next best, which is {sure} runs differ"


def sureness(candidates: Sequence[Candidate]) -> Sureness:
    run = [(c, c.measured) for c in candidates if c.measured is not None]
    count = max(1, len(run))
    ranked = sorted((m.final for _, m in run), reverse=True)
    return Sureness(
        len(run),
        sum(len(c.runs) for c, _ in run),
        sum(abs(c.predicted.seconds - m.seconds) for c, m in run) / count,
        sum(abs(c.predicted.final - m.final) for c, m in run) / count,
        tuple(one.final for one in recommend(candidates).runs),
        ranked[0] - ranked[1] if len(ranked) > 1 else None,
    )


def recommend(candidates: Sequence[Candidate]) -> Candidate:
    """The highest score among those that were run, or of all when none was; the faster of equals."""
    run = [c for c in candidates if c.runs] or list(candidates)
    return max(run, key=lambda c: (round(c.best_known.final, 3), -c.best_known.seconds))
