"""`metier init`: what it guesses of files, and that the recipe it writes passes the check and runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fakes
from metier.cli import main
from metier.core.store import Store
from metier.pipeline import check, plan
from metier.recipe import load_recipe

Metier = Callable[..., tuple[int, str, str]]


@pytest.fixture
def metier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metier:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METIER_STORE", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metier", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return call


def lines(path: str, rows: list[Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"question": f"What does animal {i} eat?", "answer": f"Animal {i} eats plant {i}."}
        for i in range(start, start + count)
    ]


def steps(path: str = "recipe.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(path).read_text())["steps"]
    return found


def sound(path: str) -> None:
    recipe = load_recipe(Path(path))
    check(recipe, plan(recipe, Store(Path("store"))))


def test_texts_and_examples_become_a_whole_recipe(metier: Metier):
    Path("notes").mkdir()
    for i in range(30):
        Path(f"notes/{i}.txt").write_text(f"Note number {i} about the sea and its animals.\n")
    Path("notes/picture.png").write_bytes(b"\x89PNG")
    lines("qa.jsonl", questions(60))
    code, out, err = metier("init", "notes", "qa.jsonl")
    assert (code, err) == (0, "")
    assert "30 files: texts: one text a file (.txt); to learn from" in out
    assert "1 file: examples: question/answer; to learn from" in out
    assert "left alone, as they hold neither text nor rows: picture.png" in out
    assert out.splitlines()[-1] == "Next: metier check recipe.yaml"
    made = steps()
    assert list(made) == [
        "articles",
        "questions",
        "reader",
        "specialist-adapter",
        "specialist",
        "answers",
        "scores",
        "likelihood",
    ]
    assert made["articles"]["sources"] == [{"path": "notes/*.txt"}]
    assert made["questions"]["sources"] == [{"path": "qa.jsonl"}]
    assert made["answers"]["models"] == ["seedling", "reader", "specialist"]
    assert Path("recipe.yaml").read_text().count("#") > 12
    sound("recipe.yaml")


def test_the_recipe_runs(metier: Metier):
    fakes.save_tiny(Path("base"))
    Path("texts.md").write_text("# Sea\n\nThe sea is wide.\n")
    lines("texts.jsonl", [{"text": f"The crab number {i} digs."} for i in range(30)])
    lines("qa.jsonl", [{"question": f"Crab {i}?", "answer": f"Hole {i}."} for i in range(40)])
    assert metier("init", "texts.jsonl", "texts.md", "qa.jsonl", "--model", "base", "--out", "mine.yaml")[0] == 0
    assert metier("check", "mine.yaml")[0] == 0
    small = ["reader.max_steps=1", "specialist-adapter.max_steps=1", "answers.limit=2", "answers.max_new_tokens=2"]
    options = [word for setting in small for word in ("--set", setting)]
    code, out, err = metier("run", "mine.yaml", *options)
    assert code == 0, err
    assert out.splitlines()[-1] == f"Report: {Path('runs/mine/report.html')}"


def test_fields_are_mapped_and_files_take_their_part_by_name(metier: Metier):
    head = "questionID,questionTitle,questionText,answerText\n"

    def row(i: int) -> str:
        return f"{i},Animal {i},What does animal {i} really eat all day?,It eats only plant number {i} there.\n"

    for name, numbers in {"train": range(20), "val": range(20, 24), "test": range(24, 30)}.items():
        Path(f"counsel_{name}.csv").write_text(head + "".join(map(row, numbers)))
    assert metier("init", "counsel_*.csv")[0] == 0
    made = steps()["questions"]
    fields = {"question": "questionText", "answer": "answerText"}
    assert made["sources"] == [{"path": "counsel_train.csv", "fields": fields}]
    assert made["dev"] == [{"path": "counsel_val.csv", "fields": fields}]
    assert made["test"] == [{"path": "counsel_test.csv", "fields": fields}]
    assert "test_fraction" not in made
    sound("recipe.yaml")


def test_a_text_in_a_field_of_another_name(metier: Metier):
    lines("papers.jsonl", [{"pmid": str(i), "abstract": f"Paper {i} is about the sea."} for i in range(40)])
    assert metier("init", "papers.jsonl")[0] == 0
    assert steps()["articles"]["sources"] == [{"path": "papers.jsonl", "field": "abstract"}]
    sound("recipe.yaml")


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [{"role": "user", "content": "Q {}?"}, {"role": "assistant", "content": "A {}."}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Q {}?"}, {"from": "gpt", "value": "A {}."}]}, "conversations"),
        ({"instruction": "Do {}", "input": "", "output": "Done {}."}, "instruction/input/output"),
        ({"prompt": "P {}", "completion": "C {}."}, "prompt/completion"),
    ],
)
def test_forms(metier: Metier, row: dict[str, Any], form: str):
    text = json.dumps(row)
    Path("a.jsonl").write_text("".join(text.replace("{}", str(i)) + "\n" for i in range(60)))
    code, out, _ = metier("init", "a.jsonl")
    assert code == 0
    assert f"1 file: examples: {form}; to learn from" in out
    sound("recipe.yaml")


@pytest.mark.shared
def test_pubmedqa_with_its_fixed_test(metier: Metier, shared: Path):
    assert metier("init", str(shared / "data/pubmedqa"), "--out", "pqa.yaml")[0] == 0
    made = steps("pqa.yaml")["questions"]
    assert made["split"]["ids"]["test"].endswith("test_ground_truth.json")
    assert "test_fraction" not in made
    sound("pqa.yaml")
    code, out, _ = metier("check", "pqa.yaml")
    assert code == 0, "questions that the seedling cannot read whole are left out"
    assert "rows that are pinned to test are left out by a filter" in out


def test_a_column_of_splits_is_used(metier: Metier):
    parts = ["train"] * 20 + ["val"] * 3 + ["test"] * 4
    lines("all.jsonl", [row | {"split": part} for row, part in zip(questions(27), parts, strict=True)])
    code, out, err = metier("init", "all.jsonl")
    assert (code, err) == (0, "")
    assert "1 file: examples: question/answer, where 'split' is 'val'; to choose by" in out
    made = steps()["questions"]
    for role, value in (("sources", "train"), ("dev", "val"), ("test", "test")):
        assert made[role] == [{"path": "all.jsonl", "only": {"split": value}}]
    assert "test_fraction" not in made
    sound("recipe.yaml")
    lines("odd.jsonl", [row | {"split": part} for row, part in zip(questions(27), ["a", "b", "c"] * 9, strict=True)])
    assert metier("init", "odd.jsonl", "--out", "odd.yaml")[0] == 0
    assert steps("odd.yaml")["questions"]["sources"] == [{"path": "odd.jsonl"}]


def test_long_questions_are_left_out_of_the_test(metier: Metier):
    fakes.save_tiny(Path("base"))
    lines("train.jsonl", questions(40))
    lines("test.jsonl", [*questions(5, start=50), {"question": "Why " * 60 + "?", "answer": "So."}])
    code, _, err = metier("init", "train.jsonl", "test.jsonl", "--model", "base")
    assert (code, err) == (0, "")
    assert steps()["questions"]["max_question_chars"] == 200
    assert metier("check", "recipe.yaml")[0] == 0


def test_a_recipe_is_never_written_over(metier: Metier):
    lines("qa.jsonl", questions(9))
    Path("recipe.yaml").write_text("mine")
    code, _, err = metier("init", "qa.jsonl")
    assert code == 2
    assert "recipe.yaml: there is a file already" in err
    assert Path("recipe.yaml").read_text() == "mine"


def test_what_nothing_can_be_made_of(metier: Metier):
    Path("a.png").write_bytes(b"x")
    lines("numbers.jsonl", [{"x": 1}])
    lines("empty.jsonl", [])
    for data, said in (
        ("a.png", "nothing to learn from"),
        ("numbers.jsonl", "neither a text nor a question and an answer"),
        ("empty.jsonl", "the file is empty"),
        ("absent", "no file is there"),
    ):
        code, _, err = metier("init", data)
        assert code == 2
        assert said in err
        assert not Path("recipe.yaml").exists()
    lines("qa.jsonl", questions(9))
    assert "no such model" in metier("init", "qa.jsonl", "--model", "absent/model")[2]
    assert "ends in .yaml" in metier("init", "qa.jsonl", "--out", "recipe.txt")[2]


def test_data_that_is_not_sound_yet_is_said_and_the_recipe_stays(metier: Metier):
    rows = [json.dumps(row) for row in questions(40)]
    Path("qa.jsonl").write_text("\n".join([*rows, "{broken"]) + "\n")
    code, out, err = metier("init", "qa.jsonl")
    assert code == 0
    assert "The data is not sound yet: " in err
    assert "qa.jsonl:41" in err
    assert "Recipe: recipe.yaml" in out
    assert Path("recipe.yaml").exists()


def test_enough_is_held_out_even_of_little(metier: Metier):
    lines("qa.jsonl", questions(12))
    assert metier("init", "qa.jsonl")[0] == 0
    sound("recipe.yaml")


def test_a_single_text_is_read_and_nothing_of_it_held_out(metier: Metier):
    Path("data").mkdir()
    Path("data/LICENSE.txt").write_text("Do as you please.\n")
    Path("data/README.md").write_text("# About the book\n")
    Path("data/book.txt").write_text("Once there was a crab. It dug.\n")
    lines("data/qa.jsonl", questions(40))
    code, out, err = metier("init", "data")
    assert (code, err) == (0, "")
    assert "left alone" in out
    assert "README.md" in out
    made = steps()
    assert made["articles"]["sources"] == [{"path": "data/book.txt"}]
    assert "heldout_fraction" not in made["articles"]
    assert "likelihood" not in made
    assert made["questions"]["test_fraction"] <= 0.2
    sound("recipe.yaml")


def test_long_examples_get_the_length_that_they_need(metier: Metier):
    fakes.save_tiny(Path("base"))
    rows = [{"question": f"Crab {i}?", "answer": f"Hole {i}. " * (40 if i % 4 == 0 else 2)} for i in range(40)]
    lines("qa.jsonl", rows)
    code, _, err = metier("init", "qa.jsonl", "--model", "base")
    assert (code, err) == (0, "")
    tune = steps()["specialist-adapter"]
    assert tune["max_length"] == fakes.CONTEXT
    assert 0.2 <= tune["max_masked"] <= 0.35
    assert metier("check", "recipe.yaml")[0] == 0


def test_questions_that_fill_the_context_are_told(metier: Metier):
    fakes.save_tiny(Path("base"))
    lines("train.jsonl", questions(40))
    lines("test.jsonl", [{"question": "Why " * 60 + "?", "answer": "So."}])
    code, _, err = metier("init", "train.jsonl", "test.jsonl", "--model", "base")
    assert code == 0
    assert "1 of 1 questions fill the 128 tokens that 'base' can read" in err
    code, _, err = metier("check", "recipe.yaml")
    assert code == 2
    assert "answers: questions: 1 of 1 questions fill the 128 tokens that 'specialist' can read" in err
