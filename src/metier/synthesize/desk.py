"""Questions put to an engine, each reply kept as it comes: whoever is killed goes on, and asks nothing twice.

Replies lie in the step's scratch, one JSON line each under the digest of what was asked and how often it came before,
and are on the disk before anything is made of them. A line that was cut short is dropped.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from metier.core.errors import StoreError
from metier.core.fingerprint import digest
from metier.core.stage import Context
from metier.engine.interface import Engine, Said, Schema
from metier.engine.remote import RemoteEngine
from metier.synthesize.pair import Row
from metier.text.artifacts import message_rows
from metier.text.nouns import Message

EVERY_SECONDS = 0.5
"""How often replies are written and seen on the disk."""


class Desk:
    """Asks one engine. name: of the file with its replies."""

    def __init__(self, ctx: Context, engine: Engine, name: str = "replies") -> None:
        self._ctx = ctx
        self._engine = engine
        self._path = _path(ctx, name)
        self._known = _read(self._path)
        self._used: dict[str, Row] = {}
        if self._known:
            ctx.events.note(f"{len(self._known)} replies kept from the run before")

    def ask(self, task: str, prompts: Sequence[Sequence[Message]], schema: Schema | None = None) -> list[str]:
        """The replies to these, in order. schema: for endpoints; a model that runs here is told in words alone."""
        keys = _keys(task, prompts)
        done = {i for i, key in enumerate(keys) if key in self._known}
        held = schema if isinstance(self._engine, RemoteEngine) else None
        waiting: list[tuple[int, Said]] = []
        last = monotonic()
        try:
            if len(done) < len(prompts):
                for part in self._engine.answers(prompts, schema=held, done=done, should_stop=self._stopped):
                    waiting += part
                    if monotonic() - last >= EVERY_SECONDS:
                        self._keep(task, keys, waiting)
                        last = monotonic()
        finally:
            if waiting:
                self._keep(task, keys, waiting)
        self._ctx.check_stop()
        self._used |= {key: self._known[key] for key in keys}
        return [str(self._known[key]["text"]) for key in keys]

    def took(self) -> Row:
        """What the replies that were used took, whichever run they are of."""
        rows = list(self._used.values())
        return {
            "requests": len(rows),
            "tokens_read": sum(row["read"] for row in rows),
            "tokens_written": sum(row["tokens"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
        }

    def _keep(self, task: str, keys: Sequence[str], waiting: list[tuple[int, Said]]) -> None:
        fresh: dict[str, Row] = {}
        for index, said in waiting:
            key = keys[index]
            if key not in self._known:
                row = {"text": said.text, "tokens": said.tokens, "read": said.read, "seconds": said.seconds}
                fresh[key] = {"key": key, **row}
        waiting.clear()
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fresh.values()))
            file.flush()
            os.fsync(file.fileno())
        self._known |= fresh
        self._ctx.events.progress(task, sum(key in self._known for key in keys), len(keys), unit="replies")

    def _stopped(self) -> bool:
        self._ctx.check_stop()
        return False


def kept_replies(ctx: Context, name: str = "replies") -> list[Row]:
    """The replies that earlier runs of the step left: `read` and `tokens` of each, and what it said."""
    return list(_read(_path(ctx, name)).values())


def _path(ctx: Context, name: str) -> Path:
    return ctx.scratch / f"{name}.jsonl"


def _keys(task: str, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """A key for each prompt; equal ones are told apart by their place among their like."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        key = digest([task, message_rows(prompt)])
        found.append(f"{key}-{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return found


def _read(path: Path) -> dict[str, Row]:
    """The kept replies by key; a last line that was cut short is cut off."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return {row["key"]: row for row in map(json.loads, whole.decode("utf-8").split("\n")[:-1])}
    except (ValueError, KeyError, TypeError) as error:
        cure = "delete the file and run again"
        raise StoreError(f"kept replies cannot be read: {error}", where=str(path), cure=cure) from error
