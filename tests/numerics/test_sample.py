"""Answers and drawings against slow loops that run the whole prompt anew for every id, without a cache or a batch."""

import numpy as np
import pytest
import torch

from janus_dist.model import janus, sample
from janus_dist.model import vq as vq_model
from tests import tiny


@pytest.fixture(scope="module")
def model() -> janus.Janus:
    model = janus.build(tiny.MODEL.model_copy(update={"init_std": 0.3}), seed=0)  # so that ids differ
    model.model.language_model.set_attn_implementation("sdpa")
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    side = tiny.MODEL.image_size
    return torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def last_hidden(model: janus.Janus, inputs: torch.Tensor) -> torch.Tensor:
    return model.model.language_model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, -1]


@torch.no_grad()
def test_answers_equal_a_loop_without_cache_and_batch(model, images):
    rng = np.random.default_rng(0)
    prompts = [[tiny.BOS, tiny.BOI, tiny.IMAGE, tiny.EOI, *tiny.words(rng, number)] for number in (3, 5, 3, 4, 3)]
    image_of = [0, 1, 2, 0, 1]
    features = sample.image_features(model, images, batch=2)
    found = sample.answer(model, prompts, features, image_of, tiny.IMAGE, tiny.EOS, max_new_tokens=5, batch=2)
    embed = model.model.language_model.embed_tokens
    core = model.model
    for prompt, number, answer in zip(prompts, image_of, found, strict=True):
        pixels = vq_model.to_float(images[number : number + 1])
        seen = core.aligner(core.vision_model(pixel_values=pixels).last_hidden_state)[0]
        inputs = torch.cat([embed(torch.tensor(prompt[:2])), seen, embed(torch.tensor(prompt[3:]))])
        expected = []
        for _ in range(5):
            chosen = int(model.lm_head(last_hidden(model, inputs)).argmax())
            if chosen == tiny.EOS:
                break
            expected.append(chosen)
            inputs = torch.cat([inputs, embed(torch.tensor([chosen]))])
        assert answer == expected


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_drawings_equal_two_rows_by_formula(model, guidance):
    rng = np.random.default_rng(1)
    prompts = [[tiny.BOS, *tiny.words(rng, number), tiny.BOI] for number in (4, 6, 4)]
    drawn = sample.draw(model, prompts, 16, tiny.PAD, guidance, 0.0, torch.Generator(), batch=8)
    core = model.model
    for prompt, ids in zip(prompts, drawn.tolist(), strict=True):
        without = [prompt[0], *[tiny.PAD] * (len(prompt) - 2), prompt[-1]]
        rows = [core.language_model.embed_tokens(torch.tensor(row)) for row in (prompt, without)]
        for code in ids:
            conditional, unconditional = (core.generation_head(last_hidden(model, row)) for row in rows)
            logits = unconditional + guidance * (conditional - unconditional)
            assert logits.max() - logits[code] < 1e-4  # the same id, or one as likely
            drawn_embedding = core.generation_aligner(core.generation_embeddings(torch.tensor([code])))
            rows = [torch.cat([row, drawn_embedding]) for row in rows]


@torch.no_grad()
def test_drawings_depend_on_seed_and_temperature(model):
    prompts = [[tiny.BOS, 9, 10, tiny.BOI]] * 2

    def draw(seed: int, temperature: float) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return sample.draw(model, prompts, 16, tiny.PAD, 1.0, temperature, generator, batch=8).tolist()

    assert draw(0, 1.0) == draw(0, 1.0) != draw(1, 1.0)
    assert draw(0, 0.0)[0] == draw(1, 0.0)[1]
    assert draw(0, 1.0)[0] != draw(0, 1.0)[1]
    assert all(0 <= code < tiny.MODEL.vq.codes for ids in draw(0, 1.0) for code in ids)
