"""The view of a picture whose points alone do not pin one down, from what is known of every camera at a match.

At midfield a picture often shows three points of the halfway line and one of the circle: many homographies fit. But a
football camera has square pixels and its axis in the middle of the picture, stands level, high beyond the near touch
line and close to the halfway line. The likeliest such camera is found by least squares over points and expectations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from firsttouch.homography import Float, moved_points

EXPECTED = np.array([0.25, 0.0, 0.27, 0.0, 52.0, 101.0, 17.0])
SPREAD = np.array([0.5, 0.5, 0.1, 0.012, 4.0, 9.0, 6.0])
"""Of log focal length (in picture widths), pan, tilt and roll (radians), place along and across the pitch, height
(metres): a little wider than those of the 11 cameras that took the 257 training pictures with nine points or more
(`train cameras`: 0.15, 0.03, 0.26, 0.00, 51.6, 100.3, 16.2, spread 0.34, 0.28, 0.07, 0.006, 1.9, 4.8, 3.0)."""
SIGHTING = 0.002
"""Standard deviation of a surely seen point, as a share of the width."""
_STRAY = 4.0
"""A point so many standard deviations off counts half, once the camera is about right."""
_FAR_FROM_EXPECTED = 25.0
"""Sum of squares, in spreads, beyond which no such camera is believed."""
_ROUGH_STEPS, _FINE_STEPS = 8, 4
_NUDGE = np.array([1e-5, 1e-6, 1e-6, 1e-6, 1e-4, 1e-4, 1e-4])


@dataclass(frozen=True, slots=True)
class _Sightings:
    """Of S pictures: where N points of the pitch (metres) are seen (pixels), and how surely, 0..1."""

    metres: Float
    image: Float
    trust: Float
    width: int
    height: int

    def shown(self, camera: Float) -> Float:
        """(S, K, N, 2) pixels of all points in cameras (S, K, 7)."""
        return moved_points(homographies(camera, self.width, self.height)[:, :, None], self.metres)

    def residual(self, camera: Float, stray: float) -> Float:
        """(S, K, 2 N + 7) what is off of cameras (S, K, 7), in standard deviations."""
        trust = self.trust[:, None, :, None]
        off = np.where(trust > 0, self.shown(camera) - self.image[:, None], 0.0)
        off *= np.sqrt(trust) / (SIGHTING * self.width)
        off = np.nan_to_num(off / np.sqrt(1 + (off**2).sum(-1, keepdims=True) / stray**2), nan=1e3)
        return np.concatenate([off.reshape(*camera.shape[:2], -1), (camera - EXPECTED) / SPREAD], -1)

    def slope(self, camera: Float, stray: float) -> tuple[Float, Float]:
        """(S, 2 N + 7) the residual of cameras (S, 7), and (S, 7, 2 N + 7) how it changes with each number."""
        residual = self.residual(_nudged(camera), stray)
        return residual[:, 0], (residual[:, 1:] - residual[:, :1]) / _NUDGE[:, None]


def likeliest(metres: Float, image: Float, weight: Float, width: int, height: int) -> tuple[Float, Float, Float]:
    """Of S pictures: homographies (S, 3, 3) from metres to pixels, the variances (S, N) of projected points for an
    error of one pixel in what is seen, and (S,) False where only an unheard-of camera explains the points.

    metres: (N, 2). image: (S, N, 2) pixels. weight: (S, N), 0 where a point is not known; some in every picture.
    """
    used = weight.any(0)
    trust = weight[:, used] / weight.max(1, keepdims=True)
    seen = _Sightings(metres[used], image[:, used], trust, width, height)
    camera = _aimed(seen)
    for steps, stray in ((_ROUGH_STEPS, np.inf), (_FINE_STEPS, _STRAY)):
        camera = _improved(seen, camera, steps, stray)
    _, slope = seen.slope(camera, _STRAY)
    covariance = np.linalg.inv(slope @ np.swapaxes(slope, 1, 2))
    shown = replace(seen, metres=metres).shown(_nudged(camera))
    moves = (shown[:, 1:] - shown[:, :1]) / _NUDGE[:, None, None]
    variance = np.einsum("sank,sab,sbnk->sn", moves, covariance, moves) / (SIGHTING * width) ** 2
    believable = (((camera - EXPECTED) / SPREAD) ** 2).sum(1) <= _FAR_FROM_EXPECTED
    return homographies(camera, width, height), variance, believable


def _improved(seen: _Sightings, camera: Float, steps: int, stray: float) -> Float:
    """Levenberg and Marquardt's steps, for all pictures (S, 7) side by side."""
    damping = np.full((len(camera), 1), 1e-3)
    residual, slope = seen.slope(camera, stray)
    for _ in range(steps):
        normal = slope @ np.swapaxes(slope, 1, 2)
        normal[:, range(7), range(7)] *= 1 + damping
        trial = camera - np.linalg.solve(normal, slope @ residual[..., None])[..., 0]
        new_residual, new_slope = seen.slope(trial, stray)
        better = (new_residual**2).sum(1, keepdims=True) < (residual**2).sum(1, keepdims=True)
        camera = np.where(better, trial, camera)
        residual = np.where(better, new_residual, residual)
        slope = np.where(better[..., None], new_slope, slope)
        damping = np.where(better, damping / 10, damping * 10)
    return np.asarray(camera)


def _nudged(camera: Float) -> Float:
    """(S, 8, 7) cameras (S, 7), each followed by itself with one number changed a little."""
    return np.asarray(camera[:, None] + np.concatenate([np.zeros((1, 7)), np.diag(_NUDGE)]))


def _aimed(seen: _Sightings) -> Float:
    """(S, 7) expected cameras, turned so that what is seen lies about where it is seen."""
    share = (seen.trust / seen.trust.sum(1, keepdims=True))[..., None]
    centre, place = (share * seen.metres).sum(1), (share * np.where(share > 0, seen.image, 0.0)).sum(1)
    camera = np.tile(EXPECTED, (len(share), 1))
    focal = np.exp(EXPECTED[0]) * seen.width
    along, across = centre[:, 0] - EXPECTED[4], EXPECTED[5] - centre[:, 1]
    camera[:, 1] = np.arctan2(along, across) - np.arctan2(place[:, 0] - seen.width / 2, focal)
    camera[:, 2] = np.arctan2(EXPECTED[6], np.hypot(along, across)) - np.arctan2(place[:, 1] - seen.height / 2, focal)
    return camera


def homographies(camera: Float, width: int, height: int) -> Float:
    """(..., 3, 3) of cameras (..., 7), depth positive in front."""
    focal = np.exp(camera[..., 0]) * width
    (sin_pan, sin_tilt, sin_roll), (cos_pan, cos_tilt, cos_roll) = (
        np.moveaxis(f(camera[..., 1:4]), -1, 0) for f in (np.sin, np.cos)
    )
    nothing = np.zeros_like(focal)
    # x along the pitch, y towards the near touch line, z down
    forward = np.stack([sin_pan * cos_tilt, -cos_pan * cos_tilt, sin_tilt], -1)
    level = np.stack([cos_pan, sin_pan, nothing], -1)
    below = np.stack([-sin_pan * sin_tilt, cos_pan * sin_tilt, cos_tilt], -1)
    right = cos_roll[..., None] * level + sin_roll[..., None] * below
    down = cos_roll[..., None] * below - sin_roll[..., None] * level
    rotation = np.stack([right, down, forward], -2)
    place = camera[..., 4:] * (1.0, 1.0, -1.0)
    shift = -(rotation @ place[..., None])
    inner = np.zeros((*focal.shape, 3, 3))
    inner[..., 0, 0] = inner[..., 1, 1] = focal
    inner[..., 0, 2], inner[..., 1, 2], inner[..., 2, 2] = width / 2, height / 2, 1.0
    return np.asarray(inner @ np.concatenate([rotation[..., :2], shift], -1))
