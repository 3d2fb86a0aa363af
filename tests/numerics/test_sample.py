"""Answers and drawings against slow loops that run the whole prompt anew for every id, without a cache or a batch."""

import math

import numpy as np
import pytest
import torch

from janus_dist.data.collate import collate
from janus_dist.model import janus, sample
from janus_dist.model import vq as vq_model
from janus_dist.model.sample import TokenChoice
from tests import tiny

AT_RANDOM = TokenChoice(temperature=1.0)


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
    found = sample.answer(
        model, prompts, features, [[of] for of in image_of], tiny.IMAGE, tiny.EOS, max_new_tokens=5, batch=2
    )
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
    drawn = sample.draw(model, prompts, 16, tiny.PAD, guidance, TokenChoice(), [0, 0, 0], batch=8)
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
def test_several_images_and_none(model, images):
    rng = np.random.default_rng(4)
    mark = [tiny.BOI, tiny.IMAGE, tiny.EOI]
    prompts = [[tiny.BOS, *mark, *tiny.words(rng, 2), *mark, *tiny.words(rng, 3)], [tiny.BOS, *tiny.words(rng, 4)]]
    features = sample.image_features(model, images, batch=2)
    found = sample.answer(model, prompts, features, [[2, 0], []], tiny.IMAGE, tiny.EOS, max_new_tokens=4, batch=2)
    for prompt, of, answer in zip(prompts, [[2, 0], []], found, strict=True):
        seen = iter(of)
        rows = [
            features[next(seen)] if token == tiny.IMAGE else model.model.language_model.embed_tokens.weight[token][None]
            for token in prompt
        ]
        inputs, expected = torch.cat(rows), []
        for _ in range(4):
            chosen = int(model.lm_head(last_hidden(model, inputs)).argmax())
            if chosen == tiny.EOS:
                break
            expected.append(chosen)
            inputs = torch.cat([inputs, model.model.language_model.embed_tokens.weight[chosen][None]])
        assert answer == expected


def test_an_image_depends_on_its_own_prompt_and_seed_only(model):
    rng = np.random.default_rng(5)
    prompts = [[tiny.BOS, *tiny.words(rng, number), tiny.BOI] for number in (4, 6, 4, 4, 6)]
    seeds = [7, 8, 9, 7, 8]

    def draw(chosen: list[int], batch: int, choice: TokenChoice = AT_RANDOM) -> list[list[int]]:
        asked = [prompts[number] for number in chosen]
        return sample.draw(model, asked, 16, tiny.PAD, 2.0, choice, [seeds[n] for n in chosen], batch).tolist()

    together = draw([0, 1, 2, 3, 4], 8)
    assert together == draw([0, 1, 2, 3, 4], 1)
    assert [together[4], together[0]] == draw([4, 0], 8)
    assert together[0] != together[2]
    seeds[0] = 70
    changed = draw([0, 1, 2, 3, 4], 8)
    assert changed[0] != together[0] and changed[1:] == together[1:]
    assert draw([0, 2], 8, TokenChoice(0.0)) == draw([0, 2], 8, TokenChoice(5.0, top_k=1))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 3), (1.0, 100)])
def test_ids_are_drawn_as_often_as_their_probability_says(temperature, top_k):
    logits = torch.tensor([0.3, -1.0, 2.0, 1.5, 0.0])
    chances = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    found = sample.choose(logits.expand(20_000, -1), TokenChoice(temperature, top_k), chances)
    weights = [math.exp(value / temperature) for value in logits.tolist()]
    kept = sorted(weights)[-top_k:] if 0 < top_k < 5 else weights
    expected = [weight / sum(kept) if weight in kept else 0.0 for weight in weights]
    shares = (torch.bincount(found, minlength=5) / 20_000).tolist()
    assert shares == pytest.approx(expected, abs=1e-3)


def test_the_last_chance_is_still_an_id():
    logits = torch.tensor([[0.0, 0.0, -50.0]])
    assert sample.choose(logits, TokenChoice(1.0), torch.tensor([1 - 1e-16], dtype=torch.float64)) in (0, 1, 2)
    assert sample.choose(logits, TokenChoice(1.0), torch.tensor([0.0], dtype=torch.float64)) == 0


@torch.no_grad()
def test_the_row_without_prompt_is_the_one_that_training_drops(model):
    """Guidance's second row and a dropped prompt: ids and positions bit for bit; hidden states up to the order of sums,
    as one is in a batch of two and the other beside its image in a packed row."""
    drawn_sample = tiny.generation_sample(np.random.default_rng(6), prompt=5)
    batch = collate([tiny.document_of(drawn_sample, drop_prompt=True)], tiny.document_format())
    caught, states = [], []
    language = model.model.language_model

    def keep(module, args, kwargs, out):
        caught.append(kwargs)
        states.append(out.last_hidden_state)

    hook = language.register_forward_hook(keep, with_kwargs=True)
    prompt = drawn_sample.prompt_ids.tolist()
    sample.draw(model, [prompt], 1, tiny.PAD, 1.0, TokenChoice(), [0], batch=1)
    language.set_attn_implementation(janus.PACKED)
    model(batch, torch.ones(3))
    language.set_attn_implementation("sdpa")
    hook.remove()
    unconditional = caught[0]["inputs_embeds"][1]
    assert caught[0].get("attention_mask") is None and caught[0].get("position_ids") is None
    assert torch.equal(unconditional, language.embed_tokens(batch.input_ids[: len(prompt)]))
    assert batch.position_ids[: len(prompt)].tolist() == list(range(len(prompt)))
    drawn, trained = states[0][:, : len(prompt)], states[-1][0, : len(prompt)]
    assert torch.allclose(drawn[1], trained, rtol=1e-5, atol=1e-5)
    assert (drawn[0] - trained).abs().max() > 0.1, "a prompt is heard"


@pytest.mark.parametrize(("side", "patch", "multipliers"), [(32, 8, (1, 1, 2)), (48, 16, (1, 2))])
def test_other_image_sizes(side, patch, multipliers):
    """What an image takes to read and to draw follows from the recipe alone."""
    config = tiny.MODEL.model_copy(
        update={
            "image_size": side,
            "vision": tiny.MODEL.vision.model_copy(update={"patch": patch}),
            "vq": tiny.MODEL.vq.model_copy(update={"channel_multipliers": multipliers}),
        }
    )
    assert (config.image_tokens, config.image_ids) == ((side // patch) ** 2, (side // 2 ** (len(multipliers) - 1)) ** 2)
    other = janus.build(config, seed=0).eval()
    other.model.language_model.set_attn_implementation("sdpa")
    pictures = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    features = sample.image_features(other, pictures, batch=1)
    assert features.shape == (2, config.image_tokens, config.text.hidden)
    prompt = [tiny.BOS, tiny.BOI, tiny.IMAGE, tiny.EOI, 9]
    (answer,) = sample.answer(other, [prompt], features, [[1]], tiny.IMAGE, tiny.EOS, max_new_tokens=2, batch=1)
    assert len(answer) <= 2
    ids = sample.draw(other, [[tiny.BOS, 9, tiny.BOI]], config.image_ids, tiny.PAD, 2.0, TokenChoice(1.0), [3], batch=1)
    decoded = vq_model.decode(vq_model.build(janus.vq_config(config)).eval(), ids)
    assert decoded.shape == (1, 3, side, side)
