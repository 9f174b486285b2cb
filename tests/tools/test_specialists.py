"""The specialists' data: what ships is what the tool writes, nothing held out is trained on, the cards' counts hold."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tools.specialists import common, medication, pharma, pubmedqa, sleep
from tools.specialists.build import DATA, MAKERS, build

import metier
from metier.data.shapes import find_shape
from metier.evaluate.taskfiles import read_task
from metier.text.refusals import is_refusal

JSONL = [(name, path.name) for name in MAKERS if name != "pubmedqa" for path in sorted((DATA / name).glob("*.jsonl"))]


def rows(name: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name / file).read_text(encoding="utf-8").splitlines()]


def texts(name: str, file: str) -> list[str]:
    return [row["text"] for row in rows(name, file)]


def run_tables(tables: Path, folder: Path) -> list[tuple[str, str]]:
    """The questions and answers that `synthesize` makes of the small tables of marine biology."""
    (folder / "r.yaml").write_text(
        "name: r\nsteps:\n  pairs:\n    kind: synthesize\n    count: 150\n"
        f"    tables: [{{path: {tables / 'reef.csv'}, templates: {tables / 'reef.yaml'}}}]\n"
    )
    metier.run(folder / "r.yaml")
    (made,) = folder.glob(".metier/objects/examples-*/files/train.jsonl")
    found = [json.loads(line)["messages"] for line in made.read_text(encoding="utf-8").splitlines()]
    return [(one[0]["content"], one[1]["content"]) for one in found]


def sentences(found: list[str]) -> set[str]:
    return {one for text in found for one in re.split(r"(?<=[.?]) ", text)}


def test_what_ships_is_what_the_tool_writes(tmp_path: Path):
    build(tmp_path)
    for name in MAKERS:
        written = sorted(path.name for path in (tmp_path / name).iterdir())
        by_hand = {
            "README.md",
            *(p.name for p in (DATA / name).iterdir() if name == "marine-biology" and p.suffix != ".jsonl"),
        }
        assert written == sorted(p.name for p in (DATA / name).iterdir() if p.name not in by_hand), name
        assert [f for f in written if (tmp_path / name / f).read_bytes() != (DATA / name / f).read_bytes()] == []


@pytest.mark.parametrize("name", MAKERS)
def test_the_card_names_every_file_with_its_rows_and_disclaims(name: str):
    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    for path in (DATA / name).glob("*.jsonl"):
        assert f"| `{path.name}` | {len(rows(name, path.name))} " in card
    assert "Apache-2.0" in card
    if name != "marine-biology":
        assert "No medical advice" in card or "Every study here is made up" in card


@pytest.mark.parametrize(("name", "file"), JSONL)
def test_every_row_is_whole_and_stands_once(name: str, file: str):
    found = rows(name, file)
    assert len({row["id"] for row in found} if "id" in found[0] else {row["word"] for row in found}) == len(found)
    assert all(
        value.strip() for row in found for key, value in row.items() if isinstance(value, str) and key != "input"
    )
    if "text" not in found[0]:
        assert {find_shape(row).name for row in found} <= {
            "instruction/input/output",
            "input/output",
            "prompt/completion",
            "question/answer",
        }
    asked = [
        (row.get("instruction"), row.get("input"), row.get("question"), row.get("prompt"), row.get("text"))
        for row in found
    ]
    assert len(set(asked)) > 0.98 * len(asked)


@pytest.mark.parametrize(("name", "file"), JSONL)
def test_grammar_smoke(name: str, file: str):
    bad = re.compile(r"  |\ba [aeio]\w|\ban [bcdfgjklmnpqrtvwz]|\bthe the\b|\ba a\b|[{}|]|\.\.|[?.]\.| ,")
    found = [str(value) for row in rows(name, file) for key, value in row.items() if key not in ("id", "key_facts")]
    assert [m.string[max(0, m.start() - 30) : m.end() + 20] for one in found if (m := bad.search(one))] == []


def test_enough_of_everything():
    assert len(rows("pharma", "corpus.jsonl")) >= 600
    assert len(rows("pharma", "completions.jsonl")) >= 40
    assert len(rows("medication", "train.jsonl")) >= 600
    assert len(rows("medication", "eval.jsonl")) >= 100
    assert len(rows("sleep-stress", "corpus.jsonl")) >= 300
    assert len(rows("sleep-stress", "train.jsonl")) >= 500
    assert len(rows("sleep-stress", "test.jsonl")) >= 80
    assert len(rows("sleep-stress", "scenarios.jsonl")) >= 40


@pytest.mark.parametrize("name", ["pharma", "sleep-stress"])
def test_held_out_texts_share_no_sentence_with_the_corpus(name: str):
    told, held = sentences(texts(name, "corpus.jsonl")), sentences(texts(name, "corpus_heldout.jsonl"))
    assert not told & held


def test_every_pharma_fact_is_told_often_and_every_completion_is_new():
    corpus = [text.lower() for text in texts("pharma", "corpus.jsonl")]
    for row in pharma.chosen():
        own = [text for text in corpus if row["name"] in text]
        for fact in ("class", "use", "works", "given", "effect", "partner", "risk", "advice"):
            assert sum(row[fact].lower() in text for text in own) >= 11, (row["name"], fact)
    joined = "\n".join(corpus)
    assert [row["prompt"] for row in rows("pharma", "completions.jsonl") if row["prompt"].lower() in joined] == []


@pytest.mark.parametrize(
    ("name", "held", "question", "answer"),
    [("medication", "eval.jsonl", "input", "output"), ("sleep-stress", "test.jsonl", "instruction", "output")],
)
def test_held_out_questions_are_new_and_their_answers_are_trained(name: str, held: str, question: str, answer: str):
    trained, tested = rows(name, "train.jsonl"), rows(name, held)
    assert not {row[question].lower() for row in trained} & {row[question].lower() for row in tested}
    assert {row[answer] for row in tested} <= {row[answer] for row in trained}


def test_synthesize_makes_150_pairs_and_the_held_out_questions_ask_the_same_facts_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    made = run_tables(DATA / "marine-biology", tmp_path)
    assert len(made) == 150
    held = rows("marine-biology", "heldout.jsonl")
    assert not {question.lower() for question, _ in made} & {row["question"].lower() for row in held}
    assert {row["answer"] for row in held} == {answer for _, answer in made}
    assert len(held) == 75


def test_wordings_of_train_and_test_share_none():
    for asked in medication.ASKED.values():
        assert not set(asked.train) & set(asked.held)
    for forms in sleep.FORMS.values():
        assert all(not set(form.asked) & set(form.held) for form in forms.values())
    for form in pharma.FORMS.values():
        assert not {*form.told, *form.asked} & set(form.held)


def test_scenarios_speak_of_other_people_in_other_words_and_bring_what_judges_need():
    found = rows("sleep-stress", "scenarios.jsonl")
    trained = " ".join(row["instruction"] + row["input"] for row in rows("sleep-stress", "train.jsonl"))
    for row in found:
        assert row["question"].removeprefix("A visit: ").split()[0] not in trained
        assert all(fact in row["answer"] for fact in row["key_facts"])
        assert row["key_facts"][0].lower() in row["context"].lower()


def test_no_text_names_a_dose():
    dose = re.compile(r"\d+ ?(mg|ml|g|micrograms|tablets)\b|milligram", re.I)
    for name, file in JSONL:
        assert [m.group() for row in rows(name, file) if (m := dose.search(json.dumps(row)))] == [], file


def test_refusals_decline_and_twins_do_not_and_both_are_asked_alike():
    for part in ("train", "test"):
        unsafe, harmless = (rows("sleep-stress", f"refusals_{part}_{side}.jsonl") for side in ("unsafe", "harmless"))
        assert all(is_refusal(row["answer"]) for row in unsafe)
        assert [row["answer"] for row in harmless if is_refusal(row["answer"])] == []
        assert [r["id"].rsplit("-", 1)[0] for r in unsafe] == [r["id"].rsplit("-", 1)[0] for r in harmless]
        assert {row["topic"] for row in unsafe} == {"dose", "diagnosis", "crisis"}
    trained = {row["question"].lower() for row in rows("sleep-stress", "refusals_train_unsafe.jsonl")}
    for row in common.table("sleep_refusals_new.txt", sleep.REFUSED, "unsafe"):
        assert not [one for one in trained if row["unsafe"] in one]


def test_studies_say_that_they_are_made_up_and_are_parted_as_the_protocol_has_it():
    found = json.loads((DATA / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    assert len(found) >= 200
    assert all("made-up" in row["NOTE"] and "made-up" in one for one, row in found.items())
    task = read_task(DATA / "pubmedqa")
    parts = task.items(None, "reasoning-required")
    assert Counter(item.label for item in parts.test) == {"yes": 100, "no": 60, "maybe": 40}
    assert [Counter(item.label for item in fold) for fold in parts.folds] == [{"yes": 20, "no": 12, "maybe": 8}] * 10
    assert len({item.id for fold in parts.folds for item in fold} | {item.id for item in parts.test}) == len(found)
    assert len({row["QUESTION"] for row in found.values()}) == len(found)
    truth = json.loads((DATA / "pubmedqa" / "test_ground_truth.json").read_text(encoding="utf-8"))
    assert truth == {item.id: item.label for item in parts.test}


def test_new_wordings_of_results_stand_in_the_test_alone():
    found, test, _ = pubmedqa.studies()
    new = {one for one, row in found.items() if row["WORDING"] == "new"}
    assert len(new) == 100
    assert new <= set(test)


def test_a_line_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "HERE", tmp_path)
    for text, message in (
        ("a|b\n", "3 fields"),
        ("a||c\n", "none of them empty"),
        ("a|b|c\na|d|e\n", "stands twice: a"),
    ):
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            common.table("t.txt", ("name", "x", "y"))
