"""What only a GPU runs, against the same on a CPU in float32 or float64: packed attention, the fused loss."""

import pytest
import torch
import torch.nn.functional as F

from janus_dist.batch import NO_LABEL
from janus_dist.model import losses
from janus_dist.model.attention import packed_attention

LENGTHS = (1, 7, 64, 300, 129, 2)


def attend(query, key, value, lengths=LENGTHS, scaling=None):
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling, document_lengths=lengths)
    return out


def inputs(heads: int, groups: int, dim: int) -> list[torch.Tensor]:
    """Queries of `heads` heads, keys and values of `groups`, that bfloat16 holds exactly."""
    torch.manual_seed(0)
    return [torch.randn(1, number, sum(LENGTHS), dim).bfloat16() for number in (heads, groups, groups)]


def away(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Length of the difference over the length of what is wanted."""
    return ((found.cpu().double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 4, 128), (6, 2, 64), (2, 2, 24)])
def test_packed_attention_and_its_gradients(cuda, heads, groups, dim, scaling):
    given = inputs(heads, groups, dim)
    exact = [x.float().requires_grad_() for x in given]
    wanted = attend(*exact, scaling=scaling)
    slope = torch.randn_like(wanted).bfloat16()
    wanted.backward(slope.float())
    ours = [x.to(cuda).requires_grad_() for x in given]
    found = attend(*ours, scaling=scaling)
    found.backward(slope.to(cuda))
    assert found.dtype == torch.bfloat16 and away(found, wanted) < 1e-2
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None and other.grad is not None and away(one.grad, other.grad) < 2e-2


def test_a_document_is_the_same_whatever_stands_beside_it(cuda):
    given = [x.to(cuda) for x in inputs(4, 4, 64)]
    together = attend(*given).split(LENGTHS, dim=1)
    for number, alone in enumerate(zip(*(x.split(LENGTHS, dim=2) for x in given), strict=True)):
        assert torch.equal(together[number], attend(*alone, lengths=(LENGTHS[number],)))


@pytest.fixture(params=["torch", "liger"])
def kernel(request, monkeypatch) -> str:
    """With and without Liger's kernel."""
    if request.param == "torch":
        monkeypatch.setattr(losses, "cross_entropy_forward", None)
    elif losses.cross_entropy_forward is None:
        pytest.skip("needs liger-kernel")
    return request.param


@pytest.mark.parametrize("chunk_rows", [50, 1_000])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_loss_of_a_head_and_its_gradients(cuda, monkeypatch, kernel, dtype, near, chunk_rows):
    classes, rows, width = 5_000, 170, 256
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_rows * classes)
    torch.manual_seed(0)
    given = [torch.randn(*shape).mul(0.1).to(dtype) for shape in ((rows, width), (classes, width), (classes,))]
    labels, factors = torch.randint(0, classes, (rows,)), torch.rand(rows)
    labels[::7] = NO_LABEL
    exact = [x.double().requires_grad_() for x in given]
    wanted = F.cross_entropy(F.linear(*exact), labels, ignore_index=NO_LABEL, reduction="none")
    (3 * (wanted * factors).sum()).backward()
    ours = [x.to(cuda).requires_grad_() for x in given]
    loss, found = losses.linear_cross_entropy(*ours, labels.to(cuda), factors.to(cuda))
    (3 * loss).backward()
    assert away(found, wanted) < near and loss.item() == pytest.approx((wanted * factors).sum().item(), rel=near)
    assert not found[::7].any()
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None and other.grad is not None and away(one.grad, other.grad) < near
