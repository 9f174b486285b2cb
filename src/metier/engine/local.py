"""Generation with a loaded transformers model, on whatever device the model is.

`generate` answers many prompts, longest first, a batch at a time: where `engine.decoder` knows the architecture, a row
that is finished makes room for the next prompt at once, nothing is padded, and what opens all prompts is read once.
Others are padded on the left and go through the model's own forward pass, finished rows dropped. `answers` gives them
as they are finished; `stream` answers one, piece by piece, for a chat.

Greedy answers are those of transformers' own `generate`, token for token, in float32. Batch mates change a row's logits
by rounding alone (about 1e-6), so the same call gives the same tokens; another batch size may break a near tie
differently. Special tokens that do not end a turn are never generated, nor are ids that the tokenizer does not know.

Refuses: empty prompts, and prompts that fill the model's context. An answer that reaches the end of the context ends
there, not stopped.
Names of tensors end in their shape: b rows, t positions, v vocabulary, n tokens.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
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

from metier.core.errors import DataError, Interrupted
from metier.engine.decoder import Body, Decoder, body_for
from metier.engine.interface import Share
from metier.engine.sampling import Sampling, forbid, generators
from metier.models.load import Loaded
from metier.text.chat import stop_ids

COMPACT_SHARE = 0.125
"""Finished rows are dropped once they are this share of the batch: dropping copies the cache, as each step does."""

SPREAD = 0.5
"""The shortest prompt of a batch has at least this share of the longest one's tokens, so at most half is padding."""

REFILLS = 8
"""Prompts of a batch, in batch sizes. Batches are computed apart, so that a run can go on at any; their ends leave
places empty."""

READ_AT_ONCE = 2048
"""About how many tokens of new prompts are read in one step (at least one prompt)."""

SHARED = 8
"""An opening of all prompts of fewer tokens is not worth a pass of its own."""

Progress = Callable[[int, int], None]
"""Told how many are done, of how many."""


@dataclass(frozen=True)
class Generation:
    """What a model answered to one prompt.

    ids: without the stop token. text: decoded, without special tokens. stopped: it ended with a stop token.
    seconds: its share of the time computed, by the tokens that each step read or went on from. These sum to the time
    that the whole call computed, so they measure cost. first_token_seconds: from when its prompt was taken up to its
    first token. per_token_seconds: the mean between one token and the next; 0 where there is one alone. Both are what
    one user would wait for among so many others; with a batch of one, alone.
    """

    ids: tuple[int, ...]
    text: str
    stopped: bool
    seconds: float
    first_token_seconds: float = 0.0
    per_token_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """How many tokens were generated, the stop token included."""
        return len(self.ids) + self.stopped


def generate(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Answer every prompt (a list of token ids); the answers come in the prompts' order.

    max_new_tokens: of every answer, or of each. temperature 0 is greedy. seed: of the draws otherwise; each prompt has
    a generator of its own. on_progress: called when answers are finished. should_stop: asked before every token; when
    it says so, Interrupted is raised.
    Raises DataError for an empty prompt or one that leaves no room in the context.
    """
    found: dict[int, Generation] = {}
    for finished in answers(
        loaded,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        should_stop=should_stop,
    ):
        found.update(finished)
        if on_progress is not None:
            on_progress(len(found), len(prompts))
    return [found[index] for index in range(len(prompts))]


def answers(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    done: Collection[int] = (),
    share: Share = (0, 1),
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[list[tuple[int, Generation]]]:
    """As `generate`, but gives answers, each with its prompt's index, as soon as they are finished.

    done: prompts that are answered already. share: which of the batches are computed; the others are elsewhere. Which
    prompts are in one batch follows from all prompts, so those left get the bits that they would have got: a batch that
    is not all done is computed again as a whole, and given again.
    """
    speaker = _Speaker(loaded, Sampling(temperature, top_p), should_stop or _never)
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    rows = [
        _Row(tuple(prompt), speaker.room(index, prompt, limit), draw)
        for index, (prompt, limit, draw) in enumerate(zip(prompts, limits, generators(prompts, seed), strict=True))
    ]
    batches = speaker.batches([row.prompt for row in rows], batch_size)
    opening = speaker.opening([row.prompt for row in rows])
    places = {id(row): index for index, row in enumerate(rows)}
    with _evaluating(loaded.model):
        for batch in batches[share[0] :: share[1]]:
            if all(index in done for index in batch):
                continue
            steps = speaker.steps([rows[index] for index in batch], batch_size, opening)
            while (finished := _next(steps)) is not None:
                if finished:
                    yield [(places[id(row)], speaker.generation(row)) for row in finished]


def stream(
    loaded: Loaded,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """The answer to one prompt in pieces of text, as it is generated; joined, they are `generate`'s text.

    A character that takes several tokens (bytes) is held back until it is whole, and so is what may be the beginning of
    a text in `stop`, before which the answer ends. When should_stop says so, it ends there, without an error.
    """
    speaker = _Speaker(loaded, Sampling(temperature, top_p), _never)
    row = _Row(tuple(prompt), speaker.room(0, prompt, max_new_tokens), generators([prompt], seed)[0])
    given = ""
    steps = speaker.steps([row], 1, ())
    with _evaluating(loaded.model):
        while not (should_stop is not None and should_stop()):
            if _next(steps) is None:
                break
            whole = _without_torn_end(speaker.decode(row.ids))
            if (cut := first_of(whole, stop)) is not None:
                yield whole[len(given) : cut]
                return
            whole = whole[: len(whole) - held_back(whole, stop)]
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
    _check_batch_size(batch_size)
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = batches and len(batches[-1]) < batch_size and lengths[index] >= SPREAD * lengths[batches[-1][0]]
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError("batch_size must be at least 1", where="batch_size", value=batch_size)


@dataclass
class _Row:
    """One prompt while it is answered. room: how many tokens it may get."""

    prompt: tuple[int, ...]
    room: int
    draw: Random
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0
    first_seconds: float = 0.0
    later_seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.ids) >= self.room

    def take(self, token: int, stops: frozenset[int]) -> None:
        if token in stops:
            self.stopped = True
        else:
            self.ids.append(token)

    def waited(self, seconds: float, share: float) -> None:
        """The step that gave its last token took `seconds`, of which `share` was for it."""
        self.seconds += share * seconds
        if len(self.ids) + self.stopped > 1:
            self.later_seconds += seconds
        else:
            self.first_seconds = seconds


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

    @cached_property
    def body(self) -> Body | None:
        """The model's blocks for our own forward pass, where it is of a kind that has one."""
        return body_for(self.model, self.context)

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

    def batches(self, prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
        """Indices of prompts, longest first, in parts that are computed apart from one another."""
        lengths = [len(prompt) for prompt in prompts]
        if self.body is None:
            return length_batches(lengths, batch_size)
        _check_batch_size(batch_size)
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        size = REFILLS * batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def opening(self, prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """What all prompts begin with and is worth reading once; at least a token of each is left."""
        if self.body is None or len(prompts) < 2:
            return ()
        first, last = min(prompts), max(prompts)  # in order: what these two share, all share
        shortest = min(map(len, prompts)) - 1
        same = next((i for i in range(shortest) if first[i] != last[i]), shortest)
        return first[:same] if same >= SHARED else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, exactly as the tokenizer has it."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def generation(self, row: _Row) -> Generation:
        tokens = len(row.ids) + row.stopped
        between = row.later_seconds / (tokens - 1) if tokens > 1 else 0.0
        return Generation(tuple(row.ids), self.decode(row.ids), row.stopped, row.seconds, row.first_seconds, between)

    def steps(self, rows: Sequence[_Row], batch_size: int, opening: Sequence[int]) -> Iterator[list[_Row]]:
        """Answer these; yields the rows that are finished after every token. Rows are changed in place."""
        return self._refilled(rows, batch_size, opening) if self.body is not None else self._padded(rows)

    def _refilled(self, rows: Sequence[_Row], slots: int, opening: Sequence[int]) -> Iterator[list[_Row]]:
        """Up to `slots` rows at a time; whichever is finished makes room for the next one."""
        assert self.body is not None
        decoder = Decoder(self.body, min(slots, len(rows)), opening)
        waiting, live = deque(rows), list[_Row]()
        then = perf_counter()
        while live or waiting:
            self._check_stop()
            new: list[_Row] = []
            read = 0
            while waiting and len(live) + len(new) < slots:
                read += len(waiting[0].prompt) - decoder.prefix
                if new and read > READ_AT_ONCE:
                    break
                new.append(waiting.popleft())
            logits_sv = decoder.step([row.ids[-1] for row in live], [row.prompt for row in new])
            sizes = [1] * len(live) + [len(row.prompt) - decoder.prefix for row in new]
            live += new
            self._choose(logits_sv, live)
            now = perf_counter()
            self._tell_time(live, sizes, now - then)
            then = now
            finished = [row for row in live if row.finished]
            if finished:
                order = decoder.keep([slot for slot, row in enumerate(live) if not row.finished])
                live = [live[slot] for slot in order]
            yield finished

    def _padded(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """All rows at once through the model's own forward pass, padded on the left. Finished ones are dropped."""
        cache = DynamicCache(config=self.model.config)
        ids_bt, mask_bt = self._pad_left(rows)
        positions_bt = (mask_bt.cumsum(-1) - 1).clamp(min=0)
        live = list(rows)
        held = list(range(len(rows)))  # which row of `rows` stands in each row of the cache
        then = perf_counter()
        while live:
            self._check_stop()
            logits_bv = self._forward(ids_bt, mask_bt, positions_bt, cache)
            open_slots = [slot for slot, row in enumerate(held) if not rows[row].finished]
            self._choose(logits_bv[open_slots], live)
            now = perf_counter()
            self._tell_time(live, [1] * len(live), now - then)
            then = now
            finished = [row for row in live if row.finished]
            live = [row for row in live if not row.finished]
            yield finished
            if not live:
                return
            kept = [slot for slot, row in enumerate(held) if not rows[row].finished]
            if len(held) - len(kept) >= COMPACT_SHARE * len(held):
                index = torch.tensor(kept, device=ids_bt.device)
                cache.batch_select_indices(index)
                mask_bt, positions_bt = mask_bt[index], positions_bt[index]
                held = [held[slot] for slot in kept]
            last = [rows[row].ids[-1] if rows[row].ids else 0 for row in held]
            ids_bt = torch.tensor(last, device=ids_bt.device)[:, None]
            mask_bt = functional.pad(mask_bt, (0, 1), value=1)
            # a row that is finished but not yet dropped stays where it is: it must not run past the context
            positions_bt = (positions_bt[:, -1:] + 1).clamp(max=self.context - 1)

    def _forward(self, ids_bt: Tensor, mask_bt: Tensor, positions_bt: Tensor, cache: DynamicCache) -> Tensor:
        out = self.model(
            input_ids=ids_bt,
            attention_mask=mask_bt,
            position_ids=positions_bt,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_bv: Tensor = out.logits[:, -1]
        return logits_bv

    def _choose(self, logits_sv: Tensor, live: Sequence[_Row]) -> None:
        """Take the next token of each row."""
        chosen = self.sampling.choose(forbid(logits_sv, self.banned), [row.draw for row in live])
        for row, token in zip(live, chosen, strict=True):
            row.take(token, self.stops)

    def _check_stop(self) -> None:
        if self.should_stop():
            raise Interrupted("generation was stopped", cure="run the same command again")

    @staticmethod
    def _tell_time(live: Sequence[_Row], sizes: Sequence[int], seconds: float) -> None:
        whole = sum(sizes)
        for row, size in zip(live, sizes, strict=True):
            row.waited(seconds, size / whole)

    def _pad_left(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Ids and mask of the prompts. What stands in the padding does not matter; id 0 always exists."""
        longest = max(len(row.prompt) for row in rows)
        ids = [[0] * (longest - len(row.prompt)) + list(row.prompt) for row in rows]
        mask = [[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _next(steps: Iterator[list[_Row]]) -> list[_Row] | None:
    """One step, None when there is none. Inference mode is left before a generator yields, or it would leak."""
    with torch.inference_mode():
        return next(steps, None)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No dropout; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _without_torn_end(text: str) -> str:
    """The text without the up to three replacement characters that the bytes of an unfinished one may show as."""
    kept = text.rstrip("\ufffd")
    return kept + "\ufffd" * max(0, len(text) - len(kept) - 3)


def first_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins, or None."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of these texts."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def _never() -> bool:
    return False
