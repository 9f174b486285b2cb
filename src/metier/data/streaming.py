"""The stage `stream`: a corpus that is larger than the disk, or that nobody wants twice on it, as a list of its shards.

Nothing is copied: shards are looked up once, with their sizes and what their file system says of their contents, and
`pretrain` reads them as it goes. Some documents at the beginnings of shards are held out for a dev loss; they are all
that is written. Costs a look at each shard, and seconds for what is held out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metier.core import remote
from metier.core.errors import DataError
from metier.core.stage import Config, Context, ShardPattern, Source, Stage
from metier.text.artifacts import write_json, write_jsonl
from metier.text.corpus import STREAM, Corpus, Shard, gathered, texts, write_corpus

Found = Sequence[tuple[str, Sequence[Path], str]]


class StreamSource(Config):
    """Where shards lie."""

    path: ShardPattern
    """A folder, a glob, or a URL of either that fsspec opens, such as s3://bucket/folder/*.jsonl.zst or
    hf://datasets/owner/name@commit/data/*.parquet. Files: .jsonl, .ndjson, .parquet, .txt and .md."""
    field: str = Field("text", min_length=1)
    """The field or column that holds the text."""


class Stream(Stage):
    """Name a corpus that `pretrain` reads as a stream: shards are listed, not copied, tokenised as they come."""

    produces: ClassVar[str] = STREAM

    kind: Literal["stream"] = "stream"
    """What this step does."""
    sources: list[StreamSource] = Field(min_length=1)
    """Where the shards lie; all are read together."""
    heldout: int = Field(100, ge=0)
    """Documents at the beginnings of shards that are not trained on, for the dev loss; of at most that many shards."""
    shuffle_buffer: float = Field(64.0, gt=0)
    """Megabytes of text that are shuffled and packed at a time, all lanes together. Shards come in a new order each
    pass; within one, texts move as far as the buffer reaches."""
    lanes: int = Field(8, ge=1, le=1024)
    """Streams that are read side by side, each with shards and a part of the buffer of its own; processes share them,
    so more processes than lanes do not read faster. Where there are fewer shards, lanes share them line by line."""
    min_chars: int = Field(1, ge=1)
    """Shorter texts are passed over."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What is done about a row that is malformed or has no text: refuse stops and names file and line, skip passes it
    over and counts it."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Look at what lies on this machine, and whether URLs could be opened. Asks nothing of a network."""
        paths = [source.path for source in self.sources]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise DataError("the same shards are named twice", where="sources", value=twice, cure="name them once")
        for source in self.sources:
            if remote.is_url(source.path):
                remote.opened(source.path)
            else:
                shards = gathered([(source.path, sources[source.path].paths, source.field)])
                if self.bad_rows == "refuse":
                    next(texts(shards[0]), None)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """List the shards, write down which, and hold some documents out."""
        shards = gathered([(s.path, ctx.source(s.path).paths, s.field) for s in self.sources])
        if len(shards) < self.lanes:
            ctx.events.note(
                f"{len(shards)} shards for {self.lanes} lanes: lanes share shards line by line, and each reads the "
                "whole of its shard"
            )
        chosen = self._chosen(shards)
        held = list(self._held_out(shards, chosen, ctx))
        shards = [replace(shard, skip=chosen.get(shard.name, 0)) for shard in shards]
        corpus = Corpus(tuple(shards), self.shuffle_buffer * 1e6, self.lanes, self.bad_rows == "skip", self.min_chars)
        self._check_rest(corpus)
        write_corpus(ctx.out, corpus)
        write_jsonl(ctx.out / "heldout.jsonl", held)
        told = {"shards": len(shards), "bytes": corpus.size}
        write_json(ctx.out / "about.json", {"counts": {"heldout": len(held)}, **told})
        ctx.events.note(f"{len(shards):,} shards of {corpus.size / 1e9:.2f} GB; {len(held)} documents held out")
        return {**told, "heldout": len(held)}

    def _chosen(self, shards: Sequence[Shard]) -> dict[str, int]:
        """How many rows of which shards are held out: of as many shards as can be, evenly spaced."""
        count = min(len(shards), self.heldout)
        if count == 0:
            return {}
        return {shards[i * len(shards) // count].name: ceil(self.heldout / count) for i in range(count)}

    def _held_out(self, shards: Sequence[Shard], chosen: Mapping[str, int], ctx: Context) -> Iterator[dict[str, str]]:
        bad: list[str] | None = [] if self.bad_rows == "skip" else None
        left = self.heldout
        for done, shard in enumerate((shard for shard in shards if shard.name in chosen), 1):
            ctx.check_stop()
            for text, place in texts(shard, bad=bad):
                if place.row > chosen[shard.name]:
                    break
                if len(text) >= self.min_chars and left > 0:
                    left -= 1
                    yield {"id": f"{shard.name}:{place.row}", "text": text}
            ctx.events.progress("held out", done, len(chosen), unit="shards")

    def _check_rest(self, corpus: Corpus) -> None:
        """Raise DataError where nothing is left to train on, as far as shards are small enough to be looked through."""
        for shard in corpus.shards:
            if any(text for text, _ in texts(shard, bad=[])):
                return
        raise DataError(
            "no document is left to train on",
            where="heldout",
            value=self.heldout,
            cure="hold fewer documents out, or use a `documents` step: the corpus is small",
        )
