"""What a text is rid of before it is used, and what makes it unfit for use.

Three repairs, in this order: remains of HTML, odd Unicode, white space. Then up to three filters, all off unless asked
for: length, language, repetition. A filter drops the whole text and says why; it never cuts a part out.

On 16,407 answers of 21 MB the repairs take 0.6 s on one core, the repetition filter 3 s and the language filter 6 s.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from metier.core.errors import DataError, MissingExtra, nearest
from metier.core.stage import Config

JUDGED = 5000
"""Characters that the language is judged by: more make no difference and take longer."""


@dataclass(frozen=True)
class Cleaned:
    """A text after cleaning. reason: why it is dropped, or None. changed: which repairs altered it."""

    text: str
    reason: str | None
    changed: tuple[str, ...]


class Repetition(Config):
    """Limits above which a text repeats itself too much. Table A1 of Rae et al. 2021 (Gopher), arXiv 2112.11446.

    As in the paper, no character counts twice where repeated runs overlap. A run that stands there once is not the most
    frequent one, and what is repeated is counted without its first occurrence (as in RedPajama and datatrove).
    """

    from_words: int = Field(50, ge=1)
    """Shorter texts are not judged: in ten words, any two are a fifth. The paper takes no text below 50."""
    lines: float = Field(0.30, ge=0, le=1)
    """Share of lines that stood before in the text."""
    paragraphs: float = Field(0.30, ge=0, le=1)
    """Share of paragraphs that stood before in the text."""
    line_characters: float = Field(0.20, ge=0, le=1)
    """Share of characters in lines that stood before."""
    paragraph_characters: float = Field(0.20, ge=0, le=1)
    """Share of characters in paragraphs that stood before."""
    most_frequent: dict[int, float] = Field(default={2: 0.20, 3: 0.18, 4: 0.16})
    """Words in a run: share of characters in the most frequent such run."""
    repeated: dict[int, float] = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """Words in a run: share of characters in all such runs that stood before."""

    @model_validator(mode="after")
    def _sensible_runs(self) -> "Repetition":
        for name, limits in (("most_frequent", self.most_frequent), ("repeated", self.repeated)):
            for words, share in limits.items():
                if words < 1 or not 0 <= share <= 1:
                    raise ValueError(f"{name}: {words}: {share} is not a number of words and a share from 0 to 1")
        return self


class Cleaning(Config):
    """How texts are repaired, and which are dropped."""

    html: bool = True
    """Remove tags, comments, scripts and styles, and turn entities into their characters. A comparison such as p < 0.05
    stays. Turn it off for texts about HTML."""
    unicode: bool = True
    """Compose letters and accents (NFC), spell out ligatures, and remove control, zero-width and direction marks. The
    joiners of Persian, Indic scripts and emoji stay; so do superscripts (10⁶), which NFKC would level."""
    whitespace: Literal["flat", "indented", "off"] = "flat"
    """flat: one space between words, none around lines, one blank line at most. indented: the same, but lines keep
    their indentation (source code, nested lists). Between ``` fences they keep it in any case."""
    min_words: int | None = Field(None, ge=1)
    """Texts with fewer words are dropped."""
    max_words: int | None = Field(None, ge=1)
    """Texts with more words are dropped."""
    languages: tuple[str, ...] | None = Field(None, min_length=1)
    """Keep only texts in these languages, as two-letter codes: [en]. Needs the extra `clean`."""
    language_sure: float = Field(0.7, ge=0, le=1)
    """How sure of another language to be before a text is dropped: Latin names make English sentences look like it."""
    repetition: Repetition | None = None
    """Drop texts that repeat themselves: `{}` takes the limits of the Gopher paper."""

    @model_validator(mode="after")
    def _consistent(self) -> "Cleaning":
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}: no text would be left")
        # compared with its default: a record holds every default, and is read again for the report
        if self.language_sure != type(self).model_fields["language_sure"].default and self.languages is None:
            raise ValueError("language_sure has no effect without `languages`")
        return self

    def cleaner(self) -> Callable[[str], Cleaned]:
        """A function that cleans one text. Loads the language model, if any (0.6 s, 40 MB).

        Raises MissingExtra without py3langid, and DataError for a language that it does not know.
        """
        repairs = [(name, repair) for name, repair in self._repairs() if repair]
        filters = list(self._filters())

        def clean(text: str) -> Cleaned:
            changed = []
            for name, repair in repairs:
                before, text = text, repair(text)
                if text != before:
                    changed.append(name)
            if not text.strip():
                return Cleaned(text, "blank after cleaning", tuple(changed))
            reason = next((reason for judge in filters if (reason := judge(text))), None)
            return Cleaned(text, reason, tuple(changed))

        return clean

    def _repairs(self) -> Iterator[tuple[str, Callable[[str], str] | None]]:
        yield "html", without_html if self.html else None
        yield "unicode", plain_unicode if self.unicode else None
        if self.whitespace != "off":
            keep = self.whitespace == "indented"
            yield "whitespace", lambda text: even_spaces(text, keep_indentation=keep)

    def _filters(self) -> Iterator[Callable[[str], str | None]]:
        if self.min_words is not None or self.max_words is not None:
            low, high = self.min_words or 0, self.max_words
            yield lambda text: wrong_length(text, low, high)
        if self.languages is not None:
            yield _language_judge(self.languages, self.language_sure)
        if self.repetition is not None:
            limits = self.repetition
            yield lambda text: repeats_itself(text, limits)


_BREAKING = """
    address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form h1 h2
    h3 h4 h5 h6 head header hr html li main nav ol option p pre section select summary table tbody tfoot thead title tr
    ul
"""
_INLINE = """
    a abbr acronym b base basefont bdi bdo big button center cite code col colgroup del dfn em embed font i iframe img
    input ins kbd label legend link mark meta noscript object param picture q s samp small source span strike strong sub
    sup svg td textarea th time tt u var video wbr
"""
_BREAKS = frozenset(_BREAKING.split())
_NAMES = "|".join(sorted({*_BREAKING.split(), *_INLINE.split()}, key=len, reverse=True))
# What follows a tag's name has to hold a `=`: `a<b and c>d` is no tag.
_TAG = re.compile(rf"</?({_NAMES})(?:\s[^<>=]*=[^<>]*)?\s*/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_OUTSIDE = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"), ("<![cdata[", "]]>"), ("<!doctype", ">"))


def without_html(text: str) -> str:
    """The text without tags, comments, scripts and styles, its entities as characters.

    Only the names of HTML's own elements make a tag. Twice and three times escaped text is unescaped as well.
    """
    for _ in range(3):
        before = text
        if "<" in text:
            text = _TAG.sub(_instead, _without_hidden(text))
        if "&" in text:
            text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
        if text == before:
            break
    return text


def _instead(tag: re.Match[str]) -> str:
    name = tag[1].lower()
    return "\n" if name in _BREAKS else " " if name in ("td", "th") else ""


def _without_hidden(text: str) -> str:
    """Cut out what a browser does not show. One pass for each kind, so a file of opening tags alone takes no longer."""
    for opening, closing in _OUTSIDE:
        lower = text.lower() if text.isascii() else _ascii_lower(text)
        parts, at = [], 0
        while (start := lower.find(opening, at)) >= 0 and (end := lower.find(closing, start)) >= 0:
            parts.append(text[at:start])
            at = end + len(closing)
            if opening == "<![cdata[":
                parts.append(text[start + len(opening) : end])
        text = "".join(parts) + text[at:]
    return text


def _ascii_lower(text: str) -> str:
    """Lower case that moves no character: `str.lower` makes two of some, such as İ."""
    return text.translate(_LOWER)


_LOWER = {ord(c): ord(c.lower()) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
_NEW_LINES = "\r\x0b\x0c\x85\u2028\u2029"
_SPACES = "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_GONE = (
    "".join(chr(c) for c in (*range(9), *range(0x0E, 0x20), *range(0x7F, 0xA0)) if c != 0x85)
    + "\xad\u200b\u200e\u200f\u2060\ufeff\ufffe\uffff"
    + "".join(chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
_PLAIN = str.maketrans(
    {**_LIGATURES, **dict.fromkeys(_NEW_LINES, "\n"), **dict.fromkeys(_SPACES, " "), **dict.fromkeys(_GONE, "")}
)
_ODD = re.compile(f"[{re.escape(''.join(_LIGATURES) + _NEW_LINES + _SPACES + _GONE)}]")


def plain_unicode(text: str) -> str:
    """Letters composed (NFC), line ends as `\\n`, spaces as spaces, and nothing in it that cannot be seen.

    Zero-width joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are spelled with them.
    """
    if _ODD.search(text):
        text = text.replace("\r\n", "\n").translate(_PLAIN)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


_RUN = re.compile(r"[ \t]{2,}|\t")
_BLANK_LINES = re.compile(r"\n{3,}")


def even_spaces(text: str, *, keep_indentation: bool = False) -> str:
    """One space between words, no space at the ends of lines, one blank line at most. Lines in ``` fences stay."""
    lines, fenced = [], False
    for line in text.split("\n"):
        content = line.strip()
        fence = content.startswith("```")
        if fenced or fence:
            lines.append(line.rstrip())
            fenced = fenced != fence
            continue
        content = _RUN.sub(" ", content)
        indentation = line[: len(line) - len(line.lstrip())] if keep_indentation and content else ""
        lines.append(indentation + content)
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def wrong_length(text: str, low: int, high: int | None) -> str | None:
    """Why the text has the wrong number of words, counted between white space; None where it has not."""
    count = len(text.split())
    if count < low:
        return f"length: {count} words, fewer than {low}"
    if high is not None and count > high:
        return f"length: {count} words, more than {high}"
    return None


def _language_judge(wanted: Sequence[str], sure: float) -> Callable[[str], str | None]:
    identifier = _identifier()
    for code in wanted:
        if code not in identifier.labels:
            raise DataError("no known language", where="languages", value=code, cure=nearest(code, identifier.labels))

    def judge(text: str) -> str | None:
        language, confidence = identifier.classify(text[:JUDGED])
        if language in wanted or confidence < sure:
            return None
        return f"language: {language}, not {' or '.join(wanted)}"

    return judge


def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingExtra("py3langid", "clean", needed_by="the setting `languages`") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


_WORD = re.compile(r"\w+")
_PARAGRAPHS = re.compile(r"\n\s*\n")


def repeats_itself(text: str, limits: Repetition) -> str | None:
    """Which limit of repetition the text is above, first found; None where none."""
    words = _WORD.findall(text.lower())
    if len(words) < limits.from_words:
        return None
    pieces = (
        ("lines", text.split("\n"), limits.lines, limits.line_characters),
        ("paragraphs", _PARAGRAPHS.split(text), limits.paragraphs, limits.paragraph_characters),
    )
    for name, parts, most, most_characters in pieces:
        count, characters = _repeated_parts(parts)
        if count > most:
            return f"repetition: {count:.0%} of {name} stood before"
        if characters > most_characters:
            return f"repetition: {characters:.0%} of characters in {name} that stood before"
    return _repeated_runs(words, limits)


def _repeated_parts(parts: Sequence[str]) -> tuple[float, float]:
    """Share of parts that stood before, and of their characters; blank parts do not count."""
    filled = [stripped for part in parts if (stripped := part.strip())]
    seen = set()
    count = characters = 0
    for part in filled:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count / max(1, len(filled)), characters / max(1, sum(map(len, filled)))


def _repeated_runs(words: Sequence[str], limits: Repetition) -> str | None:
    total = sum(map(len, words))
    for n, most in sorted(limits.most_frequent.items()):
        run, count = Counter(_runs(words, n)).most_common(1)[0] if len(words) >= n else ((), 0)
        share = min(1.0, sum(map(len, run)) * count / total)
        if count > 1 and share > most:
            return f"repetition: {share:.0%} of characters in {' '.join(run)!r}, {count} times"
    for n, most in sorted(limits.repeated.items()):
        share = _repeated_characters(words, n) / total
        if share > most:
            return f"repetition: {share:.0%} of characters in runs of {n} words that stood before"
        if share == 0:
            return None  # a longer run that is repeated would repeat the shorter ones in it
    return None


def _runs(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _repeated_characters(words: Sequence[str], n: int) -> int:
    """Characters in runs of n words that stood before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    characters = covered = 0
    for start, run in enumerate(_runs(words, n)):
        if run in seen:
            characters += sum(map(len, words[max(start, covered) : start + n]))
            covered = start + n
        else:
            seen.add(run)
    return characters
