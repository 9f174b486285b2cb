"""`metier chat`: talk with a model that a recipe made, one in a folder, or a built-in one; or with several at once.

The conversation so far is given again with every question; when it no longer fits the model's context, the oldest
turns are forgotten, and that is said. Costs loading the model (seconds) and its memory.
"""

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from metier.core.errors import InputError, ModelError, nearest
from metier.core.store import Store
from metier.models.builtin import resolve
from metier.text.nouns import Message

if TYPE_CHECKING:
    from metier.models.load import Loaded

QUIT = ("/quit", "/exit", "/q")
CLEAR = "/clear"
SYSTEM = "/system"


@dataclass(frozen=True)
class Settings:
    """How answers are made. system: the first message, or None. max_new_tokens: the longest answer. seed: of the first
    answer's draws; each further one takes the next. stop: an answer ends before the first of these texts.
    """

    system: str | None
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass
class Conversation:
    """A model and what was said so far."""

    loaded: "Loaded"
    settings: Settings
    turns: list[Message] = field(default_factory=list)
    asked: int = 0

    def messages(self) -> list[Message]:
        """All that the model is given."""
        head = [Message("system", self.settings.system)] if self.settings.system else []
        return [*head, *self.turns]

    def answer(self, question: str) -> Generator[str, None, None]:
        """Ask, and give the answer in pieces as it comes. Keeps both in the history."""
        from metier.engine.local import stream

        self.turns.append(Message("user", question))
        prompt = self._fitting_prompt()
        said = ""
        try:
            for piece in stream(
                self.loaded,
                prompt,
                max_new_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                seed=self.settings.seed + self.asked,
                stop=self.settings.stop,
            ):
                said += piece
                yield piece
        finally:
            self.asked += 1
            # as answers are trained on: a template may write the space before them itself
            self.turns.append(Message("assistant", said.strip()))

    def _fitting_prompt(self) -> list[int]:
        """The prompt's ids, the oldest exchanges dropped until an answer has room. Raises InputError where none has."""
        from metier.text.chat import encode_prompt

        room = self.loaded.context - min(self.settings.max_new_tokens, self.loaded.context // 2)
        dropped = 0
        prompt = encode_prompt(self.loaded.tokenizer, self.messages())
        while len(prompt) > room and len(self.turns) > 1:
            del self.turns[:2]
            dropped += 1
            prompt = encode_prompt(self.loaded.tokenizer, self.messages())
        if dropped:
            typer.echo(f"(the model's {self.loaded.context} tokens are full: forgot {dropped} exchanges)", err=True)
        if len(prompt) > room:
            self.turns.pop()
            raise InputError(
                f"the question takes {len(prompt)} tokens, and the model has room for {room}", cure="ask a shorter one"
            )
        return prompt


def find_model(name: str, store: Store) -> Path:
    """The folder of `recipe/step` in the store, of a folder's path or of a built-in name."""
    recipe, slash, step = name.partition("/")
    steps = store.root / "refs" / recipe
    if slash and recipe and "/" not in step and steps.is_dir():
        artifact = store.ref(recipe, step)
        if artifact is not None and artifact.record["produces"] == "model":
            return artifact.files
        if not Path(name).is_dir():
            made = [path.name for path in steps.iterdir() if not path.name.startswith(".")]
            models = [m for m in made if (a := store.ref(recipe, m)) and a.record["produces"] == "model"]
            what = "that step made no model" if step in made else "the recipe has made no such step"
            raise ModelError(what, where=name, cure=nearest(step, models))
    return resolve(name, Path.cwd()).path


def limits_of(name: str, store: Store) -> list[str]:
    """What a recipe's `export` steps say that its models must not be used for; nothing for other models."""
    recipe, slash, _ = name.partition("/")
    steps = store.root / "refs" / recipe
    if not slash or not recipe or not steps.is_dir():
        return []
    made = (store.ref(recipe, path.name) for path in sorted(steps.iterdir()) if not path.name.startswith("."))
    exports = (one.record["config"] for one in made if one is not None and one.record.get("kind") == "export")
    return list(dict.fromkeys(str(limit) for config in exports for limit in config.get("limits") or ()))


def start_chat(names: Sequence[str], store: Path, settings: Settings, ask: str | None) -> None:
    """Load the models, and talk with all of them at once, or put one question to each."""
    folders = [find_model(name, Store(store)) for name in names]
    for limit in dict.fromkeys(limit for name in names for limit in limits_of(name, Store(store))):
        typer.echo(limit, err=True)
    from metier.models.load import load

    talks = [(name, Conversation(load(folder), settings)) for name, folder in zip(names, folders, strict=True)]
    if ask is not None:
        _ask(talks, ask)
        return
    if sys.stdin.isatty():
        typer.echo(f"{', '.join(names)}: ask away. {CLEAR} forgets, {SYSTEM} TEXT says what to be, {QUIT[0]} ends.")
    for question in _questions():
        if question == CLEAR:
            for _, talk in talks:
                talk.turns.clear()
        elif question == SYSTEM or question.startswith(f"{SYSTEM} "):
            told = question.removeprefix(SYSTEM).strip() or None
            for _, talk in talks:
                talk.settings = replace(talk.settings, system=told)
        elif question:
            try:
                _ask(talks, question)
            except InputError as error:
                typer.echo(f"error: {error}", err=True)


def _ask(talks: Sequence[tuple[str, Conversation]], question: str) -> None:
    if len(talks) == 1:
        _say(talks[0][1], question)
    else:
        _say_beside(talks, question)


def _say_beside(talks: Sequence[tuple[str, Conversation]], question: str) -> None:
    """Answers side by side, a piece of each in turn; under one another where nobody watches. Ctrl-C ends them."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    said = {name: "" for name, _ in talks}
    pieces = {name: talk.answer(question) for name, talk in talks}
    width = max(20, console.width // len(talks) - 1)

    def shown() -> Columns:
        return Columns([Panel(Text(said[name]), title=Text(name), width=width) for name, _ in talks], padding=0)

    watched = console.is_terminal
    try:
        with Live(shown(), console=console, refresh_per_second=8) if watched else nullcontext() as live:
            open_ones = list(pieces)
            while open_ones:
                for name in list(open_ones):
                    piece = next(pieces[name], None)
                    if piece is None:
                        open_ones.remove(name)
                        continue
                    said[name] += piece
                    if live is not None:
                        live.update(shown())
    except KeyboardInterrupt:
        typer.echo("[stopped]")
    finally:
        for stream in pieces.values():
            stream.close()
    if not watched:
        for name, text in said.items():
            typer.echo(f"{name}: {text}")


def _questions() -> Iterator[str]:
    """What the user types, until /quit, the end of the input or Ctrl-C at the prompt."""
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if question in QUIT:
            return
        yield question


def _say(conversation: Conversation, question: str) -> None:
    """Print an answer as it comes; Ctrl-C ends the answer, not the chat."""
    pieces = conversation.answer(question)
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo(" [stopped]", nl=False)
    finally:
        pieces.close()
        typer.echo()
