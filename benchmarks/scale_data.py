"""Memory and speed of the data side: 2 GB of text through a documents step and into token shards; MedQuAD beside a bare
tokenizer.

    python -m benchmarks.scale_data memory [--gigabytes 2]
    python -m benchmarks.scale_data tokens

The large text is MedQuAD's answers over and over, each time with a sixth of its words drawn anew, so that no document
repeats another. It needs about five times its size on disk while it runs, and nothing afterwards.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.rows import Row, write
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.data.readers import Example, Text, read_examples, read_texts
from metier.data.stage import Documents
from metier.text.artifacts import conversation_row, write_jsonl
from metier.text.nouns import Conversation
from metier.train import shards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def encoded(folder: str, split: str) -> dict[str, float]:
    """Encoding by worker processes, and then every block, in a process of its own."""
    from metier.models.load import read_tokenizer

    encoder = shards.Documents(read_tokenizer(SHARED / "tokenizers" / "tinyllama"))
    started = time.perf_counter()
    with Peak() as peak:
        found = shards.encode(
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
    return [row for name in TOKENIZERS for row in (beside(name, "documents"), beside(name, "examples"))]


def beside(name: str, form: str) -> Row:
    """One tokenizer, one form: the median ratio of rounds that take turns.

    Each side runs in a process of its own: what `encode_batch` leaves behind in the heap slows whoever comes next.
    """
    ratios = []
    for _ in range(ROUNDS):
        ours, bare = alone(seconds_ours, name, form), alone(seconds_bare, name, form)
        ratios.append(bare["seconds"] / ours["seconds"])
    case = f"reading and tokenising MedQuAD into shards as {form}, {name}"
    spread = (round(min(ratios), 3), round(max(ratios), 3))
    return Row(case, round(statistics.median(ratios), 3), 0.8, "x speed", "higher", "encode_batch", ROUNDS, spread)


def seconds_ours(name: str, form: str) -> dict[str, float]:
    """From the file to shards. The first use of a tokenizer, which loads libraries, is not counted."""
    tokenizer, bare = read_both(name)
    tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    bare.encode_batch(["Hello"])
    with temporary() as work:
        started = time.perf_counter()
        write_jsonl(work / "train.jsonl", FORMS[form](None))
        encoder = shards.Documents(tokenizer) if form == "documents" else shards.Conversations(tokenizer, 10**6)
        shards.encode(work / "train.jsonl", encoder, cache=work, events=Events("data"), check_stop=lambda: None)
        return {"seconds": time.perf_counter() - started}


def seconds_bare(name: str, form: str) -> dict[str, float]:
    """The same texts from memory through `encode_batch`; conversations are rendered for nothing."""
    _, bare = read_both(name)
    texts: list[str] = []
    for _ in FORMS[form](texts):
        pass
    bare.encode_batch(["Hello"])
    started = time.perf_counter()
    bare.encode_batch(texts, add_special_tokens=False)
    return {"seconds": time.perf_counter() - started}


def read_both(name: str) -> "tuple[PreTrainedTokenizerFast, Any]":
    import tokenizers

    from metier.models.load import read_tokenizer
    from metier.text.prompts import use_template

    folder = SHARED / "tokenizers" / name
    tokenizer = read_tokenizer(folder)
    use_template(tokenizer, "zephyr")
    return tokenizer, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def as_documents(texts: list[str] | None) -> Iterator[dict[str, Any]]:
    """Every answer a document. texts: gathers what is to be encoded."""
    for text in read_texts(MEDQUAD, field="answer", note=lambda _text: None):
        if isinstance(text, Text):
            if texts is not None:
                texts.append(text.text)
            yield {"id": text.where, "text": text.text}


def as_examples(texts: list[str] | None) -> Iterator[dict[str, Any]]:
    """Questions and answers through a chat template."""
    for example in read_examples(MEDQUAD, note=lambda _text: None):
        if isinstance(example, Example):
            if texts is not None:
                asked, said = (m.content for m in example.messages)
                texts.append(f"<|user|>\n{asked}</s>\n<|assistant|>\n{said}</s>\n")
            yield conversation_row(Conversation(example.where, example.messages))


FORMS: dict[str, Callable[[list[str] | None], Iterator[dict[str, Any]]]] = {
    "documents": as_documents,
    "examples": as_examples,
}


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="metier-") as folder:
        yield Path(folder)


def in_memory(gigabytes: float) -> list[Row]:
    """The peak memory of a data step and of encoding what it made."""
    with temporary() as folder:
        source = folder / "text.jsonl"
        make_text(source, int(gigabytes * 1e9))
        first = alone(documents, str(folder), str(source))
        print(f"documents: {first}", flush=True)
        source.unlink()
        second = alone(encoded, str(folder), str(folder / "out" / "train.jsonl"))
        print(f"shards: {second}", flush=True)
    rows = []
    for what, found in (("a documents step", first), ("token shards, and all blocks of them", second)):
        case = f"{gigabytes:g} GB of text through {what}: peak resident memory of all processes"
        rows.append(Row(case, round(found["peak"] / 1e9, 3), 1.5, "GB", "lower", n=1))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("memory", "tokens"))
    parser.add_argument("--gigabytes", type=float, default=2.0)
    asked = parser.parse_args()
    if asked.part == "memory":
        write("data", f"{COMMAND} memory", in_memory(asked.gigabytes))
    else:
        write("data", f"{COMMAND} tokens", beside_tokenizers())


if __name__ == "__main__":
    main()
