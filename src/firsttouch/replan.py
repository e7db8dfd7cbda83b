"""The plan, made again when the rates turn out different from those it was made with, or when time is left."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from .clock import Stopwatch
from .opening import Clip
from .options import Options
from .plan import Plan, Rates, make_plan
from .ranges import MEGABYTE
from .source import Source
from .work import Work

SLOW_LINK = 2.5e6
"""Bytes a second: a link seen to be slower is believed at once, before its bytes go to a plan it cannot carry."""

LINK_SECONDS = 0.3
"""The link is judged after this much fetching: requests and windows begin slowly."""

DOUBT_SECONDS = 0.2
"""So many CPU seconds of the earlier rates count beside what is measured: the first frames of a call take a third
longer than the others, and a plan that has left looks out for that cannot take them in again."""

TOP_UP_SECONDS = 0.2
"""How often it is asked whether time is left for more than a part of the clip, once that part has been fetched."""

STAGES = "decode", "detect", "carry"
"""What the worker threads do."""

REPLAN_RATIO = 1.25
"""A rate this far from the one planned with makes a new plan."""


class Planner:
    """The plan of one call, and the rates as this call sees them."""

    def __init__(self, options: Options, rates: Rates, source: Source, work: Work, watch: Stopwatch) -> None:
        self.plan: Plan | None = None
        self.rates = rates
        self._options, self._source, self._work, self._watch = options, source, work, watch
        self._first_rates = self._planned_rates = rates
        self._first_planned = 0.0
        """When the first plan was made, seconds after the start."""
        self._topped_up = -math.inf
        """When it was last asked whether time is left, seconds after the start."""

    def make(self, clip: Clip, budget_seconds: float, *, only_better: bool = False) -> Plan | None:
        """What fits the budget under the rates, given what is here and done; `use` it once the work goes by it.

        `only_better`: what is planned is nearly done; None where more would not come well in time.
        """
        assert clip.index is not None
        options = self._options
        spare = self.rates.round_trip_seconds if only_better else 0.0
        plan = make_plan(
            clip.index,
            self.rates,
            budget_seconds - spare,
            stride=options.stride,
            every_frame=options.every_frame,
            until_byte=int(options.fetch_mb * MEGABYTE) if clip.fetch == "head" else None,
            have=clip.sparse.have(),
            done=self._work.progress,
        )
        if only_better and self.plan is not None and plan.expected_quality <= self.plan.expected_quality:
            return None
        return plan

    def use(self, plan: Plan) -> None:
        self._first_planned = self._first_planned or self._watch.elapsed
        self._planned_rates, self.plan = self.rates, plan

    def see(self, clip: Clip, *, fetched: bool) -> Literal["other rates", "time left"] | None:
        """Look at the rates: why another plan should be made, if it should. `fetched`: all of this one is here."""
        self.rates = self.measured()
        if self._options.every_frame or self._options.stride is not None or self.plan is None:
            return None
        assert clip.index is not None
        part = self.plan.size_bytes < int(clip.index.size.sum())
        if fetched and part and self._watch.elapsed - self._topped_up > TOP_UP_SECONDS:
            self._topped_up = self._watch.elapsed
            return "time left"
        if _differ(self.rates, self._planned_rates, self.plan):
            return "other rates"
        return None

    def measured(self) -> Rates:
        """The rates as this run sees them: near the earlier ones until it has seen enough to tell."""
        work, seconds, rates = self._work, self._watch.cpu_seconds, self._first_rates
        # Computing time, not wall time: what a thread waits for the other one is no property of the frame. Against what
        # the first rates foretold for just these frames: key frames cost more, and come first.
        looked, followed = len(work.detections), len(work.motions)
        decoding = rates.decode_seconds(*work.samples_given)
        following = rates.follow_seconds(followed, work.frames_followed)
        rates = rates.decoding_times(_times(seconds.get("decode", 0.0), decoding))
        rates = rates.following_times(_times(seconds.get("carry", 0.0), following))
        looking = _times(seconds.get("detect", 0.0), looked * rates.detect_seconds)
        computed, passed = (sum(of.get(stage, 0.0) for stage in STAGES) for of in (seconds, self._watch.seconds))
        share = rates.core_share * _times(computed, passed * rates.core_share)
        rates = replace(rates, detect_seconds=rates.detect_seconds * looking, core_share=min(1.0, share))
        link = self._source.bytes_per_second
        settled = self._first_planned > 0.0 and self._watch.elapsed - self._first_planned > LINK_SECONDS
        if link is not None and (settled or link < SLOW_LINK):
            rates = replace(rates, bytes_per_second=link)
        if self._source.round_trip_seconds is not None:
            rates = replace(rates, round_trip_seconds=self._source.round_trip_seconds)
        return rates


def _times(spent: float, foretold: float) -> float:
    """How many times what was foretold something takes, which was foretold and measured so far in CPU seconds."""
    return (spent + DOUBT_SECONDS) / (foretold + DOUBT_SECONDS)


def _differ(measured: Rates, planned: Rates, plan: Plan) -> bool:
    """Whether a rate that binds is far from the one planned with: a plan made again late costs what it drops."""
    pairs = [(measured.bytes_per_second, planned.bytes_per_second)]
    work_seconds = sum(step.cost_seconds for step in plan.steps) / planned.cores
    if 2 * work_seconds > plan.size_bytes / measured.bytes_per_second:
        pairs += [
            (measured.decode_reference_seconds, planned.decode_reference_seconds),
            (measured.detect_seconds, planned.detect_seconds),
            (measured.flow_seconds, planned.flow_seconds),
            (measured.core_share, planned.core_share),
        ]
    return any(max(a, b) > REPLAN_RATIO * min(a, b) for a, b in pairs)
