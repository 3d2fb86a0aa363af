"""Texts of records: what is refused, what is mended, and where the first sentence ends."""

import time

import pytest

from data_pipelines.steps.words import first_sentence, words
from janus_dist.errors import DataError


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u3000", "\xa0"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(DataError) as caught:
        words(text, "answer 2")
    assert caught.value.message == "empty: answer 2 has no words"


@pytest.mark.parametrize("text", ["a\0b", "h\0e\0l\0l\0o\0"])
def test_a_text_with_nul_is_none(text):
    with pytest.raises(DataError) as caught:
        words(text, "the caption")
    assert caught.value.message == "no text: the caption has a NUL character"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a cat\n", " a cat\n"),
        ("a cat \ud83d", "a cat \ufffd"),  # the first half of an emoji that was cut
        ("\ude00 a cat", "\ufffd a cat"),
        ("a \ud83d\ude00 cat", "a \U0001f600 cat"),  # both halves
        ("na\u00efve \U0001f98a \u6f22\u5b57 \x7f", "na\u00efve \U0001f98a \u6f22\u5b57 \x7f"),
    ],
)
def test_what_is_left_can_be_encoded(text, expected):
    assert words(text, "the text") == expected
    assert expected.encode()


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ("A cat sits.", " It sleeps."),
        ("A cat sits", ""),
        ("a cat sits.", " the dog runs."),
        ("Who is it?", " Nobody."),
        ("Look!", " A cat."),
        ("Mr. Smith and Dr. Jones meet St. Nick.", " They talk."),
        ("A 3.5 m wide road, No. 7 of approx. 40.", " Cars drive."),
        ("The answer is no.", " The dog is gone."),
        ("A painting by J. R. R. Tolkien.", " It is old."),
        ("Soldiers of the U.S. Army, e.g. a sergeant.", " They march."),
        ("A street at 5 p.m. in May.", " It rains."),
        ("He waits... and waits.", " Nobody comes."),
        ("He waits\u2026 and waits.", " Nobody comes."),
        ("He waits...", " Nobody comes."),
        ("\u201cStop!\u201d he says.", " They go."),
        ('He says "Stop."', " They go."),
        ("It is (as always) late (or early.)", " They go."),
        ("See example.com for v1.2.3 of it.", " Then go."),
        ("1. A cat sits.", " 2. A dog runs."),
        ("... a cat.", " A dog."),
        ("What?!", " A cat."),
        ("\u4e00\u53ea\u732b\u3002", "\u5b83\u5728\u7761\u89c9\u3002"),
        ("\u732b\u304c\u3044\u307e\u3059\u304b\uff1f", "\u306f\u3044\u3002"),
        ("\u5b83\u6709 3.5 \u7c73\u9ad8\u3002", "\u5f88\u9ad8\u3002"),
        ("\u300c\u732b\uff01\u300d", "\u4ed6\u8bf4\u3002"),
        ("A title", "\n\nA cat sits. It sleeps."),
        ("A title", "\n \t\nA cat sits."),
        ("A cat sits on\na mat.", "\nIt sleeps."),
        ("A cat. ", ""),
        ("2024", ""),
        ("!!!", ""),
    ],
)
def test_the_first_sentence(first, rest):
    assert first_sentence(f"  {first}{rest} ") == first.strip()


@pytest.mark.parametrize("text", ["." * 200_000, "Mr. " * 50_000, "a" * 500_000, " . " * 100_000, "a\n" * 100_000])
def test_no_text_takes_long(text):
    started = time.process_time()
    assert first_sentence(text)
    assert time.process_time() - started < 2
