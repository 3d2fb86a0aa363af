"""The plan: a pure function of the step, exact in its ratio, the same for every world."""

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_dist.config.data import BatchConfig
from janus_dist.config.mix import Lane, MixConfig, MixPhase, mix_faults
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.data import order, packing
from janus_dist.data.mixture import Mixture
from janus_dist.data.plan import Plan
from janus_dist.data.shard import INDEX_DTYPE
from janus_dist.errors import DataError
from tests.synthetic import shard_set, stream_tokens

MIX = MixConfig(understanding=2, text=3, generation=5)
BATCH = BatchConfig(rows=8, row_tokens=256, fill=0.9)


def records(stream: Stream, samples: int, low: int, high: int) -> np.ndarray:
    """Return index records of `samples` samples with seeded lengths in [low, high)."""
    found = np.zeros(samples, dtype=INDEX_DTYPE)
    found["tokens"] = np.random.default_rng(STREAMS.index(stream)).integers(low, high, samples)
    if stream == "generation":
        found["image_ids"] = 64
    else:
        found["text_labels"] = found["tokens"] - 1
        found["answer_labels"] = 3 if stream == "understanding" else found["tokens"] - 1
        found["images"] = stream == "understanding"
    return found


RECORDS = {
    Lane("understanding", "understanding"): records("understanding", 300, 80, 200),
    Lane("text", "text"): records("text", 50, 10, 256),
    Lane("generation", "generation"): records("generation", 211, 70, 80),
}
LANES = list(RECORDS)


def make_plan(
    mix: MixConfig = MIX,
    batch: BatchConfig = BATCH,
    seed: int = 0,
    answers_only: bool = False,
    found: dict[Lane, np.ndarray] = RECORDS,
) -> Plan:
    shards = {lane: shard_set(lane, rows) for lane, rows in found.items() if mix.shares[lane.stream]}
    return Plan(shards, mix, batch, seed, answers_only)


@given(size=st.integers(1, 5000), words=st.lists(st.integers(0, 2**70), min_size=1, max_size=3))
@settings(max_examples=60)
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


def schedules(weight):
    """Mixtures with up to three changes of streams and sources; the third stream has two sources."""
    changes = st.lists(
        st.tuples(st.integers(1, 10**6), st.tuples(weight, weight, weight), st.tuples(weight, weight)), max_size=3
    )

    def build(ratio, found):
        phases = {
            step: MixPhase(
                from_step=step, understanding=und, text=text, generation=gen, sources={"a": source_a, "b": source_b}
            )
            for step, (und, text, gen), (source_a, source_b) in sorted(found)
        }
        return MixConfig(understanding=ratio[0], text=ratio[1], generation=ratio[2], then=tuple(phases.values()))

    return st.builds(build, st.tuples(weight, weight, weight), changes)


TWO_SOURCES = [*LANES[:2], Lane("generation", "a"), Lane("generation", "b")]


@given(mix=schedules(st.integers(1, 20)), samples=st.integers(400, 900), step=st.integers(0, 2 * 10**6))
def test_every_step_has_its_exact_number_of_samples(mix, samples, step):
    assert not list(mix_faults(mix, TWO_SOURCES, samples))
    mixture = Mixture.build(mix.model_copy(update={"unit": "samples"}), TWO_SOURCES, Fraction(samples))
    before, after = mixture.cumulative(step), mixture.cumulative(step + 1)
    assert sum(after) - sum(before) == samples
    assert all(first <= last for first, last in zip(before, after, strict=True))
    for lane, taken in enumerate(before):
        # one for each phase that came before
        assert abs(taken - mixture.ideal(step)[lane]) < 1 + len(mix.then)


@given(mix=schedules(st.floats(0.01, 10, allow_nan=False)), step=st.integers(0, 10**7))
def test_quotas_never_drift(mix, step):
    units = Fraction(18432, 10)
    mixture = Mixture.build(mix, TWO_SOURCES, units)
    for ideal, taken in zip(mixture.ideal(step), mixture.cumulative(step), strict=True):
        assert 0 <= ideal - taken < 1
    assert sum(mixture.ideal(step)) == units * step
    assert all(a <= b for a, b in zip(mixture.cumulative(step), mixture.cumulative(step + 1), strict=True))


def test_a_schedule_changes_streams_and_sources():
    """As Janus's stage 2: generation from one source at first, then from another."""
    mix = MixConfig(
        understanding=2, text=3, generation=5, sources={"b": 0},
        then=(MixPhase(from_step=120, sources={"a": 0, "b": 1}), MixPhase(from_step=150, text=0)),
    )  # fmt: skip
    mixture = Mixture.build(mix, TWO_SOURCES, Fraction(1000))
    assert mixture.cumulative(120) == (24_000, 36_000, 60_000, 0)
    assert mixture.cumulative(150) == (30_000, 45_000, 60_000, 15_000)
    assert mixture.cumulative(157) == (32_000, 45_000, 60_000, 20_000)


@pytest.mark.parametrize(
    ("changes", "samples", "message"),
    [
        ({"sources": {"c": 1}}, None, "'c' is not in data.sources, which has a, b, text, understanding"),
        ({"sources": {"a": 0, "b": 0}}, None, "mix.generation: all its sources have weight 0 from step 0 on"),
        ({"sources": {"a": 0.001}}, 10, "gives a 0.005 samples a step from step 0 on.* set batch.samples=2002 "),
    ],
)
def test_mixtures_that_cannot_be(changes, samples, message):
    mix = MIX.model_copy(update=changes)
    faults = list(mix_faults(mix, TWO_SOURCES, samples))
    assert len(faults) == 1
    assert re.search(message, faults[0].message)


def test_every_step_takes_what_its_quota_says():
    plan = make_plan()
    taken = dict.fromkeys(STREAMS, 0)
    for step in range(60):
        planned = plan.step(step)
        for name in STREAMS:
            taken[name] += stream_tokens(planned, name)
            lane = LANES.index((name, name))
            ideal = plan.mixture.ideal(step + 1)[lane]
            assert abs(taken[name] - ideal) <= RECORDS[LANES[lane]]["tokens"].max()


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    plan = make_plan()
    seen: dict[int, dict[int, list[int]]] = {}
    for step in range(120):
        planned = plan.step(step)
        for stream, sample, epoch in zip(planned.stream, planned.sample, planned.epoch, strict=True):
            seen.setdefault(int(stream), {}).setdefault(int(epoch), []).append(int(sample))
    for stream, epochs in seen.items():
        size = len(RECORDS[LANES[stream]])
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
        records = RECORDS[LANES[0]][understanding]
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
    for policy, wanted in GOLDEN.items():
        plan = make_plan(batch=BatchConfig(rows=8, row_tokens=256, packing=policy))
        assert [plan.step(step).digest()[:12] for step in (0, 1, 1000)] == wanted


GOLDEN = {
    "whole": ["671392a2b24d", "4e622f83e795", "0513a3fcb33e"],
    "split_text": ["9d630f77b755", "4e3ef90ff98d", "2d30f0db34a9"],
}


def test_text_as_filler_fills_rows():
    """The quota is chosen so that the asked number of rows always holds a step, and little is left over."""
    found = {lane: records(lane.stream, 4000, 580, 900) for lane in (LANES[0], LANES[2])}
    found[LANES[1]] = records("text", 4000, 20, 9000)
    batch = BatchConfig(rows=128, row_tokens=4096, packing="split_text")
    plan = make_plan(batch=batch, found=found)
    for step in (0, 1, 77, 12345):
        planned = plan.step(step)
        assert planned.rows.num_rows == 128
        assert planned.num_tokens / (128 * 4096) > 0.98
        assert planned.num_cuts <= 128 + sum(planned.record["tokens"] // 4096)


def test_a_step_of_images_alone_fits_its_rows():
    """Six documents of 640 tokens fit a row of 4,096, so 94 % is all that there is."""
    found = {lane: records(lane.stream, 4000, 600, 680) for lane in (LANES[0], LANES[2])}
    mix = MixConfig(understanding=1, text=0, generation=1)
    for policy in ("whole", "split_text"):
        plan = make_plan(mix, BatchConfig(rows=128, row_tokens=4096, packing=policy), found=found)
        planned = [plan.step(step) for step in range(20)]
        assert max(step.rows.num_rows for step in planned) <= 128
        assert np.mean([step.num_tokens / (128 * 4096) for step in planned]) > 0.89


def test_quotas_of_a_step_fit_its_rows():
    plan = make_plan(batch=BatchConfig(rows=64, row_tokens=512, packing="split_text"))
    assert {plan.step(step).rows.num_rows for step in range(200)} == {64}


@pytest.mark.parametrize("policy", ["whole", "split_text"])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("micro_rows", [1, 3])
def test_rows_are_dealt_once_to_any_world(world, micro_rows, policy):
    planned = make_plan(batch=BatchConfig(rows=8, row_tokens=256, packing=policy)).step(5)
    dealt = packing.deal(planned.row_costs, world, micro_rows)
    assert all(len(ranks) == world for ranks in dealt)
    assert all(len(rows) <= micro_rows for ranks in dealt for rows in ranks)
    assert sorted(row for ranks in dealt for rows in ranks for row in rows) == list(range(planned.rows.num_rows))


def test_costs_are_those_of_the_formula():
    cost = {"token": 2, "token_squared": 0.5, "image": 100, "text_label": 3, "image_label": 7}
    for policy in ("whole", "split_text"):
        planned = make_plan(batch=BatchConfig(rows=8, row_tokens=256, packing=policy, cost=cost)).step(3)
        for row in range(planned.rows.num_rows):
            wanted = 0.0
            for piece in planned.rows.row(row):
                document = int(planned.rows.document[piece])
                record, tokens = planned.record[document], int(planned.rows.tokens[piece])
                labels = tokens - 1 if tokens != record["tokens"] else record["text_labels"]
                wanted += 2 * tokens + 0.5 * tokens**2 + 100 * record["images"] + 3 * labels + 7 * record["image_ids"]
            assert planned.row_costs[row] == pytest.approx(wanted)


@pytest.mark.parametrize(("policy", "most"), [("whole", 1.06), ("split_text", 1.02)])
def test_ranks_carry_nearly_the_same(policy, most):
    cost = {"token": 1, "token_squared": 1e-3, "image": 200}
    planned = make_plan(batch=BatchConfig(rows=64, row_tokens=256, packing=policy, cost=cost)).step(0)
    dealt = packing.deal(planned.row_costs, 4, 4)
    assert packing.straggler_ratio(planned.row_costs, dealt) < most
    by_chance = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert packing.straggler_ratio(np.array([1.0, 1, 2, 2, 3, 3, 4, 4]), by_chance) == pytest.approx(12 / 10)


def test_a_source_keeps_its_order_when_others_join():
    lone = make_plan(MixConfig(understanding=0, text=0, generation=1))
    joined = make_plan(MixConfig(understanding=1, text=0, generation=1))
    take = lambda plan, lane: plan.lines[lane].take("samples", 0, 400).sample.tolist()  # noqa: E731
    assert take(lone, 0) == take(joined, 1)


@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=9), cuts=st.lists(st.integers(0, 5000), max_size=6))
def test_a_line_is_the_same_however_it_is_cut(sizes, cuts):
    """Shards of any size; pieces of the line put together are the line, and an epoch holds every sample once."""
    lane = LANES[2]
    found = np.concatenate([records("generation", size, 1, 90) for size in sizes])
    line = make_plan(found={lane: found}, mix=MixConfig(understanding=0, text=0, generation=1)).lines[0]
    line.shards = shard_set(lane, found, sizes)
    total = int(found["tokens"].sum())
    whole = line.take("tokens", 0, 2 * total)
    assert sorted(whole.sample[whole.epoch == 0].tolist()) == list(range(len(found)))
    assert sorted(whole.sample[whole.epoch == 1].tolist()) == list(range(len(found)))
    assert (whole.record["tokens"] == found["tokens"][whole.sample]).all()
    bounds = sorted({0, 2 * total, *(cut for cut in cuts if cut < 2 * total)})
    parts = [line.take("tokens", low, high).sample for low, high in pairwise(bounds)]
    assert np.concatenate(parts).tolist() == whole.sample.tolist()
    by_samples = line.take("samples", 0, 2 * len(found))
    assert by_samples.sample.tolist() == whole.sample.tolist()


def test_a_sample_that_fits_in_no_row_is_refused():
    with pytest.raises(
        DataError, match=r"sample \d+ of understanding/shard-00000.tar takes \d+ tokens, more than batch.row_tokens=128"
    ) as caught:
        make_plan(batch=BatchConfig(rows=8, row_tokens=128))
    assert "set batch.row_tokens=" in str(caught.value)


def test_text_longer_than_a_row_is_cut():
    planned = make_plan(MixConfig(understanding=0, text=1, generation=0), BatchConfig(rows=8, row_tokens=100)).step(0)
    assert planned.num_cuts > 0 and planned.labels["text"] == (planned.rows.tokens - 1).sum()
