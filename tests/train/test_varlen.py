"""Attention through a kernel for many lengths: its place is taken by a stand-in with the same signature."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactly import FP32, assert_exact, pieces_of, stirred, without_dropout
from test_attention import SCALE, random_qkv, row_of
from torch import Tensor

import fakes
from metier.models.adapter import LoraSettings, add_lora
from metier.train import attention, varlen
from metier.train.batches import shared_prefix
from metier.train.forward import Forward


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's kernel is said to do, sequence by sequence, in its own lay-out: (tokens, heads, width)."""
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (len(query), len(key)) == (cu_seq_q[-1], cu_seq_k[-1])
    sizes = [cu.diff().tolist() for cu in (cu_seq_q, cu_seq_k)]
    assert (max(sizes[0]), max(sizes[1])) == (max_q, max_k)
    assert sizes[0] == sizes[1], "with fewer queries than keys it would matter on which side they are lined up"
    outs = [
        F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, scale=scale, enable_gqa=enable_gqa
        )[0].transpose(0, 1)
        for q, k, v in zip(*(x.split(sizes[0]) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The stand-in takes the kernel's place on the CPU; how many tokens each call had."""
    seen: list[int] = []

    def counted(query: Tensor, *rest: Any, enable_gqa: bool = False, **settings: Any) -> Tensor:
        seen.append(len(query))
        return stand_in(query, *rest, enable_gqa=enable_gqa, **settings)

    monkeypatch.setattr(varlen, "fits", lambda q, dropout: not dropout)
    monkeypatch.setattr(varlen, "kernel", lambda: counted)
    yield seen
    assert seen


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("only_asked", [False, True])
@pytest.mark.parametrize("data", ["all", "mixed", "sparse"])
def test_it_attends_as_the_buckets_do(calls: list[int], data: str, only_asked: bool, groups: int):
    row = row_of(data)
    qkv = random_qkv(row, groups)
    toward = torch.randn(len(row.asked if only_asked else row), qkv[0][0].numel())

    def attended(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        q = qkv[0].index_select(0, row.asked) if only_asked else qkv[0]
        out = function(q, *qkv[1:], row, scale=SCALE, only_asked=only_asked)
        real = slice(row.parts[-1][2]) if not only_asked else slice(None)  # what the filler sees is nobody's business
        return out[real], *torch.autograd.grad((out[real] * toward[real]).sum(), qkv)

    found = attended(varlen.attend)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(varlen, "fits", lambda *_: False)
        wanted = attended(attention.attend)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data", ["all", "sft", "sparse"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_and_gradients_are_the_plain_ones(calls: list[int], kind: str, data: str):
    model = without_dropout(fakes.tiny(kind).train())
    stirred(add_lora(model, LoraSettings(r=4)))
    pieces = pieces_of(data)
    assert_exact(Forward(model, precision=FP32, prefix=shared_prefix(pieces)), pieces)


def test_a_row_without_a_prefix_is_taken_as_it_lies():
    assert row_of("all").lanes.sources is None
    row = row_of("sft")
    assert row.lanes.sources is not None
    assert row.lanes.longest == max(row.prefix, max(len(piece) for piece, _, _ in row.parts))


def test_torch_has_a_kernel_with_what_is_needed():
    found = varlen.kernel()
    assert found is not None
    wanted = inspect.signature(stand_in).parameters.keys() - {"enable_gqa"}  # torch 2.11 takes groups unasked
    assert wanted <= inspect.signature(found).parameters.keys()


def test_a_cpu_has_none():
    assert not varlen.fits(torch.zeros(4, 2, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.parametrize(
    ("dtype", "width", "dropout", "capability", "expected"),
    [
        (torch.bfloat16, 64, 0.0, (8, 0), True),
        (torch.float16, 256, 0.0, (9, 0), True),
        (torch.float32, 64, 0.0, (8, 0), False),
        (torch.bfloat16, 264, 0.0, (8, 0), False),
        (torch.bfloat16, 60, 0.0, (8, 0), False),
        (torch.bfloat16, 64, 0.1, (8, 0), False),
        (torch.float16, 64, 0.0, (7, 5), False),
    ],
)
def test_which_gpus_and_types_it_takes(
    dtype: torch.dtype,
    width: int,
    dropout: float,
    capability: tuple[int, int],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    varlen.runs_on.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    class OnGpu:
        device = torch.device("cuda", 0)
        shape = (4, 2, width)

    q: Any = OnGpu()
    q.dtype = dtype
    assert varlen.fits(q, dropout) is expected
    varlen.runs_on.cache_clear()


@pytest.mark.parametrize("data", ["all", "sft"])
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("kind", ["llama-untied", "gpt2"])
def test_a_micro_step_reads_no_value_back(kind: str, mode: str, data: str):
    """On the meta device there are no values: whatever waited for one would raise."""
    pieces = pieces_of(data)
    model = without_dropout(fakes.tiny(kind).train()).to("meta")
    if mode == "lora":
        add_lora(model, LoraSettings(r=4))
    with Forward(model, precision=FP32, prefix=shared_prefix(pieces), label_smoothing=0.1) as forward:
        loss = forward.backward(pieces, scale=0.5)
    assert loss.device.type == "meta"
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)
