"""The head's loss, chunk by chunk, is F.cross_entropy of all scores at once: value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metier.train import head
from metier.train.fast import ops
from metier.train.head import HeadLoss

pytestmark = pytest.mark.usefixtures("both_ways")

T, C, V = 37, 16, 53


def inputs(
    *, weighted: bool, biased: bool, trained: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    torch.manual_seed(0)
    hidden = torch.randn(T, C, requires_grad=True)
    weight = torch.randn(V, C, requires_grad=trained)
    bias = torch.randn(V, requires_grad=trained) if biased else None
    return hidden, weight, bias, torch.randint(V, (T,)), torch.rand(T) if weighted else None


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, s: float):
    losses = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none", label_smoothing=s)
    return (losses if weights is None else losses * weights).sum()


@pytest.mark.parametrize("chunk", [5, 37, 1024])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, trained: bool, biased: bool, weighted: bool, smoothing: float, chunk: int
):
    monkeypatch.setattr(head, "CHUNK", chunk)
    monkeypatch.setattr(head, "CHUNK_TRAINED", chunk)
    monkeypatch.setattr(ops, "ELEMENTS", 3 * V)  # three rows at a time
    given = inputs(weighted=weighted, biased=biased, trained=trained)
    wants = [x for x in given[:3] if x is not None and x.requires_grad]
    wanted = reference(*given, smoothing)
    loss = HeadLoss.apply(*given, smoothing, torch.float32)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for found, expected in zip(
        torch.autograd.grad(loss * 0.7, wants), torch.autograd.grad(wanted * 0.7, wants), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_scores_are_left_alone():
    given = inputs(weighted=True, biased=True, trained=True)
    with torch.no_grad():
        loss = HeadLoss.apply(*given, 0.1, torch.float32)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(*given, 0.1).detach())


def test_only_the_head_trains():
    hidden, weight, bias, targets, weights = inputs(weighted=False, biased=True, trained=True)
    hidden = hidden.detach()
    found = torch.autograd.grad(HeadLoss.apply(hidden, weight, bias, targets, weights, 0.0, torch.float32), weight)
    wanted = torch.autograd.grad(reference(hidden, weight, bias, targets, weights, 0.0), weight)
    torch.testing.assert_close(found, wanted)


def test_no_targets_cost_nothing():
    hidden, weight, bias, _, _ = inputs(weighted=False, biased=False, trained=True)
    none = torch.empty(0, dtype=torch.long)
    loss = HeadLoss.apply(hidden[:0], weight, bias, none, None, 0.0, torch.float32)
    loss.backward()
    assert loss.item() == 0.0
    assert not weight.grad.any()


def test_in_bf16_the_gradients_keep_the_types_of_what_they_are_for():
    hidden, weight, _, targets, _ = inputs(weighted=False, biased=False, trained=True)
    h = hidden.detach().bfloat16().requires_grad_()
    loss = HeadLoss.apply(h, weight, None, targets, None, 0.0, torch.bfloat16)
    loss.backward()
    assert (loss.dtype, h.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    exact = reference(hidden, weight, None, targets, None, 0.0)
    (wanted,) = torch.autograd.grad(exact, weight)
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert F.cosine_similarity(weight.grad.flatten(), wanted.flatten(), dim=0) > 0.999
