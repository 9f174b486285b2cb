"""How much a training step will read, guessed from files: rows, bytes, a sample of the lengths, and bytes a token.

Where the data step has run, its about.json has the counts and some rows give the lengths. Where it has not, the
files that it will read stand for it. How many bytes a token stands for is tried on some words with the longest matches
that tokenizer.json knows (no tokenizer is loaded): off by 2 % or less for Llama's, Llama 3's, GPT-2's and the
seedling's on medical and marine text. Costs some tens of milliseconds, most of it for reading tokenizer.json.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, log2, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.stage import Source
from metier.text.corpus import SHARDS, STREAM
from metier.train.sizes import Reading

if TYPE_CHECKING:
    from metier.train.stage import Training

Row = Mapping[str, Any]
SAMPLE = 300
"""Rows whose lengths are looked at."""
BITS_A_BYTE = 3.6
"""Where there is no tokenizer.json with a list of tokens: a token of a vocabulary of V stands for about log2(V) / 3.6
bytes of English text, 4.2 at 32,000."""
TRIED_BYTES = 8000
LONGEST_TOKEN = 24
SPACES = ("\u2581", "\u0120")
"""How vocabularies write the space before a word: sentencepiece's and byte-level ones."""
TEMPLATE_BYTES = 16
"""What a chat template adds to each message."""
USUAL_BYTES = 900
"""A row of a data step that has not run."""
USUAL_BUFFER = 64e6
"""The shuffle buffer of a stream that is not listed yet."""
STREAM_COPIES, STREAM_MAKING = 4.0, 60e6
"""Of a stream's buffer, the texts and tokens of this chunk and the next, and what a tokenizer's answers take."""
UNLUCKY = 2.0
"""Standard deviations by which the largest micro-step is taken to exceed the mean."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    count: how many. lengths: pairs (bytes, of them targets) of a sample, one a row. text: some of it.
    """

    count: float
    lengths: tuple[tuple[float, float], ...]
    text: str
    about: bool = False


def reading_of(
    stage: "Training", sources: Mapping[str, Source], *, model: Path, vocabulary: int, length: int
) -> Reading:
    """What a stage will read. model: the folder with the tokenizer. length: the longest sequence, in tokens."""
    data = sources[stage.data]
    if data.produces == STREAM:
        return _streamed(stage, data, tokens_a_byte(model, "", vocabulary), length)
    rows = rows_of(data, "train")
    share = max(replay_share(data), stage.beside)
    measured, dev_split = stage.dev_source(sources)
    per_byte = tokens_a_byte(model, rows.text, vocabulary)
    lengths = [min(length, max(2.0, size * per_byte)) for size, _ in rows.lengths]
    kept = [(size * per_byte, asked * per_byte) for size, asked in rows.lengths]
    if stage.data_field == "documents":
        return _packed(stage, kept, rows, share, length, data, per_byte)
    mean = sum(lengths) / len(lengths)
    targets = sum(min(asked, got) for (_, asked), got in zip(kept, lengths, strict=True)) / len(lengths)
    count = rows.count / (1 - share)
    return _of(
        stage,
        tokens=count * mean,
        targets=count * targets,
        blocks=count,
        block=mean,
        spread=sqrt(sum((size - mean) ** 2 for size in lengths) / len(lengths)),
        length=sum(size**2 for size in lengths) / sum(lengths),
        uniform=max(lengths) - min(lengths) < 2,
        pieces=count,
        dev=sum(dev_tokens(measured, dev_split, per_byte, length)),
        longest=length,
        about=rows.about,
    )


def _streamed(stage: "Training", data: Source, per_byte: float, length: int) -> Reading:
    """A corpus that is read as it is trained on: as much as its steps say, in full blocks; what is held of it is the
    buffer's chunks alone."""
    steps, blocks = stage.most_steps(length) or 1, stage.batch_size * stage.accumulation
    tokens = float(steps * blocks * length)
    read = _of(
        stage,
        tokens=tokens,
        targets=tokens * (1 - 1 / length),
        blocks=float(steps * blocks),
        block=float(length),
        spread=0.0,
        length=float(length),
        uniform=False,
        pieces=float(steps * blocks),
        dev=sum(dev_tokens(data, "heldout", per_byte, length)),
        longest=length,
        about=False,
    )
    listed = (one / SHARDS for one in data.paths if (one / SHARDS).is_file())
    told = (json.loads(path.read_text(encoding="utf-8")) for path in listed)
    buffer = next((float(one["buffer_bytes"]) for one in told), USUAL_BUFFER)
    return replace(read, stream=STREAM_COPIES * buffer + STREAM_MAKING)


def _packed(
    stage: "Training",
    kept: list[tuple[float, float]],
    rows: Rows,
    share: float,
    length: int,
    data: Source,
    per_byte: float,
) -> Reading:
    """Documents in blocks that are full but for a little."""
    tokens = rows.count / (1 - share) * sum(size for size, _ in kept) / len(kept)
    stream = getattr(stage, "packing", "documents") == "stream"
    whole = [tokens] if stream else [size for size, _ in kept]
    parts = [part for size in whole for part in _split(size, length)]
    return _of(
        stage,
        tokens=tokens,
        targets=tokens * (1 - len(parts) / max(1.0, sum(parts))),
        blocks=tokens / length,
        block=float(length),
        spread=0.0,
        length=sum(part**2 for part in parts) / sum(parts),
        uniform=min(parts) > length - 2,
        pieces=tokens * len(parts) / sum(parts),
        dev=sum(dev_tokens(data, "heldout", per_byte, length)),
        longest=length,
        about=rows.about,
    )


def _of(
    stage: "Training",
    *,
    tokens: float,
    targets: float,
    blocks: float,
    block: float,
    spread: float,
    length: float,
    uniform: bool,
    pieces: float,
    dev: float,
    longest: int,
    about: bool,
) -> Reading:
    """Windows and micro-steps from how many blocks there are and how large they are."""
    size = stage.batch_size * stage.accumulation
    windows = max(1.0, ceil(blocks / size))
    at_once = min(stage.batch_size, blocks)
    micro = min(tokens, at_once * block + UNLUCKY * spread * sqrt(at_once))
    epochs = float(stage.epochs)
    most = stage.most_steps(longest)
    if most is not None:
        epochs = min(epochs, most / windows)
    return Reading(
        tokens=tokens,
        targets=max(1.0, targets),
        epochs=epochs,
        windows=windows,
        micro=micro,
        per_window=min(stage.accumulation, ceil(blocks / stage.batch_size)),
        length=length,
        uniform=uniform,
        pieces=pieces,
        dev=dev,
        dev_micro=min(dev, stage.batch_size * longest),
        about=about,
    )


def _split(size: float, length: int) -> Iterator[float]:
    while size > length:
        yield float(length)
        size -= length - 1
    yield max(2.0, size)


def tokens_a_byte(model: Path, text: str, vocabulary: int) -> float:
    """Tokens that a byte of such text makes, by the longest tokens that fit, word by word."""
    known = _vocabulary(model)
    words = text[:TRIED_BYTES].split()
    if not known or not words:
        return BITS_A_BYTE / log2(max(4, vocabulary))
    space = max(SPACES, key=lambda mark: sum(token.startswith(mark) for token in known))
    tokens = sum(_pieces(space + word, known) for word in words)
    return tokens / sum(len(word.encode()) + 1 for word in words)


def _pieces(word: str, known: Mapping[str, int]) -> int:
    """How many tokens a word makes; what no token begins with costs a token a byte."""
    count, start = 0, 0
    while start < len(word):
        ends = range(min(len(word), start + LONGEST_TOKEN), start, -1)
        end = next((end for end in ends if word[start:end] in known), None)
        count += 1 if end is not None else len(word[start].encode())
        start = start + 1 if end is None else end
    return count


@cache
def _vocabulary(model: Path) -> Mapping[str, int]:
    """The tokens of a tokenizer.json that lists them by name; empty for other kinds."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return {}
    listed = json.loads(path.read_text(encoding="utf-8"))["model"].get("vocab")
    return listed if isinstance(listed, dict) else {}


def rows_of(data: Source, split: str) -> Rows:
    """The rows of one split of a data step, run or not."""
    for folder in data.paths:
        known = _about(folder)
        rows = list(sample(folder / f"{split}.jsonl"))
        if rows and known:
            text = " ".join(" ".join(texts_of(row)) for row in rows[:40])
            return Rows(float(known["counts"].get(split, len(rows))), tuple(map(_size, rows)), text)
    files = sorted(files_behind(data))
    size = sum(path.stat().st_size for path in files)
    text = files[0].open(encoding="utf-8", errors="replace").read(TRIED_BYTES) if files else ""
    return Rows(max(1.0, size / USUAL_BYTES), ((USUAL_BYTES, USUAL_BYTES / 2),), text, about=True)


def replay_share(data: Source) -> float:
    """The share of an epoch that is mixed in: general text, refusals."""
    facts = [_about(folder) for folder in data.paths]
    shares = [float(f.get("replay_ratio") or 0.0) + float(f.get("refusal_share") or 0.0) for f in facts]
    return min(0.9, max(shares, default=0.0))


def dev_tokens(data: Source, split: str, per_byte: float, length: int) -> Iterator[float]:
    """The tokens of the dev split, as one number; nothing where there is none yet."""
    for folder in data.paths:
        known = _about(folder)
        lengths = [min(length, _size(row)[0] * per_byte) for row in sample(folder / f"{split}.jsonl")]
        if lengths and known:
            yield known["counts"].get(split, len(lengths)) * sum(lengths) / len(lengths)


def sample(path: Path) -> Iterator[Row]:
    """The first rows of an artifact's file; none where it is not there."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for _, line in zip(range(SAMPLE), file, strict=False))


def texts_of(row: Row) -> list[str]:
    """What a row says."""
    return [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]


def _size(row: Row) -> tuple[float, float]:
    """Bytes of text, and of them targets; each message with what the template adds."""
    if "text" in row:
        size = float(len(row["text"].encode()))
        return size, size
    whole = asked = 0.0
    for message in row["messages"]:
        size = len(message["content"].encode()) + TEMPLATE_BYTES
        whole += size
        asked += size if message["role"] == "assistant" else 0.0
    return whole, asked


def files_behind(source: Source) -> set[Path]:
    """The data files that a step which has not run will read, through all steps before it."""
    found = {path for path in source.paths if path.is_file()}
    if source.paths:
        return found
    return found.union(*(files_behind(before) for before in source.made_from))


def model_folder(source: Source) -> Path | None:
    """The folder of a model, or of the one that a step which has not run will start from."""
    for folder in source.paths:
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    folders: Iterable[Path | None] = (model_folder(before) for before in source.made_from)
    return next((folder for folder in folders if folder is not None), None)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "about.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known if "counts" in known else {}
