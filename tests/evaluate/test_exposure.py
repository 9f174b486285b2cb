"""The gate between what contenders were trained on and what they are asked: lineage, marks, scores on all and clean."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_stages import House, conversation, read, scores
from tests.fakes import save_tiny

from metier.core.errors import DataError
from metier.core.stage import Source
from metier.evaluate.exposure import lineage
from metier.evaluate.stage import Answer, Perplexity, Score
from metier.text.artifacts import write_jsonl

Rows = list[dict[str, Any]]
LONG = "the whale swims north in spring because the krill is there and the ice has gone from the open bay by then"


class Store(House):
    """A House whose artifacts have records, as a store's have."""

    def artifact(self, name: str, produces: str, inputs: dict[str, tuple[str, str]] | None = None) -> Path:
        """inputs: by value, the link and the field. Returns its files."""
        files = self.root / "objects" / f"{name}-key" / "files"
        files.mkdir(parents=True, exist_ok=True)
        given = {v: {"digest": "", "link": link, "field": field} for v, (link, field) in (inputs or {}).items()}
        (files.parent / "run.json").write_text(json.dumps({"produces": produces, "inputs": given}))
        self.add(name, files)
        return files

    def data(self, name: str, rows: Rows, split: str = "train", produces: str = "examples") -> None:
        write_jsonl(self.artifact(name, produces) / f"{split}.jsonl", rows)

    def trained(self, name: str, on: str, model: str = "base", field: str = "examples") -> None:
        link = (
            f"../../{model}-key/files"
            if model in self.sources and "objects" in str(self.sources[model].path)
            else model
        )
        files = self.artifact(name, "model", {on: (f"../../{on}-key/files", field), model: (link, "model")})
        save_tiny(files)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.model("base")
    made.data("qa", [conversation(i, group="diet" if i % 2 else "depth") for i in range(10)], split="test")
    made.data("lessons", [conversation(i + 100) for i in range(5)])
    made.data("leaky", [conversation(3), conversation(4), conversation(200)])
    made.data("notes", [{"id": "n", "text": LONG}], produces="documents")
    return made


def answers(store: Store, *models: str, **changed: Any) -> tuple[Path, dict[str, Any]]:
    stage = Answer.model_validate({"models": list(models), "questions": "qa", "max_new_tokens": 2, **changed})
    files, _ = store.run(stage, "answers")
    return files, json.loads((files / "contamination.json").read_text())


def test_lineage_goes_back_to_all_that_was_read(store: Store):
    store.trained("reader", "notes", field="documents")
    store.trained("tutor", "lessons", model="reader")
    merged = store.artifact("merged", "model", {"tutor": ("../../tutor-key/files", "model")})
    found = lineage(store.sources["merged"])
    assert set(found.data) == {"lessons-key", "notes-key"}
    assert found.unknown == ["base"]
    (merged.parents[1] / "reader-key" / "run.json").unlink()
    assert lineage(store.sources["merged"]).unknown == ["reader-key"]
    assert lineage(Source("base", (store.root,), "base", "")).unknown == ["base"]
    assert lineage(Source("m", (Path("/home/someone/model"),), "", "")).data == {}
    assert lineage(Source("/home/someone/model", (Path("/home/someone/model"),), "", "")).unknown == ["model"]


def test_a_step_that_has_not_run_is_followed_through_what_it_will_read(store: Store):
    waiting = Source("new", (), "", "", made_from=(store.sources["lessons"], store.sources["base"]))
    found = lineage(waiting)
    assert (set(found.data), found.unknown) == ({"lessons-key"}, ["base"])


def test_what_was_seen_is_marked_for_each_contender(store: Store):
    store.trained("clean-model", "lessons")
    store.trained("cheat", "leaky")
    files, found = answers(store, "base", "clean-model", "cheat")
    assert (found["tested"], found["seen"], found["dropped"]) == (10, 2, [])
    assert {name: one["seen"] for name, one in found["contenders"].items()} == {
        "base": [],
        "clean-model": [],
        "cheat": ["q3", "q4"],
    }
    assert found["contenders"]["cheat"]["trained_on"] == ["leaky-key"]
    assert found["contenders"]["base"]["unknown"] == ["base"]
    first = found["hits"][0]
    assert (first["id"], first["how"], first["artifact"], first["split"]) == ("q3", "exact", "leaky-key", "train")
    assert first["tested"] == first["trained"] == "What does animal 3 eat today today today?"
    assert len(read(files / "questions.jsonl")) == 10
    assert "2 of 10 questions were seen in training by a contender" in store.said("warning")[0]


def test_replay_counts_and_held_out_splits_do_not(store: Store):
    write_jsonl(store.sources["lessons"].path / "replay.jsonl", [conversation(5)])
    write_jsonl(store.sources["lessons"].path / "test.jsonl", [conversation(6)])
    write_jsonl(
        store.sources["lessons"].path / "rejects.jsonl", [{"where": "a:1", "reason": "r", "row": conversation(7)}]
    )
    store.trained("tutor", "lessons")
    _, found = answers(store, "tutor")
    assert found["contenders"]["tutor"]["seen"] == ["q5"]
    assert found["hits"][0]["split"] == "replay"


def test_scores_stand_on_all_and_on_the_clean(store: Store):
    store.trained("cheat", "leaky")
    answers(store, "base", "cheat")
    files, metrics = store.run(Score(answers="answers", metrics=["output_tokens", "token_f1"]), "scores")
    found = scores(files)
    assert found["cheat", "token_f1", "all"]["n"] == 10
    assert found["cheat", "token_f1", "clean"]["n"] == found["base", "token_f1", "clean"]["n"] == 8
    assert found["cheat", "token_f1", "diet"]["n"] == 5
    assert found["cheat", "token_f1", "clean"]["versus"][0]["against"] == "base"
    assert {"cheat token_f1", "cheat token_f1 clean"} <= set(metrics)
    told = json.loads((files / "scores.json").read_text())["contamination"]
    assert told == {
        "tested": 10,
        "seen": 2,
        "dropped": 0,
        "contenders": {"base": {"seen": 0, "unknown": ["base"]}, "cheat": {"seen": 2, "unknown": ["base"]}},
    }


def test_where_nothing_was_seen_there_is_no_clean_group(store: Store):
    store.trained("tutor", "lessons")
    answers(store, "base", "tutor")
    files, _ = store.run(Score(answers="answers", metrics=["token_f1"]), "scores")
    assert {group for _, _, group in scores(files)} == {"all", "depth", "diet"}
    assert json.loads((files / "scores.json").read_text())["contamination"]["seen"] == 0
    assert not store.said("warning")


def test_drop_leaves_the_seen_out(store: Store):
    store.trained("cheat", "leaky")
    files, found = answers(store, "base", "cheat", contamination={"action": "drop"})
    assert found["dropped"] == ["q3", "q4"]
    assert [q["id"] for q in read(files / "questions.jsonl")] == [f"q{i}" for i in range(10) if i not in (3, 4)]
    files, _ = store.run(Score(answers="answers", metrics=["token_f1"]), "scores")
    assert scores(files)["cheat", "token_f1", "all"]["n"] == 8
    assert ("cheat", "token_f1", "clean") not in scores(files)


def test_stop_lists_both_texts_before_any_model_loads(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("metier.evaluate.answering.load_held", lambda *_: pytest.fail("a model was loaded"))
    store.trained("cheat", "leaky")
    with pytest.raises(DataError, match="2 of 10 questions were seen in training") as caught:
        answers(store, "cheat", contamination={"action": "stop"})
    assert "q3 (exact 1, its question)" in str(caught.value)
    assert "trained: 'What does animal 3 eat today today today?'" in str(caught.value)


def test_stop_refuses_before_the_training_that_would_leak(store: Store):
    """The data step has run, the training not yet: waiting for it would only cost time."""
    stage = Answer.model_validate({"models": ["new"], "questions": "qa", "contamination": {"action": "stop"}})
    for data, leaks in (("leaky", True), ("lessons", False)):
        waiting = Source("new", (), "", "", made_from=(store.sources[data], store.sources["base"]))
        sources = store.sources | {"new": waiting}
        if leaks:
            with pytest.raises(DataError, match="2 of 10 questions were seen"):
                stage.check(sources)
        else:
            stage.check(sources)


def test_nothing_left_to_ask_is_refused(store: Store):
    store.data("all", [conversation(i) for i in range(10)])
    store.trained("cheat", "all")
    with pytest.raises(DataError, match="every one of the questions was seen"):
        answers(store, "cheat", contamination={"action": "drop"})


def test_nobody_looks_where_told_not_to(store: Store):
    store.trained("cheat", "leaky")
    stage = Answer.model_validate({"models": ["cheat"], "questions": "qa", "max_new_tokens": 2, "contamination": False})
    files, _ = store.run(stage, "answers")
    assert not (files / "contamination.json").exists()
    assert not store.said("warning")


def test_the_same_bytes_twice(store: Store):
    store.trained("cheat", "leaky")
    first = (answers(store, "base", "cheat")[0] / "contamination.json").read_bytes()
    assert (answers(store, "base", "cheat")[0] / "contamination.json").read_bytes() == first
    assert str(store.root).encode() not in first


def test_documents_that_were_read_are_measured_apart(store: Store):
    held = [{"id": "x", "text": f"So: {LONG}"}, {"id": "y", "text": "Kelp is tall."}, {"id": "z", "text": "Fish swim."}]
    store.data("sea", held, split="heldout", produces="documents")
    store.data("general", [{"id": "x", "text": "Rain fell."}], split="heldout", produces="documents")
    store.trained("reader", "notes", field="documents")
    settings = {"models": ["base", "reader"], "documents": ["sea", "general"]}
    files, metrics = store.run(Perplexity.model_validate(settings), "likelihood")
    found = scores(files)
    assert found["reader", "bits_per_byte", "sea"]["n"] == 3
    assert found["reader", "bits_per_byte", "sea (clean)"]["n"] == 2
    assert ("reader", "bits_per_byte", "general (clean)") not in found
    assert "reader sea (clean) bits_per_byte" in metrics
    assert json.loads((files / "contamination.json").read_text())["contenders"]["reader"]["seen"] == ["sea/x"]
    dropping = Perplexity.model_validate(settings | {"contamination": {"action": "drop"}})
    files, _ = store.run(dropping, "dropping")
    assert scores(files)["reader", "bits_per_byte", "sea"]["n"] == 2
    assert ("reader", "bits_per_byte", "sea (clean)") not in scores(files)
