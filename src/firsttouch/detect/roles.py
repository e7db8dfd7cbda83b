"""Goalkeeper, player or referee: who a body is follows from the others in the picture as much as from its own pixels.

A network sees a black shirt and has to guess. Ten such shirts are a team, one alone is not; the one nearest to
the goal line wears another colour than the ten before it; whoever stands beyond the touch line in a coat is nobody's
player. So each body gets facts of the whole picture (whose shirt is like its own and what the network says of them,
where its feet are on the pitch), and a small network fitted on these facts (`train roles`) shares its score out anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from firsttouch.homography import Float, moved_points
from firsttouch.pitch import ground

Array = NDArray[np.floating[Any]]
Bool = NDArray[np.bool_]
Plane = NDArray[np.uint8]

METADATA_KEY = "roles"
"""Of the ONNX file whose scores these roles were fitted to."""
LEAST_SCORE = 0.1
"""Bodies less sure than this say nothing about the others."""
UNHEARD = 0.25
"""What is left of their own scores, which nobody shared out: the rare classes' AP would rank them too high."""

SHIRT, SHORTS = (0.15, 0.5), (0.5, 0.7)
"""Rows of a standing person's box."""
_SHIRT_ROWS = 6
_DOWN = np.concatenate([np.linspace(*SHIRT, _SHIRT_ROWS), np.linspace(*SHORTS, 3)])
_ACROSS = np.linspace(0.2, 0.8, 5)
_COLUMNS = np.concatenate([_ACROSS, (-0.4, -0.2, 1.2, 1.4)])
"""Where in a box colours are taken from, and beside it the lawn's, in box sizes: 45 and 36 points say what 78 do."""
_COLOUR_WEIGHT = np.array([0.5, 1.0, 1.0], np.float32)
"""Luma counts half: light and shade change it most."""
_SHORTS_WEIGHT = 0.6
_USUAL = np.array([0.05, 0.85, 0.10], np.float32)
"""Shares of goalkeepers, players and referees among bodies: what is believed of nobody in particular."""
_NEAREST = (0, 1, 3)
_YUV = (0, 4, 5)
"""Of the six planes: the first luma, and both of chroma."""


class Kept(Protocol):
    """Planes (..., H, W, 6) that do not lie in the memory of the CPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def picked(self, index: NDArray[np.intp]) -> Plane:
        """The bytes at flat indices, of the same shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What one picture says of its N bodies, or each of many (the leading dimensions) of its own.

    boxes: (..., N, 4) xyxy and picture size in pixels of the canvas. scores: (..., N, 3) of goalkeeper, player,
    referee. colours: (..., N, 2, 3) Y, U, V of shirt and shorts. clear: (..., N) 0..1, how much of the shirt stands out
    from the lawn. metres: (..., N, 2) of the feet on the pitch, where it was `found` (...). there: (..., N), False for
    what only fills up a picture with fewer bodies than another, or None.
    """

    boxes: Array
    size: tuple[int, int]
    scores: Array
    colours: Array
    clear: Array
    metres: Float
    found: Bool
    there: Bool | None = None


def see(planes: Plane | Kept, boxes: Array, scores: Array, keypoints: Array | None, there: Bool | None = None) -> Scene:
    """The scene of a picture, or of many: six planes (..., H, W, 6), and boxes (..., N, 4), scores (..., N, 3), key
    points (..., 32, 3) in pixels of the canvas (2 W, 2 H)."""
    size = 2 * planes.shape[-2], 2 * planes.shape[-3]
    colours, clear = shirts(planes, boxes)
    pictures = boxes.shape[:-2]
    found, to_metres = np.zeros(pictures, np.bool_), np.zeros((*pictures, 3, 3))
    if keypoints is not None:
        views = [ground(each, size[0]) for each in keypoints.reshape(-1, 32, 3)]
        found = np.array([view is not None for view in views]).reshape(pictures)
        to_metres = np.array([np.eye(3) if view is None else view for view in views]).reshape(*pictures, 3, 3)
    feet = np.stack([(boxes[..., 0] + boxes[..., 2]) / 2, boxes[..., 3]], -1).astype(np.float64)
    metres = moved_points(to_metres[..., None, :, :], feet)
    return Scene(boxes, size, scores, colours, clear, metres, found, there)


def shirts(planes: Plane | Kept, boxes: Array) -> tuple[Array, Array]:
    """(..., N, 2, 3) mean Y, U, V of shirt and shorts without the lawn around them, and (..., N) how clear the shirt
    is."""
    left, top = boxes[..., 0, None] / 2, boxes[..., 1, None] / 2
    wide, tall = (boxes[..., 2] - boxes[..., 0])[..., None] / 2, (boxes[..., 3] - boxes[..., 1])[..., None] / 2
    seen = _sampled(planes, top + tall * _DOWN, left + wide * _COLUMNS)
    body, beside = seen[..., : len(_ACROSS)], seen[1:, ..., len(_ACROSS) :]
    lawn = _median(beside.reshape(*beside.shape[:-2], -1))
    unlike = body[1:] - lawn[..., None, None]
    weight = np.clip((np.sqrt(unlike[0] ** 2 + unlike[1] ** 2) - 6) / 7, 0, 1) + 1e-3
    sums, total = (body * weight).sum(-1), weight.sum(-1)  # of each row
    parts = (slice(_SHIRT_ROWS), slice(_SHIRT_ROWS, None))
    colours = np.stack([sums[..., part].sum(-1) / total[..., part].sum(-1) for part in parts])  # (2, 3, ..., N)
    clear = total[..., :_SHIRT_ROWS].sum(-1) / (_SHIRT_ROWS * len(_ACROSS))
    return colours.transpose(*range(2, colours.ndim), 0, 1), clear


def _sampled(planes: Plane | Kept, rows: Array, columns: Array) -> Array:
    """(3, ..., N, R, C) float32 Y, U, V at rows (..., N, R) and columns (..., N, C) of the planes."""
    height, width = planes.shape[-3:-1]
    y = np.clip(rows, 0, height - 1).astype(np.intp)[..., :, None]
    x = np.clip(columns, 0, width - 1).astype(np.intp)[..., None, :]
    at = y * width + x
    if rows.ndim > 2:
        at += np.arange(len(rows)).reshape(-1, 1, 1, 1) * (height * width)
    at *= 6
    values = np.empty((3, *at.shape), np.float32)
    if isinstance(planes, np.ndarray):
        flat = planes.reshape(-1)
        for k, plane in enumerate(_YUV):
            values[k] = flat[at + plane]
    else:
        values[:] = planes.picked(at + np.reshape(_YUV, (3, *[1] * at.ndim)))
    return values


def _median(values: Array) -> Array:
    """Over the last axis, whose length is even: a third of the time of numpy's own."""
    middle = values.shape[-1] // 2
    ordered = np.sort(values, axis=-1)
    return np.asarray((ordered[..., middle - 1] + ordered[..., middle]) / 2)


def facts(scene: Scene) -> Array:
    """(..., N, F) float32: what the small network is told of each body."""
    scores = np.clip(scene.scores, 1e-3, 1 - 1e-3)
    sure = scores.max(-1)
    if scene.there is not None:
        sure = np.where(scene.there, sure, 0.0)
    columns = [np.log(scores / (1 - scores)), _alike(scene, scores, sure), _shape(scene), _place(scene, sure)]
    return np.concatenate(columns, -1).astype(np.float32)


def _alike(scene: Scene, scores: Array, sure: Array) -> Array:
    """How many others are dressed alike, what the network says of them, and how far the nearest shirts are."""
    shirt, whole = unlikeness(scene.colours)
    oneself = np.arange(shirt.shape[-1])
    share = scores / scores.sum(-1, keepdims=True)
    columns = []
    for squared, width in ((shirt, 16), (whole, 20)):
        wide = np.exp(squared / (-2 * width**2))
        wide[..., oneself, oneself] = 0
        near = np.square(np.square(wide))  # of half the width
        wide *= sure[..., None, :]
        count = wide.sum(-1)[..., None]
        columns += [np.log(near @ sure[..., None] + 0.1), np.log(count + 0.1)]
        columns.append(np.log((wide @ share + 0.1 * _USUAL) / (count + 0.1)))
    shirt[..., oneself, oneself] = np.inf
    if scene.there is not None:
        shirt = np.where(scene.there[..., None, :], shirt, np.inf)
    nearest = np.full((*sure.shape, max(_NEAREST) + 1), 60.0)
    sorted_ = np.sqrt(np.sort(shirt, -1)[..., : nearest.shape[-1]])
    nearest[..., : sorted_.shape[-1]] = np.minimum(sorted_, 60.0)
    last = np.empty((*sure.shape, 2))
    last[..., 0], last[..., 1] = sure.sum(-1, keepdims=True) / 10, scene.clear
    columns += [nearest[..., _NEAREST] / 20, last]
    return np.concatenate(columns, -1)


def unlikeness(colours: Array) -> tuple[Array, Array]:
    """Squared distances (..., N, N) of the shirts, and of shirts and shorts together, of colours (..., N, 2, 3)."""
    dressed = colours * _COLOUR_WEIGHT
    shirt = _squared_distances(dressed[..., 0, :])
    return shirt, shirt + _SHORTS_WEIGHT**2 * _squared_distances(dressed[..., 1, :])


def _squared_distances(points: Array) -> Array:
    apart = points[..., :, None, :] - points[..., None, :, :]
    return np.asarray((apart * apart).sum(-1))


def _shape(scene: Scene) -> Array:
    boxes, (width, height) = scene.boxes, scene.size
    tall, wide = np.maximum(boxes[..., 3] - boxes[..., 1], 1), np.maximum(boxes[..., 2] - boxes[..., 0], 1)
    aside = np.abs((boxes[..., 0] + boxes[..., 2]) / width - 1)
    return np.stack([np.log(tall * 1280 / width / 40), np.log(wide / tall), boxes[..., 3] / height, aside], -1)


def _place(scene: Scene, sure: Array) -> Array:
    """Where the feet are, folded to one half of the pitch: x from the goal line, y from the far touch line."""
    if not scene.found.any():
        return np.zeros((*sure.shape, 12))
    known = np.isfinite(scene.metres).all(-1) & (np.abs(scene.metres - (52.5, 34)) < (90, 80)).all(-1)
    x, y = np.where(known, scene.metres[..., 0], 52.5), np.where(known, scene.metres[..., 1], 34.0)
    deep = np.minimum(x, 105 - x)
    goal = np.hypot(deep, y - 34)
    beyond = np.maximum(y - 68, -y)
    outside = np.maximum(-deep, beyond)
    behind = _nearer_the_goal_line(x, sure * (outside < 1))
    place = np.stack(
        [
            np.ones(x.shape), known, np.exp(-goal / 8), np.exp(-((goal / 16) ** 2)), np.clip(deep / 20, -1, 3),
            np.clip(beyond / 3, -3, 3), np.exp(-np.abs(beyond)), np.clip(outside / 3, -3, 3), outside > 1,
            np.abs(y - 34) / 34, y > 34, np.log(behind + 0.3),
        ], -1
    )  # fmt: skip
    return np.where(scene.found[..., None, None], place, 0.0)


def _nearer_the_goal_line(x: Array, weight: Array) -> Array:
    """(..., N) the weight of all who are at least a metre nearer to the goal line that each is nearer to."""
    mine, others = x[..., :, None], x[..., None, :]
    nearer = np.where(mine < 52.5, others < mine - 1, others > mine + 1)
    return np.asarray((nearer @ weight[..., None])[..., 0])


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """The small network: facts (N, F), scaled by `mean` and `spread`, through one hidden layer to four shares:
    nobody of the match, goalkeeper, player, referee."""

    mean: Array
    spread: Array
    first: Array
    first_bias: Array
    second: Array
    second_bias: Array

    @classmethod
    def from_text(cls, text: str) -> Roles:
        """Raises ValueError, TypeError or KeyError for what `text` did not write."""
        values = json.loads(text)
        return cls(*(np.array(values[name], np.float32) for name in cls.__slots__))

    def text(self) -> str:
        """JSON with four digits of every number."""
        return json.dumps({name: _rounded(getattr(self, name)) for name in self.__slots__}, separators=(",", ":"))

    def shares(self, told: Array) -> Array:
        """(..., N, 4) float32, rows that sum to 1."""
        scaled = np.clip((told.reshape(-1, told.shape[-1]) - self.mean) / self.spread, -6, 6)
        out = np.tanh(scaled @ self.first + self.first_bias) @ self.second + self.second_bias
        out = np.exp(out - out.max(1, keepdims=True))
        return np.asarray(out / out.sum(1, keepdims=True), np.float32).reshape(*told.shape[:-1], -1)

    def refined(
        self, planes: Plane | Kept, boxes: Array, scores: Array, keypoints: Array | None
    ) -> tuple[Array, NDArray[np.float32]]:
        """The class scores (N, 4) of a picture, or (B, N, 4) of many, those of people shared out anew, the ball's kept;
        and the colours (N, 2, 3) or (B, N, 2, 3) of shirts and shorts, NaN where none were looked at."""
        if scores.ndim == 3 and len(scores) == 1 and isinstance(planes, np.ndarray):  # alone it is less work
            alone = self.refined(planes[0], boxes[0], scores[0], None if keypoints is None else keypoints[0])
            return alone[0][None], alone[1][None]
        heard = scores[..., 1:].max(-1) >= LEAST_SCORE
        refined = scores * np.array((1.0, UNHEARD, UNHEARD, UNHEARD), np.float32)
        colours = np.full((*heard.shape, 2, 3), np.nan, np.float32)
        if not heard.any():
            return refined, colours
        if heard.ndim == 1:
            scene = see(planes, boxes[heard], scores[heard, 1:], keypoints)
            refined[heard, 1:] = shared_out(scene.scores, self.shares(facts(scene)))
            colours[heard] = scene.colours
            return refined, colours
        # As many of each picture as of the fullest: those that are heard, then others, which do not count.
        rows = np.argsort(~heard, -1, kind="stable")[:, : heard.sum(-1).max()]
        people = np.arange(len(rows))[:, None], rows
        there = heard[people]
        scene = see(planes, boxes[people], scores[people][..., 1:], keypoints, there)
        refined[heard, 1:] = shared_out(scene.scores, self.shares(facts(scene)))[there]
        colours[heard] = scene.colours[there]
        return refined, colours


def shared_out(scores: Array, shares: Array) -> Array:
    """(..., N, 3) scores of goalkeeper, player, referee: the likeliest score of each body, by its shares of them."""
    role = shares[..., 1:] / np.maximum(shares[..., 1:].sum(-1, keepdims=True), 1e-6)
    role[..., [0, 2]] *= np.sqrt(1 - shares[..., :1])
    return np.asarray(scores.max(-1, keepdims=True) * role, np.float32)


def _rounded(values: Array) -> list[Any]:
    return [_rounded(row) for row in values] if values.ndim > 1 else [float(f"{value:.4g}") for value in values]
