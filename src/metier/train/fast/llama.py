"""Decoders built like Llama: RMSNorm, rotary positions, grouped keys, gated MLP (Llama, Mistral, Qwen2)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.train.attention import attend
from metier.train.fast.linear import Group
from metier.train.fast.ops import RmsNorm, Rotate, SwiGlu
from metier.train.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fallback = Callable[[nn.Module, Tensor], Tensor]


def fits(model: "PreTrainedModel") -> bool:
    """Whether the model is one of those, without sliding windows or another activation."""
    config = model.config
    types = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return type(model).__name__ in types and config.hidden_act == "silu" and not windowed


class Body:
    """The model below its output head. dtype: of the products."""

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype, fallback: Fallback):
        inner = model.base_model
        self.blocks = [Block(layer, dtype, fallback) for layer in inner.layers]
        self._inner = inner
        self._dtype = dtype

    def embed(self, row: Row) -> Tensor:
        """(N, hidden)."""
        out: Tensor = self._inner.embed_tokens(row.ids)
        return out

    def context(self, row: Row) -> tuple[Tensor, Tensor]:
        """What every block needs to know of the row: the rotations, (N, head_dim) each."""
        like = torch.empty((), dtype=self._dtype, device=row.ids.device)
        cos, sin = self._inner.rotary_emb(like, row.positions[None])
        return cos[0], sin[0]

    def finish(self, x: Tensor) -> Tensor:
        """The last norm."""
        return _norm(self._inner.norm, x, self._dtype)


class Block:
    """One decoder layer."""

    def __init__(self, layer: Any, dtype: torch.dtype, fallback: Fallback):
        attention, mlp = layer.self_attn, layer.mlp
        self.module: nn.Module = layer
        self._dtype = dtype
        self._attention = attention
        self._q = Group([attention.q_proj], fallback)
        self._qkv = Group([attention.q_proj, attention.k_proj, attention.v_proj], fallback)
        self._kv = Group([attention.k_proj, attention.v_proj], fallback)
        self._o = Group([attention.o_proj], fallback)
        self._in = Group([mlp.gate_proj, mlp.up_proj], fallback)
        self._out = Group([mlp.down_proj], fallback)

    def __call__(self, x: Tensor, row: Row, context: tuple[Tensor, Tensor], only_sources: bool = False) -> Tensor:
        """x (N, hidden) to (N, hidden), or with `only_sources` to (T, hidden), keys and values still from all."""
        cos, sin = context
        attention, width = self._attention, self._attention.head_dim
        normed = _norm(self.module.input_layernorm, x, self._dtype)
        if only_sources:
            k, v = self._kv(normed)
            (q,) = self._q(normed.index_select(0, row.sources))
            x = x.index_select(0, row.sources)
            q_cos, q_sin = cos.index_select(0, row.sources), sin.index_select(0, row.sources)
        else:
            q, k, v = self._qkv(normed)
            q_cos, q_sin = cos, sin
        q = Rotate.apply(q.view(len(q), -1, width), q_cos, q_sin)  # type: ignore[no-untyped-call]
        k = Rotate.apply(k.view(len(k), -1, width), cos, sin)  # type: ignore[no-untyped-call]
        drop = attention.attention_dropout if attention.training else 0.0
        seen = attend(
            q, k, v.view(len(v), -1, width), row, scale=attention.scaling, dropout=drop, only_sources=only_sources
        )
        x = x + self._o(seen)[0]
        gate, up = self._in(_norm(self.module.post_attention_layernorm, x, self._dtype))
        return x + self._out(SwiGlu.apply(gate, up))[0]  # type: ignore[no-untyped-call]


def _norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    out: Tensor = RmsNorm.apply(x, module.weight, module.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return out
