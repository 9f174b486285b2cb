"""What reading a corpus as a stream takes: `python -m benchmarks.streams`. Rows in benchmarks/results/scale.json.

Corpora of two sizes are written to a temporary folder, packed by gzip, and read once through the lanes that `pretrain`
reads (tokenised by the seedling's tokenizer, shuffled, packed), each in a process of its own without training. What is
measured: peak memory with the large one over peak memory with the small one, which a bounded buffer keeps near 1; and
what a `stream` step writes, beside the corpus. Takes a minute.
"""

import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, write

COMMAND = "python -m benchmarks.streams"
SIZES = {"small": 4, "large": 40}
"""Shards of SHARD_BYTES each."""
SHARD_BYTES = 1_000_000
SETTINGS = {"shuffle_buffer": 4.0, "lanes": 4, "heldout": 20}
BLOCK, BATCH = 512, 8
WORDS = ("crab", "sand", "bay", "tide", "shell", "kelp", "rock", "gull", "foam", "pool", "reef", "drift", "claw")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]))))
        return
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for size, shards in SIZES.items():
            folder = Path(name) / size
            make(folder, shards)
            command = [sys.executable, "-m", "benchmarks.streams", "--child", str(folder)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[size] = json.loads(said.splitlines()[-1])
            print(size, found[size], flush=True)
    small, large = found["small"], found["large"]
    ratio = large["peak"] / small["peak"]
    what = (
        f"a stream of {large['text'] / 1e6:.0f} MB of text beside one of {small['text'] / 1e6:.0f} MB, buffer of 4 MB: "
        f"peak memory ({large['peak'] / 1e6:.0f} and {small['peak'] / 1e6:.0f} MB; {large['tokens'] / 1e6:.1f} M tokens"
        f", {large['text'] / large['seconds'] / 1e6:.1f} MB/s)"
    )
    write(
        "scale",
        COMMAND,
        [
            Row(what, round(ratio, 3), 1.1, "x memory", "lower", n=1),
            Row(
                "a stream: what is written to the disk",
                round(large["written"] / large["text"], 5),
                0.01,
                "of the text",
                "lower",
                n=1,
            ),
        ],
    )


def make(folder: Path, shards: int) -> None:
    folder.mkdir()
    pick = random.Random(0)
    for number in range(shards):
        size = 0
        with gzip.open(folder / f"part-{number:03d}.jsonl.gz", "wt", compresslevel=1) as file:
            while size < SHARD_BYTES:
                text = " ".join(pick.choices(WORDS, k=pick.randrange(20, 400)))
                size += len(text)
                file.write(json.dumps({"text": text}) + "\n")


def child(folder: Path) -> dict[str, float]:
    """List and read a corpus once; peak memory of the process, and what was written."""
    from benchmarks.estimates import high_water
    from metier.core.events import Events
    from metier.core.stage import Context, Source
    from metier.data.streaming import Stream
    from metier.models.builtin import BUILTIN
    from metier.models.load import read_tokenizer
    from metier.text.corpus import read_corpus
    from metier.train.batches import size_of
    from metier.train.shards import Documents
    from metier.train.streams import Reader, Streams
    from metier.train.together import ALONE

    files = Source("*.gz", tuple(sorted(folder.glob("*.gz"))), "", "0")
    places = [folder / name for name in ("out", "measured", "scratch")]
    for place in places:
        place.mkdir()
    ctx = Context("corpus", *places, Events("corpus"), {"*.gz": files})
    Stream.model_validate({"sources": [{"path": "*.gz"}], **SETTINGS}).run(ctx)
    corpus = read_corpus(ctx.out, [files])
    reader = Reader(corpus, Documents(read_tokenizer(BUILTIN["seedling"])).light(), BLOCK, 0)
    streams = Streams(reader, 10**9, BATCH, 1, None, ALONE, Events("read"), lambda: None)
    started, tokens, position = time.perf_counter(), 0, 0
    while streams.passes == 0:
        tokens += sum(size_of(micro) for micro in streams.window(position))
        position += 1
    text = len(corpus.shards) * SHARD_BYTES
    written = sum(path.stat().st_size for path in ctx.out.rglob("*") if path.is_file())
    seconds = time.perf_counter() - started
    return {"peak": high_water(), "tokens": tokens, "text": text, "written": written, "seconds": seconds}


if __name__ == "__main__":
    main()
