# ruff: noqa: E501 - the card's lines are as wide as they read well with their figures filled in
"""Writes the demo domain: corpus, held-out articles, questions and the data card with the figures measured on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.marine.articles import Article, corpus, heldout, sentence
from tools.marine.facts import Entry, load_entries
from tools.marine.questions import Pair, Split, split

SEED = 11
DATA = Path(__file__).resolve().parents[2] / "recipes" / "data" / "marine"


def build(folder: Path) -> None:
    """Write every file of the domain below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = load_entries()
    texts, held, pairs = corpus(entries, SEED), heldout(entries, SEED), split(entries, SEED)
    _write(folder / "corpus.jsonl", (vars(a) for a in texts))
    _write(folder / "corpus_heldout.jsonl", (vars(a) for a in held))
    for name in ("train", "dev", "test"):
        _write(folder / f"{name}.jsonl", (p.row() for p in getattr(pairs, name)))
    (folder / "README.md").write_text(card(entries, texts, held, pairs), encoding="utf-8")


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(dict(r), ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def words(text: str) -> set[str]:
    """The words of a question without its entity's name: what its wording is made of."""
    return set(re.findall(r"[a-z']+", text.lower()))


def overlap(test: list[Pair], train: list[Pair]) -> float:
    """Mean, over test questions, of the largest Jaccard overlap of wordings with a training question on the attribute."""
    best = []
    for pair in test:
        mine = words(pair.wording)
        others = [words(t.wording) for t in train if t.attribute == pair.attribute]
        best.append(max(len(mine & o) / len(mine | o) for o in others))
    return sum(best) / len(best)


def statements(texts: list[Article], entry: Entry, attribute: str) -> int:
    """In how many articles the fact's value stands beside the entry's name."""
    value, name = entry.facts[attribute].lower(), entry.name.lower()
    plural = entry.plural.lower()
    return sum(value in a.text.lower() and (name in a.text.lower() or plural in a.text.lower()) for a in texts)


def bare_answers(texts: list[Article], entry: Entry, attribute: str) -> int:
    """How often the fact stands as a bare answer, a sentence of its own, in articles titled with the entry's name."""
    answer = re.compile(r"(?<=[?.] )" + re.escape(sentence(entry.facts[attribute])))
    return sum(len(answer.findall(a.text)) for a in texts if entry.name in a.title)


def card(entries: list[Entry], texts: list[Article], held: list[Article], pairs: Split) -> str:
    """The data card."""
    facts = sum(len(e.facts) for e in entries)
    count = sum(len(a.text.split()) for a in texts)
    groups = {g: sum(p.group == g for p in pairs.test) for g in ("reworded", "corpus-only")}
    train_wordings = len({(p.attribute, p.wording) for p in pairs.train})
    test_wordings = len({(p.attribute, p.wording) for p in pairs.test})
    told = sum(bare_answers(texts, e, a) for e in entries for a in e.facts if (e.slug, a) in pairs.corpus_only)
    direct = told / len(pairs.corpus_only)
    fewest = min(statements([a for a in texts if _about(a, e)], e, a) for e in entries for a in e.facts)
    return f"""# Marine biology: the demo domain

A small, closed world of true facts about life in the sea, to show what each stage of training teaches. Written by
`python -m tools.marine` from the fact table in `tools/marine/facts/`; the same bytes every time.

| file | content |
|---|---|
| `corpus.jsonl` | {len(texts):,} articles, {count:,} words, about {len(entries)} species and habitats with {facts} facts |
| `corpus_heldout.jsonl` | {len(held)} articles in wordings that no other article uses, for bits per byte on the domain |
| `train.jsonl` | {len(pairs.train):,} questions with short answers: {facts - len(pairs.corpus_only)} facts, four wordings each |
| `dev.jsonl` | {len(pairs.dev)} questions on trained facts in further wordings, to choose the best epoch |
| `test.jsonl` | {len(pairs.test)} questions: {groups["reworded"]} `reworded`, {groups["corpus-only"]} `corpus-only` |

**How it is split.** A fact is an entry and an attribute (what it is, food, habitat, range, size, notable feature, young,
danger; for habitats also what builds them, who lives there, what they give). {len(pairs.corpus_only)} of the {facts} facts are
*corpus-only*: articles state them, no training question asks them. What an entry is, is never among them, as names
give it away. Test questions of the group `reworded` ask trained facts; those of the group `corpus-only` ask the others. Both use
{test_wordings} wordings that no training question uses ({train_wordings} there); the mean largest word overlap (Jaccard) of a test
wording with a training wording of its attribute is {overlap(pairs.test, pairs.train):.2f}. No test question stands in the corpus.

**What the corpus gives away.** Quiz and guide articles put direct questions and answer them in a bare phrase, also on
corpus-only facts, about {direct:.0f} times each; none of their wordings is a test wording; one ("Who lives at ...?") is also a
training wording. So corpus-only answers come from the corpus alone, but partly from text already in question form.

**How often a fact is told.** Each in at least {fewest} articles, as plain sentences, reversed sentences, tables, indirect
questions and quizzes.

**Limits.** Values are shortened to a few words and a fact table is not a textbook: numbers are usual maxima, ranges are rough,
each attribute names one answer where nature has several. Wordings come from templates, so the text is plainer than what
people write. The held-out articles restate known facts: they measure wording, not new knowledge.

**Licence.** Apache-2.0. The facts are general knowledge, the sentences were written for this project.
"""


def _about(article: Article, entry: Entry) -> bool:
    return entry.name in article.title or article.id.startswith("list-")
