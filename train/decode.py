"""From raw maps to boxes, scores and key points, inside the graph that ships."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.network import CELL, KEYPOINT_CELL, KEYPOINTS, Network, normalised

PEOPLE, BALLS = 92, 8  # together K = 100 rows
UPRIGHT, ROUND = (3, 1), (3, 3)  # rows and columns of cells among which a peak is the highest
OTHER_PERSON_IOU, SAME_PERSON_IOU = 0.3, 0.7
SAME_BOX_IOU = 0.6
WIDER = 1.06  # people are seen narrower than they are labelled, on pictures trained on and others alike


def _peaks(logits: Tensor, count: int, among: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores [n, count] and flat cell indices of the strongest local maxima of [n, 1, h, w]."""
    heat = torch.sigmoid(logits)
    top = F.max_pool2d(heat, among, 1, (among[0] // 2, among[1] // 2))
    scores, cells = torch.topk((heat * (heat == top).float()).flatten(1), count)
    return scores, cells


def _row_and_column(cells: Tensor, width: int | Tensor) -> tuple[Tensor, Tensor]:
    return torch.div(cells, width, rounding_mode="trunc"), cells % width  # "floor" is ten nodes of a graph


def _boxes(values: Tensor, cells: Tensor, width: int | Tensor, wider: float = 1.0) -> Tensor:
    """[n, 4, k] xyxy pixels from [n, 4, k] offset x y, log size x y found at flat `cells`."""
    row, column = _row_and_column(cells, width)
    centre = values[:, :2] + torch.stack((column, row), 1) + 0.5
    half = values[:, 2:].clamp(-3.0, 5.0).exp() * torch.tensor([[wider / 2], [0.5]], device=values.device)
    return torch.cat((centre - half, centre + half), 1) * CELL


def _area(corners: Tensor) -> Tensor:
    """[n, 1, ...] of [n, 4, ...]."""
    across, down = (corners[:, 2:] - corners[:, :2]).clamp(min=0).split((1, 1), 1)
    return across * down


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU [n, 1, ...] of boxes [n, 4, ...] whose other axes broadcast."""
    inner = _area(torch.cat((torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])), 1))
    return inner / (_area(a) + _area(b) - inner).clamp(min=1e-6)


def _suppress(boxes: Tensor, scores: Tensor) -> Tensor:
    """Less score for who overlaps a stronger one, none for the same person: scores [n, k] must fall along k."""
    stronger = torch.ones(PEOPLE, PEOPLE, device=boxes.device).triu(1)
    overlap = (_overlap(boxes[:, :, :, None], boxes[:, :, None]) * stronger).amax((1, 2))
    return scores * ((SAME_PERSON_IOU - overlap) / (SAME_PERSON_IOU - OTHER_PERSON_IOU)).clamp(0, 1)


def _people(flat: Tensor, cells: Tensor, width: int | Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [n, 4, k] of people, and what `flat` [n, 13, h * w] holds at their `cells` [n, k].

    A box is the mean of what its own cell says and those above and below, where they speak of the same box.
    """
    above, below = (cells - width).clamp(min=0), (cells + width).clamp(max=flat.shape[2] - 1)
    three = torch.cat((cells, above, below), 1)
    values = torch.gather(flat, 2, three[:, None].expand(-1, 13, -1))
    boxes = _boxes(values[:, 4:8], three, width, WIDER).reshape(-1, 4, 3, PEOPLE)
    heat = torch.sigmoid(values[:, 0]).reshape(-1, 1, 3, PEOPLE)
    weight = heat * (_overlap(boxes, boxes[:, :, :1]) > SAME_BOX_IOU).float()
    return (boxes * weight).sum(2) / weight.sum(2), values[:, :, :PEOPLE]


def decode_boxes(maps: Tensor, role: Tensor) -> tuple[Tensor, Tensor]:
    """(boxes [n, 100, 4], scores [n, 100, 4]) by falling best score; `maps` and `role` as `Network` gives them."""
    height, width = maps.shape[2], maps.shape[3]
    area = height * width
    # one long row first: a channel of a map that an int8 product wrote cell by cell is slow to pick out
    line = maps.flatten(1)
    flat = line.reshape(-1, 13, area)
    person_heat, ball_heat = (line[:, c * area : (c + 1) * area].reshape(-1, 1, height, width) for c in (0, 8))
    # two people side by side are one cell apart, and each of their cells says whose box it is: the overlap tells
    heat, cells = _peaks(person_heat, PEOPLE, UPRIGHT)
    ball_heat, ball_cells = _peaks(ball_heat, BALLS, ROUND)
    # whole columns are gathered from the one map: slices of it would be copies
    people, person = _people(flat, cells, width)
    ball = torch.gather(flat, 2, ball_cells[:, None].expand(-1, 13, -1))
    balls = _boxes(ball[:, 9:], ball_cells, width)
    row, column = _row_and_column(cells, width)
    coarse = torch.div(row, 2, rounding_mode="trunc") * role.shape[3] + torch.div(column, 2, rounding_mode="trunc")
    wide = torch.gather(role.flatten(2), 2, coarse[:, None].expand(-1, 3, -1))
    of_people = _suppress(people, heat)[:, None] * (person[:, 1:4] + wide).softmax(1)
    scores = F.pad(of_people, (0, BALLS, 1, 0)) + F.pad(ball_heat[:, None], (PEOPLE, 0, 0, 3))
    order = torch.topk(scores.amax(1), PEOPLE + BALLS).indices
    rows = torch.cat((torch.cat((people, balls), 2), scores), 1)
    rows = torch.gather(rows, 2, order[:, None].expand(-1, 8, -1)).transpose(1, 2)
    return rows[..., :4], rows[..., 4:]


def decode_keypoints(maps: Tensor) -> Tensor:
    """[n, 32, 3] x, y (pixels), confidence: the strongest cell of each point, and its eight neighbours' votes."""
    height, width = maps.shape[2], maps.shape[3]
    area = height * width
    best, cell = maps[:, :KEYPOINTS].flatten(2).max(-1)
    # the window is moved inside the map, so that its nine cells always exist
    row, column = _row_and_column(cell, width)
    row, column = row.clamp(min=1, max=height - 2), column.clamp(min=1, max=width - 2)
    nine = torch.arange(9, device=maps.device)
    columns, rows = column[..., None] + nine % 3 - 1, row[..., None] + nine // 3 - 1
    # one gather from the flat map for all three kinds of values: slices of so large a map are copies
    channel = torch.arange(KEYPOINTS, device=maps.device)[None, :, None]
    index = (channel * area + rows * width + columns).flatten(1)
    step = KEYPOINTS * area
    values = torch.gather(maps.flatten(1), 1, torch.cat((index, index + step, index + 2 * step), 1))
    logit, dx, dy = values.reshape(-1, 3, KEYPOINTS, 9).unbind(1)
    vote = torch.sigmoid(logit).square()
    total = vote.sum(-1).clamp(min=1e-9)
    x = (vote * (dx + columns + 0.5)).sum(-1) / total
    y = (vote * (dy + rows + 0.5)).sum(-1) / total
    return torch.stack((x * KEYPOINT_CELL, y * KEYPOINT_CELL, torch.sigmoid(best)), -1)


class Shipped(nn.Module):
    """The whole graph of the contract: planes uint8 [n, h, w, 6] -> boxes, scores, keypoints."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, keypoint, role = self.network(normalised(planes))
        boxes, scores = decode_boxes(maps, role)
        return boxes, scores, decode_keypoints(keypoint)
