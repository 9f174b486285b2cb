"""Log-likelihood of several continuations of each context (a question's labels) with a loaded transformers model.

A context is computed once for all its continuations, and what opens all contexts (instructions, examples) once a row;
continuations that begin alike share their beginning. Contexts lie behind one another in a row, without padding and
without seeing each other. Logits are made only where a continuation's token is predicted, and in the last block of
known architectures the query, the output projection and the MLP are computed there alone.

Each result equals that of one plain forward pass of the one string, to rounding (float32: 1e-5). Before anything is
computed the first contexts are read both ways; an architecture that packing does not suit (sliding windows, ALiBi) is
read plainly, string by string, which costs the number of labels times as much.

Refuses: an empty context, an empty continuation, and what is longer than the model's context.
Shapes: N positions of a row, H heads, G key/value heads, D head_dim, L queries, K keys.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from metier.core.errors import DataError, Interrupted
from metier.engine.interface import Share
from metier.models.load import Loaded
from metier.models.shape import blocks

ATTENTION = "metier_forks"
ROW_TOKENS = 2048
"""About how many positions are read at once. Longer rows gain nothing on a CPU and take more memory."""
WORTH_SHARING = 16
"""A common beginning of fewer tokens is not worth keys of its own."""
PROBE = 12
"""Tokens of each context that packing is tried on, once for a model in memory."""
TOLERANCE = 1e-3
"""Difference in nats between packed and plain up to which packing is trusted; rounding makes about 1e-5."""
POSITIONWISE = {
    "llama": ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp"),
    "mistral": ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp"),
    "qwen2": ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp"),
    "gpt2": ("attn.c_proj", "ln_2", "mlp"),
}
"""Parts of a block that work on each position alone, by the configuration's model type."""

_TRUSTED: "WeakSet[nn.Module]" = WeakSet()
"""Models in memory on which packing was tried."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fork:
    """Token ids of a context and of each of its continuations."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Positions that a model reads for the longest continuation: its last token is only ever predicted."""
        return len(self.context) + max(map(len, self.continuations)) - 1

    def cut(self, width: int) -> "Fork":
        """The same with the context's beginning left out, so that `width` positions suffice."""
        return Fork(self.context[max(0, self.width - width) :], self.continuations)


def fork_logprobs(
    loaded: Loaded,
    forks: Sequence[Fork],
    *,
    share: Share = (0, 1),
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[float]]:
    """The log-likelihood in nats of every continuation of every fork, after its context.

    share: of the parts that are read at a time; forks of the others get nothing, and are read elsewhere. on_progress:
    told the forks read. Raises DataError for what is empty or too long, Interrupted.
    """
    for index, fork in enumerate(forks):
        _check(loaded, index, fork)
    if not forks:
        return []
    reader = _Reader(loaded, len(_common([fork.context for fork in forks])))
    found: list[list[float]] = []
    with reader.ready(forks) as read:
        for number, part in enumerate(_parts(forks, reader.prefix)):
            if number % share[1] != share[0]:
                found += [[] for _ in part]
                continue
            if should_stop is not None and should_stop():
                raise Interrupted("reading was stopped", cure="run the same command again")
            found += read(part)
            if on_progress is not None:
                on_progress(len(found), len(forks))
    return found


def _check(loaded: Loaded, index: int, fork: Fork) -> None:
    if not fork.context or not fork.continuations or not all(fork.continuations):
        raise DataError("a context or one of its continuations has no tokens", where=f"context {index}")
    if fork.width > loaded.context:
        raise DataError(
            f"a context and its longest continuation exceed the model's {loaded.context} tokens",
            where=f"context {index}",
            value=f"{fork.width} tokens",
            cure="shorten it, or use a model that reads more",
        )


def _common(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all begin with, but for their last token: each context predicts something of its own."""
    first, last = min(sequences), max(sequences)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    size = min(size, min(map(len, sequences)) - 1)
    return first[:size] if len(sequences) > 1 and size >= WORTH_SHARING else ()


def _parts(forks: Sequence[Fork], prefix: int) -> Iterator[list[Fork]]:
    """The forks in their order, about as many at a time as fill a row."""
    part: list[Fork] = []
    size = 0
    room = max(ROW_TOKENS, 2 * prefix)
    for fork in forks:
        more = len(fork.context) - prefix + sum(len(c) - 1 for c in fork.continuations)
        if part and size + more > room:
            yield part
            part, size = [], 0
        part.append(fork)
        size += more
    yield part


class _Tree:
    """The tokens of a fork's continuations that are read: every beginning of one, each once.

    nodes: their token ids. depth: how many tokens of a continuation each ends. sees (T, T): itself and those before.
    steps: for each continuation the node after which each of its tokens comes, -1 being the context's last token.
    """

    def __init__(self, continuations: Sequence[tuple[int, ...]]) -> None:
        places: dict[tuple[int, ...], int] = {}
        for continuation in continuations:
            for end in range(1, len(continuation)):
                places.setdefault(continuation[:end], len(places))
        self.nodes = [beginning[-1] for beginning in places]
        self.depth = [len(beginning) for beginning in places]
        self.sees = torch.zeros(len(places), len(places), dtype=torch.bool)
        for beginning, place in places.items():
            for end in range(1, len(beginning) + 1):
                self.sees[place, places[beginning[:end]]] = True
        self.steps = [[places.get(c[:end], -1) for end in range(len(c))] for c in continuations]


class _Row:
    """Forks behind one another, after what all their contexts begin with.

    spans: for each fork its first position, its context's last and the position behind its last. kept: the positions
    at which tokens are predicted. unseen: for each fork what its last context token and tree must not see, added to
    the scores: (1 + T, 1 + T).
    """

    def __init__(self, forks: Sequence[Fork], prefix: int, device: torch.device) -> None:
        self.prefix = prefix
        ids = list(forks[0].context[:prefix])
        positions = list(range(prefix))
        self.trees = [_Tree(fork.continuations) for fork in forks]
        self.spans: list[tuple[int, int, int]] = []
        self.unseen: list[Tensor] = []
        for fork, tree in zip(forks, self.trees, strict=True):
            start, size = len(ids), len(fork.context)
            ids += [*fork.context[prefix:], *tree.nodes]
            positions += [*range(prefix, size), *(size - 1 + depth for depth in tree.depth)]
            self.spans.append((start, start + size - prefix - 1, len(ids)))
            seen = torch.zeros(1 + len(tree.nodes), 1 + len(tree.nodes), dtype=torch.bool)
            seen[:, 0] = True
            seen[1:, 1:] = tree.sees
            self.unseen.append(torch.zeros(seen.shape, device=device).masked_fill_(~seen.to(device), float("-inf")))
        self.ids = torch.tensor(ids, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.kept = torch.tensor([p for _, last, end in self.spans for p in range(last, end)], device=device)
        self.depth = 0

    def picks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, int]]:
        """(fork, continuation, place among `kept`, token) of every token whose likelihood is wanted."""
        base = 0
        for number, (fork, tree) in enumerate(zip(forks, self.trees, strict=True)):
            for which, (tokens, steps) in enumerate(zip(fork.continuations, tree.steps, strict=True)):
                for token, step in zip(tokens, steps, strict=True):
                    yield number, which, base + 1 + step, token
            base += 1 + len(tree.nodes)


class _Reader:
    """One model, reading packed where it can."""

    def __init__(self, loaded: Loaded, prefix: int) -> None:
        model: Any = loaded.model
        self.model: Any = model.get_base_model() if loaded.is_adapter else model
        self.prefix = prefix

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @contextmanager
    def ready(self, forks: Sequence[Fork]) -> Iterator[Callable[[Sequence[Fork]], list[list[float]]]]:
        """How to read: packed where a trial agrees with plain reading."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                if self._slides(max(fork.width for fork in forks)) or not self._packs(forks):
                    self.prefix = 0
                    yield self._plain
                else:
                    with _attention(self.model), self._few:
                        yield self._packed
        finally:
            self.model.train(was_training)

    def _slides(self, longest: int) -> bool:
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        slides = getattr(config, "use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
        return bool(window and slides and longest > window)

    def _packs(self, forks: Sequence[Fork]) -> bool:
        """Whether the architecture attends through transformers' interface and agrees with itself packed."""
        if self.model in _TRUSTED:
            return True
        few = [Fork(fork.context[-PROBE:], tuple(c[:3] for c in fork.continuations[:2])) for fork in forks[:2]]
        prefix, self.prefix = self.prefix, 0
        try:
            with _attention(self.model), self._few:
                packed = self._packed(few)
        except (TypeError, ValueError, KeyError, AttributeError):  # attention of its own, that takes no such layout
            return False
        finally:
            self.prefix = prefix
        plain = self._plain(few)
        pairs = [(a, b) for x, y in zip(packed, plain, strict=True) for a, b in zip(x, y, strict=True)]
        agrees = all(abs(a - b) <= TOLERANCE * max(1.0, abs(b)) for a, b in pairs)
        if agrees:
            _TRUSTED.add(self.model)
        return agrees

    @cached_property
    def _few(self) -> "_LastBlock":
        return _LastBlock(self.model)

    def _packed(self, forks: Sequence[Fork]) -> list[list[float]]:
        row = _Row(forks, self.prefix, self.device)
        row.depth = self._few.depth
        self._few.kept = row.kept
        logits = self.model(
            input_ids=row.ids[None],
            position_ids=row.positions[None],
            use_cache=False,
            logits_to_keep=row.kept,
            forks=row,
        ).logits[0]
        picks = list(row.picks(forks))
        scores = _log_softmax_at(logits, [p[2] for p in picks], [p[3] for p in picks])
        found = [[0.0] * len(fork.continuations) for fork in forks]
        for (number, which, _, _), score in zip(picks, scores, strict=True):
            found[number][which] += score
        return found

    def _plain(self, forks: Sequence[Fork]) -> list[list[float]]:
        return [[self._string(fork.context, c) for c in fork.continuations] for fork in forks]

    def _string(self, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
        ids = torch.tensor([[*context, *continuation[:-1]]], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=len(continuation)).logits[0]
        return sum(_log_softmax_at(logits, range(len(continuation)), continuation))


def _log_softmax_at(logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of tokens at rows of (rows, vocabulary)."""
    logits = logits.float()
    total = torch.logsumexp(logits, -1)
    at = torch.tensor(list(rows), device=logits.device)
    found: list[float] = (logits[at, torch.tensor(list(tokens), device=logits.device)] - total[at]).tolist()
    return found


class _LastBlock:
    """Inside a `with`: parts of the last block that work on each position alone leave out all but `kept`.

    What they give elsewhere is 0, which nobody reads: no later block follows, and logits are made at `kept` alone.
    depth: the number of blocks, or 0 where the architecture is not known, and nothing is left out.
    """

    def __init__(self, model: Any) -> None:
        names = POSITIONWISE.get(model.config.model_type, ())
        layers = blocks(model)
        self.kept = torch.tensor([])
        self.depth = len(layers) if names else 0
        self._modules: list[nn.Module] = [layers[-1].get_submodule(name) for name in names]

    def __enter__(self) -> None:
        for module in self._modules:
            module.forward = self._at_kept(module.forward)

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            del module.forward

    def _at_kept(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def few(x: Tensor) -> Tensor:
            part = forward(x.index_select(1, self.kept))
            return part.new_zeros(*x.shape[:2], part.shape[-1]).index_copy_(1, self.kept, part)

        return few


@contextmanager
def _attention(model: Any) -> Iterator[None]:
    """Within it the model's own forward attends as rows of forks need it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    forks: _Row | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D)."""
    if forks is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention takes one row with its layout, and no mask")
    q, k, v = query[0], key[0], value[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    last = forks.depth > 0 and module.layer_idx == forks.depth - 1
    out = torch.zeros_like(q) if last else torch.empty_like(q)
    prefix = forks.prefix
    if prefix and not last:
        out[:, :prefix] = _causal(q[:, :prefix], k[:, :prefix], v[:, :prefix], scale)
    for (start, middle, end), unseen in zip(forks.spans, forks.unseen, strict=True):
        keys, values = k[:, start:end], v[:, start:end]
        if prefix:
            keys, values = torch.cat([k[:, :prefix], keys], 1), torch.cat([v[:, :prefix], values], 1)
        size = middle - start
        if size and not last:
            seen = prefix + size
            out[:, start:middle] = _causal(q[:, start:middle], keys[:, :seen], values[:, :seen], scale)
        out[:, middle:end] = _ending(q[:, middle:end] * scale, keys, values, unseen)
    return out.transpose(0, 1)[None], None


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q (H, L, D) over k and v (G, K, D): the last query sees all keys, each one before it a key less."""
    length, keys = q.shape[1], k.shape[1]
    mask = None if length == keys else torch.ones(length, keys, dtype=torch.bool, device=q.device).tril_(keys - length)
    out: Tensor = functional.scaled_dot_product_attention(
        q[None], k[None], v[None], mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[0] != k.shape[0]
    )[0]
    return out


def _ending(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor) -> Tensor:
    """softmax(q k^T) v: q (H, L, D), k and v (G, K, D) to (H, L, D). unseen: added to the last keys' scores."""
    heads, length, width = q.shape
    groups, keys, _ = k.shape
    folded = q.reshape(groups, heads // groups * length, width)
    scores = torch.bmm(folded, k.transpose(1, 2)).view(groups, heads // groups, length, keys)
    scores[..., keys - unseen.shape[1] :] += unseen
    weights = torch.softmax(scores, -1).view(groups, -1, keys)
    return torch.bmm(weights, v).view(heads, length, width)
