"""Memory and speed of the data side: 2 GB of text through a documents step and into token shards; MedQuAD beside a bare
tokenizer.

    python -m benchmarks.scale_data [--gigabytes 2]

The text is MedQuAD's answers over and over, each time with a sixth of its words drawn anew, so that no document repeats
another. It needs about five times its size on disk while it runs, and nothing afterwards.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.rows import Row, write
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.data.stage import Documents

SHARED = Path(__file__).parents[2] / "shared"
MEDQUAD = SHARED / "data" / "medquad" / "medquad_answered.jsonl"
TOKENIZERS = ("tinyllama", "gpt2", "llama3")
COMMAND = "python -m benchmarks.scale_data"
ROUNDS = 5


class Peak:
    """The largest resident memory of a process and all below it, looked at ten times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def make_text(path: Path, size: int) -> None:
    """Write so many bytes of rows with a text each."""
    random = np.random.default_rng(0)
    answers = [json.loads(line)["answer"].split() for line in MEDQUAD.open(encoding="utf-8")]
    starts = np.concatenate([[0], np.cumsum([len(words) for words in answers])])
    words = np.array([word for answer in answers for word in answer], dtype=object)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            mixed = np.where(
                random.random(len(words)) < 1 / 6, words[random.integers(0, len(words), len(words))], words
            )
            for start, end in pairwise(starts):
                if written < size:
                    written += file.write(json.dumps({"text": " ".join(mixed[start:end])}) + "\n")


def context(folder: Path, **files: Path) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = {name: Source(name, (path,), "", "") for name, path in files.items()}
    return Context("data", folder / "out", folder / "measured", folder / "scratch", Events("data"), sources)


def documents(folder: str, source: str) -> dict[str, float]:
    """The data step, in a process of its own: peak memory, time, rows."""
    stage = Documents.model_validate({"sources": [{"path": "text"}], "heldout_fraction": 0.002})
    ctx = context(Path(folder), text=Path(source))
    started = time.perf_counter()
    with Peak() as peak:
        counts = stage.run(ctx)
    return {"peak": peak.bytes, "seconds": time.perf_counter() - started, "rows": counts["train"]}


def shards(folder: str, split: str) -> dict[str, float]:
    """Encoding by worker processes, and then one epoch's worth of blocks, in a process of its own."""
    from metier.models.load import read_tokenizer
    from metier.train import shards as made

    encoder = made.Documents(read_tokenizer(SHARED / "tokenizers" / "tinyllama"))
    started = time.perf_counter()
    with Peak() as peak:
        found = made.encode(
            Path(split), encoder, cache=Path(folder) / "cache", events=Events("data"), check_stop=lambda: None
        )
        seconds = time.perf_counter() - started
        pieces = [piece for _, piece in found.pieces(block_size=1024)]
    return {"peak": peak.bytes, "seconds": seconds, "tokens": found.trained, "pieces": len(pieces)}


def alone(function: Any, *arguments: str) -> dict[str, float]:
    """A call in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        result: dict[str, float] = pool.submit(function, *arguments).result()
        return result


def beside_tokenizers() -> list[Row]:
    """Reading MedQuAD and encoding it into shards, against `encode_batch` over the same texts held in memory."""
    import tokenizers

    from metier.data.readers import Text, read_texts
    from metier.models.load import read_tokenizer
    from metier.text.artifacts import write_jsonl
    from metier.train import shards as made

    rows = []
    texts = [json.loads(line)["answer"] for line in MEDQUAD.open(encoding="utf-8")]
    for name in TOKENIZERS:
        folder = SHARED / "tokenizers" / name
        tokenizer = read_tokenizer(folder)
        bare = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ratios = []
        for _ in range(ROUNDS):
            with temporary() as work:
                started = time.perf_counter()
                found = read_texts(MEDQUAD, field="answer", note=lambda _text: None)
                split = work / "train.jsonl"
                kept = ({"id": t.where, "text": t.text} for t in found if isinstance(t, Text))
                write_jsonl(split, kept)
                encoder = made.Documents(tokenizer)
                made.encode(split, encoder, cache=work, events=Events("data"), check_stop=lambda: None)
                ours = time.perf_counter() - started
            started = time.perf_counter()
            bare.encode_batch(texts, add_special_tokens=False)
            theirs = time.perf_counter() - started
            ratios.append(theirs / ours)
        case = f"reading and tokenising MedQuAD's answers into shards, {name}"
        spread = (min(ratios), max(ratios))
        rows.append(
            Row(case, statistics.median(ratios), 0.8, "x speed", "higher", "tokenizers encode_batch", ROUNDS, spread)
        )
    return rows


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="metier-") as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    size = parser.parse_args().gigabytes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    rows = beside_tokenizers()
    with temporary() as folder:
        source = folder / "text.jsonl"
        make_text(source, int(size * 1e9))
        first = alone(documents, str(folder), str(source))
        print(f"documents: {first}")
        source.unlink()
        second = alone(shards, str(folder), str(folder / "out" / "train.jsonl"))
        print(f"shards: {second}")
    label = f"{size:g} GB of text"
    for what, found in (("a documents step", first), ("token shards and their blocks", second)):
        case = f"{label} through {what}: peak resident memory of all its processes"
        rows.append(Row(case, round(found["peak"] / 1e9, 3), 1.5, "GB", "lower", n=1))
    write("data", COMMAND, rows)


if __name__ == "__main__":
    main()
