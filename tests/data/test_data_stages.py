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
from metier.core.stage import Context, Source, Stage, references
from metier.data.stage import Documents, Examples
from metier.data.writing import KINDS
from metier.text.artifacts import about, read_conversations, read_documents, read_jsonl


class Bench:
    """Runs a stage on files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []

    def write(self, name: str, *rows: Any) -> str:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    def sources(self, stage: Stage) -> Mapping[str, Source]:
        return {
            ref.value: Source(ref.value, tuple(sorted(self.folder.glob(ref.value))), "", "")
            for ref in references(stage)
        }

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
        ({"sources": []}, "at least 1 item"),
        ({"shuffle": True}, "Extra inputs are not permitted"),
    ],
)
def test_config_is_checked(change: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        Examples.model_validate({"sources": [{"path": "a"}], **change})


def test_imports_without_torch() -> None:
    code = "import sys, metier.data.stage, metier.text.chat; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
