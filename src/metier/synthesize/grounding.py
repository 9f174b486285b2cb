"""What a pair has to be before it may teach anything: its evidence stands in the source, its answer in the evidence.

Each rule is a plain look at words, so whoever is refused can see why:

- quoted     every quotation stands in one of the pair's passages, white space, quotation marks and dashes aside;
- grounded   every number of the answer stands in a quotation or in the question, and so does a share of its words;
- by itself  the question does not speak of "the passage" or "the text above", which nobody sees who is asked it;
- whole      question and answer have words, are no longer than allowed, and are not the same.

None of these proves an answer right; together they catch what teachers get wrong most: answers from memory, quotations
that were never there, questions that need the page. Numbers as words (`two`) and as digits count as the same up to
twelve. Imports nothing heavy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from metier.core.stage import Config
from metier.synthesize.pair import Pair, Passage, Reject, refuse
from metier.text.overlap import folded, words

_QUOTES = str.maketrans(dict.fromkeys("“”„«»‟", '"') | dict.fromkeys("‘’‚‛`´", "'") | dict.fromkeys("‐‑‒–—−", "-"))
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_PAGE = re.compile(
    r"\b(?:the|this|that)\s+(?:given\s+|provided\s+|above\s+|following\s+)?(?:passage|text|excerpt|paragraph)s?\b"
    r"|\b(?:this|given|provided|above|following)\s+(?:document|article|section|chapter|context|source)s?\b"
    r"|\b(?:according to|mentioned in|described in|stated in)\s+the\s+(?:document|article|section|author|source)s?\b"
    r"|\b(?:mentioned|described|stated|given|listed)\s+(?:above|here)\b",
    re.IGNORECASE,
)
"""Words that point at a page which whoever is asked does not see."""
_COUNTS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_AS_DIGITS = {word: str(number) for number, word in enumerate(_COUNTS, 1)}
_LITTLE = """
a an the and or but nor so yet if then than that this these those there here it its they them their he she his her hers
him we us our you your i me my is are was were be been being am do does did done has have had having will would can
could may might must shall should of in on at by for with from to into onto about as over under between through during
before after above below up down out off not no yes also too very more most such only own same both each few all any
some other another what which who whom whose when where why how while because since until s t d ll re ve m
"""
STOPWORDS = frozenset(_LITTLE.split())
"""English words that say nothing by themselves."""


class Grounding(Config):
    """When an answer counts as standing in its evidence."""

    overlap: float = Field(0.6, ge=0, le=1)
    """Share of the answer's words (without `the`, `is` and the like) that have to stand in its quotations or in the
    question. Numbers have to stand there all."""
    by_itself: bool = True
    """Whether questions that speak of "the passage" or "the text" are left out: whoever is asked does not see it."""
    min_evidence: int = Field(3, ge=1)
    """Words that a quotation has at least: fewer prove nothing."""


@dataclass(frozen=True)
class Lengths:
    """Characters that a question and an answer may have at most."""

    question: int
    answer: int


def screen(pair: Pair, passages: Mapping[str, Passage], rules: Grounding, lengths: Lengths) -> Reject | None:
    """Why a pair is left out; None where it may stay. passages: by id, those of the pair among them."""
    found = _shape(pair, lengths)
    if found is None:
        found = _quoted(pair, [passages[one] for one in pair.passages], rules)
    if found is None:
        found = _grounded(pair, rules)
    return refuse(pair, *found) if found else None


def _shape(pair: Pair, lengths: Lengths) -> tuple[str, str] | None:
    asked, said = pair.question.strip(), pair.answer.strip()
    if not words(asked) or not words(said):
        return "empty", "the question or the answer has no word"
    if len(asked) > lengths.question or len(said) > lengths.answer:
        what, size = ("question", len(asked)) if len(asked) > lengths.question else ("answer", len(said))
        return "too long", f"the {what} has {size} characters"
    if words(said) == words(asked):
        return "says nothing", "the answer repeats the question"
    return None


def _quoted(pair: Pair, passages: Sequence[Passage], rules: Grounding) -> tuple[str, str] | None:
    if not pair.evidence:
        return "no evidence", "nothing is quoted"
    sources = [even(passage.text) for passage in passages]
    for quotation in pair.evidence:
        if len(words(quotation)) < rules.min_evidence:
            return "evidence too short", repr(quotation)
        if not any(even(quotation) in source for source in sources):
            return "evidence not in the source", repr(quotation[:200])
    return None


def _grounded(pair: Pair, rules: Grounding) -> tuple[str, str] | None:
    if rules.by_itself and (found := _PAGE.search(pair.question)):
        return "does not stand by itself", f"the question speaks of {found[0]!r}"
    known = " ".join([*pair.evidence, pair.question])
    strange = sorted(numbers(pair.answer) - numbers(known))
    if strange:
        return "number not in the evidence", ", ".join(strange)
    said = content(pair.answer)
    held = said & content(known)
    if said and len(held) < rules.overlap * len(said):
        missing = ", ".join(sorted(said - held)[:8])
        return "answer not in the evidence", f"{len(held)} of {len(said)} words stand there; not: {missing}"
    return None


def stands_in(quotation: str, text: str) -> int:
    """Where a quotation begins in a text, both made even; -1 where it does not stand there."""
    return even(text).find(even(quotation))


def even(text: str) -> str:
    """A text whose white space, quotation marks, dashes and case are all the same, without marks at its ends."""
    return " ".join(folded(text.translate(_QUOTES)).split()).strip(" \"'.…")


def content(text: str) -> set[str]:
    """The words that say something, without the commonest English endings."""
    return {
        _stem(word) for word in words(text) if word not in STOPWORDS and not word.isdigit() and word not in _AS_DIGITS
    }


def _stem(word: str) -> str:
    """An English word without the commonest endings: `crosses`, `crossed` and `crossing` become `cross`."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("sses", "shes", "ches", "xes"):
        if word.endswith(ending):
            return word[:-2]
    for ending, least in (("ing", 6), ("ed", 5), ("s", 4)):
        if len(word) >= least and word.endswith(ending) and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def numbers(text: str) -> set[str]:
    """The numbers of a text, without thousands separators, small ones in words among them (but `one`, which seldom is
    a number)."""
    found = {re.sub(r",(?=\d{3}\b)", "", number).rstrip(".,") for number in _NUMBER.findall(text)}
    return found | {_AS_DIGITS[word] for word in words(text) if word in _AS_DIGITS and word != "one"}
