"""The settings that no other test tries by name: each, changed, changes what comes out."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_knowledge import furnished, knowledge
from tests.evaluate.test_stages import House
from tests.tokenizer.extending import about, context, documents, extend, texts_of

from metier.core.errors import InputError
from metier.data.cleaning import Repetition, repeats_itself
from metier.models.builtin import BUILTIN
from metier.models.load import read_config, read_tokenizer
from metier.prune.settings import Guard
from metier.prune.verdicts import conditions
from metier.synthesize.chunks import passages
from metier.synthesize.grounding import Grounding, Lengths, screen
from metier.synthesize.pair import Pair, Passage
from metier.synthesize.settings import Ask
from metier.synthesize.synthesis import Synthesize
from metier.text.nouns import Document
from metier.tokenizer.stage import TrainTokenizer

MARINE = Path(__file__).resolve().parents[1] / "recipes/data/marine/corpus.jsonl"
OFF: dict[str, Any] = {"most_frequent": {}, "repeated": {}}


def judged(text: str, **limits: Any) -> str | None:
    allowed = {"lines": 1, "paragraphs": 1, "line_characters": 1, "paragraph_characters": 1}
    return repeats_itself(text, Repetition(**{**OFF, **allowed, "from_words": 1, **limits}))


def test_each_limit_of_repetition_is_one_of_its_own():
    text = "\n\n".join(["one long line that is told twice", "other", "one long line that is told twice", "a", "b"])
    assert judged(text) is None
    assert "of paragraphs" in str(judged(text, paragraphs=0.1))
    assert "of characters in lines" in str(judged(text, line_characters=0.3))
    assert "of characters in paragraphs" in str(judged(text, paragraph_characters=0.3))
    assert judged(text, paragraphs=0.1, from_words=500) is None


def reason(question: str, evidence: str, *, longest: int = 100, **rules: Any) -> str | None:
    passage = Passage("d", 1, "The narwhal eats cod and squid in the cold sea.")
    pair = Pair(question, "Cod and squid.", (evidence,), "factual", "easy", (passage.id,), "t", "w")
    found = screen(pair, {passage.id: passage}, Grounding(**rules), Lengths(100, longest))
    return None if found is None else found.reason.partition(":")[0]


def test_grounding():
    quoted = "eats cod and squid"
    assert reason("What does the narwhal eat?", quoted) is None
    assert reason("What does the narwhal eat?", quoted, min_evidence=5) == "evidence too short"
    by_page = "What does the passage say that the narwhal eats?"
    assert reason(by_page, quoted) == "does not stand by itself"
    assert reason(by_page, quoted, by_itself=False) is None
    longest = Synthesize.model_validate(
        {"tables": [{"path": "a.csv", "templates": "a.yaml"}], "max_answer_chars": 10}
    ).max_answer_chars
    assert reason("What does the narwhal eat?", quoted, longest=longest) == "too long"


def test_passages_are_as_long_as_asked():
    text = " ".join(f"Sentence number {i} says something about the sea." for i in range(40))
    counts = [
        len(passages([Document("d", text)], size=Ask(passage_chars=size).passage_chars, name="texts"))
        for size in (200, 1500)
    ]
    assert counts[0] > 3 * counts[1]


def test_how_far_refusals_may_slip():
    before, after = ({"unsafe": [{"complied": float(i < count)} for i in range(200)]} for count in (10, 16))
    strict, loose = (
        conditions(before, after, Guard(examples="d", refusals="d", refusal_margin=margin)) for margin in (0.02, 0.2)
    )
    assert not strict[0].holds
    assert loose[0].holds


def test_what_new_tokens_may_take_of_general_text(tmp_path: Path):
    texts = texts_of(MARINE)[:150]
    domain, general = documents(tmp_path / "domain", texts), documents(tmp_path / "general", texts[:80])
    counts = []
    for share in (0.0, 1.0):
        out, _ = extend(
            tmp_path / str(share), BUILTIN["seedling"], domain, general, max_general=share, max_new_tokens=40,
            extend="always" if share else "auto",
        )  # fmt: skip
        counts.append(len(about(out).get("added", about(out).get("tokens", []))) if share else len(read_tokenizer(out)))
    assert counts[0] == len(read_tokenizer(BUILTIN["seedling"]))  # all that is frequent here is frequent there too
    assert counts[1] >= 1 or len(read_tokenizer(out)) > counts[0]


def test_a_new_model_has_the_inner_size_and_digits_that_were_asked(tmp_path: Path):
    texts = documents(tmp_path / "texts", [*texts_of(MARINE)[:120], *["the year 2024 and the year 1999 " * 30] * 3])
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "inner_size": 48}
    lengths = []
    for split in (True, False):
        stage = TrainTokenizer.model_validate(
            {"documents": "texts", "vocabulary": 600, "split_digits": split, "shape": shape, "min_count": 2}
        )
        ctx = context(tmp_path / str(split), texts=texts)
        stage.run(ctx)
        lengths.append(len(read_tokenizer(ctx.out).encode("2024", add_special_tokens=False)))
        assert read_config(ctx.out).intermediate_size == 48
    assert lengths[0] == 4
    assert lengths[1] < 4


def test_which_split_of_what_is_kept_is_asked(tmp_path: Path):
    house = House(tmp_path)
    furnished(house)
    knowledge().check(house.sources)
    with pytest.raises(InputError, match="retain"):
        knowledge(retain_split="dev").check(house.sources)
