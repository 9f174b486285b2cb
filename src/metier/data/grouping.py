"""What makes a group, which split it goes to, and what a list of ids pins.

Two rows with the same question or text share a group, and so do two that any of the chosen likenesses joins, and all
that such pairs chain together. A group's key is the smallest of its members' own keys, so a row alone keeps its key,
and with it its split, whatever is added. A row that joins two groups makes them one, and may move the larger of them.

Cost of a row: 200 bytes; with `near` 600 more; with `overlap` its text and about 50 bytes a word, so that one is for
up to some ten million words.

Refuses id lists that cannot be read, name an id twice or one that no source has, and a row that a list keeps elsewhere.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, get_args

from pydantic import Field, field_validator, model_validator

from metier.core.errors import DataError, nearest
from metier.core.fingerprint import digest
from metier.core.stage import Config, FilePattern
from metier.data.near import Near, groups, signatures
from metier.data.split import answer_key, question_key, share, text_key
from metier.text.nouns import Conversation, Document
from metier.text.overlap import Gate, Index, asked_texts, trained_texts, words

if TYPE_CHECKING:
    from metier.data.minhash import Signature

By = Literal["question", "answer", "text", "group", "near", "overlap", "row"]
OF_EXAMPLES: tuple[By, ...] = ("question", "answer", "group", "near", "overlap", "row")
OF_DOCUMENTS: tuple[By, ...] = ("text", "group", "near", "overlap", "row")
NEVER = "never"


class Split(Config):
    """What stays together, and what is fixed beforehand."""

    by: list[By] = Field(default_factory=list)
    """What makes rows belong together; any one is enough. question: the same question, letters and digits alone (of
    examples; always on). text: the same text (of documents; always on). answer: the same answer. group: the same
    `group` field, such as an entity or a document (map it: `fields: {group: focus}`). near: near-duplicate questions,
    answers or texts. overlap: what the contamination gate takes for seen, which also finds one text inside another.
    row: every row for itself, not even question or text; that leaks."""
    ids: dict[str, FilePattern] = Field(default_factory=dict)
    """Lists of ids that are fixed, by split: {test: test_ids.txt}. A file has an id a line (# starts a comment), or is
    a JSON array of ids or an object that has them for keys. Rows with these ids go there and nowhere else, whatever
    their group. never: ids that no split may hold, such as another study's test; a row that has one is refused."""
    folds: int | None = Field(None, ge=2)
    """Cut the groups into so many parts of about the same size, of which one is measured with: cross-validation is a
    step for each `fold`."""
    fold: int | None = Field(None, ge=0)
    """Which part is measured with, from 0."""

    @field_validator("by", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "Split":
        if (self.folds is None) != (self.fold is None):
            raise ValueError("`folds` says into how many parts, `fold` which of them is measured with: give both")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"folds are counted from 0: `fold` has to be below {self.folds}")
        if "row" in self.by and len(self.by) > 1:
            raise ValueError("`row` keeps nothing together, so it cannot stand beside another")
        return self

    def check(self, known: Sequence[By], fractions: Mapping[str, float]) -> None:
        """Raise ValueError for what does not fit the stage. known: what it can group by; fractions: by split, the one
        to measure with first, as in `Placer`."""
        wrong = [by for by in self.by if by not in known]
        if wrong:
            raise ValueError(f"rows of this step cannot be kept together by {wrong[0]!r}: {', '.join(known)}")
        names = {*fractions, "train", NEVER}
        for name in self.ids:
            if name not in names:
                raise ValueError(f"there is no split {name!r} to pin ids to: {nearest(name, names)}")
        measured = next(iter(fractions))
        fixed = {name: "ids" for name in fractions if name in self.ids}
        if self.folds is not None:
            if measured in fixed:
                raise ValueError(f"`folds` and `ids.{measured}` both say what to measure with: leave one out")
            fixed[measured] = "folds"
        for name, setting in fixed.items():
            if fractions[name]:
                raise ValueError(f"`split.{setting}` fixes {name}, so {name}_fraction has no effect: leave it out")


# ---- groups --------------------------------------------------------------------------------------------------------


class Grouper:
    """Takes items in one by one and then says each one's group.

    near: what `near` means; gate: what `overlap` means.
    """

    def __init__(self, by: Sequence[By], *, near: Near | None = None, gate: Gate | None = None) -> None:
        self.by = tuple(by)
        self._near, self._gate = near or Near(), gate or Gate()
        self._own: list[str] = []
        self._others: dict[By, list[Hashable]] = {by: [] for by in self.by if by in ("answer", "group")}
        self._signatures: dict[str, list[Signature]] = {}
        self._texts: list[list[str]] = []
        self._index = Index(self._gate)

    def add(self, item: Conversation | Document, *, where: str, group: str = "") -> None:
        """The next item. where: `file name:line`, for errors. Raises DataError where it lacks the group asked for."""
        document = isinstance(item, Document)
        number = len(self._own)
        plain = text_key(item.text) if isinstance(item, Document) else question_key(item.messages)
        texts = trained_texts(item)
        self._own.append(digest([*texts, number]) if self.by == ("row",) else plain)
        for by, values in self._others.items():
            if by == "answer" and not isinstance(item, Document):
                values.append(answer_key(item.messages))
            elif by == "group":
                values.append(group or _refuse_no_group(where, document=document))
        if "near" in self.by:
            self._sign(item)
        if "overlap" in self.by:
            self._texts.append(texts)
            self._index.add_item(item, str(number))

    def _sign(self, item: Conversation | Document) -> None:
        for part, text in asked_texts(item):
            common = part == "answer" and len(words(text)) < self._gate.ngram  # `Yes.` makes nobody relatives
            (signature,) = signatures(["" if common else text], self._near)
            self._signatures.setdefault(part, []).append(signature)

    def keys(self) -> list[str]:
        """Each item's group key, in the order in which they came."""
        if set(self.by) <= {"question", "text", "row"}:
            return self._own
        links: list[Sequence[Hashable]] = [self._own, *self._others.values()]
        if "near" in self.by:
            links += [groups(found, self._near) for found in self._signatures.values()]
        pairs = (
            (number, int(hit.test_id)) for number, texts in enumerate(self._texts) for hit in self._index.hits_of(texts)
        )
        return merge(self._own, links, pairs)


def merge(own: Sequence[str], links: Sequence[Sequence[Hashable]], pairs: Iterable[tuple[int, int]] = ()) -> list[str]:
    """A key for each item: the smallest own key among those that links join it to.

    links: each a value for every item; items with the same value belong together. pairs: items that do.
    """
    parent = list(range(len(own)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for values in links:
        first: dict[Hashable, int] = {}
        for place, value in enumerate(values):
            parent[root(place)] = root(first.setdefault(value, place))
    for one, other in pairs:
        parent[root(one)] = root(other)
    smallest: dict[int, str] = {}
    for place, key in enumerate(own):
        at = root(place)
        smallest[at] = min(smallest.get(at, key), key)
    return [smallest[root(place)] for place in range(len(own))]


def _refuse_no_group(where: str, *, document: bool) -> NoReturn:
    raise DataError(
        "the row has no group, which the rows are to be kept together by",
        where=where,
        cure="name the field that holds it: `fields: {group: ...}`"
        + ("" if document else ", or keep together by question, answer, near or overlap"),
    )


# ---- places --------------------------------------------------------------------------------------------------------


@dataclass
class Placer:
    """Says where an item goes.

    fractions: the expected share of groups for each split, the one to measure with first. rest: takes the others.
    pinned: split by id. Ask `home` of every row whose split is open and `allow` of every row whose split is given, tell
    `leave` of every row that a filter left out, then `finish`. left: ids that are pinned to a split and were left out.
    """

    fractions: Mapping[str, float]
    seed: int
    rest: str
    split: Split = field(default_factory=Split)
    pinned: Mapping[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _met: set[str] = field(default_factory=set)

    def home(self, key: str, row_id: str | None, where: str) -> str:
        """The split of an item: the one that its id is pinned to, or that of its group's key."""
        if row_id is not None and row_id in self.pinned:
            name = self.pinned[row_id]
            self.allow(self.rest if name == NEVER else name, row_id, where)
            return name
        return self.of_key(key)

    def of_key(self, key: str) -> str:
        """The split that seed and key decide."""
        at = share(self.seed, key)
        measured = next(iter(self.fractions))
        folds, fold = self.split.folds, self.split.fold
        if folds is not None:
            if int(at * folds) == fold:
                return measured
            at = share(self.seed, f"rest\0{key}")  # the folds use up the first number: a dev set of them must not
        for name, fraction in self.fractions.items():
            if at < fraction:
                return name
            at -= fraction
        return self.rest

    def allow(self, name: str, row_id: str | None, where: str) -> None:
        """Raise DataError where an item may not stand in that split because its id is pinned to another, or to none."""
        if row_id is None or row_id not in self.pinned:
            return
        self._met.add(row_id)
        wanted = self.pinned[row_id]
        if wanted == name:
            return
        raise DataError(
            f"the id is on the list of those never to be used, and the row would be in {name}"
            if wanted == NEVER
            else f"the id is pinned to {wanted}, and the row would be in {name}",
            where=where,
            value=row_id,
            cure="take the row out of this source, or the id off the list in split.ids",
        )

    def leave(self, row_id: str | None) -> None:
        """A row was there, but a filter left it out."""
        if row_id is not None and self.pinned.get(row_id, NEVER) != NEVER:
            self._met.add(row_id)
            self.left[row_id] = self.pinned[row_id]

    def finish(self) -> None:
        """Raise DataError where an id that is pinned to a split was in no row."""
        missing = [one for one, name in self.pinned.items() if name != NEVER and one not in self._met]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.pinned)} pinned ids are in no source",
                where="split.ids",
                value=missing[:3],
                cure="check that the rows carry these ids (`fields: {id: ...}`), and that no source is missing",
            )


def pins(split: Split, files: Callable[[str], Sequence[Path]]) -> dict[str, str]:
    """Split by id, from the files of `split.ids`. files: those behind a pattern, of which there has to be one. Raises
    DataError."""
    found: dict[str, str] = {}
    for name, pattern in split.ids.items():
        path = _one_list(name, pattern, files(pattern))
        for line, one in _ids(path):
            if one in found:
                raise DataError(
                    "the id stands here twice" if found[one] == name else f"the id is pinned to {found[one]} already",
                    where=f"{path}:{line}",
                    value=one,
                    cure="keep one of them",
                )
            found[one] = name
    return found


def _one_list(name: str, pattern: str, paths: Sequence[Path]) -> Path:
    if len(paths) == 1:
        return paths[0]
    shown = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    raise DataError(
        f"a list of ids is one file, and {pattern!r} names {len(paths)}" + (f" ({shown})" if paths else ""),
        where=f"split.ids.{name}",
        cure="name one of them, or put all ids into one file",
    )


def _ids(path: Path) -> list[tuple[int, str]]:
    """The ids of a list with their lines; of a JSON file the line is their number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cure = "a list is a UTF-8 text with one id a line, or JSON"
        raise DataError(f"the list of ids cannot be read: {error}", where=str(path), cure=cure) from error
    if path.suffix.lower() == ".json":
        found = list(enumerate(_from_json(path, text), 1))
    else:
        lines = enumerate((line.partition("#")[0].strip() for line in text.splitlines()), 1)
        found = [(number, line) for number, line in lines if line]
    if not found:
        raise DataError("the list of ids is empty", where=str(path), cure="write one id a line")
    return found


def _from_json(path: Path, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the list of ids is not JSON: {error}", where=str(path)) from error
    ids = list(value) if isinstance(value, dict | list) else [value]
    wrong = [one for one in ids if isinstance(one, bool) or not isinstance(one, str | int)]
    if wrong or not isinstance(value, dict | list):
        raise DataError(
            "a list of ids in JSON is an array of ids, or an object that has them for keys",
            where=str(path),
            value=(wrong or ids)[0],
        )
    return [str(one) for one in ids]


assert set(OF_EXAMPLES) | set(OF_DOCUMENTS) == set(get_args(By))
