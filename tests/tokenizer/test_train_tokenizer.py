"""train_tokenizer: both styles cut and give back every text, fit their model, and repeat to the byte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from extending import MARINE, about, context, documents, texts_of
from pydantic import ValidationError
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from metier.core.errors import DataError, Interrupted
from metier.core.fingerprint import tree
from metier.models.load import load
from metier.text.chat import stop_ids
from metier.text.nouns import Conversation, Message
from metier.tokenizer.fresh import END
from metier.tokenizer.stage import TrainTokenizer
from metier.train.stage import Pretrain

SHAPE = {"hidden_size": 32, "layers": 1, "heads": 2, "context": 128}


@pytest.fixture(scope="module")
def marine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = texts_of(MARINE / "corpus.jsonl")
    return documents(
        tmp_path_factory.mktemp("texts") / "m", train[:600], heldout=texts_of(MARINE / "corpus_heldout.jsonl")
    )


def make(folder: Path, texts: Path, **fields: Any) -> Path:
    stage = TrainTokenizer(**{"documents": "texts", "vocabulary": 1000, "shape": SHAPE, **fields})
    ctx = context(folder, texts=texts)
    stage.check(ctx.sources)
    metrics = stage.run(ctx)
    assert metrics["total_parameters"] == stage.parameters
    return ctx.out


@pytest.mark.parametrize("style", ["byte-level", "sentencepiece"])
def test_it_cuts_the_domain_well_and_gives_every_text_back(tmp_path: Path, marine: Path, style: str):
    out = make(tmp_path / "a", marine, style=style)
    loaded = load(out)
    tokenizer = loaded.tokenizer
    assert len(tokenizer) == 1000
    assert loaded.model.config.vocab_size == 1000
    fertility = about(out)["fertility"]["domain"]
    assert fertility["split"] == "heldout"
    assert fertility["tokens_per_word"] < 2.2
    for text in [*texts_of(marine / "heldout.jsonl"), "Tabs\tand\n\nlines,  two spaces, 1234, λ and 🐟."]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert {"1", "2", "3", "4"} <= set(tokenizer.tokenize("x1234"))
    for special in (tokenizer.bos_token, END, tokenizer.pad_token, "<|user|>"):
        (number,) = tokenizer.encode(special, add_special_tokens=False)
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    asked = Conversation("c", (Message("user", "What?"), Message("assistant", "That.")))
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in asked.messages], tokenize=False
    )
    assert text.endswith(f"That.{END}")
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}
    again = make(tmp_path / "b", marine, style=style)
    assert {n: p.read_bytes() for n, p in tree(again).items()} == {n: p.read_bytes() for n, p in tree(out).items()}
    other = make(tmp_path / "c", marine, style=style, seed=1)
    assert (other / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()
    stock = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained(out)("The crab digs.", return_tensors="pt").input_ids
    assert stock(ids).logits.shape[-1] == 1000


def test_a_sentencepiece_file_says_what_tokenizer_json_says(tmp_path: Path, marine: Path):
    out = make(tmp_path, marine, style="sentencepiece")
    other = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    tokenizer = load(out).tokenizer
    for text in texts_of(marine / "heldout.jsonl"):
        assert other.encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_what_it_makes_is_pre_trained_like_any_model(tmp_path: Path, marine: Path):
    base = make(tmp_path / "base", marine)
    ctx = context(tmp_path / "run", base=base, texts=marine)
    stage = Pretrain(model="base", documents="texts", block_size=64, max_steps=30, learning_rate=1e-2, batch_size=16)
    stage.run(ctx)
    losses = about(ctx.out)["dev_loss"]
    assert losses["last"] < 0.8 * losses["before"]


def test_weights_do_not_depend_on_what_was_drawn_before(tmp_path: Path, marine: Path):
    torch.manual_seed(5)
    one = make(tmp_path / "a", marine)
    torch.manual_seed(6)
    two = make(tmp_path / "b", marine)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.parametrize("style", ["byte-level", "sentencepiece"])
def test_a_vocabulary_larger_than_the_texts_hold_is_refused(tmp_path: Path, style: str):
    texts = documents(tmp_path / "few", ["the crab digs in the sand"] * 3000)
    with pytest.raises(DataError) as caught:
        make(tmp_path / "run", texts, style=style, vocabulary=5000)
    assert caught.value.where == "vocabulary"
    assert "more texts" in str(caught.value.cure)


def test_a_corpus_too_small_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="50,000 are the least"):
        make(tmp_path / "run", documents(tmp_path / "few", ["the crab digs"] * 20))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"shape": {"hidden_size": 100, "heads": 8}}, "no multiple of 2 x heads"),
        ({"shape": {"heads": 4, "key_heads": 3}}, "no multiple of key_heads"),
        ({"style": "sentencepiece", "min_count": 5}, "min_count has no effect"),
        ({"style": "sentencepiece", "vocabulary": 300}, "400 or more"),
        ({"vocabulary": 10}, "greater than or equal to 300"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        TrainTokenizer(**{"documents": "d", **fields})


def test_it_stops_when_asked(tmp_path: Path, marine: Path):
    ctx = context(tmp_path, stop=lambda: True, texts=marine)
    with pytest.raises(Interrupted):
        TrainTokenizer(documents="texts", shape=SHAPE).run(ctx)
