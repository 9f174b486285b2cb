"""A store written by hand: what a run of the quickstart leaves, with plausible numbers and unpleasant strings."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metier.core.fingerprint import Json
from metier.core.store import Artifact, Key, Store

CONTENDERS = ("seedling", "reader", "pairs-only", "specialist")
NASTY = "<script>alert(1)</script>\0 \u202egnirts\u202c <img src=x onerror=alert(1)> \ud800".encode(
    "utf-8", "surrogatepass"
).decode("utf-8", "replace")
TRUTH = {
    ("seedling", "reworded"): 0.10,
    ("seedling", "corpus-only"): 0.09,
    ("reader", "reworded"): 0.30,
    ("reader", "corpus-only"): 0.28,
    ("pairs-only", "reworded"): 0.74,
    ("pairs-only", "corpus-only"): 0.21,
    ("specialist", "reworded"): 0.88,
    ("specialist", "corpus-only"): 0.63,
}
BITS = {"articles": (2.31, 0.62, 1.94, 0.66), "general": (0.81, 0.83, 0.84, 0.845)}

Result = dict[str, tuple[Mapping[str, Json], Artifact]]


class FakeRun:
    """Collects steps: name -> (stage, artifact), as the pipeline would hand them over."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.result: Result = {}

    def add(
        self,
        name: str,
        stage: dict[str, Json],
        produces: str,
        *,
        files: Mapping[str, Any],
        measured: Mapping[str, Any] | None = None,
        warnings: Iterable[str] = (),
        inputs: Mapping[str, str] | None = None,
    ) -> Artifact:
        """inputs: value -> field. A value that names an earlier step is linked to its artifact."""
        key = Key.of(str(stage["kind"]), {"name": name, "stage": stage})
        with self.store.build(key) as space:
            for folder, content in ((space.files, files), (space.measured, measured or {})):
                for path, value in content.items():
                    write(folder / path, value)
            for text in warnings:
                write(space.events, json.dumps({"event": "warning", "text": text}) + "\n", append=True)
            artifact = self.store.commit(space, self.record(name, stage, produces, inputs or {}))
        self.result[name] = (stage, artifact)
        return artifact

    def record(self, name: str, stage: dict[str, Json], produces: str, inputs: Mapping[str, str]) -> dict[str, Json]:
        links: dict[str, Json] = {}
        for value, field in inputs.items():
            link = f"../../{self.result[value][1].key}/files" if value in self.result else value
            links[value] = {"digest": "0" * 64, "link": link, "field": field}
        return {
            "format": 1,
            "kind": stage["kind"],
            "version": 1,
            "produces": produces,
            "step": name,
            "recipe": "quickstart",
            "config": stage,
            "identity": {},
            "inputs": links,
            "metrics": {},
            "seconds": 1.5 + 17 * len(self.result),
            "started": "2026-01-01T12:00:00+00:00",
            "versions": {"metier": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
            "machine": {"system": "Linux", "cores": 2, "threads": 2},
        }


def write(path: Path, value: Any, *, append: bool = False) -> None:
    """Text as it is, a list as JSONL, a dict as JSON, bytes as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
        return
    if isinstance(value, list):
        value = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value)
    elif not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        file.write(value)


def model_files(method: str, *, adapter: str | None = None, steps: int = 600, trained: bool = True) -> dict[str, Any]:
    files: dict[str, Any] = {"tokenizer.json": {}}
    if adapter is not None:
        files |= {"adapter_config.json": {"r": 32}, "adapter_model.safetensors": b"a", "base.json": {"base": adapter}}
    else:
        files |= {"config.json": {}, "model.safetensors": b"weights"}
    if not trained:
        return files
    luck = random.Random(1)
    points: list[dict[str, Any]] = []
    for i in range(1, steps + 1):
        loss = 0.5 + 3 * math.exp(-i / 120) + luck.gauss(0, 0.05)
        rate = 1e-3 * min(1, i / 30) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
        points.append(
            {"step": i, "epoch": i / 150, "loss": loss, "learning_rate": rate, "grad_norm": 1.0, "tokens": i * 8192}
        )
    dev = [{"step": i, "dev_loss": 0.7 + 2.6 * math.exp(-i / 120)} for i in range(100, steps + 1, 100)]
    about = {
        "method": method,
        "parameters": {"trained": 300_000 if adapter else 4_623_360, "total": 4_923_360 if adapter else 4_623_360},
        "tokens_seen": steps * 8192,
        "best_step": steps,
        "labels": {"rows": 640, "masked_rows": 1, "truncated_rows": 3, "trained_tokens": 18_200},
    }
    return files | {"train.jsonl": sorted(points + dev, key=lambda r: r["step"]), "about.json": about}


TRAINED = {
    "about.json": {
        "seconds": 131.2,
        "tokens_per_second": 8700,
        "peak_rss_bytes": 1.3e9,
        "precision": "fp32",
        "threads": 2,
    }
}


def full_run(root: Path) -> Result:
    """The quickstart's twelve steps."""
    run = FakeRun(root)
    add_data(run)
    add_models(run)
    add_answers(run)
    return run.result


def add_data(run: FakeRun) -> None:
    documents = {"sources": [{"path": "data/marine/corpus.jsonl", "field": "text"}], "seed": 0}
    run.add(
        "articles",
        {"kind": "documents", **documents},
        "documents",
        files={
            "about.json": {"replay_ratio": 0.1, "counts": {"train": 1800, "heldout": 90, "replay": 200}},
            "rejects.jsonl": [{"where": "x:1", "reason": "shorter than min_chars", "row": {}}] * 4,
        },
        inputs={"data/marine/corpus.jsonl": "sources.0.path"},
    )
    run.add(
        "general",
        {"kind": "documents", **documents},
        "documents",
        files={"about.json": {"replay_ratio": 0, "counts": {"heldout": 100}}},
    )
    run.add(
        "questions",
        {"kind": "examples", "sources": [{"path": "data/marine/train.jsonl"}]},
        "examples",
        files={"about.json": {"replay_ratio": 0.1, "counts": {"train": 640, "dev": 60, "test": 300, "replay": 64}}},
        warnings=["3 rows are truncated", "3 rows are truncated", NASTY],
    )


def add_models(run: FakeRun) -> None:
    pretrain: dict[str, Json] = {"model": "seedling", "documents": "articles", "epochs": 4, "warmup": 0.03}
    run.add(
        "reader",
        {"kind": "pretrain", **pretrain, "learning_rate": 1e-3, "method": "full"},
        "model",
        files=model_files("full"),
        measured=TRAINED,
        inputs={"seedling": "model", "articles": "documents"},
    )
    lora = {"lora": {"r": 32, "alpha": 64, "dropout": 0.0, "targets": "all-linear", "rslora": False}}
    for name, base, merged in (
        ("specialist-adapter", "reader", "specialist"),
        ("pairs-adapter", "seedling", "pairs-only"),
    ):
        link = f"../../{run.result[base][1].key}/files" if base in run.result else base
        run.add(
            name,
            {"kind": "tune", "model": base, "examples": "questions", "method": lora, "epochs": 6},
            "model",
            files=model_files("lora", adapter=link, steps=120),
            measured=TRAINED,
            inputs={base: "model", "questions": "examples"},
        )
        merge: dict[str, Json] = {"kind": "merge", "model": name, "dtype": "float32"}
        files = model_files("merge", trained=False) | {"model.safetensors": merged.encode()}
        run.add(merged, merge, "model", files=files, inputs={name: "model"})


def add_answers(run: FakeRun) -> None:
    questions, texts, items = ask(300)
    contenders = [{"name": n, "model": n, "parameters": 4_623_360} for n in CONTENDERS]
    speed = {"seconds": 21.0, "tokens_per_second": 1450.0, "peak_rss_bytes": 9.1e8, "p50_seconds": 0.041}
    run.add(
        "answers",
        {"kind": "answer", "models": list(CONTENDERS), "questions": "questions", "split": "test", "max_new_tokens": 32},
        "answers",
        files={
            "questions.jsonl": questions,
            "contenders.json": json.dumps(contenders),
            **{f"answers/{n}.jsonl": texts[n] for n in CONTENDERS},
        },
        measured={"contenders.json": {n: {**speed, "p95_seconds": 0.12} for n in CONTENDERS}},
        inputs={**dict.fromkeys(CONTENDERS, "models"), "questions": "questions"},
    )
    run.add(
        "scores",
        {
            "kind": "score",
            "answers": "answers",
            "metrics": ["token_f1", "exact_match"],
            "against": ["seedling", "pairs-only"],
        },
        "scores",
        files={
            "items.jsonl": items,
            "scores.json": {"baseline": "seedling", "confidence": 0.95, "rows": score_rows(items)},
        },
        inputs={"answers": "answers"},
    )
    rows = [
        score_row(name, "bits_per_byte", group, 100, BITS[group][i], BITS[group], higher=False)
        for group in ("articles", "general")
        for i, name in enumerate(CONTENDERS)
    ]
    run.add(
        "likelihood",
        {"kind": "perplexity", "models": list(CONTENDERS), "documents": ["articles", "general"]},
        "scores",
        files={"items.jsonl": [], "scores.json": {"baseline": "seedling", "confidence": 0.95, "rows": rows}},
        inputs={**dict.fromkeys(CONTENDERS, "models"), "articles": "documents", "general": "documents"},
    )


def add_labels(run: FakeRun) -> None:
    """A score of choices: confusion, reliability, coverage; with a constant and a person beside the models."""
    labels, luck = ["yes", "no", "maybe"], random.Random(3)
    rows, kinds = [], {"seedling": "model", "specialist": "model", "always yes": "trivial", "one human": "human"}
    means = {"seedling": 0.41, "specialist": 0.68, "always yes": 0.55, "one human": 0.78}
    for name, mean in means.items():
        rows.append(score_row(name, "accuracy", "all", 500, mean, (0.41,) * 4, higher=True))
    confusion = [
        {"contender": n, "labels": labels, "matrix": [[a, 250 - a, 26], [b, 140, 29], [20, 25, 10]]}
        for n, a, b in (("seedling", 120, 90), ("specialist", 215, 22), ("always yes", 276, 169))
    ]
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "n": n, "confidence": i / 10 + 0.05, "accuracy": min(1, 0.3 + i * 0.06)}
        for i, n in enumerate((0, 0, 0, 20, 60, 110, 120, 90, 60, 40))
    ]
    points = [[i / 20, 0.45 * (i / 20) ** 1.5 + 0.02 * luck.random()] for i in range(1, 21)]
    scores = {
        "baseline": "seedling",
        "confidence": 0.95,
        "rows": rows,
        "contenders": kinds,
        "confusion": confusion,
        "reliability": [{"contender": n, "bins": bins, "ece": 0.123} for n in ("seedling", "specialist")],
        "coverage": [
            {"contender": "specialist", "points": points},
            {"contender": "seedling", "points": [[x, 0.35 + 0.25 * x] for x, _ in points]},
        ],
    }
    files = {"items.jsonl": [], "scores.json": scores}
    run.add("label-scores", {"kind": "score", "answers": "choices"}, "scores", files=files)


def add_pruning(run: FakeRun) -> None:
    """A prune step that tried four sizes."""
    points = [
        {"ratio": r, "score": s, "low": s - 0.04, "high": s + 0.04, "size_bytes": int(9.9e6 * (1 - r))}
        for r, s in ((0.0, 0.72), (0.1, 0.715), (0.2, 0.66), (0.3, 0.41))
    ]
    files = model_files("merge", trained=False) | {"about.json": {"points": points}}
    run.add("smaller", {"kind": "prune", "model": "specialist"}, "model", files=files, inputs={"specialist": "model"})


def ask(n: int) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Questions, answers by contender and scored items; the first question's answers are the unpleasant string."""
    luck = random.Random(2)
    questions, items = [], []
    texts: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for i in range(n):
        group = "reworded" if i % 2 else "corpus-only"
        messages = [{"role": "user", "content": f"Where does the banded lantern fish number {i} spend the day?"}]
        reference = f"It rests in the kelp forest at {20 + i} metres."
        questions.append({"id": f"q{i:03}", "group": group, "messages": messages, "reference": reference})
        for name in CONTENDERS:
            right = luck.random() < TRUTH[name, group]
            f1 = 1.0 if right else round(luck.random() * 0.4, 3)
            text = NASTY if i == 0 else reference if right else "It likes to play in the garden with the ball."
            texts[name].append({"id": f"q{i:03}", "text": text, "tokens": 12, "stopped": right})
            items.append(
                {"id": f"q{i:03}", "contender": name, "group": group, "token_f1": f1, "exact_match": float(right)}
            )
    # One answer of the unpleasant question is the largest gain there is, so that it is among those shown.
    for item in items[: len(CONTENDERS)]:
        item["token_f1"] = float(item["contender"] == "specialist")
    return questions, texts, items


def score_rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for metric in ("token_f1", "exact_match"):
        for group in ("all", "corpus-only", "reworded"):
            chosen = [i for i in items if group in ("all", i["group"])]
            means = []
            for name in CONTENDERS:
                values = [i[metric] for i in chosen if i["contender"] == name]
                means.append(sum(values) / len(values))
            n = len(chosen) // len(CONTENDERS)
            for name, mean in zip(CONTENDERS, means, strict=True):
                rows.append(score_row(name, metric, group, n, mean, tuple(means), higher=True))
    return rows


def score_row(
    name: str, metric: str, group: str, n: int, mean: float, means: tuple[float, ...], *, higher: bool
) -> dict[str, Any]:
    half = 0.6 * (mean if mean < 0.5 else 1 - mean if mean < 1 else 0.2) / math.sqrt(n) * 3
    versus = []
    for against in ("seedling", "pairs-only"):
        if name in ("seedling", against):
            continue
        difference = mean - means[CONTENDERS.index(against)]
        sure = abs(difference) > 0.02
        versus.append(
            {
                "against": against,
                "difference": difference,
                "low": difference - half,
                "high": difference + half,
                "p": 0.0001 if sure else 0.21,
                "p_holm": 0.0004 if sure else 0.42,
                "verdict": ("better" if (difference > 0) == higher else "worse")
                if sure
                else "no evidence of a difference",
                "detectable": 0.071,
            }
        )
    return {
        "contender": name,
        "metric": metric,
        "group": group,
        "n": n,
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "higher_is_better": higher,
        "method": "bootstrap over items, 2,000 resamples",
        "versus": versus,
    }


def training_only(root: Path) -> Result:
    """One step that trains from an outside model: no data step, no answers, no scores, no dev rows."""
    run = FakeRun(root)
    files = model_files("full", steps=3)
    files["train.jsonl"] = [row for row in files["train.jsonl"] if "loss" in row]
    run.add(
        "reader",
        {"kind": "pretrain", "model": "seedling", "documents": "elsewhere", "method": "full"},
        "model",
        files=files,
        inputs={"seedling": "model"},
    )
    return run.result


def one_contender(root: Path) -> Result:
    """A single model asked, scored without anything to compare it with."""
    run = FakeRun(root)
    run.add(
        "answers",
        {"kind": "answer", "models": ["seedling"], "questions": "elsewhere"},
        "answers",
        files={
            "questions.jsonl": [
                {"id": "a", "group": "", "messages": [{"role": "user", "content": "Why?"}], "reference": ""}
            ],
            "contenders.json": json.dumps([{"name": "seedling", "model": "seedling", "parameters": None}]),
            "answers/seedling.jsonl": [{"id": "a", "text": "", "tokens": 0, "stopped": False}],
        },
        inputs={"seedling": "models"},
    )
    row = {
        "contender": "seedling",
        "metric": "token_f1",
        "group": "all",
        "n": 1,
        "mean": 0.0,
        "low": None,
        "high": None,
    }
    run.add(
        "scores",
        {"kind": "score", "answers": "answers", "metrics": ["token_f1"]},
        "scores",
        files={
            "items.jsonl": [{"id": "a", "contender": "seedling", "group": "", "token_f1": 0.0}],
            "scores.json": {
                "baseline": "seedling",
                "confidence": 0.95,
                "rows": [{**row, "higher_is_better": True, "method": "", "versus": []}],
            },
        },
        inputs={"answers": "answers"},
    )
    return run.result
