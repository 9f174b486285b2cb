"""Many sequences in one row, each attending to itself alone: exact, with no N x N mask and no padded linear layer.

The row goes through embeddings, norms and linear layers as (1, tokens, hidden). Attention alone sees the sequences
apart: queries, keys and values are gathered into (sequences, longest, heads, head_dim), in buckets of similar length,
one causal attention call a bucket, and scattered back. Padding stands at the right, so causality hides it from every
real token. The loss needs the vocabulary's scores only where there is a target: hidden states are selected there, and
the output head and cross entropy run in chunks, each differentiated at once, so full logits never exist.

Refuses models whose own forward pass computes something else (sliding windows, scaled or capped logits, attention that
ignores transformers' interface): `check_exact` compares the two on a few tokens. Costs, beside the arithmetic, a copy
of queries, keys, values and outputs in each block, which blocks of full length are spared.

Shapes: N tokens of the row, H heads, G key/value heads, D head_dim, S sequences of a bucket, L their longest,
T targets.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from metier.core.errors import ModelError
from metier.train.batches import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "metier_packed"
BUCKET_WASTE = 0.25
"""A bucket ends where the next sequence is that share shorter than the bucket's longest."""
WHOLE = 128
"""Rows are filled up to a multiple of it: to prepare for a new shape costs a CPU's matrix kernels a fifth of a step."""
SHORT = 384
"""On a CPU, sequences up to this many tokens attend in the textbook form, which takes about half of the fused
kernel's time there, forward and backward; the L x L scores of a bucket stay small."""
LOGITS = 2**20
"""How many scores one chunk of the output head makes: 4 MB in float32, which stays in a core's cache."""

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the sequences of a row lie. shapes: (S, L) of each bucket. sources: for each place of the buckets, laid end
    to end, the token that stands there. places: for each token, its place. straight: both are 0, 1, 2 ...
    """

    shapes: tuple[tuple[int, int], ...]
    sources: Tensor
    places: Tensor
    straight: bool


@dataclass(frozen=True, eq=False)
class Row:
    """A packed row. ids, positions: (1, N). sources: (T,), the tokens whose next is a target. targets: (T,)."""

    ids: Tensor
    positions: Tensor
    layout: Layout
    sources: Tensor
    targets: Tensor


def pack(pieces: Sequence[Piece]) -> Row:
    """Lay pieces end to end, and behind them a filler without targets that makes the row a multiple of WHOLE tokens."""
    filler = Piece("", np.zeros(-sum(map(len, pieces)) % WHOLE, np.int32), np.zeros(0, np.bool_))
    lengths = [len(piece) for piece in (*pieces, filler) if len(piece)]
    ids = torch.from_numpy(np.concatenate([piece.ids for piece in (*pieces, filler)]).astype(np.int64))
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
    wanted = np.flatnonzero(np.concatenate([piece.targets for piece in pieces]))
    places = torch.from_numpy(wanted)
    return Row(ids[None], positions[None], make_layout(lengths), places - 1, ids[places])


def make_layout(lengths: Sequence[int]) -> Layout:
    """Sort sequences of these lengths into buckets."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal lengths keep their order
    buckets: list[list[int]] = []
    for index in order:
        if not buckets or lengths[index] < lengths[buckets[-1][0]] * (1 - BUCKET_WASTE):
            buckets.append([])
        buckets[-1].append(index)
    shapes, sources = [], []
    places = np.empty(starts[-1], np.int64)
    offset = 0
    for bucket in buckets:
        longest = lengths[bucket[0]]
        column = np.arange(longest)
        first, size = starts[bucket][:, None], np.asarray([lengths[i] for i in bucket])[:, None]
        source = first + np.minimum(column, size - 1)  # padding repeats the last token: finite, and never attended to
        place = offset + np.arange(source.size).reshape(source.shape)
        real = column < size
        places[source[real]] = place[real]
        shapes.append((len(bucket), longest))
        sources.append(source.reshape(-1))
        offset += source.size
    source = np.concatenate(sources)
    straight = len(source) == len(places) and bool((places == np.arange(len(places))).all())
    return Layout(tuple(shapes), torch.from_numpy(source), torch.from_numpy(places), straight)


class _Gather(torch.autograd.Function):
    """(N, heads, D) to (places, heads, D). Padding repeats a token but passes no gradient to it: no token
    attends to it, and `_Scatter` gives its own queries none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.sources)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.layout.places), None  # type: ignore[attr-defined]


class _Scatter(torch.autograd.Function):
    """(places, heads, D) to (N, heads, D), leaving out the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.places)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        layout: Layout = ctx.layout  # type: ignore[attr-defined]
        padded = grads[0].new_zeros(len(layout.sources), *grads[0].shape[1:])
        return padded.index_copy_(0, layout.places, grads[0]), None


def attend(
    module: nn.Module,  # noqa: ARG001 - transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row: query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D).

    Raises ValueError without a layout or with a mask: then tokens would see what they must not.
    """
    if layout is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention takes one row with its layout, and no mask")
    sizes = [count * longest for count, longest in layout.shapes]
    parts = [torch.split(_gathered(x, layout), sizes) for x in (query, key, value)]
    done = []
    for (count, longest), q, k, v in zip(layout.shapes, *parts, strict=True):
        q_SHLD, k_SGLD, v_SGLD = (x.view(count, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))  # noqa: N806
        attention = _scores_first if longest <= SHORT and q.device.type == "cpu" else _fused
        out_SHLD = attention(q_SHLD, k_SGLD, v_SGLD, scaling, dropout)  # noqa: N806
        done.append(out_SHLD.transpose(1, 2).reshape(count * longest, *q.shape[1:]))
    flat = done[0] if len(done) == 1 else torch.cat(done)
    out: Tensor = flat if layout.straight else _Scatter.apply(flat, layout)  # type: ignore[no-untyped-call]
    return out[None], None


def _fused(q_SHLD: Tensor, k_SGLD: Tensor, v_SGLD: Tensor, scaling: float | None, dropout: float) -> Tensor:  # noqa: N803
    """torch's own kernel: no L x L scores in memory."""
    out: Tensor = F.scaled_dot_product_attention(
        q_SHLD,
        k_SGLD,
        v_SGLD,
        is_causal=True,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=q_SHLD.shape[1] != k_SGLD.shape[1],
    )
    return out


def _scores_first(q_SHLD: Tensor, k_SGLD: Tensor, v_SGLD: Tensor, scaling: float | None, dropout: float) -> Tensor:  # noqa: N803
    """The textbook form, which keeps the scores. Queries that share a key head go through one product with it."""
    s, h, length, d = q_SHLD.shape
    g = k_SGLD.shape[1]
    shared_queries = q_SHLD.reshape(s * g, (h // g) * length, d)
    keys, values = k_SGLD.reshape(s * g, length, d), v_SGLD.reshape(s * g, length, d)
    scores = torch.bmm(shared_queries * (d**-0.5 if scaling is None else scaling), keys.transpose(1, 2))
    future = torch.ones(length, length, dtype=torch.bool).triu_(1).repeat(h // g, 1)
    weights = scores.float().masked_fill_(future, float("-inf")).softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights.to(values.dtype), values).view(s, h, length, d)


def _gathered(x: Tensor, layout: Layout) -> Tensor:
    flat = x[0].transpose(0, 1)
    gathered: Tensor = flat if layout.straight else _Gather.apply(flat, layout)  # type: ignore[no-untyped-call]
    return gathered


@contextmanager
def packed_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Within it, the model attends through `attend`. model: a plain transformers model, or the one below an adapter."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def hidden_states(model: "PreTrainedModel", row: Row) -> Tensor:
    """The body's output where the next token is a target: (T, hidden)."""
    out = model.base_model(
        input_ids=row.ids, position_ids=row.positions, attention_mask=None, use_cache=False, layout=row.layout
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden if len(row.sources) == hidden.shape[0] else hidden.index_select(0, row.sources)


def chunks(model: "PreTrainedModel", hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and targets in chunks of about LOGITS scores, at least 128 targets so that products stay fast."""
    size = max(128, LOGITS // int(model.config.vocab_size))
    return zip(torch.split(hidden, size), torch.split(targets, size), strict=True)


def backward(
    model: "PreTrainedModel",
    row: Row,
    *,
    scale: float,
    autocast: Autocast = nullcontext,
) -> Tensor:
    """Add to every trained parameter's gradient that of `scale` x the row's summed loss. Returns the sum, unscaled.

    The head's part is differentiated chunk by chunk down to the hidden states, and theirs in one go to the rest.
    """
    with autocast():
        hidden = hidden_states(model, row)
    leaf = hidden.detach().requires_grad_(hidden.requires_grad)
    total = torch.zeros((), dtype=torch.float32)
    head = model.get_output_embeddings()
    with autocast():
        for h, t in chunks(model, leaf, row.targets):
            loss = F.cross_entropy(head(h).float(), t, reduction="sum")
            torch.autograd.backward(loss * scale)
            total += loss.detach()
    if hidden.requires_grad:
        torch.autograd.backward(hidden, leaf.grad)
    return total


def summed_loss(model: "PreTrainedModel", row: Row, *, autocast: Autocast = nullcontext) -> Tensor:
    """The row's summed loss in nats, without gradients."""
    total = torch.zeros((), dtype=torch.float32)
    head = model.get_output_embeddings()
    with torch.no_grad(), autocast():
        for h, t in chunks(model, hidden_states(model, row), row.targets):
            total += F.cross_entropy(head(h).float(), t, reduction="sum")
    return total


def check_exact(model: "PreTrainedModel", pieces: Sequence[Piece], *, tokens: int = 64) -> None:
    """Compare the packed loss with the model's own on two short pieces. Raises ModelError where they differ.

    The model must be float32, in evaluation mode and inside `packed_attention`.
    """
    few = [piece.part(0, tokens) for piece in pieces[:2]]
    packed = summed_loss(model, pack([Piece.of(p.id, p.ids.tolist()) for p in few])).item()
    model.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            rows = [torch.from_numpy(piece.ids.astype(np.int64))[None] for piece in few]
            scores = [model(input_ids=row, use_cache=False).logits[0, :-1].float() for row in rows]
    finally:
        model.set_attn_implementation(ATTENTION)
    plain = sum(F.cross_entropy(s, r[0, 1:], reduction="sum").item() for s, r in zip(scores, rows, strict=True))
    if not abs(packed - plain) <= 1e-3 * max(1.0, abs(plain)):
        raise ModelError(
            f"this architecture cannot be trained packed: its own loss is {plain:.4f} where packing gives {packed:.4f}",
            value=model.config.model_type,
            cure="use a decoder built like Llama or GPT-2, without sliding windows or scaled logits",
        )
