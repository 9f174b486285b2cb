"""What any engine offers, be its model here, behind an endpoint or a script of a test. Imports nothing heavy.

    answers      what it says, freely or as JSON that follows a schema
    likelihoods  how likely it finds each of some continuations
    choices      which of some labels it takes

All three give what is finished at once, with its prompt's index, so that whoever keeps it can go on after a kill.

`LocalEngine` (`engine.here`) runs a loaded model; it is held to labels by their likelihood, and to no schema.
`RemoteEngine` (`engine.remote`) asks an `Endpoint`; it knows likelihoods of single next tokens alone.
`ScriptedEngine` (`engine.scripted`) says what it is told to.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from metier.core.errors import ModelError
from metier.core.fingerprint import Json
from metier.text.nouns import Message

Schema = dict[str, Json]
"""JSON Schema of an object."""
Prompts = Sequence[Sequence[Message]]
Share = tuple[int, int]
"""Every so many-th of the parts that are computed together, from this one on: (0, 1) are all, (1, 2) each second."""


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
    where nobody can tell. read: tokens of the prompt. kept: it was asked before, and costs nothing now.
    """

    text: str
    tokens: int
    stopped: bool
    seconds: float
    first_token_seconds: float | None = None
    per_token_seconds: float | None = None
    read: int = 0
    kept: bool = False


@dataclass(frozen=True)
class Choice:
    """Which label was taken. index: None where the reply is none of them. logprobs: in nats, one a label, where known.

    said: what an endpoint replied, word for word.
    """

    index: int | None
    logprobs: tuple[float, ...] | None = None
    said: Said | None = None


@dataclass(frozen=True)
class Spent:
    """What an engine's questions cost so far. requests: answered ones; retries: those that had to be made again.

    kept: answers taken from the replies of earlier runs. cost: in the currency of the prices; None without prices.
    """

    requests: int = 0
    retries: int = 0
    kept: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    cost: float | None = None

    def row(self) -> dict[str, Any]:
        """As files hold it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Engine(Protocol):
    """Answers conversations. done: prompts that need no answer; one may be given again, with the same result.

    should_stop: asked often; where it says so, Interrupted is raised once what is finished was given.
    """

    def answers(
        self,
        prompts: Prompts,
        *,
        schema: Schema | None = None,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """Answers with their prompt's index, as soon as they are there.

        schema: of the JSON object that the answer has to be; what comes may still be none, and is for the caller to
        check. Raises InputError where the engine cannot be held to it.
        """
        ...

    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """The log-likelihood in nats of each of a prompt's continuations, as the answer's beginning.

        Raises InputError where the engine cannot tell.
        """
        ...

    def choices(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        """One of each prompt's labels, by their likelihood or by an answer that is held to them."""
        ...


def best(logprobs: Sequence[float]) -> int:
    """The likeliest, the first of several."""
    return max(range(len(logprobs)), key=lambda i: (logprobs[i], -i))


def refuse_schema(schema: Schema | None, name: str) -> None:
    """Raise ModelError for a schema: nothing holds a model to one that this project itself runs."""
    if schema is not None:
        raise ModelError(
            "a model that runs here cannot be held to a JSON schema",
            value=name,
            cure="let it choose among labels, or serve it (vLLM, llama.cpp) and name the endpoint",
        )
