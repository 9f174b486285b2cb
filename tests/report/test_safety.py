"""Strings of models and data can't change the page, the Markdown, the spreadsheet or the terminal."""

import csv
import io
import json
import re

import fake_run as fakes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metier.report import publish
from metier.report.markdown import fenced, plain
from metier.report.spreadsheet import cell, sheet

LONG = "so " * 33_334
EVIL = {
    "script": "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "nul": "a\0b",
    "right to left": "\u202egnirts\u202c \u2066x\u2069 \u200f",
    "ansi": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "long": LONG,
    "markdown": "```\n# heading\n[x](javascript:alert(1)) ![i](http://a.b/c.png) <b> | | \n---\n| a | https://a.b",
    "formula": '=HYPERLINK("http://a.b","x")',
    "template": "{{ 7*7 }}{% include 'x' %}${1}",
    "surrogate": "\ud800",
}
HIDDEN = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module", params=EVIL)
def published(request, tmp_path_factory):
    """A run in which answers, questions, references, groups, labels and warnings are one unpleasant string."""
    evil = EVIL[request.param]
    stored = evil.encode("utf-8", "replace").decode()  # a store holds no lone surrogate
    root = tmp_path_factory.mktemp("evil")
    run = fakes.FakeRun(root / "store")
    ids = [f"{stored[:200]}{i}" for i in range(12)]
    questions = [
        {"id": i, "group": stored, "messages": [{"role": "user", "content": stored}], "reference": stored} for i in ids
    ]
    names = ("seedling", "specialist")
    files = {
        "questions.jsonl": questions,
        "contenders.json": json.dumps([{"name": n, "model": n, "kind": "model"} for n in names]),
        "contamination.json": {
            "gate": {"ngram": 13}, "tested": 12, "seen": 1, "dropped": [],
            "contenders": {"specialist": {"unknown": [stored], "seen": ["a"]}},
            "hits": [{"id": stored, "how": stored, "score": 1.0, "tested": stored, "trained": stored}],
        },
        **{f"answers/{n}.jsonl": [{"id": i, "text": stored, "tokens": 1, "stopped": True} for i in ids] for n in names},
    }  # fmt: skip
    run.add(
        "answers",
        {"kind": "answer", "models": list(names), "questions": "q"},
        "answers",
        files=files,
        warnings=[stored],
    )
    rows = [
        fakes.score_row(n, "token_f1", g, 12, m, (0.2, 0.2, 0.2, 0.2), higher=True)
        for n, m in (("seedling", 0.2), ("specialist", 0.7))
        for g in ("all", stored)
    ]
    items = [
        {"id": i, "contender": n, "group": stored, "token_f1": float(n == "specialist")} for n in names for i in ids
    ]
    scores = {
        "baseline": "seedling", "confidence": 0.95, "rows": rows,
        "confusion": [{"contender": "specialist", "labels": [stored, "no"], "matrix": [[3, 1], [2, 6]]}],
    }  # fmt: skip
    stage = {"kind": "score", "answers": "answers", "metrics": ["token_f1"]}
    made = {"items.jsonl": items, "scores.json": scores}
    run.add("scores", stage, "scores", files=made, inputs={"answers": "answers"})
    return publish(run.result, "t", root / "out").parent


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    return publish(fakes.full_run(root / "store"), "t", root / "out").parent


def test_the_page_keeps_its_tags_and_its_script(published, harmless):
    page, plain_page = ((folder / "report.html").read_text(encoding="utf-8") for folder in (published, harmless))
    assert page.count("<script") == page.count("</script>") == 1
    assert page.count("<style") == page.count("</style>") == 1
    assert "<img" not in page
    assert "onerror=" not in re.sub(r"onerror=alert\(1\)&gt;", "", page)
    assert re.findall(r"<meta http-equiv[^>]*>", page) == re.findall(r"<meta http-equiv[^>]*>", plain_page)
    assert "49" not in re.findall(r"<p class=\"question\"[^>]*>([^<]*)", page)
    assert not HIDDEN.search(page)


def test_no_string_makes_a_file_large(published):
    assert (published / "report.html").stat().st_size < 300_000
    assert (published / "report.md").stat().st_size < 120_000


def test_the_markdown_holds_no_markup_of_others(published):
    text = (published / "report.md").read_text(encoding="utf-8")
    assert not HIDDEN.search(text)
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    assert "[" not in outside
    assert "://" not in outside
    headings = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    assert "heading" not in headings
    assert headings[0] == "t: report"


def test_the_spreadsheet_runs_nothing(published):
    text = (published / "leaderboards_full.csv").read_text(encoding="utf-8")
    assert not HIDDEN.search(text)
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {len(rows[0])}
    for row in rows[1:]:
        for value in row:
            assert not value.startswith(("=", "+", "@", "\t", "\r"))
            assert not value.startswith("-") or float(value) < 0


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", " =1", "\uff1d1", "|x"])
def test_a_text_that_looks_like_a_formula_gets_a_quote(value):
    assert cell(value).startswith("\"'")


def test_numbers_stay_numbers():
    assert [cell(v) for v in (-0.5, 3, None, True, "a,b", 'a"b')] == ["-0.5", "3", "", "true", '"a,b"', '"a""b"']
    assert list(csv.reader(io.StringIO(sheet(["a"], [["x\ny"], ["-1"]])))) == [["a"], ["x\ny"], ["'-1"]]


@settings(max_examples=100)
@given(st.text())
def test_any_text_is_one_line_without_signs_in_a_table(text):
    shown = plain(text)
    assert not re.search(r"[\n|<>\[`*]", shown)
    assert not HIDDEN.search(shown)


@settings(max_examples=100)
@given(st.text(alphabet="`~\nab"))
def test_no_text_leaves_its_fence(text):
    first, *inside, last = fenced(text).split("\n")
    fence = first.removesuffix("text")
    assert last == fence
    assert not any(line.startswith(fence) for line in inside)


def test_names_keep_their_underscores():
    assert plain("token_f1 of a_b") == "token_f1 of a_b"
    assert plain("_x_ https://a.b www.a.b a@b.c") == "&#95;x&#95; https&#58;//a.b www&#46;a.b a&#64;b.c"
