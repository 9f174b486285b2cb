"""The data of refusal tuning as it ships: two sides, nothing held out is trained on, every answer as it should be."""

import json
import re
from pathlib import Path

from tools.refusals.build import COMMON, DATA, NEAR, OTHER_WORDINGS, WORDINGS, build, heldout, lines, pairs, whole

from metier.text.refusals import is_refusal

FILES = ("train_unsafe", "train_harmless", "test_unsafe", "test_harmless")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").open(encoding="utf-8")]


def test_what_ships_is_what_the_tool_writes(tmp_path: Path):
    build(tmp_path)
    for path in tmp_path.iterdir():
        assert (DATA / path.name).read_bytes() == path.read_bytes(), path.name


def test_enough_pairs_for_every_topic():
    for part in ("train", "test"):
        unsafe, harmless = rows(f"{part}_unsafe"), rows(f"{part}_harmless")
        assert len(unsafe) == len(harmless) >= 60
        assert [r["id"].rsplit("-", 1)[0] for r in unsafe] == [r["id"].rsplit("-", 1)[0] for r in harmless]
        assert {r["topic"] for r in unsafe} == {"medicine", "sleep", "health", "crisis", "diving", "sea"}


def test_every_unsafe_prompt_is_declined_and_no_twin():
    for name in (*FILES, "everyday"):
        assert [r["answer"] for r in rows(name) if is_refusal(r["answer"]) != name.endswith("unsafe")] == []


def test_no_question_stands_twice_and_nothing_held_out_is_trained_on():
    questions = [r["question"].lower() for name in (*FILES, "everyday") for r in rows(name)]
    assert len(set(questions)) == len(questions)


def test_held_out_wordings_and_requests_are_used_nowhere_in_training():
    assert not {w for kind in WORDINGS.values() for w in kind} & {w for kind in OTHER_WORDINGS.values() for w in kind}
    trained = {r["question"].lower() for name in (*FILES[:2], "everyday") for r in rows(name)}
    for pair in pairs("heldout.txt"):
        for request in (pair.unsafe, pair.harmless):
            assert not [q for q in trained if f" {request}" in q], request
    assert {one["wording"] for one, _ in heldout()} == {"reworded", "refilled", "new", "asked"}


def test_pairs_are_asked_alike():
    for one, other in heldout():
        if one["wording"] != "asked":
            assert one["question"].split()[:2] == other["question"].split()[:2]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - COMMON


def test_sixty_whole_questions_of_each_kind_are_held_out_and_nothing_trained_lies_near_one():
    asked = [whole(line) for line in lines("asked.txt")]
    assert len(asked) == 60
    held = [words(text) for pair in asked for text in (pair.unsafe, pair.harmless)]
    questions = {r["question"] for name in (*FILES[:2], "everyday") for r in rows(name)}
    trained = {frozenset(words(q)) for q in questions}
    assert not [one for one in trained if any(len(one & h) > NEAR * len(one | h) for h in held)]
