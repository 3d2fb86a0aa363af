"""A row as it is shown: every token once, marked as learned exactly where the loss has a label for it."""

import re

import numpy as np
import pytest

from janus_dist.batch import NO_LABEL
from janus_dist.cli import app
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.data.legible import marked
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.row_view import document_pieces, view_row
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError, DataError
from tests import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    return folder


def opened(folder, **sections):
    recipe = prepared.recipe(folder, folder / "runs", **sections)
    shards = open_shards(recipe.data, recipe.mix)
    plan = Plan(shards, recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only)
    return recipe, plan, Tokenizer.load(folder / "tokenizer.json")


def shown_labels(text: str) -> int:
    """Labels that a shown document of few one-letter words and named tokens has, counted from the text alone."""
    total = 0
    for learned in re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL):
        total += sum(int(number) for number in re.findall(r"<(\d+) VQ ids>", learned))
    return total


@pytest.mark.parametrize("answers_only", [False, True])
def test_a_row_is_the_batch_of_its_documents(folder, answers_only):
    recipe, plan, words = opened(folder, train={"answers_only": answers_only}, batch={"cfg_drop": 0.5})
    planned = plan.step(4)
    found = view_row(recipe, plan, words, 4, 1)
    numbers = list(planned.rows.row(1))
    assert found.rows == planned.rows.num_rows and found.tokens == planned.rows.tokens[numbers].sum()
    assert [one.tokens for one in found.documents] == planned.rows.tokens[numbers].tolist()
    documents = planned.rows.document[numbers]
    assert [one.sample for one in found.documents] == planned.sample[documents].tolist()
    assert [one.prompt_dropped for one in found.documents] == planned.drop_prompt[documents].tolist()
    streams = [plan.lanes[lane].stream for lane in planned.lane[documents]]
    assert [one.stream for one in found.documents] == streams
    labels = planned.record["answer_labels" if answers_only else "text_labels"][documents]
    assert found.text_labels == labels.sum() and found.image_labels == planned.record["image_ids"][documents].sum()
    texts = [marked(one.pieces, False) for one in found.documents]
    assert sum(map(shown_labels, texts)) == found.image_labels
    for one, stream in zip(texts, streams, strict=True):
        assert ("[[" in one) and ("VQ ids" in one) == (stream == "generation")
        assert ("<image" in one) == (stream == "understanding")


def test_pieces_stand_for_each_token_and_label(folder):
    recipe, plan, words = opened(folder, batch={"cfg_drop": 0.0})
    loader = Loader(plan, DocumentFormat.of(recipe, words), rank=0, world=1)
    planned = plan.step(0)
    pieces = list(range(len(planned.rows.document)))
    documents = loader.read(planned, pieces)
    batch = collate([documents[piece] for piece in pieces], loader.form)
    for piece, found in zip(pieces, document_pieces(batch, words, recipe.model.image_tokens), strict=True):
        sample = documents[piece].sample
        stored = getattr(sample, "prompt_ids", getattr(sample, "ids", np.empty(0)))
        text = "".join(one.text for one in found)
        expected = words.inner.decode(stored.tolist(), skip_special_tokens=False)
        for name in (f"<image {recipe.model.image_tokens} tokens>", f"<{recipe.model.image_ids} VQ ids>"):
            text = text.replace(name, "")
        assert text == expected.replace("<image_placeholder>", "")
    learned = [one for found in document_pieces(batch, words, recipe.model.image_tokens) for one in found]
    assert any(one.learned == "always" for one in learned) and any(one.learned == "never" for one in learned)
    assert (batch.text_labels != NO_LABEL).any()


def test_no_such_row(folder):
    recipe, plan, words = opened(folder)
    rows = plan.step(0).rows.num_rows
    with pytest.raises(DataError, match=f"step 0 has no row 99: it takes {rows} rows\n.*from 0 to {rows - 1}"):
        view_row(recipe, plan, words, 0, 99)


def test_the_command(folder, capsys):
    recipe = prepared.recipe(folder, folder / "runs", batch={"packing": "split_text", "row_tokens": 48})
    (folder / "recipe.yaml").write_text(recipe.model_dump_json())
    seen = ""
    for row in range(3):
        files = f"{folder / 'recipe.yaml'}+run.seed=5"
        app(["data", "preview", "--recipe", files, "--step", "2", "--row", str(row)], standalone_mode=False)
        seen += capsys.readouterr().out
    assert "[[ ]] stands around what the loss counts" in seen
    assert re.search(r"step 2, row 1 of \d+: \d+ documents fill \d+ of 48 tokens \(\d+\.\d%\); the loss counts", seen)
    assert re.search(r"text \(text\) sample \d+, key text-\d+, shard-00000, epoch 0: \d+ tokens", seen)
    assert re.search(r"\d+ tokens \d+ to \d+ of \d+\n", seen), "a text was cut"


def test_neither_or_both(folder, capsys):
    for arguments in ([], [str(folder / "data"), "--recipe", "a.yaml"]):
        with pytest.raises(ConfigError, match=r"samples of a FOLDER, or a packed row of a --recipe\n  give one"):
            app(["data", "preview", *arguments], standalone_mode=False)
