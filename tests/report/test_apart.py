"""The parts on refusing and on knowledge: on the page and in Markdown, and absent where nothing was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun, full_run, score_row

from metier.report.collect import Run, collect
from metier.report.knowing import knowing
from metier.report.leaderboard import rank
from metier.report.markdown import as_markdown
from metier.report.outcome import outcome
from metier.report.page import render
from metier.report.refusing import refusing

NAMES = ("seedling", "specialist", "specialist (4bit)")


def row(name: str, metric: str, n: int, means: dict[str, float], **more: Any) -> dict[str, Any]:
    values = tuple(means.values())
    found = score_row(name, metric, "all", n, means[name], (values[0],) * 4, higher=metric in HIGHER)
    return {**found, **more}


HIGHER = ("forget_truth", "utility", "retain_probability")
REFUSED = {
    "unsafe_compliance": dict(zip(NAMES, (0.98, 0.0, 0.02), strict=True)),
    "harmless_refusal": dict(zip(NAMES, (0.0, 0.03, 0.03), strict=True)),
}
KNOWN = {
    "forget_probability": dict(zip(NAMES, (0.91, 0.02, 0.35), strict=True)),
    "forget_truth": dict(zip(NAMES, (0.1, 0.8, 0.5), strict=True)),
    "utility": dict(zip(NAMES, (0.8, 0.78, 0.75), strict=True)),
    "retain_probability": dict(zip(NAMES, (0.85, 0.84, 0.8), strict=True)),
}


def scores(table: dict[str, dict[str, float]], n: int) -> dict[str, Any]:
    rows = []
    for metric, means in table.items():
        for name in NAMES:
            none = {"at_most": 3 / n} if metric == "unsafe_compliance" and means[name] == 0 else {}
            rows.append(row(name, metric, n, means, **none))
    return {"baseline": "seedling", "confidence": 0.95, "rows": rows}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    full_run(tmp_path)
    fake = FakeRun(tmp_path)
    fake.result = full_run(tmp_path)
    answered = {"kind": "answer", "models": list(NAMES), "questions": "questions", "split": "refusals_test"}
    files = {"questions.jsonl": [], "contenders.json": [{"name": n, "model": n, "parameters": 1} for n in NAMES]}
    files["contenders.json"] = json.dumps(files["contenders.json"])
    fake.add("asked", answered, "answers", files=files, inputs={"questions": "questions"})
    graded = {"kind": "score", "answers": "asked", "metrics": list(REFUSED)}
    refused = {"items.jsonl": [], "scores.json": scores(REFUSED, 60)}
    fake.add("refused", graded, "scores", files=refused, inputs={"asked": "answers"})
    settings = {
        "kind": "knowledge",
        "models": list(NAMES),
        "forget": "secrets",
        "retain": "kept",
        "untouched": "reader",
    }
    fake.add("known", settings, "scores", files={"items.jsonl": [], "scores.json": scores(KNOWN, 40)})
    return collect(fake.result, "careful")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found, name
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[1]))


def test_refusals_both_ways_for_every_contender(run: Run):
    (found,) = refusing(run, rank(run))
    assert [r.name for r in found.rows] == list(NAMES)
    assert [r.way for r in found.rows] == ["from outside", "merge", "from outside"]
    mine = found.rows[1]
    assert mine.unsafe is not None
    assert (mine.unsafe.count, mine.unsafe.shown, mine.unsafe.bound) == ("0 of 60", "0.0 %", "5.0 %")
    text = section(render(run, rank(run)), "refusals")
    assert "0 of 60" in text
    assert "at most 5.0 %" in text
    assert "specialist (4bit)" in text
    assert "rule of three" in text
    document = as_markdown(run, rank(run))
    assert "## Refusals, both ways" in document
    assert "0 of 60: 0.0 %" in document
    assert "at most 5.0 %" in document


def test_knowledge_has_a_part_of_its_own(run: Run):
    (found,) = knowing(run, rank(run))
    assert [(p.title, p.n) for p in found.parts] == [("To be forgotten: secrets", 40), ("To be kept: kept", 40)]
    text = section(render(run, rank(run)), "knowledge")
    for part in ("0.910", "0.350", "specialist (4bit)", "reader was never trained on what is forgotten", "0.78"):
        assert part in text, part
    assert "unsafe" not in text
    document = as_markdown(run, rank(run))
    assert "### To be forgotten: secrets (n = 40)" in document
    assert "0.350" in document


def test_neither_ranks_nor_stands_among_the_answers(run: Run):
    board = rank(run)
    assert board.scores is not None
    assert board.scores.step == "scores"
    page = render(run, board)
    assert "unsafe compliance" not in section(page, "better").lower()
    assert "utility" not in section(page, "forgotten").lower()


def test_gain_and_damage_has_both(run: Run):
    found = outcome(run, rank(run))
    assert found is not None
    sides = {title: [e.what for e in effects] for title, _, effects in found.effects}
    assert sides["Refusals"] == ["Unsafe prompts", "Harmless prompts"]
    assert "Forgotten on purpose" in sides["Gain"]
    assert "Kept on purpose" in sides["Cost"]


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path):
    plain = collect(full_run(tmp_path), "quickstart")
    page = render(plain, rank(plain))
    assert 'id="refusals"' not in page
    assert 'id="knowledge"' not in page
    assert "Refusals, both ways" not in as_markdown(plain, rank(plain))
