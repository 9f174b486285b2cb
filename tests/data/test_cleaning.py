"""Cleaning: what each repair takes away and, as important, what it leaves alone; the filters and their reasons."""

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.core.errors import DataError, MissingExtra
from metier.data.cleaning import Cleaning, even_spaces, plain_unicode, repeats_itself, without_html

GERMAN = "Der Patient klagt über starke Schmerzen in der Brust und Atemnot seit drei Tagen."
ENGLISH = "The patient complains of severe pain in the chest and of short breath for three days."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("p < 0.05 and x > 3", "p < 0.05 and x > 3"),
        ("if a<b and c>d", "if a<b and c>d"),
        ("write to <jane@example.org>", "write to <jane@example.org>"),
        ("<p>One</p><p>Two</p>", "\nOne\n\nTwo\n"),
        ("take <b>two</b> a day", "take two a day"),
        ("<TD>1</TD><td>2</td>", " 1  2 "),
        ('<a href="x">link</a><br/>end', "link\nend"),
        ("a<!-- hidden <b> -->b", "ab"),
        ("a<script>if (x<y) {}</script>b<STYLE>p{}</style>c", "abc"),
        ("<![CDATA[kept]]>", "kept"),
        ("<!DOCTYPE html>x", "x"),
        ("fish &amp; chips &lt; 5 &euro; &#8212; &#x41;", "fish & chips < 5 € — A"),
        ("&amp;nbsp;", "\xa0"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "\nescaped\n"),
        ("?a=1&copy=2&reg=3", "?a=1&copy=2&reg=3"),
        ("AT&T; R&D; Q&A", "AT&T; R&D; Q&A"),
        ("<script>never closed", "<script>never closed"),
        ("İ<!-- x -->İ", "İİ"),
    ],
)
def test_html_goes_and_comparisons_stay(text: str, left: str):
    assert without_html(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("cafe\u0301", "café"),
        ("10⁶ m² ½ µg", "10⁶ m² ½ µg"),
        ("eﬃcient ﬂow", "efficient flow"),
        ("co\xadop\u200bera\ufefftion\u202e", "cooperation"),
        ("a\xa0b\u3000c", "a b c"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("می\u200cخواهم 👩\u200d⚕️", "می\u200cخواهم 👩\u200d⚕️"),
        ("bell\x07 null\x00 tab\tstays", "bell null tab\tstays"),
    ],
)
def test_unicode_is_composed_and_nothing_invisible_is_left(text: str, left: str):
    assert plain_unicode(text) == left


def test_white_space():
    assert even_spaces("  a \t b  \n\n\n\n   c\t\n") == "a b\n\nc"
    assert even_spaces("def f():\n    return  1\n", keep_indentation=True) == "def f():\n    return 1"
    fenced = "x  y\n```\ndef f():\n    return  1\n```\nz  z"
    assert even_spaces(fenced) == "x y\n```\ndef f():\n    return  1\n```\nz z"


@given(st.text(alphabet="ab <>&;/!-'\"`p\n\t\x00\xa0\u200bé́ﬁ"))
def test_cleaning_never_fails_and_settles(text: str):
    clean = Cleaning().cleaner()
    once = clean(text)
    assert clean(once.text).text in (once.text, clean(clean(once.text).text).text)
    assert once.reason in (None, "blank after cleaning")


def test_what_changed_is_named():
    clean = Cleaning().cleaner()
    assert clean("plain").changed == ()
    assert clean("<b>a</b>\u200b  b").changed == ("html", "unicode", "whitespace")
    assert clean("<p> </p>").reason == "blank after cleaning"


def test_each_repair_can_be_turned_off():
    text = "<b>a</b>\u200b  b"
    assert Cleaning(html=False, unicode=False, whitespace="off").cleaner()(text).text == text
    assert Cleaning(html=False).cleaner()(text).text == "<b>a</b> b"


@pytest.mark.parametrize("piece", ["<script>", "<!--", "<a ", "&", "<", "&#", "\n", "```\n", "<p", " \t"])
def test_a_large_file_of_one_thing_takes_no_longer(piece: str):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    Cleaning(repetition={}).cleaner()(text)
    assert time.process_time() - started < 10


def test_length():
    clean = Cleaning(min_words=2, max_words=3).cleaner()
    assert clean("one").reason == "length: 1 words, fewer than 2"
    assert clean("one two three").reason is None
    assert clean("one two three four").reason == "length: 4 words, more than 3"


def test_language():
    pytest.importorskip("py3langid")
    clean = Cleaning(languages=["en"]).cleaner()
    assert clean(GERMAN).reason == "language: de, not en"
    assert clean(ENGLISH).reason is None
    assert clean("12.5 mg/dL").reason is None
    assert clean("Is systemic lupus erythematosus inherited ?").reason is None
    assert Cleaning(languages=["en", "de"]).cleaner()(GERMAN).reason is None


def test_a_language_that_is_none_is_refused():
    pytest.importorskip("py3langid")
    with pytest.raises(DataError, match="no known language") as caught:
        Cleaning(languages=["english"]).cleaner()
    assert "english" in str(caught.value)


def test_the_language_filter_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(MissingExtra, match="py3langid") as caught:
        Cleaning(languages=["en"]).cleaner()
    assert "metier[clean]" in str(caught.value)


PROSE = " ".join(f"word{i} tells{i * 7} another{i * 13} story{i * 3}" for i in range(40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("spam " * 60, "characters in 'spam spam'"),
        ("\n".join(["the same line"] * 20 + [PROSE]), "of lines stood before"),
        ("\n\n".join(["the same paragraph"] * 20 + [PROSE]), "of lines stood before"),
        ("\n".join([*PROSE.split(), PROSE, PROSE]), "characters in lines that stood before"),
        (PROSE + " and " + " ".join(PROSE.split()[20:90]), "runs of 5 words"),
        ("yes it is " * 10, None),
    ],
)
def test_repetition(text: str, reason: str | None):
    found = repeats_itself(text, Cleaning(repetition={}).repetition)
    assert (found is None) if reason is None else (reason in found)


def test_repeated_runs_count_each_character_once():
    """60 words, then the first 30 again: of 90 words of one length, 30 stood before, whatever the run."""
    words = [f"w{i:03}" for i in range(60)]
    text = " ".join(words + words[:30])
    just = {"most_frequent": {}, "repeated": {5: 0.333}}
    assert "33%" in repeats_itself(text, Cleaning(repetition=just).repetition)
    assert repeats_itself(text, Cleaning(repetition=just | {"repeated": {5: 0.334}}).repetition) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_words": 5, "max_words": 3}, "no text would be left"),
        ({"language_sure": 0.5}, "no effect"),
        ({"languages": []}, "languages"),
        ({"repetition": {"repeated": {5: 2.0}}}, "share from 0 to 1"),
        ({"language": "en"}, "language"),
        ({"whitespace": True}, "whitespace"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Cleaning(**wrong)
