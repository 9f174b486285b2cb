"""How far a model can recite texts that it is shown the beginning of: for each token its log-probability, and whether
it is the likeliest, given all true tokens before it (teacher forcing).

Sequences are read in batches, padded on the right, which under causal attention changes nothing before the padding.
Refuses an empty context or continuation, and what is longer than the model's context.
Costs the logits of a batch's continuations. Shapes: B sequences, L tokens, C of them of the longest tail, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from metier.core.errors import DataError, Interrupted
from metier.models.load import Loaded

READ_TOKENS = 2048
"""About how many tokens are read at once."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recited:
    """A continuation's tokens. logprob: their sum, in nats. tail: how many at its end are each the likeliest."""

    tokens: int
    logprob: float
    tail: int

    @property
    def probability(self) -> float:
        """The geometric mean of the tokens' probabilities, P(y | x)^(1 / |y|)."""
        return float(torch.tensor(self.logprob / self.tokens, dtype=torch.float64).exp())

    @property
    def extraction_strength(self) -> float:
        """1 - k / |y| for the fewest first tokens k after which greedy decoding gives all others (Carlini et al. 2021,
        arXiv 2012.07805, as a share: Wang et al. 2024)."""
        return self.tail / self.tokens


def recite(
    loaded: Loaded,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Recited]:
    """Each continuation after its context. pairs: token ids of both. Raises DataError, Interrupted."""
    for index, (context, continuation) in enumerate(pairs):
        _check(loaded, index, len(context), len(continuation))
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    found: dict[int, Recited] = {}
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        while len(found) < len(pairs):
            if should_stop is not None and should_stop():
                raise Interrupted("reading was stopped", cure="run the same command again")
            rest = order[len(found) :]
            longest = len(pairs[rest[0]][0]) + len(pairs[rest[0]][1])
            batch = rest[: max(1, READ_TOKENS // longest)]
            found |= dict(zip(batch, _read(loaded, [pairs[i] for i in batch]), strict=True))
            if on_progress is not None:
                on_progress(len(found), len(pairs))
    finally:
        loaded.model.train(was_training)
    return [found[index] for index in range(len(pairs))]


def _check(loaded: Loaded, index: int, context: int, continuation: int) -> None:
    if not context or not continuation:
        raise DataError("a context or what follows it has no tokens", where=f"context {index}")
    if context + continuation > loaded.context + 1:
        raise DataError(
            f"a context and what follows it exceed the model's {loaded.context} tokens",
            where=f"context {index}",
            value=f"{context + continuation} tokens",
            cure="shorten it, or use a model that reads more",
        )


def _read(loaded: Loaded, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Recited]:
    texts = [[*context, *continuation] for context, continuation in pairs]
    length = max(map(len, texts)) - 1
    starts = [len(context) - 1 for context, _ in pairs]
    first = min(starts)
    ids = torch.tensor([[*text[:-1], *[0] * (length - len(text) + 1)] for text in texts], device=loaded.model.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=length - first).logits.float()  # (B, C, V)
        found = []
        for row, start, (_, continuation) in zip(logits, starts, pairs, strict=True):
            own = row[start - first : start - first + len(continuation)]
            wanted = torch.tensor(list(continuation), device=own.device)
            said = own.gather(1, wanted[:, None])[:, 0] - own.logsumexp(-1)
            right = (own.argmax(-1) == wanted).tolist()
            tail = next((i for i, ok in enumerate(reversed(right)) if not ok), len(right))
            found.append(Recited(len(continuation), float(said.double().sum()), tail))
    return found
