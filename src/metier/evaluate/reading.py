"""Bits per byte and perplexity of contenders on held-out documents.

Bits per byte = sum of the negative log-likelihood / (ln 2 x UTF-8 bytes of the same text), so models with different
tokenizers compare. Perplexity is per token and compares only where the tokenizer is the same; there it restates bits
per byte, so it is shown and not tested again. The text alone is counted: not the end token, and the begin token (or,
for a tokenizer without one, the end token) is what the first token follows.

Documents are resampled whole. Refuses empty documents and a model whose loss is not finite.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence

from metier.core.errors import DataError, ModelError
from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.engine.documents import document_nll
from metier.evaluate.answering import stopper
from metier.evaluate.table import CLEAN, Column, Row
from metier.models.load import Loaded, load
from metier.models.placed import free, place
from metier.text.artifacts import answers_path, read_jsonl, write_json, write_jsonl
from metier.text.chat import encode_reading
from metier.text.nouns import Document

LOG2 = math.log(2)
MOST_NATS = 700.0
"""Perplexity above e^700 is no number; no model that reads is anywhere near."""


def read_all(
    ctx: Context,
    names: Sequence[str],
    texts: Mapping[str, Sequence[Document]],
    *,
    window: int | None,
    stride: int | None,
) -> list[Row]:
    """A row for each contender, documents step and document. Finished contenders are kept for a run that goes on."""
    rows: list[Row] = []
    measured: Row = {}
    for name in names:
        kept = answers_path(ctx.scratch, name)
        timing = kept.with_suffix(".measured.json")
        if kept.exists():
            ctx.events.note(f"{name}: readings kept from the run before")
        else:
            ctx.check_stop()
            kept.parent.mkdir(parents=True, exist_ok=True)
            found, cost = _read(ctx, name, texts, window=window, stride=stride)
            free()
            write_json(timing, cost)
            write_jsonl(kept, found)
        rows += read_jsonl(kept)
        measured[name] = json.loads(timing.read_text(encoding="utf-8"))
    write_json(ctx.measured / "contenders.json", measured)
    return rows


def columns(rows: Sequence[Row], seen: Collection[tuple[str, str]] = frozenset()) -> list[Column]:
    """Bits per byte, then perplexity, of each documents step and contender.

    seen: (step, id) of documents that a contender was trained on. A step that has such and others comes once more with
    the others alone, as `step (clean)`.
    """
    names = list(dict.fromkeys(str(row["contender"]) for row in rows))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["group"]), []).append(row)
    for group, inside in list(groups.items()):
        clean = [row for row in inside if (group, row["id"]) not in seen]
        if 0 < len(clean) < len(inside):
            groups[f"{group} ({CLEAN})"] = clean
    made = []
    for metric, scale, weight in (("bits_per_byte", LOG2, "bytes"), ("perplexity", 1.0, "tokens")):
        for group in groups:
            for name in names:
                here = [row for row in groups[group] if row["contender"] == name]
                values, weights = [row["nll"] / scale for row in here], [row[weight] for row in here]
                restates = metric == "perplexity"
                made.append(
                    Column(name, metric, group, values, False, weights, exponential=restates, compared=not restates)
                )
    return made


def _read(
    ctx: Context, name: str, texts: Mapping[str, Sequence[Document]], *, window: int | None, stride: int | None
) -> tuple[list[Row], Row]:
    watch = Stopwatch()
    rows: list[Row] = []
    with PeakMemory() as memory:
        loaded = place(load(ctx.source(name).path), ctx.events.warning)
        for group, documents in texts.items():
            ids = [encode_reading(loaded.tokenizer, document.text) for document in documents]
            _warn_of_unknown(ctx, name, group, loaded, ids)
            found = document_nll(
                loaded,
                ids,
                window=window,
                stride=stride,
                on_progress=lambda done, total, group=group: ctx.events.progress(  # type: ignore[misc]
                    f"{name} reads {group}", done, total, unit="documents"
                ),
                should_stop=stopper(ctx),
            )
            rows += [_row(name, group, d, f.nll, f.tokens) for d, f in zip(documents, found, strict=True)]
    return rows, {"seconds": watch.seconds, "peak_rss_bytes": memory.peak_bytes}


def _row(name: str, group: str, document: Document, nll: float, tokens: int) -> Row:
    size = len(document.text.encode())
    if not size or not tokens:
        raise DataError(f"a document of {group!r} has no text to read", where=f"document {document.id}")
    if not nll / tokens < MOST_NATS:
        raise ModelError(
            f"{name!r} gives a document of {group!r} no finite likelihood",
            where=f"document {document.id}",
            value=nll,
            cure="its training diverged: lower the learning rate",
        )
    return {
        "id": document.id,
        "contender": name,
        "group": group,
        "bits_per_byte": nll / LOG2 / size,
        "perplexity": math.exp(nll / tokens),
        "nll": nll,
        "tokens": tokens,
        "bytes": size,
    }


def _warn_of_unknown(ctx: Context, name: str, group: str, loaded: Loaded, ids: Sequence[Sequence[int]]) -> None:
    """One unknown token may stand for many bytes, which makes them look cheap."""
    unknown = loaded.tokenizer.unk_token_id
    count = sum(document.count(unknown) for document in ids) if unknown is not None else 0
    if count:
        ctx.events.warning(
            f"{name}: its tokenizer does not know {count} pieces of {group}; bits per byte comes out too low there"
        )
