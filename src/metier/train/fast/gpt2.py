"""GPT-2: LayerNorm, learned positions, one product for queries, keys and values, GELU."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.models.new_rows import embedded
from metier.models.shape import plain_name
from metier.train.attention import attend
from metier.train.fast.linear import Group
from metier.train.fast.ops import Apply, Gelu, Identity, LayerNorm, dropout
from metier.train.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fallback = Callable[[nn.Module, Tensor], Tensor]


def fits(model: "PreTrainedModel") -> bool:
    """Whether the model is a GPT-2 with its usual activation."""
    config = model.config
    plain = config.model_type == "gpt2" and not config.add_cross_attention and not config.reorder_and_upcast_attn
    return plain_name(model) == "GPT2LMHeadModel" and plain and config.activation_function == "gelu_new"


class Body:
    """The model below its output head. dtype: of the products."""

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype, fallback: Fallback):
        inner = model.base_model
        self.blocks = [Block(block, dtype, fallback) for block in inner.h]
        self._inner = inner
        self._dtype = dtype

    def embed(self, row: Row) -> Tensor:
        """(N, hidden)."""
        inner = self._inner
        x = embedded(inner.wte, row.ids) + inner.wpe(row.positions)
        return dropout(x, inner.drop.p if inner.training else 0.0)

    def context(self, row: Row) -> tuple[()]:  # noqa: ARG002
        """What every block needs to know of the row: nothing."""
        return ()

    def finish(self, x: Tensor) -> Tensor:
        """The last norm."""
        norm = self._inner.ln_f
        out: Tensor = Apply.apply(LayerNorm(norm.eps, self._dtype), x, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
        return out


class Block:
    """One decoder layer."""

    def __init__(self, block: Any, dtype: torch.dtype, fallback: Fallback):
        self.module: nn.Module = block
        self._block = block
        self._qkv = Group(LayerNorm(block.ln_1.eps, dtype), [block.attn.c_attn], fallback)
        self._o = Group(Identity(), [block.attn.c_proj], fallback)
        self._in = Group(LayerNorm(block.ln_2.eps, dtype), [block.mlp.c_fc], fallback)
        self._out = Group(Gelu(), [block.mlp.c_proj], fallback)

    def __call__(self, x: Tensor, row: Row, context: tuple[()], only_asked: bool = False) -> Tensor:  # noqa: ARG002
        """x (N, hidden) to (N, hidden), or with `only_asked` to (Q, hidden), keys and values still from all."""
        attention, block = self._block.attn, self._block
        (projected,) = self._qkv(x, block.ln_1.weight, block.ln_1.bias)
        heads = (-1, attention.num_heads, attention.head_dim)
        q, k, v = (part.view(heads) for part in projected.chunk(3, dim=1))
        if only_asked:
            q, x = q.index_select(0, row.asked), x.index_select(0, row.asked)
        drop = attention.attn_dropout.p if attention.training else 0.0
        seen = attend(q, k, v, row, scale=attention.scaling, dropout=drop, only_asked=only_asked)
        residual = attention.resid_dropout.p if attention.training else 0.0
        x = x + dropout(self._o(seen)[0], residual)
        (inner,) = self._in(x, block.ln_2.weight, block.ln_2.bias)
        return x + dropout(self._out(inner)[0], residual)
