"""Corpora read as they are trained on: what is read, in bounded parts, and the same after any stop."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import ValidationError

import fakes
from metier.core.errors import DataError, InputError, Interrupted, RecipeError
from metier.core.events import Events
from metier.core.machine import Machine
from metier.core.stage import Context, Source
from metier.data.streaming import Stream
from metier.text.artifacts import read_jsonl
from metier.text.corpus import Corpus, Place, listed, read_corpus, texts
from metier.train.job import train
from metier.train.shards import Documents
from metier.train.stage import Pretrain
from metier.train.streams import Reader, Streams
from metier.train.together import ALONE

COURSE = {"model": "base", "documents": "corpus", "block_size": 64, "learning_rate": 1e-3, "precision": "fp32"}
SMALL = {"batch_size": 2, "accumulation": 2}


def text_of(number: int) -> str:
    return f"the crab {number} digs in sand. " * (1 + number % 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Ten shards of twenty documents."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(10):
        rows = [json.dumps({"text": text_of(20 * shard + i)}) + "\n" for i in range(20)]
        (folder / f"part-{shard}.jsonl").write_text("".join(rows))
    return folder


def source(folder: Path, pattern: str = "*.jsonl") -> Source:
    return Source(pattern, tuple(sorted(folder.glob(pattern))), pattern, "0")


def context(folder: Path, sources: dict[str, Source], **others: Any) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    events = others.pop("events", Events("t", folder / "events.jsonl"))
    return Context("t", folder / "out", folder / "measured", folder / "scratch", events, sources, **others)


def stream(folder: Path, shards: Path, **settings: Any) -> Source:
    """A `stream` step that has run, as a source of the next."""
    files = source(shards, settings.pop("pattern", "*.jsonl"))
    wanted = {"heldout": 4, "shuffle_buffer": 0.002, "lanes": 4, "sources": [{"path": files.name}], **settings}
    stage = Stream.model_validate(wanted)
    stage.check({files.name: files})
    ctx = context(folder, {files.name: files})
    stage.run(ctx)
    return Source("corpus", (ctx.out,), "", "0", (files,), "stream")


def fit(folder: Path, base: Path, corpus: Source, **others: Any) -> list[dict[str, Any]]:
    settings = {k: others.pop(k) for k in list(others) if k in Pretrain.model_fields}
    sources = {"base": Source("base", (base,), str(base), "0"), "corpus": corpus}
    stage = Pretrain.model_validate({**COURSE, **SMALL, "max_steps": 12, **settings})
    stage.check(sources)
    ctx = context(folder, sources, **others)
    train(stage, ctx)
    return list(read_jsonl(ctx.out / "train.jsonl"))


def reader(shards: Path, **settings: Any) -> Reader:
    found = tuple(listed("*", sorted(shards.iterdir()), "text"))
    corpus = Corpus(found, **{"buffer_bytes": 2000.0, "lanes": 4, "skip_bad": False, "min_chars": 1, **settings})
    return Reader(corpus, Documents(fakes.byte_tokenizer()), 64, 0)


def windows(made: Reader, steps: int) -> Streams:
    return Streams(made, steps, 2, 2, None, ALONE, Events("t"), lambda: None)


def decoded(pieces: Any) -> Counter[str]:
    """Whole documents, parts of one joined: id -> how often its first part came."""
    return Counter(piece.id for piece in pieces if piece.ids[0] == fakes.byte_tokenizer().bos_token_id)


@pytest.mark.parametrize(("lanes", "count"), [(4, 10), (3, 10), (8, 3), (8, 1)])
def test_a_pass_reads_every_document_once_whatever_the_lanes(shards: Path, lanes: int, count: int):
    for path in sorted(shards.iterdir())[count:]:
        path.unlink()
    made = reader(shards, lanes=lanes)
    found: Counter[str] = Counter()
    for lane in range(lanes):
        chunk = made.chunk(lane, windows(made, 1)._cursors[lane])
        while chunk.begins.passed == 0:
            found += decoded(piece for block in chunk.blocks for piece in block)
            assert sum(len(piece) for block in chunk.blocks for piece in block) < 2000 / lanes + 500
            chunk = made.chunk(lane, chunk.ends)
    assert len(found) == 20 * count
    assert set(found.values()) == {1}


def test_passes_and_seeds_have_other_orders_and_the_same_seed_the_same(shards: Path):
    made = reader(shards)
    first, second = ([s.name for s in made.shards(0, passed)] for passed in (0, 1))
    assert first != second
    assert first != [s.name for s in replace(made, seed=1).shards(0, 0)]
    assert first == [s.name for s in reader(shards).shards(0, 0)]
    one, two = (windows(reader(shards), 3).window(2) for _ in range(2))
    assert [p.id for m in one for p in m] == [p.id for m in two for p in m]


def test_reading_goes_on_from_any_window(shards: Path):
    plain = windows(reader(shards), 40)
    every = [[(p.id, p.ids.tolist()) for m in plain.window(i) for p in m] for i in range(40)]
    again = windows(reader(shards), 40)
    for position in (3, 17, 31):
        again.window(position)
        cursors = again.cursors(position)
        fresh = windows(reader(shards), 40)
        fresh.go_to(position, json.loads(json.dumps(cursors)))
        for at in range(position, min(40, position + 5)):
            assert [(p.id, p.ids.tolist()) for m in fresh.window(at) for p in m] == every[at]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_a_shard_is_read_on_from_every_place(tmp_path: Path, kind: str):
    rows = [text_of(i) for i in range(50)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": rows}), path, row_group_size=20)
    elif kind == "txt":
        path.write_text("".join(("a line of the bay\n" * 30_000) + "\n" for _ in range(3)))
    else:
        data = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
        if kind.endswith("zst"):
            zstandard = pytest.importorskip("zstandard")
            data = zstandard.ZstdCompressor().compress(data)
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    (shard,) = listed("a", [path], "text")
    every = list(texts(shard))
    assert len(every) == (2 if kind == "txt" else 50)
    for number, (_, place) in enumerate(every):
        assert list(texts(shard, place)) == every[number + 1 :]
    assert every[0][0] == (rows[0] if kind != "txt" else every[0][0])


class Stop:
    """Asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __call__(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("packing", ["documents", "stream"])
def test_training_that_was_stopped_anywhere_ends_with_the_same_losses(
    tmp_path: Path, shards: Path, base: Path, packing: str
):
    corpus = stream(tmp_path / "corpus", shards)
    whole = fit(tmp_path / "whole", base, corpus, packing=packing)
    assert [row["step"] for row in whole if "loss" in row] == list(range(1, 13))
    stops = 0
    for looks in (1, 9, 14, 5, 11, 23):
        try:
            fit(tmp_path / "cut", base, corpus, packing=packing, stop=Stop(looks))
        except Interrupted:
            stops += 1
    cut = fit(tmp_path / "cut", base, corpus, packing=packing)
    assert stops >= 3
    assert cut == whole
    weights = [(tmp_path / name / "out/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_stream_that_ends_before_the_steps_do_begins_again(tmp_path: Path, shards: Path, base: Path):
    for path in sorted(shards.iterdir())[1:]:
        path.unlink()
    told: list[str] = []
    events = Events("t", listeners=[lambda event: told.append(str(event.get("text") or event))])
    fit(tmp_path / "a", base, stream(tmp_path / "corpus", shards), events=events)
    assert any("come again in another order" in one for one in told)
    about = json.loads((tmp_path / "a/out/about.json").read_text())
    assert about["tokens"]["train"] == about["tokens_seen"] > 0
    assert about["dev_loss"]["last"] < about["dev_loss"]["before"]


def test_held_out_documents_are_not_trained_on(tmp_path: Path, shards: Path):
    found = stream(tmp_path / "corpus", shards)
    held = [row["id"] for row in read_jsonl(found.path / "heldout.jsonl")]
    assert len(held) == 4
    made = Reader(read_corpus(found.path, found.made_from), Documents(fakes.byte_tokenizer()), 64, 0)
    every = windows(made, 90)
    read = decoded(p for i in range(90) for m in every.window(i) for p in m)
    assert not set(held) & set(read)
    assert len(read) == 196


def test_short_texts_are_passed_over_and_the_buffer_and_lanes_count(tmp_path: Path, shards: Path, base: Path):
    long = {json.loads(line)["text"] for path in shards.iterdir() for line in path.open()}
    made = reader(shards, min_chars=60)
    cursor = windows(made, 1)._cursors[0]
    read = decoded(p for block in made.chunk(0, cursor).blocks for p in block)
    assert read
    assert all(len(text) >= 60 for text, place in texts(made.corpus.shards[0]) if f"part-0.jsonl:{place.row}" in read)
    assert min(map(len, long)) < 60
    orders = {
        tuple(p.id for m in windows(reader(shards, **one), 1).window(0) for p in m)
        for one in ({}, {"lanes": 2}, {"buffer_bytes": 500.0}, {"min_chars": 60})
    }
    assert len(orders) == 4


# ---- what is refused -----------------------------------------------------------------------------------------------


def refused(do: Callable[[], object], *words: str, kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind) as caught:
        do()
    for word in words:
        assert word in str(caught.value)


def test_no_shards(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    refused(lambda: stream(tmp_path / "c", tmp_path, pattern="*.csv"), "no shard is there", "a.csv", ".jsonl")


def test_the_same_shards_twice(tmp_path: Path, shards: Path):
    sources = [{"path": "*.jsonl"}, {"path": "*.jsonl"}]
    refused(lambda: stream(tmp_path / "c", shards, sources=sources), "named twice")


@pytest.mark.parametrize(
    ("line", "words"),
    [("{broken\n", "malformed JSON"), ('{"body": "x"}\n', "'text' is missing"), ('{"text": 3}\n', "has to be text")],
)
def test_a_malformed_line_is_named_or_passed_over(tmp_path: Path, shards: Path, base: Path, line: str, words: str):
    path = shards / "part-3.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rows[:11], line, *rows[11:]]))
    found = stream(tmp_path / "corpus", shards)
    refused(lambda: fit(tmp_path / "a", base, found, max_steps=40), f"{path}:12", words, "bad_rows: skip")
    told: list[str] = []
    events = Events("t", listeners=[lambda event: told.append(str(event))])
    fit(tmp_path / "b", base, stream(tmp_path / "other", shards, bad_rows="skip"), max_steps=40, events=events)
    assert any("rows are passed over" in one and f"{path}:12" in one for one in told)


def test_a_first_row_without_the_field_is_refused_before_anything_runs(tmp_path: Path, shards: Path):
    sources = [{"path": "*.jsonl", "field": "body"}]
    refused(lambda: stream(tmp_path / "c", shards, sources=sources), "part-0.jsonl:1", "'body' is missing")


def test_a_shard_that_changed_or_went_is_refused_by_name(tmp_path: Path, shards: Path, base: Path):
    corpus = stream(tmp_path / "corpus", shards)
    with pytest.raises(Interrupted):
        fit(tmp_path / "a", base, corpus, stop=Stop(9))
    path = shards / "part-7.jsonl"
    before = path.read_text()
    path.write_text(before.replace("digs", "sits"))
    refused(lambda: fit(tmp_path / "a", base, corpus), "part-7.jsonl has changed", "the same size", "put it back")
    path.write_text(before + "\n")
    refused(lambda: fit(tmp_path / "a", base, corpus), "part-7.jsonl has changed", f"{len(before):,} ->")
    path.unlink()
    gone = replace(corpus, made_from=(source(shards),))
    refused(lambda: fit(tmp_path / "a", base, gone), "part-7.jsonl is gone")
    path.write_text(before)
    (shards / "part-99.jsonl").write_text(before)  # a new one does not count
    fit(tmp_path / "a", base, replace(corpus, made_from=(source(shards),)))


def test_a_stream_needs_a_length_and_no_epochs(tmp_path: Path, shards: Path, base: Path):
    corpus = stream(tmp_path / "corpus", shards)
    refused(lambda: fit(tmp_path / "a", base, corpus, max_steps=None), "how long to train", kind=RecipeError)
    refused(lambda: fit(tmp_path / "a", base, corpus, epochs=2), "epoch", kind=RecipeError)
    with pytest.raises(ValidationError, match="give one of them"):
        Pretrain.model_validate({**COURSE, "tokens": 5, "max_steps": 5})


def test_tokens_are_a_length_too(tmp_path: Path, shards: Path, base: Path):
    corpus = stream(tmp_path / "corpus", shards)
    rows = fit(tmp_path / "a", base, corpus, max_steps=None, tokens=700)  # 256 a step
    assert rows[-1]["step"] == 3


def test_a_corpus_too_small_for_its_lanes(tmp_path: Path, base: Path):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": text_of(1)}) + "\n")
    refused(lambda: stream(tmp_path / "c", folder), "no document is left", "hold fewer")
    corpus = stream(tmp_path / "d", folder, heldout=0)
    refused(lambda: fit(tmp_path / "a", base, corpus), "found no text in 3 passes", "fewer `lanes`")


def test_the_plan_says_what_is_held_and_that_the_tokens_are_not_known(tmp_path: Path, shards: Path, base: Path):
    corpus = stream(tmp_path / "corpus", shards, shuffle_buffer=100.0)
    sources = {"base": Source("base", (base,), str(base), "0"), "corpus": corpus}
    stage = Pretrain.model_validate({**COURSE, **SMALL, "max_steps": 12})
    found = stage.estimate(sources, Machine(8e9, "cpu", "fp32"))
    assert found is not None
    assert found.memory["stream"] == 460e6
    assert "data" not in found.memory
    assert "3,072 tokens of a stream" in found.note
    assert "not known beforehand" in found.note
    assert set(found.disk) == {"model", "checkpoints"}
    unlisted = replace(corpus, paths=())
    guessed = stage.estimate({**sources, "corpus": unlisted}, Machine(8e9, "cpu", "fp32"))
    assert guessed is not None
    assert guessed.memory["stream"] == 4 * 64e6 + 60e6


def test_urls_are_opened_by_fsspec(tmp_path: Path, base: Path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for shard in range(5):
        rows = "".join(json.dumps({"text": text_of(20 * shard + i)}) + "\n" for i in range(20))
        memory.pipe(f"/corpora/bay/part-{shard}.jsonl", rows.encode())
    url = "memory://corpora/bay/*.jsonl"
    files = Source(url, (), url, "0")
    stage = Stream.model_validate({"sources": [{"path": url}], "heldout": 2, "shuffle_buffer": 0.002, "lanes": 2})
    stage.check({url: files})
    ctx = context(tmp_path / "corpus", {url: files})
    assert stage.run(ctx)["shards"] == 5
    corpus = Source("corpus", (ctx.out,), "", "0", (files,), "stream")
    with pytest.raises(Interrupted):
        fit(tmp_path / "a", base, corpus, stop=Stop(9))
    memory.pipe("/corpora/bay/part-2.jsonl", b'{"text": "other"}\n')
    refused(lambda: fit(tmp_path / "a", base, corpus), "memory:", "part-2.jsonl has changed")


def test_a_url_that_nobody_opens_and_a_hub_that_is_switched_off(tmp_path: Path):
    for url, words in (("gopher://x/*.jsonl", "gopher://"), ("hf://datasets/a/b@c/*.parquet", "HF_HUB_OFFLINE=0")):
        stage = Stream.model_validate({"sources": [{"path": url}]})
        refused(lambda s=stage, u=url: s.check({u: Source(u, (), u, "0")}), url, words, kind=InputError)


def test_a_place_is_two_numbers():
    assert Place() == (0, 0)
