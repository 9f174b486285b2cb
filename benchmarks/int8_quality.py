"""What an int8 base costs in quality: `python -m benchmarks.int8_quality`.

The seedling is tuned with LoRA on the marine questions and on MedQuAD's short answers, on a bf16 base and on an int8
one, with the same seeds, through `metier run`. The figure is the dev loss on int8 over that on bf16, minus one: the
mean over the seeds with a t-interval of 95 %. Rows go to `benchmarks/results/training.json`. Needs ../shared; a quarter
of an hour on two cores. With `--minutes N` a call ends after about that many (exit code 75), and the next goes on.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

from benchmarks.rows import Row, write
from benchmarks.work import ROOT, SHORT_ANSWER, clean, medquad, need_shared

SEEDS = range(5)
MARINE = ROOT / "recipes/data/marine"
TRAINED, HELD_OUT = 400, 100
FOLDER = ROOT / "build/int8_quality"
RECIPE = """
name: int8
steps:
  questions: {{kind: examples, sources: [{{path: {train}}}], dev: [{{path: {dev}}}]}}
"""
STEP = """
  {name}:
    kind: tune
    model: seedling
    examples: questions
    method: {{lora: {{r: 16, alpha: 32}}}}
    precision: bf16
    quantize: {quantize}
    keep_best: false
    epochs: 1
    learning_rate: 1.0e-3
    batch_size: 16
    seed: {seed}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What an int8 base costs in quality.")
    parser.add_argument("--minutes", type=float, help="stop after about so many; the next call goes on")
    given = parser.parse_args()
    need_shared()
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_medquad(FOLDER)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    rows = [
        difference("the seedling on marine questions", MARINE / "train.jsonl", MARINE / "dev.jsonl", until),
        difference("the seedling on MedQuAD", FOLDER / "train.jsonl", FOLDER / "dev.jsonl", until),
    ]
    write("training", "python -m benchmarks.int8_quality", rows)
    shutil.rmtree(FOLDER)


def write_medquad(folder: Path) -> None:
    """Short answers, split by question."""
    pairs = {clean(row["question"]): clean(row["answer"]) for row in medquad()}
    short = [(q, a) for q, a in pairs.items() if q and a and len(a.split()) < SHORT_ANSWER]
    chosen = random.Random(0).sample(short, TRAINED + HELD_OUT)
    for name, part in (("train", chosen[:TRAINED]), ("dev", chosen[TRAINED:])):
        lines = (json.dumps({"question": q, "answer": a}) + "\n" for q, a in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def difference(what: str, train: Path, dev: Path, until: float | None) -> Row:
    """The relative difference in dev loss, as a row. until: when to stop; SystemExit(75) where that comes first."""
    recipe, store = FOLDER / f"{train.parent.name}.yaml", FOLDER / train.parent.name
    steps = [STEP.format(name=f"{kind}-{seed}", quantize=q, seed=seed) for seed in SEEDS for kind, q in KINDS.items()]
    recipe.write_text(RECIPE.format(train=train, dev=dev) + "".join(steps), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("metier")),
        "run",
        str(recipe),
        "--store",
        str(store),
        "--out",
        str(FOLDER / "runs"),
    ]
    if until is not None:
        command += ["--max-minutes", str(max(0.1, (until - time.monotonic()) / 60))]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    loss = {}
    for record in store.glob("objects/*/run.json"):
        found = json.loads(record.read_text(encoding="utf-8"))
        if "dev_loss" in found["metrics"]:
            loss[found["step"], str(dev)] = found["metrics"]["dev_loss"]
    each = [loss[f"int8-{seed}", str(dev)] / loss[f"bf16-{seed}", str(dev)] - 1 for seed in SEEDS]
    half = t.ppf(0.975, len(each) - 1) * stdev(each) / len(each) ** 0.5
    low, high = mean(each) - half, mean(each) + half
    worst = max(abs(low), abs(high))
    return Row(
        f"int8 base beside bf16, {what}: dev loss, farther end of the interval of the difference",
        worst,
        0.01,
        "share",
        "lower",
        n=len(each),
        interval=(low, high),
    )


KINDS = {"bf16": "null", "int8": "int8"}

if __name__ == "__main__":
    main()
