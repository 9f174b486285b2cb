"""A judge without a model: what an answer shares with its evidence, and what it says that the evidence does not.

Four kinds of evidence, all told with the verdict, so that anybody can see why:

    numbers    figures of the answer that stand neither in the evidence nor in the question
    names      capitalised words, and words that look like terms, likewise
    negation   a sentence that says not what its nearest sentence of the evidence says, or the other way round
    coverage   the share of the evidence's content words that the answer has; support: the share of the answer's content
               words that the evidence or the question has

With a sentence encoder, `similarity` is the cosine of answer and evidence, and stands in for support where wording
differs. No entailment model: it sees words, so a true paraphrase may look unsupported and a false one supported. It is
a baseline whose agreement with people is to be looked at like any other judge's. English stop words and negations.

Costs tens of microseconds a word; imports nothing heavy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metier.text.refusals import is_refusal

_STOP_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each else ever every few for from further get gets had has have having he her here
hers him his how i if in into is it its itself just let like make makes many may me might more most much must my of off
often on once one only or other others our out over own per please rather same shall she should so some such than that
the their theirs them then there these they this those through thus to too under until up upon us usually very was we
well were what when where whether which while who whom whose why will with would yes you your yours
"""
_NEGATIVE_WORDS = """
no not never none nobody nothing neither nor cannot without avoid avoids stop stops unless hardly don't doesn't didn't
isn't aren't wasn't weren't won't can't couldn't shouldn't wouldn't mustn't
"""
_SMALL_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
"""
STOP = frozenset(_STOP_WORDS.split())
NEGATIONS = frozenset(_NEGATIVE_WORDS.split())
_TENS = {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "hundred": "100"}
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_SMALL_NUMBERS.split())} | _TENS
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:/\d+)?")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?=\d)[^.!?\n]*)*")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ies", "ied", "edly", "ed", "es", "ly", "s")
_SHORTEST_STEM = 4


@dataclass(frozen=True)
class Thresholds:
    """Where the lines are drawn. support, coverage: at least so much to be consistent; unsupported: below so much
    support an answer claims what the evidence does not hold. alike: content words that two sentences share to be held
    against each other for negation. similar: cosine that counts as support.
    """

    support: float = 0.6
    coverage: float = 0.35
    unsupported: float = 0.35
    alike: float = 0.5
    similar: float = 0.75


@dataclass(frozen=True)
class Findings:
    """What was found. numbers, names: those of the answer that stand nowhere else. negated: the pair of sentences."""

    numbers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    negated: tuple[str, str] | None = None
    coverage: float = 0.0
    support: float = 0.0
    similarity: float | None = None
    declined: bool = False

    def row(self) -> dict[str, Any]:
        """As files hold it, without what is empty."""
        found: dict[str, Any] = {"support": round(self.support, 4), "coverage": round(self.coverage, 4)}
        if self.similarity is not None:
            found["similarity"] = round(self.similarity, 4)
        if self.numbers:
            found["numbers"] = list(self.numbers)
        if self.names:
            found["names"] = list(self.names)
        if self.negated:
            found["negated"] = list(self.negated)
        if self.declined:
            found["declined"] = True
        return found


def look(answer: str, evidence: Sequence[str], question: str = "", similarity: float | None = None) -> Findings:
    """Hold an answer against its evidence. similarity: of their embeddings, where a model gave one."""
    if not answer.strip() or is_refusal(answer):
        return Findings(similarity=similarity, declined=True)
    known = "\n".join((*evidence, question))
    said, wanted, asked = stems(answer), set(stems("\n".join(evidence))), set(stems(question))
    figures = numbers(known)
    odd = [one for one in numbers(answer) if one not in figures]
    there = set(stems(known))
    strange = [word for word in names(answer) if stem(word.lower()) not in there]
    claims = [word for word in said if word not in asked] or said
    return Findings(
        tuple(dict.fromkeys(odd)),
        tuple(dict.fromkeys(strange)),
        negated(answer, "\n".join(evidence)),
        len(wanted & set(said)) / len(wanted) if wanted else 0.0,
        sum(word in wanted for word in claims) / len(claims) if claims else 0.0,
        similarity,
    )


def decide(found: Findings, lines: Thresholds) -> int:
    """0 consistent, 1 hallucinated, 2 unknown: the first rule that fits.

    A contradiction is one; an odd figure is one; few of the answer's words in the evidence is one, with a strange name
    fewer suffice. Enough support and coverage is consistent. What is left cannot be told.
    """
    if found.declined:
        return 2
    near = found.similarity is not None and found.similarity >= lines.similar
    support = max(found.support, lines.support if near else 0.0)
    if found.negated or found.numbers or support < lines.unsupported:
        return 1
    if found.names and support < lines.support:
        return 1
    return 0 if support >= lines.support and (near or found.coverage >= lines.coverage) else 2


def merit(found: Findings) -> float:
    """How good an answer is beside another: the mean of support and coverage, less a half for each contradiction."""
    return (found.support + found.coverage) / 2 - 0.5 * (len(found.numbers) + (found.negated is not None))


def numbers(text: str) -> list[str]:
    """The figures of a text, written in one way: `1,000` and `1000`, `5.0` and `5`, `five` and `5` are the same."""
    found = [_plain(match[0]) for match in _NUMBER.finditer(text)]
    words = [NUMBER_WORDS[w] for w in (m[0].lower() for m in _WORD.finditer(text)) if w in NUMBER_WORDS and w != "one"]
    return found + words


def _plain(figure: str) -> str:
    bare = figure.lstrip("+")
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", bare):
        bare = bare.replace(",", "")
    bare = bare.replace(",", ".")
    return bare.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", bare) else bare


def names(text: str) -> list[str]:
    """Words that name something: capitalised within a sentence, or in capitals."""
    found = []
    for sentence in _SENTENCE.findall(text):
        for place, match in enumerate(_WORD.finditer(sentence)):
            word = match[0]
            if word.lower() in STOP or word in ("I", "I'm") or len(word) < 2:
                continue
            if (place and word[0].isupper()) or (word.isupper() and len(word) > 2):
                found.append(word)
    return found


def stems(text: str) -> list[str]:
    """The content words of a text, lower case, without common endings; stop words and negations left out."""
    words = (match[0].lower().replace("’", "'") for match in _WORD.finditer(text))
    return [stem(word) for word in words if word not in STOP and word not in NEGATIONS and len(word) > 1]


def stem(word: str) -> str:
    """A word without its ending, never shorter than four letters."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
            return word[: -len(suffix)]
    return word


def negated(answer: str, evidence: str, alike: float = Thresholds.alike) -> tuple[str, str] | None:
    """A sentence of the answer and the one of the evidence that it contradicts: much the same words, one negated."""
    theirs = [(one.strip(), set(stems(one)), _is_negative(one)) for one in _SENTENCE.findall(evidence)]
    theirs = [one for one in theirs if one[1]]
    for sentence in _SENTENCE.findall(answer):
        mine = set(stems(sentence))
        if not mine or not theirs:
            continue
        text, words, negative = max(theirs, key=lambda one: len(one[1] & mine) / len(one[1] | mine))
        if len(words & mine) / len(words | mine) >= alike and negative != _is_negative(sentence):
            return sentence.strip(), text
    return None


def _is_negative(sentence: str) -> bool:
    words = [match[0].lower().replace("’", "'") for match in _WORD.finditer(sentence)]
    return sum(word in NEGATIONS for word in words) % 2 == 1
