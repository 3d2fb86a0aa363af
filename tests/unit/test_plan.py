"""The plan: a pure function of the step, exact in its ratio, the same for every world."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_dist.config.data import STREAMS, BatchConfig, MixConfig, Stream
from janus_dist.data import order, packing
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.data.mixture import Mixture
from janus_dist.data.plan import Plan, row_costs
from janus_dist.data.shard import INDEX_DTYPE
from janus_dist.errors import DataError

MIX = MixConfig(understanding=2, text=3, generation=5)
BATCH = BatchConfig(rows=8, row_tokens=256, fill=0.9)


def shard_set(stream: Stream, samples: int, low: int, high: int) -> ShardSet:
    """Records of `samples` samples with seeded lengths in [low, high), without any file."""
    records = np.zeros(samples, dtype=INDEX_DTYPE)
    records["tokens"] = np.random.default_rng(STREAMS.index(stream)).integers(low, high, samples)
    if stream == "generation":
        records["image_ids"] = 64
    else:
        records["text_labels"] = records["tokens"] - 1
        records["answer_labels"] = 3
    tokens = int(records["tokens"].sum())
    manifest = Manifest(1, stream, samples, tokens, 0, 64, 64, 64, "tokenizer", None, {}, ())
    return ShardSet(stream, manifest, records, np.zeros(1, dtype=np.int64))


SHARDS: dict[Stream, ShardSet] = {
    "understanding": shard_set("understanding", 300, 80, 200),
    "text": shard_set("text", 50, 10, 256),
    "generation": shard_set("generation", 211, 70, 80),
}


def make_plan(mix: MixConfig = MIX, batch: BatchConfig = BATCH, seed: int = 0, answers_only: bool = False) -> Plan:
    return Plan({name: SHARDS[name] for name in STREAMS if mix.shares[name]}, mix, batch, seed, answers_only)


@given(size=st.integers(1, 5000), words=st.lists(st.integers(0, 2**70), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_the_order_is_a_bijection(size, words):
    found = order.permute(np.arange(size), size, order.key(*words))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_the_order_is_the_same_for_any_subset_of_positions():
    whole = order.permute(np.arange(1000), 1000, order.key(7))
    some = np.array([999, 3, 500])
    assert np.array_equal(order.permute(some, 1000, order.key(7)), whole[some])


def test_orders_of_different_keys_are_unrelated():
    a, b = (order.permute(np.arange(10_000), 10_000, order.key(0, 1, epoch)) for epoch in (0, 1))
    assert (a == b).sum() < 10
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(a, np.arange(10_000))[0, 1]) < 0.05


def test_chance_is_uniform_and_stateless():
    draws = order.chance(np.arange(100_000), order.key(3))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert order.chance(np.array([77]), order.key(3))[0] == draws[77]


@given(
    weights=st.tuples(*[st.integers(0, 20)] * 3).filter(any), samples=st.integers(6, 300), step=st.integers(0, 10**6)
)
@settings(deadline=None)
def test_every_step_has_its_exact_number_of_samples(weights, samples, step):
    mix = MixConfig(unit="samples", understanding=weights[0], text=weights[1], generation=weights[2])
    mixture = Mixture.build(mix, BATCH.model_copy(update={"samples": samples}))
    taken = [mixture.cumulative(name, step + 1) - mixture.cumulative(name, step) for name in STREAMS]
    assert sum(taken) == samples and min(taken) >= 0


@given(
    weights=st.tuples(*[st.floats(0, 10, allow_nan=False)] * 3).filter(lambda w: sum(w) > 0.1),
    step=st.integers(0, 10**7),
)
@settings(deadline=None)
def test_quotas_never_drift(weights, step):
    mix = MixConfig(understanding=weights[0], text=weights[1], generation=weights[2])
    mixture = Mixture.build(mix, BATCH)
    for name in STREAMS:
        ideal = mixture.per_step[name] * step
        assert 0 <= ideal - mixture.cumulative(name, step) < 1
    assert sum(mixture.per_step.values()) == BATCH.rows * BATCH.row_tokens * Fraction("0.9")


def test_every_step_takes_what_its_quota_says():
    plan = make_plan()
    taken = dict.fromkeys(STREAMS, 0)
    for step in range(60):
        planned = plan.step(step)
        for name in STREAMS:
            taken[name] += planned.stream_tokens(name)
            ideal = plan.mixture.per_step[name] * (step + 1)
            assert abs(taken[name] - ideal) <= plan.lines[name].tokens.max()


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    plan = make_plan()
    seen: dict[int, dict[int, list[int]]] = {}
    for step in range(120):
        planned = plan.step(step)
        for stream, sample, epoch in zip(planned.stream, planned.sample, planned.epoch, strict=True):
            seen.setdefault(int(stream), {}).setdefault(int(epoch), []).append(int(sample))
    for stream, epochs in seen.items():
        size = len(SHARDS[STREAMS[stream]].records)
        assert max(epochs) >= 1
        for epoch in range(max(epochs)):  # the last one is not over
            assert sorted(epochs[epoch]) == list(range(size))
        assert len(epochs) < 3 or epochs[0] != epochs[1]


def test_a_step_does_not_depend_on_the_steps_before():
    fresh, used = make_plan(), make_plan()
    for step in range(30):
        used.step(step)
    assert fresh.step(29).digest() == used.step(29).digest()


def test_samples_as_unit_are_exact():
    plan = make_plan(
        MixConfig(unit="samples", understanding=1, text=0, generation=3), BATCH.model_copy(update={"samples": 10})
    )
    counts = np.array([np.bincount(plan.step(step).stream, minlength=3) for step in range(8)])
    assert (counts.sum(axis=1) == 10).all()
    assert counts.sum(axis=0).tolist() == [20, 0, 60]


def test_labels_are_those_of_the_records():
    for answers_only in (False, True):
        plan = make_plan(answers_only=answers_only)
        planned = plan.step(3)
        generation = planned.sample[planned.stream == STREAMS.index("generation")]
        understanding = planned.sample[planned.stream == STREAMS.index("understanding")]
        assert planned.labels["generation"] == 64 * len(generation)
        records = SHARDS["understanding"].records[understanding]
        assert planned.labels["understanding"] == (3 * len(records) if answers_only else records["text_labels"].sum())


def test_prompts_are_dropped_at_the_asked_rate_and_only_in_generation():
    plan = make_plan()
    drops, documents = 0, 0
    for step in range(200):
        planned = plan.step(step)
        generation = planned.stream == STREAMS.index("generation")
        assert not planned.drop_prompt[~generation].any()
        drops += int(planned.drop_prompt.sum())
        documents += int(generation.sum())
    assert abs(drops / documents - 0.1) < 0.03


def test_a_plan_has_an_identity():
    plan = make_plan()
    assert plan.digest == make_plan().digest
    assert plan.digest == make_plan(batch=BATCH.model_copy(update={"micro_rows": 4})).digest
    others = [
        make_plan(seed=1),
        make_plan(MixConfig(understanding=2, text=3, generation=4)),
        make_plan(batch=BATCH.model_copy(update={"rows": 16})),
        make_plan(answers_only=True),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 5


def test_golden_digests():
    """The plan of a given recipe must not change between versions: it is what resumed runs rely on."""
    plan = make_plan()
    assert [plan.step(step).digest()[:12] for step in (0, 1, 1000)] == GOLDEN


GOLDEN = ["9cd3ed9f09cf", "be5b72876d51", "47fac83aeca8"]


@given(lengths=st.lists(st.integers(1, 100), max_size=80))
@settings(deadline=None)
def test_packing_keeps_everything_whole(lengths):
    rows = packing.pack(np.array(lengths, dtype=np.int64), 100)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in row) <= 100 for row in rows)


def test_packing_fills_rows():
    lengths = np.random.default_rng(0).integers(10, 120, 400)
    rows = packing.pack(lengths, 512)
    assert lengths.sum() / (512 * len(rows)) > 0.97


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("micro_rows", [1, 3])
def test_rows_are_dealt_once_to_any_world(world, micro_rows):
    planned = make_plan().step(5)
    dealt = packing.deal(row_costs(planned), world, micro_rows)
    assert all(len(ranks) == world for ranks in dealt)
    assert all(len(rows) <= micro_rows for ranks in dealt for rows in ranks)
    assert sorted(row for ranks in dealt for rows in ranks for row in rows) == list(range(len(planned.rows)))


def test_ranks_carry_nearly_the_same():
    planned = make_plan(batch=BATCH.model_copy(update={"rows": 64})).step(0)
    costs = row_costs(planned)
    for ranks in packing.deal(costs, 4, 4)[:-1]:
        sums = [costs[rows].sum() for rows in ranks]
        assert max(sums) / np.mean(sums) < 1.03


def test_a_sample_that_fits_in_no_row_is_refused():
    with pytest.raises(DataError, match=r"takes \d+ tokens, more than batch.row_tokens=128") as caught:
        make_plan(batch=BatchConfig(rows=8, row_tokens=128))
    assert "take batch.row_tokens=" in str(caught.value)
