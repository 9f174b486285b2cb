"""The five specialists, tried whole: `python -m benchmarks.recipes smoke|best|rehearse [NAME ...]`, then `table`.

smoke       each recipe at smoke size, in a process of its own: seconds, sections of the report without content, and by
            how much the specialist beats its base on its own held-out questions
best        the same recipes as their variant `best`, and what that adds, question by question
rehearse    each training step on the true architecture with random weights and the real tokenizer: memory and time,
            taken and predicted. Needs ../shared for the tokenizers, and a machine with 24 GiB of memory
table       writes the tables in the README and in docs/specialists.md from the rows

Rows go to benchmarks/results/recipes.json, those of each recipe by themselves, so that one can be measured again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

from benchmarks.rows import RESULTS, Row, write
from benchmarks.sittings import Others
from benchmarks.work import SHARED, need_shared

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build/recipes"
METIER = [sys.executable, "-c", "from metier.cli import main; main()"]
LONGEST_SECONDS = 240
MOST_BYTES = 24 * 2**30
MOST_OFF = 0.20
LEAST_CONTENT = 60
"""Characters of a section, its heading left out, from which it counts as having content."""
BEGIN, END = "<!-- specialists -->\n", "<!-- end of specialists -->\n"

SPECIALISTS: dict[str, dict[str, str]] = {
    "pharma": {
        "base": "TinyLlama 1.1B", "contender": "full", "scores": "likelihood", "metric": "bits_per_byte",
        "group": "corpus", "step": "full",
    },
    "marine-biology": {
        "base": "TinyLlama 1.1B Chat", "contender": "specialist", "scores": "scores", "metric": "token_f1",
        "step": "adapter"
    },
    "medication": {
        "base": "GPT-2", "contender": "specialist", "scores": "scores", "metric": "token_f1", "step": "adapter"
    },
    "pubmedqa": {
        "base": "Llama 3.1 8B", "contender": "specialist", "scores": "decided", "metric": "accuracy", "step": "adapter"
    },
    "sleep-stress": {
        "base": "TinyLlama 1.1B", "contender": "final", "scores": "fact-scores", "metric": "token_f1", "step": "adapter"
    },
}  # fmt: skip
"""By name: the real base, the contender that is handed over, and the score of its own held-out questions."""
METHODS = {
    "pharma/full": "all weights",
    "pharma/freeze": "last 4 blocks and head",
    "pharma/adapter": "LoRA r 8 on q, v; 8-bit base",
    "marine-biology/adapter": "LoRA r 16 on all layers; 4-bit base",
    "medication/adapter": "LoRA r 8 on c_attn",
    "pubmedqa/adapter": "LoRA r 16 on all layers; 4-bit base",
    "sleep-stress/reader": "reading: LoRA r 16 on q, k, v, o, new words; 4-bit base",
    "sleep-stress/adapter": "answering: LoRA r 16 on q, k, v, o; 4-bit base",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smoke", "best", "rehearse", "table"))
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SPECIALISTS))
    parser.add_argument("--layers", type=int, help="of rehearse: so many, not as many as fit")
    given = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    if given.what == "table":
        write_tables()
        return
    for name in given.names:
        if given.what == "smoke":
            rows = smoke(name)
        elif given.what == "best":
            rows = best(name)
        else:
            need_shared()
            rows = rehearse(name, given.layers)
        write("recipes", f"python -m benchmarks.recipes {given.what} {name}", rows)


def processor_seconds() -> float:
    """What the children of this process have taken of the cores so far."""
    times = os.times()
    return times.children_user + times.children_system


def metier(*arguments: str) -> None:
    """Run the command line in a process of its own, and stop where it fails."""
    done = subprocess.run([*METIER, *arguments], cwd=PLACE, capture_output=True, text=True, check=False)
    (PLACE / "last.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-3000:]}")


# ---- smoke -----------------------------------------------------------------------------------------------------------


def smoke(name: str, variant: str | None = None) -> list[Row]:
    """One recipe at smoke size, everything made anew."""
    called = "-".join(filter(None, (name, variant, "smoke")))
    store = PLACE / f"store-{called}"
    subprocess.run(["rm", "-rf", str(store)], check=True)
    more = ["--variant", variant] if variant else []
    others, start, spent = Others(), time.monotonic(), processor_seconds()
    metier(
        "run", str(ROOT / "recipes" / f"{name}.yaml"), "--smoke", *more, "--store", str(store), "--out", "runs", "-q"
    )
    seconds = time.monotonic() - start
    page = PLACE / "runs" / called / "report.html"
    empty = empty_sections(page.read_text(encoding="utf-8"))
    steps = len(list((store / "refs" / called).iterdir()))
    told = f"{called}: {steps} steps and the report; others took {100 * others.share():.0f} % of the cores"
    spent = round(processor_seconds() - spent, 1)
    rows = [
        Row(told, round(seconds, 1), LONGEST_SECONDS, "s", "lower"),
        Row(f"{called}: of both cores, processor time of all of it", spent, 2 * LONGEST_SECONDS, "s", "lower"),
        Row(f"{called}: sections of the report without content", len(empty), 0, "sections", "lower"),
    ]
    return rows + gains(name, called, store)


def gains(name: str, called: str, store: Path) -> list[Row]:
    """By how much the specialist beats its base, and what each reaches."""
    about = SPECIALISTS[name]
    scores = read_scores(store, called, about["scores"])
    group = about.get("group", "all")
    found = {r["contender"]: r for r in scores if r["metric"] == about["metric"] and r["group"] == group}
    after, before = found[about["contender"]], found["seedling"]
    versus = next(v for v in after["versus"] if v["against"] == "seedling")
    n, unit = after["n"], about["metric"].replace("_", " ")
    gain, low, high = versus["difference"], versus["low"], versus["high"]
    if not after["higher_is_better"]:  # then what fell is what was gained
        gain, low, high = -gain, -high, -low
    what = f"{called}: {about['contender']} less seedling, lower end of the 95 % interval of {gain:+.3f}"
    what += "" if after["higher_is_better"] else ", by which it fell"
    return [
        Row(what, round(low, 4), 0, unit, "higher", n=n, interval=(round(low, 4), round(high, 4))),
        Row(f"{called}: before", round(before["mean"], 4), 0, unit, "higher", n=n, interval=ends(before)),
        Row(f"{called}: after", round(after["mean"], 4), 0, unit, "higher", n=n, interval=ends(after)),
    ]


def ends(row: dict[str, Any]) -> tuple[float, float]:
    return round(row["low"], 4), round(row["high"], 4)


def read_scores(store: Path, recipe: str, step: str) -> list[dict[str, Any]]:
    """The rows of a score step."""
    key = (store / "refs" / recipe / step).read_text(encoding="utf-8").strip()
    rows: list[dict[str, Any]] = json.loads((store / "objects" / key / "files/scores.json").read_text("utf-8"))["rows"]
    return rows


class Sections(HTMLParser):
    """The text of each section, its headings left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open: list[str] = []
        self._heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self._open.append(dict(attrs).get("id") or f"section-{len(self.found)}")
            self.found.setdefault(self._open[-1], "")
        self._heading = self._heading or tag in ("h2", "h3")

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._open.pop()
        if tag in ("h2", "h3"):
            self._heading = False

    def handle_data(self, data: str) -> None:
        if self._open and not self._heading:
            self.found[self._open[-1]] += " ".join(data.split())


def empty_sections(page: str) -> list[str]:
    """Sections of a report that say next to nothing."""
    parser = Sections()
    parser.feed(page)
    assert len(parser.found) >= 8, parser.found.keys()
    return [name for name, text in parser.found.items() if len(text) < LEAST_CONTENT]


def best(name: str) -> list[Row]:
    """The variant `best` at smoke size, beside the recipe as it is, whose smoke run must be there."""
    from metier.core.store import Store
    from metier.report.compare import as_json, compare, find

    rows = smoke(name, "best")
    about = SPECIALISTS[name]
    sides = []
    for called in (f"{name}-best-smoke", f"{name}-smoke"):
        sides.append(find(f"{called}/{about['contender']}", Store(PLACE / f"store-{called}")))
    claimed = (about["metric"], about.get("group", "all"), about["scores"])
    compared = [r for r in as_json(compare(*sides))["rows"] if (r["metric"], r["group"], r["a_step"]) == claimed]
    unit = about["metric"].replace("_", " ")
    for r in compared[:1]:
        told = f"{name}: best less the notebook's settings at smoke size: {r['verdict']}"
        span = (round(r["low"], 4), round(r["high"], 4))
        better: Literal["higher", "lower"] = "higher" if r["higher_is_better"] else "lower"
        rows.append(Row(told, round(r["difference"], 4), 0, unit, better, n=r["n"], interval=span))
    return rows


# ---- rehearse --------------------------------------------------------------------------------------------------------


def rehearse(name: str, layers: int | None) -> list[Row]:
    """One recipe's training steps on the true architecture."""
    recipe = ROOT / "recipes" / f"{name}.yaml"
    more = ["--layers", str(layers)] if layers else []
    others = Others()
    metier(
        "run", str(recipe), "--rehearse", "--tokenizers", str(SHARED / "tokenizers"), "--store", str(PLACE / "store"),
        "--out", "runs", "-q", *more,
    )  # fmt: skip
    taken = f"others took {100 * others.share():.0f} % of the cores"
    told = json.loads((PLACE / "runs" / f"{name}-rehearse" / "rehearsal.json").read_text(encoding="utf-8"))
    return [row for step in told["steps"] for row in rehearsed(name, step, taken)]


def rehearsed(name: str, step: dict[str, Any], taken: str) -> list[Row]:
    """The rows of one training step."""
    what = f"{name}/{step['step']}"
    of = f"{step['layers']} of {step['of_layers']} layers"
    memory, predicted = step["memory_bytes"], step["memory_predicted_bytes"]
    gb = 1e9
    rows = [
        Row(f"{what}: peak memory with {of}", round(memory / gb, 2), round(MOST_BYTES / gb, 2), "GB", "lower"),
        Row(
            f"{what}: memory predicted {predicted / gb:.2f} GB, taken {memory / gb:.2f}, {of}",
            round(abs(predicted / memory - 1), 3), MOST_OFF, "share off", "lower",
        ),
        Row(f"{what}: memory of all layers, projected", round(step["all_memory_bytes"] / gb, 2), 25.77, "GB", "lower"),
        Row(f"{what}: parameters that train", step["trained"], step["parameters"], "of the bar", "lower"),
    ]  # fmt: skip
    if step["seconds_predicted"]:
        seconds, told = step["seconds"], step["seconds_predicted"]
        off = round(abs(told / seconds - 1), 3)
        rows += [
            Row(
                f"{what}: {told:.0f} s predicted, {seconds:.0f} s taken, {of}; {taken}",
                off,
                MOST_OFF,
                "share off",
                "lower",
            ),
            Row(f"{what}: hours for all of it, projected", round(step["all_seconds"] / 3600, 2), 1000, "h", "lower"),
        ]
    return rows


# ---- tables ----------------------------------------------------------------------------------------------------------


def stored() -> dict[str, dict[str, Any]]:
    """The rows by their case."""
    path = RESULTS / "recipes.json"
    return {row["case"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def one(rows: dict[str, dict[str, Any]], start: str) -> dict[str, Any] | None:
    return next((row for case, row in rows.items() if case.startswith(start)), None)


def readme_table() -> str:
    """Recipe, base, method, trained parameters, memory, time, before, after; from the rows alone."""
    rows = stored()
    lines = [
        "| recipe | base | method | trained parameters | memory | time | before | after |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for what, method in METHODS.items():
        name, _, step = what.partition("/")
        about = SPECIALISTS[name]
        trained, memory = one(rows, f"{what}: parameters"), one(rows, f"{what}: memory of all")
        hours = one(rows, f"{what}: hours")
        shown = [f"[{name}](recipes/{name}.yaml)", about["base"], method, "", "", "", "", ""]
        if trained:
            beside = trained["measured"] if "LoRA" in method else 0  # an adapter is counted with its base, as PEFT does
            share = 100 * trained["measured"] / (trained["bar"] + beside)
            shown[3] = f"{trained['measured'] / 1e6:,.1f} M ({share:.{1 if share >= 10 else 2}f} %)"
        if memory:
            shown[4] = f"{memory['measured']:.1f} GB"
        if hours:
            h = hours["measured"]
            shown[5] = f"{h:.0f} h" if h >= 10 else f"{h:.1f} h" if h >= 1 else f"{60 * h:.0f} min"
        if step == about["step"]:
            shown[6:] = [reached(rows, f"{name}-smoke: {when}") for when in ("before", "after")]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def reached(rows: dict[str, dict[str, Any]], case: str) -> str:
    row = rows.get(case)
    if row is None:
        return ""
    low, high = row["interval"]
    return f"{row['unit']} {row['measured']:.2f} [{low:.2f}, {high:.2f}]"


def ablation_table() -> str:
    """The notebook's settings and `best`, at smoke size."""
    rows = stored()
    lines = [
        "| recipe | n | base | notebook's settings | `best` | best less notebook's |",
        "|---|---:|---|---|---|---|",
    ]
    for name in SPECIALISTS:
        before, after = reached(rows, f"{name}-smoke: before"), reached(rows, f"{name}-smoke: after")
        other, step = reached(rows, f"{name}-best-smoke: after"), one(rows, f"{name}: best less")
        if not step:
            continue
        low, high = step["interval"]
        verdict = step["case"].rpartition(": ")[2]
        lines.append(
            f"| {name} | {step['n']} | {before} | {after} | {other} "
            f"| {step['measured']:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict} |"
        )
    return "\n".join(lines) + "\n"


def with_table(text: str, table: str) -> str:
    """A page with its table between the marks."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + table + END, text, flags=re.DOTALL)


def write_tables() -> None:
    for path, table in ((ROOT / "README.md", readme_table()), (ROOT / "docs/specialists.md", ablation_table())):
        path.write_text(with_table(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
