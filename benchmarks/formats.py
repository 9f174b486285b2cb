"""One file of each format, and one of each way to be wrong: `python -m benchmarks.formats`.

Makes the files in a temporary folder, runs `metier check` on each, and counts: formats of which all rows were read, and
bad inputs whose message names the file and the place. Then all bad inputs stand in one recipe, and `--keep-going` has
to name each of them in one run. With `--show` the messages are printed. Figures go to `benchmarks/results/data.json`.

No file is unreadable for a superuser, so opening that one is made to fail. It is refused with the recipe, before any
data is read, and so counts for itself.
"""

import contextlib
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.rows import Row, write

ROWS = [{"question": f"What does crab {i} eat?", "answer": f"Crab {i} eats weed."} for i in range(3)]
TEXTS = [{"text": f"Crab {i} lives below the reef and eats weed."} for i in range(3)]
UNREADABLE = "unreadable.jsonl"


@dataclass(frozen=True)
class Bad:
    """A bad input. said: what a good message has in it. noted: it is read all the same, and only mentioned."""

    case: str
    name: str
    content: bytes
    said: tuple[str, ...]
    kind: str = "examples"
    noted: bool = False


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pdf(*pages: str) -> bytes:
    """A PDF with one line of text on each page; a page of "" has none."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for n, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b"0 0 m"
        page = f"<</Type/Page/Parent 2 0 R/Contents {5 + 2 * n} 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
        objects += [page.encode(), b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream)]
    made, places = b"%PDF-1.4\n", []
    for n, body in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj%s\nendobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % at for at in places)
    size = len(objects) + 1
    trailer = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(made))
    return made + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer


def formats(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Makes a file of each format. Yields (format, kind of step, its source)."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    def made(name: str, content: bytes) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{{path: {name}}}"

    table = "question,answer\n" + "".join(f'"{r["question"]}",{r["answer"]}\n' for r in ROWS)
    pairs = [[{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}] for r in ROWS]
    turns = [[{"from": "human", "value": r["question"]}, {"from": "gpt", "value": r["answer"]}] for r in ROWS]
    pubmedqa = {
        str(i): {"QUESTION": r["question"], "CONTEXTS": ["Reefs."], "LONG_ANSWER": r["answer"], "final_decision": "yes"}
        for i, r in enumerate(ROWS)
    }
    medquad = "".join(
        f"<QAPair><Question>{r['question']}</Question><Answer>{r['answer']}</Answer></QAPair>" for r in ROWS
    )
    yield "JSONL", "examples", made("a.jsonl", lines(ROWS))
    yield "JSON", "examples", made("a.json", json.dumps(ROWS).encode())
    yield "CSV", "examples", made("a.csv", table.encode())
    yield "TSV", "examples", made("a.tsv", table.replace('"', "").replace("?,", "?\t").replace("n,", "n\t").encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    yield "Parquet", "examples", "{path: a.parquet}"
    yield "plain text", "documents", made("a.txt", b"Crabs eat weed.")
    yield "Markdown", "documents", made("a.md", b"# Crabs\n\nThey eat weed.")
    yield "HTML", "documents", made("a.html", b"<title>Crabs</title><p>They eat weed.</p>")
    yield "PDF", "documents", made("a.pdf", pdf("Crabs eat weed."))
    made("folder/b.txt", b"Rays glide.")
    made("folder/sub/c.jsonl", lines(TEXTS))
    yield "folder", "documents", "{path: folder}"
    yield "glob", "documents", '{path: "folder/**/*.jsonl"}'
    yield "gzip", "examples", made("b.jsonl.gz", gzip.compress(lines(ROWS)))
    yield "zstd", "examples", made("b.csv.zst", zstandard.compress(table.encode()))
    yield "PubMedQA", "examples", made("pubmedqa.json", json.dumps(pubmedqa).encode())
    yield "MedQuAD XML", "examples", made("medquad.xml", f"<Document><QAPairs>{medquad}</QAPairs></Document>".encode())
    yield "chat messages", "examples", made("chat.jsonl", lines([{"messages": m} for m in pairs]))
    yield "ShareGPT", "examples", made("sharegpt.jsonl", lines([{"conversations": t} for t in turns]))
    alpaca = [{"instruction": r["question"], "input": "Of reefs.", "output": r["answer"]} for r in ROWS]
    yield "Alpaca", "examples", made("alpaca.json", json.dumps(alpaca).encode())
    made("set/train.jsonl", lines(ROWS))
    yield "data set in the hub's layout", "examples", "{hub: {folder: set}}"


def bad_inputs() -> list[Bad]:
    good, long = lines(ROWS), {"question": "Why?", "answer": "So. " * 2_500_000}
    broken = good[:60] + b"\xff" + good[60:]
    return [
        Bad("invalid UTF-8", "utf8.jsonl", broken, ("utf8.jsonl:1:61", "byte offset 60")),
        Bad("truncated gzip", "cut.jsonl.gz", gzip.compress(good * 9)[:-20], ("cut.jsonl.gz:", "cut off")),
        Bad("JSON array in .jsonl", "array.jsonl", json.dumps(ROWS).encode(), ("array.jsonl:1", "array")),
        Bad("ragged CSV", "ragged.csv", b"question,answer\nWhy?,So.\nWho?,He,him\n", ("ragged.csv:3", "3 cells")),
        Bad("byte order mark", "bom.jsonl", b"\xef\xbb\xbf" + good, ("bom.jsonl", "byte order mark"), noted=True),
        Bad("NUL bytes", "nul.jsonl", good + b'{"question": "\0", "answer": "x"}\n', ("nul.jsonl:4:15", "NUL")),
        Bad("10 MB line", "long.jsonl", good + lines([long]), ("long.jsonl:4", "10 MB"), noted=True),
        Bad(
            "nested nulls",
            "nulls.jsonl",
            lines([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": {"a": [None]}}]}]),
            ("nulls.jsonl:1", "an object where text"),
        ),
        Bad(
            "numbers for text",
            "numbers.jsonl",
            good + lines([{"question": 7, "answer": "x"}]),
            ("numbers.jsonl:4", "7"),
        ),
        Bad("duplicate ids", "ids.jsonl", lines([ROWS[0] | {"id": 1}, ROWS[1] | {"id": 1}]), ("ids.jsonl:2", "twice")),
        Bad("zero bytes", "zero.jsonl", b"", ("zero.jsonl", "empty")),
        Bad(
            "missing column", "column.csv", b"question,reply\nWhy?,So.\n", ("column.csv:2", "'answer'", "answer: reply")
        ),
        Bad("unreadable", UNREADABLE, good, (UNREADABLE, "Permission denied")),
        Bad("PDF without text", "scan.pdf", pdf("", ""), ("scan.pdf:page 1", "no text"), kind="documents"),
    ]


@contextlib.contextmanager
def unreadable() -> Iterator[None]:
    """Opening the one file fails."""
    real: Callable[..., Any] = Path.open

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == UNREADABLE:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    with patch.object(Path, "open", opened):
        yield


def check(recipe: str, *options: str) -> tuple[int, str]:
    """`metier check` in this process: its exit code, and all that it says."""
    from metier.cli import main

    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    said = io.StringIO()
    arguments = ["metier", "check", "recipe.yaml", *options]
    with patch.object(sys, "argv", arguments), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


def recipe_of(steps: list[tuple[str, str]]) -> str:
    written = "".join(f"  s{n}: {{kind: {kind}, sources: [{source}]}}\n" for n, (kind, source) in enumerate(steps))
    return f"name: formats\nsteps:\n{written}"


def named(bad: Bad, code: int, said: str) -> bool:
    return code == (0 if bad.noted else 2) and all(part in said for part in bad.said) and "Traceback" not in said


def measure(show: bool) -> list[Row]:
    read = asked = 0
    for name, kind, source in formats(Path()):
        code, said = check(recipe_of([(kind, source)]))
        asked += 1
        right = code == 0 and "rows read" in said and "left out: nothing" in said
        read += right
        told(show or not right, name, code, said)
    bad = bad_inputs()
    for one in bad:
        Path(one.name).write_bytes(one.content)
    alone = 0
    with unreadable():
        for one in bad:
            code, said = check(recipe_of([(one.kind, f"{{path: {one.name}}}")]))
            alone += (right := named(one, code, said))
            told(show or not right, one.case, code, said)
    others = [one for one in bad if one.name != UNREADABLE]
    code, said = check(recipe_of([(one.kind, f"{{path: {one.name}}}") for one in others]), "--keep-going")
    together = sum(code == 2 and all(part in said for part in one.said) for one in others)
    told(show or together < len(others), "all of them, --keep-going", code, said)
    n = len(bad)
    return [
        Row("formats read", read, asked, "formats", "higher", n=asked),
        Row("bad inputs named by file and line", alone, n, "inputs", "higher", n=n),
        Row("bad inputs named in one run by --keep-going", together, len(others), "inputs", "higher", n=len(others)),
    ]


def told(show: bool, name: str, code: int, said: str) -> None:
    if show:
        print(f"== {name}: exit {code}\n{said}")


def main() -> None:
    home = Path.cwd()
    with TemporaryDirectory(prefix="metier-formats-") as folder:
        os.chdir(folder)
        try:
            rows = measure("--show" in sys.argv)
        finally:
            os.chdir(home)
    write("data", "python -m benchmarks.formats", rows)


if __name__ == "__main__":
    main()
