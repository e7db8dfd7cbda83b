"""Pictures in the GPU's memory (NV12, as NVDEC leaves them), made into inputs and grey planes there, by PyTorch.

The arithmetic is that of `planes.fill` and `Frame.grey`, bit for bit: tested on the CPU, and proved on the device for
every size of picture before the first one is taken. Not verified on hardware.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from firsttouch.decode.frame import grey_factor, shrunk
from firsttouch.detect.detections import Plane
from firsttouch.detect.planes import BLANK, Canvas, fill, is_area
from firsttouch.detect.session import OutOfDeviceMemory, Problem

log = logging.getLogger(__name__)

Tensor = Any
Scale = Callable[[Tensor], Tensor]
_COEFFICIENT_BITS = 11
"""OpenCV's linear resize of bytes weighs with whole 2048ths."""


def surfaces_problem() -> Problem | None:
    """Why pictures cannot stay on the GPU here."""
    if importlib.util.find_spec("torch") is None:
        return Problem("PyTorch is not installed", "pip install 'firsttouch[torch]'")
    import torch

    if not torch.cuda.is_available():
        return Problem(f"PyTorch {torch.__version__} sees no CUDA GPU", "install a PyTorch that is built for CUDA")
    return None


class TorchSurfaces:
    """Makes what `detect` and `motion` want of a picture; several threads may ask at once.

    Works on PyTorch's default stream, which is FFmpeg's too, and is done with the picture when it returns.
    """

    def __init__(self, canvas: Canvas, device: str = "cuda") -> None:
        self._canvas = canvas
        self._device = device
        self._lock = threading.Lock()
        self._proved: dict[tuple[int, int], bool] = {}

    def takes(self, width: int, height: int) -> bool:
        """Whether pictures of this size can be made here as they are on the CPU; tried once for each size."""
        with self._lock:
            if (width, height) not in self._proved:
                reason = self._difference(width, height)
                self._proved[width, height] = reason is None
                if reason is not None:
                    log.warning("pictures of %dx%d are copied from the GPU: %s", width, height, reason)
            return self._proved[width, height]

    def inputs(self, luma: object, chroma: object) -> Tensor:
        """(H, W, 6) uint8 on the device, of DLPack capsules of Y (H, W) and UV (H / 2, W / 2, 2).

        Raises OutOfDeviceMemory.
        """
        import torch

        with _memory_errors():
            made = self._planes(torch.from_dlpack(luma), torch.from_dlpack(chroma))
            finish(made)
        return made

    def grey(self, luma: object) -> Plane:
        """`Frame.grey` of a DLPack capsule of Y (H, W): made small on the device, then copied. As `inputs`."""
        import torch

        with _memory_errors():
            return np.asarray(self._grey(torch.from_dlpack(luma)).cpu().numpy(), np.uint8)

    def kept(self, planes: Tensor) -> KeptPlanes:
        """Inputs of `inputs` (B, H, W, 6), to look at single bytes of."""
        return KeptPlanes(planes)

    def stacked(self, batch: Sequence[Any], size: int) -> Tensor:
        """Inputs, from here or from the CPU, as one tensor of `size`; the rest is zeros. As `inputs`."""
        import torch

        with _memory_errors():
            made = torch.zeros((size, *self._canvas.shape), dtype=torch.uint8, device=self._device)
            for row, planes in enumerate(batch):
                made[row] = torch.from_numpy(planes) if isinstance(planes, np.ndarray) else planes
            finish(made)
        return made

    def _planes(self, y: Tensor, uv: Tensor) -> Tensor:
        width, height = self._canvas.fit(y.shape[1], y.shape[0])
        columns, rows = width // 2, height // 2
        made = y.new_tensor(BLANK).expand(self._canvas.shape).clone()
        luma = _scale((y.shape[1], y.shape[0]), (width, height), self._device)(y)
        for row in (0, 1):
            for column in (0, 1):
                made[:rows, :columns, 2 * row + column] = luma[row::2, column::2]
        halve = _scale((uv.shape[1], uv.shape[0]), (columns, rows), self._device)
        for which in (0, 1):
            made[:rows, :columns, 4 + which] = halve(uv[..., which])
        return made

    def _grey(self, y: Tensor) -> Tensor:
        factor = grey_factor(y.shape[1], y.shape[0])
        return y if factor == 1 else _mean(y, factor)

    def _difference(self, width: int, height: int) -> str | None:
        """Noise of this size made here and on the CPU: what is not the same; None when all is."""
        if width % 2 or height % 2:
            return "its sides are not even"
        import torch

        random = np.random.default_rng(0)
        y = random.integers(0, 256, (height, width), np.uint8)
        uv = random.integers(0, 256, (height // 2, width // 2, 2), np.uint8)
        expected = fill(self._canvas, y, np.ascontiguousarray(uv[..., 0]), np.ascontiguousarray(uv[..., 1]))
        try:
            luma, chroma = (torch.from_numpy(plane).to(self._device) for plane in (y, uv))
            made, grey = self._planes(luma, chroma).cpu().numpy(), self._grey(luma).cpu().numpy()
        except (RuntimeError, ValueError) as exc:
            return str(exc).strip().splitlines()[0]
        if not np.array_equal(made, expected):
            return "the network's input would not be the CPU's"
        if not np.array_equal(grey, shrunk(y, grey_factor(width, height))):
            return "the grey plane for flow would not be the CPU's"
        return None


class KeptPlanes:
    """Six planes of some pictures in the GPU's memory: what roles look at comes from there, and no picture."""

    def __init__(self, planes: Tensor) -> None:
        self._planes = planes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._planes.shape)

    def picked(self, index: np.ndarray[Any, np.dtype[np.intp]]) -> Plane:
        """The bytes at flat indices, of the same shape."""
        import torch

        with _memory_errors():
            there = torch.from_numpy(index).to(self._planes.device)
            return np.asarray(self._planes.reshape(-1)[there].cpu().numpy(), np.uint8)


@functools.cache
def _scale(source: tuple[int, int], target: tuple[int, int], device: str) -> Scale:
    """OpenCV's resize of bytes between two sizes (width, height), as `planes.fill` uses it. Raises ValueError."""
    if source == target:
        return lambda plane: plane
    if is_area(source[0], target[0]):
        factor = source[0] // target[0]
        if (target[0] * factor, target[1] * factor) != source:
            raise ValueError(f"{source[0]}x{source[1]} is no whole multiple of {target[0]}x{target[1]}")
        return lambda plane: _mean(plane, factor)
    left, right, right_share = _linear(source[0], target[0], device)
    above, below, below_share = _linear(source[1], target[1], device)
    whole = 1 << _COEFFICIENT_BITS

    def linear(plane: Tensor) -> Tensor:
        wide = plane.int()
        rows = wide[:, left] * (whole - right_share) + wide[:, right] * right_share
        upper = ((whole - below_share)[:, None] * (rows[above] >> 4)) >> 16
        lower = (below_share[:, None] * (rows[below] >> 4)) >> 16
        return ((upper + lower + 2) >> 2).to(plane.dtype)

    return linear


def _linear(source: int, target: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """For each target pixel the two source pixels around it, and the second's share in 2048ths."""
    import torch

    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    before = np.clip(np.floor(place), 0, source - 1)
    share = np.where(before < source - 1, np.clip(place - before, 0, 1), 0).astype(np.float32)
    weights = np.rint(share * np.float32(1 << _COEFFICIENT_BITS)).astype(np.int32)
    numbers = before.astype(np.int64), np.minimum(before.astype(np.int64) + 1, source - 1), weights
    first, second, shares = (torch.from_numpy(each).to(device) for each in numbers)
    return first, second, shares


def _mean(plane: Tensor, factor: int) -> Tensor:
    """Each pixel the mean of factor x factor, rounded as OpenCV does: half up for 2, otherwise half to even."""
    import torch

    height, width = plane.shape[0] // factor, plane.shape[1] // factor
    blocks = plane[: height * factor, : width * factor].reshape(height, factor, width, factor)
    sums = blocks.sum((1, 3), dtype=torch.int32)
    if factor == 2:
        return ((sums + 2) >> 2).to(plane.dtype)
    return (sums.float() * np.float32(1 / factor**2)).round().to(plane.dtype)


def copy_into(value: Any, tensor: Tensor) -> None:
    """Write a tensor over what lies at the address of an OrtValue of the same shape, on the device."""
    import torch

    view = torch.from_dlpack(value.__dlpack__())
    view.copy_(tensor)
    finish(view)


def finish(tensor: Tensor) -> None:
    """Wait until what was asked of the tensor's device is done: the next to read it works on a stream of its own."""
    if tensor.is_cuda:
        import torch

        torch.cuda.current_stream(tensor.device).synchronize()


@contextmanager
def _memory_errors() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise OutOfDeviceMemory("the GPU has not enough memory for this picture") from exc
