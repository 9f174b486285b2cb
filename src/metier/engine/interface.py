"""What any engine that answers offers, be its model here or behind an endpoint. Imports nothing heavy."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from metier.text.nouns import Message


@dataclass(frozen=True)
class Asking:
    """How answers are made. temperature 0 is greedy; seed: of the draws otherwise, one generator a question."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class Said:
    """An answer and what it cost. tokens: generated, the end token included. stopped: it ended its turn itself.

    seconds: as in `local.Generation`, or of the whole request where the model is elsewhere. The two others are None
    where nobody can tell. read: tokens of the prompt.
    """

    text: str
    tokens: int
    stopped: bool
    seconds: float
    first_token_seconds: float | None = None
    per_token_seconds: float | None = None
    read: int = 0


class Engine(Protocol):
    """Answers conversations."""

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """Answers with their prompt's index, as soon as they are there.

        done: prompts answered already; one may be given again, with the same text. should_stop: asked often.
        """
        ...
