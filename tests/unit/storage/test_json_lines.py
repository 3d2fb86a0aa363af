"""JSON Lines as people write them: byte order marks, line ends inside strings, blank lines, other types."""

from pathlib import Path

import pytest

from data_pipelines.inputs.files import open_stream
from data_pipelines.inputs.jsonl import _lines_until
from janus_dist.errors import ConfigError, DataError
from janus_dist.evaluation.benchmarks.question import load_lines
from janus_dist.evaluation.prompts import UserPrompt, read_prompts
from janus_dist.storage import json_lines

CASES = Path(__file__).parents[2] / "cases" / "prompts_jsonl"
CONTENTS = [
    b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}',
    '{"a": "x\u2028y\u0085z"}\n \t\n{"a": "\x1c"}\n'.encode(),
    b"\n\n",
    b"",
    b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n',
]


@pytest.mark.parametrize("content", CONTENTS)
def test_pipelines_and_evaluation_cut_the_same_lines(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with open_stream(str(tmp_path / "a.jsonl")) as opened:
        cut = [line for _, line in _lines_until(opened, None, 0)]
    assert [line for _, line in json_lines.lines(content)] == cut
    assert all(line and not line.endswith(b"\r") for line in cut)


def test_numbers_of_lines_are_those_of_the_file():
    assert [number for number, _ in json_lines.lines(b"\n1\n\n2")] == [2, 4]


def test_of_a_run_s_records_those_are_left_out_that_were_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_lines.read_records(path) == []
    path.write_bytes(b'{"step": 1, "loss/all": NaN}\n{"step": 2, {"step": 3}\n[4]\n\xff\n{"step": 5}\n{"st')
    assert [record["step"] for record in json_lines.read_records(path)] == [1, 5]


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 10**5])
def test_what_is_not_json_is_a_value_error(line):
    with pytest.raises(ValueError):
        json_lines.parse(line)


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("bom.jsonl", [UserPrompt(caption="a red circle")]),
        ("crlf.jsonl", [UserPrompt(caption="a"), UserPrompt(caption="b")]),
        ("u2028.jsonl", [UserPrompt(caption="a red\u2028circle")]),
        ("x85.jsonl", [UserPrompt(caption="a\u0085b")]),
        ("strimg.jsonl", [UserPrompt(question="what?", images=(str(CASES / "a.jpg"),))]),
        ("image.jsonl", [UserPrompt(question="what?", images=(str(CASES / "a.jpg"),))]),
    ],
)
def test_prompts(name, prompts):
    assert read_prompts(CASES / name) == prompts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 7}', "p.jsonl:1: prompt is 7, not a text"),
        ('{"prompt": null}', "p.jsonl:1: prompt is null, not a text"),
        ('{"prompt": " "}', 'p.jsonl:1: prompt is " ", not a text with words'),
        ('{"question": ["a"]}', 'p.jsonl:1: question is ["a"], not a text'),
        ('{"question": "a", "images": null}', "p.jsonl:1: images is null, not a file"),
        ('{"question": "a", "images": ["a.jpg", null]}', 'p.jsonl:1: images is ["a.jpg", null], not a file'),
        ('{"question": "a", "images": ""}', None),
        ('{"question": "a", "images": {"path": "a.jpg"}}', "p.jsonl:1: images is {"),
        ('{"question": "a", "images": ["a.jpg"], "image": "b.jpg"}', "p.jsonl:1 has question, images, image"),
        ('"\xff"', "p.jsonl:1 is not JSON"),
    ],
)
def test_prompts_that_are_refused(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert message is None or message in caught.value.message


def test_numbers_are_no_prompts():
    with pytest.raises(ConfigError, match=r"num\.jsonl:1: prompt is 7, not a text with words"):
        read_prompts(CASES / "num.jsonl")


def test_lines_of_a_benchmark(tmp_path):
    assert load_lines(CASES / "l_blank.jsonl") == [{"a": 1}]
    assert load_lines(CASES / "l_u2028.jsonl") == [{"a": "x\u2028y"}]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n\xff\n')
    with pytest.raises(DataError, match=r"a\.jsonl:3 is not JSON: 'utf-8' codec"):
        load_lines(tmp_path / "a.jsonl")
