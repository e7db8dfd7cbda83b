"""Losses: penalty-reduced focal on every heat map, L1 + GIoU on boxes, weighted cross-entropy on the class; and what a
smaller network is to learn from a larger one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from train.targets import Targets

CLASS_WEIGHT = (4.0, 1.0, 4.0)  # goalkeeper, player, referee: about the square root of how rare each is
SEEN_WEIGHT = (1.5, 1.0, 3.0)  # of finding and boxing them: referees stand far off, before boards, or with a flag out


def focal(logits: Tensor, heat: Tensor, weight: Tensor) -> Tensor:
    """CenterNet's focal loss (Zhou et al. 2019, alpha 2, beta 4), summed, per positive cell."""
    p = torch.sigmoid(logits).clamp(1e-5, 1 - 1e-5)
    positive = (heat > 0.999).float() * weight
    hit = -torch.log(p) * (1 - p) ** 2 * positive
    miss = -torch.log(1 - p) * p**2 * (1 - heat) ** 4 * (1 - positive) * weight
    return (hit.sum() + miss.sum()) / (positive.sum() + 2.0)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of [..., 4] offset x y, log size x y about the same cell."""
    half_a, half_b = a[..., 2:].clamp(max=5).exp() / 2, b[..., 2:].exp() / 2
    a0, a1, b0, b1 = a[..., :2] - half_a, a[..., :2] + half_a, b[..., :2] - half_b, b[..., :2] + half_b
    inner = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    union = (2 * half_a).prod(-1) + (2 * half_b).prod(-1) - inner
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1)
    return inner / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def box_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """predicted, target [b, 4, h, w]; weight [b, h, w]. Mean over the weighted cells."""
    b, y, x = torch.nonzero(weight > 0, as_tuple=True)
    if len(b) == 0:
        return predicted.sum() * 0
    p, t, w = predicted[b, :, y, x], target[b, :, y, x], weight[b, y, x]
    # an offset error counts against the object's size: 1 cell is much on a ball and little on a near player
    scale = torch.cat((t[:, 2:].exp().reciprocal(), torch.ones_like(t[:, 2:])), 1)
    l1 = ((p - t).abs() * scale).sum(1)
    return ((l1 + 1.5 * (1 - _giou(p, t))) * w).sum() / w.sum()


def class_loss(logits: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
    b, y, x = torch.nonzero(weight > 0, as_tuple=True)
    if len(b) == 0:
        return logits.sum() * 0
    k = kind[b, y, x]
    w = weight[b, y, x] * torch.tensor(CLASS_WEIGHT, device=k.device)[k]
    loss = F.cross_entropy(logits[b, :, y, x], k, reduction="none", label_smoothing=0.02)
    return (loss * w).sum() / w.sum()


def keypoint_loss(maps: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """(heat loss, offset loss); maps [b, 96, h, w], points [b, 32, 3] in cells."""
    h, w = maps.shape[2:]
    xs, ys = torch.arange(w, device=points.device) + 0.5, torch.arange(h, device=points.device) + 0.5
    px, py, state = points.unbind(-1)
    dx, dy = px[..., None] - xs, py[..., None] - ys  # [b, 32, w], [b, 32, h]
    heat = torch.exp(-dy.square() / 2)[..., :, None] * torch.exp(-dx.square() / 2)[..., None, :]
    peak = heat.amax((2, 3), keepdim=True).clamp(min=1e-6)
    heat = (heat / peak) * (state > 0)[..., None, None]
    known = (state >= 0)[..., None, None].float().expand_as(heat)
    heat_loss = focal(maps[:, :32], heat, known)
    near = heat * (heat > 0.15)
    ox, oy = maps[:, 32:64], maps[:, 64:]
    error = (ox - dx[..., None, :]).abs() + (oy - dy[..., :, None]).abs()
    return heat_loss, (error * near).sum() / (near.sum() + 1)


def total(outputs: tuple[Tensor, Tensor, Tensor], t: Targets, whole: bool) -> tuple[Tensor, dict[str, float]]:
    """The training loss and its parts, all in float32; `whole` pictures show who is who, crops hardly do."""
    boxes, keypoint, role = (o.float() for o in outputs)
    person, ball = boxes[:, :8], boxes[:, 8:]
    kinds = person[:, 1:4] + F.interpolate(role, scale_factor=2.0, mode="nearest")
    somebody = t.box_weight[:, 0]
    rare = torch.where(somebody > 0, torch.tensor(SEEN_WEIGHT, device=t.kind.device)[t.kind], 1.0)
    parts = {
        "person": focal(person[:, 0], t.heat[:, 0], t.weight[:, 0] * rare),
        "ball": focal(ball[:, 0], t.heat[:, 1], t.weight[:, 1]),
        "class": (4.0 if whole else 1.0) * class_loss(kinds, t.kind, somebody),
        "box": box_loss(person[:, 4:], t.box[:, 0], somebody * rare),
        "ball_box": 0.5 * box_loss(ball[:, 1:], t.box[:, 1], t.box_weight[:, 1]),
    }
    if bool((t.points[..., 2] >= 0).any()):
        parts["point"], parts["offset"] = keypoint_loss(keypoint, t.points)
    else:
        parts["point"] = keypoint.sum() * 0
    return torch.stack(list(parts.values())).sum(), {k: v.item() for k, v in parts.items()}


def taught(outputs: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How far a small network's maps are from a larger one's: every heat, and what is said where the larger is sure."""
    (boxes, points, role), (t_boxes, t_points, t_role) = ((o.float() for o in maps) for maps in (outputs, teacher))
    person, ball = torch.sigmoid(t_boxes[:, 0]), torch.sigmoid(t_boxes[:, 8])
    heats, shown = points[:, :32], torch.sigmoid(t_points[:, :32])
    kinds = boxes[:, 1:4] + F.interpolate(role, scale_factor=2.0, mode="nearest")
    t_kinds = t_boxes[:, 1:4] + F.interpolate(t_role, scale_factor=2.0, mode="nearest")
    strayed = (points[:, 32:64] - t_points[:, 32:64]).abs() + (points[:, 64:] - t_points[:, 64:]).abs()
    unlike = F.kl_div(kinds.log_softmax(1), t_kinds.log_softmax(1), reduction="none", log_target=True).sum(1)
    return (
        _heat_unlike(boxes[:, 0], person) + _heat_unlike(boxes[:, 8], ball) + _heat_unlike(heats, shown)
        + 2.0 * _where_sure(unlike, person)
        + _where_sure((boxes[:, 4:8] - t_boxes[:, 4:8]).abs().sum(1), person)
        + 0.5 * _where_sure((boxes[:, 9:] - t_boxes[:, 9:]).abs().sum(1), ball)
        + 0.5 * _where_sure(strayed, shown)
    )  # fmt: skip


def _heat_unlike(logits: Tensor, heat: Tensor) -> Tensor:
    """Quality focal loss (Li et al. 2020, beta 2), per unit of heat."""
    error = F.binary_cross_entropy_with_logits(logits, heat, reduction="none") * (torch.sigmoid(logits) - heat).square()
    return error.sum() / (heat.sum() + 2.0)


def _where_sure(error: Tensor, heat: Tensor) -> Tensor:
    weight = heat * (heat > 0.2)
    return (error * weight).sum() / (weight.sum() + 1.0)
