"""How fast an endpoint is asked, and what it cost so far. Threads share both."""

import threading
from collections.abc import Callable
from time import monotonic

from metier.core.errors import EndpointError
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Spent


class Pace:
    """Requests evenly spaced, no more than so many a minute; None: as fast as they come.

    rest: waits so many seconds, and says whether waiting was cut short.
    """

    def __init__(self, per_minute: float | None, rest: Callable[[float], bool]) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._rest = rest
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> bool:
        """Wait for one's turn; False where it was called off."""
        if not self._gap:
            return True
        with self._lock:
            now = monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        return not self._rest(turn - now)


class Meter:
    """Counts tokens and cost, and holds to the budget: what is under way is reckoned at the most that it may cost."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._requests = self._retries = self._kept = self._read = self._written = 0
        self._reserved = 0.0

    @property
    def spent(self) -> Spent:
        """So far."""
        with self._lock:
            return Spent(self._requests, self._retries, self._kept, self._read, self._written, self._cost)

    @property
    def _cost(self) -> float | None:
        return None if self._endpoint.prices is None else self._endpoint.prices.of(self._read, self._written)

    def reserve(self, characters: int, max_new_tokens: int) -> float:
        """Set aside what a question may cost. Raises EndpointError where that would be more than the budget has."""
        most = self._endpoint.most(characters, max_new_tokens) or 0.0
        budget = self._endpoint.budget
        with self._lock:
            cost = self._cost or 0.0
            if budget is not None and cost + self._reserved + most > budget:
                raise EndpointError(
                    f"the budget of {budget:g} is spent ({cost:.4g}, and the next question may cost {most:.2g})",
                    where=self._endpoint.endpoint,
                    cure="raise `budget` and run the same command again: the answers that came are kept",
                )
            self._reserved += most
        return most

    def settle(self, reserved: float, read: int = 0, written: int = 0, *, answered: bool = True) -> None:
        """What became of a question that was set aside for."""
        with self._lock:
            self._reserved -= reserved
            self._requests += answered
            self._read += read
            self._written += written

    def again(self) -> None:
        """A request had to be made once more."""
        with self._lock:
            self._retries += 1

    def known(self) -> None:
        """An answer was there already."""
        with self._lock:
            self._kept += 1
