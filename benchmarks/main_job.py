"""Measures what the main job promises: `python -m benchmarks.main_job [quickstart|material|answering ...]`.

quickstart  the recipe in an empty store: time, memory, the specialist's scores, and whether its artifacts are the same
            bytes as those of another run: the one that `make demo` left here, or else a second one
material    a recipe over MedQuAD and stories260K, which nobody here wrote, from the folder beside the project
answering   how fast `metier --help` and `metier plan` answer, and whether they import torch

Every figure goes to `benchmarks/results/main-job.json`, with its bar.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import Row, write

ROOT = Path(__file__).resolve().parent.parent
METIER = [str(Path(sys.executable).with_name("metier"))]
SHARED = ROOT.parent / "shared"


def main() -> None:
    parts = {"quickstart": quickstart, "material": material, "answering": answering}
    for name in sys.argv[1:] or list(parts):
        write("main-job", f"python -m benchmarks.main_job {name}", parts[name]())


def quickstart() -> list[Row]:
    """One run in an empty store, and a second one to compare it with: the one that `make demo` left, or another."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory = timed_run(ROOT / "recipes/quickstart.yaml", Path(folder) / "a")
        first = artifact_digests(Path(folder) / "a/store")
        second = {k: v for k, v in artifact_digests(ROOT / ".metier").items() if k in first}
        if len(second) < len(first):
            timed_run(ROOT / "recipes/quickstart.yaml", Path(folder) / "b")
            second = artifact_digests(Path(folder) / "b/store")
        board = json.loads((Path(folder) / "a/runs/quickstart/leaderboards_full.json").read_text(encoding="utf-8"))
    specialist, base = (score(board, name, "token_f1", "all") for name in ("specialist", "seedling"))
    taught, untaught = (score(board, name, "token_f1", "corpus-only") for name in ("specialist", "pairs-only"))
    return [
        Row("quickstart, wall time of the recipe", seconds, 480, "s", "lower"),
        Row("quickstart, peak memory of the process", memory / 1e9, 3, "GB", "lower"),
        estimate("specialist, token F1 on all test questions", specialist, 0.5),
        Row(
            "specialist's token F1 over the base's", specialist["mean"] / base["mean"], 3, "ratio", "higher", "seedling"
        ),
        estimate("specialist, token F1 on facts that only the corpus holds", taught, untaught["high"]),
        Row(
            "gap between the intervals of CPT+SFT and SFT alone, corpus-only facts",
            taught["low"] - untaught["high"],
            0,
            "token F1",
            "higher",
            "pairs-only",
        ),
        Row("artifacts that differ between two runs", differing(first, second), 0, "artifacts", "lower", n=len(first)),
    ]


def material() -> list[Row]:
    """A real model on real text: bits per byte on held-out MedQuAD before and after."""
    if not SHARED.is_dir():
        raise SystemExit("material: the folder ../shared is not here")
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = timed_run(ROOT / "benchmarks/medquad.yaml", Path(folder))
        board = json.loads((Path(folder) / "runs/medquad/leaderboards_full.json").read_text(encoding="utf-8"))
        report = (Path(folder) / "runs/medquad/report.html").stat().st_size
    before = score(board, "../../shared/models/stories260K", "bits_per_byte", "articles")
    after = score(board, "reader", "bits_per_byte", "articles")
    print(f"medquad: {seconds:.0f} s, report of {report} bytes")
    return [
        Row(
            "held-out MedQuAD, bits per byte of stories260K after training",
            after["mean"],
            before["low"],
            "bits per byte",
            "lower",
            "stories260K before",
            n=after["n"],
            interval=(after["low"], after["high"]),
        )
    ]


def answering() -> list[Row]:
    """Median of nine calls each, after one that leaves the modules compiled; and what they import."""
    calls = {"metier --help": ["--help"], "metier plan": ["plan", str(ROOT / "recipes/quickstart.yaml")]}
    rows = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for name, arguments in calls.items():
        subprocess.run([*METIER, *arguments], check=True, capture_output=True, cwd=ROOT, env=environment)
        times, spent = [], []
        for _ in range(9):
            before, start = os.times(), time.perf_counter()
            subprocess.run([*METIER, *arguments], check=True, capture_output=True, cwd=ROOT, env=environment)
            times.append(time.perf_counter() - start)
            after = os.times()
            spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
        rows.append(Row(f"{name}, wall time (median of 9)", median(times), 0.5, "s", "lower", n=9))
        rows.append(Row(f"{name}, processor time (median of 9)", median(spent), 0.5, "s", "lower", n=9))
        traced = subprocess.run(
            [sys.executable, "-X", "importtime", METIER[0], *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        heavy = sum(line.rsplit("|", 1)[-1].strip() == "torch" for line in traced.stderr.splitlines())
        rows.append(Row(f"{name}, imports of torch", heavy, 0, "imports", "lower"))
    return rows


def timed_run(recipe: Path, folder: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of `metier run` in a process of its own and an empty store."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [*METIER, "run", str(recipe), "--store", str(folder / "store"), "--out", str(folder / "runs")]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{recipe.name}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def artifact_digests(folder: Path) -> dict[str, str]:
    """The hashes of the files of every artifact in a store, by its key."""
    records = (folder / "objects").glob("*/run.json")
    return {p.parent.name: json.dumps(json.loads(p.read_text(encoding="utf-8"))["outputs"]) for p in records}


def differing(a: dict[str, str], b: dict[str, str]) -> int:
    """How many artifacts are not in both, or not the same bytes in both."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())


def score(board: dict[str, Any], contender: str, metric: str, group: str) -> dict[str, Any]:
    """One row of the leaderboard: mean, low, high, n."""
    scores = next(c["scores"] for c in board["contenders"] if c["name"] == contender)
    return next(row for row in scores if (row["metric"], row["group"]) == (metric, group))


def estimate(case: str, row: dict[str, Any], bar: float) -> Row:
    """A score with its n and interval beside its bar."""
    return Row(case, row["mean"], bar, "token F1", "higher", n=row["n"], interval=(row["low"], row["high"]))


if __name__ == "__main__":
    main()
