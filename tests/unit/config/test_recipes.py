"""The shipped presets carry the tables of Janus (arXiv 2410.13848) and Janus-Pro (arXiv 2501.17811)."""

from pathlib import Path

import pytest

from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
# lr, schedule, warm-up, weight decay, steps, batch size, understanding : text : generation
JANUS = {
    1: (1e-3, "cosine", 300, 0.0, 10_000, 256, (1, 0, 1)),
    2: (1e-4, "constant", 5_000, 0.0, 180_000, 512, (2, 3, 5)),
    3: (2e-5, "constant", 0, 0.1, 24_000, 256, (7, 3, 10)),
}
PRO = {
    1: (1e-3, "constant", 600, 0.0, 20_000, 256, (1, 0, 3)),
    2: (1e-4, "constant", 5_000, 0.0, 270_000, 512, (2, 3, 5)),
    3: (4e-5, "constant", 0, 0.0, 80_000, 128, (5, 1, 4)),
}
TABLES = {"janus-1.3b": JANUS, "janus-pro-1b": PRO, "janus-pro-7b": PRO | {3: (*PRO[3][:4], 40_000, *PRO[3][5:])}}
# hidden size, layers, heads, width of the MLP
SIZES = {
    "janus-1.3b": (2048, 24, 16, 5632),
    "janus-pro-1b": (2048, 24, 16, 5632),
    "janus-pro-7b": (4096, 30, 32, 11008),
}
ADAPTORS = {"understanding_adaptor", "generation_adaptor", "image_head", "generation_embedding"}
LANGUAGE = {"language_model", "text_head"}


def recipe(preset: str, stage: int) -> StageRecipe:
    return load(StageRecipe, [RECIPES / preset / "base.yaml", RECIPES / preset / f"stage{stage}.yaml"], []).recipe


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("preset", TABLES)
def test_a_preset_carries_its_paper(preset, stage):
    found = recipe(preset, stage)
    optim, mix = found.optim, found.mix
    carried = (
        optim.lr,
        optim.schedule,
        optim.warmup_steps,
        optim.weight_decay,
        found.train.steps,
        found.batch.rows,
        (mix.understanding, mix.text, mix.generation),
    )
    assert carried == TABLES[preset][stage]
    assert (optim.betas, optim.grad_clip) == ((0.9, 0.95), 1.0)
    assert (found.batch.row_tokens, found.batch.cfg_drop) == (4096, 0.1)
    assert set(found.train.trainable) == ADAPTORS | (LANGUAGE if stage > 1 else set()) | (
        {"vision_tower"} if stage == 3 else set()
    )
    assert found.train.answers_only == (stage == 3)


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_has_the_published_sizes(preset):
    model = recipe(preset, 2).model
    assert (model.text.hidden, model.text.layers, model.text.heads, model.text.mlp) == SIZES[preset]
    assert (model.text.vocab, model.text.max_positions, model.text.norm_eps) == (102_400, 16_384, 1e-6)
    assert (model.image_size, model.image_tokens, model.image_ids, model.vq.codes) == (384, 576, 576, 16_384)


@pytest.mark.parametrize("preset", TABLES)
def test_a_stage_goes_on_from_the_one_before(preset):
    first, second, third = (recipe(preset, stage).run for stage in (1, 2, 3))
    assert set(first.start_weights) == {"language_model", "vision_tower"} and first.start_from is None
    assert (second.start_from, third.start_from) == (first.name, second.name)
    assert first.root == second.root == third.root


def test_imagenet_leaves_stage_2_of_janus_after_two_thirds():
    ((start, before), (change, after)) = recipe("janus-1.3b", 2).mix.states()
    assert (start, change) == (0, 120_000)
    assert (before.sources, after.sources) == ({"imagenet": 1, "captions": 0}, {"imagenet": 0, "captions": 1})


@pytest.mark.parametrize("preset", TABLES)
def test_every_rank_of_a_preset_has_rows(preset):
    for stage in (1, 2, 3):
        found = recipe(preset, stage)
        assert found.batch.rows % found.cluster.workers == 0
        assert found.batch.rows // found.cluster.workers % found.batch.micro_rows == 0, stage
