"""Identities over the whole clip: which detections of the looked-at frames are one body, what class it is,
where the one ball is.

Matching follows ByteTrack's idea: sure detections first, then weak ones for the tracks still without one. A
maintained ByteTrack
library cannot be used: it predicts with its own frame-to-frame Kalman filter, while our looked-at frames lie
some 16 frames apart
and the prediction comes from optical flow (`Motion`). Where no motion is at hand (every frame looked at, or a
hole in the fetch)
the prediction is the track's own velocity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from firsttouch.detect import Detections
from firsttouch.detect.roles import unlikeness
from firsttouch.homography import Float, moved_points
from firsttouch.motion import Motion, box_distance, camera_across, moved_boxes

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int32]

SURE = 0.3
"""Detections at least this confident continue tracks; others are not taken."""
BEGIN_MORE = 0.1
"""How much more confident a detection must be to begin a track (ByteTrack's own margin): what blinks around the
threshold would otherwise come and go. Measured with `bench carry`: F1 0.96 with it, 0.94 without, classes aside."""
FORGET_FRAMES = 40
"""A track not seen for longer is over (1.6 s at 25 frames a second)."""
CLASS_CHANGE = 6.0
"""What a change of class along a track costs, in log evidence: some three clear glances, or many doubtful ones."""
VOTE_FLOOR = 0.03
"""Added to the scores of a glance, so that no single one rules a class out. In the labelled frames of the four clips
0.01 makes players of three referees (0.03: of one), 0.1 referees of four players (0.03: of none)."""
COMPANY_WIDTH = 16.0
"""Clothes this far apart (`detect.roles.unlikeness`) are alike by e^-1/2: a shirt's own spread over a clip."""
COMPANY = 0.25, 0.1
"""The share of the other players' glances that a player's clothes are like: 0.27 and more in clips `a` to `d`, but for
two before boards of another colour; of keepers and referees 0.17 and less. From the first number down by the second
it speaks ever more against a player."""
STRANGER = 2.0
"""What no company says against a player, in log evidence a glance (`python -m bench classes`): with it referees of the
labelled frames of the four clips are right in 84 of 85 cases, without in 78, and no player is lost; at 2.5 one of the
two before the boards is."""
STRANGER_GLANCES, COMPANY_GLANCES = 4, 50.0
"""A track's own glances, and the others' as players, from which on clothes are compared."""
CLASS_COST = 0.3
"""What unlike classes add to the cost of a match, in body heights."""
ASPECT_FRAMES = 25.0
"""Boxes of a body this far away still say how wide it usually is."""
BRIDGE_FRAMES = 12
"""A loss over several glances is filled up to this length, over a single glance always: detectors blink,
bodies do not."""
COAST_FRAMES = 30
"""A velocity is believed for this long."""
HOLE_FRAMES = 60
"""A hole between two looked-at frames does not make a track forgotten up to this length."""
WEAK_REACH = 0.3
"""Body heights from its prediction within which a weak detection continues a track."""
LOOSE = 0.1
"""Body heights a frame by which an unseen body may stray from its prediction: 4.5 m/s at 25 frames a second."""
IMPOSSIBLE = 1e3
BALL_ID = 0
"""There is one ball, so it has one identity."""
BODY_METRES = 1.8
BALL_METRES_PER_FRAME = 1.2
"""30 m/s at 25 frames a second: a hard shot."""
BALL_MEMORY_FRAMES = 50
BALL_MEMORY_LOOKS = 12
"""How far back, in frames and in looked-at frames, the ball may last have been seen."""
BALL_FLOOR = 0.25
"""Ball confidence that counts neither for nor against a place on the path."""
FRESH_FRAMES = 8
"""Glances closer together than this see the same mistakes again, and count for less."""
BALL_RESTART = 4.0
"""What it costs the path to take up the ball anew, in units of log confidence."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """Who is where in the looked-at frames: columns of equal length, one row per body and looked-at frame, by
    look, then id.

    frame_numbers: (S,) int32, the looked-at frames. look: (R,) int32 index into them. id: (R,) int32.
    row: (R,) int32 row of the detection, -1 where the track was carried through a frame in which it was not detected.
    class_id: (R,) uint8, voted. confidence: (R,) float32. xyxy: (R, 4) float32 source pixels.
    aspect: (R,) float32, the width over height that is usual of this body around this time.
    """

    frame_numbers: Int
    look: Int
    id: Int
    row: Int
    class_id: npt.NDArray[np.uint8]
    confidence: Float
    xyxy: Float
    aspect: Float

    def at(self, look: int) -> slice:
        """The rows of one looked-at frame."""
        start, stop = np.searchsorted(self.look, (look, look + 1))
        return slice(int(start), int(stop))


def link(
    detections: Sequence[Detections], motions: Sequence[Motion], *, tracking: bool = True, sure: float = SURE
) -> Tracks:
    """Identities of all detections; `detections` by rising frame number, `motions` between neighbours of them
    (any may be absent).

    tracking=False skips association over the clip and the votes: a body keeps its id only while flow itself
    hands it on.
    """
    between = motions_between(detections, motions)
    numbers = np.array([d.frame_number for d in detections], np.int32)
    ids = _associate(detections, between, sure) if tracking else _handed_on(detections, between, sure)
    rows = _rows(detections, ids)
    if tracking:
        rows = _voted(rows, detections)
        rows = _bridged(rows, numbers, between)
        rows = rows + _ball_path(detections, between, numbers)
    return _columns(numbers, rows)


def motions_between(detections: Sequence[Detections], motions: Sequence[Motion]) -> list[Motion | None]:
    """(S - 1) motions, entry i from detections[i] to detections[i + 1]; None where there is none."""
    known = {(m.first, m.last): m for m in motions}
    return [known.get((a.frame_number, b.frame_number)) for a, b in itertools.pairwise(detections)]


@dataclass(slots=True)
class _Row:
    look: int
    id: int
    row: int
    class_id: int
    confidence: float
    xyxy: Float


@dataclass(slots=True)
class _Live:
    """The tracks that may still be continued, as columns (T, ...).

    box: where each is predicted now. seen, row, at: when, as which detection and where it was last seen.
    velocity: pixels a frame
    in the picture; own: the same without what the camera did. scores: votes so far, older ones fading.
    """

    id: Int
    box: Float
    seen: Int
    row: Int
    at: Float
    velocity: Float
    own: Float
    scores: Float

    @classmethod
    def none(cls) -> _Live:
        boxes, pairs, whole = np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
        return cls(whole, boxes, whole, whole, boxes, pairs, pairs, boxes)

    def kept(self, which: Bool) -> _Live:
        if which.all():
            return self
        return _Live(*(column[which] for column in self._columns()))

    def joined(self, ids: Int, boxes: Float, seen: int, rows: Int, scores: Float) -> _Live:
        if not len(ids):
            return self
        still = np.zeros((len(ids), 2), np.float32)
        fresh = (ids, boxes, np.full(len(ids), seen, np.int32), rows, boxes, still, still, scores)
        return _Live(*(np.concatenate(pair) for pair in zip(self._columns(), fresh, strict=True)))

    def _columns(self) -> tuple[Any, ...]:
        return self.id, self.box, self.seen, self.row, self.at, self.velocity, self.own, self.scores


def _associate(detections: Sequence[Detections], between: Sequence[Motion | None], sure: float) -> list[Int]:
    """Ids (N,) of the people in each frame's detections; -1: not taken (ball, or weak and alone)."""
    begin = min(sure + BEGIN_MORE, (1.0 + sure) / 2)
    live, following, answer = _Live.none(), 1, []
    for look, detection in enumerate(detections):
        ids = np.full(len(detection), -1, np.int32)
        people = np.flatnonzero((detection.class_id != 0) & (detection.confidence >= sure))
        boxes, scores = detection.xyxy[people], detection.class_scores[people]
        confidence = detection.confidence[people]
        number = detection.frame_number
        if look:
            motion, before = between[look - 1], detections[look - 1].frame_number
            camera = camera_across(motion)
            live, tolerance = _predicted(live, motion, camera, before, number)
            paired = _flow_pairs(live, motion, before, people)
            taken = _match(live, tolerance, boxes, scores, confidence >= begin, paired)
            _continue(live, taken, boxes, scores, people, number, motion, camera)
            ids[people[taken >= 0]] = live.id[taken[taken >= 0]]
        new = np.flatnonzero((ids[people] < 0) & (confidence >= begin))
        fresh = np.arange(following, following + len(new), dtype=np.int32)
        following += len(new)
        live = live.joined(fresh, boxes[new], number, people[new].astype(np.int32), scores[new])
        ids[people[new]] = fresh
        answer.append(ids)
    return answer


def _predicted(live: _Live, motion: Motion | None, camera: Float | None, before: int, now: int) -> tuple[_Live, Float]:
    """The tracks as they should be at `now`, and how far each may be off, in body heights."""
    if motion is not None and motion.cut_after is not None:
        return _Live.none(), np.zeros(0, np.float32)
    live = live.kept((before - live.seen <= FORGET_FRAMES) & (now - live.seen <= FORGET_FRAMES + HOLE_FRAMES))
    silent = np.minimum(now - live.seen, 25).astype(np.float32)
    elapsed = min(now - before, COAST_FRAMES)
    if camera is None:
        step, tolerance = live.velocity * elapsed, 0.5 + LOOSE * silent
        live.box = live.box + np.concatenate([step, step], 1)
    else:
        step, tolerance = live.own * elapsed, 0.5 + LOOSE * silent
        live.box = moved_boxes(camera, live.box) + np.concatenate([step, step], 1)
    if motion is not None:
        fresh = np.flatnonzero(live.seen == before)
        carried = motion.forward[-1][live.row[fresh]]
        held = np.isfinite(carried).all(1)
        live.box[fresh[held]] = carried[held]
        tolerance[fresh[held]] = 0.6
    return live, tolerance.astype(np.float32)


def _flow_pairs(live: _Live, motion: Motion | None, before: int, people: npt.NDArray[np.intp]) -> Bool:
    """(T, N) which live tracks and detections flow itself has joined."""
    joined = np.zeros((len(live.id), len(people)), np.bool_)
    if motion is None or not len(motion.pairs) or not joined.size:
        return joined
    track, column = np.nonzero(live.row[:, None] == motion.pairs[None, :, 0])
    fresh = live.seen[track] == before
    track, target = track[fresh], motion.pairs[column[fresh], 1]
    place = np.minimum(np.searchsorted(people, target), len(people) - 1)
    here = people[place] == target
    joined[track[here], place[here]] = True
    return joined


def _match(live: _Live, tolerance: Float, boxes: Float, scores: Float, sure: Bool, paired: Bool) -> Int:
    """For every detection the index of the live track it continues, or -1: sure detections first, then weak ones."""
    taken = np.full(len(boxes), -1, np.int32)
    if not len(boxes) or not len(live.id):
        return taken
    distance = box_distance(live.box, boxes)
    cost = distance
    tall = np.maximum(live.box[:, 3] - live.box[:, 1], 1)[:, None]
    cost = cost + 0.3 * np.abs(np.log(np.maximum(boxes[:, 3] - boxes[:, 1], 1)[None] / tall))
    cost = np.where(paired, np.minimum(cost, 0.2), cost)
    possible = cost <= tolerance[:, None]
    cost = cost + CLASS_COST * (1 - _directions(live.scores) @ _directions(scores).T) + 0.01 * tolerance[:, None]
    cost = np.where(possible, cost, IMPOSSIBLE)
    for wanted, reach in ((sure, np.inf), (~sure, WEAK_REACH)):
        columns = np.flatnonzero(wanted)
        if not len(columns):
            continue
        still = np.ones(len(live.id), np.bool_)
        still[taken[taken >= 0]] = False
        free = np.flatnonzero(still)
        part = np.where(distance[np.ix_(free, columns)] <= reach, cost[np.ix_(free, columns)], IMPOSSIBLE)
        rows, chosen = linear_sum_assignment(part)
        good = part[rows, chosen] < IMPOSSIBLE
        taken[columns[chosen[good]]] = free[rows[good]]
    return taken


def _directions(scores: Float) -> Float:
    return np.asarray(scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-6))


def _continue(
    live: _Live,
    taken: Int,
    boxes: Float,
    scores: Float,
    people: npt.NDArray[np.intp],
    number: int,
    motion: Motion | None,
    camera: Float | None,
) -> None:
    """Put the matched detections into their tracks and learn their velocities."""
    which = np.flatnonzero(taken >= 0)
    tracks, mine = taken[which], boxes[which]
    silent, centres = np.maximum(number - live.seen[tracks], 1)[:, None], _centres(mine)
    if motion is None:
        live.velocity[tracks] += 0.4 * (centres - _centres(live.box[tracks])) / silent
    else:
        start = _centres(live.at[tracks])
        live.velocity[tracks] = (centres - start) / silent
        if camera is not None:
            live.own[tracks] = (centres - moved_points(camera, start)) / silent
    live.box[tracks] = live.at[tracks] = mine
    live.seen[tracks] = number
    live.row[tracks] = people[which]
    live.scores[tracks] = 0.9 * live.scores[tracks] + scores[which]


def _handed_on(detections: Sequence[Detections], between: Sequence[Motion | None], sure: float) -> list[Int]:
    """Ids that flow itself hands from frame to frame; everything else is new."""
    answer: list[Int] = []
    following = 1
    for look, detection in enumerate(detections):
        ids = np.full(len(detection), -1, np.int32)
        motion = between[look - 1] if look else None
        if motion is not None and len(motion.pairs):
            ids[motion.pairs[:, 1]] = answer[-1][motion.pairs[:, 0]]
        new = np.flatnonzero((ids < 0) & (detection.confidence >= sure))
        ids[new] = np.arange(following, following + len(new))
        following += len(new)
        ball = np.flatnonzero(detection.class_id == 0)
        ids[ball] = -1
        if len(ball) and detection.confidence[ball].max() >= sure:
            ids[ball[detection.confidence[ball].argmax()]] = BALL_ID
        answer.append(ids)
    return answer


def _rows(detections: Sequence[Detections], ids: Sequence[Int]) -> list[_Row]:
    rows: list[_Row] = []
    for look, (detection, mine) in enumerate(zip(detections, ids, strict=True)):
        classes, confidence = detection.class_id, detection.confidence
        which = np.flatnonzero(mine >= 0)
        columns = (mine[which].tolist(), which.tolist(), classes[which].tolist(), confidence[which].tolist())
        boxes = detection.xyxy[which]
        for id_, row, class_id, sure, box in zip(*columns, boxes, strict=True):
            rows.append(_Row(look, id_, row, class_id, sure, box))
    return rows


def _voted(rows: list[_Row], detections: Sequence[Detections]) -> list[_Row]:
    """Goalkeeper, player or referee: all glances of a track decide together, and its clothes among all others'.

    A change of class costs as much as several clear glances (Viterbi over the track): it means that the track has
    passed from one body to another, and then each of the two keeps its own class.
    """
    tracks = list(_by_id(rows).values())
    scores = [np.array([detections[row.look].class_scores[row.row, 1:] for row in mine], np.float64) for mine in tracks]
    evidence = []
    for mine, seen, strange in zip(tracks, scores, _strangeness(tracks, scores, detections), strict=True):
        frames = np.array([detections[row.look].frame_number for row in mine])
        evidence.append(_class_evidence(seen, frames, strange))
    for mine, classes in zip(tracks, _steadiest(evidence), strict=True):
        for row, class_id in zip(mine, classes, strict=True):
            row.class_id = 1 + class_id
    return rows


def _strangeness(
    tracks: Sequence[Sequence[_Row]], scores: Sequence[Float], detections: Sequence[Detections]
) -> npt.NDArray[np.float64]:
    """(T,) 0..1, how little company in its clothes each track has among the players of the whole clip.

    One picture hardly tells a light blue shirt from white ones; thirty do. A single player of his team in sight is as
    strange as a referee: so it counts only as far as the glances themselves are in doubt.
    """
    strange = np.zeros(len(tracks))
    worn = np.full((len(tracks), 2, 3), np.nan)
    for k, mine in enumerate(tracks):
        glances = [(detections[row.look].shirts, row.row) for row in mine]
        known = [shirts[row] for shirts, row in glances if shirts is not None and np.isfinite(shirts[row]).all()]
        if len(known) >= STRANGER_GLANCES:
            worn[k] = np.median(known, axis=0)
    compared = np.flatnonzero(np.isfinite(worn).all((1, 2)))
    if not len(compared):
        return strange
    alike = np.exp(unlikeness(worn[compared])[1] / (-2 * COMPANY_WIDTH**2))
    np.fill_diagonal(alike, 0)
    as_player = np.array([(scores[k][:, 1] / scores[k].sum(1)).sum() for k in compared.tolist()])
    others = as_player.sum() - as_player
    company = alike @ as_player / np.maximum(others, COMPANY_GLANCES)
    few, fall = COMPANY
    strange[compared] = np.where(others >= COMPANY_GLANCES, np.clip((few - company) / fall, 0, 1), 0)
    return strange


def _class_evidence(scores: Float, frames: Int, strange: float) -> Float:
    """(N, 3) log evidence for goalkeeper, player, referee of a track's glances; close glances count for less."""
    fresh = np.minimum(np.diff(frames, prepend=frames[0] - FRESH_FRAMES) / FRESH_FRAMES, 1.0)
    share = scores + VOTE_FLOOR
    evidence = np.log(share / share.sum(1, keepdims=True)) - STRANGER * strange * np.array((0, 1, 0))
    return np.asarray(fresh[:, None] * evidence)


def _steadiest(evidence: Sequence[Float]) -> list[list[int]]:
    """For each track (N, 3) the sequence of classes with the most evidence, each change costing CLASS_CHANGE.

    All tracks side by side: behind its end a track has no evidence, which changes nothing before.
    """
    lengths = [len(mine) for mine in evidence]
    padded = np.zeros((len(evidence), max(lengths, default=0), 3))
    for mine, into in zip(evidence, padded, strict=True):
        into[: len(mine)] = mine
    tracks, best = np.arange(len(evidence)), np.zeros((len(evidence), 3))
    came = np.zeros(padded.shape, np.intp)
    for glance in range(padded.shape[1]):
        top = best.argmax(1)[:, None]
        changed = best[tracks[:, None], top] - CLASS_CHANGE
        came[:, glance] = np.where(best >= changed, np.arange(3), top)
        best = padded[:, glance] + np.maximum(best, changed)
    chosen = np.zeros(padded.shape[:2], np.intp)
    state = best.argmax(1)
    for glance in range(padded.shape[1] - 1, -1, -1):
        chosen[:, glance] = state
        state = came[tracks, glance, state]
    return [mine[:length] for mine, length in zip(chosen.tolist(), lengths, strict=True)]


def _by_id(rows: Sequence[_Row]) -> dict[int, list[_Row]]:
    grouped: dict[int, list[_Row]] = {}
    for row in rows:
        grouped.setdefault(row.id, []).append(row)
    return grouped


def _bridged(rows: list[_Row], numbers: Int, between: Sequence[Motion | None]) -> list[_Row]:
    """Fill short losses: a track missing in a looked-at frame, seen before and after, gets a row there (row -1)."""
    filled = list(rows)
    for mine in _by_id(rows).values():
        for before, after in itertools.pairwise(mine):
            unseen = numbers[after.look] - numbers[before.look]
            if after.look - before.look > 2 and unseen > BRIDGE_FRAMES:
                continue
            for look in range(before.look + 1, after.look):
                share = (numbers[look] - numbers[before.look]) / (numbers[after.look] - numbers[before.look])
                left = _seen_from_before(before, look, between)
                right = _seen_from_after(after, look, between)
                if np.abs(left - right).max() > before.xyxy[3] - before.xyxy[1]:
                    continue
                box = ((1 - share) * left + share * right).astype(np.float32)
                confidence = 0.8 * min(before.confidence, after.confidence)
                filled.append(_Row(look, before.id, -1, before.class_id, confidence, box))
    return filled


def _seen_from_before(row: _Row, look: int, between: Sequence[Motion | None]) -> Float:
    box = row.xyxy
    for step in range(row.look, look):
        motion, camera = between[step], camera_across(between[step])
        carried = motion.forward[-1][row.row] if motion is not None and step == row.look and row.row >= 0 else None
        if carried is not None and np.isfinite(carried).all():
            box = carried
        elif camera is not None:
            box = moved_boxes(camera, box[None])[0]
    return box


def _seen_from_after(row: _Row, look: int, between: Sequence[Motion | None]) -> Float:
    box = row.xyxy
    for step in range(row.look - 1, look - 1, -1):
        motion, camera = between[step], camera_across(between[step])
        carried = motion.backward[0][row.row] if motion is not None and step == row.look - 1 and row.row >= 0 else None
        if carried is not None and np.isfinite(carried).all():
            box = carried
        elif camera is not None:
            box = moved_boxes(np.linalg.inv(camera), box[None])[0]
    return box


def _ball_path(detections: Sequence[Detections], between: Sequence[Motion | None], numbers: Int) -> list[_Row]:
    """The best path over all ball candidates (Viterbi): confident places, reachable at a ball's speed, losses
    allowed. Short losses are filled, long ones stay losses."""
    balls = [np.flatnonzero(d.class_id == 0) for d in detections]
    reach = BALL_METRES_PER_FRAME * _pixels_per_metre(detections)
    memory = _Memory.none()
    came_from: list[list[_Place | None]] = []
    peak, peak_at = 0.0, None
    for look, mine in enumerate(balls):
        if look:
            memory = memory.moved(between[look - 1], look, int(numbers[look]))
        score = np.full(len(mine), max(peak - BALL_RESTART, 0.0))
        origin: list[_Place | None] = [peak_at and _Place(*peak_at, anew=True)] * len(mine)
        where = _centres(detections[look].xyxy[mine])
        if len(mine) and len(memory.look):
            value = memory.worth(where, int(numbers[look]), reach)
            winner = value.argmax(0)
            for k in np.flatnonzero(value[winner, np.arange(len(mine))] > score).tolist():
                score[k] = value[winner[k], k]
                origin[k] = _Place(int(memory.look[winner[k]]), int(memory.candidate[winner[k]]))
        confidence = detections[look].class_scores[mine, 0].astype(np.float64)
        fresh = min(int(numbers[look] - numbers[look - 1]) / FRESH_FRAMES, 1.0) if look else 1.0
        best = score + fresh * np.log(np.maximum(confidence, 1e-3) / BALL_FLOOR)
        came_from.append(origin)
        memory = memory.joined(look, int(numbers[look]), where, best)
        if len(mine) and best.max() > peak:
            peak, peak_at = float(best.max()), (look, int(best.argmax()))
    pieces = _traced(peak_at and _Place(*peak_at), came_from)
    return [row for piece in pieces for row in _ball_piece(piece, detections, balls, numbers, between)]


@dataclass(frozen=True, slots=True)
class _Memory:
    """Ball candidates of earlier looked-at frames, as columns (M, ...), the newest look first.

    look, candidate, number: where each was seen, and in which frame. seen: (M, 2) its centre there. now: the same
    where the camera has brought it, as far as that is `followed`. best: the value of the best path to it.
    """

    look: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    seen: Float
    now: Float
    followed: Bool
    best: Float

    @classmethod
    def none(cls) -> _Memory:
        whole, points = np.zeros(0, np.int64), np.zeros((0, 2))
        return cls(whole, whole, whole, points, points, np.zeros(0, np.bool_), np.zeros(0))

    def moved(self, motion: Motion | None, look: int, number: int) -> _Memory:
        """What is still remembered at the next looked-at frame, and where."""
        if motion is not None and motion.cut_after is not None:
            return _Memory.none()
        kept = (number - self.number <= BALL_MEMORY_FRAMES) & (look - self.look <= BALL_MEMORY_LOOKS)
        seen, camera = self.seen[kept], camera_across(motion)
        followed = self.followed[kept] & (camera is not None)
        now = seen if camera is None else np.where(followed[:, None], moved_points(camera, self.now[kept]), seen)
        return _Memory(self.look[kept], self.candidate[kept], self.number[kept], seen, now, followed, self.best[kept])

    def worth(self, where: Float, number: int, reach: float) -> Float:
        """(M, N) value of the best path over each to each of the candidates now, (N, 2)."""
        elapsed = (number - self.number)[:, None]
        gap = np.sqrt(((self.now[:, None] - where) ** 2).sum(-1))
        allowed = reach * (elapsed * np.where(self.followed, 1.0, 2.0)[:, None] + 0.25)
        value = self.best[:, None] - 2.0 * (gap / allowed) ** 2 - 0.02 * elapsed
        return np.where(gap <= allowed, value, -np.inf)

    def joined(self, look: int, number: int, where: Float, best: Float) -> _Memory:
        count = len(where)
        if not count:
            return self
        fresh = (
            np.full(count, look), np.arange(count), np.full(count, number), where, where, np.ones(count, np.bool_), best
        )  # fmt: skip
        columns = (self.look, self.candidate, self.number, self.seen, self.now, self.followed, self.best)
        return _Memory(*(np.concatenate(pair) for pair in zip(fresh, columns, strict=True)))


class _Place(NamedTuple):
    """Candidate k of a looked-at frame; anew: the path was taken up again there, not followed."""

    look: int
    k: int
    anew: bool = False


def _pixels_per_metre(detections: Sequence[Detections]) -> float:
    heights = [d.xyxy[d.class_id != 0][:, 3] - d.xyxy[d.class_id != 0][:, 1] for d in detections]
    tall = np.concatenate(heights) if heights else np.zeros(0)
    return (float(np.median(tall)) if len(tall) else 45.0) / BODY_METRES


def _traced(end: _Place | None, came_from: Sequence[Sequence[_Place | None]]) -> list[list[_Place]]:
    """The path back from its end, cut where it was taken up anew; in rising time."""
    pieces: list[list[_Place]] = [[]]
    while end is not None:
        pieces[-1].append(end)
        end = came_from[end.look][end.k]
        if end is not None and end.anew:
            pieces.append([])
    return [piece[::-1] for piece in reversed(pieces)]


def _ball_piece(
    piece: Sequence[_Place],
    detections: Sequence[Detections],
    balls: Sequence[npt.NDArray[np.intp]],
    numbers: Int,
    between: Sequence[Motion | None],
) -> list[_Row]:
    rows = []
    for place in piece:
        row = int(balls[place.look][place.k])
        detection = detections[place.look]
        rows.append(_Row(place.look, BALL_ID, row, 0, float(detection.class_scores[row, 0]), detection.xyxy[row]))
    return _bridged(rows, numbers, between)


def _centres(boxes: Float) -> Float:
    return ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.float64)


def _columns(numbers: Int, rows: list[_Row]) -> Tracks:
    look, ids = np.array([r.look for r in rows], np.int32), np.array([r.id for r in rows], np.int32)
    order = np.lexsort((ids, look))
    look, ids = look[order], ids[order]
    xyxy = np.array([r.xyxy for r in rows], np.float32).reshape(-1, 4)[order]
    return Tracks(
        frame_numbers=numbers,
        look=look,
        id=ids,
        row=np.array([r.row for r in rows], np.int32)[order],
        class_id=np.array([r.class_id for r in rows], np.uint8)[order],
        confidence=np.array([r.confidence for r in rows], np.float32)[order],
        xyxy=xyxy,
        aspect=_usual_aspect(xyxy, ids, numbers[look]),
    )


def _usual_aspect(xyxy: Float, ids: Int, frames: Int) -> Float:
    """(R,) width over height, averaged over the same body's boxes around each frame, and a little over all
    bodies of its kind."""
    size = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1)
    aspect = np.log(size[:, 0] / size[:, 1])
    usual = aspect.copy()
    for kind in (ids == BALL_ID, ids != BALL_ID):
        if not kind.any():
            continue
        prior = float(np.median(aspect[kind]))
        for id_ in np.unique(ids[kind]):
            mine = np.flatnonzero(ids == id_)
            near = np.exp(-np.abs(frames[mine][:, None] - frames[mine][None]) / ASPECT_FRAMES)
            usual[mine] = (near @ aspect[mine] + prior) / (near.sum(1) + 1)
    return np.exp(usual).astype(np.float32)
