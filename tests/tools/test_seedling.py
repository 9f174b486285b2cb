"""The seedling: its text is deterministic and free of the demo domain, the shipped model is what its card says."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from tools.seedling import corpus, render, tables, words
from tools.seedling.tokenizer import chat_text
from tools.seedling.world import make_world
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "src" / "metier" / "models" / "seedling"
GENERAL = ROOT / "recipes" / "data" / "general"


@pytest.fixture(scope="module")
def world():
    return corpus.the_world()


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(MODEL)


def test_the_generator_is_deterministic(world):
    assert corpus.the_world() == world
    assert list(islice(corpus.stream(world, corpus.PHASES[0]), 300)) == list(
        islice(corpus.stream(world, corpus.PHASES[0]), 300)
    )
    assert list(islice(corpus.stream(world, corpus.PHASES[0]), 300)) != list(
        islice(corpus.stream(world, corpus.PHASES[1]), 300)
    )


def test_no_word_of_the_demo_domain_is_generated(world):
    text = " ".join(islice(corpus.stream(world, corpus.PHASES[0]), 8000))
    tables_text = " ".join(
        e for n in ("forms", "grammar", "pools", "render", "skills") for s in tables.table(n).values() for e in s
    )
    found = set(re.findall(r"[a-z]+", f"{text} {tables_text}".lower())) & words.FORBIDDEN
    assert not found


def test_the_shipped_general_text_holds_no_word_of_the_demo_domain():
    for name in ("replay", "heldout", "chat"):
        text = (GENERAL / f"{name}.jsonl").read_text(encoding="utf-8").lower()
        assert not set(re.findall(r"[a-z]+", text.replace("\\n", " "))) & words.FORBIDDEN


def test_the_shipped_general_text_is_what_the_code_writes(tmp_path, world):
    corpus.write_general(tmp_path, world)
    for name in ("replay", "heldout", "chat"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (GENERAL / f"{name}.jsonl").read_bytes()


def test_heldout_shares_no_document_with_replay():
    rows = [
        {json.loads(x)["text"] for x in (GENERAL / f"{n}.jsonl").read_text(encoding="utf-8").splitlines()}
        for n in ("replay", "heldout")
    ]
    long = [{t for t in part if len(t) > 150} for part in rows]
    assert not long[0] & long[1]


def test_some_entities_are_told_only_in_articles(world):
    share = sum(e.chat for e in world) / len(world)
    assert 0.5 < share < 0.7
    silent = {e.name for e in world if not e.chat and not e.proper and " " in e.name}
    asked = {e.name for e in world if e.chat}
    chats = [t for t in islice(corpus.stream(world, corpus.PHASES[1]), 4000) if "<|user|>" in t]
    assert not [t for t in chats for n in silent if f"the {n}?" in t and not any(n in a for a in asked)]


def test_names_are_unique_and_a_second_world_avoids_them(world):
    names = {e.name for e in world}
    assert len(names) == len(world)
    assert not names & {e.name for e in make_world(77, 0.05, used=names)}


@pytest.mark.parametrize(
    ("one", "many"), [("grey mouse", "grey mice"), ("fox", "foxes"), ("pony", "ponies"), ("sheep", "sheep")]
)
def test_plurals(one, many):
    assert words.plural(one) == many


def test_every_question_has_a_one_line_answer(world):
    for entity in world[::40]:
        for key in entity.facts:
            for form in render.ATTRS[key].ask + render.ATTRS[key].wonder:
                given = render.answer(entity, key, form)
                assert given.endswith(".")
                assert "{" not in given


def test_chat_ids_equal_the_template(shipped):
    _, tok = shipped
    turns = [("What do goats eat?", "Oats and hay."), ("Where?", "In stone barns.")]
    messages = [{"role": r, "content": c} for q, a in turns for r, c in (("user", q), ("assistant", a))]
    assert tok(chat_text(turns), add_special_tokens=False).input_ids == tok.apply_chat_template(
        messages, return_dict=False
    )
    asked = tok.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|begin|><|user|>What do goats eat?<|end|><|assistant|>"


def test_the_tokenizer_adds_nothing_and_gives_text_back(shipped):
    _, tok = shipped
    text = "The goat's 12 kids — née Σ — ate.\n"
    assert tok.decode(tok(text).input_ids) == text
    assert tok.pad_token_id != tok.eos_token_id
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")


def test_the_shipped_model_is_small_and_grouped(shipped):
    model, tok = shipped
    assert 2_000_000 <= model.num_parameters() <= 8_000_000
    assert sum(f.stat().st_size for f in MODEL.iterdir()) <= 12_000_000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.vocab_size == len(tok)
    assert model.generation_config.eos_token_id == tok.eos_token_id


def test_a_greedy_document_is_not_degenerate(shipped):
    model, tok = shipped
    ids = tok("<|begin|>One morning", return_tensors="pt").input_ids
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    said = tok.decode(out[0], skip_special_tokens=True).split()
    assert len(said) > 12
    assert len(set(said)) > 0.4 * len(said)
