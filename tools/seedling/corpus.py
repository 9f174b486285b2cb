"""The token stream the seedling is trained on, and the small general texts kept for replay and for measuring
forgetting.

The stream is drawn document by document from four sources (articles, chats about the world, stories, skills) with fixed
shares of the tokens; every document is rendered anew, so the same facts come back in other words. Seeds: the world has
one seed, the stream another, the held-out text a third and replay a fourth, and none of them shares a story with
another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.seedling import render, skills, stories
from tools.seedling.tokenizer import chat_text, document_text
from tools.seedling.world import Entity, make_world

WORLD_SEED = 1
SOURCES = {"article": (0.45, 115), "chat": (0.29, 38), "story": (0.15, 90), "skill": (0.11, 40)}
"""Per source: its share of the tokens, and its mean length in tokens, which turns the share into a draw weight."""
SYSTEMS = [
    "Answer briefly.",
    "You are a helpful assistant.",
    "Answer in a few words.",
    "You know the world well.",
    "Be short and clear.",
]


def _by_domain(world: list[Entity]) -> dict[str, list[Entity]]:
    out: dict[str, list[Entity]] = {}
    for entity in world:
        out.setdefault(entity.domain, []).append(entity)
    return out


def stream(world: list[Entity], seed: int) -> Iterator[str]:
    """Endless training texts with their special tokens written out."""
    rng = random.Random(f"stream-{seed}")
    domains = _by_domain(world)
    asked = [e for e in world if e.chat]
    names = list(SOURCES)
    weights = [share / length for share, length in SOURCES.values()]
    while True:
        source = rng.choices(names, weights)[0]
        system = rng.choice(SYSTEMS) if rng.random() < 0.06 else None
        if source == "article":
            entity = rng.choice(world)
            yield document_text(render.document(entity, domains[entity.domain], rng))
        elif source == "chat":
            entity = rng.choice(asked)
            yield chat_text(render.chat(entity, domains[entity.domain], rng), system)
        elif source == "story":
            yield document_text(stories.tell(rng))
        else:
            yield chat_text([skills.skill(rng)], system)


def write_tokens(texts: Iterator[str], tok: Tokenizer, path: Path, tokens: int) -> int:
    """Packs `tokens` ids (uint16) into `path`; returns the bytes of text they came from."""
    done = size = 0
    with path.open("wb") as out:
        while done < tokens:
            batch = list(islice(texts, 4096))
            size += sum(len(t.encode()) for t in batch)
            ids = np.concatenate(
                [np.asarray(e.ids, dtype=np.uint16) for e in tok.encode_batch_fast(batch, add_special_tokens=False)]
            )
            out.write(ids.tobytes())
            done += len(ids)
    return size


def general_documents(world: list[Entity], seed: int, characters: int) -> list[str]:
    """Plain documents for replay or for measuring: stories, days, letters, and articles about the world."""
    rng = random.Random(f"general-{seed}")
    domains = _by_domain(world)
    out: list[str] = []
    while sum(map(len, out)) < characters:
        entity = rng.choice(world)
        out += [stories.tell(rng), render.document(entity, domains[entity.domain], rng)]
    return out


def general_chat(world: list[Entity], seed: int, count: int) -> list[tuple[str, str]]:
    """Question-answer pairs of the world and of the skills, for replay in fine-tuning."""
    rng = random.Random(f"pairs-{seed}")
    asked = [e for e in world if e.chat]
    out: list[tuple[str, str]] = []
    while len(out) < count:
        entity = rng.choice(asked)
        out += [render.ask(entity, rng.choice(list(entity.facts)), rng), skills.skill(rng)][: count - len(out)]
    return out


def write_general(folder: Path, world: list[Entity]) -> None:
    """replay.jsonl, heldout.jsonl and chat.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, size in (("replay", 11, 400_000), ("heldout", 12, 60_000)):
        rows = [json.dumps({"text": t}, ensure_ascii=False) for t in general_documents(world, seed, size)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    rows = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in general_chat(world, 13, 1500)]
    (folder / "chat.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def the_world() -> list[Entity]:
    return make_world(WORLD_SEED)
