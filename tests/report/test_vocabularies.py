"""The report's section on vocabularies: fertility, words, and models with and without new tokens, on page and twin."""

from pathlib import Path
from typing import Any

from fake_run import NASTY, TRAINED, FakeRun, full_run, model_files, score_row

from metier.report.collect import Run, collect
from metier.report.leaderboard import rank
from metier.report.markdown import as_markdown
from metier.report.page import render
from metier.report.vocabularies import ablation, vocabularies

FERTILITY = {
    "texts": 821,
    "words": 186_819,
    "bytes": 1_199_125,
    "tokens": {"before": 301_783, "after": 257_122},
    "tokens_per_word": {"before": 1.615376, "after": 1.376316},
    "tokens_per_byte": {"before": 0.251669, "after": 0.214425},
    "saving": 0.14799,
    "untouched": 2,
}
ABOUT: dict[str, Any] = {
    "method": "extend_tokenizer",
    "extended": True,
    "reason": "",
    "new_tokens": 2000,
    "initialise": "mean",
    "fertility": {"domain": {**FERTILITY}, "general": {**FERTILITY, "saving": 0.002755}},
}
TOKENS = [
    {"token": " symptoms", "pieces": [" sympt", "oms"], "count": 821},
    {"token": NASTY, "pieces": ["<b>", "|"], "count": 3},
]


def add_extension(run: FakeRun, name: str = "words", **about: Any) -> None:
    stage = {"kind": "extend_tokenizer", "model": "seedling", "documents": "articles"}
    files = model_files("x", trained=False) | {"about.json": {**ABOUT, **about}, "tokens.jsonl": TOKENS}
    run.add(name, stage, "model", files=files, inputs={"seedling": "model", "articles": "documents"})


def extended_run(root: Path) -> Run:
    """An extension, a model trained from it, and a twin without it, scored on two texts and asked nothing."""
    run = FakeRun(root)
    documents = {"about.json": {"counts": {"train": 9}, "replay_ratio": 0.0}}
    run.add("articles", {"kind": "documents", "sources": []}, "documents", files=documents)
    add_extension(run)
    for name, base in (("reader", "words"), ("twin", "seedling")):
        stage = {"kind": "pretrain", "model": base, "documents": "articles", "method": "full"}
        measured = {"about.json": {**TRAINED["about.json"], "training_seconds": 60.0 if base == "words" else 75.0}}
        inputs = {base: "model", "articles": "documents"}
        run.add(name, stage, "model", files=model_files("full", steps=20), measured=measured, inputs=inputs)
    rows = [
        score_row(name, "bits_per_byte", "articles", 100, mean, (2.0, 0.9, 1.0, 1.0), higher=False)
        for name, mean in (("seedling", 2.0), ("reader", 0.9), ("twin", 1.0))
    ]
    run.add(
        "likelihood",
        {"kind": "perplexity", "models": ["seedling", "reader", "twin"], "documents": ["articles"]},
        "scores",
        files={"items.jsonl": [], "scores.json": {"baseline": "seedling", "confidence": 0.95, "rows": rows}},
        inputs={**dict.fromkeys(("seedling", "reader", "twin"), "models"), "articles": "documents"},
    )
    return collect(run.result, "words")


def both(run: Run) -> tuple[str, str]:
    board = rank(run)
    return render(run, board), as_markdown(run, board)


def test_fertility_words_and_ablation_stand_on_the_page_and_in_its_twin(tmp_path: Path):
    page, twin = both(extended_run(tmp_path))
    for text in (page, twin):
        for said in (
            "Vocabulary",
            "1.615",
            "1.376",
            "14.80 %",
            "0.28 %",
            "symptoms",
            "␣sympt",
            "2,000 new tokens save 14.8 %",
        ):
            assert said in text, said
        assert "mean, 2,000 (words)" in text
        assert "better (seedling)" in text
        assert "With and without the new tokens" in text
        assert "1 min 15 s" in text
    assert '<a href="#vocabulary">' in page
    assert "<script>alert(1)" not in page
    assert "\u202e" not in page + twin


def test_the_ablation_tells_who_has_new_tokens(tmp_path: Path):
    found = ablation(extended_run(tmp_path), {"twin": "comparison"})
    assert found is not None
    assert found.texts == ("articles",)
    assert {twin.name: twin.rows for twin in found.twins} == {
        "seedling": "none",
        "reader": "mean, 2,000 (words)",
        "twin": "none",
    }
    assert [twin.seconds for twin in found.twins] == ["", "1 min 00 s", "1 min 15 s"]
    assert "same bytes" in found.note


def test_a_model_that_was_passed_through_says_why(tmp_path: Path):
    run = FakeRun(tmp_path)
    add_extension(run, extended=False, reason="9 new tokens would save 1.0%", new_tokens=0)
    (one,) = vocabularies(collect(run.result, "r"))
    assert one.sentence == "Not extended: 9 new tokens would save 1.0%. The model was passed through."
    assert ablation(collect(run.result, "r"), {}) is None


def test_a_tokenizer_made_from_nothing_has_no_before(tmp_path: Path):
    run = FakeRun(tmp_path)
    domain = {"texts": 9, "words": 100, "bytes": 600, "tokens": 150, "tokens_per_word": 1.5, "tokens_per_byte": 0.25}
    about = {"tokenizer": "byte-level", "vocabulary": 8000, "fertility": {"domain": domain, "general": None}}
    files = model_files("x", trained=False) | {"about.json": about}
    run.add("fresh", {"kind": "train_tokenizer", "documents": "articles"}, "model", files=files)
    page, twin = both(collect(run.result, "r"))
    for text in (page, twin):
        assert "A byte-level tokenizer of 8,000 tokens" in text
        assert "1.500" in text
        assert "before" not in text.split("Vocabulary", 2)[-1].split("Speed")[0]


def test_a_run_without_a_vocabulary_step_has_no_such_section(tmp_path: Path):
    run = collect(full_run(tmp_path), "quickstart")
    page, twin = both(run)
    assert 'id="vocabulary"' not in page
    assert "## Vocabulary" not in twin
    assert vocabularies(run) == []
