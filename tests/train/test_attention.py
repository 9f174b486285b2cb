"""Attention of a packed row equals softmax(q k^T) v of each sequence alone, forward and backward, by either kernel."""

import pytest
import torch
import torch.nn.functional as F
from exactly import FP32, pieces_of
from torch import Tensor

import fakes
from metier.train import strips
from metier.train.attention import attend, transformers_attention
from metier.train.batches import shared_prefix
from metier.train.forward import Forward
from metier.train.rows import Row, pack

pytestmark = pytest.mark.usefixtures("both_ways")

HEADS, GROUPS, WIDTH = 4, 2, 8
SCALE = 0.3
KERNELS = {"strips": 640, "in small pieces": 640, "both": 30, "fused": 8}
"""How many keys a short sequence has at most."""


def row_of(data: str) -> Row:
    tuned = pieces_of("sft")
    if data == "mixed":
        return pack([*pieces_of("all", (25, 9)), *tuned], shared_prefix(tuned))
    pieces = pieces_of(data)
    return pack(pieces, shared_prefix(pieces))


def random_qkv(row: Row, groups: int = GROUPS) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(len(row), heads, WIDTH, requires_grad=True) for heads in (HEADS, groups, groups)]


def alone(q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
    """Each token's attention written out: to its own sequence up to itself, behind the prefix where it has that."""
    out = torch.zeros(len(row), HEADS * WIDTH)
    spans = [(0, row.prefix, False)] + [(start, end, len(piece) > end - start) for piece, start, end in row.parts]
    spans.append((spans[-1][1], len(row), False))  # the filler
    repeat = HEADS // k.shape[1]
    for start, end, opened in spans:
        for token in range(start, end):
            seen = [*range(row.prefix if opened else 0), *range(start, token + 1)]
            keys, values = (x[seen].repeat_interleave(repeat, dim=1) for x in (k, v))
            weights = torch.softmax(torch.einsum("hd,khd->hk", q[token], keys) * SCALE, -1)
            out[token] = torch.einsum("hk,khd->hd", weights, values).flatten()
    return out


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("only_asked", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("data", ["all", "mixed", "sparse"])
def test_attention_is_that_of_each_sequence_alone(
    monkeypatch: pytest.MonkeyPatch, data: str, kernel: str, only_asked: bool, groups: int
):
    monkeypatch.setattr(strips, "SHORT", KERNELS[kernel])
    if kernel == "in small pieces":
        monkeypatch.setattr(strips, "SCORES", 1)
        monkeypatch.setattr(strips, "STRIP", 3)
        monkeypatch.setattr(strips, "ROUND", 1)
    row = row_of(data)
    q, k, v = random_qkv(row, groups)
    asked = q.index_select(0, row.asked) if only_asked else q
    out = attend(asked, k, v, row, scale=SCALE, only_asked=only_asked)
    wanted = alone(q.detach(), k.detach(), v.detach(), row)
    wanted = wanted.index_select(0, row.asked) if only_asked else wanted
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("only_asked", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_those_of_each_sequence_alone(monkeypatch: pytest.MonkeyPatch, kernel: str, only_asked: bool):
    monkeypatch.setattr(strips, "SHORT", KERNELS[kernel])
    monkeypatch.setattr(strips, "STRIP", 3 if kernel == "in small pieces" else 64)
    monkeypatch.setattr(strips, "ROUND", 2 if kernel == "in small pieces" else 32)
    tuned = pieces_of("sft", (20, 17, 25))
    row = pack([*pieces_of("all", (9,)), *tuned], shared_prefix(tuned))
    qkv = random_qkv(row)
    toward = torch.randn(len(row.asked), HEADS * WIDTH)
    asked = qkv[0].index_select(0, row.asked) if only_asked else qkv[0]
    out = attend(asked, *qkv[1:], row, scale=SCALE, only_asked=only_asked)
    out = out if only_asked else out.index_select(0, row.asked)
    found = torch.autograd.grad((out * toward).sum(), qkv)
    wanted = torch.autograd.grad((alone(*qkv, row).index_select(0, row.asked) * toward).sum(), qkv)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("only_asked", [False, True])
def test_with_dropout_it_is_differentiated_with_the_weights_it_dropped(only_asked: bool):
    tuned = pieces_of("sft", (20, 17))
    row = pack(tuned, shared_prefix(tuned))
    q, k, v = (x.detach().double().requires_grad_() for x in random_qkv(row))
    q = q.detach().index_select(0, row.asked).requires_grad_() if only_asked else q
    real = slice(None) if only_asked else slice(row.parts[-1][2])

    def drawn(q: Tensor, k: Tensor, v: Tensor, share: float = 0.4) -> Tensor:
        torch.manual_seed(1)
        return attend(q, k, v, row, scale=SCALE, dropout=share, only_asked=only_asked)[real]

    assert torch.autograd.gradcheck(drawn, (q, k, v))
    assert not torch.equal(drawn(q, k, v), drawn(q, k, v, 0.0))


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    many = 4000
    row = pack(pieces_of("all", (6,) * many))
    q, k, v = (torch.randn(6, 2, WIDTH) for _ in range(3))
    out = attend(*(x.repeat(-(-len(row) // 6), 1, 1)[: len(row)] for x in (q, k, v)), row, scale=SCALE, dropout=0.3)
    mean = out[: 6 * many].view(many, 6, 2, WIDTH).mean(0)
    wanted = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, scale=SCALE)
    torch.testing.assert_close(mean, wanted[0].transpose(0, 1), rtol=0, atol=0.06)


def test_what_transformers_calls_is_the_same_attention():
    row = row_of("sft")
    q, k, v = random_qkv(row)
    out, nothing = transformers_attention(
        torch.nn.Identity(), *(x.transpose(0, 1)[None] for x in (q, k, v)), None, row=row, scaling=SCALE
    )
    assert nothing is None
    assert out.shape == (1, len(row), HEADS, WIDTH)
    torch.testing.assert_close(out[0].flatten(1), attend(q, k, v, row, scale=SCALE))


def test_without_a_scale_it_is_that_of_the_heads_width():
    row = row_of("all")
    views = [x.transpose(0, 1)[None] for x in random_qkv(row)]
    default, _ = transformers_attention(torch.nn.Identity(), *views, None, row=row)
    given, _ = transformers_attention(torch.nn.Identity(), *views, None, row=row, scaling=WIDTH**-0.5)
    assert torch.equal(default, given)


def test_a_call_without_a_row_is_refused():
    model = fakes.tiny("llama")
    with Forward(model, precision=FP32), pytest.raises(ValueError, match="packed attention takes one row"):
        model(input_ids=torch.tensor([[7, 8, 9]]), use_cache=False)


def test_a_mask_or_a_second_row_is_refused():
    row = row_of("all")
    views = [x.transpose(0, 1)[None] for x in random_qkv(row)]
    mask = torch.zeros(1, 1, len(row), len(row))
    with pytest.raises(ValueError, match="and no mask"):
        transformers_attention(torch.nn.Identity(), *views, mask, row=row)
    with pytest.raises(ValueError, match="packed attention takes one row"):
        transformers_attention(torch.nn.Identity(), *(torch.cat([x, x]) for x in views), None, row=row)


def test_what_one_asked_sequence_sees_is_not_taken_for_what_another_saw():
    """One line a strip, whose memory the next one gets."""
    kept: dict[object, torch.Tensor] = {}
    for last in range(40):
        part = strips.Part(slice(0, 2), slice(0, 48), 1, 2, 48, 0, torch.tensor([[last, last + 1]]))
        visible = (part.own + 1).int() if part.own is not None else None
        assert visible is not None
        strip = strips._Strip(part, 1, 1, slice(0, 1), slice(0, 2), 48, visible, kept)
        assert (strip.mask(torch.float32) == 0).sum(-1).tolist() == [[last + 1, last + 2]]
    assert not kept
