"""Measures the seedling: bits per byte on held-out text, answers about facts that only articles told, sampled text.

Exact match is on lower-cased words without punctuation and articles, the usual SQuAD normalisation (Rajpurkar et al.
2016). Greedy answering runs in batches padded on the left; 200 questions take about ten seconds on two cores.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tools.seedling import render
from tools.seedling.world import Entity

Pair = tuple[str, str]


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def words(text: str) -> list[str]:
    return [x for x in re.findall(r"[a-z0-9]+", text.lower()) if x not in {"a", "an", "the"}]


def f1(given: str, wanted: str) -> float:
    """Token F1 of two answers."""
    a, b = words(given), words(wanted)
    both = sum(min(a.count(x), b.count(x)) for x in set(a))
    return 0.0 if both == 0 else 2 * both / (len(a) + len(b))


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, tok: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Bits per UTF-8 byte of documents (bos + text + eos), cut at 512 tokens."""
    nats, size = 0.0, 0
    for text in texts:
        ids = tok(f"{tok.bos_token}{text}{tok.eos_token}", return_tensors="pt", add_special_tokens=False).input_ids[
            :, :512
        ]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        size += len(tok.decode(ids[0], skip_special_tokens=True).encode())
    return nats / math.log(2) / size


@torch.inference_mode()
def replies(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, questions: list[str], new: int = 24, batch: int = 64
) -> list[str]:
    """Greedy answers to single-turn chat questions."""
    out: list[str] = []
    tok.padding_side = "left"
    for i in range(0, len(questions), batch):
        texts = [
            tok.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
            for q in questions[i : i + batch]
        ]
        enc = tok(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        done = model.generate(
            input_ids=enc.input_ids, attention_mask=enc.attention_mask, max_new_tokens=new, do_sample=False
        )
        out += tok.batch_decode(done[:, enc.input_ids.shape[1] :], skip_special_tokens=True)
    return [x.strip() for x in out]


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompt: str,
    seed: int,
    new: int = 80,
    temperature: float = 0.7,
) -> str:
    """One sampled document that begins with `prompt`."""
    torch.manual_seed(seed)
    ids = tok(tok.bos_token + prompt, return_tensors="pt", add_special_tokens=False).input_ids
    done = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=True,
        temperature=temperature,
        top_p=0.95,
    )
    return str(tok.decode(done[0], skip_special_tokens=True)).strip()


def questions_about(entities: list[Entity], count: int, seed: int) -> list[Pair]:
    """Short-answer questions on drawn facts of the given entities."""
    rng = random.Random(f"questions-{seed}")
    out = []
    for _ in range(count):
        entity = rng.choice(entities)
        out.append(render.question(entity, rng.choice(list(entity.facts)), rng))
    return out


def exact(given: list[str], pairs: list[Pair]) -> float:
    return sum(words(g) == words(a) for g, (_, a) in zip(given, pairs, strict=True)) / len(pairs)


def extraction(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, world: list[Entity], count: int = 300
) -> dict[str, float]:
    """Exact match on entities that chats asked about, and on those that only articles told."""
    out = {}
    for name, chat in (("asked", True), ("article_only", False)):
        pairs = questions_about([e for e in world if e.chat is chat], count, 5)
        out[name] = exact(replies(model, tok, [q for q, _ in pairs]), pairs)
    return out
