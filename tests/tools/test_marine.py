"""The demo domain is what its card says: true to its table, split cleanly, and reproducible to the byte."""

import json
import re
from pathlib import Path

import pytest
from tools.marine.articles import Article
from tools.marine.build import DATA, SEED, build, statements
from tools.marine.facts import load_entries
from tools.marine.questions import WORDINGS, split


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def articles() -> list[Article]:
    return [Article(**row) for row in rows("corpus.jsonl")]


def test_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    build(tmp_path)
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == sorted(p.name for p in DATA.iterdir())
    assert [n for n in written if (tmp_path / n).read_bytes() != (DATA / n).read_bytes()] == []


def test_table_is_large_enough() -> None:
    entries = load_entries()
    assert len(entries) >= 120
    assert all(len(e.facts) >= 5 for e in entries)


def test_enough_pairs_and_no_pair_twice() -> None:
    pairs = [row for name in ("train", "dev", "test") for row in rows(f"{name}.jsonl")]
    assert len(pairs) >= 600
    assert len({row["question"] for row in pairs}) == len(pairs)


def test_corpus_only_facts_are_in_no_training_answer() -> None:
    asked = {(row["entity"], row["attribute"]) for name in ("train", "dev") for row in rows(f"{name}.jsonl")}
    hidden = {(r["entity"], r["attribute"]) for r in rows("test.jsonl") if r["group"] == "corpus-only"}
    known = {(r["entity"], r["attribute"]) for r in rows("test.jsonl") if r["group"] == "reworded"}
    assert len(hidden) >= 150
    assert not hidden & asked
    assert known <= asked


def test_wordings_of_train_dev_and_test_share_none() -> None:
    for attribute, wordings in WORDINGS.items():
        sets = [set(wordings.train), set(wordings.dev), set(wordings.test)]
        assert len(set.union(*sets)) == sum(map(len, sets)), attribute
    pairs = split(load_entries(), SEED)
    assert not {p.wording for p in pairs.test} & {p.wording for p in (*pairs.train, *pairs.dev)}


def bare(wording: str) -> str:
    """A wording without its slots, its verbs' number and its articles."""
    text = re.sub(r"\{[^}]*\}", "X", wording)
    text = re.sub(r"\[(\w+)\|\w*\]", r"\1", text)
    text = re.sub(r"\b(do|does|is|are|has|have)\b", "V", text)
    return re.sub(r"[^a-z ]", "", re.sub(r"\b(a|an|the) ", "", text.lower())).strip()


def test_the_base_was_never_asked_in_a_test_wording() -> None:
    lines = (DATA.parents[2] / "tools/seedling/text/forms.txt").read_text(encoding="utf-8").splitlines()
    known = {bare(line) for line in lines}
    assert len(known) > 500
    assert bare("What [does|do] {S} eat?") in known
    assert [w for wordings in WORDINGS.values() for w in wordings.test if bare(w) in known] == []


def test_every_fact_is_told_often(articles: list[Article]) -> None:
    for entry in load_entries():
        own = [a for a in articles if entry.name in a.title or a.id.startswith("list-")]
        assert min(statements(own, entry, attribute) for attribute in entry.facts) >= 12, entry.name


def test_no_test_question_stands_in_the_corpus(articles: list[Article]) -> None:
    text = "\n".join(a.text.lower() for a in articles)
    assert [r["question"] for r in rows("test.jsonl") if r["question"].lower() in text] == []


def test_heldout_articles_share_no_sentence_with_the_corpus(articles: list[Article]) -> None:
    told = {s for a in articles for s in re.split(r"(?<=\.) ", a.text)}
    held = [s for r in rows("corpus_heldout.jsonl") for s in re.split(r"(?<=\.) ", r["text"])]
    assert [s for s in held if s in told] == []


def test_grammar_smoke(articles: list[Article]) -> None:
    texts = [a.text for a in articles] + [r[k] for r in rows("test.jsonl") for k in ("question", "answer")]
    bad = re.compile(
        r"  |\ba (?!eu)[aeio]\w|\ban [bcdfgjklmnpqrstvwz]|\bthey is\b|\bit are\b|[<>{}|]|\.\.|\bthe the\b", re.I
    )
    assert [m.string[max(0, m.start() - 20) : m.end() + 20] for t in texts if (m := bad.search(t))] == []
    assert all(t[0].isupper() or t[0].isdigit() for t in texts)
    assert all(t[-1] in ".?!" for t in texts)
