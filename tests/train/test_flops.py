"""The arithmetic counted is that of the matrix products that a run without recomputing makes."""

import pytest
import torch
from exactly import FP32, packed, pieces_of, without_dropout
from torch.utils.flop_counter import FlopCounterMode

import fakes
from metier.models.adapter import LoraSettings, add_lora
from metier.models.shape import freeze_all_but, output_head
from metier.train.batches import Piece, shared_prefix, size_of
from metier.train.flops import count
from metier.train.forward import Forward
from metier.train.prefix_cache import PrefixCache, room_for
from metier.train.rows import pack

LENGTHS = (16, 24, 24)  # 64 tokens: a row without filler
ADDED = {
    torch.ops.aten.addmm_: lambda into, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
}


def pairs(pieces: list[Piece]) -> int:
    """Pairs of a query and a key for pieces on their own: 1 + 2 + ... of each."""
    return sum(len(piece) * (len(piece) + 1) // 2 for piece in pieces)


def source_pairs(pieces: list[Piece]) -> int:
    return sum(int(index) for piece in pieces for index in piece.targets.nonzero()[0])


def attention(pieces: list[Piece], backward: tuple[int, int]) -> float:
    """Of two blocks of 4 heads of 8, the last at sources only. backward: 3 where a block learns, else 1."""
    return 4 * 4 * 8 * (pairs(pieces) * backward[0] + source_pairs(pieces) * backward[1])


def products(forward: Forward, pieces: list[Piece]) -> float:
    """Operations of the linear layers' products as torch sees them; attention's are batched products."""
    with FlopCounterMode(display=False, custom_mapping=ADDED) as counter:
        packed(forward, pieces)
    found = counter.get_flop_counts()["Global"]
    return sum(n for op, n in found.items() if "bmm" not in str(op))


@pytest.mark.parametrize("mode", ["full", "last block", "lora", "lora on the head"])
@pytest.mark.parametrize("kind", ["llama-untied", "gpt2"])
def test_linear_layers_and_head(kind: str, mode: str):
    model = without_dropout(fakes.tiny(kind).train())
    learn = (3, 3)
    if mode == "last block":
        freeze_all_but(model, 1, head=False)
        learn = (1, 3)
    elif mode == "lora":
        add_lora(model, LoraSettings(r=8))
    elif mode == "lora on the head":
        if kind == "gpt2":
            pytest.skip("its head is tied")
        add_lora(model, LoraSettings(r=8, targets=("lm_head", "q_proj", "k_proj", "v_proj")))
    pieces = pieces_of("sparse", LENGTHS)
    forward = Forward(model, precision=FP32)
    assert forward.flops(pieces) - attention(pieces, learn) == pytest.approx(products(forward, pieces), rel=1e-9)


def test_only_the_head():
    model = fakes.tiny("llama-untied")
    model.requires_grad_(False)
    output_head(model).requires_grad_(True)
    pieces = pieces_of("sparse", LENGTHS)
    forward = Forward(model, precision=FP32)
    targets = sum(piece.trained for piece in pieces)
    cached = Forward(model, precision=FP32, cache=PrefixCache(room_for(pieces, None), 32, torch.float32))
    assert cached.flops(pieces) == 2 * 2 * targets * output_head(model).weight.numel()
    blocks = 2 * size_of(pieces) * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3)
    assert forward.flops(pieces) > cached.flops(pieces) + blocks  # and the last one's rest at targets


def test_a_shared_prefix_is_counted_once():
    model = fakes.tiny("llama")
    pieces = pieces_of("sft")
    prefix = shared_prefix(pieces)
    whole, shared = (count(model, pack(pieces, p), frozen=0, cached=False) for p in (None, prefix))
    spared = (len(pieces) - 1) * len(prefix)
    first = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3) * 3
    assert whole - shared >= spared * first


def test_the_filler_is_not_counted():
    model = fakes.tiny("llama").requires_grad_(False)
    pieces = pieces_of("sparse", (33,))
    row = pack(pieces)
    assert len(row) > 33
    targets, keys, others = pieces[0].trained, 32 * 16 * 2, 32 * 32 * 2 + 32 * 64 * 3
    linear = 2 * (33 * (keys + others) + 33 * keys + targets * others)  # both blocks frozen
    head = 2 * targets * 32 * model.config.vocab_size
    assert count(model, row, frozen=2, cached=False) == linear + head + attention(pieces, (1, 1))
