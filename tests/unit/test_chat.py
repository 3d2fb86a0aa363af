"""The chat format, id by id, against the strings that deepseek-ai/Janus documents."""

import itertools

import pytest

from data_pipelines.tokenizer import PATH
from janus_dist.config.data import ChatConfig
from janus_dist.data.chat import generation_prompt_ids, plain_ids, text_ids, understanding_ids
from janus_dist.data.tokenizer import Tokenizer

CHAT = ChatConfig()
PRO = ChatConfig(user="<|User|>", assistant="<|Assistant|>", system_prompt="You are a helpful assistant.")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(PATH)


def official_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt string as the official processor makes them: cut at special tokens, each piece encoded whole."""
    special = {
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


@pytest.mark.parametrize("max_tokens", [2, 3, 50, 49, 401, 402, 10_000])
def test_a_long_text_is_cut_and_each_id_is_predicted_once(tokenizer, max_tokens):
    text = "The quick brown fox jumps over the lazy dog.\n" * 40
    whole = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    pieces = text_ids(tokenizer, text, max_tokens)
    assert [number for piece in pieces for number in piece[1:]] == whole[1:]
    assert all(second[0] == first[-1] for first, second in itertools.pairwise(pieces)) and pieces[0][0] == whole[0]
    assert all(len(piece) == max_tokens for piece in pieces[:-1]) and 2 <= len(pieces[-1]) <= max_tokens


def test_marks_put_images_where_they_stand(tokenizer):
    turns = [("<image>\nwhat?", "it"), ("and <image> and<image>", "that")]
    ids, _ = understanding_ids(tokenizer, CHAT, turns, num_images=3)
    text = (
        "<bos>User: <image_placeholder>\nwhat?\n\nAssistant: it<eos>"
        "User: and <image_placeholder> and<image_placeholder>\n\nAssistant: that<eos>"
    )
    assert ids == official_ids(tokenizer, text)
    marked, _ = understanding_ids(tokenizer, CHAT, [("<image>\nwhat?", "it")], num_images=1)
    assert marked == understanding_ids(tokenizer, CHAT, [("what?", "it")], num_images=1)[0]


def test_a_mark_without_an_image_and_a_special_token_in_a_text_are_letters(tokenizer):
    ids, _ = understanding_ids(tokenizer, CHAT, [("<image> <image_placeholder>?", "no<begin_of_image>")], num_images=0)
    assert not {tokenizer.image, tokenizer.boi} & set(ids)
    assert "<image> <image_placeholder>?" in tokenizer.decode(ids)


def test_a_system_message_stands_in_for_the_prompt_of_the_chat(tokenizer):
    ids, _ = understanding_ids(tokenizer, PRO, [("why?", "so")], 0, system_prompt="Be brief.")
    assert ids == official_ids(tokenizer, "<bos>Be brief.\n\n<|User|>: why?\n\n<|Assistant|>: so<eos>")


def test_plain_text_with_images(tokenizer):
    ids, spans = plain_ids(tokenizer, "a cat", num_images=1)
    assert ids == official_ids(tokenizer, "<bos><image_placeholder>a cat<eos>")
    assert [ids[start:stop] for start, stop in spans] == [[*tokenizer.encode("a cat"), tokenizer.eos]]
    ids, spans = plain_ids(tokenizer, "one <image> two<image>", num_images=2)
    assert ids == official_ids(tokenizer, "<bos>one <image_placeholder> two<image_placeholder><eos>")
    said = [tokenizer.encode("one "), tokenizer.encode(" two"), [tokenizer.eos]]
    assert [ids[start:stop] for start, stop in spans] == said


def test_an_empty_text_gives_no_document(tokenizer):
    assert text_ids(tokenizer, "", max_tokens=8) == []
