"""The training forward against independent formulas: each document alone, one stream at a time, by transformers' own
parts."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import JanusForConditionalGeneration

from janus_dist.batch import NO_LABEL
from janus_dist.config.streams import STREAMS, Stream
from janus_dist.config.train import Part
from janus_dist.data.collate import collate
from janus_dist.data.sample import GenerationSample, TextSample, UnderstandingSample
from janus_dist.data.shard import counts
from janus_dist.model import janus
from janus_dist.model.parts import PREFIXES, part_of, set_trainable, train_mode
from janus_dist.train.step import loss_weights
from tests import tiny

ONES = torch.ones(len(STREAMS))


@pytest.fixture(scope="module")
def model() -> janus.Janus:
    return janus.build(tiny.MODEL, seed=0)


def reference_losses(model: janus.Janus, sample) -> float:
    """Summed loss of one document by its own short program: eager attention, full logits, labels found id by id."""
    core = model.model
    embed = core.language_model.embed_tokens
    pieces, targets = [], []  # input embeddings, and (head, id) that stands at each position
    ids = sample.prompt_ids if isinstance(sample, GenerationSample) else sample.ids
    images = iter(sample.images) if isinstance(sample, UnderstandingSample) else iter(())
    for token in ids.tolist():
        if token == tiny.IMAGE:
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(next(images)))))
            pixels = pixels.permute(2, 0, 1)[None].float() / 255 * 2 - 1
            features = core.aligner(core.vision_model(pixel_values=pixels).last_hidden_state)[0]
            pieces += list(features)
            targets += [None] * len(features)
        else:
            pieces.append(embed.weight[token])
            supervised = token not in (tiny.BOI, tiny.EOI) and not isinstance(sample, GenerationSample)
            targets.append(("text", token) if supervised else None)
    if isinstance(sample, GenerationSample):
        for code in sample.vq_ids.tolist():
            pieces.append(core.generation_aligner(core.generation_embeddings.weight[code]))
            targets.append(("image", code))
    core.language_model.set_attn_implementation("eager")
    hidden = core.language_model(inputs_embeds=torch.stack(pieces)[None], use_cache=False).last_hidden_state[0]
    core.language_model.set_attn_implementation(janus.PACKED)
    total = 0.0
    for position, target in enumerate(targets[1:]):
        if target is not None:
            head, wanted = target
            logits = (model.lm_head if head == "text" else core.generation_head)(hidden[position])
            total += -F.log_softmax(logits, dim=-1)[wanted].item()
    return total


@torch.no_grad()
def test_losses_equal_those_of_each_document_alone(model):
    samples = tiny.samples(seed=1)
    loss, sums = model(tiny.batch_of(samples, tiny.document_format()), torch.tensor([0.5, 2.0, 0.25]))
    found = sums.tolist()
    assert loss.item() == pytest.approx(0.5 * found[0] + 2 * found[1] + 0.25 * found[2])
    expected = dict.fromkeys(STREAMS, 0.0)
    names = {TextSample: "text", UnderstandingSample: "understanding", GenerationSample: "generation"}
    for sample in samples:
        expected[names[type(sample)]] += reference_losses(model, sample)
    assert found == pytest.approx([expected[name] for name in STREAMS], rel=1e-5)


@torch.no_grad()
def test_no_leak_between_documents(model):
    """Other neighbours, another order, other positions in the row: a document's hidden states stay."""
    samples = tiny.samples(seed=2)
    alone = [hidden_states(model, [sample]) for sample in samples]
    together = hidden_states(model, samples)
    backwards = hidden_states(model, samples[::-1])
    start = 0
    for own in alone:
        assert torch.allclose(together[start : start + len(own)], own, atol=1e-6)
        start += len(own)
    start = 0
    for own in alone[::-1]:
        assert torch.allclose(backwards[start : start + len(own)], own, atol=1e-6)
        start += len(own)


@torch.no_grad()
def test_perturbing_one_document_changes_no_other_bit(model):
    samples = tiny.samples(seed=3)
    before = hidden_states(model, samples)
    changed = TextSample((samples[0].ids + np.uint32(1)) % np.uint32(tiny.MODEL.text.vocab))
    after = hidden_states(model, [changed, *samples[1:]])
    first = len(samples[0].ids)
    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])


def hidden_states(model: janus.Janus, samples) -> torch.Tensor:
    """Hidden states [token, hidden] of documents packed in this order, caught where the heads would read them."""
    caught = []
    hook = model.model.language_model.register_forward_hook(
        lambda module, args, out: caught.append(out.last_hidden_state[0])
    )
    model(tiny.batch_of(samples, tiny.document_format()), ONES)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("kept", [TextSample, UnderstandingSample, GenerationSample, None])
def test_parts_without_data_get_a_gradient_of_zero(model, kept):
    """Under ZeRO-3 an absent gradient is worse than none: the last one would be applied again."""
    samples = [sample for sample in tiny.samples(seed=4) if kept and isinstance(sample, kept)]
    model.zero_grad()
    loss, _ = model(tiny.batch_of(samples, tiny.document_format()), ONES)
    assert torch.isfinite(loss)
    loss.backward()
    unused = {
        TextSample: (
            "vision_tower",
            "understanding_adaptor",
            "generation_embedding",
            "generation_adaptor",
            "image_head",
        ),
        UnderstandingSample: ("generation_embedding", "generation_adaptor", "image_head"),
        GenerationSample: ("vision_tower", "understanding_adaptor", "text_head"),
        None: tuple(PREFIXES),
    }[kept]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        norm = parameter.grad.norm().item()
        if part_of(name) in unused:
            assert norm == 0, name
    if kept is not None:
        assert all(
            any(p.grad.norm() > 0 for n, p in model.named_parameters() if part_of(n) == part)
            for part in PREFIXES
            if part not in unused
        )


def test_modules_run_once_each_in_one_order_whatever_the_data(model):
    def order_of(samples) -> list[str]:
        seen = []
        core = model.model
        modules = {
            "vision": core.vision_model, "adaptor": core.aligner, "embedding": core.generation_embeddings,
            "generation adaptor": core.generation_aligner, "language": core.language_model, "text head": model.lm_head,
            "image head": core.generation_head,
        }  # fmt: skip
        hooks = [m.register_forward_hook(lambda *_, name=name: seen.append(name)) for name, m in modules.items()]
        model(tiny.batch_of(samples, tiny.document_format()), ONES)
        for hook in hooks:
            hook.remove()
        return seen

    everything = order_of(tiny.samples(5))
    assert everything == ["vision", "adaptor", "embedding", "generation adaptor", "language", "text head", "image head"]
    for subset in ([], tiny.samples(5)[:1], tiny.samples(5)[2:3], tiny.samples(5)[4:5]):
        assert order_of(subset) == everything


def test_image_labels_begin_at_begin_of_image():
    sample = tiny.generation_sample(np.random.default_rng(0), prompt=4)
    batch = tiny.batch_of([sample], tiny.document_format())
    assert batch.image_rows[0] == 5 and batch.input_ids[5] == tiny.BOI
    assert batch.image_labels.tolist() == sample.vq_ids.tolist()
    assert (batch.image_rows[1:] == batch.vq_positions[:-1]).all()
    assert batch.text_labels.tolist() == [NO_LABEL]


@pytest.mark.parametrize("end", [tiny.EOI, tiny.EOS])
def test_what_follows_an_image_is_learned_by_the_text_head_in_the_generation_stream(model, end):
    plain = tiny.generation_sample(np.random.default_rng(0), prompt=4)
    sample = GenerationSample(np.append(plain.prompt_ids, np.uint32(end)), plain.vq_ids)
    batch = collate([tiny.document_of(sample, drop_prompt=True)], tiny.document_format())
    assert batch.input_ids.tolist() == [tiny.BOS, *[tiny.PAD] * 4, tiny.BOI, *[0] * len(sample.vq_ids), end]
    assert batch.text_labels.tolist() == [end] and batch.text_rows.tolist() == [batch.num_tokens - 2]
    assert tiny.label_counts(batch).tolist() == [0, 0, len(sample.vq_ids) + 1]
    assert counts(sample, tiny.MODEL, (tiny.BOI, tiny.IMAGE, tiny.EOI)) == (
        batch.num_tokens,
        1,
        1,
        0,
        len(plain.vq_ids),
    )
    before, after = (model(tiny.batch_of([one], tiny.document_format()), ONES)[1] for one in (plain, sample))
    with torch.no_grad():
        hidden = hidden_states(model, [sample])
        loss = F.cross_entropy(model.lm_head(hidden[-2]), torch.tensor(end))
    assert after[2].item() - before[2].item() == pytest.approx(loss.item(), rel=1e-4)


def test_a_dropped_prompt_keeps_length_and_ends():
    sample = tiny.generation_sample(np.random.default_rng(0), prompt=4)
    kept, dropped = (collate([tiny.document_of(sample, drop)], tiny.document_format()) for drop in (False, True))
    assert dropped.input_ids[:6].tolist() == [tiny.BOS, *[tiny.PAD] * 4, tiny.BOI]
    assert kept.document_lengths == dropped.document_lengths
    assert (kept.position_ids == dropped.position_ids).all()
    assert sample.prompt_ids[1] != tiny.PAD  # the stored sample is not written to


def test_answers_only_supervises_answers_and_their_end():
    sample = tiny.understanding_sample(np.random.default_rng(0), question=5, answer=3)
    image_tokens = tiny.MODEL.image_tokens
    everything = tiny.batch_of([sample], tiny.document_format())
    answers = tiny.batch_of([sample], tiny.document_format(answers_only=True))
    assert everything.text_labels.tolist() == sample.ids[4:].tolist()
    assert answers.text_labels.tolist() == sample.ids[9:].tolist()
    assert answers.text_rows.tolist() == [image_tokens + 7, image_tokens + 8, image_tokens + 9, image_tokens + 10]
    assert everything.pixel_positions.tolist() == list(range(2, 2 + image_tokens))
    # the last image feature stands before end_of_image, whose successor is the first label
    assert everything.text_rows[0] == 2 + image_tokens


def test_every_parameter_has_one_part_and_sizes_add_up(model):
    counts: dict[Part, int] = dict.fromkeys(PREFIXES, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert all(counts.values())
    assert counts["text_head"] == tiny.MODEL.text.vocab * tiny.MODEL.text.hidden  # untied
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight


def test_set_trainable_thaws_exactly_the_parts():
    model = janus.build(tiny.MODEL, seed=0)
    set_trainable(model, ["image_head"])
    learning = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"image_head"}


def test_made_on_meta_equals_transformers_own_construction_but_for_random_numbers():
    """Buffers, norms and biases have values of their own, which nothing may leave out."""
    made, theirs = janus.build(tiny.MODEL, seed=0), JanusForConditionalGeneration(janus.transformers_config(tiny.MODEL))
    del theirs.model.vqmodel
    assert dict(made.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    for name, buffer in theirs.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer), name
    assert made.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    drawn = 0
    for name, parameter in theirs.named_parameters():
        mine = made.get_parameter(name)
        assert mine.shape == parameter.shape and mine.requires_grad
        if parameter.std() == 0 or parameter.numel() == 1:
            assert torch.equal(mine, parameter), name
        else:
            drawn += 1
            wanted = 1.0 if name == "model.generation_embeddings.weight" else tiny.MODEL.init_std
            assert mine.std().item() == pytest.approx(wanted, rel=0.35), name
    assert drawn > 20


def test_modules_are_made_one_by_one_children_first():
    model = janus.on_meta(tiny.MODEL)
    seen = set()
    for module in janus.made(model, 0, torch.device("cpu")):
        assert all(id(child) in seen for child in module.children() if list(child.parameters()))
        assert all(not parameter.is_meta for parameter in module.parameters())
        seen |= {id(below) for below in module.modules()}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("vision", [True, False])
def test_checkpointed_activations_change_no_loss_and_no_gradient(every, vision):
    batch, found = tiny.batch(6), []
    for model in (janus.build(tiny.MODEL, seed=0).train() for _ in range(2)):
        model.model.vision_model.requires_grad_(vision)
        if found:
            janus.checkpoint_activations(model, every)
        computed = []
        for layer in [*model.model.language_model.layers, *model.model.vision_model.encoder.layers]:
            layer.self_attn.register_forward_hook(lambda *_, computed=computed, layer=layer: computed.append(layer))
        loss, sums = model(batch, ONES)
        loss.backward()
        found.append((len(computed), sums, {name: p.grad for name, p in model.named_parameters()}))
    (plain, losses, expected), (again, other_losses, gradients) = found
    language = tiny.MODEL.text.layers // every
    assert again - plain == language + (tiny.MODEL.vision.layers if vision else 0)
    assert torch.equal(losses, other_losses)
    for name, gradient in expected.items():
        assert (gradient is None) == (gradients[name] is None)
        assert gradient is None or torch.equal(gradient, gradients[name]), name


def test_loss_weights():
    labels: dict[Stream, int] = {"understanding": 10, "text": 0, "generation": 30}
    assert loss_weights(labels, "labels") == {"understanding": 1 / 40, "generation": 1 / 40}
    assert loss_weights(labels, "streams") == {"understanding": 1 / 20, "generation": 1 / 60}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = janus.build(tiny.MODEL, 1), janus.build(tiny.MODEL, 1), janus.build(tiny.MODEL, 2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


@pytest.mark.parametrize("every", [0, 1])
def test_frozen_parts_stay_in_evaluation_mode(every):
    """Layers that are computed again in the backward look at their mode; what is in them is frozen all the same."""
    model = janus.build(tiny.MODEL, seed=0).eval()
    set_trainable(model, ["understanding_adaptor", "image_head"])
    janus.checkpoint_activations(model, every)
    train_mode(model)
    core = model.model
    assert all(module.training for part in (core.aligner, core.generation_head) for module in part.modules())
    frozen = [
        core.vision_model,
        core.language_model,
        core.generation_embeddings,
        core.generation_aligner,
        model.lm_head,
    ]
    still = {module for part in frozen for module in part.modules() if module.training}
    assert still == (set(core.language_model.layers) if every else set())
    model.requires_grad_(True)
    train_mode(model)
    assert core.language_model.training and core.vision_model.training and model.lm_head.training
