"""Every metric against an independent reference, on random cases."""

import random
import re
import string

import pytest

from metier.core.errors import InputError
from metier.evaluate.metrics import (
    METRICS,
    Answered,
    common_subsequence,
    exact_match,
    length_ratio,
    metric,
    normalize,
    rouge_l,
    token_f1,
)
from metier.text.nouns import Answer, Message, Question

WORDS = [
    "the",
    "a",
    "An",
    "sea",
    "Sea",
    "otter's",
    "eats",
    "crabs,",
    "urchins",
    "42",
    "kelp-forest",
    "(deep)",
    "is",
    ".",
]


def cases(count: int = 200) -> list[tuple[str, str]]:
    rng = random.Random(7)
    text = lambda: " ".join(rng.choices(WORDS, k=rng.randrange(0, 25)))  # noqa: E731
    return [(said, said if rng.random() < 0.1 else text()) for said in (text() for _ in range(count))]


def squad_answer(text: str) -> list[str]:
    """SQuAD's normalisation, step by step on characters and words."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [w for w in re.sub(r"\b(a|an|the)\b", " ", kept).split(" ") if w.strip()]


def squad_f1(said: list[str], wanted: list[str]) -> float:
    left, shared = list(wanted), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if not said or not wanted:
        return float(said == wanted)
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_squad_metrics_equal_their_reference():
    for said, wanted in cases():
        assert token_f1(said, wanted) == pytest.approx(squad_f1(squad_answer(said), squad_answer(wanted)), abs=1e-6)
        assert exact_match(said, wanted) == float(squad_answer(said) == squad_answer(wanted))


def test_rouge_l_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    for said, wanted in cases():
        assert rouge_l(said, wanted) == pytest.approx(scorer.score(wanted, said)["rougeL"].fmeasure, abs=1e-6)


def test_rouge_l_reads_other_scripts():
    class Tokenizer:
        def tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+", text.lower())

    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge.RougeScorer(["rougeL"], tokenizer=Tokenizer())
    for said, wanted in [("Ёжик видит море", "ёжик, море"), ("海 獺 食 蟹", "海 獺 食 魚"), ("Bär Öl", "bär")]:
        assert rouge_l(said, wanted) > 0
        assert rouge_l(said, wanted) == pytest.approx(scorer.score(wanted, said)["rougeL"].fmeasure, abs=1e-6)


def test_the_common_subsequence_equals_dynamic_programming():
    rng = random.Random(3)
    for _ in range(200):
        left, right = ([str(rng.randrange(4)) for _ in range(rng.randrange(0, 90))] for _ in range(2))
        row = [0] * (len(right) + 1)
        for a in left:
            above, row = row, [0]
            for j, b in enumerate(right):
                row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
        assert common_subsequence(left, right) == row[-1]


def test_known_values():
    assert normalize("The  Sea, an Otter's!") == "sea otters"
    assert token_f1("the otter eats crabs", "otters eat crabs") == pytest.approx(1 / 3)
    assert token_f1("", "") == token_f1("the", "a") == 1.0
    assert token_f1("", "otter") == 0.0
    assert rouge_l("", "") == 0.0
    assert length_ratio("one two three", "one two") == 1.5
    assert length_ratio("one", "") == 1.0


def test_the_registry_measures_an_answer():
    question = Question("q1", (Message("user", "What does it eat?"),), "Crabs and urchins.", "diet")
    item = Answered(question, Answer("q1", "crabs", 3, True))
    got = {name: m.measure(item) for name, m in METRICS.items()}
    expected = {"token_f1": 0.5, "exact_match": 0.0, "rouge_l": 0.5, "stopped": 1.0, "output_tokens": 3.0}
    assert got == pytest.approx({**expected, "length_ratio": 1 / 3})
    assert all(0 <= got[name] <= 1 for name, m in METRICS.items() if m.bounded)
    assert all(got[name] in (0, 1) for name, m in METRICS.items() if m.binary)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'rouge_l'"):
        metric("rougel")
