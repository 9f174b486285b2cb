"""Extension with the tokenizers of TinyLlama, GPT-2 and Llama 3 on medical text: merges, spaces, old text as before."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from extending import about, documents, extend, only_joins, shaped
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from metier.export.gguf.tokens import Tokens
from metier.export.gguf.vocabulary import vocabulary
from metier.models.load import load, read_tokenizer
from metier.models.shape import input_embeddings, is_tied, output_head

CASES = [("tinyllama", "llama", False), ("gpt2", "gpt2", True), ("llama3", "llama", False)]


@pytest.fixture(scope="module")
def medical(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with (shared / "data" / "medquad" / "medquad_answered.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for number, line in enumerate(file) if number % 48 == 0]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    return documents(tmp_path_factory.mktemp("texts") / "medical", texts[40:], heldout=texts[:40])


@pytest.fixture(scope="module")
def general(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared / "data" / "wikitext2"
    test, valid = ((folder / f"{name}.txt").read_text(encoding="utf-8").splitlines(True) for name in ("test", "valid"))
    return documents(tmp_path_factory.mktemp("texts") / "general", test[:600], heldout=valid[:600])


@pytest.fixture(scope="module")
def lines(shared: Path) -> list[str]:
    """5,200 lines of medical text and 5,200 of general, each as far as its first 150 characters."""
    with (shared / "data" / "medquad" / "medquad_answered.jsonl").open(encoding="utf-8") as file:
        medical = [line for row in islice(file, 4000) for line in json.loads(row)["answer"].split("\n") if line]
    general = [
        line
        for name in ("test", "valid")
        for line in (shared / "data" / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if line
    ]
    return [line[:150] for line in (*medical[:5200], *general[:5200])]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "family", "tied"), CASES, ids=[case[0] for case in CASES])
def test_words_are_made_inside_running_text_and_old_text_is_as_before(
    shared: Path, tmp_path: Path, medical: Path, general: Path, lines: list[str], name: str, family: str, tied: bool
):
    base = shaped(tmp_path / "base", shared / "tokenizers" / name, family, tied=tied)
    out, seen = extend(tmp_path / "run", base, medical, general, max_new_tokens=500, min_count=5, extend="always")
    record = about(out)
    fertility = record["fertility"]
    assert record["new_tokens"] > 250
    assert fertility["domain"]["saving"] > (0.06 if name == "tinyllama" else 0.01)
    assert abs(fertility["general"]["saving"]) < 0.005
    first = record["first_id"]
    old, new = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (base, out))
    count, fresh = only_joins(old, new, lines, first)
    assert count >= 10_000
    assert fresh > 100
    before, after = load(base).model, load(out).model
    for matrix in (input_embeddings, output_head):
        assert torch.equal(matrix(before).weight, matrix(after).weight[:first])
    assert is_tied(after) == tied
    tokens = Tokens(vocabulary(read_tokenizer(out), after.config.vocab_size, where=name))
    for line in lines[:60]:
        # with a template llama.cpp puts no space before TinyLlama's first word: a plain prompt writes its own
        lead = " " if name == "tinyllama" and not line.startswith(" ") else ""
        assert tokens.encode(lead + line, begin=False) == new.encode(line, add_special_tokens=False).ids, line
    if name == "tinyllama":
        assert any("tokenizer.model has the new pieces too" in event.get("text", "") for event in seen)
        other = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
        tokenizer = read_tokenizer(out)
        assert other.get_piece_size() == len(tokenizer)
        text = "The symptoms of this autosomal recessive disorder need treatment."
        assert other.encode(text) == tokenizer.encode(text, add_special_tokens=False)
        assert max(other.encode(text)) >= first


@pytest.mark.shared
def test_added_tokens_leave_a_sentencepiece_file_behind(shared: Path, tmp_path: Path, medical: Path):
    base = shaped(tmp_path / "base", shared / "tokenizers" / "tinyllama", "llama")
    fields = {"words": ["COVID-19"], "max_new_tokens": 20, "extend": "always"}
    out, seen = extend(tmp_path / "run", base, medical, **fields)
    assert not (out / "tokenizer.model").exists()
    assert any("tokenizer.model is left out" in event.get("text", "") for event in seen)
    tokenizer = read_tokenizer(out)
    text = "It is COVID-19, not COVID-190."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids).count("COVID-19") == 1
