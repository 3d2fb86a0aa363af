"""The step of each stream: what becomes of a record, id by id and pixel by pixel, and what is refused or dropped."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.record import DroppedByRule, Picture, Record
from data_pipelines.steps.generation import Generation, is_shortened
from data_pipelines.steps.text import Text
from data_pipelines.steps.understanding import DESCRIBE, Understanding
from data_pipelines.tokenizer import PATH
from janus_dist.config.load import load
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat, images
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample, decode, members
from janus_dist.data.shard import counts
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from tests.images import noise, png
from tests.inputs import read, source, tar

BASE = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny" / "base.yaml"
SIDE, IMAGE_TOKENS = 64, 64
TOKENIZER = Tokenizer.load(PATH)
MAX_PIXELS = 10_000
STEPS = {"understanding": Understanding, "text": Text, "generation": Generation}


def recipe(*overrides):
    return load(
        BaseRecipe, [BASE], [f"data.tokenizer={PATH}", f"pipeline.max_image_pixels={MAX_PIXELS}", *overrides]
    ).recipe


def step(stream, *overrides, **source):
    of = InputConfig.model_validate({"stream": stream, "format": "jsonl", "path": "a.jsonl", **source})
    return pickle.loads(pickle.dumps(STEPS[stream](recipe(*overrides), of, TOKENIZER)))


def picture(width=40, height=30, seed=0):
    return Picture(f"{seed}.png", png(noise(width, height, seed)))


def record(pictures=0, key="key", **values):
    return Record(key, "a.jsonl:1", tuple(picture(seed=seed) for seed in range(pictures)), **values)


def made_of(of, one):
    of.check(one)
    return of.make(one)


def sample_of(of, one):
    made = made_of(of, one)
    ((key, sample),) = made.samples
    assert key == one.key
    return sample


def reason(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return caught.value.message


TURNS = (("what is it?", "a cat"), ("why?", "because"))


def test_a_conversation_about_an_image():
    sample = sample_of(step("understanding", "pipeline.jpeg_quality=90"), record(1, turns=TURNS))
    ids, spans = chat.understanding_ids(TOKENIZER, recipe().data.chat, TURNS, 1)
    assert isinstance(sample, UnderstandingSample)
    assert sample.ids.tolist() == ids and sample.ids.dtype == np.uint32
    assert sample.answers.tolist() == [list(span) for span in spans] and sample.answers.dtype == np.int64
    square = images.pad_to_square(images.load(picture().content or b"", MAX_PIXELS), SIDE)
    assert sample.images == [images.encode(square, 90)]


def test_without_a_jpeg_quality_crops_are_lossless():
    (crop,) = sample_of(step("understanding", "pipeline.jpeg_quality=null"), record(1, turns=TURNS)).images
    square = images.pad_to_square(images.load(picture().content or b"", MAX_PIXELS), SIDE)
    assert np.array_equal(np.asarray(images.load(crop, MAX_PIXELS)), np.asarray(square))


def test_several_images_at_their_marks():
    turns = (("<image>\nthis or <image>?", "this"), ("or\n<image>", "no"))
    sample = sample_of(step("understanding"), record(3, turns=turns))
    assert sample.ids.tolist() == chat.understanding_ids(TOKENIZER, recipe().data.chat, turns, 3)[0]
    assert len(sample.images) == 3 == (sample.ids == TOKENIZER.image).sum()
    crops = [
        images.pad_to_square(images.load(picture(seed=seed).content or b"", MAX_PIXELS), SIDE) for seed in range(3)
    ]
    assert sample.images == [images.encode(crop, None) for crop in crops]


def test_a_conversation_without_an_image():
    sample = sample_of(step("understanding"), record(turns=TURNS))
    assert sample.images == [] and TOKENIZER.image not in sample.ids
    found = decode("understanding", tar(members("key", sample)))
    assert isinstance(found, UnderstandingSample) and found.images == [] and found.ids.tolist() == sample.ids.tolist()


@pytest.mark.parametrize(("system", "expected"), [("Be brief. ", "Be brief."), ("", "Be kind."), (" ", "Be kind.")])
def test_a_system_message_of_the_record_goes_before_that_of_the_recipe(system, expected):
    of = step("understanding", "data.chat.system_prompt='Be kind.'")
    sample = sample_of(of, record(turns=TURNS, system=system))
    assert TOKENIZER.decode(sample.ids).startswith(f"{expected}\n\nUser: what")


def test_a_caption_answers_a_question_for_it():
    sample = sample_of(step("understanding"), record(1, caption=" a gray cat "))
    expected = chat.understanding_ids(TOKENIZER, recipe().data.chat, [(DESCRIBE, "a gray cat")], 1)[0]
    assert sample.ids.tolist() == expected
    assert DESCRIBE == "Describe the image in detail."


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"caption": "a gray cat"}, "a gray cat"),
        ({"text": "see <image>: a cat"}, "see <image>: a cat"),
        ({"text": "a text", "caption": "a caption"}, "a text"),
        ({"caption": "a caption", "turns": TURNS}, "a caption"),
        ({"turns": (("<image>\nDescribe it.", "a gray cat"),)}, "a gray cat"),
        ({"turns": (("Describe it.", "a gray cat"),)}, "a gray cat"),
    ],
)
def test_the_plain_layout(values, text):
    sample = sample_of(step("understanding", layout="plain"), record(1, **values))
    ids, spans = chat.plain_ids(TOKENIZER, text, 1)
    assert sample.ids.tolist() == ids and sample.answers.tolist() == [list(span) for span in spans]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"turns": ()}, "empty: no question"),
        ({"turns": (("what?", "it"), (" ", "so"))}, "empty: question 1 has no words"),
        ({"turns": (("what?", "it"), ("why?", "\n"))}, "empty: answer 1 has no words"),
        ({"turns": (("what?", "i\0t"),)}, "no text: answer 0 has a NUL character"),
        ({"turns": (("<image> <image>", "it"),)}, "images: 2 marks in the text for 1 images"),
        ({"turns": (("what?", "it: <image>"),)}, "images: the mark <image> is in answer 0"),
        ({"pictures": 0, "turns": (("<image>?", "it"),)}, "images: the text has the mark <image>, but the record"),
        ({"pictures": 0, "caption": "a cat"}, "images: a caption without an image"),
        ({"layout": "plain", "pictures": 0, "text": "a"}, "images: a plain text without an image belongs"),
        ({"layout": "plain", "text": "<image> "}, "empty: the text has no words"),
        ({"layout": "plain", "text": "a<image><image>"}, "images: 2 marks in the text for 1 images"),
        ({"layout": "plain", "turns": (("what?", "a <image>"),)}, "images: the mark <image> is in answer 0"),
        ({"layout": "plain", "turns": TURNS}, "turns: 2 turns, but the plain layout uses the answer of one"),
        ({"layout": "plain"}, "empty: the text has no words"),
    ],
)  # fmt: skip
def test_conversations_that_are_refused_before_a_picture_is_read(values, expected):
    layout, pictures = values.pop("layout", "chat"), values.pop("pictures", 1)
    one = Record("key", "a", (Picture("b.png"),) * pictures, **values)
    assert reason(step("understanding", layout=layout).check, one).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty: the file has no bytes"),
        (b"no image", "does not decode: no image format is recognised"),
        (png(noise(13, 20)), "too small: 13x20 pixels"),
        (png(noise(14, 300)), "too narrow: 14x300 pixels"),
        (png(noise(101, 100)), "too large: 101x100 pixels, at most 10000 are decoded"),
        (png(noise(40, 40))[:1000], "does not decode: OSError: image file is truncated"),
    ],
)
def test_pictures_that_are_refused(content, expected):
    pictures = (Picture("a.png", content),)
    conversation = Record("key", "a", (picture(), *pictures), turns=TURNS)
    assert reason(step("understanding").make, conversation).startswith(expected)
    assert reason(step("generation").prepare, Record("key", "a", pictures, caption="a")).startswith(expected)


def test_what_does_not_fit_the_model_is_refused():
    tokens = len(chat.understanding_ids(TOKENIZER, recipe().data.chat, TURNS, 2)[0]) + 2 * (IMAGE_TOKENS - 1)
    fits, short = (step("understanding", f"model.text.max_positions={number}") for number in (tokens, tokens - 1))
    sample = sample_of(fits, record(2, turns=TURNS))
    assert counts(sample, recipe().model, (TOKENIZER.boi, TOKENIZER.image, TOKENIZER.eoi))[0] == tokens
    assert (
        reason(short.make, record(2, turns=TURNS)) == f"too long: {tokens} tokens, the model has {tokens - 1} positions"
    )
    tokens = len(chat.generation_prompt_ids(TOKENIZER, recipe().data.chat, "a cat")) + recipe().model.image_ids
    short = step("generation", f"model.text.max_positions={tokens - 1}")
    one = record(1, caption="a cat")
    assert reason(short.prepare, one) == f"too long: {tokens} tokens, the model has {tokens - 1} positions"
    step("generation", f"model.text.max_positions={tokens}").prepare(one)


LONG = {
    "prompt": ("generation", {"caption": "a cat " * 2_000_000}),
    "caption": ("understanding", {"caption": "a cat " * 2_000_000}),
    "question": ("understanding", {"turns": (("why? " * 2_000_000, "so"), ("and?", "no"))}),
    "answer": ("understanding", {"turns": (("why?", "so"), ("and?", "x" * 8_000_000))}),
    "system": ("understanding", {"turns": TURNS, "system": "be brief " * 1_000_000}),
    "turns": ("understanding", {"turns": (("why? " * 200, "so"),) * 4_000}),
}


@pytest.mark.parametrize(("stream", "values"), LONG.values(), ids=LONG)
def test_a_text_that_is_far_too_long_is_refused_without_encoding_all_of_it(stream, values, monkeypatch):
    """A caption of 15 MB took 2.5 GB and half a minute."""
    lengths: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: lengths.append(len(text)) or encode(self, text))
    call = step(stream).make if stream == "understanding" else step(stream).prepare
    positions = recipe().model.text.max_positions
    expected = f"too long: more than {positions} tokens, the model has {positions} positions"
    assert reason(call, record(1, **values)) == expected
    assert max(lengths) <= chat.WORD_CHARS and sum(lengths) <= chat.WORD_CHARS + 8 * positions


def dropped(call, *arguments):
    with pytest.raises(DroppedByRule) as caught:
        call(*arguments)
    return caught.value.rule, caught.value.value


@pytest.mark.parametrize("stream", STEPS)
def test_rules_on_columns_and_characters_need_no_picture(stream):
    words = {"understanding": {"turns": TURNS}, "text": {"text": "a text"}, "generation": {"caption": "a cat"}}[stream]
    chars = "text_chars" if stream == "text" else "caption_chars"
    of = step(stream, where={"similarity": {"min": 0.3}, chars: {"min": 5, "max": 30}})

    def one(columns, **changed):
        return Record("key", "a", (Picture("b.png"),), columns=columns, **{**words, **changed})

    of.check(one({"similarity": "0.31"}))
    assert dropped(of.check, one({"similarity": 0.2})) == ("similarity >= 0.3", "0.2")
    assert dropped(of.check, one({})) == ("similarity is missing", "")
    (name,) = words
    short, long = ((("a", "b"),), (("a" * 30, "b"),)) if name == "turns" else ("a b", "a" * 31)
    assert dropped(of.check, one({"similarity": 1}, **{name: short})) == (
        f"{chars} >= 5",
        "2" if name == "turns" else "3",
    )
    assert dropped(of.check, one({"similarity": 1}, **{name: long})) == (f"{chars} <= 30", "31")


def test_rules_go_before_what_is_refused():
    of = step("generation", where={"caption_chars": {"min": 1}})
    assert dropped(of.check, Record("key", "a", (), caption=" ")) == ("caption_chars >= 1", "0")


HOLLOW = png(noise(40, 30))[:200]
"""A header and next to no pixels: what drops it has not decoded it."""


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"width": {"min": 41}}, ("width >= 41", "40")),
        ({"height": {"max": 29}}, ("height <= 29", "30")),
        ({"aspect": {"max": 1.25}}, ("aspect <= 1.25", "1.33333")),
    ],
)
def test_rules_on_pictures_are_checked_by_their_headers(where, expected):
    hollow = Picture("a.png", HOLLOW)
    assert dropped(step("generation", where=where).prepare, Record("key", "a", (hollow,), caption="a")) == expected
    conversation = Record("key", "a", (hollow,), turns=TURNS)
    assert dropped(step("understanding", where=where).make, conversation) == expected
    assert reason(step("generation").prepare, Record("key", "a", (hollow,), caption="a")).startswith("does not decode")


def test_every_picture_has_to_pass():
    of = step("understanding", where={"width": {"min": 40}})
    narrow = Record("key", "a", (picture(), picture(39)), turns=TURNS)
    assert dropped(of.make, narrow) == ("width >= 40", "39")
    assert len(sample_of(of, Record("key", "a", (picture(), picture(41)), turns=TURNS)).images) == 2
    assert sample_of(of, record(turns=TURNS)).images == []  # it has none that could break the rule


def test_facts():
    def measures(width, height):
        return (("width", width), ("height", height), ("aspect", max(width, height) / min(width, height)))

    conversation = Record("key", "a", (picture(40, 20), picture(60, 60)), turns=(("what? ", "it"), ("why?", "so")))
    facts = (*measures(40, 20), *measures(60, 60), ("caption_chars", 13))
    assert step("understanding").make(conversation).facts == facts
    assert step("understanding").make(record(turns=TURNS)).facts == (("caption_chars", 27),)
    assert step("understanding").make(record(1, caption=" a cat ")).facts == (*measures(40, 30), ("caption_chars", 5))
    assert step("text").make(record(text=" a text ")).facts == (("text_chars", 8),)
    of = step("generation", first_sentence_share=1.0)
    prepared = of.prepare(record(1, caption="A cat. Or not.", turns=TURNS))
    assert prepared.facts == (*measures(40, 30), ("caption_chars", 14))
    assert of.finish(prepared, np.zeros(64, np.uint16)).facts == prepared.facts


def test_a_prompt_and_its_crop():
    of, one = step("generation"), record(1, caption=" a gray cat\n")
    of.check(one)
    prepared = of.prepare(one)
    assert prepared.key == "key"
    assert prepared.prompt_ids.dtype == np.uint32
    assert prepared.prompt_ids.tolist() == chat.generation_prompt_ids(TOKENIZER, recipe().data.chat, "a gray cat")
    crop = images.resize_and_crop(images.load(picture().content or b"", MAX_PIXELS), SIDE)
    assert prepared.pixels.shape == (SIDE, SIDE, 3) and prepared.pixels.dtype == np.uint8
    assert np.array_equal(prepared.pixels, np.asarray(crop))
    vq_ids = np.arange(64, dtype=np.uint16)
    ((key, sample),) = of.finish(prepared, vq_ids).samples
    assert key == "key" and isinstance(sample, GenerationSample)
    assert sample.prompt_ids is prepared.prompt_ids and sample.vq_ids.tolist() == vq_ids.tolist()


@pytest.mark.parametrize("pictures", [0, 2])
def test_a_prompt_has_one_image(pictures):
    said = reason(step("generation").check, record(pictures, caption="a"))
    assert said == f"images: {pictures} images, but a caption describes one"


@pytest.mark.parametrize("mark", ["<image>", "<image_placeholder>", "<image1>", "<img>a.jpg</img>"])
def test_a_prompt_shows_no_image(mark):
    caption = f"make {mark} green"
    assert reason(step("generation").check, record(1, caption=caption)).startswith(
        f"images: the caption has the mark {mark}"
    )
    step("generation").check(record(1, caption="an <img>element</img> of HTML"))


def test_a_prompt_without_words_is_refused():
    assert reason(step("generation").check, record(1, caption=" ")) == "empty: the caption has no words"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_captions_is_cut_to_the_first_sentence_by_key(share):
    of = step("generation", first_sentence_share=share)
    whole, first = (
        chat.generation_prompt_ids(TOKENIZER, recipe().data.chat, caption)
        for caption in ("A cat. It is gray.", "A cat.")
    )
    keys = [f"{number:05d}" for number in range(40)]
    found = [of.prepare(record(1, key=key, caption="A cat. It is gray.")).prompt_ids.tolist() for key in keys]
    expected = [hashlib.sha256(key.encode()).digest()[:8] < int(share * 2**64).to_bytes(9, "big")[1:] for key in keys]
    if share == 1:
        expected = [True] * len(keys)
    assert found == [first if shortened else whole for shortened in expected]
    assert abs(sum(is_shortened(str(number), share) for number in range(10_000)) / 10_000 - share) < 0.02


@pytest.mark.parametrize("end", ["none", "end_of_image", "end_of_sentence"])
def test_what_follows_an_image_stands_behind_begin_of_image(end):
    of = step("generation", f"data.chat.image_end={end}")
    stored = of.prepare(record(1, caption="a cat")).prompt_ids.tolist()
    follows = {"none": [], "end_of_image": [TOKENIZER.eoi], "end_of_sentence": [TOKENIZER.eos]}[end]
    assert stored == [*chat.generation_prompt_ids(TOKENIZER, recipe().data.chat, "a cat"), *follows]


def test_an_image_is_cropped_where_its_key_says():
    wide = Picture("wide.png", png(noise(90, 30, 0)))
    whole = np.asarray(images.load(wide.content, MAX_PIXELS))
    keys = [f"{number}" for number in range(30)]
    places = []
    for key in keys:
        one = Record(key, "a.jsonl:1", (wide,), caption="a cat")
        center, crop, again = (
            step("generation", crop=how).prepare(one).pixels for how in ("center", "random", "random")
        )
        assert np.array_equal(crop, again)
        squares = [
            np.asarray(images.resize_and_crop(images.load(wide.content, MAX_PIXELS), SIDE, left / 60))
            for left in range(61)
        ]
        assert np.array_equal(center, squares[30])
        found = [left for left, square in enumerate(squares) if np.array_equal(square, crop)]
        places += found[:1]
    assert len(places) == len(keys) and min(places) < 15 and max(places) > 45
    assert whole.shape == (30, 90, 3)


def test_a_document_is_one_sample_or_pieces_of_it():
    of, text = step("text", "pipeline.text_document_tokens=20"), "The quick brown fox jumps over the lazy dog. " * 4
    assert made_of(of, record(text="short")).samples[0][0] == "key"
    made = made_of(of, record(text=text))
    assert [key for key, _ in made.samples] == [f"key-{number:03d}" for number in range(len(made.samples))]
    pieces = [sample.ids.tolist() for _, sample in made.samples if isinstance(sample, TextSample)]
    assert pieces == [piece.tolist() for piece in chat.text_ids(TOKENIZER, text, 20)] and len(pieces) > 2


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_document_without_words_is_refused(text):
    assert reason(step("text").check, record(text=text)) == "empty: the text has no words"


def test_a_key_is_escaped_once_on_its_way_from_a_file_to_a_shard(tmp_path):
    path = tmp_path / "a.jsonl"
    said = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "it"}]
    path.write_text(json.dumps({"id": "photo.v2", "conversations": said}))
    (one,), _ = read(source("jsonl", path, columns={"key": "id"}))
    assert isinstance(sample_of(step("understanding"), one), UnderstandingSample) and one.key == "photo%2Ev2"
