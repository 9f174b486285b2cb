"""Labels by log-likelihood beside lm-evaluation-harness: `python -m benchmarks.labels [agree|people] [--items N]`.

agree    the same model in memory, the same PubMedQA questions, contexts and labels, through `evaluate.choosing.choose`
         and through the harness's HFLM: how many predictions are the same, the largest difference of a log-likelihood
         where the question fits the context (the harness cuts each label's context by its own length, we cut one for
         all), and the time of the harness over ours. Both sides tokenise; the harness has the fastest of
         some batch sizes, found on the first questions. Chunks of questions alternate, and so does who is first.
         Models: the seedling (5 M parameters), and random weights of TinyLlama's shape with BLOCKS blocks and its real
         tokenizer. Of these blocks the harness's waste is a larger share than of all 22: bars are for what is measured.
people   PubMedQA's official evaluation of the person whose answers its file holds

Both need ../shared. Rows go to benchmarks/results/evaluation.json.
"""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.rows import Row, write
from metier.evaluate.choosing import How, choose, references
from metier.evaluate.labels import Chosen, macro_f1
from metier.evaluate.taskfiles import SHIPPED, read_task
from metier.models.builtin import BUILTIN
from metier.models.load import Loaded, load
from metier.models.sizes import TINYLLAMA
from metier.text.chat import prompt_choices
from metier.text.items import Item

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data/pubmedqa/ori_pqal.json"
BLOCKS = 4
BATCHES = (1, 4, 16)
CHUNKS = 6
"""Parts of the questions that both sides read in turn."""
SPEED = 1.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["agree", "people"])
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--models", nargs="+", choices=["seedling", "tinyllama"], default=["seedling", "tinyllama"])
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    args = parser.parse_args()
    if args.part in (None, "people"):
        write("evaluation", "python -m benchmarks.labels people", people())
    if args.part in (None, "agree"):
        rows = [row for name in args.models for row in agree(name, args.items, args.blocks)]
        write("evaluation", "python -m benchmarks.labels agree", rows)


def people() -> list[Row]:
    rows = []
    task = read_task(SHIPPED / "pubmedqa")
    for way, accuracy, f1 in (("reasoning-required", 78.0, 72.2), ("reasoning-free", 90.4, 84.2)):
        parts = task.items(DATA, way)
        _, said = references(parts.test, parts.train)["human"]
        chosen = [Chosen(s, s, s, None) for s in said]
        right = 100 * float(np.mean([s == item.label for s, item in zip(said, parts.test, strict=True)]))
        macro = 100 * macro_f1(parts.test, chosen, parts.test[0].choices).value
        for what, found, published in (("accuracy", right, accuracy), ("macro-F1", macro, f1)):
            off = abs(round(found, 1) - published)
            case = (
                f"PubMedQA, the person's {what}, {way}: {found:.1f}, published {published}; distance at that precision"
            )
            rows.append(Row(case, off, 0.0, "points", "lower", n=len(parts.test)))
    return rows


def agree(name: str, count: int | None, blocks: int) -> list[Row]:
    loaded = seedling() if name == "seedling" else tinyllama(blocks)
    count = count or (500 if name == "seedling" else 120)
    parts = read_task(SHIPPED / "pubmedqa").items(DATA, "reasoning-required")
    items = [parts.test[i * len(parts.test) // count] for i in range(count)]
    how = How(unconditional=False, truncate=True)
    choose(loaded, items[:2], how)  # what is allocated once
    sides = Sides(loaded, how)
    sides.batch = sides.fastest(items[: max(8, count // 20)])
    ours, theirs = [0.0], [0.0]
    same, furthest, fitting = 0, 0.0, 0
    for number in range(CHUNKS):
        chunk = items[number::CHUNKS]
        order = [(ours, sides.ours), (theirs, sides.theirs)]
        found: dict[int, Any] = {}
        for clock, read in order if number % 2 else reversed(order):
            started = time.perf_counter()
            found[id(clock)] = read(chunk)
            clock[0] += time.perf_counter() - started
        (a, whole), (b, _) = found[id(ours)], found[id(theirs)]
        same += int(np.sum(np.argmax(a, 1) == np.argmax(b, 1)))
        gaps = np.abs(np.array(a) - np.array(b))[whole]
        furthest, fitting = max(furthest, float(gaps.max(initial=0))), fitting + gaps.size
    what = "the seedling" if name == "seedling" else f"TinyLlama's shape, {blocks} blocks, random"
    peer = f"lm-eval 0.4.13, HFLM, batch {sides.batch}"
    print(f"{what}: ours {ours[0]:.1f} s, theirs {theirs[0]:.1f} s, {count} questions", flush=True)
    return [
        Row(f"labels agree, PubMedQA, {what}", 100 * same / count, 100.0, "% of questions", "higher", peer, n=count),
        Row(f"largest difference of a log-likelihood, {what}", furthest, 1e-3, "nats", "lower", peer, n=fitting),
        Row(f"time over ours, PubMedQA, {what}", theirs[0] / ours[0], SPEED, "times", "higher", peer, n=count),
    ]


class Sides:
    """Both ways to read the same questions with one model in memory."""

    def __init__(self, loaded: Loaded, how: How) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # a line for every question that it cuts
        self.loaded, self.how, self.batch = loaded, how, 1
        self._make = lambda batch: HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=batch,
            device="cpu",
            max_length=loaded.context,
        )
        self._made: dict[int, Any] = {}

    def ours(self, items: Sequence[Item]) -> tuple[list[list[float]], list[bool]]:
        """The log-likelihoods, and which questions fit the context."""
        rows = choose(self.loaded, items, self.how)
        return [[c["logprob"] for c in row["choices"]] for row in rows], ["truncated" not in row for row in rows]

    def theirs(self, items: Sequence[Item]) -> tuple[list[list[float]], list[bool]]:
        from lm_eval.api.instance import Instance

        if self.batch not in self._made:
            self._made[self.batch] = self._make(self.batch)
        tokenizer = self.loaded.tokenizer
        asked = [prompt_choices(tokenizer, self.how.prompt_of(i), self.how.scored(i)) for i in items]
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(one.context, continuation), idx=place)
            for one in asked
            for place, continuation in enumerate(one.continuations)
        ]
        found = [value for value, _ in self._made[self.batch].loglikelihood(requests, disable_tqdm=True)]
        width = len(items[0].choices)
        return [found[i : i + width] for i in range(0, len(found), width)], []

    def fastest(self, items: Sequence[Item]) -> int:
        times = {}
        for self.batch in BATCHES:
            self.theirs(items[:2])
            started = time.perf_counter()
            self.theirs(items)
            times[self.batch] = time.perf_counter() - started
        return min(times, key=lambda batch: times[batch])


def seedling() -> Loaded:
    return load(BUILTIN["seedling"])


def tinyllama(blocks: int) -> Loaded:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**{**TINYLLAMA, "num_hidden_layers": blocks}, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers/tinyllama", local_files_only=True)
    return Loaded(LlamaForCausalLM(config).eval(), tokenizer, Path("random"))


if __name__ == "__main__":
    main()
