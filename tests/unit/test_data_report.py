"""The page about shard sets: whole in one file, with the figures of the index and of the quarantine table."""

import numpy as np
import pytest

from janus_dist.cli import app
from janus_dist.data.manifest import ShardSet
from janus_dist.errors import CheckpointError, DataError
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.model.paint import painter
from janus_dist.model.vq_weights import save_vq
from janus_dist.report import plot
from janus_dist.report.data import write_data_report
from tests import shard_sets, tiny
from tests.images import png
from tests.unit.test_config_load import BASE
from tests.unit.test_report import Page


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
        "items read 8", "quarantined: too small 2", "quarantined: empty 1", "samples 5",
        "different VQ ids in 5 drawn images16",
        "VQ ids in each sample16", "Quarantined: too small (2 of 2)", "too small: 5x5 pixels", "89 50 4e 47 00",
        "images in each sample1", "<image 4 tokens>", "<16 VQ ids>", words.sha256[:16],
    ):  # fmt: skip
        assert wanted in flat, wanted
    assert page.classes.count("sample") == 12
    assert page.classes.count("plot") == html.count("<svg") == 2 + 1 + 2
    assert page.classes.count("always") > page.classes.count("alltext") > 0
    assert not page.open


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


def test_cut_items_are_more_samples(words, tmp_path):
    shard_sets.write_markers(tmp_path / "data/text", 2)
    flat = " ".join(Page(write(tmp_path, words, "text")).text.split())
    assert "items read 2 items kept 2 samples, long items cut into several 4" in flat


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
