"""An engine whose model is in the memory of several processes of a cluster, each of which computes some of the batches.

Which prompts are computed together follows from all prompts, as in one process, and each batch is computed as there: so
answers are those of one process with as many threads as a worker has CPUs. They come as they are finished, in no order.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metier.core.workers import Spread
from metier.engine.interface import Asking, Choice, Prompts, Said, Schema, Share, refuse_schema


@dataclass(frozen=True)
class Told:
    """What a worker says of its model before it answers. lengths: tokens of each prompt. warnings: of where it is."""

    parameters: int
    context: int
    lengths: list[int]
    warnings: list[str]


@dataclass(frozen=True)
class _Part:
    """What a worker is given. labels: to choose among them, None to answer. done: as in `interface.Engine`."""

    folder: Path
    bits: Any
    dtype: Any
    asking: Asking
    name: str
    called: list[str]
    continuing: bool
    prompts: Prompts
    labels: Sequence[Sequence[str]] | None
    done: frozenset[int]
    share: Share = (0, 1)


class SpreadEngine:
    """bits: the weights are rounded to so many when they are loaded; dtype: what they are held in, where no bits are
    named. called: what each prompt is called in errors. told: hears what the first worker says before it answers.

    peak_bytes: the largest memory of a worker so far.
    """

    def __init__(
        self,
        spread: Spread,
        folder: Path,
        asking: Asking,
        *,
        bits: Any = None,
        dtype: Any = None,
        name: str,
        called: Sequence[str],
        continuing: bool = False,
        told: Callable[[Told], None] = lambda _: None,
    ) -> None:
        self._spread = spread
        self._part = _Part(
            folder.absolute(), bits, dtype, asking, name, list(called), continuing, (), None, frozenset()
        )
        self._told = told
        self.peak_bytes = 0

    def answers(
        self,
        prompts: Prompts,
        *,
        schema: Schema | None = None,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """As `interface.Engine.answers`, without schemas, as `LocalEngine`."""
        refuse_schema(schema, self._part.name)
        yield from self._found(replace(self._part, prompts=prompts, done=frozenset(done)), should_stop)

    def choices(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        """As `interface.Engine.choices`."""
        part = replace(self._part, prompts=prompts, labels=labels, done=frozenset(done))
        yield from self._found(part, should_stop)

    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """As `interface.Engine.likelihoods`."""
        for found in self.choices(prompts, continuations, done=done, should_stop=should_stop):
            yield [(index, one.logprobs) for index, one in found if one.logprobs is not None]

    def _found(self, part: _Part, should_stop: Callable[[], bool] | None) -> Iterator[Any]:
        count = self._spread.workers
        shares = [(replace(part, share=(number, count)),) for number in range(count)]
        for said in self._spread.stream(compute, shares, should_stop or (lambda: False)):
            if isinstance(said, Told):
                self._told(said)
            else:
                found, peak_bytes = said
                self.peak_bytes = max(self.peak_bytes, peak_bytes)
                yield found


def compute(part: _Part) -> Iterator[Any]:
    """In a worker: what it has to say of its share, each list with the memory that it took until then."""
    from metier.core.measure import PeakMemory
    from metier.engine.here import LocalEngine
    from metier.models.held import load_held
    from metier.models.load import load
    from metier.models.placed import place
    from metier.models.shape import count_parameters

    with PeakMemory() as memory:
        warnings: list[str] = []
        held = load_held(part.folder, part.bits) if part.dtype is None else load(part.folder, dtype=part.dtype)
        loaded = place(held, warnings.append)
        engine = LocalEngine(
            loaded,
            part.asking,
            name=part.name,
            called=part.called.__getitem__,
            continuing=part.continuing,
            share=part.share,
        )
        if part.share[0] == 0:
            lengths = [] if part.labels is not None else [len(ids) for ids in engine.encoded(part.prompts)]
            yield Told(count_parameters(loaded.model).total, loaded.context, lengths, warnings)
        if part.labels is None:
            for answers in engine.answers(part.prompts, done=part.done):
                if answers:
                    yield answers, memory.peak_bytes
            return
        for choices in engine.choices(part.prompts, part.labels, done=part.done):
            yield choices, memory.peak_bytes
