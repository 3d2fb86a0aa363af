"""The account of records: each value and each image is used, ignored with a reason, or the record is refused."""

import base64
import json
from pathlib import Path

import pytest

from data_pipelines.inputs import marks
from data_pipelines.inputs.media import Origin
from data_pipelines.record import Record
from data_pipelines.steps.understanding import Understanding
from data_pipelines.tokenizer import PATH
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.sample import UnderstandingSample, decode, learned, members
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from tests.images import noise, png
from tests.inputs import entries, read, source, tar

CASES = Path(__file__).parents[2] / "cases"
BASE = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny" / "base.yaml"
USER, ANSWER = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "a thing"}
PNG = png(noise(20, 20))
ENCODED = base64.b64encode(PNG).decode()


def of_case(name):
    """What becomes of the lines of a case: (names of pictures, first question) or the reason."""
    return [shown(entry) for entry in entries(source("jsonl", CASES / name / "d.jsonl", stream="understanding"))]


def shown(entry):
    if not isinstance(entry, Record):
        return entry.reason
    names = [one.content[:2] if one.content else one.source.rpartition("/")[2] for one in entry.pictures]
    return names, entry.turns[0][0] if entry.turns else entry.caption


def line(tmp_path, *values, stream="understanding", **settings):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return source("jsonl", tmp_path / "d.jsonl", stream=stream, **settings)


def one(tmp_path, value, **settings):
    (entry,) = entries(line(tmp_path, value, **settings))
    return entry


def reason(tmp_path, value, **settings) -> str:
    entry = one(tmp_path, value, **settings)
    assert not isinstance(entry, Record), entry
    return entry.reason


# --- images ---


def test_images_in_a_message():
    assert of_case("images_in_message") == [(["a.jpg"], "<image>\nwhat is in the picture?")]


def test_an_empty_image_does_not_hide_images():
    assert [names for names, _ in of_case("empty_image_hides_images")] == [[], [], [], ["a.jpg"], ["a.jpg"]]


def test_parts_of_messages():
    *results, last = of_case("openai_parts")
    assert results.pop(3).startswith("unsafe name: '/nowhere/a.jpg' is not a path inside")
    assert results.pop(5) == ([b"\xff\xd8"], "<image>w?")
    assert results.pop(6) == (["b.jpg", "a.jpg"], "<image><image>w?"), "their numbers count"
    assert results == [(["a.jpg"], "<image>w?")] * 6
    assert last == (["a.jpg"], "w?<image>")


def test_data_uris():
    assert [names for names, _ in of_case("data_uri_image")] == [[b"\xff\xd8"]] * 2


def test_a_placeholder_is_the_place_of_an_image():
    assert of_case("placeholder_with_top_images") == [(["a.jpg"], "<image>\nwhat?")]


def test_unknown_keys():
    results = of_case("unknown_keys")
    assert results[0].startswith(
        "images: the record lists unknown_keys/a.jpg and its text names unknown_keys/other.jpg"
    )
    assert results[1] == (["other.jpg"], "<image>w?")
    assert results[2] == (["a.jpg"], "<image>\nw?") and results[3] == (["a.jpg"], "<image>w?")
    assert results[4].startswith(
        "images: image_file has 'a.jpg', which nothing reads; set columns: {image: image_file}"
    )
    assert results[6].startswith("roles: a message has tool_calls")
    assert results[8:11] == [(["a.jpg"], "a cat")] * 3
    assert results[11].startswith("images: list is neither bytes nor a path")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"images": ["a.jpg", None]}, "images: number 2 of 2 is empty"),
        ({"images": [""]}, "images: number 1 of 1 is empty"),
        ({"image": "left/a.jpg", "images": ["right/a.jpg"]}, "two values: image and images hold different images"),
        ({"image": "left/a.jpg", "view": "right/a.jpg"}, "images: view has 'right/a.jpg', which nothing reads"),
        ({"image": "a.jpg", "images": ["b.jpg"]}, "two values: image and images hold different images"),
        ({"image": "http://x/a.jpg"}, "web address: 'http://x/a.jpg'; the pipelines read files"),
        ({"image": f"data:image/png,{ENCODED}"}, "images: 'data:image/png,"),
        ({"image": "data:image/png;base64,@"}, "images: a data URI has 1 characters, neither a path nor base64"),
        ({"image": "data:video/mp4;base64,AAAA"}, "video: a value is of type video/mp4"),
        ({"image": "data:text/plain;base64,AAAA"}, "images: a value is of type 'text/plain', not of an image"),
        ({"image": "x@y" * 500}, "images: 'x@yx"),
        ({"image": {"file_id": "f1"}}, "images: 'f1' is a file of an API"),
        ({"image": {"path": "a.jpg", "url": "b.jpg"}}, "images: an object names several files"),
        ({"photo_file": "my photo.png"}, "images: photo_file has 'my photo.png', which nothing reads"),
        ({"meta": {"views": [["left.png"]]}}, "images: meta has 'left.png', which nothing reads"),
        ({"thumbnail": ENCODED}, "images: thumbnail has "),
        ({"url": "https://x/a.jpg?w=3"}, "images: url has 'https://x/a.jpg?w=3', which nothing reads"),
        ({"image": "a.jpg", "mask": "m.png"}, "images: mask has 'm.png', which nothing reads; set columns: {image: m"),
    ],
)  # fmt: skip
def test_images_are_not_lost(tmp_path, value, expected):
    assert reason(tmp_path, {"messages": [USER, ANSWER], **value}).startswith(expected)


@pytest.mark.parametrize(
    ("value", "ignored"),
    [
        ({"image": "x/a.jpg", "images": ["a.jpg"]}, {"images": "the same image as image"}),
        ({"image": {"bytes": "", "path": "a.jpg"}, "id": "a.jpg", "n": 3}, {"id": "not used", "n": "not used"}),
        ({"image": "a.jpg", "url": "http://x/b.jpg"}, {"url": "a web address of an image, which is not read"}),
        ({"image": "a.jpg", "clip": "c.mp4"}, {"clip": "video, which is not read"}),
        ({"image": "a.jpg", "note": "see b.jpg and c.jpg", "empty": None}, {"note": "not used"}),
        ({"image": "a.jpg", "caption": "c"}, {"caption": "the conversation or the text is used"}),
    ],
)
def test_what_is_ignored_has_a_reason(tmp_path, value, ignored):
    record = one(tmp_path, {"messages": [USER, ANSWER], **value})
    assert isinstance(record, Record) and len(record.pictures) == 1 and dict(record.ignored) == ignored


def test_a_named_image_and_values_of_rules_and_keys_are_an_account(tmp_path):
    value = {"pic": "a.jpg", "mask": "m.png", "score": 1, "id": "x", "messages": [USER, {**ANSWER, "thoughts": "t"}]}
    settings = {"columns": {"image": "pic", "key": "id"}, "where": {"score": {"min": 0}}}
    record = one(tmp_path, value, **settings)
    assert isinstance(record, Record) and dict(record.ignored) == {
        "mask": "an image, but the recipe's columns.image names another",
        "messages[].thoughts": "not used",
    }


def test_the_text_stream_reads_texts_alone(tmp_path):
    value = {"text": "see <image> and <img>a.jpg</img>", "image": "a.jpg", "audio": "b.wav", "url": "http://x"}
    record = one(tmp_path, value, stream="text")
    assert isinstance(record, Record) and record.text == value["text"] and record.pictures == ()
    only = "the text stream reads texts alone"
    assert dict(record.ignored) == {"image": only, "audio": only, "url": "not used"}


@pytest.mark.parametrize(
    ("text", "expected", "pictures"),
    [
        ("<image2> or <image1>?", "<image> or <image>?", ["b", "a"]),
        ("<image_0> <image_1>", "<image> <image>", ["a", "b"]),
        ("<|image_1|><|image_2|>", "<image><image>", ["a", "b"]),
        ("<|vision_start|><|image_pad|><|image_pad|><|vision_end|><|image_pad|>", "<image><image>", ["a", "b"]),
        ("<img>b.jpg</img> <img>a.jpg</img>", None, None),
        ("<img>./a.jpg</img> <img>b.jpg</img>", "<image> <image>", ["a", "b"]),
        ("<img></img><Img><ImageHere></Img>", "<image><image>", ["a", "b"]),
        ("<img><IMG_CONTEXT><IMG_CONTEXT></img><image_placeholder>", "<image><image>", ["a", "b"]),
        ("(<image>./</image>)<fake_token_around_image><image><fake_token_around_image>", "<image><image>", ["a", "b"]),
        ("<img>bold</img>", "<img>bold</img>", ["a", "b"]),
        ("<image1> <image1>", None, None),
        ("<image1> <image3>", None, None),
        ("<image1> <image>", None, None),
        ("<img>a.jpg</img>", None, None),
    ],
)
def test_marks(tmp_path, text, expected, pictures):
    entry = one(tmp_path, {"images": ["a.jpg", "b.jpg"], "messages": [{**USER, "content": text}, ANSWER]})
    if expected is None:
        assert not isinstance(entry, Record) and entry.reason.startswith("images: ")
    else:
        assert shown(entry) == ([f"{name}.jpg" for name in pictures], expected)


def test_marks_take_time_that_grows_with_the_text():
    for part in ("<img>" + " " * 50, "<|vision_start|><|image_pad|>", "<video>x</video>", "<img><IMG_CONTEXT>"):
        text = part * 20_000  # a pattern that looks back would need hours
        marks.check_media(text)
        marks.read(text, Origin("a", "/"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({**ANSWER, "images": ["a.jpg"]}, "images: a message of the assistant shows an image; only questions do"),
        ({**ANSWER, "role": "tool"}, "roles: 'tool' is not one of human, user, gpt, assistant, system"),
        ({**ANSWER, "from": "user"}, "two values: a message has from and role, and they differ"),
        ({**ANSWER, "shot": "a.jpg"}, "images: messages[].shot has 'a.jpg', which nothing reads; name the images of"),
        ({**ANSWER, "content": [{"type": "thinking"}]}, "roles: a part of a message is neither text nor image: 'think"),
    ],
)
def test_messages_that_are_refused(tmp_path, message, expected):
    assert reason(tmp_path, {"messages": [USER, message]}).startswith(expected)


def test_a_mark_in_a_system_message_is_refused(tmp_path):
    system = {"role": "system", "content": "<image>"}
    assert reason(tmp_path, {"image": "a.jpg", "messages": [system, USER, ANSWER]}).startswith(
        "images: the mark <image>"
    )


def test_values_that_are_nested_too_deeply_are_refused(tmp_path):
    value: object = "a.jpg"
    for _ in range(800):
        value = {"path": value}
    meta = json.dumps({"messages": [USER, ANSWER], "image": value})
    (tmp_path / "0.tar").write_bytes(tar([("0.json", meta.encode())]))
    (tmp_path / "d.jsonl").write_text(meta)
    for form, name in (("webdataset", "0.tar"), ("jsonl", "d.jsonl")):
        (entry,) = entries(source(form, tmp_path / name))
        assert not isinstance(entry, Record) and entry.reason.startswith("not JSON: ")


# --- video, sound, editing ---


def test_video_and_sound_are_refused_by_kind():
    assert [result.partition(":")[0] for result in of_case("video_records")] == ["video", "video", "video", "audio"]


@pytest.mark.parametrize(
    "mark", ["<video>", "<video_1>", "<|video_pad|>", "<|AUDIO|>", "<audio>", "<video>a.mp4</video>"]
)
def test_marks_of_video_and_sound_are_refused(tmp_path, mark):
    entry = reason(tmp_path, {"messages": [{**USER, "content": f"{mark}\nwhat?"}, ANSWER]})
    assert entry.partition(":")[0] == ("audio" if "audio" in mark.lower() else "video")


def test_elements_of_html_are_no_marks(tmp_path):
    text = "<video>your browser has none</video>"
    record = one(tmp_path, {"messages": [{**USER, "content": text}, {**ANSWER, "content": "take <video>"}]})
    assert isinstance(record, Record) and record.turns == ((text, "take <video>"),)


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        ({"input_prompt": "green", "input_image": "a.png", "output_image": "b.png"}, {"image": "output_image"}),
        ({"edit": "green", "source_img": "a.png", "target_img": "b.png"}, {"image": "source_img"}),
        ({"caption": "green", "image": "a.png", "input_image": "x"}, {}),
    ],
)
def test_editing_is_refused(tmp_path, value, settings):
    columns = {**settings, "caption": next(iter(value))}
    assert reason(tmp_path, value, stream="generation", columns=columns).startswith("editing: ")
    if "output_image" in value:
        assert reason(tmp_path, value, columns=columns).startswith("editing: input_image is an image to be changed")


def test_a_caption_to_draw_has_no_image_to_change(tmp_path):
    value = {"input_prompt": "a cat", "input_image": None, "output_image": "b.png"}
    columns = {"image": "output_image", "caption": "input_prompt"}
    assert isinstance(one(tmp_path, value, stream="generation", columns=columns), Record)


# --- system, roles, loss ---


def test_a_system_message_beside_the_conversation(tmp_path):
    (entry,) = entries(source("jsonl", CASES / "system_beside_conversation" / "d.jsonl", stream="understanding"))
    assert isinstance(entry, Record) and entry.system == "You are a careful radiologist." and entry.ignored == ()
    system = {"role": "system", "content": "Be brief."}
    same = one(tmp_path, {"system": " Be brief.", "messages": [system, USER, ANSWER]})
    assert isinstance(same, Record) and same.system == "Be brief."
    other = {"system": "Be long.", "messages": [system, USER, ANSWER]}
    assert reason(tmp_path, other).startswith("two values: the record has different system messages")


@pytest.mark.parametrize(
    ("user", "assistant"),
    [("<|User|>", "<|Assistant|>"), ("USER", "ASSISTANT"), ("Human:", "bot"), ("User", "model"), ("human", "ChatGPT")],
)
def test_names_of_roles(tmp_path, user, assistant):
    record = one(tmp_path, {"messages": [USER | {"role": user}, ANSWER | {"role": assistant}]})
    assert isinstance(record, Record) and record.turns == (("what?", "a thing"),)


@pytest.mark.parametrize(
    ("marked", "context"),
    [
        ({"loss": False}, (1,)), ({"weight": 0}, (1,)), ({"weight": 0.0, "train": False}, (1,)),
        ({"weight": 1}, ()), ({"loss": None}, ()), ({"train": True}, ()),
    ],
)  # fmt: skip
def test_answers_that_are_not_learned(tmp_path, marked, context):
    record = one(tmp_path, {"messages": [USER, ANSWER, USER, {**ANSWER, **marked}]})
    assert isinstance(record, Record) and record.context == context


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({**ANSWER, "weight": 0.5}, "loss: weight is 0.5 in a message; an answer is learned or not"),
        ({**ANSWER, "loss": "no"}, "loss: loss is no in a message"),
        ({**ANSWER, "loss": False, "weight": 1}, "loss: loss and weight of a message contradict each other"),
    ],
)
def test_weights_that_are_refused(tmp_path, message, expected):
    assert reason(tmp_path, {"messages": [USER, message]}).startswith(expected)
    learned_question = {"messages": [{**USER, "train": True}, ANSWER]}
    assert reason(tmp_path, learned_question).startswith("loss: train asks that a message of the user is learned")


def test_a_context_answer_has_no_label_in_any_stage(tmp_path):
    tokenizer, recipe = Tokenizer.load(PATH), load(BaseRecipe, [BASE], [f"data.tokenizer={PATH}"]).recipe
    of = line(tmp_path, {"messages": [USER, {**ANSWER, "loss": False}, USER, ANSWER]}, {"messages": [USER, ANSWER]})
    step = Understanding(recipe, of, tokenizer)
    marked, plain = (step.make(record).samples[0][1] for record in read(of)[0])
    assert isinstance(marked, UnderstandingSample) and isinstance(plain, UnderstandingSample)
    ((start, stop),) = marked.context.tolist()
    assert tokenizer.decode(marked.ids[start:stop]).strip().startswith("a thing")
    found = decode("understanding", tar(members("key", marked)))
    assert isinstance(found, UnderstandingSample) and found.context.tolist() == [[start, stop]]
    special = (tokenizer.boi, tokenizer.image, tokenizer.eoi)
    for answers_only in (False, True):
        labels = learned(found, special, answers_only)
        assert not labels[start:stop].any() and labels[slice(*found.answers[0])].all()
    assert [name for name, _ in members("key", plain)] == ["key.tokens", "key.answers"], "others are stored as before"
    with pytest.raises(DataError, match="loss: the source marks every answer"):
        step.check(Record("k", "a", turns=(("q", "a"),), context=(0,)))
