"""What a domain's own words save and cost: `python -m benchmarks.tokenizer fertility`, `seedling` or `speed`.

    fertility  MedQuAD with the tokenizers of TinyLlama, GPT-2 and Llama 3, 2,000 new tokens, on held-out questions and
               WikiText-2's validation text; how long extending takes. Needs ../shared; a minute
    seedling   the bundled model on marine articles: each way to begin new rows, the same training on the same bytes,
               beside the model without new tokens. Through `metier run`; a quarter of an hour. Prints the table too
    speed      seconds of training and bytes a second of answering, with and without new tokens. Wants the machine to
               itself; three minutes

Rows go to `results/tokenizer.json`. `--keep FOLDER` keeps the seedling's run with its report.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.rows import Row, write
from benchmarks.work import MEDQUAD, ROOT, SHARED, need_shared

MARINE, GENERAL = ROOT / "recipes/data/marine", ROOT / "recipes/data/general"
HELD_OUT = 20
"""Every so many rows of MedQuAD are held out."""
NEW = 2000
SEEDLING_NEW = 1000
WAYS = ("mean", "weighted", "description", "random")
RESAMPLES = 2000
SEEDS = (0, 1)
ARTICLES = 1500
"""Of the marine corpus, in its order."""
COMMAND = "python -m benchmarks.tokenizer {}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("fertility", "seedling", "speed"))
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep.resolve() if asked.keep else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = {"fertility": fertility, "seedling": seedling, "speed": speed}[asked.part](folder)
    write("tokenizer", COMMAND.format(asked.part), rows)


# ---- fertility ------------------------------------------------------------------------------------------------------


def fertility(folder: Path) -> list[Row]:
    """MedQuAD under three tokenizers."""
    need_shared()
    rows: list[Row] = []
    medquad, general = folder / "medquad", folder / "general"
    write_medquad(medquad)
    write_wikitext(general)
    for name, bar in (("tinyllama", 12.0), ("gpt2", 5.0), ("llama3", 5.0)):
        out, seconds = extended(folder / name, name, medquad, general)
        about = json.loads((out / "about.json").read_text(encoding="utf-8"))
        domain, left = about["fertility"]["domain"], about["fertility"]["general"]
        low, high = saving_interval(folder / name / "base", out, texts(medquad / "heldout.jsonl"))
        rows += [
            Row(
                f"{name}: tokens saved on held-out MedQuAD, {about['new_tokens']} new tokens",
                round(100 * domain["saving"], 2),
                bar,
                "%",
                "higher",
                n=domain["texts"],
                interval=(low, high),
            ),
            Row(
                f"{name}: general text changed (WikiText-2 valid)",
                round(100 * abs(left["saving"]), 3),
                0.5,
                "%",
                "lower",
                n=left["texts"],
            ),
            *[
                Row(
                    f"{name}: tokens a word on {title}, after (bar: before)",
                    row["tokens_per_word"]["after"],
                    row["tokens_per_word"]["before"],
                    "tokens",
                    "lower",
                    n=row["words"],
                )
                for title, row in (("held-out MedQuAD", domain), ("WikiText-2 valid", left))
            ],
            Row(f"{name}: extending by {NEW} tokens over MedQuAD", round(seconds, 1), 180, "s", "lower"),
        ]
    return rows


def write_medquad(folder: Path) -> None:
    with MEDQUAD.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = [f"{row['question']}\n{row['answer']}" for row in rows]
    documents(folder, [t for i, t in enumerate(found) if i % HELD_OUT], found[::HELD_OUT])


def write_wikitext(folder: Path) -> None:
    wikitext = SHARED / "data/wikitext2"
    test, valid = ((wikitext / f"{n}.txt").read_text(encoding="utf-8").splitlines(True) for n in ("test", "valid"))
    documents(folder, test, valid)


def documents(folder: Path, train: Sequence[str], heldout: Sequence[str]) -> None:
    """What a documents step leaves."""
    from metier.text.artifacts import write_jsonl

    folder.mkdir(parents=True)
    for name, some in (("train", train), ("heldout", heldout)):
        write_jsonl(folder / f"{name}.jsonl", ({"id": f"{name}{i}", "text": text} for i, text in enumerate(some)))
    (folder / "about.json").write_text(json.dumps({"characters": {"train": sum(map(len, train))}}), encoding="utf-8")


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def extended(folder: Path, name: str, domain: Path, general: Path) -> tuple[Path, float]:
    """Run the stage on a model with that tokenizer and TinyLlama's width; its files and its seconds."""
    from metier.core.events import Events
    from metier.core.stage import Context, Source
    from metier.tokenizer.stage import ExtendTokenizer

    base = model_with(folder / "base", name)
    for part in ("out", "measured", "scratch"):
        (folder / part).mkdir(parents=True)
    paths = {"base": base, "domain": domain, "general": general}
    sources = {key: Source(key, (path,), str(path), "0") for key, path in paths.items()}
    stage = ExtendTokenizer(model="base", documents="domain", general="general", max_new_tokens=NEW)
    started = time.perf_counter()
    stage.check(sources)
    stage.run(Context("x", folder / "out", folder / "measured", folder / "scratch", Events("x"), sources))
    return folder / "out", time.perf_counter() - started


def model_with(folder: Path, name: str) -> Path:
    """Random weights in bf16 with both matrices 2,048 wide and two blocks: extending touches nothing else."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from metier.models.load import read_tokenizer
    from metier.models.save import save_model

    tokenizer = read_tokenizer(SHARED / "tokenizers" / name)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(config).to(torch.bfloat16), tokenizer, folder)
    return folder


def saving_interval(old: Path, new: Path, some: Sequence[str]) -> tuple[float, float]:
    """Percent of tokens saved, 95 %: bootstrap over documents."""
    from tokenizers import Tokenizer

    counts = []
    for folder in (old, new):
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        counts.append([len(one.ids) for one in tokenizer.encode_batch_fast(list(some), add_special_tokens=False)])
    before, after = np.array(counts, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(some), (RESAMPLES, len(some)))
    savings = 100 * (1 - after[picks].sum(1) / before[picks].sum(1))
    low, high = np.quantile(savings, (0.025, 0.975))
    return round(float(low), 2), round(float(high), 2)


# ---- the seedling ---------------------------------------------------------------------------------------------------

HEAD = """
name: words
description: The seedling reads about the sea with the domain's own words and without them.
steps:
  articles:
    kind: documents
    sources: [{{path: {corpus}}}]
    heldout: [{{path: {marine}/corpus_heldout.jsonl}}]
    replay: {{sources: [{{path: {general}/replay.jsonl}}], ratio: 0.1}}
  general:
    kind: documents
    heldout: [{{path: {general}/heldout.jsonl}}]
"""
EXTEND = """
  {name}:
    kind: extend_tokenizer
    model: seedling
    documents: articles
    max_new_tokens: {new}
    extend: always
    min_count: 5
    initialise: {way}
{more}"""
TRAIN = """
  {name}:
    kind: pretrain
    model: {model}
    documents: articles
    learning_rate: 1.0e-3
    block_size: 512
    batch_size: 4
    seed: {seed}
"""
MEASURE = """
  likelihood:
    kind: perplexity
    models: [{models}]
    documents: [articles, general]
    against: [{against}]
"""


def seedling(folder: Path) -> list[Row]:
    """Every way to begin, the same bytes."""
    recipe = folder / "words.yaml"
    recipe.write_text(seedling_recipe(folder), encoding="utf-8")
    metier(recipe, folder)
    scores = json.loads((files_of(folder, "likelihood") / "scores.json").read_text(encoding="utf-8"))
    print_table(folder, scores)
    rows = [
        versus(scores, "read-mean", against, title)
        for against, title in (
            ("read-random", "mean-of-pieces over random rows"),
            ("read-plain", "mean-of-pieces over the model without new tokens"),
        )
    ]
    for seed in SEEDS[1:]:
        title = f"mean-of-pieces over random rows, seed {seed}"
        rows.append(versus(scores, f"read-mean-{seed}", f"read-random-{seed}", title))
    about = json.loads((files_of(folder, "words-mean") / "about.json").read_text(encoding="utf-8"))
    saving = about["fertility"]["domain"]
    title = f"seedling: tokens saved on held-out marine text, {about['new_tokens']} new tokens"
    rows.append(Row(title, round(100 * saving["saving"], 2), 5.0, "%", "higher", n=saving["texts"]))
    return rows


def seedling_recipe(folder: Path) -> str:
    """One extension a way, one training each, more seeds of the two that are compared, and the twin."""
    told = folder / "descriptions.jsonl"
    write_descriptions(told)
    parts = [head(folder)]
    contenders = ["seedling"]
    for way in WAYS:
        more = f"    descriptions: {told}\n" if way == "description" else ""
        parts.append(EXTEND.format(name=f"words-{way}", new=SEEDLING_NEW, way=way, more=more))
    short = EXTEND.format(name="words-unmatched", new=SEEDLING_NEW, way="mean", more="    match_norms: false\n")
    parts.append(short)
    trained = [(f"read-{way}", f"words-{way}", 0) for way in (*WAYS, "unmatched")] + [("read-plain", "seedling", 0)]
    for seed in SEEDS[1:]:
        trained += [(f"read-{way}-{seed}", f"words-{way}", seed) for way in ("mean", "random")]
    for name, model, seed in trained:
        parts.append(TRAIN.format(name=name, model=model, seed=seed))
        contenders.append(name)
    against = ["read-plain", "read-random", *(f"read-random-{seed}" for seed in SEEDS[1:])]
    parts.append(MEASURE.format(models=", ".join(contenders), against=", ".join(against)))
    return "".join(parts)


def head(folder: Path) -> str:
    """The data steps."""
    corpus = folder / "corpus.jsonl"
    lines = (MARINE / "corpus.jsonl").read_text(encoding="utf-8").splitlines(True)
    corpus.write_text("".join(lines[:ARTICLES]), encoding="utf-8")
    return HEAD.format(corpus=corpus, marine=MARINE, general=GENERAL)


def write_descriptions(path: Path) -> None:
    """For each word of the articles that it stands in first, the rest of that sentence: what is said of it."""
    said: dict[str, str] = {}
    for text in texts(MARINE / "corpus.jsonl"):
        for sentence in text.split(". "):
            words = sentence.split()
            for word in {w.strip(".,;:()\"'") for w in words}:
                rest = " ".join(w for w in words if w.strip(".,;:()\"'") != word)
                if word.isalpha() and len(word) > 3 and rest:
                    said.setdefault(word, rest)
    rows = (json.dumps({"word": word, "text": text}, ensure_ascii=False) for word, text in sorted(said.items()))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def metier(recipe: Path, folder: Path) -> None:
    program = str(Path(sys.executable).with_name("metier"))
    places = ["--store", str(folder / "store"), "--out", str(folder / "runs")]
    subprocess.run([program, "run", str(recipe), *places], cwd=folder, check=True)


def files_of(folder: Path, step: str, recipe: str = "words", part: str = "files") -> Path:
    key = (folder / "store/refs" / recipe / step).read_text(encoding="utf-8").strip()
    return folder / "store/objects" / key / part


def versus(scores: dict[str, Any], contender: str, against: str, title: str) -> Row:
    """The paired difference in bits per byte on the domain's held-out documents."""
    (row,) = rows_of(scores, contender, "articles")
    found = next(one for one in row["versus"] if one["against"] == against)
    interval = (found["low"], found["high"])
    return Row(
        f"seedling: bits per byte on held-out marine text, {title} (difference)",
        round(found["difference"], 5),
        0.0,
        "bits",
        "lower",
        n=row["n"],
        interval=tuple(round(end, 5) for end in interval),  # type: ignore[arg-type]
    )


def rows_of(scores: dict[str, Any], contender: str, group: str) -> Iterable[dict[str, Any]]:
    wanted = (contender, "bits_per_byte", group)
    return (row for row in scores["rows"] if (row["contender"], row["metric"], row["group"]) == wanted)


def print_table(folder: Path, scores: dict[str, Any]) -> None:
    """Bits per byte of every contender on both texts, with the tokens that it was trained on."""
    print(f"{'contender':24} {'articles':>28} {'general':>28} {'tokens':>9} {'steps':>6}")
    for name in dict.fromkeys(row["contender"] for row in scores["rows"]):
        shown = []
        for group in ("articles", "general"):
            (row,) = rows_of(scores, name, group)
            shown.append(f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")
        about = {}
        if name != "seedling":
            about = json.loads((files_of(folder, name) / "about.json").read_text(encoding="utf-8"))
        print(f"{name:24} {shown[0]:>28} {shown[1]:>28} {about.get('tokens_seen', 0):9} {about.get('steps', 0):6}")


# ---- speed ----------------------------------------------------------------------------------------------------------

ROUNDS = 3
PROMPTS, PIECES = 32, 48


def speed(folder: Path) -> list[Row]:
    """Training seconds for the same bytes, and bytes answered a second, extended over not: medians of rounds."""
    recipe = folder / "speed.yaml"
    parts = [head(folder).replace("name: words", "name: speed")]
    parts.append(EXTEND.format(name="words-mean", new=SEEDLING_NEW, way="mean", more=""))
    for number in range(ROUNDS):
        for name, model in (("with", "words-mean"), ("without", "seedling")):
            parts.append(TRAIN.format(name=f"{name}-{number}", model=model, seed=number) + "    max_steps: 40\n")
    recipe.write_text("".join(parts), encoding="utf-8")
    metier(recipe, folder)
    seconds = {"with": [], "without": []}  # type: dict[str, list[float]]
    for number in range(ROUNDS):
        for name in seconds:
            told = files_of(folder, f"{name}-{number}", "speed", "measured") / "about.json"
            measured = json.loads(told.read_text(encoding="utf-8"))
            seconds[name].append(1 / measured["tokens_per_second"])
    about = json.loads((files_of(folder, "words-mean", "speed") / "about.json").read_text(encoding="utf-8"))
    tokens = about["fertility"]["domain"]["tokens"]
    share = tokens["after"] / tokens["before"]
    training = [share * a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    answering = answer_speeds(folder)
    return [
        Row(
            "seedling: training seconds for the same bytes, with new tokens over without",
            round(median(training), 3),
            1.0,
            "ratio",
            "lower",
            peer="the seedling's own tokenizer",
            n=ROUNDS,
            interval=(round(min(training), 3), round(max(training), 3)),
        ),
        Row(
            "seedling: bytes answered a second, with new tokens over without",
            round(median(answering), 3),
            1.0,
            "ratio",
            "higher",
            peer="the seedling's own tokenizer",
            n=ROUNDS,
            interval=(round(min(answering), 3), round(max(answering), 3)),
        ),
    ]


def answer_speeds(folder: Path) -> list[float]:
    """Bytes a second that the two trained models write from the openings of the same documents, in turns."""
    from metier.engine.local import generate
    from metier.models.load import load

    models = {name: load(files_of(folder, f"{name}-0", "speed")) for name in ("with", "without")}
    openings = [" ".join(text.split()[:8]) for text in texts(MARINE / "corpus_heldout.jsonl")[:PROMPTS]]
    found = []
    for _ in range(ROUNDS):
        rates = {}
        for name, loaded in models.items():
            prompts = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in openings]
            started = time.perf_counter()
            made = generate(loaded, prompts, max_new_tokens=PIECES)
            rates[name] = sum(len(one.text.encode()) for one in made) / (time.perf_counter() - started)
        found.append(rates["with"] / rates["without"])
    return found


if __name__ == "__main__":
    main()
