"""A dry run of the demo on animals the seedling never read: CPT on their articles, SFT on some of their questions, then
asking.

`python -m tools.seedling.proxy MODEL` prints exact match for CPT + SFT and for SFT alone, on facts that SFT trained
(asked in other words) and on facts that only the articles told. With `--corpus DIR` it runs on a folder with
corpus.jsonl, train.jsonl and test.jsonl instead. It is how the mix of the seedling's text was judged; the real pipeline
lives in `src`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tools.seedling import corpus, evaluate, render
from tools.seedling.world import make_world

Pair = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """Articles, training pairs, and the named test sets."""

    texts: list[str]
    train: list[Pair]
    tests: dict[str, list[Pair]]


def animals(tokens: int, count: int = 110) -> Task:
    """Invented animals outside the seedling's world; training asks half of their facts, in half of the wordings."""
    used = {e.name for e in corpus.the_world()}
    herd = make_world(77, count / 1000, "animal", used)
    rng = random.Random(9)
    texts: list[str] = []
    while sum(map(len, texts)) < tokens * 3.4:
        texts.append(render.document(rng.choice(herd), herd, rng))
    facts = [(e, k) for e in herd for k in e.facts]
    rng.shuffle(facts)
    asked, unasked = facts[: len(facts) // 2], facts[len(facts) // 2 :]
    train = [render.question(e, k, rng, slice(0, None, 2)) for e, k in asked * 2]
    tests = {
        n: [render.question(e, k, rng, slice(1, None, 2)) for e, k in part[:150]]
        for n, part in (("trained", asked), ("corpus_only", unasked))
    }
    return Task(texts, train, tests)


def read(folder: Path) -> Task:
    """corpus.jsonl, train.jsonl, test.jsonl; test rows are split by their field "group"."""
    rows = {
        n: [json.loads(x) for x in (folder / f"{n}.jsonl").read_text().splitlines()]
        for n in ("corpus", "train", "test")
    }
    texts = [r["text"] for r in rows["corpus"]]
    tests: dict[str, list[Pair]] = {}
    for r in rows["test"]:
        tests.setdefault(str(r.get("group", "test")), []).append((r["question"], r["answer"]))
    return Task(texts, [(r["question"], r["answer"]) for r in rows["train"]], tests)


def _steps(
    model: PreTrainedModel, batches: list[tuple[torch.Tensor, torch.Tensor]], lr: float, warm: float = 0.05
) -> None:
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    n = len(batches)
    model.train()
    for i, (x, y) in enumerate(batches):
        share = min(1.0, (i + 1) / max(1, warm * n)) * (1 - i / n)
        for group in opt.param_groups:
            group["lr"] = lr * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), y[:, 1:].flatten(), ignore_index=-100
            )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if i % 40 == 0:
            print(f"    {i}/{n} loss {float(loss.detach()):.3f}", flush=True)
    model.eval()


def cpt(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    texts: list[str],
    replay: list[str],
    *,
    lr: float,
    tokens: int,
    block: int,
    rows: int,
    share: float,
) -> None:
    """Continued pre-training on packed documents with a share of replay, for about `tokens` tokens."""
    rng = random.Random(0)
    size = sum(map(len, texts))
    mixed: list[str] = []
    ids: list[int] = []
    extra = rng.sample(replay, min(len(replay), max(1, int(share * size / (sum(map(len, replay)) / len(replay))))))
    while len(ids) < tokens:
        mixed = texts + extra
        rng.shuffle(mixed)
        for t in tok([f"{tok.bos_token}{t}{tok.eos_token}" for t in mixed], add_special_tokens=False).input_ids:
            ids += t
    n = min(tokens, len(ids)) // (block * rows)
    x = torch.tensor(ids[: n * block * rows]).view(n, rows, block)
    _steps(model, [(b, b) for b in x], lr)


def sft(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: list[Pair],
    replay: list[Pair],
    *,
    lr: float,
    epochs: int,
    rows: int,
) -> None:
    """Response-only tuning through the chat template."""
    rng = random.Random(0)
    batches = []
    for _ in range(epochs):
        mixed = pairs + rng.sample(replay, min(len(replay), len(pairs) // 5))
        rng.shuffle(mixed)
        for i in range(0, len(mixed), rows):
            part = mixed[i : i + rows]
            head = [
                tok(f"{tok.bos_token}<|user|>{q}{tok.eos_token}<|assistant|>", add_special_tokens=False).input_ids
                for q, _ in part
            ]
            tail = [tok(f"{a}{tok.eos_token}", add_special_tokens=False).input_ids for _, a in part]
            width = max(len(h) + len(t) for h, t in zip(head, tail, strict=True))
            x = torch.full((len(part), width), 2)
            y = torch.full((len(part), width), -100)
            for r, (h, t) in enumerate(zip(head, tail, strict=True)):
                x[r, : len(h) + len(t)] = torch.tensor(h + t)
                y[r, len(h) : len(h) + len(t)] = torch.tensor(t)
            batches.append((x, y))
    _steps(model, batches, lr)


def _score(model: PreTrainedModel, tok: PreTrainedTokenizerBase, task: Task, name: str, show: int) -> None:
    for part, pairs in task.tests.items():
        given = evaluate.replies(model, tok, [q for q, _ in pairs])
        mean = sum(evaluate.f1(g, a) for g, (_, a) in zip(given, pairs, strict=True)) / len(pairs)
        print(
            f"{name:10} {part:12} n {len(pairs):4} exact {evaluate.exact(given, pairs):.3f} F1 {mean:.3f}", flush=True
        )
        for g, (q, a) in list(zip(given, pairs, strict=True))[:show]:
            print(f"      {q} -> {g!r} (wanted {a!r})")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("--corpus", type=Path)
    p.add_argument("--tokens", type=int, default=1_000_000)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--block", type=int, default=256)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--replay", type=float, default=0.1)
    p.add_argument("--sft-lr", type=float, default=5e-4)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--sft-rows", type=int, default=32)
    p.add_argument("--show", type=int, default=4)
    p.add_argument("--no-alone", action="store_true", help="skip the comparison run without CPT")
    p.add_argument("--attn", default="eager")
    a = p.parse_args()
    task = animals(a.tokens) if a.corpus is None else read(a.corpus)
    world = corpus.the_world()
    general, chat = corpus.general_documents(world, 11, 400_000), corpus.general_chat(world, 13, 1500)
    for name in ("CPT+SFT", "SFT"):
        if name == "SFT" and a.no_alone:
            continue
        torch.manual_seed(0)
        model, tok = evaluate.load(a.model)
        model.set_attn_implementation(a.attn)
        t = time.monotonic()
        if name == "CPT+SFT":
            if a.no_alone is False:
                _score(model, tok, task, "base", a.show)
            cpt(model, tok, task.texts, general, lr=a.lr, tokens=a.tokens, block=a.block, rows=a.rows, share=a.replay)
            print(f"  CPT {time.monotonic() - t:.0f} s", flush=True)
            _score(model, tok, task, "CPT", 2)
        t = time.monotonic()
        sft(model, tok, task.train, chat, lr=a.sft_lr, epochs=a.epochs, rows=a.sft_rows)
        print(f"  SFT {time.monotonic() - t:.0f} s", flush=True)
        _score(model, tok, task, name, a.show)


if __name__ == "__main__":
    main()
