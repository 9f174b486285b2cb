"""The stages `documents` and `examples`: what they write, refuse, leave out, and that two runs write the same bytes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from metier.core.errors import DataError, Interrupted
from metier.core.events import Event, Events
from metier.core.stage import KEEP_GOING, Context, Source, Stage, references
from metier.data import sources
from metier.data.stage import Documents, Examples
from metier.data.writing import KINDS
from metier.text.artifacts import about, read_conversations, read_documents, read_jsonl


class Bench:
    """Runs a stage on files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.steps: dict[str, Path | None] = {}
        self.globs: dict[str, str] = {}

    def write(self, name: str, *rows: Any) -> str:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    def sources(self, stage: Stage) -> Mapping[str, Source]:
        return {ref.value: self.source(ref.value) for ref in references(stage)}

    def source(self, name: str) -> Source:
        if name in self.steps:
            folder = self.steps[name]
            return Source(name, (folder,) if folder else (), "", "")
        return Source(name, tuple(sorted(self.folder.glob(self.globs.get(name, name)))), "", "")

    def run(self, stage: Stage, name: str = "out", *, stop: bool = False) -> tuple[Path, Mapping[str, float]]:
        out = self.folder / name
        out.mkdir()
        events = Events("data", listeners=[self.events.append])
        ctx = Context("data", out, out, out, events, self.sources(stage), stop=lambda: stop)
        return out, stage.run(ctx)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def asked(*numbers: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in numbers]


def questions(out: Path, split: str) -> list[str]:
    return [c.messages[-2].content for c in read_conversations(out, split)]


def test_documents(bench: Bench) -> None:
    bench.write("a.jsonl", *({"id": n, "text": f"Text {n}"} for n in range(200)))
    bench.write("general.jsonl", {"text": "Rain is wet. é"}, {"text": "Text 1"})
    stage = Documents.model_validate(
        {
            "sources": [{"path": "a.jsonl"}],
            "heldout_fraction": 0.2,
            "replay": {"sources": [{"path": "general.jsonl"}], "ratio": 0.25},
        }
    )
    stage.check(bench.sources(stage))
    out, metrics = bench.run(stage)
    train, heldout = read_documents(out, "train"), read_documents(out, "heldout")
    assert len(train) + len(heldout) == 200
    assert 20 < len(heldout) < 60
    assert [d.text for d in read_documents(out, "replay")] == ["Rain is wet. é"]
    assert {d.id for d in train} < {str(n) for n in range(200)}
    facts = about(out)
    assert facts["replay_ratio"] == 0.25
    assert facts["counts"] == {"heldout": len(heldout), "train": len(train), "replay": 1}
    assert (facts["characters"]["replay"], facts["bytes"]["replay"]) == (14, 15)
    assert metrics["leaked"] == 1
    (reject,) = read_jsonl(out / "rejects.jsonl")
    assert reject["where"] == "general.jsonl:2"
    assert reject["reason"].startswith("also in ")
    assert any(e["event"] == "progress" and e["done"] for e in bench.events)


def test_given_heldout_is_kept_out_of_training(bench: Bench) -> None:
    bench.write("a.jsonl", {"text": "One  text"}, {"text": "Two"})
    bench.write("b.jsonl", {"text": "one text"})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "heldout": [{"path": "b.jsonl"}]})
    out, _ = bench.run(stage)
    assert [d.text for d in read_documents(out, "train")] == ["Two"]
    assert [d.text for d in read_documents(out, "heldout")] == ["one text"]


def test_folder_of_texts_has_ids_by_content(bench: Bench) -> None:
    (bench.folder / "a.md").write_text("# Whale\n\nLarge.")
    (bench.folder / "b.txt").write_text("Krill")
    stage = Documents.model_validate({"sources": [{"path": "*.*"}]})
    first, _ = bench.run(stage)
    (bench.folder / "a.md").rename(bench.folder / "z.md")
    again, _ = bench.run(stage, "again")
    ids = {d.id for d in read_documents(first, "train")}
    assert ids == {d.id for d in read_documents(again, "train")}
    assert all(len(i) == 16 for i in ids)


def test_examples(bench: Bench) -> None:
    rows = [*asked(*range(300)), {"question": "what is 7", "answer": "Seven.", "group": "odd"}]
    bench.write("a.jsonl", *rows)
    bench.write("t.jsonl", {**asked(5)[0], "id": "five", "group": "odd"})
    stage = Examples.model_validate(
        {
            "sources": [{"path": "a.jsonl"}],
            "test": [{"path": "t.jsonl"}],
            "dev_fraction": 0.1,
            "test_fraction": 0.1,
            "system": "Be brief.",
        }
    )
    stage.check(bench.sources(stage))
    out, metrics = bench.run(stage)
    splits = {name: read_conversations(out, name) for name in ("train", "dev", "test", "replay")}
    assert all(c.messages[0].content == "Be brief." for cs in splits.values() for c in cs)
    assert splits["replay"] == []
    left_out = {**dict.fromkeys(KINDS, 0), "leaked": 1}
    assert metrics == {**{name: len(cs) for name, cs in splits.items()}, **left_out}
    assert sum(len(cs) for cs in splits.values()) == 301
    homes = [name for name in splits for q in questions(out, name) if q.lower().strip("?") == "what is 7"]
    assert len(homes) == 2
    assert len(set(homes)) == 1
    assert sum(q == "What is 5?" for name in splits for q in questions(out, name)) == 1
    assert about(out)["groups"]["test"]["odd"] >= 1


def test_two_runs_write_the_same_bytes(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(*range(50)), *asked(1, 2), {"question": "", "answer": "x"})
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "test_fraction": 0.2})
    one, _ = bench.run(stage, "one")
    two, _ = bench.run(stage, "two")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    reasons = [row["reason"] for row in read_jsonl(one / "rejects.jsonl")]
    assert reasons == ["blank question", *reasons[1:]]
    assert all(reason.startswith("repeats a.jsonl:") for reason in reasons[1:])
    assert len(reasons) == 3


def test_ids_that_two_files_share_become_distinct(bench: Bench) -> None:
    for name, number in (("a.jsonl", 1), ("b.jsonl", 2)):
        bench.write(name, {**asked(number)[0], "id": 1})
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]})
    out, _ = bench.run(stage)
    ids = [c.id for c in read_conversations(out, "train")]
    assert len(set(ids)) == 2
    assert all(i.startswith("1-") for i in ids)
    assert any("share their id" in e.get("text", "") for e in bench.events)


def test_too_many_rejects_stop(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(1, 2, 3), {"question": "Q", "answer": ""}, {"question": "", "answer": "A"})
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}]})
    with pytest.raises(DataError, match="2 of 5 rows cannot be used") as caught:
        stage.check(bench.sources(stage))
    assert "1 blank answer (first: a.jsonl:4), 1 blank question (first: a.jsonl:5)" in str(caught.value)
    assert "max_rejected (now 0.05)" in str(caught.value)
    lenient = stage.model_copy(update={"max_rejected": 0.4})
    lenient.check(bench.sources(lenient))


def test_nothing_left_stops(bench: Bench) -> None:
    bench.write("a.jsonl", {"question": "Q", "answer": ""})
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "max_rejected": 1})
    with pytest.raises(DataError, match="nothing is left in 'train': rejected 1 blank answer") as caught:
        stage.check(bench.sources(stage))
    assert caught.value.where == "sources"
    bench.write("b.jsonl", *asked(1))
    stage = Examples.model_validate({"sources": [{"path": "b.jsonl"}], "test": [{"path": "b.jsonl"}]})
    with pytest.raises(DataError, match="1 stood in another split"):
        stage.check(bench.sources(stage))
    stage = Examples.model_validate({"sources": [{"path": "b.jsonl"}], "dev_fraction": 0.0001})
    with pytest.raises(DataError, match="nothing is left in 'dev'") as caught:
        stage.check(bench.sources(stage))
    assert caught.value.where == "dev_fraction"
    assert "raise it" in str(caught.value)


def test_pattern_without_files(bench: Bench) -> None:
    stage = Documents.model_validate({"sources": [{"path": "none/*.txt"}]})
    with pytest.raises(DataError, match="no file matches") as caught:
        stage.check(bench.sources(stage))
    assert "none/*.txt" in str(caught.value)


def test_stops_when_asked(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(1))
    with pytest.raises(Interrupted):
        bench.run(Examples.model_validate({"sources": [{"path": "a.jsonl"}]}), stop=True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sources": [{"path": "a", "fields": {"qestion": "q", "answer": "a"}}]}, "did you mean 'question'"),
        ({"sources": [{"path": "a", "fields": {"question": "q"}}]}, "make no form of example"),
        ({"sources": [{"path": "a", "fields": {"question": "q", "answer": " "}}]}, "is blank"),
        ({"dev_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"sources": []}, "give `sources` to train on"),
        ({"shuffle": True}, "Extra inputs are not permitted"),
    ],
)
def test_config_is_checked(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        Examples.model_validate({"sources": [{"path": "a"}], **change})


def test_imports_without_torch() -> None:
    code = "import sys, metier.data.stage, metier.text.chat; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is left out on the way -----------------------------------------------------------------------------------


def rejects(out: Path) -> dict[str, str]:
    return {row["where"]: row["reason"] for row in read_jsonl(out / "rejects.jsonl")}


LONG = "The whale is the largest animal that has ever lived and it eats very small ones called krill every day. "


def test_texts_are_cleaned_and_what_filters_take_is_kept(bench: Bench) -> None:
    bench.write("a.jsonl", {"text": "Cafe\u0301 &amp; co"}, {"text": "short"}, {"text": "long enough"})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "clean": {"min_words": 2}})
    out, metrics = bench.run(stage)
    assert [d.text for d in read_documents(out, "train")] == ["Caf\u00e9 & co", "long enough"]
    assert metrics["filtered"] == 1
    assert metrics["rejected"] == 0
    assert list(rejects(out)) == ["a.jsonl:2"]
    assert about(out)["cleaned"]


@pytest.mark.parametrize(("action", "texts"), [("report", 2), ("redact", 2), ("drop", 1)])
def test_private_data(bench: Bench, action: str, texts: int) -> None:
    bench.write("a.jsonl", {"text": "Write to ann.smith@example.org today."}, {"text": "Krill is small."})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "privacy": {"action": action}})
    out, metrics = bench.run(stage)
    found = [d.text for d in read_documents(out, "train")]
    assert len(found) == texts
    assert metrics["private"] == (action == "drop")
    assert ("ann.smith" in found[0]) is (action == "report")
    facts = about(out)["privacy"]
    assert (facts["rows"], sum(facts["found"].values())) == (1, 1)
    assert list(facts["first"].values()) == [["a.jsonl:1"]]


@pytest.mark.parametrize("action", ["report", "redact", "drop"])
def test_what_is_left_out_keeps_no_private_data_where_it_is_not_wanted(bench: Bench, action: str) -> None:
    private = "Write to ann.smith@example.org today."
    bench.write("a.jsonl", {"text": private}, {"text": "Krill."}, {"text": "Krill is small.", "more": [private]})
    stage = Documents.model_validate(
        {
            "sources": [{"path": "a.jsonl"}],
            "privacy": {"action": action},
            "clean": {"max_words": 3},
            "min_chars": 10,
            "max_rejected": 1,
        }
    )
    out, metrics = bench.run(stage)
    kept = (out / "rejects.jsonl").read_text(encoding="utf-8")
    assert metrics["filtered"] == 1
    assert metrics["rejected"] == 1
    assert ("ann.smith" in kept) is (action == "report")


def test_near_duplicates_go_where_that_is_asked_for(bench: Bench) -> None:
    bench.write("a.jsonl", {"text": LONG * 3}, {"text": LONG * 3 + "Indeed."}, {"text": "Krill is small."})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "duplicates": {"near": True}})
    out, metrics = bench.run(stage)
    assert metrics["near"] == 1
    assert rejects(out) == {"a.jsonl:2": "nearly repeats a.jsonl:1"}
    kept, _ = bench.run(Documents.model_validate({"sources": [{"path": "a.jsonl"}]}), "kept")
    assert len(read_documents(kept, "train")) == 3


def test_repetitions_stay_where_that_is_asked_for(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(1, 1))
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "duplicates": {"exact": False}})
    out, _ = bench.run(stage)
    ids = [c.id for c in read_conversations(out, "train")]
    assert len(ids) == 2


def seen(bench: Bench, **settings: Any) -> Examples:
    question = "What does the largest animal that has ever lived eat every day, and how much of it does it take?"
    bench.write("a.jsonl", {"question": f"Tell me: {question}", "answer": "Krill."}, *asked(1, 2))
    bench.write("t.jsonl", {"question": question, "answer": "Small things."})
    return Examples.model_validate({"sources": [{"path": "a.jsonl"}], "test": [{"path": "t.jsonl"}], **settings})


def test_the_gate_drops_and_lists_both_texts(bench: Bench) -> None:
    out, metrics = bench.run(seen(bench))
    assert metrics["contaminated"] == 1
    (hit,) = read_jsonl(out / "contamination.jsonl")
    assert hit["id"].startswith("test/")
    assert "largest animal" in hit["tested"]
    assert "Tell me" in hit["trained"]
    (row,) = read_jsonl(out / "rejects.jsonl")
    assert row["reason"] == "seen in testing"
    assert row["seen"]
    told = about(out)["contamination"]
    assert (told["gate"]["action"], told["seen"], told["rows"], sum(told["hits"].values())) == ("drop", 1, 1, 1)
    assert told["texts_tested"] == 1


def test_the_gate_reports(bench: Bench) -> None:
    out, metrics = bench.run(seen(bench, contamination={"action": "report"}))
    assert metrics["contaminated"] == 0
    assert len(read_conversations(out, "train")) == 3
    assert len(list(read_jsonl(out / "contamination.jsonl"))) == 1


def test_the_gate_stops_before_anything_runs(bench: Bench) -> None:
    stage = seen(bench, contamination={"action": "stop"})
    with pytest.raises(DataError, match="show 1 of the items to test with") as caught:
        stage.check(bench.sources(stage))
    assert "Tell me" in str(caught.value)


def test_what_other_steps_hold_out_is_kept_out(bench: Bench) -> None:
    bench.write("t.jsonl", {"text": LONG * 2})
    other, _ = bench.run(Documents.model_validate({"heldout": [{"path": "t.jsonl"}]}), "other")
    bench.write("a.jsonl", {"text": "Before. " + LONG * 2}, {"text": "Krill is small."})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "keep_out": ["other"]})
    bench.steps["other"] = other
    out, metrics = bench.run(stage)
    assert metrics["kept_out"] == 1
    assert [d.text for d in read_documents(out, "train")] == ["Krill is small."]


# ---- splits --------------------------------------------------------------------------------------------------------


def test_near_duplicates_stay_together(bench: Bench) -> None:
    rows = [{"question": f"{LONG} Number {n // 2} {'!' * (n % 2)}{n}", "answer": f"It is {n}."} for n in range(60)]
    bench.write("a.jsonl", *rows)
    settings = {"sources": [{"path": "a.jsonl"}], "test_fraction": 0.5, "contamination": {"action": "report"}}
    apart, _ = bench.run(Examples.model_validate({**settings, "seed": 1}), "apart")
    assert questions(apart, "test")
    bench.write("a.jsonl", *rows, *asked(*range(10)))
    together, _ = bench.run(Examples.model_validate({**settings, "split": {"by": ["near"]}, "seed": 1}), "together")
    homes = {name for name in ("test", "train") for q in questions(together, name) if q.startswith("The whale")}
    assert len(homes) == 1
    stage = Examples.model_validate({**settings, "split": {"by": ["near"]}})
    stage.check(bench.sources(stage))


def test_pinned_ids_go_to_their_split_and_nowhere_else(bench: Bench) -> None:
    bench.write("a.jsonl", *({**row, "id": f"q{n}"} for n, row in enumerate(asked(*range(6)))))
    (bench.folder / "ids.txt").write_text("q1\nq4\n")
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "split": {"ids": {"test": "ids.txt"}}})
    stage.check(bench.sources(stage))
    out, _ = bench.run(stage)
    assert [c.id for c in read_conversations(out, "test")] == ["q1", "q4"]
    never = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "split": {"ids": {"never": "ids.txt"}}})
    with pytest.raises(DataError, match=r"(?s)a.jsonl:2.*never to be used"):
        never.check(bench.sources(never))


def test_folds_part_the_rows(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(*range(60)))
    tests = []
    for fold in range(3):
        stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "split": {"folds": 3, "fold": fold}})
        out, _ = bench.run(stage, f"fold{fold}")
        tests.append(set(questions(out, "test")))
    assert len(set.union(*tests)) == sum(map(len, tests)) == 60


# ---- mixing --------------------------------------------------------------------------------------------------------


def test_weights_stand_in_about_by_source(bench: Bench) -> None:
    bench.write("a.jsonl", *({"text": f"a {n}"} for n in range(7)))
    bench.write("b.jsonl", *({"text": f"b {n}"} for n in range(3)), {"text": "a 1"})
    sources = [{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl", "weight": 3}]
    out, _ = bench.run(Documents.model_validate({"sources": sources}))
    assert about(out)["domains"] == [{"rows": 7, "weight": 1.0}, {"rows": 3, "weight": 3.0}]
    assert [d.text[0] for d in read_documents(out, "train")] == list("aaaaaaabbb")


def test_replay_from_a_step(bench: Bench) -> None:
    bench.write("g.jsonl", {"text": "Rain is wet."}, {"text": "Snow is cold."})
    general, _ = bench.run(Documents.model_validate({"sources": [{"path": "g.jsonl"}]}), "general")
    bench.write("a.jsonl", {"text": "Krill is small."}, {"text": "snow is cold."})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "replay": {"step": "general", "ratio": 0.3}})
    bench.steps["general"] = None
    stage.check(bench.sources(stage))
    bench.steps["general"] = general
    out, metrics = bench.run(stage)
    assert [d.text for d in read_documents(out, "replay")] == ["Rain is wet."]
    assert about(out)["replay_ratio"] == 0.3
    assert metrics["leaked"] == 1


def test_refusals_stand_beside_their_twins(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(*range(5)))
    bench.write("no.jsonl", *({"question": f"How do I harm {n}?", "answer": f"No, not {n}."} for n in range(4)))
    twins = [{"question": f"How do I help {n}?", "answer": f"Like {n}."} for n in range(4)]
    bench.write("yes.jsonl", *twins[:2], {"question": "How?", "answer": ""}, twins[3])
    refusals = {"sources": [{"path": "no.jsonl"}], "twins": [{"path": "yes.jsonl"}], "share": 0.2}
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "refusals": refusals, "max_rejected": 0.2})
    out, metrics = bench.run(stage)
    assert questions(out, "refusals") == [q for n in (0, 1, 3) for q in (f"How do I harm {n}?", f"How do I help {n}?")]
    assert about(out)["refusal_share"] == 0.2
    assert metrics["filtered"] == 1
    assert "its pair is left out" in rejects(out)["no.jsonl:3"]
    bench.write("yes.jsonl", *twins[:2])
    with pytest.raises(DataError, match="the twins end after 2 rows"):
        stage.check(bench.sources(stage))


def test_a_twin_that_stands_in_the_test_takes_its_refusal_along(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(1))
    bench.write("no.jsonl", *({"question": f"How do I harm {n}?", "answer": f"No, not {n}."} for n in range(2)))
    bench.write("yes.jsonl", *({"question": f"How do I help {n}?", "answer": f"Like {n}."} for n in range(2)))
    bench.write("t.jsonl", {"question": "How do I help 1?", "answer": "So."})
    refusals = {"sources": [{"path": "no.jsonl"}], "twins": [{"path": "yes.jsonl"}]}
    stage = Examples.model_validate(
        {"sources": [{"path": "a.jsonl"}], "test": [{"path": "t.jsonl"}], "refusals": refusals}
    )
    out, _ = bench.run(stage)
    assert questions(out, "refusals") == ["How do I harm 0?", "How do I help 0?"]
    assert rejects(out)["no.jsonl:2"] == "its pair is left out (yes.jsonl:2)"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sources": [{"path": "a", "weight": 1}, {"path": "b"}]}, "1 of 2 sources have a weight"),
        ({"heldout": [{"path": "a", "weight": 1}]}, "a weight has no effect in `heldout`"),
        ({"sources": [{"field": "text"}]}, "either a `path` or a `hub`"),
        ({"replay": {"ratio": 0.1}}, "either from `sources` or from a `step`"),
        ({"split": {"by": ["answer"]}}, "cannot be kept together by 'answer'"),
    ],
)
def test_config_of_documents_is_checked(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        Documents.model_validate({"sources": [{"path": "a"}], **change})


def test_a_folder_is_read_as_far_as_it_can_be(bench: Bench) -> None:
    (bench.folder / "pile").mkdir()
    (bench.folder / "pile" / "a.txt").write_text("Krill")
    (bench.folder / "pile" / "LICENSE").write_text("as is")
    stage = Documents.model_validate({"sources": [{"path": "pile"}]})
    bench.globs["pile"] = "pile/*"
    out, _ = bench.run(stage)
    assert [d.text for d in read_documents(out, "train")] == ["Krill"]
    assert any("passed over (LICENSE)" in e.get("text", "") for e in bench.events)


def test_the_problems_of_all_files_come_together(bench: Bench) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (bench.folder / name).write_text("{\n")
    stage = Documents.model_validate({"sources": [{"path": "*.jsonl"}]})
    with pytest.raises(DataError) as caught:
        stage.check(bench.sources(stage))
    assert "b.jsonl" not in str(caught.value)
    token = KEEP_GOING.set(True)
    try:
        with pytest.raises(DataError) as caught:
            stage.check(bench.sources(stage))
    finally:
        KEEP_GOING.reset(token)
    assert "a.jsonl" in str(caught.value)
    assert "b.jsonl" in str(caught.value)


def test_nothing_of_the_work_stays_behind(bench: Bench) -> None:
    bench.write("a.jsonl", *asked(1, 2), {"question": "", "answer": "x"})
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "max_rejected": 0.5})
    out, _ = bench.run(stage)
    names = {path.name for path in out.iterdir()}
    splits = {"train.jsonl", "dev.jsonl", "test.jsonl", "replay.jsonl"}
    assert names == {*splits, "rejects.jsonl", "contamination.jsonl", "about.json"}


def test_worker_processes_write_the_same_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"Caf\u0065\u0301 {n}. Write to ann{n}@example.org."} for n in range(60)]
    bench.write("a.jsonl", *rows, {"text": "  "}, {"text": rows[3]["text"]})
    stage = Documents.model_validate({"sources": [{"path": "a.jsonl"}], "heldout_fraction": 0.2})
    here, _ = bench.run(stage, "here")
    monkeypatch.setattr(sources, "WORKERS_FROM", 0)
    monkeypatch.setattr(sources, "BATCH_ROWS", 7)
    there, _ = bench.run(stage, "there")
    for path in here.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes()
    assert about(there)["privacy"]["rows"] == 61


def test_an_id_list_is_one_file(bench: Bench):
    bench.write("a.jsonl", *asked(1, 2))
    for name in ("ids-1.txt", "ids-2.txt"):
        (bench.folder / name).write_text("7\n", encoding="utf-8")
    stage = Examples.model_validate({"sources": [{"path": "a.jsonl"}], "split": {"ids": {"test": "ids-*.txt"}}})
    with pytest.raises(DataError, match=r"split.ids.test: a list of ids is one file, and 'ids-\*.txt' names 2"):
        stage.check(bench.sources(stage))
