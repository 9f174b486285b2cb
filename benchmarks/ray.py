"""What Ray does for Metier, with a Ray on this machine: `python -m benchmarks.ray [kills] [near_duplicates]`, rows in
benchmarks/results/scale.json.

    kills            a step that two workers train is run ten times, and each time one of them is killed at a random
                     moment between its first worker's start and the end of the step as it took undisturbed; how many
                     runs did not end by themselves with the losses and the weights of that one
    near_duplicates  the part of a `documents` step that leaves out near-duplicates, on two Ray workers with two cores
                     against one worker with all of Ray held to one core, in turns

Both use what `metier run --on local` uses. A few minutes each, on a quiet machine; near_duplicates needs ../shared.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import Row, write

COMMAND = "python -m benchmarks.ray"
KILLS = 10
TURNS = 3
COPIES = 3
TEXTS = 96
MARINE = Path(__file__).resolve().parents[1] / "recipes/data/marine/corpus.jsonl"
STEP = {
    "model": "base",
    "documents": "data",
    "block_size": 128,
    "batch_size": 4,
    "epochs": 2,
    "precision": "fp32",
    "log_every": 1,
    "resources": {"workers": 2, "cpus": 1},
}


def main() -> None:
    if sys.argv[1:2] == ["--near"]:
        near_here(Path(sys.argv[2]), int(sys.argv[3]))
        return
    measured = {"kills": kills, "near_duplicates": near_duplicates}
    wanted = sys.argv[1:] or list(measured)
    unknown = [name for name in wanted if name not in measured]
    if unknown:
        raise SystemExit(f"no such measurement: {', '.join(unknown)}; known are {', '.join(measured)}")
    for name in wanted:
        write("scale", f"{COMMAND} {name}", measured[name]())


# ---- near-duplicates -------------------------------------------------------------------------------------------------


def near_duplicates() -> list[Row]:
    """One worker with all of Ray on one core, two on two, in turns."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(prefix="metier-") as name:
        folder = Path(name)
        count = _write_pages(folder / "pages.jsonl")
        ratios, speeds, digests = [], [], set()
        for turn in range(TURNS):
            found = [_near_apart(folder, workers, cores[:workers]) for workers in (1, 2)]
            digests |= {one["digest"] for one in found}
            ratios.append(found[0]["seconds"] / found[1]["seconds"])
            speeds.append(tuple(one["seconds"] for one in found))
            print(f"turn {turn}: {speeds[-1][0]:.1f} s and {speeds[-1][1]:.1f} s, {ratios[-1]:.2f}", flush=True)
        size = (folder / "pages.jsonl").stat().st_size / 1e6
    if len(digests) != 1:
        raise SystemExit("two workers left other rows out than one")
    one, two = (median(times) for times in zip(*speeds, strict=True))
    what = (
        f"near-duplicate removal on two Ray workers (two cores) against one (all of it on one core), {count:,} pages "
        f"of {size:.0f} MB, the same rows left out ({one:.1f} -> {two:.1f} s)"
    )
    interval = (round(min(ratios), 2), round(max(ratios), 2))
    return [Row(what, round(median(ratios), 2), 1.6, "x", "higher", n=TURNS, interval=interval)]


def _near_apart(folder: Path, workers: int, cores: list[int]) -> dict[str, Any]:
    held = ["taskset", "-c", ",".join(map(str, cores))]
    command = [*held, sys.executable, "-m", "benchmarks.ray", "--near", str(folder), str(workers)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def near_here(folder: Path, workers: int) -> None:
    """The step `documents` with so many workers: seconds that leaving out near-duplicates took, and what it left."""
    from metier.core.events import Events
    from metier.core.fingerprint import digest, file_digest, tree
    from metier.core.stage import Context, Source
    from metier.core.store import Store
    from metier.core.workers import SPREAD
    from metier.data import gates
    from metier.data.stage import Documents
    from metier.scale.cluster import Cluster
    from metier.scale.spread import RaySpread

    took: list[float] = []
    whole = gates.drop_near

    def timed(*inputs: Any, **named: Any) -> None:
        began = time.monotonic()
        whole(*inputs, **named)
        took.append(time.monotonic() - began)

    gates.drop_near = timed
    stage = Documents.model_validate({"sources": [{"path": "pages.jsonl"}], "duplicates": {"near": True}})
    place = Path(tempfile.mkdtemp(dir=folder))
    for name in ("files", "measured", "scratch"):
        (place / name).mkdir()
    sources = {"pages.jsonl": Source("pages.jsonl", (folder / "pages.jsonl",), "pages.jsonl", "0")}
    ctx = Context("pages", place / "files", place / "measured", place / "scratch", Events("pages"), sources)
    with Cluster("local", Store(place / "store")) as cluster:
        assert len(cluster.nodes) == 1
        spread = RaySpread(workers, True, {"CPU": 1.0})
        SPREAD.set(spread)
        stage.run(ctx)  # reading goes to the workers too, so they are warm when it comes to near-duplicates
    made = {name: file_digest(path) for name, path in tree(ctx.out).items()}
    print(json.dumps({"seconds": took[0], "digest": digest(made)}))


def _write_pages(path: Path) -> int:
    """MedQuAD's answers, those of one subject as one page, COPIES times with other words: so that there is enough."""
    from benchmarks.work import clean, medquad, need_shared

    need_shared()
    pages: dict[str, list[str]] = {}
    for row in medquad():
        pages.setdefault(f"{row['source']} {row['focus']}", []).append(clean(row["answer"]))
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for copy in range(COPIES):
            for answers in pages.values():
                text = "\n".join(answers)
                text = text if copy == 0 else " ".join(f"{word}{copy}" for word in text.split(" "))
                file.write(json.dumps({"id": str(count), "text": text}) + "\n")
                count += 1
    return count


# ---- kills -----------------------------------------------------------------------------------------------------------


def kills() -> list[Row]:
    """One undisturbed run, then ten with a kill each."""
    from metier.core.store import Store
    from metier.scale.cluster import Cluster

    os.environ["METIER_CHECKPOINT_SECONDS"] = "1"
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="metier-") as name:
        folder = Path(name)
        _write_texts(folder / "data")
        with Cluster("local", Store(folder / "store")) as cluster:
            whole = _Run(cluster, folder / "whole")
            whole.go(None)
            print(f"undisturbed: {whole.seconds:.1f} s from the workers' start", flush=True)
            lost, number = 0, 0
            while number < KILLS:
                hurt = _Run(cluster, folder / f"hurt-{number}")
                hurt.go((draw.uniform(0, whole.seconds), draw.randrange(2)))
                if hurt.killed is None:  # it was through already: this one does not count
                    shutil.rmtree(hurt.folder)
                    continue
                same = hurt.files() == whole.files()
                lost += not same
                print(
                    f"{number}: worker {hurt.killed} killed after {hurt.after:.1f} s at step {hurt.at} of {whole.at}, "
                    f"{'same' if same else 'LOST'}, {hurt.seconds:.1f} s",
                    flush=True,
                )
                shutil.rmtree(hurt.folder)
                number += 1
    what = f"a Ray run of two workers, one killed (SIGKILL) at a random moment, {KILLS} times: runs whose losses or "
    return [Row(what + "weights are not those of an undisturbed one, bit for bit", lost, 0, "runs", "lower", n=KILLS)]


class _Run:
    """One run of the step."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.seconds = self.after = 0.0
        self.at = 0
        self.killed: int | None = None
        self._begun: float | None = None
        self._timer: threading.Timer | None = None

    def go(self, kill: tuple[float, int] | None) -> None:
        """Run it. kill: so many seconds after its workers' start, and which of them."""
        from metier.core.events import Events
        from metier.core.stage import Context, Source
        from metier.models.builtin import resolve
        from metier.train.stage import Pretrain

        for name in ("build/files", "build/measured", "scratch"):
            (self.folder / name).mkdir(parents=True)
        base = resolve("seedling", self.folder)
        data = self.folder.parent / "data"
        sources = {
            "base": Source("base", base.paths, base.link, base.digest),
            "data": Source("data", (data,), "d", "0"),
        }

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "train":
                self.at = event["at"] if self.killed is None else self.at
            if event["event"] == "workers" and self._begun is None:
                self._begun = time.monotonic()
                if kill is not None:
                    process = event["workers"][kill[1]]["process"]
                    self._timer = threading.Timer(kill[0], self._kill, (process, kill))
                    self._timer.start()

        out, scratch = self.folder / "build/files", self.folder / "scratch"
        ctx = Context("reader", out, self.folder / "build/measured", scratch, Events("reader", None, [hear]), sources)
        self.cluster.run(Pretrain.model_validate(STEP), ctx)
        if self._timer is not None:
            self._timer.cancel()
        assert self._begun is not None
        self.seconds = time.monotonic() - self._begun

    def _kill(self, process: int, kill: tuple[float, int]) -> None:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it was through already
            return
        self.after, self.killed = kill[0], kill[1]

    def files(self) -> dict[str, bytes]:
        """All that the step made: weights, and a line of losses for each optimizer step."""
        return {path.name: path.read_bytes() for path in (self.folder / "build/files").iterdir() if path.is_file()}


def _write_texts(folder: Path) -> None:
    folder.mkdir()
    with MARINE.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, TEXTS)]
    texts = [json.dumps({"id": str(i), "text": row["text"]}) + "\n" for i, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("".join(texts), encoding="utf-8")
    for name in ("heldout", "replay"):
        (folder / f"{name}.jsonl").touch()
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}', encoding="utf-8")


if __name__ == "__main__":
    main()
