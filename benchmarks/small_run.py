"""A small run of every kind of step, a few seconds long, in a forked process that may be killed, stopped or starved.

The parent imports torch and never computes with it, so that each run is a fork and starts in no time. A run writes its
events to a file, and when it is saving.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401 (so that every fork has it)

import metier.evaluate.answering
import metier.evaluate.choosing
import metier.evaluate.reading
import metier.export.merge
import metier.models.adapter
import metier.synthesize.speaking
import metier.train.job
from metier.cli.stopping import StopFlag
from metier.core.errors import MetierError
from metier.core.events import Event, Listener
from metier.core.store import Store
from metier.core.upkeep import verify
from metier.models.builtin import BUILTIN
from metier.pipeline import run
from metier.recipe import load_recipe

RECIPE = """\
name: small
steps:
  texts: {kind: documents, sources: [{path: texts.jsonl}], heldout_fraction: 0.2}
  pairs: {kind: examples, sources: [{path: pairs.jsonl, keep: [choices, label]}], dev_fraction: 0.2, test_fraction: 0.3}
  recalled: {kind: recall, model: base, count: 6, max_new_tokens: 12, min_chars: 1, batch_size: 2}
  reader:
    {kind: pretrain, model: base, documents: texts, method: {freeze: {blocks: 1, head: false}}, epochs: 2,
     batch_size: 4, block_size: 64, accumulation: 2, precision: fp32, learning_rate: 1.0e-3, prefix_cache: PLACE,
     log_every: 1}
  adapter:
    {kind: tune, model: reader, examples: pairs, method: {lora: {r: 2, alpha: 4, dropout: 0.1}}, epochs: 2,
     batch_size: 4, max_length: 64, precision: fp32, learning_rate: 1.0e-3, dev_every: 2, keep_best: true, log_every: 1}
  specialist: {kind: merge, model: adapter}
  answers: {kind: answer, models: [base, specialist], questions: pairs, max_new_tokens: 6, batch_size: 2}
  choices: {kind: choose, models: [base, specialist], questions: pairs}
  scores: {kind: score, answers: answers}
  likelihood: {kind: perplexity, models: [base, specialist], documents: [texts]}
"""
WIDE = """\
  others: {kind: examples, sources: [{path: others.jsonl}], dev_fraction: 0.2}
  long: {kind: documents, sources: [{path: long.jsonl}], heldout_fraction: 0.1}
  words: {kind: extend_tokenizer, model: base, documents: long, max_new_tokens: 4, extend: always, min_count: 2}
  tagged: {kind: knows, model: base, examples: pairs, shots: 1, rounds: 2, samples: 1, batch_size: 2, max_new_tokens: 4}
  forgetful:
    {kind: unlearn, model: specialist, forget: pairs, retain: others, epochs: 1, batch_size: 4, max_length: 64,
     precision: fp32, learning_rate: 1.0e-4, dev_every: 2, log_every: 1}
  smaller:
    {kind: prune, model: specialist, method: {width: {fraction: 0.25, multiple: 8}}, heal: reconstruct,
     guard: {documents: texts, bits_margin: 9.0}}
  kept: {kind: guard, before: specialist, models: [smaller], conditions: {documents: texts, bits_margin: 9.0}}
  known: {kind: knowledge, models: [specialist, forgetful], forget: pairs, retain: others, max_new_tokens: 4}
  shipped: {kind: export, model: specialist}
  ruled: {kind: judge, answers: answers, judges: [evidence]}
  verdicts: {kind: judge, answers: answers, judges: [{model: base}], orders: 1, limit: 3}
"""
"""Steps that the wider form of it has besides: one of each kind that has a loop of its own."""
LEFT_OUT = ("  recalled:", "  choices:", "  likelihood:")
"""Steps that the shorter form of it does without."""
UNEXPECTED = 99
"""The exit code of a run that ended in an error that is none of ours."""

Outputs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A folder with a recipe, its data and its base model. log: where a run writes what it is doing."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "log"


def make_world(folder: Path, *, short: bool = False, wide: bool = False, prefix_cache: str = "disk") -> World:
    """Write the recipe, the data and a random model of two blocks. wide: with steps of every kind."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    words = ["the", "sea", "whale", "eats", "krill", "and", "swims", "below", "cold", "light", "small", "fish", "kelp"]
    texts = [" ".join(draw.choices(words, k=draw.randint(10, 60))) + "." for _ in range(24)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pairs = [
        {
            "question": f"Does the {draw.choice(words)} number {number} eat {draw.choice(words)}?",
            "answer": draw.choice(("yes", "no")),
            "choices": "yes|no",
        }
        for number in range(30)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair | {"label": pair["answer"]}) + "\n" for pair in pairs))
    others = [{"question": f"Where is number {number}?", "answer": draw.choice(words)} for number in range(12)]
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    syllables = ["ba", "ko", "lin", "dro", "mus", "ter", "phyl", "xa"]
    strange = ["".join(draw.choices(syllables, k=3)) for _ in range(40)]
    long = [{"text": " ".join(draw.choices(words + strange, k=120)) + "."} for _ in range(90)]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    lines = (RECIPE + WIDE * wide).replace("PLACE", prefix_cache).splitlines()
    kept = [line for line in lines if not (short and line.startswith(LEFT_OUT))]
    (folder / "recipe.yaml").write_text("\n".join(kept) + "\n")
    code = wait(fork(partial(_save_model, folder / "base"), folder / "model.err"))
    if code != 0:
        sys.exit((folder / "model.err").read_text())
    return World(folder)


def _save_model(folder: Path) -> int:
    from transformers import LlamaConfig, LlamaForCausalLM

    from metier.models.load import read_tokenizer
    from metier.models.save import save_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = read_tokenizer(BUILTIN["seedling"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return 0


def fork(task: Callable[[], int], errors: Path) -> int:
    """Run `task` in a child process, which ends with the code that it returns. Returns its id. errors: its stderr."""
    pid = os.fork()
    if pid:
        return pid
    code = UNEXPECTED
    try:
        file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = task()
    except BaseException:  # noqa: BLE001 (the process ends here)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Its exit code; minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go(
    world: World,
    store: Path,
    *,
    hear: Listener = lambda _event: None,
    flag: StopFlag | None = None,
    before: Callable[[], None] = lambda: None,
) -> int:
    """The run, as `metier run` does it, with a checkpoint after every step. Returns the exit code."""
    import metier.train.job as job

    torch.set_num_threads(1)
    log = os.open(world.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(event: Event) -> None:
        with contextlib.suppress(OSError):  # where files may not grow
            os.write(log, (json.dumps(event, default=str) + "\n").encode())
        hear(event)

    class Often(job.Checkpoints):
        def due(self) -> bool:
            return True

        def save(self, step: int, tensors: Any, state: Any) -> None:
            with contextlib.suppress(OSError):
                os.write(log, b'{"event": "saving", "step": ""}\n')
            super().save(step, tensors, state)
            with contextlib.suppress(OSError):
                os.write(log, b'{"event": "saved", "step": ""}\n')

    job.Checkpoints = Often  # type: ignore[misc]
    metier.evaluate.answering.EVERY_SECONDS = 0.0  # answers are kept after every token's round
    metier.synthesize.speaking.EVERY_SECONDS = 0.0
    before()
    try:
        with flag or StopFlag() as stop:
            run(load_recipe(world.recipe), Store(store), listeners=[tell], stop=stop)
    except MetierError as error:
        os.write(2, f"error: {error}\n".encode())
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def preload(world: World, store: Path) -> int:
    """One run, to its end; then import here what it imported, so that later forks need not. Returns its exit code."""
    names = world.folder / "modules"

    def task() -> int:
        code = go(world, store)
        names.write_text("\n".join(sys.modules))
        return code

    code = wait(fork(task, world.folder / f"{store.name}.err"))
    for name in names.read_text().split("\n") if names.exists() else ():
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork's first collection would copy all that was imported: a second after each contender
    return code


def start(world: World, store: Path, **named: Any) -> int:
    """The run in a child; its id."""
    return fork(partial(go, world, store, **named), world.folder / f"{store.name}.err")


def finish(world: World, store: Path, **named: Any) -> int:
    """The run in a child, to its end; its exit code."""
    return wait(start(world, store, **named))


def said(world: World, store: Path) -> str:
    """What the last run on that store wrote to stderr."""
    return (world.folder / f"{store.name}.err").read_text(errors="replace")


def outputs(store: Path) -> Outputs:
    """What every step made, by name, with size and digest."""
    kept = Store(store)
    found = {}
    for ref in sorted((store / "refs" / "small").iterdir()):
        made = kept.ref("small", ref.name)
        found[ref.name] = {} if made is None else {made.key: made.record["outputs"]}
    return found


def is_sound(store: Path) -> bool:
    """Whether every artifact that is there is whole to the byte."""
    found = verify(Store(store))
    return not found.damage and not found.lost


def events(world: World) -> list[Event]:
    """What runs wrote since the log was last cleared."""
    if not world.log.exists():
        return []
    lines = world.log.read_text().splitlines()
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # of a run that was killed in the midst of it
            found.append(json.loads(line))
    return found


def doing(world: World) -> str:
    """What the run was at when it wrote last: a step's name, or saving."""
    step, saving = "starting", False
    for event in events(world):
        saving = event["event"] == "saving"
        step = event["step"] or step
    return "saving" if saving else step


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    found: list[float] = []
    began = time.monotonic()
    yield found
    found.append(time.monotonic() - began)


def kill(pid: int) -> bool:
    """SIGKILL; whether it was still running."""
    os.kill(pid, signal.SIGKILL)  # a child that ended and was not waited for yet is still there
    return wait(pid) == -signal.SIGKILL
