"""How much of the material the pairs speak of: by documents, passages and quoted sentences.

What no pair quotes is not taught by these pairs: the list of documents without any is where to look first. Costs a pass
over the material.
"""

from collections.abc import Sequence

from metier.synthesize.chunks import sentences
from metier.synthesize.grounding import even
from metier.synthesize.pair import DIFFICULTIES, TYPES, Pair, Passage, Row, count_by

MOST_NAMED = 50


def coverage(passages: Sequence[Passage], pairs: Sequence[Pair]) -> Row:
    """Counts over all material that the teacher was given, and a row for each document.

    A sentence counts as quoted where a quotation holds it or lies within it.
    """
    quoted: dict[str, set[str]] = {}
    pairs_of: dict[str, int] = {}
    for pair in pairs:
        pairs_of[pair.documents[0]] = pairs_of.get(pair.documents[0], 0) + 1
        for one in pair.passages:
            quoted.setdefault(one, set()).update(map(even, pair.evidence))
    documents: dict[str, Row] = {}
    for passage in passages:
        row = documents.setdefault(
            passage.document, {"document": passage.document, "passages": 0, "covered": 0, "sentences": 0, "quoted": 0}
        )
        said = [even(sentence) for sentence in sentences(passage.text)]
        by = quoted.get(passage.id, set())
        row["passages"] += 1
        row["covered"] += bool(by)
        row["sentences"] += len(said)
        row["quoted"] += sum(any(one in sentence or sentence in one for one in by) for sentence in said)
    for name, row in documents.items():
        row["pairs"] = pairs_of.get(name, 0)
    rows = list(documents.values())
    total = {name: sum(row[name] for row in rows) for name in ("passages", "covered", "sentences", "quoted")}
    without = [row["document"] for row in rows if not row["covered"]]
    return {
        "documents": len(rows),
        "documents_covered": len(rows) - len(without),
        **total,
        "without": without[:MOST_NAMED],
        "by_document": rows,
    }


def by_kind(pairs: Sequence[Pair]) -> Row:
    """How many pairs there are of each kind, difficulty and teacher."""
    return {
        "types": count_by([p.type for p in pairs], TYPES),
        "difficulties": count_by([p.difficulty for p in pairs], DIFFICULTIES),
        "teachers": count_by([p.teacher for p in pairs]),
    }
