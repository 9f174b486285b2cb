"""Personal data: what is found, what looks like it and is not, and that nothing of it is left after redaction."""

import json
import string
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.data.privacy import KINDS, Found, Privacy, find, is_nhs_number, is_ssn, passes_luhn, redacted


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to jane.o'neil+x@mail.example.co.uk.", "email", "jane.o'neil+x@mail.example.co.uk"),
        ("müller@beispiel.example", "email", "müller@beispiel.example"),
        ("jane (at) example [dot] org", "email", "jane (at) example [dot] org"),
        ("(212) 555-0147 x12", "phone", "(212) 555-0147 x12"),
        ("+44 (0)20 7946 0958", "phone", "+44 (0)20 7946 0958"),
        ("1-800-4-CANCER", "phone", "1-800-4-CANCER"),
        ("Tel: 2125550147", "phone", "2125550147"),
        ("07700 900123", "phone", "07700 900123"),
        ("SSN 123456789", "ssn", "123456789"),
        ("123-45-6789", "ssn", "123-45-6789"),
        ("NHS number: 943 476 5919", "nhs", "943 476 5919"),
        ("NHS 9434765919", "nhs", "9434765919"),
        ("MRN: 00123456", "mrn", "00123456"),
        ("Medical record number is AB-1234567", "mrn", "AB-1234567"),
        ("4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
        ("378282246310005", "card", "378282246310005"),
        ("DOB: 03/14/1962", "birth_date", "03/14/1962"),
        ("born on 14 March 1962", "birth_date", "14 March 1962"),
        ("Date of birth (1962-03-14)", "birth_date", "1962-03-14"),
        ("https://a.example/f?id=1&token=abcDEF123.", "secret_url", "https://a.example/f?id=1&token=abcDEF123"),
        ("postgres://me:secret@db.example/x", "secret_url", "postgres://me:secret@db.example/x"),
    ],
)
def test_each_kind_is_found_whole(text: str, kind: str, value: str):
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "p < 0.05, n = 1234567890, 0.1234567890123456",
        "4111 1111 1111 1112",  # wrong check digit
        "943 176 5917",  # wrong check digit, and no telephone number
        "000-12-3456 and 666-12-3456 and 912-12-3456 and 123-00-4567",
        "seen on 03/14/2022",
        "born in 1962",
        "chart 3, patient number 12",
        "https://example.org/guide?page=3&lang=en",
        "https://example.org/search?key=heart",
        "meet @jane at example dot com",
        "ISBN 978-0-123-45678-9, doi:10.1038/s41586-021-0381-9",
        "192.168.10.12 version 1.22.3333",
        "1990-2025, 120/80 mmHg, 500-1000 mg",
    ],
)
def test_what_only_looks_like_it_is_left(text: str):
    assert found(text) == []


def test_check_digits():
    assert passes_luhn("4111111111111111")
    assert not passes_luhn("4111111111111121")
    assert is_nhs_number("9434765919")
    assert not is_nhs_number("9434765910")
    assert not is_nhs_number("1000000010"), "a remainder that would need the check digit 10"
    assert is_ssn("123456789")
    assert not is_ssn("900456789")


@given(st.text(string.digits, min_size=1, max_size=18), st.data())
def test_luhn_sees_every_wrong_digit(body: str, data: st.DataObject):
    number = next(body + d for d in string.digits if passes_luhn(body + d))
    at = data.draw(st.integers(0, len(number) - 1))
    wrong = data.draw(st.sampled_from([d for d in string.digits if d != number[at]]))
    assert not passes_luhn(number[:at] + wrong + number[at + 1 :])


def test_report_leaves_the_text_and_redact_does_not():
    text = "Call (212) 555-0147 or jane@example.org."
    same, seen = Privacy().apply(text)
    assert same == text
    assert [one.kind for one in seen] == ["phone", "email"]
    assert Privacy(action="redact").apply(text)[0] == "Call [PHONE] or [EMAIL]."
    assert Privacy(action="drop").apply(text) == (text, seen)
    assert Privacy(action="off").apply(text) == (text, ())


def test_only_the_kinds_asked_for():
    text = "Call (212) 555-0147 or jane@example.org."
    assert [one.kind for one in Privacy(kinds=["email"]).find(text)] == ["email"]


def test_one_place_has_one_kind():
    """A number with the check digits of two kinds, and an address inside another."""
    text = "https://jane:pw@example.org/?mail=jane@example.org&token=12345678"
    assert found(text) == [("secret_url", text)]


@given(st.text(alphabet="0123456789 -./()+@:?=&#abtdoNHSMRDOBx\n", max_size=200))
def test_findings_never_overlap_and_redaction_covers_them(text: str):
    spans = find(text)
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert all(0 <= one.start < one.end <= len(text) for one in spans)
    left = redacted(text, spans)
    assert left.count("[") >= len(spans)


def test_redaction_of_nothing():
    assert redacted("plain", []) == "plain"
    assert redacted("a1b", [Found("ssn", 1, 2)]) == "a[SSN]b"


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1-",
        "a.",
        "a@",
        "@",
        "a(at)",
        "://",
        "https://",
        "(0",
        "+1 ",
        "tel ",
        "DOB ",
        "MRN ",
        "?token=",
        "1 1",
        "0",
    ],
)
def test_a_large_file_of_nearly_right_signs_takes_no_longer(piece: str):
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    find(text)
    assert time.process_time() - started < 10


def test_settings_that_make_no_sense_are_refused():
    for wrong, message in (
        ({"action": "hide"}, "action"),
        ({"kinds": ["name"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"action": "off", "kinds": ["email"]}, "no effect"),
        ({"mode": "drop"}, "mode"),
    ):
        with pytest.raises(ValueError, match=message):
            Privacy(**wrong)


def test_every_kind_can_be_asked_for():
    assert sorted(KINDS) == sorted(Privacy().kinds)


ROOT = Path(__file__).resolve().parents[2]


def test_the_docs_print_what_was_measured():
    """Regenerate both with `python -m benchmarks.data privacy docs`."""
    rows = json.loads((ROOT / "benchmarks/results/data.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    measured = {row["case"]: row["measured"] for row in rows if row["command"] == "python -m benchmarks.data privacy"}
    for kind in KINDS:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{kind}` |")]
        for what in ("recall", "recall with the forms known to be beyond it", "precision"):
            assert f"{100 * measured[f'{kind}: {what}']:.1f} %" in line
        assert measured[f"{kind}: recall"] > 0.95
        assert measured[f"{kind}: precision"] > 0.95
