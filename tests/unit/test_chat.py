"""The chat format, id by id, against the strings that deepseek-ai/Janus documents."""

import pytest

from data_pipelines.tokenizer import PATH
from janus_dist.config.data import ChatConfig
from janus_dist.data.chat import generation_prompt_ids, text_ids, understanding_ids
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


def test_a_long_text_is_cut_and_nothing_of_it_is_lost(tokenizer):
    text = "The quick brown fox jumps over the lazy dog.\n" * 40
    whole = tokenizer.encode(text)
    pieces = text_ids(tokenizer, text, max_tokens=50)
    assert all(piece[0] == tokenizer.bos and piece[-1] == tokenizer.eos for piece in pieces)
    assert [len(piece) for piece in pieces[:-1]] == [50] * (len(pieces) - 1) and 2 < len(pieces[-1]) <= 50
    assert [number for piece in pieces for number in piece[1:-1]] == whole


def test_an_empty_text_gives_no_document(tokenizer):
    assert text_ids(tokenizer, "", max_tokens=8) == []
