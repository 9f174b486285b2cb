"""Pairs that were made and what was known of them: on the page, in the Markdown twin, and on the page to browse."""

import html
import re
from pathlib import Path
from typing import Any

import fake_run as fakes
import pytest

from metier.report import publish

EVIL = "</style><script>alert(1)</script>\u202etxet\u202c <img src=x onerror=alert(1)>"
REASONS = {"evidence not in the source": 3, EVIL: 1}


def pair(number: int, kind: str, **more: str) -> dict[str, Any]:
    meta = {
        "cluster": f"doc {number}",
        "document": f"doc {number}",
        "passage": f"doc {number}#1",
        "evidence": f"Evidence {number}.\n{EVIL}",
        "teacher": "tiny",
        "type": kind,
        "difficulty": "easy",
    }
    messages = [
        {"role": "user", "content": f"Question {number}? {EVIL}"},
        {"role": "assistant", "content": f"Answer {number}."},
    ]
    return {"id": f"p{number}", "messages": messages, "group": kind, "meta": meta | more}


def files(known: bool) -> dict[str, Any]:
    kinds = ["factual"] * 30 + ["yes_no"] * 2
    about: dict[str, Any] = {"counts": {"test": 1, "train": 32}, "replay_ratio": 0.0}
    if known:
        counts = {"highly_known": 3, "maybe_known": 2, "weakly_known": 1, "unknown": 26}
        about["known"] = {
            "model": "base",
            "shots": 4,
            "rounds": 4,
            "samples": 2,
            "left_out": 7,
            "splits": {"train": counts},
        }
    else:
        about["synthesis"] = {
            "types": {"factual": 31, "yes_no": 2},
            "difficulties": {"easy": 33},
            "teachers": {"tiny": 33},
            "rejects": REASONS,
            "coverage": {
                "documents": 40, "documents_covered": 32, "passages": 80, "covered": 33, "sentences": 200, "quoted": 50,
                "without": [EVIL, *[f"bare {i}" for i in range(7)]],
            },
        }  # fmt: skip
    left_out = [
        {"where": "a", "kind": kind, "reason": f"{kind}: told", "row": pair(900 + n, "list")}
        for kind, count in REASONS.items()
        for n in range(count)
    ]
    left_out.append({"where": "b#1", "kind": "no JSON", "reason": "no JSON: no", "row": {"passage": f"Text. {EVIL}"}})
    return {
        "train.jsonl": [pair(n, kind) for n, kind in enumerate(kinds)],
        "test.jsonl": [pair(99, "factual")],
        "rejects.jsonl": left_out,
        "about.json": about,
    }


ASKING = {
    "took": {"requests": 44, "tokens_read": 9000, "tokens_written": 1200, "cost": 1.5, "seconds": 3.0},
    "expected": {"requests": 50, "tokens_read": 9500, "tokens_written": 2000, "cost": 1.75},
}


@pytest.fixture
def run(tmp_path: Path) -> fakes.FakeRun:
    made = fakes.FakeRun(tmp_path / "store")
    made.add("pairs", {"kind": "synthesize"}, "examples", files=files(known=False), measured={"asking.json": ASKING})
    made.add("tagged", {"kind": "knows"}, "examples", files=files(known=True), inputs={"pairs": "examples"})
    return made


def words(path: Path) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")).split())


def test_the_report_shows_kinds_reasons_coverage_and_cost(run: fakes.FakeRun, tmp_path: Path):
    page = publish(run.result, "syn", tmp_path / "out")
    text = words(page)
    section = text[text.index("Questions made from the material") :]
    assert "33 pairs by tiny: 32 in train, 1 in test." in section
    assert "facts 31 yes or no 2" in section
    assert "evidence not in the source 3" in section
    assert "32 of 40 80 %" in section
    assert "sentences quoted as evidence 50 of 200 25 %" in section
    assert "bare 6" in section
    assert "requests 44 (expected 50)" in section
    assert "cost 1.50 (expected 1.75)" in section
    assert "4 likeliest answers to each question, each after 4 other examples; 8 drawn ones" in section.lower()
    assert "7 pairs were left out of training for it." in section
    assert "train 3 2 1 26 32" in section
    assert 'href="pairs/pairs.html"' in page.read_text()
    assert "evidence not in the source (3)" in text, "the data table counts kinds, not each reason"


def test_the_markdown_says_the_same(run: fakes.FakeRun, tmp_path: Path):
    publish(run.result, "syn", tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    told = [
        "| facts | 31 |",
        "| sentences quoted as evidence | 50 of 200 | 25 % |",
        "requests 44 (expected 50)",
        "| evidence not in the source | 3 |",
        "| train | 3 | 2 | 1 | 26 | 32 |",
        "7 pairs were left out",
    ]
    for said in told:
        assert said in text
    assert "<script" not in text


def test_the_pairs_can_be_browsed_and_nothing_in_them_runs(run: fakes.FakeRun, tmp_path: Path):
    publish(run.result, "syn", tmp_path / "out")
    page = tmp_path / "out/pairs/pairs.html"
    source, text = page.read_text(encoding="utf-8"), words(page)
    assert "<script" not in source
    assert "<img" not in source
    assert "default-src 'none'" in html.unescape(source)
    assert "\u202e" not in source
    assert "‹U+202E›" in source
    assert "24 of 31." in text
    assert "Yes or no" in text
    assert "Evidence 31." in text
    assert "document doc 31" in text
    assert "easy, in train" in text
    assert "No JSON: 1 of 1" in text
    assert source.count("<details") == 3
    assert not (tmp_path / "out/pairs/tagged.html").exists()


def test_a_page_that_no_step_has_any_more_goes(run: fakes.FakeRun, tmp_path: Path):
    out = tmp_path / "out"
    publish(run.result, "syn", out)
    (out / "pairs/old.html").write_text("x")
    publish(run.result, "syn", out)
    assert [path.name for path in (out / "pairs").iterdir()] == ["pairs.html"]
    publish({"tagged": run.result["tagged"]}, "syn", out)
    assert not (out / "pairs").exists()


def test_templates_cost_nothing_and_an_empty_run_says_nothing(tmp_path: Path):
    made = fakes.FakeRun(tmp_path / "store")
    made.add("pairs", {"kind": "synthesize"}, "examples", files=files(known=False))
    page = publish(made.result, "syn", tmp_path / "out")
    assert "no model was asked, and it cost nothing" in words(page)
    other = fakes.FakeRun(tmp_path / "other")
    other.add("texts", {"kind": "documents"}, "documents", files={"about.json": {"counts": {"train": 1}}})
    assert "Questions made from" not in words(publish(other.result, "texts", tmp_path / "none"))
