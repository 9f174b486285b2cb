"""Rubrics: what a judge is told to decide, and by which labels. A Markdown file, ours or the user's.

    # Title
    What to decide, in plain words.
    ## Labels
    - consistent: what it means
    - hallucinated: what it means
    - unknown: what it means

The first label is what a good answer gets, the second what a bad one gets. A label `unknown`, where there is one, is
what a judge says that cannot decide. Refuses, with file and line, what does not have this form. Imports nothing heavy.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from metier.core.errors import DataError, nearest
from metier.core.fingerprint import digest

SHIPPED = ("consistency", "clinical-safety", "helpfulness")
UNKNOWN = "unknown"
LARGEST = 20_000
"""Characters of a rubric's file."""
MOST_LABELS = 6
LABEL = re.compile(r"^[-*]\s+`?([^`:]+?)`?\s*:\s*(.*)$")
NAME = re.compile(r"[a-z][a-z0-9 -]{0,30}")
_HEADING = re.compile(r"^##\s+labels\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Rubric:
    """title, text: what to decide. meanings: of each label, the good one first, the bad one second."""

    name: str
    title: str
    text: str
    meanings: dict[str, str]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the file's order."""
        return tuple(self.meanings)

    @property
    def good(self) -> str:
        """What a good answer gets."""
        return self.labels[0]

    @property
    def bad(self) -> str:
        """What a bad answer gets."""
        return self.labels[1]

    @property
    def digest(self) -> str:
        """Of all that it says."""
        return digest([self.title, self.text, self.meanings])[:16]


PAIR = Rubric(
    "pairwise",
    "Which answer is better",
    "",
    {
        "better": "the answer is better than the other one",
        "worse": "the other one is better than the answer",
        "tie": "neither is better than the other",
    },
)
"""The labels of a comparison, as the contender's; what better means comes from a rubric."""


def shipped(name: str) -> Rubric:
    """One of ours. Raises DataError for an unknown name."""
    if name not in SHIPPED:
        cure = f"{nearest(name, SHIPPED)} (or a file: {{file: my-rubric.md}})"
        raise DataError("there is no such rubric", where="rubric", value=name, cure=cure)
    text = (files("metier.judge") / "rubrics" / f"{name}.md").read_text(encoding="utf-8")
    return parse(text, f"{name}.md", name)


def read(path: Path) -> Rubric:
    """The rubric in a user's file. Raises DataError with file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError("the rubric is not UTF-8", where=f"{path}:{line}", cure="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"the rubric cannot be read: {error.strerror}", where=str(path)) from None
    return parse(text, str(path), path.stem)


def parse(text: str, where: str, name: str) -> Rubric:
    """The rubric that a file's text holds."""
    if len(text) > LARGEST:
        cure = "a rubric is a page: judges read it with every answer"
        raise DataError(f"the rubric has {len(text):,} characters, more than {LARGEST:,}", where=where, cure=cure)
    lines = text.splitlines()
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), "")
    heads = [number for number, line in enumerate(lines) if _HEADING.match(line.strip())]
    if not title or len(heads) != 1:
        what = "has no title (`# ...`)" if not title else f"has {len(heads)} headings `## Labels`, not one"
        raise DataError(f"the rubric {what}", where=where, cure=_CURE)
    first = next(number for number, line in enumerate(lines) if line.startswith("# "))
    said = "\n".join(lines[first + 1 : heads[0]]).strip()
    if not said:
        raise DataError("the rubric says nothing between its title and its labels", where=where, cure=_CURE)
    return Rubric(name, title, said, _labels(lines, heads[0] + 1, where))


def _labels(lines: list[str], start: int, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    last = ""
    for number, line in enumerate(lines[start:], start + 1):
        match = LABEL.match(line)
        place = f"{where}:{number}"
        if match is None and line[:1].isspace() and line.strip() and last:
            found[last] = f"{found[last]} {line.strip()}"
            continue
        if match is None:
            if line.strip():
                raise DataError("not a label with its meaning", where=place, value=line, cure=_CURE)
            continue
        last = match[1].strip()
        if not NAME.fullmatch(last):
            cure = "small letters, digits, spaces and '-'"
            raise DataError("not a name for a label", where=place, value=last, cure=cure)
        if last in found or not match[2].strip():
            what = "a label stands there twice" if last in found else "a label has no meaning"
            raise DataError(what, where=place, value=last, cure=_CURE)
        found[last] = match[2].strip()
    if not 2 <= len(found) <= MOST_LABELS:
        raise DataError(f"a rubric has 2 to {MOST_LABELS} labels", where=where, value=list(found), cure=_CURE)
    return found


_CURE = "write `# Title`, what to decide, `## Labels` and a list of `- label: what it means`, the good one first"
