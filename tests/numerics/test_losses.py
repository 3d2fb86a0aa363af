"""The fused loss of a head against torch's own cross-entropy over full logits."""

import pytest
import torch
import torch.nn.functional as F

from janus_dist.batch import NO_LABEL
from janus_dist.model import losses
from janus_dist.model.losses import LossLinear, linear_cross_entropy

ROWS, WIDTH, CLASSES = 23, 12, 40


def case(dtype=torch.float64, bias=True):
    """A head, hidden states, labels of which some are absent, and factors."""
    torch.manual_seed(0)
    head = LossLinear(WIDTH, CLASSES, bias=bias).to(dtype)
    hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, CLASSES, (ROWS,))
    labels[::5] = NO_LABEL
    return head, hidden, labels, torch.rand(ROWS)


def reference(head, hidden, labels, factors):
    """(loss, losses of rows) by torch, with gradients left in head and hidden."""
    rows = F.cross_entropy(F.linear(hidden, head.weight, head.bias), labels, ignore_index=NO_LABEL, reduction="none")
    loss = (rows * factors).sum()
    (3 * loss).backward()
    return loss.detach(), rows.detach()


def gradients(head, hidden):
    found = [parameter.grad.clone() for parameter in (hidden, *head.parameters())]
    hidden.grad = None
    head.zero_grad()
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 4, ROWS, 1_000])
def test_loss_and_gradients_equal_those_of_full_logits(monkeypatch, chunk_rows, bias):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_rows * CLASSES)
    head, hidden, labels, factors = case(bias=bias)
    expected_loss, expected_rows = reference(head, hidden, labels, factors)
    expected = gradients(head, hidden)
    loss, rows = head(hidden, labels, factors)
    (3 * loss).backward()
    assert loss.dtype == rows.dtype == torch.float32
    assert torch.allclose(loss.double(), expected_loss, rtol=1e-5)
    assert torch.allclose(rows.double(), expected_rows, rtol=1e-5)
    for found, wanted in zip(gradients(head, hidden), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [2, ROWS])
def test_in_bfloat16_gradients_lose_no_more_than_its_rounding(monkeypatch, chunk_rows):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_rows * CLASSES)
    head, hidden, labels, factors = case(torch.bfloat16)
    loss, rows = head(hidden, labels, factors)
    loss.backward()
    assert rows.dtype == torch.float32
    found = gradients(head, hidden)
    head, hidden = head.double(), hidden.detach().double().requires_grad_()
    expected_loss, _ = reference(head, hidden, labels, factors)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-2)
    for one, wanted in zip(found, gradients(head, hidden), strict=True):
        assert one.dtype == torch.bfloat16
        assert (3 * one.double() - wanted).norm() < 1e-2 * wanted.norm()


def test_rows_without_label_add_exactly_nothing():
    head, hidden, labels, factors = case(torch.float32)
    loss, rows = head(hidden, torch.full_like(labels, NO_LABEL), factors)
    loss.backward()
    assert loss.item() == 0 and not rows.any()
    assert not any(gradient.any() for gradient in gradients(head, hidden))


def test_a_frozen_head_gets_no_gradient_and_hands_one_on():
    head, hidden, labels, factors = case()
    reference(head, hidden, labels, factors)
    expected, *_ = gradients(head, hidden)
    head.requires_grad_(False)
    (3 * head(hidden, labels, factors)[0]).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None and torch.allclose(hidden.grad, expected, rtol=1e-4, atol=1e-6)


def test_without_gradients_only_losses_are_computed():
    head, hidden, labels, factors = case()
    with torch.no_grad():
        loss, rows = head(hidden, labels, factors)
    assert not loss.requires_grad
    assert torch.equal(rows, head(hidden, labels, factors)[1])


def test_logits_of_more_than_a_chunk_never_exist(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * CLASSES)
    head, hidden, labels, factors = case(torch.float32)
    sizes = []
    monkeypatch.setattr(
        losses,
        "_losses_and_slopes",
        lambda logits, *rest, do=losses._losses_and_slopes: sizes.append(logits.shape) or do(logits, *rest),
    )
    linear_cross_entropy(hidden, head.weight, head.bias, labels, factors)
    assert sizes == [(4, CLASSES)] * 5 + [(3, CLASSES)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_goes_through_a_chunk_in_blocks_which_change_no_bit(monkeypatch, dtype):
    def found(block_rows: int) -> tuple[list[torch.Tensor], list[torch.Size]]:
        head, hidden, labels, factors = case(dtype, bias=False)
        monkeypatch.setattr(losses, "BLOCK_LOGITS", block_rows * CLASSES)
        of, sizes = losses._cross_entropy, []
        with monkeypatch.context() as patch:
            patch.setattr(losses, "_cross_entropy", lambda x, *rest: sizes.append((x.dtype, len(x))) or of(x, *rest))
            loss, rows = head(hidden, labels, factors)
        loss.backward()
        return [loss.detach(), rows, *gradients(head, hidden)], sizes

    whole, sizes = found(ROWS)
    assert sizes == [(torch.float32, ROWS)]
    in_blocks, sizes = found(10)
    assert sizes == [(torch.float32, 10), (torch.float32, 10), (torch.float32, 3)]
    assert all(torch.equal(one, other) for one, other in zip(in_blocks, whole, strict=True))


def test_no_rows_give_gradients_of_zeros():
    head, hidden, labels, factors = case(torch.float32)
    loss, rows = head(hidden[:0], labels[:0], factors[:0])
    loss.backward()
    assert loss.item() == 0 and len(rows) == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_without_labels_a_head_gives_logits():
    head, hidden, _, _ = case()
    assert torch.equal(head(hidden), F.linear(hidden, head.weight, head.bias))
