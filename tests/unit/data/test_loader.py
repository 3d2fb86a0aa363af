"""The loader: the same global batch for every world size and number of threads; damaged samples move no others."""

import dataclasses
import hashlib
import io
import logging
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from janus_dist.batch import NO_LABEL, Batch
from janus_dist.config.data import BatchConfig
from janus_dist.config.mix import Lane, MixConfig
from janus_dist.config.streams import STREAMS
from janus_dist.data import packing
from janus_dist.data.collate import DocumentFormat, collate, decode_images
from janus_dist.data.loader import BadSampleCounter, Loader
from janus_dist.data.manifest import ShardSet
from janus_dist.data.plan import Plan
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from tests import prepared, tiny
from tests.images import png
from tests.shard_sets import all_records

MIX = MixConfig(understanding=2, text=3, generation=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepared.prepare(folder)
    return folder / "data"


@pytest.fixture(scope="module")
def form(data) -> DocumentFormat:
    tokenizer = Tokenizer.load(data.parent / "tokenizer.json")
    model = tiny.MODEL
    return DocumentFormat(
        tokenizer.pad, tokenizer.image, tokenizer.boi, tokenizer.eoi, model.image_tokens, model.image_size, False
    )


def make_plan(data, packing_policy: str = "whole", micro_rows: int = 2) -> Plan:
    shards = {Lane(name, name): ShardSet.open(data / name) for name in STREAMS}
    batch = BatchConfig(rows=6, row_tokens=48, packing=packing_policy, micro_rows=micro_rows)
    return Plan(shards, MIX, batch, seed=5, answers_only=False)


def digest(batch: Batch) -> str:
    state = hashlib.sha256(str(batch.document_lengths).encode())
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            state.update(value.numpy().tobytes())
    return state.hexdigest()


def jpeg(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def rows_of(loader: Loader, step: int) -> dict[int, str]:
    """Return a digest of the tensors of each row of this rank."""
    plan = loader.plan.step(step)
    dealt = packing.deal(plan.row_costs, loader.world, loader.plan.batch.micro_rows)
    mine = [row for ranks in dealt for row in ranks[loader.rank]]
    documents = loader.read(plan, [piece for row in mine for piece in plan.rows.row(row)])
    return {row: digest(collate([documents[piece] for piece in plan.rows.row(row)], loader.form)) for row in mine}


@pytest.mark.parametrize("policy", ["whole", "split_text"])
@pytest.mark.parametrize("world", [2, 3, 4, 6, 8, 64])
def test_the_global_batch_is_the_same_for_every_world(data, form, world, policy):
    """Byte for byte, in the order of the rows; worlds that do not divide the rows leave ranks without one."""
    alone = rows_of(Loader(make_plan(data, policy), form, 0, 1), 3)
    joined: dict[int, str] = {}
    for rank in range(world):
        mine = rows_of(Loader(make_plan(data, policy), form, rank, world), 3)
        assert not joined.keys() & mine.keys()
        joined |= mine
    assert [joined[row] for row in sorted(joined)] == [alone[row] for row in sorted(alone)]


@pytest.mark.parametrize("policy", ["whole", "split_text"])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_batches_are_the_same_for_every_number_of_threads(data, form, threads, policy):
    def digests(number):
        loader = Loader(make_plan(data, policy), form, 1, 2, threads=number)
        return [[digest(batch) for batch in found.batches] for found in loader.steps(2, 9)]

    assert digests(threads) == digests(0)


def test_every_rank_has_a_batch_in_every_micro_step(data, form):
    """Also one that got no row: ranks must call the same modules equally often."""
    counts = {len(Loader(make_plan(data), form, rank, 64).load(0).batches) for rank in (0, 63)}
    assert len(counts) == 1
    empty = Loader(make_plan(data), form, 63, 64).load(0).batches[0]
    assert empty.num_tokens == 1 and (empty.text_labels == NO_LABEL).all()


@pytest.mark.parametrize("policy", ["whole", "split_text"])
def test_the_labels_are_those_that_the_plan_counts(data, form, policy):
    plan = make_plan(data, policy)
    for step in range(4):
        totals = torch.zeros(3, dtype=torch.int64)
        for rank in range(2):
            for batch in Loader(plan, form, rank, 2).load(step).batches:
                totals += tiny.label_counts(batch)
        labels = plan.step(step).labels
        assert totals.tolist() == [labels["understanding"], labels["text"], labels["generation"]]


def test_reading_ahead_is_bounded_by_memory(data, form):
    loader = Loader(make_plan(data), form, 0, 1, threads=2, ahead_bytes=1)
    loaded = []
    load = loader.load
    loader.load = lambda step: (loaded.append(step), load(step))[1]
    steps = loader.steps(0, 50)
    for _ in range(3):
        next(steps)
    assert max(loaded) <= 2 + 1 + 2  # what was given, what is ready, what two threads work at
    steps.close()


def spoil(data, tmp_path, stream: str, sample: int):
    """Return a copy of the data in which a byte of one sample's payload is flipped."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    shards = ShardSet.open(folder / stream)
    record = all_records(shards)[sample]
    path = folder / stream / "shard-00000.tar"
    content = bytearray(path.read_bytes())
    content[int(record["offset"]) + int(record["bytes"]) // 2] ^= 255
    path.write_bytes(bytes(content))
    return folder


@pytest.mark.parametrize("stream", STREAMS)
def test_a_damaged_sample_keeps_its_place(data, form, tmp_path, stream, caplog):
    """Every other token and label is as before; pads without labels stand where the sample was."""
    folder, sample = spoil(data, tmp_path, stream, 7), 7
    good, bad = (Loader(make_plan(where), form, 0, 1, max_bad_share=0.5) for where in (data, folder))
    lane = STREAMS.index(stream)
    step = next(
        step for step in range(40) if sample in (plan := good.plan.step(step)).sample[plan.stream == lane].tolist()
    )
    before, after = good.load(step), bad.load(step)
    assert before.plan.digest() == after.plan.digest()
    document = next(
        number for number in range(before.plan.num_documents)
        if before.plan.stream[number] == lane and before.plan.sample[number] == sample
    )  # fmt: skip
    tokens = int(before.plan.record["tokens"][document])
    for one, other in zip(before.batches, after.batches, strict=True):
        assert one.document_lengths == other.document_lengths
        differing = (one.input_ids != other.input_ids).sum()
        assert differing <= tokens
    labels = [sum(tiny.label_counts(batch) for batch in found.batches) for found in (before, after)]
    lost = [0, 0, 0]
    record = before.plan.record[document]
    lost[("understanding", "text", "generation").index(stream)] = int(record["text_labels"] + record["image_ids"])
    assert (labels[0] - labels[1]).tolist() == lost
    assert after.bad_samples == 1
    with caplog.at_level(logging.WARNING, "janus_dist"):
        bad.load(step)
    assert f"sample 7 of {folder / stream} is damaged, training continues without it" in caplog.text
    assert "has checksum" in caplog.text


def test_an_image_that_does_not_decode_is_a_damaged_sample():
    sample = tiny.understanding_sample(np.random.default_rng(0))
    sample.images[0] = b"no image"
    with pytest.raises(DataError, match="an image does not decode"):
        tiny.document_of(sample)


def test_too_many_damaged_samples_stop_the_run():
    bad = BadSampleCounter(0.01)
    bad.count(100)
    for _ in range(5):
        bad.add("sample 1 of here", DataError("checksum"))
    with pytest.raises(DataError, match=r"6 of 100 samples are damaged, more than data.max_bad_share=0.01 allows"):
        bad.add("sample 2 of here", DataError("checksum"))
    strict = BadSampleCounter(0.0)
    with pytest.raises(DataError, match="1 of 0 samples are damaged"):
        strict.add("sample 1 of here", DataError("checksum"))


@pytest.mark.filterwarnings("ignore")  # the S3 client leaves its connections and loops to the garbage collector
@pytest.mark.parametrize("cached", [False, True])
def test_a_failing_store_changes_nothing(data, form, s3, make_reader, tmp_path, cached):
    """Resets, short answers, refusals and wrong bytes, of index records and payloads: the batches are the same."""
    for stream in STREAMS:
        for file in (data / stream).glob("shard-*"):
            s3.objects[f"shards/{stream}/{file.name}"] = file.read_bytes()
    reader = make_reader(cache_dir=str(tmp_path) if cached else None, attempts=9)
    local = make_plan(data, "split_text")
    remote = make_plan(data, "split_text")
    remote.shards = [
        dataclasses.replace(shards, folder=f"s3://shards/{lane.stream}", reader=reader)
        for lane, shards in zip(remote.lanes, remote.shards, strict=True)
    ]
    for line, shards in zip(remote.lines, remote.shards, strict=True):
        line.shards = shards
    s3.fail("reset", "wrong", "short", "slow_down", "internal", "reset")

    def digests(plan):
        loader = Loader(plan, form, 0, 2, threads=2, max_bad_share=0.0)
        return [[digest(batch) for batch in found.batches] for found in loader.steps(0, 4)]

    assert digests(remote) == digests(local)
    assert not s3.faults, "all of them happened"


@pytest.mark.parametrize("encode", [png, jpeg], ids=["png", "jpeg"])
def test_images_are_decoded_into_their_place(encode):
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 256, (3, 2, 2, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
    out = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    encoded = [encode(image) for image in smooth]
    decode_images(encoded, out)
    for image, found in zip(encoded, out, strict=True):
        assert (found == np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))).all()
    with pytest.raises(DataError, match="an image does not decode"):
        decode_images(encoded[:1], np.zeros((1, 8, 8, 3), dtype=np.uint8))
