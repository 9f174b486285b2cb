"""Generation that requests may join and leave at any token: what a server runs.

`Live` holds one model. Every call of `step` gives each request under way its next token, and lets waiting ones in as
soon as there is room, their prompts read in the same pass (Orca, Yu et al., OSDI 2022). Each request has its own
sampling, seed, stop strings and log-probabilities. Tokens and texts are those of `engine.local.generate`; where
`engine.decoder` does not know the architecture, requests take turns through the model's own forward pass.

Not safe for several threads: one thread owns a `Live`. Names of tensors as in `engine.local`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from metier.core.errors import DataError
from metier.engine.decoder import Decoder
from metier.engine.local import READ_AT_ONCE, _never, _next, _Row, _Speaker, _without_torn_end, first_of, held_back
from metier.engine.sampling import Sampling, forbid, generators
from metier.models.load import Loaded

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Wish:
    """What one request asks for.

    prompt: token ids. stop: the answer ends before the first of these texts. top_logprobs: how many of the likeliest
    tokens to tell beside each token's own log-probability; None tells none.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability (natural logarithm, at temperature 1), with the likeliest at its place."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass
class Request:
    """One request under way. given: the text told so far. finish: why it ended, or None."""

    wish: Wish
    row: _Row
    given: str = ""
    finish: Finish | None = None
    cancelled: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    steps: Iterator[list[_Row]] | None = None

    @property
    def tokens(self) -> int:
        """Generated so far, the end token included."""
        return len(self.row.ids) + self.row.stopped


@dataclass(frozen=True)
class Told:
    """What a step brought for one request: new text (maybe none yet) and the log-probabilities of new tokens.

    finish, tokens: how the request stood after this step; the request itself goes on changing.
    """

    request: Request
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    tokens: int = 0


class Live:
    """A model and the requests that it answers. slots: how many at a time; others wait their turn, in order.

    decoder: makes what gives the logits (`step` and `keep` of `engine.decoder.Decoder`), where the model is no module.
    """

    def __init__(self, loaded: Loaded, *, slots: int = 8, decoder: Callable[[], Any] | None = None) -> None:
        if slots < 1:
            raise DataError("at least one request at a time", where="slots", value=slots)
        self._speaker = _Speaker(loaded, Sampling(), _never)
        self._slots = slots
        self._waiting: deque[Request] = deque()
        self._live: list[Request] = []
        self._make = decoder
        self._decoder: Any = None

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waits."""
        return bool(self._live or self._waiting)

    @property
    def context(self) -> int:
        """The longest sequence of the model, in tokens."""
        return self._speaker.context

    def count_room(self, wish: Wish) -> int:
        """How many tokens the answer may get. Raises DataError for a prompt that is empty or fills the context."""
        return self._speaker.room(0, wish.prompt, wish.max_new_tokens)

    def add(self, wish: Wish) -> Request:
        """Take a request; its answer begins with one of the next steps. Raises InputError for what cannot be done."""
        Sampling(wish.temperature, wish.top_p)  # refuses what it cannot do
        draw = generators([wish.prompt], wish.seed)[0]
        request = Request(wish, _Row(tuple(wish.prompt), self.count_room(wish), draw))
        self._waiting.append(request)
        return request

    def step(self) -> list[Told]:
        """One token for each request under way. Requests whose `finish` is set after it are gone from here."""
        with torch.inference_mode():
            gone = self._drop_cancelled()
            told = self._together() if self.tells_logprobs else self._in_turn()
        return gone + told

    def clear(self) -> None:
        """Forget every request: after an error the cache is not to be trusted."""
        self._waiting.clear()
        self._live.clear()
        self._decoder = None

    # --- one pass for all ---------------------------------------------------------------------------------------------

    def _together(self) -> list[Told]:
        if self._decoder is None:
            self._decoder = self._make() if self._make else self._own()
        new: list[Request] = []
        read = 0
        while self._waiting and len(self._live) + len(new) < self._slots:
            read += len(self._waiting[0].row.prompt)
            if new and read > READ_AT_ONCE:
                break
            new.append(self._waiting.popleft())
        if not self._live and not new:
            return []
        logits_sv = self._decoder.step([r.row.ids[-1] for r in self._live], [r.row.prompt for r in new])
        self._live += new
        logits_sv = forbid(logits_sv, self._speaker.banned)
        for request, token in zip(self._live, self._chosen(logits_sv), strict=True):
            request.row.take(token, self._speaker.stops)
        told = [self._tell(request, logits_sv[slot]) for slot, request in enumerate(self._live)]
        self._keep_open()
        return told

    def _own(self) -> Decoder:
        body = self._speaker.body
        assert body is not None
        return Decoder(body, self._slots)

    def _chosen(self, logits_sv: Tensor) -> list[int]:
        """The next token of each request under way: those that sample alike are drawn together."""
        alike: dict[Sampling, list[int]] = {}
        for slot, request in enumerate(self._live):
            alike.setdefault(Sampling(request.wish.temperature, request.wish.top_p), []).append(slot)
        chosen = [0] * len(self._live)
        for sampling, slots in alike.items():
            part = logits_sv if len(slots) == len(self._live) else logits_sv[slots]
            for slot, token in zip(slots, sampling.choose(part, [self._live[s].row.draw for s in slots]), strict=True):
                chosen[slot] = token
        return chosen

    def _keep_open(self) -> None:
        kept = [slot for slot, request in enumerate(self._live) if request.finish is None]
        if len(kept) == len(self._live):
            return
        order = self._decoder.keep(kept)
        self._live = [self._live[slot] for slot in order]
        if not self._live:
            self._decoder = None  # its cache goes; an idle server holds the weights alone

    # --- by turns -----------------------------------------------------------------------------------------------------

    def _in_turn(self) -> list[Told]:
        while self._waiting and len(self._live) < self._slots:
            request = self._waiting.popleft()
            speaker = _Speaker(_same(self._speaker), Sampling(request.wish.temperature, request.wish.top_p), _never)
            request.steps = speaker.steps([request.row], 1, ())
            self._live.append(request)
        told = []
        for request in self._live:
            assert request.steps is not None
            _next(request.steps)
            told.append(self._tell(request, None))
        self._live = [request for request in self._live if request.finish is None]
        return told

    # --- telling ------------------------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Told]:
        gone = [request for request in (*self._live, *self._waiting) if request.cancelled]
        for request in gone:
            request.finish = "cancelled"
        if gone:
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            if self._decoder is not None:
                self._keep_open()
            else:
                self._live = [request for request in self._live if request.finish is None]
        return [Told(request, "", (), request.finish, request.tokens) for request in gone]

    def _tell(self, request: Request, logits_v: Tensor | None) -> Told:
        """Text that is certain by now: no torn character, nothing that may be the beginning of a stop string."""
        row, wish = request.row, request.wish
        new = self._logprob(request, logits_v)
        whole = self._speaker.decode(row.ids)
        cut = first_of(whole, wish.stop)
        if cut is not None:
            request.finish, sure = "stop", whole[:cut]
        elif row.finished:
            request.finish, sure = ("stop" if row.stopped else "length"), whole
        else:
            sure = _without_torn_end(whole)
            sure = sure[: len(sure) - held_back(sure, wish.stop)]
        same = request.finish is not None or sure.startswith(request.given)  # bytes of one character may show otherwise
        piece = sure[len(request.given) :] if same else ""
        request.given += piece
        return Told(request, piece, new, request.finish, request.tokens)

    def _logprob(self, request: Request, logits_v: Tensor | None) -> tuple[TokenLogprob, ...]:
        wanted = request.wish.top_logprobs
        if wanted is None or logits_v is None or request.row.stopped:
            return ()
        spread = torch.log_softmax(logits_v, -1)
        token = request.row.ids[-1]
        values, ids = spread.topk(wanted) if wanted else (spread[:0], spread[:0].long())
        top = tuple((i, self.piece(i), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        found = TokenLogprob(token, self.piece(token), float(spread[token]), top)
        request.logprobs.append(found)
        return (found,)

    def piece(self, token: int) -> str:
        """A token as text, by itself."""
        return self._speaker.decode([token])

    @property
    def tells_logprobs(self) -> bool:
        """Whether log-probabilities can be had: through our own forward pass alone."""
        return self._make is not None or self._speaker.body is not None


def _same(speaker: _Speaker) -> Any:
    """What a speaker was made of, for another with other sampling."""
    return _Source(speaker.model, speaker.tokenizer, speaker.context)


@dataclass(frozen=True)
class _Source:
    model: Any
    tokenizer: Any
    context: int
