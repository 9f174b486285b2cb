"""Artifact files: what is written is read back, byte for byte the same each time; damage is named."""

from pathlib import Path

import pytest

from metier.core.errors import DataError, StoreError
from metier.text import artifacts
from metier.text.nouns import Answer, Conversation, Document, Message, Question

TALK = Conversation("é1", (Message("user", "Wal?\u2028"), Message("assistant", "鲸")), "sea")


def test_round_trips(tmp_path: Path) -> None:
    document, answer = Document("d", "a\nb\u2028c"), Answer("é1", "x", 3, stopped=True)
    question = Question("é1", TALK.messages[:1], "鲸", "sea")
    (tmp_path / "answers").mkdir()
    artifacts.write_jsonl(tmp_path / "train.jsonl", [artifacts.document_row(document)])
    artifacts.write_jsonl(tmp_path / "test.jsonl", [artifacts.conversation_row(TALK)])
    artifacts.write_jsonl(tmp_path / "questions.jsonl", [artifacts.question_row(question)])
    artifacts.write_jsonl(artifacts.answers_path(tmp_path, "a/b"), [artifacts.answer_row(answer)])
    assert artifacts.read_documents(tmp_path, "train") == [document]
    assert artifacts.read_conversations(tmp_path, "test") == [TALK]
    assert artifacts.read_questions(tmp_path, "test") == artifacts.read_asked(tmp_path) == [question]
    assert artifacts.read_answers(tmp_path, "a/b") == [answer]
    assert (tmp_path / "answers" / "a--b.jsonl").exists()


def test_what_else_a_row_told_is_kept_and_stands_only_where_there_is_any(tmp_path: Path) -> None:
    meta = {"choices": "yes|no", "label": "no"}
    asked = Conversation("c", TALK.messages, "sea", meta)
    artifacts.write_jsonl(tmp_path / "test.jsonl", [artifacts.conversation_row(asked)])
    assert artifacts.read_conversations(tmp_path, "test") == [asked]
    (question,) = artifacts.read_questions(tmp_path, "test")
    assert question.meta == meta
    artifacts.write_jsonl(tmp_path / "questions.jsonl", [artifacts.question_row(question)])
    assert artifacts.read_asked(tmp_path) == [question]
    assert "meta" not in artifacts.conversation_row(TALK)
    assert "meta" not in artifacts.question_row(Question("q", (), "a"))
    assert asked != TALK
    assert len({asked, TALK}) == 2


def test_write_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        artifacts.write_jsonl(tmp_path / "a.jsonl", [{"x": 1.0}, {"x": float("nan")}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "a"}'])
def test_damage_is_a_store_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(StoreError, match="cannot be read") as caught:
        artifacts.read_documents(tmp_path, "train")
    assert "train.jsonl" in str(caught.value)
    assert "run again" in str(caught.value)


def test_unknown_split_names_the_nearest(tmp_path: Path) -> None:
    artifacts.write_jsonl(tmp_path / "heldout.jsonl", [])
    with pytest.raises(DataError, match="did you mean 'heldout'"):
        artifacts.read_documents(tmp_path, "held_out")


def test_about(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "about.json", {"counts": {"train": 1}})
    assert artifacts.about(tmp_path) == {"counts": {"train": 1}}
    (tmp_path / "about.json").write_text("[]")
    with pytest.raises(StoreError, match="not a JSON object"):
        artifacts.about(tmp_path)
