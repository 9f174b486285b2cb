"""Splits: seeded, whole groups, independent of other rows; nothing stands in two."""

from hypothesis import given
from hypothesis import strategies as st

from metier.data.split import Entry, assign, question_key, separate, share, text_key
from metier.text.nouns import Message


def entry(key: str, content: str = "") -> Entry[str]:
    return Entry(key + content, key, content or key, f"a.jsonl:{key}")


def ask(*turns: str) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=3)), st.integers(0, 5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_groups_stay_whole_and_no_row_is_lost(keys: list[str], seed: int, test: float, dev: float) -> None:
    entries = [entry(key, str(i)) for i, key in enumerate(keys)]
    splits = assign(entries, {"test": test, "dev": dev}, seed=seed, rest="train")
    assert sorted(e.item for es in splits.values() for e in es) == sorted(e.item for e in entries)
    homes = {key: {name for name, es in splits.items() if any(e.key == key for e in es)} for key in keys}
    assert all(len(home) == 1 for home in homes.values())


def test_shares_are_met_on_average_and_rows_stay_put() -> None:
    entries = [entry(str(i)) for i in range(5000)]
    splits = assign(entries, {"test": 0.1, "dev": 0.2}, seed=3, rest="train")
    assert abs(len(splits["test"]) - 500) < 80
    assert abs(len(splits["dev"]) - 1000) < 120
    few = assign(entries[::7], {"test": 0.1, "dev": 0.2}, seed=3, rest="train")
    assert {e.item for e in few["test"]} <= {e.item for e in splits["test"]}
    other = assign(entries, {"test": 0.1, "dev": 0.2}, seed=4, rest="train")
    assert other["test"] != splits["test"]


def test_share_is_pinned() -> None:
    """Artifacts made by an older version are found again only while this stays."""
    assert round(share(0, "whale"), 6) == 0.489602


def test_duplicates_go_from_the_less_protected_split() -> None:
    splits = {
        "test": [entry("a"), entry("a"), entry("a", "other answer")],
        "train": [entry("b"), entry("a"), entry("b")],
        "replay": [entry("b"), entry("c")],
    }
    kept, dropped = separate(splits, ("test", "train", "replay"))
    assert {name: [e.item for e in es] for name, es in kept.items()} == {
        "test": ["a", "aother answer"],
        "train": ["b"],
        "replay": ["c"],
    }
    assert [(d.reason, d.leak) for d in dropped] == [
        ("repeats a.jsonl:a", False),
        ("also in test, so not in train", True),
        ("repeats a.jsonl:b", False),
        ("also in train, so not in replay", True),
    ]


def test_keys_see_through_spelling_not_through_words() -> None:
    assert question_key(ask("What IS  a whale?", "x")) == question_key(ask(" what is a ｗhale", "y"))
    assert question_key(ask("What is a whale?", "x")) != question_key(ask("What is a wal?", "x"))
    assert question_key(ask("+?", "x")) != question_key(ask("-?", "x"))
    assert question_key(ask("कि", "x")) != question_key(ask("की", "x"))
    system = [Message("system", "S"), *ask("a", "x")]
    assert question_key(system) == question_key(ask("a", "y"))
    assert question_key(ask("a", "x", "b", "y")) != question_key(ask("a", "z", "b", "y"))
    assert text_key("A\n b") == text_key("a B ")
    assert text_key("a, b") != text_key("a b")
