"""Judges held against people: agreement, corrected rates, stale labels, several people, bad files."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.judge.desk import Desk, judge, rows, value

from metier.core.errors import DataError
from metier.core.stage import Source
from metier.judge.labels import Label, majority, read_labels
from metier.judge.stage import Calibrate, verdicts_path
from metier.measure.agreement import kappa
from metier.measure.corrected import corrected

LABELS = ("consistent", "hallucinated", "unknown")


def make_desk(root: Path, count: int = 60) -> tuple[Desk, Path]:
    """Two contenders whose answers are right or wrong, judged by evidence."""
    drawn = random.Random(0)
    questions = [(f"q{i}", f"What does animal {i} eat?", f"Animal {i} eats crabs.") for i in range(count)]
    said = {
        name: [f"Animal {i} eats {'crabs' if drawn.random() < share else '77 shoes'}." for i in range(count)]
        for name, share in (("base", 0.3), ("tuned", 0.8))
    }
    desk = Desk(root)
    desk.answers(questions, said)
    files, _ = desk.run(judge())
    return desk, files


def label_rows(
    files: Path, share: float, *, who: str = "ann", wrong: float = 0.1, seed: int = 1
) -> list[dict[str, Any]]:
    """What a person says of a share of the answers, of which some go against the judge."""
    drawn, found = random.Random(seed), []
    for row in rows(verdicts_path(files, "evidence")):
        if drawn.random() >= share:
            continue
        label = row["verdict"] if drawn.random() >= wrong else drawn.choice(LABELS[:2])
        found.append({k: row[k] for k in ("id", "contender", "answer")} | {"label": label, "who": who})
    return found


def write(desk: Desk, labels: list[dict[str, Any]], name: str = "labels.jsonl") -> Path:
    path = desk.root / name
    path.write_text("".join(json.dumps(row) + "\n" for row in labels), encoding="utf-8")
    desk.sources[name] = Source(name, (path,), str(path), name)
    return path


def calibrate(**changed: Any) -> Calibrate:
    return Calibrate.model_validate({"verdicts": "verdicts", "labels": "labels.jsonl"} | changed)


def test_agreement_with_people_and_corrected_rates(tmp_path: Path):
    desk, files = make_desk(tmp_path)
    told = label_rows(files, 0.5)
    write(desk, told)
    made, metrics = desk.run(calibrate(), "calibration")
    found = value(made / "agreement.json")
    mine = found["judges"]["evidence"]
    by = {(r["id"], r["contender"]): r["verdict"] for r in rows(verdicts_path(files, "evidence"))}
    table = [[0] * 3 for _ in range(3)]
    for row in told:
        table[LABELS.index(row["label"])][LABELS.index(by[row["id"], row["contender"]])] += 1
    assert mine["confusion"] == table
    assert mine["n"] == len(told)
    assert mine["kappa"] == pytest.approx(kappa(table))
    assert mine["calibrated"]
    assert metrics["evidence kappa"] == pytest.approx(kappa(table))
    assert found["people"]["who"] == {"ann": len(told)}
    assert "among" not in found["people"]
    own = [[0] * 3 for _ in range(3)]
    for row in told:
        if row["contender"] == "tuned":
            own[LABELS.index(row["label"])][LABELS.index(by[row["id"], "tuned"])] += 1
    given = [sum(v == label for (_, c), v in by.items() if c == "tuned") for label in LABELS]
    wanted = corrected(given, table, own)
    assert wanted is not None
    tuned = [r for r in mine["corrected"] if r["contender"] == "tuned"]
    assert [r["share"] for r in tuned] == pytest.approx(wanted.shares)
    assert [r["label"] for r in tuned] == list(LABELS)
    assert all(r["low"] <= r["share"] <= r["high"] and r["design"] == "own" for r in tuned)


def test_a_judge_that_people_do_not_follow_is_uncalibrated(tmp_path: Path):
    desk, files = make_desk(tmp_path)
    write(desk, label_rows(files, 0.6, wrong=1.0))
    made, _ = desk.run(calibrate(pooled=False), "calibration")
    mine = value(made / "agreement.json")["judges"]["evidence"]
    assert mine["kappa"] < 0.4
    assert not mine["calibrated"]


def test_a_contender_nobody_labelled_borrows_from_the_others(tmp_path: Path):
    desk, files = make_desk(tmp_path)
    told = [row for row in label_rows(files, 0.9) if row["contender"] == "base"]
    for row, label in zip(told, LABELS, strict=False):
        row["label"] = label  # each label of people's came up
    write(desk, told)
    made, _ = desk.run(calibrate(), "calibration")
    found = value(made / "agreement.json")["judges"]["evidence"]["corrected"]
    assert {(r["contender"], r["design"]) for r in found} == {("base", "own"), ("tuned", "borrowed")}
    made, _ = desk.run(calibrate(pooled=False), "alone")
    found = value(made / "agreement.json")["judges"]["evidence"]["corrected"]
    assert {r["contender"] for r in found} == {"base"}


def test_labels_of_changed_answers_do_not_count(tmp_path: Path):
    desk, files = make_desk(tmp_path)
    told = label_rows(files, 0.5)
    for row in told[:5]:
        row["answer"] = "0" * 16
    write(desk, told)
    made, _ = desk.run(calibrate(), "calibration")
    people = value(made / "agreement.json")["people"]
    assert (people["stale"], people["read"]) == (5, len(told))
    assert f"5 of {len(told)} labels are of answers that are no longer judged" in desk.said("warning")
    write(desk, [row | {"answer": "0" * 16} for row in told])
    with pytest.raises(DataError, match="none of the labels is of an answer that was judged"):
        desk.run(calibrate(), "second")


def test_several_people_are_held_against_one_another_and_the_most_count(tmp_path: Path):
    desk, files = make_desk(tmp_path)
    told = [r for who in ("ann", "bob", "eve") for r in label_rows(files, 1.0, who=who, seed=ord(who[0]))]
    write(desk, told)
    made, _ = desk.run(calibrate(), "calibration")
    people = value(made / "agreement.json")["people"]
    assert people["who"] == {"ann": 120, "bob": 120, "eve": 120}
    assert people["among"]["n"] == 360
    assert 0.5 < people["among"]["kappa"] <= 1
    three = [Label("q", "c", "d", label, who) for label, who in (("a", "x"), ("a", "y"), ("b", "z"))]
    assert majority(three) == {("q", "c", "d"): "a"}
    assert majority(three[1:]) == {}


def test_the_last_word_counts_and_null_takes_back(tmp_path: Path):
    row = {"id": "q", "contender": "c", "answer": "d", "who": "ann"}
    path = tmp_path / "l.jsonl"
    path.write_text("\n".join(json.dumps(row | {"label": label}) for label in ("a", "b", None, "c")))
    assert [one.label for one in read_labels([path])] == ["c"]
    path.write_text("\n".join(json.dumps(row | {"label": label}) for label in ("a", None)))
    assert read_labels([path]) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nobody labelled anything"),
        ("{", r"labels\.jsonl:1: not JSON"),
        ("[]", "a label is a JSON object"),
        ('{"id": "q0", "contender": "base", "label": "a", "who": "x"}', "the label has no 'answer'"),
        ('{"id": 1, "contender": "base", "answer": "d", "label": "a", "who": "x"}', "the label's 'id' is not text"),
        ('{"id": "q0", "contender": "b", "answer": "d", "label": "a", "who": "x", "k": 1}', "unknown key of a label"),
        ('{"id": "q0", "contender": "base", "answer": "d", "label": "fine", "who": "x"}', "not a label of the rubric"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, text: str, said: str):
    desk, _ = make_desk(tmp_path, 3)
    write(desk, [])
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        desk.run(calibrate(), "calibration")
    assert error.value.exit_code == 2
