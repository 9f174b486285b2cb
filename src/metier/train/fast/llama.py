"""Decoders built like Llama: RMSNorm, rotary positions, grouped keys, gated MLP (Llama, Mistral, Qwen2)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.models.new_rows import embedded
from metier.models.shape import plain_name
from metier.train.attention import attend
from metier.train.fast.linear import Group
from metier.train.fast.ops import Apply, Identity, RmsNorm, Rotate, SwiGlu
from metier.train.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fallback = Callable[[nn.Module, Tensor], Tensor]


def fits(model: "PreTrainedModel") -> bool:
    """Whether the model is one of those, without sliding windows or another activation."""
    config = model.config
    types = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return plain_name(model) in types and config.hidden_act == "silu" and not windowed


class Body:
    """The model below its output head. dtype: of the products."""

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype, fallback: Fallback):
        inner = model.base_model
        self.blocks = [Block(layer, dtype, fallback) for layer in inner.layers]
        self._inner = inner
        self._dtype = dtype

    def embed(self, row: Row) -> Tensor:
        """(N, hidden)."""
        return embedded(self._inner.embed_tokens, row.ids)

    def context(self, row: Row) -> tuple[Tensor, Tensor]:
        """What every block needs to know of the row: the rotations, (N, head_dim) each."""
        like = torch.empty((), dtype=self._dtype, device=row.ids.device)
        cos, sin = self._inner.rotary_emb(like, row.positions[None])
        return cos[0], sin[0]

    def finish(self, x: Tensor) -> Tensor:
        """The last norm."""
        norm = self._inner.norm
        out: Tensor = Apply.apply(RmsNorm(norm.variance_epsilon, self._dtype), x, norm.weight)  # type: ignore[no-untyped-call]
        return out


class Block:
    """One decoder layer."""

    def __init__(self, layer: Any, dtype: torch.dtype, fallback: Fallback):
        attention, mlp = layer.self_attn, layer.mlp
        self.module: nn.Module = layer
        self._layer = layer
        first = RmsNorm(layer.input_layernorm.variance_epsilon, dtype)
        second = RmsNorm(layer.post_attention_layernorm.variance_epsilon, dtype)
        # the widest first: what it joins, the others take parts of
        self._qkv = Group(first, [attention.q_proj, attention.k_proj, attention.v_proj], fallback)
        self._q = Group(first, [attention.q_proj], fallback)
        self._kv = Group(first, [attention.k_proj, attention.v_proj], fallback)
        self._o = Group(Identity(), [attention.o_proj], fallback)
        self._in = Group(second, [mlp.gate_proj, mlp.up_proj], fallback)
        self._out = Group(SwiGlu(), [mlp.down_proj], fallback)

    def __call__(self, x: Tensor, row: Row, context: tuple[Tensor, Tensor], only_asked: bool = False) -> Tensor:
        """x (N, hidden) to (N, hidden), or with `only_asked` to (Q, hidden), keys and values still from all."""
        cos, sin = context
        attention, width = self._layer.self_attn, self._layer.self_attn.head_dim
        weight = self._layer.input_layernorm.weight
        if only_asked:
            k, v = self._kv(x, weight)
            x = x.index_select(0, row.asked)
            (q,) = self._q(x, weight)
            q_cos, q_sin = cos.index_select(0, row.asked), sin.index_select(0, row.asked)
        else:
            q, k, v = self._qkv(x, weight)
            q_cos, q_sin = cos, sin
        q = Rotate.apply(q.view(len(q), -1, width), q_cos, q_sin)  # type: ignore[no-untyped-call]
        k = Rotate.apply(k.view(len(k), -1, width), cos, sin)  # type: ignore[no-untyped-call]
        drop = attention.attention_dropout if attention.training else 0.0
        seen = attend(
            q, k, v.view(len(v), -1, width), row, scale=attention.scaling, dropout=drop, only_asked=only_asked
        )
        x = x + self._o(seen)[0]
        gate, up = self._in(x, self._layer.post_attention_layernorm.weight)
        return x + self._out(gate, up)[0]
