"""Scenes of one to four coloured shapes, made by a rule: what is there, where, and its pixels.

The harder data set beside easy-vqa, in the six kinds of GenEval (arXiv 2310.11513, table 1). Invariants: a scene is a
pure function of (seed, split, number), and its pixels of scene and size, in integers alone, so they are the same on
every machine; no scene of one split has the shapes and colors of a scene of the other in the same places.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from janus_dist.datasets.easy_vqa import COLORS, Split

Kind = Literal["single object", "two objects", "counting", "colors", "position", "color attribution"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHAPES = ("circle", "cross", "ring", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
MOST = 4
"""Shapes of one scene, as in GenEval."""
NUMBERS: dict[Split, int] = {"train": 24_000, "test": 1_800}
"""Scenes of each split of the data set of `scenes` inputs, of each kind a sixth."""
UNITS = 64
"""Places and sides are counted in 64ths of the canvas."""
SIDES = range(14, 23)
GAP = 4
"""Between any two shapes, and half of it to the edge: shapes of a scene never touch."""
PLACES = 8
"""Scenes of two splits differ in what is in the cells of a grid of so many rows and columns."""
TEST_SHARE = 8
"""One layout in so many is held out."""
DARKEST = 224
"""Grey level of backgrounds, to 255."""
SUBPIXELS = 4
"""Points a pixel is covered by, in each direction."""

Option = TypeVar("Option")


class Dice:
    """Numbers drawn from a name: the same on every machine and in every version of Python."""

    def __init__(self, *name: object):
        self.name, self.digests, self.left = "/".join(map(str, name)), 0, b""

    def below(self, stop: int) -> int:
        """Return 0 to `stop` - 1, each as likely, to one in a million for the small numbers that are asked for here."""
        if not self.left:
            self.left = hashlib.sha256(f"{self.name}/{self.digests}".encode()).digest()
            self.digests += 1
        number, self.left = int.from_bytes(self.left[:4], "big"), self.left[4:]
        return number % stop

    def pick(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]

    def other(self, options: Sequence[Option], *taken: Option) -> Option:
        """Return one of the options that is not in `taken`."""
        return self.pick([option for option in options if option not in taken])

    def flip(self) -> bool:
        return self.below(2) == 0

    def shuffled(self, options: Sequence[Option]) -> list[Option]:
        left, found = list(options), []
        while left:
            found.append(left.pop(self.below(len(left))))
        return found


@dataclass(frozen=True)
class Thing:
    """One coloured shape and the square that it fills, in 64ths of the canvas."""

    shape: str
    color: str
    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom."""
        return self.left, self.top, self.left + self.side, self.top + self.side


@dataclass(frozen=True)
class Scene:
    """What one image shows, and the kind of caption that it has."""

    key: str
    kind: Kind
    things: tuple[Thing, ...]
    """In the order of the caption; of `position` the first stands so and so to the second."""
    background: int

    @property
    def layout(self) -> str:
        """Return what tells the scene from those of the other split: shapes and colors by their cells."""
        cells = sorted(
            f"{thing.color} {thing.shape} {_cell(thing.left, thing.side)} {_cell(thing.top, thing.side)}"
            for thing in self.things
        )
        return ", ".join(cells)


def scene(seed: int, split: Split, number: int) -> Scene:
    """Return scene `number` of a split; kinds take turns."""
    attempt = 0
    while True:
        found = _drawn(Dice("scene", seed, split, number, attempt), f"{split}-{number:05d}", KINDS[number % len(KINDS)])
        if split_of(found) == split:
            return found
        attempt += 1


def scenes(split: Split) -> Iterator[Scene]:
    """Return the data set's own scenes of a split, in their order."""
    return (scene(0, split, number) for number in range(NUMBERS[split]))


def split_of(found: Scene) -> Split:
    """Return the only split that a scene can be in, whatever its seed and number."""
    is_held_out = hashlib.sha256(found.layout.encode()).digest()[0] % TEST_SHARE == 0
    return "test" if is_held_out else "train"


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Return how box `a` (left, top, right, bottom) lies to box `b`: no relation, one, or two where it is askew.

    GenEval's rule (evaluate_images.py, relative_position): the distance of the centers less a tenth of both sides must
    be more than half of it along that direction.
    """
    offsets = [(a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2]
    sides = [a[2] - a[0] + b[2] - b[0], a[3] - a[1] + b[3] - b[1]]
    distance = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    found: set[str] = set()
    for offset, side, (before, after) in zip(offsets, sides, (RELATIONS[:2], RELATIONS[2:]), strict=True):
        if abs(offset) - side / 10 > distance / 2:
            found.add(before if offset < 0 else after)
    return found


def draw(found: Scene, size: int = UNITS) -> NDArray[np.uint8]:
    """Return the pixels of a scene, [size, size, 3] uint8; edges are smoothed by counting which of 16 points a shape
    covers."""
    canvas = np.full((size, size, 3), found.background, dtype=np.int64)
    fine = np.arange(size * SUBPIXELS, dtype=np.int64)
    points = (2 * fine + 1) * UNITS  # in 1 / (2 SUBPIXELS size) of a 64th, as are centers and halves below
    scale = SUBPIXELS * size
    for thing in found.things:
        x = points[None, :] - (2 * thing.left + thing.side) * scale
        y = points[:, None] - (2 * thing.top + thing.side) * scale
        covered = covers(thing.shape, x, y, thing.side * scale)
        share = covered.reshape(size, SUBPIXELS, size, SUBPIXELS).sum(axis=(1, 3))[..., None]
        whole = SUBPIXELS**2
        canvas = (canvas * (whole - share) + np.array(COLORS[thing.color]) * share + whole // 2) // whole
    return canvas.astype(np.uint8)


def covers(shape: str, x: NDArray[Any], y: NDArray[Any], half: float) -> NDArray[np.bool_]:
    """Return whether a shape of side 2 `half` around (0, 0) covers the points (x, y), y downwards, in the shape of `x`;
    exact for integers."""
    across, down = np.abs(x), np.abs(y)
    inside = np.maximum(across, down) <= half
    if shape == "circle":
        return across * across + down * down <= half * half
    if shape == "ring":
        distance = across * across + down * down
        return (distance <= half * half) & (4 * distance >= half * half)
    if shape == "cross":
        return inside & (3 * np.minimum(across, down) <= half)
    if shape == "triangle":
        return inside & (2 * across <= y + half)
    assert shape == "square", shape
    return inside


def _drawn(dice: Dice, key: str, kind: Kind) -> Scene:
    background = DARKEST + dice.below(256 - DARKEST)
    if kind == "counting":
        shape = dice.pick(SHAPES)
        named = [(shape, dice.pick(tuple(COLORS))) for _ in range(1 + dice.below(MOST))]
    elif kind in ("single object", "colors"):
        named = [(dice.pick(SHAPES), dice.pick(tuple(COLORS)))]
    else:
        named = list(zip(dice.shuffled(SHAPES)[:2], dice.shuffled(tuple(COLORS))[:2], strict=True))
    relation = dice.pick(RELATIONS) if kind in ("two objects", "position", "color attribution") else None
    while True:
        things: list[Thing] = []
        for shape, color in named:
            side = dice.pick(SIDES)
            left, top = (GAP // 2 + dice.below(UNITS - GAP - side + 1) for _ in range(2))
            things.append(Thing(shape, color, left, top, side))
        if _is_apart(things) and (relation is None or _is_plain(things[0], things[1], relation)):
            return Scene(key, kind, tuple(things), background)


def _is_apart(things: Sequence[Thing]) -> bool:
    boxes = [thing.box for thing in things]
    return all(
        a[0] - b[2] >= GAP or b[0] - a[2] >= GAP or a[1] - b[3] >= GAP or b[1] - a[3] >= GAP
        for number, a in enumerate(boxes)
        for b in boxes[:number]
    )


def _is_plain(a: Thing, b: Thing, relation: str) -> bool:
    """Return whether `a` lies to `b` in this way and no other, by far: twice as far along as across."""
    offsets = sorted(abs(one - other) for one, other in zip(_center(a), _center(b), strict=True))
    return relations(a.box, b.box) == {relation} and 2 * offsets[0] <= offsets[1]


def _center(thing: Thing) -> tuple[int, int]:
    """Return twice the center."""
    return 2 * thing.left + thing.side, 2 * thing.top + thing.side


def _cell(start: int, side: int) -> int:
    return (2 * start + side) * PLACES // (2 * UNITS)
