"""Whatever bytes a file holds: rows, rejects that JSON can hold, or a DataError with the file's name. Nothing else."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import MEDQUAD, PUBMEDQA, pdf

from metier.core.errors import DataError
from metier.data.readers import Example, Reject, Text, read_examples, read_texts

KINDS = ["jsonl", "json", "csv", "tsv", "xml", "txt", "md", "html", "pdf", "parquet", "jsonl.gz", "csv.zst", "json.gz"]
PIECES: list[bytes] = [
    *(bytes([c]) for c in b'{}[]":,;\t\r\n <>&-/\\\0%()'),
    b"\\ud800",
    b"\\u0000",
    b"text",
    b"1e999",
    b"NaN",
    b"null",
    b"-",
    b"9" * 5000,
    b"[" * 200,
    b'{"question": "a", "answer": "b"}',
    b'{"question": "a", "context": [null], "answer": "b"}',
    b'{"text": "a", "id": 1.5}',
    b'{"text": null, "id": {"a": null}}',
    b'{"messages": [{"role": "user", "content": null}, null]}',
    b'{"messages": null}',
    b'{"conversations": [{"from": null, "value": 1}, {"from": ["gpt"]}]}',
    b'{"instruction": {"a": [null]}, "input": [], "output": true}',
    json.dumps(PUBMEDQA).encode(),
    b'{"QUESTION": [], "CONTEXTS": null, "LONG_ANSWER": 2}',
    b'"x": ',
    b"question,answer\n",
    b"id,text\n",
    b'a,"b""c"\n',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xe9",
    b"\xc3",
    b"<Document><QAPairs><QAPair><Question>q</Question>",
    b"<Answer>a</Answer></QAPair>",
    b"</QAPairs></Document>",
    b"<?xml version='1.0' encoding='utf-16'?>",
    b'<!DOCTYPE a [<!ENTITY b "c">]>',
    b"&b;",
    b"<html><body><p>",
    b"</p>",
    b"<pre>",
    b"<table><td>",
    b"<svg><![CDATA[",
    b"<frameset>",
    b"<meta charset=",
    b"utf-7",
    b"base64",
    b"punycode",
    b"<template>",
    b"---\n",
    b"%PDF-1.4\n",
    b"1 0 obj<</Type/Catalog/Pages 1 0 R>>endobj\n",
    b"trailer<</Size 2/Root 1 0 R/Encrypt 1 0 R>>\nstartxref\n9\n%%EOF",
    b"PAR1",
]
noise = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind, to be damaged."""
    path = tmp_path_factory.mktemp("sound") / "a.parquet"
    talk = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]] * 9
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(9)], "messages": talk, "id": list(range(9))}), path)
    lines = b'{"question": "Q?", "answer": "A."}\n' * 9
    return {
        "parquet": path.read_bytes(),
        "pdf": pdf("Hello sea", "and land"),
        "jsonl.gz": gzip.compress(lines),
        "jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "xml": MEDQUAD.encode(),
        "json": json.dumps({"1": PUBMEDQA, "2": PUBMEDQA}, indent=1).encode(),
        "csv": b'id,question,answer\n1,"Q\n?",A.\n2,"R, ""r""",B\n',
        "html": b"<html><title>t</title><body><ul><li>a<li>b</ul><pre>x\n y</pre><table><tr><td>1<td>2</table>",
    }


def read(path: Path) -> Iterator[Any]:
    """All that the readers make of a file; a DataError has to name it."""
    for reader in (read_texts, read_examples):
        try:
            yield from reader(path, note=lambda _: None, keep_going=len(path.name) % 2 == 0)
        except DataError as error:
            assert "noise" in str(error)  # noqa: PT017 - either outcome is right
            assert error.cure  # noqa: PT017
            str(error).encode()


def check(path: Path) -> None:
    for item in read(path):
        assert isinstance(item, Text | Example | Reject)
        assert item.where.startswith("noise.")
        if isinstance(item, Reject):
            json.dumps(item.row, ensure_ascii=False, allow_nan=False).encode()
        elif isinstance(item, Text):
            item.text.encode()
            assert item.text.strip() == item.text != ""
        else:
            assert all(message.content for message in item.messages)
            "".join(message.content for message in item.messages).encode()


def pack(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.ZstdCompressor().compress(content) if name.endswith(".zst") else content


once = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", KINDS)
@once
@given(content=noise, bare=st.booleans())
def test_noise(tmp_path: Path, kind: str, content: bytes, bare: bool) -> None:
    path = tmp_path / f"noise.{kind}"
    path.write_bytes(content if bare else pack(kind, content))
    check(path)


@pytest.mark.parametrize("kind", ["parquet", "pdf", "jsonl.gz", "jsonl.zst", "xml", "json", "csv", "html"])
@once
@given(data=st.data())
def test_damage(tmp_path: Path, whole: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    content = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 3))
        content[at : at + cut] = data.draw(st.sampled_from([b"", b"\0", b"\xff", b"9", *PIECES]))
        if not content:
            break
    path = tmp_path / f"noise.{kind}"
    path.write_bytes(bytes(content))
    check(path)


names = st.sampled_from(
    [
        "id",
        "text",
        "question",
        "answer",
        "context",
        "input",
        "output",
        "instruction",
        "prompt",
        "completion",
        "system",
        "group",
        "messages",
        "q",
        "conversations",
        "role",
        "content",
        "from",
        "value",
        "QUESTION",
        "CONTEXTS",
        "LONG_ANSWER",
        "final_decision",
        "YEAR",
    ]
)
words = st.one_of(
    st.sampled_from(["user", "assistant", "human", "gpt", "system", "Q?", "", " ", "\0"]), st.text(max_size=5)
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)
turn = st.fixed_dictionaries({}, optional={"role": words, "content": values, "from": words, "value": values})
row = st.dictionaries(names, st.one_of(values, st.lists(turn, max_size=3)), max_size=6)


@settings(once, max_examples=300)
@given(rows=st.lists(row, max_size=4), kind=st.sampled_from(["jsonl", "json"]))
def test_rows_of_any_values(tmp_path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    path = tmp_path / f"noise.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    check(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz"])
@once
@given(cells=st.lists(st.lists(words, max_size=4), max_size=5), mapped=st.booleans())
def test_tables_of_any_cells(tmp_path: Path, kind: str, cells: list[list[str]], mapped: bool) -> None:
    path = tmp_path / f"noise.{kind}"
    sign = "\t" if kind == "tsv" else ","
    text = f"id{sign}question{sign}answer\n" + "".join(sign.join(f'"{c}"' for c in row) + "\r\n" for row in cells)
    path.write_bytes(pack(path.name, text.encode("utf-8", "surrogatepass")))
    check(path)
    fields = {"question": "question", "answer": "answer", "id": "answer"} if mapped else {"group": "id"}
    try:
        assert all(isinstance(item, Example | Reject) for item in read_examples(path, fields=fields, note=len))
    except DataError as error:
        assert "noise" in str(error)  # noqa: PT017 - either outcome is right
