"""Models in memory and the threads that speak for them.

A `Host` owns one base and any number of adapters on it, which share its weights. One thread a host takes requests in,
gives every one under way its next token, and hands what is new to whoever asked. Requests to one contender share a
forward pass; contenders on one base take turns, a token each.

Refuses: more waiting requests than `queue` (Busy), prompts that fill the context. Costs the weights, and a cache of
2 x blocks x key/value width x longest x slots numbers while requests are under way.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metier.core.errors import MetierError
from metier.engine.live import Live, Request, Told, Wish
from metier.models.load import Loaded

log = logging.getLogger("metier.serve")

Deliver = Callable[[Told | MetierError], None]
"""Called from the host's thread with each piece, and with the error where the answer failed."""


def _live(loaded: Loaded, slots: int) -> Live:
    decoder = getattr(loaded, "decoder", None)
    return Live(loaded, slots=slots) if decoder is None else Live(loaded, slots=1, decoder=decoder)


class Busy(Exception):
    """The queue is full."""


@dataclass
class Ticket:
    """A request that a host has taken. cancel: what the asker sets when nobody reads the answer any more."""

    contender: str
    wish: Wish
    deliver: Deliver
    cancelled: threading.Event = field(default_factory=threading.Event)
    request: Request | None = None

    def cancel(self) -> None:
        """Stop generating for it; the next step frees its place."""
        self.cancelled.set()


class Host:
    """One base and its adapters. contenders: name -> what is loaded; all of one host share one base model.

    slots: requests of one contender under way at a time. waiting: requests that may wait beside those.
    """

    def __init__(self, contenders: Mapping[str, Loaded], *, slots: int = 8, waiting: int = 64) -> None:
        self.contenders = dict(contenders)
        self._lives = {name: _live(loaded, slots) for name, loaded in contenders.items()}
        self._adapters = {name: getattr(loaded, "adapter", None) for name, loaded in contenders.items()}
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._open: dict[int, Ticket] = {}
        self._most = slots * len(self._lives) + waiting
        self._count = 0
        self._counting = threading.Lock()
        self._active: str | None = None
        self._thread = threading.Thread(target=self._work, name="metier-host", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> int:
        """Requests taken and not yet ended."""
        return self._count

    def room(self, contender: str, wish: Wish) -> int:
        """How many tokens the answer may get; raises DataError where the prompt leaves none."""
        return self._lives[contender].count_room(wish)

    def tells_logprobs(self, contender: str) -> bool:
        """Whether log-probabilities can be asked of it."""
        return self._lives[contender].tells_logprobs

    def submit(self, contender: str, wish: Wish, deliver: Deliver) -> Ticket:
        """Take a request. Raises Busy where too many wait, InputError for what cannot be done."""
        self.room(contender, wish)
        with self._counting:
            if self._count >= self._most:
                raise Busy
            self._count += 1
        ticket = Ticket(contender, wish, deliver)
        self._inbox.put(ticket)
        return ticket

    def close(self) -> None:
        """End the thread; requests under way get no more."""
        self._inbox.put(None)
        self._thread.join(timeout=10)

    # --- the host's own thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._take_in():
            for name, live in self._lives.items():
                if live.busy:
                    self._step(name, live)

    def _take_in(self) -> bool:
        """Move what has come into the lives; waits where nothing is under way. False: the host is closed."""
        idle = not any(live.busy for live in self._lives.values())
        try:
            while True:
                ticket = self._inbox.get(block=idle)
                if ticket is None:
                    return False
                idle = False
                self._admit(ticket)
        except queue.Empty:
            return True

    def _admit(self, ticket: Ticket) -> None:
        try:
            ticket.request = self._lives[ticket.contender].add(ticket.wish)
            self._open[id(ticket.request)] = ticket
        except MetierError as error:
            self._finish(ticket, error)

    def _step(self, name: str, live: Live) -> None:
        for ticket in self._open.values():
            if ticket.request is not None and ticket.cancelled.is_set():
                ticket.request.cancelled = True
        self._activate(name)
        try:
            told = live.step()
        except MetierError as error:
            self._fail(name, live, error)
            return
        except RuntimeError as error:  # torch's: out of memory, mostly; the others must still be answered
            log.warning("a step failed: %s", type(error).__name__)
            self._fail(name, live, MetierError("the model could not go on"))
            return
        for piece in told:
            ticket = self._open[id(piece.request)]
            if piece.finish is None:
                if piece.text or piece.logprobs:
                    ticket.deliver(piece)
            else:
                self._finish(ticket, piece)

    def _fail(self, name: str, live: Live, error: MetierError) -> None:
        live.clear()
        for ticket in [t for t in self._open.values() if t.contender == name]:
            self._finish(ticket, error)

    def _finish(self, ticket: Ticket, last: Told | MetierError) -> None:
        if ticket.request is not None:
            self._open.pop(id(ticket.request), None)
        with self._counting:
            self._count -= 1
        ticket.deliver(last)

    def _activate(self, name: str) -> None:
        if len(self._lives) == 1 or self._active == name:
            return
        self._active = name
        switch(self.contenders[name].model, self._adapters[name])


def switch(model: Any, adapter: str | None) -> None:
    """Make a model that holds several adapters speak with this one, or without any."""
    if not hasattr(model, "peft_config"):
        return
    if adapter is None:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(adapter, inference_mode=True)
