"""Reading and writing the files of artifacts: JSON Lines, UTF-8, one object a line, in a fixed order.

These files are ours, so what is wrong with them is a damaged store (StoreError), never the user's input. Users' own
files are read by `metier.data.readers`. Lists are held in memory: a corpus of 1 GB costs a little over 1 GB.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metier.core.disk import whole, write_whole
from metier.core.errors import DataError, StoreError, nearest
from metier.text.nouns import Answer, Conversation, Document, Message, Question

Row = dict[str, Any]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, aside and renamed last, so that the file is whole or absent. Returns the count.

    Keys keep the order in which the row holds them. Raises ValueError for NaN and infinity.
    """
    count = 0
    with whole(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of an artifact's file, one at a time. Raises StoreError where it is missing or a line is damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise _damaged(path, f"line {number} is not a JSON object")
                yield row
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented, with a newline at the end, so that the file is the old one or the new one."""
    write_whole(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def about(folder: Path) -> Row:
    """The parsed `about.json` of an artifact's files: its counts and settings."""
    path = folder / "about.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "not a JSON object")
    return value


def read_documents(folder: Path, split: str) -> list[Document]:
    """The documents of one split (`train`, `heldout`, `replay`); `folder` is the artifact's `files`."""
    path = _split(folder, split)
    return [_make(path, document_of, row) for row in read_jsonl(path)]


def read_conversations(folder: Path, split: str) -> list[Conversation]:
    """The conversations of one split (`train`, `dev`, `test`, `replay`) of examples."""
    path = _split(folder, split)
    return [_make(path, conversation_of, row) for row in read_jsonl(path)]


def read_questions(folder: Path, split: str) -> list[Question]:
    """The conversations of one split, each without its last message, which is the reference."""
    return [question_from(conversation) for conversation in read_conversations(folder, split)]


def read_asked(folder: Path) -> list[Question]:
    """The questions that an `answers` artifact was made from, in the order asked."""
    path = folder / "questions.jsonl"
    return [_make(path, question_of, row) for row in read_jsonl(path)]


def answers_path(folder: Path, contender: str) -> Path:
    """Where one contender's answers lie below an artifact's `files` or `measured`."""
    return folder / "answers" / f"{contender.replace('/', '--')}.jsonl"


def read_answers(folder: Path, contender: str) -> list[Answer]:
    """One contender's answers, in the order of the questions."""
    path = answers_path(folder, contender)
    return [_make(path, answer_of, row) for row in read_jsonl(path)]


def question_from(conversation: Conversation) -> Question:
    """The question that a conversation ends in: its last message becomes the reference."""
    *prompt, last = conversation.messages
    return Question(conversation.id, tuple(prompt), last.content, conversation.group, conversation.meta)


def document_row(document: Document) -> Row:
    """A document as it stands in a file."""
    return {"id": document.id, "text": document.text}


def conversation_row(conversation: Conversation) -> Row:
    """A conversation as it stands in a file."""
    return {
        "id": conversation.id,
        "messages": message_rows(conversation.messages),
        "group": conversation.group,
        **_meta_field(conversation.meta),
    }


def question_row(question: Question) -> Row:
    """A question as it stands in a file."""
    return {
        "id": question.id,
        "group": question.group,
        "messages": message_rows(question.messages),
        "reference": question.reference,
        **_meta_field(question.meta),
    }


def answer_row(answer: Answer) -> Row:
    """An answer as it stands in a file."""
    return {"id": answer.id, "text": answer.text, "tokens": answer.tokens, "stopped": answer.stopped}


def message_rows(messages: Iterable[Message]) -> list[Row]:
    """Messages as chat templates and files hold them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def document_of(row: Row) -> Document:
    """The document of a file's row."""
    return Document(row["id"], row["text"])


def conversation_of(row: Row) -> Conversation:
    """The conversation of a file's row."""
    return Conversation(row["id"], _messages(row), row["group"], _meta(row))


def question_of(row: Row) -> Question:
    """The question of a file's row."""
    return Question(row["id"], _messages(row), row["reference"], row["group"], _meta(row))


def answer_of(row: Row) -> Answer:
    """The answer of a file's row."""
    return Answer(row["id"], row["text"], row["tokens"], row["stopped"])


def _messages(row: Row) -> tuple[Message, ...]:
    return tuple(Message(message["role"], message["content"]) for message in row["messages"])


def _meta(row: Row) -> dict[str, str]:
    return {str(name): str(value) for name, value in (row.get("meta") or {}).items()}


def _meta_field(meta: Mapping[str, str]) -> Row:
    """Stands in a row only where there is something to tell, so that artifacts without it keep their bytes."""
    return {"meta": dict(meta)} if meta else {}


def _make(path: Path, make: Any, row: Row) -> Any:
    try:
        return make(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"a row lacks {error}") from error


def _split(folder: Path, split: str) -> Path:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.jsonl") if p.stem != "rejects"]
        raise DataError("the artifact has no such split", value=split, cure=nearest(split, known))
    return path


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"an artifact's file cannot be read: {what}",
        where=str(path),
        cure=f"delete the folder {path.parent.parent} and run again",
    )
