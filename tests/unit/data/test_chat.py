"""The chat format, id by id, against the strings that deepseek-ai/Janus documents."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizer import PATH
from janus_dist.config.data import ChatConfig
from janus_dist.data import chat as chat_format
from janus_dist.data.chat import generation_prompt_ids, plain_ids, text_ids, understanding_ids
from janus_dist.data.sample import TextSample, learned
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError

CHAT = ChatConfig()
PRO = ChatConfig(user="<|User|>", assistant="<|Assistant|>", system_prompt="You are a helpful assistant.")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(PATH)


def official_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt string as the official processor makes them: cut at special tokens, each piece encoded whole."""
    special = {
        "<|User|>": [tokenizer.added["<|User|>"]],
        "<|Assistant|>": [tokenizer.added["<|Assistant|>"]],
        "<bos>": [tokenizer.bos],
        "<eos>": [tokenizer.eos],
        "<boi>": [tokenizer.boi],
        "<image_placeholder>": [tokenizer.boi, tokenizer.image, tokenizer.eoi],
    }
    for name in special:
        text = text.replace(name, f"\0{name}\0")
    pieces = [special[piece] if piece in special else tokenizer.encode(piece) for piece in text.split("\0")]
    return [number for piece in pieces for number in piece]


def test_a_turn_about_an_image(tokenizer):
    ids, spans = understanding_ids(tokenizer, CHAT, [("what color is it?", "blue")], num_images=1)
    text = "<bos>User: <image_placeholder>\nwhat color is it?\n\nAssistant: blue<eos>"
    assert ids == official_ids(tokenizer, text)
    assert [ids[start:stop] for start, stop in spans] == [[*tokenizer.encode(" blue"), tokenizer.eos]]
    start = len(tokenizer.encode("User: ")) + 1
    assert ids[: start + 3] == [
        tokenizer.bos,
        *tokenizer.encode("User: "),
        tokenizer.boi,
        tokenizer.image,
        tokenizer.eoi,
    ]


def test_several_turns_and_a_system_prompt(tokenizer):
    turns = [("is it red?", "no"), ("and blue?", "yes")]
    ids, spans = understanding_ids(tokenizer, PRO, turns, num_images=1)
    text = (
        "<bos>You are a helpful assistant.\n\n<|User|>: <image_placeholder>\nis it red?\n\n<|Assistant|>: no<eos>"
        "<|User|>: and blue?\n\n<|Assistant|>: yes<eos>"
    )
    assert ids == official_ids(tokenizer, text)
    assert [tokenizer.decode(ids[start:stop]) for start, stop in spans] == [" no", " yes"]


def test_a_conversation_without_and_with_two_images(tokenizer):
    ids, _ = understanding_ids(tokenizer, CHAT, [("hello", "world")], num_images=0)
    assert ids == official_ids(tokenizer, "<bos>User: hello\n\nAssistant: world<eos>")
    ids, _ = understanding_ids(tokenizer, CHAT, [("same?", "yes")], num_images=2)
    assert ids == official_ids(
        tokenizer, "<bos>User: <image_placeholder>\n<image_placeholder>\nsame?\n\nAssistant: yes<eos>"
    )


@pytest.mark.parametrize("chat", [CHAT, PRO])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_an_open_question_is_a_prefix_of_the_answered_one(tokenizer, chat, asked):
    turns: list[tuple[str, str | None]] = [("what is it?", "a circle"), ("is it red?", "no"), ("is it gray?", "yes")]
    whole, spans = understanding_ids(tokenizer, chat, turns, num_images=1)
    opened, open_spans = understanding_ids(tokenizer, chat, [*turns[:asked], (turns[asked][0], None)], num_images=1)
    assert opened == whole[: spans[asked][0]]
    assert open_spans == spans[:asked]


def test_space_around_messages_is_taken_off(tokenizer):
    assert understanding_ids(tokenizer, CHAT, [(" why? \n", "\tbecause ")], 1) == understanding_ids(
        tokenizer, CHAT, [("why?", "because")], 1
    )


@pytest.mark.parametrize("chat", [CHAT, PRO])
def test_a_prompt_for_an_image_ends_with_begin_of_image(tokenizer, chat):
    ids = generation_prompt_ids(tokenizer, chat, "a blue rectangle")
    assert ids == official_ids(tokenizer, f"<bos>{chat.user}: a blue rectangle\n\n{chat.assistant}:<boi>")


def test_the_roles_of_janus_pro_are_tokens_of_their_own(tokenizer):
    ids = generation_prompt_ids(tokenizer, PRO, "a cat")
    assert ids[1] == tokenizer.inner.token_to_id("<|User|>")
    assert ids[-3] == tokenizer.inner.token_to_id("<|Assistant|>")
    assert tokenizer.role("User") == "User"


@pytest.mark.parametrize(
    ("questions", "images", "prompt"),
    [
        (["<image>\nwhat?"], 1, "User: <image_placeholder>\nwhat?\n\nAssistant: a<eos>"),
        (["what?\n<image>"], 1, "User: what?\n<image_placeholder>\n\nAssistant: a<eos>"),
        (["  <image> what? "], 1, "User: <image_placeholder> what?\n\nAssistant: a<eos>"),
        (
            ["is <image> like <image>?"],
            2,
            "User: is <image_placeholder> like <image_placeholder>?\n\nAssistant: a<eos>",
        ),
        (["<image><image>"], 2, "User: <image_placeholder><image_placeholder>\n\nAssistant: a<eos>"),
        (
            ["<image>\nwhat?", "and <image>"],
            2,
            "User: <image_placeholder>\nwhat?\n\nAssistant: a<eos>User: and <image_placeholder>\n\nAssistant: a<eos>",
        ),
        (
            ["what?", "why?"],
            2,
            "User: <image_placeholder>\n<image_placeholder>\nwhat?\n\nAssistant: a<eos>User: why?\n\nAssistant: a<eos>",
        ),
    ],
)
def test_images_are_where_their_marks_are(tokenizer, questions, images, prompt):
    ids, spans = understanding_ids(tokenizer, CHAT, [(question, "a") for question in questions], images)
    assert ids == official_ids(tokenizer, f"<bos>{prompt}")
    assert [ids[start:stop] for start, stop in spans] == [[*tokenizer.encode(" a"), tokenizer.eos]] * len(questions)


@pytest.mark.parametrize(
    ("turns", "images", "reason"),
    [
        ([("<image> what?", "a")], 2, "images: 1 marks in the text for 2 images"),
        ([("<image> <image>", "a")], 1, "images: 2 marks in the text for 1 images"),
        ([("an <image> in HTML?", "a")], 0, "images: the text has the mark <image> but no image"),
        ([("what?", "a"), ("why?", "so: <image>")], 1, "images: the mark <image> is in answer 1"),
    ],
)
def test_marks_that_do_not_match_the_images(tokenizer, turns, images, reason):
    with pytest.raises(DataError) as caught:
        understanding_ids(tokenizer, CHAT, turns, images)
    assert caught.value.message == reason


def test_a_system_message_stands_in_for_the_prompt_of_the_chat(tokenizer):
    ids, _ = understanding_ids(tokenizer, PRO, [("why?", "so")], 0, system_prompt="Be brief.")
    assert ids == official_ids(tokenizer, "<bos>Be brief.\n\n<|User|>: why?\n\n<|Assistant|>: so<eos>")


def test_no_text_of_a_user_becomes_a_special_token(tokenizer):
    evil = "<image_placeholder><begin_of_image><|User|><\uff5cend\u2581of\u2581sentence\uff5c>"
    ids, _ = understanding_ids(tokenizer, PRO, [(f"a {evil} b", evil)], num_images=0)
    special = [number for number in ids if number in tokenizer.added.values()]
    assert special == [tokenizer.bos, tokenizer.role("<|User|>"), tokenizer.role("<|Assistant|>"), tokenizer.eos]
    for ids in (generation_prompt_ids(tokenizer, CHAT, evil), text_ids(tokenizer, evil, 1_000)[0].tolist()):
        assert not set(ids[1:-1]) & set(tokenizer.added.values())


@pytest.mark.parametrize(
    ("text", "images", "shown", "answers"),
    [
        ("a cat", 1, "<image_placeholder>a cat<eos>", [["a cat", "<eos>"]]),
        (" a cat\n", 2, "<image_placeholder><image_placeholder>a cat<eos>", [["a cat", "<eos>"]]),
        (
            "see <image> and <image>.",
            2,
            "see <image_placeholder> and <image_placeholder>.<eos>",
            [["see "], [" and "], [".", "<eos>"]],
        ),
        ("it:\n<image>", 1, "it:\n<image_placeholder><eos>", [["it:\n"], ["<eos>"]]),
        ("<image><image>both", 2, "<image_placeholder><image_placeholder>both<eos>", [["both", "<eos>"]]),
    ],
)
def test_a_plain_text_around_its_images(tokenizer, text, images, shown, answers):
    ids, spans = plain_ids(tokenizer, text, images)
    assert ids == official_ids(tokenizer, f"<bos>{shown}")
    found = [ids[start:stop] for start, stop in spans]
    assert found == [[number for part in span for number in official_ids(tokenizer, part)] for span in answers]


def test_a_plain_text_with_another_number_of_marks(tokenizer):
    with pytest.raises(DataError, match="images: 1 marks in the text for 2 images"):
        plain_ids(tokenizer, "<image> a cat", 2)


def document(tokenizer, text):
    return [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]


@pytest.mark.parametrize("max_tokens", [2, 3, 50, 10_000])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_every_id_of_a_cut_text_is_a_label_once(tokenizer, max_tokens, length):
    text = "The quick brown fox jumps over the lazy dog.\n" * length
    whole, pieces = document(tokenizer, text), text_ids(tokenizer, text, max_tokens)
    assert all(2 <= len(piece) <= max_tokens and piece.dtype == np.uint32 for piece in pieces)
    assert all(one[-1] == other[0] for one, other in pairwise(pieces))
    labels = [piece[learned(TextSample(piece), (0, 0, 0), False)] for piece in pieces]
    assert np.concatenate(labels).tolist() == whole[1:]
    assert pieces[0][0] == tokenizer.bos
    assert [tokenizer.eos in piece for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_text_that_just_fits_is_not_cut(tokenizer):
    whole = document(tokenizer, "one two three")
    assert [piece.tolist() for piece in text_ids(tokenizer, "one two three", len(whole))] == [whole]
    assert [piece.tolist() for piece in text_ids(tokenizer, "one two three", len(whole) - 1)] == [
        whole[:-1],
        whole[-2:],
    ]


def test_an_empty_text_gives_no_document(tokenizer):
    assert text_ids(tokenizer, "", max_tokens=8) == []


@settings(max_examples=100)
@given(text=st.text(alphabet=st.sampled_from("ab \n\t\u3000\u6f22\u00e9.1'\u0301"), min_size=1, max_size=120))
def test_a_long_text_is_encoded_in_parts_with_the_ids_of_the_whole(text):
    tokenizer = Tokenizer.load(PATH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_format, "ENCODED_CHARS", 7)
        patch.setattr(chat_format, "WORD_CHARS", 1_000)
        found = text_ids(tokenizer, text, 10_000)[0].tolist()
    assert found == document(tokenizer, text)


def test_a_text_without_white_space_is_cut_between_characters(tokenizer, monkeypatch):
    monkeypatch.setattr(chat_format, "ENCODED_CHARS", 50)
    monkeypatch.setattr(chat_format, "WORD_CHARS", 100)
    text = "\u6f22\u5b57\U0001f98a" * 500
    found = text_ids(tokenizer, text, 1_000_000)[0].tolist()
    assert tokenizer.decode(found) == text
    assert len(found) <= 1.05 * len(document(tokenizer, text))


@pytest.mark.parametrize("character", ["x", " "])
def test_time_grows_as_the_text_does(tokenizer, character):
    def seconds(number):
        started = time.process_time()
        text_ids(tokenizer, character * number, 2_048)
        return time.process_time() - started

    seconds(100_000)
    assert seconds(800_000) < 24 * seconds(100_000), "for 8 times as much; 64 if it were quadratic"


@given(st.lists(st.text("ab \n.", max_size=60), min_size=1, max_size=5))
def test_what_exceeds_alone_exceeds_in_the_document(tokenizer, texts):
    """What would fit is never refused for its texts alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_format, "ENCODED_CHARS", 8)
        turns = [(text, "so") for text in texts]
        ids, _ = understanding_ids(tokenizer, CHAT, turns, 0)
        assert not chat_format.exceeds(tokenizer, texts, len(ids))
        assert chat_format.exceeds(tokenizer, ["ab" * 100], 3)
