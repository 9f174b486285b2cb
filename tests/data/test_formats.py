"""Every kind of file as rows or text: what is read, and the place and cure of what is wrong."""

import gzip
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from metier.core.errors import DataError, MissingExtra
from metier.data import files
from metier.data.files import Faults, how_read, kind_of
from metier.data.readers import Example, Reject, Text, pick, read_examples, read_texts, suffixes
from metier.text.nouns import Message

Write = Callable[[str, str | bytes], Path]
ASKED = (Message("user", "Q?"), Message("assistant", "A."))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return made


def ignore(_: str) -> None:
    """No note is wanted."""


def examples(path: Path, **options: Any) -> list[Any]:
    return list(read_examples(path, **{"note": ignore, **options}))


def texts(path: Path, **options: Any) -> list[Any]:
    return list(read_texts(path, **{"note": ignore, **options}))


def refused(call: Callable[[], object], *parts: str) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.cure, "every refusal names a cure"
    return caught.value


def pdf(*pages: str) -> bytes:
    """A PDF with one line of text on each page; a page of "" has none."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects.append(f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode())
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for n, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b"0 0 m"
        page = f"<</Type/Page/Parent 2 0 R/Contents {5 + 2 * n} 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
        objects += [page.encode(), b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream)]
    made, places = b"%PDF-1.4\n", []
    for n, body in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj%s\nendobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % at for at in places)
    return made + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        table,
        len(objects) + 1,
        len(made),
    )


# Tables


def test_csv_with_cells_over_several_lines(write: Write) -> None:
    path = write("a.csv", '\ufeffid,question,answer,group\n7,"Q\n?","A, ""yes"".",sea\n\n8,Q?, A. ,\n')
    first, second = examples(path)
    assert first == Example("a.csv:2", "7", (Message("user", "Q\n?"), Message("assistant", 'A, "yes".')), "sea")
    assert second == Example("a.csv:5", "8", ASKED, "")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_tabs_part_columns(write: Write, name: str) -> None:
    notes: list[str] = []
    path = write(name, "question\tanswer\r\nQ?\tA.\r\n")
    assert [e.messages for e in examples(path, note=notes.append)] == [ASKED]
    assert len(notes) == (name == "a.csv")


def test_semicolons_part_columns_where_there_is_no_comma(write: Write) -> None:
    notes: list[str] = []
    assert texts(write("a.csv", "id;text\n1;one, two\n"), note=notes.append) == [Text("a.csv:2", "1", "one, two")]
    assert "';'" in notes[0]


def test_a_table_without_names_for_its_first_column(write: Write) -> None:
    (found,) = examples(write("a.csv", ",question,answer\n0,Q?,\n"))
    assert found == Reject("a.csv:2", "blank answer", {"column 1": "0", "question": "Q?", "answer": ""})


BAD_TABLES: list[tuple[str, str | bytes, list[str]]] = [
    (
        "ragged.csv",
        "question,answer\nQ?,A.\nQ?,A.,more\n",
        ["ragged.csv:3", "3 cells where the header has 2", "quotation"],
    ),
    ("short.tsv", "question\tanswer\nQ?\n", ["short.tsv:2", "1 cells where the header has 2"]),
    ("open.csv", 'question,answer\n"Q?,A.\nQ?,A.\n', ["open.csv:2", "malformed row", '""']),
    ("quotes.csv", 'question,answer\n"Q" ?,A.\n', ["quotes.csv:2", "malformed row"]),
    ("twice.csv", "question,answer,answer\nQ?,A.,A.\n", ["twice.csv:1", "two columns are named 'answer'"]),
    ("latin.csv", "question,answer\nné?,A.\n".encode("latin1"), ["latin.csv:2:2", "0xe9 at byte offset 17", "iconv"]),
    ("nul.csv", "question,answer\nQ\0?,A.\n", ["nul.csv:2:2", "NUL byte at byte offset 17"]),
    ("none.csv", "question,answer\n", ["none.csv", "no row"]),
    ("empty.csv", "", ["empty.csv", "empty"]),
    ("ids.csv", "id,question,answer\n1,Q?,A.\n1,R?,A.\n", ["ids.csv:3", "the id stands in the file twice", "'1'"]),
    (
        "names.csv",
        "number,questionID,questionText,answerText\n" + "0,17,How do I sleep?,Go to bed early.\n" * 30,
        ["names.csv:2: ", "fields: {question: questionText, answer: answerText}"],
    ),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD_TABLES, ids=[name for name, _, _ in BAD_TABLES])
def test_bad_tables(write: Write, name: str, content: str | bytes, parts: list[str]) -> None:
    path = write(name, content)
    refused(lambda: examples(path), str(path), *parts)


def test_a_missing_column_is_told_once(write: Write) -> None:
    path = write("a.csv", "id,abstract\n" + "".join(f"{n},Some words here.\n" for n in range(50)))
    error = refused(lambda: texts(path), "a.csv:2", "'text' is missing", "field: abstract")
    assert "problems" not in str(error)


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_is_read_by_row(tmp_path: Path) -> None:
    talk = [{"role": m.role, "content": m.content} for m in ASKED]
    columns = {"id": [7, 8], "messages": [talk, talk], "day": [date(2020, 1, 2)] * 2, "x": [float("nan"), 1.0]}
    first, second = examples(parquet(tmp_path / "a.parquet", columns))
    assert first == Example("a.parquet:row 1", "7", ASKED, "")
    assert second.where == "a.parquet:row 2"


def test_parquet_rejects_can_be_written_as_json(tmp_path: Path) -> None:
    columns = {"text": [None], "d": [Decimal("1.5")], "b": [b"xy"], "day": [date(2020, 1, 2)], "x": [float("nan")]}
    (found,) = texts(parquet(tmp_path / "a.parquet", columns))
    assert found.reason == "blank text"
    assert json.dumps(found.row, allow_nan=False)
    assert found.row == {"text": None, "d": "1.5", "b": "<2 bytes>", "day": "2020-01-02", "x": None}


def test_bad_parquet(write: Write, tmp_path: Path) -> None:
    refused(lambda: texts(write("a.parquet", "not")), "a.parquet:row 1", "cannot be read as Parquet")
    refused(lambda: texts(write("b.parquet", "")), "b.parquet", "empty")
    whole = parquet(tmp_path / "c.parquet", {"text": ["one"] * 1000}).read_bytes()
    refused(lambda: texts(write("cut.parquet", whole[:-40])), "cut.parquet:row 1", "Parquet")
    assert texts(parquet(tmp_path / "id.parquet", {"id": [7.0], "text": ["x"]}))[0].id == "7"
    refused(lambda: texts(parquet(tmp_path / "d.parquet", {"text": [1]})), "d.parquet:row 1", "holds a number")
    refused(lambda: texts(parquet(tmp_path / "e.parquet", {"body": ["one two"]})), "e.parquet:row 1", "field: body")
    refused(lambda: texts(write("f.parquet.gz", gzip.compress(whole))), "not read packed")


# Packed files


LINES = "".join(json.dumps({"question": "Q?", "answer": "A.", "id": n}) + "\n" for n in range(2000)).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_read_as_what_is_in_them(write: Write, suffix: str) -> None:
    pack = PACK[suffix]
    assert len(examples(write(f"a.jsonl.{suffix}", pack(LINES)))) == 2000
    two = write(f"b.jsonl.{suffix}", pack(LINES[: len(LINES) // 2]) + pack(LINES[len(LINES) // 2 :]) + b"\0" * 9)
    assert [e.where for e in examples(two)][-1] == f"b.jsonl.{suffix}:2000"
    assert texts(write(f"c.TXT.{suffix}", pack(b"one")))[0].text == "one"
    assert texts(write(f"d.csv.{suffix}", pack(b"text\none\n")))[0].text == "one"
    assert texts(write(f"e.json.{suffix}", pack(b'[{"text": "one"}]')))[0].text == "one"
    assert texts(write(f"f.html.{suffix}", pack(b"<p>one")))[0].text == "one"


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_packing_is_named_with_the_line_reached(write: Write, suffix: str) -> None:
    packed = PACK[suffix](LINES)
    cut = write(f"cut.jsonl.{suffix}", packed[: len(packed) // 2])
    error = refused(lambda: examples(cut), f"{cut}:", "is cut off")
    assert error.where is not None
    assert 0 < int(error.where.rpartition(":")[2]) < 2000
    other = write(f"none.jsonl.{suffix}", LINES)
    refused(lambda: examples(other), str(other), "damaged, or is none")
    refused(lambda: examples(write(f"a.json.{suffix}", PACK[suffix](LINES)[:-5])), "a.json")
    refused(lambda: examples(write(f"b.jsonl.{suffix}", PACK[suffix](b""))), "empty")
    refused(lambda: examples(write(f"c.jsonl.{suffix}", b"")), "empty")


def test_a_flipped_bit_is_found(write: Write) -> None:
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1  # in the checksum
    refused(lambda: examples(write("a.jsonl.gz", bytes(packed))), "damaged")


def test_a_packed_file_without_its_suffix_is_recognised(write: Write) -> None:
    refused(lambda: examples(write("a.jsonl", gzip.compress(LINES))), "a.jsonl:1", "packed by gzip", ".gz")
    refused(lambda: texts(write("a.txt", pdf("Hello"))), "a.txt:1", "PDF")
    refused(lambda: examples(write("a.json", PACK["zst"](LINES))), "a.json:1", "packed by zstd")


def test_kinds_of_files() -> None:
    assert [kind_of(Path(n)) for n in ("a.JSONL.GZ", "a.csv.zst", "a.b.txt", "a", "x.gz")] == [
        ".jsonl",
        ".csv",
        ".txt",
        "",
        "",
    ]
    assert [how_read(Path(n)) for n in ("a.JSONL.GZ", "a.csv", "x.gz")] == [".jsonl.gz", ".csv", ".gz"]
    assert {".jsonl.gz", ".csv.zst", ".pdf", ".html"} <= set(suffixes("texts"))
    assert not {".pdf", ".txt", ".parquet.gz"} & set(suffixes("examples"))
    kept, left = pick([Path("a/LICENSE"), Path("a/b.CSV.gz"), Path("a/x.png")], "examples")
    assert (kept, left) == ([Path("a/b.CSV.gz")], [Path("a/LICENSE"), Path("a/x.png")])


def test_an_extra_that_is_not_installed_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package, extra, content in [
        ("a.txt.zst", "zstandard", "formats", b"x"),
        ("a.html", "selectolax.lexbor", "formats", b"x"),
        ("a.parquet", "pyarrow", "formats", b"x"),
        ("a.pdf", "pypdf", "pdf", b"x"),
    ]:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(MissingExtra, match=r"is not installed") as caught:
            texts(write(name, content))
        assert f"metier[{extra}]" in str(caught.value)


# JSON


def test_an_object_of_objects_gives_its_keys_as_ids(write: Write) -> None:
    path = write("a.json", '{"x": {"text": "One"},\n "y": {"id": "own", "text": "Two"}}')
    assert texts(path) == [Text("a.json:1", "x", "One"), Text("a.json:2", "own", "Two")]


def test_json_items_past_the_piece_that_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f'Text {n} é \\ " ' + "x" * n, "n": n * 1.5} for n in range(60)]
    whole, keyed = json.dumps(rows, indent=1, ensure_ascii=False), json.dumps({str(n): r for n, r in enumerate(rows)})
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr("metier.data.formats.jsonfiles.PIECE", size)
        found = texts(write("a.json", whole))
        assert [t.text for t in found] == [r["text"].strip() for r in rows]
        assert found[1].where == "a.json:6"
        assert [t.id for t in texts(write("b.json", keyed))] == [str(n) for n in range(60)]
        refused(lambda: texts(write("c.json", whole[:-30])), "c.json", "malformed JSON")
        refused(
            lambda: texts(write("d.json", whole.replace('"n": 3.0', '"n": 3.0.0'))), "d.json:12:11", "Expecting ','"
        )


BAD_JSON: list[tuple[str, str | bytes, list[str]]] = [
    ("below.json", '{"version": 1}', ["below.json:1", "array of objects"]),
    ("list.json", '{"data": [{"text": "One"}]}', ["list.json:1", "below 'data'", "jq '.data'"]),
    ("key.json", '{"x": {"text": "One"}, 3: {}}', ["key.json:1", "malformed JSON"]),
    ("colon.json", '{"x" {"text": "One"}}', ["colon.json:1:6", "Expecting ':'"]),
    ("latin.json", '[{"text": "é"}]'.encode("latin1"), ["latin.json:1:12", "0xe9 at byte offset 11"]),
    ("nul.json", '[\n{"text": "\0"}]', ["nul.json:2:11", "NUL byte at byte offset 12"]),
    ("escape.json", '[\n{"text": "a\\u0000"}]', ["escape.json:2", "NUL character"]),
    ("cut.json", b'[{"text": "\xc3', ["cut.json:1", "not UTF-8"]),
    ("deep.json", "[" + "[" * 500 + "]" * 500 + "]", ["deep.json:1", "deep"]),
    ("empty.json", "", ["empty.json", "empty"]),
    ("blank.json", " \n", ["blank.json:2", "array"]),
    ("twins.json", '[{"id": "a", "text": "x"},\n{"id": "a", "text": "y"}]', ["twins.json:2", "twice", "'a'"]),
    ("lines.jsonl", '[{"text": "x"},\n{"text": "y"}]\n', ["lines.jsonl:1", "looks like a JSON array", "file .json"]),
    ("array.jsonl", '[{"text": "x"}]\n', ["array.jsonl:1", "JSON object", "named .json"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD_JSON, ids=[name for name, _, _ in BAD_JSON])
def test_bad_json(write: Write, name: str, content: str | bytes, parts: list[str]) -> None:
    path = write(name, content)
    refused(lambda: texts(path), str(path), *parts)


def test_a_line_of_ten_megabytes_is_read_and_noted(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    path = write("a.jsonl", '{"text": "one"}\n{"text": "' + "x" * 10_000_000 + '"}\n')
    assert [len(t.text) for t in texts(path, note=notes.append)] == [3, 10_000_000]
    assert notes == ["a.jsonl:2: one line of 10 MB"]
    monkeypatch.setattr(files, "LONGEST", 9_000_000)
    refused(lambda: texts(path), "a.jsonl:2", "one line of more than")


def test_an_item_without_end_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metier.data.formats.jsonfiles.LONGEST", 1000)
    monkeypatch.setattr("metier.data.formats.jsonfiles.PIECE", 100)
    refused(lambda: texts(write("a.json", '[\n{"text": "' + "x" * 5000)), "a.json:2", "one item of more than")


# Forms


def test_sharegpt(write: Write) -> None:
    turns = [("system", "S"), ("human", "Q?"), ("gpt", "A.")]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns]}
    (found,) = examples(write("a.json", json.dumps([row])))
    assert found.messages == (Message("system", "S"), *ASKED)
    for value, part in [
        (None, "has to be a list"),
        ([None], "message 1 has to be an object"),
        ([{"from": None, "value": "Q"}], "no known role"),
        ([{"from": "tool", "value": "Q"}], "no known role"),
        ([{"from": "human", "value": 3}], "holds a number"),
    ]:
        refused(lambda v=value: examples(write("b.json", json.dumps([{"conversations": v}]))), "b.json:1", part)
    blank = [{"from": "human", "value": None}, {"from": "gpt", "value": "A"}]
    assert examples(write("c.json", json.dumps([{"conversations": blank}])))[0].reason == "blank user message"


def test_a_context_stands_before_the_question(write: Write) -> None:
    row = {"question": "Q?", "answer": "A.", "context": ["One.", "Two."]}
    (found,) = examples(write("a.jsonl", json.dumps(row)))
    assert found.messages == (Message("user", "One.\n\nTwo.\n\nQ?"), ASKED[1])
    (found,) = examples(
        write("b.jsonl", json.dumps({"q": "Q?", "a": "A.", "c": "One."})),
        fields={"question": "q", "answer": "a", "context": "c"},
    )
    assert found.messages == (Message("user", "One.\n\nQ?"), ASKED[1])


PUBMEDQA = {
    "QUESTION": "Q?",
    "CONTEXTS": ["One.", "Two."],
    "LABELS": ["AIM", "RESULTS"],
    "YEAR": "2011",
    "final_decision": "Yes",
    "LONG_ANSWER": "A.",
}


def test_pubmedqa(write: Write) -> None:
    path = write("ori.json", json.dumps({"21645374": PUBMEDQA}, indent=1))
    (found,) = examples(path)
    assert (found.id, found.messages) == ("21645374", (Message("user", "One.\n\nTwo.\n\nQ?"), ASKED[1]))
    assert found.meta == {"choices": "yes|no|maybe", "label": "yes", "year": "2011"}
    (decided,) = examples(path, fields={"question": "QUESTION", "answer": "final_decision"})
    assert decided.messages == (Message("user", "Q?"), Message("assistant", "Yes"))
    (text,) = texts(path)
    assert (text.id, text.text) == ("21645374", "One.\n\nTwo.")
    refused(lambda: examples(write("truth.json", '{"21645374": "yes"}')), "truth.json:1", "objects by their ids")


def test_fields_may_be_kept(write: Write) -> None:
    path = write("a.jsonl", json.dumps({"question": "Q?", "answer": "A.", "topic": "sea", "n": 3, "x": None}))
    assert examples(path, keep=("topic", "n", "x", "y"))[0].meta == {"topic": "sea", "n": "3"}
    assert texts(path, field="answer", keep=("topic",))[0].meta == {"topic": "sea"}
    assert texts(path, field="answer", id_field="n")[0].id == "3"


MEDQUAD = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="0000001" source="CancerGov" url="https://example.org/x">
<Focus>Leukemia &amp; more</Focus>
<QAPairs>
 <QAPair pid="1">
  <Question qid="0000001-1" qtype="information">Q?</Question>
  <Answer> A. </Answer>
 </QAPair>
 <QAPair pid="2"><Question qid="0000001-2" qtype="symptoms">R?</Question><Answer></Answer></QAPair>
</QAPairs></Document>
"""


def test_medquad(write: Write) -> None:
    first, second = examples(write("a.xml", MEDQUAD))
    meta = {"focus": "Leukemia & more", "qtype": "information", "source": "CancerGov", "url": "https://example.org/x"}
    assert first == Example("a.xml:5", "0000001-1", ASKED, "", meta)
    assert isinstance(second, Reject)
    assert (second.where, second.reason) == ("a.xml:9", "blank answer")
    assert [t.text for t in texts(write("b.xml", MEDQUAD), field="question")] == ["Q?", "R?"]


BAD_XML: list[tuple[str, str | bytes, list[str]]] = [
    ("cut.xml", MEDQUAD[:300], ["cut.xml:9", "malformed XML"]),
    ("amp.xml", MEDQUAD.replace("A.", "A & B"), ["amp.xml:7:15", "&amp;"]),
    ("other.xml", "<a><b/></a>", ["other.xml", "no <QAPair>", "['a', 'b']"]),
    ("bomb.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', ["bomb.xml:1", "entity of its own: b"]),
    ("bytes.xml", MEDQUAD.replace("Q?", "é").encode("latin1"), ["bytes.xml:6", "malformed XML"]),
    ("code.xml", '<?xml version="1.0" encoding="odd"?><a/>', ["code.xml:1", "encoding"]),
    ("empty.xml", "", ["empty.xml", "empty"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD_XML, ids=[name for name, _, _ in BAD_XML])
def test_bad_xml(write: Write, name: str, content: str | bytes, parts: list[str]) -> None:
    path = write(name, content)
    refused(lambda: examples(path), str(path), *parts)


# Pages


def test_html_is_what_a_reader_sees(write: Write) -> None:
    page = """<html><head><title> On  sleep </title><style>p {}</style></head><body><nav>Home</nav>
    <h1>Sleep</h1><p>It is <b>good</b>
    for you.<br>Really.</p><ul><li>bed</li><li><p>book</p></ul>
    <script>if (a < b) {}</script><table><tr><th>a</th><th>b</th></tr><tr><td>1<td>2</table>
    <pre>x
      y</pre><p hidden>no</p><footer>end</footer>"""
    (found,) = texts(write("a.html", page))
    assert found.text == ("Sleep\n\nIt is good for you.\nReally.\n\n- bed\n\n- book\n\na | b\n1 | 2\n\nx\n      y")
    assert found.meta == {"title": "On sleep"}
    assert texts(write("b.htm", "<div>menu</div><main><p>this</p></main>"))[0].text == "this"
    assert texts(write("c.htm", "<div>" * 5000 + "deep"))[0].text == "deep"
    assert texts(write("d.html", "<script>x</script>"))[0].reason == "blank text"


def test_html_in_the_encoding_that_it_declares(write: Write) -> None:
    page = '<meta charset="iso-8859-1"><p>né'
    assert texts(write("a.html", page.encode("latin1")))[0].text == "né"
    refused(lambda: texts(write("b.html", "<p>n\n<p>né".encode("latin1"))), "b.html:2:5", "0xe9")
    refused(lambda: texts(write("c.html", '<meta charset="odd"><p>x')), "c.html:1", "unknown encoding", "'odd'")
    refused(lambda: texts(write("d.html", b'<meta charset="shift_jis">\n<p>' + b"\x81")), "d.html:2", "byte offset")
    refused(lambda: texts(write("e.html", "")), "e.html", "empty")


def test_markdown_without_its_settings(write: Write) -> None:
    assert texts(write("a.md", "---\ntitle: x\ntags: [a]\n---\n# One\n\ntwo"))[0].text == "# One\n\ntwo"
    assert texts(write("b.md", "---\n\nOne\n\n---\n\ntwo"))[0].text == "---\n\nOne\n\n---\n\ntwo"


def test_pdf(write: Write) -> None:
    notes: list[str] = []
    (found,) = texts(write("a.pdf", pdf("Hello sea", "", "and land")), note=notes.append)
    assert (found.where, found.text) == ("a.pdf:page 1", "Hello sea\n\nand land")
    assert "no text on 1 of 3 pages (2)" in notes[0]


def test_bad_pdf(write: Write) -> None:
    refused(lambda: texts(write("scan.pdf", pdf("", ""))), "scan.pdf:page 1 to 2", "holds no text", "ocrmypdf")
    refused(lambda: texts(write("no.pdf", "not")), "no.pdf:page 1", "cannot be read as PDF")
    refused(lambda: texts(write("cut.pdf", pdf("Hello")[:200])), "cut.pdf:page 1")
    refused(lambda: texts(write("empty.pdf", "")), "empty.pdf", "empty")
    refused(lambda: examples(write("e.pdf", pdf("Hello"))), "e.pdf", "this kind of file")
    refused(lambda: texts(Path("gone.pdf")), "gone.pdf", "No such file")


def test_a_locked_pdf(tmp_path: Path) -> None:
    import pypdf

    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    refused(lambda: texts(tmp_path / "a.pdf"), "a.pdf", "locked by a password")


def test_a_long_plain_text_comes_in_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metier.data.readers.LONG_TEXT", 20)
    notes: list[str] = []
    found = texts(write("a.txt", "one two three four\nfive\n\nsix\n" + "x\n" * 25), note=notes.append)
    assert [(t.where, t.text[:3]) for t in found] == [("a.txt:1", "one"), ("a.txt:4", "six"), ("a.txt:23", "x\nx")]
    assert len(notes) == 1


# All problems


def test_faults_of_all_files_come_together(write: Write) -> None:
    paths = [write("a.csv", "text\na,b\n"), write("b.jsonl", "{\n" * 30), write("c.txt", "good"), write("d.txt", "")]
    with pytest.raises(DataError):
        Faults().of(read_texts(paths[0], note=ignore)).__next__()
    faults = Faults(keep_going=True)
    found = [t for path in paths for t in faults.of(read_texts(path, note=ignore, keep_going=True))]
    assert [t.text for t in found] == ["good"]
    error = refused(
        faults.stop, "a.csv:2", "30 problems, the first 20 of them, in this file", "d.txt: the file is empty"
    )
    assert str(error).count("malformed") == 20
    Faults(keep_going=True).stop()


# Outside material


@pytest.mark.shared
def test_the_shared_sets_read_whole(shared: Path) -> None:
    found = examples(shared / "data" / "pubmedqa" / "ori_pqal.json")
    assert len(found) == 1000
    assert {e.meta["label"] for e in found} == {"yes", "no", "maybe"}
    csv = shared / "data" / "counsel_chat" / "20200325_counsel_chat.csv"
    refused(lambda: examples(csv), "fields: {question: questionText, answer: answerText}")
    talks = examples(csv, fields={"question": "questionText", "answer": "answerText", "group": "topic"})
    assert len(talks) > 2000
    assert sum(isinstance(t, Example) for t in talks) > 0.8 * len(talks)
