"""What looks at texts once splits are settled: near-duplicates, and the gate between what is trained on and tested on.

Each passes over the spool split by split, from the most protected to the least, so of two rows that are alike the one
that is measured with stays.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metier.core import workers as processes
from metier.data.contamination import Gate, Index, Watch, item_of, keep_out_index
from metier.data.gathering import Pile, Telling
from metier.data.near import Near, NearIndex, signatures
from metier.data.spool import KEPT, Fates, Spooled
from metier.text.overlap import trained_texts
from metier.text.refusals import REFUSALS_TEST

if TYPE_CHECKING:
    from metier.data.minhash import Signature

HITS = "contamination.jsonl"
MEASURED = ("test", "dev", "heldout", REFUSALS_TEST)
"""Splits that are measured with. Of the last only the questions are looked for: all that is declined is declined in
the same few words."""
WORKERS_FROM = 64 << 20
"""Bytes of a split from which on its signatures are made by other processes."""
AT_ONCE = 1000
"""Rows whose signatures are made together, at most."""
PORTION = 2 << 20
"""Bytes of rows from which on no more are taken together."""


def drop_near(pile: Pile, fates: Fates, near: Near, *, telling: Telling) -> None:
    """Leave out what nearly repeats an earlier row: of its own split, or of one that is more protected."""
    index: NearIndex[int] = NearIndex(near)
    sizes = np.frombuffer(pile.columns.sizes, np.uint32)
    for place, name in enumerate(fates.order):
        rows = fates.split(name)
        passed = telling.each(f"near-duplicates in {name}", pile.spool.rows(rows), len(rows))
        size = int(sizes[rows].sum())
        for number, signature in _signed(passed, near, size):
            earlier = index.add(number, signature)
            if earlier is None:
                continue
            owner = int(fates.splits[earlier])
            if owner == place:
                fates.drop([number], "near", "nearly repeats {}", [earlier])
            else:
                fates.drop([number], "leaked", f"nearly {{}} in {fates.order[owner]}, so not in {name}", [earlier])


def _signed(rows: Iterable[Spooled], near: Near, size: int) -> "Iterator[tuple[int, Signature]]":
    """Each row's number and signature. size: bytes of the rows; many are signed by other processes."""
    batches = _portions(rows)
    workers = processes.count(size, WORKERS_FROM)
    if not workers:
        for batch in batches:
            found = sign([spooled.line for spooled in batch], near)
            yield from zip((spooled.index for spooled in batch), found, strict=True)
        return
    pool = processes.pool(workers, processes.begin, ())
    waiting: deque[tuple[list[int], Future[Signature]]] = deque()
    try:
        for batch in batches:
            lines = [spooled.line for spooled in batch]
            waiting.append(([spooled.index for spooled in batch], pool.submit(sign, lines, near)))
            if len(waiting) > 2 * workers:
                numbers, future = waiting.popleft()
                yield from zip(numbers, future.result(), strict=True)
        for numbers, future in waiting:
            yield from zip(numbers, future.result(), strict=True)
    finally:
        processes.close(pool)


def _portions(rows: Iterable[Spooled]) -> Iterator[list[Spooled]]:
    """Rows in lists of at most AT_ONCE, which end where they hold PORTION bytes."""
    found: list[Spooled] = []
    size = 0
    for row in rows:
        found.append(row)
        size += len(row.line)
        if len(found) == AT_ONCE or size >= PORTION:
            yield found
            found, size = [], 0
    if found:
        yield found


def sign(lines: Sequence[bytes], near: Near) -> "Signature":
    """The signatures of rows [rows, permutations], each the JSON of one."""
    return signatures(("\n".join(trained_texts(item_of(json.loads(line)))) for line in lines), near)


def guard(
    pile: Pile,
    fates: Fates,
    gate: Gate,
    *,
    keep_out: Mapping[str, Path],
    out: Path,
    telling: Telling,
) -> dict[str, Any]:
    """Look for what is tested in what is trained on, and do what the gate says.

    keep_out: folders of other steps whose held-out rows may not be trained on here either, by step name; these are left
    out even where the gate only reports. out: the folder for the list of hits, with both texts. Returns what was found,
    for about.json. Raises DataError where the gate says stop.
    """
    with (out / HITS).open("w", encoding="utf-8", newline="\n") as file:

        def keep(row: Mapping[str, object]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        inside = Watch(gate, Index(gate), keep)
        outside = Watch(gate, keep_out_index(keep_out, gate), keep) if keep_out else None
        for name in fates.order:
            watches = [(inside, "contaminated", gate.action == "drop")] if len(inside.index) else []
            if outside is not None and name not in MEASURED:
                watches.append((outside, "kept_out", gate.action != "stop"))
            if watches:
                _pass(pile, fates, name, watches, telling)
            if name in MEASURED:
                for spooled in pile.spool.rows(fates.split(name)):
                    item = item_of(spooled.row)
                    inside.index.add_item(item, f"{name}/{item.id}", answers=name != REFUSALS_TEST)
    for watch in (inside, *([outside] if outside else [])):
        watch.finish()
    facts = {"gate": gate.model_dump(mode="json"), **inside.facts()}
    return facts | ({"keep_out": {"steps": sorted(keep_out), **outside.facts()}} if outside else {})


def _pass(pile: Pile, fates: Fates, name: str, watches: Sequence[tuple[Watch, str, bool]], telling: Telling) -> None:
    """Show a split's rows to the watches; each with what its hits count as, and whether they go."""
    rows = fates.split(name)
    for spooled in telling.each(f"compare {name}", pile.spool.rows(rows), len(rows)):
        item = item_of(spooled.row)
        for watch, kind, drop in watches:
            reason = watch.reason(item, where=spooled.where, split=name)
            if reason is not None and drop:
                what, _, seen = reason.partition(": ")
                fates.drop([spooled.index], kind, what, detail={"seen": seen})
                break


def keep_pairs(pile: Pile, fates: Fates) -> None:
    """Leave out a refusal whose twin went, and a twin whose refusal went: they stand one behind the other."""
    number = [part.name for part in pile.parts].index("refusals")
    rows = np.flatnonzero(np.frombuffer(pile.columns.parts, np.uint8) == number)
    gone = fates.why[rows] != KEPT
    for one, other in ((0, 1), (1, 0)):
        alone = rows[one::2][~gone[one::2] & gone[other::2]]
        fates.drop(alone, "filtered", "its pair is left out ({})", rows[other::2][~gone[one::2] & gone[other::2]])
