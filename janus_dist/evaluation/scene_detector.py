"""Detector of colored shapes and their positions in an image, by pixel geometry.

It is independent of the model. The background is what the border shows; a pixel's color is the nearest named one to
what stands out most around it, so that rims, which blend into the background, count to what they surround; a piece of
one color is the shape whose smooth picture of the same area and center covers it best. Invariant: an object that fits
no shape is reported as a blot.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from janus_dist.datasets.easy_vqa import COLORS
from janus_dist.datasets.scenes import SHAPES, UNITS, covers
from janus_dist.evaluation.shapes import pieces

MIN_CONTRAST = 60.0
"""Smallest distance in RGB of an object from the background; gray, the nearest color, has at least 166."""
MIN_AREA = 40.0
"""Smallest area of an object in pixels of a canvas of 64; the smallest shape of a scene, a triangle, has 98."""
MIN_OVERLAP = 0.7
"""Overlap with the best shape below which a piece is a blot. Two touching squares of one color have 0.55."""
RIM = 2
"""Pixels around a piece in which the rest of its color still counts, since blur carries it there."""
BLURS = (0.0, 1.0, 1.6)
"""Standard deviations in pixels of the blur that shapes are compared with, so that a blurred shape is recognized."""
MARGIN = 6
"""Pixels around a shape in which it is compared; blur reaches no farther."""
FINE = 4
"""Sampling points per pixel in each direction for the comparison of shapes."""
NAMES = tuple(COLORS)
PALETTE = np.array(list(COLORS.values()), dtype=np.float64)


@dataclass(frozen=True)
class DetectedObject:
    """One object in an image."""

    shape: str | None
    """Name of the shape; None for a blot."""
    color: str
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in 1/64 of the image."""


def detect(image: NDArray[np.uint8]) -> list[DetectedObject]:
    """Return all objects in a square image [side, side, 3] uint8, the largest first."""
    pixels = _shrunk(image).astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    contrast = np.linalg.norm(pixels - background, axis=-1)
    differing = contrast > MIN_CONTRAST
    named = _named(pixels, contrast)
    objects: list[tuple[float, DetectedObject]] = []
    owner = np.where(differing, named + 1, 0)
    for color in np.unique(named[differing]):
        labels = pieces(differing & (named == color))
        piece_labels, counts = np.unique(labels[labels > 0], return_counts=True)
        for label in piece_labels[counts >= MIN_AREA / 2]:
            piece = labels == label
            near = _grown(piece, RIM) & (piece | (owner == 0))
            share = _share(pixels, background, PALETTE[color]) * near
            if share.sum() >= MIN_AREA:
                objects.append((float(share.sum()), _seen(share, NAMES[color])))
    return [seen for _, seen in sorted(objects, key=lambda pair: -pair[0])]


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image at a side of UNITS pixels, the unit of all lengths here."""
    if image.shape[0] == UNITS:
        return image
    return np.asarray(Image.fromarray(image).resize((UNITS, UNITS), Image.Resampling.BOX))


def _named(pixels: NDArray[np.float64], contrast: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the color index [y, x] int64 of the most contrasting pixel within two pixels in each direction."""
    nearest = np.linalg.norm(pixels[:, :, None] - PALETTE, axis=-1).argmin(axis=-1)
    height, width = contrast.shape
    best, named = contrast, nearest
    for axis, length in ((0, height), (1, width)):
        shifts = [np.clip(np.arange(length) + by, 0, length - 1) for by in (0, -1, 1, -2, 2)]
        contrasts = np.stack([best.take(shift, axis) for shift in shifts])
        names = np.stack([named.take(shift, axis) for shift in shifts])
        chosen = contrasts.argmax(axis=0)[None]
        best, named = (np.take_along_axis(values, chosen, 0)[0] for values in (contrasts, names))
    return named


def _share(pixels: NDArray[np.float64], background: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray:
    """Return the share [y, x] of `color` in each pixel, from 0 (background) to 1; 0 when both colors are equal."""
    way = color - background
    length = way @ way
    return np.clip((pixels - background) @ way / length, 0, 1) if length else np.zeros(pixels.shape[:2])


def _grown(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _seen(share: NDArray[np.float64], color: str) -> DetectedObject:
    """Return the object of a piece; `share`: [y, x] float64 is the share of each pixel that it covers."""
    area = share.sum()
    middle = np.arange(UNITS) + 0.5
    x, y = float((share.sum(axis=0) @ middle) / area), float((share.sum(axis=1) @ middle) / area)
    overlaps: dict[str, tuple[float, tuple[float, float, float, float]]] = {}
    for shape in SHAPES:
        fill, below = _measures(shape)
        half = float(np.sqrt(area / fill)) / 2
        center = (x, y - below * half)
        overlaps[shape] = (_overlap(share, shape, center, half), _box(center, half))
    shape = max(overlaps, key=lambda name: overlaps[name][0])
    overlap, box = overlaps[shape]
    if overlap < MIN_OVERLAP:
        clear = share > share.max() / 2
        rows, columns = np.flatnonzero(clear.any(axis=1)), np.flatnonzero(clear.any(axis=0))
        return DetectedObject(
            None, color, (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        )
    return DetectedObject(shape, color, box)


@cache
def _measures(shape: str) -> tuple[float, float]:
    """Return the share of its square that a shape covers, and its center of mass below the middle, in half sides."""
    middle = (np.arange(240) + 0.5) / 120 - 1
    covered = covers(shape, middle[None, :], middle[:, None], 1.0)
    return float(covered.mean()), float((covered.sum(axis=1) @ middle) / covered.sum())


def _overlap(share: NDArray[np.float64], shape: str, center: tuple[float, float], half: float) -> float:
    """Return the intersection over union of a piece with a shape, weighted by pixel shares, for the best blur."""
    near = [slice(max(0, int(at - half) - MARGIN), min(UNITS, int(at + half) + MARGIN)) for at in center]
    points = (np.arange(UNITS * FINE) + 0.5).reshape(UNITS, FINE) / FINE
    x, y = (points[part] - at for part, at in zip(near, center, strict=True))
    covered = covers(shape, x[None, :, None, :], y[:, None, :, None], half).mean(axis=(2, 3))
    columns, rows = near
    shown = share[rows, columns]
    outside = share.sum() - shown.sum()
    overlaps = []
    for deviation in BLURS:
        blur = _blur(deviation)
        model = blur[rows, rows] @ covered @ blur[columns, columns].T
        overlaps.append(float(np.minimum(shown, model).sum() / (np.maximum(shown, model).sum() + outside)))
    return max(overlaps)


@cache
def _blur(deviation: float) -> NDArray[np.float64]:
    """Return the weights [to, from] float64 of a Gaussian blur along a line of pixels."""
    if not deviation:
        return np.eye(UNITS)
    positions = np.arange(UNITS)
    weights = np.exp(-((positions[:, None] - positions) ** 2) / (2 * deviation**2))
    return weights / weights.sum(axis=1, keepdims=True)


def _box(center: tuple[float, float], half: float) -> tuple[float, float, float, float]:
    return center[0] - half, center[1] - half, center[0] + half, center[1] + half
