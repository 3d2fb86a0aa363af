"""Cropping: from encoded images of any size to the squares that the two image encoders take.

Images over a limit of the recipe are refused from their header, before they are decoded. Invariant: images travel as
encoded bytes or 8-bit pixels; a decoded 384-pixel square in float32 is 50 times its JPEG.
"""

import numpy as np

from data_pipelines.steps.rows import Row
from janus_dist.config.data import PipelineConfig
from janus_dist.data import images


class PadSquare:
    """Replace `encoded` by `png`: the whole image in a padded square (understanding)."""

    def __init__(self, config: PipelineConfig, side: int):
        self.limits, self.side = images.Limits.of(config), side

    def __call__(self, row: Row) -> Row:
        image = images.load(row["encoded"], self.limits)
        return {"png": images.to_png(images.pad_to_square(image, self.side))}


class CropSquare:
    """Replace `encoded` by `pixels`: [side, side, 3] uint8 of the middle of the image, as bytes (generation)."""

    def __init__(self, config: PipelineConfig, side: int):
        self.limits, self.side = images.Limits.of(config), side

    def __call__(self, row: Row) -> Row:
        image = images.load(row["encoded"], self.limits)
        return {"pixels": np.asarray(images.resize_and_crop(image, self.side)).tobytes()}
