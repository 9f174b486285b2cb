"""Harms a small run in every way that we know, and counts what survives: `python -m benchmarks.torture [PART...]`.

kills     SIGKILL at random moments of the whole run, and amid saving
corrupt   every single byte of a checkpoint's files changed, and every file cut at every length
full      the disk is full from each write of the run on; files that may not grow past a size; a tmpfs of each size
signals   SIGINT, SIGTERM, SIGUSR1 and the time limit in each kind of loop
races     two runs on one store
moved     a store that is moved while a run is stopped; files and folders that are removed underneath
cost      what saving costs at the default interval (a few minutes, on a quiet machine)

After each fault the store must be whole to the byte, and the run, started again, must end with the same files as one
that nothing happened to. `--short` tries a few of each, in seconds, writes no results and exits 1 where anything is
lost. Rows go to `benchmarks/results/reliability.json`: how many faults were lost, of how many tried.

`--jobs N` tries them in N processes. `--keep FILE` writes each fault's outcome there as it comes, and a run with the
same file goes on where the one before was cut off; what was tried with other code does not count.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import SEED, Fault, Found, Torture, corrupt, kills, moved, races
from benchmarks.full_disk import full
from benchmarks.rows import Row, write
from benchmarks.small_run import fork, wait
from benchmarks.stopping import signals
from metier.cli.stopping import StopFlag
from metier.core.errors import MetierError
from metier.core.events import Event


def cost(torture: Torture) -> list[Row]:
    """The share of the time of training that saving takes, at the default interval, on the seedling's whole weights."""
    out = torture.world.folder / "cost.json"
    code = wait(fork(partial(_cost, torture.world.folder / "cost", out), torture.world.folder / "cost.err"))
    if code != 0:
        sys.exit((torture.world.folder / "cost.err").read_text())
    told = json.loads(out.read_text())
    what = f"{told['saves']} checkpoints of {told['bytes'] / 1e6:.0f} MB in {told['seconds']:.0f} s of training"
    case = f"checkpoints: {what} (seedling, whole weights, default interval)"
    return [Row(case, told["share"], 0.03, "of training time", "lower")]


def _cost(folder: Path, out: Path) -> int:
    import metier.train.job as job
    from metier.core.store import Store
    from metier.pipeline import run
    from metier.recipe import load_recipe

    saved: list[float] = []
    size = 0

    class Timed(job.Checkpoints):
        def save(self, step: int, tensors: Any, state: Any) -> None:
            nonlocal size
            began = time.monotonic()
            super().save(step, tensors, state)
            saved.append(time.monotonic() - began)
            size = sum(path.stat().st_size for path in (self.folder / f"checkpoint-{step}").iterdir())

    job.Checkpoints = Timed  # type: ignore[misc]
    folder.mkdir()
    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    rows = [{"text": " ".join(draw.choices(words, k=150))} for _ in range(4000)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        "name: cost\nsteps:\n  texts: {kind: documents, sources: [{path: texts.jsonl}]}\n"
        "  reader: {kind: pretrain, model: seedling, documents: texts, learning_rate: 1.0e-3}\n"
    )
    began = [0.0]

    def hear(event: Event) -> None:
        if event["event"] == "train" and not began[0]:
            began[0] = time.monotonic()
            stop._deadline = began[0] + 200

    with StopFlag(minutes=60) as stop:
        try:
            run(load_recipe(folder / "recipe.yaml"), Store(folder / "store"), listeners=[hear], stop=stop)
        except MetierError as error:
            if error.exit_code != 75:
                raise
            saved.pop()  # the one that was asked for
    seconds = time.monotonic() - began[0]
    out.write_text(json.dumps({"share": sum(saved) / seconds, "seconds": seconds, "saves": len(saved), "bytes": size}))
    return 0


# ---- all of it -----------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Torture, int], list[Fault]], int, int]] = {
    "kills": (kills, 200, 2),
    "corrupt": (corrupt, 1, 4001),
    "full": (full, 1000, 1),
    "signals": (signals, 20, 1),
    "races": (races, 50, 1),
    "moved": (moved, 20, 1),
}
"""Each part, and how many faults of a kind it tries in the long form and in the short one; corrupt: the stride."""
CASES = {
    "kills": "SIGKILL at random moments",
    "corrupt": "changed bytes and cuts of a checkpoint not noticed",
    "full": "a full disk",
    "signals": "a request to stop in each kind of loop",
    "races": "two runs on one store",
    "moved": "a moved store, or a file removed from it",
}


class Ledger:
    """A file with a line for each fault that was tried: part, number, outcome, of this code. Several may write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._code = _code()

    def rows(self, part: str) -> dict[int, list[list[Any]]]:
        """What is known of a part: fault's number -> [what, survived, count]."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["number"]: row["found"] for row in found if (row["part"], row["code"]) == (part, self._code)}

    def add(self, part: str, number: int, found: Found) -> None:
        row = {"part": part, "number": number, "code": self._code, "found": [[*k, v] for k, v in found.items()]}
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (json.dumps(row) + "\n").encode())
        finally:
            os.close(file)


def _code() -> str:
    """What the program and the faults are made of."""
    root = Path(__file__).parent
    paths = [root / f"{name}.py" for name in ("faults", "full_disk", "small_run", "stopping")]
    paths += sorted((root.parent / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, "cost"]))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--count", type=int, help="instead of the usual number; writes no results")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FILE")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)  # which of --jobs this process is
    asked = parser.parse_args()
    if unknown := set(asked.parts) - {*PARTS, "cost"}:
        parser.error(f"unknown: {unknown.pop()}")
    with tempfile.TemporaryDirectory(prefix="metier-torture-") as folder:
        ledger = Ledger(asked.keep or Path(folder) / "kept.jsonl")
        worlds: dict[bool, Torture] = {}
        for name in asked.parts or PARTS:
            if name == "cost":
                write("reliability", "python -m benchmarks.torture cost", cost(Torture(Path(folder) / "cost")))
            elif asked.jobs > 1 and asked.job is None:
                _share_out(name, asked, ledger)
            else:
                wide = name == "signals" and not asked.short
                if wide not in worlds:
                    worlds[wide] = Torture(Path(folder) / ("wide" if wide else "plain"), short=asked.short, wide=wide)
                _try(name, worlds[wide], asked, ledger)
        lost = 0 if asked.job is not None else sum(_sum(name, asked, ledger) for name in asked.parts or PARTS)
    if lost:
        sys.exit(f"{lost} lost")


def _share_out(name: str, asked: argparse.Namespace, ledger: Ledger) -> None:
    """Let processes of their own try the part's faults; raises where one of them broke."""
    command = [sys.executable, "-m", "benchmarks.torture", name, "--keep", str(ledger.path), "--jobs", str(asked.jobs)]
    command += ["--short"] * asked.short + (["--count", str(asked.count)] if asked.count else [])
    running = [subprocess.Popen([*command, "--job", str(job)]) for job in range(asked.jobs)]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"{name}: a process broke; what was tried is kept in {ledger.path}")


def _try(name: str, torture: Torture, asked: argparse.Namespace, ledger: Ledger) -> None:
    """Try the faults of a part that are not known yet, those of this process."""
    plan, long, short = PARTS[name]
    known = ledger.rows(name)
    for number, fault in enumerate(plan(torture, asked.count or (short if asked.short else long))):
        if number not in known and number % asked.jobs == (asked.job or 0):
            torture.draw = random.Random(f"{SEED} {name} {number}")
            ledger.add(name, number, fault())


def _sum(name: str, asked: argparse.Namespace, ledger: Ledger) -> int:
    """Print what became of a part's faults, and write its row. Returns how many were lost."""
    if name == "cost":
        return 0
    found: Found = Counter()
    for rows in ledger.rows(name).values():
        for what, survived, count in rows:
            found[what, survived] += count
    tried, lost = sum(found.values()), sum(count for (_, survived), count in found.items() if not survived)
    for what in sorted({what for what, _ in found}):
        good, bad = found[what, True], found[what, False]
        print(f"{name:8} {what:28} {good + bad:7} tried {good:7} survived", flush=True)
    print(json.dumps({"part": name, "tried": tried, "lost": lost}), flush=True)
    if not asked.short and asked.count is None:
        row = Row(f"{CASES[name]}: lost, of {tried} tried", lost, 0, "faults", "lower", n=tried)
        write("reliability", f"python -m benchmarks.torture {name}", [row])
    return lost


if __name__ == "__main__":
    main()
