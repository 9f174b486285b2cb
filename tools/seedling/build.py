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
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Course:
    """One run of the trainer, with its own schedule, over some phases of the stream."""

    name: str
    phases: tuple[corpus.Phase, ...]
    lr: float
    warmup: int
    decay: float


COURSES = (
    Course("facts", corpus.PHASES[:2], lr=3e-3, warmup=100, decay=0.22),
    Course("asking", corpus.PHASES[2:], lr=2.5e-3, warmup=40, decay=0.45),
)


def make_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, trained on a sample of the first phase, saved in `folder` unless it stands there."""
    if not (folder / "tokenizer.json").exists():
        sample = islice(corpus.stream(corpus.the_world(), replace(corpus.PHASES[0], seed=99)), 40_000)
        tk.save_tokenizer(tk.train_tokenizer([re.sub(r"<\|\w+\|>", "\n", t) for t in sample], VOCAB), folder, CONTEXT)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_stream(course: Course, tok: Tokenizer, path: Path) -> int:
    """The token file of a course; returns the bytes of text behind it."""
    note = path.with_suffix(".json")
    if not note.exists():
        path.unlink(missing_ok=True)
        world = corpus.the_world()
        size = sum(corpus.write_tokens(corpus.stream(world, p), tok, path, p.tokens + 1) for p in course.phases)
        note.write_text(json.dumps({"bytes": size}))
    return int(json.loads(note.read_text())["bytes"])


def run_courses(work: Path) -> tuple[dict[str, Any], int]:
    """Trains course after course; a finished course is kept, so a build that was stopped goes on."""
    from tools.seedling.train import Plan, train

    tok = make_tokenizer(work / "tokenizer")
    runs, size, start = [], 0, None
    for course in COURSES:
        out = work / course.name
        out.mkdir(parents=True, exist_ok=True)
        size += write_stream(course, tok, out / "train.bin")
        result = out / "result.json"
        if not result.exists():
            tokens = sum(p.tokens for p in course.phases)
            plan = Plan(tokens=tokens, lr=course.lr, warmup=course.warmup, decay=course.decay)
            run = train(out / "train.bin", work / "tokenizer", out, plan, tok.get_vocab_size(), start)
            result.write_text(json.dumps(run))
        runs.append(json.loads(result.read_text()))
        start = out / "latest"
    return join_runs(runs), size


def join_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens, steps and seconds of all courses; the loss of the last."""
    return {**{k: sum(r[k] for r in runs) for k in ("tokens", "steps", "seconds")}, "loss": runs[-1]["loss"]}


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


def card(run: dict[str, Any], found: dict[str, Any], text_bytes: int, history: str) -> str:
    """CARD.md from text/card.md, every number of it measured by this build."""
    counts = _world_counts()
    return (
        (TEXT / "card.md")
        .read_text(encoding="utf-8")
        .format(
            **run,
            **found,
            history=history,
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


def finish(trained: Path, run: dict[str, Any], text_bytes: int, history: str = "") -> None:
    """Copies the trained folder into the package and writes the card; `history` tells what this run did otherwise."""
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    for file in sorted(trained.iterdir()):
        shutil.copyfile(file, MODEL_DIR / file.name)
    found = measure(MODEL_DIR)
    (MODEL_DIR / "CARD.md").write_text(card(run, found, text_bytes, history), encoding="utf-8")
    print(json.dumps({**run, **found}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "seedling")
    parser.add_argument("--data-only", action="store_true")
    args = parser.parse_args()
    write_general()
    if args.data_only:
        return
    run, size = run_courses(args.work)
    finish(args.work / COURSES[-1].name / "latest", run, size)


if __name__ == "__main__":
    main()
