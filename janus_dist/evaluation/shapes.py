"""Detector of a single colored shape in an image, by pixel geometry.

It is independent of the model: the background is the color of the border, the object is the area that differs from it,
the shape is the template that covers its bounding box best, the color the nearest named one. Invariant: an image
without one clear object is not classified.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_dist.datasets.easy_vqa import COLORS

MIN_CONTRAST = 60.0
"""Smallest distance in RGB of an object from the background."""
MIN_PIXELS = 16
"""Smallest number of pixels of an object."""
MAX_SHARE = 0.5
"""Largest share of the image that an object can cover; noise covers more."""
MIN_OVERLAP = 0.7
"""Intersection over union with the best template below which an object has no shape."""
MIN_SHARE = 0.8
"""Smallest share of all differing pixels in the largest connected piece."""


@dataclass(frozen=True)
class Detection:
    """Shape and color in an image; None when nothing clear is visible."""

    shape: str | None
    color: str | None


NOTHING = Detection(None, None)


def detect(image: NDArray[np.uint8]) -> Detection:
    """Return the single object in an image [height, width, 3] uint8, or NOTHING."""
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    contrast = np.quantile(distance, 0.995)
    if contrast < MIN_CONTRAST:
        return NOTHING
    differing = distance > contrast / 2
    if differing.mean() > MAX_SHARE:
        return NOTHING
    mask = _largest_piece(differing)
    if mask.sum() < max(MIN_PIXELS, MIN_SHARE * differing.sum()):
        return NOTHING
    overlaps = {name: _overlap(mask, name) for name in ("rectangle", "circle", "triangle")}
    shape = max(overlaps, key=lambda name: overlaps[name])
    if overlaps[shape] < MIN_OVERLAP:
        return NOTHING
    seen = np.median(pixels[_core(mask)], axis=0)
    color = min(COLORS, key=lambda name: float(np.linalg.norm(seen - COLORS[name])))
    return Detection(shape, color)


def _overlap(mask: NDArray[np.bool_], shape: str) -> float:
    """Return the intersection over union of a mask [height, width] bool with a shape that fills its bounding box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width
    if shape == "rectangle":
        template = np.ones_like(box)
    elif shape == "circle":
        template = (2 * x - 1) ** 2 + (2 * y - 1) ** 2 <= 1
        if max(height, width) > 1.5 * min(height, width):
            return 0.0  # such a long ellipse is not a circle
    else:
        template = np.abs(2 * x - 1) <= y  # apex at the top
    return float((box & template).sum() / (box | template).sum())


def pieces(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return a label for each 4-connected piece of a mask [height, width] bool, as [height, width] int64; 0 elsewhere.

    Labels spread from pixel to neighbouring pixel until nothing changes.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        grown = np.where(mask, np.maximum.reduce([labels, *around]), 0)
        if np.array_equal(grown, labels):
            return labels
        labels = grown


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not mask.any():
        return mask
    labels = pieces(mask)
    return labels == np.bincount(labels[mask]).argmax()


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask without its rim, which blends into the background, or the mask itself when too little is left."""
    padded = np.pad(mask, 1)
    core = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return core if core.sum() >= 4 else mask
