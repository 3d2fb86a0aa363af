"""The page about shard sets: whole in one file, with the figures of the index and of the quarantine table."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from janus_dist.cli.main import app
from janus_dist.data import images
from janus_dist.data.manifest import ShardSet
from janus_dist.errors import CheckpointError, DataError
from janus_dist.inspection.inspect import Example
from janus_dist.inspection.paint import painter
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.report import plot
from janus_dist.report.data import health, write_data_report
from janus_dist.weights.vq import save_vq
from tests import shard_sets, tiny
from tests.images import png
from tests.pages import Page
from tests.unit.config.test_config_load import BASE


@pytest.fixture
def words(tmp_path):
    return shard_sets.write_root(tmp_path)


def write(tmp_path, words, *streams, paint=None):
    opened = [(ShardSet.open(tmp_path / "data" / stream), words) for stream in streams]
    path = tmp_path / "page.html"
    assert write_data_report(f"{tmp_path}/data", opened, str(path), 4, 0, paint) == str(path)
    return path.read_text()


def test_the_page_of_three_streams(words, tmp_path):
    html = write(tmp_path, words, "understanding", "text", "generation")
    page = Page(html)
    flat = " ".join(page.text.split())
    for wanted in (
        "records read 8", "quarantined: too small 2", "quarantined: empty 1", "samples 5",
        "different VQ ids in 5 drawn images16",
        "VQ ids in each sample16", "Quarantined: too small (2 of 2)", "too small: 5x5 pixels", "89 50 4e 47 00",
        "images in each sample1", "<image 4 tokens>", "<16 VQ ids>", words.sha256[:16],
    ):  # fmt: skip
        assert wanted in flat, wanted
    assert page.classes.count("sample") == 12
    assert page.classes.count("plot") == html.count("<svg") == 2 + 1 + 2
    assert page.classes.count("always") > page.classes.count("alltext") > 0
    assert not page.open


def test_the_page_reads_each_index_once(words, tmp_path):
    shards = ShardSet.open(tmp_path / "data/text")
    write_data_report("t", [(shards, words)], str(tmp_path / "page.html"), 0, 0)
    assert shards.reader.counters().requests == len(shards.manifest.shards)


def test_the_page_needs_no_network(words, tmp_path):
    html = write(tmp_path, words, "understanding", "generation")
    page = Page(html)
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "<script" not in html and "@import" not in html and "url(http" not in html


def test_what_was_refused_cannot_become_markup(words, tmp_path):
    folder = tmp_path / "data/generation"
    shard_sets.write_quarantine(folder, ("<b>", "<i>k</i>", "bad: <script>", b"<script>alert(1)</script>"))
    html = write(tmp_path, words, "generation")
    assert "<script" not in html and "<i>k" not in html
    assert "quarantined, reasons not kept 2" in " ".join(Page(html).text.split())


def test_cut_records_are_more_samples(words, tmp_path):
    shard_sets.write_stats(tmp_path / "data/text", 2)
    flat = " ".join(Page(write(tmp_path, words, "text")).text.split())
    assert "records read 2 records kept 2 samples, long texts cut into several 4" in flat


def test_what_rules_dropped_and_what_vq_ids_make(words, tmp_path):
    folder = tmp_path / "data/generation"
    jpeg = images.encode(Image.new("RGB", (16, 16), (200, 0, 0)), 90)
    kept = Example("generation-0", "here", "", "", "a red square", jpeg, tuple(range(16)))
    small = Example("g-9", "there", "width >= 30", "12", "<b>tiny</b>", jpeg, ())
    wordless = Example("g-8", "there", "score is missing", "", "no picture", b"", ())
    columns = [(name, pa.string()) for name in ("key", "source", "rule", "value", "words")]
    schema = pa.schema([*columns, ("image", pa.binary()), ("vq_ids", pa.list_(pa.uint16()))])
    rows = [dataclasses.asdict(one) for one in (kept, small, wordless)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "examples.parquet")
    shard_sets.write_stats(
        folder, 108, dropped={"width >= 30": 97, "score is missing": 3}, histograms={"width": {"16": 90, "32": 11}}
    )
    shown = []
    html = write(tmp_path, words, "generation", paint=lambda ids: shown.extend(ids) or [jpeg for _ in ids])
    page, flat = Page(html), " ".join(Page(html).text.split())
    assert "dropped by rule: width >= 30 97 dropped by rule: score is missing 3 samples 5" in flat
    assert "Dropped by rule: width >= 30 (1 of 97)" in flat and "12 <b>tiny</b>" in flat
    assert "no picture" in flat and "width, pixels of a record" in flat
    assert shown[0].tolist() == list(range(16)), "an example's own ids are painted beside its crop"
    assert "Crops, and what their VQ ids make" in flat and html.count("data:image/jpeg") == 1 + 2 + 4
    assert page.classes.count("pair") == 1


def test_shards_that_are_not_whole_show(words, tmp_path):
    folder = tmp_path / "data/understanding"
    assert "the right size and an index2 of 2" in " ".join(Page(write(tmp_path, words, "understanding")).text.split())
    (folder / "shard-00001.tar").write_bytes(b"cut")
    (folder / "left-over.tar").write_bytes(b"")
    flat = " ".join(Page(write(tmp_path, words, "text")).text.split())
    shards = ShardSet.open(folder)
    assert dict(health(shards)) == {
        "shards with the right size and an index": "1 of 2",
        "tars that belong to no shard": "1",
        "samples per shard": "3 to 4",
    }
    assert "tars that belong to no shard" not in flat


def test_an_empty_shard_set(words, tmp_path):
    shard_sets.write_set(tmp_path / "data/none", "text", words)
    page = Page(write(tmp_path, words, "none"))
    assert "samples 0" in " ".join(page.text.split()) and "sample" not in page.classes


def test_large_images_become_jpeg(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    sample = shard_sets.understanding(words, image=png(noise))
    shard_sets.write_set(tmp_path / "data/u", "understanding", words, [("a", sample)], image_size=160)
    (address,) = Page(write(tmp_path, words, "u")).addresses
    assert address.startswith("data:image/jpeg;base64,")


def test_vq_ids_are_painted(words, tmp_path):
    shown = []

    def paint(ids):
        shown.extend(each.tolist() for each in ids)
        return [shard_sets.IMAGE for _ in ids]

    page = Page(write(tmp_path, words, "generation", paint=paint))
    assert len(page.addresses) == len(shown) == 4 and shown[0] == list(range(16))
    assert "what the VQ tokenizer makes of the ids" in " ".join(page.text.split())


def test_the_recipe_paints(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "vq.safetensors"
    save_vq(vq_model.build(vq_config(tiny.MODEL)), weights)
    paint = painter(tiny.MODEL, weights)
    (image,) = paint([np.zeros(16, dtype=np.uint16)])
    assert image.startswith(b"\x89PNG") and paint([]) == []
    with pytest.raises(CheckpointError, match="does not exist"):
        painter(tiny.MODEL, tmp_path / "absent")
    (tmp_path / "base.yaml").write_text(BASE)
    arguments = ["data", "report", "data/generation", "--tokenizer", "tokenizer.json", "--recipe", "base.yaml"]
    with pytest.raises((DataError, CheckpointError), match=r"vq\.safetensors"):
        app([*arguments, "--vq-weights", str(weights)], standalone_mode=False)


def test_histograms():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5_000, 1_000)
    svg = plot.histogram(values, "tokens", "text")
    assert svg == plot.histogram(values, "tokens", "text") and svg.startswith("<svg")
    assert plot.histogram(np.full(3, 0.5), "share", "text", percent=True).startswith("<svg")
    assert plot.ranked(np.array([3, 1, 2]), "id", "times", "generation").startswith("<svg")
