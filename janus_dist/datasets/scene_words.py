"""What is said about scenes: a caption, and questions of each kind that their image alone answers.

Invariant: a question's answer is drawn before its words, and every choice of words is as likely under each of its
answers: who reads the question without seeing the image is right by chance, one in the number of its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from janus_dist.datasets.easy_vqa import COLORS
from janus_dist.datasets.scenes import MOST, RELATIONS, SHAPES, Dice, Kind, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
NAMES = tuple(COLORS)
PAIRED: tuple[Kind, ...] = ("two objects", "position", "color attribution")
Turn = tuple[str, str]


@dataclass(frozen=True)
class AskedScene:
    """A question about a scene."""

    kind: Kind
    question: str
    answer: str


def caption(scene: Scene) -> str:
    """Return what the image shows, as far as its kind says: `a red circle`, `three rings`, `a ring above a cross`."""
    first, *others = scene.things
    if scene.kind == "single object":
        return f"a {first.shape}"
    if scene.kind == "colors":
        return f"a {first.color} {first.shape}"
    if scene.kind == "counting":
        number = len(scene.things)
        return f"{NUMBERS[number]} {plural(first.shape) if number > 1 else first.shape}"
    if scene.kind == "two objects":
        return f"a {first.shape} and a {others[0].shape}"
    if scene.kind == "position":
        return f"a {first.shape} {relation(scene)} a {others[0].shape}"
    return f"a {first.color} {first.shape} and a {others[0].color} {others[0].shape}"


def relation(scene: Scene) -> str:
    """Return how the first of two things lies to the second, by the direction in which they are farther apart."""
    (left, top), (other_left, other_top) = (
        (2 * thing.left + thing.side, 2 * thing.top + thing.side) for thing in scene.things
    )
    across, down = left - other_left, top - other_top
    if abs(across) > abs(down):
        return RELATIONS[0] if across < 0 else RELATIONS[1]
    return RELATIONS[2] if down < 0 else RELATIONS[3]


def plural(shape: str) -> str:
    """Return `circles`, `crosses`."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def questions(scene: Scene, seed: int = 0) -> tuple[AskedScene, ...]:
    """Return two or three questions, one of each kind that the scene can be asked; of `counting` two.

    No more: the answer to one gives away part of the next.
    """
    dice = Dice("questions", seed, scene.key)
    if scene.kind == "counting":
        forms = dice.shuffled(range(4))[:2]
        asked = [AskedScene("counting", *_counting(scene.things, dice, form)) for form in forms]
    elif scene.kind in PAIRED:
        a, b = dice.shuffled(scene.things)
        asked = [
            AskedScene("two objects", *_two_objects(a, b, dice)),
            AskedScene("position", *_position(scene, dice)),
            AskedScene("color attribution", *_attribution(a, b, dice)),
        ]
    else:
        (thing,) = scene.things
        asked = [AskedScene("single object", *_single(thing, dice)), AskedScene("colors", *_colors(thing, dice))]
    return tuple(dice.shuffled(asked))


def _single(thing: Thing, dice: Dice) -> Turn:
    form = dice.below(3)
    if form == 0:
        return "what shape is in the image?", thing.shape
    answer, shape = _yes_or_no(dice, thing.shape, SHAPES)
    return ("is there a {}?", "does the image show a {}?")[form - 1].format(shape), answer


def _colors(thing: Thing, dice: Dice) -> Turn:
    form = dice.below(3)
    if form == 0:
        return f"what color is the {thing.shape}?", thing.color
    answer, color = _yes_or_no(dice, thing.color, NAMES)
    return ("is the {0} {1}?", "is there a {1} shape?")[form - 1].format(thing.shape, color), answer


def _counting(things: Sequence[Thing], dice: Dice, form: int) -> Turn:
    number, shape = len(things), things[0].shape
    if form == 0:
        return "how many shapes are there?", NUMBERS[number]
    if form == 1:  # of all that can be counted, nothing is as likely as each number
        is_absent = dice.below(MOST + 1) == 0
        asked = dice.other(SHAPES, shape) if is_absent else shape
        return f"how many {plural(asked)} are there?", NUMBERS[0 if is_absent else number]
    if form == 2:
        answer, said = _yes_or_no(dice, NUMBERS[number], NUMBERS[1:])
        return f"is the number of {plural(shape)} {said}?", answer
    return f"are there more than two {plural(shape)}?", "yes" if number > MOST // 2 else "no"


def _two_objects(a: Thing, b: Thing, dice: Dice) -> Turn:
    form = dice.below(3)
    if form == 0:
        return f"which shape is there besides the {b.shape}?", a.shape
    answer = "yes" if dice.flip() else "no"
    shape = a.shape if answer == "yes" else dice.other(SHAPES, a.shape, b.shape)
    if form == 1:
        return f"is there a {shape} besides the {b.shape}?", answer
    one, other = dice.shuffled((shape, b.shape))
    return f"are there a {one} and a {other}?", answer


def _position(scene: Scene, dice: Dice) -> Turn:
    (a, b), stands = scene.things, relation(scene)
    if dice.flip():  # else the first would be asked about alone
        a, b, stands = b, a, _opposite(stands)
    form = dice.below(3)
    if form == 0:
        return f"where is the {a.shape}, seen from the {b.shape}?", stands.removesuffix(" of")
    if form == 1:
        return f"which shape is {stands} the {b.shape}?", a.shape
    answer, said = _yes_or_no(dice, stands, RELATIONS)
    return f"is the {a.shape} {said} the {b.shape}?", answer


def _attribution(a: Thing, b: Thing, dice: Dice) -> Turn:
    """Return a question and its answer: where `is the circle red?` is to be denied, another shape is red."""
    form = dice.below(4)
    if form == 0:
        return f"which shape is {a.color}?", a.shape
    if form == 1:
        return f"what color is the {a.shape}?", a.color
    answer = "yes" if dice.flip() else "no"
    first, second = (a.color, b.color) if answer == "yes" else (b.color, a.color)
    if form == 2:
        return f"is the {a.shape} {first}?", answer
    return f"are there a {first} {a.shape} and a {second} {b.shape}?", answer


def _yes_or_no(dice: Dice, true: str, options: Sequence[str]) -> Turn:
    """Return an answer, and what to ask so that it is right."""
    return ("yes", true) if dice.flip() else ("no", dice.other(options, true))


def _opposite(stands: str) -> str:
    place = RELATIONS.index(stands)
    return RELATIONS[place + 1 if place % 2 == 0 else place - 1]
