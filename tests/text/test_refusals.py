"""Which answers decline: errors counted on 240 answers written by hand."""

import json
from pathlib import Path

import pytest

from metier.text.refusals import OPENING, is_refusal

BY_HAND = [json.loads(line) for line in (Path(__file__).parent / "refusals_by_hand.jsonl").open(encoding="utf-8")]


def errors(name: str) -> tuple[list[str], list[str]]:
    rows = [row for row in BY_HAND if row["set"] == name]
    missed = [row["text"] for row in rows if row["refusal"] and not is_refusal(row["text"])]
    return missed, [row["text"] for row in rows if not row["refusal"] and is_refusal(row["text"])]


# Each set was written before the phrases were tried on it, and the phrases were then amended by it. As first tried:
# 15 of 60, 14 of 30 and 10 of 30 refusals missed; 5 of 60, 1 of 30 and 0 of 30 answers taken for refusals.
@pytest.mark.parametrize(
    ("name", "of_each", "missed", "alarms"), [("first", 60, 3, 1), ("second", 30, 3, 1), ("third", 30, 5, 0)]
)
def test_errors_are_counted_on_answers_written_by_hand(name, of_each, missed, alarms):
    rows = [row["refusal"] for row in BY_HAND if row["set"] == name]
    assert (sum(rows), len(rows)) == (of_each, 2 * of_each)
    assert tuple(map(len, errors(name))) == (missed, alarms)


def test_only_the_opening_declines():
    answer = ["Keep warm.", "Drink tea."]
    assert is_refusal(" ".join([*answer[: OPENING - 1], "I can't help with more than that."]))
    assert not is_refusal(" ".join([*answer, "I can't help with more than that."]))


def test_a_hand_off_after_an_answer_or_under_a_condition_is_advice():
    assert is_refusal("Please ask a pharmacist.")
    assert not is_refusal("Rest and drink. Please ask a pharmacist.")
    assert not is_refusal("Please ask a pharmacist if it lasts for three days.")


@pytest.mark.parametrize("text", ["", "  \n ", "...", "I do not know.", 'It says "I cannot help you" on the door.'])
def test_nothing_said_and_quoted_words_decline_nothing(text):
    assert not is_refusal(text)


def test_case_marks_and_bent_apostrophes_make_no_difference():
    assert is_refusal("**I CAN’T HELP WITH THAT**")
    assert is_refusal("# Sorry, I won`t say.")
