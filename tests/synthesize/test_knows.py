"""What a model knows before it is trained: the four categories, what counts as right, and what becomes of the pairs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.core.errors import DataError, Interrupted, RecipeError
from metier.core.events import Events
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Context, Source
from metier.engine.scripted import ScriptedEngine
from metier.synthesize import knowing
from metier.synthesize.knowing import is_right
from metier.synthesize.known import CATEGORIES, Knows
from metier.text.artifacts import about, read_conversations, read_jsonl, write_json, write_jsonl
from metier.text.nouns import Conversation, Message

FOOD = {name: f"{name}food" for name in ["ant", "bee", "cod", "dab", "eel", "fox", "gnu", "hen"]}


def row(name: str, **meta: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"What does the {name} eat?"},
        {"role": "assistant", "content": f"It eats {FOOD[name]}."},
    ]
    return {"id": name, "messages": messages, "group": "factual", "meta": {"cluster": name, **meta}}


def teller(said: dict[str, list[str]]) -> ScriptedEngine:
    """Answers each question with what stands for it, in turn; nonsense where nothing does."""
    turns: dict[str, int] = {}

    def say(messages: Sequence[Message]) -> str:
        name = messages[-1].content.split()[3]
        turns[name] = turns.get(name, 0) + 1
        answers = said.get(name, ["It eats stones."])
        return answers[(turns[name] - 1) % len(answers)]

    return ScriptedEngine(say)


class Desk:
    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "pairs"
        folder.mkdir()
        names = list(FOOD)
        write_jsonl(folder / "train.jsonl", [row(name) for name in names[:6]])
        write_jsonl(folder / "test.jsonl", [row(name) for name in names[6:]])
        write_jsonl(folder / "replay.jsonl", [])
        write_jsonl(folder / "rejects.jsonl", [{"where": "a", "reason": "b"}])
        write_json(folder / "about.json", {"replay_ratio": 0.0, "counts": {"train": 6, "test": 2}, "synthesis": {}})
        self.folder = folder
        self.sources = {"pairs": Source("pairs", (folder,), "", "")}

    def run(self, engine: Any, name: str = "one", stop: Callable[[], bool] = lambda: False, **options: Any) -> Path:
        stage = Knows.model_validate(
            {"model": "base", "examples": "pairs", "shots": 2, "rounds": 2, "samples": 2} | options
        )
        folders = [self.root / name / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.metrics = knowing.tag(stage, Context("k", *folders, Events("k"), self.sources, stop), engine)
        return folders[0]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


SAID = {
    "ant": ["It eats antfood."],
    "bee": ["Stones.", "beefood"],
    "cod": ["Stones.", "Sand.", "Rocks.", "codfood!"],
    "gnu": ["gnufood"],
}


def test_four_categories(desk: Desk):
    engine = teller(SAID)
    files = desk.run(engine)
    train = {c.id: c for c in read_conversations(files, "train")}
    assert {name: c.meta["known"] for name, c in train.items()} == {
        "ant": "highly_known",
        "bee": "maybe_known",
        "cod": "weakly_known",
        "dab": "unknown",
        "eel": "unknown",
        "fox": "unknown",
    }
    assert [train[name].meta["known_share"] for name in ("ant", "bee", "cod")] == ["1.00", "0.50", "0.00"]
    assert {c.id: c.group for c in read_conversations(files, "test")} == {"gnu": "known", "hen": "unknown"}
    assert desk.metrics["train unknown"] == 3
    assert about(files)["known"]["splits"]["train"] == dict(zip(CATEGORIES, (1, 1, 1, 3), strict=True))
    assert len(engine.asked) == 8 * 2 + 5 * 2 * 2, "drawn answers only where the likeliest are never right"
    assert "synthesis" not in about(files)
    assert (files / "replay.jsonl").is_file()


def test_examples_are_shown_of_other_documents(desk: Desk):
    write_jsonl(
        desk.folder / "train.jsonl", [row(name, cluster="same" if name in "ant bee" else name) for name in FOOD]
    )
    engine = teller({})
    desk.run(engine, rounds=3, samples=0)
    for messages in engine.asked:
        assert [m.role for m in messages] == ["user", "assistant", "user", "assistant", "user"]
        shown, asked = {m.content.split()[3] for m in messages[:-1:2]}, messages[-1].content.split()[3]
        assert len(shown) == 2
        assert asked not in shown
        assert not ({"ant", "bee"} <= shown | {asked} and asked in ("ant", "bee"))
    of_ant = {m[0].content for m in engine.asked if "ant eat" in m[-1].content}
    assert len(of_ant) > 1, "others in another round"


def test_training_may_leave_some_out(desk: Desk):
    facts = about(desk.folder) | {"domains": [{"rows": 2, "weight": 1.0}, {"rows": 4, "weight": 3.0}]}
    write_json(desk.folder / "about.json", facts)
    files = desk.run(teller(SAID), train_on=["maybe_known", "weakly_known"], groups="keep")
    assert [c.id for c in read_conversations(files, "train")] == ["bee", "cod"]
    assert len(read_conversations(files, "test")) == 2
    assert {c.group for c in read_conversations(files, "test")} == {"factual"}
    rejects = list(read_jsonl(files / "rejects.jsonl"))
    assert [r["reason"] for r in rejects[:2]] == ["b", "highly_known to base, and train_on leaves these out"]
    assert len(rejects) == 5
    told = about(files)
    assert told["counts"] == {"train": 2, "test": 2}
    assert [d["rows"] for d in told["domains"]] == [1, 1]
    assert told["known"]["left_out"] == 4
    with pytest.raises(RecipeError, match="no pair is left for train"):
        desk.run(teller({}), "two", train_on=["highly_known"])


def test_a_killed_run_goes_on_and_writes_the_same(desk: Desk):
    def knowing_engine(after: int = 10**9) -> ScriptedEngine:
        count = [0]

        def say(messages: Sequence[Message]) -> str:
            count[0] += 1
            if count[0] > after:
                raise KeyboardInterrupt
            name = messages[-1].content.split()[3]
            return FOOD[name] if name in "ant cod gnu" else "stones"

        return ScriptedEngine(say)

    first = knowing_engine()
    whole = {path: file_digest(file) for path, file in tree(desk.run(first, "whole", groups="category")).items()}
    for after in (0, 5, 16, 20):
        killed, rest = knowing_engine(after), knowing_engine()
        with pytest.raises(KeyboardInterrupt):
            desk.run(killed, f"k{after}", groups="category")
        made = desk.run(rest, f"k{after}", groups="category")
        assert {path: file_digest(file) for path, file in tree(made).items()} == whole
        assert after + len(rest.asked) == len(first.asked)
    with pytest.raises(Interrupted):
        desk.run(knowing_engine(), "stopped", stop=lambda: True)


@pytest.mark.parametrize(
    ("question", "reference", "answer", "right"),
    [
        ("What does the orca eat?", "The orca eats seals and salmon.", "Seals, and sometimes salmon", True),
        ("What does the orca eat?", "The orca eats seals and salmon.", "The orca eats seals and krill.", False),
        ("What does the orca eat?", "The orca eats seals.", "The orca eats orca.", False),
        ("How long is it?", "4.5 metres.", "It is 4.5 metres long", True),
        ("How long is it?", "4.5 metres.", "5 metres", False),
        ("How many arms has an octopus?", "Eight.", "8", True),
        ("Does the orca eat krill?", "No, the orca eats seals.", "No: seals", True),
        ("Does the orca eat krill?", "No, the orca eats seals.", "Yes, seals.", False),
        ("Does the orca eat krill?", "No.", "No, it does not.", True),
        ("Is the whale or the shark longer?", "The whale.", "I think the whale is.", True),
        ("Is the whale or the shark longer?", "The whale.", "the shark", False),
        ("Who?", "We.", "", False),
    ],
)
def test_right_is_what_says_more_than_the_question(question: str, reference: str, answer: str, right: bool):
    pair = Conversation("p", (Message("user", question), Message("assistant", reference)))
    assert is_right(answer, pair, 0.8) is right


def test_a_model_here_is_asked(desk: Desk):
    desk.sources["base"] = Source("base", (fakes.save_tiny(desk.root / "model"),), "base", "")
    files = desk.run(None, shots=0, rounds=3, max_new_tokens=4, samples=1)
    assert about(files)["known"]["rounds"] == 1
    assert {c.meta["known"] for c in read_conversations(files, "train")} == {"unknown"}
    kept = (desk.root / "one/scratch/likeliest.jsonl").read_text().splitlines()
    assert len(kept) == 8
    assert json.loads(kept[0])["tokens"] <= 5


def test_too_few_pairs_and_bad_settings_are_refused(desk: Desk):
    stage = Knows.model_validate({"model": "base", "examples": "pairs", "shots": 6})
    with pytest.raises(DataError, match=r"shots: 6 examples cannot be shown"):
        stage.check(desk.sources)
    write_jsonl(desk.folder / "train.jsonl", [])
    with pytest.raises(DataError, match="no pairs to tag"):
        stage.check(desk.sources)
    with pytest.raises(ValueError, match="each category once"):
        Knows.model_validate({"model": "base", "examples": "pairs", "train_on": ["unknown", "unknown"]})
