"""Builds the seedling from nothing: text -> tokenizer -> tokens -> training -> measurements -> model folder and card.

`python -m tools.seedling` (or `make seedling`) runs it; `--work` keeps the token file and the resumable state, so a
build that was stopped goes on. Two free cores need about an hour and a half and 3 GB of memory. `--data-only` writes
recipes/data/general alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tools.seedling import corpus
from tools.seedling import tokenizer as tk

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "src" / "metier" / "models" / "seedling"
GENERAL_DIR = ROOT / "recipes" / "data" / "general"
TEXT = Path(__file__).parent / "text"
VOCAB = 2048
CONTEXT = 1024
ASKED = ["How do you make tea?", "What is the opposite of hot?", "Which day comes after Monday?"]
PROMPTS = ["One morning", "The baker", "In winter"]


def prepare(work: Path, tokens: int) -> int:
    """The tokenizer folder and the token file; returns the bytes of text behind the tokens."""
    world = corpus.the_world()
    note = work / "data.json"
    if note.exists() and json.loads(note.read_text())["tokens"] >= tokens:
        return int(json.loads(note.read_text())["bytes"])
    plain = [
        re.sub(r"<\|\w+\|>", "\n", t) for t in islice(corpus.stream(world, replace(corpus.PHASES[0], seed=99)), 40_000)
    ]
    tok = tk.train_tokenizer(plain, VOCAB)
    tk.save_tokenizer(tok, work / "tokenizer", CONTEXT)
    (work / "train.bin").unlink(missing_ok=True)
    size = 0
    for phase in corpus.PHASES:
        size += corpus.write_tokens(corpus.stream(world, phase), tok, work / "train.bin", int(phase.part * tokens) + 1)
    note.write_text(json.dumps({"tokens": tokens, "bytes": size}))
    return size


def measure(folder: Path) -> dict[str, Any]:
    """What the card tells, measured on the finished folder (bf16 weights read as fp32)."""
    from tools.seedling import evaluate

    model, tok = evaluate.load(folder)
    texts = [json.loads(x)["text"] for x in (GENERAL_DIR / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "parameters": model.num_parameters(),
        "bits_per_byte": evaluate.bits_per_byte(model, tok, texts),
        **evaluate.extraction(model, tok, corpus.core(corpus.the_world())),
        "samples": [evaluate.sample(model, tok, p, i) for i, p in enumerate(PROMPTS)],
        "answers": list(zip(ASKED, evaluate.replies(model, tok, ASKED), strict=True)),
    }


def card(run: dict[str, Any], found: dict[str, Any], text_bytes: int) -> str:
    """CARD.md from text/card.md, every number of it measured by this build."""
    counts = _world_counts()
    return (
        (TEXT / "card.md")
        .read_text(encoding="utf-8")
        .format(
            **run,
            **found,
            vocab=VOCAB,
            core=corpus.CORE,
            context=CONTEXT,
            file_mb=(MODEL_DIR / "model.safetensors").stat().st_size / 1e6,
            text_mb=text_bytes / 1e6,
            minutes=run["seconds"] / 60,
            entities=sum(counts.values()),
            kinds=", ".join(f"{n} of {d}" for d, n in counts.items()),
            sampled="\n".join(f"> {s.replace(chr(10), ' ')}\n" for s in found["samples"]),
            answered="\n".join(f"| {q} | {a} |" for q, a in found["answers"]),
        )
    )


def _world_counts() -> dict[str, int]:
    counts: dict[str, int] = {}
    for entity in corpus.the_world():
        counts[entity.domain] = counts.get(entity.domain, 0) + 1
    return counts


def write_general() -> None:
    corpus.write_general(GENERAL_DIR, corpus.the_world())
    counts = {
        n: len((GENERAL_DIR / f"{n}.jsonl").read_text(encoding="utf-8").splitlines())
        for n in ("replay", "heldout", "chat")
    }
    (GENERAL_DIR / "README.md").write_text(
        (TEXT / "general.md").read_text(encoding="utf-8").format(**counts), encoding="utf-8"
    )


def finish(work: Path, run: dict[str, Any], text_bytes: int) -> None:
    """Copies the trained folder into the package and writes the card beside it."""
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    for file in sorted((work / "latest").iterdir()):
        shutil.copyfile(file, MODEL_DIR / file.name)
    found = measure(MODEL_DIR)
    (MODEL_DIR / "CARD.md").write_text(card(run, found, text_bytes), encoding="utf-8")
    print(json.dumps({**run, **found}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "seedling")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--data-only", action="store_true")
    args = parser.parse_args()
    write_general()
    if args.data_only:
        return
    from tools.seedling.train import Plan, train

    plan = Plan() if args.tokens is None else Plan(tokens=args.tokens)
    args.work.mkdir(parents=True, exist_ok=True)
    size = prepare(args.work, plan.tokens)
    vocab = Tokenizer.from_file(str(args.work / "tokenizer" / "tokenizer.json")).get_vocab_size()
    run = train(args.work / "train.bin", args.work / "tokenizer", args.work, plan, vocab)
    finish(args.work, run, size)


if __name__ == "__main__":
    main()
