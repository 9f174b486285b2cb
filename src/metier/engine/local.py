"""Generation and log-likelihood with a loaded transformers model, on whatever device the model is.

`generate` answers many prompts: sorted by length and batched with others of about the same length, padded on the left,
with a key-value cache from which finished rows are dropped. `stream` answers one, piece by piece, for a chat.
`document_nll` reads documents through a sliding window and sums the negative log-likelihood of their tokens.

Greedy answers are those of transformers' own `generate`, token for token, in float32. Batch mates change a row's logits
by rounding alone (about 1e-6), so the same call gives the same tokens; another batch size may break a near tie
differently. Special tokens that do not end a turn are never generated, nor are ids that the tokenizer does not know.

Refuses: empty prompts, prompts that fill the model's context, and a window wider than it. An answer that reaches the
end of the context ends there, not stopped.
Names of tensors end in their shape: b rows, t positions, v vocabulary, n tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from metier.core.errors import DataError, Interrupted, ModelError
from metier.engine.sampling import Sampling, forbid, generators
from metier.models.load import Loaded
from metier.text.chat import stop_ids

COMPACT_SHARE = 0.125
"""Finished rows are dropped once they are this share of the batch: dropping copies the cache, as each step does."""

SPREAD = 0.5
"""The shortest prompt of a batch has at least this share of the longest one's tokens, so at most half is padding."""

LOGITS_BYTES = 64 * 2**20
"""About how much memory the logits of `document_nll` may take at once, as float32."""

READ_TOKENS = 4096
"""How many tokens `document_nll` reads in one batch of windows (at least one window)."""

Progress = Callable[[int, int], None]
"""Told how many are done, of how many."""


@dataclass(frozen=True)
class Generation:
    """What a model answered to one prompt.

    ids: without the stop token. text: decoded, without special tokens. stopped: it ended with a stop token.
    seconds: its share of the batch's wall time: an equal part of the time to read the prompts and, for each token that
    it generated, of that step's time among the rows still running. These sum to the time the whole call computed, so
    they measure cost, not how long one user alone would wait.
    """

    ids: tuple[int, ...]
    text: str
    stopped: bool
    seconds: float

    @property
    def tokens(self) -> int:
        """How many tokens were generated, the stop token included."""
        return len(self.ids) + self.stopped


@dataclass(frozen=True)
class DocumentNll:
    """nll: sum of the negative log-likelihood over a document's tokens, in nats. tokens: how many were predicted."""

    nll: float
    tokens: int


def generate(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Answer every prompt (a list of token ids); the answers come in the prompts' order.

    temperature 0 is greedy. seed: of the draws otherwise; each prompt has a generator of its own. on_progress: called
    after each batch. should_stop: asked before every token; when it says so, Interrupted is raised.
    Raises DataError for an empty prompt or one that leaves no room in the context.
    """
    sampling = Sampling(temperature, top_p)
    speaker = _Speaker(loaded, sampling, should_stop or _never)
    rows = [
        _Row(tuple(prompt), speaker.room(index, prompt, max_new_tokens), draw)
        for index, (prompt, draw) in enumerate(zip(prompts, generators(prompts, seed), strict=True))
    ]
    done = 0
    with _reading(loaded.model):
        for batch in length_batches([len(p) for p in prompts], batch_size):
            for _ in speaker.steps([rows[index] for index in batch]):
                pass
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
    return [speaker.generation(row) for row in rows]


def stream(
    loaded: Loaded,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """The answer to one prompt in pieces of text, as it is generated; joined, they are `generate`'s text.

    A character that takes several tokens (bytes) is held back until it is whole. When should_stop says so, the answer
    ends there, without an error.
    """
    speaker = _Speaker(loaded, Sampling(temperature, top_p), _never)
    row = _Row(tuple(prompt), speaker.room(0, prompt, max_new_tokens), generators([prompt], seed)[0])
    given = ""
    steps = speaker.steps([row])
    while not (should_stop is not None and should_stop()):
        with _reading(loaded.model):  # left before every yield: inference mode would leak into the caller's code
            if not next(steps, False):
                break
        whole = _without_torn_end(speaker.decode(row.ids))
        if whole.startswith(given) and len(whole) > len(given):
            yield whole[len(given) :]
            given = whole
    rest = speaker.decode(row.ids)[len(given) :]
    if rest:
        yield rest


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches, longest first, so that what would run out of memory does so at once.

    A batch holds at most `batch_size` prompts, the shortest with at least SPREAD of the longest one's length.
    """
    if batch_size < 1:
        raise DataError("batch_size must be at least 1", where="batch_size", value=batch_size)
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = batches and len(batches[-1]) < batch_size and lengths[index] >= SPREAD * lengths[batches[-1][0]]
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@dataclass
class _Row:
    """One prompt while it is answered. room: how many tokens it may get."""

    prompt: tuple[int, ...]
    room: int
    draw: Random
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.ids) >= self.room

    def take(self, token: int, stops: frozenset[int]) -> None:
        if token in stops:
            self.stopped = True
        else:
            self.ids.append(token)


class _Speaker:
    """One model, told how to choose tokens."""

    def __init__(self, loaded: Loaded, sampling: Sampling, should_stop: Callable[[], bool]) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.sampling = sampling
        self.should_stop = should_stop
        self.stops = stop_ids(self.tokenizer)
        self.context = loaded.context

    @cached_property
    def banned(self) -> Tensor | None:
        """Special tokens that end nothing, and rows of the output matrix that stand for no token."""
        size = self.model.get_output_embeddings().weight.shape[0]
        special = {int(i) for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ids = sorted({i for i in special - self.stops if i < size} | set(range(len(self.tokenizer), size)))
        return torch.tensor(ids, device=self.model.device) if ids else None

    def room(self, index: int, prompt: Sequence[int], wanted: int) -> int:
        """How many tokens may follow a prompt: those wanted, or what the context has left."""
        if wanted < 1:
            raise DataError("max_new_tokens must be at least 1", where="max_new_tokens", value=wanted)
        if not prompt:
            raise DataError("a prompt has no tokens", where=f"prompt {index}")
        left = self.context - len(prompt)
        if left < 1:
            raise DataError(
                f"a prompt fills the model's context of {self.context} tokens",
                where=f"prompt {index}",
                value=f"{len(prompt)} tokens",
                cure="shorten it, or use a model that reads more",
            )
        return min(wanted, left)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, exactly as the tokenizer has it."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def generation(self, row: _Row) -> Generation:
        return Generation(tuple(row.ids), self.decode(row.ids), row.stopped, row.seconds)

    def steps(self, rows: Sequence[_Row]) -> Iterator[bool]:
        """Answer a batch; yields True after every token. Rows are changed in place."""
        cache = DynamicCache(config=self.model.config)
        ids_bt, mask_bt = self._pad_left(rows)
        positions_bt = (mask_bt.cumsum(-1) - 1).clamp(min=0)
        live, waiting = list(rows), list(rows)
        then = perf_counter()
        while waiting:
            if self.should_stop():
                raise Interrupted("generation was stopped", cure="run the same command again")
            chosen = self._step(ids_bt, mask_bt, positions_bt, cache, live)
            for row, token in zip(live, chosen, strict=True):
                if not row.finished:
                    row.take(token, self.stops)
            now = perf_counter()
            for row in waiting:
                row.seconds += (now - then) / len(waiting)
            then = now
            yield True
            kept = [i for i, row in enumerate(live) if not row.finished]
            waiting = [live[i] for i in kept]
            if not waiting:
                return
            if len(live) - len(kept) >= COMPACT_SHARE * len(live):
                index = torch.tensor(kept, device=ids_bt.device)
                cache.batch_select_indices(index)
                mask_bt, positions_bt = mask_bt[index], positions_bt[index]
                live, chosen = waiting, [chosen[i] for i in kept]
            ids_bt = torch.tensor(chosen, device=ids_bt.device)[:, None]
            mask_bt = functional.pad(mask_bt, (0, 1), value=1)
            # a row that is finished but not yet dropped stays where it is: it must not run past the context
            positions_bt = (positions_bt[:, -1:] + 1).clamp(max=self.context - 1)

    def _step(
        self, ids_bt: Tensor, mask_bt: Tensor, positions_bt: Tensor, cache: DynamicCache, live: Sequence[_Row]
    ) -> list[int]:
        out = self.model(
            input_ids=ids_bt,
            attention_mask=mask_bt,
            position_ids=positions_bt,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return self.sampling.choose(forbid(out.logits[:, -1], self.banned), [row.draw for row in live])

    def _pad_left(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Ids and mask of the prompts. What stands in the padding does not matter; id 0 always exists."""
        longest = max(len(row.prompt) for row in rows)
        ids = [[0] * (longest - len(row.prompt)) + list(row.prompt) for row in rows]
        mask = [[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _without_torn_end(text: str) -> str:
    """The text without the up to three replacement characters that the bytes of an unfinished one may show as."""
    kept = text.rstrip("\ufffd")
    return kept + "\ufffd" * max(0, len(text) - len(kept) - 3)


def _never() -> bool:
    return False


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


# --- log-likelihood


@dataclass(frozen=True)
class _Window:
    """Part of a document to read: ids[start:end], of which the tokens from `scored` on are predicted."""

    document: int
    start: int
    scored: int
    end: int

    @property
    def width(self) -> int:
        """Positions that the model reads: the last token is only ever predicted."""
        return self.end - self.start - 1


def document_nll(
    loaded: Loaded,
    documents: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[DocumentNll]:
    """The negative log-likelihood of every document, each token counted once.

    documents: token ids. The first id of each is context, not predicted: give the begin token there. window: how many
    tokens are read at once (the model's context by default). stride: by how many the window moves (half of it by
    default), so a token far inside a long document has at least window - stride tokens of context.
    on_progress: told the documents read. Raises ModelError for a window that the model cannot read, Interrupted.

    Logits of a chunk of positions are made, used and dropped before the next (LOGITS_BYTES), the chunks joined by the
    key-value cache. Source: the strided evaluation of the transformers guide "Perplexity of fixed-length models".
    """
    context = loaded.context
    window = context if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= context:
        raise ModelError(f"a window must have 2 to {context} tokens here", where="window", value=window)
    if not 1 <= stride < window:
        raise ModelError(f"the stride must be 1 to {window - 1}, below the window", where="stride", value=stride)
    windows = [w for d, ids in enumerate(documents) for w in _windows(d, len(ids), window, stride)]
    windows.sort(key=lambda w: -w.width)
    left = [0] * len(documents)
    for w in windows:
        left[w.document] += 1
    sums = [0.0] * len(documents)
    done = left.count(0)
    with _reading(loaded.model):
        for batch in _window_batches(windows):
            if should_stop is not None and should_stop():
                raise Interrupted("reading was stopped", cure="run the same command again")
            for w, nll in zip(batch, _read(loaded.model, documents, batch), strict=True):
                sums[w.document] += nll
                left[w.document] -= 1
                done += left[w.document] == 0
            if on_progress is not None:
                on_progress(done, len(documents))
    return [DocumentNll(nll, max(0, len(ids) - 1)) for nll, ids in zip(sums, documents, strict=True)]


def _windows(document: int, length: int, window: int, stride: int) -> Iterator[_Window]:
    """The windows over a document of `length` ids; each id but the first is scored in exactly one."""
    scored, start = 1, 0
    while scored < length:
        end = min(start + window, length)
        yield _Window(document, start, scored, end)
        scored, start = end, start + stride


def _window_batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows of similar width, widest first, READ_TOKENS positions a batch."""
    batch: list[_Window] = []
    for w in windows:
        if batch and ((len(batch) + 1) * batch[0].width > READ_TOKENS or w.width < SPREAD * batch[0].width):
            yield batch
            batch = []
        batch.append(w)
    if batch:
        yield batch


def _read(model: Any, documents: Sequence[Sequence[int]], batch: Sequence[_Window]) -> list[float]:
    """NLL of each window's scored tokens. Padded on the right, where causal attention cannot see it."""
    width = batch[0].width
    ids_bt = torch.zeros(len(batch), width, dtype=torch.long)
    targets_bt = torch.full((len(batch), width), -100)
    for row, w in enumerate(batch):
        ids = torch.as_tensor(documents[w.document][w.start : w.end])
        ids_bt[row, : w.width] = ids[:-1]
        first = w.scored - w.start - 1
        targets_bt[row, first : w.width] = ids[first + 1 :]
    ids_bt, targets_bt = ids_bt.to(model.device), targets_bt.to(model.device)
    skipped = min(w.scored - w.start - 1 for w in batch)
    chunk = max(1, LOGITS_BYTES // (4 * len(batch) * model.get_output_embeddings().weight.shape[0]))
    cache = DynamicCache(config=model.config) if width - skipped > chunk else None
    total_b = torch.zeros(len(batch), dtype=torch.float64, device=model.device)
    start = 0
    for begin in range(skipped, width, chunk):
        end = min(begin + chunk, width)
        total_b += _chunk_nll(model, ids_bt[:, start:end], targets_bt[:, begin:end], cache)
        start = end
    sums: list[float] = total_b.tolist()
    return sums


def _chunk_nll(model: Any, ids_bt: Tensor, targets_bt: Tensor, cache: DynamicCache | None) -> Tensor:
    """Sum over the positions that have a target. The mask stays None: all rows are read from their first id on."""
    keep = targets_bt.shape[1]
    out = model(input_ids=ids_bt, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep)
    logits_nv = out.logits.float().flatten(0, 1)
    nll_n = functional.cross_entropy(logits_nv, targets_bt.flatten(), reduction="none", ignore_index=-100)
    return nll_n.view_as(targets_bt).double().sum(-1)
