"""The joint network: one plain-convolution backbone, boxes and pitch key points from one pass.

Plain 3x3 convolutions with ReLU throughout: depth-wise layers and smooth activations quantise badly and
run no faster in int8. The input is what a decoder gives (six uint8 planes of a 4:2:0 picture), so nothing
is converted or resampled before the first convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = ("ball", "goalkeeper", "player", "referee")
PERSON_CLASSES = ("goalkeeper", "player", "referee")
KEYPOINTS = 32
CELL = 8  # canvas pixels per cell of the box maps
KEYPOINT_CELL = 16  # canvas pixels per cell of the key-point maps
ZERO_POINT = 128.0  # the normalisation is (planes - 128) / 64: exact as a uint8 zero point, so int8 needs no first pass
SCALE = 1.0 / 64.0


def normalised(planes: Tensor) -> Tensor:
    """uint8 planes [N, H, W, 6], as pictures come, as what `Network` takes."""
    return (planes.permute(0, 3, 1, 2).float() - ZERO_POINT) * SCALE


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels at 4, 8, 16, 32 and 64 canvas pixels per cell, and of the heads."""

    stem: int = 24
    s8: int = 32
    s16: int = 64
    s32: int = 128
    s64: int = 128
    depth16: int = 1
    depth32: int = 1
    box: int = 32
    keypoint: int = 32
    role: int = 32


class Conv(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, k: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, k, stride, 0 if k == stride else k // 2, bias=False),
            nn.BatchNorm2d(c_out, momentum=0.03, eps=1e-3),
            nn.ReLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a = Conv(c, c)
        self.b = Conv(c, c)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(self.a(x))
        return out


class Csp(nn.Module):
    """Cross-stage partial block (Wang et al. 2019): half the channels pass `n` bottlenecks, half go round."""

    def __init__(self, c_in: int, c_out: int, n: int) -> None:
        super().__init__()
        half = c_out // 2
        self.through = Conv(c_in, half, 1)
        self.around = Conv(c_in, half, 1)
        self.blocks = nn.Sequential(*(Bottleneck(half) for _ in range(n)))
        self.join = Conv(2 * half, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.join(torch.cat((self.blocks(self.through(x)), self.around(x)), 1))
        return out


class Pool(nn.Module):
    """Spatial pyramid of three chained 5x5 maxima: a wide view for little work."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.narrow = Conv(c, c // 2, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = Conv(2 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        y = self.pool(x)
        z = self.pool(y)
        out: Tensor = self.join(torch.cat((x, y, z, self.pool(z)), 1))
        return out


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Network(nn.Module):
    """Normalised planes [N, 6, H, W] (H and W multiples of 16) to the three raw maps.

    `boxes` [N, 13, H/4, W/4], people: heat logit, 3 class logits, centre offset x y (cells), log size x y (cells);
    then the ball: heat logit, offset x y, log size x y;
    `keypoints` [N, 96, H/8, W/8]: 32 heat logits, then 32 offsets x and 32 offsets y (cells);
    `role` [N, 3, H/8, W/8]: class logits, to be added to those of `boxes` in the four cells they cover.
    """

    def __init__(self, widths: Widths | None = None) -> None:
        super().__init__()
        w = widths or Widths()
        self.stem = Conv(6, w.stem, 2, 2)  # a 3x3 stem costs twice the time here for six channels
        self.down8, self.body8 = Conv(w.stem, w.s8, 3, 2), Conv(w.s8, w.s8)
        self.down16, self.csp16 = Conv(w.s8, w.s16, 3, 2), Csp(w.s16, w.s16, w.depth16)
        self.down32, self.csp32 = Conv(w.s16, w.s32, 3, 2), Csp(w.s32, w.s32, w.depth32)
        self.down64, self.csp64 = Conv(w.s32, w.s64, 3, 2), Csp(w.s64, w.s64, 1)
        self.pool = Pool(w.s64)
        self.neck32 = Csp(w.s64 + w.s32, w.s32, 1)
        self.lateral16 = Conv(w.s32, w.s16, 1)
        self.neck16 = Csp(2 * w.s16, w.s16, 1)
        self.lateral8 = Conv(w.s16, w.s8, 1)
        self.neck8 = Conv(w.s8, w.s8)
        self.box_conv = Conv(w.s8, w.box)
        self.person_out, self.ball_out = nn.Conv2d(w.box, 8, 1), nn.Conv2d(w.box, 5, 1)
        self.keypoint_conv, self.keypoint_out = Conv(w.s16, w.keypoint), nn.Conv2d(w.keypoint, 96, 1)
        # who is who needs the whole scene more than fine detail: a second opinion from the coarser map
        self.role_conv, self.role_out = Conv(w.s16, w.role), nn.Conv2d(w.role, 3, 1)
        self._start()

    def _start(self) -> None:
        """Bias every heat logit to 1 %: the focal loss is stable from the first step."""
        for out, count in ((self.person_out, 1), (self.ball_out, 1), (self.keypoint_out, KEYPOINTS)):
            nn.init.normal_(out.weight, std=0.01)
            assert out.bias is not None
            with torch.no_grad():
                out.bias.zero_()[:count] = -4.6

    def backbone(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 8 and 16 canvas pixels per cell."""
        c8 = self.down8(self.stem(planes))
        c8 = c8 + self.body8(c8)
        c16 = self.csp16(self.down16(c8))
        c32 = self.csp32(self.down32(c16))
        # c64 has ceil(H/32) rows when H/16 is odd; the crop keeps odd canvases (H = 368 is 23 rows) aligned
        c64 = _up(self.pool(self.csp64(self.down64(c32))))[:, :, : c32.shape[2], : c32.shape[3]]
        n32 = self.neck32(torch.cat((c64, c32), 1))
        n16 = self.neck16(torch.cat((_up(self.lateral16(n32)), c16), 1))
        n8 = self.neck8(_up(self.lateral8(n16)) + c8)
        return n8, n16

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n8, n16 = self.backbone(planes)
        return (
            self._box_maps(self.box_conv(n8)),
            self.keypoint_out(self.keypoint_conv(n16)),
            self.role_out(self.role_conv(n16)),
        )

    def _box_maps(self, features: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return torch.cat((self.person_out(features), self.ball_out(features)), 1)
        # one convolution for both: the same answer, and one pass less over the largest map
        assert self.person_out.bias is not None
        assert self.ball_out.bias is not None
        weight = torch.cat((self.person_out.weight, self.ball_out.weight))
        bias = torch.cat((self.person_out.bias, self.ball_out.bias))
        return F.conv2d(features, weight, bias)
