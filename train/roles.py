"""Fits what parts goalkeepers, players and referees by the whole picture (`firsttouch.detect.roles`).

The network under it has seen these matches, and is surer of their shirts than of any it will meet. So each scene is
shown many times with the network's opinion disturbed as it errs on new matches: a whole team, the referees or a keeper
taken for something else, single bodies doubted, the pitch not found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from firsttouch.detect.roles import LEAST_SCORE, METADATA_KEY, Roles, Scene, facts, see
from train import export, fit, measure
from train.augment import FULL, View, augmented_view, plain_view
from train.data import Frame

UNSAID, GOALKEEPER, PLAYER, REFEREE = -1, 1, 2, 3
TEAM_DOUBT, BODY_DOUBT, PERSON_DOUBT = 2.0, 1.0, 0.5
"""Standard deviations in logits: of all who are dressed alike, of one body, of its being a person at all."""
COLOUR_NOISE = np.array([3.0, 1.5, 1.5])
PITCH_LOST = 0.3
CLASS_WEIGHTS = (1.0, 2.0, 1.0, 2.0)
HIDDEN, RATE, DECAY, BATCH = 32, 4e-3, 0.01, 2048
MEMBERS = 4
"""Networks whose mean is shipped, side by side as one: alone they differ by a tenth of AP in rare roles."""

Judged = tuple[Scene, NDArray[np.int64]]  # and of each body its true class, 0 for nobody of the match, or UNSAID


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the ONNX file whose scores are to be shared out")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="the same network in other precisions")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, nargs="*", default=[], help="more folders with images/ and labels/")
    parser.add_argument("--pseudo", type=Path, help="labels for what has none: proposals, as they are or corrected")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--views", type=int, default=4, help="augmented views of each picture, beside the plain one")
    parser.add_argument("--doubts", type=int, default=3, help="times that each view is shown, disturbed")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    known = fit.load_training_frames(args.data, args.cache, args.extra, args.pseudo)
    frames = [f for f in known if f.boxes is not None]
    rng = np.random.default_rng(args.seed)
    judged = scenes(views(frames, args.views, rng), export.answering(args.model))
    roles = fitted(judged, doubts=args.doubts, epochs=args.epochs, rng=rng, seed=args.seed)
    for path in (args.model, *args.also):
        stamp(path, roles)
        print(f"{path} {path.stat().st_size / 1e6:.2f} MB, roles from {len(judged)} views")


def stamp(path: Path, roles: Roles) -> None:
    """Writes the roles into the file's metadata, in place of those that were there."""
    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, known | {METADATA_KEY: roles.text()})
    onnx.save(model, path)


def views(frames: Sequence[Frame], count: int, rng: np.random.Generator) -> Iterator[View]:
    for frame in frames:
        yield plain_view(frame)
        for _ in range(count):
            yield augmented_view(frame, FULL, rng)


def scenes(shown: Iterator[View], run: measure.Answering) -> list[Judged]:
    """What the network sees in each view, with the true class of each body."""
    judged = []
    for view in shown:
        boxes, scores, points = (o[0] for o in run(view.planes[None]))
        heard = scores[:, 1:].max(1) >= LEAST_SCORE
        if heard.any() and view.boxes is not None:
            boxes, scores = boxes[heard], scores[heard]
            classes = true_classes(boxes, scores, view.boxes)
            if len(view.ignore):
                classes[(measure.iou_matrix(boxes, view.ignore).max(1) >= 0.5) & (classes == 0)] = UNSAID
            judged.append((see(view.planes, boxes, scores[:, 1:], points), classes))
    return judged


def true_classes(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.float32]
) -> NDArray[np.int64]:
    """(N,) class of the label that a body has to itself, surest bodies first; 0 where there is none."""
    people = labels[labels[:, 0] > 0]
    classes = np.zeros(len(boxes), np.int64)
    overlap, free = measure.iou_matrix(boxes, people[:, 1:]), np.ones(len(people), bool)
    for k in np.argsort(-scores[:, 1:].max(1), kind="stable"):
        row = np.where(free, overlap[k], 0)
        if len(row) and row.max() >= 0.5 and scores[k, 0] <= scores[k, 1:].max():
            free[row.argmax()] = False
            classes[k] = people[row.argmax(), 0]
    return classes


def disturbed(scene: Scene, classes: NDArray[np.int64], rng: np.random.Generator) -> Scene:
    """The scene as a network might see it that has never met these shirts."""
    scores = np.clip(scene.scores, 1e-3, 1 - 1e-3)
    logits = np.log(scores / (1 - scores))
    doubt = rng.normal(0, TEAM_DOUBT, (len(GROUPS), 3))
    doubt[0] *= 0.3
    new = logits + doubt[_groups(scene, classes)] + rng.normal(0, BODY_DOUBT, logits.shape)
    new += (logits.max(1) - new.max(1) + rng.normal(0, PERSON_DOUBT, len(new)))[:, None]
    return replace(
        scene,
        scores=1 / (1 + np.exp(-new)),
        colours=scene.colours + rng.normal(0, 1, scene.colours.shape) * COLOUR_NOISE,
        found=scene.found & (rng.random() >= PITCH_LOST),
    )


GROUPS = ("nobody", "one team", "the other", "referees", "goalkeepers")


def _groups(scene: Scene, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    group = np.select([classes == REFEREE, classes == GOALKEEPER], [3, 4], 0)
    players = np.flatnonzero(classes == PLAYER)
    if len(players) > 3:
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 0.5)
        shirts = np.asarray(scene.colours[players, 0] * (0.5, 1, 1), np.float32)
        _, sides, _ = cv2.kmeans(shirts, 2, np.empty(0, np.int32), criteria, 2, cv2.KMEANS_PP_CENTERS)
        group[players] = 1 + sides.ravel()
    return group


def fitted(judged: Sequence[Judged], *, doubts: int, epochs: int, rng: np.random.Generator, seed: int) -> Roles:
    told = np.concatenate([facts(disturbed(s, c, rng)) for s, c in judged for _ in range(doubts)])
    true = np.concatenate([c for _, c in judged for _ in range(doubts)])
    told, classes = told[true != UNSAID], torch.from_numpy(true[true != UNSAID])
    mean, spread = told.mean(0), told.std(0) + 1e-3
    inputs = torch.from_numpy(np.clip((told - mean) / spread, -6, 6).astype(np.float32))
    members = [_trained(inputs, classes, epochs, seed + k).state_dict() for k in range(MEMBERS)]
    stacked: dict[str, Any] = {k: [m[k].numpy() for m in members] for k in members[0]}
    return Roles(
        mean=mean,
        spread=spread,
        first=np.concatenate([w.T for w in stacked["0.weight"]], 1),
        first_bias=np.concatenate(stacked["0.bias"]),
        second=np.concatenate([w.T for w in stacked["2.weight"]]) / MEMBERS,
        second_bias=np.mean(stacked["2.bias"], 0),
    )


def _trained(inputs: torch.Tensor, classes: torch.Tensor, epochs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 4))
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weights = torch.tensor(CLASS_WEIGHTS)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            loss = nn.functional.cross_entropy(network(inputs[rows]), classes[rows], weight=weights)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.requires_grad_(False)
