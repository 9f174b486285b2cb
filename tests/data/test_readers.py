"""Readers: every form of input, every kind of bad input with its place and cure, and nothing but DataError on noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metier.core.errors import DataError
from metier.data.readers import Example, Reject, Text, read_examples, read_texts
from metier.text.nouns import Message

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return made


def ignore(_: str) -> None:
    """No note is wanted."""


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def examples(path: Path, **options: Any) -> list[Example | Reject]:
    return list(read_examples(path, note=ignore, **options))


def texts(path: Path, **options: Any) -> list[Text | Reject]:
    return list(read_texts(path, note=ignore, **options))


def refused(call: Callable[[], object], *parts: str) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.cure, "every refusal names a cure"
    return caught.value


ASKED = (Message("user", "Q?"), Message("assistant", "A."))
FORMS: list[tuple[dict[str, Any], tuple[Message, ...]]] = [
    ({"question": " Q?", "answer": "A.\n"}, ASKED),
    ({"prompt": "Q?", "completion": "A."}, ASKED),
    ({"input": "Q?", "output": "A."}, ASKED),
    ({"instruction": "Q?", "output": "A."}, ASKED),
    ({"instruction": "Q?", "input": "", "output": "A."}, ASKED),
    ({"instruction": "Q?", "input": "<noinput>", "output": "A."}, ASKED),
    ({"instruction": "Q?", "input": "x", "output": "A."}, (Message("user", "Q?\n\n### Input:\nx"), ASKED[1])),
    ({"question": "Q?", "answer": "A.", "system": "S"}, (Message("system", "S"), *ASKED)),
    ({"messages": [{"role": m.role, "content": m.content} for m in ASKED]}, ASKED),
    (
        {
            "messages": [
                {"role": "system", "content": "S"},
                *({"role": m.role, "content": m.content} for m in ASKED * 2),
            ]
        },
        (Message("system", "S"), *ASKED, *ASKED),
    ),
]


@pytest.mark.parametrize(("row", "messages"), FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
def test_forms_of_examples(write: Write, row: dict[str, Any], messages: tuple[Message, ...], suffix: str) -> None:
    rows = [{**row, "id": 7, "group": "sea", "more": 1.5}, row]
    path = write(f"a.{suffix}", json.dumps(rows, indent=1) if suffix == "json" else "\n" + lines(*rows))
    first, second = examples(path)
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.id, first.group, first.messages) == ("7", "sea", messages)
    assert (second.id, second.group, second.messages) == (None, "", messages)
    assert first.where == "a." + suffix + ":2"


def test_fields_name_the_rows_own(write: Write) -> None:
    path = write("a.jsonl", lines({"q": "Q?", "a": "A.", "topic": "sea", "input": "kept out"}))
    (found,) = examples(path, fields={"question": "q", "answer": "a", "group": "topic"})
    assert isinstance(found, Example)
    assert (found.messages, found.group) == (ASKED, "sea")
    refused(lambda: examples(path, fields={"question": "qq", "answer": "a"}), "a.jsonl:1", "'qq'", "did you mean 'q'")


def test_forms_of_texts(write: Write) -> None:
    assert texts(write("a.jsonl", lines({"id": "x", "text": "One"}))) == [Text("a.jsonl:1", "x", "One")]
    assert texts(write("b.json", json.dumps([{"body": "Two"}])), field="body") == [Text("b.json:1", None, "Two")]
    for name in ("c.txt", "c.TEXT", "c.md", "c.markdown"):
        assert texts(write(name, "# Three\r\n\r\nfour\r\n")) == [Text(f"{name}:1", None, "# Three\n\nfour")]


def test_byte_order_mark_is_dropped_and_noted(write: Write) -> None:
    notes: list[str] = []
    path = write("a.jsonl", b"\xef\xbb\xbf" + lines({"text": "One"}).encode())
    assert list(read_texts(path, note=notes.append)) == [Text("a.jsonl:1", None, "One")]
    assert notes == ["a.jsonl: a UTF-8 byte order mark was dropped"]


GOOD = '{"question": "Q?", "answer": "A."}\n'
BAD: list[tuple[str, str | bytes, list[str]]] = [
    ("malformed.jsonl", GOOD + '{"question": "Q?", "answer" "A."}\n', [":2:29", "Expecting ':' delimiter", "cure"]),
    ("quotes.jsonl", "{'question': 'Q?'}\n", [":1:2", "malformed JSON", "JSON quotes"]),
    ("two.jsonl", GOOD.strip() + GOOD, [":1:35", "Extra data", "a line of its own"]),
    ("pretty.jsonl", '[\n{"question": "Q?"}\n]\n', ["pretty.jsonl:1", "name an array's file .json"]),
    ("list.jsonl", "[1]\n", ["list.jsonl:1:1", "JSON object", "found: [1]"]),
    ("nan.jsonl", '{"question": NaN}\n', ["nan.jsonl:1", "NaN is no JSON number"]),
    ("huge.jsonl", '{"question": -1e999}\n', ["huge.jsonl:1", "-1e999 is too large a number"]),
    ("deep.jsonl", "[" * 100_000 + "\n", ["deep.jsonl:1", "not usable as JSON"]),
    ("half.jsonl", '{"question": "\\ud800", "answer": "A."}\n', ["half.jsonl:1", "surrogate", "ud800"]),
    (
        "missing.jsonl",
        '{"question": "Q?", "anwser": "A."}\n',
        ["missing.jsonl:1", "'answer' of question/answer is missing", "fields: {question: question, answer: anwser}"],
    ),
    (
        "names.jsonl",
        '{"x": "Q?", "y": "A."}\n',
        ["names.jsonl:1", "no question and answer", "fields: {question: your_question"],
    ),
    (
        "several.jsonl",
        '{"question": "", "answer": "", "prompt": "", "completion": ""}\n',
        ["several.jsonl:1", "several forms", "fields: {prompt: prompt, completion: completion}"],
    ),
    (
        "mixed.jsonl",
        GOOD + '{"prompt": "Q?", "completion": "A."}\n',
        ["mixed.jsonl:2", "mixed forms", "line 1 is question/answer", "a file of its own"],
    ),
    (
        "number.jsonl",
        '{"question": "Q?", "answer": 42}\n',
        ["number.jsonl:1", "'answer' holds a number", "found: 42", '"answer": "..."'],
    ),
    ("nested.jsonl", '{"question": "Q?", "answer": ["A"]}\n', ["'answer' holds a list"]),
    ("id.jsonl", '{"id": 1.5, "question": "Q?", "answer": "A"}\n', ["id.jsonl:1", "'id'", "found: 1.5"]),
    ("empty.jsonl", "", ["empty.jsonl", "empty", "remove it"]),
    ("blank.jsonl", "\n  \n", ["blank.jsonl", "no row"]),
    (
        "latin.jsonl",
        GOOD.encode() + '{"question": "né?"}\n'.encode("latin1"),
        ["latin.jsonl:2:16", "0xe9 at byte offset 50", "iconv -f latin1"],
    ),
    ("wide.jsonl", GOOD.encode("utf-16"), ["wide.jsonl:1", "UTF-16", "iconv -f utf-16"]),
    ("nul.jsonl", GOOD + '{"question": "a\0"}\n', ["nul.jsonl:2:16", "NUL byte at byte offset 50", "tr -d"]),
    ("object.json", GOOD, ["object.json:1", "array", ".jsonl"]),
    ("cut.json", '[{"question": "Q?", "answer": "A."},\n{"question"', ["cut.json:2", "malformed JSON"]),
    ("comma.json", '[{"question": "Q?", "answer": "A."}\n{}]', ["comma.json:2", "expected ','"]),
    ("open.json", '[{"question": "Q?", "answer": "A."}', ["open.json:1", "expected ','"]),
    ("after.json", "[] x", ["after.json", "follows the array"]),
    ("none.json", "[]", ["none.json", "no row"]),
    ("a.docx", "question,answer\n", ["a.docx", "this kind of file", ".jsonl"]),
    ("a.txt", "Q?", ["a.txt", "this kind of file", ".jsonl"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_examples(write: Write, name: str, content: str | bytes, parts: list[str]) -> None:
    path = write(name, content)
    refused(lambda: examples(path), str(path), *parts)


TALKS: list[tuple[Any, str]] = [
    ("no list", "list of messages"),
    ([], "list of messages"),
    (["x"], "message 1 has to be an object"),
    ([{"role": "human", "content": "Q"}], "no known role"),
    ([{"from": "user", "value": "Q"}], "no known role"),
    ([{"role": "user"}], "no 'content'"),
    ([{"role": "user", "content": 3}], "'content' holds a number"),
    ([{"role": "user", "content": "Q"}], "out of turn"),
    ([{"role": "assistant", "content": "A"}], "out of turn"),
    ([{"role": "system", "content": "S"}], "out of turn"),
    ([{"role": "user", "content": "Q"}, {"role": "user", "content": "Q"}], "out of turn"),
    ([{"role": "user", "content": "Q"}, {"role": "system", "content": "S"}], "system message stands after"),
]


@pytest.mark.parametrize(("messages", "part"), TALKS)
def test_bad_messages(write: Write, messages: Any, part: str) -> None:
    refused(lambda: examples(write("m.jsonl", lines({"messages": messages}))), "m.jsonl:1", part, "cure")


BAD_TEXTS: list[tuple[str, str | bytes, list[str]]] = [
    (
        "missing.jsonl",
        '{"id": "1", "txt": "One"}\n',
        ["missing.jsonl:1", "'text' is missing", "did you mean 'txt'?", "field: txt"],
    ),
    ("number.jsonl", '{"text": true}\n', ["number.jsonl:1", "'text' holds true or false"]),
    ("empty.txt", "", ["empty.txt", "empty"]),
    ("latin.txt", "one\ntwo é\n".encode("latin1"), ["latin.txt:2:5", "byte offset 8"]),
    ("nul.md", "one\0", ["nul.md:1:4", "NUL"]),
    ("book.docx", "PK", ["book.docx", "this kind of file", ".markdown"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD_TEXTS, ids=[name for name, _, _ in BAD_TEXTS])
def test_bad_texts(write: Write, name: str, content: str | bytes, parts: list[str]) -> None:
    path = write(name, content)
    refused(lambda: texts(path), str(path), *parts)


def test_file_that_may_not_be_opened(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: texts(tmp_path / "gone.jsonl"), "gone.jsonl", "No such file", "check that it exists")
    (tmp_path / "folder.jsonl").mkdir()
    refused(lambda: texts(tmp_path / "folder.jsonl"), "folder.jsonl", "cannot be read")
    secret = write("secret.txt", "x")

    def denied(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # a mode would not do: root may open everything
    refused(lambda: texts(secret), "secret.txt", "Permission denied", "may be read by you")


def test_problems_of_a_file_come_together(write: Write) -> None:
    path = write("a.jsonl", GOOD + "{\n" + '{"question": "Q?", "answer": 1}\n' + GOOD)
    refused(lambda: examples(path), "2 problems", "a.jsonl:2:2: malformed", "a.jsonl:3: the field 'answer'", "found: 1")
    many = refused(lambda: examples(write("b.jsonl", "{\n" * 50)), "the first 20 problems")
    assert str(many).count("malformed") == 20


def test_unusable_rows_are_rejected_not_refused(write: Write) -> None:
    path = write("a.jsonl", lines({"question": "Q?", "answer": " "}, {"question": None, "answer": "A"}) + GOOD)
    blank, null, good = examples(path)
    assert blank == Reject("a.jsonl:1", "blank answer", {"question": "Q?", "answer": " "})
    assert isinstance(null, Reject)
    assert null.reason == "blank question"
    assert isinstance(good, Example)
    talk = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]}
    (silent,) = examples(write("b.jsonl", lines(talk)))
    assert isinstance(silent, Reject)
    assert silent.reason == "blank assistant message"
    short, none = texts(write("c.jsonl", lines({"text": "One"}, {"text": "\n"})), min_chars=4)
    assert isinstance(short, Reject)
    assert isinstance(none, Reject)
    assert (short.reason, none.reason) == ("shorter than 4 characters", "blank text")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    b"{",
                    b"}",
                    b"[",
                    b"]",
                    b'"',
                    b":",
                    b",",
                    b"\n",
                    b"\\ud800",
                    b"text",
                    b"1e999",
                    b"NaN",
                    b" ",
                    b'{"question": "a", "answer": "b"}',
                    b'{"text": "a"}',
                    b"\xef\xbb\xbf",
                    b"\xff\xfe",
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    suffix=st.sampled_from(["jsonl", "json", "txt"]),
)
def test_noise_raises_only_data_errors(write: Write, content: bytes, suffix: str) -> None:
    path = write(f"noise.{suffix}", content)
    for read in (examples, texts):
        try:
            for item in read(path):
                if isinstance(item, Reject):
                    json.dumps(item.row, ensure_ascii=False, allow_nan=False).encode()
        except DataError as error:
            assert "noise" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.shared
def test_medquad_reads_whole(shared: Path) -> None:
    found = examples(shared / "data" / "medquad" / "medquad_answered.jsonl")
    assert len(found) == 16_407
    assert all(isinstance(item, Example) for item in found)
