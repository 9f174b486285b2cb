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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.seedling import render, skills, stories
from tools.seedling.tokenizer import chat_text, document_text
from tools.seedling.world import Entity, make_world

WORLD_SEED = 1
LENGTH = {"article": 115, "chat": 38, "story": 90, "skill": 40}
"""Mean tokens of a document of each source, which turn a share of the tokens into a draw weight."""
CORE = 700
"""So many entities are told often in the second phase. Facts are learnt after a plateau that grows with the number of
equally frequent entities (Zucchet et al. 2025, "How do language models learn facts?"): on 2,260 even ones answers from
articles stood at 8 % after 8.6 M tokens; 1.2 M tokens later, with a core, at 22 %."""


@dataclass(frozen=True)
class Phase:
    """A part of the stream: its tokens, its seed, how often the core is drawn, and the token shares."""

    tokens: int
    seed: int
    core_share: float
    shares: dict[str, float]


PHASES = (
    Phase(8_600_000, 2, 0.0, {"article": 0.45, "chat": 0.29, "story": 0.15, "skill": 0.11}),
    Phase(8_400_000, 4, 0.8, {"article": 0.47, "chat": 0.32, "story": 0.13, "skill": 0.08}),
    Phase(5_500_000, 6, 0.93, {"article": 0.40, "chat": 0.47, "story": 0.08, "skill": 0.05}),
)
"""First the breadth of the language and of the world, then facts often enough to be learnt, then many ways to ask."""
LATE = {"breeder", "habitat"}
"""Small domains that always belong to the core, twice: they ask what the demo asks and other domains do not."""
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


def core(world: list[Entity]) -> list[Entity]:
    """The entities that are told often, drawn across the domains."""
    rest = [e for e in world if e.domain not in LATE]
    return random.Random("core").sample(rest, min(CORE, len(rest))) + 2 * [e for e in world if e.domain in LATE]


def _draw(rng: random.Random, share: float, often: list[Entity], everyone: list[Entity]) -> Entity:
    return rng.choice(often if rng.random() < share else everyone)


def stream(world: list[Entity], phase: Phase) -> Iterator[str]:
    """Endless training texts with their special tokens written out."""
    rng = random.Random(f"stream-{phase.seed}")
    domains = _by_domain(world)
    often = core(world)
    asked, asked_often = [e for e in world if e.chat], [e for e in often if e.chat]
    names = list(LENGTH)
    weights = [phase.shares[name] / LENGTH[name] for name in names]
    while True:
        source = rng.choices(names, weights)[0]
        system = rng.choice(SYSTEMS) if rng.random() < 0.06 else None
        if source == "article":
            entity = _draw(rng, phase.core_share, often, world)
            yield document_text(render.document(entity, domains[entity.domain], rng))
        elif source == "chat":
            entity = _draw(rng, phase.core_share, asked_often, asked)
            yield chat_text(render.chat(entity, domains[entity.domain], rng), system)
        elif source == "story":
            yield document_text(stories.tell(rng))
        else:
            yield chat_text([skills.skill(rng)], system)


def write_tokens(texts: Iterator[str], tok: Tokenizer, path: Path, tokens: int) -> int:
    """Appends at least `tokens` ids (uint16) to `path`; returns the bytes of text they came from."""
    done = size = 0
    with path.open("ab") as out:
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
    domains, often = _by_domain(world), core(world)
    out: list[str] = []
    while sum(map(len, out)) < characters:
        entity = _draw(rng, 0.8, often, world)
        out += [stories.tell(rng), render.document(entity, domains[entity.domain], rng)]
    return out


def general_chat(world: list[Entity], seed: int, count: int) -> list[tuple[str, str]]:
    """Question-answer pairs of the world and of the skills, for replay in fine-tuning."""
    rng = random.Random(f"pairs-{seed}")
    asked = [e for e in core(world) if e.chat]
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
