"""Measures what is done to texts before they are used: `python -m benchmarks.data [near|privacy|docs]`.

near      near-duplicate removal of MedQuAD's 16,407 answers: its time, beside datasketch's signatures, and what it
          finds of the pairs that are alike by their exact similarity, all pairs compared
privacy   recall and precision for each kind of personal data on synthetic records, recall on values from the library
          Faker, and how often anything is found in MedQuAD, PubMedQA and Counsel Chat
docs      copies the results of `privacy` into the table of docs/data.md

A piece counts as found where one finding of its kind covers all of it. Intervals are Wilson's, at 95 %. Every figure
goes to `benchmarks/results/data.json`. The time of near-duplicate removal begins with texts in memory.
"""

import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.stats import binomtest

from benchmarks.records import Record, foreign, records
from benchmarks.rows import RESULTS, Row, write
from metier.data import minhash
from metier.data.near import Near, NearIndex, signatures
from metier.data.privacy import KINDS, find

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
RECORDS = 6000
FOREIGN = 1000
SEED = 2026
DOCS = Path(__file__).resolve().parents[1] / "docs/data.md"
MARKS = ("<!-- results of python -m benchmarks.data privacy -->\n", "<!-- end of results -->\n")
SAMPLE = 4000
"""Answers of which all pairs are compared: their shared runs of words fit in memory."""


def main() -> None:
    parts = {"near": near, "privacy": privacy}
    for name in sys.argv[1:] or [*parts, "docs"]:
        if name == "docs":
            DOCS.write_text(
                with_table(DOCS.read_text(encoding="utf-8"), table(RESULTS / "data.json")), encoding="utf-8"
            )
        elif name in parts:
            write("data", f"python -m benchmarks.data {name}", parts[name]())
        else:
            sys.exit(f"unknown part {name!r}; known: {', '.join(parts)}, docs")


def near() -> list[Row]:
    texts, setting = answers(), Near()
    started = time.perf_counter()
    found = signatures(texts, setting)
    signed = time.perf_counter() - started
    index: NearIndex[int] = NearIndex(setting)
    dropped = sum(index.add(i, row) is not None for i, row in enumerate(found))
    seconds = time.perf_counter() - started
    n = len(texts)
    return [
        Row("near-duplicates of MedQuAD's answers removed", seconds, 120, "s", "lower", n=n),
        Row("MedQuAD's answers dropped as near-duplicates", dropped, n, "texts", "lower", n=n),
        Row("time of signatures", signed / datasketch_seconds(texts), 1, "ratio", "lower", "datasketch 2.0", n=n),
        *against_all_pairs(texts, setting),
    ]


def datasketch_seconds(texts: Sequence[str]) -> float:
    """datasketch on the same runs of words; cutting texts into words counts for both."""
    from datasketch import MinHash

    started = time.perf_counter()
    for text in texts:
        words = minhash.words(text)
        runs = [" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))]
        MinHash(num_perm=128).update_batch(runs)
    return time.perf_counter() - started


def against_all_pairs(texts: Sequence[str], setting: Near) -> list[Row]:
    """Recall of pairs at 0.85 or more, and precision at 0.75 or more: an estimate errs by 0.035 at the threshold."""
    chosen = np.random.default_rng(SEED).choice(len(texts), SAMPLE, replace=False)
    sample = [texts[i] for i in chosen]
    exact = similarities(sample, setting.ngram)
    index: NearIndex[int] = NearIndex(setting)
    found: set[tuple[int, int]] = set()
    for i, row in enumerate(signatures(sample, setting)):
        found |= {(match.key, i) for match in index.matches(row)}
        index.insert(i, row)
    alike = {pair for pair, value in exact.items() if value >= 0.85}
    seen = len(alike & found)
    right = sum(exact.get(pair, 0) >= 0.75 for pair in found)
    return [
        share("near-duplicates found, of pairs 0.85 alike or more", seen, len(alike), 0.98),
        share("near-duplicates that are 0.75 alike or more", right, len(found), 0.95),
    ]


def similarities(texts: Sequence[str], ngram: int) -> dict[tuple[int, int], float]:
    """The exact Jaccard similarity of every pair that is 0.7 alike or more."""
    sets = [minhash.shingles(minhash.words(text), ngram) for text in texts]
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    rows = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    matrix = sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)))
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    sizes: npt.NDArray[np.int64] = np.array([len(s) for s in sets])
    values = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    close = values >= 0.7
    pairs = zip(shared.row[close].tolist(), shared.col[close].tolist(), strict=True)
    return dict(zip(pairs, values[close].tolist(), strict=True))


def privacy() -> list[Row]:
    made = records(RECORDS, seed=SEED)
    rows = []
    for kind in sorted(KINDS):
        usual, hard, right, claimed = tally(made, kind)
        rows.append(share(f"{kind}: recall", *usual, 0.95))
        found, wanted = usual[0] + hard[0], usual[1] + hard[1]
        rows.append(share(f"{kind}: recall with the forms known to be beyond it", found, wanted, 0))
        rows.append(share(f"{kind}: precision", right, claimed, 0.95))
    cases: dict[str, list[Record]] = {}
    for name, record in foreign(FOREIGN, seed=SEED):
        cases.setdefault(name, []).append(record)
    for name, some in cases.items():
        usual, *_ = tally(some, some[0].gold[0].kind)
        rows.append(share(f"{name}: recall on Faker's values", *usual, 0))
    return rows + [rate(name, texts) for name, texts in public().items()]


def tally(made: Iterable[Record], kind: str) -> tuple[tuple[int, int], tuple[int, int], int, int]:
    """Found and all of the usual forms, found and all of the hard ones, right findings and all findings."""
    count: Counter[tuple[str, bool]] = Counter()
    for record in made:
        found = [one for one in find(record.text) if one.kind == kind]
        gold = [one for one in record.gold if one.kind == kind]
        for piece in gold:
            count["all", piece.hard] += 1
            count["found", piece.hard] += any(o.start <= piece.start and o.end >= piece.end for o in found)
        for one in found:
            count["claimed", False] += 1
            count["right", False] += any(piece.start < one.end and piece.end > one.start for piece in gold)
    usual, hard = ((count["found", how], count["all", how]) for how in (False, True))
    return usual, hard, count["right", False], count["claimed", False]


def table(results: Path) -> str:
    """What docs/data.md shows of the results, one line a kind."""
    rows = {row["case"]: row for row in json.loads(results.read_text(encoding="utf-8"))}
    lines = [
        "| kind | recall, forms it is made for | recall, all forms | precision | recall, Faker's values |",
        "|---|---|---|---|---|",
    ]
    others: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in KINDS}
    others["phone"] = ("phone, labelled", "phone, bare")
    for kind in sorted(KINDS):
        cells = [
            figure(rows[f"{kind}: {what}"])
            for what in ("recall", "recall with the forms known to be beyond it", "precision")
        ]
        cases = [(name, rows.get(f"{name}: recall on Faker's values")) for name in others[kind]]
        cells.append("; ".join(figure(row) + name.removeprefix(kind).replace(",", "") for name, row in cases if row))
        lines.append(f"| `{kind}` | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def figure(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['measured']:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n {row['n']})"


def with_table(text: str, fresh: str) -> str:
    before, rest = text.split(MARKS[0], 1)
    return before + MARKS[0] + fresh + MARKS[1] + rest.split(MARKS[1], 1)[1]


def share(case: str, part: int, whole: int, bar: float) -> Row:
    low, high = binomtest(part, whole).proportion_ci(method="wilson")
    return Row(case, part / whole, bar, "share", "higher", n=whole, interval=(round(low, 4), round(high, 4)))


def rate(name: str, texts: Sequence[str]) -> Row:
    """Findings in a thousand texts that anyone may read: none of them should be about a patient."""
    count = sum(len(find(text)) for text in texts)
    better: Literal["lower"] = "lower"
    return Row(
        f"findings in 1,000 texts of {name}", round(1000 * count / len(texts), 2), 50, "findings", better, n=len(texts)
    )


def answers() -> list[str]:
    with (SHARED / "medquad/medquad_answered.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["answer"] for line in file]


def public() -> dict[str, list[str]]:
    with (SHARED / "counsel_chat/20200325_counsel_chat.csv").open(encoding="utf-8", newline="") as file:
        counsel = [row["answerText"] for row in csv.DictReader(file) if row["answerText"]]
    abstracts = json.loads((SHARED / "pubmedqa/ori_pqal.json").read_text(encoding="utf-8")).values()
    return {
        "MedQuAD": answers(),
        "PubMedQA": [" ".join(a["CONTEXTS"]) for a in abstracts],
        "Counsel Chat": counsel,
    }


if __name__ == "__main__":
    main()
