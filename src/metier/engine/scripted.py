"""An engine that says what a function tells it to, for tests of whatever asks engines."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence

from metier.core.errors import Interrupted
from metier.engine.interface import Choice, Prompts, Said, Schema, best
from metier.text.nouns import Message

Say = Callable[[Sequence[Message]], str]
Weigh = Callable[[Sequence[Message], Sequence[str]], Sequence[float]]


def _equal(_prompt: Sequence[Message], labels: Sequence[str]) -> list[float]:
    return [0.0] * len(labels)


class ScriptedEngine:
    """say: the answer to a prompt. weigh: the log-likelihood of each of some labels.

    asked: every prompt that was answered, in order. batch: how many are given at a time.
    """

    def __init__(self, say: Say = lambda _prompt: "", weigh: Weigh = _equal, *, batch: int = 1) -> None:
        self._say = say
        self._weigh = weigh
        self._batch = batch
        self.asked: list[tuple[Message, ...]] = []

    def answers(
        self,
        prompts: Prompts,
        *,
        schema: Schema | None = None,  # noqa: ARG002
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """As `interface.Engine.answers`; whatever is said stands, a schema or not."""
        for part in self._parts(prompts, done, should_stop):
            yield [(index, self._said(prompts[index])) for index in part]

    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """As `interface.Engine.likelihoods`."""
        for part in self._parts(prompts, done, should_stop):
            yield [(index, tuple(self._weigh(prompts[index], continuations[index]))) for index in part]

    def choices(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        """As `interface.Engine.choices`: the likeliest."""
        for part in self.likelihoods(prompts, labels, done=done, should_stop=should_stop):
            yield [(index, Choice(best(values), values)) for index, values in part]

    def _said(self, prompt: Sequence[Message]) -> Said:
        text = self._say(prompt)
        return Said(text, len(text.split()), True, 0.0, read=sum(len(m.content.split()) for m in prompt))

    def _parts(
        self, prompts: Prompts, done: Collection[int], should_stop: Callable[[], bool] | None
    ) -> Iterator[list[int]]:
        left = [index for index in range(len(prompts)) if index not in done]
        for start in range(0, len(left), self._batch):
            if should_stop is not None and should_stop():
                raise Interrupted("asking was stopped", cure="run the same command again")
            part = left[start : start + self._batch]
            self.asked += [tuple(prompts[index]) for index in part]
            yield part


def says_json(value: Callable[[Sequence[Message]], object]) -> Say:
    """A `say` whose answers are JSON."""
    return lambda prompt: json.dumps(value(prompt), ensure_ascii=False)
