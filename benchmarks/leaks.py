"""The leak that MedQuAD is known for, and what the gate makes of it: `python -m benchmarks.leaks`.

A tenth of the 16,407 pairs is set aside three ways: row by row, by question, and by all that the gate takes for seen.
Counted: tested questions that stand word for word in a trained one (by a plain set, not by the gate), and tested items
that the gate finds. Then the 500 test PMIDs of PubMedQA, pinned by their list. Reads ../shared; one or two minutes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scipy.stats import binomtest

from benchmarks.rows import Row, write
from metier.core.errors import DataError
from metier.data.contamination import Watch
from metier.data.grouping import By, Grouper, Placer, Split, pins
from metier.data.readers import Example, read_examples
from metier.data.split import question_key
from metier.text.nouns import Conversation
from metier.text.overlap import Gate, Index

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
MEDQUAD = SHARED / "medquad/medquad_answered.jsonl"
PUBMEDQA = SHARED / "pubmedqa"
FRACTION = 0.1
SEED = 0

Parted = tuple[list[Conversation], list[Conversation]]


def main() -> None:
    items = conversations()
    write("data", "python -m benchmarks.leaks", [*medquad(items), *pubmedqa()])


def conversations() -> list[Conversation]:
    read = read_examples(MEDQUAD, fields=None, note=print)
    return [Conversation(e.where, e.messages, e.group) for e in read if isinstance(e, Example)]


def part(items: Sequence[Conversation], by: Sequence[By]) -> Parted:
    """(tested, trained)."""
    grouper = Grouper(by)
    for item in items:
        grouper.add(item, where=item.id, group=item.group)
    placer = Placer({"test": FRACTION}, SEED, "train")
    keys = grouper.keys()
    homes = [placer.of_key(key) for key in keys]
    tested, trained = ([i for i, at in zip(items, homes, strict=True) if at == name] for name in ("test", "train"))
    return tested, trained


def verbatim(parted: Parted) -> set[str]:
    """Tested items whose question, letters and digits alone, is a trained one's."""
    tested, trained = parted
    known = {question_key(item.messages) for item in trained}
    return {item.id for item in tested if question_key(item.messages) in known}


def gate(parted: Parted) -> tuple[set[str], int]:
    """Tested items that the gate finds, and trained items that it would drop."""
    tested, trained = parted
    index = Index(Gate())
    for item in tested:
        index.add_item(item)
    watch = Watch(Gate(), index)
    for item in trained:
        watch.reason(item, where=item.id, split="train")
    return set(watch.seen), watch.hit


def medquad(items: Sequence[Conversation]) -> list[Row]:
    rows: list[Row] = []
    for name, by in (("random rows", "row"), ("groups by question", "question"), ("groups by overlap", "overlap")):
        parted = part(items, [by])  # type: ignore[list-item]
        leaked, (seen, dropped) = verbatim(parted), gate(parted)
        total = len(parted[0])
        share = _share(total, f"MedQuAD, {name}")
        if by == "row":
            rows.append(share("tested questions verbatim in train (the known leak)", len(leaked), 0.15, higher=True))
            caught = len(leaked & seen) / len(leaked)
            rows.append(
                Row(f"MedQuAD, {name}: of these, caught by the gate", caught, 1.0, "share", "higher", n=len(leaked))
            )
            rows.append(share("tested items that the gate finds in train", len(seen), 0.2, higher=True))
        else:
            rows.append(share("tested questions verbatim in train", len(leaked), 0.0, higher=False))
        if by == "overlap":
            rows.append(share("tested items that the gate finds in train", len(seen), 0.0, higher=False))
        print(f"{name}: {total} tested, {len(leaked)} verbatim, {len(seen)} seen, {dropped} trained items to drop")
    return rows


def _share(total: int, where: str) -> Callable[..., Row]:
    def row(what: str, count: int, bar: float, *, higher: bool) -> Row:
        found = binomtest(count, total).proportion_ci(method="wilson")
        return Row(
            f"{where}: {what}",
            round(count / total, 4),
            bar,
            "share",
            "higher" if higher else "lower",
            n=total,
            interval=(round(float(found.low), 4), round(float(found.high), 4)),
        )

    return row


def pubmedqa() -> list[Row]:
    """How many of the 500 pinned questions come to the test, and how many of them another source may train on."""
    found = pins(Split(ids={"test": "pmids"}), lambda _: PUBMEDQA / "test_ground_truth.json")
    placer = Placer({"test": 0.0}, SEED, "train", pinned=found)
    pmids = json.loads((PUBMEDQA / "ori_pqal.json").read_text(encoding="utf-8"))
    tested = [one for one in pmids if placer.home(one, one, one) == "test"]
    placer.finish()
    return [
        Row("PubMedQA: pinned questions in the test", len(tested), 500, "questions", "higher", n=len(pmids)),
        Row(
            "PubMedQA: pinned questions that may be trained on",
            sum(map(_trainable(placer), tested)),
            0,
            "questions",
            "lower",
        ),
    ]


def _trainable(placer: Placer) -> Callable[[str], bool]:
    def asked(pmid: str) -> bool:
        try:
            placer.allow("train", pmid, pmid)
        except DataError:
            return False
        return True

    return asked


if __name__ == "__main__":
    main()
