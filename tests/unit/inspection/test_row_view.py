"""A row as it is shown: every token once, marked as learned exactly where the loss has a label for it."""

import re
from pathlib import Path

import numpy as np
import pytest

from janus_dist.batch import NO_LABEL
from janus_dist.cli.main import app
from janus_dist.data.collate import DocumentFormat, collate
from janus_dist.data.loader import Loader
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError, DataError
from janus_dist.inspection.render import marked
from janus_dist.inspection.row_view import document_pieces, view_row
from tests import prepared, shard_sets


def opened(folder, **sections):
    recipe = prepared.recipe(folder, folder / "runs", **sections)
    shards = open_shards(recipe.data, recipe.mix)
    plan = Plan.of(recipe, shards)
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
        expected = words.inner.decode(stored.astype(np.int64).tolist(), skip_special_tokens=False)
        for name in (f"<image {recipe.model.image_tokens} tokens>", f"<{recipe.model.image_ids} VQ ids>"):
            text = text.replace(name, "")
        assert text == expected.replace("<image_placeholder>", "")
    learned = [one for found in document_pieces(batch, words, recipe.model.image_tokens) for one in found]
    assert any(one.learned == "always" for one in learned) and any(one.learned == "never" for one in learned)
    assert (batch.text_labels != NO_LABEL).any()


def test_no_such_step_or_row(folder):
    recipe, plan, words = opened(folder)
    rows = plan.step(0).rows.num_rows
    with pytest.raises(ConfigError, match=f"step 0 has no row 99: it takes {rows} rows\n.*from 0 to {rows - 1}"):
        view_row(recipe, plan, words, 0, 99)
    with pytest.raises(ConfigError, match=r"there is no step 6: train\.steps=6\n  steps are counted from 0 to 5"):
        view_row(recipe, plan, words, 6, 0)


def test_a_damaged_sample_is_shown_as_it_is_trained(tmp_path, capsys):
    """Pad tokens without labels in its place; and where training would stop, so does the view."""
    prepared.prepare(tmp_path)
    recipe, plan, words = opened(tmp_path)
    planned = plan.step(0)
    numbers = list(planned.rows.row(0))
    document = int(planned.rows.document[numbers[0]])
    shards = plan.shards[int(planned.lane[document])]
    shard_sets.flip(Path(shards.path(0)), int(planned.record["offset"][document]) + 520)
    found = view_row(recipe, plan, words, 0, 0).documents
    assert [one.key is None for one in found] == [True] + [False] * (len(numbers) - 1)
    assert [(one.kind, one.learned) for one in found[0].pieces] == [("special", "never")] * found[0].tokens
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    preview = ["data", "preview", "--recipe", str(tmp_path / "recipe.yaml")]
    app(preview, standalone_mode=False)
    wanted = f"sample {found[0].sample}, damaged, trained as pad tokens, shard-00000, epoch 0: {found[0].tokens} tokens"
    assert wanted in capsys.readouterr().out
    with pytest.raises(DataError, match=r"1 of \d+ samples are damaged, more than data.max_bad_share=0 allows"):
        app([*preview[:-1], f"{preview[-1]}+data.max_bad_share=0"], standalone_mode=False)


def test_the_command(folder, capsys):
    recipe = prepared.recipe(folder, folder / "runs", batch={"packing": "split_text", "row_tokens": 48})
    (folder / "recipe.yaml").write_text(recipe.model_dump_json())
    seen = ""
    for row in range(3):
        files = f"{folder / 'recipe.yaml'}+run.seed=5"
        app(["data", "preview", "--recipe", files, "--step", "2", "--row", str(row)], standalone_mode=False)
        seen += capsys.readouterr().out
    assert "[[ ]] marks what the loss counts" in seen
    step = r"\nstep 2: tokens \d+ of 192, documents \d+, rows 4; labels: understanding \d+, text \d+, generation \d+\n"
    row = r"row 1: tokens \d+ of 48 \(\d+\.\d%\), documents \d; labels: text head \d+, image head \d+\n"
    assert re.search(step + row, seen)
    assert re.search(r"text \(text\) sample \d+, key text-\d+, shard-00000, epoch 0: \d+ tokens", seen)
    assert re.search(r"\d+ tokens \d+ to \d+ of \d+\n", seen), "a text was cut"


def test_another_tokenizer_is_refused(folder, tmp_path):
    recipe = prepared.recipe(folder, folder / "runs")
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    files = f"{tmp_path / 'recipe.yaml'}+data.tokenizer={tmp_path / 'tokenizer.json'}"
    with pytest.raises(DataError, match=r"manifest\.json was made with a tokenizer whose sha256 is"):
        app(["data", "preview", "--recipe", files], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "a.yaml", "--key", "x", "--answers-only"],
         "--key, --answers-only: not allowed with --recipe\n  "
         "select the row by --step and --row; the recipe defines the rest"),
        (["data", "--row", "0"], "--row: only allowed with --recipe\n  give --recipe RECIPE.yaml instead of FOLDER"),
    ],
)  # fmt: skip
def test_options_that_say_nothing(arguments, message):
    with pytest.raises(ConfigError) as caught:
        app(["data", "preview", *arguments], standalone_mode=False)
    assert str(caught.value) == message


def test_neither_or_both(folder, capsys):
    for arguments in ([], [str(folder / "data"), "--recipe", "a.yaml"]):
        with pytest.raises(
            ConfigError, match=r"samples of a FOLDER, or a packed row of a --recipe\n  give exactly one"
        ):
            app(["data", "preview", *arguments], standalone_mode=False)
