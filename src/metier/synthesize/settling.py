"""From pairs that may stay to splits: what is asked twice, what is enough, what is held out, what tests already ask.

Splits go by document: all pairs of one document stand on one side, chosen by a hash of its name and the seed, so that
adding documents moves none. A pair that joins documents of two splits is left out. `hold_out: question` parts the
questions instead: then the test asks trained facts in other words. Either way what a trained pair shows of a tested one
is looked for by the gate of the data stages (`text.overlap`), and the trained one goes.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metier.core.errors import DataError
from metier.synthesize.pair import DIFFICULTIES, Difficulty, Pair, Reject, Row, refuse
from metier.text.artifacts import conversation_of, document_of, read_jsonl
from metier.text.overlap import Gate, Hit, Index, folded, letters, trained_texts

HoldOut = Literal["document", "question"]
ORDER = ("test", "dev", "train")
"""From the most protected split to the least."""
HELD_OUT = ("test", "dev", "heldout")


@dataclass
class Settled:
    """Pairs by split, what was left out on the way, and the hits of the gate."""

    splits: dict[str, list[Pair]]
    rejects: list[Reject] = field(default_factory=list)
    hits: list[Row] = field(default_factory=list)


def unrepeated(pairs: Sequence[Pair], near: float | None) -> tuple[list[Pair], list[Reject]]:
    """The pairs whose question none before asks. near: Jaccard of 5-grams of words from which two are the same."""
    kept: list[Pair] = []
    rejects: list[Reject] = []
    first: dict[str, Pair] = {}
    index = Index(Gate(overlap=None, jaccard=near))
    for number, pair in enumerate(pairs):
        index.add(str(number), pair.question, "question")
    gone: set[int] = set()
    for number, pair in enumerate(pairs):
        earlier = first.setdefault(_key(pair.question), pair)
        if earlier is not pair:
            gone.add(number)
            same = letters(earlier.answer) == letters(pair.answer)
            kind = "asked before" if same else "asked before with another answer"
            rejects.append(refuse(pair, kind, earlier.where))
            continue
        alike = [int(hit.test_id) for hit in index.hits(pair.question)] if near is not None else []
        before = next((one for one in alike if one < number and one not in gone), None)
        if before is not None:
            gone.add(number)
            rejects.append(refuse(pair, "nearly asked before", pairs[before].where))
            continue
        kept.append(pair)
    return kept, rejects


def chosen(
    pairs: Sequence[Pair], count: int | None, mix: Mapping[Difficulty, float], seed: int
) -> tuple[list[Pair], list[Reject]]:
    """At most `count` pairs, the difficulties mixed as told, as far as there are such, the kinds and documents even.

    Those chosen keep their order.
    """
    if count is None or len(pairs) <= count:
        return list(pairs), []
    ranked = _ranked(pairs, seed)
    wanted = _shares(count, mix, {name: sum(p.difficulty == name for p in pairs) for name in DIFFICULTIES})
    taken: set[int] = set()
    left = dict(wanted)
    for number in ranked:
        difficulty = pairs[number].difficulty
        if left[difficulty]:
            left[difficulty] -= 1
            taken.add(number)
    rejects = [refuse(p, "beyond count") for number, p in enumerate(pairs) if number not in taken]
    return [pair for number, pair in enumerate(pairs) if number in taken], rejects


def _ranked(pairs: Sequence[Pair], seed: int) -> list[int]:
    """Indices so that the first ones are even over kinds and, within a kind, over documents."""
    order = sorted(range(len(pairs)), key=lambda i: _share(seed, f"choose\0{pairs[i].id}"))
    of_document: dict[tuple[str, str, str], int] = {}
    turn = {}
    for number in order:
        pair = pairs[number]
        key = (pair.difficulty, pair.type, pair.documents[0])
        turn[number] = of_document[key] = of_document.get(key, 0) + 1
    order.sort(key=turn.__getitem__)
    of_kind: dict[tuple[str, str], int] = {}
    rank = {}
    for number in order:
        kind = (pairs[number].difficulty, pairs[number].type)
        rank[number] = of_kind[kind] = of_kind.get(kind, 0) + 1
    return sorted(order, key=rank.__getitem__)


def _shares(count: int, mix: Mapping[Difficulty, float], there: Mapping[Difficulty, int]) -> dict[Difficulty, int]:
    """How many of each difficulty: as mixed, what one lacks being taken from the others."""
    wanted: dict[Difficulty, int] = dict.fromkeys(DIFFICULTIES, 0)
    whole = sum(mix.values())
    for _ in range(count):
        able = [name for name in DIFFICULTIES if wanted[name] < there[name]]
        wished = [name for name in able if mix.get(name, 0.0) > 0] or able
        best = max(wished, key=lambda name: mix.get(name, 0.0) / whole * (sum(wanted.values()) + 1) - wanted[name])
        wanted[best] += 1
    return wanted


def settle(pairs: Sequence[Pair], fractions: Mapping[str, float], hold_out: HoldOut, gate: Gate, seed: int) -> Settled:
    """Every pair in one split, or left out. fractions: the expected share of `test` and `dev`."""
    made = Settled({name: [] for name in ORDER})
    for pair in pairs:
        keys = pair.documents if hold_out == "document" else (_key(pair.question),)
        homes = dict.fromkeys(_home(key, fractions, seed) for key in keys)
        if len(homes) > 1:
            made.rejects.append(refuse(pair, "joins documents of two splits", ", ".join(homes)))
        else:
            made.splits[next(iter(homes))].append(pair)
    _part(made, gate)
    return made


def _home(key: str, fractions: Mapping[str, float], seed: int) -> str:
    at = _share(seed, key)
    for name in ("test", "dev"):
        if at < fractions[name]:
            return name
        at -= fractions[name]
    return "train"


def _part(made: Settled, gate: Gate) -> None:
    """Hold each split against the more protected ones, and do what the gate says."""
    index = Index(gate)
    for name in ORDER:
        if len(index):
            made.splits[name] = _admitted(made, made.splits[name], index, gate, name, "seen in testing")
        for pair in made.splits[name] if name != "train" else ():
            index.add_item(conversation_of(pair.row()), f"{name}/{pair.id}")


def kept_out(made: Settled, folders: Mapping[str, Path], gate: Gate, tick: Callable[[], None]) -> None:
    """Leave out of train and dev what shows something that other steps hold out. folders: their files, by step.

    These are left out even where the gate only reports. Raises StoreError where an artifact is damaged.
    """
    index = Index(gate)
    for name, folder in folders.items():
        for split in HELD_OUT:
            path = folder / f"{split}.jsonl"
            for row in read_jsonl(path) if path.is_file() else ():
                tick()
                item = conversation_of(row) if "messages" in row else document_of(row)
                index.add_item(item, f"{name}/{split}/{item.id}")
    if len(index):
        strict = gate.model_copy(update={"action": "stop" if gate.action == "stop" else "drop"})
        for name in ("dev", "train"):
            made.splits[name] = _admitted(made, made.splits[name], index, strict, name, "kept out for other steps")


def _admitted(made: Settled, pairs: Iterable[Pair], index: Index, gate: Gate, split: str, kind: str) -> list[Pair]:
    """The pairs that show nothing of what is tested. Raises DataError where the gate says stop and one does."""
    kept: list[Pair] = []
    for pair in pairs:
        hits: Sequence[Hit] = index.hits_of(trained_texts(conversation_of(pair.row())))
        made.hits += [hit.row(pair.id, split) | {"where": pair.where} for hit in hits]
        if hits and gate.action == "stop":
            raise DataError(
                f"a pair shows what is tested ({hits[0].told})",
                where=pair.where,
                value=pair.question,
                cure="set contamination.action to drop, and it is left out",
            )
        if hits and gate.action == "drop":
            made.rejects.append(refuse(pair, kind, hits[0].told))
        else:
            kept.append(pair)
    return kept


def check_filled(made: Settled, fractions: Mapping[str, float], left_out: Mapping[str, int]) -> None:
    """Raise DataError where a split that should have something is empty. left_out: reject kinds with their counts."""
    told = ", ".join(f"{kind} ({count})" for kind, count in list(left_out.items())[:4])
    for name in ORDER:
        if made.splits[name] or (name != "train" and not fractions[name]):
            continue
        raise DataError(
            f"no pair is left for {name}",
            value=f"left out: {told}" if told else None,
            cure="look at the reasons; give more material, or other templates"
            if name == "train"
            else f"raise {name}_fraction, change the seed, or give more material",
        )


def gate_facts(gate: Gate, hits: Sequence[Mapping[str, Any]]) -> Row:
    """What the gate looked for and found, for about.json."""
    how = [str(row["how"]) for row in hits]
    return {
        "gate": gate.model_dump(mode="json"),
        "seen": len({row["id"] for row in hits}),
        "rows": len({row["trained_id"] for row in hits}),
        "hits": {name: how.count(name) for name in sorted(set(how))},
    }


def _key(question: str) -> str:
    return letters(question) or folded(question)


def _share(seed: int, key: str) -> float:
    """A number in [0, 1) that only seed and key decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:7], "big") / 2**56
