"""Groups, id lists and folds: what stays together, what is fixed, what is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.test_split import entry

from metier.core.errors import DataError
from metier.core.stage import references
from metier.data.grouping import NEVER, OF_DOCUMENTS, OF_EXAMPLES, By, Grouper, Placer, Split, merge, pins
from metier.data.split import assign, question_key, share
from metier.text.nouns import Conversation, Document, Message

LONG = "the whale swims north in spring because the krill is there and the ice has gone from the open bay by then"


def ask(question: str, answer: str) -> Conversation:
    return Conversation("c", (Message("user", question), Message("assistant", answer)))


def together(by: list[By], *items: Conversation | Document, groups: tuple[str, ...] = ()) -> list[set[int]]:
    """The groups as sets of positions, those of one left out."""
    made = Grouper(by)
    for number, item in enumerate(items):
        made.add(item, where=f"a:{number}", group=groups[number] if groups else "")
    keys = made.keys()
    return [
        {i for i, other in enumerate(keys) if other == key} for key, n in dict.fromkeys(Counter(keys).items()) if n > 1
    ]


def test_likenesses():
    items = (
        ask("What is a whale?", "A mammal."),
        ask("what is a WHALE", "Large."),
        ask("What is a crab?", "Large."),
        ask("Where does it go?", LONG),
        ask("Where does it swim?", LONG.replace("by then", "by noon")),
        ask("Tell me.", f"Well, {LONG}. " + " ".join(f"w{i}" for i in range(80))),
    )
    assert together(["question"], *items) == [{0, 1}]
    assert together(["answer"], *items) == [{0, 1, 2}]
    assert together(["question", "answer"], *items) == [{0, 1, 2}]
    assert {3, 4} in together(["near"], *items)
    assert {3, 4, 5} in together(["overlap"], *items)
    assert together(["row"], *items, items[0]) == []
    assert together(["group"], *items, groups=("a", "b", "a", "c", "d", "d")) == [{0, 1, 2}, {4, 5}]
    assert together(["text"], Document("1", "A b"), Document("2", "a  B"), Document("3", "c")) == [{0, 1}]


def test_a_row_alone_keeps_the_key_that_it_always_had():
    item = ask("What is a whale?", "A mammal.")
    for by in (["question"], ["question", "answer"], ["near"], ["question", "overlap"]):
        made = Grouper(by)  # type: ignore[arg-type]
        made.add(item, where="a:1")
        assert made.keys() == [question_key(item.messages)]


@given(
    st.lists(st.integers(0, 6), max_size=12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=8)
)
def test_merging_is_the_transitive_closure(values: list[int], joined: list[tuple[int, int]]):
    pairs = [(a, b) for a, b in joined if a < len(values) and b < len(values)]
    keys = merge([f"{i:02}" for i in range(len(values))], [values], pairs)
    reach = {i: {j for j, w in enumerate(values) if w == v} for i, v in enumerate(values)}
    for a, b in pairs:
        reach[a].add(b)
        reach[b].add(a)
    for _ in values:
        reach = {i: set().union(*(reach[j] for j in near)) for i, near in reach.items()}
    assert keys == [f"{min(reach[i]):02}" for i in range(len(values))]


def test_a_missing_group_is_named():
    with pytest.raises(DataError, match=r"a.jsonl:3: the row has no group") as caught:
        Grouper(["group"]).add(ask("Q", "A"), where="a.jsonl:3")
    assert "fields: {group: ...}" in str(caught.value)


# --- places


def test_fractions_place_as_they_always_did():
    keys = [str(i) for i in range(2000)]
    fractions = {"test": 0.1, "dev": 0.2}
    placer = Placer(fractions, 3, "train")
    old = assign([entry(key) for key in keys], fractions, seed=3, rest="train")
    for name, entries in old.items():
        assert [key for key in keys if placer.home(key, None, "a:1") == name] == [e.key for e in entries]


def test_folds_part_everything_once_and_leave_a_dev_set():
    keys = [str(i) for i in range(2000)]
    tested = []
    for fold in range(5):
        placer = Placer({"test": 0.0, "dev": 0.1}, 1, "train", Split(folds=5, fold=fold))
        homes = {key: placer.of_key(key) for key in keys}
        tested += [key for key, name in homes.items() if name == "test"]
        count = Counter(homes.values())
        assert abs(count["test"] - 400) < 80
        assert abs(count["dev"] - 160) < 50
    assert sorted(tested) == sorted(keys)
    assert 0 <= share(1, "x") < 1


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pinned(tmp_path: Path, **lists: object) -> dict[str, str]:
    files = {
        name: write(tmp_path, f"{name}.txt" if isinstance(c, str) else f"{name}.json", c) for name, c in lists.items()
    }
    return pins(Split(ids={name: name for name in lists}), lambda name: (files[name],))


def test_id_lists(tmp_path: Path):
    assert pinned(tmp_path, test="\ufeff7\n# a note\n\n8  # another\n") == {"7": "test", "8": "test"}
    assert pinned(tmp_path, test=[7, "8"], never={"9": "yes"}) == {"7": "test", "8": "test", "9": NEVER}
    found = pinned(tmp_path, test="7\n", never="9\n")
    placer = Placer({"test": 0.0}, 0, "train", pinned=found)
    assert placer.home("k", "7", "a:1") == "test"
    assert placer.home("k", "8", "a:2") == "train"
    placer.allow("test", "7", "t:1")
    placer.finish()


def test_a_pinned_id_is_trained_on_by_nobody(tmp_path: Path):
    placer = Placer({"test": 0.0}, 0, "train", pinned=pinned(tmp_path, test="7\n", never="9\n"))
    with pytest.raises(DataError, match=r"b.jsonl:4: the id is pinned to test, and the row would be in replay"):
        placer.allow("replay", "7", "b.jsonl:4")
    with pytest.raises(DataError, match="list of those never to be used") as caught:
        placer.home("k", "9", "a.jsonl:9")
    assert "take the row out" in str(caught.value)


def test_pinned_ids_that_no_source_has_are_named(tmp_path: Path):
    placer = Placer({"test": 0.0}, 0, "train", pinned=pinned(tmp_path, test="7\n8\n", never="9"))
    placer.home("k", "7", "a:1")
    with pytest.raises(DataError, match=r"1 of 3 pinned ids are in no source") as caught:
        placer.finish()
    assert "'8'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "7\n8\n7\n", r"a.txt:3: the id stands here twice"),
        ("a.txt", "# nothing\n", "the list of ids is empty"),
        ("a.json", "[7", "is not JSON"),
        ("a.json", "[[7]]", "an array of ids"),
        ("a.json", "7", "an array of ids"),
        ("a.json", "[true]", "an array of ids"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, name: str, content: str, said: str):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=said):
        pins(Split(ids={"test": name}), lambda _: (path,))


def test_unreadable_lists_are_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"7\n\xff\n")
    with pytest.raises(DataError, match="cannot be read"):
        pins(Split(ids={"test": "a.txt"}), lambda name: (tmp_path / name,))
    with pytest.raises(DataError, match="cannot be read"):
        pins(Split(ids={"test": "b.txt"}), lambda name: (tmp_path / name,))


def test_one_id_in_two_lists(tmp_path: Path):
    with pytest.raises(DataError, match="pinned to test already"):
        pinned(tmp_path, test="7\n", dev="7\n")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"folds": 5}, "give both"),
        ({"folds": 5, "fold": 5}, "has to be below 5"),
        ({"by": ["row", "near"]}, "cannot stand beside"),
        ({"by": "questions"}, "Input should be"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        Split.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "fractions", "said"),
    [
        ({"by": "text"}, {"test": 0.0}, "cannot be kept together by 'text'"),
        ({"ids": {"tset": "a"}}, {"test": 0.0}, "did you mean 'test'"),
        ({"ids": {"test": "a"}}, {"test": 0.1}, "test_fraction has no effect"),
        ({"folds": 2, "fold": 0}, {"test": 0.1}, "test_fraction has no effect"),
        ({"folds": 2, "fold": 0, "ids": {"test": "a"}}, {"test": 0.0}, "leave one out"),
    ],
)
def test_what_does_not_fit_the_stage_is_refused(settings: dict[str, object], fractions: dict[str, float], said: str):
    with pytest.raises(ValueError, match=said):
        Split.model_validate(settings).check(OF_EXAMPLES, fractions)


def test_settings_that_fit():
    split = Split.model_validate({"by": "near", "ids": {"test": "pmids.txt", "never": "other.txt"}})
    split.check(OF_EXAMPLES, {"test": 0.0, "dev": 0.1})
    split.check(OF_DOCUMENTS, {"test": 0.0})
    assert [ref.value for ref in references(split)] == ["pmids.txt", "other.txt"]


@pytest.mark.shared
def test_pubmedqas_official_test_is_pinned(shared: Path):
    questions = json.loads((shared / "data/pubmedqa/ori_pqal.json").read_text(encoding="utf-8"))
    path = shared / "data/pubmedqa/test_ground_truth.json"
    found = pins(Split(ids={"test": "pmids"}), lambda _: (path,))
    assert len(found) == 500
    placer = Placer({"test": 0.0}, 0, "train", pinned=found)
    homes = Counter(placer.home(pmid, pmid, f"ori_pqal.json:{pmid}") for pmid in questions)
    placer.finish()
    assert homes == {"test": 500, "train": 500}
    with pytest.raises(DataError, match="the id is pinned to test, and the row would be in train"):
        placer.allow("train", next(iter(found)), "more.jsonl:1")
