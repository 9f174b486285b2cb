"""Personal data in texts: found by patterns and check digits, then reported, redacted or dropped.

Eight kinds: e-mail addresses, telephone numbers, US social security numbers, NHS numbers (check digit), medical record
numbers (by their label), card numbers (issuer and check digit), dates of birth (by their label), and web addresses that
carry a key or a password. What has no form is not found: names, postal addresses, employers, rare diagnoses. So a text
that was cleared here may still say who it is about; nothing here makes data anonymous in the sense of any law. How much
is found, and how much of it rightly, is measured on synthetic records by `python -m benchmarks.data privacy`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from metier.core.stage import Config

Kind = Literal["email", "phone", "ssn", "nhs", "mrn", "card", "birth_date", "secret_url"]
KINDS: tuple[Kind, ...] = ("secret_url", "email", "card", "ssn", "nhs", "mrn", "birth_date", "phone")
"""All kinds, the most certain first: where two claim the same characters, the first has them."""


_DIGIT = re.compile(r"\d")
_LEAST_DIGITS: Mapping[Kind, int] = {"card": 13, "ssn": 9, "nhs": 10, "mrn": 5, "birth_date": 3, "phone": 4}
"""Digits without which a text cannot hold one, by its pattern: most texts need not be looked through for most kinds."""


@dataclass(frozen=True)
class Found:
    """A piece of personal data: text[start:end]."""

    kind: Kind
    start: int
    end: int


class Privacy(Config):
    """What to do about personal data. It is found by its form, so names and postal addresses are not."""

    action: Literal["off", "report", "redact", "drop"] = "report"
    """off: do not look. report: count it and leave it. redact: put [EMAIL] and the like in its place. drop: leave out
    every text that holds some."""
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    """Which kinds to look for."""

    @model_validator(mode="after")
    def _kinds_have_an_effect(self) -> "Privacy":
        # compared with its default: a record holds every default, and is read again for the report
        if self.action == "off" and self.kinds != type(self).model_fields["kinds"].default:
            raise ValueError("`kinds` has no effect while action is off")
        return self

    def find(self, text: str) -> list[Found]:
        """What personal data the text holds, in order and without overlap; nothing where the action is off."""
        return [] if self.action == "off" else find(text, self.kinds)

    def apply(self, text: str) -> tuple[str, tuple[Found, ...]]:
        """The text as it may be used, and what was found in the text as it was. Dropping it is the caller's part."""
        found = self.find(text)
        return (redacted(text, found) if self.action == "redact" else text), tuple(found)

    def hidden(self, row: Any) -> Any:
        """A row (any JSON value) as it may be kept where it is left out: without what the action redacts or drops."""
        if self.action not in ("redact", "drop"):
            return row
        if isinstance(row, str):
            return redacted(row, find(row, self.kinds))
        if isinstance(row, Mapping):
            return {key: self.hidden(value) for key, value in row.items()}
        return [self.hidden(value) for value in row] if isinstance(row, list | tuple) else row


def find(text: str, kinds: Sequence[Kind] = KINDS) -> list[Found]:
    """What personal data of these kinds the text holds, in order and without overlap. 4 MB a second, and 9 where many
    texts have few digits."""
    taken: list[Found] = []
    digits = len(_DIGIT.findall(text))
    for kind in KINDS:
        if kind in kinds and digits >= _LEAST_DIGITS.get(kind, 0):
            for start, end in _FINDERS[kind](text):
                if all(end <= other.start or start >= other.end for other in taken):
                    taken.append(Found(kind, start, end))
    return sorted(taken, key=lambda found: found.start)


def redacted(text: str, found: Sequence[Found]) -> str:
    """The text with [KIND] in place of each finding. Also what a rejected text should be kept as."""
    parts, at = [], 0
    for one in found:
        parts += [text[at : one.start], f"[{one.kind.upper()}]"]
        at = one.end
    return "".join([*parts, text[at:]])


Span = tuple[int, int]

# Patterns start at a boundary and repeat a bounded number of times: a long line of nearly right signs takes no longer.
_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}(?![\w@])")
_SPELLED_EMAIL = re.compile(
    r"(?<![\w.+%'-])[\w.+%-]{1,64} ?[\[({] ?(?:at|AT|@) ?[\])}] ?"
    r"(?:[\w-]{1,63}(?:\.| ?[\[({] ?(?:dot|DOT|\.) ?[\])}] ?)){1,6}[^\W\d_]{2,24}\b"
)
_BRACKETED_AT = re.compile(r"[\[({] ?(?:at|AT|@) ?[\])}]")


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))
    if _BRACKETED_AT.search(text):
        yield from (match.span() for match in _SPELLED_EMAIL.finditer(text))


_URL = re.compile(
    r"\b(?:https?|ftp|wss?|s3|postgres(?:ql)?|mysql|mongodb(?:\+srv)?|redis|amqp)://[^\s<>\"'`]{1,2000}", re.IGNORECASE
)
_SECRET = re.compile(
    r"://[^/?#@:]{1,100}:[^/?#@]{1,200}@"
    r"|[?&#;](?:[\w.-]{0,30}[_.-])?(?:token|secret|signature|sig|passw(?:or)?d|pwd|pass|auth|jwt|session_?id|sessid|"
    r"credential|api_?key|access_?key|accesstoken|idtoken|apikey)=[^&#;]{4,}"
    r"|[?&#;]key=(?=[^&#;]*\d)[^&#;]{16,}"
    r"|/(?:reset|verify|confirm|invite|magic|activate|unsubscribe|password)[\w-]{0,20}/[\w.-]{16,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}",
    re.IGNORECASE,
)


def _secret_urls(text: str) -> Iterator[Span]:
    if "://" not in text:
        return
    for match in _URL.finditer(text):
        address = match[0].rstrip(".,;:!?)]}")
        if _SECRET.search(address):
            yield match.start(), match.start() + len(address)


_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)"
)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12,15}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|(?:2131|1800)\d{11}"
    r"|(?:5[06-8]|6\d)\d{14,17}"
)

_CARD_LABEL = re.compile(
    r"\b(?:card|visa|master ?card|maestro|amex|american express|debit|credit)\b[^\n\d]{0,20}$", re.IGNORECASE
)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if not passes_luhn(number):
            continue
        if _ISSUERS.fullmatch(number) or _CARD_LABEL.search(text[max(0, match.start() - 45) : match.start()]):
            yield match.span()


def passes_luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in number[-2::-2])
    return (sum(doubled) + sum(map(int, number[-1::-2]))) % 10 == 0


_SSN = re.compile(r"(?<![\w.-])(?P<value>\d{3}-\d{2}-\d{4})(?![\w-]|\.\d)")
_LABELLED_SSN = re.compile(
    r"\b(?:SSN|SS#|social[ -]security|soc\.? sec\.?)(?:[ -]?(?:number|num|no|nr)\b\.?|#)?[\s:#]{0,4}"
    r"(?:(?:is|was)\b\s?)?(?P<value>\d{3}([-. ]?)\d{2}\2\d{4})(?![\w-]|\.\d)",
    re.IGNORECASE,
)


def _ssns(text: str) -> Iterator[Span]:
    for pattern in (_SSN, _LABELLED_SSN):
        for match in pattern.finditer(text):
            if is_ssn(re.sub(r"\D", "", match["value"])):
                yield match.span("value")


def is_ssn(number: str) -> bool:
    """Whether nine digits can be a social security number: it has no check digit, but parts that are never issued."""
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


_NHS = re.compile(r"(?<![\w.+()-])(?<!\+\d )(?<!\+\d\d )\d{3}([ -]?)\d{3}\1\d{4}(?![\w-]|\.\d)")
_NHS_LABEL = re.compile(r"\bNHS\b[^\n\d]{0,25}$", re.I)
_PHONE_LABEL = re.compile(
    r"\b(?:tel|telephone|phone|ph|mobile|cell|fax|call|ring|text|dial|contact|number)\b[^\n\d]{0,15}$", re.IGNORECASE
)


def _nhs_numbers(text: str) -> Iterator[Span]:
    """Ten digits with a right check digit, labelled, or in the usual 3 3 4 form where no telephone is spoken of."""
    for match in _NHS.finditer(text):
        if is_nhs_number(re.sub(r"\D", "", match[0])):
            before = text[max(0, match.start() - 45) : match.start()]
            if _NHS_LABEL.search(before) or (match[1] == " " and not _PHONE_LABEL.search(before)):
                yield match.span()


def is_nhs_number(number: str) -> bool:
    """Whether the last of ten digits is the check digit of the others (modulus 11, NHS data dictionary)."""
    check = 11 - sum(int(d) * (10 - i) for i, d in enumerate(number[:9])) % 11
    return check != 10 and check % 11 == int(number[9])


_MRN = re.compile(
    r"\b(?:MRN|MRNO|M\.R\.N\.|chart"
    r"|(?:medical|hospital|health|patient)[ -](?:record|chart|file|id|identifier|number|no|nr)\b)"
    r"(?:[ -]?(?:number|num|no|nr|id)\b)?[.:# ]{0,4}(?:\([\w .-]{1,20}\)[.:# ]{0,3})?(?:(?:is|was)\b\s?)?[:# ]{0,2}"
    r"(?P<value>[A-Z]{0,3}-?\d(?:-?\d){4,11})(?![\w-]|[./]\d)",
    re.IGNORECASE,
)


def _record_numbers(text: str) -> Iterator[Span]:
    for match in _MRN.finditer(text):
        yield match.span("value")


_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DATE = (
    rf"(?:\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{1,2}}(?:st|nd|rd|th|\.)?[ -](?:of )?{_MONTH}[ ,-]{{1,2}}\d{{2,4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})"
)
_BIRTH = re.compile(
    r"\b(?:DOB|D\.O\.B\.?|date of birth|birth[ -]?date|birth[ -]?day|born|Geburtsdatum|geb(?:oren)?\.?(?: am)?"
    r"|née? le|date de naissance|fecha de nacimiento)[\s:()-]{0,4}(?:(?:is|was|on)\b\s?)?"
    rf"(?P<date>(?:[A-Z][a-z]{{2,6}}day,? )?(?:{_DATE}|(?:19|20)\d{{6}}))(?!\d)",
    re.IGNORECASE,
)


def _birth_dates(text: str) -> Iterator[Span]:
    for match in _BIRTH.finditer(text):
        yield match.span("date")


_EXTENSION = r"(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})?"
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,5}(?:[ ./-]?\d{2,7}){1,4}"  # international
    r"|(?:(?:00)?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ ./-])[2-9]\d\d[ .-]\d{4}"  # North America
    r"|1-8\d\d-(?=[A-Z0-9-]{7,12}\b)[A-Z0-9]+(?:-[A-Z0-9]+){0,3}"  # 1-800 and a word
    r"|\(0[1-9]\d{0,3}\)[ -]?\d{3,8}(?: \d{3,4})?|0[1-9]\d{1,3}(?: \d{3,8}){1,2}|07\d{9}"  # national, with its 0
    r"|0\d(?:[ .]\d{2}){4}"  # France
    rf"){_EXTENSION}(?![\w-]|[./]\d)",
)
_LABELLED_PHONE = re.compile(
    r"\b(?:tel|telephone|telefon|phone|mobile|cell|fax|call|ring|dial|whatsapp)\b"
    r"(?:[ -]?(?:number|no|nr)\b)?[.:#) ]{0,4}"
    rf"(?:(?:is|was|at|on)\s)?(?P<value>\(?\d{{2,5}}\)?(?:[ ./-]{{0,2}}\d{{2,8}}){{1,5}}{_EXTENSION})(?![\w-]|[./]\d)",
    re.IGNORECASE,
)


def _phones(text: str) -> Iterator[Span]:
    spans = [match.span() for match in _PHONE.finditer(text) if _long_enough(match[0])]
    spans += [match.span("value") for match in _LABELLED_PHONE.finditer(text)]
    end = 0
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        number = re.split(r"[,\s]*(?:x|e)", text[start:stop])[0]
        if start >= end and 7 <= sum(c.isalnum() for c in number) <= 15:
            yield start, stop
            end = stop


def _long_enough(number: str) -> bool:
    """Without a label, a number that begins with 0 has ten digits: three groups of three may be anything."""
    return not number.lstrip("(").startswith("0") or sum(map(str.isdigit, number)) >= 10


_FINDERS: dict[Kind, Callable[[str], Iterator[Span]]] = {
    "secret_url": _secret_urls,
    "email": _emails,
    "card": _cards,
    "ssn": _ssns,
    "nhs": _nhs_numbers,
    "mrn": _record_numbers,
    "birth_date": _birth_dates,
    "phone": _phones,
}
