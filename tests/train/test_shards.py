"""Token shards: the same ids as one at a time, made once, gone on with after a stop, by processes or here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from metier.core.errors import Interrupted
from metier.core.events import Events
from metier.text.artifacts import conversation_of, write_jsonl
from metier.text.chat import encode_conversation, encode_document
from metier.train import shards
from metier.train.batches import Piece, split
from metier.train.shards import Conversations, Documents, Shards, encode, key_of, spans

TEXTS = ["The crab digs.", "", "a ray <|end|> glides", "the the the " * 40, "Ünïcode ✓", "x"]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    write_jsonl(path, ({"id": f"d{n}", "text": TEXTS[n % len(TEXTS)]} for n in range(40)))
    return path


def made(path: Path, encoder: Any, **more: Any) -> Shards:
    settings = {"cache": path.parent / "cache", "events": Events("t"), "check_stop": lambda: None}
    return encode(path, encoder, **{**settings, **more})


def same(one: list[Piece], other: list[Piece]) -> None:
    assert [(p.id, p.ids.tolist(), p.targets.tolist()) for p in one] == [
        (p.id, p.ids.tolist(), p.targets.tolist()) for p in other
    ]


def pieces(found: Shards, **settings: Any) -> list[Piece]:
    return [piece for _, piece in found.pieces(**settings)]


def test_documents_are_encoded_as_one_by_one_and_cut_as_before(documents: Path):
    tokenizer = fakes.byte_tokenizer()
    rows = [json.loads(line) for line in documents.open()]
    whole = [Piece.of(row["id"], encode_document(tokenizer, row["text"])) for row in rows]
    found = made(documents, Documents(tokenizer))
    same(pieces(found), whole)
    same(pieces(found, block_size=16), [part for piece in whole for part in split(piece, 16)])
    assert found.trained == sum(piece.trained for piece in whole)
    assert len(found) == 40
    assert pieces(found)[0].ids.base is not None  # a view of the file


def test_a_tokenizer_keeps_its_settings(documents: Path):
    tokenizer = fakes.byte_tokenizer()
    tokenizer.backend_tokenizer.encode_special_tokens = False
    made(documents, Documents(tokenizer))
    assert tokenizer.backend_tokenizer.encode_special_tokens is False
    assert tokenizer.encode("<|end|>") == [1]


def test_conversations_with_what_was_cut_and_masked(tmp_path: Path):
    tokenizer = fakes.byte_tokenizer()
    path = tmp_path / "train.jsonl"
    questions = ["Why?", "why " * 60, "So?"]
    rows = [
        {
            "id": f"c{n}",
            "group": "",
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "It digs." * (1 + 9 * n)}],
        }
        for n, q in enumerate(questions)
    ]
    write_jsonl(path, rows)
    found = made(path, Conversations(tokenizer, 100))
    assert found.masked == ("c1",)
    assert found.cut == ("c1", "c2")
    encoded = [encode_conversation(tokenizer, conversation_of(row), max_length=100) for row in rows]
    kept = [Piece.of(f"c{n}", encoded[n].ids, encoded[n].trained) for n in (0, 2)]
    same(pieces(found), kept)
    assert [number for number, _ in found.pieces()] == [0, 2]
    weighed = pieces(found, prompt_weight=0.5)
    expected = [Piece.of(f"c{n}", encoded[n].ids, encoded[n].trained, prompt_weight=0.5) for n in (0, 2)]
    same(weighed, expected)
    for one, other in zip(weighed, expected, strict=True):
        assert one.weights is not None
        assert other.weights is not None
        assert (one.weights[one.targets] == other.weights[other.targets]).all()


def test_shards_are_cut_at_line_ends(documents: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 300)
    parts = spans(documents)
    assert len(parts) > 3
    data = documents.read_bytes()
    assert b"".join(data[a:b] for a, b in parts) == data
    assert all(data[b - 1 : b] == b"\n" for _, b in parts)
    cut = made(documents, Documents(fakes.byte_tokenizer()))
    assert len(cut.parts) == len(parts)
    monkeypatch.undo()
    same(pieces(cut), pieces(made(documents, Documents(fakes.byte_tokenizer()), cache=documents.parent / "other")))


def test_a_stop_keeps_what_is_done(documents: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 300)
    encoder = Documents(fakes.byte_tokenizer())
    calls = iter(range(100))

    def stop() -> None:
        if next(calls) > 12:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        made(documents, encoder, check_stop=stop)
    (folder,) = (documents.parent / "cache").iterdir()
    done = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert done
    assert not any(name.startswith(".") for name in done)
    made(documents, encoder)
    assert {name: (folder / name).stat().st_ino for name in done} == done


def test_the_second_time_nothing_is_encoded(documents: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = Documents(fakes.byte_tokenizer())
    first = made(documents, encoder)
    monkeypatch.setattr(shards, "write_shard", None)
    same(pieces(first), pieces(made(documents, encoder)))


def test_the_key_follows_bytes_tokenizer_template_length_and_code(documents: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = fakes.byte_tokenizer()
    keys = {key_of(documents, Documents(tokenizer)), key_of(documents, Conversations(tokenizer, 10))}
    keys.add(key_of(documents, Conversations(tokenizer, 11)))
    tokenizer.chat_template = "{{ messages }}"
    keys.add(key_of(documents, Conversations(tokenizer, 10)))
    keys.add(key_of(documents, Documents(fakes.byte_tokenizer(merges=(("t", "h"),)))))
    monkeypatch.setattr(shards, "CODE", -1)
    keys.add(key_of(documents, Documents(fakes.byte_tokenizer())))
    documents.write_text('{"id": "a", "text": "b"}\n')
    keys.add(key_of(documents, Documents(fakes.byte_tokenizer())))
    assert len(keys) == 7


def test_worker_processes_write_the_same_bytes(documents: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 900)
    encoder = Documents(fakes.byte_tokenizer())
    told: list[dict[str, Any]] = []
    here = made(documents, encoder, workers=0)
    there = made(
        documents, encoder, workers=2, cache=documents.parent / "there", events=Events("t", listeners=[told.append])
    )
    same(pieces(here), pieces(there))
    assert told[-1]["done"] == told[-1]["total"]


def test_an_empty_split(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("")
    found = made(path, Documents(fakes.byte_tokenizer()))
    assert len(found) == found.trained == 0
    assert pieces(found) == []


def test_masks_that_are_shared_cannot_be_changed(documents: Path):
    piece = pieces(made(documents, Documents(fakes.byte_tokenizer())))[0]
    with pytest.raises(ValueError, match="read-only"):
        piece.targets[1] = False
    assert np.array_equal(piece.part(2, 5).targets, [False, True, True])
