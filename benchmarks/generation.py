"""Measures generation beside transformers: `python -m benchmarks.generation [--rounds N] [--prompts N] [--quick]`.

Ours and a plain batched `model.generate` answer the same questions, in turns (A B A B ...), in one process, in the same
dtype with the same number of threads. The peer takes the questions in the file's order, batch by batch, padded on the
left, with its own cache, sdpa attention and no more than it needs (greedy, one end token list, per-row limits).

Questions are real: half are MedQuAD's, half PubMedQA's with their abstracts, in the file's order, all under the same
instruction. Answers are as long as the real ones (up to LONGEST tokens): models with random weights do not stop by
themselves. Both count the tokens that they gave. Every ratio is the median over rounds of the two speeds of a round.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.rows import Row, write
from metier.engine.local import generate
from metier.models.builtin import BUILTIN
from metier.models.load import Loaded, load, read_tokenizer
from metier.models.sizes import TINYLLAMA
from metier.text.chat import encode_prompt, stop_ids
from metier.text.nouns import Message

SHARED = Path(__file__).resolve().parents[2] / "shared"
INSTRUCTION = "You are a careful assistant. Answer the question about health in plain words, and say what is not known."
LONGEST = 128
LAYERS = 2
BAR = 1.5


@dataclass(frozen=True)
class Work:
    """Prompts as token ids, and how long each answer is."""

    prompts: list[list[int]]
    limits: list[int]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="a few prompts, one round, nothing written")
    chosen = parser.parse_args()
    rounds, count = (1, 16) if chosen.quick else (chosen.rounds, chosen.prompts)
    rows = []
    cases = [("the seedling, float32", seedling()), (f"TinyLlama's shape with {LAYERS} blocks, float32", tinyllama())]
    for name, loaded in cases:
        work = questions(loaded, count)
        for batch_size in (8, 32):
            ratio = measure(loaded, work, batch_size, rounds, name)
            case = f"generation, tokens a second: {name}, batch {batch_size}"
            rows.append(Row(case, ratio, BAR, "ratio", "higher", "transformers generate", n=count))
    if not chosen.quick:
        write("evaluation", "python -m benchmarks.generation", rows)


def seedling() -> Loaded:
    return load(BUILTIN["seedling"])


def tinyllama() -> Loaded:
    """Random weights of TinyLlama's shape with few blocks, and its real tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**TINYLLAMA, "num_hidden_layers": LAYERS})
    return Loaded(LlamaForCausalLM(config).eval(), read_tokenizer(SHARED / "tokenizers/tinyllama"), Path("nowhere"))


def questions(loaded: Loaded, count: int) -> Work:
    """Prompts in the order in which a file would hold them, at most half of the model's context each."""
    with (SHARED / "data/medquad/medquad_answered.jsonl").open(encoding="utf-8") as file:
        medquad = [(row["question"], row["answer"]) for row in map(json.loads, file)]
    pubmed = [
        ("\n".join([*row["CONTEXTS"], row["QUESTION"]]), row["LONG_ANSWER"])
        for row in json.loads((SHARED / "data/pubmedqa/ori_pqal.json").read_text(encoding="utf-8")).values()
    ]
    rng = random.Random(0)
    chosen = rng.sample(medquad, count - count // 2) + rng.sample(pubmed, count // 2)
    rng.shuffle(chosen)
    prompts, limits = [], []
    for question, answer in chosen:
        messages = [Message("system", INSTRUCTION), Message("user", question)]
        prompts.append(encode_prompt(loaded.tokenizer, messages)[: loaded.context // 2])
        limits.append(max(1, min(LONGEST, len(loaded.tokenizer.encode(answer)))))
    return Work(prompts, limits)


def measure(loaded: Loaded, work: Work, batch_size: int, rounds: int, name: str) -> float:
    short = Work(work.prompts[:2], [2, 2])
    ours(loaded, short, batch_size), theirs(loaded, short, batch_size)  # both warm
    ratios = []
    for number in range(rounds):
        a, b = ours(loaded, work, batch_size), theirs(loaded, work, batch_size)
        ratios.append(a / b)
        print(f"{name}, batch {batch_size}, round {number + 1}: ours {a:.0f}, theirs {b:.0f} tokens/s: {a / b:.2f}")
    return round(statistics.median(ratios), 3)


def ours(loaded: Loaded, work: Work, batch_size: int) -> float:
    started = time.perf_counter()
    found = generate(loaded, work.prompts, max_new_tokens=work.limits, batch_size=batch_size)
    return sum(g.tokens for g in found) / (time.perf_counter() - started)


class Limits(StoppingCriteria):
    """Each row ends at its own length, as if its model had stopped there."""

    def __init__(self, start: int, limits: Sequence[int]) -> None:
        self.start, self.limits = start, torch.tensor(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return self.limits <= input_ids.shape[1] - self.start


@torch.inference_mode()
def theirs(loaded: Loaded, work: Work, batch_size: int) -> float:
    tokenizer, stops = loaded.tokenizer, sorted(stop_ids(loaded.tokenizer))
    tokens = 0
    started = time.perf_counter()
    for first in range(0, len(work.prompts), batch_size):
        prompts, limits = work.prompts[first : first + batch_size], work.limits[first : first + batch_size]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        out = loaded.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max(limits),
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([Limits(width, limits)]),
        )
        for row, limit in zip(out[:, width:].tolist(), limits, strict=True):
            given = row[:limit]
            tokens += next((i + 1 for i, token in enumerate(given) if token in stops), len(given))
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
