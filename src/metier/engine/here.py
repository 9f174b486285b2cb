"""An engine whose model is in memory here: `engine.local` and `engine.likelihood` behind the interface of all engines.

Refuses prompts that do not fit the model's context before anything is computed. Which prompts are computed together
follows from all prompts, so a run that goes on later gets the bits that it would have got.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from metier.core.errors import DataError
from metier.engine.interface import Asking, Choice, Prompts, Said, Schema, Share, best, refuse_schema
from metier.engine.likelihood import Fork, fork_logprobs
from metier.engine.local import answers as speak
from metier.models.load import Loaded
from metier.text.chat import encode_choices, encode_prompt, encode_reading, prompt_choices

AT_ONCE = 32
"""Prompts whose continuations are read together."""


class LocalEngine:
    """Answers with a loaded model.

    name: what it is called in errors. called: what a prompt is called in errors, by its index. continuing: answers
    go on with the text of a prompt's last message as it is, instead of answering it through the chat template. share:
    which of the parts that are computed together are computed here.
    """

    def __init__(
        self,
        loaded: Loaded,
        asking: Asking,
        *,
        name: str = "the model",
        called: Callable[[int], str] = lambda index: f"prompt {index}",
        continuing: bool = False,
        share: Share = (0, 1),
    ) -> None:
        self._loaded = loaded
        self._asking = asking
        self._name = name
        self._called = called
        self._continuing = continuing
        self._share = share

    def encoded(self, prompts: Prompts) -> list[list[int]]:
        """The prompts as the model reads them. Raises DataError for the first that leaves no room for an answer."""
        tokenizer = self._loaded.tokenizer
        if self._continuing:
            found = [encode_reading(tokenizer, prompt[-1].content) for prompt in prompts]
        else:
            found = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        for index, ids in enumerate(found):
            if len(ids) >= self._loaded.context:
                raise self._too_long(index, len(ids), "the question fills")
        return found

    def answers(
        self,
        prompts: Prompts,
        *,
        schema: Schema | None = None,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """As `interface.Engine.answers`. Raises ModelError for a schema: nothing here holds a model to one."""
        refuse_schema(schema, self._name)
        encoded, asking = self.encoded(prompts), self._asking
        for finished in speak(
            self._loaded,
            encoded,
            max_new_tokens=asking.max_new_tokens,
            temperature=asking.temperature,
            top_p=asking.top_p,
            seed=asking.seed,
            batch_size=asking.batch_size,
            done=done,
            share=self._share,
            should_stop=should_stop,
        ):
            yield [
                (
                    index,
                    Said(
                        one.text.strip(),
                        one.tokens,
                        one.stopped,
                        one.seconds,
                        one.first_token_seconds,
                        one.per_token_seconds,
                        len(encoded[index]),
                    ),
                )
                for index, one in finished
            ]

    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """As `interface.Engine.likelihoods`, of whole strings, which are read as answers to the prompt."""
        forks = self._forks(prompts, continuations)
        first, every = self._share
        for start in range(first * AT_ONCE, len(forks), every * AT_ONCE):
            places = range(start, min(start + AT_ONCE, len(forks)))
            if all(index in done for index in places):
                continue
            found = fork_logprobs(self._loaded, [forks[index] for index in places], should_stop=should_stop)
            yield [(index, tuple(values)) for index, values in zip(places, found, strict=True)]

    def choices(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        """As `interface.Engine.choices`: the likeliest label."""
        for part in self.likelihoods(prompts, labels, done=done, should_stop=should_stop):
            yield [(index, Choice(best(values), values)) for index, values in part]

    def check_fits(self, prompts: Prompts, continuations: Sequence[Sequence[str]]) -> None:
        """Raise DataError for the first prompt that, with its longest continuation, exceeds the model's context."""
        self._forks(prompts, continuations)

    def _forks(self, prompts: Prompts, continuations: Sequence[Sequence[str]]) -> list[Fork]:
        tokenizer = self._loaded.tokenizer
        prompted = [prompt_choices(tokenizer, p, list(c)) for p, c in zip(prompts, continuations, strict=True)]
        forks = [Fork(tuple(ids), tuple(map(tuple, c))) for ids, c in encode_choices(tokenizer, prompted)]
        for index, fork in enumerate(forks):
            if fork.width > self._loaded.context:
                raise self._too_long(index, fork.width, "the question and its choices exceed")
        return forks

    def _too_long(self, index: int, tokens: int, what: str) -> DataError:
        return DataError(
            f"{what} the {self._loaded.context} tokens that {self._name!r} can read",
            where=self._called(index),
            value=f"{tokens} tokens",
            cure="shorten it, or leave that model out",
        )
