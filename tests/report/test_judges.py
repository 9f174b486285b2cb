"""The judges' part of the report: shares, agreement, warnings, examples, the leaderboard; no markup of others."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.fake_run import NASTY, FakeRun, Result

from metier.report.collect import collect
from metier.report.judges import bar, columns, judged
from metier.report.leaderboard import as_json, rank
from metier.report.markdown import as_markdown
from metier.report.page import render

LABELS = {"consistent": "it follows", "hallucinated": "it does not", "unknown": "no saying"}
CONTENDERS = ("base", "tuned")


def share_rows(counts: dict[str, tuple[int, int, int]], unscored: int) -> list[dict[str, Any]]:
    rows = []
    for name, numbers in counts.items():
        n = sum(numbers)
        for label, count in zip(LABELS, numbers, strict=True):
            row = {"contender": name, "label": label, "n": n, "unscored": unscored, "count": count}
            rows.append(row | {"share": count / n, "low": 0.1, "high": 0.9, "method": "wilson"})
    return rows


def judge_told(counts: dict[str, tuple[int, int, int]], unscored: int = 0, **more: Any) -> dict[str, Any]:
    versus = {"contender": "tuned", "against": "base", "n": 10, "difference": 0.5, "low": 0.2, "high": 0.8}
    versus |= {"p": 0.001, "p_holm": 0.001, "test": "mcnemar mid-p", "detectable": 0.2, "verdict": "better"}
    told = {"shares": share_rows(counts, unscored), "comparisons": [versus]}
    usual = {"places": {"n": 0, "picked": [], "p": None}, "steady": {"n": 0, "share": None}, "repeated": {"asked": 0}}
    return told | usual | more


def build(root: Path, *, people: bool, kappa: float = 0.7) -> Result:
    run = FakeRun(root)
    questions = [
        {
            "id": f"q{i}",
            "group": "",
            "messages": [{"role": "user", "content": f"Question {i} {NASTY}"}],
            "reference": "R",
        }
        for i in range(10)
    ]
    said = {
        f"answers/{name}.jsonl": [{"id": f"q{i}", "text": NASTY, "tokens": 1, "stopped": True} for i in range(10)]
        for name in CONTENDERS
    }
    known = json.dumps([{"name": n, "model": n, "kind": "model"} for n in CONTENDERS])
    files: dict[str, Any] = {"questions.jsonl": questions, "contenders.json": known, **said}
    run.add("answers", {"kind": "answer", "models": list(CONTENDERS)}, "answers", files=files)
    rows = {
        "evidence": [
            {
                "id": f"q{i}",
                "contender": n,
                "answer": "d",
                "verdict": "consistent",
                "evidence": {"support": 0.9, "coverage": 1},
            }
            for n in CONTENDERS
            for i in range(10)
        ],
        "big": [
            {"id": f"q{i}", "contender": n, "answer": "d", "verdict": "hallucinated" if i < 5 else None, "why": NASTY}
            for n in CONTENDERS
            for i in range(10)
        ],
    }
    places = {"n": 60, "picked": [60, 0, 0], "p": 1e-9}
    pair = {"one": "evidence", "other": "big", "n": 10, "observed": 0.5, "low": 0.2, "high": 0.8, "kappa": 0.1}
    pair |= {"kappa_low": -0.1, "kappa_high": 0.3, "ac1": 0.2, "ac1_low": 0.0, "ac1_high": 0.4, "confusion": []}
    summary = {
        "confidence": 0.95,
        "labels": list(LABELS),
        "good": "consistent",
        "bad": "hallucinated",
        "judges": {
            "evidence": judge_told({"base": (3, 6, 1), "tuned": (8, 1, 1)}),
            "big": judge_told({"base": (0, 5, 0), "tuned": (0, 5, 0)}, 5, places=places),
        },
        "agreement": [pair],
    }
    about = {"rubric": "consistency", "title": f"Consistency {NASTY}", "labels": LABELS, "good": "consistent"}
    about |= {"bad": "hallucinated", "by": "reference", "against": None, "contenders": list(CONTENDERS)}
    judges = [
        {"name": "evidence", "kind": "evidence", "how": "words", "family": "evidence", "orders": 1, "flags": []},
        {"name": "big", "kind": "endpoint", "how": "JSON", "family": "gpt", "orders": 1, "model": "big"}
        | {"flags": ["it is a contender: it judges its own answers"]},
    ]
    run.add(
        "verdicts",
        {"kind": "judge", "answers": "answers", "judges": ["evidence"]},
        "verdicts",
        files={
            "summary.json": summary,
            "about.json": about,
            "judges.json": json.dumps(judges),
            **{f"verdicts/{name}.jsonl": value for name, value in rows.items()},
        },
        measured={"judges.json": {"big": {"seconds": 12.0, "tokens_read": 700, "tokens_written": 40, "cost": 0.0123}}},
        inputs={"answers": "answers"},
    )
    if people:
        corrected = [
            {"contender": "tuned", "label": "consistent", "n": 10, "plain": 0.8, "share": 0.66, "low": 0.5, "high": 0.8}
            | {"solved": 0.66, "design": "own", "labelled": 10, "labelled_in_all": 20}
        ]
        mine = {"n": 20, "observed": 0.8, "low": 0.6, "high": 0.9, "kappa": kappa, "kappa_low": 0.4, "kappa_high": 0.9}
        mine |= {"ac1": 0.75, "ac1_low": 0.5, "ac1_high": 0.9, "confusion": [[9, 1, 0], [2, 7, 0], [0, 0, 1]]}
        mine |= {"unscored": 0, "calibrated": kappa >= 0.4, "corrected": corrected}
        told = {"verdicts": "verdicts", "labels": list(LABELS), "confidence": 0.95, "judges": {"evidence": mine}}
        told["people"] = {"read": 22, "stale": 2, "answers": 20, "who": {"ann": 20}, "labels": {}}
        run.add(
            "calibration",
            {"kind": "calibrate", "verdicts": "verdicts", "labels": "l.jsonl"},
            "agreement",
            files={"agreement.json": told},
            inputs={"verdicts": "verdicts"},
        )
    return run.result


def shown(root: Path, **options: Any) -> tuple[str, str, Any]:
    run = collect(build(root, **options), "judged")
    board = rank(run)
    return render(run, board), as_markdown(run, board), as_json(run, board)


def test_without_people_every_judge_is_uncalibrated(tmp_path: Path):
    page, text, board = shown(tmp_path, people=False)
    assert page.count("uncalibrated") >= 4  # in the leaderboard, its note, and the section, for both judges
    assert "evidence is uncalibrated: nobody labelled what it judged." in page
    assert "No person labelled any of these answers" in page
    assert "consistent, by evidence &#40;uncalibrated" in text or "consistent, by evidence (uncalibrated)" in text
    rows = board["contenders"][0]["judged"]
    assert {row["judge"] for row in rows} == {"evidence", "big"}
    assert not any(row["calibrated"] for row in rows)


def test_people_calibrate_a_judge_and_correct_its_shares(tmp_path: Path):
    page, text, board = shown(tmp_path, people=True)
    run = collect(build(tmp_path / "again", people=True), "judged")
    first, second = columns(run)
    assert (first.mark, second.mark) == ("", "uncalibrated")
    assert first.cells["tuned"].text == "0.66"
    assert first.cells["base"].text == "0.30"  # nobody's labels correct it
    assert "Shares of evidence are corrected by people" in page
    assert "0.70 [0.40, 0.90], substantial" in page
    assert "People labelled 20 answers: ann (20)." in page
    assert "2 labels are of answers that have changed since" in page
    for cell in ("9", "7"):
        assert f'diagonal">{cell}</td>' in page
    assert "| consistent | 9 | 1 | 0 |" in text
    told = next(c for c in board["contenders"] if c["name"] == "tuned")["judged"]
    assert told[0]["corrected"]["share"] == 0.66


def test_a_kappa_under_four_tenths_is_no_calibration(tmp_path: Path):
    page, _, board = shown(tmp_path, people=True, kappa=0.35)
    assert "evidence is uncalibrated: its kappa with people is 0.35, under 0.40." in page
    assert not any(row["calibrated"] for c in board["contenders"] for row in c["judged"])


def test_warnings_costs_agreement_and_examples_are_shown(tmp_path: Path):
    page, text, _ = shown(tmp_path, people=False)
    for said in (
        "It is a contender: it judges its own answers.",
        "It is drawn to a place in the list of labels (60 : 0 : 0",
        "0.0123 by the recipe",
        "evidence and big",
        "judges part ways",
    ):
        assert said in page, said
    assert "It is a contender: it judges its own answers" in text
    assert "support 0.90; coverage 1.00" in page


def test_nothing_of_others_becomes_markup(tmp_path: Path):
    page, text, _ = shown(tmp_path, people=True)
    for document in (page, text.split("```")[0]):
        assert "<script>alert" not in document
        assert "\u202e" not in document
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("unscored", [0, 5])
def test_a_bar_holds_every_answer(unscored: int):
    rows = share_rows({"base": (2, 2, 1)}, unscored)
    drawn = bar(rows, list(LABELS))
    assert drawn.count("<rect") == 3 + bool(unscored)
    assert ("l-none" in drawn) == bool(unscored)
    assert bar([], []) == ""


def test_a_run_without_judges_says_nothing_of_them(tmp_path: Path):
    run = FakeRun(tmp_path)
    run.add("data", {"kind": "examples"}, "examples", files={"about.json": {"counts": {}}, "train.jsonl": []})
    told = collect(run.result, "r")
    assert judged(told, rank(told)) == []
    assert 'id="judges"' not in render(told, rank(told))
