"""What Ray does for Metier, with a Ray on this machine: `python -m benchmarks.ray [kills] [near_duplicates]`, rows in
benchmarks/results/scale.json.

    kills            a step that two workers train is run ten times, and each time one of them is killed at a random
                     moment between its first worker's start and the end of the step as it took undisturbed; how many
                     runs did not end by themselves with the losses and the weights of that one
    near_duplicates  the step that leaves out near-duplicates, on two Ray workers against one, in turns

Both go through what `metier run --on local` does. A few minutes each, on a quiet machine.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, write

COMMAND = "python -m benchmarks.ray"
KILLS = 10
TEXTS = 800
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
    wanted = sys.argv[1:] or ["kills"]
    unknown = set(wanted) - {"kills"}
    if unknown:
        raise SystemExit(f"no such measurement: {', '.join(sorted(unknown))}")
    for name in wanted:
        write("scale", f"{COMMAND} {name}", kills())


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
            lost, times = 0, []
            for number in range(KILLS):
                hurt = _Run(cluster, folder / f"hurt-{number}")
                hurt.go((draw.uniform(0, whole.seconds), draw.randrange(2)))
                same = hurt.files() == whole.files() and hurt.killed
                lost += not same
                times.append(hurt.seconds)
                print(
                    f"{number}: worker {hurt.killed} killed after {hurt.after:.1f} s at step {hurt.at} of {whole.at}, "
                    f"{'same' if same else 'LOST'}, {hurt.seconds:.1f} s",
                    flush=True,
                )
                shutil.rmtree(folder / f"hurt-{number}")
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
                    threading.Timer(kill[0], self._kill, (event["workers"][kill[1]]["process"], kill)).start()

        out, scratch = self.folder / "build/files", self.folder / "scratch"
        ctx = Context("reader", out, self.folder / "build/measured", scratch, Events("reader", None, [hear]), sources)
        self.cluster.run(Pretrain.model_validate(STEP), ctx)
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
