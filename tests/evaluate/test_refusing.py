"""Refusing, both ways: what is measured of which prompts, with bounds, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_stages import House, conversation

from metier.core.errors import DataError
from metier.evaluate.stage import Answer, Score
from metier.measure.metrics import METRICS
from metier.measure.statistics import rule_of_three, wilson
from metier.text.artifacts import write_json, write_jsonl
from metier.text.refusals import REFUSALS_TEST

NO = "I can't help with that. Please ask a pharmacist."
METRICS_BOTH = ["unsafe_compliance", "harmless_refusal", "token_f1"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def answered(house: House, said: dict[str, list[str]], groups: list[str]) -> None:
    """An answers artifact written by hand: what each contender says to the prompts of these groups, in order."""
    folder = house.add("answers", house.root / "answers")
    rows = [conversation(i, group=group) for i, group in enumerate(groups)]
    questions = [{"id": r["id"], "group": r["group"], "messages": r["messages"][:-1], "reference": NO} for r in rows]
    (folder / "answers").mkdir(parents=True)
    write_jsonl(folder / "questions.jsonl", questions)
    write_json(folder / "contenders.json", [{"name": n, "model": n, "kind": "model"} for n in said])
    for name, texts in said.items():
        found = [{"id": r["id"], "text": t, "tokens": 3, "stopped": True} for r, t in zip(rows, texts, strict=True)]
        write_jsonl(folder / "answers" / f"{name}.jsonl", found)


def scored(house: House, metrics: list[str]) -> dict[tuple[str, str, str], dict[str, Any]]:
    out, _ = house.run(Score.model_validate({"answers": "answers", "metrics": metrics}), "scores")
    rows = json.loads((out / "scores.json").read_text())["rows"]
    return {(r["contender"], r["metric"], r["group"]): r for r in rows}


def test_both_ways_are_counted_on_their_own_prompts(house: House):
    groups = ["unsafe"] * 40 + ["harmless"] * 20
    base = ["Take two."] * 40 + ["Rest."] * 20
    careful = [NO] * 40 + ["Rest."] * 19 + [NO]
    answered(house, {"base": base, "careful": careful}, groups)
    rows = scored(house, METRICS_BOTH)
    complied = rows["careful", "unsafe_compliance", "all"]
    assert (complied["n"], complied["mean"]) == (40, 0)
    assert complied["at_most"] == pytest.approx(3 / 40, rel=0.01)
    assert (complied["low"], complied["high"]) == pytest.approx(wilson(0, 40, 0.95))
    assert rows["base", "unsafe_compliance", "all"]["mean"] == 1
    assert "at_most" not in rows["base", "unsafe_compliance", "all"]
    refused = rows["careful", "harmless_refusal", "all"]
    assert (refused["n"], refused["mean"]) == (20, 1 / 20)
    assert "at_most" not in refused
    (versus,) = complied["versus"]
    assert (versus["against"], versus["verdict"], versus["difference"]) == ("base", "better", -1)
    assert rows["careful", "token_f1", "all"]["n"] == 60
    assert rows["careful", "token_f1", "unsafe"]["mean"] == 1
    assert {key[2] for key in rows if key[1] != "token_f1"} == {"all"}


def test_silence_and_babble_comply_and_refuse_nothing(house: House):
    answered(house, {"base": ["", "the the", "", "of"]}, ["unsafe", "unsafe", "harmless", "harmless"])
    rows = scored(house, METRICS_BOTH[:2])
    assert rows["base", "unsafe_compliance", "all"]["mean"] == 1
    assert rows["base", "harmless_refusal", "all"]["mean"] == 0


@pytest.mark.parametrize("groups", [["", ""], ["harmless", "other"]])
def test_questions_that_are_neither_are_refused(house: House, groups: list[str]):
    answered(house, {"base": ["Yes.", "No."]}, groups)
    with pytest.raises(DataError, match="unsafe_compliance is about none of these 2 questions") as caught:
        Score.model_validate({"answers": "answers", "metrics": METRICS_BOTH}).check(house.sources)
    assert "split: refusals_test" in str(caught.value.cure)


def test_rule_of_three():
    assert rule_of_three(60) == pytest.approx(0.0499, abs=1e-4)
    assert rule_of_three(60, 0.99) == pytest.approx(-math.log(0.01) / 60)
    assert rule_of_three(1) == 1


def test_every_metric_of_refusing_is_named_in_the_recipe_and_rare():
    for name in METRICS_BOTH[:2]:
        assert METRICS[name].rare
        assert METRICS[name].higher_is_better is False


def test_the_split_is_asked_and_its_answers_are_no_contamination(house: House):
    house.model("tiny")
    asked = [conversation(0, NO + " " + "It could hurt you or others, and nobody here can see you.", "unsafe")]
    asked += [conversation(1, "Rest.", "harmless")]
    house.examples(asked, split=REFUSALS_TEST)
    stage = Answer.model_validate(
        {"models": ["tiny"], "questions": "qa", "split": REFUSALS_TEST, "max_new_tokens": 4, "baselines": False}
    )
    out, metrics = house.run(stage, "answers")
    assert metrics["tiny output_tokens"] > 0
    assert json.loads((out / "contamination.json").read_text())["gate"]["answers"] is False
    rows = scored(house, METRICS_BOTH[:2])
    assert rows["tiny", "unsafe_compliance", "all"]["n"] == 1


def test_a_step_without_such_prompts_is_refused(house: House):
    house.model("tiny")
    house.examples([conversation(0)])
    stage = Answer.model_validate({"models": ["tiny"], "questions": "qa", "split": REFUSALS_TEST})
    with pytest.raises(DataError, match="the refusals_test split of 'qa' is empty"):
        stage.check(house.sources)
