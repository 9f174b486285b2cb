"""Next-token logits of many sequences at once, of which some are read for the first time and others go on by a token.

Decoders built like Llama (Llama, Mistral, Qwen2) and GPT-2 run through a short forward pass of our own over the
model's own layers, adapters included. Linear layers see every real token and no padding, whether it belongs to a
prompt or to an answer; keys and values lie in one preallocated cache, where a sequence that is done makes room for the
next; the last block and the output head are computed at last positions only; what opens all prompts is read once.

`body_for` returns None for any other architecture. Costs the cache: 2 x blocks x key/value width x longest x slots.
Mixing prompts into the steps of others is that of Orca (Yu et al., OSDI 2022).

Names of tensors end in their shape: n tokens of this step, s sequences, H heads, G key/value heads, D head width,
m cached positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

GROW = 64
"""The cache grows by at least so many positions at a time."""
SPREAD = 0.5
"""Prompts that attend together: the shortest has at least this share of the longest one's tokens."""


@dataclass(frozen=True)
class _Fill:
    """Sequences read for the first time, in neighbouring slots, whose queries are padded to `longest`.

    gather: for each (sequence, query) its token, padding repeating one. scatter: for each token its place among those.
    """

    slots: slice
    tokens: slice
    longest: int
    gather: Tensor | None
    scatter: Tensor | None


@dataclass(frozen=True)
class _Step:
    """The layout of one step's tokens: a token of each sequence that goes on, then the prompts of the new ones.

    places_n: of keys and values in a cache seen as rows. last_s: each sequence's last token. seen_sm: what that token
    must not see, or None where all have one length. going: how many go on. behind: cached positions before the prompts.
    """

    positions_n: Tensor
    slots_n: Tensor
    last_s: Tensor
    hidden_sm: Tensor | None
    longest: int
    going: int
    fills: Sequence[_Fill]
    behind: int


class Decoder:
    """A model's blocks, and the keys and values of up to `slots` sequences. Sequences lie in slots 0 .. count - 1."""

    def __init__(self, body: "Body", slots: int, prefix: Sequence[int] = ()) -> None:
        self._body = body
        self._slots = slots
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._lengths: list[int] = []
        self.prefix = len(prefix)
        if prefix:
            self.prefix = 0
            self.step([], [prefix])
            self._prefix = [
                (k[0, :, : len(prefix)].clone(), v[0, :, : len(prefix)].clone())
                for k, v in zip(self._keys, self._values, strict=True)
            ]
            self.prefix = len(prefix)
            self.keep([])

    @property
    def count(self) -> int:
        """How many sequences it holds."""
        return len(self._lengths)

    def step(self, tokens: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (s, vocabulary) after the next token of each sequence held, and after each new prompt, in that order.

        tokens: one for each sequence held. prompts: whole, opening with the prefix; they take the slots behind.
        """
        new = [prompt[self.prefix :] for prompt in prompts]
        ids = [*tokens, *(i for prompt in new for i in prompt)]
        before = self._lengths
        after = [length + 1 for length in before] + [len(prompt) for prompt in prompts]
        self._make_room(max(after))
        for slot in range(len(before), len(after)):
            for layer, (k_GmD, v_GmD) in enumerate(self._prefix):  # noqa: N806
                self._keys[layer][slot, :, : self.prefix] = k_GmD
                self._values[layer][slot, :, : self.prefix] = v_GmD
        layout = self._layout(before, after, [len(prompt) for prompt in new])
        self._lengths = after
        body = self._body
        x_n = body.embed(torch.tensor(ids, device=body.device), layout.positions_n)
        turns = body.turns(layout.positions_n)
        for layer in range(body.depth):
            x_n = self._block(layer, x_n, layout, turns)
        return body.logits(x_n)

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Forget all sequences but those in `slots`. Returns which old slot each of the slots left now holds.

        The last ones move into the gaps, so that little is copied.
        """
        kept = set(slots)
        order = list(range(len(kept)))
        gaps = [slot for slot in order if slot not in kept]
        for gap, slot in zip(gaps, sorted(s for s in kept if s >= len(kept)), strict=True):
            order[gap] = slot
            length = self._lengths[slot]
            for cached in (*self._keys, *self._values):
                cached[gap, :, :length] = cached[slot, :, :length]
        self._lengths = [self._lengths[slot] for slot in order]
        return order

    def _make_room(self, longest: int) -> None:
        have = self._keys[0].shape[2] if self._keys else 0
        if longest <= have:
            return
        body = self._body
        room = min(body.context, max(longest + GROW, have * 5 // 4))
        for cached in (self._keys, self._values):
            for layer in range(body.depth):
                # zeros, not whatever lies there: a weight of 0 times NaN is NaN
                fresh = torch.zeros(self._slots, body.groups, room, body.width, dtype=body.dtype, device=body.device)
                if have:
                    fresh[: self.count, :, :have] = cached[layer][: self.count]
                    cached[layer] = fresh
                else:
                    cached.append(fresh)

    def _layout(self, before: Sequence[int], after: Sequence[int], sizes: Sequence[int]) -> _Step:
        device = self._body.device
        going = len(before)
        positions, slots, last = list(before), list(range(going)), list(range(going))
        for slot, size in enumerate(sizes, going):
            positions += range(self.prefix, self.prefix + size)
            slots += [slot] * size
            last.append(len(positions) - 1)
        longest = max(after)
        hidden = None
        if min(after) < longest:
            hidden = torch.arange(longest, device=device) >= torch.tensor(after, device=device)[:, None]
        return _Step(
            torch.tensor(positions, device=device),
            torch.tensor(slots, device=device),
            torch.tensor(last, device=device),
            hidden,
            longest,
            going,
            list(self._fills(going, sizes)),
            self.prefix,
        )

    def _fills(self, going: int, sizes: Sequence[int]) -> list[_Fill]:
        """Neighbours of similar length attend together."""
        device = self._body.device
        groups: list[list[int]] = []
        for size in sizes:
            if groups and SPREAD * max(*groups[-1], size) <= min(*groups[-1], size):
                groups[-1].append(size)
            else:
                groups.append([size])
        made, slot, token = [], going, going
        for group in groups:
            longest, total = max(group), sum(group)
            gather = scatter = None
            if min(group) < longest:
                starts = [sum(group[:i]) for i in range(len(group))]
                pairs = list(zip(starts, group, strict=True))
                rows = [start + min(i, size - 1) for start, size in pairs for i in range(longest)]
                places = [row * longest + i for row, size in enumerate(group) for i in range(size)]
                gather, scatter = torch.tensor(rows, device=device), torch.tensor(places, device=device)
            made.append(_Fill(slice(slot, slot + len(group)), slice(token, token + total), longest, gather, scatter))
            slot, token = slot + len(group), token + total
        return made

    def _block(self, layer: int, x_n: Tensor, step: _Step, turns: Any) -> Tensor:
        """One block. The last one gives (s, hidden): each sequence's last position."""
        body = self._body
        keys, values = self._keys[layer], self._values[layer]
        final = layer == body.depth - 1
        q, k, v = body.project(layer, x_n, turns, step.last_s if final and step.fills else None)
        keys[step.slots_n, :, step.positions_n] = k
        values[step.slots_n, :, step.positions_n] = v
        if final and step.fills:
            x_n = x_n.index_select(0, step.last_s)
        if final or not step.fills:
            out = self._one_query(q, keys, values, step.longest, step.hidden_sm)
        else:
            parts = []
            if step.going:
                hidden = None if step.hidden_sm is None else step.hidden_sm[: step.going]
                parts.append(self._one_query(q[: step.going], keys, values, step.longest, hidden))
            parts += [self._prompts(q[fill.tokens], keys, values, fill, step.behind) for fill in step.fills]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return body.finish_block(layer, x_n, out)

    def _one_query(self, q: Tensor, keys: Tensor, values: Tensor, longest: int, hidden: Tensor | None) -> Tensor:
        """One query a sequence, (s, H, D) to (s, H x D). Heads that share a key head go through one product with it."""
        count, heads, width = q.shape
        groups = keys.shape[1]
        k_xmD = keys[:count].flatten(0, 1)[:, :longest]  # noqa: N806
        v_xmD = values[:count].flatten(0, 1)[:, :longest]  # noqa: N806
        folded = (q * self._body.scale).view(count * groups, heads // groups, width)
        scores = torch.bmm(folded, k_xmD.transpose(1, 2))
        if hidden is not None:
            scores.view(count, heads, longest).masked_fill_(hidden[:, None], float("-inf"))
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        return torch.bmm(weights, v_xmD).view(count, heads * width)

    def _prompts(self, q_n: Tensor, keys: Tensor, values: Tensor, fill: _Fill, behind: int) -> Tensor:
        """Causal attention of prompts to what lies before them, and to themselves: (n, H, D) to (n, H x D)."""
        seen = behind + fill.longest
        k, v = keys[fill.slots, :, :seen], values[fill.slots, :, :seen]
        rows = q_n if fill.gather is None else q_n.index_select(0, fill.gather)
        q = rows.view(len(k), fill.longest, *q_n.shape[1:]).transpose(1, 2)
        mask = None
        if behind:
            future = torch.ones(fill.longest, seen, dtype=torch.bool, device=q.device).tril(behind)
            mask = future
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self._body.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        flat = out.transpose(1, 2).reshape(len(k) * fill.longest, -1)
        return flat if fill.scatter is None else flat.index_select(0, fill.scatter)


class Body:
    """What is used of an architecture."""

    depth: int
    groups: int
    width: int
    scale: float

    def __init__(self, model: Any, context: int) -> None:
        self._model = model
        self.context = context
        weight = model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device

    def embed(self, ids_n: Tensor, positions_n: Tensor) -> Tensor:
        """(n, hidden)."""
        raise NotImplementedError

    def turns(self, positions_n: Tensor) -> Any:
        """What every block needs to know of the positions."""
        raise NotImplementedError

    def project(self, layer: int, x_n: Tensor, turns: Any, last_s: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (n, H, D), of the positions in `last_s` alone where it is given, and keys and values (n, G, D)."""
        raise NotImplementedError

    def finish_block(self, layer: int, x_n: Tensor, seen_n: Tensor) -> Tensor:
        """A block's output from its input and what attention gave, (n, H x D)."""
        raise NotImplementedError

    def logits(self, x_s: Tensor) -> Tensor:
        """(s, vocabulary)."""
        raise NotImplementedError


class _Llama(Body):
    """RMSNorm, rotary positions, grouped keys, gated MLP."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__(model, context)
        config = model.config
        self._layers = list(model.model.layers)
        self.depth = len(self._layers)
        self.groups = int(config.num_key_value_heads)
        self.width = int(self._layers[0].self_attn.head_dim)
        self.scale = float(self._layers[0].self_attn.scaling)
        everywhere = torch.arange(context, device=self.device)[None]
        like = torch.empty((), dtype=self.dtype, device=self.device)
        cos, sin = model.model.rotary_emb(like, everywhere)
        half = self.width // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

    def embed(self, ids_n: Tensor, positions_n: Tensor) -> Tensor:  # noqa: ARG002
        out: Tensor = self._model.model.embed_tokens(ids_n)
        return out

    def turns(self, positions_n: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos.index_select(0, positions_n)[:, None], self._sin.index_select(0, positions_n)[:, None]

    def project(self, layer: int, x_n: Tensor, turns: Any, last_s: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        block = self._layers[layer]
        attention = block.self_attn
        normed = _rms(block.input_layernorm, x_n)
        k, v = attention.k_proj(normed), attention.v_proj(normed)
        k = self._turned(k.view(len(k), -1, self.width), turns)
        if last_s is not None:
            normed = normed.index_select(0, last_s)
            turns = tuple(x.index_select(0, last_s) for x in turns)
        q = attention.q_proj(normed)
        return self._turned(q.view(len(q), -1, self.width), turns), k, v.view(len(v), -1, self.width)

    def _turned(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """x cos + rotate_half(x) sin; the sign of the half is in the sines."""
        cos, sin = turns
        return torch.addcmul(x * cos, x.roll(self.width // 2, -1), sin)

    def finish_block(self, layer: int, x_n: Tensor, seen_n: Tensor) -> Tensor:
        block = self._layers[layer]
        x_n = x_n + block.self_attn.o_proj(seen_n)
        normed = _rms(block.post_attention_layernorm, x_n)
        gate = F.silu(block.mlp.gate_proj(normed)).mul_(block.mlp.up_proj(normed))
        out: Tensor = x_n + block.mlp.down_proj(gate)
        return out

    def logits(self, x_s: Tensor) -> Tensor:
        out: Tensor = self._model.lm_head(_rms(self._model.model.norm, x_s))
        return out


class _Gpt2(Body):
    """LayerNorm, learned positions, one key head a head."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__(model, context)
        self._inner = model.transformer
        self._layers = list(self._inner.h)
        self.depth = len(self._layers)
        self.groups = int(model.config.n_head)
        self.width = int(model.config.n_embd) // self.groups
        self.scale = self.width**-0.5

    def embed(self, ids_n: Tensor, positions_n: Tensor) -> Tensor:
        out: Tensor = self._inner.wte(ids_n) + self._inner.wpe(positions_n)
        return out

    def turns(self, positions_n: Tensor) -> None:  # noqa: ARG002
        return None

    def project(self, layer: int, x_n: Tensor, turns: Any, last_s: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        block = self._layers[layer]
        q, k, v = (x.view(len(x), self.groups, self.width) for x in block.attn.c_attn(block.ln_1(x_n)).chunk(3, dim=-1))
        return q if last_s is None else q.index_select(0, last_s), k, v

    def finish_block(self, layer: int, x_n: Tensor, seen_n: Tensor) -> Tensor:
        block = self._layers[layer]
        x_n = x_n + block.attn.c_proj(seen_n)
        mlp = block.mlp
        out: Tensor = x_n + mlp.c_proj(mlp.act(mlp.c_fc(block.ln_2(x_n))))
        return out

    def logits(self, x_s: Tensor) -> Tensor:
        out: Tensor = self._model.lm_head(self._inner.ln_f(x_s))
        return out


def _rms(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def body_for(model: Any, context: int) -> Body | None:
    """The blocks of a model in evaluation mode, or None where this does not know the architecture."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    config, name = plain.config, type(plain).__name__
    if name == "GPT2LMHeadModel":
        usual = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
        return _Gpt2(plain, context) if usual and not config.add_cross_attention else None
    if name not in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"):
        return None
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    fixed = rotation in ("default", "linear", "llama3", "yarn")  # the others turn by the length of what is read
    return _Llama(plain, context) if config.hidden_act == "silu" and fixed and not windowed else None
