"""Draws a moving, broadcast-like view of a football match, with exact labels.

Three users: the sample clip of `make demo`, tests (short, small variants), and training (`random_still`).
A `Scene` is the whole match in advance: where the ball, the people and the camera are at every frame, what
they wear, and the textures of grass, stands and boards. `render_frame` then draws any of its frames.

Pitch co-ordinates are metres: x 0..105 along the touch line, y 0..68 from the far touch line to the near one,
z upwards. The camera stands beyond y = 68, so x grows to the right of the picture and y towards its bottom.
"""

from __future__ import annotations

import argparse
import colorsys
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]  # blue, green, red, 0..255

BALL, GOALKEEPER, PLAYER, REFEREE = 0, 1, 2, 3
BYSTANDER = -1  # coaches, ball boys, photographers: drawn, never labelled

LENGTH, WIDTH = 105.0, 68.0
AREA_LENGTH, AREA_LOW, AREA_HIGH = 16.5, 13.84, 54.16
GOAL_AREA_LENGTH, GOAL_AREA_LOW, GOAL_AREA_HIGH = 5.5, 24.84, 43.16
CIRCLE_RADIUS, SPOT = 9.15, 11.0
ARC_HALF = float(np.sqrt(CIRCLE_RADIUS**2 - (AREA_LENGTH - SPOT) ** 2))  # the arc meets the area line at 34 -/+ this
GOAL_HALF, GOAL_HEIGHT, GOAL_DEPTH = 3.66, 2.44, 2.0
LINE_WIDTH = 0.11  # metres; the Laws of the Game allow 0.12 at most (Law 1)
BALL_RADIUS = 0.11


def _keypoint_table() -> Floats:
    """The 32 pitch key points in metres, shape (32, 2), in the order of the labels in `data/pitch`."""
    mid = WIDTH / 2
    left = [
        (0, 0), (0, AREA_LOW), (0, GOAL_AREA_LOW), (0, GOAL_AREA_HIGH), (0, AREA_HIGH), (0, WIDTH),
        (GOAL_AREA_LENGTH, GOAL_AREA_LOW), (GOAL_AREA_LENGTH, GOAL_AREA_HIGH), (SPOT, mid),
        (AREA_LENGTH, AREA_LOW), (AREA_LENGTH, mid - ARC_HALF), (AREA_LENGTH, mid + ARC_HALF),
        (AREA_LENGTH, AREA_HIGH),
    ]  # fmt: skip
    half = LENGTH / 2
    middle = [(half, 0), (half, mid - CIRCLE_RADIUS), (half, mid + CIRCLE_RADIUS), (half, WIDTH)]
    right = [(LENGTH - x, y) for x, y in [*left[9:13], left[8], *left[6:8], *left[:6]]]
    circle = [(half - CIRCLE_RADIUS, mid), (half + CIRCLE_RADIUS, mid)]
    return np.array(left + middle + right + circle, dtype=np.float64)


KEYPOINTS = _keypoint_table()


@dataclass(frozen=True, slots=True)
class FrameLabels:
    """What is really in one drawn frame.

    xyxy (N, 4) pixels; class_id and identity (N,); keypoints (32, 3): x, y, visible (1 inside the picture and
    in front of the camera, else the row is zero); homography (3, 3) from pitch metres to pixels.
    """

    frame_number: int
    pts_seconds: float
    xyxy: Floats
    class_id: Ints
    identity: Ints
    keypoints: Floats
    homography: Floats

    def as_answer_frame(self) -> dict[str, object]:
        """The same in the answer's own schema of `frames`, with confidence 1 everywhere."""
        columns = zip(self.identity.tolist(), self.class_id.tolist(), self.xyxy.round(2).tolist(), strict=True)
        return {
            "frame_number": self.frame_number,
            "pts_seconds": round(self.pts_seconds, 6),
            "how": "detected",
            "objects": [{"id": i, "class_id": c, "confidence": 1.0, "xyxy": box} for i, c, box in columns],
            "keypoints": self.keypoints.round(2).tolist(),
        }


# ---- the camera


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera: position in metres, angles in radians (tilt downwards), focal length in pixels."""

    position: Floats
    pan: float
    tilt: float
    roll: float
    focal: float
    size: tuple[int, int]

    def matrix(self) -> Floats:
        """The (3, 4) projection from metres to homogeneous pixels; the third is the depth in metres."""
        sin_p, cos_p, sin_t, cos_t = np.sin(self.pan), np.cos(self.pan), np.sin(self.tilt), np.cos(self.tilt)
        right = np.array([cos_p, sin_p, 0.0])
        down = np.array([-sin_p * sin_t, cos_p * sin_t, -cos_t])
        forward = np.array([sin_p * cos_t, -cos_p * cos_t, -sin_t])
        turned = np.array([np.cos(self.roll) * right + np.sin(self.roll) * down,
                           np.cos(self.roll) * down - np.sin(self.roll) * right, forward])  # fmt: skip
        width, height = self.size
        intrinsic = np.array([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1]])
        matrix: Floats = intrinsic @ np.hstack([turned, -(turned @ self.position)[:, None]])
        return matrix


def project(matrix: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Points (..., 3) in metres to pixels (..., 2) and depth (...) in metres; only depth > 0 is in front."""
    homogeneous = points @ matrix[:, :3].T + matrix[:, 3]
    depth = homogeneous[..., 2]
    return homogeneous[..., :2] / np.where(np.abs(depth) < 1e-6, 1e-6, depth)[..., None], depth


def _plane_homography(matrix: Floats, origin: Floats, along: Floats, up: Floats, per_metre: float) -> Floats:
    """Homography from the texture of a plane in space (u along, v up) to the picture."""
    return np.column_stack([matrix[:, :3] @ along / per_metre, matrix[:, :3] @ up / per_metre,
                            matrix[:, :3] @ origin + matrix[:, 3]])  # fmt: skip


# ---- how it looks


@dataclass(frozen=True, slots=True)
class Kit:
    """The colours of one outfit; `pattern`, in the `second` colour, is plain, stripes, hoops or sleeves."""

    shirt: Colour
    second: Colour
    shorts: Colour
    socks: Colour
    pattern: str


@dataclass(frozen=True, slots=True)
class Surface:
    """A textured plane: pixels a metre, where its first pixel lies, and where its columns and rows go."""

    texture: Picture
    per_metre: float
    origin: Floats
    along: Floats
    up: Floats


@dataclass(frozen=True, slots=True)
class Stage:
    """All that does not move: grass, the light on it, stands and boards, far to near."""

    ground: Surface
    light: Floats  # (68, 105) brightness, one cell a square metre
    walls: tuple[Surface, ...]
    front: tuple[Surface, ...]  # between the camera and the near touch line; hides whoever stands behind it
    line_colour: Colour
    sky: Colour
    shadow: tuple[tuple[float, float, float], ...]  # (dx, dy a metre of height, darkness): one a lamp, or the sun
    scoreboard: bool
    name: str


@dataclass(frozen=True, slots=True)
class People:
    """Who takes part; columns of one length N. Index in these columns is the identity."""

    class_id: Ints
    team: Ints  # 0 left, 1 right, -1 nobody
    kit: tuple[Kit, ...]
    skin: Floats  # (N, 3)
    hair: Floats  # (N, 3)
    boots: Floats  # (N, 3)
    height: Floats  # (N,) metres


@dataclass(frozen=True, slots=True)
class Scene:
    """A match made up in advance; T frames, N people. Positions in metres, speeds in metres a second."""

    size: tuple[int, int]
    fps: float
    seed: int
    stage: Stage
    people: People
    positions: Floats  # (T, N, 2)
    headings: Floats  # (T, N) radians, 0 along +x
    speeds: Floats  # (T, N)
    phases: Floats  # (T, N) of the stride, radians
    ball: Floats  # (T, 3)
    cameras: tuple[Camera, ...]
    first_identity: int = 0

    @property
    def frames(self) -> int:
        return len(self.cameras)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return blue * 255, green * 255, red * 255


_KIT_COLOURS: tuple[Colour, ...] = tuple(
    _hsv(h, s, v)
    for h, s, v in [
        (0, 0, 0.93), (0, 0, 0.9), (0, 0, 0.12), (0.99, 0.85, 0.72), (0.98, 0.75, 0.42), (0.61, 0.75, 0.55),
        (0.64, 0.7, 0.28), (0.55, 0.5, 0.85), (0.14, 0.8, 0.88), (0.07, 0.85, 0.9), (0.38, 0.75, 0.4),
        (0.27, 0.65, 0.92), (0.8, 0.5, 0.45), (0.92, 0.45, 0.9), (0.0, 0.0, 0.45),
    ]
)  # fmt: skip


def _apart(a: Colour, b: Colour) -> float:
    return float(np.abs(np.subtract(a, b)).sum())


def _pick_colour(rng: np.random.Generator, unlike: list[Colour], least: float = 170.0) -> Colour:
    """A kit colour that differs from those given; after 30 tries the last one, so that it always ends."""
    colour = _KIT_COLOURS[0]
    for _ in range(30):
        base = _KIT_COLOURS[rng.integers(len(_KIT_COLOURS))]
        colour = tuple(float(np.clip(c + rng.normal(0, 10), 6, 246)) for c in base)  # type: ignore[assignment]
        if all(_apart(colour, other) > least for other in unlike):
            break
    return colour


def _make_kits(rng: np.random.Generator, grass: Colour) -> tuple[Kit, Kit, Kit, Kit, Kit]:
    """Outfits of: left team, right team, left keeper, right keeper, referees; no two shirts alike."""
    worn: list[Colour] = [grass]
    kits = []
    for number in range(5):
        shirt = _pick_colour(rng, worn)
        if number == 4 and rng.random() < 0.7:  # most referees: black, yellow, light blue, red
            usual = [_KIT_COLOURS[k] for k in (2, 8, 7, 13)]
            free = [c for c in usual if all(_apart(c, other) > 150 for other in worn)]
            shirt = free[rng.integers(len(free))] if free else shirt
        worn.append(shirt)
        second = _pick_colour(rng, [shirt])
        shorts = (shirt, second, _KIT_COLOURS[0], _KIT_COLOURS[2])[rng.integers(4)]
        if number == 4:
            shorts = _KIT_COLOURS[2] if rng.random() < 0.85 else shorts
        socks = (shirt, shorts, second)[rng.integers(3)]
        pattern = str(rng.choice(["plain", "stripes", "hoops", "sleeves"], p=[0.55, 0.2, 0.05, 0.2]))
        kits.append(Kit(shirt, second, shorts, socks, pattern if number < 2 else "plain"))
    return kits[0], kits[1], kits[2], kits[3], kits[4]


def _speckle(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> npt.NDArray[np.float32]:
    """Smooth noise with spots of about `cell` pixels, mean 0, deviation about 1."""
    small = rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
    return np.asarray(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


GROUND_MARGIN = 16.0  # metres of ground beyond the lines


def _make_light(rng: np.random.Generator) -> Floats:
    """Brightness a square metre: even floodlight, or a sunny part beside the shadow of a stand."""
    light = np.ones((68, 105))
    if rng.random() < 0.3:
        y, x = np.mgrid[0:68, 0:105]
        edge = rng.uniform(5, 60) + rng.normal(0, 0.25) * (x - 52) - y
        shade = 1 / (1 + np.exp(np.clip(edge * rng.choice([-3.0, 3.0]), -40, 40)))
        light = 1 - shade * rng.uniform(0.35, 0.6)
    return light


def _make_ground(rng: np.random.Generator, grass: Colour, light: Floats, per_metre: float) -> Surface:
    """Grass with mowing stripes, wear and grain, and the ground beyond the lines."""
    wide, deep = LENGTH + 2 * GROUND_MARGIN, WIDTH + 2 * GROUND_MARGIN
    shape = (int(deep * per_metre), int(wide * per_metre))
    x = np.linspace(-GROUND_MARGIN, LENGTH + GROUND_MARGIN, shape[1], dtype=np.float32)[None, :]
    y = np.linspace(-GROUND_MARGIN, WIDTH + GROUND_MARGIN, shape[0], dtype=np.float32)[:, None]
    slant = float(rng.choice([0.0, 0.0, 0.0, 0.5, -0.5]))
    band = 0.5 * LENGTH / int(rng.integers(7, 12))
    strength = rng.uniform(0.02, 0.085)
    stripes = np.tanh(6 * np.sin((x + slant * y) * np.pi / band)) * strength
    if rng.random() < 0.25:  # mown both ways
        stripes = stripes + np.tanh(6 * np.sin(y * np.pi / band)) * strength * 0.7
    wear = sum(np.exp(-(((x - gx) / 4) ** 2) - ((y - 34) / 7) ** 2) for gx in (2.0, LENGTH - 2)) * rng.uniform(0, 0.12)
    bright = 1 + stripes + 0.03 * _speckle(rng, shape, int(9 * per_metre)) + 0.02 * _speckle(rng, shape, 6)
    bright = bright + 0.03 * rng.standard_normal(shape, dtype=np.float32)
    bright *= cv2.resize(cv2.copyMakeBorder(light, 16, 16, 16, 16, cv2.BORDER_REPLICATE), shape[::-1])
    picture = bright[..., None] * np.array(grass, np.float32)
    picture[..., 2] *= 1 + 0.6 * wear + 0.04 * _speckle(rng, shape, int(5 * per_metre))
    picture[..., 1] *= 1 + 0.15 * wear
    apron = np.maximum(np.maximum(-x - 5, x - LENGTH - 5), np.maximum(-y - 3.5, y - WIDTH - 4)) > 0
    if rng.random() < 0.7:
        track = np.array(_hsv(rng.uniform(0, 1), rng.uniform(0, 0.3), rng.uniform(0.2, 0.5)), np.float32)
        picture = np.where(apron[..., None], bright[..., None] * track, picture)
    texture = np.clip(picture, 0, 255).astype(np.uint8)
    origin = np.array([-GROUND_MARGIN, -GROUND_MARGIN, 0.0])
    return Surface(texture, per_metre, origin, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))


def _make_crowd(rng: np.random.Generator, seats: int, rows: int, fans: Colour) -> Picture:
    """Rows of people on seats, 6 x 8 pixels each, with aisles; row 0 is the lowest."""
    shape = (rows, seats)
    filled = rng.random(shape) < rng.uniform(0.55, 1.0)
    clothes = rng.gamma(1.6, 42.0, shape)[..., None] + rng.normal(0, 16, (*shape, 3))
    clothes = np.where(rng.random(shape)[..., None] < rng.uniform(0.05, 0.5), np.array(fans), clothes)
    seat = np.array(_hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.15, 0.5)))
    clothes = np.where(filled[..., None], clothes, seat)
    skin = np.array([115.0, 140.0, 190.0]) * rng.uniform(0.35, 1.1, shape)[..., None]
    cells = np.repeat(np.repeat(clothes, 8, axis=0), 6, axis=1) * 0.8
    cells[0::8] *= 0.45  # the step in front of each row
    for row, column in ((5, 2), (5, 3), (6, 2), (6, 3)):
        cells[row::8, column::6] = np.where(filled[..., None], skin, cells[row::8, column::6])
    cells[7::8] = cells[7::8] * 0.35 + 12
    for row in range(rows):  # nobody sits on a grid
        cells[8 * row : 8 * row + 8] = np.roll(cells[8 * row : 8 * row + 8], int(rng.integers(6)), axis=1)
    aisle = (np.arange(seats) % int(rng.integers(18, 34))) < 2
    cells[:, np.repeat(aisle, 6)] = np.array([95.0, 98.0, 100.0])
    cells *= rng.uniform(0.6, 1.2) * np.linspace(1.0, rng.uniform(0.5, 1.0), len(cells))[:, None, None]
    return np.clip(cv2.GaussianBlur(cells, (3, 3), 0.7), 0, 255).astype(np.uint8)


_SLOGANS = (
    "FIRST TOUCH",
    "NORDWIND",
    "halden & co",
    "KILO BANK",
    "riviera",
    "OKTAV 360",
    "Solara",
    "BLUEFIN",
    "tempo",
)


def _make_boards(rng: np.random.Generator, metres: float, per_metre: float) -> Picture:
    """Advertising boards one metre high; written upside down, as the texture grows upwards."""
    shape = (int(per_metre), int(metres * per_metre), 3)
    picture = np.zeros(shape, np.uint8)
    at = 0
    one_brand = rng.random() < 0.4
    base, slogan = _hsv(rng.random(), rng.uniform(0, 1), rng.uniform(0.1, 0.95)), str(rng.choice(_SLOGANS))
    while at < shape[1]:
        if not one_brand:
            base, slogan = (
                _hsv(rng.random(), rng.uniform(0, 1), rng.uniform(0.1, 0.95)),
                str(rng.choice(_SLOGANS)),
            )
        wide = int(rng.uniform(6, 13) * per_metre)
        picture[:, at : at + wide] = base
        ink = (245, 245, 245) if sum(base) < 380 else (25, 25, 25)
        scale = per_metre / 40
        start = (at + int(per_metre), int(per_metre * 0.76))
        bold = max(1, round(scale * 2))
        cv2.putText(picture, slogan, start, cv2.FONT_HERSHEY_DUPLEX, scale, ink, bold, cv2.LINE_AA)
        at += wide
    return np.ascontiguousarray(picture[::-1])


def _make_walls(rng: np.random.Generator) -> tuple[tuple[Surface, ...], tuple[Surface, ...]]:
    """Stands and boards on three sides, far ones first; and rail and crowd in front of the camera."""
    fans = _pick_colour(rng, [])
    seats, rows = 300, int(rng.integers(18, 40))
    crowd = _make_crowd(rng, seats, rows, fans)
    gap, first_row = rng.uniform(3.5, 7.0), rng.uniform(1.2, 3.0)
    slope = np.radians(rng.uniform(24, 36))
    rise, back = np.sin(slope), np.cos(slope)
    boards = _make_boards(rng, 150, 20.0)
    colour = np.full((12, 300, 3), _hsv(rng.random(), 0.3, rng.uniform(0.15, 0.5)), np.uint8)
    x, y, z = np.eye(3)
    low = first_row * z
    end = gap + rng.uniform(0, 4)
    walls = []
    for origin, along, out in (
        (np.array([-22.0, -gap, 0.0]), x, -y),
        (np.array([-end, 90.0, 0.0]), -y, -x),
        (np.array([LENGTH + end, -22.0, 0.0]), y, x),
    ):
        stand = origin + low + out * 1.5
        walls.append(Surface(crowd, 12.0, stand, along, rise * z + back * out))
        walls.append(Surface(colour, 2.0, origin + out * 1.4, along, z * first_row / 6))
        walls.append(Surface(boards, 20.0, origin, along, z))
    rail = np.array([-22.0, WIDTH + rng.uniform(5, 9), 0.0])
    front = (
        Surface(np.ascontiguousarray(crowd[:96][::-1]), 12.0, rail + 0.8 * y + 0.4 * z, x, y),
        Surface(colour, 2.0, rail, x, z * rng.uniform(0.15, 0.25)),
    )
    return tuple(walls), front


def _make_stage(rng: np.random.Generator, per_metre: float) -> tuple[Stage, Colour]:
    grass = _hsv(rng.normal(0.265, 0.025), rng.uniform(0.45, 0.78), rng.uniform(0.4, 0.62))
    light = _make_light(rng)
    bright = light.min() < 0.95
    shadow: tuple[tuple[float, float, float], ...]
    if bright or rng.random() < 0.25:  # the sun throws one long shadow, four lamps throw four faint ones
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.6)
        shadow = ((float(np.cos(angle) * reach), float(np.sin(angle) * reach), rng.uniform(0.4, 0.6)),)
    else:
        reach = rng.uniform(0.25, 0.6)
        shadow = tuple((sx * reach, sy * reach * 0.7, rng.uniform(0.1, 0.25)) for sx in (-1, 1) for sy in (-1, 1))
    walls, front = _make_walls(rng)
    stage = Stage(
        ground=_make_ground(rng, grass, light, per_metre),
        light=light,
        walls=walls,
        front=front,
        line_colour=_hsv(0.25, rng.uniform(0.0, 0.15), rng.uniform(0.8, 0.96)),
        sky=_hsv(0.6, 0.2, rng.uniform(0.1, 0.7)),
        shadow=shadow,
        scoreboard=bool(rng.random() < 0.6),
        name=" 0 - 0 ".join(rng.choice(["NOR", "HAL", "RIV", "KIL", "SOL", "BLU"], 2, replace=False).tolist()),
    )
    return stage, grass


# ---- who and where

_FORMATION = np.array([  # of the team that attacks to the right, in metres; row 0 is the keeper
    (4, 34), (24, 9), (20, 25), (20, 43), (24, 59), (40, 14), (37, 29), (37, 41), (41, 55),
    (53, 27), (54, 42),
], dtype=np.float64)  # fmt: skip


def _make_people(rng: np.random.Generator, grass: Colour, bystanders: int) -> People:
    kits = _make_kits(rng, grass)
    coat = Kit(_hsv(0, 0, 0.12), _hsv(0, 0, 0.12), _hsv(0, 0, 0.1), _hsv(0, 0, 0.1), "plain")
    vest = Kit(_hsv(rng.choice([0.08, 0.2, 0.3]), 0.8, 0.85), coat.shirt, coat.shorts, coat.socks, "plain")
    class_id = [GOALKEEPER] + [PLAYER] * 10 + [GOALKEEPER] + [PLAYER] * 10 + [REFEREE] * 3 + [BYSTANDER] * bystanders
    team = [0] * 11 + [1] * 11 + [-1] * (3 + bystanders)
    wear = [kits[2]] + [kits[0]] * 10 + [kits[3]] + [kits[1]] * 10 + [kits[4]] * 3
    vest = vest if min(_apart(vest.shirt, kit.shirt) for kit in kits) > 150 else coat  # nobody to mistake
    wear += [coat if rng.random() < 0.6 else vest for _ in range(bystanders)]
    count = len(team)
    tone = rng.uniform(0.28, 1.0, (count, 1))
    skin = np.array([125.0, 155.0, 205.0]) * tone
    hair = np.array([30.0, 40.0, 55.0]) * rng.choice([0.4, 0.5, 1.0, 3.0], (count, 1), p=[0.4, 0.3, 0.2, 0.1])
    boots = np.array([_hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 0.95)) for _ in range(count)])
    height = rng.normal(1.81, 0.06, count).clip(1.65, 1.96)
    return People(np.array(class_id), np.array(team), tuple(wear), skin, hair, boots, height)


def _targets(ball: Floats, drift: Floats, attacking: int) -> Floats:
    """Where the 22 players and 3 referees want to be, (25, 2), given the ball and each one's own drift."""
    left = _FORMATION.copy()
    right = np.stack([LENGTH - _FORMATION[:, 0], WIDTH - _FORMATION[:, 1]], axis=1)
    shift = np.array([0.62 * (ball[0] - 48), 0.35 * (ball[1] - 34)])
    left[1:] += shift + np.array([7.0 if attacking == 0 else -2.0, 0])
    right[1:] += shift + np.array([9.0 if attacking == 0 else 0.0, 0])
    for keeper, goal in ((left, 0.0), (right, LENGTH)):
        out = 4.0 + 0.12 * abs(ball[0] - goal)
        keeper[0] = (abs(goal - out), 34 + 0.12 * (ball[1] - 34))
    players = np.concatenate([left, right])
    near = 0.12 * (1 - np.clip(np.abs(players - ball[:2]).max(axis=1) / 30, 0, 1))[:, None]
    players = players + near * (ball[:2] - players) + drift[:22]
    players[:, 0] = players[:, 0].clip(0.5, LENGTH - 0.5)
    players[:, 1] = players[:, 1].clip(0.5, WIDTH - 0.5)
    referee = ball[:2] + np.where(ball[0] > 52.5, -1, 1) * np.array([8.0, 0]) + np.array([0, 7.0]) + drift[22]
    last_right = np.sort(right[:, 0])[-2]
    last_left = np.sort(left[:, 0])[1]
    far = (max(last_right, 52.5), -0.8)
    near_side = (min(last_left, 52.5), WIDTH + 0.8)
    return np.concatenate([players, [referee, far, near_side]])


@dataclass(slots=True)
class _Pass:
    """The ball on its way, or at somebody's feet when `end` has passed."""

    start: float
    end: float
    origin: Floats
    target: Floats
    apex: float
    receiver: int
    leave: float  # when the receiver plays it on


def _next_pass(rng: np.random.Generator, now: float, at: int, where: Floats, ball: Floats) -> _Pass:
    team = 0 if at < 11 else 1
    if rng.random() < 0.13:
        team = 1 - team
    mates = np.array([p for p in range(11 * team, 11 * team + 11) if p != at])
    distance = np.linalg.norm(where[mates] - where[at], axis=1)
    forward = (where[mates, 0] - where[at, 0]) * (1 if team == 0 else -1)
    weight = np.exp(-((distance - 14) ** 2) / 200 + 0.03 * forward) * np.where(mates % 11 == 0, 0.25, 1)
    receiver = int(rng.choice(mates, p=weight / weight.sum()))
    gap = float(np.linalg.norm(where[receiver] - ball[:2]))
    high = gap > 24 and rng.random() < 0.7
    flight = max(0.35, gap / float(rng.uniform(12, 20)))
    target = where[receiver] + rng.normal(0, 1.0, 2)
    target = np.clip(target, 0.6, (LENGTH - 0.6, WIDTH - 0.6))
    apex = 1.2 * flight**2 if high else 0.05
    return _Pass(
        now,
        now + flight,
        ball[:2].copy(),
        target,
        apex,
        receiver,
        now + flight + float(rng.uniform(0.3, 1.8)),
    )


@dataclass(frozen=True, slots=True)
class _Play:
    positions: Floats
    velocities: Floats
    ball: Floats


def _keep_apart(where: Floats) -> Floats:
    """A push (N, 2) in metres a second that keeps people from standing in each other."""
    away = where[:, None] - where[None]
    distance = np.linalg.norm(away, axis=2) + np.eye(len(where)) * 9
    push = np.clip(0.9 - distance, 0, None) / np.maximum(distance, 0.05)
    moved: Floats = (away * push[..., None]).sum(axis=1) * 4
    return moved


def _simulate(rng: np.random.Generator, frames: int, fps: float, bystanders: int) -> _Play:
    """Plays football: passes between team mates, both teams shifting with the ball; 3 s of warm-up."""
    step = 1 / fps
    warm_up = round(3 * fps)
    ball = np.array([rng.uniform(12, 93), rng.uniform(8, 60), BALL_RADIUS])
    rate, offset = rng.uniform(0.3, 1.3, (25, 2)), rng.uniform(0, 2 * np.pi, (25, 2))
    reach = rng.uniform(0.8, 3.2, (25, 2))
    reach[[0, 11, 23, 24]] = 0.5, 0.0
    reach[[0, 11]] = 0.6
    where = _targets(ball, rng.normal(0, 3, (25, 2)) * np.where(reach > 0.7, 1, 0.1), int(rng.integers(2)))
    velocity = rng.normal(0, 1, (25, 2))
    holder = int(np.argmin(np.linalg.norm(where[:22] - ball[:2], axis=1)))
    move = _Pass(-1, -0.5, ball[:2].copy(), ball[:2].copy(), 0, holder, float(rng.uniform(0.1, 1)))
    stand = np.column_stack([rng.uniform(5, 100, bystanders), rng.choice([-2.8, WIDTH + 2.5], bystanders)])
    stand[:, 1] += rng.uniform(-0.6, 0.6, bystanders)
    positions, velocities = np.zeros((frames, 25 + bystanders, 2)), np.zeros((frames, 25 + bystanders, 2))
    balls = np.zeros((frames, 3))
    for tick in range(-warm_up, frames):
        now = (tick + warm_up) * step
        want = _targets(ball, reach * np.sin(rate * now + offset), 0 if move.receiver < 11 else 1)
        carrier = move.receiver
        if now < move.end:
            part = (now - move.start) / (move.end - move.start)
            eased = part * (1.35 - 0.35 * part)  # the ball slows down on the grass
            ball[:2] = move.origin + (move.target - move.origin) * eased
            ball[2] = BALL_RADIUS + 4 * move.apex * part * (1 - part)
            want[carrier] = move.target
        else:
            goal = np.array([LENGTH if carrier < 11 else 0.0, 34.0])
            ahead = (goal - where[carrier]) / (np.linalg.norm(goal - where[carrier]) + 1e-6)
            want[carrier] = where[carrier] + ahead * (6.0 if carrier % 11 else 1.0)
            touch = 0.45 + 0.25 * np.sin(now * 9)
            ball[:2] += (where[carrier] + ahead * touch - ball[:2]) * min(1.0, 12 * step)
            ball[2] = BALL_RADIUS
            if now >= move.leave:
                move = _next_pass(rng, now, carrier, where, ball)
        rivals = np.arange(11, 22) if carrier < 11 else np.arange(0, 11)
        gaps = np.linalg.norm(where[rivals] - ball[:2], axis=1)
        for rival in rivals[np.argsort(gaps)[:2]]:
            if rival % 11:
                want[rival] = ball[:2] + (1.2 if rival == rivals[np.argmin(gaps)] else 5.0) * np.array(
                    [-1 if rival < 11 else 1, 0.3]
                )
        desired = (want - where) * 1.3
        pace = np.linalg.norm(desired, axis=1, keepdims=True)
        desired *= np.minimum(1, 7.5 / np.maximum(pace, 1e-6))
        desired[:23] += _keep_apart(where[:23])
        change = desired - velocity
        size = np.linalg.norm(change, axis=1, keepdims=True)
        velocity = velocity + change * np.minimum(1, 6.0 * step / np.maximum(size, 1e-6))
        where = where + velocity * step
        if tick >= 0:
            positions[tick, :25], velocities[tick, :25], balls[tick] = where, velocity, ball
            positions[tick, 25:] = stand
    return _Play(positions, velocities, balls)


def _smooth(track: Floats, fps: float, seconds: float) -> Floats:
    """Each column low-passed forwards and backwards, as an operator who knows the game moves a camera."""
    alpha = 1 - np.exp(-1 / (fps * seconds))
    for _ in range(2):
        for order in (1, -1):
            value, out = track[::order][0].copy(), np.empty_like(track)
            for i, wanted in enumerate(track[::order]):
                value = value + alpha * (wanted - value)
                out[i] = value
            track = out[::order]
    return track


def _make_cameras(
    rng: np.random.Generator, ball: Floats, fps: float, size: tuple[int, int], still: bool, wild: bool
) -> tuple[Camera, ...]:
    """Cameras for all frames. `wild` also leaves the usual place on the halfway line, for training stills."""
    spread = 14.0 if wild else 4.0
    position = np.array([LENGTH / 2 + rng.normal(0, spread), WIDTH + rng.uniform(22, 62), rng.uniform(11, 26)])
    view = rng.uniform(28, 95) if wild else rng.uniform(48, 56)  # metres across, at the ball
    roll = rng.normal(0, 0.012) if wild else 0.0
    aim_y = rng.uniform(22, 40) if wild else rng.uniform(30, 34)
    breathe = rng.uniform(0, 2 * np.pi)
    aim = np.column_stack([ball[:, 0], aim_y + 0.35 * (ball[:, 1] - 34)])
    aim[:, 0] += rng.normal(0, 9) if wild else 0.0
    aim[:, 0] = 52.5 + (aim[:, 0] - 52.5) * 0.9
    aim = _smooth(aim, fps, 0.55) if len(aim) > 1 else aim
    if still:
        aim = np.repeat(aim[:1], len(aim), axis=0)
    cameras = []
    for number, (x, y) in enumerate(aim):
        away = np.array([x, y, 0.0]) - position
        distance = float(np.linalg.norm(away))
        pan = float(np.arctan2(away[0], -away[1]))
        tilt = float(np.arctan2(position[2], np.hypot(away[0], away[1])))
        zoom = 1.0 if still else 1 + 0.06 * np.sin(2 * np.pi * number / fps / 11 + breathe)
        cameras.append(Camera(position, pan, tilt, roll, zoom * size[0] * distance / view, size))
    return tuple(cameras)


def make_scene(
    seed: int = 0,
    frames: int = 750,
    size: tuple[int, int] = (1280, 720),
    fps: float = 25.0,
    still_camera: bool = False,
    wild: bool = False,
    first_identity: int = 0,
) -> Scene:
    """A match of `frames` frames. The same arguments give the same scene, pixel for pixel."""
    if frames < 1 or min(size) < 32:
        raise ValueError(f"a scene needs at least 1 frame and 32 pixels, got frames={frames}, size={size}")
    rng = np.random.default_rng(seed)
    bystanders = int(rng.integers(3, 9))
    stage, grass = _make_stage(rng, per_metre=6.0 if min(size) < 400 else 10.0)
    people = _make_people(rng, grass, bystanders)
    play = _simulate(rng, frames, fps, bystanders)
    speeds = np.linalg.norm(play.velocities, axis=2)
    toward = play.ball[:, None, :2] - play.positions
    facing = np.where((speeds > 1.2)[..., None], play.velocities, toward)
    headings = np.arctan2(facing[..., 1], facing[..., 0])
    if frames > 1:  # turn, rather than snap round
        unit = _smooth(np.concatenate([np.cos(headings), np.sin(headings)], axis=1), fps, 0.08)
        headings = np.arctan2(unit[:, headings.shape[1] :], unit[:, : headings.shape[1]])
    rate = 2 * np.pi * np.where(speeds > 0.3, 0.7 + 0.28 * speeds, 0.0)  # strides a second grow with the speed
    phases = np.cumsum(rate / fps, axis=0) + rng.uniform(0, 2 * np.pi, rate.shape[1])
    cameras = _make_cameras(rng, play.ball, fps, size, still_camera, wild)
    return Scene(size, fps, seed, stage, people, play.positions, headings, speeds, phases, play.ball, cameras,
                 first_identity)  # fmt: skip


# ---- the drawing

_SHIFT = 4  # OpenCV's fixed point: sixteenths of a pixel


def _fixed(points: Floats) -> npt.NDArray[np.int32]:
    """Pixels to OpenCV's fixed point, whose integer co-ordinates are pixel centres."""
    return np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _draw_surface(picture: Picture, matrix: Floats, surface: Surface) -> None:
    """Warps a textured plane into the picture, only within the rectangle that it can touch."""
    height, width = picture.shape[:2]
    rows, columns = surface.texture.shape[:2]
    across, upward = (
        np.linspace(0, columns, 40) / surface.per_metre,
        np.linspace(0, rows, 9) / surface.per_metre,
    )
    grid = surface.origin + across[:, None, None] * surface.along + upward[None, :, None] * surface.up
    pixels, depth = project(matrix, grid.reshape(-1, 3))
    seen = pixels[depth > 2.0]
    if len(seen) == 0:
        return
    pad = 4 + 0.1 * (seen.max(axis=0) - seen.min(axis=0))  # the grid is coarse where the plane leaves the view
    low = np.floor(np.clip(seen.min(axis=0) - pad, 0, (width, height))).astype(int)
    high = np.ceil(np.clip(seen.max(axis=0) + pad, 0, (width, height))).astype(int)
    if (high - low).min() < 1:
        return
    shift = np.array([[1, 0, -low[0] - 0.5], [0, 1, -low[1] - 0.5], [0, 0, 1.0]])
    to_picture = shift @ _plane_homography(matrix, surface.origin, surface.along, surface.up, surface.per_metre)
    target = picture[low[1] : high[1], low[0] : high[0]]
    cv2.warpPerspective(surface.texture, to_picture, target.shape[1::-1], dst=target,
                        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)  # fmt: skip


def _arc(x: float, y: float, radius: float, start: float, end: float) -> Floats:
    angle = np.radians(np.linspace(start, end, max(3, int(abs(end - start) / 7) + 1)))
    return np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])


def _long(*corners: tuple[float, float]) -> Floats:
    """A polyline cut into pieces of 4 m at most, so that pieces behind the camera can be left out."""
    points = [np.array(corners[0], dtype=np.float64)]
    for a, b in itertools.pairwise(corners):
        count = int(np.ceil(np.hypot(b[0] - a[0], b[1] - a[1]) / 4.0))
        points += [np.array(a) + (np.array(b) - np.array(a)) * (k + 1) / count for k in range(count)]
    return np.array(points)


def _pitch_lines() -> list[Floats]:
    """All markings of Law 1 as polylines (n, 2) of line centres, in metres."""
    mid, half = WIDTH / 2, LENGTH / 2
    inset = LINE_WIDTH / 2
    open_angle = float(np.degrees(np.arccos((AREA_LENGTH - SPOT) / CIRCLE_RADIUS)))
    lines = [
        _long((0, 0), (LENGTH, 0), (LENGTH, WIDTH), (0, WIDTH), (0, 0)),
        _long((half, 0), (half, WIDTH)),
        _arc(half, mid, CIRCLE_RADIUS, 0, 360),
        _long((half - inset, mid), (half + inset, mid)),
    ]
    for goal, side in ((0.0, 1.0), (LENGTH, -1.0)):
        area, small, spot = goal + side * AREA_LENGTH, goal + side * GOAL_AREA_LENGTH, goal + side * SPOT
        turn = 0.0 if side > 0 else 180.0
        lines += [
            _long((goal, AREA_LOW), (area, AREA_LOW), (area, AREA_HIGH), (goal, AREA_HIGH)),
            _long((goal, GOAL_AREA_LOW), (small, GOAL_AREA_LOW), (small, GOAL_AREA_HIGH), (goal, GOAL_AREA_HIGH)),
            _long((spot - inset, mid), (spot + inset, mid)),
            _arc(spot, mid, CIRCLE_RADIUS, turn - open_angle, turn + open_angle),
            _arc(goal, 0, 1, 0 if side > 0 else 90, 90 if side > 0 else 180),
            _arc(goal, WIDTH, 1, 270 if side > 0 else 180, 360 if side > 0 else 270),
        ]
    return lines


def _line_quads() -> Floats:
    """The markings as quadrangles on the ground, (S, 4, 3) in metres, each a little longer than its piece."""
    quads = []
    for line in _pitch_lines():
        a, b = line[:-1], line[1:]
        along = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
        side = np.stack([-along[:, 1], along[:, 0]], axis=1) * LINE_WIDTH / 2
        a, b = a - along * LINE_WIDTH / 2, b + along * LINE_WIDTH / 2
        quads.append(np.stack([a + side, b + side, b - side, a - side], axis=1))
    flat = np.concatenate(quads)
    return np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], axis=2)


_LINE_QUADS = _line_quads()


def _draw_lines(picture: Picture, matrix: Floats, stage: Stage) -> None:
    height, width = picture.shape[:2]
    pixels, depth = project(matrix, _LINE_QUADS)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    seen = (depth.min(axis=1) > 1) & (high[:, 0] > 0) & (high[:, 1] > 0) & (low[:, 0] < width) & (low[:, 1] < height)
    centres = _LINE_QUADS[:, :, :2].mean(axis=1)
    bright = _light_at(stage.light, centres)
    metre = np.linalg.norm(pixels[:, 0] - pixels[:, 3], axis=1)  # how wide the line is in pixels
    fade = np.clip(0.45 + 0.4 * metre, 0.45, 0.95) * bright
    middles, corners = pixels.mean(axis=1), _fixed(np.where(seen[:, None, None], pixels, 0))
    for index in np.flatnonzero(seen):
        grass = _pixel(picture, middles[index])
        colour = tuple(float(g + (c - g) * fade[index]) for g, c in zip(grass, stage.line_colour, strict=True))
        cv2.fillConvexPoly(picture, corners[index], colour, cv2.LINE_AA, _SHIFT)


def _pixel(picture: Picture, at: Floats) -> Floats:
    height, width = picture.shape[:2]
    pixel: Floats = picture[int(min(max(at[1], 0), height - 1)), int(min(max(at[0], 0), width - 1))].astype(np.float64)
    return pixel


def _light_at(light: Floats, where: Floats) -> Floats:
    """Brightness at positions (N, 2) in metres; outside the pitch that of its nearest square metre."""
    x, y = where[:, 0].clip(0, 104.9).astype(int), where[:, 1].clip(0, 67.9).astype(int)
    bright: Floats = light[y, x]
    return bright


def _touches(points: Floats, picture: Picture) -> bool:
    """Whether the box around the points (N, 2) overlaps the picture."""
    height, width = picture.shape[:2]
    low, high = points.min(axis=0), points.max(axis=0)
    return bool(high[0] > 0 and high[1] > 0 and low[0] < width and low[1] < height)


def _draw_goal(picture: Picture, matrix: Floats, goal: float, outward: float) -> None:
    """Posts, bar and a net of thin lines; back to front."""
    y0, y1, back = WIDTH / 2 - GOAL_HALF, WIDTH / 2 + GOAL_HALF, goal + outward * GOAL_DEPTH
    net = [((back, y, 0.0), (goal + outward * 0.9, y, GOAL_HEIGHT)) for y in np.linspace(y0, y1, 25)]
    for z, d in zip(np.linspace(0, GOAL_HEIGHT, 9), np.linspace(GOAL_DEPTH, 0.9, 9), strict=True):
        net.append(((goal + outward * d, y0, z), (goal + outward * d, y1, z)))
    frame = [((goal, y0, 0), (goal, y0, GOAL_HEIGHT)), ((goal, y1, 0), (goal, y1, GOAL_HEIGHT)),
             ((goal, y0, GOAL_HEIGHT), (goal, y1, GOAL_HEIGHT))]  # fmt: skip
    for y in (y0, y1):
        frame.append(((goal, y, GOAL_HEIGHT), (goal + outward * 0.9, y, GOAL_HEIGHT)))
        net.append(((back, y, 0.0), (goal + outward * 0.9, y, GOAL_HEIGHT)))
    for pieces, thick, mix in ((net, 0.0, 0.35), (frame, 0.12, 0.95)):
        ends, depth = project(matrix, np.array(pieces, dtype=np.float64))
        if depth.min() < 1 or np.abs(ends).max() > 20000 or not _touches(ends.reshape(-1, 2), picture):
            return
        focal = abs(np.linalg.det(matrix[:, :3])) ** 0.5
        wide = max(1, round(thick * focal / float(depth.mean())))
        for piece in ends:
            under = _pixel(picture, piece.mean(axis=0))
            colour = tuple(float(u + (235 - u) * mix) for u in under)
            a, b = _fixed(piece)
            cv2.line(picture, a.tolist(), b.tolist(), colour, wide, cv2.LINE_AA, _SHIFT)


# Joints of a figure; legs and arms come in pairs, left first.
_PELVIS, _NECK, _HEAD, _CROWN = range(4)
_HIP, _KNEE, _ANKLE, _TOE, _SHOULDER, _SLEEVE, _ELBOW, _HAND, _MID_THIGH = (
    range(4 + 2 * k, 6 + 2 * k) for k in range(9)
)
_JOINTS = 22

# Parts: (joint, joint, radius in metres, slot of the colour, metres nearer for the order)
_SOCKS, _BOOTS, _SKIN, _SHORTS, _SHIRT, _ARM, _HAIR, _SECOND = range(8)
_LIMBS: tuple[tuple[int, int, float, int, float], ...] = tuple(
    part
    for side in (0, 1)
    for part in (
        (_ANKLE[side], _TOE[side], 0.05, _BOOTS, -0.05),
        (_HIP[side], _KNEE[side], 0.085, _SKIN, -0.04),
        (_KNEE[side], _ANKLE[side], 0.066, _SOCKS, -0.02),
        (_HIP[side], _MID_THIGH[side], 0.125, _SHORTS, 0.02),
        (_ELBOW[side], _HAND[side], 0.042, _SKIN, 0.0),
        (_SHOULDER[side], _ELBOW[side], 0.05, _SKIN, 0.0),
        (_SHOULDER[side], _SLEEVE[side], 0.078, _ARM, 0.02),
    )
)
_PARTS = (
    *_LIMBS,
    (_PELVIS, _NECK, 0.155, _SHIRT, 0.10),
    (_SHOULDER[0], _SHOULDER[1], 0.10, _SHIRT, 0.11),
    (_NECK, _HEAD, 0.06, _SKIN, 0.105),
    (_HEAD, _CROWN, 0.105, _SKIN, 0.14),
)
_TORSO = len(_LIMBS)
_PART_FROM = np.array([p[0] for p in _PARTS])
_PART_TO = np.array([p[1] for p in _PARTS])
_PART_RADIUS = np.array([p[2] for p in _PARTS])
_PART_SLOT = np.array([p[3] for p in _PARTS])
_PART_BIAS = np.array([p[4] for p in _PARTS])


def _figure_joints(scene: Scene, number: int) -> Floats:
    """Joints (N, J, 3) in metres of all people at one frame: a walk that becomes a run with the speed."""
    heading, speed, phase = scene.headings[number], scene.speeds[number], scene.phases[number]
    count = len(heading)
    swing = np.clip(0.10 + 0.095 * speed, 0.1, 0.7)
    bend = np.clip(0.12 + 0.2 * speed, 0.1, 1.4)
    local = np.zeros((count, _JOINTS, 3))  # forward, to the left, up; for a height of 1.8 m
    lean = np.clip(0.03 * speed, 0, 0.22)
    local[:, _PELVIS] = np.stack([0 * lean, 0 * lean, 0 * lean + 1.0], axis=1)
    local[:, _NECK] = np.stack([lean * 0.5, 0 * lean, 0 * lean + 1.42], axis=1)
    local[:, _HEAD] = np.stack([lean * 0.7 + 0.02, 0 * lean, 0 * lean + 1.62], axis=1)
    local[:, _CROWN] = np.stack([lean * 0.7 + 0.02, 0 * lean, 0 * lean + 1.70], axis=1)
    for side, sign in ((0, 1.0), (1, -1.0)):
        turn = phase + (0 if side == 0 else np.pi)
        thigh = swing * np.sin(turn) + 0.05 * speed.clip(0, 4)
        shin = thigh - bend * (0.5 - 0.5 * np.sin(turn + 0.9))
        zero = np.zeros(count)
        hip = np.stack([zero, zero + 0.10 * sign, zero + 0.93], axis=1)
        knee = hip + 0.45 * np.stack([np.sin(thigh), zero + 0.06 * sign, -np.cos(thigh)], axis=1)
        ankle = knee + 0.43 * np.stack([np.sin(shin), zero, -np.cos(shin)], axis=1)
        local[:, _HIP[side]], local[:, _KNEE[side]], local[:, _ANKLE[side]] = hip, knee, ankle
        local[:, _TOE[side]] = ankle + np.stack(
            [0.17 * np.cos(shin * 0.7), zero, 0.17 * np.sin(shin * 0.7) - 0.02], axis=1
        )
        local[:, _MID_THIGH[side]] = hip + 0.55 * (knee - hip)
        arm = -0.8 * swing * np.sin(turn)
        fore = arm + np.clip(0.25 + 0.2 * speed, 0, 1.5)
        shoulder = np.stack([lean * 0.5, zero + 0.19 * sign, zero + 1.40], axis=1)
        elbow = shoulder + 0.29 * np.stack([np.sin(arm), zero + 0.3 * sign, -np.cos(arm) * 0.95], axis=1)
        local[:, _SHOULDER[side]], local[:, _ELBOW[side]] = shoulder, elbow
        local[:, _SLEEVE[side]] = shoulder + 0.6 * (elbow - shoulder)
        local[:, _HAND[side]] = elbow + 0.27 * np.stack([np.sin(fore), zero - 0.1 * sign, -np.cos(fore)], axis=1)
    lowest = local[:, [*_ANKLE, *_TOE], 2].min(axis=1) - 0.05
    local[:, :, 2] -= lowest[:, None]
    local *= (scene.people.height / 1.8)[:, None, None]
    cos, sin = np.cos(heading)[:, None], np.sin(heading)[:, None]
    # seen from above y points down the picture: left of the heading (cos, sin) is (sin, -cos)
    x = scene.positions[number, :, :1] + local[..., 0] * cos + local[..., 1] * sin
    y = scene.positions[number, :, 1:] + local[..., 0] * sin - local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], axis=2)


_BOW = np.radians(np.array([-90.0, -45.0, 0.0, 45.0, 90.0]))


def _capsules(a: Floats, b: Floats, radius: Floats) -> Floats:
    """Outlines (..., 10, 2) of thick strokes from a to b (..., 2) with round ends; radius (...) in pixels."""
    along = b - a
    size = np.linalg.norm(along, axis=-1, keepdims=True)
    along = np.where(size > 1e-6, along / np.maximum(size, 1e-6), np.array([1.0, 0.0]))
    normal = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    bow = np.cos(_BOW)[:, None] * along[..., None, :] + np.sin(_BOW)[:, None] * normal[..., None, :]
    reach = radius[..., None, None]
    return np.concatenate([b[..., None, :] + reach * bow, a[..., None, :] - reach * bow], axis=-2)


def _colours(people: People, index: int, bright: float) -> list[Colour]:
    kit = people.kit[index]
    sleeves = kit.second if kit.pattern == "sleeves" else kit.shirt
    skin = people.skin[index]
    slots = [
        kit.socks,
        people.boots[index],
        skin,
        kit.shorts,
        kit.shirt,
        sleeves,
        people.hair[index],
        kit.second,
    ]
    return [(float(s[0]) * bright, float(s[1]) * bright, float(s[2]) * bright) for s in slots]


def _fill(picture: Picture, outline: Floats, colour: Colour) -> None:
    cv2.fillConvexPoly(picture, _fixed(outline), colour, cv2.LINE_AA, _SHIFT)


def _darker(colour: Colour, by: float) -> Colour:
    return colour[0] * by, colour[1] * by, colour[2] * by


def _draw_person(
    picture: Picture, scene: Scene, index: int, parts: Floats, order: Ints, bright: float, back: float
) -> None:
    """One figure: parts (P, 10, 2) in the given order, then the hair. `back` is 1 seen from behind."""
    colours = _colours(scene.people, index, bright)
    outlines = _fixed(parts)
    for part in order:
        cv2.fillConvexPoly(picture, outlines[part], colours[int(_PART_SLOT[part])], cv2.LINE_AA, _SHIFT)
        if part == _TORSO:
            _draw_shirt(picture, parts[part], scene.people.kit[index], colours, back)
    head = parts[-1]
    top = head.mean(axis=0)
    size = float(np.ptp(head[:, 0]))
    hair = head[:, :] * (0.62, 0.5) + top * (0.38, 0.5) + np.array([0.0, -0.22 * size])
    _fill(
        picture,
        hair if back < 0.5 else head * 0.85 + top * 0.15 + np.array([0, -0.08 * size]),
        colours[_HAIR],
    )


def _draw_shirt(picture: Picture, torso: Floats, kit: Kit, colours: list[Colour], back: float) -> None:
    """Pattern, the shaded side, and a number on the back; outlines are made from the torso's own."""
    middle = torso.mean(axis=0)
    wide = float(np.ptp(torso[:, 0]))
    if kit.pattern == "stripes" and wide > 4:
        for offset in (-0.28, 0.0, 0.28):
            _fill(
                picture,
                (torso - middle) * (0.16, 0.92) + middle + np.array([offset * wide, 0]),
                colours[_SECOND],
            )
    elif kit.pattern == "hoops" and wide > 4:
        tall = float(np.ptp(torso[:, 1]))
        for offset in (-0.25, 0.1):
            _fill(
                picture,
                (torso - middle) * (0.95, 0.14) + middle + np.array([0, offset * tall]),
                colours[_SECOND],
            )
    _fill(
        picture,
        (torso - middle) * (0.34, 0.95) + middle + np.array([0.32 * wide, 0]),
        _darker(colours[_SHIRT], 0.78),
    )
    if back > 0.5 and kit.pattern != "stripes":
        _fill(picture, (torso - middle) * (0.4, 0.3) + middle - np.array([0, 0.1 * wide]), colours[_SECOND])


def _draw_shadows(
    picture: Picture, matrix: Floats, scene: Scene, where: Floats, heights: Floats, bright: Floats
) -> None:
    """Shadows on the grass as dark strokes from the feet, one a lamp."""
    for dx, dy, dark in scene.stage.shadow:
        feet = np.column_stack([where, np.zeros(len(where))])
        tip = feet + np.column_stack([dx * heights, dy * heights, np.zeros(len(where))])
        ends, depth = project(matrix, np.stack([feet, tip], axis=1))
        side, _ = project(matrix, feet + np.array([0.0, 0.0, 0.17]))
        width = np.linalg.norm(side - ends[:, 0], axis=1)
        outlines = _capsules(ends[:, 0], ends[:, 1], np.maximum(width * 0.8, 0.7))
        height_px, width_px = picture.shape[:2]
        centre = outlines.mean(axis=1)
        seen = (depth.min(axis=1) > 1) & (np.abs(centre - (width_px / 2, height_px / 2)) < (width_px, height_px)).all(
            axis=1
        )
        for i in np.flatnonzero(seen):
            grass = _pixel(picture, (ends[i, 0] + ends[i, 1]) / 2)
            _fill(
                picture,
                outlines[i],
                _darker((grass[0], grass[1], grass[2]), 1 - dark * min(1.0, float(bright[i]) + 0.1)),
            )


@dataclass(frozen=True, slots=True)
class _Cast:
    """All people of a frame, projected: outlines (N, P, 10, 2), depth (N,), xyxy (N, 4), order (N, P)."""

    outlines: Floats
    depth: Floats
    xyxy: Floats
    order: Ints
    seen: npt.NDArray[np.bool_]
    back: Floats


def _project_people(matrix: Floats, scene: Scene, number: int, focal: float) -> _Cast:
    joints = _figure_joints(scene, number)
    pixels, depth = project(matrix, joints)
    part_depth = (depth[:, _PART_FROM] + depth[:, _PART_TO]) / 2
    radius = _PART_RADIUS * focal / np.maximum(part_depth, 0.1)
    outlines = _capsules(pixels[:, _PART_FROM], pixels[:, _PART_TO], np.maximum(radius, 0.35))
    flat = outlines.reshape(len(joints), -1, 2)
    xyxy = np.concatenate([flat.min(axis=1), flat.max(axis=1)], axis=1)
    width, height = scene.size
    inside = (xyxy[:, 2] > 0) & (xyxy[:, 3] > 0) & (xyxy[:, 0] < width) & (xyxy[:, 1] < height)
    seen = (depth.min(axis=1) > 1) & inside
    camera = scene.cameras[number].position[:2]
    away = scene.positions[number] - camera
    facing = np.stack([np.cos(scene.headings[number]), np.sin(scene.headings[number])], axis=1)
    back = (away * facing).sum(axis=1) / np.linalg.norm(away, axis=1)
    return _Cast(outlines, depth[:, _PELVIS], xyxy, np.argsort(_PART_BIAS - part_depth, axis=1), seen, back)


def _draw_ball(picture: Picture, matrix: Floats, scene: Scene, number: int, focal: float) -> Floats | None:
    """The ball, drawn out along its way while the shutter is open (a quarter of a frame), and its box."""
    now = scene.ball[number]
    before = scene.ball[max(0, number - 1)]
    track = np.stack([now - (now - before) / 8, now + (now - before) / 8])
    ends, depth = project(matrix, track)
    if depth.min() < 1:
        return None
    radius = np.array(max(BALL_RADIUS * focal / float(depth.mean()), 1.3 * scene.size[0] / 1280))
    outline = _capsules(ends[0], ends[1], radius)
    bright = float(_light_at(scene.stage.light, now[None, :2])[0])
    _fill(picture, outline, _darker((235.0, 240.0, 240.0), max(bright, 0.5)))
    middle = outline.mean(axis=0)
    underside = (outline - middle) * (0.75, 0.35) + middle + np.array([0, 0.5 * float(radius)])
    _fill(picture, underside, _darker((170.0, 180.0, 175.0), max(bright, 0.5)))
    return np.concatenate([outline.min(axis=0), outline.max(axis=0)])


def _draw_ball_shadow(picture: Picture, matrix: Floats, scene: Scene, number: int, focal: float) -> None:
    ground = scene.ball[number] * (1, 1, 0) + np.array([0.05, 0.04, 0])
    at, depth = project(matrix, ground)
    if float(depth) < 1:
        return
    radius = np.array(max(BALL_RADIUS * focal / float(depth), 1.0))
    grass = _pixel(picture, at)
    half = np.array([0.3 * float(radius), 0.0])
    outline = _capsules(at - half, at + half, radius)
    _fill(picture, (outline - at) * (1.0, 0.5) + at, _darker((grass[0], grass[1], grass[2]), 0.62))


def _draw_scoreboard(picture: Picture, scene: Scene, number: int) -> None:
    scale = picture.shape[1] / 1280
    seconds = int(number / scene.fps)
    clock = f"{seconds // 60:02d}:{seconds % 60:02d}"
    left, top, tall = int(60 * scale), int(34 * scale), int(34 * scale)
    cv2.rectangle(picture, (left, top), (left + int(270 * scale), top + tall), (58, 30, 22), -1)
    cv2.rectangle(picture, (left + int(190 * scale), top), (left + int(270 * scale), top + tall), (225, 225, 225), -1)
    base = top + int(24 * scale)
    for text, x, ink in (
        (scene.stage.name, left + int(12 * scale), (240, 240, 240)),
        (clock, left + int(200 * scale), (30, 30, 30)),
    ):
        cv2.putText(picture, text, (x, base), cv2.FONT_HERSHEY_DUPLEX, 0.6 * scale, ink, 1, cv2.LINE_AA)


def _draw_sensor(picture: Picture, scene: Scene, number: int) -> None:
    """What the lens and the sensor add: blur along a fast pan, a little softness, grain. Works in place."""
    camera, previous = scene.cameras[number], scene.cameras[max(0, number - 1)]
    smear = round(abs(camera.pan - previous.pan) * camera.focal / 4)  # a shutter open for a quarter of the frame
    if smear >= 2:
        cv2.blur(picture, (min(smear, 31) | 1, 1), dst=picture)
    cv2.GaussianBlur(picture, (3, 3), 0.55, dst=picture)
    rng = np.random.default_rng((scene.seed, number))
    height, width = picture.shape[:2]
    y, x = (int(v) for v in rng.integers(0, _GRAIN_MARGIN, 2))
    grain = _grain(height + _GRAIN_MARGIN, width + _GRAIN_MARGIN)[y : y + height, x : x + width]
    cv2.add(picture, grain, dst=picture)


_GRAIN_MARGIN = 64
_grain_cache: dict[tuple[int, int], Picture] = {}


def _grain(height: int, width: int) -> Picture:
    """Noise of mean 3 and deviation 1.7 in all three channels alike, made once a size."""
    if (height, width) not in _grain_cache:
        noise = np.random.default_rng(1).normal(3, 1.7, (height, width, 1)).clip(0, 9)
        _grain_cache[height, width] = np.repeat(noise, 3, axis=2).astype(np.uint8)
    return _grain_cache[height, width]


def _label(scene: Scene, number: int, matrix: Floats, cast: _Cast, ball: Floats | None) -> FrameLabels:
    width, height = scene.size
    limits = np.array([width, height, width, height], dtype=np.float64)
    named = np.flatnonzero(scene.people.class_id != BYSTANDER)
    xyxy = np.clip(cast.xyxy[named], 0, limits)
    class_id, identity, seen = scene.people.class_id[named], named + 1, cast.seen[named]
    area = (cast.xyxy[named, 2] - cast.xyxy[named, 0]) * (cast.xyxy[named, 3] - cast.xyxy[named, 1])
    kept = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]) > 0.3 * area
    if ball is not None and ball[0] > 0 and ball[1] > 0 and ball[2] < width and ball[3] < height:
        xyxy = np.concatenate([xyxy, ball[None]])
        class_id, identity = np.append(class_id, BALL), np.append(identity, 0)
        seen, kept = np.append(seen, True), np.append(kept, True)
    rows = np.flatnonzero(seen & kept)
    points, depth = project(matrix, np.column_stack([KEYPOINTS, np.zeros(32)]))
    visible = (depth > 0) & (points >= 0).all(axis=1) & (points[:, 0] < width) & (points[:, 1] < height)
    keypoints = np.where(visible[:, None], np.column_stack([points, np.ones(32)]), 0.0)
    homography = matrix[:, [0, 1, 3]]
    homography = homography / homography[2, 2]
    pts_seconds, identity = number / scene.fps, identity[rows] + scene.first_identity
    return FrameLabels(number, pts_seconds, xyxy[rows], class_id[rows], identity, keypoints, homography)


def render_frame(scene: Scene, frame_number: int) -> tuple[Picture, FrameLabels]:
    """Draws one frame: BGR uint8 (height, width, 3), and its labels.

    Raises:
        IndexError: the scene has no such frame.
    """
    if not 0 <= frame_number < scene.frames:
        raise IndexError(f"frame {frame_number} of a scene of {scene.frames} frames")
    camera = scene.cameras[frame_number]
    matrix, width, height = camera.matrix(), *scene.size
    picture: Picture = np.empty((height, width, 3), np.uint8)
    cv2.rectangle(picture, (0, 0), (width, height), scene.stage.sky, -1)  # np.full is ten times slower here
    _draw_surface(picture, matrix, scene.stage.ground)
    for wall in scene.stage.walls:
        _draw_surface(picture, matrix, wall)
    cast = _project_people(matrix, scene, frame_number, camera.focal)
    where = scene.positions[frame_number]
    bright = _light_at(scene.stage.light, where)
    _draw_shadows(picture, matrix, scene, where[cast.seen], scene.people.height[cast.seen], bright[cast.seen])
    _draw_ball_shadow(picture, matrix, scene, frame_number, camera.focal)
    _draw_lines(picture, matrix, scene.stage)
    _draw_goal(picture, matrix, 0.0, -1.0)
    _draw_goal(picture, matrix, LENGTH, 1.0)
    ball_depth = float(project(matrix, scene.ball[frame_number])[1])
    ball: Floats | None = None
    drawn = False
    for index in np.argsort(-cast.depth):
        if not drawn and cast.depth[index] < ball_depth:
            ball, drawn = _draw_ball(picture, matrix, scene, frame_number, camera.focal), True
        if cast.seen[index]:
            shade = float(bright[index])
            _draw_person(
                picture,
                scene,
                int(index),
                cast.outlines[index],
                cast.order[index],
                shade,
                float(cast.back[index]),
            )
    if not drawn:
        ball = _draw_ball(picture, matrix, scene, frame_number, camera.focal)
    for wall in scene.stage.front:
        _draw_surface(picture, matrix, wall)
    _draw_sensor(picture, scene, frame_number)
    if scene.stage.scoreboard:
        _draw_scoreboard(picture, scene, frame_number)
    return picture, _label(scene, frame_number, matrix, cast, ball)


def random_still(rng: np.random.Generator, size: tuple[int, int] = (1280, 720)) -> tuple[Picture, FrameLabels]:
    """One picture of a match never seen before or again, for training; many kinds of cameras and colours."""
    seed = int(rng.integers(2**62))
    scene = make_scene(seed=seed, frames=2, size=size, wild=True)
    picture, labels = render_frame(scene, 1)
    return _graded(rng, picture), labels


def _graded(rng: np.random.Generator, picture: Picture) -> Picture:
    """Another broadcaster's colours: gain, gamma, tint; sometimes sharpened as TV pictures are."""
    if rng.random() < 0.4:
        soft = cv2.GaussianBlur(picture, (0, 0), 1.2)
        picture = np.asarray(cv2.addWeighted(picture, 1.7, soft, -0.7, 0), dtype=np.uint8)
    levels = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.8, 1.25)
    gain = rng.uniform(0.85, 1.2) * rng.normal(1, 0.04, 3)
    table = np.clip((levels * gain + rng.uniform(0, 0.05)) * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table[None]), dtype=np.uint8)


# ---- clips


def render_frames(scenes: list[Scene]) -> Iterator[tuple[Picture, FrameLabels]]:
    """The frames of several scenes one after the other, as cut together; frame numbers run on."""
    number = 0
    for scene in scenes:
        for own in range(scene.frames):
            picture, labels = render_frame(scene, own)
            yield picture, _renumbered(labels, number, scene.fps)
            number += 1


def _renumbered(labels: FrameLabels, number: int, fps: float) -> FrameLabels:
    return FrameLabels(
        number,
        number / fps,
        labels.xyxy,
        labels.class_id,
        labels.identity,
        labels.keypoints,
        labels.homography,
    )


def write_clip(
    path: Path | str,
    frames: int = 750,
    size: tuple[int, int] = (1280, 720),
    fps: int = 25,
    gop: int = 50,
    b_frames: int = 2,
    seed: int = 0,
    cut_at: int | None = None,
    codec: str = "libx264",
    bit_rate: int = 4_000_000,
    still_camera: bool = False,
    moov_first: bool = True,
    preset: str = "veryfast",
) -> list[FrameLabels]:
    """Renders a match into an MP4 and returns the labels of every frame.

    Key frames come exactly every `gop` frames. At `cut_at` the picture cuts to another match; ball and people
    there have identities from 100 on. `bit_rate` is bits a second for 1280x720 at 25 fps.

    Raises:
        ValueError: odd width or height (4:2:0 needs even ones), or a cut outside the clip.
    """
    if size[0] % 2 or size[1] % 2:
        raise ValueError(f"size must be even for 4:2:0 video, got {size}")
    if cut_at is not None and not 0 < cut_at < frames:
        raise ValueError(f"cut_at must lie inside the clip of {frames} frames, got {cut_at}")
    first = frames if cut_at is None else cut_at
    scenes = [make_scene(seed, first, size, fps, still_camera)]
    if first < frames:
        scenes.append(make_scene(seed + 7919, frames - first, size, fps, still_camera, first_identity=100))
    movie_flags = {"movflags": "faststart"} if moov_first else {}
    all_labels = []
    with av.open(str(path), "w", format="mp4", options=movie_flags) as container:
        stream = _open_stream(container, codec, size, fps, gop, b_frames, bit_rate, preset)
        for picture, labels in render_frames(scenes):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = labels.frame_number, Fraction(1, fps)
            container.mux(stream.encode(frame))
            all_labels.append(labels)
        container.mux(stream.encode(None))
    return all_labels


def _open_stream(
    container: av.container.OutputContainer,
    codec: str,
    size: tuple[int, int],
    fps: int,
    gop: int,
    b_frames: int,
    bit_rate: int,
    preset: str,
) -> av.VideoStream:
    options = {"preset": preset, "bf": str(b_frames)}
    if codec == "libx264":
        options["x264-params"] = "scenecut=0:open-gop=0"
    elif codec == "libx265":
        options["x265-params"] = (
            f"scenecut=0:open-gop=0:keyint={gop}:min-keyint={gop}:bframes={b_frames}:log-level=error"
        )
    stream = container.add_stream(codec, rate=fps, options=options)
    assert isinstance(stream, av.VideoStream)
    stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
    stream.codec_context.gop_size = gop
    stream.codec_context.bit_rate = round(bit_rate * size[0] * size[1] / (1280 * 720) * fps / 25)
    # BT.709, limited range, as HD broadcasts are; said in the stream so that players do not guess
    stream.codec_context.color_primaries = stream.codec_context.color_trc = stream.codec_context.colorspace = 1
    stream.codec_context.color_range = 1
    return stream


def labels_document(labels: list[FrameLabels], size: tuple[int, int], fps: float) -> dict[str, object]:
    """The labels of a clip with the same `frames` as an answer of `firsttouch analyze`."""
    source = {"width": size[0], "height": size[1], "frame_count": len(labels), "frames_per_second": fps,
              "duration_seconds": len(labels) / fps}  # fmt: skip
    return {"version": 1, "source": source, "frames": [frame.as_answer_frame() for frame in labels]}


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size looks like 1280x720, got {text}")
    return int(width), int(height)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.render", description="Draw a football clip with exact labels."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CLIP.mp4", help="the clip to write")
    parser.add_argument("--labels", type=Path, metavar="LABELS.json", help="write its labels here")
    parser.add_argument("--frames", type=int, default=750)
    parser.add_argument("--size", type=_size, default=(1280, 720), metavar="WxH")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--gop", type=int, default=50, help="frames from key frame to key frame")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cut-at", type=int, metavar="FRAME", help="cut to another match at this frame")
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--bit-rate", type=int, default=4_000_000, help="bits a second at 1280x720 and 25 fps")
    parser.add_argument("--still-camera", action="store_true")
    parser.add_argument("--moov-last", action="store_true", help="leave the index at the end of the file")
    given = parser.parse_args(arguments)
    try:
        labels = write_clip(given.output, given.frames, given.size, given.fps, given.gop, seed=given.seed,
                            cut_at=given.cut_at, codec=given.codec, bit_rate=given.bit_rate,
                            still_camera=given.still_camera, moov_first=not given.moov_last)  # fmt: skip
    except ValueError as problem:
        parser.error(str(problem))
    if given.labels:
        given.labels.write_text(json.dumps(labels_document(labels, given.size, given.fps)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
