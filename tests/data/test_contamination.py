"""The gate of the data stages: what is dropped, listed or refused, and what other steps keep out."""

from pathlib import Path
from typing import Any

import pytest

from metier.core.errors import DataError
from metier.data.contamination import Watch, item_of, keep_out_index
from metier.text.artifacts import conversation_row, document_row, write_jsonl
from metier.text.nouns import Conversation, Document, Message
from metier.text.overlap import CUT, Gate, Index

LONG = "the whale swims north in spring because the krill is there and the ice has gone from the open bay by then"


def ask(number: str, question: str, answer: str) -> Conversation:
    return Conversation(number, (Message("user", question), Message("assistant", answer)))


def watch(gate: Gate, rows: list[dict[str, Any]] | None = None) -> Watch:
    index = Index(gate)
    index.add_item(ask("q1", "Where does it swim?", LONG))
    index.add_item(ask("q2", "What is a crab?", "Food."))
    return Watch(gate, index, (rows if rows is not None else []).append)


def test_what_was_seen_is_dropped_and_listed_with_both_texts():
    rows: list[dict[str, Any]] = []
    made = watch(Gate(), rows)
    assert made.admits(ask("a", "Who?", "Me."), where="a.jsonl:1", split="train")
    assert not made.admits(ask("b", "what is a CRAB", "A thing."), where="a.jsonl:2", split="train")
    assert not made.admits(Document("c", f"Intro. {LONG}. And so on."), where="r.jsonl:3", split="replay")
    assert [(r["id"], r["how"], r["part"], r["where"], r["split"], r["trained_id"]) for r in rows] == [
        ("q2", "exact", "question", "a.jsonl:2", "train", "b"),
        ("q1", "13-gram", "answer", "r.jsonl:3", "replay", "c"),
    ]
    assert (rows[0]["tested"], rows[0]["trained"]) == ("What is a crab?", "what is a CRAB")
    assert (made.hit, made.seen) == (2, {"q2": 1, "q1": 1})
    made.finish()


def test_a_reason_can_be_read():
    reason = watch(Gate()).reason(ask("b", "Where does it swim?", LONG), where="a:1", split="train")
    assert reason == "seen in testing: exact: the question of q1"
    assert watch(Gate()).reason(ask("b", "?", "No."), where="a:1", split="train") is None


def test_report_changes_nothing():
    rows: list[dict[str, Any]] = []
    made = watch(Gate(action="report"), rows)
    assert made.admits(ask("b", "what is a CRAB", "A thing."), where="a.jsonl:2", split="train")
    assert len(rows) == 1
    made.finish()


def test_stop_shows_both_texts():
    made = watch(Gate(action="stop"))
    for number in range(30):
        assert made.admits(ask(f"b{number}", "what is a CRAB", "A thing."), where=f"a.jsonl:{number}", split="train")
    assert made.admits(ask("c", "Why?", LONG), where="a.jsonl:31", split="train")
    with pytest.raises(
        DataError, match="31 rows to train on show 2 of the items to test with; the first 2 texts"
    ) as caught:
        made.finish()
    said = str(caught.value)
    assert "a.jsonl:0 (exact 1, the question of q2)" in said
    assert "tested:  'What is a crab?'" in said
    assert "trained: 'what is a CRAB'" in said
    assert "a.jsonl:31 (exact 1, the answer of q1)" in said
    assert "a.jsonl:1 " not in said
    watch(Gate(action="stop")).finish()


def test_long_texts_are_cut_in_the_list():
    rows: list[dict[str, Any]] = []
    watch(Gate(), rows).admits(Document("c", "filler " * 2000 + LONG + " word" * 2000), where="a:1", split="train")
    assert len(rows[0]["trained"]) < CUT + 40
    assert rows[0]["trained"].startswith(f"… {LONG}")
    assert rows[0]["trained"].endswith("more characters)")


def test_what_other_steps_hold_out(tmp_path: Path):
    for name in ("asked-1", "read-2"):
        (tmp_path / name / "files").mkdir(parents=True)
    asked, read = tmp_path / "asked-1/files", tmp_path / "read-2/files"
    write_jsonl(asked / "test.jsonl", [conversation_row(ask("1", "What is a crab?", "Food."))])
    write_jsonl(asked / "dev.jsonl", [conversation_row(ask("1", "What is a whale?", "Large."))])
    write_jsonl(asked / "train.jsonl", [conversation_row(ask("1", "What is a seal?", "Wet."))])
    write_jsonl(read / "heldout.jsonl", [document_row(Document("d", LONG))])
    index = keep_out_index({"asked": asked, "read": read})
    assert [hit.test_id for hit in index.hits("what is a crab")] == ["asked/test/1"]
    assert [hit.test_id for hit in index.hits("what is a whale")] == ["asked/dev/1"]
    assert index.hits("what is a seal") == []
    assert [hit.test_id for hit in index.hits(LONG)] == ["read/heldout/d"]
    assert [hit.test_id for hit in keep_out_index([read]).hits(LONG)] == ["read-2/heldout/d"]
    assert len(keep_out_index([])) == 0


def test_items_of_rows():
    assert item_of(document_row(Document("d", "x"))) == Document("d", "x")
    assert item_of(conversation_row(ask("1", "Q", "A"))) == ask("1", "Q", "A")
