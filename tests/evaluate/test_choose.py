"""Choosing by log-likelihood: items, tasks, the stage, and the scores of choices against their reference libraries."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.evaluate.test_stages import House
from tests.fakes import byte_tokenizer, tiny

from metier.core.errors import DataError, Interrupted, RecipeError
from metier.evaluate import choosing, labels
from metier.evaluate.choose import Choose
from metier.evaluate.choosing import How, choose, references
from metier.evaluate.stage import Score
from metier.evaluate.taskfiles import SHIPPED, read_task, shipped
from metier.models.load import Loaded
from metier.text.items import Item, choices_path, class_of, item_of, names_of
from metier.text.nouns import Message, Question

Rows = list[dict[str, Any]]
LABELS = ("yes", "no", "maybe")


def item(number: int, label: str = "yes", choices: tuple[str, ...] = LABELS, **others: Any) -> Item:
    return Item(f"q{number}", (Message("user", f"Is {number} even?"),), choices, label, **others)


def row(number: int, label: str = "yes", choices: str = "yes|no|maybe", **meta: str) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "messages": [{"role": "user", "content": f"Is {number} even?"}, {"role": "assistant", "content": "Long."}],
        "group": "",
        "meta": {"choices": choices, "label": label, **meta},
    }


def rows(count: int = 12) -> Rows:
    return [row(number, LABELS[number % 3]) for number in range(count)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.model("a", seed=1)
    house.model("b", "gpt2", seed=2)
    return house


# ---- items


def test_an_item_is_a_question_whose_meta_holds_choices() -> None:
    asked = Question("q", (), "The long answer.", "sea", {"choices": "yes| no |maybe", "label": "no"})
    assert item_of(asked) == Item("q", (), LABELS, "no", "sea")
    assert item_of(item(1).question) == item(1)
    odd = Item("q", (), ("a|b", "c"), "c")
    assert item_of(odd.question) == odd


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ({"label": "yes"}, "has no choices"),
        ({"choices": "yes|no", "label": "yess"}, "the label is no choice(.|\n)*did you mean 'yes'"),
        ({"choices": "yes|no"}, "the label is no choice"),
        ({"choices": "yes|Yes ", "label": "yes"}, "two choices are the same"),
        ({"choices": "yes", "label": "yes"}, "two choices or more"),
        ({"choices": "yes||no", "label": "yes"}, "a choice is blank"),
        ({"choices": "|".join(f"c{i}" for i in range(27)), "label": "c1"}, "27 choices, and letters for 26"),
    ],
)
def test_bad_items_are_named(meta: dict[str, str], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        item_of(Question("q7", (), "The long answer.", "", meta))
    assert "question q7" in str(caught.value)


def test_classes() -> None:
    swapped = item(2, "no", ("no", "maybe", "yes"))
    assert names_of([item(1), item(3)]) == LABELS
    assert names_of([item(1), swapped]) == ("maybe", "no", "yes")
    assert class_of(swapped, "no", ("maybe", "no", "yes")) == 1
    assert names_of([item(1), item(2, "a", ("a", "b", "c"))]) == ("A", "B", "C")
    assert names_of([item(1), item(2, "a", ("a", "b"))]) is None


# ---- points of reference


def test_references_are_the_majority_each_constant_and_people() -> None:
    asked = [item(n, label, said={"human": "no"}) for n, label in enumerate(["yes", "no", "no"])]
    found = references(asked, [item(9, "maybe")])
    assert found["majority"] == ("trivial", ["maybe"] * 3)
    assert found["always no"] == ("trivial", ["no"] * 3)
    assert found["human"] == ("human", ["no"] * 3)
    # without training labels, what is commonest among the items that are asked
    assert references(asked, [])["majority"][1] == ["no"] * 3
    lettered = [item(1, "a b", ("a b", "c")), item(2, "d", ("e", "d"))]
    assert references(lettered, [])["always B"][1] == ["c", "d"]
    slashed = [item(1, "a/b", ("a/b", "c")), item(2, "c", ("a/b", "c"))]
    assert "always A" in references(slashed, [])


# ---- tasks


def test_shipped_tasks_are_whole() -> None:
    assert shipped() == ["everyday", "health", "pubmedqa"]
    for name in shipped():
        task = read_task(SHIPPED / name)
        assert "Licence" in task.readme
        if task.file.items is not None:
            items = task.items(None, task.way(None)).test
            assert len(items) >= 32
            places = [item.choices.index(item.label) for item in items]
            assert max(map(places.count, places)) <= math.ceil(len(items) / len(items[0].choices))


def task_folder(root: Path, **changes: Any) -> Path:
    root.mkdir()
    told = {
        "title": "Even numbers",
        "source": "made up",
        "licence": "CC0",
        "checked": "nothing",
        "items": "items.jsonl",
        "question": {"plain": "Is {n} even?", "polite": "Please: is {n} even?"},
        "choices": ["yes", "no"],
    } | changes
    (root / "task.yaml").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    (root / "README.md").write_text("Made up.")
    items = [{"id": f"n{n}", "n": n, "label": ["yes", "no"][n % 2]} for n in range(6)]
    (root / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    return root


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    task = read_task(task_folder(tmp_path / "even"))
    items = task.items(None, "polite").test
    assert items[1].messages[0].content == "Please: is 1 even?"
    assert [i.label for i in items[:2]] == ["yes", "no"]
    with pytest.raises(DataError, match=r"no such way to ask(.|\n)*did you mean 'plain'"):
        task.way("plane")
    with pytest.raises(DataError, match="brings its items along"):
        task.items(tmp_path / "x.json", "plain")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"licence": None}, "does not say its licence"),
        ({"source": None}, "does not say its source"),
        ({"lisence": "MIT"}, "unknown key(.|\n)*did you mean 'licence'"),
        ({"items": "other.jsonl"}, "lacks a file that it names"),
        ({"people": {"rude": "x"}}, "in a way that nobody asks"),
    ],
)
def test_a_task_that_is_not_whole_is_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_task(task_folder(tmp_path / "even", **changes))
    assert "task.yaml" in str(caught.value)


def test_a_task_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = task_folder(tmp_path / "even")
    (folder / "README.md").write_text(" \n")
    with pytest.raises(DataError, match=r"no README.md(.|\n)*licence"):
        read_task(folder)
    (folder / "task.yaml").unlink()
    with pytest.raises(DataError, match=r"no task.yaml"):
        read_task(folder)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"id": "x", "label": "yes"}', "no field 'n'"),
        ('{"id": "x", "n": 1, "label": "perhaps"}', "the label is no choice"),
        ('{"id": "x", "n": {}, "label": "yes"}', "is no text"),
        ("[1]", "an item is no object"),
        ("{", "not JSON"),
        ('{"id": "n0", "n": 1, "label": "yes"}', "two items of items.jsonl have the same id"),
    ],
)
def test_bad_items_of_a_task_name_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    folder = task_folder(tmp_path / "even")
    with (folder / "items.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=what) as caught:
        read_task(folder).items(None, "plain")
    assert "line 7" in str(caught.value) or "same id" in str(caught.value)


@pytest.mark.shared
def test_pubmedqa_reproduces_its_official_evaluation(shared: Path) -> None:
    """The answers of a person that ship in the file: accuracy and macro-F1 78.0 and 72.2, or 90.4 and 84.2."""
    task, data = read_task(SHIPPED / "pubmedqa"), shared / "data/pubmedqa/ori_pqal.json"
    for way, accuracy, f1 in (("reasoning-required", 78.0, 72.2), ("reasoning-free", 90.4, 84.2)):
        parts = task.items(data, way)
        items = parts.test
        assert len(items) == 500
        said = references(items, parts.train)
        figures = {}
        for name in ("human", "majority"):
            chosen = [labels.Chosen(s, s, s, None) for s in said[name][1]]
            right = sum(s == i.label for s, i in zip(said[name][1], items, strict=True)) / 5
            figures[name] = round(right, 1), round(100 * labels.macro_f1(items, chosen, LABELS).value, 1)
        assert figures == {"human": (accuracy, f1), "majority": (55.2, 23.7)}


def drawn(items: list[Item], count: int, rng: random.Random) -> list[list[Item]]:
    """As PubMedQA's authors draw halves and folds: preprocess/split_dataset.py of github.com/pubmedqa/pubmedqa."""
    by_label: dict[str, list[str]] = {choice: [] for choice in items[0].choices}
    for item in items:
        by_label[item.label].append(item.id)
    parts: list[list[str]] = [[] for _ in range(count)]
    for ids in by_label.values():
        rng.shuffle(ids)
        size = math.ceil(len(ids) / count)
        for index, part in enumerate(parts):
            part += ids[index * size :] if index == count - 1 else ids[index * size : (index + 1) * size]
    if len(parts[-1]) != len(parts[0]):
        for part in parts[:-1]:
            picked = rng.choice(part)
            part.remove(picked)
            parts[-1].append(picked)
    known = {item.id: item for item in items}
    return [[known[one] for one in part] for part in parts]


@pytest.mark.shared
def test_pubmedqa_has_the_published_test_and_folds(shared: Path) -> None:
    task, data = read_task(SHIPPED / "pubmedqa"), shared / "data/pubmedqa/ori_pqal.json"
    parts = task.items(data, "reasoning-required")
    known = {item.id: item for item in (*parts.test, *parts.train)}
    published = json.loads((shared / "data/pubmedqa/test_ground_truth.json").read_text())
    assert {item.id: item.label for item in parts.test} == published
    rng = random.Random(0)
    half, test = drawn([known[one] for one in json.loads(data.read_text())], 2, rng)
    assert {item.id for item in test} == set(published)
    assert [[i.id for i in fold] for fold in drawn(half, 10, rng)] == [[i.id for i in fold] for fold in parts.folds]
    assert [len(fold) for fold in parts.folds] == [50] * 10


# ---- choosing


def loaded(kind: str = "llama", seed: int = 3) -> Loaded:
    return Loaded(tiny(kind, seed), byte_tokenizer(), Path("nowhere"))


@pytest.mark.parametrize("form", ["cloze", "letter"])
@pytest.mark.parametrize("prompt", ["chat", "plain"])
def test_likelihoods_are_those_of_the_written_strings(form: Any, prompt: Any) -> None:
    """Each string written out by hand, read in one plain forward pass."""
    model = loaded()
    asked = [item(1, "no"), item(2, "maybe")]
    listed = "\n\nA. yes\nB. no\nC. maybe" if form == "letter" else ""
    found = choose(model, asked, How(form, prompt))
    for one, got in zip(asked, found, strict=True):
        assert [c["text"] for c in got["choices"]] == list(LABELS)
        question = one.messages[0].content + listed
        texts = {
            "chat": f"<|begin|><|user|>{question}<|end|><|assistant|>",
            "plain": f"<|begin|>Question: {question}\nAnswer:",
        }
        for place, choice in enumerate(got["choices"]):
            said = "ABC"[place] if form == "letter" else LABELS[place]
            continuation = said if prompt == "chat" else f" {said}"
            before = model.tokenizer.encode(texts[prompt])
            ids = torch.tensor([model.tokenizer.encode(texts[prompt] + continuation)])
            with torch.no_grad():
                logprobs = torch.log_softmax(model.model(input_ids=ids).logits[0, :-1], -1)
            picked = logprobs.gather(1, ids[0, 1:, None])[len(before) - 1 :]
            assert choice["logprob"] == pytest.approx(float(picked.sum()), abs=1e-5)
            assert choice["tokens"] == len(picked)
            assert choice["bytes"] == len(said)


def test_shots_come_first_with_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = How("letter", "chat", (item(8, "maybe"),))
    said = [(m.role, m.content.split("\n")[0]) for m in shown.prompt_of(item(1))]
    assert said == [("user", "Is 8 even?"), ("assistant", "C"), ("user", "Is 1 even?")]


def test_a_question_that_does_not_fit_is_refused_or_cut() -> None:
    long = Item("long", (Message("user", "word " * 60),), LABELS, "no")
    with pytest.raises(DataError, match=r"exceed the 128 tokens(.|\n)*overflow: truncate") as caught:
        choose(loaded(), [item(1), long], How())
    assert "question long" in str(caught.value)
    warned: list[str] = []
    found = choose(loaded(), [item(1), long], How(truncate=True), warn=warned.append)
    assert [one.get("truncated", False) for one in found] == [False, True]
    assert "1 of 2 questions" in warned[0]


def test_the_stage_and_its_scores(house: House) -> None:
    house.examples(rows())
    house.examples([row(n + 100, "maybe") for n in range(3)], split="train")
    out, metrics = house.run(Choose(models=["a", "b"], questions="qa", contamination=False), "chosen")
    names = [c["name"] for c in json.loads((out / "contenders.json").read_text())]
    assert names == ["a", "b", "majority", "always yes", "always no", "always maybe"]
    assert set(metrics) == {"a accuracy", "b accuracy"}
    house.add("chosen", out)
    files, scored = house.run(Score(answers="chosen"), "scored")
    scores = json.loads((files / "scores.json").read_text())
    assert scores["contenders"]["majority"] == "trivial"
    assert {r["metric"] for r in scores["rows"]} == set(labels.METRICS)
    assert scored["a accuracy"] == metrics["a accuracy"]
    assert scored["majority accuracy"] == pytest.approx(4 / 12)
    by = {(r["contender"], r["metric"]): r for r in scores["rows"]}
    assert ("majority", "ece") not in by
    for (name, metric), found in by.items():
        assert found["low"] <= found["mean"] <= found["high"], (name, metric)
        assert [v["against"] for v in found["versus"]] == (["a"] if name == "b" else [])
    assert by["b", "accuracy"]["versus"][0]["test"].startswith("mcnemar")
    assert {c["contender"] for c in scores["confusion"]} == set(names)
    assert sum(map(sum, scores["confusion"][0]["matrix"])) == 12
    assert sum(b["n"] for b in scores["reliability"][0]["bins"]) == 12
    assert scores["coverage"][0]["points"][-1] == [1.0, pytest.approx(1 - metrics["a accuracy"])]
    again, _ = house.run(Choose(models=["a", "b"], questions="qa", contamination=False), "again")
    for path in sorted(out.rglob("*.jsonl")):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()


def test_a_task_against_a_point_of_reference(house: House) -> None:
    stage = Choose(models=["a"], task="everyday", form="letter", limit=8, shots=0, overflow="truncate")
    house.add("chosen", house.run(stage, "chosen")[0])
    files, _ = house.run(Score(answers="chosen", against=["majority"]), "scored")
    scores = json.loads((files / "scores.json").read_text())
    against = {r["metric"]: [v["against"] for v in r["versus"]] for r in scores["rows"] if r["contender"] == "a"}
    assert against["accuracy"] == against["accuracy_pmi"] == ["majority"]
    assert against["ece"] == []
    assert "confusion" not in scores  # four places are no classes
    assert "always D" in scores["contenders"]


def test_ones_own_task_in_a_recipe(house: House, tmp_path: Path) -> None:
    from metier.core.stage import Source

    folder = task_folder(tmp_path / "even")
    files = tuple(sorted(folder.iterdir()))
    house.sources["even"] = Source("even", files, "even", "even")
    stage = Choose.model_validate({"kind": "choose", "models": ["a"], "task": {"folder": "even"}, "way": "polite"})
    out, _ = house.run(stage, "chosen")
    assert "Please: is 0 even?" in (out / "questions.jsonl").read_text()
    house.sources["even"] = Source("even", files[:1], "even", "even")
    with pytest.raises(DataError, match=r"has no task.yaml"):
        stage.check(house.sources)


def test_the_best_on_its_own_fold_joins_the_contenders(house: House, tmp_path: Path) -> None:
    from metier.core.stage import Source

    folder = task_folder(tmp_path / "even", test_ids="test.txt", folds=["f0.txt", "f1.txt"])
    for name, ids in (("test", "n0 n1"), ("f0", "n2 n4"), ("f1", "n3 n5")):  # all of f0 is yes, all of f1 is no
        (folder / f"{name}.txt").write_text(ids)
    house.sources["even"] = Source("even", tuple(sorted(folder.iterdir())), "even", "even")
    fields = {"kind": "choose", "models": ["a"], "task": {"folder": "even"}, "contamination": False}
    house.model("c", seed=7)
    dev, accuracies = [], []
    for fold, name in enumerate("bc"):
        out, metrics = house.run(
            Choose.model_validate(fields | {"models": [name], "part": "dev", "fold": fold}), name * 2
        )
        accuracies.append(metrics[f"{name} accuracy"])
        dev.append((out / "questions.jsonl").read_text())
    assert "n4" in dev[0]
    assert "n5" in dev[1]
    out, metrics = house.run(Choose.model_validate(fields | {"select": ["b", "c"]}), "chosen")
    selection = json.loads((out / "selection.json").read_text())
    assert [one["accuracy"] for one in selection["folds"]] == accuracies
    best = "bc"[accuracies.index(max(accuracies))]
    assert selection["selected"] == best
    assert set(metrics) == {"a accuracy", f"{best} accuracy"}
    with pytest.raises(RecipeError, match="2 folds"):
        Choose.model_validate(fields | {"select": ["b"]}).check(house.sources)
    with pytest.raises(ValidationError, match="task that has folds"):
        Choose.model_validate({"kind": "choose", "models": ["a"], "questions": "qa", "select": ["b"]})


def test_an_interrupted_run_keeps_finished_contenders(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.examples(rows())
    stage = Choose(models=["a", "b"], questions="qa", contamination=False)
    asked: list[str] = []
    usual = choosing.load
    monkeypatch.setattr(choosing, "load", lambda folder: asked.append(folder.name) or usual(folder))  # type: ignore[func-returns-value]
    with pytest.raises(Interrupted):
        house.run(stage, "chosen", stop=lambda: bool(asked) and asked[-1] == "b")
    out, _ = house.run(stage, "chosen")
    assert asked == ["a", "b", "b"]
    whole, _ = house.run(stage, "whole")
    assert choices_path(out, "a").read_bytes() == choices_path(whole, "a").read_bytes()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "say what is asked"),
        ({"questions": "qa", "task": "health"}, "one of both"),
        ({"task": "helth"}, "no such task: 'helth'; did you mean 'health'"),
        ({"questions": "qa", "way": "x"}, "belongs to a task"),
        ({"task": "health", "split": "dev"}, "`split` belongs to an examples step"),
        ({"task": "health", "part": "dev"}, "go together"),
        ({"task": "health", "fold": 1}, "go together"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Choose.model_validate({"kind": "choose", "models": ["a"], **fields})


def test_bad_input_stops_before_a_model_loads(house: House) -> None:
    house.examples([row(1, "perhaps")])
    with pytest.raises(DataError, match="the label is no choice"):
        Choose(models=["a"], questions="qa").check(house.sources)
    plain = {"id": "q", "group": "", "messages": row(1)["messages"]}
    house.examples([plain])
    with pytest.raises(DataError, match=r"no choices(.|\n)*keep"):
        Choose(models=["a"], questions="qa").check(house.sources)
    with pytest.raises(RecipeError, match="are one"):
        Choose(models=["a", "a"], task="health").check(house.sources)
    with pytest.raises(RecipeError, match="0 items to show"):
        Choose(models=["a"], task="health", shots=1).check(house.sources)
    with pytest.raises(DataError, match=r"does not bring its items along(.|\n)*ori_pqal"):
        Choose(models=["a"], task="pubmedqa").check(house.sources)


def test_scores_of_choices_refuse_what_does_not_fit(house: House, tmp_path: Path) -> None:
    house.examples(rows(4))
    out, _ = house.run(Choose(models=["a"], questions="qa", contamination=False), "chosen")
    house.add("chosen", out)
    with pytest.raises(RecipeError, match="metrics of their own"):
        Score(answers="chosen", metrics=["token_f1"]).check(house.sources)
    with pytest.raises(RecipeError, match="no contender of that name"):
        Score(answers="chosen", against=["c"]).check(house.sources)

    def broken(change: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        path = choices_path(copy, "a")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r) + "\n" for r in change(found)))
        return copy

    with pytest.raises(DataError, match=r"not to these questions(.|\n)*3 for 4"):
        labels.read_choices(broken(lambda found: found[:3]))
    with pytest.raises(DataError, match=r"not to these questions(.|\n)*q1 for q0"):
        labels.read_choices(broken(lambda found: [found[1], found[0], *found[2:]]))
    with pytest.raises(DataError, match="no choice"):
        labels.read_choices(broken(lambda f: [{"id": r["id"], "label": r["label"], "said": "yess"} for r in f]))
    with pytest.raises(DataError, match="other choices"):
        labels.read_choices(broken(lambda found: [{**r, "choices": r["choices"][:2]} for r in found]))


# ---- figures


def chosen_at_random(seed: int, count: int = 60) -> tuple[list[Item], list[labels.Chosen], np.ndarray]:
    rng = np.random.default_rng(seed)
    sides = 3 if seed % 3 else 2  # sometimes a class that nobody has
    asked = [item(n, LABELS[rng.integers(sides)]) for n in range(count)]
    sure = rng.uniform(0.34, 1, count)
    said = [LABELS[rng.integers(sides)] for _ in range(count)]
    return asked, [labels.Chosen(s, s, s, float(c)) for s, c in zip(said, sure, strict=True)], sure


def test_macro_f1_and_confusion_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(200):
        asked, chosen, _ = chosen_at_random(seed, count=5 + seed % 40)
        gold, said = [i.label for i in asked], [c.accuracy for c in chosen]
        wanted = metrics.f1_score(gold, said, average="macro")
        assert labels.macro_f1(asked, chosen, LABELS).value == pytest.approx(wanted, abs=1e-12)
        read = labels.Choices(tuple(asked), {"a": "model"}, {"a": chosen})
        (found,) = labels.extras(read).get("confusion", [{"matrix": None, "labels": LABELS}])
        assert found["matrix"] == metrics.confusion_matrix(gold, said, labels=LABELS).tolist()


def test_calibration_and_risk_by_their_definitions() -> None:
    for seed in range(200):
        asked, chosen, sure = chosen_at_random(seed)
        right = np.array([c.accuracy == i.label for i, c in zip(asked, chosen, strict=True)], dtype=float)
        bins = np.clip(np.ceil(sure * labels.BINS) - 1, 0, labels.BINS - 1)
        gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * np.mean(bins == b) for b in np.unique(bins)]
        assert labels.calibration_error(sure, right).value == pytest.approx(sum(gaps), abs=1e-12)
        order = np.argsort(-sure)
        risks = [1 - right[order[: n + 1]].mean() for n in range(len(sure))]
        assert labels.area_under_risk(sure, right).value == pytest.approx(np.mean(risks), abs=1e-12)


def test_columns_keep_clean_items_and_groups_apart() -> None:
    asked = [item(n, LABELS[n % 3], group="ab"[n % 2]) for n in range(8)]
    chosen = [labels.Chosen("yes", "yes", None, 0.5)] * 8
    read = labels.Choices(tuple(asked), {"a": "model"}, {"a": chosen})
    made = labels.columns(read, {"q0"}, ["a"])
    sizes = {(c.metric, c.group): len(c.values) for c in made}
    assert sizes["accuracy", "all"] == 8
    assert sizes["macro_f1", "clean"] == 7
    assert sizes["ece", "b"] == 4
    assert "accuracy_pmi" not in {c.metric for c in made}


# ---- a recipe

RECIPE = """\
name: labels
steps:
  chosen: {kind: choose, models: [seedling], task: pubmedqa, data: DATA, overflow: truncate, limit: 10}
  scores: {kind: score, answers: chosen}
  kept: {kind: choose, models: [seedling], task: everyday, limit: 35}
  kept-scores: {kind: score, answers: kept}
"""


@pytest.mark.shared
def test_a_recipe_asks_the_seedling(shared: Path, tmp_path: Path) -> None:
    """PubMedQA by its file, and everyday things, of which the seedling knows more than a quarter."""
    from metier.core.store import Store
    from metier.pipeline import run
    from metier.recipe import load_recipe

    path = tmp_path / "labels.yaml"
    path.write_text(RECIPE.replace("DATA", str(shared / "data/pubmedqa/ori_pqal.json")))
    result = run(load_recipe(path), Store(tmp_path / "store"))
    scores = {
        step: json.loads((result.artifacts[step].files / "scores.json").read_text())["rows"]
        for step in ("scores", "kept-scores")
    }
    names = {row["contender"] for row in scores["scores"]}
    assert names == {"seedling", "majority", "always yes", "always no", "always maybe", "human"}
    by = {(row["contender"], row["metric"]): row for row in scores["kept-scores"] if row["group"] == "all"}
    assert by["seedling", "accuracy"]["mean"] > 0.4
    assert by["always A", "accuracy"]["mean"] < 0.35
