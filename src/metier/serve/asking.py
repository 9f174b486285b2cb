"""From a request's body to text: prompts are encoded, handed to a host, and come back piece by piece.

The host's thread puts pieces into the event loop; whoever reads them decides what becomes of them. When the reader
leaves (a closed connection, a time limit), the host is told, and the place is free at its next step.
"""

import asyncio
import contextlib
import copy
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

from metier.core.errors import InputError, MetierError
from metier.engine.live import TokenLogprob, Told, Wish
from metier.serve.counters import Counters
from metier.serve.guard import Limits
from metier.serve.hosting import Busy, Host, Ticket
from metier.serve.protocol import Asked, RequestError
from metier.text.chat import encode_document, encode_prompt
from metier.text.nouns import Message


@dataclass(frozen=True)
class Piece:
    """New text of an answer, and how it ended with the last one. tokens: generated in all."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: str | None = None
    tokens: int = 0


class Contender:
    """A model that can be asked, by its name."""

    def __init__(self, name: str, host: Host, limits: Limits, counters: Counters) -> None:
        self.name, self._host, self._limits, self._counters = name, host, limits, counters
        self.loaded = host.contenders[name]

    @cached_property
    def _tokenizer(self) -> Any:
        return copy.deepcopy(self.loaded.tokenizer)  # the host's thread decodes with the other

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        return self.loaded.context

    @property
    def waiting(self) -> int:
        """Requests of its host under way."""
        return self._host.under_way

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids to answer after. Raises RequestError where the template does not take these turns."""
        if messages[-1].role != "user":
            raise RequestError(400, "the last message must be the user's", param="messages")
        try:
            return encode_prompt(self._tokenizer, messages)
        except MetierError as error:
            raise RequestError(400, error.what, param="messages") from error

    def text_prompt(self, prompt: str | list[int]) -> list[int]:
        """The ids of a text to go on from, or those given, checked."""
        if isinstance(prompt, str):
            ids = encode_document(self._tokenizer, prompt)
            ends = self._tokenizer.eos_token_id is not None
            return ids[:-1] if ends else ids
        if any(not 0 <= i < len(self._tokenizer) for i in prompt):
            raise RequestError(400, "a token id is not in the vocabulary", param="prompt")
        return prompt

    def wish(self, prompt: Sequence[int], asked: Asked, longest: int | None, top: int | None) -> Wish:
        """What the host is asked. Raises RequestError for what goes past a limit."""
        most = self._limits.prompt_tokens
        if most is not None and len(prompt) > most:
            raise _too_long(len(prompt), most)
        if top is not None and not self._host.tells_logprobs(self.name):
            raise RequestError(400, "this model's architecture gives no log-probabilities here", param="logprobs")
        wish = Wish(
            tuple(prompt),
            min(longest or self._limits.new_tokens, self._limits.new_tokens),
            asked.temperature,
            asked.top_p,
            secrets.randbits(63) if asked.seed is None else asked.seed,
            asked.stops,
            top,
        )
        try:
            self._host.room(self.name, wish)
        except InputError as error:
            raise _too_long(len(prompt), self.context) from error
        return wish

    async def answer(self, wish: Wish) -> AsyncIterator[Piece]:
        """The answer in pieces. Raises RequestError: 429 where too many wait, 504 past the time limit, 500 if it fails.

        Close it (or leave the loop) to stop the generation.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Told | MetierError] = asyncio.Queue()

        def deliver(told: Told | MetierError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is going down
                loop.call_soon_threadsafe(pieces.put_nowait, told)

        start = perf_counter()
        try:
            ticket = self._host.submit(self.name, wish, deliver)
        except Busy:
            raise RequestError(429, "too many requests are waiting: try again", code="queue_full") from None
        try:
            async for piece in self._pieces(pieces, start):
                yield piece
        finally:
            self._leave(ticket)

    async def _pieces(self, pieces: "asyncio.Queue[Told | MetierError]", start: float) -> AsyncIterator[Piece]:
        first = True
        while True:
            left = start + self._limits.seconds - perf_counter()
            try:
                told = await asyncio.wait_for(pieces.get(), max(left, 0.001))
            except TimeoutError:
                limit = f"the answer took more than {self._limits.seconds:g} s"
                raise RequestError(504, limit, code="timeout") from None
            if isinstance(told, MetierError):
                raise RequestError(500, "the model could not answer", code="generation_failed")
            if first:
                self._counters.first_token(self.name, perf_counter() - start)
                first = False
            yield Piece(told.text, told.logprobs, told.finish, told.tokens)
            if told.finish is not None:
                self._counters.answered(self.name, len(told.request.wish.prompt), told.tokens, perf_counter() - start)
                return

    @staticmethod
    def _leave(ticket: Ticket) -> None:
        if ticket.request is None or ticket.request.finish is None:
            ticket.cancel()


def _too_long(tokens: int, most: int) -> RequestError:
    what = f"the prompt takes {tokens} tokens, and {most} are the most that this model reads, its answer included"
    return RequestError(400, what, param="messages", code="context_length_exceeded")
