"""The teacher that needs no model: what it makes of tables, what it refuses, and that two runs write the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from metier.core.errors import DataError, Interrupted
from metier.core.events import Events
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Context, Source
from metier.synthesize.synthesis import Synthesize
from metier.synthesize.tables import read_table
from metier.synthesize.templates import Sheet, read_sheet
from metier.text.artifacts import about, read_conversations, read_jsonl, write_jsonl

TABLE = """name,kind,food,home,length
narwhal,toothed whale,halibut,Arctic ice,4.5
blue whale,baleen whale,krill,open ocean,30
humpback whale,baleen whale,krill,open ocean,16
sea otter,,sea urchins,kelp forests,1.4
"""
TEMPLATES: dict[str, Any] = {
    "name": "name",
    "passage": ["The {name} is {kind|a}.", "The {name} eats {food}.", "The {name} grows to {length} metres."],
    "templates": [
        {"ask": ["What does the {name} eat?", "On what does the {name} feed?"], "answer": "The {name} eats {food}."},
        {"ask": ["What is the {name}?"], "answer": "The {name} is {kind|a}.", "type": "definition"},
        {
            "ask": ["Does the {name} eat {other.food}?"],
            "answer": "No, the {name} eats {food}.",
            "type": "yes_no",
            "difficulty": "medium",
        },
        {
            "ask": ["Which is longer, the {name} or the {other.name}?"],
            "answer": "The {name}: {length} metres, against {other.length} of the {other.name}.",
            "type": "comparison",
            "difficulty": "hard",
            "more": "length",
        },
        {"ask": ["Which animals eat {food}?"], "answer": "The {all.name}.", "type": "list", "difficulty": "hard"},
    ],
}


class Desk:
    """A folder with a table and templates, and the step over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[dict[str, Any]] = []
        self.extra: dict[str, Source] = {}
        self.write(TABLE)
        self.teach(TEMPLATES)

    def write(self, text: str, name: str = "facts.csv") -> None:
        (self.root / name).write_text(text, encoding="utf-8")
        self.table = self.root / name

    def teach(self, templates: Any) -> None:
        text = templates if isinstance(templates, str) else yaml.safe_dump(templates, sort_keys=False)
        (self.root / "t.yaml").write_text(text, encoding="utf-8")

    def without(self, **changed: Any) -> None:
        """One template alone, changed."""
        self.teach(TEMPLATES | {"templates": [TEMPLATES["templates"][0] | changed]})

    def sheet(self) -> Sheet:
        return read_sheet(1, self.root / "t.yaml", read_table([self.table]))

    @property
    def sources(self) -> dict[str, Source]:
        paths = {"facts": (self.table,), "t": (self.root / "t.yaml",)}
        return {name: Source(name, path, name, "") for name, path in paths.items()} | self.extra

    def stage(self, **options: Any) -> Synthesize:
        return Synthesize.model_validate({"tables": [{"path": "facts", "templates": "t"}]} | options)

    def run(self, name: str = "one", stop: Any = lambda: False, **options: Any) -> tuple[Path, dict[str, float]]:
        stage = self.stage(**options)
        stage.check(self.sources)
        folders = [self.root / name / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        events = Events("pairs", None, [self.events.append])
        return folders[0], dict(stage.run(Context("pairs", *folders, events, self.sources, stop)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def asked(folder: Path, split: str = "train") -> dict[str, str]:
    return {c.messages[-2].content: c.messages[-1].content for c in read_conversations(folder, split)}


def test_rows_become_pairs_with_their_evidence(desk: Desk):
    files, metrics = desk.run()
    pairs = asked(files)
    assert pairs["On what does the narwhal feed?"] == "The narwhal eats halibut."
    assert pairs["What is the narwhal?"] == "The narwhal is a toothed whale."
    assert "What is the sea otter?" not in pairs, "its kind is empty"
    assert pairs["Which animals eat krill?"] == "The blue whale and humpback whale."
    compared = next(q for q in pairs if q.startswith("Which is longer, the narwhal"))
    assert compared == "Which is longer, the narwhal or the sea otter?", "the only shorter one"
    assert pairs[compared] == "The narwhal: 4.5 metres, against 1.4 of the sea otter."
    denied = {q: a for q, a in pairs.items() if q.startswith("Does the")}
    assert len(denied) == 4
    assert all(a.split(" eats ")[1].rstrip(".") not in q for q, a in denied.items())
    assert metrics["train"] == len(pairs)
    assert metrics["rejected"] == 0


def test_every_row_says_where_it_comes_from(desk: Desk):
    files, _ = desk.run(system="Be brief.")
    rows = {row["messages"][1]["content"]: row for row in read_jsonl(files / "train.jsonl")}
    row = rows["Which animals eat krill?"]
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}
    assert row["group"] == "list"
    assert row["meta"] == {
        "cluster": "blue whale",
        "document": "blue whale\nhumpback whale",
        "passage": "blue whale#1\nhumpback whale#1",
        "evidence": "The blue whale eats krill.\nThe humpback whale eats krill.",
        "teacher": "templates of t.yaml",
        "type": "list",
        "difficulty": "hard",
    }
    facts = about(files)["synthesis"]
    assert facts["empty_cells"] == {"facts: kind": 1}
    assert facts["types"]["factual"] == 8
    assert facts["coverage"]["documents_covered"] == 4


def test_two_runs_write_the_same_and_another_seed_draws_otherwise(desk: Desk):
    found = [
        {path: file_digest(file) for path, file in tree(desk.run(name, seed=seed, count=6)[0]).items()}
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    ]
    assert found[0] == found[1]
    assert found[0]["train.jsonl"] != found[2]["train.jsonl"]


def test_a_row_stands_on_one_side_and_what_joins_two_goes(desk: Desk):
    many = "".join(f"fish {i},,worm {i},bay,{i + 1}\n" for i in range(40))
    desk.write(TABLE + many)
    files, metrics = desk.run(test_fraction=0.3, dev_fraction=0.1)
    sides: dict[str, set[str]] = {}
    for split in ("test", "dev", "train"):
        for c in read_conversations(files, split):
            for document in c.meta["document"].split("\n"):
                sides.setdefault(document, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert metrics["test"] > 10
    assert metrics["dev"] > 3
    kinds = about(files)["synthesis"]["rejects"]
    assert kinds["joins documents of two splits"] > 5
    rejects = list(read_jsonl(files / "rejects.jsonl"))
    assert {row["kind"] for row in rejects} == set(kinds)
    assert all(row["where"].startswith("facts.csv:") and row["row"]["messages"] for row in rejects)


def test_wordings_can_be_held_out_instead(desk: Desk):
    files, _ = desk.run(hold_out="question", test_fraction=0.4, seed=2)
    test, train = asked(files, "test"), asked(files)
    assert not set(test) & set(train)
    assert set(test.values()) & set(train.values()), "the same facts in other words"


def test_a_count_mixes_difficulties_kinds_and_documents(desk: Desk):
    desk.write(TABLE + "".join(f"fish {i},fish,worm {i},bay,{i + 1}\n" for i in range(30)))
    files, metrics = desk.run(count=20, difficulty={"easy": 1, "medium": 1, "hard": 2})
    assert metrics["train"] == 20
    facts = about(files)["synthesis"]
    assert facts["difficulties"] == {"easy": 5, "medium": 5, "hard": 10}
    assert facts["types"]["definition"] in (2, 3)
    documents = [c.meta["cluster"] for c in read_conversations(files, "train")]
    assert len(set(documents)) > 12
    assert facts["rejects"]["beyond count"] == metrics["rejected"]


def test_fewer_wordings_can_be_wanted(desk: Desk):
    stage = {"tables": [{"path": "facts", "templates": "t", "wordings": 1}]}
    files, _ = desk.run(**stage)
    assert about(files)["synthesis"]["types"]["factual"] == 4


def test_what_other_steps_hold_out_is_kept_out(desk: Desk):
    held = desk.root / "held"
    held.mkdir()
    messages = [{"role": "user", "content": "what does the NARWHAL eat"}, {"role": "assistant", "content": "Fish."}]
    write_jsonl(held / "test.jsonl", [{"id": "q7", "messages": messages, "group": ""}])
    desk.extra["held"] = Source("held", (held,), "", "")
    files, _ = desk.run(keep_out=["held"])
    assert "What does the narwhal eat?" not in asked(files)
    (row,) = [r for r in read_jsonl(files / "rejects.jsonl") if r["kind"] == "kept out for other steps"]
    assert "held/test/q7" in row["reason"]
    (hit,) = read_jsonl(files / "contamination.jsonl")
    assert (hit["how"], hit["trained"]) == ("exact", "What does the narwhal eat?")
    with pytest.raises(DataError, match="shows what is tested"):
        desk.run("two", keep_out=["held"], contamination={"action": "stop"})


def test_an_ungrounded_template_is_rejected_with_its_reason(desk: Desk):
    desk.teach(
        TEMPLATES
        | {
            "templates": [
                *TEMPLATES["templates"][:2],
                TEMPLATES["templates"][0]
                | {"ask": ["What fills the {name}?"], "answer": "About 300 kilograms of {food}."},
            ]
        }
    )
    files, _ = desk.run()
    reasons = [r["reason"] for r in read_jsonl(files / "rejects.jsonl")]
    assert reasons == ["number not in the evidence: 300"] * 4


def test_json_lines_and_tabs_are_read_too(desk: Desk):
    rows = [
        {"name": "orca", "food": ["seals", "salmon", "rays"], "length": 8.0},
        {"name": "cod", "food": "crabs", "kind": None},
    ]
    desk.write("".join(json.dumps(row) + "\n" for row in rows), "facts.jsonl")
    desk.without()
    assert asked(desk.run()[0])["What does the orca eat?"] == "The orca eats seals, salmon and rays."
    desk.write('name\tfood\tkind\tlength\n"cod"\t"crabs, and worms"\t\t2\n', "facts.tsv")
    assert asked(desk.run("two")[0])["What does the cod eat?"] == "The cod eats crabs, and worms."


def test_a_stop_is_heard(desk: Desk):
    with pytest.raises(Interrupted):
        desk.run(stop=lambda: True)


# --- bad input


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ask": ["What does the {nam} eat?"]}, r"t.yaml:\d+: templates.0.ask.0: the table has no.*\n.*\n.*'name'"),
        ({"answer": "The {name} lives at {home}."}, "no sentence of the passage states what the answer tells"),
        ({"answer": "It eats fish."}, "names no column"),
        ({"answer": "It eats {food"}, "cannot be read: expected '}'"),
        ({"answer": "It eats {food!r}."}, "is no column"),
        ({"answer": "It eats {food|the}."}, "no such form"),
        ({"only": {"clan": "x"}}, "no such column"),
        ({"more": "lenght"}, "did you mean 'length'"),
        ({"more": "length"}, "which the question does not name"),
        ({"type": "riddle"}, "riddle"),
        ({"ask": []}, "at least 1"),
        ({"aks": ["x"]}, "did you mean 'ask'"),
        ({"ask": ["Which are there?"], "answer": "{all.name}"}, "names no column"),
        ({"ask": ["Which of {all.food}?"], "answer": "{all.name}"}, "what rows have in common"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_are_refused_with_their_line(desk: Desk, changed: dict[str, Any], said: str):
    desk.without(**changed)
    with pytest.raises(DataError, match=said) as caught:
        desk.stage().check(desk.sources)
    assert f"{desk.root / 't.yaml'}:" in str(caught.value)
    assert not list(desk.root.glob("one*"))


def test_all_that_is_wrong_is_said_at_once(desk: Desk):
    desk.without(ask=["{a}?", "{b}?"], answer="{c}")
    with pytest.raises(DataError) as caught:
        desk.sheet()
    assert [e.value for e in (caught.value, *caught.value.others)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the table is empty"),
        ("name,food,kind,length\n", "no rows"),
        ("name,food,kind,length,food\na,b,c,1,d\n", "same name"),
        ("name,food,kind,length\na,b\n", r"facts.csv:2: the row has 2 cells where the header has 4"),
        ("name,food,kind,length\na,b,c,1\nA,d,e,2\n", r"facts.csv:3: facts.csv:2 has the same name"),
        ("name,food,kind,length\n,b,c,1\n", "the row has no 'name'"),
        ("name,food,kind,length\na,b,c,long\n", "compared as a number"),
        ('name,food,kind,length\n"a"x,b,c,1\n', "malformed row"),
        ("name,food,kind\na,b,c\n", "no such column"),
        ("name,food,kind,length\na,,,\n", "make no pair"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused(desk: Desk, text: str, said: str):
    desk.write(text)
    with pytest.raises(DataError, match=said):
        desk.stage().check(desk.sources)


def test_files_of_other_kinds_are_refused(desk: Desk):
    desk.write("x", "facts.xlsx")
    with pytest.raises(DataError, match="another kind"):
        desk.stage().check(desk.sources)
    for text, said in (("[1]\n", "no JSON object"), ('{"name": \n', "malformed"), ('{"name": {}}', "cannot stand")):
        desk.write(text, "facts.jsonl")
        with pytest.raises(DataError, match=said):
            desk.stage().check(desk.sources)
    (desk.root / "facts.csv").write_bytes(b"name,food\ncaf\xe9,x\n")
    with pytest.raises(DataError, match=r"facts.csv:2: the table is not UTF-8: byte 0xe9"):
        read_table([desk.root / "facts.csv"])


def test_nothing_left_is_an_error_with_the_reasons(desk: Desk):
    desk.without(answer="{food} or {food} 77 times.")
    with pytest.raises(DataError, match=r"no pair is left for train\n.*number not in the evidence \(8\)"):
        desk.run()
    desk.without()
    with pytest.raises(DataError, match="no pair is left for test"):
        desk.run(test_fraction=0.0001)


@pytest.mark.parametrize(
    "options",
    [
        {"tables": []},
        {"test_fraction": 0.6, "dev_fraction": 0.4},
        {"difficulty": {"easy": 0}},
        {"difficulty": {"x": 1}},
    ],
)
def test_settings_that_do_not_fit_are_refused(desk: Desk, options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"tables|difficulty|sum below 1"):
        desk.stage(**options)
