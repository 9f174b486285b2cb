"""Requests to stop, by each signal and by the time limit, in each kind of loop of the small run."""

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial

from benchmarks.faults import Fault, Found, Torture
from benchmarks.small_run import finish, said
from metier.cli.stopping import StopFlag
from metier.core.events import Event

Is = Callable[[Event], bool]


def _tells(*names: str) -> Is:
    return lambda event: event["event"] in names


def _encodes(event: Event) -> bool:
    return event["event"] == "progress" and str(event.get("task", "")).startswith("encode")


def _caches(event: Event) -> bool:
    return bool(event["event"] == "train" and event["at"] <= event["total"] / 2)


def _answers(event: Event) -> bool:
    return bool(event["event"] == "answers_so_far" and event["done"] < event["total"])


LOOPS: dict[str, tuple[tuple[str, ...], Is]] = {
    "data": (("texts", "pairs"), _tells("progress")),
    "synthesis": (("recalled",), _tells("progress")),
    "tokens": (("reader", "adapter"), _encodes),
    "cache building": (("reader",), _caches),
    "training": (("adapter",), _tells("train")),
    "dev loss": (("adapter",), _tells("dev")),
    "generation": (("answers",), _answers),
    "choosing": (("choices",), _tells("started", "progress")),
    "scores": (("scores",), _tells("started")),
    "likelihood": (("likelihood",), _tells("progress")),
}
"""Each kind of loop: the steps that have it, and the events that these tell in it."""
WIDE_LOOPS: dict[str, tuple[tuple[str, ...], Is]] = {
    "vocabulary": (("words",), _tells("progress")),
    "what is known already": (("tagged",), _tells("started", "progress")),
    "unlearning": (("forgetful",), _tells("train")),
    "pruning": (("smaller",), _tells("progress")),
    "guard": (("kept",), _tells("started", "progress")),
    "knowledge": (("known",), _tells("progress")),
    "export": (("shipped",), _tells("started", "progress")),
    "judging by rules": (("ruled",), _tells("progress")),
    "judging": (("verdicts",), _tells("started", "progress")),
}
"""The same of steps that only the wide form of the run has."""
WAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, None)
"""None: the time limit."""


def signals(torture: Torture, count: int) -> list[Fault]:
    """In each kind of loop, `count` times: the run stops with 75 and goes on to the same end.

    All else is made already: a run makes only the steps that have the loop.
    """
    found: list[Fault] = []
    loops = list((LOOPS if torture.short else LOOPS | WIDE_LOOPS).items())
    for name, (steps, is_so) in loops[:: 4 if torture.short else 1]:
        is_in = partial(_is_in, steps, is_so)
        places = sum(map(is_in, torture.story))
        if not places:
            raise SystemExit(f"the run has no loop of the kind {name}")
        for turn in range(count):
            way = WAYS[len(found) % len(WAYS)]
            found.append(partial(_stopped, torture, name, steps, is_in, turn % places + 1, way))
    return found


def _is_in(steps: tuple[str, ...], is_so: Is, event: Event) -> bool:
    return event["step"] in steps and is_so(event)


def _stopped(
    torture: Torture, name: str, steps: tuple[str, ...], is_in: Is, nth: int, way: signal.Signals | None
) -> Found:
    store = torture.without(steps)
    flag = StopFlag(minutes=60)
    left = itertools.count(1)

    def hear(event: Event) -> None:
        if is_in(event) and next(left) == nth:
            if way is None:
                flag._deadline = 0.0
            else:
                os.kill(os.getpid(), way)

    code = finish(torture.world, store, hear=hear, flag=flag)
    last = not any(is_in(event) for event in _rest(torture.story, is_in, nth))
    if code != 75 and not (code == 0 and last):
        told = said(torture.world, store)
        print(f"LOST: {way or 'time limit'} in {name} ended with {code}: {told[-2000:]}", flush=True)
        return Counter([(name, False)])
    return Counter([(name, torture.survives(store, f"{way or 'time limit'} in {name}"))])


def _rest(story: list[Event], is_in: Callable[[Event], bool], nth: int) -> list[Event]:
    places = [place for place, event in enumerate(story) if is_in(event)]
    return story[places[nth - 1] + 1 :]
