"""What counts as having been seen: the words, the two overlaps counted against a plain count, the settings."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metier.text.nouns import Conversation, Document, Message, Question
from metier.text.overlap import SHINGLE, Gate, Index, asked_texts, letters, trained_texts, words

LONG = "the whale swims north in spring because the krill is there and the ice has gone from the open bay by then"


def index(*texts: str, gate: Gate | None = None) -> Index:
    made = Index(gate or Gate())
    for number, text in enumerate(texts):
        made.add(f"t{number}", text)
    return made


def hits(made: Index, text: str) -> list[tuple[str, str]]:
    return [(hit.test_id, hit.how) for hit in made.hits(text)]


def talk(*turns: str, system: str = "") -> Conversation:
    first = [Message("system", system)] if system else []
    return Conversation("c", (*first, *(Message(("user", "assistant")[i % 2], t) for i, t in enumerate(turns))))  # type: ignore[arg-type]


def test_words_see_through_spelling():
    assert words("What IS  a ｗhale-shark?") == ["what", "is", "a", "whale", "shark"]
    assert words("鲸鱼在游") == ["鲸", "鱼", "在", "游"]
    assert words("की") == ["की"]
    assert letters("鲸鱼 在, 游") == "鲸鱼 在 游"
    assert words("?!") == []


def test_exact_is_the_same_from_beginning_to_end():
    made = index("What is a whale?", "+?")
    assert hits(made, " what is a WHALE ") == [("t0", "exact")]
    assert hits(made, "what is a whale shark") == []
    assert hits(made, "+?") == [("t1", "exact")]
    assert hits(made, "-?") == []
    assert hits(index("What is a whale?", gate=Gate(exact=False)), "what is a whale") == []


def test_a_tested_text_inside_a_longer_one_is_found():
    document = f"Before. {LONG}. " + " ".join(f"word{i}" for i in range(500))
    (hit,) = index(LONG).hits(document)
    assert (hit.how, hit.score, hit.tested, hit.trained) == ("13-gram", 1.0, LONG, document)
    assert hits(index(document), LONG) == []
    assert hits(index(LONG, gate=Gate(overlap=None)), document) == []


def test_a_share_of_13_grams_is_enough():
    half = " ".join(LONG.split()[:17])
    assert hits(index(LONG), half + " something else altogether follows here") == []
    (hit,) = index(LONG, gate=Gate(overlap=0.5)).hits(half + " something else")
    assert hit.score == pytest.approx(5 / 10)


def test_near_copies_are_found():
    changed = LONG.replace("by then", "by noon")
    assert hits(index(changed, gate=Gate(overlap=None)), LONG) == [("t0", "jaccard")]
    assert hits(index(changed, gate=Gate(overlap=None, jaccard=0.95)), LONG) == []
    assert hits(index(changed, gate=Gate(overlap=None, jaccard=None)), LONG) == []


def test_boilerplate_alone_is_not_evidence():
    open_ = (
        "This condition is inherited in an autosomal recessive pattern which means that both copies of the gene in each"
    )
    one = f"{open_} {' '.join(f'alpha{i}' for i in range(40))}"
    other = f"{open_} {' '.join(f'beta{i}' for i in range(40))}"
    assert hits(index(one), other) == []


words_of = st.lists(st.sampled_from("abcdef"), max_size=60)


def grams(text: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


@given(st.lists(words_of, max_size=6), words_of, st.sampled_from([0.1, 0.5, 0.8, 1.0]))
@settings(deadline=None)
def test_overlaps_are_counted_and_none_is_missed(tested: list[list[str]], trained: list[str], threshold: float):
    """Against counting all pairs: the prefix filter may cost nothing but time."""
    for gate, n in (
        (Gate(exact=False, jaccard=None, ngram=5, overlap=threshold), 5),
        (Gate(exact=False, overlap=None, jaccard=threshold), SHINGLE),
    ):
        theirs = grams(trained, n)
        expected = {}
        for number, text in enumerate(tested):
            mine = grams(text, n)
            whole = mine if gate.overlap else mine | theirs
            score = len(mine & theirs) / len(whole) if mine and theirs else 0.0
            if score >= threshold:
                expected[f"t{number}"] = score
        found = {hit.test_id: hit.score for hit in index(*map(" ".join, tested), gate=gate).hits(" ".join(trained))}
        assert found == pytest.approx(expected)


def test_many_words_that_no_test_has_do_not_look_alike():
    """Unknown words count as different ones, or two texts of unknown words would seem to repeat themselves."""
    generator = random.Random(0)
    known = " ".join(generator.choices("abcdefgh", k=30))
    trained = known + " " + " ".join(f"u{i}" for i in range(200))
    assert hits(index(known, gate=Gate(overlap=None)), trained) == []


def test_short_answers_are_no_evidence_and_questions_are():
    item = Question("q", (Message("system", "Be brief."), Message("user", "Is it so?")), "Yes.", "")
    made = Index(Gate())
    made.add_item(item)
    assert len(made) == 1
    assert hits(made, "yes") == []
    assert hits(made, "is it so") == [("q", "exact")]
    long = Index(Gate())
    long.add_item(talk("Where does it swim?", LONG))
    assert [hit.part for hit in long.hits(LONG)] == ["answer"]
    questions_only = Index(Gate(answers=False))
    questions_only.add_item(talk("Where does it swim?", LONG))
    assert hits(questions_only, LONG) == []


def test_what_of_an_item_is_compared():
    item = talk("One?", "Two.", "Three?", "Four.", system="S")
    assert asked_texts(item) == [("question", "One?\nTwo.\nThree?"), ("answer", "Four.")]
    assert trained_texts(item) == ["One?\nTwo.\nThree?", "One?", "Two.", "Three?", "Four."]
    assert trained_texts(Document("d", "text")) == ["text"]
    assert asked_texts(Document("d", "text")) == [("text", "text")]


def test_an_item_is_hit_once_by_its_strongest():
    made = Index(Gate())
    made.add_item(talk("Where does it swim?", LONG), "a")
    made.add_item(talk("Who?", LONG), "b")
    found = made.hits_of(["where does it swim", LONG.replace("by then", "by noon"), LONG])
    assert [(hit.test_id, hit.how) for hit in found] == [("a", "exact"), ("b", "exact")]
    row = found[0].row("x", "train")
    assert set(row) == {"id", "how", "score", "part", "trained_id", "split", "tested", "trained"}
    assert found[0].told == "exact: the question of a"


def test_texts_may_be_added_after_asking():
    made = index(LONG)
    assert hits(made, LONG + " more words to make it longer than before")
    made.add("late", "a quite different text of fourteen words that nobody has asked about until just now here")
    assert hits(made, "so: a quite different text of fourteen words that nobody has asked about until just now here")


def test_blank_and_empty():
    assert hits(index("", " "), "") == []
    assert index().hits("anything at all") == []


@pytest.mark.parametrize("wrong", [{"overlap": 0}, {"jaccard": 1.5}, {"ngram": 2}, {"action": "keep"}, {"exakt": True}])
def test_settings_are_checked(wrong: dict[str, object]):
    with pytest.raises(ValidationError):
        Gate.model_validate(wrong)
